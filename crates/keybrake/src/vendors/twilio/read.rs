//! What Twilio's replies mean for money.
//!
//! A message, call or verification that was created has a SID; what it costs is not in the reply (`price` is null, and is
//! filled in later), so the policy's figure stands. A 4xx was refused before anything was done ("Requests receiving 429 are
//! not processed"); a timeout, a conflict, 3xx and 5xx say nothing about what happened. Source: `twilio-oai` d50069b
//! (2026-04-14) and the pages on errors, read 2026-11-21.

use serde_json::Value;

use crate::vendors::read::outcome;
use crate::vendors::{Reading, Recognised, Reply};

/// Statuses with which nothing was done.
const REFUSED: &[u16] = &[400, 401, 403, 404, 405, 406, 410, 413, 414, 415, 422, 429];

pub(super) fn read(call: &Recognised, reply: &Reply) -> Reading {
    let body = serde_json::from_slice::<Value>(&reply.body).ok();
    let sid = body
        .as_ref()
        .and_then(|body| body.get("sid"))
        .and_then(Value::as_str)
        .filter(|sid| !sid.is_empty());
    // An operation that is in no table may answer with anything.
    let is_answer = sid.is_some() || call.operation.is_unlisted();
    let mut reading = Reading::of(outcome(call.operation.class, reply.status, is_answer, REFUSED));
    reading.request_id = reply.header("twilio-request-id").map(str::to_owned);
    if (200..=299).contains(&reply.status) {
        reading.vendor_object = sid.map(str::to_owned);
    }
    reading
}
