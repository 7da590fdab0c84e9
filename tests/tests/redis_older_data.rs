//! A Redis server that comes back with older data than the fleet has seen.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::Arc;

use keybrake::ErrorKind;
use keybrake::clock::SystemClock;
use keybrake::ledger::redis::RedisLedger;
use keybrake::ledger::{AdminNote, Ledger};
use keybrake_testkit::redis::{Persistence, RedisOptions, RedisServer};
use keybrake_tests::books::{DOLLAR, call, key, lifetime};

fn open(server: &RedisServer) -> RedisLedger {
    let url = format!("{}?ns=fleet&timeout_ms=20000", server.url());
    RedisLedger::open(&url, Arc::new(SystemClock), None).unwrap()
}

/// Two processes share a cap. The server dies and comes back with data from before the second one's last call: the
/// first opens it, for nothing that it saw is missing, and the second closes it for everyone with its next call.
#[tokio::test]
async fn lesson_08_whoever_has_seen_more_than_the_server_closes_the_ledger() {
    let mut server = RedisServer::start(RedisOptions::new().persistence(Persistence::Always)).unwrap();
    let (first, second) = (open(&server), open(&server));
    let cap = lifetime("a", 10 * DOLLAR);
    let record = key(&first, "a", std::slice::from_ref(&cap)).await.unwrap();
    first.reserve(call(&record, "one", DOLLAR)).await.unwrap();
    let older = server.copy_data().unwrap();
    for name in ["two", "three"] {
        second.reserve(call(&record, name, 3 * DOLLAR)).await.unwrap();
    }
    server.kill().unwrap();
    server.replace_data(&older).unwrap();
    server.restart().unwrap();

    for name in ["four", "five", "six"] {
        first.reserve(call(&record, name, DOLLAR)).await.unwrap(); // as many events as there were, and other ones
    }
    let error = second.reserve(call(&record, "seven", DOLLAR)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LedgerRecovering, "{error}");
    assert!(error.to_string().contains("events"), "{error}");
    let error = first.reserve(call(&record, "eight", DOLLAR)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LedgerRecovering, "{error}");
    let newcomer = open(&server);
    let error = newcomer.reserve(call(&record, "nine", DOLLAR)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LedgerRecovering, "{error}");

    let by = AdminNote {
        by: "operator".to_owned(),
        reason: "compared with the vendor".to_owned(),
    };
    assert!(second.open_by_hand(by).await.unwrap());
    second.reserve(call(&record, "ten", DOLLAR)).await.unwrap();
    assert!(newcomer.reserve(call(&record, "eleven", DOLLAR)).await.is_ok());
}

/// The loss was in the restart before the last one, and the log has grown past it since: a process that slept through
/// both still finds out.
#[tokio::test]
async fn lesson_08_a_loss_in_an_earlier_restart_is_not_outgrown() {
    let mut server = RedisServer::start(RedisOptions::new().persistence(Persistence::Always)).unwrap();
    let (first, sleeper) = (open(&server), open(&server));
    let cap = lifetime("a", 50 * DOLLAR);
    let record = key(&first, "a", std::slice::from_ref(&cap)).await.unwrap();
    first.reserve(call(&record, "one", DOLLAR)).await.unwrap();
    let older = server.copy_data().unwrap();
    sleeper.reserve(call(&record, "two", 3 * DOLLAR)).await.unwrap();
    server.replace_data(&older).unwrap();
    for restart in 0..2 {
        server.restart().unwrap();
        for number in 0..5 {
            let name = format!("call {restart} {number}");
            first.reserve(call(&record, &name, DOLLAR)).await.unwrap();
        }
    }
    let error = sleeper.reserve(call(&record, "three", DOLLAR)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LedgerRecovering, "{error}");
    assert!(error.to_string().contains("older data"), "{error}");
}
