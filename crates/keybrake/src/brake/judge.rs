//! One call on its way to a decision: what is known of it so far, and the checks in the order of the contract.

use std::sync::Arc;

use uuid::Uuid;

use super::charges;
use super::identity::Parts;
use super::keys::{CachedKey, KeyCache};
use super::permit::Prepared;
use super::{Brake, CallContext, anonymous, unavailable};
use crate::clock::Clock;
use crate::error::Result;
use crate::ledger::{AmountAsk, Ask, CallFacts, IdentityAsk, ObjectRaise, Scope, TokenHash};
use crate::money::{Currency, Rate, Usd, VendorAmount};
use crate::policy::{Code, CompiledPolicy, Denial, Stage as PolicyStage, UnknownCost};
use crate::request::{Call, Refusal};
use crate::token::{NotAToken, Token};
use crate::vendors::{self, Class, Estimate, Exposure, Lookup, LookupAnswer, Recognised, Reply, Vendor};

/// Lookups that one call may need before it is refused.
const MOST_LOOKUPS: u32 = 3;

/// A call on its way to a decision.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) call_id: String,
    pub(super) call: Call,
    pub(super) context: CallContext,
    pub(super) now_ms: i64,
    pub(super) started_ms: i64,
    pub(super) vendor: Option<&'static dyn Vendor>,
    pub(super) token_hash: Option<TokenHash>,
    pub(super) key: Option<Arc<CachedKey>>,
    pub(super) recognised: Option<Recognised>,
    pub(super) livemode: bool,
    pub(super) run: Option<String>,
    pub(super) found: Option<LookupAnswer>,
    pub(super) lookup_refusal: Option<Refusal>,
    pub(super) owner_read: bool,
    pub(super) lookups: u32,
    pub(super) priced: Option<Priced>,
    pub(super) would_deny: Option<Denial>,
}

/// What a call can cost, in US dollars.
#[derive(Clone, Debug)]
pub(super) struct Priced {
    pub(super) usd: Usd,
    pub(super) exposure: Exposure,
    pub(super) pins: Vec<(String, String)>,
    /// The cost comes from the policy's `operation_costs`: replies do not say it.
    pub(super) by_policy: bool,
}

/// What to ask the ledger next.
pub(super) enum Stage {
    Ask {
        ask: Ask,
        identity: Option<IdentityAsk>,
    },
    Lookup {
        lookup: Lookup,
        purpose: Purpose,
        identity: Option<IdentityAsk>,
    },
    Unreachable(Box<Denial>),
}

/// What a lookup is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Amount, currency and owner.
    Amount,
    /// The customer alone, for policies and budgets that need it.
    Owner,
}

enum Price {
    Known(Priced),
    Lookup(Lookup),
}

impl Job {
    pub(super) fn new(clock: &dyn Clock, call: Call, context: CallContext) -> Self {
        Self {
            call_id: Uuid::now_v7().to_string(),
            call,
            run: context.run.clone(),
            context,
            now_ms: clock.now_ms(),
            started_ms: clock.boot_ms(),
            vendor: None,
            token_hash: None,
            key: None,
            recognised: None,
            livemode: false,
            found: None,
            lookup_refusal: None,
            owner_read: false,
            lookups: 0,
            priced: None,
            would_deny: None,
        }
    }

    pub(super) fn answer(&mut self, purpose: Purpose, reply: &Reply) {
        let (Some(vendor), Some(recognised)) = (self.vendor, self.recognised.as_mut()) else {
            return;
        };
        let customer = match purpose {
            Purpose::Owner => {
                self.owner_read = true;
                vendor.read_owner(recognised, reply)
            }
            Purpose::Amount => vendor.read_lookup(recognised, reply).map(|found| {
                let customer = found.customer.clone();
                self.found = Some(found);
                customer
            }),
        };
        match customer {
            Ok(customer) => recognised.customer = recognised.customer.take().or(customer),
            Err(refusal) => self.lookup_refusal = Some(refusal),
        }
    }

