//! A process whose answer was lost does not know what it did, but that it is done. It remembers it nevertheless: a server
//! that comes back without it is told again.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use keybrake::clock::{Clock as _, SystemClock};
use keybrake::ledger::redis::RedisLedger;
use keybrake::ledger::{EventKind, KeyRecord, Ledger, StopScope};
use keybrake_testkit::redis::{Persistence, Relay};
use keybrake_tests::books::{DOLLAR, admin, call, charged, lifetime, reserve};
use keybrake_tests::fleet::{self, Fleet, books_agree, events_of, used_and_held};
use keybrake_tests::restoring::hold;

/// A ledger that is reached through a relay, and a key with $20 of which one is reserved.
async fn behind_a_relay() -> (Fleet, Relay, RedisLedger, KeyRecord) {
    let fleet = Fleet::start(Persistence::Always);
    let relay = Relay::start(fleet.server.port()).unwrap();
    let ledger = fleet::open(&format!("{}?ns=fleet&timeout_ms=20000", relay.url())).unwrap();
    let key = fleet::key(&ledger, 20 * DOLLAR).await;
    hold(&ledger, &key, "before").await;
    (fleet, relay, ledger, key)
}

#[tokio::test]
async fn what_was_done_although_its_answer_was_lost_is_said_again() {
    let (mut fleet, relay, ledger, key) = behind_a_relay().await;
    let yesterday = fleet.server.copy_data().unwrap();
    let scope = StopScope::Run("run_9".to_owned());
    let mut lost = 0;
    let mut lose_next = || {
        relay.lose_reply("keybrake_commit");
        lost += 1;
        lost
    };

    lose_next();
    hold(&ledger, &key, "open").await;
    lose_next();
    hold(&ledger, &key, "ended").await;
    lose_next();
    ledger.settle(charged("ended", DOLLAR)).await.unwrap();
    lose_next();
    ledger
        .put_budget(lifetime("vk_1", 4 * DOLLAR), admin())
        .await
        .unwrap();
    let last = lose_next();
    ledger.stop(scope.clone(), admin()).await.unwrap();
    assert!(relay.wait_caught(last), "some answer was not lost");
    assert_eq!(used_and_held(&ledger).await, (DOLLAR, 2 * DOLLAR));

    fleet.server.replace_data(&yesterday).unwrap();
    fleet.server.restart().unwrap();
    hold(&ledger, &key, "after").await;
    assert_eq!(ledger.missing_events().await.unwrap(), []);
    assert_eq!(used_and_held(&ledger).await, (DOLLAR, 3 * DOLLAR));
    assert_eq!(
        events_of(&ledger, EventKind::Reasserted).await.len(),
        4,
        "two calls, a cap, a stop"
    );
    let stops = ledger.stops().await.unwrap();
    assert!(stops.iter().any(|stop| stop.scope == scope), "{stops:?}");
    let refused = reserve(&ledger, call(&key, "too much", DOLLAR)).await.unwrap();
    assert_eq!(refused.unwrap_err(), "CapHeld", "the lowered cap");
    books_agree(&ledger).await;
}

/// In an outage every look fails, however many steps are tried: none of them counts as one.
#[tokio::test]
async fn a_step_whose_answer_was_lost_is_looked_for_until_the_log_can_be_read() {
    let (mut fleet, relay, ledger, key) = behind_a_relay().await;
    let yesterday = fleet.server.copy_data().unwrap();
    relay.lose_reply("keybrake_commit");
    relay.refuse().unwrap();
    let lost = reserve(&ledger, call(&key, "lost", DOLLAR)).await.unwrap_err();
    assert_eq!(lost.kind(), keybrake::ErrorKind::LedgerUnavailable, "{lost}");
    assert!(relay.wait_caught(1), "its answer was not lost");
    for number in 0..8 {
        let refused = reserve(&ledger, call(&key, &format!("refused {number}"), DOLLAR)).await;
        refused.unwrap_err();
    }
    relay.pass().unwrap();
    // The link lets a moment pass between two connections: a step may get through whose look for the other was too early.
    let until_ms = SystemClock.boot_ms() + 10_000;
    let seen = loop {
        match reserve(&ledger, call(&key, "seen", DOLLAR)).await {
            Err(_) if SystemClock.boot_ms() < until_ms => tokio::task::yield_now().await,
            answered => break answered,
        }
    };
    seen.unwrap().unwrap();
    hold(&ledger, &key, "next").await;
    assert_eq!(used_and_held(&ledger).await, (0, 4 * DOLLAR));

    fleet.server.replace_data(&yesterday).unwrap();
    fleet.server.restart().unwrap();
    hold(&ledger, &key, "after").await;
    assert_eq!(used_and_held(&ledger).await, (0, 5 * DOLLAR));
    books_agree(&ledger).await;
}
