//! A Redis server that comes back with older data than the fleet has seen.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::Arc;

use keybrake::ErrorKind;
use keybrake::clock::SystemClock;
use keybrake::ledger::redis::RedisLedger;
use keybrake::ledger::{EventFilter, EventKind, Ledger};
use keybrake_testkit::redis::{Persistence, RedisOptions, RedisServer};
use keybrake_tests::books::{DOLLAR, admin, call, key, lifetime, reserve};
use keybrake_tests::fleet::books_agree;

fn open(server: &RedisServer) -> RedisLedger {
    let url = format!("{}?ns=fleet&timeout_ms=20000", server.url());
    RedisLedger::open(&url, Arc::new(SystemClock), None).unwrap()
}

/// Two processes share a cap. The server dies and comes back with data from before the second one's last calls: the
/// first opens it, for nothing that it saw is missing. The second closes it for everyone with its next call, says again
/// what it had reserved, and it opens with all of it.
#[tokio::test]
async fn lesson_08_whoever_has_seen_more_than_the_server_says_it_again() {
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
    for name in ["seven", "eight"] {
        let refused = reserve(&second, call(&record, name, DOLLAR)).await.unwrap();
        assert_eq!(refused.unwrap_err(), "CapHeld", "1 + 3 + 3 + 3 of 10");
    }
    let refused = reserve(&first, call(&record, "nine", DOLLAR)).await.unwrap();
    assert_eq!(refused.unwrap_err(), "CapHeld");
    assert!(second.reservation("two").await.unwrap().is_some());
    books_agree(&first).await;
}

/// The same, but the second process is gone. A third had seen how far the log went, and nobody remembers what was in it:
/// nobody spends until a person has looked.
#[tokio::test]
async fn lesson_08_what_nobody_remembers_keeps_the_ledger_closed() {
    let mut server = RedisServer::start(RedisOptions::new().persistence(Persistence::Always)).unwrap();
    let (first, second) = (open(&server), open(&server));
    let cap = lifetime("a", 10 * DOLLAR);
    let record = key(&first, "a", std::slice::from_ref(&cap)).await.unwrap();
    let older = server.copy_data().unwrap();
    second.reserve(call(&record, "lost", 3 * DOLLAR)).await.unwrap();
    first.reserve(call(&record, "own", DOLLAR)).await.unwrap();
    drop(second);
    server.replace_data(&older).unwrap();
    server.restart().unwrap();
    let newcomer = open(&server);
    for _ in 0..2 {
        for ledger in [&first, &newcomer] {
            let error = ledger.reserve(call(&record, "four", DOLLAR)).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::LedgerRecovering, "{error}");
        }
    }
    let error = first.reserve(call(&record, "four", DOLLAR)).await.unwrap_err();
    assert!(error.to_string().contains("event 2 is missing"), "{error}");
    assert_eq!(first.missing_events().await.unwrap(), [(2, 2)]);
    // What is remembered is there again, even so.
    assert!(newcomer.reservation("own").await.unwrap().is_some());
    assert!(newcomer.open_by_hand(admin()).await.unwrap());
    assert_eq!(first.missing_events().await.unwrap(), []);
    first.reserve(call(&record, "ten", DOLLAR)).await.unwrap();
    newcomer.reserve(call(&record, "eleven", DOLLAR)).await.unwrap();
    books_agree(&first).await;
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
    assert!(first.reservation("two").await.unwrap().is_none());
    sleeper.reserve(call(&record, "three", DOLLAR)).await.unwrap();
    assert_eq!(
        first.reservation("two").await.unwrap().unwrap().held.micros(),
        3 * DOLLAR
    );
    let acts = first.events(EventFilter::default()).await.unwrap();
    assert!(acts.iter().any(|event| event.kind == EventKind::Reasserted));
    books_agree(&first).await;
}

/// What another version of Keybrake wrote in another format is not touched, and it is said what to do.
#[test]
fn data_of_another_format_is_refused() {
    let server = RedisServer::start(RedisOptions::new()).unwrap();
    drop(open(&server));
    let url = format!("{}?ns=fleet&timeout_ms=20000", server.url());
    for (format, advice) in [("1", "begin another namespace"), ("3", "or a newer one")] {
        server
            .command(&["HSET", "kb:{fleet}:meta", "v", format, "run", "another"])
            .unwrap();
        let before = server.command(&["HGETALL", "kb:{fleet}:meta"]).unwrap();
        let error = RedisLedger::open(&url, Arc::new(SystemClock), None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        for said in [&*format!("has format {format}"), "reads format 2", advice] {
            assert!(error.to_string().contains(said), "{error}");
        }
        let after = server.command(&["HGETALL", "kb:{fleet}:meta"]).unwrap();
        assert_eq!(before, after);
    }
}
