//! The ledger's nouns. Amounts in a `usd` budget are micro-USD, in all others counts; times are Unix
//! milliseconds on the ledger's clock.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use super::reservation::{
    Charge, CostSource, ObjectState, Proof, ReplyFacts, Reservation, SettleAnswer, Settlement, State,
};
pub use super::shared::CounterName;
use crate::money::Usd;
pub use crate::policy::budget::{BudgetDef, BudgetId, BudgetRef, OnRepeat, Scope, Unit, Window, WindowKind};
use crate::policy::{BudgetView, Denial};

/// A keyed hash of a token (HMAC-SHA-256 under the ledger secret), in hex.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenHash(pub String);

/// The ledger's own secret: 32 random bytes that every process of the ledger shares. Never shown.
#[derive(Clone, zeroize::Zeroize, zeroize::ZeroizeOnDrop)]
pub struct LedgerSecret(pub(crate) [u8; 32]);

impl LedgerSecret {
    /// A new secret.
    ///
    /// # Errors
    /// `Config` when the operating system gives no random bytes.
    pub fn random() -> crate::error::Result<Self> {
        let mut bytes = [0_u8; 32];
        match getrandom::fill(&mut bytes) {
            Ok(()) => Ok(Self(bytes)),
            Err(e) => Err(
                crate::error::Error::config("the operating system gives no random bytes")
                    .because(e.to_string()),
            ),
        }
    }
}

impl LedgerSecret {
    /// What this secret is known by again where the ledger itself is not at hand, in hexadecimal digits. Says nothing of
    /// it.
    ///
    /// # Errors
    /// `Internal` only when a keyed hash is impossible.
    pub fn bound_to(&self, ledger_id: &str) -> crate::error::Result<String> {
        super::shared::keyed(&self.0, &[b"keybrake archive binding v1", ledger_id.as_bytes()])
    }
}

impl std::fmt::Debug for LedgerSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LedgerSecret(…)")
    }
}

/// A vault key as the ledger knows it. Holds no token and no vendor secret, only references.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// Public id, `vk_…`.
    pub id: String,
    /// Keyed hash of the token.
    pub token_hash: TokenHash,
    /// The policy document as issued, narrowing applied, as canonical JSON.
    pub policy_json: String,
    /// Policy documents of the ancestors, nearest first: every one of them must allow a call.
    pub ancestor_policies_json: Vec<String>,
    /// Bumped by everything that changes what a cached copy may do.
    pub version: u64,
    /// Who it spends as.
    pub lineage: String,
    /// Bound attribution.
    pub agent: Option<String>,
    /// Bound attribution.
    pub label: Option<String>,
    /// The run fixed at issue; the holder cannot change it.
    pub run: Option<String>,
    /// Bound groups.
    pub groups: Vec<String>,
    /// The parent key and its ancestors, nearest first.
    pub ancestors: Vec<String>,
    /// Every budget the key draws on: its own, its ancestors', its groups' as they were at issue.
    pub budgets: Vec<BudgetRef>,
    /// When it was issued.
    pub issued_at_ms: i64,
    /// When it ends.
    pub expires_at_ms: i64,
    /// When it was revoked.
    pub revoked_at_ms: Option<i64>,
    /// Free attribution from the policy.
    pub metadata: serde_json::Map<String, serde_json::Value>,
}

/// What issuing a key needs. `key.issued_at_ms` and an `expires_in_ms` are turned into ledger time.
#[derive(Clone, Debug)]
pub struct IssueKey {
    /// The record; `issued_at_ms` and `version` are set by the ledger, `budgets` completed with the groups'.
    pub key: KeyRecord,
    /// Lifetime from now; else `key.expires_at_ms` counts.
    pub expires_in_ms: Option<i64>,
    /// Groups that may be named without having a budget.
    pub attribution_only: Vec<String>,
    /// By whom and why.
    pub admin: AdminNote,
}

/// By whom and why something administrative was done; goes into the event.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminNote {
    /// By whom, such as an operating-system user.
    pub by: String,
    /// Why.
    pub reason: String,
}

