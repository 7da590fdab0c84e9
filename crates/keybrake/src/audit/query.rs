//! The questions that are asked most.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Audit;
use super::row::AuditRow;
use super::rows::RowFilter;
use crate::error::{Error, ErrorKind, Result};
use crate::money::Usd;

/// A day.
const DAY_MS: i64 = 86_400_000;

/// What spending is added up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SpendBy {
    /// By run.
    Run,
    /// By agent.
    Agent,
    /// By vendor.
    Vendor,
    /// By calendar day in UTC.
    Day,
    /// By customer.
    Customer,
    /// By label.
    Label,
    /// By group (a call counts in each of its groups).
    Group,
}

/// What one run, agent, vendor, day, customer, label or group spent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SpendLine {
    /// The run, agent, …; `None` for calls without one.
    pub name: Option<String>,
    /// Live or test money; the two are never added up.
    pub livemode: bool,
    /// Calls that were let through.
    pub calls: u64,
    /// Calls that were refused.
    pub denied: u64,
    /// Calls that were answered from a recorded reply.
    pub replayed: u64,
    /// Money collected.
    #[serde(serialize_with = "usd_text")]
    pub collected_usd: Usd,
    /// Money sent out.
    #[serde(serialize_with = "usd_text")]
    pub sent_usd: Usd,
    /// Collected and sent together: what budgets count.
    #[serde(serialize_with = "usd_text")]
    pub counted_usd: Usd,
    /// Reserved, outcome not yet known.
    #[serde(serialize_with = "usd_text")]
    pub held_usd: Usd,
    /// `counted_usd` for each call that was let through, rounded down to a micro-dollar.
    #[serde(serialize_with = "usd_text")]
    pub per_call_usd: Usd,
}

impl SpendLine {
    const fn new(name: Option<String>, livemode: bool) -> Self {
        Self {
            name,
            livemode,
            calls: 0,
            denied: 0,
            replayed: 0,
            collected_usd: Usd::ZERO,
            sent_usd: Usd::ZERO,
            counted_usd: Usd::ZERO,
            held_usd: Usd::ZERO,
            per_call_usd: Usd::ZERO,
        }
    }

    fn add(&mut self, row: &AuditRow) -> Result<()> {
        let count = row.count();
        match row.policy_verdict.as_str() {
            "allowed" => self.calls = self.calls.saturating_add(count),
            "replayed" => self.replayed = self.replayed.saturating_add(count),
            _ => self.denied = self.denied.saturating_add(count),
        }
        let cost = row.cost_usd_parsed.unwrap_or(Usd::ZERO);
        let size = if cost.is_negative() {
            cost.checked_neg()
        } else {
            Some(cost)
        };
        let size = size.ok_or_else(too_large)?;
        let side = if cost.is_negative() {
            &mut self.sent_usd
        } else {
            &mut self.collected_usd
        };
        *side = side.checked_add(size).ok_or_else(too_large)?;
        self.counted_usd = self.counted_usd.checked_add(size).ok_or_else(too_large)?;
        self.held_usd = self.held_usd.checked_add(row.held()).ok_or_else(too_large)?;
        Ok(())
    }
}

/// How long calls of one operation took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SlowOperation {
    /// The vendor.
    pub vendor: String,
    /// The operation.
    pub operation: String,
    /// Calls that were answered.
    pub calls: u64,
    /// Half of the calls took at most this long (within 7 %).
    pub p50_ms: i64,
    /// 95 of 100 calls took at most this long (within 7 %).
    pub p95_ms: i64,
    /// The slowest.
    pub max_ms: i64,
}

/// How often one budget refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CapHits {
    /// The budget's name.
    pub budget: String,
    /// `cap_exceeded` or `cap_held`.
    pub code: String,
    /// How many calls it refused.
    pub hits: u64,
    /// When it refused last, Unix milliseconds.
    pub last_at_ms: i64,
    /// The run that it refused last.
    pub last_run: Option<String>,
}

