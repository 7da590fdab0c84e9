//! The policy document: what stands in the file, field by field, before it is compiled.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use super::amounts::{Dollars, Moment, RateText, Span, decimal_text, shown};
use super::budget::{OnRepeat, WindowKind};
use super::reader::{Fields, choice, count, flag, list, map, text, texts};
use crate::error::{Error, Result};

/// A policy as written: the fields of one document. `None` means that the field is not there.
///
/// The field names are those of the JSON Schema; a test compares both with [`FIELDS`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "Policy", deny_unknown_fields)]
#[serde(default)]
pub(crate) struct Document {
    /// Where the JSON Schema is, for editors; not read.
    #[serde(rename = "$schema", skip_serializing_if = "Option::is_none")]
    pub(crate) schema: Option<String>,
    /// Version of the format; 1 when it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::version")]
    pub(crate) v: Option<u8>,
    /// The one vendor that the key opens, such as `stripe`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) vendor: Option<String>,
    /// The vendors that the key opens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) vendors: Option<Vec<String>>,
    /// Which named secret to use, when there are several; by vendor when there are several vendors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) secret: Option<ByVendor<String>>,
    /// Budgets in the general form.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) budgets: Option<Vec<BudgetLine>>,
    /// US dollars per day; with one vendor it counts that vendor, with several all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) daily_usd_cap: Option<Dollars>,
    /// US dollars per day over all vendors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) daily_usd_cap_total: Option<Dollars>,
    /// US dollars per day, vendor by vendor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) per_vendor_daily_caps: Option<BTreeMap<String, Dollars>>,
    /// US dollars per calendar hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hourly_usd_cap: Option<Dollars>,
    /// US dollars per calendar month.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) monthly_usd_cap: Option<Dollars>,
    /// US dollars per run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) run_usd_cap: Option<Dollars>,
    /// US dollars per day for each customer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) per_customer_daily_usd_cap: Option<Dollars>,
    /// Accepted recipients per day. Not enforced yet, so refused at issue.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::count")]
    pub(crate) daily_send_cap: Option<i64>,
    /// Calls per calendar hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::count")]
    pub(crate) hourly_call_cap: Option<i64>,
    /// Calls per day.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::count")]
    pub(crate) daily_call_cap: Option<i64>,
    /// Calls that change something, per run.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::count")]
    pub(crate) max_write_operations_per_run: Option<i64>,
    /// What a day is in the short forms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) window: Option<DayWindow>,
    /// IANA time zone of calendar windows; UTC when it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) timezone: Option<String>,
    /// Ceiling of a single call in US dollars.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_amount_per_call_usd: Option<Dollars>,
    /// What the key may do: `METHOD /path` with `*` and `**`, operation names, or `reads`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) allowed_endpoints: Option<ByVendor<Vec<String>>>,
    /// What the key may not do; wins over `allowed_endpoints`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) denied_endpoints: Option<ByVendor<Vec<String>>>,
    /// The customers that calls may concern.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) allowed_customers: Option<ByVendor<Vec<String>>>,
    /// The connected accounts that calls may act for; `platform` is the secret's own account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) allowed_accounts: Option<ByVendor<Vec<String>>>,
    /// Rules on request fields: by operation (or `*` for all), then by field. By vendor first when there are
    /// several vendors.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::params")]
    pub(crate) params: Option<ByVendor<ParamRules>>,
    /// E.164 prefixes of destinations. Not enforced yet, so refused at issue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) allowed_to_prefixes: Option<Vec<String>>,
    /// Sender domains. Not enforced yet, so refused at issue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) allowed_from_domains: Option<Vec<String>>,
    /// Recipient domains. Not enforced yet, so refused at issue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) allowed_to_domains: Option<Vec<String>>,
    /// How long an identical message is not sent again. Not enforced yet, so refused at issue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) dedup_window: Option<Span>,
    /// How repeats of a call are recognised.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) idempotency: Option<Idempotency>,
    /// What a repeat of a call that is done leads to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) on_repeat: Option<OnRepeat>,
    /// Costs of operations whose cost Keybrake does not know; by vendor first when there are several vendors.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::costs")]
    pub(crate) operation_costs: Option<ByVendor<BTreeMap<String, CostLine>>>,
    /// What to do when the request does not say what the call costs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) unknown_cost: Option<UnknownCost>,
    /// When a payment whose client secret leaves the process counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) count_intents: Option<CountIntents>,
    /// Whose idempotency keys are on the calls, where that cannot be known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) caller_keys: Option<CallerKeys>,
    /// Operations that start repeated billing. Only `deny` is enforced yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) recurring: Option<Recurring>,
    /// US dollars per unit of other currencies, each with an age limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) currency_rates: Option<BTreeMap<String, RateLine>>,
    /// Above it a person must approve. Not enforced yet, so refused at issue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) approval_over_usd: Option<Dollars>,
    /// Lifetime from issue; 24 h when neither this nor `expires_at` is given, 1 h for a run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) expires_in: Option<Span>,
    /// End of the lifetime.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) expires_at: Option<Moment>,
    /// What happens when the ledger cannot be reached. Only `deny` is enforced yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) on_ledger_unavailable: Option<OnLedgerUnavailable>,
    /// The HTTP status of cap denials: 429 or 403.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::cap_status")]
    pub(crate) cap_status: Option<u16>,
    /// Whether the text for the model carries amounts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) model_detail: Option<ModelDetail>,
    /// Whether the policy refuses, or only watches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mode: Option<Mode>,
    /// Attribution: what the key is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) label: Option<String>,
    /// Attribution: the agent, which is also whose budgets these are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) agent_id: Option<String>,
    /// Attribution: the run, fixed for the key's life.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) agent_run_id: Option<String>,
    /// Free attribution, kept in the audit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) metadata: Option<Map<String, Value>>,
    /// The key whose policy, budgets and life bound this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) parent: Option<String>,
    /// Groups whose budgets this key draws on too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) groups: Option<Vec<GroupLine>>,
    /// What was narrowed since, in order: documents that must each allow a call too. Written by narrowing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) narrowed: Vec<Self>,
}

