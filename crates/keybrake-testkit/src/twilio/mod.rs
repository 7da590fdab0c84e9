//! A simulator of Twilio: messages, calls and verifications with object state, and a journal of what was really sent.
//! Nothing has an idempotency key, so a request that arrives twice sends twice, as at Twilio.

mod error;
mod resources;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::objects::Objects;
use crate::stripe::Credential;
use crate::vendors::{Answer, Api, Desk, SimulatedVendor};

/// The account that nobody has: what is done in its name is a simulation.
pub const TEST_ACCOUNT: &str = "AC00000000000000000000000000000000";
/// The auth token that the banner suggests; any that starts with `test_` works, with any account.
pub const TEST_TOKEN: &str = "test_simulator";
/// Account and token as Keybrake takes a Twilio secret.
pub const TEST_SECRET: &str = "AC00000000000000000000000000000000:test_simulator";

/// The state of the simulated Twilio, all accounts.
#[derive(Debug, Default)]
pub(crate) struct Twilio {
    /// By SID.
    objects: Objects,
}

impl Api for Twilio {
    fn vendor(&self) -> SimulatedVendor {
        SimulatedVendor::Twilio
    }

    fn credential(&self, authorization: Option<&str>) -> Credential {
        let Some(value) = authorization else {
            return Credential::None;
        };
        let decoded = value
            .split_once(' ')
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"))
            .and_then(|(_, rest)| STANDARD.decode(rest.trim()).ok())
            .and_then(|bytes| String::from_utf8(bytes).ok());
        let Some((user, password)) = decoded.as_deref().and_then(|pair| pair.split_once(':')) else {
            return if value.contains("vault_key_") {
                Credential::VaultKey
            } else {
                Credential::Other
            };
        };
        if user.starts_with("vault_key_") || password.starts_with("vault_key_") {
            Credential::VaultKey
        } else if password.starts_with("test_") && (user.starts_with("AC") || user.starts_with("SK")) {
            Credential::BasicTestKey
        } else {
            Credential::LiveKey
        }
    }

    fn account<'a>(&self, path: &'a str) -> &'a str {
        let mut segments = path
            .split('/')
            .skip_while(|segment| *segment != "Accounts")
            .skip(1);
        let named = segments.next().unwrap_or_default();
        named.strip_suffix(".json").unwrap_or(named)
    }

    fn keeps_key_ms(&self, _method: &str, _path: &str) -> Option<i64> {
        None
    }

    fn run(&mut self, desk: &mut Desk<'_>) -> Result<Answer, Answer> {
        self.route(desk)
    }

    fn failure(&self, status: u16, _key_differs: bool) -> Value {
        error::of_status(status)
    }

    fn request_id_header(&self) -> &'static str {
        "twilio-request-id"
    }

    fn objects(&self) -> &Objects {
        &self.objects
    }

    fn objects_mut(&mut self) -> &mut Objects {
        &mut self.objects
    }

    /// A message or a call to a status of its own; one that reached the network gets its price.
    fn advance(&mut self, id: &str, to: &str) -> Result<Value, String> {
        const STATUSES: [&str; 14] = [
            "queued",
            "sending",
            "sent",
            "failed",
            "delivered",
            "undelivered",
            "read",
            "canceled",
            "ringing",
            "in-progress",
            "completed",
            "busy",
            "no-answer",
            "accepted",
        ];
        let words = (&STATUSES[..], "a status of a message or a call");
        let members = self.objects.advance(id, "status", to, words)?;
        let price = match to {
            "sent" | "delivered" | "undelivered" | "read" => Some("-0.00830"),
            "failed" => Some("-0.00100"),
            "completed" => Some("-0.01400"),
            _ => None,
        };
        if let Some(price) = price {
            members.insert("price".to_owned(), json!(price));
            members.insert("price_unit".to_owned(), json!("USD"));
        }
        Ok(Value::Object(members.clone()))
    }
}
