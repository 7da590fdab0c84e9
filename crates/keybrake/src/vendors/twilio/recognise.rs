//! Reads a call strictly: host, operation, account, fields. What two parsers could read differently is refused.

use std::borrow::Cow;

use super::table;
use super::{HOSTS, Twilio, is_sid};
use crate::policy::Code;
use crate::request::authority::Target;
use crate::request::form::Names;
use crate::request::{Call, Refusal, form, path};
use crate::vendors::recognise::{FORM, idempotency_key, malformed, media_type, no_query, query, target};
use crate::vendors::{Operation, Recognised, Vendor as _, field};

/// Longest idempotency key, in bytes. A key of the caller's tells its repeats apart here; Twilio takes none, so it goes
/// no further.
const LONGEST_KEY: usize = 255;

/// Scope fields, and what a message or a call is made of.
const NAMES: Names = Names {
    scalars: &[
        "ApplicationSid",
        "Body",
        "CallToken",
        "Channel",
        "ContentSid",
        "ContentVariables",
        "Fields",
        "From",
        "MessagingServiceSid",
        "PhoneNumber",
        "PhoneNumberSid",
        "ScheduleType",
        "SendAsMms",
        "SendAt",
        "Status",
        "TimeLimit",
        "To",
        "Twiml",
        "Url",
    ],
    // Numbered by us; see `numbered`.
    nested: LISTS,
    maps: &[],
};

/// Fields that stand several times, as Twilio's SDKs write a list.
const LISTS: &[&str] = &[
    "MediaUrl",
    "PersistentAction",
    "RecordingStatusCallbackEvent",
    "StatusCallbackEvent",
    "Tags",
];

pub(super) fn recognise(twilio: Twilio, call: &Call) -> Result<Recognised, Refusal> {
    let target = target(call, HOSTS)?;
    let path = numbers_escaped(&target);
    let segments = path::segments(&path)?;
    let Some((operation, ids)) = table::route(target.host, &call.method, &segments) else {
        return Err(unlisted("Twilio's API knows GET, POST and DELETE"));
    };
    let account = account(&target, &segments)?;
    let fields = fields(call, &target)?;
    let to = field(&fields, "To");
    if needs_recipient(operation) {
        check_recipient(operation, to.unwrap_or_default())?;
    }
    if places_call(operation) {
        check_time_limit(field(&fields, "TimeLimit"))?;
    }
    Ok(Recognised {
        operation,
        host: target.host,
        path: target.path.to_owned(),
        account,
        idempotency_key: idempotency_key(call, LONGEST_KEY)?,
        token: twilio.token(call),
        customer: None,
        destination: to.map(str::to_owned),
        fields,
        parts: Vec::new(),
        ids,
    })
}

/// Twilio's SDKs write a phone number into a path with its `+` as it is.
fn numbers_escaped<'a>(target: &Target<'a>) -> Cow<'a, str> {
    let (before, last) = target.path.rsplit_once('/').unwrap_or(("", target.path));
    match last.strip_prefix('+') {
        Some(digits) if target.host != table::API => Cow::Owned(format!("{before}/%2B{digits}")),
        _ => Cow::Borrowed(target.path),
    }
}

/// The account that the path names. Every path of the core API names one.
fn account(target: &Target<'_>, segments: &[Cow<'_, str>]) -> Result<Option<String>, Refusal> {
    if target.host != table::API {
        return Ok(None);
    }
    let named = match segments {
        [version, accounts, named] if version == "2010-04-01" && accounts == "Accounts" => {
            named.strip_suffix(".json").unwrap_or_default()
        }
        [version, accounts, named, ..] if version == "2010-04-01" && accounts == "Accounts" => named,
        _ => "",
    };
    if is_sid(named, "AC") {
        Ok(Some(named.to_owned()))
    } else {
        Err(unlisted(
            "a path of Twilio's core API begins with /2010-04-01/Accounts/ and an account SID; give ids to the SDK as \
             they are",
        ))
    }
}

const fn needs_recipient(operation: &Operation) -> bool {
    matches!(
        operation.name.as_bytes(),
        b"messages.create"
            | b"calls.create"
            | b"conferences.participants.create"
            | b"verify.verifications.create"
    )
}

/// Whether it places a call, which costs by the minute.
const fn places_call(operation: &Operation) -> bool {
    matches!(
        operation.name.as_bytes(),
        b"calls.create" | b"conferences.participants.create"
    )
}

/// Channels before a phone number.
const NUMBER_CHANNELS: [&str; 2] = ["whatsapp:", "rcs:"];

/// A recipient is written in one way only: `+` and digits after a channel that is known (security rule 10). Twilio reads
/// `15558675310` and `+1 555 867-5310` as the same number, and the call would look like another one.
fn check_recipient(operation: &Operation, to: &str) -> Result<(), Refusal> {
    if to.is_empty() {
        return Err(malformed("To is missing"));
    }
    let has_rest = |channels: &[&str]| {
        let rest = channels.iter().find_map(|channel| to.strip_prefix(channel));
        rest.is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_graphic()))
    };
    let other = match operation.name {
        "messages.create" => has_rest(&["messenger:"]),
        // An address, for the channel `email`.
        "verify.verifications.create" => to.contains('@') && to.bytes().all(|byte| byte.is_ascii_graphic()),
        _ => has_rest(&["sip:", "sips:", "client:"]),
    };
    let number = NUMBER_CHANNELS
        .iter()
        .find_map(|channel| to.strip_prefix(channel))
        .unwrap_or(to);
    if other || is_number(number) {
        Ok(())
    } else {
        Err(malformed(
            "To is not written as a phone number in E.164: `+`, the country and the number, digits only, such as \
             +15558675310 or whatsapp:+15558675310",
        ))
    }
}

