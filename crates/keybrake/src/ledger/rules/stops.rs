//! Standing refusals. Looked at in the same step as the money, and when keys are issued.

use std::collections::{BTreeSet, HashMap};

use super::acts;
use super::step::{Step, admin_body};
use super::sweep::lapse;
use crate::error::Result;
use crate::ledger::events::EventKind;
use crate::ledger::store::{KeyState, Store};
use crate::ledger::types::{
    AdminNote, CallFacts, Grant, HoldFilter, KeyRecord, Reservation, State, Stop, StopAnswer, StopScope, Told,
};
use crate::policy::{Code, Denial, StopView};

/// Calls in flight that an answer lists.
const IN_FLIGHT: usize = 100;

/// Sets a stop, or answers the one that stands already; a `hard` one makes that hard.
pub fn stop(
    store: &mut dyn Store,
    clock_ms: i64,
    scope: &StopScope,
    note: &AdminNote,
    hard: bool,
) -> Result<StopAnswer> {
    let mut step = Step::begin(store, clock_ms)?;
    lapse(&mut step)?;
    let stop = set(&mut step, scope, note, hard)?;
    let (keys_refused, other_runs) = reach(&mut step, scope)?;
    let in_flight = in_flight(&mut step, scope)?;
    step.finish()?;
    Ok(StopAnswer {
        stop,
        keys_refused,
        in_flight,
        other_runs,
        told: Told::NotAsked,
    })
}

/// Sets a stop, and looks at nothing else: for a backend where looking takes time.
pub fn set_stop(
    store: &mut dyn Store,
    clock_ms: i64,
    scope: &StopScope,
    note: &AdminNote,
    hard: bool,
) -> Result<()> {
    let mut step = Step::begin(store, clock_ms)?;
    set(&mut step, scope, note, hard)?;
    step.finish()
}

fn set(step: &mut Step<'_>, scope: &StopScope, note: &AdminNote, hard: bool) -> Result<Stop> {
    let stop = match step.store.stop(scope)? {
        Some(standing) if standing.hard || !hard => return Ok(standing),
        Some(standing) => Stop { hard, ..standing },
        None => {
            step.meta.stops = step.meta.stops.saturating_add(1);
            Stop {
                scope: scope.clone(),
                since_ms: step.now_ms,
                admin: note.clone(),
                hard,
            }
        }
    };
    step.store.put_stop(&stop)?;
    acts::note_stop(step, scope, stop.since_ms)?;
    let detail = [("hard", true.into())];
    let body = admin_body("stop", scope.name(), note, if hard { &detail } else { &[] });
    step.append(EventKind::Admin, None, Vec::new(), body)?;
    Ok(stop)
}

/// Ends a stop; answers whether there was one.
pub fn resume(store: &mut dyn Store, clock_ms: i64, scope: &StopScope, note: &AdminNote) -> Result<bool> {
    let mut step = Step::begin(store, clock_ms)?;
    if step.store.stop(scope)?.is_none() {
        return Ok(false);
    }
    step.store.remove_stop(scope)?;
    let now_ms = step.now_ms;
    acts::note_stop(&mut step, scope, now_ms)?;
    step.meta.stops = step.meta.stops.saturating_sub(1);
    let body = admin_body("resume", scope.name(), note, &[]);
    step.append(EventKind::Admin, None, Vec::new(), body)?;
    step.finish()?;
    Ok(true)
}

/// Open keys that a stop refuses, and open runs that it does not touch.
fn reach(step: &mut Step<'_>, scope: &StopScope) -> Result<(u32, u32)> {
    let mut refused = 0_u32;
    let mut others = BTreeSet::new();
    let records = step.store.key_records()?;
    let by_id: HashMap<&str, &KeyRecord> = records.iter().map(|key| (key.id.as_str(), key)).collect();
    for record in &records {
        let state = step.store.key_state(&record.id)?;
        let open = state.is_some_and(|key| key.revoked_at_ms.is_none() && !step.reached(key.expires_at_ms));
        if !open {
            continue;
        }
        let ancestors = record.ancestors.iter().filter_map(|id| by_id.get(id.as_str()));
        let mut family = ancestors.copied().chain([record]);
        if family.any(|member| covers_key(scope, member)) {
            refused = refused.saturating_add(1);
        } else if let Some(run) = &record.run {
            others.insert(run.clone());
        }
    }
    Ok((refused, u32::try_from(others.len()).unwrap_or(u32::MAX)))
}

fn covers_key(scope: &StopScope, key: &KeyRecord) -> bool {
    let is = |own: &Option<String>, id: &String| own.as_ref() == Some(id);
    match scope {
        StopScope::All => true,
        StopScope::Run(id) => is(&key.run, id),
        StopScope::Agent(id) => is(&key.agent, id),
        StopScope::Label(id) => is(&key.label, id),
        StopScope::Group(id) => key.groups.contains(id),
        StopScope::Key(id) => key.id == *id || key.ancestors.contains(id),
        StopScope::Vendor(id) => opens_vendor(&key.policy_json, id),
    }
}

