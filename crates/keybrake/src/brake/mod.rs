//! The engine. `Brake` decides; it owns no socket to a vendor and awaits nothing but the ledger.
//!
//! [`Brake::authorize`] answers with a [`Permit`], a denial, a replay, or the one read that has to come first;
//! a shell sends what the permit holds and tells [`Brake::settle`] what came back. A permit that is dropped
//! without an answer (cancelled task, panic, killed process) stays held: that is the rule the rest leans on.

mod allowed;
mod asked;
mod chance;
mod charges;
mod check;
mod credentials;
mod identity;
mod job;
mod judge;
mod keys;
mod lookups;
mod permit;
mod price;
mod recorder;
mod replay;
mod settle;

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

#[doc(hidden)]
pub use chance::Chance;
pub use credentials::Credentials;
pub use permit::{CallRecord, Permit, Prepared, SendEnd, Settled};

use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::idempotency::Keys;
use crate::journal::Journal;
use crate::ledger::{Ask, CallFacts, Ledger, ReserveAnswer, ReserveRequest};
use crate::policy::{Code, Denial};
use crate::request::{Call, Refusal};
use crate::vendors::{Lookup, Reply};
use asked::Asked;
use job::Job;
use judge::Stage;
pub(crate) use keys::CachedKey;
use keys::KeyCache;
use lookups::{Flight, Lookups};
use recorder::Recorder;
pub(crate) use recorder::UnderWay;

/// What a shell knows of a call besides its bytes: attribution and where its idempotency key came from. Grants
/// nothing; permission travels with the token alone.
#[derive(Clone, Debug, Default)]
pub struct CallContext {
    /// The run, when the key is not bound to one. A bound run cannot be changed.
    pub run: Option<String>,
    /// A named step of the run: the same step and fields are the same spend.
    pub step: Option<String>,
    /// An item of the run: like a step, one for each thing worked on.
    pub item: Option<String>,
    /// Who made the idempotency key that is on the call.
    pub key_origin: KeyOrigin,
    /// For the audit's `metadata` column, such as `tool_call_id`. No bodies, no secrets, no prompts.
    pub context: Map<String, Value>,
}

/// Who made the idempotency key that is on a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyOrigin {
    /// The caller: it identifies the spend and is forwarded unchanged.
    #[default]
    Caller,
    /// The SDK, at random: it identifies transport attempts only.
    Generated,
    /// Nobody can tell; the policy's `caller_keys` must say.
    Unknown,
}

/// Lookups that one key may begin in a second when nothing else is said.
const LOOKUPS_PER_SECOND: u32 = 10;

/// How long permits and calls live, and how much one key may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From the permit until its first byte must leave; 10 s.
    pub send_within_ms: i64,
    /// The longest life of a request once it is sent; 120 s.
    pub request_ms: i64,
    /// Most holds one key may have open; 10,000.
    pub max_open_holds: u32,
    /// Lookups that one key may begin in a second, in this process; a call that needs one more is refused. `None`: 10,
    /// and as many as it takes against a loopback simulator with a test-mode secret.
    pub lookups_per_second: Option<u32>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            send_within_ms: 10_000,
            request_ms: 120_000,
            max_open_holds: 10_000,
            lookups_per_second: None,
        }
    }
}

/// The engine's answer to a call.
#[derive(Debug)]
pub enum Decision {
    /// Send this, then settle.
    Permit(Box<Permit>),
    /// Refused; nothing may be sent.
    Denied(Box<Refused>),
    /// Done before: the recorded reply. Nothing may be sent.
    Replayed(Box<Replayed>),
    /// Send this read first and hand its reply to [`Brake::resume`].
    NeedsLookup(Box<Pending>),
}

/// A refusal, with the reply that the vendor's SDK understands.
#[derive(Debug)]
pub struct Refused {
    /// What was refused and why.
    pub denial: Denial,
    /// The denial in the vendor's error shape.
    pub reply: Reply,
    /// The call as the audit has it.
    pub record: CallRecord,
}

