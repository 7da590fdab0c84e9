//! The SQLite ledger shared by processes, some of which are killed.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use keybrake::SystemClock;
use keybrake::ledger::sqlite::{SqliteLedger, SqliteOptions};
use keybrake::ledger::{Ledger, State};
use keybrake_tests::books::{self, DOLLAR};
use keybrake_tests::processes::{Chance, Worker};
use tempfile::TempDir;

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("spend.db")
    }

    fn open(&self) -> SqliteLedger {
        let options = SqliteOptions {
            wait_ms: 30_000,
            ..SqliteOptions::default()
        };
        SqliteLedger::open(
            self.path().to_str().unwrap(),
            "default",
            Arc::new(SystemClock),
            options,
        )
        .unwrap()
    }

    /// A process that works on this ledger.
    fn worker(&self, args: &[&str]) -> Worker {
        Worker::start(
            Command::new(env!("CARGO_BIN_EXE_ledger_worker"))
                .arg(self.path())
                .args(args),
        )
    }
}

async fn key(place: &Place, cap: i64) -> SqliteLedger {
    let ledger = place.open();
    books::key(&ledger, "vk_1", &[books::lifetime("vk_1", cap)])
        .await
        .unwrap();
    ledger
}

fn count(lines: &[String], word: &str) -> usize {
    lines.iter().filter(|line| line.starts_with(word)).count()
}

async fn used_and_held(ledger: &SqliteLedger) -> (i64, i64) {
    let usage = ledger.usage("vk_1").await.unwrap();
    let test = usage.iter().find(|budget| !budget.livemode).unwrap();
    (test.view.used, test.view.held)
}

async fn books_agree(ledger: &SqliteLedger) {
    let report = ledger.verify().await.unwrap();
    assert!(report.chain_ok && report.differences.is_empty(), "{report:?}");
}

#[tokio::test]
async fn lesson_05_four_processes_admit_exactly_four_where_four_fit() {
    let place = Place::new();
    let ledger = key(&place, 4 * DOLLAR).await;
    let workers: Vec<Worker> = (0..4)
        .map(|_| place.worker(&["vk_1", "reserve", "10", "1000000"]))
        .collect();
    let said: Vec<Vec<String>> = workers.into_iter().map(Worker::finish).collect();
    let (granted, denied): (usize, usize) = (
        said.iter().map(|lines| count(lines, "granted")).sum(),
        said.iter().map(|lines| count(lines, "denied CapHeld")).sum(),
    );
    assert_eq!((granted, denied), (4, 36));
    assert_eq!(used_and_held(&ledger).await, (0, 4 * DOLLAR));
    books_agree(&ledger).await;
}

#[tokio::test]
async fn a_process_killed_in_any_state_leaves_the_call_in_that_state() {
    let place = Place::new();
    let ledger = key(&place, 100 * DOLLAR).await;
    for state in ["held", "unknown", "pending", "provisional", "settled", "voided"] {
        let mut worker = place.worker(&["vk_1", "state", state, "1000000"]);
        assert_eq!(worker.next_line().unwrap(), format!("state {state}"));
        worker.kill();
        let call = ledger.reservation(state).await.unwrap().unwrap();
        assert_eq!(call.state.as_str(), state);
    }
    assert_eq!(used_and_held(&ledger).await, (2 * DOLLAR, 3 * DOLLAR));
    books_agree(&ledger).await;
    drop(ledger);
    let ledger = place.open();
    assert_eq!(used_and_held(&ledger).await, (2 * DOLLAR, 3 * DOLLAR));
    books_agree(&ledger).await;
}

#[tokio::test]
async fn sigkill_at_random_points_loses_no_acknowledged_step() {
    const KILLS: u64 = 60;
    let place = Place::new();
    drop(key(&place, i64::MAX / 2).await);
    let mut chance = Chance::new(60);
    let (mut granted, mut settled) = (BTreeSet::new(), BTreeSet::new());
    for round in 1..=KILLS {
        let mut worker = place.worker(&["vk_1", "spend", "1000000", "3"]);
        let mut said = Vec::new();
        // Some are killed before their first answer, some in the middle of their work.
        for _ in 0..chance.below(60) {
            said.push(worker.next_line().unwrap());
        }
        said.extend(worker.kill());
        for line in &said {
            match line.split_once(' ') {
                Some(("granted", id)) => granted.insert(id.to_owned()),
                Some(("settled", id)) => settled.insert(id.to_owned()),
                // The last line may be cut off.
                _ => false,
            };
        }
        // Every other time nobody else has the ledger open, so that the next process finds it as the dead left it.
        if round % 2 == 0 {
            let ledger = place.open();
            books_agree(&ledger).await;
            for id in &granted {
                let call = ledger.reservation(id).await.unwrap().unwrap();
                assert!(
                    call.state == State::Settled || !settled.contains(id),
                    "{id} was settled and is {:?}",
                    call.state
                );
            }
        }
    }
    assert!(granted.len() > 500, "{} calls is not much work", granted.len());
    let ledger = place.open();
    let (used, held) = used_and_held(&ledger).await;
    let open = i64::try_from(ledger.info().await.unwrap().open_holds).unwrap();
    assert_eq!(held, 3 * open, "every hold that is counted can be listed");
    // At most one step of each killed process was done and not acknowledged.
    let acknowledged = i64::try_from(settled.len()).unwrap();
    let unheard = used / 3 - acknowledged;
    assert!(
        (0..=i64::try_from(KILLS).unwrap()).contains(&unheard),
        "{unheard}"
    );
    println!(
        "{KILLS} kills: {} granted, {} settled, {unheard} settled unheard, {open} left open",
        granted.len(),
        settled.len()
    );
}

#[tokio::test]
async fn eight_processes_wait_fairly_for_each_other() {
    const EACH: usize = 150;
    let place = Place::new();
    let ledger = key(&place, i64::MAX / 2).await;
    let each = EACH.to_string();
    let workers: Vec<Worker> = (0..8)
        .map(|_| place.worker(&["vk_1", "spend", &each, "1"]))
        .collect();
    let said: Vec<Vec<String>> = workers.into_iter().map(Worker::finish).collect();
    let longest: Vec<u64> = said
        .iter()
        .filter_map(|lines| lines.last()?.strip_prefix("longest ")?.parse().ok())
        .collect();
    println!("longest wait of each of 8 processes for a flushed reserve, in microseconds: {longest:?}");
    assert_eq!(longest.len(), 8);
    // A disk that stalls keeps all of them waiting; one that waits alone, and long, is never let in.
    let mut sorted = longest.clone();
    sorted.sort_unstable();
    let fair = (20 * sorted[4]).max(5_000_000);
    assert!(longest.iter().all(|micros| *micros < fair), "{longest:?}");
    let settled: usize = said.iter().map(|lines| count(lines, "settled")).sum();
    assert_eq!(settled, 8 * EACH);
    assert_eq!(
        used_and_held(&ledger).await,
        (i64::try_from(8 * EACH).unwrap(), 0)
    );
    books_agree(&ledger).await;
}
