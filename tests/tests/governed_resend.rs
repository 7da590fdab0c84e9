//! Whole governed calls against the Resend simulator, whose journal of what was sent is the truth.

use std::sync::Arc;
use std::time::Duration;

use keybrake::audit::RowFilter;
use keybrake::ledger::State;
use keybrake::policy::Code;
use keybrake_testkit::stripe::{Credential, Fault, FaultKind, Release};
use keybrake_testkit::{SentKind, SimulatedVendor};
use keybrake_tests::Ended;
use keybrake_tests::sender::{By, Sender};
use keybrake_tests::sending::{LOSSES, Sending, email, refused_before_anything_left};
use serde_json::{Value, json};

/// E-mails and reads up to so many dollars a day, at one cent for an e-mail and ten for a batch.
fn cents(cap: &str) -> Value {
    json!({"vendor": "resend", "label": "support", "daily_usd_cap": cap,
        "allowed_endpoints": ["emails.send", "emails.batch", "emails.cancel", "broadcasts.send", "reads"],
        "operation_costs": {"emails.send": "0.01", "emails.batch": "0.10", "broadcasts.send": "0.50"}})
}

const RESEND: Sending = Sending {
    vendor: SimulatedVendor::Resend,
    operation: "emails.send",
    path: "/emails",
    to: "b@example.com",
    refused: ("nobody", 422),
    done: 200,
    limited: ("name", || json!("rate_limit_exceeded")),
    cents,
};

#[tokio::test]
async fn without_a_cost_in_the_policy_nothing_is_sent() {
    // As resend-node and resend-python read an error.
    let shape = |error: &Value| {
        assert_eq!(error.get("statusCode"), Some(&json!(403)));
        assert_eq!(error.get("name"), Some(&json!("cost_unknown")));
        assert_eq!(error.pointer("/keybrake/code"), Some(&json!("cost_unknown")));
    };
    RESEND.nothing_is_sent_without_a_cost("/emails", shape).await;
}

#[tokio::test]
async fn an_email_costs_what_the_policy_says() {
    let world = RESEND.world("1").await;
    let id = RESEND.send(&world, "b@example.com", "hi", None).await.id();
    let [row] = &world.sent()[..] else {
        panic!("one e-mail: {:?}", world.sent())
    };
    assert_eq!((row.kind, row.object.as_str()), (SentKind::Email, id.as_str()));
    assert_eq!(row.to, ["b@example.com"]);
    assert!(row.idempotency_key.is_some(), "ours, so that a repeat is none");
    let requests = world.vendor.requests();
    assert_eq!(requests.first().unwrap().authorization, Credential::BearerTestKey);
    let rows = world.kb.audit(RowFilter::default(), 10).await.unwrap();
    assert_eq!(rows.first().unwrap().operation, "emails.send");
    assert_eq!(world.budget().await, (10_000, 0));
    world.verify().await;
}

#[tokio::test]
async fn fifty_at_once_never_pass_the_cap() {
    let over = |ended: &Ended| {
        assert_eq!(ended.status, 429);
        assert_eq!(ended.json.get("statusCode"), Some(&json!(429)));
    };
    RESEND
        .fifty_at_once_never_pass_the_cap(|n| format!("u{n}@example.com"), |_| None, over)
        .await;
}

#[tokio::test]
async fn a_lost_answer_stays_held_until_the_same_call_finds_out() {
    for kind in LOSSES {
        let world = RESEND.with_a_lost_answer(kind).await;
        // The model's next tool call goes out under the same key: Resend sends nothing twice.
        let again = RESEND.send(&world, RESEND.to, "hi", Some("tool-call-2")).await;
        assert_eq!(again.status, 200, "{kind:?} {again:?}");
        assert_eq!(world.sent().len(), 1, "{kind:?}");
        let keys: Vec<_> = world
            .vendor
            .requests()
            .into_iter()
            .map(|row| row.idempotency_key)
            .collect();
        assert_eq!(keys.first(), keys.get(1), "{kind:?}");
        assert_eq!(world.budget().await, (10_000, 0), "{kind:?}");
        world.verify().await;
    }
}

