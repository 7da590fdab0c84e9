//! Every request that the strict reading refuses, through the whole engine with a policy that allows everything: the
//! code is the one of the vectors, nothing leaves the process, nothing is held or counted, and one event says so.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a failed unwrap is a failed test"
)]

use std::path::Path;

use keybrake::audit::RowFilter;
use keybrake::brake::{CallContext, KeyOrigin};
use keybrake::ledger::HoldFilter;
use keybrake::policy::Code;
use keybrake::request::Call;
use keybrake_tests::{Ended, World};
use serde_json::{Value, json};

const FORM: &str = "application/x-www-form-urlencoded";

fn cases(file: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("vectors/stripe")
        .join(file);
    let file: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    file["cases"].as_array().unwrap().clone()
}

/// The vector's request; the engine's test puts the token on it.
fn call(request: &Value) -> Call {
    let text = |name: &str| request[name].as_str().unwrap_or_default().to_owned();
    let given = request["headers"].as_object().cloned().unwrap_or_default();
    let mut headers: Vec<(String, String)> = given
        .iter()
        .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
        .collect();
    if text("method") == "POST" && !given.contains_key("Content-Type") {
        headers.push(("Content-Type".to_owned(), FORM.to_owned()));
    }
    Call {
        method: text("method"),
        url: text("url"),
        headers,
        body: text("body").into(),
    }
}

/// Everything is allowed, so that what refuses is the reading alone.
fn everything(costs: &Value) -> Value {
    json!({
        "vendor": "stripe", "label": "open", "daily_usd_cap": 1000, "operation_costs": costs,
        "allowed_endpoints": ["GET /**", "POST /**", "DELETE /**"],
    })
}

async fn send(world: &World, call: Call) -> Ended {
    let context = CallContext {
        key_origin: KeyOrigin::Caller,
        ..CallContext::default()
    };
    world.call(&world.key, call, context).await
}

/// Asserts that a call is refused with this code and leaves no trace but one event.
async fn refused(world: &World, name: &str, call: Call, code: &str) {
    let sent = world.stripe.request_count();
    let denied = RowFilter {
        denied: Some(true),
        ..RowFilter::default()
    };
    let before = world.kb.audit(denied.clone(), 1_000).await.unwrap().len();
    let ended = send(world, call).await;
    assert_eq!(ended.code().map(Code::as_str), Some(code), "{name}: {ended:?}");
    assert_eq!(world.stripe.request_count(), sent, "{name}: something was sent");
    assert_eq!(world.budget().await, (0, 0), "{name}");
    assert!(
        world.kb.holds(HoldFilter::default()).await.unwrap().is_empty(),
        "{name}"
    );
    let after = world.kb.audit(denied, 1_000).await.unwrap();
    assert_eq!(after.len(), before + 1, "{name}: one event");
    assert_eq!(
        after
            .iter()
            .filter(|row| row.call_id == ended.record.call_id)
            .count(),
        1,
        "{name}"
    );
}

#[tokio::test]
async fn every_refused_request_leaves_no_trace_but_one_event() {
    let world = World::new(everything(&json!({}))).await;
    for case in cases("refused.json") {
        let name = case["name"].as_str().unwrap();
        refused(
            &world,
            name,
            call(&case["request"]),
            case["refused"].as_str().unwrap(),
        )
        .await;
    }
    world.verify().await;
}

#[tokio::test]
async fn lesson_13_an_unmatched_route_is_refused_never_uncounted() {
    let world = World::new(everything(&json!({}))).await;
    for case in cases("unknown.json") {
        let name = case["name"].as_str().unwrap();
        refused(&world, name, call(&case["request"]), "cost_unknown").await;
    }
    let credit = json!({"method": "POST", "url": "https://api.stripe.com/v1/customers/cus_1", "body": "balance=-5000"});
    refused(&world, "credit for a customer", call(&credit), "cost_unknown").await;
    world.verify().await;
}

#[tokio::test]
async fn an_operation_without_a_known_cost_is_settled_at_the_policys() {
    let world = World::new(everything(&json!({"customers.update": 5}))).await;
    let update = |body: &str| {
        call(&json!({"method": "POST", "url": "https://api.stripe.com/v1/customers/cus_1", "body": body}))
    };
    let free = send(&world, update("name=Ada")).await;
    assert_eq!(
        (free.status, world.budget().await),
        (200, (0, 0)),
        "a name costs nothing"
    );
    let credit = send(&world, update("balance=-5000")).await;
    assert_eq!(
        (credit.status, world.budget().await),
        (200, (5_000_000, 0)),
        "{credit:?}"
    );
    world.verify().await;
}
