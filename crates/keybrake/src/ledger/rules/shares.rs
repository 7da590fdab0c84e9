//! Carrying new amounts into the counters: of the settled call, and of every other call of its object.

use std::sync::Arc;

use super::contributors;
use super::identity::ended;
use super::object::{self, Allocation, Share};
use super::outcome::{Counts, Outcome, is_read, kind_of};
use super::step::Step;
use crate::error::Result;
use crate::ledger::events::{Delta, EventBody, EventKind};
use crate::ledger::table::Effect;
use crate::ledger::types::{CallFacts, Reservation, State, Unit};
use crate::money::Usd;

/// A read past its deadline was dispatched for all we know: its count units are used, and it holds nothing.
pub(super) fn spend_counts_of_reads(
    step: &mut Step<'_>,
    call: &mut Reservation,
    deltas: &mut Vec<Delta>,
) -> Result<()> {
    if !is_read(call) {
        return Ok(());
    }
    let share = Share {
        held: call.held,
        used: call.used,
    };
    change(step, call, &share, Counts::Spend, deltas)
}

/// Carries a reservation's new amounts into each of its counters. Every budget of money counts the same amount.
pub(super) fn change(
    step: &mut Step<'_>,
    call: &mut Reservation,
    share: &Share,
    counts: Counts,
    deltas: &mut Vec<Delta>,
) -> Result<()> {
    for charge in &mut call.charges {
        let (used, held) = match (charge.unit, counts) {
            (Unit::Usd, _) => (share.used.micros(), share.held.micros()),
            (_, Counts::Keep) => continue,
            (_, Counts::Spend) => (charge.used.saturating_add(charge.held), 0),
            (_, Counts::Return) => (0, 0),
        };
        let by = (used.saturating_sub(charge.used), held.saturating_sub(charge.held));
        step.add(&charge.counter, charge.rolling, by, deltas)?;
        (charge.used, charge.held) = (used, held);
    }
    (call.used, call.held) = (share.used, share.held);
    Ok(())
}

/// Keeps an object's exposure what its contributors hold and have used.
pub(super) fn expose(step: &mut Step<'_>, call: &Reservation, share: &Share) -> Result<()> {
    let Some(object) = &call.object else {
        return Ok(());
    };
    let by = exposure(share.held, share.used).saturating_sub(exposure(call.held, call.used));
    if by == 0 {
        return Ok(());
    }
    let mut record = step.store.object(object)?.unwrap_or_default();
    contributors::reopen(step, object, &mut record, &call.facts.call_id)?;
    object::expose(&mut record, by)?;
    step.store.put_object(object, record)
}

const fn exposure(held: Usd, used: Usd) -> i64 {
    held.micros().saturating_add(used.micros())
}

/// Takes an object's allocation over: into the settling call's outcome, and as corrections into the others.
pub(super) fn spread(
    step: &mut Step<'_>,
    call: &Reservation,
    allocation: Allocation,
    (effect, outcome): (Effect, &mut Outcome),
) -> Result<()> {
    let Allocation {
        others,
        own,
        overrun,
        mut record,
    } = allocation;
    let mut exposed = exposure(own.held, own.used).saturating_sub(exposure(call.held, call.used));
    for (other, share) in others {
        let change = exposure(share.held, share.used).saturating_sub(exposure(other.held, other.used));
        exposed = exposed.saturating_add(change);
        correct_other(step, other, &share, &call.facts)?;
    }
    object::expose(&mut record, exposed)?;
    let closed = record.closed;
    if let Some(object) = &call.object {
        step.store.put_object(object, record)?;
    }
    if own.used > call.used && matches!(effect, Effect::Note | Effect::Correct) {
        outcome.kind = EventKind::Corrected;
    }
    if overrun > Usd::ZERO {
        outcome.overrun = overrun;
    }
    follow_object(outcome, &own, (effect, closed), call);
    outcome.share = own;
    Ok(())
}

/// The settling call's state, now that its object's is known.
fn follow_object(outcome: &mut Outcome, own: &Share, (effect, closed): (Effect, bool), call: &Reservation) {
    let executed = matches!(
        effect,
        Effect::Settle | Effect::SettleProvisionally | Effect::Wait | Effect::Correct | Effect::HoldAgain
    );
    let moved = own.used > Usd::ZERO;
    if own.held > Usd::ZERO {
        if executed {
            outcome.state = State::Pending;
            outcome.ended_by = None;
        }
    } else if executed && closed && !moved && call.reserved > Usd::ZERO {
        outcome.state = State::Voided;
        outcome.ended_by = Some(ended::CLOSED);
    } else if executed && effect != Effect::SettleProvisionally {
        outcome.state = State::Settled;
        outcome.ended_by = Some(ended::CHARGED);
    } else if moved && outcome.state != State::Provisional {
        outcome.state = State::Settled;
        outcome.ended_by = Some(ended::CHARGED);
        outcome.counts = Counts::Spend;
    } else if closed
        && matches!(outcome.state, State::Held | State::Unknown | State::Pending)
        && call.held > Usd::ZERO
    {
        outcome.state = State::Voided;
        outcome.ended_by = Some(ended::CLOSED);
        outcome.counts = Counts::Spend;
    }
    if outcome.kind != EventKind::Corrected {
        outcome.kind = kind_of(outcome.state);
    }
}

/// Another contributor of the object, changed by what this call showed.
fn correct_other(
    step: &mut Step<'_>,
    mut other: Reservation,
    share: &Share,
    by: &Arc<CallFacts>,
) -> Result<()> {
    let before = Some((other.state, other.holds_something()));
    let mut deltas = Vec::new();
    let ends =
        share.held == Usd::ZERO && matches!(other.state, State::Held | State::Unknown | State::Pending);
    if ends || (other.state == State::Voided && share.used > Usd::ZERO) {
        let moved = share.used > Usd::ZERO;
        other.state = if moved { State::Settled } else { State::Voided };
        let ended_by = if moved { ended::CHARGED } else { ended::CLOSED };
        other.ended_by = Some(ended_by.to_owned());
        other.unknown_reason = None;
    }
    let counts = if ends { Counts::Spend } else { Counts::Keep };
    change(step, &mut other, share, counts, &mut deltas)?;
    other.changed_at_ms = step.now_ms;
    let body = EventBody {
        facts: Some(Arc::clone(&other.facts)),
        amount_micros: Some(other.used.micros()),
        state: Some(other.state),
        reason: other.ended_by.clone(),
        original: Some(by.call_id.clone()),
        ..EventBody::default()
    };
    let call_id = other.facts.call_id.clone();
    step.append(EventKind::Corrected, Some(&call_id), deltas, body)?;
    step.save(before, other)
}
