//! [`CompiledPolicy`]: what the engine asks of a policy, call by call. Pure; needs no ledger.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::amounts::{Moment, Span};
use super::budget::{OnRepeat, Scope};
use super::caps::{Line, Whose};
use super::endpoint::{Decision, EndpointSet, Entry, Routes, Target};
use super::options::{CallerKeys, CountIntents, Idempotency, UnknownCost};
use super::rule::{Rules, Stage};
use super::verdict::Code;
use crate::error::{Error, Result};
use crate::money::{Currency, Rate, Usd};
use crate::request::Refusal;

/// A policy ready to judge calls. Made by [`CompiledPolicy::compile`].
#[derive(Clone, Debug)]
pub struct CompiledPolicy {
    pub(crate) vendors: Vec<VendorRules>,
    pub(crate) lines: Vec<(Line, Option<i64>)>,
    pub(crate) timezone: String,
    pub(crate) ceiling: Option<Usd>,
    pub(crate) rates: BTreeMap<Currency, RateRule>,
    pub(crate) idempotency: Idempotency,
    pub(crate) on_repeat: OnRepeat,
    pub(crate) unknown_cost: UnknownCost,
    pub(crate) count_intents: CountIntents,
    pub(crate) caller_keys: Option<CallerKeys>,
    pub(crate) cap_status: u16,
    pub(crate) full_detail: bool,
    pub(crate) observe: bool,
    pub(crate) lifetime: Lifetime,
    pub(crate) label: Option<String>,
    pub(crate) agent_id: Option<String>,
    pub(crate) run: Option<String>,
    pub(crate) parent: Option<String>,
    pub(crate) groups: Vec<String>,
    pub(crate) attribution_only: Vec<String>,
    pub(crate) metadata: Map<String, Value>,
}

/// What one vendor's calls must pass.
#[derive(Clone, Debug)]
pub(crate) struct VendorRules {
    pub(crate) routes: Routes,
    pub(crate) secret: Option<String>,
    /// The document first, then its narrowings: a call must pass each.
    pub(crate) layers: Vec<LayerRules>,
    pub(crate) costs: Vec<CostRule>,
}

/// What one document asks of one vendor's calls.
#[derive(Clone, Debug)]
pub(crate) struct LayerRules {
    pub(crate) endpoints: EndpointSet,
    pub(crate) customers: Option<IdList>,
    pub(crate) accounts: Option<IdList>,
    pub(crate) params: Rules,
}

/// A list of ids and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct IdList {
    pub(crate) place: String,
    pub(crate) ids: BTreeSet<String>,
}

/// The most that an operation may cost.
#[derive(Clone, Debug)]
pub(crate) struct CostRule {
    pub(crate) entry: Entry,
    pub(crate) max: Usd,
}

/// A currency's rate and when it may be used.
#[derive(Clone, Debug)]
pub(crate) struct RateRule {
    pub(crate) rate: Rate,
    pub(crate) as_of: Moment,
    pub(crate) ends: Moment,
    pub(crate) max_age: Span,
}

/// What an operation of unknown cost may cost, by the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OperationCost {
    /// At most this much.
    pub max: Usd,
}

/// How long a key lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// Milliseconds from issue.
    pub in_ms: Option<i64>,
    /// A point in time, Unix milliseconds.
    pub at_ms: Option<i64>,
}

/// A rate that is dated more than this far ahead is refused: one day, so that every time zone's today passes.
const MAX_AHEAD_MS: i64 = 86_400_000;

impl Lifetime {
    /// When a key issued now ends: the earlier of both, or `default_ms` from now when neither is given.
    ///
    /// # Errors
    /// `Policy` when that is already over, or more than 366 days ahead: there is no "never".
    pub fn ends_at_ms(self, now_ms: i64, default_ms: i64) -> Result<i64> {
        let by_span = match (self.in_ms, self.at_ms) {
            (None, Some(_)) => i64::MAX,
            (span, _) => now_ms.saturating_add(span.unwrap_or(default_ms)),
        };
        let ends = by_span.min(self.at_ms.unwrap_or(i64::MAX));
        if ends <= now_ms {
            return Err(Error::policy(format!(
                "`expires_at` {} is already over",
                Moment(ends).text()
            )));
        }
        if ends > now_ms.saturating_add(super::amounts::MAX_SPAN_MS) {
            return Err(Error::policy(format!(
                "`expires_at` {} is more than 366 days ahead",
                Moment(ends).text()
            )));
        }
        Ok(ends)
    }
}

