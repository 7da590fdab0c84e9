//! What the replies that we make or keep have in common, whichever vendor's shape they have.

use bytes::Bytes;
use serde_json::Value;

use crate::money::Usd;
use crate::policy::{BudgetView, Code, Denial};
use crate::vendors::Reply;

/// Longest wait that is announced: retry layers sleep for it.
const RETRY_AFTER_MAX_S: i64 = 60;

/// A denial as a reply with this body, which is in the vendor's own shape of an error.
pub(super) fn denied(denial: &Denial, status: u16, now_ms: i64, body: &Value) -> Reply {
    Reply {
        status,
        headers: headers(denial, now_ms),
        body: Bytes::from(body.to_string()),
    }
}

/// The headers that every denial carries. Lower-case names: stripe-python looks them up so.
fn headers(denial: &Denial, now_ms: i64) -> Vec<(String, String)> {
    let mut headers = vec![
        ("content-type", "application/json".to_owned()),
        ("x-should-retry", "false".to_owned()),
        ("x-keybrake-verdict", denial.code.as_str().to_owned()),
        ("x-keybrake-call-id", denial.call_id.clone()),
    ];
    if matches!(denial.code, Code::CapExceeded | Code::CapHeld) {
        headers.push(("x-keybrake-cap-hit", "true".to_owned()));
    }
    if let Some(budget) = denial.budget.as_ref().filter(|budget| budget.counts()) {
        of_budget(&mut headers, budget, now_ms);
    }
    headers
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// Used and held together, the cap, and when the window ends in Unix seconds: as on a reply that was let through.
fn of_budget(headers: &mut Vec<(&str, String)>, budget: &BudgetView, now_ms: i64) {
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

/// A reply as it may be recorded: with these headers, and without members of these names. A body that is not JSON is
/// dropped.
pub(super) fn stripped(reply: &Reply, headers: &[&str], secrets: &[&str]) -> Reply {
    kept(reply, headers, without(&reply.body, secrets).unwrap_or_default())
}

/// A reply as it may be recorded: this body, and no other headers than these (cookies are none of them).
pub(super) fn kept(reply: &Reply, headers: &[&str], body: Bytes) -> Reply {
    let is_kept = |name: &str| headers.iter().any(|kept| kept.eq_ignore_ascii_case(name));
    Reply {
        status: reply.status,
        headers: reply
            .headers
            .iter()
            .filter(|(name, _)| is_kept(name))
            .cloned()
            .collect(),
        body,
    }
}

/// Whether one of these words can be in a JSON body; an escape could spell one, and what is not text could be
/// compressed.
pub(super) fn may_spell(body: &[u8], words: &[&str]) -> bool {
    match std::str::from_utf8(body) {
        Ok(text) => text.contains("\\u") || words.iter().any(|word| text.contains(word)),
        Err(_) => true,
    }
}

/// A JSON body without members of these names, wherever they stand; `None` when it is not JSON.
fn without(body: &[u8], names: &[&str]) -> Option<Bytes> {
    let mut value = serde_json::from_slice::<Value>(body).ok()?;
    remove(&mut value, names);
    Some(Bytes::from(value.to_string()))
}

/// `serde_json` bounds the depth of a document at 128.
fn remove(value: &mut Value, names: &[&str]) {
    match value {
        Value::Object(members) => {
            members.retain(|name, _| !names.contains(&name.as_str()));
            members.values_mut().for_each(|member| remove(member, names));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| remove(item, names)),
        _ => {}
    }
}
