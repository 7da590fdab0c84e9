//! What has been spent: the ledger's contract. Every backend passes one conformance suite.
//!
//! | # | invariant |
//! | --- | --- |
//! | 1 | settled + held ≤ cap for every enforcing budget and window, under any interleaving; what stands above a cap is only what already moved, recorded as overrun |
//! | 2 | all budgets of a call are taken or none; a denial changes no counter |
//! | 3 | one identity has one reservation per generation; same fingerprint → joined or replayed, different → conflict |
//! | 4 | every transition is idempotent, keyed by (call id, attempt, proof); only those of [`table`] exist |
//! | 5 | a reservation settles into the window that reserved it |
//! | 6 | a hold ends by vendor proof, timed absence, a certified never-sent, or a named operator's decision |
//! | 7 | every ledger change has its event in the same atomic step |
//! | 8 | stops, revocation, expiry and key version are checked in the same atomic step as the money, stops also at issue |
//! | 9 | time is the ledger's and never goes back |
//! | 10 | children can never together spend more than the parent's budget; groups likewise |
//! | 11 | rotation, renewal and re-issue reset nothing: a budget's identity is its scope |
//! | 12 | no counter is evicted, expires or restarts from zero |
//! | 13 | checkpoints + events = counters, recomputable at any time |
//! | 14 | the cost of `reserve` does not grow with holds, keys or rows |
//! | 15 | a permit past `send_before` is never sent (the shells' part; the ledger names the moment) |
//! | 16 | identities survive longer than their holds, and at least 30 days |
//!
//! The rules stand once, in [`rules`], written against the small [`store::Store`] trait. `memory` and `sqlite` run
//! them inside a transaction; `redis` runs them on copies and commits only what still rests on the same records.

mod backlog;
pub mod events;
pub mod lease;
mod memory;
mod memory_store;
mod open;
pub mod reassertion;
pub mod redis;
pub mod reservation;
pub mod rules;
pub(crate) mod shared;
pub mod sqlite;
pub mod store;
pub mod table;
pub mod types;

use async_trait::async_trait;

pub use backlog::{Archives, Backlog, Drained};
pub use events::{AdminAct, Delta, Event, EventBody, EventFilter, EventKind, IdentityNote, LeaseNote};
pub use lease::{LeaseAnswer, LeaseAsk, LeaseHeld, LeaseState, LeasedCall, MOST_CALLS as MOST_LEASED_CALLS};
pub use memory::MemoryLedger;
pub use open::{namespace, open, open_to_restore, without_leases};
pub use reassertion::{
    ArchivedPart, BudgetAssertion, CallAssertion, EraRange, KeyAssertion, Life, Reasserted, Reassertion,
    StopAssertion,
};
pub use store::Checkpoint;
pub use types::*;

use crate::error::{Error, Result};

/// Waits for hard stops.
#[async_trait]
pub trait StopWatch: Send + std::fmt::Debug {
    /// Returns when a hard stop may have been set since the last time, and the first time when no later one can be
    /// missed. Whether one was is told by [`Ledger::stops`]. Dropping the future loses nothing.
    async fn next(&mut self);
}

/// Looks all the time: for ledgers whose stops cost little to read.
#[derive(Debug)]
struct Look;

/// A tenth of a second.
const LOOK_EVERY: std::time::Duration = std::time::Duration::from_millis(100);

