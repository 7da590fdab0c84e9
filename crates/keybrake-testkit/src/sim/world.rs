//! One run's world: the server, the network between it and everyone, the vendor, and the books that are compared.

use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use keybrake::clock::Clock as _;
use keybrake::ledger::redis::server::{Connection, Server};
use redis::{Cmd, RedisError, RedisResult, Value};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::books::Books;
use super::lua::{Library, Shared};
use super::mutants::Mutant;
use super::owed::Owed;
use super::process::{Process, passed_ms};
use super::rng::Rng;
use super::store::{Reply, Store};
use super::vendor::{self, Begun, Seen, Vendor};

/// How long a client waits for the server.
pub(super) const TIMEOUT: Duration = Duration::from_millis(150);
/// From asking the ledger until the first byte must leave.
pub(super) const SEND_WITHIN_MS: i64 = 5_000;
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
}

impl Weather {
    pub(super) const FINE: Self = Self {
        lost: 0,
        twice: 0,
        late: 0,
        late_ms: 0,
        usual_ms: 1,
    };

    fn delay_ms(self, rng: &Rng) -> u64 {
        if rng.chance(self.late) {
            rng.below(self.late_ms + 1)
        } else {
            rng.below(self.usual_ms + 1)
        }
    }
}

#[derive(Default)]
pub(super) struct Node {
    pub(super) data: Shared,
    text: Option<(String, String)>,
    library: Option<Library>,
    run: u64,
    up: bool,
    /// Whether the ledger was made or opened since the server started.
    opened: bool,
}

/// What happened in a run.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    /// By what happened.
    pub(super) by_name: BTreeMap<&'static str, u64>,
}

