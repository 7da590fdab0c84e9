//! One run's world: the server's data and clock, the books that are compared with it, and what is written down.

use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keybrake::clock::Clock;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::books::Books;
use super::mutants::Mutant;
use super::owed::Owed;
use super::process::{Process, passed_ms};
use super::rng::Rng;
use super::server::Node;
use super::shadow::{Shadow, Told};
use super::store::{Reply, Store};
use super::vendor::Vendor;
use crate::redis::Connection;

/// From asking the ledger until the first byte must leave.
pub(super) const SEND_WITHIN_MS: i64 = 5_000;
/// Commands that no client would send, after a run beside a real server.
const DISTURBED: u32 = 200;
/// The longest life of a request once it is sent; what is slow at the vendor stays below it.
pub(super) const REQUEST_MS: i64 = 25_000;

/// How bad the network is: so many messages in a thousand, and milliseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weather {
    pub(super) lost: u64,
    pub(super) twice: u64,
    pub(super) late: u64,
    pub(super) late_ms: u64,
    pub(super) usual_ms: u64,
    /// How often a process is frozen between an answer of the ledger and reading it.
    pub(super) freezes: u64,
}

impl Weather {
    pub(super) const FINE: Self = Self {
        lost: 0,
        twice: 0,
        late: 0,
        late_ms: 0,
        usual_ms: 1,
        freezes: 0,
    };

    pub(super) fn delay_ms(self, rng: &Rng) -> u64 {
        if rng.chance(self.late) {
            rng.below(self.late_ms + 1)
        } else {
            rng.below(self.usual_ms + 1)
        }
    }
}

/// The time that nobody sets: the vendor's, and what all clocks are off from.
#[derive(Clone, Copy, Debug)]
pub(super) struct TrueTime {
    pub(super) begun: Instant,
    /// Unix time of the run's first moment.
    pub(super) base_ms: i64,
}

impl Clock for TrueTime {
    fn now_ms(&self) -> i64 {
        self.base_ms + passed_ms(self.begun)
    }

    fn boot_ms(&self) -> i64 {
        passed_ms(self.begun)
    }
}

pub(super) struct World {
    pub(super) rng: Arc<Rng>,
    pub(super) mutant: Option<Mutant>,
    /// How long a client waits for the server.
    pub(super) timeout: Duration,
    pub(super) time: TrueTime,
    pub(super) server_off_ms: AtomicI64,
    /// The latest time that the server's clock has shown.
    latest_ms: AtomicI64,
    pub(super) weather: Mutex<Weather>,
    pub(super) node: Mutex<Node>,
    pub(super) vendor: Mutex<Vendor>,
    pub(super) books: Mutex<Books>,
    pub(super) owed: Mutex<Owed>,
    /// A real server that is asked the same.
    shadow: Mutex<Option<Shadow>>,
    violation: Mutex<Option<String>>,
    pub(super) over: AtomicBool,
    pub(super) ended: Notify,
    trace: Option<Mutex<Vec<String>>>,
    counts: Mutex<BTreeMap<&'static str, u64>>,
    /// A process has sent the ledger a step.
    pub(super) stepped: Notify,
    numbers: AtomicU64,
}

impl Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").finish_non_exhaustive()
    }
}

impl World {
    pub(super) fn new(
        rng: Arc<Rng>,
        time: TrueTime,
        (weather, timeout): (Weather, Duration),
        vendor: Vendor,
        (mutant, trace): (Option<Mutant>, bool),
    ) -> Arc<Self> {
        Arc::new(Self {
            rng,
            mutant,
            timeout,
            time,
            server_off_ms: AtomicI64::new(0),
            latest_ms: AtomicI64::new(0),
            weather: Mutex::new(weather),
            node: Mutex::default(),
            vendor: Mutex::new(vendor),
            books: Mutex::default(),
            owed: Mutex::default(),
            shadow: Mutex::default(),
            violation: Mutex::new(None),
            over: AtomicBool::new(false),
            ended: Notify::new(),
            trace: trace.then(Mutex::default),
            counts: Mutex::default(),
            stepped: Notify::new(),
            numbers: AtomicU64::new(0),
        })
    }

