//! Two records of one call made one: the rank of their states, and where a history says more than a rank.

use super::identity::ended;
use crate::ledger::types::{Charge, Reservation, State, Unit};

/// What stands there, with what is claimed beside it. The outcome is taken from the one that says more; attempts,
/// proofs and deadlines are those of both.
pub(super) fn merge(there: &Reservation, claimed: &Reservation) -> Reservation {
    let (base, other) = if says_more(claimed, there) {
        (claimed, there)
    } else {
        (there, claimed)
    };
    let mut merged = base.clone();
    merged.charges = charges(&there.charges, base, &other.charges);
    merged.identity = base.identity.clone().or_else(|| other.identity.clone());
    merged.object = there.object.clone().or_else(|| claimed.object.clone());
    merged.attempts = there.attempts.max(claimed.attempts);
    merged.joined_by = union(&there.joined_by, &claimed.joined_by);
    merged.aliases = union(&there.aliases, &claimed.aliases);
    let joined = u32::try_from(merged.joined_by.len()).unwrap_or(u32::MAX);
    merged.attempts = merged.attempts.max(joined.saturating_add(1));
    merged.not_executed = union(&there.not_executed, &claimed.not_executed);
    merged.applied = union(&there.applied, &claimed.applied);
    merged.not_after_ms = there.not_after_ms.max(claimed.not_after_ms);
    merged.changed_at_ms = there.changed_at_ms.max(claimed.changed_at_ms);
    merged.reply = base.reply.clone().or_else(|| other.reply.clone());
    if let (Some(lease), Some(beside)) = (&mut merged.lease, &other.lease) {
        lease.late = union(&lease.late, &beside.late);
    }
    merged
}

/// The charges that stand in the books, with the amounts of the record that says more; then those of its budgets that
/// do not stand there. A call takes each budget once, whatever window it came into.
fn charges(there: &[Charge], base: &Reservation, beside: &[Charge]) -> Vec<Charge> {
    let of_base = |budget: &Charge| {
        let same = base.charges.iter().find(|own| own.counter == budget.counter);
        same.or_else(|| base.charges.iter().find(|own| own.budget == budget.budget))
    };
    let mut charges: Vec<Charge> = there.to_vec();
    for more in base.charges.iter().chain(beside) {
        if !charges.iter().any(|charge| charge.budget == more.budget) {
            charges.push(more.clone());
        }
    }
    for charge in &mut charges {
        if charge.unit == Unit::Usd {
            (charge.used, charge.held) = (base.used.micros(), base.held.micros());
        } else if let Some(own) = of_base(charge) {
            (charge.used, charge.held) = (own.used, own.held);
        }
    }
    charges
}

fn union<T: Clone + PartialEq>(first: &[T], second: &[T]) -> Vec<T> {
    let mut all = first.to_vec();
    for one in second {
        if !all.contains(one) {
            all.push(one.clone());
        }
    }
    all
}

/// Whether the first says more of the call's outcome than the second.
fn says_more(first: &Reservation, second: &Reservation) -> bool {
    // A later step of a lease knows of all before it, and its holder goes on from it, whatever became of an older one.
    if let (Some(now), Some(then)) = (&first.lease, &second.lease)
        && now.number != then.number
    {
        return now.number > then.number;
    }
    if continues(first, second) || continues(second, first) {
        return continues(first, second);
    }
    (rank(first, second), first.used) > (rank(second, first), second.used)
}

/// Whether the first is what became of the second, against the rank of their states: it was undone after it was
/// settled, or it is held again after it was voided.
fn continues(first: &Reservation, second: &Reservation) -> bool {
    let later = first.applied.len() > second.applied.len()
        && second.applied.iter().all(|proof| first.applied.contains(proof));
    let reversed = first.ended_by.as_deref() == Some(ended::REVERSED);
    later
        && match (first.state, second.state) {
            (State::Voided, State::Settled | State::Provisional) => reversed,
            (State::Pending, State::Voided) => true,
            _ => false,
        }
}

fn rank(call: &Reservation, beside: &Reservation) -> u8 {
    match call.state {
        State::Voided if !covers_attempts(call, beside) => 0,
        State::Held => 1,
        State::Unknown => 2,
        State::Pending => 3,
        State::Provisional => 4,
        State::Voided => 5,
        State::Settled => 6,
    }
}

/// Whether a void is proven of the attempts that the other record knows, too. What the vendor refused for good, or a
/// person decided, is about the call and not about its attempts.
fn covers_attempts(voided: &Reservation, beside: &Reservation) -> bool {
    let of_attempts = matches!(
        voided.ended_by.as_deref(),
        Some(ended::NEVER_SENT | ended::DID_NOT_EXECUTE | ended::ABSENT)
    );
    let known = beside.attempts <= voided.attempts
        && beside
            .joined_by
            .iter()
            .all(|call| voided.joined_by.contains(call));
    known || !of_attempts
}
