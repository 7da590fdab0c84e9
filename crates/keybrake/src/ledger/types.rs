//! The ledger's nouns. Amounts in a `usd` budget are micro-USD, in all others counts; times are Unix
//! milliseconds on the ledger's clock.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

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
}

/// The states of a reservation. See [`table`](super::table) for what leads from one to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Reserved; attempts may be in flight.
    Held,
    /// Past its deadline, or an attempt ended without proof.
    Unknown,
    /// The vendor accepted; the outcome comes later.
    Pending,
    /// Settled with a cost that the vendor will still change.
    Provisional,
    /// Final.
    Settled,
    /// Proven that no money moved.
    Voided,
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

/// What an attempt proved. The names are those of states.md.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "proof", rename_all = "snake_case")]
pub enum Proof {
    /// The vendor charged: final.
    Charged {
        /// The actual amount; ignored when an object is given.
        actual: Usd,
    },
    /// The vendor charged, at a price that it will still change.
    ChargedProvisionally {
        /// The amount so far.
        actual: Usd,
    },
    /// Accepted, not final.
    Accepted,
    /// This attempt did not execute (400 validation, 401, 403, 404, 429 before execution).
    DidNotExecute,
    /// The operation failed for good (402, a replayed final failure): opens the next generation.
    FailedForGood,
    /// 409, idempotency error, 5xx, timeout, cancel, drop, deadline: nothing is known.
    NoProof {
        /// Such as `timeout`, `http_500`, `cancelled`.
        reason: String,
    },
    /// The holder certifies that no byte of this attempt left.
    NeverSent,
    /// A complete listing after the deadline does not contain it.
    Absent {
        /// What was listed, until when.
        evidence: String,
    },
    /// A named person decided.
    Operator {
        /// `None`: no money moved.
        spent: Option<Usd>,
        /// The evidence text.
        evidence: String,
        /// Who.
        by: String,
    },
}

/// What a reply says of a vendor object whose exposure is tracked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectState {
    /// `vendor|livemode|account|object id`.
    pub object: String,
    /// All money this object has moved so far.
    pub moved: Usd,
    /// Whether nothing more can move: what is still held for it is released.
    pub closed: bool,
}

/// How a cost is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CostSource {
    /// Read from the vendor's reply.
    Response,
    /// The estimate stands.
    Estimate,
    /// From a price table.
    RateTable,
    /// Found by reconciliation.
    Reconciled,
    /// No cost.
    #[default]
    None,
}

/// What the audit keeps of a reply.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyFacts {
    /// HTTP status, if there was a reply.
    pub status_code: Option<u16>,
    /// The vendor's request id.
    pub vendor_request_id: Option<String>,
    /// The vendor's object, such as `re_…`.
    pub vendor_object: Option<String>,
    /// The idempotency key that was sent.
    pub idempotency_key: Option<String>,
    /// From permit to settlement.
    pub latency_ms: Option<i64>,
    /// How the cost is known.
    pub cost_source: CostSource,
    /// Whether the vendor marked the reply as a replay.
    pub replayed: bool,
}

/// What became of one attempt.
#[derive(Clone, Debug)]
pub struct Settlement {
    /// The reservation.
    pub call_id: String,
    /// The attempt, as in the grant; 0 for reconciliation and operators.
    pub attempt: u32,
    /// What it proved.
    pub proof: Proof,
    /// The tracked object's state, if the reply gave one.
    pub object: Option<ObjectState>,
    /// The reply to record for replays, already stripped and encrypted; `None` keeps what is there.
    pub reply: Option<Vec<u8>>,
    /// For the audit.
    pub facts: ReplyFacts,
}

/// The reservation after a settlement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettleAnswer {
    /// Its state now.
    pub state: State,
    /// What was settled in it so far.
    pub used: Usd,
    /// What it still holds.
    pub held: Usd,
    /// By how much the actual cost was above what was reserved.
    pub overrun: Usd,
    /// The tightest budget now.
    pub tightest: Option<BudgetView>,
    /// Whether this very settlement had been recorded before.
    pub already: bool,
}

