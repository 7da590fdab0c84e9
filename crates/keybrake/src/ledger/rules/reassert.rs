//! What was decided before and may have been lost: merged into what stands, without deciding anything anew.

use std::sync::Arc;

use serde_json::json;

use super::acts;
use super::charge::amount;
use super::contributors;
use super::identity;
use super::keys::{check_def, note_group};
use super::lease;
use super::merge::merge;
use super::object;
use super::step::{ROLLING_MS, Step, admin_body, split_bucket};
use crate::error::{Error, Result};
use crate::ledger::events::{Delta, EventBody, EventKind, IdentityNote};
use crate::ledger::reassertion::{
    BudgetAssertion, CallAssertion, KeyAssertion, Reasserted, Reassertion, StopAssertion,
};
use crate::ledger::store::{Contributor, KeyState, Rolling, Store};
use crate::ledger::types::{AdminNote, Charge, Reservation, State, Stop, Unit, Window};
use crate::money::Usd;

/// The reason in the event of a lease that stands again.
const SAID_AGAIN: &str = "said_again";

/// Merges all of it in. Caps, stops, revocations and versions of keys refuse nothing of it; each change has its event.
pub fn reassert(store: &mut dyn Store, clock_ms: i64, said: &Reassertion) -> Result<Reasserted> {
    for asserted in &said.calls {
        check(&asserted.call)?;
    }
    let mut step = Step::begin(store, clock_ms)?;
    let mut came_to = Reasserted::default();
    let mut count = |changed: bool| {
        let counted = if changed {
            &mut came_to.changed
        } else {
            &mut came_to.unchanged
        };
        *counted = counted.saturating_add(1);
    };
    for asserted in &said.budgets {
        count(budget(&mut step, asserted)?);
    }
    for asserted in &said.keys {
        count(key(&mut step, asserted)?);
    }
    for asserted in &said.stops {
        count(stop(&mut step, asserted)?);
    }
    for asserted in &said.calls {
        count(call(&mut step, asserted)?);
    }
    step.finish()?;
    Ok(came_to)
}

/// What no ledger has written.
fn check(call: &Reservation) -> Result<()> {
    let below_zero = call.used.is_negative() || call.held.is_negative() || call.reserved.is_negative();
    let wrong = call.charges.iter().any(|charge| {
        let money = (call.used.micros(), call.held.micros());
        charge.used < 0
            || charge.held < 0
            || (charge.unit == Unit::Usd && (charge.used, charge.held) != money)
    });
    if below_zero || wrong {
        return Err(Error::policy(format!(
            "the amounts of call {} do not agree with its charges; it is not taken over",
            call.facts.call_id
        )));
    }
    Ok(())
}

/// The event of an administrative act that was lost and is there again.
fn admin_event(
    step: &mut Step<'_>,
    (act, subject): (&str, String),
    note: &AdminNote,
    detail: &[(&str, serde_json::Value)],
) -> Result<()> {
    let body = admin_body(act, subject, note, detail);
    step.append(EventKind::Reasserted, None, Vec::new(), body)
}

fn recovery() -> AdminNote {
    AdminNote {
        by: "keybrake".to_owned(),
        reason: "the ledger had lost it".to_owned(),
    }
}

fn budget(step: &mut Step<'_>, asserted: &BudgetAssertion) -> Result<bool> {
    let BudgetAssertion { def, at_ms } = asserted;
    check_def(def)?;
    let id = def.id();
    let there = step.store.budget(&id)?;
    if let Some(there) = &there {
        let same_shape = there.window == def.window && there.timezone == def.timezone;
        if !same_shape || there.cap == def.cap {
            return Ok(false);
        }
        match acts::last_cap(step, &id)? {
            Some(last_ms) if last_ms > *at_ms => return Ok(false),
            Some(last_ms) if last_ms == *at_ms && there.cap < def.cap => return Ok(false),
            _ => {}
        }
    } else {
        note_group(step, def);
    }
    step.store.put_budget(def)?;
    acts::note_cap(step, &id, *at_ms)?;
    let detail = [
        ("unit", json!(def.unit.as_str())),
        ("per", json!(def.window.as_str())),
        ("old_cap", json!(there.map(|there| there.cap))),
        ("cap", json!(def.cap)),
        ("shown", json!(amount(def.unit, def.cap))),
    ];
    admin_event(step, ("put_budget", id.0), &recovery(), &detail)?;
    Ok(true)
}

