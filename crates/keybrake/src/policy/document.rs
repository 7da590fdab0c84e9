//! The policy document: what stands in the file, field by field, before it is compiled.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use super::amounts::{Dollars, Moment, Span, shown};
use super::budget::OnRepeat;
use super::lines::{BudgetLine, CostLine, GroupLine, RateLine, RuleLine};
use super::options::{
    CallerKeys, CountIntents, DayWindow, Idempotency, Mode, ModelDetail, OnLedgerUnavailable, Recurring,
    UnknownCost,
};
use super::reader::{Fields, choice, count, list, map, text, texts};
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
