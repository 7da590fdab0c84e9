//! Servers that restart again and again with all of their data: the ledger opens with the next calls, whoever makes them
//! and whatever they slept through. Nobody is missed, and nobody has to open it by hand.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use keybrake::ledger::redis::RedisLedger;
use keybrake::ledger::{EventKind, KeyRecord, Ledger};
use keybrake_testkit::redis::Persistence;
use keybrake_tests::books::{self, DOLLAR, call, charged, reserve};
use keybrake_tests::fleet::{Fleet, books_agree, events_of, used_and_held};

async fn spend(ledger: &RedisLedger, key: &KeyRecord, id: &str) {
    reserve(ledger, call(key, id, DOLLAR)).await.unwrap().unwrap();
    ledger.settle(charged(id, DOLLAR)).await.unwrap();
}

fn restart(fleet: &mut Fleet) {
    fleet.server.restart().unwrap();
}

/// Nothing was missing at any time, so nothing was said again and no number was left out.
async fn assert_nothing_was_lost(ledger: &RedisLedger, spent: i64) {
    assert_eq!(used_and_held(ledger).await, (spent * DOLLAR, 0));
    assert_eq!(events_of(ledger, EventKind::Reasserted).await.len(), 0);
    let acts = events_of(ledger, EventKind::Admin).await;
    let acts = acts.iter().filter_map(|event| event.body.admin.as_ref());
    let acts: Vec<&str> = acts.map(|admin| admin.act.as_str()).collect();
    let by_hand = acts
        .iter()
        .any(|act| ["lost_events", "open_ledger"].contains(act));
    assert!(!by_hand, "{acts:?}");
    books_agree(ledger).await;
}

/// A worker without a call between two restarts takes nothing that others did then for something of before.
#[tokio::test]
async fn a_process_that_slept_through_a_restart_opens_the_next_one() {
    let mut fleet = Fleet::start(Persistence::Always);
    let (busy, key) = fleet.with_key(50 * DOLLAR).await;
    let idle = fleet.open();
    spend(&busy, &key, "busy one").await;
    spend(&idle, &key, "idle one").await;
    restart(&mut fleet);
    for number in 0..5 {
        spend(&busy, &key, &format!("without the other {number}")).await;
    }
    restart(&mut fleet);
    spend(&busy, &key, "busy two").await;
    spend(&idle, &key, "idle two").await;
    for first in [&idle, &busy, &idle] {
        restart(&mut fleet);
        let id = format!("first {}", events_of(first, EventKind::Settled).await.len());
        spend(first, &key, &id).await;
    }
    assert_nothing_was_lost(&busy, 12).await;
}

/// As a child is that was forked from a master which opened the ledger long ago: what it has is the master's list.
#[tokio::test]
async fn a_process_whose_first_call_comes_two_restarts_later_opens_the_next_one() {
    let mut fleet = Fleet::start(Persistence::Always);
    let (busy, key) = fleet.with_key(50 * DOLLAR).await;
    let late = fleet.open();
    for era in 0..3 {
        for number in 0..3 {
            spend(&busy, &key, &format!("busy {era} {number}")).await;
        }
        restart(&mut fleet);
    }
    spend(&busy, &key, "busy").await;
    spend(&late, &key, "late one").await;
    restart(&mut fleet);
    spend(&late, &key, "late two").await;
    spend(&busy, &key, "busy again").await;
    assert_nothing_was_lost(&busy, 13).await;
}

/// It came late to a recovery, which others had ended without it, and began an era of its own. The restart after that has
/// nothing to recover.
#[tokio::test]
async fn who_came_late_to_a_recovery_opens_the_next_restart() {
    let mut fleet = Fleet::start(Persistence::Always);
    let (busy, key) = fleet.with_key(50 * DOLLAR).await;
    let late = fleet.open();
    spend(&busy, &key, "one").await;
    let yesterday = fleet.server.copy_data().unwrap();
    spend(&late, &key, "two").await;
    fleet.server.replace_data(&yesterday).unwrap();
    restart(&mut fleet);
    for number in 0..5 {
        spend(&busy, &key, &format!("without the other {number}")).await;
    }
    spend(&late, &key, "three").await;
    assert_eq!(used_and_held(&busy).await, (8 * DOLLAR, 0), "all is said again");
    for restarts in 0..2 {
        restart(&mut fleet);
        spend(&late, &key, &format!("late {restarts}")).await;
        spend(&busy, &key, &format!("busy {restarts}")).await;
    }
    assert_eq!(late.missing_events().await.unwrap(), []);
    assert_eq!(used_and_held(&busy).await, (12 * DOLLAR, 0));
    books_agree(&busy).await;
    assert!(!busy.open_by_hand(books::admin()).await.unwrap(), "it is open");
}
