//! What a call may cost, as far as the request tells, and what one lookup adds.
//!
//! A refund, capture, confirm or reversal always looks up: its currency and its customer are facts of the object, not
//! of the request (security rule 11). An amount that comes from the lookup is pinned into the request, so that Stripe
//! enforces the bound whatever happens in between.

use serde_json::Value;

use super::amount;
use super::object::{self, number, owner};
use crate::money::Currency;
use crate::policy::Code;
use crate::request::Refusal;
use crate::request::form::{truth, whole_number};
use crate::vendors::recognise::malformed;
use crate::vendors::{Class, Estimate, Exposure, Lookup, LookupAnswer, Recognised, Reply};

pub(super) fn estimate(call: &Recognised, count_at_creation: bool) -> Result<Estimate, Refusal> {
    match call.operation.class {
        Class::Read => Ok(Estimate::Free),
        Class::Free => Ok(free(call)),
        Class::Unknown => Ok(Estimate::Unknown(
            "what it costs cannot be told from the request".to_owned(),
        )),
        Class::Money => money(call, count_at_creation),
    }
}

/// Free operations, but for the fields that make them something else.
fn free(call: &Recognised) -> Estimate {
    let costly: &[&str] = match call.operation.name {
        "customers.create" | "customers.update" => &[
            "balance",
            "cash_balance",
            "coupon",
            "promotion_code",
            // A new source may be charged at once for invoices that are past due.
            "source",
            "card",
        ],
        // A schedule of automatic payouts.
        "accounts.create" | "accounts.update" => &["settings[payouts]"],
        // What is left in the account moves there when it is closed.
        "treasury.financial_accounts.create" | "treasury.financial_accounts.update" => {
            &["forwarding_settings"]
        }
        _ => &[],
    };
    let found = call.fields.iter().find_map(|(name, _)| {
        costly.iter().find(|costly| {
            name.strip_prefix(**costly)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('['))
        })
    });
    match found {
        Some(name) => Estimate::Unknown(format!("{name} gives credit or moves money later")),
        None => Estimate::Free,
    }
}

fn money(call: &Recognised, count_at_creation: bool) -> Result<Estimate, Refusal> {
    let known = |exposure: Exposure| -> Result<Estimate, Refusal> {
        Ok(Estimate::AtMost {
            amount: amount(required(call, "amount")?, currency(call)?),
            exposure,
        })
    };
    match call.operation.name {
        "payment_intents.create" => {
            let counts = count_at_creation || truth(call.field("confirm"), false);
            let estimate = known(Exposure::NewObject)?;
            Ok(if counts { estimate } else { Estimate::Free })
        }
        "payment_intents.update" => {
            let raises = ["amount", "currency"]
                .iter()
                .any(|name| call.field(name).is_some());
            if raises {
                lookup_of(call, "/v1/payment_intents/", "amount")
            } else {
                Ok(Estimate::Free)
            }
        }
        "payment_intents.confirm" => lookup_of(call, "/v1/payment_intents/", "amount_to_confirm"),
        "payment_intents.capture" => lookup_of(call, "/v1/payment_intents/", "amount_to_capture"),
        "payment_intents.increment_authorization" => {
            required(call, "amount")?;
            lookup_of(call, "/v1/payment_intents/", "amount")
        }
        "charges.create" if truth(call.field("capture"), true) => known(Exposure::Own),
        "charges.create" => known(Exposure::NewObject),
        "charges.capture" => lookup_of(call, "/v1/charges/", "amount"),
        "refunds.create" => refund(call),
        "transfers.create" if call.field("amount").is_none() => match call.field("source_transaction") {
            Some(charge) => lookup("/v1/charges/", charge, "", false),
            None => Err(malformed("amount is missing")),
        },
        "transfers.reversals.create" => lookup_of(call, "/v1/transfers/", "amount"),
        "transfers.create" | "payouts.create" | "topups.create" => known(Exposure::Own),
        _ => Ok(Estimate::Unknown("no rule says what it costs".to_owned())),
    }
}

/// A refund of a charge or of an intent's latest charge; or one from a customer's cash balance, which names its
/// customer, currency and amount itself.
fn refund(call: &Recognised) -> Result<Estimate, Refusal> {
    let given = optional(call, "amount")?.is_some();
    let source = (
        call.field("charge"),
        call.field("payment_intent"),
        call.field("origin"),
    );
    match source {
        (Some(charge), None, None) => lookup("/v1/charges/", charge, "", given),
        (None, Some(intent), None) => {
            lookup("/v1/payment_intents/", intent, "?expand[0]=latest_charge", given)
        }
        (None, None, Some("customer_balance")) => Ok(Estimate::AtMost {
            amount: amount(required(call, "amount")?, currency(call)?),
            exposure: Exposure::Own,
        }),
        _ => Err(malformed(
            "a refund names exactly one of charge and payment_intent, or origin=customer_balance with neither",
        )),
    }
}