/// Whether a policy document names a vendor.
fn opens_vendor(policy_json: &str, vendor: &str) -> bool {
    let Ok(policy) = serde_json::from_str::<serde_json::Value>(policy_json) else {
        return false;
    };
    let named = |field: &str| match policy.get(field) {
        Some(serde_json::Value::String(name)) => name == vendor,
        Some(serde_json::Value::Array(names)) => names.iter().any(|name| name == vendor),
        Some(serde_json::Value::Object(by_name)) => by_name.contains_key(vendor),
        _ => false,
    };
    ["vendor", "vendors", "allowed_endpoints", "per_vendor_daily_caps"]
        .into_iter()
        .any(named)
}

/// Held calls that the scope covers and that may still complete.
fn in_flight(step: &mut Step<'_>, scope: &StopScope) -> Result<Vec<Reservation>> {
    let run = match scope {
        StopScope::Run(id) => Some(id.clone()),
        _ => None,
    };
    let held = step.store.open_reservations(&HoldFilter {
        run,
        state: Some(State::Held),
        limit: 10_000,
    })?;
    Ok(held
        .into_iter()
        .filter(|call| call.lease.is_none() && covers_call(scope, &call.facts))
        .take(IN_FLIGHT)
        .collect())
}

/// Whether a stop covers a call that was let through: by what it is itself, and by what its key and the key's ancestors
/// (`family`) are bound to.
pub fn covers(scope: &StopScope, facts: &CallFacts, family: &[KeyRecord]) -> bool {
    covers_call(scope, facts) || family.iter().any(|key| bindings(key).contains(scope))
}

fn covers_call(scope: &StopScope, facts: &CallFacts) -> bool {
    let is = |own: &Option<String>, id: &String| own.as_ref() == Some(id);
    match scope {
        StopScope::All => true,
        StopScope::Run(id) => is(&facts.run, id),
        StopScope::Agent(id) => is(&facts.agent, id),
        StopScope::Label(id) => is(&facts.label, id),
        StopScope::Group(id) => facts.groups.contains(id),
        StopScope::Vendor(id) => is(&facts.vendor, id),
        StopScope::Key(id) => is(&facts.key_id, id),
    }
}

/// The stop that covers a call, if any: everything, its vendor, its key and the key's ancestors, and whatever
/// these are bound to. Costs nothing while no stop stands.
pub(super) fn covering(
    step: &mut Step<'_>,
    facts: &CallFacts,
    key_id: &str,
    key: &KeyState,
) -> Result<Option<Stop>> {
    if step.meta.stops == 0 {
        return Ok(None);
    }
    let mut scopes = vec![StopScope::All];
    scopes.extend(facts.vendor.clone().map(StopScope::Vendor));
    scopes.push(StopScope::Key(key_id.to_owned()));
    scopes.extend(facts.run.clone().map(StopScope::Run));
    scopes.extend(facts.agent.clone().map(StopScope::Agent));
    scopes.extend(facts.label.clone().map(StopScope::Label));
    scopes.extend(facts.groups.iter().cloned().map(StopScope::Group));
    for id in std::iter::once(key_id).chain(key.ancestors.iter().map(String::as_str)) {
        if let Some(record) = step.store.key_record(id)? {
            scopes.extend(bindings(&record));
        }
    }
    first_standing(step, scopes)
}

/// The stop that covers a key about to be issued, if any.
pub(super) fn covering_issue(step: &mut Step<'_>, key: &KeyRecord) -> Result<Option<Stop>> {
    if step.meta.stops == 0 {
        return Ok(None);
    }
    let mut scopes = vec![StopScope::All];
    scopes.extend(bindings(key));
    for id in &key.ancestors {
        if let Some(record) = step.store.key_record(id)? {
            scopes.extend(bindings(&record));
        }
    }
    first_standing(step, scopes)
}

fn bindings(key: &KeyRecord) -> Vec<StopScope> {
    let mut scopes = vec![StopScope::Key(key.id.clone())];
    scopes.extend(key.run.clone().map(StopScope::Run));
    scopes.extend(key.agent.clone().map(StopScope::Agent));
    scopes.extend(key.label.clone().map(StopScope::Label));
    scopes.extend(key.groups.iter().cloned().map(StopScope::Group));
    scopes
}

fn first_standing(step: &mut Step<'_>, scopes: Vec<StopScope>) -> Result<Option<Stop>> {
    for scope in scopes {
        if let Some(stop) = step.store.stop(&scope)? {
            return Ok(Some(stop));
        }
    }
    Ok(None)
}

/// What the caller of a call is told that a hard stop aborted in flight.
pub fn aborted(stop: &Stop, grant: &Grant) -> Denial {
    let mut denial = denial(stop);
    denial.message = format!(
        "{} was stopped by {}: {}. This call was in flight and was aborted: whether it took effect is unknown, and its \
         amount stays held until that is known (call {})",
        stop.scope.name(),
        stop.admin.by,
        stop.admin.reason,
        grant.call_id
    );
    denial.aborted = true;
    denial
}

/// `billing is stopped since … by …`
pub(super) fn denial(stop: &Stop) -> Denial {
    let scope = stop.scope.name();
    let message = format!(
        "{scope} was stopped by {}: {}. Nothing is sent until it is resumed",
        stop.admin.by, stop.admin.reason
    );
    let mut denial = Denial::new(Code::Stopped, message);
    denial.stop = Some(StopView {
        scope,
        reason: stop.admin.reason.clone(),
        since_ms: stop.since_ms,
        by: stop.admin.by.clone(),
    });
    denial
}
