//! The append-only log: every change of the ledger, written in the same atomic step as the change.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::shared::CounterName;
use super::types::{AdminNote, CallFacts, IdentityKind, Proof, ReplyFacts, State};
use crate::policy::{BudgetView, Denial};

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A new hold.
    Reserved,
    /// A further attempt of an existing reservation.
    Attempt,
    /// Charged, final.
    Settled,
    /// Charged, the price may still change.
    Provisional,
    /// Accepted by the vendor, outcome to come.
    Pending,
    /// No money moved, proven.
    Voided,
    /// Nothing is known.
    Unknown,
    /// A later change of something settled.
    Corrected,
    /// A refused call.
    Denied,
    /// A repeat answered from the recorded reply.
    Replayed,
    /// Something that the ledger had lost is there again, said by who remembered it: a call as it stands now, or an
    /// administrative act.
    Reasserted,
    /// A lease was taken, renewed, given back or forfeited.
    Leased,
    /// An administrative act: issue, revoke, stop, resume, budget, clock, checkpoint.
    Admin,
}

/// How one counter changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// The counter.
    pub counter: CounterName,
    /// Change of what is used.
    pub used: i64,
    /// Change of what is held.
    pub held: i64,
}

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Format version, 1.
    pub v: u32,
    /// Number in the log, from 1, without gaps.
    pub seq: u64,
    /// Ledger time, Unix milliseconds.
    pub at_ms: i64,
    /// The reservation that changed, or the refused or replayed call itself. An attempt that joined an earlier
    /// call has that call's id here and its own in `body.facts`.
    pub call_id: Option<String>,
    /// What happened.
    pub kind: EventKind,
    /// Per-budget changes; empty for denials and administrative acts.
    pub deltas: Vec<Delta>,
    /// The rest. Never a body, a secret or a prompt.
    pub body: EventBody,
}

/// The act of the event that stands first after a gap, see [`Event::follows`].
pub(super) const LOST: &str = "lost_events";
/// In its detail, the number of the last event before the gap.
pub(super) const AFTER: &str = "after";

impl Event {
    /// Whether this is the next event after that number.
    ///
    /// The log has no gaps, but for one: where a server lost events, their numbers are not used again. The first event
    /// after them is an administrative act, `lost_events`, whose detail `after` is the number before them; what was lost
    /// and is there again follows as `reasserted`.
    pub fn follows(&self, seq: u64) -> bool {
        self.seq == seq.saturating_add(1) || (self.seq > seq && self.lost_after() == Some(seq))
    }

    /// The number after which events were lost, if this is the event that says so.
    pub fn lost_after(&self) -> Option<u64> {
        let declared = self.body.admin.as_ref().filter(|admin| admin.act == LOST)?;
        declared.detail.get(AFTER)?.as_u64()
    }
}

/// What an event says besides its counters. Only what applies is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EventBody {
    /// Who and what, in every event of a call: of an `attempt` the joining call, else the reservation's.
    #[serde(with = "super::shared::option_arc", skip_serializing_if = "Option::is_none")]
    pub facts: Option<Arc<CallFacts>>,
    /// The identity (`reserved`, `attempt`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<IdentityNote>,
    /// The attempt that was permitted (`reserved`, `attempt`) or that the proof is about; 0 for reconciliation
    /// and operators.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// What was reserved (`reserved`, `attempt`), was asked for (`denied`), or is settled so far, in micro-USD.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub amount_micros: Option<i64>,
    /// What was proven.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proof: Option<Proof>,
    /// What the vendor replied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply: Option<ReplyFacts>,
    /// The reservation's state afterwards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    /// Why it is unknown, or how it ended, in a word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// By how much the actual cost is above what was reserved, in micro-USD.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overrun_micros: Option<i64>,
    /// The refusal (`denied`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub denial: Option<Box<Denial>>,
    /// What an observing policy would have refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub would_deny: Option<Box<Denial>>,
    /// How many refusals this row stands for, when a flood was coalesced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// The call whose recorded reply was given (`replayed`), or whose settlement changed this one (`corrected`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original: Option<String>,
    /// The tightest budget afterwards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tightest: Option<BudgetView>,
    /// Fields that were written into the request.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pins: Vec<(String, String)>,
    /// Whether the ledger knew nothing of the call before (`reasserted`).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub begins: bool,
    /// The administrative act.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin: Option<Box<AdminAct>>,
    /// Of a call that a process decided from its lease, and of the lease itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseNote>,
}

/// What an event says of a lease. Of a call, the event tells reserving and settling at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseNote {
    /// The lease.
    pub id: String,
    /// Its number: 1 when it was taken, one more with every renewal.
    pub number: u64,
    /// When the holder decided the call, by its own estimate of the ledger's time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_ms: Option<i64>,
    /// Whether the call was told after its lease was forfeited: its units were counted then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub late: bool,
    /// Of the lease itself: the calls that it has room for from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calls: Option<u32>,
}

/// The identity of a call, as the log keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityNote {
    /// The identity's hash.
    pub id: String,
    /// What the discriminator is.
    pub kind: IdentityKind,
    /// The generation.
    pub generation: u32,
}

/// An administrative act, by whom and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminAct {
    /// `issue`, `revoke`, `stop`, `resume`, `put_budget` or `accept_clock`.
    pub act: String,
    /// What it is about: a key id, a stop's scope, a budget's id.
    pub subject: String,
    /// By whom and why.
    pub note: AdminNote,
    /// Further facts by name, such as the old and the new cap.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub detail: serde_json::Map<String, serde_json::Value>,
}

/// Which events to read.
#[derive(Clone, Debug, Default)]
pub struct EventFilter {
    /// Only those after this number.
    pub after_seq: u64,
    /// Only this call's.
    pub call_id: Option<String>,
    /// Only those of this run.
    pub run: Option<String>,
    /// Only those at or after this time.
    pub since_ms: Option<i64>,
    /// At most this many; 0 means 10,000.
    pub limit: u32,
}