fn key(step: &mut Step<'_>, asserted: &KeyAssertion) -> Result<bool> {
    let there = step.store.key_state(&asserted.key_id)?;
    let state = match &there {
        Some(there) => KeyState {
            version: there.version.max(asserted.version),
            revoked_at_ms: match (there.revoked_at_ms, asserted.revoked_at_ms) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            },
            ..there.clone()
        },
        None => KeyState {
            version: asserted.version,
            expires_at_ms: asserted.expires_at_ms,
            revoked_at_ms: asserted.revoked_at_ms,
            ancestors: asserted.ancestors.clone(),
            open_holds: 0,
        },
    };
    let record = match &asserted.record {
        Some(record) if step.store.key_record(&asserted.key_id)?.is_none() => Some(record),
        _ => None,
    };
    if there.as_ref() == Some(&state) && record.is_none() {
        return Ok(false);
    }
    let revoked = there.is_some_and(|there| there.revoked_at_ms != state.revoked_at_ms);
    step.store.put_key_state(&asserted.key_id, &state)?;
    if let Some(record) = record {
        step.store.put_key_record(record)?;
    }
    let act = if revoked || asserted.record.is_none() {
        "revoke"
    } else {
        "issue"
    };
    let detail = [
        ("expires_at_ms", json!(state.expires_at_ms)),
        ("revoked_at_ms", json!(state.revoked_at_ms)),
    ];
    admin_event(step, (act, asserted.key_id.clone()), &recovery(), &detail)?;
    Ok(true)
}

fn stop(step: &mut Step<'_>, asserted: &StopAssertion) -> Result<bool> {
    let StopAssertion { stop, ended_at_ms } = asserted;
    let scope = &stop.scope;
    let done_ms = ended_at_ms.unwrap_or(stop.since_ms);
    let last_ms = acts::last_stop(step, scope)?;
    if last_ms.is_some_and(|last_ms| last_ms > done_ms) {
        return Ok(false);
    }
    let there = step.store.stop(scope)?;
    match (&there, ended_at_ms) {
        (Some(there), None) if stop.hard && !there.hard => {
            let hard = Stop {
                hard: true,
                ..there.clone()
            };
            step.store.put_stop(&hard)?;
            let detail = [("hard", json!(true))];
            admin_event(step, ("stop", scope.name()), &stop.admin, &detail)?;
        }
        (Some(_), None) => return Ok(false),
        (None, None) => {
            step.store.put_stop(stop)?;
            step.meta.stops = step.meta.stops.saturating_add(1);
            let detail = [("hard", json!(true))];
            let detail = if stop.hard { &detail[..] } else { &[] };
            admin_event(step, ("stop", scope.name()), &stop.admin, detail)?;
        }
        (Some(there), Some(ended_ms)) if there.since_ms >= *ended_ms => return Ok(false),
        (None, Some(_)) if last_ms == Some(done_ms) => return Ok(false),
        (there, Some(_)) => {
            if there.is_some() {
                step.store.remove_stop(scope)?;
                step.meta.stops = step.meta.stops.saturating_sub(1);
            }
            admin_event(step, ("resume", scope.name()), &recovery(), &[])?;
        }
    }
    acts::note_stop(step, scope, done_ms)?;
    Ok(true)
}

fn call(step: &mut Step<'_>, asserted: &CallAssertion) -> Result<bool> {
    let call_id = &asserted.call.facts.call_id;
    let there = step.store.reservation(call_id)?;
    let mut merged = match &there {
        Some(there) => merge(there, &asserted.call),
        None => asserted.call.clone(),
    };
    identity::add_aliases(&mut merged, &asserted.found_by);
    let same = there.as_ref() == Some(&merged);
    let found = identity::find_again(step, &merged, &asserted.found_by)?;
    let seen = expose(step, there.as_ref(), &merged, asserted)?;
    if same && !found && !seen {
        return Ok(false);
    }
    let mut deltas = Vec::with_capacity(merged.charges.len());
    for charge in &merged.charges {
        let before = there.as_ref().and_then(|there| {
            let same = there.charges.iter().find(|own| own.counter == charge.counter);
            same.map(|own| (own.used, own.held))
        });
        recount(step, charge, before.unwrap_or_default(), &mut deltas)?;
    }
    let body = body(&merged, there.as_ref());
    let kind = if merged.lease.is_some() {
        // A stop that comes now has to find it.
        lease::list(step, &merged, merged.state == State::Held)?;
        EventKind::Leased
    } else {
        EventKind::Reasserted
    };
    step.append(kind, Some(call_id), deltas, body)?;
    let before = there.map(|there| (there.state, there.holds_something()));
    step.save(before, merged)?;
    Ok(true)
}

