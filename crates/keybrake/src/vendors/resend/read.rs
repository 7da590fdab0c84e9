//! What Resend's replies mean for money.
//!
//! A success names the e-mail, or lists those of a batch (with `x-batch-validation: permissive` some of them may be
//! missing; the policy's figure is for the call and stands). A 4xx was refused before anything was sent, except a 409: the
//! same key is in flight, or was used with another body, so something was sent under it. 3xx and 5xx say nothing about what
//! happened. Source: the crate resend-rs 0.35.1 (src/error.rs) and resend.com/docs, read 2026-11-21.

use serde_json::Value;

use crate::vendors::read::outcome;
use crate::vendors::{Reading, Recognised, Reply};

/// Statuses with which nothing was sent.
const REFUSED: &[u16] = &[400, 401, 403, 404, 405, 413, 415, 422, 429];

pub(super) fn read(call: &Recognised, reply: &Reply) -> Reading {
    let body = serde_json::from_slice::<Value>(&reply.body).ok();
    let id = body.as_ref().and_then(id);
    let is_answer = is_answer(call, body.as_ref(), id);
    let mut reading = Reading::of(outcome(call.operation.class, reply.status, is_answer, REFUSED));
    reading.request_id = reply.header("x-request-id").map(str::to_owned);
    if (200..=299).contains(&reply.status) {
        reading.vendor_object = id.map(str::to_owned);
    }
    reading
}

/// Whether a 2xx is what this operation answers with. An operation that is in no table may answer with anything.
fn is_answer(call: &Recognised, body: Option<&Value>, id: Option<&str>) -> bool {
    match call.operation.name {
        "emails.batch" => body.is_some_and(|body| body.get("data").is_some_and(Value::is_array)),
        "events.send" => true,
        _ if call.operation.is_unlisted() => true,
        _ => id.is_some(),
    }
}

/// The id of the e-mail, or of the first of a batch.
fn id(body: &Value) -> Option<&str> {
    let named = body.get("id").or_else(|| body.pointer("/data/0/id"));
    named.and_then(Value::as_str).filter(|id| !id.is_empty())
}
