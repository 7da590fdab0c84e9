//! What the rules need of a backend: reads and writes of small records inside one atomic step.
//!
//! A step is all or nothing: when a rule answers an error, the backend discards the step's writes.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::events::Event;
use super::types::{
    BudgetDef, BudgetId, CounterName, HoldFilter, KeyRecord, Reservation, Scope, Stop, StopScope, TokenHash,
    Window,
};
use crate::error::Result;

/// The ledger's own record. (Its random id is the backend's to keep; no rule needs it.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// The latest time that was ever used; the ledger's time never goes below it.
    pub last_seen_ms: i64,
    /// Number of the last event.
    pub last_seq: u64,
    /// Bumped when a group gains a budget, so that cached keys of the group are loaded again.
    pub groups_version: u64,
    /// Standing stops; none means that no stop has to be looked up.
    pub stops: u64,
    /// Reservations that hold something.
    pub open_holds: u64,
    /// No held reservation has a deadline before this; 0 when that is not known.
    pub next_deadline_ms: i64,
}

/// The part of a key that every decision reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyState {
    /// Own version; a key record shows this plus [`Meta::groups_version`].
    pub version: u64,
    /// When it ends.
    pub expires_at_ms: i64,
    /// When it was revoked.
    pub revoked_at_ms: Option<i64>,
    /// Parent and further ancestors.
    pub ancestors: Vec<String>,
    /// Reservations of this key that hold something.
    pub open_holds: u32,
}

/// A counter: what one budget has used and holds in one window (or bucket).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counter {
    /// Settled.
    pub used: i64,
    /// Reserved and not yet proven.
    pub held: i64,
}

/// Running sum of a rolling window: the buckets from `oldest_ms` on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rolling {
    /// Sum over the live buckets.
    pub sum: Counter,
    /// Start of the oldest bucket that is in the sum.
    pub oldest_ms: i64,
}

/// What stands behind an identity or a content hash: call ids, newest last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pointer {
    /// The calls.
    pub call_ids: Vec<String>,
    /// Until when the pointer is kept.
    pub until_ms: i64,
}

/// What is known of one vendor object: who reserved for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectRecord {
    /// Reservations that contributed exposure, in order.
    pub contributors: Vec<Contributor>,
    /// Pages of contributors that were written, see [`Contributor::Folded`].
    pub pages: u32,
    /// Sum of what they contributed and still expose (held plus used), in micro-USD.
    pub exposed_micros: i64,
    /// All that the object was seen to have moved (a cumulative maximum), in micro-USD.
    pub moved_micros: i64,
    /// Whether nothing more can move.
    pub closed: bool,
}

/// An entry in the list of an object's contributors. Only open ones can take more of what moves, so the others need
/// not be looked up when something does, and many of them are one entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Contributor {
    /// A reservation that may still change.
    Open(String),
    /// One that is final and holds nothing, and what it has used, in micro-USD.
    Final(String, i64),
    /// A row of final ones: their sum here, their names in pages.
    Folded {
        /// What they have used together, in micro-USD.
        used_micros: i64,
        /// The page of the newest of them.
        page: u32,
    },
}

/// Some of an object's final contributors in order, with what each has used, in micro-USD.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectPage {
    /// Call ids and amounts.
    pub calls: Vec<(String, i64)>,
    /// The page of those before them in the same row.
    pub before: Option<u32>,
}

/// A signed summary of the counters at one event number; chained by hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Format version, 1.
    pub v: u32,
    /// The event number it covers up to.
    pub seq: u64,
    /// When it was made.
    pub at_ms: i64,
    /// Every counter, sorted by name: (name, used, held).
    pub counters: Vec<(CounterName, i64, i64)>,
    /// Hash of the checkpoint before, hex; empty for the first.
    pub previous: String,
    /// HMAC-SHA-256 under the ledger secret over everything above, hex.
    pub signature: String,
}

/// A comparison that a decision rests on.
///
/// A backend that runs the rules inside a transaction has nothing to do with it. One that runs them on a copy of the
/// ledger's records commits only if every comparison still comes out the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding<'a> {
    /// The ledger's time was compared with this moment: whether it was reached.
    Reached {
        /// Unix milliseconds.
        at_ms: i64,
    },
    /// What a budget has used (and holds, if `with_held`), together with `amount`, was compared with its cap.
    Room {
        /// The counter, or the family of a rolling window.
        counter: &'a str,
        /// Whether it is the running sum of a rolling window.
        rolling: bool,
        /// What was found there.
        found: Counter,
        /// Whether what is held was counted too.
        with_held: bool,
        /// What is to be added, in the budget's unit.
        amount: i64,
        /// The cap, in the budget's unit.
        cap: i64,
        /// How it came out.
        fits: bool,
    },
    /// The open holds of a key were compared with the most that it may have.
    OpenHolds {
        /// The key.
        key_id: &'a str,
        /// The most.
        max: u32,
        /// Whether it has as many.
        full: bool,
    },
}

/// One atomic step of a backend. All names are full strings; the backend adds its namespace.
pub trait Store {
    /// Notes a comparison that the step's outcome rests on.
    fn found(&mut self, finding: Finding<'_>) {
        let _ = finding;
    }

