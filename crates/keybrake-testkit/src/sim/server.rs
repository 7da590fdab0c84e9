//! The Redis server, and the network between it and everyone.

use std::fmt::{self, Debug};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use keybrake::Result;
use keybrake::clock::Clock as _;
use keybrake::ledger::redis::server::{Connection, Server};
use redis::{Cmd, RedisError, RedisResult, Value};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::lua::{Library, Shared};
use super::mutants::Mutant;
use super::process::Process;
use super::store::{Reply, Store};
use super::world::World;

/// The server.
pub(super) struct Node {
    pub(super) data: Shared,
    text: Option<(String, String)>,
    library: Option<Library>,
    run: u64,
    pub(super) up: bool,
    /// Whether the ledger was made or opened since the server started.
    opened: bool,
}

impl Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").finish_non_exhaustive()
    }
}

impl Default for Node {
    fn default() -> Self {
        Self {
            data: Shared::default(),
            text: None,
            library: None,
            run: 1,
            up: true,
            opened: false,
        }
    }
}

/// What a command did.
pub(super) struct Done {
    pub(super) reply: Reply,
    /// Whether it makes, opens or recovers the ledger, or that has been done since the server started.
    pub(super) may_write: bool,
}

impl Node {
    /// Runs a command at a time in milliseconds.
    pub(super) fn execute(&mut self, words: &[String], now_ms: i64, mutant: Option<Mutant>) -> Done {
        self.data.lock().unwrap().now_us = now_ms * 1_000;
        let reply = self.command(words, mutant);
        let function = words.get(1).map_or("", String::as_str);
        let is = |name: &str| function.starts_with(&format!("keybrake_{name}_"));
        // What clients report and say again is written while the ledger is closed; nothing else is.
        let recovers = is("report") || is("reassert");
        let opens = is("open") || is("create") || is("report");
        self.opened |= opens
            && matches!(&reply, Reply::List(parts) if parts.first() == Some(&Reply::Text("1".to_owned())));
        Done {
            reply,
            may_write: self.opened || opens || recovers,
        }
    }

    /// Starts again, with nothing in its functions' variables.
    pub(super) fn start(&mut self) {
        self.run += 1;
        self.up = true;
        self.opened = false;
    }

    /// Loads its functions again, as a server does that starts.
    pub(super) fn load_again(&mut self) {
        self.library = self
            .text
            .as_ref()
            .map(|(_, text)| Library::load(text, &self.data).expect("it was loaded before"));
    }

    /// Runs a command with which its functions may take very long; `None` when it was broken off.
    pub(super) fn execute_limited(&mut self, words: &[String], now_ms: i64) -> Option<Reply> {
        self.library.as_ref()?.limit();
        let reply = self.execute(words, now_ms, None).reply;
        (!self.library.as_ref()?.was_broken_off()).then_some(reply)
    }

    pub(super) fn take(&mut self, store: Store) {
        self.data.lock().unwrap().store = store;
    }

    pub(super) fn command(&mut self, words: &[String], mutant: Option<Mutant>) -> Reply {
        self.data.lock().unwrap().run = self.run;
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
            ["INFO", section] => self.data.lock().unwrap().info(section),
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
            self.process.runs().await;
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

    fn new_id(&self) -> Result<[u8; 8]> {
        Ok(self.world.rng.next().to_be_bytes())
    }
}

type Outcome = std::result::Result<Reply, std::io::ErrorKind>;

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
        self.process.runs().await;
        let deadline = Instant::now() + self.world.timeout;
        let world = &self.world;
        let weather = *world.weather.lock().unwrap();
        if is_step(&words) {
            world.stepped.notify_waiters();
        }
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
                if is_step(&words) && world.rng.chance(weather.freezes) {
                    let ms = world.rng.between(1_000, 120_000);
                    world.tell(|| format!("p{} is frozen for {ms} ms before it reads", self.process.number));
                    world.count("frozen before reading");
                    self.process.freeze(ms);
                    self.process.runs().await;
                }
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

fn is_step(words: &[String]) -> bool {
    words
        .get(1)
        .is_some_and(|function| function.starts_with("keybrake_commit_"))
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
