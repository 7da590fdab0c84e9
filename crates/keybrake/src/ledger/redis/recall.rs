//! Steps whose answer was lost. The repeat finds what such a step left and writes nothing, so nothing says which events were
//! its own: they are looked for in the log by their texts, and then remembered like those of every other step.

use redis::Value;

use super::past::{Done, Range};
use super::step::Own;
use super::wire::{Parts, texts, unreadable};
use crate::clock::Clock;
use crate::error::Result;

/// Events that are looked through: of a process that comes back after long, only the last.
const LAST: u64 = 10_000;
/// Events read at a time.
const PAGE: u64 = 1_000;
/// How often one is looked for: it may have been on its way still.
const TRIES: u32 = 3;

/// A step that may have been written.
#[derive(Debug)]
pub(super) struct Unanswered {
    /// The era that it was sent in, and the number of the last event that was known then.
    pub(super) era: u64,
    pub(super) after: u64,
    /// The texts of its events, one right after the other.
    pub(super) log: Vec<String>,
    /// As it will be remembered, but for its numbers and its time.
    pub(super) done: Done,
    /// How often it has been looked for.
    pub(super) tries: u32,
}

impl Unanswered {
    /// The number of its first event, and when that was, if it is among these.
    fn found(&self, events: &[(u64, i64, String)]) -> Option<(u64, i64)> {
        let windows = events.windows(self.log.len().max(1));
        let same = |window: &&[(u64, i64, String)]| {
            let texts = window.iter().map(|(_, _, text)| text);
            texts.eq(self.log.iter())
        };
        let first = windows.filter(same).find_map(<[_]>::first)?;
        Some((first.0, first.1))
    }
}

impl Own {
    /// Looks for the steps whose answers were lost. What cannot be read now is looked for at the next step: only a look at the
    /// log counts as one.
    pub(super) async fn recall(&self, clock: &dyn Clock) {
        let Some(mut unanswered) = self.state().copies.past.take_unanswered() else {
            return;
        };
        match self.look_for(clock, &mut unanswered).await {
            Ok(true) => unanswered.retain_mut(|step| {
                step.tries = step.tries.saturating_add(1);
                step.tries < TRIES
            }),
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, "a step whose answer was lost could not be looked for"),
        }
        self.state().copies.past.put_back(unanswered);
    }

    /// Takes out those that are in the log; answers whether it could be read.
    async fn look_for(&self, clock: &dyn Clock, steps: &mut Vec<Unanswered>) -> Result<bool> {
        let about = self.about().await?;
        if !about.open {
            return Ok(false);
        }
        let standing = about.standing;
        let oldest = steps.iter().map(|step| step.after).min().unwrap_or(0);
        let mut after = oldest.max(standing.last_seq.saturating_sub(LAST));
        let mut events = Vec::new();
        while after < standing.last_seq {
            let page = self.texts_after(after).await?;
            let Some((last, _, _)) = page.last() else { break };
            after = *last;
            events.extend(page);
        }
        let mut state = self.state();
        steps.retain_mut(|step| {
            let Some((first, at_ms)) = step.found(&events) else {
                return true;
            };
            let count = u64::try_from(step.log.len()).unwrap_or(u64::MAX);
            let events = Range {
                epoch: if first > standing.start {
                    standing.run
                } else {
                    step.era
                },
                first,
                last: first.saturating_add(count).saturating_sub(1),
            };
            let done = Done {
                events,
                at_ms,
                records: std::mem::take(&mut step.done.records),
                stops: std::mem::take(&mut step.done.stops),
            };
            state.copies.past.remember(clock.boot_ms(), done);
            false
        });
        Ok(true)
    }

    /// A page of the log after a number: of each event its number, its time and its text.
    async fn texts_after(&self, after: u64) -> Result<Vec<(u64, i64, String)>> {
        let mut command = redis::cmd("XRANGE");
        command
            .arg(self.place.ns.place("events"))
            .arg(format!("({after}-0"))
            .arg("+")
            .arg("COUNT")
            .arg(PAGE);
        match self.ask(&command).await? {
            Value::Array(entries) => entries.into_iter().map(event).collect(),
            _ => Err(unreadable()),
        }
    }
}

fn event(entry: Value) -> Result<(u64, i64, String)> {
    let mut parts = Parts::of(entry)?;
    let id = parts.text()?;
    let seq = id.split('-').next().and_then(|seq| seq.parse().ok());
    let (mut data, mut at_ms) = (None, None);
    for pair in texts(parts.next()?)?.chunks_exact(2) {
        match pair {
            [field, value] if field == "d" => data = Some(value.clone()),
            [field, value] if field == "t" => {
                at_ms = value.split(',').next().and_then(|ms| ms.parse().ok());
            }
            _ => {}
        }
    }
    match (seq, at_ms, data) {
        (Some(seq), Some(at_ms), Some(data)) => Ok((seq, at_ms, data)),
        _ => Err(unreadable()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_found_by_all_of_its_events_in_order() {
        let step = |log: &[&str]| Unanswered {
            era: 1,
            after: 0,
            log: log.iter().map(|text| (*text).to_owned()).collect(),
            done: Done {
                events: Range {
                    epoch: 0,
                    first: 0,
                    last: 0,
                },
                at_ms: 0,
                records: Vec::new(),
                stops: Vec::new(),
            },
            tries: 0,
        };
        let texts = ["a", "b", "a", "c"].iter().zip(7_u64..);
        let events: Vec<_> = texts.map(|(text, seq)| (seq, 70, (*text).to_owned())).collect();
        assert_eq!(step(&["a", "c"]).found(&events), Some((9, 70)));
        assert_eq!(step(&["b"]).found(&events), Some((8, 70)));
        assert_eq!(step(&["c", "a"]).found(&events), None);
        assert_eq!(step(&["a", "b", "a", "c", "d"]).found(&events), None);
    }
}
