//! A simulator of Twilio: messages, calls and verifications with object state, and a journal of what was really sent.
//! Nothing has an idempotency key, so a request that arrives twice sends twice, as at Twilio.

mod error;
mod resources;

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

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
    /// By SID, in the order in which they were made.
    objects: BTreeMap<String, Object>,
    made: u64,
}

#[derive(Clone, Debug)]
struct Object {
    account: String,
    order: u64,
    value: Value,
}

impl Twilio {
    fn add(&mut self, account: &str, sid: &str, value: Value) -> Value {
        self.made = self.made.saturating_add(1);
        let object = Object {
            account: account.to_owned(),
            order: self.made,
            value: value.clone(),
        };
        self.objects.insert(sid.to_owned(), object);
        value
    }

    /// Objects of an account whose SIDs begin so, newest first.
    fn list(&self, account: &str, kinds: &[&str]) -> Vec<&Value> {
        let mut found: Vec<&Object> = self
            .objects
            .iter()
            .filter(|(sid, object)| {
                object.account == account && kinds.iter().any(|kind| sid.starts_with(kind))
            })
            .map(|(_, object)| object)
            .collect();
        found.sort_by_key(|object| std::cmp::Reverse(object.order));
        found.into_iter().map(|object| &object.value).collect()
    }

    fn of_account(&mut self, account: &str, sid: &str) -> Option<&mut Value> {
        let object = self.objects.get_mut(sid)?;
        (object.account == account).then_some(&mut object.value)
    }
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

    fn object(&self, id: &str) -> Option<Value> {
        Some(self.objects.get(id)?.value.clone())
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
        if !STATUSES.contains(&to) {
            return Err(format!("{to:?} is not a status of a message or a call"));
        }
        let object = self
            .objects
            .get_mut(id)
            .ok_or_else(|| format!("there is no {id}"))?;
        let fields = object.value.as_object_mut().ok_or("not an object")?;
        fields.insert("status".to_owned(), json!(to));
        let price = match to {
            "sent" | "delivered" | "undelivered" | "read" => Some("-0.00830"),
            "failed" => Some("-0.00100"),
            "completed" => Some("-0.01400"),
            _ => None,
        };
        if let Some(price) = price {
            fields.insert("price".to_owned(), json!(price));
            fields.insert("price_unit".to_owned(), json!("USD"));
        }
        Ok(object.value.clone())
    }

    fn clear(&mut self) {
        self.objects.clear();
    }
}