pub(super) struct World {
    pub(super) rng: Arc<Rng>,
    pub(super) mutant: Option<Mutant>,
    pub(super) begun: Instant,
    pub(super) base_ms: i64,
    pub(super) server_off_ms: AtomicI64,
    /// The latest time that the server's clock has shown.
    latest_ms: AtomicI64,
    pub(super) weather: Mutex<Weather>,
    node: Mutex<Node>,
    pub(super) vendor: Mutex<Vendor>,
    pub(super) books: Mutex<Books>,
    owed: Mutex<Owed>,
    violation: Mutex<Option<String>>,
    pub(super) over: AtomicBool,
    pub(super) ended: Notify,
    trace: Option<Mutex<Vec<String>>>,
    pub(super) counts: Mutex<Counts>,
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
        base_ms: i64,
        weather: Weather,
        habits: vendor::Habits,
        (mutant, trace): (Option<Mutant>, bool),
    ) -> Arc<Self> {
        Arc::new(Self {
            rng,
            mutant,
            begun: Instant::now(),
            base_ms,
            server_off_ms: AtomicI64::new(0),
            latest_ms: AtomicI64::new(0),
            weather: Mutex::new(weather),
            node: Mutex::new(Node {
                data: Shared::default(),
                text: None,
                library: None,
                run: 1,
                up: true,
                opened: false,
            }),
            vendor: Mutex::new(Vendor::new(habits)),
            books: Mutex::default(),
            owed: Mutex::default(),
            violation: Mutex::new(None),
            over: AtomicBool::new(false),
            ended: Notify::new(),
            trace: trace.then(Mutex::default),
            counts: Mutex::default(),
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
        *self.counts.lock().unwrap().by_name.entry(what).or_default() += 1;
    }

    /// Takes note of what happens, when somebody wants to read it.
    pub(super) fn tell(&self, line: impl FnOnce() -> String) {
        if let Some(trace) = &self.trace {
            let ms = passed_ms(self.begun);
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
            let at = passed_ms(self.begun);
            self.violation
                .lock()
                .unwrap()
                .get_or_insert_with(|| format!("after {}.{:03} s: {wrong}", at / 1_000, at % 1_000));
            self.over.store(true, Ordering::SeqCst);
            self.ended.notify_one();
        }
    }

    pub(super) fn server_now_ms(&self) -> i64 {
        self.base_ms + passed_ms(self.begun) + self.server_off_ms.load(Ordering::SeqCst)
    }

    /// The server runs a command, and everything that it wrote is looked at.
    fn execute(&self, words: &[String], from: &Process) -> Reply {
        let mut node = self.node.lock().unwrap();
        let server_ms = self.server_now_ms();
        let latest_ms = self
            .latest_ms
            .fetch_max(server_ms, Ordering::SeqCst)
            .max(server_ms);
        let now_ms = if self.is(Mutant::ClientClock) {
            from.now_ms()
        } else {
            server_ms
        };
        node.data.lock().unwrap().now_us = now_ms * 1_000;
        let reply = node.command(words, self.mutant);
        let function = words.get(1).map_or("", String::as_str);
        let is = |name: &str| function.starts_with(&format!("keybrake_{name}_"));
        // What clients report and say again is written while the ledger is closed; nothing else is.
        let recovers = is("report") || is("reassert");
        let opens = is("open") || is("create") || is("report");
        node.opened |= opens
            && matches!(&reply, Reply::List(parts) if parts.first() == Some(&Reply::Text("1".to_owned())));
        let opened = node.opened;
        let data = Arc::clone(&node.data);
        drop(node);
        let mut data = data.lock().unwrap();
        let ran = self
            .owed
            .lock()
            .unwrap()
            .ran(from.number, words, &reply, &data.store);
        self.check(ran);
        let written = data.store.take_written();
        if !written.is_empty() {
            if !opened && !opens && !recovers {
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
            let vendor = self.vendor.lock().unwrap();
            let checked = self.books.lock().unwrap().look(&data.store, &vendor, &written);
            drop(vendor);
            self.check(checked);
        }
        reply
    }

    /// The data as it is now.
    pub(super) fn copy(&self) -> Store {
        let data = Arc::clone(&self.node.lock().unwrap().data);
        data.lock().unwrap().store.clone()
    }

    /// The server goes away.
    pub(super) fn go_down(&self) {
        self.node.lock().unwrap().up = false;
    }

    /// The server starts again, or another takes its place: with its data or with older data, and with nothing in its
    /// functions' variables.
    pub(super) fn start_again(&self, data: Option<Store>) {
        let mut node = self.node.lock().unwrap();
        node.run += 1;
        node.up = true;
        node.opened = false;
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
            node.data.lock().unwrap().store = store;
            self.check(checked);
        }
        node.library = node
            .text
            .as_ref()
            .map(|(_, text)| Library::load(text, &node.data).expect("it was loaded before"));
    }

    /// At the end: what is still open, and whether the books are the journal.
    pub(super) fn close_books(&self) {
        let store = self.copy();
        let checked = self.books.lock().unwrap().closed(&store);
        self.check(checked);
    }

    /// Sends a request to the vendor. Nothing comes back when it or its reply is lost. One attempt is one request: what
    /// repeats it below the seam is refused elsewhere, and another attempt is another call of this.
    pub(super) fn send_to_vendor(
        self: &Arc<Self>,
        key: &str,
        micros: i64,
    ) -> oneshot::Receiver<vendor::Reply> {
        let (answer, answered) = oneshot::channel();
        let weather = *self.weather.lock().unwrap();
        let delay_ms = (!self.rng.chance(weather.lost)).then(|| weather.delay_ms(&self.rng).min(8_000));
        tokio::spawn(Arc::clone(self).at_vendor(key.to_owned(), micros, delay_ms, answer));
        answered
    }

    async fn at_vendor(
        self: Arc<Self>,
        key: String,
        micros: i64,
        delay_ms: Option<u64>,
        answer: oneshot::Sender<vendor::Reply>,
    ) {
        let Some(delay_ms) = delay_ms else {
            return lost(answer).await;
        };
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        let begun = self.vendor.lock().unwrap().begin(&self.rng, &key);
        let reply = match begun {
            Begun::Answered(reply) => reply,
            Begun::Runs { ms } => {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                let (reply, moved) = self.vendor.lock().unwrap().finish(&self.rng, &key, micros);
                if let Some(moved) = moved {
                    self.moves(&key, moved);
                }
                if reply == vendor::Reply::Accepted {
                    tokio::spawn(Arc::clone(&self).decided_later(key.clone(), micros));
                }
                reply
            }
        };
        self.tell(|| format!("vendor {key} {reply:?}"));
        let weather = *self.weather.lock().unwrap();
        if self.rng.chance(weather.lost) {
            return lost(answer).await;
        }
        tokio::time::sleep(Duration::from_millis(weather.delay_ms(&self.rng))).await;
        let _ = answer.send(reply);
    }

    async fn decided_later(self: Arc<Self>, key: String, micros: i64) {
        tokio::time::sleep(Duration::from_secs(self.rng.between(5, 300))).await;
        let moved = self.rng.chance(700).then_some(micros);
        self.vendor.lock().unwrap().end(&key, moved);
        self.tell(|| format!("vendor {key} ends with {moved:?}"));
        if let Some(moved) = moved {
            self.moves(&key, moved);
        }
    }

    fn moves(&self, key: &str, micros: i64) {
        self.count("charges");
        let checked = self.books.lock().unwrap().charged(key, micros);
        self.check(checked);
    }

    /// Reads a complete listing.
    pub(super) async fn look_at_vendor(&self, key: &str) -> Option<Seen> {
        let weather = *self.weather.lock().unwrap();
        tokio::time::sleep(Duration::from_millis(weather.delay_ms(&self.rng))).await;
        let seen = self.vendor.lock().unwrap().look(key);
        tokio::time::sleep(Duration::from_millis(weather.delay_ms(&self.rng))).await;
        (!self.rng.chance(weather.lost)).then_some(seen)
    }
}

/// Whoever waits for this waits for as long as it wants to.
async fn lost(answer: oneshot::Sender<vendor::Reply>) {
    tokio::time::sleep(Duration::from_hours(1)).await;
    drop(answer);
}

impl Node {
    /// 40 hexadecimal digits, another one for every start.
    fn run_id(&self) -> String {
        let digits = self.run.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        format!("{digits:016x}{:024x}", self.run)
    }

    pub(super) fn command(&mut self, words: &[String], mutant: Option<Mutant>) -> Reply {
        let words_of: Vec<&str> = words.iter().take(3).map(String::as_str).collect();
        match words_of.as_slice() {
            ["FCALL", name, count] => {
                let count: usize = count.parse().unwrap_or(0);
                let (keys, args) = words[3..].split_at(count);
                match &self.library {
                    Some(library) => library.call(name, keys, args),
                    None => Reply::Error("ERR Function not found".to_owned()),
                }
            }
            ["FUNCTION", "LOAD", text] => self.load(text, mutant),
            ["INFO", "server"] => Reply::Text(format!(
                "# Server\r\nredis_version:7.2.0\r\nrun_id:{}\r\n",
                self.run_id()
            )),
            ["INFO", "memory"] => Reply::Text("# Memory\r\nmaxmemory_policy:noeviction\r\n".to_owned()),
            ["INFO", "replication"] => Reply::Text("# Replication\r\nrole:master\r\n".to_owned()),
            _ => {
                let mut data = self.data.lock().unwrap();
                let now_us = data.now_us;
                data.store.run(now_us, words)
            }
        }
    }

    fn load(&mut self, text: &str, mutant: Option<Mutant>) -> Reply {
        let name = text.lines().next().unwrap_or_default().to_owned();
        if self.text.as_ref().is_some_and(|(loaded, _)| *loaded == name) {
            return Reply::Error(format!("ERR Library '{name}' already exists"));
        }
        let text = mutant.map_or_else(|| text.to_owned(), |mutant| mutant.library(text));
        match Library::load(&text, &self.data) {
            Ok(library) => {
                self.library = Some(library);
                self.text = Some((name.clone(), text));
                Reply::Text(name)
            }
            Err(error) => Reply::Error(error),
        }
    }
}

/// The server as one process reaches it.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) world: Arc<World>,
    pub(super) process: Arc<Process>,
    /// Whether its messages arrive at once and always.
    pub(super) reliable: bool,
}