    pub(super) fn lookup_failed(&mut self, reason: &str) {
        self.lookup_refusal = Some(Refusal::new(
            Code::CostUnknown,
            format!(
                "the read that tells what this call can cost did not succeed ({reason}); nothing was sent"
            ),
        ));
    }

    pub(super) fn forget_key(&mut self, cache: &KeyCache) {
        if let Some(hash) = &self.token_hash {
            cache.forget(hash);
        }
        self.key = None;
    }

    pub(super) fn cap_status(&self) -> u16 {
        self.key
            .as_ref()
            .and_then(|key| key.own())
            .map_or(429, CompiledPolicy::cap_status)
    }

    pub(super) fn operation_name(&self) -> String {
        match &self.recognised {
            Some(recognised) if recognised.operation.class != Class::Unknown => {
                recognised.operation.name.to_owned()
            }
            _ => format!("{} {}", self.call.method, masked_path(&self.call.url)),
        }
    }

    /// Fills in what a denial can know of its call.
    pub(super) fn complete(&self, denial: &mut Denial) {
        denial.call_id.clone_from(&self.call_id);
        denial.vendor = self.vendor.map(|vendor| vendor.name().to_owned());
        denial.operation = Some(self.operation_name());
        denial.requested_micros = denial
            .requested_micros
            .or_else(|| self.priced.as_ref().map(|priced| priced.usd.micros()));
        denial.full_detail = self
            .key
            .as_ref()
            .is_none_or(|key| key.policies.iter().all(CompiledPolicy::full_detail));
    }

    pub(super) fn facts(&self) -> CallFacts {
        let mut facts = anonymous(&self.call_id, self.operation_name());
        facts.vendor = self.vendor.map(|vendor| vendor.name().to_owned());
        facts.livemode = self.livemode;
        facts.run.clone_from(&self.run);
        facts.context.clone_from(&self.context.context);
        for (name, value) in [("step", &self.context.step), ("item", &self.context.item)] {
            if let Some(value) = value {
                facts.context.insert(name.to_owned(), value.clone().into());
            }
        }
        if self.lookups > 0 {
            facts.context.insert("lookups".to_owned(), self.lookups.into());
        }
        if let Some(recognised) = &self.recognised {
            facts.account.clone_from(&recognised.account);
            facts.customer.clone_from(&recognised.customer);
            facts.direction = recognised.operation.direction;
            facts.moves_money = !matches!(recognised.operation.class, Class::Read | Class::Free);
        }
        if let Some(key) = &self.key {
            let record = &key.record;
            facts.key_id = Some(record.id.clone());
            facts.key_version = record.version;
            facts.agent.clone_from(&record.agent);
            facts.label.clone_from(&record.label);
            facts.groups.clone_from(&record.groups);
        }
        facts
    }

    /// The read that answers what the request does not say, on the same account and API version.
    pub(super) fn prepare_lookup(&self, brake: &Brake, lookup: &Lookup) -> Result<Prepared> {
        Prepared::read(self, brake, &lookup.path)
    }
}

impl Brake {
    /// Runs the checks in order and says what to ask the ledger. The first check that fails names the denial.
    pub(super) async fn judge(&self, job: &mut Job) -> Result<Stage> {
        if let Err(refusal) = self.identify(job).await? {
            return Ok(refusal);
        }
        let Some(key) = job.key.clone() else {
            return Ok(refuse(
                Refusal::new(Code::KeyUnknown, "this vault key is not known to the ledger"),
                true,
            ));
        };
        if let Err(refusal) = self.recognise(job, &key)? {
            return Ok(refuse(refusal, true));
        }
        let identity = match identity(self, job, &key) {
            Ok(identity) => identity,
            Err(refusal) => return Ok(refuse(refusal, true)),
        };
        if let Some(refusal) = job.lookup_refusal.clone() {
            return Ok(Stage::Ask {
                ask: refusal_ask(refusal, false),
                identity,
            });
        }
        match price(job, &key) {
            Ok(Price::Lookup(lookup)) => Ok(Stage::Lookup {
                lookup,
                purpose: Purpose::Amount,
                identity,
            }),
            Ok(Price::Known(priced)) => match owner_lookup(job, &key) {
                Some(lookup) => Ok(Stage::Lookup {
                    lookup,
                    purpose: Purpose::Owner,
                    identity,
                }),
                None => amount(job, &key, priced, identity),
            },
            Err(refusal) if key.observes() => {
                note_would_deny(job, refusal);
                let free = Priced {
                    usd: Usd::ZERO,
                    exposure: Exposure::Own,
                    pins: Vec::new(),
                    by_policy: true,
                };
                amount(job, &key, free, identity)
            }
            Err(refusal) => Ok(Stage::Ask {
                ask: refusal_ask(refusal, false),
                identity,
            }),
        }
    }

