//! A ledger in a private Redis, and the processes that work on it.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use keybrake::SystemClock;
use keybrake::ledger::redis::RedisLedger;
use keybrake::ledger::{Event, EventFilter, EventKind, KeyRecord, Ledger};
use keybrake_testkit::redis::{Persistence, RedisOptions, RedisServer, Reply};

use crate::books;
use crate::processes::Worker;

/// Two cores shared by many processes of a debug build: patience is not what these tests are about.
const PATIENT: &str = "?ns=fleet&timeout_ms=20000";

/// A private server and a namespace on it.
#[derive(Debug)]
pub struct Fleet {
    /// The server.
    pub server: RedisServer,
}

impl Fleet {
    /// A server that keeps this.
    pub fn start(persistence: Persistence) -> Self {
        let server = RedisServer::start(RedisOptions::new().persistence(persistence)).unwrap();
        Self { server }
    }

    /// The ledger's URL, with much patience.
    pub fn url(&self) -> String {
        format!("{}{PATIENT}", self.server.url())
    }

    /// The ledger, or why not.
    pub fn try_open(&self) -> keybrake::Result<RedisLedger> {
        open(&self.url())
    }

    /// The ledger.
    pub fn open(&self) -> RedisLedger {
        self.try_open().unwrap()
    }

    /// The ledger, and `vk_1` with one lifetime budget on it.
    pub async fn with_key(&self, cap: i64) -> (RedisLedger, KeyRecord) {
        let ledger = self.open();
        let key = key(&ledger, cap).await;
        (ledger, key)
    }

    /// A process of this program (`ledger_worker`) that works on it with `vk_1`.
    pub fn worker(&self, program: impl AsRef<Path>, args: &[&str]) -> Worker {
        let mut command = Command::new(program.as_ref());
        Worker::start(command.arg(self.url()).arg("vk_1").args(args))
    }
}

/// Makes a server wait for a minute, and not for three seconds, for processes that were at work before its data was
/// lost: so long no machine keeps one of them from running. A replica of it and a copy of its data have that, too; it is
/// undone where the library is loaded anew.
pub fn wait_for_everybody(server: &RedisServer) {
    let library = server.command(&["FUNCTION", "LIST", "WITHCODE"]).unwrap();
    let code = texts(&library).into_iter().find(|text| text.starts_with("#!lua"));
    let code = code.unwrap();
    let longer = code.replace("local PATIENCE = 3000\n", "local PATIENCE = 60000\n");
    assert_ne!(longer, code);
    server.command(&["FUNCTION", "LOAD", "REPLACE", &longer]).unwrap();
}

/// All texts of an answer, however deep.
pub fn texts(reply: &Reply) -> Vec<&str> {
    match reply.items() {
        Some(items) => items.iter().flat_map(texts).collect(),
        None => reply.text().into_iter().collect(),
    }
}

/// A ledger at a URL, without a master key.
pub fn open(url: &str) -> keybrake::Result<RedisLedger> {
    RedisLedger::open(url, Arc::new(SystemClock), None)
}

/// `vk_1` with one lifetime budget.
pub async fn key(ledger: &dyn Ledger, cap: i64) -> KeyRecord {
    books::key(ledger, "vk_1", &[books::lifetime("vk_1", cap)])
        .await
        .unwrap()
}

/// Used and held of `vk_1`, in test mode.
pub async fn used_and_held(ledger: &dyn Ledger) -> (i64, i64) {
    let usage = ledger.usage("vk_1").await.unwrap();
    let test = usage.iter().find(|budget| !budget.livemode).unwrap();
    (test.view.used, test.view.held)
}

/// Counters and log agree, and the log is whole.
pub async fn books_agree(ledger: &dyn Ledger) {
    let report = ledger.verify().await.unwrap();
    assert!(report.chain_ok && report.differences.is_empty(), "{report:?}");
}

/// All events of a kind.
pub async fn events_of(ledger: &dyn Ledger, kind: EventKind) -> Vec<Event> {
    let filter = EventFilter {
        limit: 1_000_000,
        ..EventFilter::default()
    };
    let mut events = ledger.events(filter).await.unwrap();
    events.retain(|event| event.kind == kind);
    events
}

/// How many lines begin so.
pub fn count(lines: &[String], word: &str) -> usize {
    lines.iter().filter(|line| line.starts_with(word)).count()
}