/// An earlier call's reply.
#[derive(Debug)]
pub struct Replayed {
    /// The recorded reply, marked `X-Keybrake-Replayed: true`.
    pub reply: Reply,
    /// The call as the audit has it.
    pub record: CallRecord,
}

/// A decision that waits for one read of the vendor.
#[derive(Debug)]
pub struct Pending {
    job: Job,
    lookup: Lookup,
    purpose: Purpose,
    flight: Arc<Flight>,
}

/// What a lookup is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// Amount, currency and owner.
    Amount,
    /// The customer alone, for policies and budgets that need it.
    Owner,
}

/// Whether a call would pass, by policy and budgets as they stand. Nothing is reserved or sent.
pub type Check = std::result::Result<Option<crate::money::Usd>, Denial>;

/// The engine: one for each process and ledger.
#[derive(Debug)]
pub struct Brake {
    ledger: Arc<dyn Ledger>,
    clock: Arc<dyn Clock>,
    keys: Keys,
    ledger_tag: String,
    cache: KeyCache,
    credentials: Credentials,
    limits: Limits,
    lookups: Lookups,
    journal: Option<Arc<Journal>>,
    recorder: Arc<Recorder>,
    chance: Arc<dyn Chance>,
}

impl Brake {
    /// An engine over a ledger, with the secrets of this process. What the ledger cannot take is kept where the
    /// environment says (`KEYBRAKE_JOURNAL_DIR`, else the user's data directory).
    ///
    /// # Errors
    /// `LedgerUnavailable` when the ledger does not answer; `Config` when that directory is not this user's alone.
    pub async fn new(
        ledger: Arc<dyn Ledger>,
        clock: Arc<dyn Clock>,
        credentials: Credentials,
        limits: Limits,
    ) -> Result<Self> {
        let journal_dir = crate::config::journal_dir();
        Self::with_journal(ledger, clock, credentials, limits, journal_dir.as_deref()).await
    }

    /// The same with the directory of the journal named. Delivers what waits there for this ledger.
    ///
    /// # Errors
    /// As [`Brake::new`].
    pub async fn with_journal(
        ledger: Arc<dyn Ledger>,
        clock: Arc<dyn Clock>,
        credentials: Credentials,
        limits: Limits,
        journal_dir: Option<&Path>,
    ) -> Result<Self> {
        let info = ledger.info().await?;
        let keys = Keys::new(ledger.secret())?;
        let journal = match (journal_dir, ledger.namespace()) {
            (Some(dir), Some(namespace)) => {
                let journal = Journal::at(dir, &info.id, namespace)?;
                journal.looked(clock.boot_ms());
                if let Err(error) = journal.deliver(&*ledger).await {
                    tracing::warn!(%error, "waiting outcomes cannot be delivered");
                }
                Some(Arc::new(journal))
            }
            _ => None,
        };
        let recorder = Recorder::new(Arc::clone(&ledger), journal.clone(), Arc::clone(&clock));
        Ok(Self {
            ledger,
            clock,
            recorder: Arc::new(recorder),
            keys,
            ledger_tag: ledger_tag(&info.id),
            cache: KeyCache::default(),
            credentials,
            limits,
            lookups: Lookups::default(),
            journal,
            chance: Arc::new(chance::Machine),
        })
    }

    /// The same, with names and nonces from elsewhere: for the simulation.
    #[doc(hidden)]
    #[must_use]
    pub fn with_chance(mut self, chance: Arc<dyn Chance>) -> Self {
        self.chance = chance;
        self
    }

    fn chance(&self) -> &dyn Chance {
        self.chance.as_ref()
    }

    /// The ledger it decides by.
    pub fn ledger(&self) -> &Arc<dyn Ledger> {
        &self.ledger
    }

    /// Where outcomes wait that the ledger could not take; `None` when it needs none, or there is no directory for it.
    pub const fn journal(&self) -> Option<&Arc<Journal>> {
        self.journal.as_ref()
    }

    /// The ledger answered: what waits for it may go.
    fn in_contact(&self) {
        if let Some(journal) = &self.journal {
            journal.contact(&self.ledger, self.clock.boot_ms());
        }
    }

