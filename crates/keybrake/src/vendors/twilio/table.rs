//! Twilio's operations, and which of them a host, a method and a path name (security rule 5).
//!
//! The well-known part of the API, of `twilio-oai` d50069b (2026-04-14). What sends, places or buys something is of unknown
//! cost; what only changes settings or deletes is free.

use std::borrow::Cow;
use std::sync::LazyLock;

use super::is_sid;
use crate::vendors::Operation;
use crate::vendors::table::{ALL, IdIn, Routes, free, read, send};

pub(super) const API: &str = "api.twilio.com";
pub(super) const LOOKUPS: &str = "lookups.twilio.com";
pub(super) const MESSAGING: &str = "messaging.twilio.com";
pub(super) const PRICING: &str = "pricing.twilio.com";
pub(super) const VERIFY: &str = "verify.twilio.com";

/// The methods of Twilio's API.
const METHODS: &[&str] = &["GET", "POST", "DELETE"];

/// What makes two messages the same.
const MESSAGE: &[&str] = &[
    "To",
    "From",
    "MessagingServiceSid",
    "Body",
    "MediaUrl",
    "ContentSid",
    "ContentVariables",
    "SendAt",
    "SendAsMms",
];
/// What makes two calls the same.
const CALL: &[&str] = &[
    "To",
    "From",
    "Url",
    "Twiml",
    "ApplicationSid",
    "SendDigits",
    "TimeLimit",
    "CallToken",
];

