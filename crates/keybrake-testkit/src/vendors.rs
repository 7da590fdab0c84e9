//! The vendors that can be simulated, and what those besides Stripe have in common: they send, and a journal says what
//! was really sent.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::objects::Objects;
use crate::stripe::Credential;

/// Whose API a simulator serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SimulatedVendor {
    /// Stripe.
    #[default]
    Stripe,
    /// Twilio.
    Twilio,
    /// Resend.
    Resend,
}

impl SimulatedVendor {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Stripe, Self::Twilio, Self::Resend];

    /// Its name in policies, such as `twilio`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stripe => "stripe",
            Self::Twilio => "twilio",
            Self::Resend => "resend",
        }
    }

    /// The secret that its simulator's banner suggests, as Keybrake takes it.
    pub const fn test_secret(self) -> &'static str {
        match self {
            Self::Stripe => crate::stripe::TEST_SECRET,
            Self::Twilio => crate::twilio::TEST_SECRET,
            Self::Resend => crate::resend::TEST_SECRET,
        }
    }

    /// The variables that a program needs for it, and their values.
    pub fn environment(self, url: &str) -> Vec<(&'static str, String)> {
        match self {
            Self::Stripe => vec![
                ("KEYBRAKE_BASE_URL_STRIPE", url.to_owned()),
                ("STRIPE_SECRET_KEY", crate::stripe::TEST_SECRET.to_owned()),
            ],
            Self::Twilio => vec![
                ("KEYBRAKE_BASE_URL_TWILIO", url.to_owned()),
                ("TWILIO_ACCOUNT_SID", crate::twilio::TEST_ACCOUNT.to_owned()),
                ("TWILIO_AUTH_TOKEN", crate::twilio::TEST_TOKEN.to_owned()),
            ],
            Self::Resend => vec![
                ("KEYBRAKE_BASE_URL_RESEND", url.to_owned()),
                ("RESEND_API_KEY", crate::resend::TEST_SECRET.to_owned()),
            ],
        }
    }

    /// What it simulates besides Stripe.
    pub(crate) fn api(self) -> Option<Box<dyn Api>> {
        match self {
            Self::Stripe => None,
            Self::Twilio => Some(Box::new(crate::twilio::Twilio::default())),
            Self::Resend => Some(Box::new(crate::resend::Resend::default())),
        }
    }
}

impl fmt::Display for SimulatedVendor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stripe => "Stripe",
            Self::Twilio => "Twilio",
            Self::Resend => "Resend",
        })
    }
}

impl FromStr for SimulatedVendor {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|vendor| vendor.name() == name);
        found.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("there is no simulator of {name:?}; there is {names}")
        })
    }
}

/// What was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SentKind {
    /// A text or picture message.
    Message,
    /// A phone call.
    Call,
    /// A code to verify someone.
    Verification,
    /// An e-mail; one of a batch too.
    Email,
    /// An e-mail to everyone in a segment.
    Broadcast,
}

/// One row of the journal of what was sent: the truth that end-to-end tests compare with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// Position from 1, without gaps.
    pub seq: u64,
    /// The simulator's time, Unix milliseconds.
    pub at_ms: i64,
    /// What was sent.
    pub kind: SentKind,
    /// Twilio's account; empty for Resend.
    pub account: String,
    /// The object that stands for it: `SM…`, `CA…`, `VE…`, or an e-mail's id.
    pub object: String,
    /// Everyone that it went to.
    pub to: Vec<String>,
    /// Who it came from, if the request says so.
    pub from: Option<String>,
    /// The idempotency key of the request, if it had one.
    pub idempotency_key: Option<String>,
    /// The request that caused it.
    pub request_id: String,
}

/// A request, as far as a vendor's API looks at it.
pub(crate) struct Asked<'a> {
    pub(crate) method: &'a str,
    /// Decoded and resolved, as a web server does before it routes.
    pub(crate) path: &'a str,
    pub(crate) query: &'a str,
    pub(crate) content_type: &'a str,
    /// Resend's `x-batch-validation`.
    pub(crate) validation: Option<&'a str>,
    pub(crate) body: &'a [u8],
    pub(crate) key: Option<&'a str>,
    pub(crate) account: &'a str,
    pub(crate) request_id: &'a str,
    pub(crate) now_ms: i64,
}

/// Status and body of a reply; `Value::Null` for none.
pub(crate) type Answer = (u16, Value);

/// Where an endpoint writes what it does.
pub(crate) struct Desk<'a> {
    pub(crate) asked: &'a Asked<'a>,
    pub(crate) sent: &'a mut Vec<Sent>,
    /// 32 hexadecimal digits that never repeat.
    pub(crate) fresh: &'a mut dyn FnMut() -> String,
}

impl Desk<'_> {
    /// Writes a row of the journal.
    pub(crate) fn sent(&mut self, kind: SentKind, object: &str, to: Vec<String>, from: Option<String>) {
        let seq = u64::try_from(self.sent.len())
            .unwrap_or(u64::MAX)
            .saturating_add(1);
        self.sent.push(Sent {
            seq,
            at_ms: self.asked.now_ms,
            kind,
            account: self.asked.account.to_owned(),
            object: object.to_owned(),
            to,
            from,
            idempotency_key: self.asked.key.map(str::to_owned),
            request_id: self.asked.request_id.to_owned(),
        });
    }
}

/// A vendor's API behind the simulator's server.
pub(crate) trait Api: fmt::Debug + Send {
    /// Which one.
    fn vendor(&self) -> SimulatedVendor;

    /// What kind of credential a request brought.
    fn credential(&self, authorization: Option<&str>) -> Credential;

    /// The account that a path names; empty where there are none.
    fn account<'a>(&self, path: &'a str) -> &'a str;

    /// How long an idempotency key of this request is known, in milliseconds; `None` when it is not looked at.
    fn keeps_key_ms(&self, method: &str, path: &str) -> Option<i64>;

    /// Runs a request. An `Err` did nothing and is not kept under a key.
    fn run(&mut self, desk: &mut Desk<'_>) -> Result<Answer, Answer>;

    /// The body of an error that is the server's, not an endpoint's: 401, 409 (a key in flight, or another body with
    /// `key_differs`), 429, 500 and the like.
    fn failure(&self, status: u16, key_differs: bool) -> Value;

    /// The response header that carries the request's id.
    fn request_id_header(&self) -> &'static str;

    /// Everything that was made.
    fn objects(&self) -> &Objects;

    /// The same, to forget it.
    fn objects_mut(&mut self) -> &mut Objects;

    /// Moves an object on, as networks and recipients do. `Err` says why not.
    fn advance(&mut self, id: &str, to: &str) -> Result<Value, String>;
}

/// A query or form, read as lenient servers do: in order, names and values decoded.
pub(crate) fn pairs(text: &str) -> Vec<(String, String)> {
    let decode = |part: &str| {
        let mut out = Vec::with_capacity(part.len());
        let mut bytes = part.bytes();
        while let Some(byte) = bytes.next() {
            out.push(match byte {
                b'+' => b' ',
                b'%' => {
                    let digits: String = bytes.by_ref().take(2).map(char::from).collect();
                    u8::from_str_radix(&digits, 16).unwrap_or(b'%')
                }
                other => other,
            });
        }
        String::from_utf8_lossy(&out).into_owned()
    };
    let pair = |raw: &str| {
        let (name, value) = raw.split_once('=').unwrap_or((raw, ""));
        (decode(name), decode(value))
    };
    text.split('&').filter(|raw| !raw.is_empty()).map(pair).collect()
}
