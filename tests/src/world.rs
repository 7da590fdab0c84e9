//! What the cross-crate tests share: a simulator, a ledger, a key, and calls that go through the whole engine.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a failed unwrap is a failed test"
)]

use std::sync::Arc;
use std::time::Duration;

use keybrake::brake::{CallContext, CallRecord, KeyOrigin, Limits};
use keybrake::client::Answer;
use keybrake::clock::{Clock, ManualClock, SystemClock};
use keybrake::facade::{IssuedKey, Keybrake};
use keybrake::ledger::HoldFilter;
use keybrake::policy::{Code, Denial, Policy};
use keybrake::request::Call;
use keybrake::secret::Secret;
use keybrake::vendors::Reply;
use keybrake_testkit::stripe::{Fault, FaultKind, MovementKind, RequestLog, Simulator, SimulatorOptions};
use serde_json::{Value, json};

/// A time zone in which it is about noon, so that a test crosses midnight only when it means to. (The engine's clock
/// has to be near the simulator's, which is the machine's.)
pub fn noon_zone() -> String {
    let hour = SystemClock.now_ms().rem_euclid(86_400_000) / 3_600_000;
    match 12 - hour {
        0 => "Etc/GMT".to_owned(),
        ahead if ahead > 0 => format!("Etc/GMT-{ahead}"),
        behind => format!("Etc/GMT+{}", -behind),
    }
}

/// A simulator, an engine on a ledger, and one key.
#[derive(Debug)]
pub struct World {
    /// The vendor; its journal is the truth.
    pub stripe: Simulator,
    /// The engine.
    pub kb: Keybrake,
    /// The clock of engine and ledger.
    pub clock: Arc<ManualClock>,
    /// The key that [`World::post`] uses.
    pub key: IssuedKey,
}

/// How a call ended, flat enough to compare.
#[derive(Debug)]
pub struct Ended {
    /// The HTTP status that the SDK sees; 0 when there was no reply.
    pub status: u16,
    /// The reply's JSON.
    pub json: Value,
    /// The denial, if it was refused.
    pub denial: Option<Denial>,
    /// The call as the audit has it.
    pub record: CallRecord,
}

impl World {
    /// A world on the ledger in memory with a key under this policy, bound to the run `run_1`.
    pub async fn new(policy: Value) -> Self {
        Self::on("memory:", policy).await
    }

    /// A world on this ledger.
    pub async fn on(ledger: &str, policy: Value) -> Self {
        Self::start(ledger, SystemClock.now_ms(), policy, limits()).await
    }

    /// A world in memory whose engine has these limits.
    pub async fn limited(limits: Limits, policy: Value) -> Self {
        Self::start("memory:", SystemClock.now_ms(), policy, limits).await
    }

    /// A world in memory that begins at a moment, Unix milliseconds. The vendor's clock stays the machine's, so that
    /// absence proves nothing in it.
    pub async fn at(now_ms: i64, policy: Value) -> Self {
        Self::start("memory:", now_ms, policy, limits()).await
    }

    /// A world in memory whose simulator starts so.
    pub async fn with(options: SimulatorOptions, policy: Value) -> Self {
        let stripe = Simulator::start(options).unwrap();
        Self::before(stripe, "memory:", SystemClock.now_ms(), policy, limits()).await
    }

    async fn start(ledger: &str, now_ms: i64, policy: Value, limits: Limits) -> Self {
        let stripe = Simulator::start(SimulatorOptions::default()).unwrap();
        Self::before(stripe, ledger, now_ms, policy, limits).await
    }

    async fn before(stripe: Simulator, ledger: &str, now_ms: i64, policy: Value, limits: Limits) -> Self {
        let clock = Arc::new(ManualClock::at(now_ms));
        let kb = Keybrake::builder()
            .ledger(ledger)
            .secret("stripe", Secret::value("sk_test_simulator"))
            .base_url("stripe", stripe.url())
            .clock(clock.clone())
            .limits(limits)
            .build()
            .await
            .unwrap();
        let key = kb
            .issue(Policy::from_value(&at_noon(policy)).unwrap())
            .run("run_1")
            .await
            .unwrap();
        Self {
            stripe,
            kb,
            clock,
            key,
        }
    }

    /// A second key under a policy.
    pub async fn issue(&self, policy: Value, run: &str) -> IssuedKey {
        self.kb
            .issue(Policy::from_value(&at_noon(policy)).unwrap())
            .run(run)
            .await
            .unwrap()
    }

    /// A POST with form fields, as an SDK makes it: with a random key of its own.
    pub async fn post(&self, path: &str, form: &str) -> Ended {
        self.call(&self.key, post(path, form), generated(None)).await
    }

    /// A POST as a named step.
    pub async fn step(&self, step: &str, path: &str, form: &str) -> Ended {
        self.step_by(&self.key, step, path, form).await
    }

    /// The same with another key.
    pub async fn step_by(&self, key: &IssuedKey, step: &str, path: &str, form: &str) -> Ended {
        self.call(key, post(path, form), generated(Some(step))).await
    }

    /// A GET.
    pub async fn get(&self, path: &str) -> Ended {
        let call = Call {
            method: "GET".to_owned(),
            url: format!("https://api.stripe.com{path}"),
            headers: Vec::new(),
            body: bytes::Bytes::new(),
        };
        self.call(&self.key, call, CallContext::default()).await
    }

    /// Any call with any key; the key's token is put where the SDK puts the API key.
    pub async fn call(&self, key: &IssuedKey, call: Call, context: CallContext) -> Ended {
        let call = signed(key, call);
        let answer = self.kb.shell().send(call, context, Duration::ZERO).await.unwrap();
        ended(answer)
    }