/// E.164: `+` and at most 15 digits, the first of which is no zero.
fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix('+').unwrap_or_default().as_bytes();
    (2..=15).contains(&digits.len()) && digits.first() != Some(&b'0') && digits.iter().all(u8::is_ascii_digit)
}

/// Without a limit Twilio lets a call go on for hours, so that one figure for it is no bound (vendors.md 2.4;
/// <https://www.twilio.com/docs/voice/api/call-resource>, read 2026-11-21).
fn check_time_limit(seconds: Option<&str>) -> Result<(), Refusal> {
    let whole = |text: &str| {
        (1..=5).contains(&text.len())
            && !text.starts_with('0')
            && text.bytes().all(|byte| byte.is_ascii_digit())
    };
    if seconds.is_some_and(whole) {
        return Ok(());
    }
    Err(Refusal::new(
        Code::CostUnknown,
        "without a TimeLimit a call can go on for hours: give TimeLimit in whole seconds, and the cost of a call of that \
         length in the policy's operation_costs",
    ))
}

/// The fields of the query (GET, DELETE) or of the body (POST).
fn fields(call: &Call, target: &Target<'_>) -> Result<Vec<(String, String)>, Refusal> {
    if call.method != "POST" {
        // Lists take `DateSent>=…`: a name that ends in an inequality sign.
        let plain = |query: &str| query.replace("%3E=", "_after=").replace("%3C=", "_before=");
        return query(call, target)?.map_or(Ok(Vec::new()), |query| {
            form::parse(plain(query).as_bytes(), &NAMES)
        });
    }
    no_query(call, target)?;
    media_type(call, FORM)?;
    if call.body.len() > form::MAX_BYTES {
        return Err(malformed(format!(
            "the form is longer than {} bytes",
            form::MAX_BYTES
        )));
    }
    form::parse(&numbered(&call.body)?, &NAMES)
}

/// The form with the repeated names of its lists numbered (`MediaUrl[0]`, `MediaUrl[1]`), so that every field has a name
/// of its own. Twilio's own names have no brackets.
fn numbered(body: &[u8]) -> Result<Cow<'_, [u8]>, Refusal> {
    let pairs = || body.split(|byte| *byte == b'&');
    let key_of = |pair: &'_ [u8]| {
        pair.split(|byte| *byte == b'=')
            .next()
            .unwrap_or_default()
            .to_vec()
    };
    let mut keys: Vec<Vec<u8>> = pairs().map(key_of).collect();
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    if keys.iter().any(|key| !key.iter().all(plain)) {
        return Err(malformed(
            "the names of Twilio's fields are letters and digits, without brackets; repeat the name for each item of a list",
        ));
    }
    keys.retain(|key| LISTS.iter().any(|name| name.as_bytes() == key));
    let repeats = |key: &[u8]| keys.iter().filter(|other| *other == key).count() > 1;
    if !keys.iter().any(|key| repeats(key)) {
        return Ok(Cow::Borrowed(body));
    }
    let mut out = Vec::with_capacity(body.len().saturating_add(64));
    let mut counts = vec![0_usize; LISTS.len()];
    for (at, pair) in pairs().enumerate() {
        if at > 0 {
            out.push(b'&');
        }
        let key = key_of(pair);
        let list = LISTS
            .iter()
            .position(|name| name.as_bytes() == key)
            .filter(|_| repeats(&key));
        match list.and_then(|list| counts.get_mut(list)) {
            Some(count) => {
                out.extend_from_slice(&key);
                out.extend_from_slice(format!("[{count}]").as_bytes());
                out.extend_from_slice(pair.get(key.len()..).unwrap_or_default());
                *count = count.saturating_add(1);
            }
            None => out.extend_from_slice(pair),
        }
    }
    Ok(Cow::Owned(out))
}

fn unlisted(what: &str) -> Refusal {
    Refusal::new(Code::EndpointNotAllowed, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(body: &str) -> String {
        String::from_utf8(numbered(body.as_bytes()).unwrap().into_owned()).unwrap()
    }

    #[test]
    fn lists_are_numbered_and_nothing_else_is_touched() {
        for (body, expected) in [
            ("", ""),
            ("To=1&MediaUrl=a", "To=1&MediaUrl=a"),
            (
                "MediaUrl=a&To=1&MediaUrl=b%3D",
                "MediaUrl[0]=a&To=1&MediaUrl[1]=b%3D",
            ),
            ("To=1&To=2", "To=1&To=2"),
            ("MediaUrl&MediaUrl=a", "MediaUrl[0]&MediaUrl[1]=a"),
        ] {
            assert_eq!(shown(body), expected);
        }
        for body in [
            "MediaUrl[0]=a",
            "MediaUrl%5B0%5D=a",
            "Media%55rl=a",
            "MediaUrl =a",
        ] {
            assert!(numbered(body.as_bytes()).is_err(), "{body}");
        }
    }
}
