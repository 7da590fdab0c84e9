//! Reads before a decision: how many reach the vendor. The simulator's log of requests is the truth.

use std::time::Duration;

use keybrake::brake::Limits;
use keybrake::policy::Code;
use keybrake_testkit::stripe::{Fault, FaultKind, Release};
use keybrake_tests::{World, post};
use serde_json::{Value, json};

fn refunds() -> Value {
    json!({"vendor": "stripe", "daily_usd_cap": 1000, "allowed_endpoints": ["refunds.create"]})
}

fn reads(world: &World) -> usize {
    let all = world.stripe.requests();
    all.iter().filter(|request| request.method == "GET").count()
}

#[tokio::test]
async fn two_lookups_of_one_object_at_once_are_one_read() {
    let world = World::new(refunds()).await;
    world
        .stripe
        .fault(Fault::new(FaultKind::HoldUntilReleased).on("GET", "/v1/charges/ch_1"))
        .unwrap();
    let partial = |n: u32| {
        let world = &world;
        async move {
            world
                .step(&format!("order-{n}"), "/v1/refunds", "charge=ch_1&amount=1000")
                .await
        }
    };
    let release = async {
        assert!(world.stripe.wait_held(1, Duration::from_secs(20)).await);
        world.stripe.release(Release::default());
    };
    let (first, second, ()) = tokio::join!(partial(1), partial(2), release);
    assert_ne!(first.id(), second.id());
    assert_eq!(
        (reads(&world), world.refunded()),
        (1, 2_000),
        "two refunds, one read"
    );
    partial(3).await.id();
    assert_eq!(reads(&world), 2, "an answer that is there is not used again");
    assert_eq!(world.budget().await, (30_000_000, 0));
}

#[tokio::test]
async fn another_key_reads_for_itself() {
    let world = World::new(refunds()).await;
    let other = world.issue(refunds(), "run_2").await;
    world
        .stripe
        .fault(
            Fault::new(FaultKind::HoldUntilReleased)
                .on("GET", "/v1/charges/ch_1")
                .times(2),
        )
        .unwrap();
    let refund = |key| {
        let call = post("/v1/refunds", "charge=ch_1&amount=1000");
        world.call(key, call, keybrake::brake::CallContext::default())
    };
    let release = async {
        assert!(world.stripe.wait_held(2, Duration::from_secs(20)).await);
        world.stripe.release(Release::default());
    };
    let (first, second, ()) = tokio::join!(refund(&world.key), refund(&other), release);
    assert_ne!(first.id(), second.id());
    assert_eq!(reads(&world), 2);
}

#[tokio::test]
async fn a_key_begins_only_so_many_lookups_a_second() {
    let limits = Limits {
        lookups_per_second: Some(3),
        ..Limits::default()
    };
    let world = World::limited(limits, refunds()).await;
    for n in 1..=3 {
        world
            .post("/v1/refunds", &format!("charge=ch_{n}&amount=1000"))
            .await
            .id();
    }
    for n in 4..=8 {
        let refused = world
            .post("/v1/refunds", &format!("charge=ch_{n}&amount=1000"))
            .await;
        assert_eq!(refused.code(), Some(Code::CostUnknown));
        let message = refused.denial.unwrap().message;
        assert!(
            message.contains("has begun 3 of them in the last second"),
            "{message}"
        );
    }
    assert_eq!(
        (reads(&world), world.refunded()),
        (3, 3_000),
        "nothing else reached the vendor"
    );
    let replayed = world.post("/v1/refunds", "charge=ch_1&amount=1000").await;
    assert!(replayed.record.replayed, "what needs no read is not refused");
    world.clock.advance_ms(999);
    assert!(
        world
            .post("/v1/refunds", "charge=ch_4&amount=1000")
            .await
            .denial
            .is_some()
    );
    world.clock.advance_ms(1);
    world.post("/v1/refunds", "charge=ch_4&amount=1000").await.id();
    assert_eq!(world.budget().await, (40_000_000, 0));
    world.verify().await;
}

#[tokio::test]
async fn a_lookup_that_failed_is_not_a_wrong_customer() {
    let limits = Limits {
        lookups_per_second: Some(1),
        ..Limits::default()
    };
    let mut policy = refunds();
    policy["allowed_customers"] = json!(["cus_1"]);
    let world = World::limited(limits, policy).await;
    let first = world.post("/v1/refunds", "charge=ch_1&amount=1000").await;
    let second = world.post("/v1/refunds", "charge=ch_2&amount=1000").await;
    assert_eq!(first.code(), None, "{first:?}");
    assert_eq!(
        second.code(),
        Some(Code::CostUnknown),
        "nobody knows whose charge it is: {second:?}"
    );
    assert_eq!((reads(&world), world.refunded()), (1, 1_000));
}
