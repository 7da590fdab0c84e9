//! Whole governed calls against the Twilio simulator, whose journal of what was sent is the truth.

use std::sync::Arc;
use std::time::Duration;

use keybrake::audit::RowFilter;
use keybrake::ledger::{EventFilter, HoldFilter, State};
use keybrake::policy::Code;
use keybrake_testkit::stripe::{Credential, Fault, FaultKind, Release};
use keybrake_testkit::twilio::TEST_ACCOUNT;
use keybrake_testkit::{SentKind, SimulatedVendor};
use keybrake_tests::sender::{ACCOUNT, Sender};
use serde_json::{Value, json};

/// Messages and reads up to so many dollars a day, at one cent for a message.
fn cents(cap: &str) -> Value {
    json!({"vendor": "twilio", "label": "support", "daily_usd_cap": cap,
        "allowed_endpoints": ["messages.create", "messages.delete", "calls.create", "reads"],
        "operation_costs": {"messages.create": "0.01", "calls.create": "0.50"}})
}

async fn twilio(policy: Value) -> Sender {
    Sender::new(SimulatedVendor::Twilio, policy).await
}

fn messages() -> String {
    format!("/2010-04-01/Accounts/{ACCOUNT}/Messages.json")
}

#[tokio::test]
async fn without_a_cost_in_the_policy_nothing_is_sent() {
    let world = twilio(
        json!({"vendor": "twilio", "daily_usd_cap": 100, "allowed_endpoints": ["messages.create", "reads"]}),
    )
    .await;
    let refused = world.message("15558675310", "hi", None).await;
    let denial = refused.denial.unwrap();
    assert_eq!(denial.code, Code::CostUnknown);
    assert!(
        denial
            .message
            .contains(r#""operation_costs": {"messages.create": 5}"#),
        "{}",
        denial.message
    );
    // As twilio-node and twilio-python read an error.
    assert_eq!(refused.status, 403);
    assert_eq!(refused.json.get("status"), Some(&json!(403)));
    assert_eq!(refused.json.get("code"), Some(&json!(90_001)));
    assert_eq!(refused.json.get("message"), Some(&json!(denial.message)));
    assert!(refused.json.get("more_info").is_some_and(Value::is_string));
    assert_eq!(
        refused.json.pointer("/details/keybrake/code"),
        Some(&json!("cost_unknown"))
    );
    assert_eq!(world.vendor.request_count(), 0);
    let read = world.twilio("GET", &messages(), "", None).await;
    assert_eq!(read.status, 200, "reads pass: {read:?}");
    assert_eq!(world.budget().await, (0, 0));
    world.verify().await;
}

#[tokio::test]
async fn a_message_costs_what_the_policy_says() {
    let world = twilio(cents("1")).await;
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
    let world = Arc::new(twilio(cents("0.12")).await);
    let tasks: Vec<_> = (0..50)
        .map(|n| {
            let world = world.clone();
            tokio::spawn(async move {
                world
                    .message(&format!("1555867{n:04}"), "hi", Some(&format!("s{n}")))
                    .await
            })
        })
        .collect();
    let mut done = 0;
    for task in tasks {
        let ended = task.await.unwrap();
        match ended.code() {
            None => done += 1,
            Some(Code::CapExceeded | Code::CapHeld) => {
                assert_eq!(ended.status, 403, "twilio-node may send a 429 again");
                assert_eq!(
                    ended.json.pointer("/details/keybrake/retryable"),
                    Some(&json!(ended.code() == Some(Code::CapHeld)))
                );
            }
            Some(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(done, 12, "twelve messages of a cent fit under $0.12");
    assert_eq!(world.sent().len(), 12);
    assert_eq!(world.budget().await, (120_000, 0));
    world.verify().await;
}

#[tokio::test]
async fn a_lost_answer_stays_held_and_is_never_sent_again() {
    for kind in [
        FaultKind::DropAfterExecuting,
        FaultKind::Status500AfterExecuting,
        FaultKind::ResetMidBody,
        FaultKind::DropBefore,
    ] {
        let world = twilio(cents("1")).await;
        world
            .vendor
            .fault(Fault::new(kind).on("POST", "/2010-04-01"))
            .unwrap();
        let lost = world.message("15558675310", "hi", None).await;
        assert_eq!(lost.record.state, Some(State::Unknown), "{kind:?} {lost:?}");
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
    let world = Arc::new(twilio(cents("1")).await);
    world
        .vendor
        .fault(Fault::new(FaultKind::HoldUntilReleased).on("POST", "/2010-04-01"))
        .unwrap();
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
    let world = twilio(cents("0.01")).await;
    world
        .vendor
        .fault(Fault::new(FaultKind::RateLimit).on("POST", "/2010-04-01"))
        .unwrap();
    let limited = world.message("15558675310", "hi", None).await;
    assert_eq!(
        (limited.status, limited.code()),
        (429, None),
        "the vendor's own 429 passes"
    );
    assert_eq!(limited.json.get("code"), Some(&json!(20_429)));
    assert_eq!(world.budget().await, (0, 0));
    let invalid = world.message("15005550001", "hi", None).await;
    assert_eq!(invalid.status, 400, "{invalid:?}");
    assert_eq!(world.budget().await, (0, 0));
    assert_eq!(world.message("15558675310", "hi", None).await.status, 201);
    assert_eq!(world.sent().len(), 1);
    assert_eq!(world.budget().await, (10_000, 0));
    world.verify().await;
}

#[tokio::test]
async fn two_steps_are_two_messages_and_one_step_is_one() {
    let world = twilio(cents("1")).await;
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
    let world = twilio(cents("1")).await;
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
    let world = twilio(cents("1")).await;
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
    for (method, path, form, code) in cases {
        let refused = world.twilio(method, &path, form, None).await;
        assert_eq!(refused.code(), Some(code), "{method} {path}");
        assert_eq!(refused.status, 403);
    }
    assert_eq!(world.vendor.request_count(), 0);
    assert_eq!(world.budget().await, (0, 0));
    world.verify().await;
}

#[tokio::test]
async fn calls_are_governed_alike_and_free_operations_cost_nothing() {
    let world = twilio(cents("0.60")).await;
    let calls = format!("/2010-04-01/Accounts/{ACCOUNT}/Calls.json");
    let form = "To=%2B15558675310&From=%2B15557122661&Twiml=%3CResponse%2F%3E";
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
    let world = twilio(cents("1")).await;
    world.message("15558675310", "privateword", None).await;
    world
        .vendor
        .fault(Fault::new(FaultKind::DropAfterExecuting).on("POST", "/2010-04-01"))
        .unwrap();
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
