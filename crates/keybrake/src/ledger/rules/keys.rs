//! Keys: issue, look up, revoke.

use std::collections::BTreeSet;

use serde_json::json;

use super::step::{Step, admin_body, corrupt};
use super::stops;
use crate::error::{Error, Result};
use crate::ledger::events::EventKind;
use crate::ledger::store::{KeyState, Store};
use crate::ledger::types::{
    AdminNote, BudgetDef, BudgetRef, IssueKey, KeyRecord, Scope, TokenHash, WindowKind,
};

/// Records a key, creates the budgets that do not exist, and answers the record as the engine shall cache it.
pub fn issue_key(store: &mut dyn Store, clock_ms: i64, issue: &IssueKey) -> Result<KeyRecord> {
    let mut step = Step::begin(store, clock_ms)?;
    let mut key = issue.key.clone();
    check_ids(&key)?;
    if step.store.key_state(&key.id)?.is_some() || step.store.key_id_by_token(&key.token_hash)?.is_some() {
        return Err(Error::policy(format!("the key {} exists already", key.id)));
    }
    if let Some(stop) = stops::covering_issue(&mut step, &key)? {
        let mut denial = stops::denial(&stop);
        denial.message = format!(
            "no key is issued while {} is stopped (by {}: {}); keybrake resume ends it",
            stop.scope.name(),
            stop.admin.by,
            stop.admin.reason,
        );
        return Err(Error::denied(denial));
    }
    key.issued_at_ms = step.now_ms;
    key.revoked_at_ms = None;
    key.version = 1;
    if let Some(lifetime_ms) = issue.expires_in_ms {
        key.expires_at_ms = step.now_ms.saturating_add(lifetime_ms);
    }
    let inherited = inherit(&mut step, &mut key)?;
    if step.reached(key.expires_at_ms) {
        return Err(Error::policy(
            "the key would have expired before it was issued: expires_in, expires_at",
        ));
    }
    // Only its own budgets are compared with those that exist: an ancestor's cap may have been changed since.
    attach(&mut step, &key.budgets)?;
    for budget in inherited {
        add_ref(&mut key.budgets, budget);
    }
    check_groups(&mut step, &key, &issue.attribution_only)?;
    step.store.put_key_state(
        &key.id,
        &KeyState {
            version: 1,
            expires_at_ms: key.expires_at_ms,
            revoked_at_ms: None,
            ancestors: key.ancestors.clone(),
            open_holds: 0,
        },
    )?;
    step.store.put_key_record(&key)?;
    let detail = [
        ("lineage", json!(key.lineage)),
        ("agent", json!(key.agent)),
        ("label", json!(key.label)),
        ("run", json!(key.run)),
        ("groups", json!(key.groups)),
        ("expires_at_ms", json!(key.expires_at_ms)),
    ];
    let body = admin_body("issue", key.id.clone(), &issue.admin, &detail);
    step.append(EventKind::Admin, None, Vec::new(), body)?;
    let key = complete(&mut step, key)?;
    step.finish()?;
    Ok(key)
}

/// Ids become parts of counters' names and of the log.
fn check_ids(key: &KeyRecord) -> Result<()> {
    let named = [
        ("key", Some(&key.id)),
        ("lineage", Some(&key.lineage)),
        ("agent", key.agent.as_ref()),
        ("label", key.label.as_ref()),
        ("run", key.run.as_ref()),
    ];
    let groups = key.groups.iter().map(|group| ("group", Some(group)));
    for (what, id) in named.into_iter().chain(groups) {
        let Some(id) = id else { continue };
        check_id(what, id)?;
    }
    for budget in &key.budgets {
        check_def(&budget.def)?;
    }
    Ok(())
}

fn check_id(what: &str, id: &str) -> Result<()> {
    let letters = id
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b':' | b'-'));
    if id.is_empty() || id.len() > 128 || !letters || (what == "run" && id.contains("::")) {
        return Err(Error::policy(format!(
            "{what} {:?} must be 1 to 128 letters, digits, _ . : or - (and no :: in a run)",
            id.chars().take(140).collect::<String>()
        )));
    }
    Ok(())
}

