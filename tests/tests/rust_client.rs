//! The reqwest seam: governed by a middleware, with `reqwest-retry` outside it.

use std::time::Duration;

use keybrake::client::base_client;
use keybrake::facade::Run;
use keybrake::ledger::HoldFilter;
use keybrake::policy::{Code, Policy};
use keybrake::{Step, denied};
use keybrake_testkit::stripe::{Fault, FaultKind};
use keybrake_tests::{World, eventually};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use reqwest_retry::RetryTransientMiddleware;
use reqwest_retry::policies::ExponentialBackoff;
use serde_json::{Value, json};

const REFUNDS: &str = "https://api.stripe.com/v1/refunds";

fn policy() -> Value {
    json!({"vendor": "stripe", "label": "rust", "daily_usd_cap": 100, "timezone": keybrake_tests::noon_zone(),
        "allowed_endpoints": ["refunds.create", "reads"]})
}

#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
async fn open(world: &World) -> Run {
    world
        .kb
        .open(Policy::from_value(&policy()).unwrap())
        .run("run_rust")
        .await
        .unwrap()
}

#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
fn retrying(run: &Run) -> ClientWithMiddleware {
    let quickly = ExponentialBackoff::builder()
        .retry_bounds(Duration::from_millis(1), Duration::from_millis(2))
        .build_with_max_retries(3);
    ClientBuilder::new(base_client().unwrap())
        .with(RetryTransientMiddleware::new_with_policy(quickly))
        .with(run.enforcement())
        .build()
}

#[tokio::test]
async fn reqwest_retry_outside_makes_attempts_not_spends() {
    let world = World::new(policy()).await;
    let run = open(&world).await;
    let http = retrying(&run);
    world.fault_refunds(FaultKind::Status500AfterExecuting, 2);
    let reply = http
        .post(REFUNDS)
        .form(&[("charge", "ch_1")])
        .with_extension(Step::new("one"))
        .send()
        .await
        .unwrap();
    // Stripe replays the first answer, the 500, to every attempt with the same key; what counts is what moved.
    assert_eq!(reply.status(), 500);
    assert_eq!(world.refunded(), 5_000, "attempts of one spend, not spends");
    let posts = world.posts();
    assert!(posts.len() > 1, "it was retried");
    let keys: std::collections::BTreeSet<_> = posts
        .iter()
        .map(|request| request.idempotency_key.clone())
        .collect();
    assert_eq!(keys.len(), 1, "under one key");
    run.close().await.unwrap();
}

#[tokio::test]
async fn a_dropped_connection_is_retried_into_the_first_refund() {
    let world = World::new(policy()).await;
    let run = open(&world).await;
    world.fault_refunds(FaultKind::DropAfterExecuting, 1);
    let reply = retrying(&run)
        .post(REFUNDS)
        .form(&[("charge", "ch_1")])
        .send()
        .await
        .unwrap();
    assert_eq!(reply.status(), 200);
    assert_eq!(world.refunded(), 5_000);
    assert_eq!(
        run.spent().await.unwrap().map(|(spent, _)| spent.to_string()),
        Some("50.00".to_owned())
    );
    world.verify().await;
}

#[tokio::test]
async fn a_denial_is_found_in_the_error_and_is_never_retried() {
    let world = World::new(policy()).await;
    let run = open(&world).await;
    let http = retrying(&run);
    for (step, charge) in [("a", "ch_1"), ("b", "ch_2")] {
        http.post(REFUNDS)
            .form(&[("charge", charge)])
            .with_extension(Step::new(step))
            .send()
            .await
            .unwrap();
    }
    let sent = world.posts().len();
    let error = http
        .post(REFUNDS)
        .form(&[("charge", "ch_3")])
        .with_extension(Step::new("c"))
        .send()
        .await
        .unwrap_err();
    let denial = denied(&error).unwrap();
    assert_eq!(denial.code, Code::CapExceeded);
    assert_eq!(denial.budget.as_ref().unwrap().cap, 100_000_000);
    let after = world.posts().len();
    assert_eq!(after, sent);
}

#[tokio::test]
async fn a_closed_run_is_refused_and_a_streamed_body_too() {
    let world = World::new(policy()).await;
    let run = open(&world).await;
    let http = run.client().unwrap();
    let body = reqwest::Body::wrap(reqwest::Body::from("charge=ch_1"));
    let error = http.post(REFUNDS).body(body).send().await.unwrap_err();
    assert_eq!(denied(&error).unwrap().code, Code::RequestMalformed);
    run.close().await.unwrap();
    let error = http
        .post(REFUNDS)
        .form(&[("charge", "ch_1")])
        .send()
        .await
        .unwrap_err();
    assert_eq!(denied(&error).unwrap().code, Code::KeyRevoked);
    assert_eq!(world.refunded(), 0);
}

#[tokio::test]
async fn lesson_10_a_cancelled_call_stays_held_and_is_resolved() {
    let world = World::new(policy()).await;
    let run = open(&world).await;
    world
        .stripe
        .fault(
            Fault::new(FaultKind::HoldUntilReleased)
                .on("POST", "/v1/refunds")
                .after_executing(),
        )
        .unwrap();
    let http = run.client().unwrap();
    let task = tokio::spawn(async move { http.post(REFUNDS).form(&[("charge", "ch_1")]).send().await });
    eventually(async || !world.stripe.waiting().is_empty()).await;
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    eventually(async || {
        let holds = world.kb.holds(HoldFilter::default()).await.unwrap();
        holds
            .iter()
            .any(|hold| hold.unknown_reason.as_deref() == Some("cancelled"))
    })
    .await;
    let (used, held) = world.budget_of(run.key_id()).await;
    assert_eq!((used, held), (0, 50_000_000), "a cancelled call stays counted");
    assert_eq!(world.reconcile().await, 0);
    assert_eq!(
        world.budget_of(run.key_id()).await,
        (50_000_000, 0),
        "the books equal the journal"
    );
    assert_eq!(world.refunded(), 5_000);
}