#[derive(Debug)]
struct Line {
    world: Arc<World>,
    process: Arc<Process>,
    reliable: bool,
    run: u64,
}

fn io(kind: std::io::ErrorKind) -> RedisError {
    RedisError::from(std::io::Error::from(kind))
}

#[async_trait]
impl Server for Endpoint {
    async fn connect(&self) -> RedisResult<Arc<dyn Connection>> {
        let weather = *self.world.weather.lock().unwrap();
        if !self.reliable {
            tokio::time::sleep(Duration::from_millis(weather.delay_ms(&self.world.rng))).await;
            if self.world.rng.chance(weather.lost) {
                return Err(io(std::io::ErrorKind::TimedOut));
            }
        }
        let node = self.world.node.lock().unwrap();
        if !node.up {
            return Err(io(std::io::ErrorKind::ConnectionRefused));
        }
        Ok(Arc::new(Line {
            world: Arc::clone(&self.world),
            process: Arc::clone(&self.process),
            reliable: self.reliable,
            run: node.run,
        }))
    }

    fn boot_ms(&self) -> i64 {
        self.process.boot_ms()
    }

    fn random(&self) -> u8 {
        u8::try_from(self.world.rng.below(256)).unwrap()
    }
}

type Outcome = Result<Reply, std::io::ErrorKind>;

