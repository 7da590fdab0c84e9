//! Leases: room in a key's budgets that one process takes for many calls at once, and decides from by itself.
//!
//! | | |
//! | --- | --- |
//! | what it is | a reservation of its own, `held` in every budget that its calls count in, for at most [`LONGEST_MS`] |
//! | which calls | [`leasable`]: no identity, no money, nothing of a run's or a lifetime's budget; all budgets or none |
//! | renewal | numbered; one atomic step tells what was done, keeps what is open, and takes more |
//! | end | given back; or forfeited at its deadline: all that was not told counts as used |
//!
//! The rules stand in [`rules::lease`](super::rules::lease); the holder's part in [`crate::lease`].

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Ledger;
use super::types::{
    Ask, CallFacts, ChargeAsk, ReserveRequest, Settlement, State, StopScope, Unit, WindowKind,
};
use crate::clock::{Clock as _, SystemClock};
use crate::error::{Error, Result};
use crate::money::Usd;
use crate::policy::BudgetView;

/// The longest time between two renewals, in milliseconds: how much later than at once a stop, a revocation or a
/// change of policy reaches a holder at worst.
pub const LONGEST_MS: i64 = 500;
/// The shortest: below it a lease is renewed more often than it is used.
pub const SHORTEST_MS: i64 = 50;
/// The most calls that a lease has room for, so that a renewal stays one small step.
pub const MOST_CALLS: u32 = 512;

/// How often leases that stand in the way of a stop are looked at.
const LOOK_EVERY_MS: i64 = 10;

/// What the ledger keeps of a lease besides its charges.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseState {
    /// 1 when it was taken, one more with every renewal.
    pub number: u64,
    /// Calls that it has room for: those under way, and those that may still be made.
    pub calls: u32,
    /// How many of them the last step added; told again if its answer was lost.
    pub added: u32,
    /// How long the holder may use it after each renewal, in milliseconds.
    pub ttl_ms: i64,
    /// Until when the holder may use it, as the last step had it.
    pub until_ms: i64,
    /// Calls told after it was forfeited, by their index, so that none is told twice.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub late: Vec<u64>,
}

/// A call that a holder decided from its lease.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LeasedCall {
    /// Its index in the lease.
    pub index: u64,
    /// The number of the step that tells it, or would have told it.
    pub step: u64,
    /// Who and what.
    #[serde(with = "super::shared::arc")]
    pub facts: Arc<CallFacts>,
    /// When it was decided, by the holder's estimate of the ledger's time.
    pub at_ms: i64,
    /// When it counts as unknown.
    pub not_after_ms: i64,
    /// What became of it. `None` makes it a hold of its own: it is under way, or its end is for the ledger to judge.
    pub settlement: Option<Settlement>,
}

/// One step of a lease: to take, renew or give back.
#[derive(Clone, Debug)]
pub struct LeaseAsk {
    /// The lease; made by the holder, at random.
    pub id: String,
    /// 1 to take it, then one more with each step. A step with an old number is refused. 0 tells what a holder left
    /// behind, once its lease is over; before that it is `Refused`.
    pub number: u64,
    /// The key, its version, and what stops are looked up by, as its calls have them.
    pub facts: Arc<CallFacts>,
    /// What each call asks of its budgets.
    pub charges: Vec<ChargeAsk>,
    /// Calls of the lease that are under way or may still be made, and stay in it.
    pub keep: u32,
    /// Calls to add room for. With nothing kept and nothing wanted the lease is given back.
    pub wanted: u32,
    /// What was done since the last step.
    pub done: Vec<LeasedCall>,
    /// How long it lives, in milliseconds: [`SHORTEST_MS`] to [`LONGEST_MS`].
    pub ttl_ms: i64,
    /// Most holds that the key may have open; the lease is one.
    pub max_open_holds: u32,
}

/// What became of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseAnswer {
    /// It stands.
    Held(Box<LeaseHeld>),
    /// Nothing is given. What was told is recorded; a lease that exists is not prolonged and has to be given back.
    Refused,
    /// There is no such lease, or no more. What was told is recorded, `late` if it was forfeited.
    Over {
        /// Whether it was forfeited.
        forfeited: bool,
    },
}