/// Carries the difference into a charge's counter, and its window into the ledger if that is lost too.
fn recount(step: &mut Step<'_>, charge: &Charge, before: (i64, i64), deltas: &mut Vec<Delta>) -> Result<()> {
    let by = (
        charge.used.saturating_sub(before.0),
        charge.held.saturating_sub(before.1),
    );
    if by == (0, 0) {
        return Ok(());
    }
    if charge.rolling {
        let (family, bucket_ms) = split_bucket(&charge.counter)?;
        if step.store.rolling(family)?.is_none() {
            // What has left the window by now is in none of its sums.
            let oldest_ms = if step.bucket_expired(bucket_ms) {
                step.bucket_ms().saturating_sub(ROLLING_MS)
            } else {
                bucket_ms
            };
            let begun = Rolling {
                oldest_ms,
                ..Rolling::default()
            };
            step.store.put_rolling(family, begun)?;
        }
    } else if let Some(end_ms) = charge.window_end_ms {
        let (family, start_ms) = split_bucket(&charge.counter)?;
        let recorded = step.store.window(family)?;
        if recorded.is_none_or(|window| window.end_ms <= start_ms) {
            step.store.put_window(family, Window { start_ms, end_ms })?;
        }
    }
    step.add(&charge.counter, charge.rolling, by, deltas)
}

/// Keeps the call's object what its contributors expose. Answers whether that changed.
fn expose(
    step: &mut Step<'_>,
    there: Option<&Reservation>,
    merged: &Reservation,
    asserted: &CallAssertion,
) -> Result<bool> {
    let Some(object) = &merged.object else {
        return Ok(false);
    };
    let call_id = &merged.facts.call_id;
    let mut record = step.store.object(object)?.unwrap_or_default();
    let before = record.clone();
    let exposed = |call: &Reservation| call.held.micros().saturating_add(call.used.micros());
    let contributed = there.filter(|there| there.object.as_ref() == Some(object));
    let by = exposed(merged).saturating_sub(contributed.map_or(0, exposed));
    if contributed.is_none() {
        record.contributors.push(Contributor::Open(call_id.clone()));
    } else if by != 0 || contributed.is_some_and(|there| there.state != merged.state) {
        contributors::reopen(step, object, &mut record, call_id)?;
    }
    object::expose(&mut record, by)?;
    if let Some(seen) = asserted.object.as_ref().filter(|seen| seen.object == *object) {
        record.moved_micros = record.moved_micros.max(seen.moved.micros());
        record.closed |= seen.closed;
    }
    if record == before {
        return Ok(false);
    }
    step.store.put_object(object, record)?;
    Ok(true)
}

fn body(merged: &Reservation, there: Option<&Reservation>) -> EventBody {
    let call_id = &merged.facts.call_id;
    let open = matches!(merged.state, State::Held | State::Unknown | State::Pending);
    let above = |call: &Reservation| {
        let above = call.used.checked_sub(call.reserved).unwrap_or_default();
        above.max(Usd::ZERO).micros()
    };
    let overrun = above(merged).saturating_sub(there.map_or(0, above));
    EventBody {
        facts: Some(Arc::clone(&merged.facts)),
        identity: merged.identity.as_ref().map(|own| IdentityNote {
            id: own.id.clone(),
            kind: own.kind,
            generation: merged.generation,
        }),
        attempt: Some(merged.attempts),
        amount_micros: Some(if open { merged.reserved } else { merged.used }.micros()),
        reply: Some(merged.reply_facts.clone()),
        state: Some(merged.state),
        reason: merged
            .ended_by
            .clone()
            .or_else(|| merged.unknown_reason.clone())
            .or_else(|| merged.lease.is_some().then(|| SAID_AGAIN.to_owned())),
        lease: merged.lease.as_ref().map(|state| lease::note_of(call_id, state)),
        overrun_micros: (overrun > 0).then_some(overrun),
        pins: merged.pins.clone(),
        begins: there.is_none(),
        ..EventBody::default()
    }
}
