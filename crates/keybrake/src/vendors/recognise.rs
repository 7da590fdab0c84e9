//! What the strict reading of a call has in common, whichever vendor it goes to.

use crate::policy::Code;
use crate::request::authority::Target;
use crate::request::{Call, Refusal, authority, headers};

/// Media type of a form.
pub(super) const FORM: &str = "application/x-www-form-urlencoded";
/// Media type of a document.
pub(super) const JSON: &str = "application/json";

/// Where a call goes: one of these hosts exactly, with headers that may be sent there.
pub(super) fn target<'a>(call: &'a Call, hosts: &'static [&'static str]) -> Result<Target<'a>, Refusal> {
    let target = authority::split(&call.url, hosts)?;
    headers::check(&call.headers, target.host, call.body.len())?;
    Ok(target)
}

/// The query of a call that has its fields there, and no body; `None` when it has no fields.
pub(super) fn query<'a>(call: &Call, target: &Target<'a>) -> Result<Option<&'a str>, Refusal> {
    if !call.body.is_empty() {
        return Err(malformed(format!("a {} has no body", call.method)));
    }
    if target.query == Some("") {
        return Err(malformed("the URL has an empty query (a ? at its end)"));
    }
    Ok(target.query)
}

/// Refuses the query of a call that has its fields in its body.
pub(super) fn no_query(call: &Call, target: &Target<'_>) -> Result<(), Refusal> {
    match target.query {
        None => Ok(()),
        Some(_) => Err(malformed(format!(
            "a {} has no query; write its fields into the body",
            call.method
        ))),
    }
}

/// Refuses a body of another media type than this; without a body the type may be left out.
pub(super) fn media_type(call: &Call, expected: &str) -> Result<(), Refusal> {
    match headers::get(&call.headers, "content-type") {
        Some(value) if headers::is_media_type(value, expected) => Ok(()),
        None if call.body.is_empty() => Ok(()),
        _ => Err(malformed(format!(
            "the Content-Type of this operation is {expected}"
        ))),
    }
}

/// The caller's own key, of 1 to `most` bytes.
pub(super) fn idempotency_key(call: &Call, most: usize) -> Result<Option<String>, Refusal> {
    match headers::get(&call.headers, "idempotency-key") {
        Some(key) if key.is_empty() || key.len() > most => Err(malformed(format!(
            "an idempotency key has 1 to {most} characters"
        ))),
        key => Ok(key.map(str::to_owned)),
    }
}

/// A call that cannot be judged as it is, and what is wrong with it.
pub(super) fn malformed(what: impl Into<String>) -> Refusal {
    Refusal::new(Code::RequestMalformed, what)
}