/// What a budget must be before it can name a counter.
pub(super) fn check_def(def: &BudgetDef) -> Result<()> {
    match &def.scope {
        Scope::Customer(id) if id == "*" => {}
        Scope::Customer(_) => {
            return Err(Error::policy(
                "a budget per customer is for all customers: customer:*",
            ));
        }
        Scope::Lineage(id) => check_id("lineage", id)?,
        Scope::Run(id) => check_id("run", id)?,
        Scope::Group(id) => check_id("group", id)?,
    }
    if let Some(vendor) = &def.vendor {
        check_id("vendor", vendor)?;
    }
    if def.cap < 0 {
        return Err(Error::policy(format!("the cap of {} is below zero", def.id().0)));
    }
    if def.window == WindowKind::Run && !matches!(def.scope, Scope::Run(_)) {
        return Err(Error::policy(format!(
            "{} is per run, but its scope is no run",
            def.id().0
        )));
    }
    Ok(())
}

/// The ancestors' budgets, which are the child's too. Their end is the child's at the latest, and they must be
/// open.
fn inherit(step: &mut Step<'_>, key: &mut KeyRecord) -> Result<Vec<BudgetRef>> {
    let mut inherited = Vec::new();
    for ancestor in key.ancestors.clone() {
        let (Some(record), Some(state)) = (
            step.store.key_record(&ancestor)?,
            step.store.key_state(&ancestor)?,
        ) else {
            return Err(Error::policy(format!(
                "the parent key {ancestor} is not in this ledger"
            )));
        };
        if state.revoked_at_ms.is_some() || step.reached(state.expires_at_ms) {
            return Err(Error::policy(format!(
                "the parent key {ancestor} is revoked or expired"
            )));
        }
        key.expires_at_ms = key.expires_at_ms.min(state.expires_at_ms);
        inherited.extend(record.budgets);
    }
    Ok(inherited)
}

/// Adds a budget to a key's, or tightens the one that is there: the lower limit, and enforced if either is.
fn add_ref(budgets: &mut Vec<BudgetRef>, budget: BudgetRef) {
    let id = budget.def.id();
    match budgets.iter_mut().find(|own| own.def.id() == id) {
        None => budgets.push(budget),
        Some(own) => {
            own.limit = match (own.limit, budget.limit) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            own.enforce |= budget.enforce;
        }
    }
}

/// Attaches to the budgets that exist and creates the others. Never changes one.
fn attach(step: &mut Step<'_>, budgets: &[BudgetRef]) -> Result<()> {
    for budget in budgets {
        let def = &budget.def;
        if let Some(existing) = step.store.budget(&def.id())? {
            agree(&existing, def)?;
        } else {
            step.store.put_budget(def)?;
            note_group(step, def);
        }
    }
    Ok(())
}

/// A group that gains a budget changes what all its keys draw on.
pub(super) fn note_group(step: &mut Step<'_>, def: &BudgetDef) {
    if matches!(def.scope, Scope::Group(_)) {
        step.meta.groups_version = step.meta.groups_version.saturating_add(1);
    }
}

fn agree(existing: &BudgetDef, asked: &BudgetDef) -> Result<()> {
    let name = asked.id().0;
    same_shape(existing, asked)?;
    if existing.cap != asked.cap {
        let amount = |cap| super::charge::amount(asked.unit, cap);
        return Err(Error::policy(format!(
            "the budget {name} exists with a cap of {}, and the policy says {}. Issuing a key never changes a cap: \
             use `keybrake budget set {} --{} {} --per {}{}{}`, or write the cap that stands into the policy",
            amount(existing.cap),
            amount(asked.cap),
            asked.scope.name(),
            asked.unit.as_str(),
            amount(asked.cap).trim_start_matches('$'),
            asked.window.as_str(),
            asked
                .vendor
                .as_ref()
                .map_or_else(String::new, |vendor| format!(" --vendor {vendor}")),
            if asked.timezone == "UTC" {
                String::new()
            } else {
                format!(" --timezone {}", asked.timezone)
            },
        )));
    }
    Ok(())
}

