//! The reservation: its states, what proves its outcome, and what is kept of it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::lease::LeaseState;
use super::shared::CounterName;
use super::types::{CallFacts, IdentityAsk};
use crate::money::Usd;
use crate::policy::BudgetView;
use crate::policy::budget::{BudgetId, Unit};

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
    /// What was done is undone: the vendor's object says that the whole money is back (a payout that failed after it
    /// was accepted). Opens the next generation. Changes nothing of a call whose object's total is tracked.
    Reversed,
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
        /// The attempts that were known when the listing began; one more since then makes it prove nothing.
        attempts: u32,
    },
    /// A named person decided, when no attempt can be in flight any more.
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
#[derive(Clone, Debug, Serialize, Deserialize)]
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
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "super::shared::option_base64"
    )]
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
    /// Other identities that point at it: under which it came, or was joined.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
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
    /// Set when it is no call but a lease: room for many calls, held by one process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Box<LeaseState>>,
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
    /// no budget holds nothing, whatever its state; an open lease always does.
    pub fn holds_something(&self) -> bool {
        matches!(self.state, State::Held | State::Unknown | State::Pending)
            && (self.facts.moves_money
                || self.lease.is_some()
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
            Self::Reversed => "reversed",
            Self::NoProof { .. } => "no_proof",
            Self::NeverSent => "never_sent",
            Self::Absent { .. } => "absent",
            Self::Operator { .. } => "operator",
        }
    }
}
