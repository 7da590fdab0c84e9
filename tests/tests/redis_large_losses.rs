//! A server that came back without thousands of events: telling it of them again takes it no longer than it takes others
//! to wait.

use keybrake::ErrorKind;
use keybrake::ledger::{EraRange, Ledger, Reassertion};
use keybrake_testkit::redis::{Persistence, Reply};
use keybrake_tests::books::{DOLLAR, call, reserve};
use keybrake_tests::fleet::{Fleet, used_and_held};

/// Events that are lost.
const LOST: u64 = 20_000;

/// How many are said again at once.
const AT_ONCE: usize = 500;

/// Those of one of two processes that took turns, so none is beside another of the same process.
fn of_one(era: u64, first: u64) -> Vec<Reassertion> {
    let numbers: Vec<u64> = (first..=LOST).step_by(2).collect();
    let steps = numbers.chunks(AT_ONCE).map(|some| Reassertion {
        covers: some.iter().map(|number| one(era, *number)).collect(),
        ..Reassertion::default()
    });
    steps.collect()
}

const fn one(era: u64, number: u64) -> EraRange {
    EraRange {
        era,
        first: number,
        last: number,
    }
}

#[tokio::test]
async fn twenty_thousand_lost_events_are_said_again_while_the_server_serves_others() {
    let mut fleet = Fleet::start(Persistence::Always);
    let (ledger, key) = fleet.with_key(10 * DOLLAR).await;
    reserve(&ledger, call(&key, "one", DOLLAR))
        .await
        .unwrap()
        .unwrap();
    let before = fleet.server.copy_data().unwrap();
    let era = ledger.backlog().await.unwrap().eras.first().unwrap().era;
    // As if so many had been written since.
    let seq = LOST.to_string();
    fleet
        .server
        .command(&["HSET", "kb:{fleet}:meta", "seq", &seq])
        .unwrap();
    reserve(&ledger, call(&key, "two", DOLLAR))
        .await
        .unwrap()
        .unwrap();
    fleet.server.replace_data(&before).unwrap();
    fleet.server.restart().unwrap();
    fleet
        .server
        .command(&["CONFIG", "SET", "slowlog-log-slower-than", "1000000"])
        .unwrap();
    let refused = ledger.reserve(call(&key, "three", DOLLAR)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::LedgerRecovering, "{refused}");
    let first = ledger.missing_events().await.unwrap();
    let last_here = first.first().unwrap().0;
    assert_eq!(first, [(last_here, LOST)], "its own is there again");
    for step in of_one(era, 2) {
        ledger.reassert(step).await.unwrap();
    }
    let missing = ledger.missing_events().await.unwrap();
    assert!(
        missing
            .iter()
            .all(|(first, last)| first == last && first % 2 == 1),
        "{missing:?}"
    );
    for step in of_one(era, 1) {
        ledger.reassert(step).await.unwrap();
    }
    reserve(&ledger, call(&key, "three", DOLLAR))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(used_and_held(&ledger).await, (0, 3 * DOLLAR));
    // Nobody was kept waiting for a second.
    let slow = fleet.server.command(&["SLOWLOG", "LEN"]).unwrap();
    assert_eq!(slow, Reply::Integer(0));
}