/// What a stop covers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", content = "id", rename_all = "snake_case")]
pub enum StopScope {
    /// One run.
    Run(String),
    /// One agent.
    Agent(String),
    /// One label.
    Label(String),
    /// One group.
    Group(String),
    /// One vendor.
    Vendor(String),
    /// One key, by id.
    Key(String),
    /// Everything in the namespace.
    All,
}

/// A standing stop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// What it covers.
    pub scope: StopScope,
    /// Since when.
    pub since_ms: i64,
    /// By whom and why.
    pub admin: AdminNote,
    /// Whether calls in flight are aborted too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hard: bool,
}

/// How processes learn of a hard stop.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Told {
    /// The stop is not a hard one.
    #[default]
    NotAsked,
    /// So many were told at once: those that have calls in flight, or had some a few seconds ago.
    Processes(u32),
    /// They look themselves, several times a second while calls are in flight.
    TheyLook,
    /// They could not be told, and look themselves within two seconds. Why, without a password.
    Failed(String),
}

/// What a stop met when it was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopAnswer {
    /// The stop as it stands (the earlier one if there was one already).
    pub stop: Stop,
    /// Open keys that it refuses from the next call on.
    pub keys_refused: u32,
    /// Calls in flight that may still complete (at most 100).
    pub in_flight: Vec<Reservation>,
    /// Open runs that it does not touch.
    pub other_runs: u32,
    /// For a hard stop: how the processes that have these calls in flight learn of it.
    pub told: Told,
}

/// How two attempts are known to be one spend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdentityKind {
    /// The caller's own idempotency key.
    CallerKey,
    /// A named step of the run.
    Step,
    /// An item of the run.
    Item,
    /// The content hash of the declared identity fields.
    Content,
    /// A key that the SDK generated: transport attempts only (`idempotency: off`).
    Transport,
}

/// The identity of a call, as far as the ledger needs it. All hashes are hex.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityAsk {
    /// Hash of (lineage and run, vendor, account, livemode, connected account, operation, target, discriminator).
    pub id: String,
    /// What the discriminator is.
    pub kind: IdentityKind,
    /// Hash of the same tuple with the content in place of the discriminator: finds unknown twins.
    pub content_id: String,
    /// Declared identity fields by name, as given by the caller: same → join or replay, different → conflict.
    pub fields: Vec<(String, String)>,
    /// Hash of all bytes of the caller's request: a joined attempt may be sent only when it is the same.
    pub wire: String,
    /// The caller's own key, forwarded unchanged.
    pub caller_key: Option<String>,
    /// What a settled twin leads to.
    pub on_repeat: OnRepeat,
    /// How long the identity is remembered after its last change; at least until its hold ends.
    pub remember_ms: i64,
    /// Generations allowed; at least 1.
    pub max_generations: u32,
}

/// The bindings of a call that stops, audit and holds are looked up by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallFacts {
    /// The call's id, a `UUIDv7`; repeating a reserve with the same id answers the same.
    pub call_id: String,
    /// The key, if known.
    pub key_id: Option<String>,
    /// The key's version that the engine judged by.
    pub key_version: u64,
    /// The vendor, if recognised.
    pub vendor: Option<String>,
    /// The operation, if recognised, else the method and a masked path.
    pub operation: String,
    /// Live or test money.
    pub livemode: bool,
    /// Connected account, if any.
    pub account: Option<String>,
    /// Agent, from the key.
    pub agent: Option<String>,
    /// Label, from the key.
    pub label: Option<String>,
    /// Run, from the key or the context.
    pub run: Option<String>,
    /// Groups, from the key.
    pub groups: Vec<String>,
    /// The customer the call concerns, if known.
    pub customer: Option<String>,
    /// +1 collects money, −1 sends money out: the sign of the audit's cost.
    pub direction: i8,
    /// Whether the call can move money: decides whether its reservation is flushed before the permit.
    pub moves_money: bool,
    /// Headers of the request that a read about it has to repeat (account, context, API version). No secrets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub read_headers: Vec<(String, String)>,
    /// Context for the audit's `metadata` column (step, tool call id, …). No bodies, no secrets.
    pub context: serde_json::Map<String, serde_json::Value>,
}

