//! Processes that spend one budget on Redis from their leases; some are killed.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![expect(
    clippy::disallowed_methods,
    reason = "how long a stop takes is measured in real time"
)]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Instant;

use keybrake::SystemClock;
use keybrake::audit::{Audit, RowFilter};
use keybrake::clock::Clock as _;
use keybrake::journal::Journal;
use keybrake::ledger::redis::RedisLedger;
use keybrake::ledger::{EventKind, HoldFilter, Ledger, StopScope, WindowKind};
use keybrake_testkit::redis::Persistence;
use keybrake_tests::books;
use keybrake_tests::fleet::{Fleet, books_agree, events_of, used_and_held};
use keybrake_tests::processes::{Chance, Worker};

const WORKER: &str = env!("CARGO_BIN_EXE_lease_worker");

/// A worker whose lines are read all the time.
struct Reader {
    lines: mpsc::Receiver<String>,
    thread: JoinHandle<()>,
}

impl Reader {
    /// It begins at once.
    fn start(fleet: &Fleet, journal: &Path) -> Self {
        Self::go(ready(fleet, journal, &[]))
    }

    fn go(mut worker: Worker) -> Self {
        worker.tell("go");
        let (to, lines) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            while let Some(line) = worker.next_line() {
                to.send(line).unwrap();
            }
            worker.finish();
        });
        Self { lines, thread }
    }

    /// All that it says until it ends by itself.
    fn finish(self) -> Vec<String> {
        let said: Vec<String> = self.lines.iter().collect();
        self.thread.join().unwrap();
        assert_eq!(
            said.last().map(String::as_str),
            Some("end"),
            "it did not end in good order"
        );
        said
    }
}

/// A worker that is ready, and waits for its beginning.
fn ready(fleet: &Fleet, journal: &Path, also: &[&str]) -> Worker {
    let mut command = Command::new(WORKER);
    let url = format!("{}&lease_ms=200", fleet.url());
    let mut worker = Worker::start(command.arg(url).arg(journal).arg("vk_1").args(also));
    assert_eq!(worker.next_line().unwrap(), "ready");
    worker
}

/// Kills it once it has made so many calls, or was refused one; answers all that it said.
fn killed_after(mut worker: Worker, calls: u64) -> Vec<String> {
    worker.tell("go");
    let mut said = Vec::new();
    for _ in 0..calls {
        let line = worker.next_line().unwrap();
        let refused = line.starts_with("denied");
        said.push(line);
        if refused {
            break;
        }
    }
    // Its last line may be cut off.
    said.extend(worker.kill());
    said
}

/// What holders that stood still, or were killed, no longer had: the budget takes it for spent.
async fn forfeited(ledger: &RedisLedger) -> i64 {
    events_of(ledger, EventKind::Leased)
        .await
        .iter()
        .filter(|event| event.body.reason.as_deref() == Some("forfeited"))
        .flat_map(|event| &event.deltas)
        .map(|delta| delta.used)
        .sum()
}

fn granted(said: &[String]) -> impl Iterator<Item = &str> {
    said.iter()
        .filter_map(|line| line.strip_prefix("granted ")?.split(' ').next())
}

async fn with_cap(fleet: &Fleet, cap: i64) -> RedisLedger {
    let ledger = fleet.open();
    let budget = books::calls("vk_1", WindowKind::Rolling24h, cap);
    books::key(&ledger, "vk_1", &[budget]).await.unwrap();
    ledger
}

/// Eight processes spend a cap to the last call, with a fraction of the round trips.
#[tokio::test]
async fn eight_processes_spend_exactly_the_cap_from_leases() {
    const CAP: i64 = 6_000;
    let fleet = Fleet::start(Persistence::None);
    let journal = tempfile::tempdir().unwrap();
    let ledger = with_cap(&fleet, CAP).await;
    let begun = Instant::now();
    let workers: Vec<Reader> = (0..8)
        .map(|_| Reader::start(&fleet, &journal.path().join("j")))
        .collect();
    let said: Vec<String> = workers.into_iter().flat_map(Reader::finish).collect();
    let took = begun.elapsed();
    // A holder that this machine does not let run for seconds forfeits what it has: nobody spends that.
    let forfeited = forfeited(&ledger).await;
    let let_through = i64::try_from(granted(&said).count()).unwrap();
    assert!(
        (CAP - forfeited..=CAP).contains(&let_through),
        "{let_through} of {CAP}, {forfeited} forfeited"
    );
    assert_eq!(used_and_held(&ledger).await, (CAP, 0));
    // How often a lease is renewed goes with time; which calls were asked of the ledger one by one does not.
    let asked = events_of(&ledger, EventKind::Reserved).await.len();
    let steps = events_of(&ledger, EventKind::Leased).await.len();
    println!(
        "{CAP} calls of 8 processes in {took:?}: {asked} asked for one by one, {steps} steps of leases, {forfeited} forfeited"
    );
    assert!(
        asked < usize::try_from(CAP / 4).unwrap(),
        "{asked} calls were asked for: nothing was decided from leases"
    );
    // What such a holder had done waits in its journal.
    if let Some(left) = Journal::of(&ledger, &journal.path().join("j")).await.unwrap() {
        left.deliver(&ledger).await.unwrap();
    }
    let rows = Audit::new(&ledger)
        .list(RowFilter::default(), 100_000)
        .await
        .unwrap();
    let told: BTreeSet<&str> = rows
        .iter()
        .filter(|row| row.policy_verdict == "allowed")
        .map(|row| row.call_id.as_str())
        .collect();
    assert_eq!(told, granted(&said).collect(), "one row for every call");
    books_agree(&ledger).await;
}