    pub(super) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::SeqCst)
    }

    pub(super) fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    pub(super) fn count(&self, what: &'static str) {
        *self.counts.lock().unwrap().entry(what).or_default() += 1;
    }

    pub(super) fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.counts.lock().unwrap().clone()
    }

    /// Takes note of what happens, when somebody wants to read it.
    pub(super) fn tell(&self, line: impl FnOnce() -> String) {
        if let Some(trace) = &self.trace {
            let ms = self.time.boot_ms();
            trace
                .lock()
                .unwrap()
                .push(format!("{:>9}.{:03} {}", ms / 1_000, ms % 1_000, line()));
        }
    }

    pub(super) fn trace(&self) -> Vec<String> {
        self.trace
            .as_ref()
            .map(|trace| trace.lock().unwrap().clone())
            .unwrap_or_default()
    }

    pub(super) fn violation(&self) -> Option<String> {
        self.violation.lock().unwrap().clone()
    }

    pub(super) fn check(&self, checked: Result<(), String>) {
        if let Err(wrong) = checked {
            self.tell(|| format!("WRONG: {wrong}"));
            let at = self.time.boot_ms();
            self.violation
                .lock()
                .unwrap()
                .get_or_insert_with(|| format!("after {}.{:03} s: {wrong}", at / 1_000, at % 1_000));
            self.over.store(true, Ordering::SeqCst);
            self.ended.notify_one();
        }
    }

    /// The server runs a command, and everything that it wrote is looked at.
    pub(super) fn execute(&self, words: &[String], from: &Process) -> Reply {
        let mut node = self.node.lock().unwrap();
        let server_ms = self.time.now_ms() + self.server_off_ms.load(Ordering::SeqCst);
        let latest_ms = self
            .latest_ms
            .fetch_max(server_ms, Ordering::SeqCst)
            .max(server_ms);
        let now_ms = if self.is(Mutant::ClientClock) {
            from.now_ms()
        } else {
            server_ms
        };
        let done = node.execute(words, now_ms, self.mutant);
        let data = Arc::clone(&node.data);
        drop(node);
        let mut data = data.lock().unwrap();
        if let Some(shadow) = &mut *self.shadow.lock().unwrap() {
            let told = Told::by(&mut data);
            let alike = shadow.asked(words, now_ms * 1_000, &told, &done.reply);
            self.check(alike);
        }
        let ran = self
            .owed
            .lock()
            .unwrap()
            .ran(from.number, words, &done.reply, &data.store);
        self.check(ran);
        let written = data.store.take_written();
        if !written.is_empty() {
            if !done.may_write {
                self.check(Err(
                    "a server that has just started wrote before a witness had opened it".to_owned(),
                ));
            }
            let seen = data.store.text("kb:{default}:meta", Some("seen"));
            if seen
                .and_then(|seen| seen.parse::<i64>().ok())
                .is_some_and(|seen| seen > latest_ms)
            {
                self.check(Err("the ledger's time is ahead of its server's clock".to_owned()));
            }
            let checked = self.books.lock().unwrap().look(&data.store, &written);
            self.check(checked);
        }
        done.reply
    }

    /// The data as it is now.
    pub(super) fn copy(&self) -> Store {
        let data = Arc::clone(&self.node.lock().unwrap().data);
        data.lock().unwrap().store.clone()
    }

    /// The data of a replica, which has everything so far.
    pub(super) fn replica(&self) -> Store {
        if let Some(shadow) = &mut *self.shadow.lock().unwrap() {
            shadow.keep();
        }
        self.copy()
    }

    /// From now on a real server is asked the same.
    pub(super) fn beside(&self, connection: Connection) {
        *self.shadow.lock().unwrap() = Some(Shadow::new(connection));
    }

    /// At the end: whether the real server holds the same, and whether it does after commands that no client would send.
    pub(super) fn compare_with_shadow(&self) {
        let Some(mut shadow) = self.shadow.lock().unwrap().take() else {
            return;
        };
        self.check(shadow.compare(&self.copy().dump()));
        for _ in 0..DISTURBED {
            let (Some(words), None) = (shadow.disturbed(&self.rng), self.violation()) else {
                break;
            };
            let now_ms = self.time.now_ms();
            let Some(reply) = self.node.lock().unwrap().execute_limited(&words, now_ms) else {
                continue;
            };
            let data = Arc::clone(&self.node.lock().unwrap().data);
            let told = Told::by(&mut data.lock().unwrap());
            self.count("disturbed");
            self.check(shadow.asked(&words, now_ms * 1_000, &told, &reply));
        }
        self.check(shadow.compare(&self.copy().dump()));
    }

    /// The server goes away.
    pub(super) fn go_down(&self) {
        self.node.lock().unwrap().up = false;
    }

    /// The server starts again, or another takes its place: with its data or with older data.
    pub(super) fn start_again(&self, data: Option<Store>) {
        let mut node = self.node.lock().unwrap();
        node.start();
        if let Some(shadow) = &mut *self.shadow.lock().unwrap() {
            shadow.start_again();
            if let Some(store) = &data {
                shadow.take_kept(&store.expiring());
            }
        }
        if let Some(store) = data {
            let mut books = self.books.lock().unwrap();
            let checked = books.replaced(&store);
            self.owed.lock().unwrap().replaced(&store);
            if books.stopped && store.hash("kb:{default}:stops").is_empty() {
                // Within the lag, a stop is lost like everything else.
                books.stopped = false;
                self.count("stops lost with their server");
            }
            drop(books);
            node.take(store);
            self.check(checked);
        }
        node.load_again();
    }

    /// At the end: what is still open, and whether the books are the journal.
    pub(super) fn close_books(&self) {
        let store = self.copy();
        let checked = self.books.lock().unwrap().closed(&store);
        self.check(checked);
    }
}
