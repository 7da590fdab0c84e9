//! Faults: each breaks exactly what it says, as often as it says, and the journal stays true.

use std::thread;

use crate::client::{Client, call};
use crate::{LONG, refund, simulator};
use keybrake_testkit::Simulator;
use keybrake_testkit::stripe::{Fault, FaultKind, MovementKind, Release};

fn inject(sim: &Simulator, kind: FaultKind) -> u64 {
    sim.fault(Fault::new(kind).on("POST", "/v1/refunds")).unwrap()
}

/// Sends a refund of $1.00 that gets no whole answer.
fn lost(sim: &Simulator, key: &str) {
    let answer = Client::new(sim)
        .key(key)
        .post("/v1/refunds", "charge=ch_1&amount=100");
    assert!(answer.is_err(), "{answer:?}");
}

fn moved(sim: &Simulator) -> i64 {
    sim.moved(MovementKind::Refund, "usd")
}

#[test]
fn drop_before_executes_nothing_and_keeps_nothing() {
    let sim = simulator();
    inject(&sim, FaultKind::DropBefore);
    lost(&sim, "k");
    assert_eq!(moved(&sim), 0);
    let row = sim.requests().pop().unwrap();
    assert_eq!((row.status, row.executed, row.fault), (None, false, Some(1)));
    let retry = refund(&sim, "charge=ch_1&amount=100", "k");
    assert_eq!((retry.status, retry.header("idempotent-replayed")), (200, None));
    assert_eq!(moved(&sim), 100);
}

#[test]
fn drop_after_executing_moves_money_and_the_retry_replays() {
    let sim = simulator();
    inject(&sim, FaultKind::DropAfterExecuting);
    lost(&sim, "k");
    assert_eq!(moved(&sim), 100);
    let row = sim.requests().pop().unwrap();
    assert_eq!((row.status, row.executed), (None, true));
    let retry = refund(&sim, "charge=ch_1&amount=100", "k");
    assert_eq!(
        (retry.status, retry.header("idempotent-replayed")),
        (200, Some("true"))
    );
    assert_eq!(moved(&sim), 100);
}

#[test]
fn a_500_after_executing_is_what_the_key_keeps() {
    let sim = simulator();
    inject(&sim, FaultKind::Status500AfterExecuting);
    let first = refund(&sim, "charge=ch_1&amount=100", "k");
    assert_eq!(
        (first.status, &first.json["error"]["type"]),
        (500, &"api_error".into())
    );
    assert_eq!(moved(&sim), 100);
    let retry = refund(&sim, "charge=ch_1&amount=100", "k");
    assert_eq!(
        (retry.status, retry.header("idempotent-replayed")),
        (500, Some("true"))
    );
    assert_eq!(moved(&sim), 100);
}

#[test]
fn reset_mid_body_moves_money_and_breaks_the_answer() {
    let sim = simulator();
    inject(&sim, FaultKind::ResetMidBody);
    lost(&sim, "k");
    assert_eq!(moved(&sim), 100);
    let retry = refund(&sim, "charge=ch_1&amount=100", "k");
    assert_eq!(
        (retry.status, retry.header("idempotent-replayed")),
        (200, Some("true"))
    );

    sim.fault(Fault::new(FaultKind::ResetMidBody).on("GET", "/v1/quotes/"))
        .unwrap();
    assert!(Client::new(&sim).get("/v1/quotes/qt_1/pdf").is_err());
}

#[test]
fn a_slow_body_arrives_whole() {
    let sim = simulator();
    let slow = Fault {
        chunk_bytes: 100,
        ..Fault::new(FaultKind::SlowBody)
            .on("POST", "/v1/refunds")
            .delay_ms(1)
    };
    sim.fault(slow).unwrap();
    assert_eq!(refund(&sim, "charge=ch_1&amount=100", "k").json["amount"], 100);
    let slow = Fault {
        chunk_bytes: 64 * 1_024,
        ..Fault::new(FaultKind::SlowBody)
            .on("GET", "/v1/quotes/")
            .delay_ms(1)
    };
    sim.fault(slow).unwrap();
    assert_eq!(
        call(&sim, "GET", "/v1/quotes/qt_1/pdf", "").body.len(),
        256 * 1_024
    );
}

#[test]
fn a_delay_answers_as_usual() {
    let sim = simulator();
    sim.fault(
        Fault::new(FaultKind::DelayMs)
            .on("POST", "/v1/refunds")
            .delay_ms(5),
    )
    .unwrap();
    assert_eq!(refund(&sim, "charge=ch_1&amount=100", "k").status, 200);
    assert_eq!(sim.faults()[0].fired, 1);
    assert!(sim.fault(Fault::new(FaultKind::DelayMs)).is_err());
}

#[test]
fn a_rate_limit_runs_before_the_idempotency_layer() {
    let sim = simulator();
    let limit = Fault {
        should_retry: Some(true),
        ..Fault::new(FaultKind::RateLimit).on("POST", "/v1/refunds").skip(1)
    };
    sim.fault(limit).unwrap();
    assert_eq!(refund(&sim, "charge=ch_1&amount=100", "k").status, 200);
    let limited = refund(&sim, "charge=ch_1&amount=100", "k");
    assert_eq!(
        (limited.status, &limited.json["error"]["code"]),
        (429, &"rate_limit".into())
    );
    assert_eq!(limited.header("stripe-should-retry"), Some("true"));
    assert_eq!(
        refund(&sim, "charge=ch_1&amount=100", "k").header("idempotent-replayed"),
        Some("true")
    );
    assert_eq!(moved(&sim), 100);
}