/// A lease as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseHeld {
    /// Calls that the step added room for.
    pub added: u32,
    /// How long it may be used, counted from before the step was asked for.
    pub for_ms: i64,
    /// The ledger's time.
    pub now_ms: i64,
    /// Holds of the key that were open.
    pub open_holds: u32,
    /// The tightest budget of money.
    pub tightest: Option<BudgetView>,
}

/// Whether a call can be decided from a lease: it has no identity, so nothing has to be compared with other calls; it
/// moves no money, so that nothing has to be found out about it later; and what it takes, it takes from budgets whose
/// windows end. Everything else is asked of the ledger.
pub fn leasable(request: &ReserveRequest) -> Option<&[ChargeAsk]> {
    let Ask::Amount(ask) = &request.ask else {
        return None;
    };
    let plain = request.identity.is_none()
        && !request.facts.moves_money
        && request.facts.key_id.is_some()
        && ask.usd == Usd::ZERO
        && ask.raise.is_none()
        && ask.pins.is_empty()
        && ask.would_deny.is_none();
    (plain
        && ask
            .charges
            .iter()
            .all(|charge| charge.amount == 0 || charge.unit != Unit::Usd))
    .then_some(&ask.charges)
}

/// Whether room can be taken in a budget with this window in advance.
pub const fn window_ends(window: WindowKind) -> bool {
    match window {
        WindowKind::Hour | WindowKind::Day | WindowKind::Month | WindowKind::Rolling24h => true,
        WindowKind::Run | WindowKind::Lifetime => false,
    }
}

/// What the leases are that have to end before something returns.
#[derive(Clone, Copy, Debug)]
pub enum Before<'a> {
    /// A stop of this scope.
    Stop(&'a StopScope),
    /// The revocation of this key.
    Revoke(&'a str),
}

/// Waits until none of these leases, which stood when a stop or revocation was written, can admit a call any more:
/// given back; renewed twice, so that the holder has read an answer that came after it; or expired. Each expires within
/// its own time to live from now, whatever the clocks say.
pub(super) async fn end(ledger: &dyn Ledger, leases: Vec<String>) -> Result<()> {
    // The machine's own time: holders count by theirs, whatever clock the ledger has.
    let begun_ms = SystemClock.boot_ms();
    let mut standing: Vec<(String, u64)> = Vec::new();
    let mut longest_ms = 0;
    for id in leases {
        if let Some((number, ttl_ms)) = stands(ledger, &id).await? {
            standing.push((id, number));
            longest_ms = longest_ms.max(ttl_ms);
        }
    }
    // One more, because both readings are cut to whole milliseconds.
    let over_ms = begun_ms
        .saturating_add(longest_ms.clamp(0, LONGEST_MS))
        .saturating_add(1);
    while !standing.is_empty() {
        let left_ms = over_ms.saturating_sub(SystemClock.boot_ms());
        if left_ms <= 0 {
            return Ok(());
        }
        pause(Duration::from_millis(
            u64::try_from(left_ms.min(LOOK_EVERY_MS)).unwrap_or(1),
        ))
        .await?;
        let mut still = Vec::with_capacity(standing.len());
        for (id, number) in standing {
            match stands(ledger, &id).await? {
                Some((now, _)) if now < number.saturating_add(2) => still.push((id, number)),
                _ => {}
            }
        }
        standing = still;
    }
    Ok(())
}

async fn stands(ledger: &dyn Ledger, id: &str) -> Result<Option<(u64, i64)>> {
    let lease = ledger.reservation(id).await?;
    Ok(lease
        .filter(|lease| lease.state == State::Held)
        .and_then(|lease| lease.lease)
        .map(|lease| (lease.number, lease.ttl_ms)))
}

/// Waits on a thread of its own: a ledger may be used from any runtime, or from one without timers.
async fn pause(time: Duration) -> Result<()> {
    let (to, over) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("keybrake-wait".to_owned())
        .spawn(move || {
            std::thread::sleep(time);
            to.send(()).ok(); // nobody waits any more
        })
        .map_err(|e| Error::ledger("no thread to wait on").because(e))?;
    over.await
        .map_err(|_| Error::ledger("the wait for leases was interrupted"))
}
