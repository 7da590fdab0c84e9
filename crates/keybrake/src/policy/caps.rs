//! Short and general forms of budgets, brought to one form: a list of lines, each with the field it came from.

use std::collections::BTreeMap;

use super::budget::{BudgetDef, Scope, Unit, WindowKind};
use super::document::Document;
use super::lines::BudgetLine;
use super::options::DayWindow;
use super::reader::validate_id;
use crate::error::{Error, Result};
use crate::money::Usd;

/// Whose spending a line counts; ids are filled in when a key is bound.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Whose {
    Lineage,
    Run,
    Customer,
    Group(String),
}

/// One budget of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// The field it came from, such as `daily_usd_cap` or `budgets[0]`.
    pub(crate) field: String,
    pub(crate) vendor: Option<String>,
    pub(crate) whose: Whose,
    pub(crate) unit: Unit,
    pub(crate) window: WindowKind,
    pub(crate) cap: i64,
}

impl Line {
    /// What the line counts, without its cap: two lines with one name are the same budget. In a policy for one
    /// vendor, all vendors and that vendor are the same.
    pub(crate) fn same_as(&self, other: &Self, only_vendor: Option<&str>) -> bool {
        let vendor = |line: &Self| line.vendor.clone().or_else(|| only_vendor.map(str::to_owned));
        vendor(self) == vendor(other)
            && self.whose == other.whose
            && self.unit == other.unit
            && self.window.family() == other.window.family()
    }

    /// The cap as people write it.
    pub(crate) fn cap_text(&self) -> String {
        match self.unit {
            Unit::Usd => format!("${}", Usd::from_micros(self.cap)),
            _ => self.cap.to_string(),
        }
    }

    /// The budget of a bound key. An unbound run stays `*`.
    pub(crate) fn def(&self, lineage: &str, run: Option<&str>, timezone: &str) -> BudgetDef {
        let scope = match &self.whose {
            Whose::Lineage => Scope::Lineage(lineage.to_owned()),
            Whose::Run => Scope::Run(run.unwrap_or("*").to_owned()),
            Whose::Customer => Scope::Customer("*".to_owned()),
            Whose::Group(name) => Scope::Group(name.clone()),
        };
        BudgetDef {
            vendor: self.vendor.clone(),
            scope,
            unit: self.unit,
            window: self.window,
            timezone: timezone.to_owned(),
            cap: self.cap,
        }
    }
}

/// All budgets of a document, in the order of its fields. `day` is the policy's `window`, `vendors` its vendors.
pub(crate) fn lines(document: &Document, vendors: &[&str], day: DayWindow, place: &str) -> Result<Vec<Line>> {
    let only = match vendors {
        [one] => Some((*one).to_owned()),
        _ => None,
    };
    let mut lines = short_forms(document, only.as_ref(), day, place);
    let caps = document.per_vendor_daily_caps.iter().flat_map(BTreeMap::iter);
    for (vendor, cap) in caps {
        let field = at(place, &format!("per_vendor_daily_caps.{vendor}"));
        known_vendor(vendor, vendors, &field)?;
        lines.push(Line {
            field,
            vendor: Some(vendor.clone()),
            whose: Whose::Lineage,
            unit: Unit::Usd,
            window: day_kind(day),
            cap: cap.0.micros(),
        });
    }
    for (index, line) in document.budgets.iter().flatten().enumerate() {
        lines.push(general(line, vendors, at(place, &format!("budgets[{index}]")))?);
    }
    for (index, line) in lines.iter().enumerate() {
        let earlier = lines
            .iter()
            .take(index)
            .find(|earlier| earlier.same_as(line, only.as_deref()));
        if let Some(earlier) = earlier {
            return Err(Error::policy(format!(
                "`{}` and `{}` are the same budget ({} per {}); keep one",
                earlier.field,
                line.field,
                line.unit.as_str(),
                line.window.family()
            )));
        }
    }
    Ok(lines)
}

pub(crate) fn at(place: &str, field: &str) -> String {
    if place.is_empty() {
        field.to_owned()
    } else {
        format!("{place}.{field}")
    }
}

pub(crate) fn known_vendor(vendor: &str, vendors: &[&str], field: &str) -> Result<()> {
    if vendors.contains(&vendor) {
        return Ok(());
    }
    Err(Error::policy(format!(
        "`{field}` is for {vendor:?}, which the policy does not open; it opens {}",
        vendors.join(", ")
    )))
}