#[test]
fn any_status_can_be_asked_for() {
    let sim = simulator();
    let redirect = Fault {
        status: Some(302),
        headers: [("location".to_owned(), "http://elsewhere/".to_owned())].into(),
        ..Fault::new(FaultKind::Status).on("POST", "/v1/refunds")
    };
    sim.fault(redirect).unwrap();
    let answer = refund(&sim, "charge=ch_1", "k");
    assert_eq!(
        (answer.status, answer.header("location")),
        (302, Some("http://elsewhere/"))
    );
    let down = Fault {
        status: Some(503),
        body: Some(serde_json::json!("down")),
        ..Fault::new(FaultKind::Status).times(0)
    };
    let id = sim.fault(down).unwrap();
    for _ in 0..3 {
        assert_eq!(refund(&sim, "charge=ch_1", "k").json, "down");
    }
    assert_eq!(sim.faults()[1].fired, 3);
    assert_eq!(sim.faults()[1].id, id);
    sim.clear_faults();
    assert_eq!(refund(&sim, "charge=ch_1", "k").status, 200);
    assert!(sim.fault(Fault::new(FaultKind::Status)).is_err());
}

#[test]
fn faults_hit_only_what_they_match_and_no_more_often_than_asked() {
    let sim = simulator();
    let mut fault = Fault::new(FaultKind::DropBefore)
        .on("POST", "/v1/refunds")
        .skip(1)
        .times(2);
    fault.matches.idempotency_key = Some("k".to_owned());
    sim.fault(fault).unwrap();
    assert_eq!(refund(&sim, "charge=ch_1&amount=100", "other").status, 200);
    assert_eq!(call(&sim, "GET", "/v1/refunds", "").status, 200);
    assert_eq!(refund(&sim, "charge=ch_1&amount=100", "k").status, 200);
    lost(&sim, "k");
    lost(&sim, "k");
    assert_eq!(refund(&sim, "charge=ch_1&amount=100", "k").status, 200);
    let status = sim.faults().remove(0);
    assert_eq!((status.seen, status.fired), (3, 2));
}

#[test]
fn a_request_held_after_executing_has_moved_its_money() {
    let sim = simulator();
    let fault = Fault::new(FaultKind::HoldUntilReleased)
        .on("POST", "/v1/refunds")
        .after_executing();
    sim.fault(fault).unwrap();
    thread::scope(|scope| {
        let first = scope.spawn(|| refund(&sim, "charge=ch_1&amount=100", "k"));
        assert!(sim.wait_held_blocking(1, LONG));
        assert_eq!(moved(&sim), 100);
        assert_eq!(
            refund(&sim, "charge=ch_1&amount=100", "k").header("idempotent-replayed"),
            Some("true")
        );
        sim.release(Release::default());
        assert_eq!(first.join().unwrap().header("idempotent-replayed"), None);
    });
    assert_eq!(moved(&sim), 100);
}

#[test]
fn a_held_request_can_be_dropped_and_then_it_never_ran() {
    let sim = simulator();
    inject(&sim, FaultKind::HoldUntilReleased);
    let drop_it = Release {
        drop: true,
        ..Release::default()
    };
    thread::scope(|scope| {
        let held = scope.spawn(|| lost(&sim, "k"));
        assert!(sim.wait_held_blocking(1, LONG));
        assert_eq!(sim.release(drop_it), 1);
        held.join().unwrap();
    });
    assert_eq!(moved(&sim), 0);
    assert_eq!(
        refund(&sim, "charge=ch_1&amount=100", "k").header("idempotent-replayed"),
        None
    );
}

#[test]
fn a_held_request_executes_even_if_its_sender_is_gone() {
    let sim = simulator();
    inject(&sim, FaultKind::HoldUntilReleased);
    let sender = Client::new(&sim)
        .key("k")
        .post_and_leave("/v1/refunds", "charge=ch_1&amount=100");
    assert!(sim.wait_held_blocking(1, LONG));
    drop(sender);
    sim.release(Release::default());
    assert!(sim.wait_moved_blocking(1, LONG));
    assert_eq!(moved(&sim), 100);
}

#[test]
fn a_reset_drops_what_is_held() {
    let sim = simulator();
    inject(&sim, FaultKind::HoldUntilReleased);
    thread::scope(|scope| {
        let held = scope.spawn(|| lost(&sim, "k"));
        assert!(sim.wait_held_blocking(1, LONG));
        sim.reset().unwrap();
        held.join().unwrap();
    });
    assert!(sim.waiting().is_empty());
    assert_eq!(moved(&sim), 0);
}

#[test]
fn fifty_requests_are_held_and_released_at_once() {
    let sim = simulator();
    let all = Fault::new(FaultKind::HoldUntilReleased)
        .on("POST", "/v1/refunds")
        .times(0);
    sim.fault(all).unwrap();
    thread::scope(|scope| {
        let sim = &sim;
        let senders: Vec<_> = (0..50)
            .map(|number| {
                scope.spawn(move || refund(sim, "charge=ch_1&amount=1000", &format!("k{number}")).status)
            })
            .collect();
        assert!(sim.wait_held_blocking(50, LONG));
        assert_eq!(moved(sim), 0);
        assert_eq!(sim.release(Release::default()), 50);
        let done = senders
            .into_iter()
            .filter(|_| true)
            .map(|sender| sender.join().unwrap());
        assert_eq!(done.filter(|status| *status == 200).count(), 5);
    });
    assert_eq!(moved(&sim), 5_000);
}