/// Under `/2010-04-01/`: the last segment ends in `.json`, which an id (`*`) does not show.
#[rustfmt::skip]
const CORE: &[Operation] = &[
    // Not the account itself: its reply has the auth token.
    read("applications.list", "/2010-04-01/Accounts/*/Applications.json"),
    read("applications.fetch", "/2010-04-01/Accounts/*/Applications/*"),
    free("POST", "applications.create", "/2010-04-01/Accounts/*/Applications.json"),
    free("POST", "applications.update", "/2010-04-01/Accounts/*/Applications/*"),
    free("DELETE", "applications.delete", "/2010-04-01/Accounts/*/Applications/*"),
    read("available_phone_numbers.list", "/2010-04-01/Accounts/*/AvailablePhoneNumbers.json"),
    read("available_phone_numbers.fetch", "/2010-04-01/Accounts/*/AvailablePhoneNumbers/*"),
    read("available_phone_numbers.local.list", "/2010-04-01/Accounts/*/AvailablePhoneNumbers/*/Local.json"),
    read("available_phone_numbers.mobile.list", "/2010-04-01/Accounts/*/AvailablePhoneNumbers/*/Mobile.json"),
    read("available_phone_numbers.toll_free.list", "/2010-04-01/Accounts/*/AvailablePhoneNumbers/*/TollFree.json"),
    read("balance.fetch", "/2010-04-01/Accounts/*/Balance.json"),
    read("calls.list", "/2010-04-01/Accounts/*/Calls.json"),
    read("calls.fetch", "/2010-04-01/Accounts/*/Calls/*"),
    send("calls.create", "/2010-04-01/Accounts/*/Calls.json", CALL),
    // Free when it only ends the call.
    free("POST", "calls.update", "/2010-04-01/Accounts/*/Calls/*"),
    free("DELETE", "calls.delete", "/2010-04-01/Accounts/*/Calls/*"),
    read("calls.events.list", "/2010-04-01/Accounts/*/Calls/*/Events.json"),
    read("calls.notifications.list", "/2010-04-01/Accounts/*/Calls/*/Notifications.json"),
    read("calls.recordings.list", "/2010-04-01/Accounts/*/Calls/*/Recordings.json"),
    read("calls.recordings.fetch", "/2010-04-01/Accounts/*/Calls/*/Recordings/*"),
    send("calls.recordings.create", "/2010-04-01/Accounts/*/Calls/*/Recordings.json", ALL),
    free("POST", "calls.recordings.update", "/2010-04-01/Accounts/*/Calls/*/Recordings/*"),
    free("DELETE", "calls.recordings.delete", "/2010-04-01/Accounts/*/Calls/*/Recordings/*"),
    read("conferences.list", "/2010-04-01/Accounts/*/Conferences.json"),
    read("conferences.fetch", "/2010-04-01/Accounts/*/Conferences/*"),
    send("conferences.update", "/2010-04-01/Accounts/*/Conferences/*", ALL),
    read("conferences.participants.list", "/2010-04-01/Accounts/*/Conferences/*/Participants.json"),
    read("conferences.participants.fetch", "/2010-04-01/Accounts/*/Conferences/*/Participants/*"),
    send("conferences.participants.create", "/2010-04-01/Accounts/*/Conferences/*/Participants.json", ALL),
    free("DELETE", "conferences.participants.delete", "/2010-04-01/Accounts/*/Conferences/*/Participants/*"),
    read("incoming_phone_numbers.list", "/2010-04-01/Accounts/*/IncomingPhoneNumbers.json"),
    read("incoming_phone_numbers.fetch", "/2010-04-01/Accounts/*/IncomingPhoneNumbers/*"),
    send("incoming_phone_numbers.create", "/2010-04-01/Accounts/*/IncomingPhoneNumbers.json", ALL),
    free("POST", "incoming_phone_numbers.update", "/2010-04-01/Accounts/*/IncomingPhoneNumbers/*"),
    free("DELETE", "incoming_phone_numbers.delete", "/2010-04-01/Accounts/*/IncomingPhoneNumbers/*"),
    read("incoming_phone_numbers.local.list", "/2010-04-01/Accounts/*/IncomingPhoneNumbers/Local.json"),
    send("incoming_phone_numbers.local.create", "/2010-04-01/Accounts/*/IncomingPhoneNumbers/Local.json", ALL),
    read("incoming_phone_numbers.mobile.list", "/2010-04-01/Accounts/*/IncomingPhoneNumbers/Mobile.json"),
    send("incoming_phone_numbers.mobile.create", "/2010-04-01/Accounts/*/IncomingPhoneNumbers/Mobile.json", ALL),
    read("incoming_phone_numbers.toll_free.list", "/2010-04-01/Accounts/*/IncomingPhoneNumbers/TollFree.json"),
    send("incoming_phone_numbers.toll_free.create", "/2010-04-01/Accounts/*/IncomingPhoneNumbers/TollFree.json", ALL),
    read("messages.list", "/2010-04-01/Accounts/*/Messages.json"),
    read("messages.fetch", "/2010-04-01/Accounts/*/Messages/*"),
    send("messages.create", "/2010-04-01/Accounts/*/Messages.json", MESSAGE),
    // Redacts the text, or cancels a scheduled message.
    free("POST", "messages.update", "/2010-04-01/Accounts/*/Messages/*"),
    free("DELETE", "messages.delete", "/2010-04-01/Accounts/*/Messages/*"),
    free("POST", "messages.feedback.create", "/2010-04-01/Accounts/*/Messages/*/Feedback.json"),
    read("messages.media.list", "/2010-04-01/Accounts/*/Messages/*/Media.json"),
    read("messages.media.fetch", "/2010-04-01/Accounts/*/Messages/*/Media/*"),
    free("DELETE", "messages.media.delete", "/2010-04-01/Accounts/*/Messages/*/Media/*"),
    read("outgoing_caller_ids.list", "/2010-04-01/Accounts/*/OutgoingCallerIds.json"),
    read("outgoing_caller_ids.fetch", "/2010-04-01/Accounts/*/OutgoingCallerIds/*"),
    // Calls the number to verify it.
    send("validation_requests.create", "/2010-04-01/Accounts/*/OutgoingCallerIds.json", ALL),
    read("recordings.list", "/2010-04-01/Accounts/*/Recordings.json"),
    read("recordings.fetch", "/2010-04-01/Accounts/*/Recordings/*"),
    free("DELETE", "recordings.delete", "/2010-04-01/Accounts/*/Recordings/*"),
    read("short_codes.list", "/2010-04-01/Accounts/*/SMS/ShortCodes.json"),
    read("short_codes.fetch", "/2010-04-01/Accounts/*/SMS/ShortCodes/*"),
    read("usage.records.list", "/2010-04-01/Accounts/*/Usage/Records.json"),
    read("usage.records.all_time.list", "/2010-04-01/Accounts/*/Usage/Records/AllTime.json"),
    read("usage.records.daily.list", "/2010-04-01/Accounts/*/Usage/Records/Daily.json"),
    read("usage.records.last_month.list", "/2010-04-01/Accounts/*/Usage/Records/LastMonth.json"),
    read("usage.records.monthly.list", "/2010-04-01/Accounts/*/Usage/Records/Monthly.json"),
    read("usage.records.this_month.list", "/2010-04-01/Accounts/*/Usage/Records/ThisMonth.json"),
    read("usage.records.today.list", "/2010-04-01/Accounts/*/Usage/Records/Today.json"),
    read("usage.records.yearly.list", "/2010-04-01/Accounts/*/Usage/Records/Yearly.json"),
    read("usage.records.yesterday.list", "/2010-04-01/Accounts/*/Usage/Records/Yesterday.json"),
];

