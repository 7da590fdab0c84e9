//! Denials, and what keeps a loop of them from filling the ledger.

use std::collections::HashMap;
use std::sync::Arc;

use super::step::Step;
use crate::error::Result;
use crate::ledger::events::{EventBody, EventKind};
use crate::ledger::store::Store;
use crate::ledger::types::CallFacts;
use crate::policy::{Code, Denial};

/// Denials of one key, code and operation that are written one by one, each minute.
const ONE_BY_ONE: u32 = 600;
const MINUTE_MS: i64 = 60_000;
/// How often a row with a count is written for the others.
const COUNTED_EVERY_MS: i64 = 10_000;
/// Floods watched at a time; beyond it, operations of one key are counted together.
const FLOODS: usize = 1_024;

/// What a process remembers of recent denials: a few counters, never more than a thousand.
#[derive(Debug, Default)]
pub struct Flood {
    recent: HashMap<BurstKey, Burst>,
    /// What the step under way did, for a backend whose steps may come to nothing.
    notes: Option<Vec<Note>>,
}

type BurstKey = (String, Code, String);

/// One change of a burst, so that it can be taken back.
#[derive(Debug)]
pub(crate) struct Note {
    key: BurstKey,
    change: Change,
}

#[derive(Debug)]
enum Change {
    /// A denial with a row of its own.
    Row,
    /// A denial that waits for the next row with a count.
    Waits,
    /// A row for so many.
    Counted(u64, Option<(Arc<CallFacts>, Box<Denial>)>),
}

#[derive(Debug)]
struct Burst {
    minute_ms: i64,
    in_minute: u32,
    waiting: u64,
    counted_ms: i64,
    last: Option<(Arc<CallFacts>, Box<Denial>)>,
}

/// Records a denial: as an event of its own, or counted into the next row of its flood.
pub(super) fn deny(
    step: &mut Step<'_>,
    flood: &mut Flood,
    facts: &Arc<CallFacts>,
    denial: &Denial,
) -> Result<()> {
    flood.make_room(step)?;
    let now_ms = step.now_ms;
    let key = flood_key(facts, denial.code, flood.recent.len());
    let burst = flood.recent.entry(key.clone()).or_insert(Burst {
        minute_ms: now_ms,
        in_minute: 0,
        waiting: 0,
        counted_ms: now_ms,
        last: None,
    });
    if now_ms.saturating_sub(burst.minute_ms) >= MINUTE_MS {
        burst.minute_ms = now_ms;
        burst.in_minute = 0;
    }
    burst.in_minute = burst.in_minute.saturating_add(1);
    if burst.in_minute <= ONE_BY_ONE {
        note(&mut flood.notes, &key, Change::Row);
        return append(step, facts, denial, None);
    }
    burst.waiting = burst.waiting.saturating_add(1);
    burst.last = Some((Arc::clone(facts), Box::new(denial.clone())));
    note(&mut flood.notes, &key, Change::Waits);
    if now_ms.saturating_sub(burst.counted_ms) >= COUNTED_EVERY_MS {
        let change = burst.write(step)?;
        note(&mut flood.notes, &key, change);
    }
    Ok(())
}

fn note(notes: &mut Option<Vec<Note>>, key: &BurstKey, change: Change) {
    if let Some(notes) = notes {
        notes.push(Note {
            key: key.clone(),
            change,
        });
    }
}

/// Writes the counts that are still waiting. Called by `flush`, `sweep` and `verify` of every backend.
pub fn flush_denials(store: &mut dyn Store, flood: &mut Flood, clock_ms: i64) -> Result<()> {
    if flood.recent.values().all(|burst| burst.waiting == 0) {
        return Ok(());
    }
    let mut step = Step::begin(store, clock_ms)?;
    flood.write_all(&mut step)?;
    step.finish()
}

/// An unknown key has no operations of its own: they are the sender's words.
fn flood_key(facts: &CallFacts, code: Code, watched: usize) -> (String, Code, String) {
    match &facts.key_id {
        Some(key_id) if watched < FLOODS => (key_id.clone(), code, facts.operation.clone()),
        Some(key_id) => (key_id.clone(), code, "*".to_owned()),
        None => ("-".to_owned(), code, "*".to_owned()),
    }
}

impl Flood {
    /// Forgets what is over a minute old before the table grows past its bound.
    fn make_room(&mut self, step: &mut Step<'_>) -> Result<()> {
        if self.recent.len() < FLOODS {
            return Ok(());
        }
        self.write_all(step)?;
        let now_ms = step.now_ms;
        self.recent
            .retain(|_, burst| now_ms.saturating_sub(burst.minute_ms) < MINUTE_MS);
        Ok(())
    }

    fn write_all(&mut self, step: &mut Step<'_>) -> Result<()> {
        let mut waiting: Vec<(&BurstKey, &mut Burst)> = self
            .recent
            .iter_mut()
            .filter(|(_, burst)| burst.waiting > 0)
            .collect();
        waiting.sort_by_key(|(_, burst)| burst.minute_ms);
        for (key, burst) in waiting {
            let change = burst.write(step)?;
            note(&mut self.notes, key, change);
        }
        Ok(())
    }

    /// For a backend whose steps may come to nothing: keeps notes of what each of them did.
    pub(crate) fn with_notes() -> Self {
        Self {
            recent: HashMap::new(),
            notes: Some(Vec::new()),
        }
    }

    /// The notes since they were last taken.
    pub(crate) fn take_notes(&mut self) -> Vec<Note> {
        self.notes.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Takes back what a step did that came to nothing. Other steps may have counted on since.
    pub(crate) fn take_back(&mut self, notes: Vec<Note>) {
        for Note { key, change } in notes.into_iter().rev() {
            let Some(burst) = self.recent.get_mut(&key) else {
                continue;
            };
            match change {
                Change::Row => burst.in_minute = burst.in_minute.saturating_sub(1),
                Change::Waits => {
                    burst.in_minute = burst.in_minute.saturating_sub(1);
                    burst.waiting = burst.waiting.saturating_sub(1);
                }
                Change::Counted(count, last) => {
                    burst.waiting = burst.waiting.saturating_add(count);
                    burst.last = burst.last.take().or(last);
                }
            }
        }
    }
}

impl Burst {
    fn write(&mut self, step: &mut Step<'_>) -> Result<Change> {
        let last = self.last.take();
        if let Some((facts, denial)) = &last {
            append(step, facts, denial, Some(self.waiting))?;
        }
        let change = Change::Counted(self.waiting, last);
        self.waiting = 0;
        self.counted_ms = step.now_ms;
        Ok(change)
    }
}

fn append(step: &mut Step<'_>, facts: &Arc<CallFacts>, denial: &Denial, count: Option<u64>) -> Result<()> {
    let body = EventBody {
        facts: Some(Arc::clone(facts)),
        amount_micros: denial.requested_micros,
        denial: Some(Box::new(denial.clone())),
        count,
        ..EventBody::default()
    };
    step.append(EventKind::Denied, Some(&facts.call_id), Vec::new(), body)
}