/// Every field of the document.
pub(crate) const FIELDS: [&str; 51] = [
    "v",
    "vendor",
    "vendors",
    "secret",
    "budgets",
    "daily_usd_cap",
    "daily_usd_cap_total",
    "per_vendor_daily_caps",
    "hourly_usd_cap",
    "monthly_usd_cap",
    "run_usd_cap",
    "per_customer_daily_usd_cap",
    "daily_send_cap",
    "hourly_call_cap",
    "daily_call_cap",
    "max_write_operations_per_run",
    "window",
    "timezone",
    "max_amount_per_call_usd",
    "allowed_endpoints",
    "denied_endpoints",
    "allowed_customers",
    "allowed_accounts",
    "params",
    "allowed_to_prefixes",
    "allowed_from_domains",
    "allowed_to_domains",
    "dedup_window",
    "idempotency",
    "on_repeat",
    "operation_costs",
    "unknown_cost",
    "count_intents",
    "caller_keys",
    "recurring",
    "currency_rates",
    "approval_over_usd",
    "expires_in",
    "expires_at",
    "on_ledger_unavailable",
    "cap_status",
    "model_detail",
    "mode",
    "label",
    "agent_id",
    "agent_run_id",
    "metadata",
    "parent",
    "groups",
    "narrowed",
    "$schema",
];

/// One value for all vendors, or one for each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum ByVendor<T> {
    /// The same for the one vendor there is.
    All(T),
    /// By vendor.
    By(BTreeMap<String, T>),
}

/// Rules by operation (or `*`), then by field.
pub(crate) type ParamRules = BTreeMap<String, BTreeMap<String, RuleLine>>;

/// A budget in the general form: exactly one unit, and what it is cut into.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "Budget", deny_unknown_fields)]
pub(crate) struct BudgetLine {
    /// US dollars.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) usd: Option<Dollars>,
    /// Calls of any kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(default, schema_with = "super::schema::count")]
    pub(crate) calls: Option<i64>,
    /// Calls that change something.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(default, schema_with = "super::schema::count")]
    pub(crate) writes: Option<i64>,
    /// Accepted recipients. Not enforced yet, so refused at issue.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(default, schema_with = "super::schema::count")]
    pub(crate) sends: Option<i64>,
    /// What it is cut into.
    pub(crate) per: WindowKind,
    /// `lineage` (when not given; `run` when `per` is `run`), `run`, `customer`, or a group's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) scope: Option<String>,
    /// The vendor it counts; all when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) vendor: Option<String>,
}