    /// Counts a task that records an outcome, until it is dropped; [`idle`](Self::idle) waits for it.
    pub(crate) fn under_way(&self) -> UnderWay {
        self.recorder.under_way()
    }

    /// Waits until the outcomes are recorded that were known when their callers went away. Each task for it ends by
    /// itself, with the ledger's own time limits.
    pub async fn idle(&self) {
        self.recorder.idle().await;
    }

    /// Its clock.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// The secrets and base URLs of this process.
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// The keyed hashes of the ledger.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The four characters that name this ledger inside its tokens.
    pub fn ledger_tag(&self) -> &str {
        &self.ledger_tag
    }

    /// How long permits and calls live.
    pub const fn limits(&self) -> Limits {
        self.limits
    }

    /// Judges a call, and reserves what it can cost. Answers; never sends.
    ///
    /// # Errors
    /// `Config` when the vendor's secret is missing or a live secret would go to an overridden base URL;
    /// `LedgerUnavailable` never: that is the denial `ledger_unavailable`.
    pub async fn authorize(&self, call: Call, context: CallContext) -> Result<Decision> {
        let job = Job::new(self.clock.as_ref(), self.chance(), call, context);
        self.decide(job).await
    }

    /// Continues a decision with the reply to its lookup.
    ///
    /// # Errors
    /// As [`Brake::authorize`].
    pub async fn resume(&self, pending: Pending, reply: Reply) -> Result<Decision> {
        let Pending { mut job, purpose, .. } = pending;
        job.lookups = job.lookups.saturating_add(1);
        job.answer(purpose, &reply);
        self.decide(job).await
    }

    /// Refuses a decision whose lookup could not be sent or answered.
    ///
    /// # Errors
    /// As [`Brake::authorize`].
    pub async fn resume_failed(&self, pending: Pending, reason: &str) -> Result<Decision> {
        let Pending { mut job, .. } = pending;
        job.lookup_failed(reason);
        self.decide(job).await
    }

    async fn decide(&self, mut job: Job) -> Result<Decision> {
        // Each turn either answers or loads something that was out of date; more than a few means a defect.
        for _ in 0..6 {
            let ask = self.judge(&mut job).await?;
            let (request, lookup) = match ask {
                Stage::Ask { ask, identity } => (self.request(&job, ask, identity), None),
                Stage::Lookup {
                    lookup,
                    purpose,
                    identity,
                } => (self.request(&job, Ask::Lookup, identity), Some((lookup, purpose))),
                Stage::Unreachable(denial) => return Ok(self.refused(&job, *denial)),
            };
            let asked_boot_ms = self.clock.boot_ms();
            let answer = Asked::new(&self.recorder, request).await;
            if answer.is_ok() {
                self.in_contact();
            }
            match answer {
                Ok(ReserveAnswer::Granted(grant)) => return self.permit(job, *grant, asked_boot_ms),
                Ok(ReserveAnswer::Denied(denial)) => return Ok(self.refused(&job, *denial)),
                Ok(ReserveAnswer::Replay(reservation)) => return Ok(self.replayed(&job, &reservation)),
                Ok(ReserveAnswer::NeedsAmount) => match lookup {
                    Some((lookup, purpose)) => match self.begin_lookup(&job, &lookup) {
                        Ok(flight) => {
                            return Ok(Decision::NeedsLookup(Box::new(Pending {
                                job,
                                lookup,
                                purpose,
                                flight,
                            })));
                        }
                        Err(refusal) => job.lookup_refusal = Some(refusal),
                    },
                    None => {
                        return Err(Error::new(
                            ErrorKind::Internal,
                            "the ledger asked for an amount it was given",
                        ));
                    }
                },
                Ok(ReserveAnswer::Stale) => job.forget_key(&self.cache),
                Ok(ReserveAnswer::WindowMoved { now_ms }) => job.now_ms = now_ms,
                Err(error) => match unavailable(&error) {
                    Some(denial) => return Ok(self.refused(&job, denial)),
                    None => return Err(error),
                },
            }
        }
        Err(Error::new(
            ErrorKind::LedgerUnavailable,
            "the ledger's answers kept changing; nothing was sent",
        ))
    }

