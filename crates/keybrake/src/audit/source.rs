//! Where the audit's questions are answered from: a ledger, an archive, or both as one log.

use std::sync::Arc;

use async_trait::async_trait;

use super::archive::{Archive, LogName, LogState};
use super::drain::{log_name, same};
use crate::error::{Error, Result};
use crate::ledger::{Event, EventFilter, Ledger, Reservation};

/// A log that can be asked.
#[async_trait]
pub trait Log: Send + Sync + std::fmt::Debug {
    /// Events in order, as [`Ledger::events`].
    async fn events(&self, filter: EventFilter) -> Result<Vec<Event>>;

    /// A reservation, as [`Ledger::reservation`].
    async fn reservation(&self, call_id: &str) -> Result<Option<Reservation>>;
}

/// What the questions are put to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source<'a> {
    Ledger(&'a dyn Ledger),
    Log(&'a dyn Log),
}

impl Source<'_> {
    pub(super) async fn events(&self, filter: EventFilter) -> Result<Vec<Event>> {
        match self {
            Self::Ledger(ledger) => ledger.events(filter).await,
            Self::Log(log) => log.events(filter).await,
        }
    }

    pub(super) async fn reservation(&self, call_id: &str) -> Result<Option<Reservation>> {
        match self {
            Self::Ledger(ledger) => ledger.reservation(call_id).await,
            Self::Log(log) => log.reservation(call_id).await,
        }
    }
}

/// A log in an archive, alone or with what its ledger has beyond it.
#[derive(Debug)]
pub struct ArchivedLog {
    archive: Archive,
    name: LogName,
    ledger: Option<Arc<dyn Ledger>>,
}

impl ArchivedLog {
    /// The log as far as the archive has it.
    ///
    /// # Errors
    /// `NotFound` when the archive has no such log.
    pub async fn alone(archive: Archive, name: LogName) -> Result<Self> {
        let log = Self {
            archive,
            name,
            ledger: None,
        };
        log.state().await?;
        Ok(log)
    }

    /// The archive's part and the ledger's tail as one log.
    ///
    /// # Errors
    /// `NotFound` when the archive has no log of this ledger; `Config` when events between the two are in neither, or
    /// the ledger lost events since it was drained: draining it again says what.
    pub async fn with_ledger(archive: Archive, ledger: Arc<dyn Ledger>) -> Result<Self> {
        let info = ledger.info().await?;
        let log = Self {
            name: log_name(&*ledger, info.id),
            archive,
            ledger: Some(Arc::clone(&ledger)),
        };
        // In this order: a drainer may be at work, and trim what it has drained.
        let backlog = ledger.backlog().await?;
        let state = log.state().await?;
        if backlog.first_seq > state.seq.saturating_add(1) {
            return Err(Error::config(format!(
                "{} has the log up to event {} and the ledger from event {} on: what is between is in another archive",
                log.archive.place(),
                state.seq,
                backlog.first_seq
            )));
        }
        let filter = EventFilter {
            after_seq: state.seq.saturating_sub(1),
            limit: 1,
            ..EventFilter::default()
        };
        let first = ledger.events(filter).await?.into_iter().next();
        let kept = log.archive.event_at(&state, state.seq).await?;
        let forked = match (first, kept) {
            (Some(first), Some(kept)) if first.seq == state.seq => !same(&first, &kept)?,
            _ => ledger.info().await?.last_seq < state.seq,
        };
        if forked {
            return Err(Error::config(format!(
                "the ledger lost events that {} has: drain it once more (keybrake audit drain), which keeps both",
                log.archive.place()
            )));
        }
        Ok(log)
    }

    /// The log as the archive has it now.
    ///
    /// # Errors
    /// `NotFound` when it has none.
    pub async fn state(&self) -> Result<LogState> {
        self.archive.log(&self.name).await?.ok_or_else(|| {
            Error::not_found(format!(
                "{} has no log of the ledger {}: it was never drained to it",
                self.archive.place(),
                self.name.ledger
            ))
        })
    }

    /// The archive's part up to its drained point, then the ledger's.
    async fn events_at(&self, state: &LogState, filter: &EventFilter) -> Result<Vec<Event>> {
        let mut found = Vec::new();
        if filter.after_seq < state.n {
            found = self.archive.events(state.log, state.n, filter).await?;
        }
        let have = u32::try_from(found.len()).unwrap_or(u32::MAX);
        let Some(ledger) = self.ledger.as_ref().filter(|_| have < filter.limit) else {
            return Ok(found);
        };
        let tail = EventFilter {
            after_seq: filter.after_seq.max(state.n).saturating_sub(state.shift()),
            limit: filter.limit.saturating_sub(have),
            ..filter.clone()
        };
        for mut event in ledger.events(tail).await? {
            event.seq = event.seq.saturating_add(state.shift());
            found.push(event);
        }
        Ok(found)
    }

    /// The archive.
    pub const fn archive(&self) -> &Archive {
        &self.archive
    }
}

#[async_trait]
impl Log for ArchivedLog {
    async fn events(&self, filter: EventFilter) -> Result<Vec<Event>> {
        const DEFAULT: u32 = 10_000;
        const TRIES: u32 = 100;
        let limit = if filter.limit == 0 { DEFAULT } else { filter.limit };
        let filter = EventFilter { limit, ..filter };
        let mut state = self.state().await?;
        for _ in 0..TRIES {
            let found = self.events_at(&state, &filter).await?;
            if self.ledger.is_none() {
                return Ok(found);
            }
            // A drainer may have been at work, and what was the ledger's a moment ago is the archive's now.
            let now = self.state().await?;
            if now == state {
                return Ok(found);
            }
            state = now;
        }
        Err(Error::ledger("the log is drained too fast to be read"))
    }

    async fn reservation(&self, call_id: &str) -> Result<Option<Reservation>> {
        if let Some(ledger) = &self.ledger
            && let Some(found) = ledger.reservation(call_id).await?
        {
            return Ok(Some(found));
        }
        let state = self.state().await?;
        self.archive.reservation(state.log, call_id).await
    }
}