#[async_trait]
impl Connection for Line {
    async fn send(&self, command: &Cmd) -> RedisResult<Value> {
        let words = words(command);
        if self.reliable {
            let arrived = self.arrives(&words);
            self.world
                .owed
                .lock()
                .unwrap()
                .answered(self.process.number, &words);
            return arrived.map_or_else(|kind| Err(io(kind)), value);
        }
        let deadline = Instant::now() + TIMEOUT;
        let world = &self.world;
        let weather = *world.weather.lock().unwrap();
        let (answer, answered) = oneshot::channel();
        let mut answer = Some(answer);
        if !world.rng.chance(weather.lost) {
            for _ in 0..=u64::from(world.rng.chance(weather.twice)) {
                let line = Self {
                    world: Arc::clone(world),
                    process: Arc::clone(&self.process),
                    ..*self
                };
                let delay_ms = weather.delay_ms(&world.rng);
                tokio::spawn(line.travels(words.clone(), delay_ms, answer.take()));
            }
        }
        match tokio::time::timeout_at(deadline, answered).await {
            Ok(Ok(Ok(reply))) => {
                world.owed.lock().unwrap().answered(self.process.number, &words);
                value(reply)
            }
            Ok(Ok(Err(kind))) => Err(io(kind)),
            Ok(Err(_)) | Err(_) => {
                tokio::time::sleep_until(deadline).await;
                Err(io(std::io::ErrorKind::TimedOut))
            }
        }
    }
}

impl Line {
    /// What happens when a command reaches the server.
    fn arrives(&self, words: &[String]) -> Outcome {
        {
            let node = self.world.node.lock().unwrap();
            if !node.up || node.run != self.run {
                return Err(std::io::ErrorKind::ConnectionReset);
            }
        }
        Ok(self.world.execute(words, &self.process))
    }

    async fn travels(self, words: Vec<String>, delay_ms: u64, answer: Option<oneshot::Sender<Outcome>>) {
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        let outcome = self.arrives(&words);
        self.world.tell(|| {
            let what = words.get(1).map_or("", String::as_str);
            let answer = match &outcome {
                Ok(Reply::List(parts)) => format!("{:?}", parts.first()),
                other => format!("{other:?}").chars().take(80).collect(),
            };
            format!("p{} {} {what} -> {answer}", self.process.number, words[0])
        });
        let Some(answer) = answer else { return };
        let weather = *self.world.weather.lock().unwrap();
        if self.world.rng.chance(weather.lost) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(weather.delay_ms(&self.world.rng))).await;
        let _ = answer.send(outcome);
    }
}

/// A command as the server reads it.
pub(super) fn words(command: &Cmd) -> Vec<String> {
    command
        .args_iter()
        .map(|arg| match arg {
            redis::Arg::Simple(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            _ => "0".to_owned(),
        })
        .collect()
}

/// A reply as the client's library has it.
pub(super) fn value(reply: Reply) -> RedisResult<Value> {
    Ok(match reply {
        Reply::Nil => Value::Nil,
        Reply::Int(number) => Value::Int(number),
        Reply::Text(text) => Value::BulkString(text.into_bytes()),
        Reply::Status(text) if text == "OK" => Value::Okay,
        Reply::Status(text) => Value::SimpleString(text),
        Reply::List(parts) => Value::Array(parts.into_iter().map(value).collect::<RedisResult<_>>()?),
        Reply::Error(text) => redis::parse_redis_value(format!("-{text}\r\n").as_bytes())?,
    })
}
