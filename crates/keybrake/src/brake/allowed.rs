//! The checks that need the request and the policy alone.

use super::job::Job;
use crate::policy::{CompiledPolicy, Stage};
use crate::request::Refusal;
use crate::vendors::{Estimate, Recognised, Vendor};

type Checked = Result<(), Refusal>;

pub(super) fn endpoint_check(job: &Job, vendor: &'static dyn Vendor, policy: &CompiledPolicy) -> Checked {
    let Some(recognised) = &job.recognised else {
        return Ok(());
    };
    policy.check_endpoint(
        vendor.name(),
        recognised.operation.name,
        &job.call.method,
        &recognised.path,
    )
}

pub(super) fn account_check(job: &Job, vendor: &'static dyn Vendor, policy: &CompiledPolicy) -> Checked {
    policy.check_account(
        vendor.name(),
        job.recognised
            .as_ref()
            .and_then(|recognised| recognised.account.as_deref()),
    )
}

pub(super) fn params_check(job: &Job, vendor: &'static dyn Vendor, policy: &CompiledPolicy) -> Checked {
    let Some(recognised) = &job.recognised else {
        return Ok(());
    };
    check_each(policy, vendor, recognised, &[], Stage::Early)
}

/// Every part of a call that does several things at once has to pass alone: what one lacks, another cannot bring.
fn check_each(
    policy: &CompiledPolicy,
    vendor: &'static dyn Vendor,
    recognised: &Recognised,
    pins: &[(String, String)],
    stage: Stage,
) -> Checked {
    let check = |fields: &[(String, String)]| {
        policy.check_params(vendor.name(), recognised.operation.name, &[fields, pins], stage)
    };
    if recognised.parts.is_empty() {
        return check(&recognised.fields);
    }
    recognised.parts.iter().try_for_each(|part| check(part))
}

/// The same rules once everything that will be sent is known, pinned fields included.
pub(super) fn final_params_check(job: &Job, policy: &CompiledPolicy, pins: &[(String, String)]) -> Checked {
    let (Some(vendor), Some(recognised)) = (job.vendor, &job.recognised) else {
        return Ok(());
    };
    check_each(policy, vendor, recognised, pins, Stage::Final)
}

/// The customer, unless a lookup is still to name it.
pub(super) fn customer_check(job: &Job, vendor: &'static dyn Vendor, policy: &CompiledPolicy) -> Checked {
    let Some(recognised) = &job.recognised else {
        return Ok(());
    };
    if !policy.has_customer_rule() {
        return Ok(());
    }
    // A lookup that failed is refused as what it is, after these checks: nobody knows whose call it is.
    let unread = job.found.is_none() && !job.owner_read;
    let priced_by_read = || {
        matches!(
            vendor.estimate(recognised, policy.count_at_creation()),
            Ok(Estimate::NeedsLookup(_))
        )
    };
    if unread && (vendor.owner_lookup(recognised).is_some() || priced_by_read()) {
        return Ok(());
    }
    policy.check_customer(vendor.name(), recognised.customer.as_deref())
}
