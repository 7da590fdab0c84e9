//! What became of a call: one proof at a time, by the table, into the windows that reserved it.

use std::sync::Arc;

use super::charge;
use super::identity::ended;
use super::object;
use super::outcome::{Outcome, outcome};
use super::shares::{change, expose, spread};
use super::step::{Step, internal};
use crate::error::{Error, Result};
use crate::ledger::events::{EventBody, EventKind};
use crate::ledger::store::Store;
use crate::ledger::table::{self, Effect};
use crate::ledger::types::{CallFacts, Proof, Reservation, SettleAnswer, Settlement, State};
use crate::money::Usd;

/// Records what an attempt proved. Idempotent by (call id, attempt, proof kind).
pub fn settle(store: &mut dyn Store, clock_ms: i64, settlement: &Settlement) -> Result<SettleAnswer> {
    let mut step = Step::begin(store, clock_ms)?;
    let answer = match step.store.reservation(&settlement.call_id)? {
        Some(reservation) => apply(&mut step, reservation, settlement)?,
        None if settlement.proof == Proof::NeverSent => tombstone(&mut step, settlement)?,
        None => {
            return Err(Error::not_found(format!(
                "no call {} in this ledger",
                settlement.call_id
            )));
        }
    };
    step.finish()?;
    Ok(answer)
}

fn apply(step: &mut Step<'_>, mut call: Reservation, settlement: &Settlement) -> Result<SettleAnswer> {
    // A call belongs to one object for good; what another shows is not about it.
    let mut without_object = None;
    if let (Some(seen), Some(own)) = (&settlement.object, &call.object)
        && *own != seen.object
    {
        without_object = Some(Settlement {
            object: None,
            ..settlement.clone()
        });
    }
    let settlement = without_object.as_ref().unwrap_or(settlement);
    let kind = settlement.proof.kind();
    let applied = stands(&call, settlement.attempt, kind);
    let undone = undone(&call, settlement);
    if applied && (undone || !says_more(step, &call, settlement)?) {
        return answer(step, &call, Usd::ZERO, true);
    }
    check_attempt(&call, settlement)?;
    let from = state_now(step, &call);
    let Some(effect) = table::effect(kind, from) else {
        return Err(internal(format!(
            "the proof {kind} cannot be applied to call {}, which is {}",
            settlement.call_id,
            from.as_str(),
        )));
    };
    let effect = if undone { Effect::Note } else { effect };
    let before = (call.state, call.holds_something());
    let mut outcome = outcome(step, &mut call, settlement, effect, from)?;
    let mut deltas = Vec::new();
    match &settlement.object {
        Some(seen) => {
            let allocation = object::allocate(step, &call, outcome.share, seen)?;
            call.object = Some(seen.object.clone());
            spread(step, &call, allocation, (effect, &mut outcome))?;
        }
        None => expose(step, &call, &outcome.share)?,
    }
    change(step, &mut call, &outcome.share, outcome.counts, &mut deltas)?;
    record(step, &mut call, settlement, effect, &outcome);
    if !applied {
        call.applied.push((settlement.attempt, kind.to_owned()));
    }
    let answer = answer(step, &call, outcome.overrun, false)?;
    let body = EventBody {
        facts: Some(Arc::clone(&call.facts)),
        attempt: Some(settlement.attempt),
        amount_micros: Some(call.used.micros()),
        proof: Some(settlement.proof.clone()),
        reply: Some(settlement.facts.clone()),
        state: Some(call.state),
        reason: call.ended_by.clone().or_else(|| call.unknown_reason.clone()),
        overrun_micros: (outcome.overrun > Usd::ZERO).then(|| outcome.overrun.micros()),
        tightest: answer.tightest.clone(),
        ..EventBody::default()
    };
    step.append(outcome.kind, Some(&settlement.call_id), deltas, body)?;
    step.save(Some(before), call)?;
    Ok(answer)
}

/// The state by which the table is read: a hold past its deadline is unknown, whether or not it was swept.
fn state_now(step: &mut Step<'_>, call: &Reservation) -> State {
    if call.state == State::Held && step.reached(call.not_after_ms) {
        State::Unknown
    } else {
        call.state
    }
}

/// Whether this tells of a success that is known to be undone: the vendor showed that it had failed since (a payout), and
/// whoever read the earlier reply tells of it late, or once more. One attempt's own decline proves nothing of the others.
fn undone(call: &Reservation, settlement: &Settlement) -> bool {
    let provisionally = matches!(settlement.proof, Proof::ChargedProvisionally { .. });
    if !provisionally || settlement.object.is_some() {
        return false;
    }
    match call.ended_by.as_deref() {
        Some(ended::REVERSED) => true,
        Some(ended::DECLINED) => {
            let kinds = [Proof::FailedForGood.kind(), Proof::Reversed.kind()];
            kinds.iter().any(|kind| stands(call, 0, kind))
        }
        _ => false,
    }
}

