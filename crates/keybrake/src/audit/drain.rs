//! Taking a ledger's log to an archive: at least once from the ledger, exactly once in the archive.
//!
//! Each batch is one transaction of the archive, in which its drained point moves from where this drainer found it; a
//! drainer that finds it elsewhere writes nothing and begins again. So two drainers do no harm, and one that is killed
//! at any moment leaves either the whole batch or nothing of it.
//!
//! A server that failed over may have lost events that were drained already. Where a process had seen them, the log goes
//! on with an event that says after which number they are missing; where none had, their numbers are given to others.
//! Every batch therefore begins with the event that was drained last: when the ledger has another one under its
//! number, or says that it lost it, what was drained stays in the archive, marked as lost, and the log goes on beside it.

use std::collections::BTreeSet;

use super::archive::{Archive, Batch, LogName, LogState, Records};
use crate::error::{Error, ErrorKind, Result};
use crate::ledger::{Backlog, EraRange, Event, EventFilter, EventKind, HoldFilter, Ledger, VerifyReport};

/// Events in one batch when nothing else is said.
pub const BATCH: u32 = 1_000;
/// The most events in one batch.
pub const BATCH_MAX: u32 = 9_000;
/// Tries while others drain the same log.
const TRIES: u32 = 1_000;

/// How a log is drained.
#[derive(Clone, Copy, Debug)]
pub struct DrainOptions {
    /// Events in one transaction, 1 to 9,000.
    pub batch: u32,
    /// Goes on where the ledger no longer has events that the archive lacks; the archive remembers the gap.
    pub accept_gap: bool,
}

impl Default for DrainOptions {
    fn default() -> Self {
        Self {
            batch: BATCH,
            accept_gap: false,
        }
    }
}

/// A log on its way to an archive.
#[derive(Debug)]
pub struct Drain<'a> {
    ledger: &'a dyn Ledger,
    archive: &'a Archive,
    options: DrainOptions,
    name: LogName,
    place: String,
    /// What the ledger was told last.
    noted: Option<u64>,
    /// The eras of the ledger's log, as it said before it was asked for events.
    eras: Vec<EraRange>,
}

/// What one step did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Events that are in the archive now and were not before.
    pub drained: u64,
    /// The log as the archive has it now.
    pub state: LogState,
    /// Whether the archive had everything that the ledger had when it was asked.
    pub caught_up: bool,
    /// Events that the ledger has lost since they were drained: found in this step.
    pub lost: u64,
}

/// What the ledger has after the drained point.
enum Next {
    /// These events; a further one may be there when there are as many as were asked for.
    Events(Vec<Event>),
    /// The ledger's first event comes later than the next to be drained.
    Gap(Vec<Event>),
    /// The ledger no longer has what was drained after this event.
    Fork(u64),
}

impl<'a> Drain<'a> {
    /// Prepares to drain this ledger's log into this archive.
    ///
    /// # Errors
    /// `LedgerUnavailable` and the like when the ledger does not answer.
    pub async fn new(ledger: &'a dyn Ledger, archive: &'a Archive, options: DrainOptions) -> Result<Self> {
        let info = ledger.info().await?;
        Ok(Self {
            ledger,
            archive,
            options: DrainOptions {
                batch: options.batch.clamp(1, BATCH_MAX),
                ..options
            },
            name: log_name(ledger, info.id),
            place: info.url,
            noted: None,
            eras: ledger.backlog().await?.eras,
        })
    }

    /// The log's name.
    pub const fn name(&self) -> &LogName {
        &self.name
    }

