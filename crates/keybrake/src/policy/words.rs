//! Words for the model: one text for each code. They say what was refused, that no money moved (never of
//! `outcome_unknown`, nor of a call that was stopped in flight), what is left if the policy lets them, and what to do instead of trying again.

use super::amounts::time_text;
use super::verdict::{BudgetView, Code, Denial};
use crate::money::Usd;

/// What a replayed result is told as.
pub const REPLAYED: &str =
    "ALREADY DONE in this run; this is the receipt of the first call. Nothing new was charged.";

/// The text that a model should read after a refusal. Carries amounts, limits, times and ids only when the
/// policy's `model_detail` is `full`.
pub fn for_model(denial: &Denial) -> String {
    if denial.aborted {
        aborted(denial)
    } else if denial.full_detail {
        full(denial)
    } else {
        reason(denial.code).to_owned()
    }
}

/// What a replayed result is told as.
pub const fn replayed_words() -> &'static str {
    REPLAYED
}

/// Every code without amounts, limits, times or ids.
pub const fn reason(code: Code) -> &'static str {
    match code {
        Code::KeyMissing => {
            "NOT DONE. The call carried no vault key; nothing was sent and no money moved. Do not retry it and do not look for another key. Tell the user that the key is not set up."
        }
        Code::KeyUnknown => {
            "NOT DONE. The key on this call is not a valid vault key; nothing was sent and no money moved. Do not retry and do not look for another key. Tell the user."
        }
        Code::Stopped => "STOPPED by an operator. Nothing was sent. End the run now.",
        Code::KeyRevoked => {
            "NOT DONE. This key was revoked; nothing was sent and no money moved. It will not work again: do not retry and do not look for another key. End the run and tell the user."
        }
        Code::KeyExpired => {
            "NOT DONE. This key has expired; nothing was sent and no money moved. Do not retry and do not look for another key. Tell the user that the run needs a new key."
        }
        Code::RequestMalformed => {
            "NOT DONE. The request was not well formed, so it was refused before it was sent; no money moved. Do not send it again as it is. Correct the arguments once, or tell the user."
        }
        Code::VendorNotAllowed => {
            "NOT DONE. This key may not call this service; nothing was sent and no money moved. Final for this run: do not retry or route around it. Tell the user."
        }
        Code::EndpointNotAllowed => {
            "NOT DONE. This key may not do this operation; nothing was sent and no money moved. Final for this run: do not retry it or reach the same result in another way. Tell the user."
        }
        Code::AccountNotAllowed => {
            "NOT DONE. This key may not act for this account; nothing was sent and no money moved. Final for this run: do not retry or use another account. Tell the user."
        }
        Code::CustomerNotAllowed => {
            "NOT DONE. This key may not work for this customer; nothing was sent and no money moved. Final for this run: do not retry or use another customer. Tell the user."
        }
        Code::DestinationNotAllowed => {
            "NOT DONE. This destination is not allowed; nothing was sent and no money moved. Final for this run: do not retry or use another destination. Tell the user."
        }
        Code::ParamNotAllowed => {
            "NOT DONE. A value in this call is not allowed; nothing was sent and no money moved. Do not send the same values again and do not work around the rule. Tell the user."
        }
        Code::OutcomeUnknown => {
            "UNKNOWN. This call was sent earlier and its result is not known; it may have happened. Do not send it again. Tell the user it is being checked."
        }
        Code::AlreadyDone => {
            "ALREADY DONE. This call was made before and it succeeded; nothing was sent now and nothing new was charged. Do not make it again. Use the earlier result or tell the user."
        }
        Code::IdempotencyConflict => {
            "NOT DONE. An earlier call used the same step or key with different values; this one was not sent and moved no money. Do not retry it with other values under the same step. Tell the user."
        }
        Code::AttemptsExhausted => {
            "NOT DONE. This call was declined too many times; it was not sent again and no money moved. Final for this run: do not retry or try another way. Tell the user."
        }
        Code::CostUnknown => {
            "NOT DONE. What this call would cost is not known, so it was refused before it was sent; no money moved. Final for this run: do not retry or try another way. Tell the user."
        }
        Code::CurrencyNotAllowed => {
            "NOT DONE. This currency is not allowed; nothing was sent and no money moved. Final for this run: do not retry and do not convert the amount. Tell the user."
        }
        Code::AmountOverLimit => {
            "NOT DONE. The amount is above the limit for one call; nothing was sent and no money moved. Final for this run: do not retry or split it. Tell the user."
        }
        Code::NeedsApproval => {
            "WAITING. A person must approve this call. It was not sent. Do not retry; continue with other work or tell the user."
        }
        Code::CapExceeded => {
            "NOT DONE. A spending limit refused this call; no money moved. Final for this run: do not retry or split it. Tell the user."
        }
        Code::CapHeld => {
            "NOT NOW. Earlier calls that are not finished hold the rest of the spending limit; this call was not sent and no money moved. Do not retry in a loop and do not split it. Continue with other work or tell the user."
        }
        Code::LedgerUnavailable => {
            "NOT DONE. The spending ledger cannot be reached, so nothing was sent and no money moved. Do not retry or try another way. Tell the user to try later."
        }
        Code::LedgerRecovering => {
            "NOT DONE. The spending ledger is starting and not yet open, so nothing was sent and no money moved. Do not retry or try another way. Tell the user to try later."
        }
    }
}

