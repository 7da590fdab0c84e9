//! What the tests of Twilio and Resend share: the vendor's simulator, an engine, and calls as their SDKs make them.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use keybrake::brake::CallContext;
use keybrake::clock::{Clock as _, ManualClock, SystemClock};
use keybrake::facade::{IssuedKey, Keybrake};
use keybrake::policy::Policy;
use keybrake::request::Call;
use keybrake::secret::Secret;
use keybrake_testkit::stripe::{Simulator, SimulatorOptions};
use keybrake_testkit::{Sent, SimulatedVendor};
use serde_json::Value;

use crate::world::{Ended, at_noon, budget, ended, limits, verify};

/// The Twilio account that the tests' secret belongs to.
pub const ACCOUNT: &str = "AC0123456789abcdef0123456789abcdef";

/// What makes a call one of a kind.
#[derive(Clone, Copy, Debug)]
pub enum By<'a> {
    /// Nothing but its content.
    Content,
    /// The caller's own idempotency key.
    Key(&'a str),
    /// A step of the run.
    Step(&'a str),
}

/// A simulator of Twilio or Resend, an engine on a ledger in memory, and one key.
#[derive(Debug)]
pub struct Sender {
    /// The vendor; its journal of what was sent is the truth.
    pub vendor: Simulator,
    /// The engine.
    pub kb: Keybrake,
    /// The clock of engine and ledger.
    pub clock: Arc<ManualClock>,
    /// The key that the calls are made with, bound to the run `run_1`.
    pub key: IssuedKey,
}

impl Sender {
    /// One with a key under this policy.
    pub async fn new(which: SimulatedVendor, policy: Value) -> Self {
        let vendor = Simulator::start(SimulatorOptions {
            vendor: which,
            ..SimulatorOptions::default()
        })
        .unwrap();
        let secret = match which {
            SimulatedVendor::Twilio => format!("test:{ACCOUNT}:test_x"),
            other => other.test_secret().to_owned(),
        };
        let clock = Arc::new(ManualClock::at(SystemClock.now_ms()));
        let kb = Keybrake::builder()
            .ledger("memory:")
            .secret(which.name(), Secret::value(secret))
            .base_url(which.name(), vendor.url())
            .clock(clock.clone())
            .limits(limits())
            .build()
            .await
            .unwrap();
        let key = kb
            .issue(Policy::from_value(&at_noon(policy)).unwrap())
            .run("run_1")
            .await
            .unwrap();
        Self {
            vendor,
            kb,
            clock,
            key,
        }
    }

    /// A call of Twilio's as twilio-node makes it: the vault key is the auth token.
    pub async fn twilio(&self, method: &str, path: &str, form: &str, step: Option<&str>) -> Ended {
        let account = path
            .split('/')
            .find(|segment| segment.starts_with("AC"))
            .unwrap_or(ACCOUNT);
        let pair = STANDARD.encode(format!("{account}:{}", self.key.token.expose()));
        let mut headers = vec![("Authorization".to_owned(), format!("Basic {pair}"))];
        if method == "POST" {
            headers.push((
                "Content-Type".to_owned(),
                "application/x-www-form-urlencoded".to_owned(),
            ));
        }
        let call = Call {
            method: method.to_owned(),
            url: format!("https://api.twilio.com{path}"),
            headers,
            body: form.to_owned().into(),
        };
        self.call(call, step).await
    }

    /// A message to a number.
    pub async fn message(&self, to: &str, body: &str, step: Option<&str>) -> Ended {
        let form = format!("To=%2B{to}&From=%2B15557122661&Body={body}");
        let path = format!("/2010-04-01/Accounts/{ACCOUNT}/Messages.json");
        self.twilio("POST", &path, &form, step).await
    }

    /// A call of Resend's as its SDKs make it; `Value::Null` is no body.
    pub async fn resend(&self, method: &str, path: &str, body: &Value, by: By<'_>) -> Ended {
        let mut headers = vec![(
            "Authorization".to_owned(),
            format!("Bearer {}", self.key.token.expose()),
        )];
        let body = if *body == Value::Null {
            String::new()
        } else {
            headers.push(("Content-Type".to_owned(), "application/json".to_owned()));
            body.to_string()
        };
        let step = match by {
            By::Content => None,
            By::Step(step) => Some(step),
            By::Key(key) => {
                headers.push(("Idempotency-Key".to_owned(), key.to_owned()));
                None
            }
        };
        let call = Call {
            method: method.to_owned(),
            url: format!("https://api.resend.com{path}"),
            headers,
            body: body.into(),
        };
        self.call(call, step).await
    }

    async fn call(&self, call: Call, step: Option<&str>) -> Ended {
        let context = CallContext {
            step: step.map(str::to_owned),
            ..CallContext::default()
        };
        ended(self.kb.shell().send(call, context, Duration::ZERO).await.unwrap())
    }

    /// What the vendor says it sent.
    pub fn sent(&self) -> Vec<Sent> {
        self.vendor.sent()
    }

    /// Used and held of the key's first budget, in micro-USD or counts.
    pub async fn budget(&self) -> (i64, i64) {
        budget(&self.kb, &self.key.id).await
    }

    /// The books agree with their own log, and say so.
    pub async fn verify(&self) {
        verify(&self.kb).await;
    }
}