#[tokio::test]
async fn a_key_of_the_callers_is_forwarded_and_one_in_flight_stays_held() {
    let world = Arc::new(RESEND.world("1").await);
    RESEND.fault(&world, FaultKind::HoldUntilReleased);
    let body = email("b@example.com", "hi");
    let first = {
        let (world, body) = (world.clone(), body.clone());
        tokio::spawn(async move { world.resend("POST", "/emails", &body, By::Key("welcome/7")).await })
    };
    assert!(world.vendor.wait_held(1, Duration::from_secs(10)).await);
    let twin = world.resend("POST", "/emails", &body, By::Key("welcome/7")).await;
    assert_eq!(twin.status, 409, "Resend's own answer: {twin:?}");
    assert_eq!(world.vendor.release(Release::default()), 1);
    assert_eq!(first.await.unwrap().status, 200);
    assert_eq!(world.sent().len(), 1);
    assert_eq!(
        world.sent().first().unwrap().idempotency_key.as_deref(),
        Some("welcome/7")
    );
    assert_eq!(world.budget().await, (10_000, 0));
    let other = world
        .resend(
            "POST",
            "/emails",
            &email("c@example.com", "hi"),
            By::Key("welcome/7"),
        )
        .await;
    assert_eq!(other.code(), Some(Code::IdempotencyConflict));
    world.verify().await;
}

#[tokio::test]
async fn what_resend_refused_is_free_and_may_be_tried_again() {
    RESEND.what_it_refused_is_free_and_may_be_tried_again().await;
}

#[tokio::test]
async fn a_broadcast_takes_no_key_so_it_is_never_sent_again() {
    let world = RESEND.world("1").await;
    world
        .vendor
        .fault(Fault::new(FaultKind::Status500AfterExecuting).on("POST", "/broadcasts"))
        .unwrap();
    let lost = world
        .resend("POST", "/broadcasts/b_1/send", &json!({}), By::Content)
        .await;
    assert_eq!(lost.record.state, Some(State::Unknown), "{lost:?}");
    let arrived = world.vendor.request_count();
    let again = world
        .resend("POST", "/broadcasts/b_1/send", &json!({}), By::Content)
        .await;
    assert_eq!(again.code(), Some(Code::OutcomeUnknown));
    assert_eq!(world.vendor.request_count(), arrived);
    assert_eq!(world.budget().await, (0, 500_000));
    world.verify().await;
}

#[tokio::test]
async fn rules_are_judged_on_every_email_of_a_batch() {
    let mut policy = cents("1");
    policy["params"] =
        json!({"*": {"from": {"equals": "a@acme.example", "required": true}, "bcc": {"forbidden": true}}});
    let world = Sender::new(SimulatedVendor::Resend, policy).await;
    let good = email("b@example.com", "1");
    let with = |change: &dyn Fn(&mut Value)| {
        let mut other = email("c@example.com", "2");
        change(&mut other);
        json!([good.clone(), other])
    };
    for (what, batch) in [
        (
            "another sender",
            with(&|e| e["from"] = json!("evil@acme.example")),
        ),
        (
            "no sender",
            with(&|e| drop(e.as_object_mut().unwrap().remove("from"))),
        ),
        ("a hidden copy", with(&|e| e["bcc"] = json!(["evil@example.com"]))),
    ] {
        let refused = world.resend("POST", "/emails/batch", &batch, By::Content).await;
        assert_eq!(refused.code(), Some(Code::ParamNotAllowed), "{what}: {refused:?}");
    }
    assert_eq!(world.vendor.request_count(), 0);
    let sent = world
        .resend("POST", "/emails/batch", &with(&|_| ()), By::Content)
        .await;
    assert_eq!(sent.status, 200, "{sent:?}");
    assert_eq!(world.sent().len(), 2);
    assert_eq!(world.budget().await, (100_000, 0), "one figure for the call");
    world.verify().await;
}

#[tokio::test]
async fn refusals_send_nothing_and_hold_nothing() {
    let world = RESEND.world("1").await;
    let mut calls = Vec::new();
    for (method, path, body, code) in [
        (
            "POST",
            "/api-keys",
            json!({"name": "x"}),
            Code::EndpointNotAllowed,
        ),
        (
            "POST",
            "/contacts",
            json!({"email": "b@example.com"}),
            Code::EndpointNotAllowed,
        ),
        (
            "POST",
            "/emails/../api-keys",
            json!({"name": "x"}),
            Code::EndpointNotAllowed,
        ),
        (
            "POST",
            "/emails",
            json!({"from": "a", "to": []}),
            Code::RequestMalformed,
        ),
    ] {
        let refused = world.resend(method, path, &body, By::Content).await;
        calls.push((format!("{method} {path}"), refused, code));
    }
    refused_before_anything_left(&world, calls).await;
}
