//! Reads a call strictly: host, operation, recipients, fields. What two parsers could read differently is refused.

use super::{HOSTS, Resend, table};
use crate::policy::Code;
use crate::request::authority::Target;
use crate::request::form::Names;
use crate::request::{Call, Refusal, form, headers, json, path};
use crate::vendors::recognise::{JSON, idempotency_key, malformed, media_type, no_query, query, target};
use crate::vendors::{Recognised, Vendor as _};

/// Most e-mails in one batch.
const MOST_IN_BATCH: usize = 100;

/// Longest idempotency key, in bytes.
const LONGEST_KEY: usize = 256;

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
    let target = target(call, HOSTS)?;
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
        idempotency_key: idempotency_key(call, LONGEST_KEY)?,
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
        return query(call, target)?.map_or(Ok(Vec::new()), |query| form::parse(query.as_bytes(), &NAMES));
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
    no_query(call, target)?;
    if call.body.is_empty() {
        return Ok(false);
    }
    media_type(call, JSON).map(|()| true)
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