/// One charge of a reservation, in the window that reserved it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Charge {
    /// The counter: budget with its concrete scope, mode, window start.
    pub counter: CounterName,
    /// The budget's definition.
    pub budget: BudgetId,
    /// The unit.
    pub unit: Unit,
    /// Held now.
    pub held: i64,
    /// Used by this reservation.
    pub used: i64,
    /// The key's own lower limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<i64>,
    /// When the window ends; `None` for run and lifetime budgets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_end_ms: Option<i64>,
    /// Whether the counter is a bucket of a rolling window.
    #[serde(default)]
    pub rolling: bool,
}

/// A reservation: the hold, its identity, its attempts and what is known of its outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// Who and what.
    #[serde(with = "super::shared::arc")]
    pub facts: Arc<CallFacts>,
    /// Its state.
    pub state: State,
    /// Its identity; `None` for reads.
    #[serde(
        default,
        with = "super::shared::option_arc",
        skip_serializing_if = "Option::is_none"
    )]
    pub identity: Option<Arc<IdentityAsk>>,
    /// The generation, from 1.
    pub generation: u32,
    /// The generation with which the present series of declines began.
    pub first_generation: u32,
    /// Whether an earlier reservation of this generation took the count units, so that this one took none.
    pub counts_inherited: bool,
    /// What it reserved, at first.
    pub reserved: Usd,
    /// What it still holds.
    pub held: Usd,
    /// What was settled.
    pub used: Usd,
    /// Its charges.
    pub charges: Vec<Charge>,
    /// The object whose exposure it raised, once known.
    pub object: Option<String>,
    /// Attempts permitted.
    pub attempts: u32,
    /// Call ids of the attempts after the first, in order: the calls that joined.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub joined_by: Vec<String>,
    /// Attempts proven not to have executed, by number.
    pub not_executed: Vec<u32>,
    /// Settlements recorded: (attempt, proof kind).
    pub applied: Vec<(u32, String)>,
    /// When it was reserved.
    pub reserved_at_ms: i64,
    /// When it counts as unknown.
    pub not_after_ms: i64,
    /// When it last changed.
    pub changed_at_ms: i64,
    /// Why it is unknown, in a word.
    pub unknown_reason: Option<String>,
    /// How it ended, in a word: `charged`, `declined`, `never_sent`, `absent`, `operator`, …
    pub ended_by: Option<String>,
    /// Pinned fields.
    pub pins: Vec<(String, String)>,
    /// The last reply's facts.
    pub reply_facts: ReplyFacts,
    /// The recorded reply, encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<Vec<u8>>,
}

/// Which holds to list.
#[derive(Clone, Debug, Default)]
pub struct HoldFilter {
    /// Only this run's.
    pub run: Option<String>,
    /// Only those in this state.
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
}

impl State {
    /// The state in a word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Unknown => "unknown",
            Self::Pending => "pending",
            Self::Provisional => "provisional",
            Self::Settled => "settled",
            Self::Voided => "voided",
        }
    }
}

impl Reservation {
    /// Whether something is still held for it: money that may move, or units of a budget. A read that draws on
    /// no budget holds nothing, whatever its state.
    pub fn holds_something(&self) -> bool {
        matches!(self.state, State::Held | State::Unknown | State::Pending)
            && (self.facts.moves_money
                || self.held > Usd::ZERO
                || self.charges.iter().any(|charge| charge.held > 0))
    }
}

impl Proof {
    /// The proof in a word; with the attempt's number it makes a settlement idempotent.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Charged { .. } => "charged",
            Self::ChargedProvisionally { .. } => "charged_provisionally",
            Self::Accepted => "accepted",
            Self::DidNotExecute => "did_not_execute",
            Self::FailedForGood => "failed_for_good",
            Self::NoProof { .. } => "no_proof",
            Self::NeverSent => "never_sent",
            Self::Absent { .. } => "absent",
            Self::Operator { .. } => "operator",
        }
    }
}
