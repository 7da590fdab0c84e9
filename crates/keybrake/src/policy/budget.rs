//! Budgets as nouns: what is counted, for whom, in which window. The ledger keeps the counters.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a budget counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Money, in micro-USD.
    Usd,
    /// Calls of any kind.
    Calls,
    /// Calls that change something at the vendor.
    Writes,
    /// Accepted recipients.
    Sends,
}

/// What a budget is cut into. `Day` and `Rolling24h` are one family: a scope has at most one of them, so that
/// a change of shape can never start a second counter from zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WindowKind {
    /// A calendar hour.
    Hour,
    /// A calendar day in the budget's time zone (23 to 25 hours).
    Day,
    /// The last 24 hours in 5-minute buckets, the oldest counted in full.
    #[serde(rename = "rolling_24h")]
    Rolling24h,
    /// A calendar month in the budget's time zone.
    Month,
    /// One run; no window inside it.
    Run,
    /// For ever.
    Lifetime,
}

/// Whose spending a budget counts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", content = "id", rename_all = "snake_case")]
pub enum Scope {
    /// Everything a lineage (agent, else label, else `default`) spends.
    Lineage(String),
    /// One run.
    Run(String),
    /// One customer of a vendor. In a definition the id is `*`: one counter for each customer.
    Customer(String),
    /// A named group, such as `tenant:acme`.
    Group(String),
}

/// The name of a budget: vendor or `*`, scope, unit and window family. Never a key. Such as
/// `stripe|lineage:support-v2|usd|day`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BudgetId(pub String);

/// One budget: a counter's name, its window and its cap. First-class in the ledger: changing the cap works at
/// once for everyone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetDef {
    /// The vendor it counts, or all.
    pub vendor: Option<String>,
    /// Whose spending it counts.
    pub scope: Scope,
    /// What it counts.
    pub unit: Unit,
    /// What it is cut into.
    pub window: WindowKind,
    /// IANA time zone of calendar windows, `UTC` by default.
    pub timezone: String,
    /// The cap, in the budget's unit.
    pub cap: i64,
}

/// A window of time, `start_ms <= t < end_ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// First millisecond inside.
    pub start_ms: i64,
    /// First millisecond after.
    pub end_ms: i64,
}

/// A key's tie to a budget.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetRef {
    /// The budget.
    pub def: BudgetDef,
    /// A lower limit for this key alone, from narrowing; the smaller of it and the cap holds.
    pub limit: Option<i64>,
    /// Whether the budget refuses (`enforce`), or only counts (an observing key's own budgets).
    pub enforce: bool,
}

/// What a settled twin leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnRepeat {
    /// The recorded reply.
    #[default]
    Replay,
    /// `already_done`.
    Refuse,
    /// A new spend: the next generation.
    Execute,
}

impl Scope {
    /// `lineage:support-v2`, `run:run_42`, `customer:*`, `group:tenant:acme`.
    pub fn name(&self) -> String {
        let (kind, id) = self.parts();
        [kind, ":", id].concat()
    }

    /// The kind in a word, and the id.
    const fn parts(&self) -> (&'static str, &str) {
        match self {
            Self::Lineage(id) => ("lineage", id.as_str()),
            Self::Run(id) => ("run", id.as_str()),
            Self::Customer(id) => ("customer", id.as_str()),
            Self::Group(id) => ("group", id.as_str()),
        }
    }
}

impl Unit {
    /// `usd`, `calls`, `writes`, `sends`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Usd => "usd",
            Self::Calls => "calls",
            Self::Writes => "writes",
            Self::Sends => "sends",
        }
    }
}

impl WindowKind {
    /// `hour`, `day`, `rolling_24h`, `month`, `run`, `lifetime`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Rolling24h => "rolling_24h",
            Self::Month => "month",
            Self::Run => "run",
            Self::Lifetime => "lifetime",
        }
    }

    /// The family that names the counter: a day and a rolling day are one.
    pub const fn family(self) -> &'static str {
        match self {
            Self::Rolling24h => "day",
            other => other.as_str(),
        }
    }
}

impl BudgetDef {
    /// The budget's name, made of its scope and never of a key, zone or cap.
    pub fn id(&self) -> BudgetId {
        let vendor = self.vendor.as_deref().unwrap_or("*");
        let (kind, scope) = self.scope.parts();
        let (unit, family) = (self.unit.as_str(), self.window.family());
        BudgetId([vendor, "|", kind, ":", scope, "|", unit, "|", family].concat())
    }

    /// The budget as people read it: `stripe lineage:support-v2 usd per day`, with `all` for all vendors.
    pub fn display_name(&self) -> String {
        let vendor = self.vendor.as_deref().unwrap_or("all");
        let (scope, unit, per) = (self.scope.name(), self.unit.as_str(), self.window.as_str());
        format!("{vendor} {scope} {unit} per {per}")
    }
}
