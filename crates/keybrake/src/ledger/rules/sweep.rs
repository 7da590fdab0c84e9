//! Deadlines: a hold whose last attempt can no longer be in flight, and of which nobody heard, is unknown.

use super::step::Step;
use crate::error::Result;
use crate::ledger::events::{EventBody, EventKind};
use crate::ledger::store::Store;
use crate::ledger::types::{HoldFilter, Reservation, State};

/// Marks held reservations past their deadline as unknown, at most `limit`; answers how many.
/// Leases past theirs are forfeited.
pub fn sweep(store: &mut dyn Store, clock_ms: i64, limit: u32) -> Result<u32> {
    let mut step = Step::begin(store, clock_ms)?;
    let marked = mark_overdue(&mut step, limit)?;
    step.finish()?;
    Ok(marked)
}

/// Reservations that hold something, oldest first, with deadlines already looked at.
pub fn holds(store: &mut dyn Store, clock_ms: i64, filter: &HoldFilter) -> Result<Vec<Reservation>> {
    let mut step = Step::begin(store, clock_ms)?;
    lapse(&mut step)?;
    let found = step.store.open_reservations(filter)?;
    step.finish()?;
    Ok(found)
}

/// Marks everything that is overdue. Asks the store only when a deadline can have passed, so that a decision
/// costs the same with one hold and with a hundred thousand.
pub(super) fn lapse(step: &mut Step<'_>) -> Result<()> {
    const BATCH: u32 = 256;
    if step.now_ms < step.meta.next_deadline_ms {
        return Ok(());
    }
    while mark_overdue(step, BATCH)? == BATCH {}
    let earliest = step.store.overdue(i64::MAX, 1)?;
    step.meta.next_deadline_ms = earliest.first().map_or(i64::MAX, |hold| hold.not_after_ms);
    Ok(())
}

fn mark_overdue(step: &mut Step<'_>, limit: u32) -> Result<u32> {
    let overdue = step.store.overdue(step.now_ms, limit)?;
    let mut marked = 0_u32;
    for mut hold in overdue {
        if hold.lease.is_some() {
            super::lease::forfeit(step, hold)?;
            marked = marked.saturating_add(1);
            continue;
        }
        let before = Some((hold.state, hold.holds_something()));
        hold.state = State::Unknown;
        hold.changed_at_ms = step.now_ms;
        hold.unknown_reason = Some("deadline".to_owned());
        let mut deltas = Vec::new();
        super::shares::spend_counts_of_reads(step, &mut hold, &mut deltas)?;
        let body = EventBody {
            facts: Some(hold.facts.clone()),
            state: Some(State::Unknown),
            reason: hold.unknown_reason.clone(),
            ..EventBody::default()
        };
        let call_id = hold.facts.call_id.clone();
        step.save(before, hold)?;
        step.append(EventKind::Unknown, Some(&call_id), deltas, body)?;
        marked = marked.saturating_add(1);
    }
    Ok(marked)
}
