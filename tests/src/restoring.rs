//! A ledger in Redis with one of everything that can be lost, and what it says of itself before and after a restore.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeSet;
use std::sync::Arc;

use keybrake::SystemClock;
use keybrake::audit::archive::LogState;
use keybrake::audit::{Archive, Restore, Restored};
use keybrake::error::ErrorKind;
use keybrake::ledger::redis::RedisLedger;
use keybrake::ledger::{
    Ask, EventFilter, EventKind, KeyRecord, Ledger, Proof, ReserveRequest, StopScope, Unit, WindowKind,
};

use crate::books::{self, DOLLAR, admin, calls, charged, lifetime, read, settlement};

/// The master key of every ledger here.
pub const MASTER: &[u8] = b"a master key of more than 32 characters";

/// The ledger, with the master key.
pub fn open(url: &str) -> RedisLedger {
    RedisLedger::open(url, Arc::new(SystemClock), Some(MASTER)).unwrap()
}

/// As a command does that finds the data gone.
pub fn again(url: &str, id: &str) -> RedisLedger {
    RedisLedger::open_to_restore(url, Arc::new(SystemClock), Some(MASTER), id).unwrap()
}

/// All that the archive has, said again.
pub async fn restore(ledger: &dyn Ledger, archive: &Archive) -> Restored {
    Restore::new(ledger, archive)
        .await
        .unwrap()
        .run(|_| {})
        .await
        .unwrap()
}

/// Why this archive cannot be said again to this ledger.
pub async fn refusal(ledger: &dyn Ledger, archive: &Archive) -> (ErrorKind, String) {
    let refused = Restore::new(ledger, archive).await.unwrap().run(|_| {}).await;
    let refused = refused.unwrap_err();
    (refused.kind(), refused.to_string())
}

/// A dollar from beginning to end.
pub async fn spend(ledger: &dyn Ledger, key: &KeyRecord, id: &str) {
    hold(ledger, key, id).await;
    ledger.settle(charged(id, DOLLAR)).await.unwrap();
}

/// A dollar that is reserved.
pub async fn hold(ledger: &dyn Ledger, key: &KeyRecord, id: &str) {
    let asked = |key: &KeyRecord| call(key, id, DOLLAR);
    books::reserve_anew(ledger, key, asked).await.unwrap().unwrap();
}

/// A read from beginning to end.
pub async fn count(ledger: &dyn Ledger, key: &KeyRecord, id: &str) {
    let now_ms = ledger.info().await.unwrap().now_ms;
    let request = read(key, id, now_ms);
    books::reserve(ledger, request).await.unwrap().unwrap();
    let done = Proof::Charged {
        actual: keybrake::Usd::ZERO,
    };
    ledger.settle(settlement(id, done)).await.unwrap();
}

/// A call of so much, which counts as one call.
pub fn call(key: &KeyRecord, id: &str, amount: i64) -> ReserveRequest {
    let mut request = books::call(key, id, amount);
    if let Ask::Amount(ask) = &mut request.ask {
        for charge in ask.charges.iter_mut().filter(|charge| charge.unit != Unit::Usd) {
            charge.amount = 1;
        }
    }
    request
}

/// What a ledger says of itself, one thing a line, so that two moments can be compared.
pub async fn books_of(ledger: &dyn Ledger, ids: &[String]) -> BTreeSet<String> {
    let budgets = ledger.budgets(None).await.unwrap();
    let mut lines: BTreeSet<String> = budgets.iter().map(|budget| format!("{budget:?}")).collect();
    for key in ledger.keys().await.unwrap() {
        lines.insert(format!(
            "{} {:?} {:?}",
            key.id, key.revoked_at_ms, key.expires_at_ms
        ));
    }
    lines.extend(
        ledger
            .stops()
            .await
            .unwrap()
            .iter()
            .map(|stop| format!("{stop:?}")),
    );
    lines.extend(
        ledger
            .reservations(ids)
            .await
            .unwrap()
            .iter()
            .map(|call| format!("{call:?}")),
    );
    lines
}

/// Shows what differs.
pub fn assert_same(after: &BTreeSet<String>, before: &BTreeSet<String>) {
    let [more, less]: [Vec<_>; 2] = [
        after.difference(before).collect(),
        before.difference(after).collect(),
    ];
    assert!(
        more.is_empty() && less.is_empty(),
        "only after: {more:#?}\nonly before: {less:#?}"
    );
}

/// All calls that the log tells of, but those that were denied or replayed.
pub async fn call_ids(ledger: &dyn Ledger) -> Vec<String> {
    let events = ledger.events(EventFilter::default()).await.unwrap();
    let mut ids: Vec<String> = events
        .into_iter()
        .filter(|event| !matches!(event.kind, EventKind::Denied | EventKind::Replayed))
        .filter_map(|event| event.call_id)
        .collect();
    ids.sort();
    ids.dedup();
    ids
}

fn days() -> keybrake::ledger::BudgetDef {
    // A day that does not end while the test runs: a rolling one.
    calls("vk_1", WindowKind::Rolling24h, 400)
}

/// One of everything that can be lost.
pub async fn lively(ledger: &dyn Ledger) -> KeyRecord {
    let budgets = [lifetime("vk_1", 20 * DOLLAR), days()];
    let key = books::key(ledger, "vk_1", &budgets).await.unwrap();
    let gone = books::key(ledger, "vk_gone", &[lifetime("vk_gone", DOLLAR)])
        .await
        .unwrap();
    hold(ledger, &gone, "of the revoked").await;
    ledger.revoke("vk_gone", admin()).await.unwrap();
    spend(ledger, &key, "settled").await;
    hold(ledger, &key, "held").await;
    hold(ledger, &key, "declined").await;
    ledger
        .settle(settlement("declined", Proof::FailedForGood))
        .await
        .unwrap();
    hold(ledger, &key, "doubt").await;
    let nothing = Proof::NoProof {
        reason: "timeout".to_owned(),
    };
    ledger.settle(settlement("doubt", nothing)).await.unwrap();
    for number in 0..3 {
        count(ledger, &key, &format!("read {number}")).await;
    }
    ledger
        .stop(StopScope::Agent("runaway".to_owned()), admin())
        .await
        .unwrap();
    let over = StopScope::Run("over".to_owned());
    ledger.stop(over.clone(), admin()).await.unwrap();
    ledger.resume(&over, admin()).await.unwrap();
    ledger
        .put_budget(lifetime("vk_1", 15 * DOLLAR), admin())
        .await
        .unwrap();
    ledger.key("vk_1").await.unwrap().unwrap()
}

/// The one log in an archive.
pub async fn only_log(archive: &Archive) -> LogState {
    let mut logs = archive.logs().await.unwrap();
    logs.retain(|log| log.seq > 0);
    assert_eq!(logs.len(), 1, "{logs:?}");
    logs.remove(0)
}
