//! The Redis ledger shared by processes, some of which are killed.

use std::collections::BTreeSet;

use keybrake::ledger::{EventKind, HoldFilter, Ledger, State};
use keybrake_testkit::redis::Persistence;
use keybrake_tests::books::DOLLAR;
use keybrake_tests::fleet::{Fleet, books_agree, count, events_of, used_and_held};
use keybrake_tests::processes::{Chance, Worker};

const WORKER: &str = env!("CARGO_BIN_EXE_ledger_worker");

/// Eight processes with 64 tasks each ask at the same time for more than there is.
#[tokio::test]
async fn lesson_05_five_hundred_tasks_in_eight_processes_admit_exactly_what_fits() {
    const FITS: usize = 150;
    let fleet = Fleet::start(Persistence::None);
    let (ledger, _) = fleet.with_key(i64::try_from(FITS).unwrap() * DOLLAR).await;
    let workers: Vec<Worker> = (0..8)
        .map(|_| fleet.worker(WORKER, &["reserve", "1", "1000000", "64"]))
        .collect();
    let said: Vec<String> = workers.into_iter().flat_map(Worker::finish).collect();
    let stats = fleet.server.command(&["INFO", "commandstats"]).unwrap();
    let stats = stats
        .text()
        .unwrap()
        .lines()
        .find(|line| line.contains("fcall:"))
        .unwrap();
    println!("512 reservations: {stats}");
    assert_eq!(
        (count(&said, "granted"), count(&said, "denied CapHeld")),
        (FITS, 512 - FITS)
    );
    assert_eq!(
        used_and_held(&ledger).await,
        (0, i64::try_from(FITS).unwrap() * DOLLAR)
    );
    assert_eq!(events_of(&ledger, EventKind::Reserved).await.len(), FITS);
    let filter = HoldFilter {
        limit: 10_000,
        ..HoldFilter::default()
    };
    assert_eq!(ledger.holds(filter).await.unwrap().len(), FITS);
    books_agree(&ledger).await;
}

/// Half of eight processes are killed in the middle of their work, again and again.
#[tokio::test]
async fn sigkill_at_random_points_loses_no_acknowledged_step_and_frees_no_hold() {
    const ROUNDS: u64 = 3;
    let mut chance = Chance::of_the_day();
    let fleet = Fleet::start(Persistence::None);
    // The cap is reached some rounds before the end.
    let cap = 500 * 3;
    let (ledger, _) = fleet.with_key(cap).await;
    let (mut granted, mut settled, mut denied) = (BTreeSet::new(), BTreeSet::new(), 0);
    for _ in 0..ROUNDS {
        let mut doomed: Vec<Worker> = (0..4)
            .map(|_| fleet.worker(WORKER, &["spend", "1000", "3", "64"]))
            .collect();
        let others: Vec<Worker> = (0..4)
            .map(|_| fleet.worker(WORKER, &["spend", "1", "3", "64"]))
            .collect();
        let mut said = Vec::new();
        for worker in &mut doomed {
            for _ in 0..chance.below(120) {
                said.extend(worker.next_line());
            }
        }
        for worker in doomed {
            said.extend(worker.kill());
        }
        for worker in others {
            said.extend(worker.finish());
        }
        for line in &said {
            match line.split_once(' ') {
                Some(("granted", id)) => granted.insert(id.to_owned()),
                Some(("settled", id)) => settled.insert(id.to_owned()),
                _ => false,
            };
        }
        denied += count(&said, "denied CapHeld") + count(&said, "denied CapExceeded");
        let (used, held) = used_and_held(&ledger).await;
        assert!(used + held <= cap, "{used} + {held} of {cap}");
        books_agree(&ledger).await;
    }
    // The last line of a killed process may be cut off, so that it names another call.
    let mut cut_off = 0;
    for id in &granted {
        match ledger.reservation(id).await.unwrap() {
            Some(call) => assert!(call.state == State::Settled || !settled.contains(id), "{call:?}"),
            None => cut_off += 1,
        }
    }
    assert!(
        cut_off <= 4 * ROUNDS,
        "{cut_off} acknowledged calls are not there"
    );
    assert!(denied > 0, "the cap was never reached");
    let (used, held) = used_and_held(&ledger).await;
    assert_eq!(used + held, cap, "the cap can be spent in full");
    let filter = HoldFilter {
        limit: 10_000,
        ..HoldFilter::default()
    };
    let open = ledger.holds(filter).await.unwrap();
    let listed: i64 = open.iter().map(|hold| hold.held.micros()).sum();
    assert_eq!(listed, held, "every hold that is counted can be listed");
    println!(
        "{} kills: {} granted, {} settled, {} left open, {denied} denied",
        4 * ROUNDS,
        granted.len(),
        settled.len(),
        open.len()
    );
}
