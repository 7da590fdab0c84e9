//! Whole governed calls against the Twilio simulator, whose journal of what was sent is the truth.

use std::sync::Arc;
use std::time::Duration;

use keybrake::audit::RowFilter;
use keybrake::ledger::{EventFilter, HoldFilter, State};
use keybrake::policy::Code;
use keybrake_testkit::stripe::{Credential, FaultKind, Release};
use keybrake_testkit::twilio::TEST_ACCOUNT;
use keybrake_testkit::{SentKind, SimulatedVendor};
use keybrake_tests::Ended;
use keybrake_tests::sender::ACCOUNT;
use keybrake_tests::sending::{LOSSES, Sending, refused_before_anything_left};
use serde_json::{Value, json};

/// Messages and reads up to so many dollars a day, at one cent for a message.
fn cents(cap: &str) -> Value {
    json!({"vendor": "twilio", "label": "support", "daily_usd_cap": cap,
        "allowed_endpoints": ["messages.create", "messages.delete", "calls.create", "reads"],
        "operation_costs": {"messages.create": "0.01", "calls.create": "0.50"}})
}

const TWILIO: Sending = Sending {
    vendor: SimulatedVendor::Twilio,
    operation: "messages.create",
    path: "/2010-04-01",
    to: "15558675310",
    refused: ("15005550001", 400),
    done: 201,
    limited: ("code", || json!(20_429)),
    cents,
};

fn messages() -> String {
    format!("/2010-04-01/Accounts/{ACCOUNT}/Messages.json")
}

#[tokio::test]
async fn without_a_cost_in_the_policy_nothing_is_sent() {
    // As twilio-node and twilio-python read an error.
    let shape = |error: &Value| {
        assert_eq!(error.get("status"), Some(&json!(403)));
        assert_eq!(error.get("code"), Some(&json!(90_001)));
        assert!(error.get("more_info").is_some_and(Value::is_string));
        assert_eq!(
            error.pointer("/details/keybrake/code"),
            Some(&json!("cost_unknown"))
        );
    };
    TWILIO.nothing_is_sent_without_a_cost(&messages(), shape).await;
}

#[tokio::test]
async fn a_message_costs_what_the_policy_says() {
    let world = TWILIO.world("1").await;
    let sent = world.message("15558675310", "hi", None).await;
    assert_eq!(sent.status, 201, "{sent:?}");
    assert_eq!(
        sent.json.get("price"),
        Some(&Value::Null),
        "Twilio does not say it"
    );
    let [row] = &world.sent()[..] else {
        panic!("one message: {:?}", world.sent())
    };
    assert_eq!((row.kind, row.account.as_str()), (SentKind::Message, ACCOUNT));
    assert_eq!(row.to, ["+15558675310"]);
    assert_eq!(world.budget().await, (10_000, 0));
    let rows = world.kb.audit(RowFilter::default(), 10).await.unwrap();
    let row = rows.first().unwrap();
    assert_eq!(row.operation, "messages.create");
    assert_eq!(row.vendor.as_deref(), Some("twilio"));
    assert_eq!(row.status_code, Some(201));
    world.verify().await;
}

#[tokio::test]
async fn fifty_at_once_never_pass_the_cap() {
    let over = |ended: &Ended| {
        assert_eq!(ended.status, 403, "twilio-node may send a 429 again");
        assert_eq!(
            ended.json.pointer("/details/keybrake/retryable"),
            Some(&json!(ended.code() == Some(Code::CapHeld)))
        );
    };
    TWILIO
        .fifty_at_once_never_pass_the_cap(|n| format!("1555867{n:04}"), |n| Some(format!("s{n}")), over)
        .await;
}

