//! Up to where archives have the log, and its trimming.

use rusqlite::params;

use super::schema::Kind;
use super::store::{SqliteStore, failed};
use crate::error::Result;
use crate::ledger::backlog::{Archives, Backlog, Drained, check_trim};
use crate::ledger::store::{Checkpoint, Store as _};
use crate::ledger::types::Reservation;

/// Events removed in one step.
const TRIM: u64 = 5_000;

impl SqliteStore<'_> {
    fn archives(&self) -> Result<Archives> {
        Ok(self.record(Kind::Archives, "")?.unwrap_or_default())
    }

    /// Writes down an archive, or removes it; answers whether it was known.
    pub(super) fn note_archive(&self, id: &str, drained: Option<Drained>) -> Result<bool> {
        let mut archives = self.archives()?;
        let known = match drained {
            Some(drained) => archives.insert(id.to_owned(), drained).is_some(),
            None => archives.remove(id).is_some(),
        };
        self.put_record(Kind::Archives, "", &archives)?;
        Ok(known)
    }

    /// Number and time of the first event that is still there.
    fn first_event(&self) -> Result<Option<(u64, i64)>> {
        let first_id = self.event_id(0)?;
        let read = |row: &rusqlite::Row<'_>| {
            let numbers = row
                .get::<_, i64>(0)
                .and_then(|id| Ok((id, row.get::<_, i64>(1)?)));
            numbers.map_err(|error| failed("read", &error))
        };
        let found = self.rows(
            "SELECT id, at_ms FROM event WHERE id > ?1 AND id < ?2 ORDER BY id LIMIT 1",
            params![first_id, self.event_id(u64::MAX)?],
            read,
        )?;
        let first = found.into_iter().next();
        Ok(first.map(|(id, at_ms)| (id.saturating_sub(first_id).max(0).cast_unsigned(), at_ms)))
    }

    /// `bytes` is what the log takes up in a server's memory, of which this ledger has none.
    pub(super) fn backlog(&mut self, bytes: Option<u64>) -> Result<Backlog> {
        let last_seq = self.meta()?.last_seq;
        let first = self.first_event()?;
        Ok(Backlog {
            first_seq: first.map_or(last_seq.saturating_add(1), |(seq, _)| seq),
            first_at_ms: first.map(|(_, at_ms)| at_ms),
            last_seq,
            checkpoint_seq: self.last_checkpoint()?.map_or(0, |last| last.seq),
            archives: self.archives()?,
            bytes,
            eras: Vec::new(),
        })
    }

    pub(super) fn checkpoints_after(&mut self, after_seq: u64) -> Result<Vec<Checkpoint>> {
        let mut all = self.checkpoints()?;
        all.retain(|checkpoint| checkpoint.seq > after_seq);
        Ok(all)
    }

    pub(super) fn without_replies(&mut self, call_ids: &[String]) -> Result<Vec<Reservation>> {
        let mut found = Vec::with_capacity(call_ids.len());
        for call_id in call_ids {
            found.extend(self.reservation_without_reply(call_id)?);
        }
        Ok(found)
    }

    /// Removes some of the events up to a number; answers how many, and whether more are left to remove.
    pub(super) fn trim_some(&mut self, upto_seq: u64) -> Result<(u64, bool)> {
        let checkpoint_seq = self.last_checkpoint()?.map_or(0, |last| last.seq);
        check_trim(&self.archives()?, checkpoint_seq, upto_seq)?;
        let Some((first_seq, _)) = self.first_event()? else {
            return Ok((0, false));
        };
        let until = first_seq.saturating_add(TRIM).saturating_sub(1).min(upto_seq);
        if until < first_seq {
            return Ok((0, false));
        }
        self.execute(
            "DELETE FROM event WHERE id > ?1 AND id <= ?2",
            params![self.event_id(0)?, self.event_id(until)?],
        )?;
        Ok((
            until.saturating_add(1).saturating_sub(first_seq),
            until < upto_seq,
        ))
    }
}