/// Where spending is going. What budgets count: collected and sent out together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Outlook {
    /// Live or test money.
    pub livemode: bool,
    /// Since the first of this month, UTC.
    #[serde(serialize_with = "usd_text")]
    pub month_so_far_usd: Usd,
    /// The whole month, if it goes on like this.
    #[serde(serialize_with = "usd_text")]
    pub projected_month_usd: Usd,
    /// In the last 24 hours.
    #[serde(serialize_with = "usd_text")]
    pub last_24h_usd: Usd,
    /// A day of the 30 days before those, on average.
    #[serde(serialize_with = "usd_text")]
    pub usual_day_usd: Usd,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands fields over by reference"
)]
fn usd_text<S: serde::Serializer>(usd: &Usd, to: S) -> std::result::Result<S::Ok, S::Error> {
    to.collect_str(usd)
}

impl Audit<'_> {
    /// What was spent, by run, agent, …; the largest first, days in order.
    ///
    /// # Errors
    /// As [`Rows::next`](super::Rows::next), and `LedgerCorrupt` when sums overflow.
    pub async fn spend(&self, filter: RowFilter, by: SpendBy) -> Result<Vec<SpendLine>> {
        let mut spent = Spent::new(by);
        let mut rows = self.rows(filter);
        while let Some(row) = rows.next().await? {
            spent.add(&row)?;
        }
        Ok(spent.lines())
    }

    /// [`spend`](Self::spend) and [`outlook`](Self::outlook) in one reading of the log.
    ///
    /// # Errors
    /// As [`spend`](Self::spend).
    pub async fn spend_and_outlook(
        &self,
        filter: RowFilter,
        by: SpendBy,
        now_ms: i64,
    ) -> Result<(Vec<SpendLine>, Vec<Outlook>)> {
        let mut spent = Spent::new(by);
        let mut trend = Trend::new(now_ms)?;
        let since_ms = filter.since_ms;
        let mut rows = self.rows(RowFilter {
            since_ms: since_ms.map(|since| since.min(trend.since_ms())),
            ..filter
        });
        while let Some(row) = rows.next().await? {
            trend.add(&row);
            if since_ms.is_none_or(|since| row.called_at_ms >= since) {
                spent.add(&row)?;
            }
        }
        Ok((spent.lines(), trend.outlook()?))
    }

    /// How long the vendors took, the slowest p95 first.
    pub async fn slow(&self, filter: RowFilter) -> Result<Vec<SlowOperation>> {
        let mut times: BTreeMap<(String, String), Latencies> = BTreeMap::new();
        let mut rows = self.rows(filter);
        while let Some(row) = rows.next().await? {
            if let (Some(vendor), Some(ms)) = (row.vendor, row.latency_ms) {
                times.entry((vendor, row.operation)).or_default().add(ms);
            }
        }
        let lines = times
            .into_iter()
            .map(|((vendor, operation), times)| SlowOperation {
                vendor,
                operation,
                calls: times.calls,
                p50_ms: times.at_most(50),
                p95_ms: times.at_most(95),
                max_ms: times.max_ms,
            });
        let mut lines: Vec<SlowOperation> = lines.collect();
        lines.sort_by_key(|line| std::cmp::Reverse(line.p95_ms));
        Ok(lines)
    }

    /// Which budgets refused calls, the most often first.
    pub async fn cap_hits(&self, filter: RowFilter) -> Result<Vec<CapHits>> {
        let mut hits: BTreeMap<(String, String), CapHits> = BTreeMap::new();
        let mut rows = self.rows(RowFilter {
            denied: Some(true),
            ..filter
        });
        while let Some(row) = rows.next().await? {
            if !matches!(row.policy_verdict.as_str(), "cap_exceeded" | "cap_held") {
                continue;
            }
            let budget = row.note("budget").unwrap_or_default().to_owned();
            let code = row.policy_verdict.clone();
            let line = hits.entry((budget.clone(), code.clone()));
            let line = line.or_insert_with(|| CapHits {
                budget,
                code,
                hits: 0,
                last_at_ms: 0,
                last_run: None,
            });
            line.hits = line.hits.saturating_add(row.count());
            line.last_at_ms = row.called_at_ms;
            line.last_run = row.agent_run_id;
        }
        let mut hits: Vec<CapHits> = hits.into_values().collect();
        hits.sort_by_key(|line| std::cmp::Reverse(line.hits));
        Ok(hits)
    }

    /// Where spending is going, seen from `now_ms` (the ledger's time): live money first, modes without any
    /// spending left out.
    ///
    /// # Errors
    /// As [`spend`](Self::spend).
    pub async fn outlook(&self, filter: RowFilter, now_ms: i64) -> Result<Vec<Outlook>> {
        let mut trend = Trend::new(now_ms)?;
        let mut rows = self.rows(RowFilter {
            since_ms: Some(trend.since_ms()),
            ..filter
        });
        while let Some(row) = rows.next().await? {
            trend.add(&row);
        }
        trend.outlook()
    }
}