#[rustfmt::skip]
const LOOKUP: &[Operation] = &[
    // The one GET that may cost something: free without `Fields`.
    free("GET", "lookups.phone_numbers.fetch", "/v2/PhoneNumbers/*"),
];

#[rustfmt::skip]
const MESSAGING_SERVICES: &[Operation] = &[
    read("messaging.services.list", "/v1/Services"),
    read("messaging.services.fetch", "/v1/Services/*"),
    read("messaging.services.phone_numbers.list", "/v1/Services/*/PhoneNumbers"),
];

#[rustfmt::skip]
const PRICES: &[Operation] = &[
    read("pricing.messaging.countries.list", "/v1/Messaging/Countries"),
    read("pricing.messaging.countries.fetch", "/v1/Messaging/Countries/*"),
    read("pricing.phone_numbers.countries.list", "/v1/PhoneNumbers/Countries"),
    read("pricing.phone_numbers.countries.fetch", "/v1/PhoneNumbers/Countries/*"),
    read("pricing.voice.countries.list", "/v2/Voice/Countries"),
    read("pricing.voice.countries.fetch", "/v2/Voice/Countries/*"),
    read("pricing.voice.numbers.fetch", "/v2/Voice/Numbers/*"),
];

#[rustfmt::skip]
const VERIFICATIONS: &[Operation] = &[
    read("verify.attempts.list", "/v2/Attempts"),
    read("verify.attempts.fetch", "/v2/Attempts/*"),
    read("verify.services.list", "/v2/Services"),
    read("verify.services.fetch", "/v2/Services/*"),
    free("POST", "verify.services.create", "/v2/Services"),
    free("POST", "verify.services.update", "/v2/Services/*"),
    free("DELETE", "verify.services.delete", "/v2/Services/*"),
    read("verify.verifications.fetch", "/v2/Services/*/Verifications/*"),
    send("verify.verifications.create", "/v2/Services/*/Verifications", ALL),
    // A verification that succeeds is billed, whoever says that it did.
    send("verify.verifications.update", "/v2/Services/*/Verifications/*", ALL),
    send("verify.verification_checks.create", "/v2/Services/*/VerificationCheck", ALL),
];

const BY_HOST: [(&str, &[Operation]); 5] = [
    (API, CORE),
    (LOOKUPS, LOOKUP),
    (MESSAGING, MESSAGING_SERVICES),
    (PRICING, PRICES),
    (VERIFY, VERIFICATIONS),
];