/// Whether this was recorded before and is still so. What reconciliation found or a person decided (attempt 0) is a
/// statement about its time: a reply that accepts the call opens it again, and it can be resolved once more.
fn stands(call: &Reservation, attempt: u32, kind: &str) -> bool {
    for (of, proof) in call.applied.iter().rev() {
        if *of == attempt && proof == kind {
            return true;
        }
        if attempt == 0 && proof == Proof::Accepted.kind() {
            return false;
        }
    }
    false
}

/// Whether a proof that was recorded before now says that more has moved.
fn says_more(step: &mut Step<'_>, call: &Reservation, settlement: &Settlement) -> Result<bool> {
    if let Some(seen) = &settlement.object {
        let known = step.store.object(&seen.object)?.unwrap_or_default();
        return Ok(seen.moved.micros() > known.moved_micros || (seen.closed && !known.closed));
    }
    Ok(match settlement.proof {
        Proof::Charged { actual } | Proof::ChargedProvisionally { actual } => {
            actual > call.used && call.ended_by.as_deref() != Some(ended::REPLAYED)
        }
        _ => false,
    })
}

fn check_attempt(call: &Reservation, settlement: &Settlement) -> Result<()> {
    let of_an_attempt = matches!(settlement.proof, Proof::DidNotExecute | Proof::NeverSent);
    if settlement.attempt > call.attempts || (of_an_attempt && settlement.attempt == 0) {
        return Err(internal(format!(
            "call {} has {} attempts; none is number {}",
            settlement.call_id, call.attempts, settlement.attempt
        )));
    }
    let amount = match settlement.proof {
        Proof::Charged { actual } | Proof::ChargedProvisionally { actual } => actual,
        Proof::Operator { spent, .. } => spent.unwrap_or_default(),
        _ => Usd::ZERO,
    };
    let moved = settlement.object.as_ref().map_or(Usd::ZERO, |seen| seen.moved);
    if amount.is_negative() || moved.is_negative() {
        return Err(internal(format!(
            "the cost of call {} is below zero",
            settlement.call_id
        )));
    }
    Ok(())
}

/// What the reservation keeps of the settlement.
fn record(
    step: &Step<'_>,
    call: &mut Reservation,
    settlement: &Settlement,
    effect: Effect,
    outcome: &Outcome,
) {
    call.state = outcome.state;
    call.changed_at_ms = step.now_ms;
    if let Some(ended_by) = outcome.ended_by {
        call.ended_by = Some(ended_by.to_owned());
        call.unknown_reason = None;
    } else if outcome.state == State::Pending {
        call.ended_by = None;
        call.unknown_reason = None;
    }
    if outcome.unknown_reason.is_some() {
        call.unknown_reason.clone_from(&outcome.unknown_reason);
    } else if outcome.state == State::Unknown && call.unknown_reason.is_none() {
        call.unknown_reason = Some("deadline".to_owned());
    }
    let says_little = matches!(effect, Effect::Note | Effect::Doubt);
    if !says_little || call.reply_facts.status_code.is_none() {
        let object = call.reply_facts.vendor_object.take();
        call.reply_facts = settlement.facts.clone();
        call.reply_facts.vendor_object = call.reply_facts.vendor_object.take().or(object);
    }
    if settlement.reply.is_some() {
        call.reply.clone_from(&settlement.reply);
    }
}

fn answer(step: &mut Step<'_>, call: &Reservation, overrun: Usd, already: bool) -> Result<SettleAnswer> {
    Ok(SettleAnswer {
        state: call.state,
        used: call.used,
        held: call.held,
        overrun,
        tightest: charge::tightest(step, &call.charges)?,
        already,
    })
}

/// The holder gave up a call that the ledger has not seen: a later reserve of it is refused.
fn tombstone(step: &mut Step<'_>, settlement: &Settlement) -> Result<SettleAnswer> {
    let facts = Arc::new(CallFacts {
        call_id: settlement.call_id.clone(),
        ..CallFacts::default()
    });
    let stone = Reservation {
        facts: Arc::clone(&facts),
        state: State::Voided,
        identity: None,
        generation: 1,
        first_generation: 1,
        counts_inherited: false,
        reserved: Usd::ZERO,
        held: Usd::ZERO,
        used: Usd::ZERO,
        charges: Vec::new(),
        object: None,
        attempts: 1,
        joined_by: Vec::new(),
        aliases: Vec::new(),
        not_executed: vec![settlement.attempt],
        applied: vec![(settlement.attempt, settlement.proof.kind().to_owned())],
        reserved_at_ms: step.now_ms,
        not_after_ms: step.now_ms,
        changed_at_ms: step.now_ms,
        unknown_reason: None,
        ended_by: Some(ended::NEVER_SENT.to_owned()),
        pins: Vec::new(),
        reply_facts: settlement.facts.clone(),
        reply: None,
        lease: None,
    };
    let answer = answer(step, &stone, Usd::ZERO, false)?;
    let body = EventBody {
        facts: Some(facts),
        attempt: Some(settlement.attempt),
        proof: Some(settlement.proof.clone()),
        state: Some(State::Voided),
        reason: stone.ended_by.clone(),
        ..EventBody::default()
    };
    step.append(EventKind::Voided, Some(&settlement.call_id), Vec::new(), body)?;
    step.save(None, stone)?;
    Ok(answer)
}