/// A rule on one request field. Several conditions must all hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "Rule", deny_unknown_fields)]
#[serde(default)]
pub(crate) struct RuleLine {
    /// The only value.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::scalar")]
    pub(crate) equals: Option<String>,
    /// The values that may stand.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::scalars")]
    pub(crate) one_of: Option<Vec<String>>,
    /// The largest number, in the vendor's units.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::decimal")]
    pub(crate) max: Option<String>,
    /// The smallest number, in the vendor's units.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::decimal")]
    pub(crate) min: Option<String>,
    /// A regular expression for the whole value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) matches: Option<String>,
    /// Whether the field must be there. An absent field fails every other condition unless this is `false`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) required: Option<bool>,
    /// Whether the field (and every field nested in it) must not be there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) forbidden: Option<bool>,
}

/// What an operation may cost at most: an amount, or `{"max": amount}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "Cost", with = "super::schema::CostForms")]
pub(crate) struct CostLine {
    pub(crate) max: Dollars,
}

/// A currency's rate: US dollars per unit, when it was read, and for how long it may be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "CurrencyRate", deny_unknown_fields)]
pub(crate) struct RateLine {
    /// US dollars per unit.
    pub(crate) usd: RateText,
    /// The day (UTC) or time of the rate.
    pub(crate) as_of: Moment,
    /// How long after `as_of` it may be used.
    pub(crate) max_age: Span,
}

/// A group: its name, or its name and whether it may be without a budget.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "Group", with = "super::schema::GroupForms")]
pub(crate) struct GroupLine {
    pub(crate) name: String,
    pub(crate) attribution_only: bool,
}

