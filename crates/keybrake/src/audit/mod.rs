//! What happened: the event log projected into one row for each call, ready questions, and exports.
//!
//! The log is the truth; nothing here writes. Rows are folded from pages of events, so that memory stays
//! bounded however long the log is.

mod export;
mod query;
mod row;
mod rows;
#[cfg(test)]
mod tests;
mod why;

pub use export::{Exported, Format, printable, write_rows};
pub use query::{CapHits, Outlook, SlowOperation, SpendBy, SpendLine};
pub use row::{AuditRow, COLUMNS, time_text};
pub use rows::{RowFilter, Rows};
pub use why::{Books, BooksDifference, Story, StoryStep, Subject};

use crate::error::Result;
use crate::ledger::Ledger;

/// Questions to a ledger's log.
#[derive(Clone, Copy, Debug)]
pub struct Audit<'a> {
    ledger: &'a dyn Ledger,
}

impl<'a> Audit<'a> {
    /// Questions to this ledger's log.
    pub const fn new(ledger: &'a dyn Ledger) -> Self {
        Self { ledger }
    }

    /// The rows that the filter lets through, oldest first, read page by page.
    pub fn rows(&self, filter: RowFilter) -> Rows<'a> {
        Rows::new(self.ledger, filter)
    }

    /// The newest `limit` rows that the filter lets through, oldest first.
    pub async fn list(&self, filter: RowFilter, limit: usize) -> Result<Vec<AuditRow>> {
        let mut rows = self.rows(filter);
        let mut last = std::collections::VecDeque::new();
        while let Some(row) = rows.next().await? {
            if last.len() >= limit {
                last.pop_front();
            }
            if limit > 0 {
                last.push_back(row);
            }
        }
        Ok(last.into())
    }
}