    /// Drains one batch.
    ///
    /// # Errors
    /// `LedgerUnavailable` when ledger or archive cannot be reached; `Config` when the ledger no longer has events that
    /// the archive lacks (see [`DrainOptions::accept_gap`]); `LedgerCorrupt` when the log has holes.
    pub async fn step(&mut self) -> Result<Step> {
        let mut lost = 0_u64;
        for _ in 0..TRIES {
            let state = self.archive.begin(&self.name, &self.place).await?;
            self.note(&state).await?;
            let (events, gap) = match self.next(&state).await? {
                Next::Events(events) => (events, false),
                // Another drainer may have taken those events and trimmed them since this one looked.
                Next::Gap(_) if self.archive.log(&self.name).await?.as_ref() != Some(&state) => continue,
                Next::Gap(events) if self.options.accept_gap => (events, true),
                Next::Gap(events) => return Err(self.gap(&state, &events)),
                Next::Fork(seq) => {
                    if self.archive.fork(&state, seq).await?.is_some() {
                        lost = lost.saturating_add(state.seq.saturating_sub(seq));
                    }
                    continue;
                }
            };
            check_order(&events)?;
            let records = self.records(&events, gap).await?;
            // Asked last: the ledger that still has the events is the one that answered in between.
            let eras = if events.is_empty() {
                Vec::new()
            } else {
                self.ledger.backlog().await?.eras
            };
            let there = |last: &Event| same_eras(&self.eras, &eras) && reach(&eras, last.seq);
            if !events.last().is_none_or(there) {
                // Another era began since it was asked last, or will: these events may be of the one before, and gone.
                self.eras = eras;
                continue;
            }
            let caught_up = u32::try_from(events.len()).unwrap_or(u32::MAX) < self.options.batch;
            let drained = u64::try_from(events.len()).unwrap_or(u64::MAX);
            let batch = Batch {
                records: Records {
                    eras: eras_of(&events, &eras),
                    ..records
                },
                checkpoints: if caught_up {
                    self.new_checkpoints(&state).await?
                } else {
                    Vec::new()
                },
                events,
                accepts_gap: gap,
            };
            if batch.events.is_empty() && batch.checkpoints.is_empty() {
                return Ok(Step {
                    drained,
                    state,
                    caught_up,
                    lost,
                });
            }
            if let Some(after) = self.archive.append(&state, &batch, self.ledger.secret()).await? {
                self.note(&after).await?;
                return Ok(Step {
                    drained,
                    state: after,
                    caught_up,
                    lost,
                });
            }
        }
        Err(Error::ledger(format!(
            "other drainers write to {} all the time",
            self.archive.place()
        )))
    }

    /// Drains until the archive has what the ledger had when it was asked last. `seen` is told of each step.
    pub async fn run(&mut self, mut seen: impl FnMut(&Step)) -> Result<Step> {
        let mut drained = 0_u64;
        let mut lost = 0_u64;
        loop {
            let step = self.step().await?;
            seen(&step);
            drained = drained.saturating_add(step.drained);
            lost = lost.saturating_add(step.lost);
            if step.caught_up {
                return Ok(Step {
                    drained,
                    lost,
                    ..step
                });
            }
        }
    }

    /// As [`run`](Self::run); with `keep_ms` the ledger's log is then trimmed behind that, but for events younger than it,
    /// and the checkpoint that stands for what was removed is drained too.
    ///
    /// # Errors
    /// As [`step`](Self::step) and [`trim`].
    pub async fn run_and_trim(
        &mut self,
        keep_ms: Option<i64>,
        seen: impl FnMut(&Step),
    ) -> Result<(Step, Option<Trimmed>)> {
        let step = self.run(seen).await?;
        let Some(keep_ms) = keep_ms else {
            return Ok((step, None));
        };
        let trimmed = trim(self.ledger, keep_ms).await?;
        let last = self.run(|_| {}).await?;
        let step = Step {
            drained: step.drained.saturating_add(last.drained),
            lost: step.lost.saturating_add(last.lost),
            ..last
        };
        Ok((step, Some(trimmed)))
    }

    /// Tells the ledger up to where this archive has its log, so that nothing is trimmed that it lacks.
    async fn note(&mut self, state: &LogState) -> Result<()> {
        if self.noted == Some(state.seq) {
            return Ok(());
        }
        self.ledger
            .note_drained(self.archive.id(), self.archive.place(), state.seq)
            .await?;
        self.noted = Some(state.seq);
        Ok(())
    }