/// Four of eight are killed: what they had is forfeited, and nobody spends it again.
#[tokio::test]
async fn scenario_20_killed_holders_push_nothing_over_the_cap() {
    const CAP: i64 = 6_000;
    let mut chance = Chance::of_the_day();
    let fleet = Fleet::start(Persistence::None);
    let directory = tempfile::tempdir().unwrap();
    let journal = directory.path().join("j");
    let ledger = with_cap(&fleet, CAP).await;
    // All begin together: those that are to be killed would else be done before the others are there.
    let doomed: Vec<Worker> = (0..4).map(|_| ready(&fleet, &journal, &["doomed"])).collect();
    let others: Vec<Worker> = (0..4).map(|_| ready(&fleet, &journal, &[])).collect();
    let killed: Vec<JoinHandle<Vec<String>>> = doomed
        .into_iter()
        .map(|worker| {
            let calls = 50 + chance.below(350);
            std::thread::spawn(move || killed_after(worker, calls))
        })
        .collect();
    let others: Vec<Reader> = others.into_iter().map(Reader::go).collect();
    let killed: Vec<String> = killed
        .into_iter()
        .flat_map(|thread| thread.join().unwrap())
        .collect();
    let said: Vec<String> = others.into_iter().flat_map(Reader::finish).collect();
    let calls: BTreeSet<String> = granted(&killed)
        .chain(granted(&said))
        .map(str::to_owned)
        .collect();
    let (used, held) = used_and_held(&ledger).await;
    assert_eq!((used, held), (CAP, 0), "spent or forfeited to the last unit");
    let let_through = i64::try_from(calls.len()).unwrap();
    let forfeited = forfeited(&ledger).await;
    println!("{let_through} calls under a cap of {CAP}; {forfeited} units were forfeited with 4 processes");
    // The last line of a process that was killed may be cut off, so that it names another call.
    // Whether anything is forfeited is up to the moment of the kills; that it is, to the unit, is a conformance case.
    assert!((CAP - forfeited..=CAP).contains(&let_through));

    // What the killed had written down is told now, once, and changes no counter.
    let left = Journal::of(&ledger, &journal).await.unwrap().unwrap();
    let told = left.deliver(&ledger).await.unwrap();
    assert_eq!(told.left, 0, "{told:?}");
    assert_eq!(used_and_held(&ledger).await, (CAP, 0));
    let rows = Audit::new(&ledger)
        .list(RowFilter::default(), 100_000)
        .await
        .unwrap();
    let late = rows
        .iter()
        .filter(|row| row.metadata.contains_key("late"))
        .count();
    let told: BTreeSet<&str> = rows.iter().map(|row| row.call_id.as_str()).collect();
    let untold = calls.iter().filter(|call| !told.contains(call.as_str())).count();
    println!("{late} rows came late");
    assert!(
        untold <= 4,
        "{untold} calls without a row, of at most 4 lines that were cut off"
    );
    assert!(
        ledger
            .holds(HoldFilter::default())
            .await
            .unwrap()
            .iter()
            .all(|hold| hold.lease.is_none())
    );
    books_agree(&ledger).await;
}

/// No process admits a call that it was asked for after a stop has returned.
#[tokio::test]
async fn a_stop_returns_when_eight_holders_have_stopped() {
    let fleet = Fleet::start(Persistence::None);
    let directory = tempfile::tempdir().unwrap();
    let ledger = with_cap(&fleet, 1_000_000_000).await;
    let workers: Vec<Reader> = (0..8)
        .map(|_| Reader::start(&fleet, &directory.path().join("j")))
        .collect();
    let mut said = Vec::new();
    for worker in &workers {
        said.extend(worker.lines.iter().take(200));
    }
    let begun = Instant::now();
    let scope = StopScope::Run("run_1".to_owned());
    ledger.stop(scope, books::admin()).await.unwrap();
    let (took, stopped_ms) = (begun.elapsed(), SystemClock.boot_ms());
    said.extend(workers.into_iter().flat_map(Reader::finish));
    let asked = said
        .iter()
        .filter_map(|line| line.strip_prefix("granted ")?.split(' ').nth(1)?.parse().ok());
    let last_ms: i64 = asked.max().unwrap();
    println!(
        "stop returned after {took:?}; the last of {} calls was asked for {} ms before that",
        granted(&said).count(),
        stopped_ms - last_ms
    );
    assert!(
        last_ms <= stopped_ms,
        "a call was let through {} ms after",
        last_ms - stopped_ms
    );
    // It waits for each lease's end, of 200 ms, and for no call.
    assert!(took.as_millis() < 20_000, "{took:?}");
    assert_eq!(used_and_held(&ledger).await.1, 0, "every lease was given back");
    books_agree(&ledger).await;
}