impl CompiledPolicy {
    /// The vendors that the key opens.
    pub fn vendors(&self) -> Vec<&'static str> {
        self.vendors.iter().map(|rules| rules.routes.vendor).collect()
    }

    pub(crate) fn rules(&self, vendor: &str) -> Result<&VendorRules, Refusal> {
        self.vendors
            .iter()
            .find(|rules| rules.routes.vendor == vendor)
            .ok_or_else(|| {
                Refusal::new(
                    Code::VendorNotAllowed,
                    format!("this key opens {}, not {vendor}", self.vendors().join(", ")),
                )
            })
    }

    /// Whether the key opens this vendor.
    pub fn check_vendor(&self, vendor: &str) -> Result<(), Refusal> {
        self.rules(vendor).map(|_| ())
    }

    /// The named secret to use for a vendor, when the policy names one.
    pub fn secret_name(&self, vendor: &str) -> Option<&str> {
        self.rules(vendor).ok()?.secret.as_deref()
    }

    /// Whether an operation is allowed. `operation` is the recognised operation's name (anything that is no
    /// name of the vendor's counts as unknown, and only an explicit `METHOD /path` allows it); `path` is the
    /// path as sent, without the query.
    pub fn check_endpoint(
        &self,
        vendor: &str,
        operation: &str,
        method: &str,
        path: &str,
    ) -> Result<(), Refusal> {
        let rules = self.rules(vendor)?;
        let target = Target {
            operation: rules.routes.by_name(operation),
            method,
            path,
        };
        rules.layers.iter().try_for_each(|layer| {
            let why = match layer.endpoints.decide(target, &rules.routes) {
                Decision::Allowed(..) => return Ok(()),
                Decision::Denied(place, text) => {
                    format!("{} is denied by `{place}` {text:?}", name(target, &rules.routes))
                }
                Decision::NotListed => not_listed(target, &rules.routes),
            };
            Err(Refusal::new(Code::EndpointNotAllowed, why))
        })
    }

    /// Whether the policy lets calls act for this connected account; `None` is the secret's own account, which a
    /// list calls `platform`.
    pub fn check_account(&self, vendor: &str, account: Option<&str>) -> Result<(), Refusal> {
        let wanted = account.unwrap_or("platform");
        for layer in &self.rules(vendor)?.layers {
            if let Some(list) = &layer.accounts
                && !list.ids.contains(wanted)
            {
                let whose = if account.is_some() {
                    "the connected account"
                } else {
                    "the platform's own account"
                };
                return Err(Refusal::new(
                    Code::AccountNotAllowed,
                    format!(
                        "{whose} is not in `{}`; act for an account that is, or add it",
                        list.place
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Whether the policy lets calls concern this customer. With a list, a call whose customer is not known is
    /// refused.
    pub fn check_customer(&self, vendor: &str, customer: Option<&str>) -> Result<(), Refusal> {
        for layer in &self.rules(vendor)?.layers {
            if let Some(list) = &layer.customers
                && !customer.is_some_and(|customer| list.ids.contains(customer))
            {
                let why = if customer.is_some() {
                    "the call's customer is not in"
                } else {
                    "the call names no customer, and the policy has"
                };
                return Err(Refusal::new(
                    Code::CustomerNotAllowed,
                    format!(
                        "{why} `{}`; work only for customers that are listed there",
                        list.place
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Whether some vendor's calls need their customer known: a customer list, or a budget per customer.
    pub fn has_customer_rule(&self) -> bool {
        let listed = |rules: &VendorRules| rules.layers.iter().any(|layer| layer.customers.is_some());
        self.vendors.iter().any(listed) || self.lines.iter().any(|(line, _)| line.whose == Whose::Customer)
    }

    /// Checks `params`. `fields` are the request's decoded fields, and those that a lookup wrote into it.
    /// Call it with [`Stage::Early`] before a lookup and with [`Stage::Final`] when everything that will be sent
    /// is known: an absent field that a rule speaks of fails only then, unless the rule says `required: false`.
    pub fn check_params(
        &self,
        vendor: &str,
        operation: &str,
        fields: &[&[(String, String)]],
        stage: Stage,
    ) -> Result<(), Refusal> {
        for layer in &self.rules(vendor)?.layers {
            for rule in layer.params.of(operation) {
                rule.check(fields, stage).map_err(|why| {
                    Refusal::new(Code::ParamNotAllowed, format!("{why} (`{}`)", rule.place))
                })?;
            }
        }
        Ok(())
    }

    /// What the policy says an operation of unknown cost may cost: the entry with the operation's name, else the
    /// highest that fits.
    pub fn operation_cost(
        &self,
        vendor: &str,
        operation: &str,
        method: &str,
        path: &str,
    ) -> Option<OperationCost> {
        let rules = self.rules(vendor).ok()?;
        let target = Target {
            operation: rules.routes.by_name(operation),
            method,
            path,
        };
        let named = rules
            .costs
            .iter()
            .find(|cost| target.operation.is_some() && cost.entry.text == operation);
        let fitting = || {
            rules
                .costs
                .iter()
                .filter(|cost| cost.entry.matches(target, &rules.routes))
                .max_by_key(|cost| cost.max)
        };
        named.or_else(fitting).map(|cost| OperationCost { max: cost.max })
    }

    /// What to do when the request does not say what the call costs.
    pub const fn unknown_cost(&self) -> UnknownCost {
        self.unknown_cost
    }

    /// US dollars per unit of a currency, if the policy has a rate that is not too old.
    pub fn rate(&self, currency: Currency, now_ms: i64) -> Result<Rate, Refusal> {
        if currency == Currency::USD {
            return Ok(Rate::USD);
        }
        let code = currency.as_str();
        let refuse = |why: String| {
            let today = Moment(now_ms).text();
            let day = today.split('T').next().unwrap_or_default();
            Err(Refusal::new(
                Code::CurrencyNotAllowed,
                format!(
                    "{why}; set \"currency_rates\": {{\"{code}\": {{\"usd\": \"<dollars per {code}>\", \"as_of\": \"{day}\", \"max_age\": \"7d\"}}}}"
                ),
            ))
        };
        match self.rates.get(&currency) {
            None => refuse(format!("the policy has no rate for {currency}")),
            Some(rule) if now_ms >= rule.ends.0 => refuse(format!(
                "the policy's rate for {currency} of {} is older than {}",
                rule.as_of.text(),
                rule.max_age.text()
            )),
            Some(rule) if rule.as_of.0 > now_ms.saturating_add(MAX_AHEAD_MS) => refuse(format!(
                "the policy's rate for {currency} is dated {}, which is still to come",
                rule.as_of.text()
            )),
            Some(rule) => Ok(rule.rate),
        }
    }

    /// The most that a single call may cost.
    pub const fn per_call_ceiling(&self) -> Option<Usd> {
        self.ceiling
    }

    /// How repeats of a call are recognised.
    pub const fn idempotency(&self) -> Idempotency {
        self.idempotency
    }

    /// What a repeat of a call that is done leads to.
    pub const fn on_repeat(&self) -> OnRepeat {
        self.on_repeat
    }

    /// Whose idempotency keys are on the calls, where that cannot be known; `None` when the policy does not say.
    pub const fn caller_keys(&self) -> Option<CallerKeys> {
        self.caller_keys
    }

    /// Whether a payment whose client secret leaves the process counts when it is created.
    pub fn count_at_creation(&self) -> bool {
        self.count_intents == CountIntents::AtCreation
    }

    /// The HTTP status of cap denials: 429 or 403.
    pub const fn cap_status(&self) -> u16 {
        self.cap_status
    }

    /// Whether the text for the model carries amounts.
    pub const fn full_detail(&self) -> bool {
        self.full_detail
    }

    /// Whether the policy only watches.
    pub const fn observe(&self) -> bool {
        self.observe
    }

    /// How long a key lives; both parts are empty when the policy does not say.
    pub const fn lifetime(&self) -> Lifetime {
        self.lifetime
    }

    /// What the key is for, by the policy.
    pub fn label(&self) -> Option<&str> {
        self.label.as_deref()
    }

    /// The agent, by the policy.
    pub fn agent_id(&self) -> Option<&str> {
        self.agent_id.as_deref()
    }

    /// The run, by the policy.
    pub fn run(&self) -> Option<&str> {
        self.run.as_deref()
    }

    /// The parent key, by the policy.
    pub fn parent(&self) -> Option<&str> {
        self.parent.as_deref()
    }

    /// The groups that the policy names or gives a budget.
    pub fn groups(&self) -> &[String] {
        &self.groups
    }

    /// Groups that may be without a budget.
    pub fn attribution_only(&self) -> &[String] {
        &self.attribution_only
    }

    /// Free attribution.
    pub const fn metadata(&self) -> &Map<String, Value> {
        &self.metadata
    }

    /// Whether every budget is scoped to the run (and there is at least one): a key for each request would then
    /// have a fresh cap each time, so per-request issuers refuse such a policy.
    pub fn only_run_budgets(&self) -> bool {
        !self.lines.is_empty() && self.lines.iter().all(|(line, _)| line.whose == Whose::Run)
    }

    /// Whether a budget counts by run, so that a call needs a run.
    pub fn has_run_budget(&self) -> bool {
        self.lines.iter().any(|(line, _)| line.whose == Whose::Run)
    }

    /// The scopes of the groups that the policy gives budgets.
    pub fn group_scopes(&self) -> Vec<Scope> {
        self.lines
            .iter()
            .filter_map(|(line, _)| match &line.whose {
                Whose::Group(name) => Some(Scope::Group(name.clone())),
                _ => None,
            })
            .collect()
    }
}

/// The operation as messages name it: its name, or method and masked path.
fn name(target: Target<'_>, routes: &Routes) -> String {
    match target.operation {
        Some(operation) => operation.name.to_owned(),
        None => format!("{} {}", target.method, routes.masked(target.path)),
    }
}

fn not_listed(target: Target<'_>, routes: &Routes) -> String {
    if let Some(operation) = target.operation {
        let name = operation.name;
        return format!("{name} is not in `allowed_endpoints`; add {name:?} if this key may do it");
    }
    format!(
        "{} is not an operation of {} that Keybrake knows; allow it by its path and give its cost in \
         `operation_costs` if this key may do it",
        name(target, routes),
        routes.vendor,
    )
}