/// What a call asks of one budget.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChargeAsk {
    /// The budget's definition id.
    pub budget: BudgetId,
    /// The concrete scope id for a `customer:*` budget.
    pub customer: Option<String>,
    /// The unit, to know whether the amount is money.
    pub unit: Unit,
    /// How much, in the unit. For `usd` it is the total that the object is raised to if `raise` is given.
    pub amount: i64,
    /// The key's own lower limit.
    pub limit: Option<i64>,
    /// Whether it refuses or only counts.
    pub enforce: bool,
    /// The window the client proposes; `None` for run and lifetime budgets and for rolling ones.
    pub window: Option<Window>,
}

/// A vendor object whose exposure the call raises to a new total.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectRaise {
    /// `vendor|livemode|account|object id`.
    pub object: String,
    /// The new total; only what it adds is reserved.
    pub to: Usd,
}

/// What the engine wants the ledger to do in this step.
#[derive(Clone, Debug)]
pub enum Ask {
    /// Reserve this amount in these budgets.
    Amount(AmountAsk),
    /// The amount is not known yet: look at everything up to the identity, and answer `NeedsAmount` if a
    /// lookup has to come first.
    Lookup,
    /// The engine found a reason to refuse. `early` ones (before the identity in the order of checks) yield to
    /// stops, revocation and expiry only; the others also to what the identity says.
    Refuse {
        /// The engine's denial.
        denial: Box<Denial>,
        /// Whether the check comes before the identity.
        early: bool,
    },
}

/// An amount to reserve.
#[derive(Clone, Debug, Default)]
pub struct AmountAsk {
    /// The upper bound of what the call can cost.
    pub usd: Usd,
    /// Raise an existing object's exposure instead of adding.
    pub raise: Option<ObjectRaise>,
    /// Every budget that counts it.
    pub charges: Vec<ChargeAsk>,
    /// Fields written into the request from a lookup; a join reuses them.
    pub pins: Vec<(String, String)>,
    /// What an observing policy would have refused; the call is admitted and the row says so.
    pub would_deny: Option<Box<Denial>>,
}

/// One decision to take.
#[derive(Clone, Debug)]
pub struct ReserveRequest {
    /// Who and what.
    pub facts: Arc<CallFacts>,
    /// What makes two attempts one spend; `None` for reads and for policies with `idempotency: off`.
    pub identity: Option<Arc<IdentityAsk>>,
    /// What to do.
    pub ask: Ask,
    /// From now until the hold counts as unknown.
    pub hold_for_ms: i64,
    /// Most holds this key may have open; beyond it the call is refused with `cap_held`.
    pub max_open_holds: u32,
}

/// The ledger's answer.
#[derive(Clone, Debug)]
pub enum ReserveAnswer {
    /// Go: a new hold, or an attempt of an existing one.
    Granted(Box<Grant>),
    /// Known to be done (2xx); the recorded reply if it is kept.
    Replay(Box<Reservation>),
    /// The identity is new: look the amount up and ask again.
    NeedsAmount,
    /// Refused; the event is written.
    Denied(Box<Denial>),
    /// The key's cached record, or the list of its groups' budgets, is out of date: load it and ask again.
    Stale,
    /// A proposed window does not contain the ledger's time: propose again for `now_ms`.
    WindowMoved {
        /// The ledger's time.
        now_ms: i64,
    },
}

