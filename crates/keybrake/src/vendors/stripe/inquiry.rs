//! What became of an unknown call: by reading its object, or by listing everything that could be it until the
//! listing is complete. Reads only.

use serde_json::Value;

use super::object::{number, owner, text};
use super::read::done;
use super::table;
use crate::vendors::{Finding, Inquiry, Outcome, Reading, Recognised, Reply, Unresolved};

/// How far the ledger's clock may have been off when the call was reserved, in seconds: listings reach a day further both
/// ways. That it is right while the vendor is asked says nothing of that moment; a clock that was wrong for an hour and was
/// set right since must not hide what was created meanwhile.
const CLOCK_SLACK_S: i64 = 86_400;

/// How to ask about an unknown call: by its object, if a reply or the path named it, else by listing.
pub(super) fn inquiry(call: &Unresolved<'_>) -> Inquiry {
    let named = call.ids.first().map(String::as_str);
    let target = named.or(call.object).unwrap_or_default();
    match call.operation {
        "payment_intents.confirm"
        | "payment_intents.capture"
        | "payment_intents.increment_authorization"
        | "payment_intents.update"
        | "payment_intents.cancel" => read("/v1/payment_intents", target),
        "charges.capture" => read("/v1/charges", target),
        "refunds.create" => created(call, "/v1/refunds", &["charge", "payment_intent"]),
        "charges.create" => created(call, "/v1/charges", &["customer"]),
        "payment_intents.create" => created(call, "/v1/payment_intents", &["customer"]),
        "transfers.create" => created(call, "/v1/transfers", &["destination"]),
        "payouts.create" => created(call, "/v1/payouts", &[]),
        "topups.create" => created(call, "/v1/topups", &[]),
        "transfers.reversals.create" if named.is_some_and(is_id) => {
            let path = format!("/v1/transfers/{target}/reversals");
            match call.object {
                Some(id) => read(&path, id),
                // This list takes no dates.
                None => Inquiry::Listing {
                    path: format!("{path}?limit=100"),
                },
            }
        }
        _ => Inquiry::None,
    }
}

fn read(prefix: &str, id: &str) -> Inquiry {
    if is_id(id) {
        Inquiry::Object {
            path: format!("{prefix}/{id}"),
        }
    } else {
        Inquiry::None
    }
}

/// The object that was created, or everything created while the call can have run, narrowed by the fields that such a
/// list takes.
fn created(call: &Unresolved<'_>, path: &str, filters: &[&str]) -> Inquiry {
    if let Some(id) = call.object {
        return read(path, id);
    }
    let seconds = |ms: i64| ms.checked_div(1_000).unwrap_or(0);
    let from = seconds(call.reserved_at_ms).saturating_sub(CLOCK_SLACK_S);
    let to = seconds(call.not_after_ms)
        .saturating_add(1)
        .saturating_add(CLOCK_SLACK_S);
    let mut path = format!("{path}?limit=100&created[gte]={from}&created[lte]={to}");
    for name in filters {
        if let Some(value) = field(call, name).filter(|value| is_id(value)) {
            path = format!("{path}&{name}={value}");
        }
    }
    Inquiry::Listing { path }
}

/// Reads a page of an inquiry.
pub(super) fn finding(call: &Unresolved<'_>, reply: &Reply) -> Finding {
    if reply.status != 200 {
        return Finding::Unclear(format!("http_{}", reply.status));
    }
    let Ok(body) = serde_json::from_slice::<Value>(&reply.body) else {
        return Finding::Unclear("unreadable_reply".to_owned());
    };
    match inquiry(call) {
        Inquiry::Object { .. } => match call.operation {
            "charges.capture" => captured(call, &body),
            "payment_intents.create" => found(call, &body),
            name if name.starts_with("payment_intents.") => intent(call, &body),
            _ => found(call, &body),
        },
        Inquiry::Listing { path } => page(call, &body, &path),
        Inquiry::None => Finding::Unclear("no_inquiry".to_owned()),
    }
}

/// A page of a listing. With our tag an object is ours or it is not; without it, one that fits could be another
/// call's, so only a complete listing without any proves something.
fn page(call: &Unresolved<'_>, body: &Value, path: &str) -> Finding {
    let parts = (
        body.get("data").and_then(Value::as_array),
        body.get("has_more").and_then(Value::as_bool),
    );
    let (Some(data), Some(has_more)) = parts else {
        return Finding::Unclear("unreadable_listing".to_owned());
    };
    for object in data {
        match call.tag {
            Some(tag) if tag_of(object) == Some(tag) => return found(call, object),
            // The tag may have been taken off it, or never been sent: an object without one could still be ours.
            Some(_) if tag_of(object).is_none() && fits(call, object) => {
                return Finding::Unclear("an_untagged_twin_exists".to_owned());
            }
            Some(_) => {}
            None if fits(call, object) => return Finding::Unclear("a_twin_exists".to_owned()),
            None => {}
        }
    }
    if !has_more {
        return Finding::Absent;
    }
    match data.last().and_then(|object| text(object, "id")) {
        Some(last) if is_id(last) => Finding::Next(format!("{path}&starting_after={last}")),
        _ => Finding::Unclear("unreadable_listing".to_owned()),
    }
}

