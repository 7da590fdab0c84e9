//! What a call can cost, in US dollars, and what it asks of the ledger.

use super::allowed::final_params_check;
use super::charges;
use super::job::Job;
use super::judge::{Stage, note_would_deny};
use super::keys::CachedKey;
use crate::error::Result;
use crate::ledger::{AmountAsk, Ask, IdentityAsk, ObjectRaise, Scope};
use crate::money::{Currency, Rate, Usd, VendorAmount};
use crate::policy::{BudgetView, Code, CompiledPolicy, Denial, UnknownCost};
use crate::request::Refusal;
use crate::vendors::{Class, Estimate, Exposure, Lookup};

/// Lookups that one call may need before it is refused.
const MOST_LOOKUPS: u32 = 3;

/// What a call can cost, in US dollars.
#[derive(Clone, Debug)]
pub(super) struct Priced {
    pub(super) usd: Usd,
    pub(super) exposure: Exposure,
    pub(super) pins: Vec<(String, String)>,
    /// The cost comes from the policy's `operation_costs`: replies do not say it.
    pub(super) by_policy: bool,
}

pub(super) enum Price {
    Known(Priced),
    Lookup(Lookup),
}

/// What the call can cost: the policy's own figure, the lookup's answer, or the vendor's estimate.
pub(super) fn price(job: &Job, key: &CachedKey) -> std::result::Result<Price, Refusal> {
    let (Some(vendor), Some(recognised)) = (job.vendor, &job.recognised) else {
        return Err(Refusal::new(Code::CostUnknown, "the call was not recognised"));
    };
    // The policy's figure is for operations whose cost we do not know; it never lowers one that we do.
    let operation = recognised.operation;
    let cost = |policy: &CompiledPolicy| {
        policy.operation_cost(vendor.name(), operation.name, &job.call.method, &recognised.path)
    };
    // Every policy that refuses has to give one, and the highest counts: a child cannot price what its parent denies.
    let given: Option<Vec<Usd>> = key
        .judging()
        .map(|policy| cost(policy).map(|cost| cost.max))
        .collect();
    let given = given.and_then(|costs| costs.into_iter().max());
    let by_policy = |usd: Usd| Priced {
        usd,
        exposure: Exposure::Own,
        pins: Vec::new(),
        by_policy: true,
    };
    if let (Class::Unknown, Some(usd)) = (operation.class, given) {
        return Ok(Price::Known(by_policy(usd)));
    }
    if let Some(found) = &job.found {
        let usd = to_usd(key, found.amount, job.now_ms)?;
        let pins = if key.observes() {
            Vec::new()
        } else {
            found.pins.clone()
        };
        return Ok(Price::Known(Priced {
            usd,
            exposure: found.exposure.clone(),
            pins,
            by_policy: false,
        }));
    }
    let at_creation = key.policies.iter().any(CompiledPolicy::count_at_creation);
    match vendor.estimate(recognised, at_creation)? {
        Estimate::Free => {
            let priced = Priced {
                usd: Usd::ZERO,
                exposure: Exposure::Own,
                pins: Vec::new(),
                by_policy: false,
            };
            Ok(Price::Known(priced))
        }
        Estimate::AtMost { amount, exposure } => {
            let usd = to_usd(key, amount, job.now_ms)?;
            Ok(Price::Known(Priced {
                usd,
                exposure,
                pins: Vec::new(),
                by_policy: false,
            }))
        }
        Estimate::NeedsLookup(lookup) => allow_lookup(job, key, lookup),
        Estimate::Unknown(reason) => given.map(|usd| Price::Known(by_policy(usd))).ok_or_else(|| {
            let name = job.operation_name();
            Refusal::new(
                Code::CostUnknown,
                format!(
                    "what {name} costs is not known: {reason}. Give it in the policy: \"operation_costs\": {{\"{name}\": 5}}"
                ),
            )
        }),
    }
}