/// A closed list of words: the enum, its readers' table and its serialised form, in one place.
macro_rules! words {
    ($(#[$doc:meta])* $vis:vis $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
        $vis enum $name { $($(#[$vdoc])* #[serde(rename = $word)] $variant),+ }
        impl $name {
            const WORDS: &'static [(&'static str, Self)] = &[$(($word, Self::$variant)),+];
        }
    };
}

words! {
    /// What a day is in the short forms.
    #[derive(Default)]
    pub(crate) DayWindow {
        /// A calendar day in the policy's time zone.
        #[default] CalendarDay = "calendar_day",
        /// The last 24 hours.
        Rolling24h = "rolling_24h",
    }
}
words! {
    /// How repeats of a call are recognised.
    #[derive(Default)]
    pub Idempotency {
        /// By the caller's key, a step, an item, or the content.
        #[default] Auto = "auto",
        /// Every write must carry a key, a step or an item.
        Require = "require",
        /// Not at all; transport attempts only.
        Off = "off",
    }
}
words! {
    /// What to do when the request does not say what the call costs.
    #[derive(Default)]
    pub UnknownCost {
        /// One bounded read where that answers it, else refuse.
        #[default] Lookup = "lookup",
        /// Refuse.
        Deny = "deny",
    }
}
words! {
    /// When a payment whose client secret leaves the process counts.
    #[derive(Default)]
    pub CountIntents {
        /// When it is created.
        #[default] AtCreation = "at_creation",
        /// When it is confirmed.
        AtConfirm = "at_confirm",
    }
}
words! {
    /// Whose idempotency keys are on the calls, where that cannot be known.
    pub CallerKeys {
        /// The caller's: forward them and take them as the call's identity.
        Trust = "trust",
        /// The SDK's: replace them.
        Replace = "replace",
    }
}
words! {
    /// What happens when the ledger cannot be reached.
    #[derive(Default)]
    pub(crate) OnLedgerUnavailable {
        /// Every call is refused.
        #[default] Deny = "deny",
        /// Reads pass.
        AllowReads = "allow_reads",
    }
}
words! {
    /// Whether the text for the model carries amounts.
    #[derive(Default)]
    pub(crate) ModelDetail {
        /// With amounts, limits and times.
        #[default] Full = "full",
        /// Only the reason.
        Reason = "reason",
    }
}
words! {
    /// Whether the policy refuses, or only watches.
    #[derive(Default)]
    pub(crate) Mode {
        /// It refuses.
        #[default] Enforce = "enforce",
        /// It counts, and says what it would have refused.
        Observe = "observe",
    }
}

/// Operations that start repeated billing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Recurring {
    /// A word: `deny` or `count_first`.
    Word(RecurringWord),
    /// How many payments count.
    Count(u32),
}

words! {
    /// Operations that start repeated billing, in a word.
    #[derive(Default)]
    pub(crate) RecurringWord {
        /// They are refused.
        #[default] Deny = "deny",
        /// Their first payment counts.
        CountFirst = "count_first",
    }
}

impl Document {
    /// Reads a document from a value; `place` is empty, or where a narrowing stands.
    pub(crate) fn read(value: &Value, place: &str) -> Result<Self> {
        let f = Fields::new(value, place, &FIELDS)?;
        let list_by = |name: &str| f.read(name, |v, p| by_vendor(v, p, texts));
        Ok(Self {
            schema: f.read("$schema", text)?,
            v: f.read("v", version)?,
            vendor: f.read("vendor", text)?,
            vendors: f.read("vendors", texts)?,
            secret: f.read("secret", |v, p| by_vendor(v, p, text))?,
            budgets: f.read("budgets", |v, p| list(v, p, BudgetLine::read))?,
            daily_usd_cap: f.read("daily_usd_cap", Dollars::read)?,
            daily_usd_cap_total: f.read("daily_usd_cap_total", Dollars::read)?,
            per_vendor_daily_caps: f.read("per_vendor_daily_caps", |v, p| map(v, p, Dollars::read))?,
            hourly_usd_cap: f.read("hourly_usd_cap", Dollars::read)?,
            monthly_usd_cap: f.read("monthly_usd_cap", Dollars::read)?,
            run_usd_cap: f.read("run_usd_cap", Dollars::read)?,
            per_customer_daily_usd_cap: f.read("per_customer_daily_usd_cap", Dollars::read)?,
            daily_send_cap: f.read("daily_send_cap", count)?,
            hourly_call_cap: f.read("hourly_call_cap", count)?,
            daily_call_cap: f.read("daily_call_cap", count)?,
            max_write_operations_per_run: f.read("max_write_operations_per_run", count)?,
            window: f.read("window", |v, p| choice(v, p, DayWindow::WORDS))?,
            timezone: f.read("timezone", text)?,
            max_amount_per_call_usd: f.read("max_amount_per_call_usd", Dollars::read)?,
            allowed_endpoints: list_by("allowed_endpoints")?,
            denied_endpoints: list_by("denied_endpoints")?,
            allowed_customers: list_by("allowed_customers")?,
            allowed_accounts: list_by("allowed_accounts")?,
            params: f.read("params", read_params)?,
            allowed_to_prefixes: f.read("allowed_to_prefixes", texts)?,
            allowed_from_domains: f.read("allowed_from_domains", texts)?,
            allowed_to_domains: f.read("allowed_to_domains", texts)?,
            dedup_window: f.read("dedup_window", Span::read)?,
            idempotency: f.read("idempotency", |v, p| choice(v, p, Idempotency::WORDS))?,
            on_repeat: f.read("on_repeat", |v, p| choice(v, p, &ON_REPEAT))?,
            operation_costs: f.read("operation_costs", read_costs)?,
            unknown_cost: f.read("unknown_cost", |v, p| choice(v, p, UnknownCost::WORDS))?,
            count_intents: f.read("count_intents", |v, p| choice(v, p, CountIntents::WORDS))?,
            caller_keys: f.read("caller_keys", |v, p| choice(v, p, CallerKeys::WORDS))?,
            recurring: f.read("recurring", Recurring::read)?,
            currency_rates: f.read("currency_rates", |v, p| map(v, p, RateLine::read))?,
            approval_over_usd: f.read("approval_over_usd", Dollars::read)?,
            expires_in: f.read("expires_in", Span::read)?,
            expires_at: f.read("expires_at", Moment::read)?,
            on_ledger_unavailable: f.read("on_ledger_unavailable", |v, p| {
                choice(v, p, OnLedgerUnavailable::WORDS)
            })?,
            cap_status: f.read("cap_status", |v, p| choice(v, p, &[("429", 429), ("403", 403)]))?,
            model_detail: f.read("model_detail", |v, p| choice(v, p, ModelDetail::WORDS))?,
            mode: f.read("mode", |v, p| choice(v, p, Mode::WORDS))?,
            label: f.read("label", text)?,
            agent_id: f.read("agent_id", text)?,
            agent_run_id: f.read("agent_run_id", text)?,
            metadata: f.read("metadata", read_metadata)?,
            parent: f.read("parent", text)?,
            groups: f.read("groups", |v, p| list(v, p, GroupLine::read))?,
            narrowed: f
                .read("narrowed", |v, p| list(v, p, read_narrowed))?
                .unwrap_or_default(),
        })
    }
}

const ON_REPEAT: [(&str, OnRepeat); 3] = [
    ("replay", OnRepeat::Replay),
    ("refuse", OnRepeat::Refuse),
    ("execute", OnRepeat::Execute),
];

fn version(value: &Value, place: &str) -> Result<u8> {
    choice(value, place, &[("1", 1)])
}

/// A narrowing inside a document; narrowings are a flat list.
fn read_narrowed(value: &Value, place: &str) -> Result<Document> {
    let document = Document::read(value, place)?;
    if document.narrowed.is_empty() {
        Ok(document)
    } else {
        Err(Error::policy(format!(
            "`{place}.narrowed` cannot stand inside a narrowing; list them one after the other"
        )))
    }
}

/// An object is by vendor, anything else is for all.
fn by_vendor<T>(value: &Value, place: &str, read: impl Fn(&Value, &str) -> Result<T>) -> Result<ByVendor<T>> {
    if value.is_object() {
        map(value, place, read).map(ByVendor::By)
    } else {
        read(value, place).map(ByVendor::All)
    }
}

/// Whether an object is keyed by vendors: their names have no dot, space or `*`, which all operations have.
fn keyed_by_vendor(value: &Value) -> bool {
    let vendor_like = |key: &String| !key.contains(['.', ' ', '*', '/']);
    value
        .as_object()
        .is_some_and(|object| !object.is_empty() && object.keys().all(vendor_like))
}

fn read_params(value: &Value, place: &str) -> Result<ByVendor<ParamRules>> {
    let rules = |v: &Value, p: &str| map(v, p, |v, p| map(v, p, RuleLine::read));
    if keyed_by_vendor(value) {
        map(value, place, rules).map(ByVendor::By)
    } else {
        rules(value, place).map(ByVendor::All)
    }
}

fn read_costs(value: &Value, place: &str) -> Result<ByVendor<BTreeMap<String, CostLine>>> {
    if keyed_by_vendor(value) {
        map(value, place, |v, p| map(v, p, CostLine::read)).map(ByVendor::By)
    } else {
        map(value, place, CostLine::read).map(ByVendor::All)
    }
}

fn read_metadata(value: &Value, place: &str) -> Result<Map<String, Value>> {
    let object = value
        .as_object()
        .ok_or_else(|| Error::policy(format!("`{place}` must be an object, not {}", shown(value))))?;
    if value.to_string().len() > 4_096 {
        return Err(Error::policy(format!("`{place}` is longer than 4096 bytes")));
    }
    Ok(object.clone())
}

/// A value that a request field can have, as the text that stands in a form.
fn scalar(value: &Value, place: &str) -> Result<String> {
    match value {
        Value::Bool(flag) => Ok(flag.to_string()),
        Value::String(text) => Ok(text.clone()),
        Value::Number(_) => Ok(decimal_text(value).unwrap_or_default().into_owned()),
        _ => Err(Error::policy(format!(
            "`{place}` must be a text, a number, true or false, not {}",
            shown(value)
        ))),
    }
}

fn number(value: &Value, place: &str) -> Result<String> {
    let text = decimal_text(value).unwrap_or_default();
    if super::rule::decimal(&text).is_none() {
        return Err(Error::policy(format!(
            "`{place}` is {}; write a plain number with at most six decimals",
            shown(value)
        )));
    }
    Ok(text.into_owned())
}

impl BudgetLine {
    fn read(value: &Value, place: &str) -> Result<Self> {
        const KNOWN: [&str; 7] = ["usd", "calls", "writes", "sends", "per", "scope", "vendor"];
        let f = Fields::new(value, place, &KNOWN)?;
        let units: Vec<_> = KNOWN.into_iter().take(4).filter(|unit| f.has(unit)).collect();
        if units.len() != 1 {
            return Err(Error::policy(format!(
                "`{place}` has {} units; give it exactly one of `usd`, `calls`, `writes`, `sends`",
                units.len()
            )));
        }
        let per = [
            WindowKind::Hour,
            WindowKind::Day,
            WindowKind::Rolling24h,
            WindowKind::Month,
            WindowKind::Run,
            WindowKind::Lifetime,
        ]
        .map(|kind| (kind.as_str(), kind));
        Ok(Self {
            usd: f.read("usd", Dollars::read)?,
            calls: f.read("calls", count)?,
            writes: f.read("writes", count)?,
            sends: f.read("sends", count)?,
            per: f.read("per", |v, p| choice(v, p, &per))?.ok_or_else(|| {
                Error::policy(format!("`{place}` has no `per`; add \"per\": \"day\" (or hour, rolling_24h, month, run, lifetime)"))
            })?,
            scope: f.read("scope", text)?,
            vendor: f.read("vendor", text)?,
        })
    }
}

impl RuleLine {
    fn read(value: &Value, place: &str) -> Result<Self> {
        const KNOWN: [&str; 7] = [
            "equals",
            "one_of",
            "max",
            "min",
            "matches",
            "required",
            "forbidden",
        ];
        let f = Fields::new(value, place, &KNOWN)?;
        if !KNOWN.iter().any(|name| f.has(name)) {
            return Err(Error::policy(format!(
                "`{place}` has no condition; give it one of {}",
                KNOWN.join(", ")
            )));
        }
        Ok(Self {
            equals: f.read("equals", scalar)?,
            one_of: f.read("one_of", |v, p| list(v, p, scalar))?,
            max: f.read("max", number)?,
            min: f.read("min", number)?,
            matches: f.read("matches", text)?,
            required: f.read("required", flag)?,
            forbidden: f.read("forbidden", flag)?,
        })
    }
}

impl CostLine {
    fn read(value: &Value, place: &str) -> Result<Self> {
        if !value.is_object() {
            return Dollars::read(value, place).map(|max| Self { max });
        }
        let f = Fields::new(value, place, &["max"])?;
        let max = f.read("max", Dollars::read)?;
        max.map(|max| Self { max }).ok_or_else(|| {
            Error::policy(format!(
                "`{place}` has no `max`; write an amount such as {{\"max\": 20}}"
            ))
        })
    }
}

impl RateLine {
    fn read(value: &Value, place: &str) -> Result<Self> {
        let example = r#"{"usd": "1.09", "as_of": "2026-11-20", "max_age": "7d"}"#;
        if !value.is_object() {
            return Err(Error::policy(format!(
                "`{place}` is {} without an age limit; write {example}",
                shown(value)
            )));
        }
        let f = Fields::new(value, place, &["usd", "as_of", "max_age"])?;
        let missing = |name: &str| Error::policy(format!("`{place}` has no `{name}`; write {example}"));
        Ok(Self {
            usd: f.read("usd", RateText::read)?.ok_or_else(|| missing("usd"))?,
            as_of: f
                .read("as_of", Moment::read_date)?
                .ok_or_else(|| missing("as_of"))?,
            max_age: f.read("max_age", Span::read)?.ok_or_else(|| missing("max_age"))?,
        })
    }
}

impl GroupLine {
    fn read(value: &Value, place: &str) -> Result<Self> {
        if !value.is_object() {
            return text(value, place).map(|name| Self {
                name,
                attribution_only: false,
            });
        }
        let f = Fields::new(value, place, &["name", "attribution_only"])?;
        let name = f.read("name", text)?;
        Ok(Self {
            name: name.ok_or_else(|| Error::policy(format!("`{place}` has no `name`")))?,
            attribution_only: f.read("attribution_only", flag)?.unwrap_or(false),
        })
    }
}

impl Recurring {
    fn read(value: &Value, place: &str) -> Result<Self> {
        match value.as_u64().map(u32::try_from) {
            Some(Ok(count)) => Ok(Self::Count(count)),
            _ => choice(value, place, RecurringWord::WORDS).map(Self::Word),
        }
    }
}
