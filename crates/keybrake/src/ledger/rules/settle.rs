//! What became of a call: one proof at a time, by the table, into the windows that reserved it.

use std::sync::Arc;

use super::charge;
use super::identity::{ended, settled_elsewhere};
use super::object::{self, Allocation, Share};
use super::step::{Step, internal};
use crate::error::{Error, Result};
use crate::ledger::events::{Delta, EventBody, EventKind};
use crate::ledger::store::Store;
use crate::ledger::table::{self, Effect};
use crate::ledger::types::{CallFacts, Proof, Reservation, SettleAnswer, Settlement, State, Unit};
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

/// What the count units of a reservation come to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Counts {
    /// They stay as they are.
    Keep,
    /// The call was dispatched: they are used.
    Spend,
    /// The call provably never left: they are returned.
    Return,
}

/// What a proof leads to, before an object's state is looked at.
struct Outcome {
    state: State,
    share: Share,
    counts: Counts,
    overrun: Usd,
    kind: EventKind,
    ended_by: Option<&'static str>,
    unknown_reason: Option<String>,
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
    let applied = call
        .applied
        .iter()
        .any(|(attempt, proof)| *attempt == settlement.attempt && proof == kind);
    if applied && !says_more(step, &call, settlement)? {
        return answer(step, &call, Usd::ZERO, true);
    }
    check_attempt(&call, settlement)?;
    let from = state_now(&call, step.now_ms);
    let Some(effect) = table::effect(kind, from) else {
        return Err(internal(format!(
            "the proof {kind} cannot be applied to call {}, which is {}",
            settlement.call_id,
            from.as_str(),
        )));
    };
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
fn state_now(call: &Reservation, now_ms: i64) -> State {
    if call.state == State::Held && now_ms >= call.not_after_ms {
        State::Unknown
    } else {
        call.state
    }
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

/// The table's effect as numbers. Nothing is written yet.
fn outcome(
    step: &mut Step<'_>,
    call: &mut Reservation,
    settlement: &Settlement,
    effect: Effect,
    from: State,
) -> Result<Outcome> {
    let stays = |kind| Outcome {
        state: from,
        share: Share {
            held: call.held,
            used: call.used,
        },
        counts: Counts::Keep,
        overrun: Usd::ZERO,
        kind,
        ended_by: None,
        unknown_reason: None,
    };
    Ok(match effect {
        Effect::Settle => charged(step, call, settlement, State::Settled)?,
        Effect::SettleProvisionally => charged(step, call, settlement, State::Provisional)?,
        Effect::Correct => corrected(step, call, settlement)?,
        Effect::Wait => Outcome {
            state: State::Pending,
            counts: Counts::Spend,
            ..stays(EventKind::Pending)
        },
        Effect::HoldAgain => Outcome {
            state: State::Pending,
            counts: Counts::Spend,
            share: Share {
                held: call.reserved,
                used: call.used,
            },
            overrun: call.reserved,
            ..stays(EventKind::Corrected)
        },
        Effect::Note => stays(kind_of(from)),
        Effect::Doubt => Outcome {
            state: State::Unknown,
            counts: if is_read(call) {
                Counts::Spend
            } else {
                Counts::Keep
            },
            unknown_reason: match &settlement.proof {
                Proof::NoProof { reason } => Some(reason.clone()),
                _ => None,
            },
            ..stays(EventKind::Unknown)
        },
        Effect::VoidIfAllProven | Effect::VoidUnsent => attempt_ended(call, settlement, from),
        Effect::VoidForGood => voided(call, ended::DECLINED, Counts::Spend),
        Effect::VoidSameGeneration => {
            if step.now_ms < call.not_after_ms {
                return Err(internal(format!(
                    "absence proves nothing of call {} before its last attempt can no longer be in flight",
                    settlement.call_id
                )));
            }
            voided(call, ended::ABSENT, Counts::Spend)
        }
        Effect::Decide => match settlement.proof {
            Proof::Operator {
                spent: Some(spent), ..
            } => settled(call, spent, (State::Settled, ended::OPERATOR)),
            _ => voided(call, ended::OPERATOR, Counts::Spend),
        },
    })
}

/// The event of something that leaves the state as it is.
const fn kind_of(state: State) -> EventKind {
    match state {
        State::Held => EventKind::Attempt,
        State::Unknown => EventKind::Unknown,
        State::Pending => EventKind::Pending,
        State::Provisional => EventKind::Provisional,
        State::Settled => EventKind::Settled,
        State::Voided => EventKind::Voided,
    }
}

fn charged(
    step: &mut Step<'_>,
    call: &Reservation,
    settlement: &Settlement,
    state: State,
) -> Result<Outcome> {
    if settlement.facts.replayed && settled_elsewhere(step, call)? {
        return Ok(settled(call, Usd::ZERO, (State::Settled, ended::REPLAYED)));
    }
    let (Proof::Charged { actual } | Proof::ChargedProvisionally { actual }) = settlement.proof else {
        return Err(internal("a charge without an amount"));
    };
    if settlement.object.is_some() {
        // The object's state says what moved; the amount is spread over everyone who reserved for it.
        let mut outcome = settled(call, call.used, (state, ended::CHARGED));
        outcome.share.held = call.held;
        outcome.overrun = Usd::ZERO;
        return Ok(outcome);
    }
    Ok(settled(call, actual, (state, ended::CHARGED)))
}

fn settled(call: &Reservation, actual: Usd, (state, ended_by): (State, &'static str)) -> Outcome {
    Outcome {
        state,
        share: Share {
            held: Usd::ZERO,
            used: actual,
        },
        counts: Counts::Spend,
        overrun: above(actual, call.reserved),
        kind: kind_of(state),
        ended_by: Some(ended_by),
        unknown_reason: None,
    }
}

fn above(actual: Usd, reserved: Usd) -> Usd {
    actual.checked_sub(reserved).unwrap_or_default().max(Usd::ZERO)
}

/// Money that moved after the books were closed: up at once, never down.
fn corrected(step: &mut Step<'_>, call: &Reservation, settlement: &Settlement) -> Result<Outcome> {
    let voided = call.state == State::Voided;
    if call.ended_by.as_deref() == Some(ended::REPLAYED)
        || (settlement.facts.replayed && settled_elsewhere(step, call)?)
    {
        let mut nothing_new = settled(call, call.used, (State::Settled, ended::REPLAYED));
        nothing_new.overrun = Usd::ZERO;
        return Ok(nothing_new);
    }
    let (Proof::Charged { actual } | Proof::ChargedProvisionally { actual }) = settlement.proof else {
        return Err(internal("a charge without an amount"));
    };
    let used = match settlement.object {
        Some(_) => call.used,
        None => call.used.max(actual),
    };
    let mut outcome = settled(call, used, (State::Settled, ended::CHARGED));
    outcome.overrun = match voided {
        true => used,
        false if used > call.used => outcome.overrun,
        false => Usd::ZERO,
    };
    if voided || used > call.used {
        outcome.kind = EventKind::Corrected;
    }
    Ok(outcome)
}

fn voided(call: &Reservation, ended_by: &'static str, counts: Counts) -> Outcome {
    // What an object has moved of it stays used.
    let moved = call.used > Usd::ZERO;
    let state = if moved { State::Settled } else { State::Voided };
    Outcome {
        state,
        share: Share {
            held: Usd::ZERO,
            used: call.used,
        },
        counts,
        overrun: Usd::ZERO,
        kind: kind_of(state),
        ended_by: Some(if moved { ended::CHARGED } else { ended_by }),
        unknown_reason: None,
    }
}

/// One attempt is proven not to have executed. The hold ends only when every permitted attempt is; the count
/// units come back only when none of them left.
fn attempt_ended(call: &mut Reservation, settlement: &Settlement, from: State) -> Outcome {
    if !call.not_executed.contains(&settlement.attempt) {
        call.not_executed.push(settlement.attempt);
    }
    let proven = u32::try_from(call.not_executed.len()).unwrap_or(u32::MAX);
    if proven < call.attempts {
        return Outcome {
            state: from,
            share: Share {
                held: call.held,
                used: call.used,
            },
            counts: Counts::Keep,
            overrun: Usd::ZERO,
            kind: if from == State::Held {
                EventKind::Attempt
            } else {
                kind_of(from)
            },
            ended_by: None,
            unknown_reason: None,
        };
    }
    let unsent = Proof::NeverSent.kind();
    let this_left = settlement.proof.kind() != unsent;
    let another_left = call
        .not_executed
        .iter()
        .filter(|attempt| **attempt != settlement.attempt)
        .any(|attempt| {
            !call
                .applied
                .iter()
                .any(|(n, proof)| n == attempt && proof == unsent)
        });
    if this_left || another_left {
        voided(call, ended::DID_NOT_EXECUTE, Counts::Spend)
    } else {
        voided(call, ended::NEVER_SENT, Counts::Return)
    }
}

/// A read: nothing about it can be proven later, and nothing needs to be.
fn is_read(call: &Reservation) -> bool {
    call.identity.is_none() && !call.facts.moves_money && call.reserved == Usd::ZERO
}

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
fn change(
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
fn expose(step: &mut Step<'_>, call: &Reservation, share: &Share) -> Result<()> {
    let Some(object) = &call.object else {
        return Ok(());
    };
    let by = exposure(share.held, share.used).saturating_sub(exposure(call.held, call.used));
    if by == 0 {
        return Ok(());
    }
    let mut record = step.store.object(object)?.unwrap_or_default();
    object::expose(&mut record, by)?;
    step.store.put_object(object, record)
}

const fn exposure(held: Usd, used: Usd) -> i64 {
    held.micros().saturating_add(used.micros())
}

/// Takes an object's allocation over: into the settling call's outcome, and as corrections into the others.
fn spread(
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
