//! One server that nothing goes wrong with but what a test asks for, in a time that the test sets: for what takes days.

use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use keybrake::clock::{Clock as _, ManualClock};
use keybrake::ledger::redis::RedisLedger;
use keybrake::ledger::redis::server::{Connection, Server};
use redis::{Cmd, RedisResult, Value};

use super::server::{Node, value, words};

/// A server with its data, and the clock of everybody who uses it.
#[derive(Clone)]
pub struct Alone(Arc<Inner>);

struct Inner {
    clock: Arc<ManualClock>,
    node: Mutex<Node>,
    /// By how much the server's clock is ahead of everybody's.
    ahead_ms: AtomicI64,
    /// How long a command takes until it runs.
    late_ms: AtomicI64,
    random: AtomicU64,
    asked: Mutex<Vec<Asked>>,
    /// What happens after so many more looks.
    then: Mutex<Option<Then>>,
}

/// After how many looks, and what.
type Then = (usize, Box<dyn FnOnce() + Send>);

/// A command that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The function's name without its version, or the command's.
    pub name: String,
    /// How many words it had.
    pub words: usize,
}

impl fmt::Debug for Alone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Alone").finish_non_exhaustive()
    }
}

impl Alone {
    /// An empty server at this time, Unix milliseconds.
    pub fn at(now_ms: i64) -> Self {
        Self(Arc::new(Inner {
            clock: Arc::new(ManualClock::at(now_ms)),
            node: Mutex::default(),
            ahead_ms: AtomicI64::new(0),
            late_ms: AtomicI64::new(0),
            random: AtomicU64::new(0),
            asked: Mutex::default(),
            then: Mutex::new(None),
        }))
    }

    /// A ledger on it, as a process of its own opens it, with `timeout_ms`.
    pub async fn open(&self, timeout_ms: u64) -> RedisLedger {
        let (server, timeout) = (Arc::new(self.clone()), Duration::from_millis(timeout_ms));
        let clock = Arc::clone(&self.0.clock);
        RedisLedger::over(
            server,
            timeout,
            clock,
            Some(b"a master key of the suite, 32 bytes!"),
        )
        .await
        .expect("opens")
    }

    /// The server starts again, with all of its data.
    pub fn restart(&self) {
        let mut node = self.0.node.lock().unwrap();
        node.start();
        node.load_again();
    }

    /// Moves everybody's time forward.
    pub fn advance_ms(&self, ms: i64) {
        self.0.clock.advance_ms(ms);
    }

    /// Sets the server's wall clock so much ahead of everybody's.
    pub fn set_ahead_ms(&self, ms: i64) {
        self.0.ahead_ms.store(ms, Ordering::SeqCst);
    }

    /// From now on a command runs so long after it was sent.
    pub fn set_late_ms(&self, ms: i64) {
        self.0.late_ms.store(ms, Ordering::SeqCst);
    }

    /// For how long a key of the ledger is still kept, in milliseconds; `None` for ever, or when there is no such key.
    pub fn kept_for_ms(&self, key: &str) -> Option<i64> {
        let node = self.0.node.lock().unwrap();
        let data = node.data.lock().unwrap();
        data.store
            .kept_for_ms(&format!("kb:{{default}}:{key}"), self.now_ms())
    }

    /// Whether there is such a key of the ledger now.
    pub fn has(&self, key: &str) -> bool {
        let words = ["EXISTS".to_owned(), format!("kb:{{default}}:{key}")];
        self.run(&words) == super::store::Reply::Int(1)
    }

    /// Has this done when the ledger's function `look` has been called so many times more, before its answer arrives.
    pub fn after_looks(&self, looks: usize, then: impl FnOnce() + Send + 'static) {
        *self.0.then.lock().unwrap() = Some((looks, Box::new(then)));
    }

    /// What arrived since the last time.
    pub fn take_asked(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.0.asked.lock().unwrap())
    }

    /// The server's time, Unix milliseconds.
    pub fn now_ms(&self) -> i64 {
        self.0.clock.now_ms() + self.0.ahead_ms.load(Ordering::SeqCst)
    }

    fn looked(&self) {
        let mut then = self.0.then.lock().unwrap();
        if let Some((looks, _)) = &mut *then {
            *looks = looks.saturating_sub(1);
        }
        let now = then.take_if(|(looks, _)| *looks == 0);
        drop(then);
        if let Some((_, now)) = now {
            now();
        }
    }

    fn run(&self, words: &[String]) -> super::store::Reply {
        let mut node = self.0.node.lock().unwrap();
        node.data.lock().unwrap().now_us = self.now_ms() * 1_000;
        node.command(words, None)
    }
}

#[async_trait]
impl Server for Alone {
    async fn connect(&self) -> RedisResult<Arc<dyn Connection>> {
        Ok(Arc::new(self.clone()))
    }

    fn boot_ms(&self) -> i64 {
        self.0.clock.boot_ms()
    }

    fn random(&self) -> u8 {
        // Another number each time, well mixed: names that are made of them do not come twice.
        let mut number = self.0.random.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::SeqCst);
        number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (number >> 56) as u8
    }
}

#[async_trait]
impl Connection for Alone {
    async fn send(&self, command: &Cmd) -> RedisResult<Value> {
        self.0.clock.advance_ms(self.0.late_ms.load(Ordering::SeqCst));
        let words = words(command);
        let name = match words.as_slice() {
            [command, function, ..] if command == "FCALL" => function.split('_').nth(1),
            _ => words.first().map(String::as_str),
        };
        self.0.asked.lock().unwrap().push(Asked {
            name: name.unwrap_or_default().to_owned(),
            words: words.len(),
        });
        let answer = self.run(&words);
        if name == Some("look") {
            self.looked();
        }
        value(answer)
    }
}
