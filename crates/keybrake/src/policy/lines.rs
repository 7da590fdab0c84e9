//! The lines of a document: what stands inside its lists and maps.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::amounts::{Dollars, Moment, RateText, Span, decimal_text, shown};
use super::budget::WindowKind;
use super::reader::{Fields, choice, count, flag, list, text};
use crate::error::{Error, Result};

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
    pub(crate) fn read(value: &Value, place: &str) -> Result<Self> {
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
    pub(crate) fn read(value: &Value, place: &str) -> Result<Self> {
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
    pub(crate) fn read(value: &Value, place: &str) -> Result<Self> {
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
    pub(crate) fn read(value: &Value, place: &str) -> Result<Self> {
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
    pub(crate) fn read(value: &Value, place: &str) -> Result<Self> {
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
