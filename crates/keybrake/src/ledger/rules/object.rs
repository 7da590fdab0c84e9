//! Exposure per vendor object: several calls raise one total, and what moves is counted once.

use super::contributors;
use super::step::{Step, corrupt, internal};
use crate::error::Result;
use crate::ledger::store::{Contributor, ObjectRecord};
use crate::ledger::types::{ObjectRaise, ObjectState, Reservation};
use crate::money::Usd;

/// What a raise adds to what is exposed for the object already. A closed object exposes what is recorded.
pub(super) fn added(step: &mut Step<'_>, raise: &ObjectRaise) -> Result<Usd> {
    let exposed = step
        .store
        .object(&raise.object)?
        .map_or(0, |record| record.exposed_micros);
    let added = raise.to.micros().saturating_sub(exposed).max(0);
    Ok(Usd::from_micros(added))
}

/// Notes that a reservation exposes this much for the object.
pub(super) fn contribute(step: &mut Step<'_>, object: &str, call_id: &str, usd: Usd) -> Result<()> {
    let mut record = step.store.object(object)?.unwrap_or_default();
    record.contributors.push(Contributor::Open(call_id.to_owned()));
    expose(&mut record, usd.micros())?;
    step.store.put_object(object, record)
}

/// Changes what an object's contributors expose together.
pub(super) fn expose(record: &mut ObjectRecord, by_micros: i64) -> Result<()> {
    record.exposed_micros = record
        .exposed_micros
        .checked_add(by_micros)
        .ok_or_else(|| internal("the exposure of an object would overflow"))?;
    Ok(())
}

/// A reservation's share of its object: what it shall hold and have used.
#[derive(Clone, Copy)]
pub(super) struct Share {
    pub(super) held: Usd,
    pub(super) used: Usd,
}

/// The other contributors and their new shares, and the settling call's own.
pub(super) struct Allocation {
    pub(super) others: Vec<(Reservation, Share)>,
    pub(super) own: Share,
    /// What moved beyond everything that was ever reserved for the object.
    pub(super) overrun: Usd,
    pub(super) record: ObjectRecord,
}

/// Spreads what the object has moved, a cumulative maximum, over its contributors in order, each in the window
/// that it reserved in; a closed object releases what is still held for it.
///
/// `own` is the settling call's share as its proof leaves it. It becomes a contributor if it was none.
pub(super) fn allocate(
    step: &mut Step<'_>,
    call: &Reservation,
    own: Share,
    seen: &ObjectState,
) -> Result<Allocation> {
    let mut record = step.store.object(&seen.object)?.unwrap_or_default();
    let call_id = &call.facts.call_id;
    if call.object.is_some() {
        contributors::reopen(step, &seen.object, &mut record, call_id)?;
    } else {
        record.contributors.push(Contributor::Open(call_id.clone()));
        let exposed = micros_sum(call.held, call.used)?;
        expose(&mut record, exposed.micros())?;
    }
    record.moved_micros = record.moved_micros.max(seen.moved.micros());
    record.closed |= seen.closed;
    let mut rest = Usd::from_micros(record.moved_micros);
    let mut others = Vec::new();
    let mut own_after = None;
    for contributor in &mut record.contributors {
        let open = match contributor {
            Contributor::Open(open) => open,
            // What holds nothing keeps what it has used, and takes no more.
            Contributor::Final(_, used_micros) | Contributor::Folded { used_micros, .. } => {
                let used = Usd::from_micros(*used_micros);
                rest = difference(rest, used.min(rest))?;
                continue;
            }
        };
        if open == call_id {
            own_after = Some(share(own, &mut rest, record.closed)?);
            continue;
        }
        let Some(other) = step.store.reservation(open)? else {
            return Err(corrupt(format!(
                "the call {open} of an object is not in the ledger"
            )));
        };
        let before = Share {
            held: other.held,
            used: other.used,
        };
        let after = share(before, &mut rest, record.closed)?;
        if after.held != other.held || after.used != other.used {
            others.push((other, after));
        } else if contributors::is_final(&other) {
            *contributor = Contributor::Final(std::mem::take(open), other.used.micros());
        }
    }
    contributors::fold(step, &seen.object, &mut record)?;
    let Some(mut own) = own_after else {
        return Err(internal("a call is not among its object's contributors"));
    };
    own.used = micros_sum(own.used, rest)?;
    Ok(Allocation {
        others,
        own,
        overrun: rest,
        record,
    })
}

/// One contributor's share of what moved: at most what it exposes, and never less than it has used already.
fn share(before: Share, rest: &mut Usd, closed: bool) -> Result<Share> {
    let exposed = micros_sum(before.held, before.used)?;
    let taken = exposed.min(*rest);
    let used = before.used.max(taken);
    *rest = difference(*rest, taken)?;
    let held = if closed {
        Usd::ZERO
    } else {
        difference(exposed, used)?
    };
    Ok(Share { held, used })
}

fn micros_sum(a: Usd, b: Usd) -> Result<Usd> {
    a.checked_add(b)
        .ok_or_else(|| internal("the amounts of an object would overflow"))
}

fn difference(a: Usd, b: Usd) -> Result<Usd> {
    a.checked_sub(b)
        .ok_or_else(|| internal("the amounts of an object would overflow"))
}