#[tokio::test]
async fn a_lost_answer_stays_held_and_is_never_sent_again() {
    for kind in LOSSES {
        let world = TWILIO.with_a_lost_answer(kind).await;
        let arrived = world.vendor.request_count();
        // The model's next tool call, whatever it is named, and the same one again.
        for step in [None, Some("tool-call-2"), None] {
            let again = world.message("15558675310", "hi", step).await;
            assert_eq!(again.code(), Some(Code::OutcomeUnknown), "{kind:?} {again:?}");
            assert_eq!(again.status, 403);
        }
        assert_eq!(world.vendor.request_count(), arrived, "{kind:?}: nothing left");
        assert!(world.sent().len() <= 1);
        assert_eq!(
            world.budget().await,
            (0, 10_000),
            "{kind:?}: counted until it is resolved"
        );
        // Another message is another spend.
        assert_eq!(world.message("15558675310", "bye", None).await.status, 201);
        // Nobody can find out: no inquiry ends the hold.
        world.clock.advance_ms(40_000);
        world
            .kb
            .reconcile(HoldFilter::default(), |_, _| ())
            .await
            .unwrap();
        assert_eq!(world.budget().await, (10_000, 10_000));
        let again = world.message("15558675310", "hi", None).await;
        assert_eq!(again.code(), Some(Code::OutcomeUnknown));
        world.verify().await;
    }
}

#[tokio::test]
async fn a_repeat_while_the_first_is_in_flight_is_not_sent() {
    let world = Arc::new(TWILIO.world("1").await);
    TWILIO.fault(&world, FaultKind::HoldUntilReleased);
    let first = {
        let world = world.clone();
        tokio::spawn(async move { world.message("15558675310", "hi", None).await })
    };
    assert!(world.vendor.wait_held(1, Duration::from_secs(10)).await);
    let twin = world.message("15558675310", "hi", None).await;
    assert_eq!(twin.code(), Some(Code::OutcomeUnknown), "{twin:?}");
    assert_eq!(world.vendor.release(Release::default()), 1);
    assert_eq!(first.await.unwrap().status, 201);
    assert_eq!(world.sent().len(), 1);
    // Known to be done now: the receipt.
    let again = world.message("15558675310", "hi", None).await;
    assert_eq!((again.status, again.record.replayed), (201, true));
    assert_eq!(world.sent().len(), 1);
    assert_eq!(world.budget().await, (10_000, 0));
    world.verify().await;
}

#[tokio::test]
async fn what_twilio_refused_is_free_and_may_be_tried_again() {
    TWILIO.what_it_refused_is_free_and_may_be_tried_again().await;
}

#[tokio::test]
async fn two_steps_are_two_messages_and_one_step_is_one() {
    let world = TWILIO.world("1").await;
    for step in ["order-1", "order-2", "order-1"] {
        let sent = world.message("15558675310", "on+its+way", Some(step)).await;
        assert_eq!(sent.status, 201, "{sent:?}");
    }
    assert_eq!(world.sent().len(), 2);
    let conflict = world.message("15558675311", "on+its+way", Some("order-1")).await;
    assert_eq!(conflict.code(), Some(Code::IdempotencyConflict));
    assert_eq!(conflict.status, 400);
    assert_eq!(world.sent().len(), 2);
}

#[tokio::test]
async fn a_secret_reaches_its_own_account_alone() {
    let world = TWILIO.world("1").await;
    let other = "AC99999999999999999999999999999999";
    let form = "To=%2B15558675310&From=%2B15557122661&Body=hi";
    let refused = world
        .twilio(
            "POST",
            &format!("/2010-04-01/Accounts/{other}/Messages.json"),
            form,
            None,
        )
        .await;
    assert_eq!(refused.code(), Some(Code::AccountNotAllowed));
    let refused = world
        .twilio(
            "GET",
            &format!("/2010-04-01/Accounts/{other}/Messages.json"),
            "",
            None,
        )
        .await;
    assert_eq!(refused.code(), Some(Code::AccountNotAllowed), "reads too");
    assert_eq!(world.vendor.request_count(), 0);
    // An SDK that was made without knowing the account.
    let open = format!("/2010-04-01/Accounts/{TEST_ACCOUNT}/Messages.json");
    assert_eq!(world.twilio("POST", &open, form, None).await.status, 201);
    let requests = world.vendor.requests();
    let request = requests.first().unwrap();
    assert_eq!(request.path, messages());
    assert_eq!(
        request.authorization,
        Credential::BasicTestKey,
        "the secret, not the vault key"
    );
    assert_eq!(world.sent().first().unwrap().account, ACCOUNT);
}

