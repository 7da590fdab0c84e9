//! Replies that we make or keep: a denial in the shape Stripe's SDKs expect, and a reply that may be recorded.

use serde_json::json;

use crate::policy::{Code, Denial};
use crate::vendors::{self, Reply};

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
    let mut reply = vendors::reply::denied(denial, status, now_ms, &body);
    reply
        .headers
        .push(("stripe-should-retry".to_owned(), "false".to_owned()));
    reply
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
    if vendors::reply::may_spell(&reply.body, &["secret", "payload"]) {
        vendors::reply::stripped(reply, &KEPT_HEADERS, &SECRETS)
    } else {
        vendors::reply::kept(reply, &KEPT_HEADERS, reply.body.clone())
    }
}