/// A lookup of the object that the path names; `amount` is the field that may give the amount.
fn lookup_of(call: &Recognised, prefix: &str, amount: &str) -> Result<Estimate, Refusal> {
    let given = optional(call, amount)?.is_some();
    lookup(prefix, call.ids.first().map_or("", String::as_str), "", given)
}

/// A lookup of `prefix` and an id. What is not an id would read something else.
fn lookup(prefix: &str, id: &str, query: &str, amount_given: bool) -> Result<Estimate, Refusal> {
    if !is_id(id) {
        return Err(malformed(
            "an id is not one: letters, digits, _ and - only, such as ch_1",
        ));
    }
    Ok(Estimate::NeedsLookup(Lookup {
        path: format!("{prefix}{id}{query}"),
        amount_given,
    }))
}

fn is_id(id: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    (1..=255).contains(&id.len()) && id.bytes().all(plain)
}

/// What a lookup answered, for the operation that asked for it.
pub(super) fn read_lookup(call: &Recognised, reply: &Reply) -> Result<LookupAnswer, Refusal> {
    let object = looked_up(reply)?;
    let answer = match call.operation.name {
        "refunds.create" => refund_answer(call, &object)?,
        "payment_intents.update" => update_answer(call, &object)?,
        "payment_intents.confirm" => {
            let total = pinned(call, "amount_to_confirm", number(&object, "amount"))?;
            total.raising(&object, 0)?
        }
        "payment_intents.capture" => {
            let moved = number(&object, "amount_received").unwrap_or(0);
            let more = pinned(call, "amount_to_capture", number(&object, "amount_capturable"))?;
            if truth(call.field("final_capture"), true) {
                more.raising(&object, moved)?
            } else {
                // Another partial capture may be under way, of which this reading knows nothing: hold all that can be
                // captured. The pin stays what was asked for.
                more.raising_to_all(&object)?
            }
        }
        "payment_intents.increment_authorization" => {
            let total = pinned(call, "amount", None)?;
            total.raising(&object, 0)?
        }
        "charges.capture" => {
            let total = pinned(call, "amount", number(&object, "amount"))?;
            total.raising(&object, 0)?
        }
        "transfers.create" => transfer_answer(call, &object)?,
        "transfers.reversals.create" => {
            let rest = left(&object, "amount", "amount_reversed");
            pinned(call, "amount", rest)?.own(&object)?
        }
        _ => return Err(unanswered("answers no question of this operation")),
    };
    Ok(answer)
}

/// All that is left of a charge, unless the request says how much of it.
fn refund_answer(call: &Recognised, object: &Value) -> Result<LookupAnswer, Refusal> {
    let charge = object
        .get("latest_charge")
        .filter(|charge| charge.is_object())
        .unwrap_or(object);
    let rest = left(charge, "amount_captured", "amount_refunded");
    let mut answer = pinned(call, "amount", rest)?.own(object)?;
    if answer.customer.is_none() {
        answer.customer = owner(charge);
    }
    Ok(answer)
}

/// The new total in the new currency; both as they are where the request does not change them.
fn update_answer(call: &Recognised, object: &Value) -> Result<LookupAnswer, Refusal> {
    let total = optional(call, "amount")?
        .or_else(|| number(object, "amount"))
        .ok_or_else(|| unanswered("has no amount"))?;
    let currency = match call.field("currency") {
        Some(_) => currency(call)?,
        None => currency_of(object)?,
    };
    Ok(LookupAnswer {
        amount: amount(total, currency),
        exposure: Exposure::Object(id(object)?),
        customer: owner(object),
        pins: Vec::new(),
    })
}

/// A transfer of a charge without an amount: what Stripe takes then is not documented, so the whole charge is
/// pinned. Only in the charge's own currency, because the amount would mean something else in another.
fn transfer_answer(call: &Recognised, object: &Value) -> Result<LookupAnswer, Refusal> {
    if currency(call)? != currency_of(object)? {
        return Err(unanswered(
            "is in another currency than the transfer; write the amount",
        ));
    }
    pinned(call, "amount", number(object, "amount"))?.own(object)
}

/// An amount that the request gives, or that is looked up and written into it.
struct Pinned {
    minor: i64,
    pins: Vec<(String, String)>,
}

fn pinned(call: &Recognised, field: &str, looked_up: Option<i64>) -> Result<Pinned, Refusal> {
    if let Some(minor) = optional(call, field)? {
        return Ok(Pinned {
            minor,
            pins: Vec::new(),
        });
    }
    let minor = looked_up
        .filter(|minor| *minor > 0)
        .ok_or_else(|| unanswered("has no amount left for this"))?;
    Ok(Pinned {
        minor,
        pins: vec![(field.to_owned(), minor.to_string())],
    })
}