fn full(denial: &Denial) -> String {
    let what = what(denial);
    match denial.code {
        Code::CapExceeded => format!(
            "NOT DONE. Spending limit reached: {what} was refused before it was sent; no money moved.{} Final for this run: do not retry, do not split the amount, do not try another tool for the same result. Tell the user.",
            limit(denial.budget.as_ref(), false)
        ),
        Code::CapHeld => format!(
            "NOT NOW. Earlier calls that are not finished hold the rest of the spending limit: {what} was not sent; no money moved.{} Do not retry in a loop, do not split the amount, do not try another tool for the same result. Continue with other work or tell the user.",
            limit(denial.budget.as_ref(), true)
        ),
        Code::AmountOverLimit => format!(
            "NOT DONE. Above the limit for one call: {what} was refused before it was sent; no money moved.{} Final for this run: do not retry, do not split the amount, do not try another tool for the same result. Tell the user.",
            limit(denial.budget.as_ref(), false)
        ),
        Code::OutcomeUnknown => format!(
            "UNKNOWN. This call was sent earlier and its result is not known; it may have happened. Do not send it again. Tell the user it is being checked{}.",
            denial
                .existing
                .as_ref()
                .map_or_else(String::new, |call| format!(" (call {})", clean(&call.call_id)))
        ),
        Code::AlreadyDone => already_done(denial),
        Code::IdempotencyConflict => {
            let differing = denial
                .existing
                .as_ref()
                .map(|call| call.differing.join(", "))
                .unwrap_or_default();
            let values = if differing.is_empty() {
                "different values".to_owned()
            } else {
                format!("different values for {}", clean(&differing))
            };
            format!(
                "NOT DONE. An earlier call used the same step or key with {values}; this one was not sent and moved no money. Do not retry it with other values under the same step. Tell the user."
            )
        }
        Code::EndpointNotAllowed | Code::CostUnknown | Code::ParamNotAllowed | Code::AttemptsExhausted => {
            match denial.operation.as_deref() {
                Some(operation) => {
                    reason(denial.code).replacen("NOT DONE.", &format!("NOT DONE ({}).", clean(operation)), 1)
                }
                None => reason(denial.code).to_owned(),
            }
        }
        code => reason(code).to_owned(),
    }
}