#[async_trait]
impl StopWatch for Look {
    async fn next(&mut self) {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The store that answers "may this be spent?" in one atomic step.
#[async_trait]
pub trait Ledger: Send + Sync + std::fmt::Debug {
    /// Where the ledger is and how it stands; the URL is printed without a password.
    async fn info(&self) -> Result<LedgerInfo>;

    /// The secret that keys token hashes, derived idempotency keys, checkpoint signatures and recorded replies.
    /// Bound to the ledger's id: a copy of the data without it can spend nothing.
    fn secret(&self) -> &LedgerSecret;

    /// Records a key and attaches it to its budgets, creating those that do not exist.
    ///
    /// # Errors
    /// `Policy` when a budget exists with a different cap, zone or window (names both and the `budget set`
    /// command), or when a stop covers the key (the message names it).
    async fn issue_key(&self, issue: IssueKey) -> Result<KeyRecord>;

    /// The key with this token hash.
    async fn key_by_token(&self, token_hash: &TokenHash) -> Result<Option<KeyRecord>>;

    /// The key with this id.
    async fn key(&self, key_id: &str) -> Result<Option<KeyRecord>>;

    /// Whether replies are recorded for replays. A ledger that keeps its own secret beside the data records none.
    fn records_replies(&self) -> bool {
        true
    }

    /// The name of its part of the store; `None` for a ledger that ends with its process, so that an outcome which it
    /// could not take is nobody's any more.
    fn namespace(&self) -> Option<&str> {
        None
    }

    /// Opens by hand a ledger whose server has just started, when no process that saw its last state is left to do it.
    /// Answers whether it was closed. Ledgers that cannot be in that state are always open.
    async fn open_by_hand(&self, admin: AdminNote) -> Result<bool> {
        let _ = admin;
        Ok(false)
    }

    /// Numbers of events that a process has seen, that the ledger's server has lost, and that nobody has said again, as
    /// ranges from first to last: why it stays closed. At most some dozens of ranges.
    async fn missing_events(&self) -> Result<Vec<(u64, u64)>> {
        Ok(Vec::new())
    }

    /// The random id that it was made with. Known also while its server has nothing of it any more.
    async fn id(&self) -> Result<String> {
        Ok(self.info().await?.id)
    }

    /// Whether it decides. A ledger that needs no server always does.
    ///
    /// # Errors
    /// `Config` when another ledger stands in its place.
    async fn life(&self) -> Result<Life> {
        Ok(Life::Open)
    }

    /// Prepares a ledger for what an archive will say again ([`reassert`](Self::reassert)). One that is closed waits from
    /// then on for all of it ([`Reassertion::covers`]), whoever says it, or for a person who opens it without. One whose
    /// data is gone is made again with the same id, closed. One that is open stays open. Answers how it stands then.
    ///
    /// # Errors
    /// `Config` when another ledger stands in its place.
    async fn await_archived(&self, part: &ArchivedPart) -> Result<Life> {
        let _ = part;
        self.life().await
    }

    /// What a person should know of where the ledger is kept. Nothing, for one that needs no server.
    async fn checks(&self) -> Result<Vec<LedgerCheck>> {
        Ok(Vec::new())
    }

    /// All keys, newest first.
    async fn keys(&self) -> Result<Vec<KeyRecord>>;

    /// Ends one key for good, and with it its children. Answers whether it was open before. Returns when every lease
    /// of theirs was given back or has expired.
    async fn revoke(&self, key_id: &str, admin: AdminNote) -> Result<bool>;

    /// A standing refusal for a scope until [`resume`](Self::resume). No reserve commits after it returns, and no
    /// lease that it covers admits a call.
    async fn stop(&self, scope: StopScope, admin: AdminNote) -> Result<StopAnswer>;

    /// The same, and calls in flight are aborted and left unknown, in every process ([`watch_stops`](Self::watch_stops)).
    /// A stop that stands becomes a hard one.
    async fn stop_hard(&self, scope: StopScope, admin: AdminNote) -> Result<StopAnswer>;

    /// What a process that has calls in flight waits on for hard stops.
    fn watch_stops(&self) -> Box<dyn StopWatch> {
        Box::new(Look)
    }

    /// Ends a stop. Answers whether there was one.
    async fn resume(&self, scope: &StopScope, admin: AdminNote) -> Result<bool>;

    /// All standing stops.
    async fn stops(&self) -> Result<Vec<Stop>>;

    /// The one decision: stops, revocation, expiry, version, identity, and every budget at once; then a hold,
    /// a join, a replay or a denial, with its event.
    async fn reserve(&self, request: ReserveRequest) -> Result<ReserveAnswer>;

    /// What became of an attempt. Idempotent by (call id, attempt, proof kind).
    async fn settle(&self, settlement: Settlement) -> Result<SettleAnswer>;

    /// Merges in what was decided before and may have been lost, by the rank of each call's state; [`Reassertion`] says
    /// how. Nothing refuses it, and nothing of it counts twice.
    ///
    /// # Errors
    /// `Policy` when an amount or a budget's name is none that a ledger wrote; then nothing of it is taken over.
    async fn reassert(&self, reassertion: Reassertion) -> Result<Reasserted>;

    /// One step of a lease: takes it, renews it or gives it back, and records what was done of it.
    ///
    /// # Errors
    /// `Internal` for a step with an old number, and for anything else that no honest holder asks.
    async fn lease(&self, ask: LeaseAsk) -> Result<LeaseAnswer> {
        // A ledger that gives no leases: everything is asked of it.
        let _ = ask;
        Ok(LeaseAnswer::Refused)
    }

    /// Marks holds past their deadline as unknown, and forfeits leases past theirs, at most `limit`; answers how many.
    async fn sweep(&self, limit: u32) -> Result<u32>;

    /// One reservation.
    async fn reservation(&self, call_id: &str) -> Result<Option<Reservation>>;

    /// Reservations that still hold something, oldest first.
    async fn holds(&self, filter: HoldFilter) -> Result<Vec<Reservation>>;

    /// The budgets that a key draws on, as they stand now in both modes.
    async fn usage(&self, key_id: &str) -> Result<Vec<BudgetUsage>>;

    /// Budgets, all or of one scope, as they stand now.
    async fn budgets(&self, scope: Option<&Scope>) -> Result<Vec<BudgetUsage>>;

    /// Creates a budget or changes its cap; works on the next call, for everyone. Zone and window of an
    /// existing budget cannot be changed yet and are refused by name.
    async fn put_budget(&self, budget: BudgetDef, admin: AdminNote) -> Result<BudgetDef>;

    /// Events in order, from `filter.after_seq`, at most `filter.limit`.
    async fn events(&self, filter: EventFilter) -> Result<Vec<Event>>;

    /// Compares counters with the last checkpoint plus later events, and writes a new signed checkpoint when
    /// they agree.
    async fn verify(&self) -> Result<VerifyReport>;

    /// Accepts by hand a clock that jumped; answers the ledger's new time.
    async fn accept_clock(&self, admin: AdminNote) -> Result<i64>;

    /// Writes down what is still lazy. Waits for it.
    async fn flush(&self) -> Result<()>;

    /// Those of these reservations that exist, without their recorded replies, in no order.
    async fn reservations(&self, call_ids: &[String]) -> Result<Vec<Reservation>> {
        let mut found = Vec::new();
        for call_id in call_ids {
            found.extend(
                self.reservation(call_id)
                    .await?
                    .map(|call| Reservation { reply: None, ..call }),
            );
        }
        Ok(found)
    }

    /// Signed checkpoints after an event number, in order.
    async fn checkpoints(&self, after_seq: u64) -> Result<Vec<Checkpoint>> {
        let _ = after_seq;
        Err(not_drained())
    }

    /// What there is of the log, and who has it up to where.
    async fn backlog(&self) -> Result<Backlog> {
        Err(not_drained())
    }

    /// Notes up to where an archive has the log, or, for one that was put back from a backup, that it has less again.
    /// `place` is for people, without a password.
    async fn note_drained(&self, archive: &str, place: &str, seq: u64) -> Result<()> {
        let _ = (archive, place, seq);
        Err(not_drained())
    }

    /// Gives an archive up, so that nothing waits for it any more. Answers whether it was known.
    async fn forget_archive(&self, archive: &str, admin: AdminNote) -> Result<bool> {
        let _ = (archive, admin);
        Err(not_drained())
    }

    /// Removes the events up to this number, which every archive has to have and a signed checkpoint to cover. Answers
    /// how many were removed.
    ///
    /// # Errors
    /// `Config` when an archive lacks some of them, or the last checkpoint is before them.
    async fn trim(&self, upto_seq: u64) -> Result<u64> {
        let _ = upto_seq;
        Err(not_drained())
    }
}

fn not_drained() -> Error {
    Error::config("this ledger's log cannot be drained")
}
