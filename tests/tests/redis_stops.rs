//! A stop or a revocation in one process, while others work as fast as they can: once it has returned, nothing more is
//! reserved anywhere. The ledger's own event numbers prove the order.

use std::time::{Duration, Instant};

use keybrake::ledger::{EventKind, Ledger, StopScope};
use keybrake_testkit::redis::Persistence;
use keybrake_tests::books;
use keybrake_tests::fleet::{Fleet, books_agree, events_of};
use keybrake_tests::processes::Worker;

const WORKER: &str = env!("CARGO_BIN_EXE_ledger_worker");
const PROCESSES: usize = 3;

/// Workers that are all at work.
fn hammering(fleet: &Fleet) -> Vec<Worker> {
    let mut workers: Vec<Worker> = (0..PROCESSES)
        .map(|_| fleet.worker(WORKER, &["spend", "100000", "1", "8"]))
        .collect();
    for worker in &mut workers {
        for _ in 0..10 {
            while !worker.next_line().is_some_and(|line| line.starts_with("settled")) {}
        }
    }
    workers
}

/// Each of them is refused over and over, then killed.
fn all_are_refused(workers: Vec<Worker>, code: &str) {
    for mut worker in workers {
        let mut refused = 0;
        while refused < 20 {
            let line = worker.next_line().unwrap_or_default();
            assert!(!line.is_empty(), "a worker has ended");
            refused += u32::from(line == format!("denied {code}"));
        }
        worker.kill();
    }
}

#[expect(clippy::disallowed_methods, reason = "measures real time")]
fn clock() -> Instant {
    Instant::now()
}

#[tokio::test]
async fn nothing_is_reserved_anywhere_once_a_stop_has_returned() {
    const ROUNDS: usize = 4;
    let fleet = Fleet::start(Persistence::None);
    let (ledger, _) = fleet.with_key(1_000_000_000).await;
    let scope = StopScope::Label("tests".to_owned());
    let mut took: Vec<Duration> = Vec::new();
    for _ in 0..ROUNDS {
        let workers = hammering(&fleet);
        let began = clock();
        let stop = ledger.stop(scope.clone(), books::admin()).await.unwrap();
        took.push(began.elapsed());
        let returned_at = ledger.info().await.unwrap().last_seq;
        assert_eq!(stop.keys_refused, 1);
        all_are_refused(workers, "Stopped");
        let stopped_at = events_of(&ledger, EventKind::Admin).await.last().unwrap().seq;
        assert!(stopped_at <= returned_at);
        let late: Vec<_> = events_of(&ledger, EventKind::Reserved)
            .await
            .into_iter()
            .filter(|event| event.seq > stopped_at)
            .collect();
        assert!(
            late.is_empty(),
            "reserved after the stop (event {stopped_at}): {late:?}"
        );
        assert!(ledger.resume(&scope, books::admin()).await.unwrap());
    }
    println!("a stop among {PROCESSES} processes with 8 tasks each took {took:?}");
    assert!(
        took.iter().all(|took| *took < Duration::from_secs(20)),
        "{took:?}"
    );
    books_agree(&ledger).await;
}

#[tokio::test]
async fn nothing_is_reserved_anywhere_once_a_revocation_has_returned() {
    let fleet = Fleet::start(Persistence::None);
    let (ledger, _) = fleet.with_key(1_000_000_000).await;
    let workers = hammering(&fleet);
    let began = clock();
    assert!(ledger.revoke("vk_1", books::admin()).await.unwrap());
    println!(
        "a revocation among {PROCESSES} processes with 8 tasks each took {:?}",
        began.elapsed()
    );
    all_are_refused(workers, "KeyRevoked");
    let revoked_at = events_of(&ledger, EventKind::Admin).await.last().unwrap().seq;
    let reserved = events_of(&ledger, EventKind::Reserved).await;
    assert!(reserved.len() > 20, "{} calls is not much work", reserved.len());
    assert!(reserved.iter().all(|event| event.seq < revoked_at));
    books_agree(&ledger).await;
}