    /// The next `times` refunds meet this fault.
    pub fn fault_refunds(&self, kind: FaultKind, times: u64) {
        let fault = Fault::new(kind).on("POST", "/v1/refunds").times(times);
        self.stripe.fault(fault).unwrap();
    }

    /// The writes that arrived at the vendor.
    pub fn posts(&self) -> Vec<RequestLog> {
        let all = self.stripe.requests();
        all.into_iter()
            .filter(|request| request.method == "POST")
            .collect()
    }

    /// What the vendor says it refunded, in cents.
    pub fn refunded(&self) -> i64 {
        self.stripe.moved(MovementKind::Refund, "usd")
    }

    /// What the vendor says it charged since the start, in cents.
    pub fn charged(&self) -> i64 {
        self.stripe.moved(MovementKind::Charge, "usd")
    }

    /// Used and held of the key's first budget, in micro-USD or counts.
    pub async fn budget(&self) -> (i64, i64) {
        self.budget_of(&self.key.id).await
    }

    /// The same of another key.
    pub async fn budget_of(&self, key_id: &str) -> (i64, i64) {
        budget(&self.kb, key_id).await
    }

    /// The books agree with their own log, and say so.
    pub async fn verify(&self) {
        verify(&self.kb).await;
    }

    /// Passes every deadline, asks the vendor about every hold, and says how many stay open.
    pub async fn reconcile(&self) -> usize {
        self.clock.advance_ms(40_000);
        let found = self.kb.reconcile(HoldFilter::default(), |_, _| ()).await.unwrap();
        println!("{found:#?}");
        let open = self.kb.holds(HoldFilter::default()).await.unwrap();
        for hold in &open {
            assert!(hold.unknown_reason.is_some(), "a hold without a reason: {hold:?}");
        }
        open.len()
    }
}

impl Ended {
    /// The denial's code.
    pub fn code(&self) -> Option<Code> {
        self.denial.as_ref().map(|denial| denial.code)
    }

    /// Asserts a 2xx and answers the object's id.
    pub fn id(&self) -> String {
        assert!((200..300).contains(&self.status), "{self:?}");
        self.json
            .get("id")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    }
}

/// Used and held of a key's first budget for test money, in micro-USD or counts.
pub(crate) async fn budget(kb: &Keybrake, key_id: &str) -> (i64, i64) {
    let usage = kb.usage(key_id).await.unwrap();
    let view = usage
        .iter()
        .find(|budget| !budget.livemode)
        .map(|budget| &budget.view)
        .unwrap();
    (view.used, view.held)
}

/// The books agree with their own log, and say so.
pub(crate) async fn verify(kb: &Keybrake) {
    let report = kb.ledger().verify().await.unwrap();
    assert!(report.differences.is_empty() && report.chain_ok, "{report:?}");
}

/// A policy that allows refunds and reads up to so many dollars a day.
pub fn refunds(cap: i64) -> Value {
    json!({"vendor": "stripe", "label": "support", "daily_usd_cap": cap, "allowed_endpoints": ["refunds.create", "reads"]})
}

/// Requests that live for 20 seconds at most.
pub(crate) fn limits() -> Limits {
    Limits {
        request_ms: 20_000,
        ..Limits::default()
    }
}

/// The policy with its days cut in a zone where it is noon.
pub(crate) fn at_noon(mut policy: Value) -> Value {
    if let Some(fields) = policy.as_object_mut() {
        fields.entry("timezone").or_insert_with(|| noon_zone().into());
    }
    policy
}

/// A POST with form fields and a random key, as an SDK makes it.
pub fn post(path: &str, form: &str) -> Call {
    let generated = keybrake::token::random_base62(20).unwrap();
    Call {
        method: "POST".to_owned(),
        url: format!("https://api.stripe.com{path}"),
        headers: vec![
            (
                "Content-Type".to_owned(),
                "application/x-www-form-urlencoded".to_owned(),
            ),
            ("Idempotency-Key".to_owned(), generated),
        ],
        body: form.to_owned().into(),
    }
}

/// The call with a key's token where an SDK puts the API key.
pub fn signed(key: &IssuedKey, mut call: Call) -> Call {
    let bearer = format!("Bearer {}", key.token.expose());
    call.headers.push(("Authorization".to_owned(), bearer));
    call
}

/// The context of a step, or of none, whose idempotency key the SDK made up.
pub fn generated(step: Option<&str>) -> CallContext {
    CallContext {
        step: step.map(str::to_owned),
        key_origin: KeyOrigin::Generated,
        ..CallContext::default()
    }
}

/// A refund of a step, as a Stripe SDK asks for it.
pub async fn refund(kb: &Keybrake, key: &IssuedKey, step: &str, form: &str) -> Ended {
    let call = signed(key, post("/v1/refunds", form));
    let answer = kb.shell().send(call, generated(Some(step)), Duration::ZERO).await;
    ended(answer.unwrap())
}

/// Flattens an answer.
pub fn ended(answer: Answer) -> Ended {
    let parsed = |reply: &Reply| serde_json::from_slice(&reply.body).unwrap_or(json!(null));
    match answer {
        Answer::Reply { reply, record } => Ended {
            status: reply.status,
            json: parsed(&reply),
            denial: None,
            record,
        },
        Answer::Denied {
            denial,
            reply,
            record,
        } => Ended {
            status: reply.status,
            json: parsed(&reply),
            denial: Some(*denial),
            record,
        },
        Answer::Lost { record, .. } => Ended {
            status: 0,
            json: json!(null),
            denial: None,
            record,
        },
    }
}
