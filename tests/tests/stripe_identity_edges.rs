//! Which calls are one spend, where the operation is free by itself, and what an observing policy lets through.

use bytes::Bytes;
use keybrake::brake::CallContext;
use keybrake::facade::Resolution;
use keybrake::ledger::{HoldFilter, State};
use keybrake::policy::Code;
use keybrake_testkit::stripe::{Fault, FaultKind};
use keybrake_tests::{World, generated, post};
use serde_json::{Value, json};

fn credits() -> Value {
    json!({"vendor": "stripe", "daily_usd_cap": 100, "allowed_endpoints": ["customers.create", "customers.update"],
        "operation_costs": {"customers.create": 5, "customers.update": 5}})
}

#[tokio::test]
async fn a_free_write_that_the_policy_prices_is_one_spend_when_it_is_retried() {
    let world = World::new(credits()).await;
    world
        .stripe
        .fault(Fault::new(FaultKind::DropAfterExecuting).on("POST", "/v1/customers"))
        .unwrap();
    let lost = world.post("/v1/customers", "balance=-5000").await;
    assert_eq!(lost.record.state, Some(State::Unknown));
    let retried = world.post("/v1/customers", "balance=-5000").await;
    assert_eq!(retried.status, 200, "{retried:?}");
    let again = world.post("/v1/customers", "balance=-5000").await;
    assert!(again.record.replayed && again.id() == retried.id());
    assert_eq!(world.budget().await, (5_000_000, 0), "counted once");
    let sent = world.posts();
    assert_eq!(sent.len(), 2);
    assert_eq!(
        sent[0].idempotency_key, sent[1].idempotency_key,
        "one customer at Stripe"
    );
    // Without the field that gives credit it is free, and each is a customer of its own.
    let [one, other] = [
        world.post("/v1/customers", "name=Ada").await,
        world.post("/v1/customers", "name=Ada").await,
    ];
    assert_ne!(one.id(), other.id());
    world.verify().await;
}

#[tokio::test]
async fn a_priced_update_is_joined_while_unknown_and_is_a_change_of_its_own_once_done() {
    let world = World::new(credits()).await;
    let update = async |balance: &str| {
        world
            .post("/v1/customers/cus_1", &format!("balance={balance}"))
            .await
    };
    world
        .stripe
        .fault(Fault::new(FaultKind::DropAfterExecuting).on("POST", "/v1/customers/cus_1"))
        .unwrap();
    assert_eq!(update("-5000").await.record.state, Some(State::Unknown));
    assert_eq!(update("-5000").await.status, 200);
    assert_eq!(
        world.budget().await,
        (5_000_000, 0),
        "the retry is the first one's"
    );
    for balance in ["-1000", "-5000"] {
        let changed = update(balance).await;
        assert!(!changed.record.replayed);
        assert_eq!(changed.json["balance"], json!(balance.parse::<i64>().unwrap()));
    }
    assert_eq!(
        world.budget().await,
        (15_000_000, 0),
        "A, then B, then A are three"
    );
    world.verify().await;
}

#[tokio::test]
async fn reconciliation_reads_in_the_context_of_the_call() {
    let policy =
        json!({"vendor": "stripe", "daily_usd_cap": 100, "allowed_endpoints": ["payment_intents.create"]});
    let world = World::new(policy).await;
    world
        .stripe
        .fault(Fault::new(FaultKind::DropAfterExecuting).on("POST", "/v1/payment_intents"))
        .unwrap();
    let mut call = post(
        "/v1/payment_intents",
        "amount=2000&currency=usd&confirm=true&payment_method=pm_card_visa",
    );
    for (name, value) in [
        ("Stripe-Context", "acct_org/acct_1"),
        ("Stripe-Version", "2026-10-28.endive"),
    ] {
        call.headers.push((name.to_owned(), value.to_owned()));
    }
    let context = generated(None);
    let lost = world.call(&world.key, call, context).await;
    assert_eq!(lost.record.state, Some(State::Unknown));
    world.clock.advance_ms(40_000);
    let found = world
        .kb
        .reconcile(HoldFilter::default(), |_, _| ())
        .await
        .unwrap();
    assert_eq!(found[0].resolution, Resolution::Found("settled".to_owned()));
    let read = world.stripe.requests().pop().unwrap();
    assert_eq!(
        (
            read.method.as_str(),
            read.context.as_deref(),
            read.version.as_deref()
        ),
        ("GET", Some("acct_org/acct_1"), Some("2026-10-28.endive"))
    );
    assert_eq!(world.budget().await, (20_000_000, 0));
}

#[tokio::test]
async fn an_amount_pinned_into_an_empty_body_is_sent_as_a_form() {
    let policy = json!({"vendor": "stripe", "daily_usd_cap": 500, "allowed_endpoints": ["payment_intents.create",
        "payment_intents.capture"]});
    let world = World::new(policy).await;
    let authorised =
        "amount=2000&currency=usd&confirm=true&capture_method=manual&payment_method=pm_card_visa";
    let id = world.post("/v1/payment_intents", authorised).await.id();
    let mut call = post(&format!("/v1/payment_intents/{id}/capture"), "");
    call.headers.retain(|(name, _)| name != "Content-Type");
    call.body = Bytes::new();
    let captured = world.call(&world.key, call, CallContext::default()).await;
    assert_eq!(captured.json["amount_received"], json!(2000), "{captured:?}");
    let sent = world.posts().pop().unwrap();
    assert!(sent.body_bytes > 0, "the amount is pinned: {sent:?}");
    assert_eq!(
        sent.content_type.as_deref(),
        Some("application/x-www-form-urlencoded")
    );
}

#[tokio::test]
async fn what_an_observing_policy_could_not_look_up_passes_and_is_noted() {
    let policy = |mode: &str| json!({"vendor": "stripe", "mode": mode, "daily_usd_cap": 100, "allowed_endpoints": ["refunds.create"]});
    for (mode, status) in [("observe", 200), ("enforce", 403)] {
        let world = World::new(policy(mode)).await;
        let mut down = Fault::new(FaultKind::RateLimit).on("GET", "/v1/charges");
        down.times = 0;
        world.stripe.fault(down).unwrap();
        let ended = world.post("/v1/refunds", "charge=ch_1").await;
        assert_eq!(ended.status, status, "{ended:?}");
        let verdict = ended.record.verdict.as_str();
        if mode == "observe" {
            assert_eq!((verdict, world.refunded()), ("would_deny", 5_000));
        } else {
            assert_eq!((ended.code(), world.refunded()), (Some(Code::CostUnknown), 0));
        }
    }
}
