//! Reads a call strictly: host, operation, recipients, fields. What two parsers could read differently is refused.

use super::{HOSTS, Resend, table};
use crate::policy::Code;
use crate::request::authority::Target;
use crate::request::form::Names;
use crate::request::{Call, Refusal, authority, form, headers, json, path};
use crate::vendors::{Recognised, Vendor as _};

const JSON: &str = "application/json";

/// Most e-mails in one batch.
const MOST_IN_BATCH: usize = 100;

/// Scope fields, and what an e-mail is made of.
const NAMES: Names = Names {
    scalars: &[
        "audience_id",
        "broadcast_id",
        "email",
        "from",
        "html",
        "scheduled_at",
        "segment_id",
        "send",
        "subject",
        "text",
        "topic_id",
    ],
    nested: &["attachments", "bcc", "cc", "reply_to", "template", "to"],
    maps: &["headers", "properties", "variables"],
};

type Fields = Vec<(String, String)>;

pub(super) fn recognise(resend: Resend, call: &Call) -> Result<Recognised, Refusal> {
    let target = authority::split(&call.url, HOSTS)?;
    headers::check(&call.headers, target.host, call.body.len())?;
    let segments = path::segments(target.path)?;
    let Some((operation, ids)) = table::route(&call.method, &segments) else {
        return Err(Refusal::new(
            Code::EndpointNotAllowed,
            "Resend's API knows GET, POST, PATCH and DELETE",
        ));
    };
    let (fields, parts) = if operation.name == "emails.batch" {
        let parts = batch(call, &target)?;
        (merged(&parts), parts)
    } else {
        (fields(call, &target)?, Vec::new())
    };
    let emails: &[Fields] = match operation.name {
        "emails.send" => std::slice::from_ref(&fields),
        "emails.batch" => &parts,
        _ => &[],
    };
    Ok(Recognised {
        operation,
        host: target.host,
        path: target.path.to_owned(),
        account: None,
        idempotency_key: idempotency_key(call)?,
        token: resend.token(call),
        customer: None,
        destination: recipients(emails)?,
        fields,
        parts,
        ids,
    })
}

/// The fields of the query (GET, DELETE) or of the body (POST, PATCH).
fn fields(call: &Call, target: &Target<'_>) -> Result<Fields, Refusal> {
    if matches!(call.method.as_str(), "GET" | "DELETE") {
        if !call.body.is_empty() {
            return Err(malformed(format!("a {} has no body", call.method)));
        }
        return match target.query {
            Some("") => Err(malformed("the URL has an empty query (a ? at its end)")),
            Some(query) => form::parse(query.as_bytes(), &NAMES),
            None => Ok(Vec::new()),
        };
    }
    if has_body(call, target)? {
        json::fields(&call.body, &NAMES)
    } else {
        Ok(Vec::new())
    }
}

/// The e-mails of a batch.
fn batch(call: &Call, target: &Target<'_>) -> Result<Vec<Fields>, Refusal> {
    let validation = headers::get(&call.headers, "x-batch-validation");
    if validation.is_some_and(|value| !matches!(value, "strict" | "permissive")) {
        return Err(malformed("x-batch-validation is strict or permissive"));
    }
    let emails = if has_body(call, target)? {
        json::list(&call.body, &NAMES)?
    } else {
        Vec::new()
    };
    if (1..=MOST_IN_BATCH).contains(&emails.len()) {
        Ok(emails)
    } else {
        Err(malformed(format!("a batch has 1 to {MOST_IN_BATCH} e-mails")))
    }
}

/// Whether a POST or PATCH has a body; then it is JSON.
fn has_body(call: &Call, target: &Target<'_>) -> Result<bool, Refusal> {
    if target.query.is_some() {
        return Err(malformed(format!(
            "a {} has no query; write its fields into the body",
            call.method
        )));
    }
    if call.body.is_empty() {
        return Ok(false);
    }
    match headers::get(&call.headers, "content-type") {
        Some(value) if headers::is_media_type(value, JSON) => Ok(true),
        _ => Err(malformed(format!("the Content-Type of this operation is {JSON}"))),
    }
}

/// All fields of a batch under names of their own: `emails[0][to]`.
fn merged(parts: &[Fields]) -> Fields {
    let named = parts.iter().enumerate().flat_map(|(n, part)| {
        part.iter().map(move |(name, value)| {
            let (head, rest) = name
                .split_at_checked(name.find('[').unwrap_or(name.len()))
                .unwrap_or((name, ""));
            (format!("emails[{n}][{head}]{rest}"), value.clone())
        })
    });
    named.collect()
}

/// Every recipient of every e-mail: `to`, `cc` and `bcc` alike, each one address or a list of them.
fn recipients(emails: &[Fields]) -> Result<Option<String>, Refusal> {
    let mut all: Vec<&str> = Vec::new();
    for email in emails {
        let before = all.len();
        for (name, address) in email {
            let head = name.split('[').next().unwrap_or(name);
            if !matches!(head, "to" | "cc" | "bcc") {
                continue;
            }
            if name.matches('[').count() > 1 || !is_numbered(name, head) {
                return Err(malformed(format!("{head} is an address or a list of addresses")));
            }
            if head == "to" && address.is_empty() {
                return Err(malformed("to is empty"));
            }
            all.push(address);
        }
        if all.len() == before {
            return Err(malformed("to is missing"));
        }
    }
    Ok((!all.is_empty()).then(|| all.join(", ")))
}

/// `to`, or `to[0]` and so on: not a member of an object.
fn is_numbered(name: &str, head: &str) -> bool {
    let rest = name.strip_prefix(head).unwrap_or_default();
    let inner = rest.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    rest.is_empty()
        || inner.is_some_and(|inner| !inner.is_empty() && inner.bytes().all(|b| b.is_ascii_digit()))
}

fn idempotency_key(call: &Call) -> Result<Option<String>, Refusal> {
    match headers::get(&call.headers, "idempotency-key") {
        Some(key) if key.is_empty() || key.len() > 256 => {
            Err(malformed("an idempotency key has 1 to 256 characters"))
        }
        key => Ok(key.map(str::to_owned)),
    }
}

fn malformed(what: impl Into<String>) -> Refusal {
    Refusal::new(Code::RequestMalformed, what)
}
