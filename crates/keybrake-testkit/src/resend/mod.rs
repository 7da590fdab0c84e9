//! A simulator of Resend: e-mails, batches and broadcasts with object state, idempotency keys that are known for 24 hours,
//! and a journal of what was really sent.

mod emails;

use serde_json::Value;

use crate::objects::Objects;
use crate::stripe::Credential;
use crate::vendors::{Answer, Api, Desk, SimulatedVendor};

/// The API key that the banner suggests; any that starts with `re_test_` works.
pub const TEST_SECRET: &str = "re_test_simulator";

const KEY_KEPT_MS: i64 = 24 * 3_600_000;

/// The state of the simulated Resend.
#[derive(Debug, Default)]
pub(crate) struct Resend {
    objects: Objects,
}

impl Api for Resend {
    fn vendor(&self) -> SimulatedVendor {
        SimulatedVendor::Resend
    }

    fn credential(&self, authorization: Option<&str>) -> Credential {
        let Some(value) = authorization else {
            return Credential::None;
        };
        match value.split_once(' ') {
            Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") => match key.trim() {
                key if key.starts_with("re_test_") => Credential::BearerTestKey,
                key if key.starts_with("re_") => Credential::LiveKey,
                key if key.starts_with("vault_key_") => Credential::VaultKey,
                _ => Credential::Other,
            },
            _ => Credential::Other,
        }
    }

    fn account<'a>(&self, _path: &'a str) -> &'a str {
        ""
    }

    fn keeps_key_ms(&self, method: &str, path: &str) -> Option<i64> {
        (method == "POST" && matches!(path, "/emails" | "/emails/batch")).then_some(KEY_KEPT_MS)
    }

    fn run(&mut self, desk: &mut Desk<'_>) -> Result<Answer, Answer> {
        self.route(desk)
    }

    fn failure(&self, status: u16, key_differs: bool) -> Value {
        let (name, message) = match (status, key_differs) {
            (401, _) => ("missing_api_key", "Missing API key in the authorization header."),
            (409, true) => (
                "invalid_idempotent_request",
                "Same idempotency key used with a different request payload.",
            ),
            (409, false) => (
                "concurrent_idempotent_requests",
                "Same idempotency key used while original request is still in progress.",
            ),
            (429, _) => (
                "rate_limit_exceeded",
                "Too many requests. Please limit the number of requests per second.",
            ),
            (500.., _) => ("application_error", "An unexpected error occurred."),
            _ => ("validation_error", "The simulator was asked for this answer."),
        };
        emails::body(status, name, message)
    }

    fn request_id_header(&self) -> &'static str {
        "x-request-id"
    }

    fn objects(&self) -> &Objects {
        &self.objects
    }

    fn objects_mut(&mut self) -> &mut Objects {
        &mut self.objects
    }

    /// An e-mail to a `last_event` of its own.
    fn advance(&mut self, id: &str, to: &str) -> Result<Value, String> {
        const EVENTS: [&str; 8] = [
            "queued",
            "scheduled",
            "sent",
            "delivered",
            "bounced",
            "complained",
            "opened",
            "canceled",
        ];
        let words = (&EVENTS[..], "an event of an e-mail");
        let members = self.objects.advance(id, "last_event", to, words)?;
        Ok(Value::Object(members.clone()))
    }
}
