//! Reads a call strictly: host, operation, fields, scopes. What two parsers could read differently is refused.

use std::borrow::Cow;

use super::table;
use super::{HOSTS, Stripe, TAG};
use crate::policy::Code;
use crate::request::authority::Target;
use crate::request::form::Names;
use crate::request::{Call, Refusal, form, headers, json, path};
use crate::vendors::recognise::{
    FORM, JSON, idempotency_key, malformed, media_type, no_query, query, target,
};
use crate::vendors::{Operation, Recognised, Vendor as _, field};

/// Longest idempotency key, in bytes.
const LONGEST_KEY: usize = 255;

/// Money and scope fields of v1 forms.
const V1: Names = Names {
    scalars: &[
        "amount",
        "amount_to_capture",
        "amount_to_confirm",
        "application_fee_amount",
        "capture",
        "capture_method",
        "charge",
        "confirm",
        "currency",
        "customer",
        "customer_account",
        "final_capture",
        "on_behalf_of",
        "origin",
        "payment_intent",
        "payment_method",
        "source_transaction",
        "source_type",
    ],
    nested: &["destination", "metadata", "source", "transfer_data"],
    maps: &["metadata", "payload"],
};

/// Money and scope fields of v2 documents, where an amount is an object.
const V2: Names = Names {
    scalars: &["currency", "customer", "destination", "payment_method"],
    nested: &["amount", "metadata"],
    maps: &["metadata", "payload"],
};

pub(super) fn recognise(stripe: Stripe, call: &Call) -> Result<Recognised, Refusal> {
    let target = target(call, HOSTS)?;
    let segments = path::segments(target.path)?;
    let version = segments.first().map_or("", |first| first.as_ref());
    let (operation, ids) = find(&call.method, &target, version, &segments)?;
    let fields = fields(call, &target, operation, version)?;
    if fields.iter().any(|(name, _)| name == TAG) {
        return Err(malformed(format!(
            "{TAG} is written by Keybrake, to find the object again; leave it out"
        )));
    }
    let customer = customer(operation, &ids, &fields)?;
    let destination = [
        "destination",
        "destination[account]",
        "transfer_data[destination]",
    ]
    .iter()
    .find_map(|name| field(&fields, name))
    .map(str::to_owned);
    Ok(Recognised {
        operation,
        host: target.host,
        path: target.path.to_owned(),
        account: account(call)?,
        idempotency_key: idempotency_key(call, LONGEST_KEY)?,
        token: stripe.token(call),
        customer,
        destination,
        fields,
        parts: Vec::new(),
        ids,
    })
}

fn find(
    method: &str,
    target: &Target<'_>,
    version: &str,
    segments: &[Cow<'_, str>],
) -> Result<(&'static Operation, Vec<String>), Refusal> {
    let refuse = |what: String| Err(Refusal::new(Code::EndpointNotAllowed, what));
    let Some((operation, ids)) = table::route(method, segments) else {
        return refuse("Stripe's API knows GET, POST and DELETE".to_owned());
    };
    let unlisted = operation.is_unlisted();
    let serving = table::host(operation);
    if unlisted && (target.host != table::API || !matches!(version, "v1" | "v2")) {
        return refuse(format!("{method} of this path is not known at {}", target.host));
    }
    if target.host != serving {
        return refuse(format!(
            "{} is served at {serving}, not at {}",
            operation.name, target.host
        ));
    }
    Ok((operation, ids))
}

/// The fields of the query (GET, DELETE) or of the body (POST).
fn fields(
    call: &Call,
    target: &Target<'_>,
    operation: &Operation,
    version: &str,
) -> Result<Vec<(String, String)>, Refusal> {
    if call.method != "POST" {
        return query(call, target)?.map_or(Ok(Vec::new()), |query| form::parse(query.as_bytes(), &V1));
    }
    no_query(call, target)?;
    if operation.name == "files.create" {
        return upload(call);
    }
    media_type(call, if version == "v2" { JSON } else { FORM })?;
    if version != "v2" {
        form::parse(&call.body, &V1)
    } else if call.body.is_empty() {
        Ok(Vec::new())
    } else {
        json::fields(&call.body, &V2)
    }
}

/// An upload is `multipart/form-data` with a plain boundary that the body begins with. What is uploaded costs nothing
/// and is not read.
fn upload(call: &Call) -> Result<Vec<(String, String)>, Refusal> {
    let boundary = headers::get(&call.headers, "content-type")
        .and_then(|value| value.strip_prefix("multipart/form-data;"))
        .and_then(|rest| rest.trim_start().strip_prefix("boundary="))
        .map(|rest| {
            rest.strip_prefix('"')
                .and_then(|quoted| quoted.strip_suffix('"'))
                .unwrap_or(rest)
        });
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let fits = boundary.is_some_and(|boundary| {
        (1..=70).contains(&boundary.len())
            && boundary.bytes().all(plain)
            && call
                .body
                .strip_prefix(b"--")
                .is_some_and(|body| body.starts_with(boundary.as_bytes()))
    });
    if fits {
        Ok(Vec::new())
    } else {
        Err(malformed(
            "an upload is multipart/form-data with a boundary that its body begins with",
        ))
    }
}

/// The customer of the path (`/v1/customers/cus_1/…`) or of the fields. Two different ones are refused.
fn customer(
    operation: &Operation,
    ids: &[String],
    fields: &[(String, String)],
) -> Result<Option<String>, Refusal> {
    let in_path = operation
        .path
        .starts_with("/v1/customers/*")
        .then(|| ids.first().map(String::as_str))
        .flatten();
    let mut found = in_path;
    for name in ["customer", "customer_account"] {
        let Some(named) = field(fields, name).filter(|value| !value.is_empty()) else {
            continue;
        };
        if found.is_some_and(|known| known != named) {
            return Err(malformed("the request names two different customers"));
        }
        found = Some(named);
    }
    Ok(found.map(str::to_owned))
}

/// The connected account whose money moves: `Stripe-Account`, or `Stripe-Context` (`acct_1`, `acct_1/acct_2`).
/// Any other `Stripe-…` header could be a scope that we do not know.
fn account(call: &Call) -> Result<Option<String>, Refusal> {
    const KNOWN: [&str; 3] = ["stripe-account", "stripe-context", "stripe-version"];
    let prefix = |name: &str| {
        name.as_bytes()
            .get(..7)
            .is_some_and(|start| start.eq_ignore_ascii_case(b"stripe-"))
    };
    for (name, _) in &call.headers {
        if prefix(name) && !KNOWN.iter().any(|known| known.eq_ignore_ascii_case(name)) {
            return Err(malformed(format!("header {name} is not known; leave it out")));
        }
    }
    let scope = |name: &str| match headers::get(&call.headers, name) {
        Some(value) if !is_scope(value) => {
            Err(malformed(format!("the value of header {name} is not an account")))
        }
        other => Ok(other),
    };
    match (scope("Stripe-Account")?, scope("Stripe-Context")?) {
        (Some(account), Some(context)) if account != context => Err(malformed(
            "Stripe-Account and Stripe-Context name two different accounts",
        )),
        (account, context) => Ok(account.or(context).map(str::to_owned)),
    }
}

fn is_scope(value: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    value.len() <= 255
        && value
            .split('/')
            .all(|part| !part.is_empty() && part.bytes().all(plain))
}