/// Spending, being added up.
struct Spent {
    by: SpendBy,
    lines: BTreeMap<(Option<String>, bool), SpendLine>,
}

impl Spent {
    const fn new(by: SpendBy) -> Self {
        Self {
            by,
            lines: BTreeMap::new(),
        }
    }

    fn add(&mut self, row: &AuditRow) -> Result<()> {
        for name in names(row, self.by) {
            let line = self.lines.entry((name.clone(), row.livemode()));
            line.or_insert_with(|| SpendLine::new(name, row.livemode()))
                .add(row)?;
        }
        Ok(())
    }

    fn lines(self) -> Vec<SpendLine> {
        let mut lines: Vec<SpendLine> = self.lines.into_values().collect();
        for line in &mut lines {
            let calls = i64::try_from(line.calls).unwrap_or(i64::MAX);
            let each = line.counted_usd.micros().checked_div(calls).unwrap_or(0);
            line.per_call_usd = Usd::from_micros(each);
        }
        if self.by != SpendBy::Day {
            lines.sort_by_key(|line| std::cmp::Reverse((line.livemode, line.counted_usd, line.held_usd)));
        }
        lines
    }
}

/// What [`Outlook`] is made of, being added up.
struct Trend {
    month: Month,
    now_ms: i64,
    live: Sums,
    test: Sums,
}

/// Micro-USD that budgets count.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Sums {
    month: i128,
    last_24h: i128,
    thirty_days: i128,
}

impl Trend {
    fn new(now_ms: i64) -> Result<Self> {
        Ok(Self {
            month: Month::of(now_ms)?,
            now_ms,
            live: Sums::default(),
            test: Sums::default(),
        })
    }

    const fn day_ago_ms(&self) -> i64 {
        self.now_ms.saturating_sub(DAY_MS)
    }

    const fn base_ms(&self) -> i64 {
        self.day_ago_ms().saturating_sub(DAY_MS.saturating_mul(30))
    }

    /// The first moment that matters.
    fn since_ms(&self) -> i64 {
        self.base_ms().min(self.month.start_ms)
    }

    fn add(&mut self, row: &AuditRow) {
        let cost = i128::from(row.cost_usd_parsed.map_or(0, Usd::micros)).saturating_abs();
        let (month_ms, day_ms, base_ms) = (self.month.start_ms, self.day_ago_ms(), self.base_ms());
        let sums = if row.livemode() {
            &mut self.live
        } else {
            &mut self.test
        };
        let at = row.called_at_ms;
        for (sum, counts) in [
            (&mut sums.month, at >= month_ms),
            (&mut sums.last_24h, at >= day_ms),
            (&mut sums.thirty_days, at >= base_ms && at < day_ms),
        ] {
            *sum = sum.saturating_add(if counts { cost } else { 0 });
        }
    }

    fn outlook(&self) -> Result<Vec<Outlook>> {
        let both = [(true, self.live), (false, self.test)];
        let both = both.into_iter().filter(|(_, sums)| *sums != Sums::default());
        both.map(|(livemode, sums)| outlook(livemode, sums, &self.month, self.now_ms))
            .collect()
    }
}

fn outlook(livemode: bool, sums: Sums, month: &Month, now_ms: i64) -> Result<Outlook> {
    let whole = i128::from(month.end_ms.saturating_sub(month.start_ms));
    // In the first hour of a month hardly anything can be said: an hour is the least that counts as passed.
    let passed = i128::from(now_ms.saturating_sub(month.start_ms).max(3_600_000));
    let projected = sums
        .month
        .checked_mul(whole)
        .and_then(|sum| sum.checked_div(passed));
    let usd = |micros: Option<i128>| {
        let micros = micros.and_then(|micros| i64::try_from(micros).ok());
        micros.map(Usd::from_micros).ok_or_else(too_large)
    };
    Ok(Outlook {
        livemode,
        month_so_far_usd: usd(Some(sums.month))?,
        projected_month_usd: usd(projected)?,
        last_24h_usd: usd(Some(sums.last_24h))?,
        usual_day_usd: usd(sums.thirty_days.checked_div(30))?,
    })
}