/// Zone and window of a budget that exists cannot be changed.
pub(super) fn same_shape(existing: &BudgetDef, asked: &BudgetDef) -> Result<()> {
    let name = asked.id().0;
    if existing.window != asked.window {
        return Err(Error::policy(format!(
            "the budget {name} exists per {}, not per {}; its window cannot be changed yet",
            existing.window.as_str(),
            asked.window.as_str(),
        )));
    }
    if existing.timezone != asked.timezone {
        return Err(Error::policy(format!(
            "the budget {name} exists in the zone {}, not {}; its zone cannot be changed yet",
            existing.timezone, asked.timezone,
        )));
    }
    Ok(())
}

/// A group without a budget limits nothing, which must be meant.
fn check_groups(step: &mut Step<'_>, key: &KeyRecord, attribution_only: &[String]) -> Result<()> {
    for group in &key.groups {
        let none = step.store.budgets(Some(&Scope::Group(group.clone())))?.is_empty();
        if none && !attribution_only.contains(group) {
            return Err(Error::policy(format!(
                "the group {group} has no budget, so it would limit nothing: set one with \
                 `keybrake budget set {group}`, or declare the group attribution-only"
            )));
        }
    }
    Ok(())
}

/// The key with this id, as the engine shall cache it.
pub fn key(store: &mut dyn Store, clock_ms: i64, key_id: &str) -> Result<Option<KeyRecord>> {
    let mut step = Step::begin(store, clock_ms)?;
    match step.store.key_record(key_id)? {
        Some(record) => complete(&mut step, record).map(Some),
        None => Ok(None),
    }
}

/// The key with this token hash, as the engine shall cache it.
pub fn key_by_token(store: &mut dyn Store, clock_ms: i64, hash: &TokenHash) -> Result<Option<KeyRecord>> {
    match store.key_id_by_token(hash)? {
        Some(key_id) => key(store, clock_ms, &key_id),
        None => Ok(None),
    }
}

/// All keys, newest first.
pub fn keys(store: &mut dyn Store, clock_ms: i64) -> Result<Vec<KeyRecord>> {
    let mut step = Step::begin(store, clock_ms)?;
    let records = step.store.key_records()?;
    records
        .into_iter()
        .map(|record| complete(&mut step, record))
        .collect()
}

/// A record with its present version, and with the budgets that its groups, and its ancestors' groups, have now.
fn complete(step: &mut Step<'_>, mut key: KeyRecord) -> Result<KeyRecord> {
    let Some(state) = step.store.key_state(&key.id)? else {
        return Err(corrupt(format!("the key {} has no state", key.id)));
    };
    key.version = state.version.saturating_add(step.meta.groups_version);
    key.expires_at_ms = state.expires_at_ms;
    key.revoked_at_ms = state.revoked_at_ms;
    let mut groups: BTreeSet<String> = key.groups.iter().cloned().collect();
    for ancestor in &key.ancestors {
        if let Some(record) = step.store.key_record(ancestor)? {
            groups.extend(record.groups);
        }
    }
    for group in groups {
        for def in step.store.budgets(Some(&Scope::Group(group)))? {
            let budget = BudgetRef {
                def,
                limit: None,
                enforce: true,
            };
            add_ref(&mut key.budgets, budget);
        }
    }
    for budget in &mut key.budgets {
        if let Some(def) = step.store.budget(&budget.def.id())? {
            budget.def = BudgetDef::clone(&def);
        }
    }
    Ok(key)
}

/// Ends a key for good, and with it its children; answers whether it was open before.
pub fn revoke(store: &mut dyn Store, clock_ms: i64, key_id: &str, note: &AdminNote) -> Result<bool> {
    let mut step = Step::begin(store, clock_ms)?;
    let Some(mut state) = step.store.key_state(key_id)? else {
        return Err(Error::not_found(format!("no key {key_id} in this ledger")));
    };
    if state.revoked_at_ms.is_some() {
        return Ok(false);
    }
    let was_open = !step.reached(state.expires_at_ms);
    state.revoked_at_ms = Some(step.now_ms);
    state.version = state.version.saturating_add(1);
    step.store.put_key_state(key_id, &state)?;
    let body = admin_body("revoke", key_id, note, &[]);
    step.append(EventKind::Admin, None, Vec::new(), body)?;
    step.finish()?;
    Ok(was_open)
}