    /// Whose call it is: the vendor by its host, the token where the vendor's key used to be, the key's record.
    async fn identify(&self, job: &mut Job) -> Result<std::result::Result<(), Stage>> {
        self.restore_host(job);
        job.vendor = vendors::by_url(&job.call.url).ok();
        let token = job.vendor.unwrap_or_else(vendors::fallback).token(&job.call);
        let Some(token) = token else {
            let message = "no vault key on the call; give it where the vendor's API key goes";
            return Ok(Err(refuse(Refusal::new(Code::KeyMissing, message), true)));
        };
        if let Err(reason) = Token::parse(&token, &self.ledger_tag) {
            let message = match reason {
                NotAToken::Foreign => {
                    "what stands where the vault key goes is not one; a vendor's own secret is never accepted here"
                }
                NotAToken::Damaged => "the vault key is mistyped or cut off",
                NotAToken::OtherLedger => {
                    "the vault key belongs to another ledger or namespace; check KEYBRAKE_LEDGER"
                }
            };
            return Ok(Err(refuse(Refusal::new(Code::KeyUnknown, message), true)));
        }
        let hash = self.keys.token_hash(&token);
        match self.cache.get(self.ledger.as_ref(), &hash).await {
            Ok(key) => {
                job.key = key;
                job.token_hash = Some(hash);
                Ok(Ok(()))
            }
            Err(error) => match unavailable(&error) {
                Some(denial) => Ok(Err(Stage::Unreachable(Box::new(denial)))),
                None => Err(error),
            },
        }
    }

    /// A URL on an overridden base is judged as one on the vendor's own host.
    fn restore_host(&self, job: &mut Job) {
        for (vendor, base) in self.credentials.base_urls() {
            let Some(rest) = job.call.url.strip_prefix(base.as_str()) else {
                continue;
            };
            let host = vendors::vendor(vendor).and_then(|vendor| vendor.hosts().first().copied());
            if let (true, Some(host)) = (rest.starts_with('/'), host) {
                job.call.url = format!("https://{host}{rest}");
            }
        }
    }

    /// The checks that need the request alone: vendor, strict parsing, endpoint, account, customer, parameters.
    fn recognise(&self, job: &mut Job, key: &CachedKey) -> Result<std::result::Result<(), Refusal>> {
        if let Err(refusal) = bind_run(job, key) {
            return Ok(Err(refusal));
        }
        let vendor = match vendors::by_url(&job.call.url) {
            Ok(vendor) => vendor,
            Err(refusal) => return Ok(Err(refusal)),
        };
        // Also an observing policy opens only its own vendors: their secrets are not lent to others.
        if let Some(refusal) = key
            .policies
            .iter()
            .find_map(|policy| policy.check_vendor(vendor.name()).err())
        {
            return Ok(Err(refusal));
        }
        if job.recognised.is_none() {
            match vendor.recognise(&job.call) {
                Ok(recognised) => job.recognised = Some(recognised),
                Err(refusal) => return Ok(Err(refusal)),
            }
            let secret = key.own().and_then(|policy| policy.secret_name(vendor.name()));
            job.livemode = self.credentials.of(vendor, secret)?.livemode;
        }
        job.would_deny = None;
        for check in [endpoint_check, account_check, params_check, customer_check] {
            let failed = key
                .policies
                .iter()
                .find_map(|policy| Some((policy, check(job, vendor, policy).err()?)));
            if let Some((policy, refusal)) = failed {
                if !policy.observe() {
                    return Ok(Err(refusal));
                }
                note_would_deny(job, refusal);
            }
        }
        Ok(Ok(()))
    }
}

