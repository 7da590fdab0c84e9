//! Reading rows page by page.

use std::collections::{HashMap, HashSet, VecDeque};

use super::row::{AuditRow, Fold, Sums, begins};
use super::source::Source;
use crate::error::Result;
use crate::ledger::{Event, EventFilter, EventKind};

/// Events read at a time.
const PAGE: u32 = 2_000;
/// Calls that are known by id to have events on later pages; with more, every call is looked up.
const MOST_LATE: usize = 100_000;

/// Which rows to answer. Everything given must hold.
#[derive(Clone, Debug, Default)]
pub struct RowFilter {
    /// Only this run's.
    pub run: Option<String>,
    /// Only this call.
    pub call_id: Option<String>,
    /// Only this agent's.
    pub agent: Option<String>,
    /// Only this label's.
    pub label: Option<String>,
    /// Only this vendor's.
    pub vendor: Option<String>,
    /// Only this customer's.
    pub customer: Option<String>,
    /// Only this key's, by id.
    pub key: Option<String>,
    /// Only refused calls (`true`) or only those that were not (`false`).
    pub denied: Option<bool>,
    /// Only calls decided at or after this moment, Unix milliseconds.
    pub since_ms: Option<i64>,
    /// Only calls decided before this moment, Unix milliseconds.
    pub until_ms: Option<i64>,
}

impl RowFilter {
    fn lets_through(&self, row: &AuditRow) -> bool {
        let same =
            |want: &Option<String>, have: Option<&str>| want.as_deref().is_none_or(|want| have == Some(want));
        same(&self.run, row.agent_run_id.as_deref())
            && same(&self.agent, row.note("agent_id"))
            && same(&self.label, row.agent_label.as_deref())
            && same(&self.vendor, row.vendor.as_deref())
            && same(&self.customer, row.customer_scope_id.as_deref())
            && same(&self.key, row.vault_key_id.as_deref())
            && self.denied.is_none_or(|denied| denied == row.is_denied())
            && self.since_ms.is_none_or(|since| row.called_at_ms >= since)
            && self.until_ms.is_none_or(|until| row.called_at_ms < until)
    }
}

/// Rows in the order of their calls, read page by page.
#[derive(Debug)]
pub struct Rows<'a> {
    source: Source<'a>,
    filter: RowFilter,
    after_seq: u64,
    at_end: bool,
    late: Late,
    pub(super) most_late: usize,
    ready: VecDeque<(AuditRow, Sums)>,
    /// Events read so far, for progress.
    pub events_read: u64,
}

impl<'a> Rows<'a> {
    pub(super) fn new(source: Source<'a>, filter: RowFilter) -> Self {
        Self {
            source,
            filter,
            after_seq: 0,
            at_end: false,
            late: Late::NotLooked,
            most_late: MOST_LATE,
            ready: VecDeque::new(),
            events_read: 0,
        }
    }

    /// The next row; `None` at the end.
    ///
    /// # Errors
    /// `LedgerUnavailable`, and `LedgerCorrupt` when an event cannot be read.
    pub async fn next(&mut self) -> Result<Option<AuditRow>> {
        Ok(self.next_fold().await?.map(|(row, _)| row))
    }

    /// The next row with the counters that its events add up to.
    pub(super) async fn next_fold(&mut self) -> Result<Option<(AuditRow, Sums)>> {
        loop {
            while let Some((row, sums)) = self.ready.pop_front() {
                if self.filter.lets_through(&row) {
                    return Ok(Some((row, sums)));
                }
            }
            if self.at_end {
                return Ok(None);
            }
            self.read_page().await?;
        }
    }

    async fn read_page(&mut self) -> Result<()> {
        let page = self.page(self.after_seq).await?;
        let Some(last) = page.last() else {
            self.at_end = true;
            return Ok(());
        };
        self.after_seq = last.seq;
        self.events_read = self
            .events_read
            .saturating_add(u64::try_from(page.len()).unwrap_or(0));
        let more = is_full(&page);
        let past = self.filter.until_ms.is_some_and(|until| last.at_ms >= until);
        self.at_end = past || !more;
        let mut folds = fold_page(&page)?;
        if more {
            if matches!(self.late, Late::NotLooked) {
                self.late = self.look_for_late().await?;
            }
            self.complete(&mut folds).await?;
        }
        self.ready.extend(folds.into_iter().flat_map(Fold::finish));
        Ok(())
    }