    async fn page(&self, after_seq: u64, limit: u32) -> Result<Vec<Event>> {
        page(self.ledger, after_seq, limit).await
    }

    async fn next(&self, state: &LogState) -> Result<Next> {
        let limit = self.options.batch;
        let mut page = self
            .page(state.seq.saturating_sub(1), limit.saturating_add(1))
            .await?;
        let first_seq = page.first().map(|event| event.seq);
        if state.seq > 0 && first_seq == Some(state.seq) {
            let first = page.remove(0);
            return match self.archive.event_at(state, state.seq).await? {
                Some(kept) if !same(&first, &kept)? => self.fork(state).await,
                _ => Ok(Next::Events(page)),
            };
        }
        page.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        match first_seq {
            Some(seq) if seq == state.seq.saturating_add(1) => Ok(Next::Events(page)),
            Some(_)
                if page
                    .first()
                    .and_then(Event::lost_after)
                    .is_some_and(|after| after < state.seq) =>
            {
                self.fork(state).await
            }
            Some(_) if page.first().and_then(Event::lost_after) == Some(state.seq) => Ok(Next::Events(page)),
            Some(_) => Ok(Next::Gap(page)),
            None if self.ledger.info().await?.last_seq < state.seq => self.fork(state).await,
            None => Ok(Next::Events(page)),
        }
    }

    fn gap(&self, state: &LogState, events: &[Event]) -> Error {
        let begins = events.first().map_or(0, |event| event.seq);
        Error::config(format!(
            "the ledger's log begins at event {begins}, and {} has it up to event {} only: what is between was trimmed, \
             because another archive had it. Drain to that one, or put back a newer copy of this one; to go on without \
             those events, say --accept-gap",
            self.archive.place(),
            state.seq
        ))
    }

    async fn fork(&self, state: &LogState) -> Result<Next> {
        common_seq(self.ledger, self.archive, state).await.map(Next::Fork)
    }

    async fn new_checkpoints(&self, state: &LogState) -> Result<Vec<crate::ledger::Checkpoint>> {
        let kept = self.archive.last_checkpoint_seq(state.log).await?;
        self.ledger.checkpoints(kept).await
    }

    /// The records that these events are about, read after them: as of their last event, or later.
    async fn records(&self, events: &[Event], everything: bool) -> Result<Records> {
        let mut records = Records {
            binding: Some(self.ledger.secret().bound_to(&self.name.ledger)?),
            ..Records::default()
        };
        let calls = events.iter().filter(|event| {
            !matches!(
                event.kind,
                EventKind::Admin | EventKind::Denied | EventKind::Replayed
            )
        });
        let calls: BTreeSet<&String> = calls.filter_map(|event| event.call_id.as_ref()).collect();
        let calls: Vec<String> = calls.into_iter().cloned().collect();
        records.calls = self.ledger.reservations(&calls).await?;
        let acts = events.iter().filter_map(|event| event.body.admin.as_deref());
        let acts: BTreeSet<(&str, &str)> = acts.map(|act| (act.act.as_str(), act.subject.as_str())).collect();
        let did = |name: &str| acts.iter().any(|(act, _)| *act == name);
        if everything {
            records.keys = self.ledger.keys().await?;
            let holds = HoldFilter {
                limit: u32::MAX,
                ..HoldFilter::default()
            };
            records.calls.extend(self.ledger.holds(holds).await?);
        } else {
            for (act, subject) in &acts {
                if matches!(*act, "issue" | "revoke") {
                    records.keys.extend(self.ledger.key(subject).await?);
                }
            }
        }
        if everything || did("put_budget") {
            let usage = self.ledger.budgets(None).await?;
            let mut seen = BTreeSet::new();
            let new = usage.into_iter().filter(|usage| seen.insert(usage.id.0.clone()));
            records.budgets.extend(new.map(|usage| usage.def));
        }
        let of_keys = records.keys.iter().flat_map(|key| &key.budgets);
        let of_keys: Vec<_> = of_keys.map(|budget| budget.def.clone()).collect();
        records.budgets.extend(of_keys);
        if everything || did("stop") || did("resume") {
            records.stops = Some(self.ledger.stops().await?);
        }
        Ok(records)
    }
}