    /// Takes part in a lookup, unless its key has begun too many of them in the last second.
    fn begin_lookup(&self, job: &Job, lookup: &Lookup) -> std::result::Result<Arc<Flight>, Refusal> {
        let key_id = job.key.as_ref().map_or("", |key| key.record.id.as_str());
        let vendor = job.vendor.map_or("", |vendor| vendor.name());
        let simulated = self.credentials.base_url(vendor).is_some() && !job.livemode;
        let unless_simulated = (!simulated).then_some(LOOKUPS_PER_SECOND);
        let per_second = self.limits.lookups_per_second.or(unless_simulated);
        let mut question = vec![vendor.to_owned(), lookup.path.clone()];
        question.extend(
            job.read_headers()
                .into_iter()
                .flat_map(|(name, value)| [name, value]),
        );
        self.lookups
            .enter(key_id, question.join("\n"), self.clock.boot_ms(), per_second)
            .ok_or_else(|| {
                let most = per_second.unwrap_or_default();
                Refusal::new(
                    Code::CostUnknown,
                    format!(
                        "this call needs a read of {vendor} before it can be decided, and this key has begun {most} of \
                         them in the last second, which is the most; nothing was sent: make calls more slowly"
                    ),
                )
            })
    }

    fn request(&self, job: &Job, ask: Ask, identity: Option<crate::ledger::IdentityAsk>) -> ReserveRequest {
        ReserveRequest {
            facts: Arc::new(job.facts()),
            identity: identity.map(Arc::new),
            ask,
            hold_for_ms: self.limits.send_within_ms.saturating_add(self.limits.request_ms),
            max_open_holds: self.limits.max_open_holds,
        }
    }

    /// A denial completed with what the job knows, in the shape of the vendor's SDK.
    fn refused(&self, job: &Job, mut denial: Denial) -> Decision {
        job.complete(&mut denial);
        let status = denial.code.http_status(job.cap_status());
        let vendor = job
            .vendor
            .unwrap_or_else(|| crate::vendors::fallback(&job.call.url));
        let reply = vendor.refusal(&denial, status, self.clock.now_ms());
        let record = CallRecord::denied(job, &denial, status);
        Decision::Denied(Box::new(Refused {
            denial,
            reply,
            record,
        }))
    }
}

/// The engine's lookup of a [`Pending`] decision: what to send before it can be made.
impl Pending {
    /// The read, with the real secret on it.
    ///
    /// # Errors
    /// `Config` when the secret is missing.
    pub fn prepared(&self, brake: &Brake) -> Result<Prepared> {
        self.job.prepare_lookup(brake, &self.lookup)
    }

    /// The reply to the read, or why there is none. `send` makes it, unless the same read of the same key is under way
    /// already: then its reply is waited for.
    ///
    /// # Errors
    /// What `send` answered.
    pub async fn read(
        &self,
        send: impl Future<Output = std::result::Result<Reply, String>>,
    ) -> std::result::Result<Reply, String> {
        self.flight.answer(send).await
    }
}

/// A ledger that cannot answer is a denial: nothing was sent. Everything else is a failure.
fn unavailable(error: &Error) -> Option<Denial> {
    match error.kind() {
        ErrorKind::LedgerUnavailable => Some(Denial::new(
            Code::LedgerUnavailable,
            format!("the ledger cannot answer, so nothing was sent: {error}"),
        )),
        ErrorKind::LedgerRecovering => Some(Denial::new(
            Code::LedgerRecovering,
            format!("the ledger is not open yet, so nothing was sent: {error}"),
        )),
        _ => None,
    }
}

/// Four base62 characters of a ledger's id.
fn ledger_tag(id: &str) -> String {
    let number = id.bytes().fold(0_u64, |sum, byte| {
        sum.wrapping_mul(257).wrapping_add(u64::from(byte))
    });
    crate::token::base62(number, 4)
}

/// The facts of a job that could not be tied to a key.
pub(crate) fn anonymous(call_id: &str, operation: String) -> CallFacts {
    CallFacts {
        call_id: call_id.to_owned(),
        operation,
        ..CallFacts::default()
    }
}
