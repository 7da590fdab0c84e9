//! `Shell::authorize` and `Shell::settle`: the shell judges and records, and its caller sends.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed unwrap is a failed test"
)]

use std::time::Duration;

use keybrake::brake::{Decision, Permit, Prepared, SendEnd};
use keybrake::client::{Answer, base_client};
use keybrake::policy::Code;
use keybrake::vendors::Reply;
use keybrake_tests::{World, ended, generated, post, refunds, signed};

async fn decide(world: &World, charge: &str, wait: Duration) -> Decision {
    let call = signed(&world.key, post("/v1/refunds", &format!("charge={charge}")));
    let decision = world.kb.shell().authorize(call, generated(None), wait).await;
    decision.unwrap()
}

async fn permit(world: &World, charge: &str) -> Permit {
    match decide(world, charge, Duration::ZERO).await {
        Decision::Permit(permit) => *permit,
        other => panic!("no permit: {other:?}"),
    }
}

/// Somebody else's HTTP client.
async fn sent(request: &Prepared) -> Reply {
    let method = reqwest::Method::from_bytes(request.method.as_bytes()).unwrap();
    let mut builder = base_client().unwrap().request(method, &request.url);
    for (name, value) in &request.headers {
        builder = builder.header(name.as_str(), value.as_str());
    }
    let reply = builder.body(request.body.clone()).send().await.unwrap();
    Reply {
        status: reply.status().as_u16(),
        headers: Vec::new(),
        body: reply.bytes().await.unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_amount_is_looked_up_and_what_came_back_is_settled() {
    let world = World::new(refunds(100)).await;
    let permit = permit(&world, "ch_1").await;
    assert_eq!(permit.amount().micros(), 50_000_000);
    assert_eq!(world.budget().await, (0, 50_000_000));
    let reply = sent(&permit.request).await;
    let answer = world
        .kb
        .shell()
        .settle(permit, SendEnd::Reply(reply))
        .await
        .unwrap();
    assert!(ended(answer).id().starts_with("re_"));
    assert_eq!((world.budget().await, world.refunded()), ((50_000_000, 0), 5_000));
    // The same again is a receipt: there is nothing to send.
    let again = decide(&world, "ch_1", Duration::ZERO).await;
    assert!(matches!(again, Decision::Replayed(_)), "{again:?}");
    world.verify().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permit_that_is_dropped_stays_held_and_one_that_was_never_sent_does_not() {
    let world = World::new(refunds(100)).await;
    drop(permit(&world, "ch_1").await);
    let unsent = permit(&world, "ch_2").await;
    assert_eq!(world.budget().await, (0, 100_000_000));
    let answer = world.kb.shell().settle(unsent, SendEnd::NeverSent).await.unwrap();
    assert!(
        matches!(answer, Answer::Lost { never_sent: true, .. }),
        "{answer:?}"
    );
    assert_eq!(world.budget().await, (0, 50_000_000));
    world.verify().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn room_that_comes_back_in_time_is_waited_for() {
    let world = World::new(refunds(50)).await;
    let first = permit(&world, "ch_1").await;
    match decide(&world, "ch_2", Duration::ZERO).await {
        Decision::Denied(refused) => assert_eq!(refused.denial.code, Code::CapHeld),
        other => panic!("not refused: {other:?}"),
    }
    let (waiting, given_back) = tokio::join!(
        decide(&world, "ch_2", Duration::from_mins(1)),
        world.kb.shell().settle(first, SendEnd::NeverSent)
    );
    given_back.unwrap();
    assert!(matches!(waiting, Decision::Permit(_)), "{waiting:?}");
}