const fn day_kind(day: DayWindow) -> WindowKind {
    match day {
        DayWindow::CalendarDay => WindowKind::Day,
        DayWindow::Rolling24h => WindowKind::Rolling24h,
    }
}

fn short_forms(document: &Document, only: Option<&String>, day: DayWindow, place: &str) -> Vec<Line> {
    use Whose::{Customer, Lineage, Run};
    let d = document;
    let day = day_kind(day);
    let usd = |cap: Option<super::amounts::Dollars>| cap.map(|cap| cap.0.micros());
    let forms = [
        ("daily_usd_cap", usd(d.daily_usd_cap), Lineage, Unit::Usd, day),
        (
            "daily_usd_cap_total",
            usd(d.daily_usd_cap_total),
            Lineage,
            Unit::Usd,
            day,
        ),
        (
            "hourly_usd_cap",
            usd(d.hourly_usd_cap),
            Lineage,
            Unit::Usd,
            WindowKind::Hour,
        ),
        (
            "monthly_usd_cap",
            usd(d.monthly_usd_cap),
            Lineage,
            Unit::Usd,
            WindowKind::Month,
        ),
        ("run_usd_cap", usd(d.run_usd_cap), Run, Unit::Usd, WindowKind::Run),
        (
            "per_customer_daily_usd_cap",
            usd(d.per_customer_daily_usd_cap),
            Customer,
            Unit::Usd,
            day,
        ),
        (
            "hourly_call_cap",
            d.hourly_call_cap,
            Lineage,
            Unit::Calls,
            WindowKind::Hour,
        ),
        ("daily_call_cap", d.daily_call_cap, Lineage, Unit::Calls, day),
        (
            "max_write_operations_per_run",
            d.max_write_operations_per_run,
            Run,
            Unit::Writes,
            WindowKind::Run,
        ),
    ];
    forms
        .into_iter()
        .filter_map(|(field, cap, whose, unit, window)| {
            // `_total` counts all vendors by name; the others count the policy's one vendor if there is one.
            let vendor = if field == "daily_usd_cap_total" {
                None
            } else {
                only.cloned()
            };
            cap.map(|cap| Line {
                field: at(place, field),
                vendor,
                whose,
                unit,
                window,
                cap,
            })
        })
        .collect()
}

fn general(line: &BudgetLine, vendors: &[&str], field: String) -> Result<Line> {
    if let Some(vendor) = &line.vendor {
        known_vendor(vendor, vendors, &format!("{field}.vendor"))?;
    }
    let (unit, cap) = match (line.usd, line.calls, line.writes, line.sends) {
        (Some(usd), ..) => (Unit::Usd, usd.0.micros()),
        (_, Some(calls), ..) => (Unit::Calls, calls),
        (_, _, Some(writes), _) => (Unit::Writes, writes),
        (_, _, _, Some(_)) => {
            return Err(Error::policy(format!(
                "`{field}.sends` is not enforced yet; remove it"
            )));
        }
        _ => return Err(Error::policy(format!("`{field}` has no unit"))),
    };
    let whose = match (line.scope.as_deref(), line.per) {
        (None | Some("run"), WindowKind::Run) => Whose::Run,
        (None | Some("lineage"), per) if per != WindowKind::Run => Whose::Lineage,
        (Some(scope), WindowKind::Run) => {
            return Err(Error::policy(format!(
                "`{field}` is per run but its scope is {scope:?}; remove `scope`, or choose another `per`"
            )));
        }
        (Some("run"), _) => Whose::Run,
        (Some("customer"), _) => Whose::Customer,
        (Some(group), _) => {
            validate_id("group", group).map_err(|e| Error::policy(format!("`{field}.scope`: {e}")))?;
            Whose::Group(group.to_owned())
        }
        (None, _) => Whose::Lineage,
    };
    // A run's lifetime is the run: one budget, one name.
    let window = if whose == Whose::Run && line.per == WindowKind::Lifetime {
        WindowKind::Run
    } else {
        line.per
    };
    Ok(Line {
        field,
        vendor: line.vendor.clone(),
        whose,
        unit,
        window,
        cap,
    })
}
