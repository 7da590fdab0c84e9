//! The edges of a governed Stripe call: what its caller gets back, and what it may still do with it.

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