impl Pinned {
    /// Exposure of the call's own.
    fn own(self, object: &Value) -> Result<LookupAnswer, Refusal> {
        Ok(LookupAnswer {
            amount: amount(self.minor, currency_of(object)?),
            exposure: Exposure::Own,
            customer: owner(object),
            pins: self.pins,
        })
    }

    /// Exposure of the object that was looked up, raised to all that it is for.
    fn raising_to_all(self, object: &Value) -> Result<LookupAnswer, Refusal> {
        let whole = number(object, "amount").ok_or_else(|| unanswered("has no amount"))?;
        let pins = self.pins.clone();
        let answer = Self {
            minor: whole.max(self.minor),
            ..self
        }
        .raising(object, 0)?;
        Ok(LookupAnswer { pins, ..answer })
    }

    /// Exposure of the object that was looked up, raised to what has moved already and this.
    fn raising(self, object: &Value, moved: i64) -> Result<LookupAnswer, Refusal> {
        let total = self
            .minor
            .checked_add(moved)
            .ok_or_else(|| unanswered("has an amount out of range"))?;
        Ok(LookupAnswer {
            amount: amount(total, currency_of(object)?),
            exposure: Exposure::Object(id(object)?),
            customer: owner(object),
            pins: self.pins,
        })
    }
}

/// Paths of objects that have a customer, for operations that name only the object.
const OWNED: &[&str] = &[
    "/v1/charges/*",
    "/v1/invoices/*",
    "/v1/payment_intents/*",
    "/v1/payment_methods/*",
    "/v1/setup_intents/*",
    "/v1/subscriptions/*",
];

/// The read that tells whose object it is.
pub(super) fn owner_lookup(call: &Recognised) -> Option<Lookup> {
    let pattern = call.operation.path;
    let id = call.ids.first()?;
    if !is_id(id) {
        return None;
    }
    let owned = OWNED.iter().find_map(|prefix| {
        let rest = pattern.strip_prefix(prefix)?;
        (rest.is_empty() || rest.starts_with('/')).then(|| prefix.trim_end_matches('*'))
    });
    if let Some(prefix) = owned {
        return Some(Lookup {
            path: format!("{prefix}{id}"),
            amount_given: true,
        });
    }
    pattern.starts_with("/v1/refunds/*").then(|| Lookup {
        path: format!("/v1/refunds/{id}?expand[0]=charge"),
        amount_given: true,
    })
}

pub(super) fn read_owner(reply: &Reply) -> Result<Option<String>, Refusal> {
    let object = looked_up(reply)?;
    Ok(owner(&object).or_else(|| object.get("charge").and_then(owner)))
}

fn looked_up(reply: &Reply) -> Result<Value, Refusal> {
    if reply.status != 200 {
        return Err(unanswered(&format!("could not be read: HTTP {}", reply.status)));
    }
    object::read(&reply.body).ok_or_else(|| unanswered("was answered with something that is not an object"))
}

fn id(object: &Value) -> Result<String, Refusal> {
    object::text(object, "id")
        .map(str::to_owned)
        .ok_or_else(|| unanswered("has no id"))
}

fn left(object: &Value, total: &str, gone: &str) -> Option<i64> {
    number(object, total)?.checked_sub(number(object, gone)?)
}

fn currency_of(object: &Value) -> Result<Currency, Refusal> {
    object::currency(object).ok_or_else(|| unanswered("has no currency"))
}

fn currency(call: &Recognised) -> Result<Currency, Refusal> {
    match call.field("currency") {
        Some(text) => {
            Currency::parse(text).ok_or_else(|| malformed("currency is not three ASCII letters, such as usd"))
        }
        None => Err(malformed("currency is missing")),
    }
}

fn required(call: &Recognised, name: &str) -> Result<i64, Refusal> {
    optional(call, name)?.ok_or_else(|| malformed(format!("{name} is missing")))
}

fn optional(call: &Recognised, name: &str) -> Result<Option<i64>, Refusal> {
    match call.field(name) {
        None => Ok(None),
        Some(text) => whole_number(text).map(Some).ok_or_else(|| {
            malformed(format!(
                "{name} is not a positive whole number of minor units (1 to 12 digits, no sign, no leading zero)"
            ))
        }),
    }
}

/// A lookup that does not answer. The message carries nothing of the vendor's data.
fn unanswered(what: &str) -> Refusal {
    Refusal::new(
        Code::CostUnknown,
        format!("the object that was looked up {what}, so the cost is not known"),
    )
}
