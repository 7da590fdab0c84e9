//! Stripe's idempotency, and the journal when many requests come at once.

use std::thread;

use crate::client::{Answer, Client};
use crate::{LONG, refund, simulator};
use keybrake_testkit::stripe::{Fault, FaultKind, MovementKind, MovementOutcome, Release, Seed, SeedCharge};

#[test]
fn a_replay_has_the_first_reply_and_moves_nothing() {
    let sim = simulator();
    let first = refund(&sim, "charge=ch_1&amount=100", "same");
    let replay = refund(&sim, "amount=100&charge=ch_1", "same");
    assert_eq!(replay.status, 200);
    assert_eq!(replay.body, first.body);
    assert_eq!(replay.header("idempotent-replayed"), Some("true"));
    assert_eq!(first.header("idempotent-replayed"), None);
    assert_eq!(replay.header("original-request"), first.header("request-id"));
    assert_ne!(replay.header("request-id"), first.header("request-id"));
    assert_eq!(sim.journal().len(), 1);
}

#[test]
fn one_key_with_other_parameters_or_another_endpoint_is_an_idempotency_error() {
    let sim = simulator();
    refund(&sim, "charge=ch_1&amount=100", "k");
    for (path, form) in [
        ("/v1/refunds", "charge=ch_1&amount=101"),
        ("/v1/refunds", "charge=ch_1&amount=100&metadata[a]=b"),
        ("/v1/charges", "charge=ch_1&amount=100"),
    ] {
        let answer = Client::new(&sim).key("k").post(path, form).unwrap();
        assert_eq!(answer.status, 400, "{path} {form}");
        assert_eq!(answer.json["error"]["type"], "idempotency_error");
    }
    assert_eq!(sim.journal().len(), 1);
}

#[test]
fn keys_belong_to_an_account() {
    let sim = simulator();
    sim.seed(&Seed {
        account: Some("acct_b".to_owned()),
        charges: vec![SeedCharge::new("ch_b", 700, "usd")],
        ..Seed::default()
    })
    .unwrap();
    let ours = refund(&sim, "charge=ch_1", "k");
    let theirs = Client::new(&sim)
        .key("k")
        .header("Stripe-Account", "acct_b")
        .post("/v1/refunds", "charge=ch_b")
        .unwrap();
    assert_eq!((ours.status, theirs.status), (200, 200));
    assert_eq!(theirs.header("stripe-account"), Some("acct_b"));
    assert_eq!(
        refund(&sim, "charge=ch_b", "k2").json["error"]["code"],
        "resource_missing"
    );
    assert_eq!(sim.journal()[1].account, "acct_b");
    let bad = Client::new(&sim)
        .header("Stripe-Account", "elsewhere")
        .get("/v1/charges")
        .unwrap();
    assert_eq!(bad.status, 403);
}

#[test]
fn a_key_is_forgotten_after_a_day_and_then_executes_again() {
    let sim = simulator();
    refund(&sim, "charge=ch_1&amount=100", "k");
    sim.advance_clock_ms(24 * 3_600_000 - 60_000);
    assert_eq!(
        refund(&sim, "charge=ch_1&amount=100", "k").header("idempotent-replayed"),
        Some("true")
    );
    sim.advance_clock_ms(60_000);
    assert_eq!(
        refund(&sim, "charge=ch_1&amount=100", "k").header("idempotent-replayed"),
        None
    );
    assert_eq!(sim.moved(MovementKind::Refund, "usd"), 200);
}

#[test]
fn a_decline_is_kept_and_replayed_but_a_validation_failure_is_not() {
    let sim = simulator();
    let client = Client::new(&sim).key("k");
    let form = "amount=500&currency=usd&source=tok_visa_chargeDeclinedInsufficientFunds";
    let declined = client.post("/v1/charges", form).unwrap();
    assert_eq!(declined.status, 402);
    assert_eq!(declined.json["error"]["type"], "card_error");
    assert_eq!(declined.json["error"]["decline_code"], "insufficient_funds");
    let replay = client.post("/v1/charges", form).unwrap();
    assert_eq!((replay.status, &replay.body), (402, &declined.body));
    assert_eq!(replay.header("idempotent-replayed"), Some("true"));
    let rows = sim.journal();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].outcome, MovementOutcome::None);
    assert_eq!(sim.moved(MovementKind::Charge, "usd"), 0);

    let client = Client::new(&sim).key("v");
    assert_eq!(
        client
            .post("/v1/charges", "amount=x&currency=usd&source=tok_visa")
            .unwrap()
            .status,
        400
    );
    assert_eq!(
        client
            .post("/v1/charges", "amount=500&currency=usd&source=tok_visa")
            .unwrap()
            .status,
        200
    );
}

#[test]
fn while_the_first_request_runs_the_second_gets_409() {
    let sim = simulator();
    let hold = sim
        .fault(Fault::new(FaultKind::HoldUntilReleased).on("POST", "/v1/refunds"))
        .unwrap();
    thread::scope(|scope| {
        let first = scope.spawn(|| refund(&sim, "charge=ch_1", "k"));
        assert!(sim.wait_held_blocking(1, LONG));
        let second = refund(&sim, "charge=ch_1", "k");
        assert_eq!(
            (second.status, &second.json["error"]["code"]),
            (409, &"idempotency_key_in_use".into())
        );
        let other = refund(&sim, "charge=ch_2", "k");
        assert_eq!(other.json["error"]["type"], "idempotency_error");
        assert!(sim.journal().is_empty());
        assert_eq!(sim.waiting()[0].fault, hold);
        assert_eq!(sim.release(Release::default()), 1);
        assert_eq!(first.join().unwrap().status, 200);
    });
    assert_eq!(
        refund(&sim, "charge=ch_1", "k").header("idempotent-replayed"),
        Some("true")
    );
    assert_eq!(sim.moved(MovementKind::Refund, "usd"), 5_000);
}

#[test]
fn the_journal_is_true_under_fifty_concurrent_requests() {
    let sim = simulator();
    sim.seed(&Seed {
        charges: vec![SeedCharge::new("ch_big", 2_000, "usd")],
        ..Seed::default()
    })
    .unwrap();
    // Ten keys, five senders each, of $1.00 against a charge of $20.00; and ten keys on one small charge.
    let answers: Vec<Answer> = thread::scope(|scope| {
        let senders: Vec<_> = (0..50)
            .map(|number| {
                let sim = &sim;
                scope.spawn(move || refund(sim, "charge=ch_big&amount=100", &format!("k{}", number % 10)))
            })
            .collect();
        senders.into_iter().map(|sender| sender.join().unwrap()).collect()
    });
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert_eq!(
        answers
            .iter()
            .filter(|answer| answer.header("idempotent-replayed").is_none())
            .count(),
        10
    );
    assert_eq!(sim.moved(MovementKind::Refund, "usd"), 1_000);

    let answers: Vec<Answer> = thread::scope(|scope| {
        let senders: Vec<_> = (0..50)
            .map(|number| {
                let sim = &sim;
                scope.spawn(move || refund(sim, "charge=ch_big&amount=300", &format!("other{number}")))
            })
            .collect();
        senders.into_iter().map(|sender| sender.join().unwrap()).collect()
    });
    assert_eq!(answers.iter().filter(|answer| answer.status == 200).count(), 3);
    assert_eq!(sim.object("ch_big").unwrap()["amount_refunded"], 1_900);
    assert_eq!(sim.moved(MovementKind::Refund, "usd"), 1_900);
    let seqs: Vec<u64> = sim.journal().iter().map(|row| row.seq).collect();
    assert_eq!(seqs, (1..=13).collect::<Vec<_>>());
}