async fn page(ledger: &dyn Ledger, after_seq: u64, limit: u32) -> Result<Vec<Event>> {
    let filter = EventFilter {
        after_seq,
        limit,
        ..EventFilter::default()
    };
    ledger.events(filter).await
}

/// The number of the last event that ledger and archive have in common. What was before it is the same, so halving finds
/// it.
pub(super) async fn common_seq(ledger: &dyn Ledger, archive: &Archive, state: &LogState) -> Result<u64> {
    let backlog = ledger.backlog().await?;
    let first = page(ledger, 0, 1).await?;
    // What was trimmed was compared when it was drained. What was lost was not.
    let lost_after = first.first().and_then(Event::lost_after).unwrap_or(u64::MAX);
    let gone = backlog.first_seq.saturating_sub(1).min(lost_after);
    let mut same_seq = gone.min(state.seq);
    let mut other_seq = state.seq.min(backlog.last_seq).max(same_seq).saturating_add(1);
    while other_seq.saturating_sub(same_seq) > 1 {
        let middle = same_seq.midpoint(other_seq);
        if has(ledger, archive, state, middle).await? {
            same_seq = middle;
        } else {
            other_seq = middle;
        }
    }
    Ok(same_seq)
}

/// Whether the ledger has the event that was drained under this number, or next after it where there is none.
async fn has(ledger: &dyn Ledger, archive: &Archive, state: &LogState, seq: u64) -> Result<bool> {
    let Some(kept) = archive.event_from(state, seq).await? else {
        return Ok(true);
    };
    let found = page(ledger, kept.seq.saturating_sub(1), 1).await?;
    match found.first() {
        Some(event) if event.seq == kept.seq => same(event, &kept),
        _ => Ok(false),
    }
}

/// What was trimmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trimmed {
    /// Events that were removed from the ledger.
    pub removed: u64,
    /// The first event that is still there.
    pub first_seq: u64,
    /// The verification before it, when a newer checkpoint was needed.
    pub verified: Option<VerifyReport>,
}

/// Trims a ledger's log as far as every archive has it, but keeps events younger than `keep_ms`. A signed checkpoint
/// that stands for what is removed is made first.
///
/// # Errors
/// `LedgerCorrupt` when the counters are not what the events add up to: then nothing is removed.
pub async fn trim(ledger: &dyn Ledger, keep_ms: i64) -> Result<Trimmed> {
    let mut backlog = ledger.backlog().await?;
    let mut upto = backlog.drained_seq();
    if keep_ms > 0 {
        let old_ms = ledger.info().await?.now_ms.saturating_sub(keep_ms);
        upto = last_before(ledger, (backlog.first_seq, upto), old_ms).await?;
    }
    let mut verified = None;
    if upto >= backlog.first_seq && upto > backlog.checkpoint_seq {
        let report = ledger.verify().await?;
        if !report.chain_ok || !report.differences.is_empty() {
            return Err(Error::new(
                ErrorKind::LedgerCorrupt,
                "the counters are not what the events add up to, so nothing is trimmed: keybrake audit verify",
            ));
        }
        verified = Some(report);
        backlog = ledger.backlog().await?;
    }
    let (removed, first_seq) = remove(ledger, backlog, upto).await?;
    Ok(Trimmed {
        removed,
        first_seq,
        verified,
    })
}

/// Trims as far as every archive has the log now: one that looked earlier may say meanwhile that it has less.
async fn remove(ledger: &dyn Ledger, mut backlog: Backlog, wanted: u64) -> Result<(u64, u64)> {
    loop {
        let upto = wanted.min(backlog.may_trim_to());
        if upto < backlog.first_seq {
            return Ok((0, backlog.first_seq));
        }
        match ledger.trim(upto).await {
            Ok(removed) => return Ok((removed, ledger.backlog().await?.first_seq)),
            Err(error) => {
                backlog = ledger.backlog().await?;
                if backlog.may_trim_to() >= upto {
                    return Err(error);
                }
            }
        }
    }
}

