//! When a cap, a stop or a resume was last set, so that one which is said again after a loss does not undo a later one.

use super::step::Step;
use crate::error::Result;
use crate::ledger::store::Pointer;
use crate::ledger::types::{BudgetId, StopScope};

fn of_cap(id: &BudgetId) -> String {
    format!("act:cap:{}", id.0)
}

fn of_stop(scope: &StopScope) -> String {
    format!("act:stop:{}", scope.name())
}

/// Notes that a budget's cap was set at this moment.
pub(super) fn note_cap(step: &mut Step<'_>, id: &BudgetId, at_ms: i64) -> Result<()> {
    note(step, &of_cap(id), at_ms)
}

/// Notes that a scope was stopped or resumed at this moment.
pub(super) fn note_stop(step: &mut Step<'_>, scope: &StopScope, at_ms: i64) -> Result<()> {
    note(step, &of_stop(scope), at_ms)
}

/// When a budget's cap was last set, if that is remembered.
pub(super) fn last_cap(step: &mut Step<'_>, id: &BudgetId) -> Result<Option<i64>> {
    last(step, &of_cap(id))
}

/// When a scope was last stopped or resumed, if that is remembered.
pub(super) fn last_stop(step: &mut Step<'_>, scope: &StopScope) -> Result<Option<i64>> {
    last(step, &of_stop(scope))
}

fn note(step: &mut Step<'_>, id: &str, at_ms: i64) -> Result<()> {
    // It points at no call. Redis keeps it for 35 days: a process that does nothing in between forgets none of its steps.
    let pointer = Pointer {
        call_ids: Vec::new(),
        until_ms: at_ms,
    };
    step.store.put_pointer(id, pointer)
}

fn last(step: &mut Step<'_>, id: &str) -> Result<Option<i64>> {
    Ok(step.store.pointer(id)?.map(|pointer| pointer.until_ms))
}