#[tokio::test]
async fn refusals_send_nothing_and_hold_nothing() {
    let world = TWILIO.world("1").await;
    let account = format!("/2010-04-01/Accounts/{ACCOUNT}");
    let cases = [
        (
            "POST",
            format!("{account}/IncomingPhoneNumbers.json"),
            "PhoneNumber=%2B15017122661",
            Code::EndpointNotAllowed,
        ),
        (
            "POST",
            format!("{account}/Keys.json"),
            "FriendlyName=x",
            Code::EndpointNotAllowed,
        ),
        // Its reply has the auth token.
        ("GET", format!("{account}.json"), "", Code::EndpointNotAllowed),
        (
            "POST",
            messages(),
            "To=15558675310&From=%2B15557122661&Body=x",
            Code::RequestMalformed,
        ),
        (
            "POST",
            format!("{account}/Calls.json"),
            "To=%2B15558675310&From=%2B15557122661&Twiml=x",
            Code::CostUnknown,
        ),
        (
            "POST",
            format!("{account}/Messages/../Calls.json"),
            "To=%2B15558675310",
            Code::EndpointNotAllowed,
        ),
        (
            "POST",
            messages(),
            "To=%2B15558675310&to=%2B19005550000&Body=x",
            Code::RequestMalformed,
        ),
        (
            "POST",
            messages(),
            "To=%2B15558675310&To=%2B19005550000&Body=x",
            Code::RequestMalformed,
        ),
    ];
    let mut calls = Vec::new();
    for (method, path, form, code) in cases {
        let refused = world.twilio(method, &path, form, None).await;
        calls.push((format!("{method} {path}"), refused, code));
    }
    refused_before_anything_left(&world, calls).await;
}

#[tokio::test]
async fn calls_are_governed_alike_and_free_operations_cost_nothing() {
    let world = TWILIO.world("0.60").await;
    let calls = format!("/2010-04-01/Accounts/{ACCOUNT}/Calls.json");
    let form = "To=%2B15558675310&From=%2B15557122661&Twiml=%3CResponse%2F%3E&TimeLimit=60";
    assert_eq!(world.twilio("POST", &calls, form, Some("a")).await.status, 201);
    let over = world.twilio("POST", &calls, form, Some("b")).await;
    assert_eq!(over.code(), Some(Code::CapExceeded));
    let sent = world.message("15558675310", "hi", None).await;
    let sid = sent.json.get("sid").and_then(Value::as_str).unwrap();
    let deleted = world
        .twilio(
            "DELETE",
            &format!("/2010-04-01/Accounts/{ACCOUNT}/Messages/{sid}.json"),
            "",
            None,
        )
        .await;
    assert_eq!(deleted.status, 204, "{deleted:?}");
    let kinds: Vec<_> = world.sent().iter().map(|row| row.kind).collect();
    assert_eq!(kinds, [SentKind::Call, SentKind::Message]);
    assert_eq!(world.budget().await, (510_000, 0));
    world.verify().await;
}

#[tokio::test]
async fn the_ledger_keeps_no_number_and_no_text() {
    let world = TWILIO.world("1").await;
    world.message("15558675310", "privateword", None).await;
    TWILIO.fault(&world, FaultKind::DropAfterExecuting);
    let lost = world.message("15558675311", "privateword", None).await;
    assert_eq!(lost.record.state, Some(State::Unknown));
    let holds = world.kb.holds(HoldFilter::default()).await.unwrap();
    let fields = &holds.first().unwrap().identity.as_ref().unwrap().fields;
    assert!(fields.iter().any(|(name, _)| name == "Body"), "{fields:?}");
    let events = world.kb.ledger().events(EventFilter::default()).await.unwrap();
    let rows = world.kb.audit(RowFilter::default(), 10).await.unwrap();
    let kept = format!("{holds:?} {events:?} {rows:?}");
    for private in ["1555867531", "5557122661", "privateword"] {
        assert!(!kept.contains(private), "{private}: {kept}");
    }
    // And two calls are told apart all the same.
    let other = world.message("15558675310", "another", Some("s")).await;
    assert_eq!(other.status, 201);
    let changed = world.message("15558675310", "yet+another", Some("s")).await;
    let denial = changed.denial.unwrap();
    assert_eq!(denial.code, Code::IdempotencyConflict);
    assert_eq!(denial.existing.unwrap().differing, ["Body"]);
}
