//! What happened: the event log projected into one row for each call, ready questions, and exports.
//!
//! The log is the truth. Rows are folded from pages of events, so that memory stays bounded however long the log is.
//! [`drain`] takes it to an [`Archive`], and the same questions are answered from there; [`restore`] tells a ledger again
//! what it lost.

pub mod archive;
pub mod drain;
mod export;
mod query;
pub mod restore;
mod row;
mod rows;
mod source;
#[cfg(test)]
mod tests;
mod why;

pub use archive::Archive;
pub use drain::{Drain, DrainOptions};
pub use export::{Exported, Format, printable, write_rows};
pub use query::{CapHits, Outlook, SlowOperation, SpendBy, SpendLine};
pub use restore::{Restore, Restored};
pub use row::{AuditRow, COLUMNS, time_text};
pub use rows::{RowFilter, Rows};
pub use source::{ArchivedLog, Log};
pub use why::{Books, BooksDifference, Story, StoryStep, Subject};

use self::source::Source;
use crate::error::Result;
use crate::ledger::Ledger;

/// Questions to a log.
#[derive(Clone, Copy, Debug)]
pub struct Audit<'a> {
    source: Source<'a>,
}

impl<'a> Audit<'a> {
    /// Questions to this ledger's log.
    pub const fn new(ledger: &'a dyn Ledger) -> Self {
        Self {
            source: Source::Ledger(ledger),
        }
    }

    /// Questions to a log that is in an archive, in part or whole.
    pub const fn of(log: &'a dyn Log) -> Self {
        Self {
            source: Source::Log(log),
        }
    }

    /// The rows that the filter lets through, oldest first, read page by page.
    pub fn rows(&self, filter: RowFilter) -> Rows<'a> {
        Rows::new(self.source, filter)
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