    async fn page(&self, after_seq: u64) -> Result<Vec<Event>> {
        let filter = EventFilter {
            after_seq,
            call_id: self.filter.call_id.clone(),
            run: self.filter.run.clone(),
            since_ms: self.filter.since_ms,
            limit: PAGE,
        };
        self.source.events(filter).await
    }

    /// Reads ahead to the end, once: which calls have events beyond the page they begin on. Their rows need a
    /// second look; all others are whole as soon as their page is read.
    async fn look_for_late(&self) -> Result<Late> {
        let mut late = HashSet::new();
        let mut after_seq = self.after_seq;
        loop {
            let page = self.page(after_seq).await?;
            let Some(last) = page.last() else {
                return Ok(Late::These(late));
            };
            after_seq = last.seq;
            let begun = begun(&page);
            let calls = page
                .iter()
                .filter(|event| !matches!(event.kind, EventKind::Leased | EventKind::Admin));
            let calls = calls.filter_map(|event| event.call_id.as_ref());
            late.extend(calls.filter(|id| !begun.contains(*id)).cloned());
            if late.len() > self.most_late {
                return Ok(Late::TooMany);
            }
            if !is_full(&page) {
                return Ok(Late::These(late));
            }
        }
    }

    /// Reads the later events of calls that began on this page, so that each row is whole when it is answered.
    async fn complete(&self, folds: &mut [Fold]) -> Result<()> {
        let is_late = |fold: &&mut Fold| match &self.late {
            Late::These(late) => late.contains(fold.call_id()),
            Late::TooMany | Late::NotLooked => fold.may_change(),
        };
        for fold in folds.iter_mut().filter(is_late) {
            let filter = EventFilter {
                call_id: Some(fold.call_id().to_owned()),
                ..EventFilter::default()
            };
            let events = self.source.events(filter).await?;
            // A call that joined an earlier one is named by that one's events too: those are the earlier row's.
            let own = events
                .iter()
                .filter(|event| event.call_id.as_deref() == Some(fold.call_id()));
            let mut whole = None;
            for event in own {
                match whole.as_mut() {
                    None => whole = Fold::begin(event)?,
                    Some(known) => Fold::apply(known, event)?,
                }
            }
            if let Some(whole) = whole {
                *fold = whole;
            }
        }
        Ok(())
    }
}

/// Which calls have events beyond the page they begin on.
#[derive(Debug)]
enum Late {
    /// Nobody has looked: the log is one page so far.
    NotLooked,
    /// These.
    These(HashSet<String>),
    /// So many that they are not kept in memory.
    TooMany,
}

/// The calls that begin on a page.
fn begun(page: &[Event]) -> HashSet<String> {
    let first = page.iter().filter(|event| begins(event));
    first.filter_map(|event| event.call_id.clone()).collect()
}

fn is_full(page: &[Event]) -> bool {
    u32::try_from(page.len()).unwrap_or(u32::MAX) >= PAGE
}

/// Folds the calls that begin on a page. Events of calls that began earlier are left out: their rows read ahead.
pub(super) fn fold_page(page: &[Event]) -> Result<Vec<Fold>> {
    let mut folds: Vec<Fold> = Vec::new();
    let mut by_call: HashMap<&str, usize> = HashMap::new();
    for event in page {
        let call_id = event.call_id.as_deref().unwrap_or_default();
        match by_call.get(call_id).and_then(|at| folds.get_mut(*at)) {
            Some(fold) => fold.apply(event)?,
            None => {
                if let Some(fold) = Fold::begin(event)? {
                    if !call_id.is_empty() {
                        by_call.insert(call_id, folds.len());
                    }
                    folds.push(fold);
                }
            }
        }
    }
    Ok(folds)
}