/// The ask for a known amount: the per-call ceiling, then every budget at once.
pub(super) fn amount(
    job: &mut Job,
    key: &CachedKey,
    priced: Priced,
    identity: Option<IdentityAsk>,
) -> Result<Stage> {
    job.priced = Some(priced.clone());
    let refused = key
        .failing(|policy| final_params_check(job, policy, &priced.pins).err())
        .map(|(refusal, noted)| (Denial::from(refusal), noted));
    let over = || {
        let ceiling = |policy: &CompiledPolicy| policy.per_call_ceiling().filter(|most| priced.usd > *most);
        key.failing(ceiling)
            .map(|(most, noted)| (over_limit(job, priced.usd, most), noted))
    };
    for (denial, noted) in [refused, over()].into_iter().flatten() {
        if !noted {
            return Ok(Stage::Ask {
                ask: Ask::Refuse {
                    denial: Box::new(denial),
                    early: false,
                },
                identity,
            });
        }
        note_would_deny(job, denial);
    }
    let charges = charges::charges(job, key, priced.usd)?;
    let raise = match (&priced.exposure, job.vendor) {
        (Exposure::Object(id), Some(_)) => Some(ObjectRaise {
            object: object_name(job, id),
            to: priced.usd,
        }),
        _ => None,
    };
    let would_deny = job.would_deny.clone().map(|mut denial| {
        job.complete(&mut denial);
        Box::new(denial)
    });
    let ask = AmountAsk {
        usd: priced.usd,
        raise,
        charges,
        pins: priced.pins,
        would_deny,
    };
    Ok(Stage::Ask {
        ask: Ask::Amount(ask),
        identity,
    })
}

fn over_limit(job: &Job, asked: Usd, most: Usd) -> Denial {
    let message = format!("${asked} is above max_amount_per_call_usd, which is ${most}");
    let vendor = job.vendor.map_or("-", |vendor| vendor.name());
    Denial {
        budget: Some(BudgetView::per_call(vendor, most)),
        ..Denial::new(Code::AmountOverLimit, message)
    }
}

/// `vendor|mode|account|object`: the name under which the ledger keeps an object's exposure.
pub(super) fn object_name(job: &Job, id: &str) -> String {
    let vendor = job.vendor.map_or("-", |vendor| vendor.name());
    let mode = if job.livemode { "live" } else { "test" };
    let account = job
        .recognised
        .as_ref()
        .and_then(|recognised| recognised.account.as_deref())
        .unwrap_or("-");
    format!("{vendor}|{mode}|{account}|{id}")
}

/// US dollars by the rates of the policies; rounded up.
pub(super) fn to_usd(
    key: &CachedKey,
    amount: VendorAmount,
    now_ms: i64,
) -> std::result::Result<Usd, Refusal> {
    let large = || Refusal::new(Code::AmountOverLimit, "the amount is too large to be counted");
    if amount.currency == Currency::USD {
        return Rate::USD.to_usd(amount).ok_or_else(large);
    }
    // Every policy that refuses has to have a rate, and the highest counts: a child cannot cheapen its parent's.
    let mut usd = Usd::ZERO;
    for policy in key.judging() {
        usd = usd.max(
            policy
                .rate(amount.currency, now_ms)?
                .to_usd(amount)
                .ok_or_else(large)?,
        );
    }
    Ok(usd)
}

fn allow_lookup(job: &Job, key: &CachedKey, lookup: Lookup) -> std::result::Result<Price, Refusal> {
    if job.lookups >= MOST_LOOKUPS {
        return Err(Refusal::new(
            Code::CostUnknown,
            "three reads did not tell what this call can cost",
        ));
    }
    let denies = key
        .policies
        .iter()
        .any(|policy| policy.unknown_cost() == UnknownCost::Deny);
    if denies && !lookup.amount_given {
        return Err(Refusal::new(
            Code::CostUnknown,
            "the request has no amount, and the policy has `unknown_cost: deny`; give the amount in the request",
        ));
    }
    Ok(Price::Lookup(lookup))
}

/// The read that names the customer, where a rule or a budget needs to know and the request does not say.
pub(super) fn owner_lookup(job: &Job, key: &CachedKey) -> Option<Lookup> {
    let needs = key.policies.iter().any(CompiledPolicy::has_customer_rule)
        || key
            .record
            .budgets
            .iter()
            .any(|budget| matches!(budget.def.scope, Scope::Customer(_)));
    let (vendor, recognised) = (job.vendor?, job.recognised.as_ref()?);
    let unknown = job.found.is_none() && !job.owner_read;
    if needs && unknown && job.lookups < MOST_LOOKUPS {
        vendor.owner_lookup(recognised)
    } else {
        None
    }
}
