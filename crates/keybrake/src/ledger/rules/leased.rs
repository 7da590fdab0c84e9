//! Calls of a lease: how they end, and how they are told.

use std::sync::Arc;

use super::identity::ended;
use super::lease::{FORFEITED, fresh};
use super::step::{Step, internal};
use crate::error::Result;
use crate::ledger::events::{EventBody, EventKind, LeaseNote};
use crate::ledger::lease::{LeaseAnswer, LeaseAsk, LeaseState, LeasedCall};
use crate::ledger::table::{self, Effect};
use crate::ledger::types::{Charge, Proof, Reservation, Settlement, State};
use crate::money::Usd;
use crate::policy::BudgetView;

/// How a leased call ends: its state, the event, how it ended in a word, and whether its count units are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeasedEnd {
    /// The state.
    pub state: State,
    /// The event.
    pub kind: EventKind,
    /// In a word, where that is known.
    pub ended_by: Option<&'static str>,
    /// Whether its count units are used; else they are returned.
    pub uses: bool,
}

/// How a call that moves no money ends with this proof, by the table; `None` where that is for the ledger to judge.
pub fn leased_end(settlement: &Settlement) -> Option<LeasedEnd> {
    let free = match &settlement.proof {
        Proof::Charged { actual } => *actual == Usd::ZERO,
        _ => true,
    };
    if !free || settlement.attempt != 1 || settlement.object.is_some() || settlement.reply.is_some() {
        return None;
    }
    let end = |state, kind, ended_by, uses| {
        Some(LeasedEnd {
            state,
            kind,
            ended_by,
            uses,
        })
    };
    match table::effect(settlement.proof.kind(), State::Held)? {
        Effect::Settle => end(State::Settled, EventKind::Settled, Some(ended::CHARGED), true),
        Effect::VoidIfAllProven => end(
            State::Voided,
            EventKind::Voided,
            Some(ended::DID_NOT_EXECUTE),
            true,
        ),
        Effect::VoidForGood => end(State::Voided, EventKind::Voided, Some(ended::DECLINED), true),
        Effect::VoidUnsent => end(State::Voided, EventKind::Voided, Some(ended::NEVER_SENT), false),
        Effect::Doubt => end(State::Unknown, EventKind::Unknown, None, true),
        _ => None,
    }
}

/// Whether a told call keeps its units: used, or held by itself.
pub(super) fn uses(call: &LeasedCall) -> bool {
    match &call.settlement {
        Some(settlement) => leased_end(settlement).is_none_or(|end| end.uses),
        None => true,
    }
}

/// Records a call: with its end in one event, or as a hold of its own.
pub(super) fn tell(
    step: &mut Step<'_>,
    own: &mut Reservation,
    state: &LeaseState,
    call: &LeasedCall,
    tightest: Option<&BudgetView>,
) -> Result<()> {
    let Some((settlement, end)) = ending(call)? else {
        return promote(step, own, state, call, tightest);
    };
    let mut deltas = Vec::with_capacity(own.charges.len());
    if end.uses {
        for charge in &mut own.charges {
            let each = each(charge, state)?;
            step.add(&charge.counter, charge.rolling, (each, 0), &mut deltas)?;
            charge.used = charge.used.saturating_add(each);
        }
    }
    let body = EventBody {
        tightest: tightest.cloned(),
        ..body(own, state, call, Some((settlement, end)))
    };
    step.append(end.kind, Some(&call.facts.call_id), deltas, body)
}

/// What one call takes of a budget.
pub(super) fn each(charge: &Charge, state: &LeaseState) -> Result<i64> {
    charge
        .held
        .checked_div(i64::from(state.calls))
        .ok_or_else(|| internal("a lease without room was used"))
}

fn ending(call: &LeasedCall) -> Result<Option<(&Settlement, LeasedEnd)>> {
    match &call.settlement {
        None => Ok(None),
        Some(settlement) => match leased_end(settlement) {
            Some(end) => Ok(Some((settlement, end))),
            None => Err(internal(format!(
                "the end of call {} is not one that its lease can tell",
                call.facts.call_id
            ))),
        },
    }
}

/// Makes a call that is under way a hold of its own.
fn promote(
    step: &mut Step<'_>,
    own: &Reservation,
    state: &LeaseState,
    call: &LeasedCall,
    tightest: Option<&BudgetView>,
) -> Result<()> {
    let mut charges = own.charges.clone();
    let mut deltas = Vec::with_capacity(charges.len());
    for charge in &mut charges {
        let each = each(charge, state)?;
        (charge.used, charge.held) = (0, each);
        step.add(&charge.counter, charge.rolling, (0, each), &mut deltas)?;
    }
    let hold = Reservation {
        not_after_ms: call.not_after_ms,
        ..fresh(step, Arc::clone(&call.facts), charges)
    };
    let body = EventBody {
        tightest: tightest.cloned(),
        ..body(own, state, call, None)
    };
    step.append(EventKind::Reserved, Some(&call.facts.call_id), deltas, body)?;
    step.save(None, hold)
}

fn body(
    own: &Reservation,
    state: &LeaseState,
    call: &LeasedCall,
    end: Option<(&Settlement, LeasedEnd)>,
) -> EventBody {
    let reason = end.and_then(|(settlement, end)| match &settlement.proof {
        Proof::NoProof { reason } => Some(reason.clone()),
        _ => end.ended_by.map(str::to_owned),
    });
    EventBody {
        facts: Some(Arc::clone(&call.facts)),
        attempt: Some(1),
        amount_micros: Some(0),
        proof: end.map(|(settlement, _)| settlement.proof.clone()),
        reply: end.map(|(settlement, _)| settlement.facts.clone()),
        state: Some(end.map_or(State::Held, |(_, end)| end.state)),
        reason,
        lease: Some(LeaseNote {
            id: own.facts.call_id.clone(),
            number: state.number,
            at_ms: Some(call.at_ms),
            late: false,
            calls: None,
        }),
        ..EventBody::default()
    }
}

/// Records calls of a lease that is over: their units were counted when it ended, so only their rows are missing. Who
/// gives a lease back tells everything with it; what still stands in a file then was told in another way.
pub(super) fn tell_late(
    step: &mut Step<'_>,
    before: Option<(State, bool)>,
    mut own: Reservation,
    mut state: LeaseState,
    ask: &LeaseAsk,
) -> Result<LeaseAnswer> {
    let forfeited = own.ended_by.as_deref() == Some(FORFEITED);
    if !forfeited {
        return Ok(LeaseAnswer::Over { forfeited });
    }
    for call in &ask.done {
        // What a step told that came through stands in the log already.
        if call.step <= state.number || state.late.contains(&call.index) {
            continue;
        }
        let call_id = &call.facts.call_id;
        let end = ending(call)?;
        if end.is_none() && step.store.reservation(call_id)?.is_some() {
            continue;
        }
        let mut body = body(&own, &state, call, end);
        if let Some(note) = &mut body.lease {
            note.late = true;
        }
        state.late.push(call.index);
        let kind = end.map_or(EventKind::Reserved, |(_, end)| end.kind);
        step.append(kind, Some(call_id), Vec::new(), body)?;
        if end.is_none() {
            // It holds nothing; whoever made it may still tell its end, else it is unknown at its deadline.
            let open = Reservation {
                not_after_ms: call.not_after_ms,
                ..fresh(step, Arc::clone(&call.facts), Vec::new())
            };
            step.save(None, open)?;
        }
    }
    own.changed_at_ms = step.now_ms;
    own.lease = Some(Box::new(state));
    step.save(before, own)?;
    Ok(LeaseAnswer::Over { forfeited })
}
