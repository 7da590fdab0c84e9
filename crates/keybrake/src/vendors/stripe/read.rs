//! What Stripe's replies mean for money.
//!
//! Statuses (docs.stripe.com/error-low-level, read 2026-11-21): 400, 401, 403, 404 and a 429 were refused before anything
//! was done; 402 is the operation's definitive failure; 409, an `idempotency_error`, 424, 3xx and 5xx say nothing about
//! what happened. Stripe replays status and body of the first request of a key, failures included, and marks it with
//! `Idempotent-Replayed`.

use serde_json::Value;

use super::amount;
use super::object::{self, amount_of, owner, text};
use crate::money::VendorAmount;
use crate::request::form::truth;
use crate::vendors::{Class, Outcome, Reading, Recognised, Reply};

pub(super) fn read(call: &Recognised, reply: &Reply) -> Reading {
    let replayed = reply.header("idempotent-replayed") == Some("true");
    let body = object::read(&reply.body);
    let mut reading = match (call.operation.class, reply.status) {
        (Class::Read, _) => Reading::of(Outcome::Free),
        (_, 200..=299) => match &body {
            Some(object) => done(call, object),
            None => Reading::unknown("unreadable_reply"),
        },
        (_, status) => Reading::of(failure(status, body.as_ref(), replayed)),
    };
    reading.replayed = replayed;
    reading.request_id = reply.header("request-id").map(str::to_owned);
    if let (200..=299, Some(object)) = (reply.status, &body) {
        if reading.vendor_object.is_none() {
            reading.vendor_object = text(object, "id").map(str::to_owned);
        }
        reading.customer = owner(object);
    }
    reading
}

fn failure(status: u16, body: Option<&Value>, replayed: bool) -> Outcome {
    let kind = body
        .and_then(|body| body.get("error"))
        .and_then(|error| text(error, "type"));
    match status {
        400 if kind == Some("idempotency_error") => Outcome::Unknown("idempotency_error".to_owned()),
        402 => Outcome::FailedForGood,
        400 | 401 | 403 | 404 | 429 if replayed => Outcome::FailedForGood,
        400 | 401 | 403 | 404 | 429 => Outcome::DidNotExecute,
        status => Outcome::Unknown(format!("http_{status}")),
    }
}

/// A 2xx with an object.
pub(super) fn done(call: &Recognised, object: &Value) -> Reading {
    match call.operation.class {
        Class::Read => return Reading::of(Outcome::Free),
        Class::Unknown => return Reading::of(Outcome::Executed),
        Class::Free | Class::Money => {}
    }
    match call.operation.name {
        name if name.starts_with("payment_intents.") => payment_intent(call, object),
        "charges.create" | "charges.capture" => charge(call, object),
        "refunds.create" => by_status(object, "refund", |status| match status {
            "succeeded" => Some(Outcome::Charged),
            "failed" | "canceled" => Some(|_| Outcome::FailedForGood),
            "pending" | "requires_action" => Some(|_| Outcome::Accepted),
            _ => None,
        }),
        // Money that was in a reversed top-up did move, and went back; nothing says when.
        "topups.create" => by_status(object, "topup", |status| match status {
            "succeeded" | "reversed" => Some(Outcome::Charged),
            "failed" | "canceled" => Some(|_| Outcome::FailedForGood),
            "pending" => Some(|_| Outcome::Accepted),
            _ => None,
        }),
        // "Some payouts that fail might initially show as paid, then change to failed."
        "payouts.create" => by_status(object, "payout", |status| match status {
            "pending" | "in_transit" | "paid" => Some(Outcome::ChargedProvisionally),
            "failed" | "canceled" => Some(|_| Outcome::FailedForGood),
            _ => None,
        }),
        "transfers.create" => charged(object, "transfer"),
        "transfers.reversals.create" => charged(object, "transfer_reversal"),
        _ => Reading::of(Outcome::Free),
    }
}

fn is_a(object: &Value, kind: &str) -> bool {
    text(object, "object") == Some(kind)
}

/// An object without a status: it is there, so the money has moved.
fn charged(object: &Value, kind: &str) -> Reading {
    match amount_of(object, "amount").filter(|_| is_a(object, kind)) {
        Some(amount) => Reading::of(Outcome::Charged(amount)),
        None => Reading::unknown("unreadable_reply"),
    }
}

type Meaning = fn(VendorAmount) -> Outcome;

