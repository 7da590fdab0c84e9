//! What a call asks of each budget that its key draws on.

use super::job::Job;
use super::keys::CachedKey;
use crate::error::Result;
use crate::ledger::{BudgetRef, ChargeAsk, Scope, Unit};
use crate::money::Usd;
use crate::policy::window;
use crate::vendors::Class;

/// One charge for every budget that counts this call.
pub(super) fn charges(job: &Job, key: &CachedKey, usd: Usd) -> Result<Vec<ChargeAsk>> {
    let vendor = job.vendor.map(crate::vendors::Vendor::name);
    let counts = |budget: &&BudgetRef| {
        budget
            .def
            .vendor
            .as_deref()
            .is_none_or(|name| Some(name) == vendor)
    };
    // A read asks nothing of a `writes` budget; money is asked for also at zero, so that the row names its budget.
    let asks = |charge: &ChargeAsk| charge.amount != 0 || charge.unit == Unit::Usd;
    let mut all = Vec::with_capacity(key.record.budgets.len());
    for budget in key.record.budgets.iter().filter(counts) {
        let charge = charge(job, budget, usd)?;
        if asks(&charge) {
            all.push(charge);
        }
    }
    Ok(all)
}

fn charge(job: &Job, budget: &BudgetRef, usd: Usd) -> Result<ChargeAsk> {
    let reads = job
        .recognised
        .as_ref()
        .is_some_and(|recognised| recognised.operation.class == Class::Read);
    let amount = match budget.def.unit {
        Unit::Usd => usd.micros(),
        Unit::Calls => 1,
        Unit::Writes => i64::from(!reads),
        Unit::Sends => 0,
    };
    Ok(ChargeAsk {
        budget: budget.def.id(),
        customer: matches!(budget.def.scope, Scope::Customer(_)).then(|| customer(job)),
        unit: budget.def.unit,
        amount,
        limit: budget.limit,
        enforce: budget.enforce,
        window: window::current(budget.def.window, &budget.def.timezone, job.now_ms)?,
    })
}

/// Customers belong to a connected account; calls that concern none share one counter.
fn customer(job: &Job) -> String {
    let recognised = job.recognised.as_ref();
    let customer = recognised
        .and_then(|recognised| recognised.customer.as_deref())
        .unwrap_or("-");
    match recognised.and_then(|recognised| recognised.account.as_deref()) {
        Some(account) => format!("{account}/{customer}"),
        None => customer.to_owned(),
    }
}
