//! Governed calls on the Redis ledger, end to end; the vendor's own journal is the truth.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::Arc;

use keybrake::brake::Limits;
use keybrake::facade::Keybrake;
use keybrake::ledger::HoldFilter;
use keybrake::policy::{Code, Policy};
use keybrake::secret::Secret;
use keybrake_testkit::redis::{Persistence, Relay};
use keybrake_testkit::stripe::{MovementKind, Simulator, SimulatorOptions, TEST_SECRET};
use keybrake_tests::fleet::Fleet;
use keybrake_tests::{noon_zone, refund, refunds};
use tokio::task::JoinSet;

async fn keybrake(ledger: &str, stripe: &Simulator) -> Keybrake {
    Keybrake::builder()
        .ledger(ledger)
        .secret("stripe", Secret::value(TEST_SECRET))
        .base_url("stripe", stripe.url())
        .limits(Limits {
            send_within_ms: 10_000,
            request_ms: 20_000,
            ..Limits::default()
        })
        .build()
        .await
        .unwrap()
}

/// Two engines with a connection each, one of them behind a network that loses answers and connections.
#[tokio::test(flavor = "multi_thread")]
async fn fifty_refunds_at_once_from_two_engines_move_exactly_what_fits() {
    let fleet = Fleet::start(Persistence::None);
    let relay = Relay::start(fleet.server.port()).unwrap();
    let stripe = Simulator::start(SimulatorOptions::default()).unwrap();
    let direct = keybrake(&fleet.url(), &stripe).await;
    let broken = keybrake(&format!("{}?ns=fleet&timeout_ms=20000", relay.url()), &stripe).await;
    let mut policy = refunds(50);
    policy
        .as_object_mut()
        .unwrap()
        .insert("timezone".to_owned(), noon_zone().into());
    let key = direct
        .issue(Policy::from_value(&policy).unwrap())
        .run("run_1")
        .await
        .unwrap();
    let (direct, broken, key) = (Arc::new(direct), Arc::new(broken), Arc::new(key));

    relay.lose_reply("refunds.create");
    let mut calls = JoinSet::new();
    for number in 0..50 {
        let kb = Arc::clone(if number % 2 == 0 { &direct } else { &broken });
        let key = Arc::clone(&key);
        calls.spawn(async move {
            let form = format!("charge=ch_{}&amount=400", number % 6 + 1);
            refund(&kb, &key, &format!("refund-{number}"), &form).await
        });
    }
    let (mut done, mut refused) = (0, 0);
    while let Some(ended) = calls.join_next().await {
        let ended = ended.unwrap();
        match ended.code() {
            None => {
                ended.id();
                done += 1;
            }
            Some(code) => {
                assert!(matches!(code, Code::CapExceeded | Code::CapHeld), "{ended:?}");
                refused += 1;
            }
        }
    }
    assert!(relay.wait_caught(1), "no answer was lost");
    assert_eq!((done, refused), (12, 38), "twelve refunds of $4 fit under $50");
    assert_eq!(stripe.moved(MovementKind::Refund, "usd"), 4_800);
    for kb in [&direct, &broken] {
        let usage = kb.usage(&key.id).await.unwrap();
        let budget = usage.iter().find(|budget| !budget.livemode).unwrap();
        assert_eq!((budget.view.used, budget.view.held), (48_000_000, 0));
        assert!(kb.holds(HoldFilter::default()).await.unwrap().is_empty());
        let report = kb.ledger().verify().await.unwrap();
        assert!(report.chain_ok && report.differences.is_empty(), "{report:?}");
    }

    // The same steps again, from the other engine each: replayed, and nothing moves.
    for number in 0..50 {
        let kb = if number % 2 == 0 { &broken } else { &direct };
        let form = format!("charge=ch_{}&amount=400", number % 6 + 1);
        refund(kb, &key, &format!("refund-{number}"), &form).await;
    }
    assert_eq!(stripe.moved(MovementKind::Refund, "usd"), 4_800);
}