/// The last event of a range that happened before a moment; the one before the range if none did. Time never goes back
/// in a log, so halving finds it.
async fn last_before(ledger: &dyn Ledger, (first_seq, last_seq): (u64, u64), at_ms: i64) -> Result<u64> {
    let mut before = first_seq.saturating_sub(1);
    let mut after = last_seq.saturating_add(1).max(first_seq);
    while after.saturating_sub(before) > 1 {
        let middle = before.midpoint(after);
        let filter = EventFilter {
            after_seq: middle.saturating_sub(1),
            limit: 1,
            ..EventFilter::default()
        };
        match ledger.events(filter).await?.first() {
            // Where the number was lost, it is the next event.
            Some(event) if event.at_ms < at_ms => before = middle,
            _ => after = middle,
        }
    }
    Ok(before)
}

/// The name of a ledger's log.
pub(super) fn log_name(ledger: &dyn Ledger, id: String) -> LogName {
    LogName {
        ledger: id,
        namespace: ledger.namespace().unwrap_or_default().to_owned(),
    }
}

/// Whether two events are one. Both were written once by us; a number with a fraction may change its last digit when it
/// is read, so both are compared as they were read back.
pub(super) fn same(event: &Event, kept: &Event) -> Result<bool> {
    let text = serde_json::to_string(event)
        .map_err(|e| Error::new(ErrorKind::Internal, "an event cannot be written").because(e))?;
    let read: Event = serde_json::from_str(&text)
        .map_err(|e| Error::new(ErrorKind::Internal, "an event cannot be read back").because(e))?;
    Ok(read == *kept)
}

/// Whether one of these eras has this event. A ledger that knows none has lost none.
fn reach(eras: &[EraRange], last: u64) -> bool {
    eras.is_empty() || eras.iter().any(|era| era.first <= last && last <= era.last)
}

/// Whether a log has the same eras as before.
fn same_eras(before: &[EraRange], now: &[EraRange]) -> bool {
    let names = |eras: &[EraRange]| -> Vec<u64> { eras.iter().map(|range| range.era).collect() };
    names(before) == names(now)
}

/// The eras that these events are of, up to the last of them.
fn eras_of(events: &[Event], eras: &[EraRange]) -> Vec<EraRange> {
    let (Some(first), Some(last)) = (events.first(), events.last()) else {
        return Vec::new();
    };
    let here = eras.iter().map(|range| EraRange {
        last: range.last.min(last.seq),
        ..*range
    });
    here.filter(|range| range.first <= range.last && range.last >= first.seq)
        .collect()
}

fn check_order(events: &[Event]) -> Result<()> {
    let mut last: Option<u64> = None;
    for event in events {
        if last.is_some_and(|last| !event.follows(last)) {
            return Err(Error::new(
                ErrorKind::LedgerCorrupt,
                format!(
                    "the ledger's log has a hole before event {}; nothing was drained",
                    event.seq
                ),
            ));
        }
        last = Some(event.seq);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{EraRange, reach, same_eras};

    fn era(era: u64, first: u64, last: u64) -> EraRange {
        EraRange { era, first, last }
    }

    /// A replica that has less is asked before anybody has told it what it lacks: its era has the old name, and ends
    /// before the events that its predecessor told.
    #[test]
    fn a_batch_is_drained_again_when_the_ledger_no_longer_has_its_end() {
        let before = [era(7, 1, 950)];
        assert!(same_eras(&before, &[era(7, 1, 960)]) && reach(&[era(7, 1, 960)], 950));
        let after = [era(7, 1, 900)];
        assert!(same_eras(&before, &after) && !reach(&after, 950));
        let began = [era(7, 1, 900), era(8, 901, 960)];
        assert!(reach(&began, 950) && !same_eras(&before, &began));
        assert!(!reach(&[era(7, 1, 900), era(8, 960, 970)], 950), "between two");
        assert!(reach(&[], 950), "a ledger that loses nothing has no eras");
    }
}