static OPERATIONS: LazyLock<Vec<Operation>> = LazyLock::new(|| {
    let all = BY_HOST.iter().flat_map(|(_, operations)| operations.iter());
    all.copied().collect()
});

/// All operations that a policy can name.
pub(super) fn operations() -> &'static [Operation] {
    &OPERATIONS
}

static ROUTES: LazyLock<Vec<(&str, Routes)>> = LazyLock::new(|| {
    let of_host = |(host, operations): (&'static str, &'static [Operation])| {
        let id_in: IdIn = if host == API { core_id } else { plain_id };
        (host, Routes::new(METHODS, id_in, operations))
    };
    BY_HOST.into_iter().map(of_host).collect()
});

/// The operation that a host, a method and a path name, and the ids in the path; see [`Routes::find`].
pub(super) fn route(
    host: &str,
    method: &str,
    segments: &[Cow<'_, str>],
) -> Option<(&'static Operation, Vec<String>)> {
    let (_, routes) = ROUTES.iter().find(|(served, _)| *served == host)?;
    routes.find(method, segments)
}

/// The core API's paths end in `.json`, behind an id as well.
fn core_id(segment: &str, is_last: bool) -> Option<&str> {
    if is_last {
        plain_id(segment.strip_suffix(".json")?, is_last)
    } else {
        plain_id(segment, is_last)
    }
}

fn plain_id(segment: &str, _is_last: bool) -> Option<&str> {
    is_id(segment).then_some(segment)
}

/// A SID (two capital letters and 32 hexadecimal digits), a country (`US`), or a phone number (`+` and digits).
fn is_id(text: &str) -> bool {
    let kind = text
        .get(..2)
        .filter(|kind| kind.bytes().all(|b| b.is_ascii_uppercase()));
    let digits = text.strip_prefix('+').unwrap_or(text);
    kind.is_some_and(|kind| text.len() == 2 || is_sid(text, kind))
        || ((1..=20).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vendors::table::tests::{all_route_to_themselves, named};

    const SID: &str = "AC0123456789abcdef0123456789abcdef";

    #[test]
    fn every_operation_routes_to_itself() {
        for (host, operations) in BY_HOST {
            let suffix = if host == API { ".json" } else { "" };
            all_route_to_themselves(operations, SID, suffix, &|method, segments| {
                route(host, method, segments)
            });
        }
    }

    #[test]
    fn lesson_13_unmatched_route_is_unknown() {
        let account = format!("/2010-04-01/Accounts/{SID}");
        for (host, method, path) in [
            (API, "POST", format!("{account}/Messages")),
            (API, "POST", format!("{account}/messages.json")),
            (API, "POST", format!("{account}/Messages.xml")),
            (API, "POST", format!("{account}/Messages.json.json")),
            (API, "POST", format!("{account}.json/Messages.json")),
            (API, "POST", format!("{account}/Keys.json")),
            (API, "POST", "/2010-04-01/Accounts.json".to_owned()),
            (API, "POST", "/2010-04-01/Accounts/AC1/Messages.json".to_owned()),
            (API, "GET", format!("{account}/Messages/{SID}")),
            (API, "GET", format!("{account}.json")),
            (API, "DELETE", format!("{account}/Messages.json")),
            (API, "POST", "/v2/Services".to_owned()),
            (VERIFY, "POST", format!("{account}/Messages.json")),
            (VERIFY, "POST", format!("/v2/Services/{SID}/Verifications.json")),
            (PRICING, "GET", "/v1/Messaging/Countries/USA".to_owned()),
        ] {
            let at_host = |method: &str, segments: &[Cow<'_, str>]| route(host, method, segments);
            assert_eq!(
                named(&at_host, method, &path).0,
                "unknown",
                "{method} {host}{path}"
            );
        }
        assert!(route(API, "PUT", &[Cow::Borrowed("2010-04-01")]).is_none());
    }
}