    /// The ledger's own record.
    fn meta(&mut self) -> Result<Meta>;
    /// Writes it.
    fn put_meta(&mut self, meta: Meta) -> Result<()>;

    /// The hot part of a key.
    fn key_state(&mut self, key_id: &str) -> Result<Option<KeyState>>;
    /// Writes it.
    fn put_key_state(&mut self, key_id: &str, state: &KeyState) -> Result<()>;
    /// Counts one open hold more, or one less, for a key that exists.
    fn count_open_hold(&mut self, key_id: &str, more: bool) -> Result<()> {
        if let Some(mut key) = self.key_state(key_id)? {
            key.open_holds = if more {
                key.open_holds.saturating_add(1)
            } else {
                key.open_holds.saturating_sub(1)
            };
            self.put_key_state(key_id, &key)?;
        }
        Ok(())
    }
    /// A key's record as issued.
    fn key_record(&mut self, key_id: &str) -> Result<Option<KeyRecord>>;
    /// The id of the key with this token hash.
    fn key_id_by_token(&mut self, token_hash: &TokenHash) -> Result<Option<String>>;
    /// Adds or replaces a record.
    fn put_key_record(&mut self, record: &KeyRecord) -> Result<()>;
    /// All records, newest first.
    fn key_records(&mut self) -> Result<Vec<KeyRecord>>;

    /// A budget's definition.
    fn budget(&mut self, id: &BudgetId) -> Result<Option<Arc<BudgetDef>>>;
    /// Writes it.
    fn put_budget(&mut self, def: &BudgetDef) -> Result<()>;
    /// All definitions, or those of one scope.
    fn budgets(&mut self, scope: Option<&Scope>) -> Result<Vec<BudgetDef>>;

    /// A counter; zero if there is none.
    fn counter(&mut self, name: &str) -> Result<Counter>;
    /// A counter whose exact value the step carries elsewhere: the bucket that leaves a rolling window.
    fn exact_counter(&mut self, name: &str) -> Result<Counter> {
        self.counter(name)
    }
    /// Writes it.
    fn put_counter(&mut self, name: &CounterName, counter: Counter) -> Result<()>;
    /// All counters, sorted by name.
    fn counters(&mut self) -> Result<Vec<(CounterName, Counter)>>;
    /// The current window of a calendar counter family (budget, mode, concrete scope).
    fn window(&mut self, family: &str) -> Result<Option<Window>>;
    /// Writes it.
    fn put_window(&mut self, family: &str, window: Window) -> Result<()>;
    /// The running sum of a rolling counter family.
    fn rolling(&mut self, family: &str) -> Result<Option<Rolling>>;
    /// Writes it.
    fn put_rolling(&mut self, family: &str, rolling: Rolling) -> Result<()>;
    /// Start of the first bucket of a rolling family after `after_ms`, if any.
    fn next_bucket(&mut self, family: &str, after_ms: i64) -> Result<Option<i64>>;

    /// A reservation by call id.
    fn reservation(&mut self, call_id: &str) -> Result<Option<Reservation>>;
    /// Writes it. The backend indexes it by state, deadline, run and [`Reservation::holds_something`].
    fn put_reservation(&mut self, reservation: Reservation) -> Result<()>;
    /// Reservations in `held` whose deadline is at or before `now_ms`, earliest first, at most `limit`.
    fn overdue(&mut self, now_ms: i64, limit: u32) -> Result<Vec<Reservation>>;
    /// Reservations that still [hold something](Reservation::holds_something), oldest first; with `state:
    /// Provisional`, those that are provisional.
    fn open_reservations(&mut self, filter: &HoldFilter) -> Result<Vec<Reservation>>;

    /// What stands behind an identity id or a content id.
    fn pointer(&mut self, id: &str) -> Result<Option<Pointer>>;
    /// Writes it.
    fn put_pointer(&mut self, id: &str, pointer: Pointer) -> Result<()>;
    /// What is known of a vendor object.
    fn object(&mut self, object: &str) -> Result<Option<ObjectRecord>>;
    /// Writes it.
    fn put_object(&mut self, object: &str, record: ObjectRecord) -> Result<()>;
    /// A page of a vendor object's contributors.
    fn object_page(&mut self, object: &str, page: u32) -> Result<Option<ObjectPage>>;
    /// Writes it.
    fn put_object_page(&mut self, object: &str, number: u32, page: ObjectPage) -> Result<()>;

    /// A standing stop.
    fn stop(&mut self, scope: &StopScope) -> Result<Option<Stop>>;
    /// Writes it.
    fn put_stop(&mut self, stop: &Stop) -> Result<()>;
    /// Removes it.
    fn remove_stop(&mut self, scope: &StopScope) -> Result<()>;
    /// All standing stops.
    fn stops(&mut self) -> Result<Vec<Stop>>;

    /// Appends to the log; the rules number the event.
    fn append(&mut self, event: Event) -> Result<()>;
    /// Events after a number, in order, at most `limit`; of one call or run if given.
    fn events(&mut self, filter: &super::events::EventFilter) -> Result<Vec<Event>>;
    /// The last checkpoint.
    fn last_checkpoint(&mut self) -> Result<Option<Checkpoint>>;
    /// All checkpoints in order.
    fn checkpoints(&mut self) -> Result<Vec<Checkpoint>>;
    /// Adds one.
    fn put_checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<()>;
}
