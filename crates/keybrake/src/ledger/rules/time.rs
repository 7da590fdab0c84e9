//! The ledger's time: never back, and never further than the machine's own uptime says.

use super::step::{Step, admin_body};
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::ledger::events::{Event, EventKind, LOST};
use crate::ledger::store::Store;
use crate::ledger::types::AdminNote;

/// How far the wall clock may leave the boot clock before it is no longer trusted: 5 minutes.
pub const JUMP_MS: i64 = 300_000;

/// Watches the wall clock against the boot clock, which never jumps.
#[derive(Clone, Copy, Debug)]
pub struct ClockGuard {
    /// Wall time at the machine's start, as trusted.
    offset_ms: i64,
}

impl ClockGuard {
    /// Trusts the clock as it stands.
    pub fn trusting(clock: &dyn Clock) -> Self {
        Self {
            offset_ms: clock.now_ms().saturating_sub(clock.boot_ms()),
        }
    }

    /// Trusts a wall time at the machine's start that was recorded earlier under the same boot.
    pub const fn with_offset_ms(offset_ms: i64) -> Self {
        Self { offset_ms }
    }

    /// Wall time at the machine's start, as trusted: to be recorded.
    pub const fn offset_ms(&self) -> i64 {
        self.offset_ms
    }

    /// The clock's reading.
    ///
    /// # Errors
    /// `LedgerUnavailable` when wall and boot clock are more than [`JUMP_MS`] apart from what was trusted.
    pub fn read(&self, clock: &dyn Clock) -> Result<i64> {
        let now_ms = clock.now_ms();
        let expected_ms = clock.boot_ms().saturating_add(self.offset_ms);
        let jump_ms = now_ms.saturating_sub(expected_ms);
        if jump_ms.saturating_abs() > JUMP_MS {
            return Err(Error::ledger(format!(
                "the machine's clock jumped by {} s; nothing was sent. Check the clock, then accept it \
                 by hand: keybrake doctor --accept-clock",
                jump_ms.checked_div(1_000).unwrap_or(0)
            )));
        }
        Ok(now_ms)
    }
}

/// The ledger's time for a clock's reading: the latest time ever used if that is later.
pub fn ledger_time(store: &mut dyn Store, clock_ms: i64) -> Result<i64> {
    Ok(store.meta()?.last_seen_ms.max(clock_ms))
}

/// Records that a person opened a ledger whose server had just started.
pub fn note_opening(store: &mut dyn Store, clock_ms: i64, note: &AdminNote) -> Result<()> {
    note_act(store, clock_ms, ("open_ledger", "by hand"), note)
}

/// Records an administrative act that changes no counter: what was done, and to what.
pub fn note_act(
    store: &mut dyn Store,
    clock_ms: i64,
    (act, subject): (&str, &str),
    note: &AdminNote,
) -> Result<()> {
    let mut step = Step::begin(store, clock_ms)?;
    let body = admin_body(act, subject, note, &[]);
    step.append(EventKind::Admin, None, Vec::new(), body)?;
    step.finish()
}

/// The event that a server writes where events were lost: from it on, no number is one of theirs.
pub(in crate::ledger) fn gap_event() -> Event {
    let note = AdminNote {
        by: "keybrake".to_owned(),
        reason: "the server came back without events that had been seen".to_owned(),
    };
    Event {
        v: 1,
        seq: 0,
        at_ms: 0,
        call_id: None,
        kind: EventKind::Admin,
        deltas: Vec::new(),
        body: admin_body(LOST, "server", &note, &[]),
    }
}

/// Records that a person accepted the clock as it stands; answers the ledger's time. The backend renews its
/// [`ClockGuard`] when this step is committed.
pub fn accept_clock(store: &mut dyn Store, clock_ms: i64, note: &AdminNote) -> Result<i64> {
    let mut step = Step::begin(store, clock_ms)?;
    let body = admin_body("accept_clock", clock_ms.to_string(), note, &[]);
    step.append(EventKind::Admin, None, Vec::new(), body)?;
    let now_ms = step.now_ms;
    step.finish()?;
    Ok(now_ms)
}