fn tag_of(object: &Value) -> Option<&str> {
    object.get("metadata")?.get("keybrake")?.as_str()
}

/// Whether an object could be this call's: every declared field that the object has too is the same.
fn fits(call: &Unresolved<'_>, object: &Value) -> bool {
    const COMPARED: [&str; 8] = [
        "amount",
        "charge",
        "currency",
        "customer",
        "destination",
        "payment_intent",
        "payment_method",
        "source_transaction",
    ];
    COMPARED.iter().all(|name| {
        let Some(wanted) = field(call, name) else {
            return true;
        };
        match object.get(name) {
            None | Some(Value::Null) => true,
            Some(Value::String(text)) => text.eq_ignore_ascii_case(wanted),
            Some(Value::Number(number)) => number.to_string() == wanted,
            Some(expanded) => expanded.get("id").and_then(Value::as_str) == Some(wanted),
        }
    })
}

/// A PaymentIntent, asked about one of its operations. Its status tells whether that operation took effect; how much
/// has moved is a fact of the object in any case.
fn intent(call: &Unresolved<'_>, object: &Value) -> Finding {
    let Some(status) = text(object, "status") else {
        return Finding::Unclear("unreadable_reply".to_owned());
    };
    let wanted = field(call, "amount").and_then(|text| text.parse::<i64>().ok());
    let amount = number(object, "amount");
    let has_moved = number(object, "amount_received").is_none_or(|moved| moved > 0);
    let failed = object.get("last_payment_error").is_some_and(Value::is_object);
    let several = field(call, "final_capture") == Some("false");
    // Without an identity the ledger keeps the object alone, not what was asked of it: only its end says something.
    let known_by_object_alone = call.ids.is_empty();
    match (call.operation, status) {
        ("payment_intents.cancel", "canceled") | (_, "succeeded") => found(call, object),
        (_, status) if known_by_object_alone && status != "canceled" => {
            Finding::Unclear("the_payment_is_not_over".to_owned())
        }
        ("payment_intents.cancel", _) => Finding::Absent,
        (_, "canceled") => found(call, object),
        // It was accepted once, and failed since: the customer did not finish, or the bank refused. Without an earlier
        // reply the error could be another confirm's, and ours still on its way.
        ("payment_intents.confirm", "requires_payment_method") if call.object.is_some() && failed => {
            found(call, object)
        }
        // Whether declined or never made: no money moved by it, and none will without a new confirm.
        ("payment_intents.confirm", "requires_payment_method" | "requires_confirmation") => Finding::Absent,
        ("payment_intents.confirm", _) => found(call, object),
        ("payment_intents.capture", "requires_capture") if several && has_moved => {
            Finding::Unclear("one_of_several_captures".to_owned())
        }
        ("payment_intents.capture", "requires_capture") => Finding::Absent,
        ("payment_intents.capture", _) => Finding::Unclear("unknown_status".to_owned()),
        // The amount is what it was raised to, or it is not.
        _ if wanted.is_none() || amount.is_none() => Finding::Unclear("no_amount".to_owned()),
        _ if amount >= wanted => found(call, object),
        _ => Finding::Absent,
    }
}

/// A charge, asked about its capture.
fn captured(call: &Unresolved<'_>, object: &Value) -> Finding {
    match object.get("captured").and_then(Value::as_bool) {
        Some(true) => found(call, object),
        Some(false) => Finding::Absent,
        None => Finding::Unclear("unreadable_reply".to_owned()),
    }
}

/// The object, read as the reply to the call would have been.
fn found(call: &Unresolved<'_>, object: &Value) -> Finding {
    let Some(operation) = table::operations()
        .iter()
        .find(|operation| operation.name == call.operation)
    else {
        return Finding::Unclear("unknown_operation".to_owned());
    };
    let as_sent = Recognised {
        operation,
        host: table::API,
        path: String::new(),
        ids: call.ids.to_vec(),
        account: None,
        fields: [call.fields, call.pins].concat(),
        parts: Vec::new(),
        idempotency_key: None,
        customer: None,
        destination: None,
        token: None,
    };
    let mut reading: Reading = done(&as_sent, object);
    if let Outcome::Unknown(reason) = reading.outcome {
        return Finding::Unclear(reason);
    }
    reading.vendor_object = text(object, "id").map(str::to_owned);
    reading.customer = owner(object);
    Finding::Found(Box::new(reading))
}

fn field<'a>(call: &'a Unresolved<'_>, name: &str) -> Option<&'a str> {
    call.fields
        .iter()
        .chain(call.pins)
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.as_str())
}

fn is_id(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}
