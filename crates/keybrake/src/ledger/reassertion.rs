//! What is known of a ledger's state and may be missing in it: what a live process remembers of its own steps, or what
//! the drained audit holds.

use serde::{Deserialize, Serialize};

use super::reservation::{ObjectState, Reservation};
use super::types::{BudgetDef, KeyRecord, Stop};
use crate::error::{Error, Result};

/// What shall stand in a ledger that may have lost it: for [`Ledger::reassert`](super::Ledger::reassert).
///
/// Everything in it was decided by this ledger before. It is merged into what stands there, in the order of the
/// fields; nothing of it is decided anew, so caps, stops, revocations and versions of keys do not refuse it. What stands
/// there already changes nothing, so it can be said any number of times, by several at once, in any order.
///
/// To restore a ledger from its drained audit: one [`BudgetAssertion`] for each budget, one [`KeyAssertion`] for each
/// key, one [`StopAssertion`] for each scope by the last act on it, and one [`CallAssertion`] for each call as its last
/// event leaves it, with the charges that the deltas of its events add up to. An identity of which only
/// the hash is known is written with empty fields and an empty `wire`: the same call is then refused as a conflict or
/// as unknown, never sent twice. A few hundred calls at a time is a good size; budgets and keys go first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reassertion {
    /// Budgets as they were created or last changed.
    pub budgets: Vec<BudgetAssertion>,
    /// Keys that were issued or revoked.
    pub keys: Vec<KeyAssertion>,
    /// Stops that were set or ended.
    pub stops: Vec<StopAssertion>,
    /// Calls as they were last known.
    pub calls: Vec<CallAssertion>,
    /// The events that this stands for. A ledger that waits for lost events before it opens waits no longer for these,
    /// also when somebody tells only later that he has seen them. Others take no notice.
    pub covers: Vec<EraRange>,
}

/// Events of one era of a log. An era is a time in which the log only grew: where events were lost another begins, in which
/// their numbers may be those of other events. So a number names an event only together with its era.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EraRange {
    /// The era's name: a random number of 48 bits.
    pub era: u64,
    /// Number of the first event.
    pub first: u64,
    /// Number of the last event.
    pub last: u64,
}

/// Whether a ledger decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Life {
    /// It does.
    Open,
    /// Its server has started anew or lost events: it waits for those that know what it held, or for a person.
    Closed,
    /// Its server has nothing of it any more.
    Gone,
}

/// Up to where an archive has the log of a ledger that may have lost some of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchivedPart {
    /// The archive's random id, in hexadecimal digits.
    pub archive: String,
    /// The last event that ledger and archive have in common; 0 when there is none.
    pub after_seq: u64,
    /// The last event that the archive has.
    pub upto_seq: u64,
    /// When that happened, Unix milliseconds on the ledger's clock.
    pub at_ms: i64,
}

/// Digits of an era's name.
const ERA_DIGITS: usize = 12;

impl ArchivedPart {
    /// The era in whose name a ledger waits for all that the archive has, whichever eras its events are of: the beginning of
    /// the archive's own id.
    ///
    /// # Errors
    /// `Config` for what is no archive's id.
    pub fn era(&self) -> Result<u64> {
        let digits = self.archive.get(..ERA_DIGITS);
        digits
            .and_then(|digits| u64::from_str_radix(digits, 16).ok())
            .ok_or_else(|| Error::config(format!("{:?} is no archive's id", self.archive)))
    }
}

/// A budget with its cap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetAssertion {
    /// The definition.
    pub def: BudgetDef,
    /// Ledger time of the change, Unix milliseconds: a cap that was set later than this stays. Of two that were set in
    /// the same millisecond the lower stays.
    pub at_ms: i64,
}

/// A key. Revoked in either place is revoked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyAssertion {
    /// Its public id.
    pub key_id: String,
    /// The record as issued; `None` when only its state is known. Without it the key is unknown to callers.
    pub record: Option<Box<KeyRecord>>,
    /// Its own version; the higher one stays.
    pub version: u64,
    /// When it ends, Unix milliseconds.
    pub expires_at_ms: i64,
    /// When it was revoked, Unix milliseconds; the earlier stays.
    pub revoked_at_ms: Option<i64>,
    /// Parent and further ancestors.
    pub ancestors: Vec<String>,
}

/// A stop that stands, or that was ended. What was done last to a scope stays; in the same millisecond the stop does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopAssertion {
    /// The stop. Of one that was ended only the scope counts.
    pub stop: Stop,
    /// When it was ended, in ledger time, Unix milliseconds.
    pub ended_at_ms: Option<i64>,
}

/// A call, merged by the rank of its state: held, unknown, pending, provisional, voided, settled.
///
/// A later state of the same history stays against its rank: a call that was undone after it was settled, and one that
/// is held again after it was voided. A void that rests on attempts counts only against those that it knew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallAssertion {
    /// The reservation, with its charges. Every charge of money has the call's own used and held amounts.
    pub call: Reservation,
    /// Further identities under which it is found: of calls that joined it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub found_by: Vec<String>,
    /// What its vendor object had moved by then, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<ObjectState>,
}

/// What a reassertion came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reasserted {
    /// Entries that changed something, each with an event of its own.
    pub changed: u32,
    /// Entries that stood there already, or that something later stands against.
    pub unchanged: u32,
}
