//! Budgets as first-class objects: caps that change at once for everyone, and how they stand.

use serde_json::json;

use super::acts;
use super::charge;
use super::keys::{check_def, note_group, same_shape};
use super::step::{Step, admin_body};
use crate::error::{Error, Result};
use crate::ledger::events::EventKind;
use crate::ledger::store::Store;
use crate::ledger::types::{AdminNote, BudgetDef, BudgetUsage, Scope};

/// Creates a budget or changes its cap. Zone and window of one that exists are refused by name.
pub fn put_budget(
    store: &mut dyn Store,
    clock_ms: i64,
    def: &BudgetDef,
    note: &AdminNote,
) -> Result<BudgetDef> {
    let mut step = Step::begin(store, clock_ms)?;
    check_def(def)?;
    let existing = step.store.budget(&def.id())?;
    if let Some(existing) = &existing {
        same_shape(existing, def)?;
    } else {
        note_group(&mut step, def);
    }
    step.store.put_budget(def)?;
    let now_ms = step.now_ms;
    acts::note_cap(&mut step, &def.id(), now_ms)?;
    let detail = [
        ("unit", json!(def.unit.as_str())),
        ("per", json!(def.window.as_str())),
        ("old_cap", json!(existing.map(|existing| existing.cap))),
        ("cap", json!(def.cap)),
    ];
    let body = admin_body("put_budget", def.id().0, note, &detail);
    step.append(EventKind::Admin, None, Vec::new(), body)?;
    step.finish()?;
    Ok(def.clone())
}

/// The budgets that a key draws on, as they stand now, in both modes. A budget per customer is there once for
/// all; ask [`budgets`] for one customer's.
pub fn usage(store: &mut dyn Store, clock_ms: i64, key_id: &str) -> Result<Vec<BudgetUsage>> {
    let Some(key) = super::keys::key(store, clock_ms, key_id)? else {
        return Err(Error::not_found(format!("no key {key_id} in this ledger")));
    };
    let mut step = Step::begin(store, clock_ms)?;
    let mut found = Vec::new();
    for budget in &key.budgets {
        for livemode in [true, false] {
            found.push(stand(&mut step, &budget.def, (None, livemode), budget.limit)?);
        }
    }
    Ok(found)
}

/// Budgets, all or of one scope, as they stand now, in both modes. `customer:cus_1` answers that customer's
/// counters of the budgets per customer.
pub fn budgets(store: &mut dyn Store, clock_ms: i64, scope: Option<&Scope>) -> Result<Vec<BudgetUsage>> {
    let mut step = Step::begin(store, clock_ms)?;
    let (listed, customer) = match scope {
        Some(Scope::Customer(id)) if id != "*" => (Some(Scope::Customer("*".to_owned())), Some(id.as_str())),
        other => (other.cloned(), None),
    };
    let mut found = Vec::new();
    for def in step.store.budgets(listed.as_ref())? {
        for livemode in [true, false] {
            found.push(stand(&mut step, &def, (customer, livemode), None)?);
        }
    }
    Ok(found)
}

fn stand(
    step: &mut Step<'_>,
    def: &BudgetDef,
    (customer, livemode): (Option<&str>, bool),
    limit: Option<i64>,
) -> Result<BudgetUsage> {
    let id = def.id();
    let family = match (&def.scope, customer) {
        (Scope::Customer(_), None) => id.0.clone(),
        _ => charge::family(def, &id, customer, livemode)?,
    };
    let (total, ends_ms) = charge::standing(step, def, &family)?;
    Ok(BudgetUsage {
        view: charge::view(def, &family, total, limit, ends_ms),
        def: def.clone(),
        id,
        livemode,
    })
}
