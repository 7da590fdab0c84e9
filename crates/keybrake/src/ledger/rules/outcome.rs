//! The table's effects as numbers: what a proof makes of one reservation, before anything is written.

use super::identity::{ended, settled_elsewhere};
use super::object::Share;
use super::step::{Step, internal};
use crate::error::{Error, Result};
use crate::ledger::events::EventKind;
use crate::ledger::table::Effect;
use crate::ledger::types::{Proof, Reservation, Settlement, State};
use crate::money::Usd;

/// What the count units of a reservation come to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Counts {
    /// They stay as they are.
    Keep,
    /// The call was dispatched: they are used.
    Spend,
    /// The call provably never left: they are returned.
    Return,
}

/// What a proof leads to, before an object's state is looked at.
pub(super) struct Outcome {
    pub(super) state: State,
    pub(super) share: Share,
    pub(super) counts: Counts,
    pub(super) overrun: Usd,
    pub(super) kind: EventKind,
    pub(super) ended_by: Option<&'static str>,
    pub(super) unknown_reason: Option<String>,
}

/// The table's effect as numbers. Nothing is written yet.
pub(super) fn outcome(
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
        // What an object has moved in all is a maximum: it never comes down.
        Effect::Reverse if call.object.is_some() || settlement.object.is_some() => stays(kind_of(from)),
        Effect::Reverse => Outcome {
            state: State::Voided,
            share: Share {
                held: Usd::ZERO,
                used: Usd::ZERO,
            },
            counts: Counts::Spend,
            ended_by: Some(ended::REVERSED),
            ..stays(EventKind::Corrected)
        },
        Effect::VoidSameGeneration => {
            if let Proof::Absent { attempts, .. } = &settlement.proof
                && *attempts != call.attempts
            {
                return Err(Error::ledger(format!(
                    "call {} was tried again while the vendor was being asked; ask again later",
                    settlement.call_id
                )));
            }
            if !step.reached(call.not_after_ms) {
                return Err(internal(format!(
                    "absence proves nothing of call {} before its last attempt can no longer be in flight",
                    settlement.call_id
                )));
            }
            voided(call, ended::ABSENT, Counts::Spend)
        }
        Effect::Decide => decided(step, call, settlement)?,
    })
}

/// The event of something that leaves the state as it is.
pub(super) const fn kind_of(state: State) -> EventKind {
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
    if replays_another(step, call, settlement)? {
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

/// A person's word counts once no attempt can be in flight any more: whoever cancelled a call does not hear what its
/// request still does, and neither does the person who looks at the vendor meanwhile.
fn decided(step: &mut Step<'_>, call: &Reservation, settlement: &Settlement) -> Result<Outcome> {
    if !step.reached(call.not_after_ms) {
        return Err(Error::ledger(format!(
            "call {} may still be in flight; it is decided after its deadline",
            settlement.call_id
        )));
    }
    Ok(match settlement.proof {
        Proof::Operator {
            spent: Some(spent), ..
        } => settled(call, spent, (State::Settled, ended::OPERATOR)),
        _ => voided(call, ended::OPERATOR, Counts::Spend),
    })
}

/// Whether the reply is the vendor's record of a success that another reservation stands for.
fn replays_another(step: &mut Step<'_>, call: &Reservation, settlement: &Settlement) -> Result<bool> {
    let object = settlement.facts.vendor_object.as_deref();
    Ok(settlement.facts.replayed && settled_elsewhere(step, call, object)?)
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
    if call.ended_by.as_deref() == Some(ended::REPLAYED) || replays_another(step, call, settlement)? {
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
pub(super) fn is_read(call: &Reservation) -> bool {
    call.identity.is_none() && !call.facts.moves_money && call.reserved == Usd::ZERO
}