/// What the call can cost: the policy's own figure, the lookup's answer, or the vendor's estimate.
fn price(job: &Job, key: &CachedKey) -> std::result::Result<Price, Refusal> {
    let (Some(vendor), Some(recognised)) = (job.vendor, &job.recognised) else {
        return Err(Refusal::new(Code::CostUnknown, "the call was not recognised"));
    };
    let name = job.operation_name();
    // The policy's figure is for operations whose cost we do not know; it never lowers one that we do.
    let operation = recognised.operation;
    let cost = |policy: &CompiledPolicy| {
        policy.operation_cost(vendor.name(), operation.name, &job.call.method, &recognised.path)
    };
    let given = key.policies.iter().filter_map(cost).map(|cost| cost.max).max();
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
fn amount(job: &mut Job, key: &CachedKey, priced: Priced, identity: Option<IdentityAsk>) -> Result<Stage> {
    job.priced = Some(priced.clone());
    let failed = key
        .policies
        .iter()
        .find_map(|policy| Some((policy, final_params_check(job, policy, &priced.pins).err()?)));
    if let Some((policy, refusal)) = failed {
        if !policy.observe() {
            return Ok(Stage::Ask {
                ask: refusal_ask(refusal, false),
                identity,
            });
        }
        note_would_deny(job, refusal);
    }
    let over = key
        .policies
        .iter()
        .find(|policy| policy.per_call_ceiling().is_some_and(|most| priced.usd > most));
    if let Some(policy) = over {
        let most = policy.per_call_ceiling().unwrap_or_default();
        let refusal = Refusal::new(
            Code::AmountOverLimit,
            format!("{} is above max_amount_per_call_usd, which is {most}", priced.usd),
        );
        if !policy.observe() {
            return Ok(Stage::Ask {
                ask: refusal_ask(refusal, false),
                identity,
            });
        }
        note_would_deny(job, refusal);
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

/// US dollars by the rates of the policies, nearest first; rounded up.
pub(super) fn to_usd(
    key: &CachedKey,
    amount: VendorAmount,
    now_ms: i64,
) -> std::result::Result<Usd, Refusal> {
    let rate = if amount.currency == Currency::USD {
        Rate::USD
    } else {
        let mut rates = key
            .policies
            .iter()
            .map(|policy| policy.rate(amount.currency, now_ms));
        let first = rates.next().unwrap_or(Ok(Rate::USD));
        rates.fold(first, Result::or)?
    };
    rate.to_usd(amount)
        .ok_or_else(|| Refusal::new(Code::AmountOverLimit, "the amount is too large to be counted"))
}

/// The run is the key's; only a key that is bound to none takes the context's.
fn bind_run(job: &mut Job, key: &CachedKey) -> std::result::Result<(), Refusal> {
    match (&key.record.run, &job.context.run) {
        (Some(bound), Some(given)) if bound != given => Err(Refusal::new(
            Code::RequestMalformed,
            format!("this key is bound to the run {bound:?}; a call cannot move to another one"),
        )),
        (Some(bound), _) => {
            job.run = Some(bound.clone());
            Ok(())
        }
        (None, Some(given)) => crate::policy::validate_id("run", given)
            .map_err(|e| Refusal::new(Code::RequestMalformed, e.to_string())),
        (None, None) => Ok(()),
    }
}

fn identity(brake: &Brake, job: &Job, key: &CachedKey) -> std::result::Result<Option<IdentityAsk>, Refusal> {
    let (Some(vendor), Some(recognised), Some(policy)) = (job.vendor, &job.recognised, key.own()) else {
        return Ok(None);
    };
    if key.observes() {
        return Ok(None);
    }
    let parts = Parts {
        keys: &brake.keys,
        key,
        policy,
        call: &job.call,
        context: &job.context,
        vendor: vendor.name(),
        livemode: job.livemode,
        run: job.run.as_deref(),
        recognised,
    };
    parts.identity()
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

fn note_would_deny(job: &mut Job, refusal: Refusal) {
    if job.would_deny.is_none() {
        job.would_deny = Some(Denial::new(refusal.code, refusal.message));
    }
}

fn refuse(refusal: Refusal, early: bool) -> Stage {
    Stage::Ask {
        ask: refusal_ask(refusal, early),
        identity: None,
    }
}

fn refusal_ask(refusal: Refusal, early: bool) -> Ask {
    Ask::Refuse {
        denial: Box::new(Denial::new(refusal.code, refusal.message)),
        early,
    }
}

type Checked = std::result::Result<(), Refusal>;

fn endpoint_check(job: &Job, vendor: &'static dyn Vendor, policy: &CompiledPolicy) -> Checked {
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

fn account_check(job: &Job, vendor: &'static dyn Vendor, policy: &CompiledPolicy) -> Checked {
    policy.check_account(
        vendor.name(),
        job.recognised
            .as_ref()
            .and_then(|recognised| recognised.account.as_deref()),
    )
}

fn params_check(job: &Job, vendor: &'static dyn Vendor, policy: &CompiledPolicy) -> Checked {
    let Some(recognised) = &job.recognised else {
        return Ok(());
    };
    policy.check_params(
        vendor.name(),
        recognised.operation.name,
        &[&recognised.fields],
        PolicyStage::Early,
    )
}

/// The same rules once everything that will be sent is known, pinned fields included.
fn final_params_check(job: &Job, policy: &CompiledPolicy, pins: &[(String, String)]) -> Checked {
    let (Some(vendor), Some(recognised)) = (job.vendor, &job.recognised) else {
        return Ok(());
    };
    let fields: [&[(String, String)]; 2] = [&recognised.fields, pins];
    policy.check_params(
        vendor.name(),
        recognised.operation.name,
        &fields,
        PolicyStage::Final,
    )
}

/// The customer, unless a lookup is still to name it.
fn customer_check(job: &Job, vendor: &'static dyn Vendor, policy: &CompiledPolicy) -> Checked {
    let Some(recognised) = &job.recognised else {
        return Ok(());
    };
    if !policy.has_customer_rule() {
        return Ok(());
    }
    let unread = recognised.customer.is_none()
        && job.found.is_none()
        && !job.owner_read
        && job.lookup_refusal.is_none();
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

/// The read that names the customer, where a rule or a budget needs to know and the request does not say.
fn owner_lookup(job: &Job, key: &CachedKey) -> Option<Lookup> {
    let needs = key.policies.iter().any(CompiledPolicy::has_customer_rule)
        || key
            .record
            .budgets
            .iter()
            .any(|budget| matches!(budget.def.scope, Scope::Customer(_)));
    let (vendor, recognised) = (job.vendor?, job.recognised.as_ref()?);
    let unknown = recognised.customer.is_none() && job.found.is_none() && !job.owner_read;
    if needs && unknown && job.lookups < MOST_LOOKUPS {
        vendor.owner_lookup(recognised)
    } else {
        None
    }
}

/// The URL's path without host and query.
fn plain_path(url: &str) -> &str {
    let path = url
        .split_once("://")
        .and_then(|(_, rest)| rest.find('/').and_then(|at| rest.get(at..)))
        .unwrap_or("/");
    path.split(['?', '#']).next().unwrap_or(path)
}

/// A path for the audit when the operation is not known: short, printable.
fn masked_path(url: &str) -> String {
    plain_path(url)
        .chars()
        .filter(char::is_ascii_graphic)
        .take(120)
        .collect()
}
