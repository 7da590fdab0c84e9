//! The edges of a governed Stripe call: what its caller gets back, and what it may still do with it.

use keybrake::facade::Resolution;
use keybrake::ledger::{HoldFilter, State};
use keybrake::policy::{Code, words};
use keybrake_testkit::stripe::MovementKind;
use keybrake_tests::World;
use serde_json::{Value, json};

fn payments() -> Value {
    json!({"vendor": "stripe", "daily_usd_cap": 1000, "allowed_endpoints": ["payment_intents.create",
        "payment_intents.confirm"]})
}

#[tokio::test]
async fn a_declined_create_gives_no_client_secret_away() {
    let world = World::new(payments()).await;
    let ended = world
        .step(
            "declined",
            "/v1/payment_intents",
            "amount=9000&currency=usd&confirm=true&payment_method=pm_card_chargeDeclined",
        )
        .await;
    assert_eq!(
        (ended.status, world.budget().await),
        (402, (0, 0)),
        "the hold is freed: {ended:?}"
    );
    let intent = &ended.json["error"]["payment_intent"];
    assert!(
        intent["id"].as_str().is_some_and(|id| id.starts_with("pi_")),
        "{ended:?}"
    );
    assert_eq!(intent["client_secret"], json!(null));
    assert!(!ended.json.to_string().contains("_secret_"), "{ended:?}");
    let open = world
        .step("open", "/v1/payment_intents", "amount=1000&currency=usd")
        .await;
    assert!(
        open.json["client_secret"].is_string(),
        "one that counts keeps its secret: {open:?}"
    );
    assert_eq!(world.stripe.moved(MovementKind::Charge, "usd"), 0);
}

#[tokio::test]
async fn above_the_limit_for_one_call_the_limit_is_told() {
    let policy = json!({"vendor": "stripe", "daily_usd_cap": 1000, "max_amount_per_call_usd": "20.50",
        "allowed_endpoints": ["refunds.create"]});
    let world = World::new(policy.clone()).await;
    let refused = world.post("/v1/refunds", "charge=ch_1&amount=2100").await;
    let denial = refused.denial.unwrap();
    assert_eq!(denial.code, Code::AmountOverLimit);
    assert_eq!(
        denial.message,
        "$21.00 is above max_amount_per_call_usd, which is $20.50"
    );
    assert!(words::for_model(&denial).contains(
        "this refund of $21.00 was refused before it was sent; no money moved. Limit $20.50 per call."
    ));
    assert_eq!(refused.json["error"]["keybrake"]["budget"]["per"], json!("call"));
    assert_eq!(
        refused.record.tightest, None,
        "the ceiling is no budget that could be used"
    );
    world.post("/v1/refunds", "charge=ch_1&amount=2050").await.id();

    let mut reticent = policy;
    reticent["model_detail"] = json!("reason");
    let world = World::new(reticent).await;
    let refused = world.post("/v1/refunds", "charge=ch_1&amount=2100").await;
    assert!(!words::for_model(&refused.denial.unwrap()).contains('$'));
}

#[tokio::test]
async fn a_payout_that_fails_after_it_was_paid_gives_its_cap_back() {
    let policy = json!({"vendor": "stripe", "daily_usd_cap": 100, "allowed_endpoints": ["payouts.create"]});
    let world = World::new(policy).await;
    let payout = "amount=8000&currency=usd";
    let first = world.step("pay-out", "/v1/payouts", payout).await;
    assert_eq!(first.record.state, Some(State::Provisional));
    assert_eq!(world.budget().await, (80_000_000, 0));
    for status in ["in_transit", "paid"] {
        world.stripe.advance(&first.id(), status).unwrap();
        assert!(
            world
                .kb
                .reconcile(HoldFilter::default(), |_, _| ())
                .await
                .unwrap()
                .is_empty()
        );
        assert_eq!(
            world.budget().await,
            (80_000_000, 0),
            "{status} moves nothing back"
        );
    }
    world.stripe.advance(&first.id(), "failed").unwrap();
    let found = world
        .kb
        .reconcile(HoldFilter::default(), |_, _| ())
        .await
        .unwrap();
    let kinds: Vec<_> = found.iter().map(|call| call.resolution.clone()).collect();
    assert_eq!(kinds, [Resolution::Found("voided".to_owned())]);
    assert_eq!(world.budget().await, (0, 0));
    assert!(
        world
            .kb
            .reconcile(HoldFilter::default(), |_, _| ())
            .await
            .unwrap()
            .is_empty()
    );
    let again = world.step("pay-out", "/v1/payouts", payout).await;
    assert_ne!(
        again.id(),
        first.id(),
        "a new payout, not the failed one's replay"
    );
    assert_eq!(world.budget().await, (80_000_000, 0));
    world.verify().await;
}

#[tokio::test]
async fn a_payout_that_stayed_paid_is_final_after_35_days() {
    let policy = json!({"vendor": "stripe", "daily_usd_cap": 100, "allowed_endpoints": ["payouts.create"],
        "expires_in": "60d"});
    let world = World::new(policy).await;
    let payout = world.post("/v1/payouts", "amount=8000&currency=usd").await;
    world.stripe.advance(&payout.id(), "paid").unwrap();
    world.clock.advance_ms(35 * 86_400_000);
    let found = world
        .kb
        .reconcile(HoldFilter::default(), |_, _| ())
        .await
        .unwrap();
    assert_eq!(found[0].resolution, Resolution::Found("settled".to_owned()));
    assert!(
        world
            .kb
            .reconcile(HoldFilter::default(), |_, _| ())
            .await
            .unwrap()
            .is_empty()
    );
    world.verify().await;
}
