//! The append-only log: every change of the ledger, written in the same atomic step as the change.

use serde::{Deserialize, Serialize};

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
    /// An administrative act: issue, revoke, stop, resume, budget, clock, checkpoint.
    Admin,
}

/// How one counter changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// The counter.
    pub counter: String,
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
    /// The call, for events of a call.
    pub call_id: Option<String>,
    /// What happened.
    pub kind: EventKind,
    /// Per-budget changes; empty for denials and administrative acts.
    pub deltas: Vec<Delta>,
    /// The rest as JSON: facts, proof, denial, note. Never a body, a secret or a prompt.
    pub body: serde_json::Value,
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
