//! Processes that spend one budget in Redis without an end, and what they have said so far.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use keybrake::clock::{Clock as _, SystemClock};
use keybrake::ledger::{EventKind, Ledger};
use keybrake_testkit::redis::PATIENCE;

use crate::books;
use crate::fleet::{count, events_of, used_and_held};
use crate::processes::Worker;

/// Of each of their calls.
pub const AMOUNT: i64 = 3;
/// A cap that they do not come near: they end when it is lowered ([`end_at`]), not by chance before that.
pub const FAR: i64 = AMOUNT * 1_000_000;

/// Processes (`ledger_worker`) that spend by `vk_1` until they are refused, and what they have said so far.
#[derive(Debug)]
pub struct Crowd {
    pids: BTreeSet<String>,
    readers: Vec<JoinHandle<()>>,
    said: Arc<(Mutex<Vec<String>>, Condvar)>,
}

impl Crowd {
    /// So many, with so many tasks each.
    pub fn start(program: impl AsRef<Path>, url: &str, processes: u32, tasks: u32) -> Self {
        let said: Arc<(Mutex<Vec<String>>, Condvar)> = Arc::default();
        let mut pids = BTreeSet::new();
        let readers = (0..processes).map(|_| {
            let mut command = Command::new(program.as_ref());
            let words = [url, "vk_1", "fill", "1000000"];
            let mut worker =
                Worker::start(command.args(words).arg(AMOUNT.to_string()).arg(tasks.to_string()));
            pids.insert(worker.id().to_string());
            let said = Arc::clone(&said);
            std::thread::spawn(move || {
                while let Some(line) = worker.next_line() {
                    said.0.lock().unwrap().push(line);
                    said.1.notify_all();
                }
                worker.finish();
            })
        });
        Self {
            readers: readers.collect(),
            pids,
            said,
        }
    }

    /// How many lines begin so.
    pub fn count(&self, word: &str) -> usize {
        count(&self.said.0.lock().unwrap(), word)
    }

    fn first(&self, word: &str) -> Option<String> {
        let said = self.said.0.lock().unwrap();
        said.iter().find(|line| line.starts_with(word)).cloned()
    }

    /// Waits until so many lines begin so.
    pub fn wait_for(&self, word: &str, least: usize) {
        let said = self.said.0.lock().unwrap();
        let enough = |said: &mut Vec<String>| count(said, word) < least;
        let (said, out) = self
            .said
            .1
            .wait_timeout_while(said, PATIENCE * 6, enough)
            .unwrap();
        let (is, last) = (count(&said, word), said.last());
        assert!(
            !out.timed_out(),
            "{is} of {least} {word}; the last line: {last:?}"
        );
    }

    /// Waits until so many calls are granted; meanwhile this process, too, tells the ledger what it knows. Between the
    /// attempts `refused` gets the errors.
    pub async fn goes_on(
        &self,
        least: usize,
        ledger: &dyn Ledger,
        mut refused: impl AsyncFnMut(keybrake::Error),
    ) {
        let limit_ms = SystemClock.boot_ms() + 120_000;
        while self.count("granted") < least {
            assert!(
                SystemClock.boot_ms() < limit_ms && !self.ended(),
                "{} of {least} granted; {} errors; refused: {:?}",
                self.count("granted"),
                self.count("error"),
                self.first("denied")
            );
            let key = books::key(ledger, "vk_1", &[]).await;
            let probed = match key {
                Ok(key) => books::reserve(ledger, books::call(&key, "probe", AMOUNT)).await,
                Err(error) => Err(error),
            };
            if let Err(error) = probed {
                refused(error).await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// How many of their calls the ledger has reserved.
    pub async fn reserved(&self, ledger: &dyn Ledger) -> usize {
        let events = events_of(ledger, EventKind::Reserved).await.into_iter();
        // `call-PID-...`
        let pid = |id: &str| id.split('-').nth(1).map(str::to_owned);
        let pids = events.filter_map(|event| pid(&event.call_id?));
        pids.filter(|pid| self.pids.contains(pid)).count()
    }

    /// Whether all have ended.
    pub fn ended(&self) -> bool {
        self.readers.iter().all(JoinHandle::is_finished)
    }

    /// All that they said, once all have ended.
    pub fn finish(self) -> Vec<String> {
        for reader in self.readers {
            reader.join().unwrap();
        }
        std::mem::take(&mut *self.said.0.lock().unwrap())
    }
}

/// Ids that were granted.
pub fn granted(said: &[String]) -> BTreeSet<String> {
    let granted = said.iter().filter_map(|line| line.strip_prefix("granted "));
    granted.map(str::to_owned).collect()
}

/// Lowers the cap of `vk_1`, so that crowds come to their end, but never below what is counted: some more calls still
/// fit. Answers the cap.
pub async fn end_at(ledger: &dyn Ledger, more: i64) -> i64 {
    loop {
        let (used, held) = used_and_held(ledger).await;
        let cap = used + held + more * AMOUNT;
        ledger
            .put_budget(books::lifetime("vk_1", cap), books::admin())
            .await
            .unwrap();
        // Below what came in between nothing more is let through, so the next cap is above it.
        let (used, held) = used_and_held(ledger).await;
        if used + held <= cap {
            return cap;
        }
    }
}