/// A call that an operator stopped in flight: it may have moved money.
fn aborted(denial: &Denial) -> String {
    let id = if denial.full_detail {
        format!(" (call {})", clean(&denial.call_id))
    } else {
        String::new()
    };
    format!(
        "STOPPED by an operator while this call was under way. Its result is UNKNOWN; it may have happened. Do not send it again. End the run now and tell the user it is being checked{id}."
    )
}

fn already_done(denial: &Denial) -> String {
    let receipt = denial.existing.as_ref().map_or_else(String::new, |call| {
        let object = call
            .object
            .as_deref()
            .map_or_else(String::new, |object| format!("{}, ", clean(object)));
        format!(
            " Receipt: {object}{}, {} (call {}).",
            dollars(call.amount_micros),
            minute(call.at_ms),
            clean(&call.call_id)
        )
    });
    format!(
        "ALREADY DONE. This call was made before and it succeeded; nothing was sent now and nothing new was charged.{receipt} Do not make it again. Use the earlier result or tell the user."
    )
}

/// `this refund of $50.00`.
fn what(denial: &Denial) -> String {
    let noun = denial.operation.as_deref().map_or("call", noun);
    match denial.requested_micros {
        Some(micros) if micros > 0 => format!("this {noun} of {}", dollars(micros)),
        _ => format!("this {noun}"),
    }
}

/// What an operation makes, in a word.
fn noun(operation: &str) -> &'static str {
    match operation {
        "payment_intents.cancel" | "payouts.cancel" | "topups.cancel" | "refunds.cancel" => "cancellation",
        "transfers.create_reversal" | "transfer_reversals.create" | "payouts.reverse" => "reversal",
        "charges.capture" | "payment_intents.capture" => "capture",
        _ => match operation.split('.').next().unwrap_or_default() {
            "refunds" => "refund",
            "charges" => "charge",
            "payment_intents" => "payment",
            "transfers" => "transfer",
            "payouts" => "payout",
            "topups" => "top-up",
            "messages" => "message",
            "emails" => "email",
            _ => "call",
        },
    }
}

/// ` Limit $250.00 per day (stripe), used $245.00, resets 2026-11-23 00:00 UTC.`
fn limit(budget: Option<&BudgetView>, with_held: bool) -> String {
    let Some(budget) = budget else {
        return String::new();
    };
    let (amount, unit): (fn(i64) -> String, _) = match budget.unit.as_str() {
        "usd" => (dollars, String::new()),
        unit => (|count| count.to_string(), format!(" {unit}")),
    };
    let per = match budget.per.as_str() {
        "rolling_24h" => "in 24 hours".to_owned(),
        "lifetime" => "in all".to_owned(),
        other => format!("per {other}"),
    };
    let cap = amount(budget.cap);
    if budget.per == "call" {
        return format!(" Limit {cap}{unit} {per}.");
    }
    let vendor = match budget.name.split(' ').next() {
        Some("all" | "*") | None => "all vendors",
        Some(vendor) => vendor,
    };
    let more = match budget.resets_at_ms {
        _ if with_held => format!(", held {}", amount(budget.held)),
        Some(at) => format!(", resets {}", minute(at)),
        None => String::new(),
    };
    format!(
        " Limit {cap}{unit} {per} ({vendor}), used {}{more}.",
        amount(budget.used)
    )
}

fn dollars(micros: i64) -> String {
    format!("${}", Usd::from_micros(micros))
}

/// `2026-11-23 00:00 UTC`.
fn minute(ms: i64) -> String {
    let text = time_text(ms);
    let (date, time) = text.split_once('T').unwrap_or((&text, ""));
    let time: String = time.chars().take(5).collect();
    format!("{date} {time} UTC")
}

/// A text from outside as it may stand in a prompt: printable, short, one line.
fn clean(text: &str) -> String {
    text.chars()
        .filter(|c| c.is_ascii_graphic() || *c == ' ')
        .take(80)
        .collect()
}
