//! Drainers in processes of their own, killed in the middle of their work, on a ledger in Redis that is in use.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a failed unwrap is a failed test"
)]

use std::collections::BTreeSet;
use std::process::Command;

use keybrake::audit::archive::{LogState, Signatures};
use keybrake::audit::{Archive, ArchivedLog, Audit};
use keybrake::ledger::{EventFilter, Ledger};
use keybrake_testkit::redis::Persistence;
use keybrake_tests::archives::{Place, drain, rows};
use keybrake_tests::books::DOLLAR;
use keybrake_tests::fleet::{Fleet, books_agree};
use keybrake_tests::processes::{Chance, Worker};

const SPENDER: &str = env!("CARGO_BIN_EXE_ledger_worker");
const DRAINER: &str = env!("CARGO_BIN_EXE_drain_worker");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_killed_drainers_lose_and_double_nothing() {
    killed_drainers_lose_and_double_nothing(&Place::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_killed_drainers_lose_and_double_nothing() {
    killed_drainers_lose_and_double_nothing(&Place::postgres()).await;
}

/// How many events a drainer says that it has removed.
fn removed(line: &str) -> u64 {
    line.strip_prefix("trimmed ")
        .map_or(0, |removed| removed.parse().unwrap())
}

async fn state(archive: &Archive) -> LogState {
    archive.logs().await.unwrap().pop().unwrap()
}

/// Two drainers at a time, one of which also trims; both are killed after some batches, in whatever they are doing then.
async fn killed_drainers_lose_and_double_nothing(place: &Place) {
    const ROUNDS: u64 = 6;
    let mut chance = Chance::of_the_day();
    let fleet = Fleet::start(Persistence::None);
    let (ledger, _) = fleet.with_key(1_000 * DOLLAR).await;
    let mut granted = BTreeSet::new();
    let mut kills = 0;
    let mut trimmed = 0;
    for _ in 0..ROUNDS {
        let spender = fleet.worker(SPENDER, &["spend", "60", "10", "4"]);
        let drainers: Vec<Worker> = ["", "trim"]
            .into_iter()
            .map(|also| {
                let mut command = Command::new(DRAINER);
                Worker::start(command.args([&fleet.url(), &place.url(), "7", also]))
            })
            .collect();
        for mut drainer in drainers {
            for _ in 0..chance.below(25) {
                match drainer.next_line().as_deref() {
                    None | Some("done") => break,
                    Some(line) => trimmed += removed(line),
                }
            }
            // It may have come to its end by itself.
            drainer.end();
            kills += 1;
        }
        for line in spender.finish() {
            if let Some(id) = line.strip_prefix("granted ") {
                granted.insert(id.to_owned());
            }
        }
    }
    // Each may have been killed before it came to trim. One comes to it, and is killed after.
    if trimmed == 0 {
        fleet
            .worker(SPENDER, &["spend", "60", "10", "4"])
            .finish()
            .iter()
            .for_each(|line| {
                granted.extend(line.strip_prefix("granted ").map(str::to_owned));
            });
        let mut command = Command::new(DRAINER);
        let mut drainer = Worker::start(command.args([&fleet.url(), &place.url(), "7", "trim"]));
        while removed(&drainer.next_line().unwrap()) == 0 {}
        drainer.end();
    }
    let archive = place.open().await;
    drain(&ledger, &archive, 500).await;
    books_agree(&ledger).await;
    drain(&ledger, &archive, 500).await;
    let state = state(&archive).await;
    let last_seq = ledger.info().await.unwrap().last_seq;
    assert_eq!((state.seq, state.n, state.history), (last_seq, last_seq, 0));
    let all = EventFilter {
        limit: 1_000_000,
        ..EventFilter::default()
    };
    let events = archive.events(state.log, state.n, &all).await.unwrap();
    let numbers: Vec<u64> = events.iter().map(|event| event.seq).collect();
    assert_eq!(numbers, (1..=last_seq).collect::<Vec<_>>(), "each event once");
    let report = archive.verify(&state, Some(ledger.secret())).await.unwrap();
    assert!(report.is_clean() && report.notes.is_empty(), "{report:?}");
    assert_eq!(
        (report.signatures, report.proven_seq),
        (Signatures::Good, last_seq)
    );
    let backlog = ledger.backlog().await.unwrap();
    println!(
        "{kills} drainers ended, {last_seq} events, {} checkpoints, the ledger keeps {}",
        report.checkpoints,
        backlog.kept()
    );
    assert!(report.checkpoints > 1, "the trimming drainers came to trim");
    let log = ArchivedLog::alone(archive, state.name).await.unwrap();
    let told: BTreeSet<String> = rows(Audit::of(&log))
        .await
        .into_iter()
        .filter(|row| row.note("state") == Some("settled"))
        .map(|row| row.call_id)
        .collect();
    assert_eq!(told, granted);
}