fn by_status(object: &Value, kind: &str, meaning: fn(&str) -> Option<Meaning>) -> Reading {
    let Some(amount) = amount_of(object, "amount").filter(|_| is_a(object, kind)) else {
        return Reading::unknown("unreadable_reply");
    };
    match text(object, "status").and_then(meaning) {
        Some(outcome) => Reading::of(outcome(amount)),
        None => Reading::unknown("unknown_status"),
    }
}

/// A charge. Its exposure is its own when it captures at once, else the object's until it is captured or released.
fn charge(call: &Recognised, object: &Value) -> Reading {
    let parts = (
        text(object, "id"),
        text(object, "status"),
        object.get("captured").and_then(Value::as_bool),
    );
    let (Some(id), Some(status), Some(captured)) = parts else {
        return Reading::unknown("unreadable_reply");
    };
    // Versions before 2020 have no amount_captured.
    let total = if object.get("amount_captured").is_some() {
        "amount_captured"
    } else {
        "amount"
    };
    let moved = amount_of(object, total).filter(|_| is_a(object, "charge"));
    let (Some(moved), Some(none)) = (moved, object::currency(object).map(|c| amount(0, c))) else {
        return Reading::unknown("unreadable_reply");
    };
    let tracked = call.operation.name == "charges.capture" || !truth(call.field("capture"), true);
    let (outcome, object) = match (status, captured) {
        ("succeeded", true) => (Outcome::Charged(moved), (moved, true)),
        // Authorised; the rest is released when the charge is refunded or the authorisation ends.
        ("succeeded", false) => {
            let over = object.get("refunded").and_then(Value::as_bool) == Some(true);
            (Outcome::Accepted, (none, over))
        }
        ("pending", _) => (Outcome::Accepted, (none, false)),
        ("failed", _) => return Reading::of(Outcome::FailedForGood),
        _ => return Reading::unknown("unknown_status"),
    };
    let mut reading = Reading::of(outcome);
    reading.object = tracked.then(|| (id.to_owned(), object.0, object.1));
    reading
}

/// A PaymentIntent: its status says how much has moved in all, and whether more can.
fn payment_intent(call: &Recognised, object: &Value) -> Reading {
    let parts = (text(object, "id"), text(object, "status"));
    let (Some(id), Some(status), true) = (parts.0, parts.1, is_a(object, "payment_intent")) else {
        return Reading::unknown("unreadable_reply");
    };
    let Some(moved) = received(object) else {
        return Reading::unknown("unreadable_reply");
    };
    let name = call.operation.name;
    let confirms = name == "payment_intents.confirm"
        || (name == "payment_intents.create" && truth(call.field("confirm"), false));
    let declined = confirms && object.get("last_payment_error").is_some_and(Value::is_object);
    let (outcome, closed) = match status {
        // A confirm that was declined comes back here.
        "requires_payment_method" if declined => return Reading::of(Outcome::FailedForGood),
        "requires_payment_method" | "requires_confirmation" | "requires_action" | "processing" => {
            (Outcome::Accepted, false)
        }
        // One of several captures: what it moved is settled, the rest stays held.
        "requires_capture" if name == "payment_intents.capture" => (Outcome::Charged(moved), false),
        "requires_capture" => (Outcome::Accepted, false),
        "succeeded" => (Outcome::Charged(moved), true),
        "canceled" if moved.minor > 0 => (Outcome::Charged(moved), true),
        "canceled" => (Outcome::FailedForGood, true),
        _ => return Reading::unknown("unknown_status"),
    };
    let mut reading = Reading::of(if is_free(call) { Outcome::Free } else { outcome });
    reading.object = Some((id.to_owned(), moved, closed));
    reading
}

/// Cancelling, and updating neither amount nor currency, adds no exposure of its own.
fn is_free(call: &Recognised) -> bool {
    match call.operation.name {
        "payment_intents.update" => call.field("amount").is_none() && call.field("currency").is_none(),
        _ => call.operation.class == Class::Free,
    }
}

/// All that a PaymentIntent has moved so far. Absent in versions before 2019; then only an intent that has not
/// succeeded is known to have moved nothing.
fn received(object: &Value) -> Option<VendorAmount> {
    if object.get("amount_received").is_some() {
        return amount_of(object, "amount_received");
    }
    match text(object, "status") {
        Some("succeeded" | "requires_capture") => None,
        _ => object::currency(object).map(|currency| amount(0, currency)),
    }
}
