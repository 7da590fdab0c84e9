//! Replies that we make or keep: a denial in the shape Stripe's SDKs expect, and a reply that may be recorded.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::money::Usd;
use crate::policy::{BudgetView, Code, Denial};
use crate::vendors::Reply;

/// Longest wait that is announced: retry layers sleep for it.
const RETRY_AFTER_MAX_S: i64 = 60;

/// A denial as Stripe's SDKs read an error. Without `error` being an object, stripe-node takes the reply for a
/// success and stripe-python fails in its own code. Header names are lower-case: stripe-python looks them up so.
pub(super) fn refusal(denial: &Denial, status: u16, now_ms: i64) -> Reply {
    // stripe-python maps this type to IdempotencyError; for the other statuses it goes by the status.
    let kind = match denial.code {
        Code::IdempotencyConflict => "idempotency_error",
        _ => "invalid_request_error",
    };
    let body = json!({
        "error": {
            "type": kind,
            "code": denial.code.as_str(),
            "message": denial.message,
            "keybrake": denial,
        }
    });
    let mut headers = vec![
        ("content-type", "application/json".to_owned()),
        ("stripe-should-retry", "false".to_owned()),
        ("x-should-retry", "false".to_owned()),
        ("x-keybrake-verdict", denial.code.as_str().to_owned()),
        ("x-keybrake-call-id", denial.call_id.clone()),
    ];
    if matches!(denial.code, Code::CapExceeded | Code::CapHeld) {
        headers.push(("x-keybrake-cap-hit", "true".to_owned()));
    }
    if let Some(budget) = denial.budget.as_ref().filter(|budget| budget.counts()) {
        budget_headers(&mut headers, budget, now_ms);
    }
    Reply {
        status,
        headers: headers
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
        body: Bytes::from(body.to_string()),
    }
}

/// Used and held together, the cap, and when the window ends in Unix seconds: as on a reply that was let through.
fn budget_headers(headers: &mut Vec<(&str, String)>, budget: &BudgetView, now_ms: i64) {
    let show = |amount: i64| match budget.unit.as_str() {
        "usd" => Usd::from_micros(amount).to_string(),
        _ => amount.to_string(),
    };
    headers.push((
        "x-keybrake-cap-used",
        show(budget.used.saturating_add(budget.held)),
    ));
    headers.push(("x-keybrake-cap-limit", show(budget.cap)));
    let Some(resets_at_ms) = budget.resets_at_ms else {
        return;
    };
    let resets_at_s = resets_at_ms.checked_div(1_000).unwrap_or(0);
    headers.push(("x-keybrake-cap-reset", resets_at_s.to_string()));
    let wait_ms = resets_at_ms.saturating_sub(now_ms).max(0);
    let wait_s = wait_ms.saturating_add(999).checked_div(1_000).unwrap_or(0);
    if wait_s <= RETRY_AFTER_MAX_S {
        headers.push(("retry-after", wait_s.max(1).to_string()));
    }
}

/// Headers of a recorded reply. All others (cookies among them) are left out.
const KEPT_HEADERS: [&str; 6] = [
    "content-type",
    "original-request",
    "request-id",
    "stripe-account",
    "stripe-should-retry",
    "stripe-version",
];

/// Members of a reply that open something: they are never recorded.
const SECRETS: [&str; 3] = ["client_secret", "secret", "payload"];

/// A reply as it may be recorded: without client secrets, cookies and the like. A body in which something of that
/// kind is written, and that is not JSON, is dropped.
pub(super) fn strip(reply: &Reply) -> Reply {
    let headers = reply
        .headers
        .iter()
        .filter(|(name, _)| KEPT_HEADERS.iter().any(|kept| kept.eq_ignore_ascii_case(name)))
        .cloned()
        .collect();
    let body = if may_hold_secrets(&reply.body) {
        without_secrets(&reply.body).unwrap_or_default()
    } else {
        reply.body.clone()
    };
    Reply {
        status: reply.status,
        headers,
        body,
    }
}

/// Whether a member of these names can be in it; an escape could spell one.
fn may_hold_secrets(body: &[u8]) -> bool {
    match std::str::from_utf8(body) {
        Ok(text) => ["secret", "payload", "\\u"]
            .iter()
            .any(|word| text.contains(word)),
        Err(_) => true,
    }
}

fn without_secrets(body: &[u8]) -> Option<Bytes> {
    let mut value = serde_json::from_slice::<Value>(body).ok()?;
    remove_secrets(&mut value);
    Some(Bytes::from(value.to_string()))
}

/// Takes secrets out of a document. `serde_json` bounds its depth at 128.
fn remove_secrets(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|name, _| !SECRETS.contains(&name.as_str()));
            members.values_mut().for_each(remove_secrets);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_secrets),
        _ => {}
    }
}
