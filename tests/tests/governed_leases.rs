//! Whole governed calls with `lease_ms` in the ledger's URL: reads are leased, refunds never, and the audit has them all.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::Path;
use std::time::Duration;

use keybrake::audit::RowFilter;
use keybrake::brake::CallContext;
use keybrake::facade::{IssuedKey, Keybrake};
use keybrake::ledger::EventFilter;
use keybrake::policy::{Code, Policy};
use keybrake::request::Call;
use keybrake::secret::Secret;
use keybrake_testkit::redis::{RedisOptions, RedisServer};
use keybrake_testkit::stripe::{MovementKind, Simulator, SimulatorOptions};
use keybrake_tests::{Ended, ended, generated, post, signed};
use serde_json::json;

/// Calls in the key's budget.
const CAP: usize = 150;

async fn keybrake(url: &str, stripe: &Simulator, dir: &Path) -> Keybrake {
    Keybrake::builder()
        .ledger(url)
        .secret("stripe", Secret::value("sk_test_simulator"))
        .base_url("stripe", stripe.url())
        .journal_dir(dir.join("journal"))
        .build()
        .await
        .unwrap()
}

async fn send(kb: &Keybrake, key: &IssuedKey, call: Call, context: CallContext) -> Ended {
    let call = signed(key, call);
    ended(kb.shell().send(call, context, Duration::ZERO).await.unwrap())
}

async fn read(kb: &Keybrake, key: &IssuedKey) -> Ended {
    let call = Call {
        method: "GET".to_owned(),
        url: "https://api.stripe.com/v1/customers".to_owned(),
        headers: Vec::new(),
        body: bytes::Bytes::new(),
    };
    send(kb, key, call, CallContext::default()).await
}

async fn two_processes_share_a_cap(ledger: &str, dir: &Path) {
    let stripe = Simulator::start(SimulatorOptions::default()).unwrap();
    let (one, two) = (
        keybrake(ledger, &stripe, dir).await,
        keybrake(ledger, &stripe, dir).await,
    );
    let policy = json!({"vendor": "stripe", "label": "support", "allowed_endpoints": ["refunds.create", "reads"],
                        "budgets": [{"calls": CAP, "per": "rolling_24h"}, {"usd": 50, "per": "rolling_24h"}]});
    let policy = Policy::from_value(&policy).unwrap();
    let key = one.issue(policy).run("run_1").await.unwrap();
    let refund = post("/v1/refunds", "charge=ch_1&amount=500");
    let context = generated(Some("refund"));
    let refunded = send(&one, &key, refund, context).await;

    let mut reads = 0;
    loop {
        let ends = [read(&one, &key).await, read(&two, &key).await];
        reads += ends.iter().filter(|end| end.status == 200).count();
        let refused: Vec<Code> = ends.iter().filter_map(Ended::code).collect();
        assert!(
            refused
                .iter()
                .all(|code| matches!(code, Code::CapHeld | Code::CapExceeded)),
            "{refused:?}"
        );
        if refused == [Code::CapExceeded; 2] {
            break;
        }
    }
    let refunds = usize::from(refunded.status == 200);
    // A process that this machine does not let run for seconds forfeits what it has leased.
    let filter = EventFilter {
        limit: 100_000,
        ..EventFilter::default()
    };
    let events = one.ledger().events(filter).await.unwrap();
    let forfeited: i64 = events
        .iter()
        .filter(|event| event.body.reason.as_deref() == Some("forfeited"))
        .flat_map(|event| &event.deltas)
        .map(|delta| delta.used)
        .sum();
    let forfeited = usize::try_from(forfeited).unwrap();
    let made = reads + refunds;
    assert!(
        (CAP - forfeited..=CAP).contains(&made),
        "{made} and {forfeited} forfeited: {refunded:?}"
    );
    assert_eq!(
        stripe.moved(MovementKind::Refund, "usd"),
        if refunds == 1 { 500 } else { 0 }
    );
    two.flush().await.unwrap();
    one.flush().await.unwrap();

    let rows = one.audit(RowFilter::default(), 10_000).await.unwrap();
    let allowed: Vec<_> = rows.iter().filter(|row| !row.is_denied()).collect();
    let leased = allowed
        .iter()
        .filter(|row| row.metadata.contains_key("leased"))
        .count();
    assert_eq!(allowed.len(), made);
    assert!(leased > 0, "{leased}");
    for row in &allowed {
        assert_eq!(
            (row.status_code, row.note("state")),
            (Some(200), Some("settled")),
            "{row:?}"
        );
        assert!(row.latency_ms.is_some() && row.agent_run_id.as_deref() == Some("run_1"));
        assert!(row.operation != "refunds.create" || !row.metadata.contains_key("leased"));
    }
    let usage = one.usage(&key.id).await.unwrap();
    let calls = usage
        .iter()
        .find(|budget| !budget.livemode && budget.view.unit == "calls")
        .unwrap();
    assert_eq!(
        (calls.view.used, calls.view.held),
        (i64::try_from(CAP).unwrap(), 0)
    );
    let report = one.ledger().verify().await.unwrap();
    assert!(report.differences.is_empty() && report.chain_ok, "{report:?}");
}

#[tokio::test]
async fn reads_are_leased_on_sqlite() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}?lease_ms=500", dir.path().join("spend.db").display());
    two_processes_share_a_cap(&url, dir.path()).await;
}

#[tokio::test]
async fn reads_are_leased_on_redis() {
    let dir = tempfile::tempdir().unwrap();
    let server = RedisServer::start(RedisOptions::new()).unwrap();
    let url = format!("{}?lease_ms=500&timeout_ms=20000", server.url());
    two_processes_share_a_cap(&url, dir.path()).await;
}

/// Without a place to write calls down there are no leases, and the error says what to set.
#[tokio::test]
async fn leases_need_a_journal() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}?lease_ms=500", dir.path().join("spend.db").display());
    let refused = keybrake::lease::open(&url, std::sync::Arc::new(keybrake::SystemClock), None).await;
    let message = refused.map(drop).unwrap_err().to_string();
    assert!(message.contains("KEYBRAKE_JOURNAL_DIR"), "{message}");
}