struct Month {
    start_ms: i64,
    end_ms: i64,
}

impl Month {
    fn of(now_ms: i64) -> Result<Self> {
        let bounds = || {
            let now = jiff::Timestamp::from_millisecond(now_ms)?.to_zoned(jiff::tz::TimeZone::UTC);
            let first = now.first_of_month()?.start_of_day()?;
            let next = first.checked_add(jiff::Span::new().months(1))?;
            Ok::<_, jiff::Error>(Self {
                start_ms: first.timestamp().as_millisecond(),
                end_ms: next.timestamp().as_millisecond(),
            })
        };
        bounds().map_err(|cause| {
            Error::new(ErrorKind::LedgerCorrupt, "the ledger's time is not a date").because(cause)
        })
    }
}

fn names(row: &AuditRow, by: SpendBy) -> Vec<Option<String>> {
    let one = match by {
        SpendBy::Run => row.agent_run_id.clone(),
        SpendBy::Agent => row.note("agent_id").map(str::to_owned),
        SpendBy::Vendor => row.vendor.clone(),
        SpendBy::Customer => row.customer_scope_id.clone(),
        SpendBy::Label => row.agent_label.clone(),
        SpendBy::Day => super::time_text(row.called_at_ms).get(..10).map(str::to_owned),
        SpendBy::Group => {
            let groups = row.metadata.get("groups").and_then(|groups| groups.as_array());
            let names = groups.into_iter().flatten();
            let names = names.filter_map(|name| name.as_str());
            let names: Vec<_> = names.map(|name| Some(name.to_owned())).collect();
            return if names.is_empty() { vec![None] } else { names };
        }
    };
    vec![one]
}

fn too_large() -> Error {
    Error::new(
        ErrorKind::LedgerCorrupt,
        "amounts add up to more than can be counted",
    )
}

/// Latencies in buckets whose width is at most 1/16 of their value: memory does not grow with calls.
#[derive(Debug, Default)]
struct Latencies {
    /// Calls by the largest latency of their bucket.
    buckets: BTreeMap<i64, u64>,
    calls: u64,
    max_ms: i64,
}

impl Latencies {
    fn add(&mut self, ms: i64) {
        let ms = ms.max(0);
        let bits = i64::BITS.saturating_sub(ms.leading_zeros());
        let shift = bits.saturating_sub(5);
        let width = 1_i64.checked_shl(shift).unwrap_or(1);
        let top = (ms >> shift << shift).saturating_add(width.saturating_sub(1));
        let calls = self.buckets.entry(top).or_default();
        *calls = calls.saturating_add(1);
        self.calls = self.calls.saturating_add(1);
        self.max_ms = self.max_ms.max(ms);
    }

    /// The latency that `percent` of the calls do not exceed.
    fn at_most(&self, percent: u64) -> i64 {
        let wanted = self.calls.saturating_mul(percent).div_ceil(100);
        let mut seen = 0_u64;
        for (top, calls) in &self.buckets {
            seen = seen.saturating_add(*calls);
            if seen >= wanted {
                return (*top).min(self.max_ms);
            }
        }
        self.max_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p95_is_within_a_sixteenth_and_never_below() {
        let mut times = Latencies::default();
        for ms in 1..=1_000 {
            times.add(ms);
        }
        for (percent, exact) in [(50, 500), (95, 950), (100, 1_000)] {
            let at_most = times.at_most(percent);
            assert!(
                at_most >= exact && at_most <= exact + exact / 15,
                "p{percent}: {at_most}"
            );
        }
        assert!(times.buckets.len() < 120, "memory does not grow with calls");
    }

    #[test]
    fn a_month_is_projected_from_what_has_passed() {
        // 2026-11-16T00:00Z: half of November has passed.
        let now_ms = 1_794_787_200_000;
        let month = Month::of(now_ms).unwrap();
        assert_eq!(
            super::super::time_text(month.start_ms),
            "2026-11-01T00:00:00.000Z"
        );
        let sums = Sums {
            month: 150_000_000,
            last_24h: 10_000_000,
            thirty_days: 300_000_000,
        };
        let found = outlook(true, sums, &month, now_ms).unwrap();
        assert_eq!(found.projected_month_usd.to_string(), "300.00");
        assert_eq!(found.usual_day_usd.to_string(), "10.00");
    }
}