/// Permission to send one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The reservation's call id: the caller's own, or that of the call it joined.
    pub call_id: String,
    /// Number of this attempt, from 1.
    pub attempt: u32,
    /// Whether an existing reservation was joined.
    pub joined: bool,
    /// Identity and generation that the vendor key is derived from.
    pub identity: Option<String>,
    /// The generation, from 1.
    pub generation: u32,
    /// The caller's own key to forward, if the reservation was made with one.
    pub caller_key: Option<String>,
    /// Pinned fields, from this request or from the reservation that was joined.
    pub pins: Vec<(String, String)>,
    /// The amount reserved by this reservation (what an object's raise added).
    pub amount: Usd,
    /// The ledger's time.
    pub now_ms: i64,
    /// When the hold counts as unknown.
    pub not_after_ms: i64,
    /// The tightest budget after this reservation.
    pub tightest: Option<BudgetView>,
    /// What an observing policy would have refused.
    pub would_deny: Option<Box<Denial>>,
}

/// Which holds to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HoldFilter {
    /// Only this run's.
    pub run: Option<String>,
    /// Only those in this state. `Provisional` lists calls that hold nothing any more, but whose cost may still
    /// change; they are listed only when they are asked for.
    pub state: Option<State>,
    /// At most this many; 0 means 1,000.
    pub limit: u32,
}

/// A budget and how it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetUsage {
    /// The definition.
    pub def: BudgetDef,
    /// Its id.
    pub id: BudgetId,
    /// Live or test money.
    pub livemode: bool,
    /// Cap, used, held, end of window.
    pub view: BudgetView,
}

/// Where a ledger is and how it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerInfo {
    /// URL without a password.
    pub url: String,
    /// Random id of this ledger, made when it was created.
    pub id: String,
    /// Format version.
    pub version: u32,
    /// The ledger's time.
    pub now_ms: i64,
    /// Number of the last event.
    pub last_seq: u64,
    /// Open holds.
    pub open_holds: u64,
}

/// How something that a ledger tells of its place is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckGrade {
    /// As it should be.
    Good,
    /// It works, and a person should know what it can lose or show.
    Look,
    /// It does not work like this.
    Bad,
}

/// One thing that a ledger tells of where it is kept, for `keybrake doctor`. Holds no password.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LedgerCheck {
    /// What was looked at, such as `durability`.
    pub name: &'static str,
    /// How it is to be taken.
    pub grade: CheckGrade,
    /// What was found.
    pub found: String,
    /// What to do; empty when there is nothing to do.
    pub advice: String,
}

/// What a verification found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Events read since the checkpoint it started from.
    pub events: u64,
    /// The checkpoint's event number (0: from the beginning).
    pub from_seq: u64,
    /// Counters compared.
    pub counters: u64,
    /// Counters that differ: (counter, by events, in the ledger), each (used, held).
    pub differences: Vec<CounterDifference>,
    /// Whether the chain of checkpoints is whole and signed by this ledger.
    pub chain_ok: bool,
}

/// A counter whose value is not what its events add up to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterDifference {
    /// The counter.
    pub counter: CounterName,
    /// Used and held by the events.
    pub by_events: (i64, i64),
    /// Used and held in the ledger.
    pub in_ledger: (i64, i64),
}

impl StopScope {
    /// `run:run_42`, `agent:a`, `label:l`, `group:tenant:acme`, `vendor:stripe`, `key:vk_…`, `all`.
    pub fn name(&self) -> String {
        match self {
            Self::Run(id) => format!("run:{id}"),
            Self::Agent(id) => format!("agent:{id}"),
            Self::Label(id) => format!("label:{id}"),
            Self::Group(id) => format!("group:{id}"),
            Self::Vendor(id) => format!("vendor:{id}"),
            Self::Key(id) => format!("key:{id}"),
            Self::All => "all".to_owned(),
        }
    }

    /// Reads what [`name`](Self::name) wrote.
    pub fn named(name: &str) -> Option<Self> {
        let Some((kind, id)) = name.split_once(':') else {
            return (name == "all").then_some(Self::All);
        };
        let id = id.to_owned();
        Some(match kind {
            "run" => Self::Run(id),
            "agent" => Self::Agent(id),
            "label" => Self::Label(id),
            "group" => Self::Group(id),
            "vendor" => Self::Vendor(id),
            "key" => Self::Key(id),
            _ => return None,
        })
    }
}
