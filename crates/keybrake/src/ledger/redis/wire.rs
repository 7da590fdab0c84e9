//! What goes to the functions of `library.lua` and what comes back.

use std::sync::Arc;

use redis::{Cmd, Value};

use super::copies::{Copies, Copy, Known, Standing};
use super::draft::{Draft, LARGEST};
use super::past::{Done, Range};
use super::recall::Unanswered;
use super::url::Namespace;
use super::{again, records};
use crate::error::{Error, ErrorKind, Result};
use crate::ledger::store::Counter;
use crate::ledger::types::{Stop, StopScope};

/// A step as it is sent, with what is needed to read the answer.
pub(super) struct Sent {
    pub(super) command: Cmd,
    /// The time that it rests on.
    pub(super) guessed_ms: i64,
    /// Names of the records that are fields, in the order of the command.
    fields: Vec<String>,
    /// Names of the records that are keys of their own.
    texts: Vec<String>,
    counters: Vec<String>,
    holders: Vec<String>,
    /// What the records are after it.
    written: Vec<(String, Copy)>,
    /// What this process knew of the log.
    known: Known,
    /// Texts of the events that it writes.
    log: Vec<String>,
    stops: Vec<(String, Option<Stop>)>,
    /// Whether it tells that this process is at work.
    tells: bool,
    /// Whether it says again what may have been lost.
    again: bool,
}

/// What a step tells besides what it rests on and writes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Telling<'a> {
    /// This process's name, when it is time to tell that it is at work.
    pub(super) client: Option<u64>,
    /// The events that it says again, if it is such a step.
    pub(super) again: Option<&'a [Range]>,
}

/// What became of a step.
pub(super) enum Answer {
    /// It is written; the counters it read or changed stand so.
    Done(Vec<(String, Counter)>),
    /// Something is different; the copies know it now. These calls are past their deadline.
    Moved(Vec<String>),
    /// The server has just started, and nobody has opened the ledger; or it holds older data than was seen.
    Closed,
}

/// A function of the library, for a namespace.
pub(super) fn function(name: &str, ns: &Namespace, texts: &[String]) -> Cmd {
    let mut command = redis::cmd("FCALL");
    let places = ns.places();
    command
        .arg(super::library::function(name))
        .arg(places.len().saturating_add(texts.len()));
    for place in places {
        command.arg(place);
    }
    for text in texts {
        command.arg(ns.key(text));
    }
    command
}

/// A step to be committed.
///
/// # Errors
/// `LedgerUnavailable` when an amount is too large for Redis.
pub(super) fn commit(
    draft: &Draft<'_>,
    ns: &Namespace,
    (id, known): (&str, Known),
    standing: Standing,
    telling: Telling<'_>,
) -> Result<Sent> {
    let (mut fields, mut texts) = (Vec::new(), Vec::new());
    for entry in &draft.entries {
        let names = if records::is_field(&entry.name) {
            &mut fields
        } else {
            &mut texts
        };
        names.push(entry);
    }
    let names: Vec<String> = texts.iter().map(|entry| entry.name.clone()).collect();
    let name = telling.again.map_or("commit", |_| "reassert");
    let mut command = function(name, ns, &names);
    command
        .arg(standing.now_ms)
        .arg(draft.slack_ms)
        .arg(draft.from_ms)
        .arg(draft.until_ms)
        .arg(standing.groups_version)
        .arg(standing.stops_version)
        .arg(i32::from(draft.looks_at_deadlines))
        .arg(id);
    known.put(&mut command);
    command.arg(
        telling
            .client
            .map_or_else(String::new, |client| format!("{client:016x}")),
    );
    command.arg(fields.len());
    for entry in &fields {
        command.arg(&entry.name).arg(&*entry.seen);
    }
    command.arg(texts.len());
    for entry in &texts {
        command.arg(&*entry.seen);
    }
    counters(&mut command, draft)?;
    command.arg(draft.holders.len());
    for holder in &draft.holders {
        command
            .arg(&holder.key_id)
            .arg(holder.more)
            .arg(holder.finding)
            .arg(holder.limit);
    }
    let written = writes(&mut command, draft, &names, standing.now_ms)?;
    command
        .arg(draft.more_groups)
        .arg(draft.more_open)
        .arg(draft.log.len());
    let mut log = Vec::with_capacity(draft.log.len());
    for (event, shown) in &draft.log {
        let text = super::log::print(event, *shown)?;
        command.arg(&text);
        log.push(text);
    }
    if let Some(again) = telling.again {
        command.arg(again.len());
        for events in again {
            let epoch = format!("{:012x}", events.epoch);
            command.arg(epoch).arg(events.first).arg(events.last);
        }
    }
    Ok(Sent {
        command,
        guessed_ms: standing.now_ms,
        fields: fields.iter().map(|entry| entry.name.clone()).collect(),
        texts: names,
        counters: draft.tallies.iter().map(|tally| tally.name.clone()).collect(),
        holders: draft.holders.iter().map(|holder| holder.key_id.clone()).collect(),
        written,
        known,
        log,
        stops: draft.stops.clone(),
        tells: telling.client.is_some(),
        again: telling.again.is_some(),
    })
}

fn counters(command: &mut Cmd, draft: &Draft<'_>) -> Result<()> {
    command.arg(draft.tallies.len());
    for tally in &draft.tallies {
        let used = tally.after.used.saturating_sub(tally.before.used);
        let held = tally.after.held.saturating_sub(tally.before.held);
        if used.saturating_abs() > LARGEST || held.saturating_abs() > LARGEST {
            return Err(Error::ledger(
                "the amount is too large for a ledger in Redis, which counts up to 9,007,199,254 dollars; nothing was sent",
            ));
        }
        command.arg(&tally.name).arg(used).arg(held);
    }
    command.arg(draft.guards.len());
    for guard in &draft.guards {
        command.arg(guard.tally.saturating_add(1)).arg(guard.finding);
        match draft.tallies.get(guard.tally) {
            Some(tally) if guard.finding == "exact" => {
                command.arg(format!("{}:{}", tally.before.used, tally.before.held));
            }
            _ => {
                command.arg(guard.limit);
            }
        }
    }
    Ok(())
}

fn writes(
    command: &mut Cmd,
    draft: &Draft<'_>,
    texts: &[String],
    now_ms: i64,
) -> Result<Vec<(String, Copy)>> {
    let mut written = Vec::new();
    let (mut new_fields, mut new_texts) = (Vec::new(), Vec::new());
    for (index, text) in draft.texts()? {
        let Some(entry) = draft.entries.get(index) else {
            continue;
        };
        match texts.iter().position(|name| *name == entry.name) {
            Some(key) => new_texts.push((
                key.saturating_add(1),
                text.clone(),
                records::kept_for_ms(&entry.record, now_ms),
            )),
            None => new_fields.push((entry.name.clone(), text.clone())),
        }
        let copy = Copy {
            text: Arc::from(text),
            record: entry.record.clone(),
        };
        written.push((entry.name.clone(), copy));
    }
    command.arg(new_fields.len());
    for (name, text) in new_fields {
        command.arg(name).arg(text);
    }
    command.arg(new_texts.len());
    for (key, text, kept_for_ms) in new_texts {
        command
            .arg(key)
            .arg(text)
            .arg(kept_for_ms.map_or_else(String::new, |ms| ms.to_string()));
    }
    command.arg(draft.stops.len());
    for (scope, stop) in &draft.stops {
        let text = match stop {
            Some(stop) => serde_json::to_string(stop)
                .map_err(|e| Error::new(ErrorKind::Internal, "a stop cannot be written").because(e))?,
            None => String::new(),
        };
        command.arg(scope).arg(text);
    }
    command.arg(draft.listings.len());
    for (list, member, score) in &draft.listings {
        command
            .arg(*list)
            .arg(member)
            .arg(score.map_or_else(String::new, |score| score.to_string()));
    }
    Ok(written)
}

impl Sent {
    /// Names of all records of the step.
    pub(super) fn names(&self) -> impl Iterator<Item = String> + '_ {
        self.fields.iter().chain(&self.texts).cloned()
    }

    /// The step as this process remembers it.
    fn done(&self, standing: &Standing) -> Done {
        let remembered = self.written.iter().filter(|(name, _)| again::is_remembered(name));
        let events = u64::try_from(self.log.len()).unwrap_or(u64::MAX);
        Done {
            events: Range {
                epoch: standing.run,
                first: standing.last_seq.saturating_sub(events).saturating_add(1),
                last: standing.last_seq,
            },
            at_ms: standing.now_ms,
            records: remembered
                .map(|(name, copy)| (name.clone(), Arc::clone(&copy.text)))
                .collect(),
            stops: self.stops.clone(),
        }
    }

    /// The step as it is looked for when its answer was lost.
    pub(super) fn unanswered(self) -> Unanswered {
        let done = self.done(&Standing::default());
        Unanswered {
            era: self.known.run,
            after: self.known.last_seq,
            log: self.log,
            done,
            tries: 0,
        }
    }

    /// All that the step rests on, to be looked at again.
    pub(super) fn look(&self) -> Look {
        Look {
            fields: self.fields.clone(),
            texts: self.texts.clone(),
            counters: self.counters.clone(),
            holders: self.holders.clone(),
            stops: false,
        }
    }

    /// Reads the answer into the copies.
    pub(super) fn read(self, answer: Value, copies: &mut Copies, boot_ms: i64) -> Result<Answer> {
        let mut parts = Parts::of(answer)?;
        let outcome = parts.text()?;
        let standing = standing(parts.next()?)?;
        if outcome == "closed" {
            return Ok(Answer::Closed);
        }
        copies.stand(standing, boot_ms);
        // Such a step is not compared with what this process has seen.
        copies.know(&standing, !self.again);
        match outcome.as_str() {
            "done" => {
                if self.tells {
                    copies.past.told(boot_ms);
                }
                if !self.log.is_empty() {
                    copies.past.remember(boot_ms, self.done(&standing));
                }
                let mut counters = Vec::with_capacity(self.counters.len());
                for (name, value) in self.counters.into_iter().zip(texts(parts.next()?)?) {
                    let counter = counter(&value)?;
                    copies.learn_counter(&name, counter);
                    counters.push((name, counter));
                }
                for (name, copy) in self.written {
                    copies.remember(name, copy);
                }
                // How many are open now is not known exactly: the next step that asks is told.
                Ok(Answer::Done(counters))
            }
            "moved" => {
                for names in [&self.fields, &self.texts] {
                    let changed = texts(parts.next()?)?;
                    for pair in changed.chunks_exact(2) {
                        let [index, text] = pair else { continue };
                        let index: usize = index.parse().map_err(|_| unreadable())?;
                        let name = names.get(index.saturating_sub(1)).ok_or_else(unreadable)?;
                        copies.learn(name, text)?;
                    }
                }
                for (name, value) in self.counters.iter().zip(texts(parts.next()?)?) {
                    copies.learn_counter(name, counter(&value)?);
                }
                let due = texts(parts.next()?)?;
                let standing = texts(parts.next()?)?;
                if !standing.is_empty() {
                    learn_stops(copies, &standing)?;
                }
                for (key_id, open) in self.holders.iter().zip(texts(parts.next()?)?) {
                    copies.learn_holder(key_id, open.parse().unwrap_or(0));
                }
                Ok(Answer::Moved(due))
            }
            _ => Err(unreadable()),
        }
    }
}

/// A request for records, counters and stops.
#[derive(Debug, Default)]
pub(super) struct Look {
    fields: Vec<String>,
    texts: Vec<String>,
    counters: Vec<String>,
    holders: Vec<String>,
    stops: bool,
}

impl Look {
    pub(super) fn record(&mut self, name: String) {
        if records::is_field(&name) {
            self.fields.push(name);
        } else {
            self.texts.push(name);
        }
    }

    pub(super) fn counter(&mut self, name: String) {
        self.counters.push(name);
    }

    pub(super) fn holder(&mut self, key_id: String) {
        self.holders.push(key_id);
    }

    pub(super) const fn stops(&mut self) {
        self.stops = true;
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.fields.is_empty()
            && self.texts.is_empty()
            && self.counters.is_empty()
            && self.holders.is_empty()
            && !self.stops
    }

    /// The same in parts, each of at most so many names of a kind; none when it looks for nothing.
    pub(super) fn parts(mut self, most: usize) -> Vec<Self> {
        for names in [
            &mut self.fields,
            &mut self.texts,
            &mut self.counters,
            &mut self.holders,
        ] {
            names.sort_unstable();
            names.dedup();
        }
        let mut parts = Vec::new();
        while !self.is_empty() {
            let some = |names: &mut Vec<String>| names.split_off(names.len().saturating_sub(most));
            parts.push(Self {
                fields: some(&mut self.fields),
                texts: some(&mut self.texts),
                counters: some(&mut self.counters),
                holders: some(&mut self.holders),
                stops: std::mem::take(&mut self.stops),
            });
        }
        parts
    }

    pub(super) fn command(&self, ns: &Namespace) -> Cmd {
        let mut command = function("look", ns, &self.texts);
        for names in [&self.fields, &self.counters, &self.holders] {
            command.arg(names.len());
            for name in names {
                command.arg(name);
            }
        }
        command.arg(i32::from(self.stops));
        command
    }

    pub(super) fn read(self, answer: Value, copies: &mut Copies, boot_ms: i64) -> Result<()> {
        let mut parts = Parts::of(answer)?;
        parts.text()?;
        let standing = standing(parts.next()?)?;
        copies.stand(standing, boot_ms);
        copies.know(&standing, false);
        for names in [&self.fields, &self.texts] {
            for (name, text) in names.iter().zip(texts(parts.next()?)?) {
                copies.learn(name, &text)?;
            }
        }
        for (name, value) in self.counters.iter().zip(texts(parts.next()?)?) {
            copies.learn_counter(name, counter(&value)?);
        }
        for (key_id, open) in self.holders.iter().zip(texts(parts.next()?)?) {
            copies.learn_holder(key_id, open.parse().unwrap_or(0));
        }
        if self.stops {
            learn_stops(copies, &texts(parts.next()?)?)?;
        }
        Ok(())
    }
}

fn learn_stops(copies: &mut Copies, pairs: &[String]) -> Result<()> {
    let mut stops: std::collections::BTreeMap<StopScope, Stop> = std::collections::BTreeMap::new();
    for pair in pairs.chunks_exact(2) {
        let [_, text] = pair else { continue };
        let stop: Stop = serde_json::from_str(text).map_err(|e| unreadable().because(e))?;
        stops.insert(stop.scope.clone(), stop);
    }
    copies.stops = Some(Arc::new(stops));
    Ok(())
}

/// How the ledger stands: time, whether it is fixed, versions, number of the last event.
pub(super) fn standing(value: Value) -> Result<Standing> {
    let texts = texts(value)?;
    let number = |index: usize| -> Result<i64> {
        texts
            .get(index)
            .and_then(|text| text.parse().ok())
            .ok_or_else(unreadable)
    };
    let unsigned = |index| number(index).map(|n| n.max(0).cast_unsigned());
    Ok(Standing {
        now_ms: number(0)?,
        fixed: number(1)? == 1,
        groups_version: unsigned(2)?,
        stops_version: unsigned(3)?,
        last_seq: unsigned(4)?,
        open: number(5)? == 1,
        by_hand: unsigned(6)?,
        run: texts
            .get(7)
            .and_then(|run| u64::from_str_radix(run, 16).ok())
            .unwrap_or(0),
        from: unsigned(8)?,
        start: unsigned(9)?,
    })
}

/// Ranges of events: era, first and last of each.
pub(super) fn ranges(value: Value) -> Result<Vec<Range>> {
    let texts = texts(value)?;
    let range = |parts: &[String]| match parts {
        [epoch, first, last] => Some(Range {
            epoch: u64::from_str_radix(epoch, 16).ok()?,
            first: first.parse().ok()?,
            last: last.parse().ok()?,
        }),
        _ => None,
    };
    texts
        .chunks(3)
        .map(|parts| range(parts).ok_or_else(unreadable))
        .collect()
}

/// `used:held`; nothing is zero.
pub(super) fn counter(value: &str) -> Result<Counter> {
    if value.is_empty() {
        return Ok(Counter::default());
    }
    let (used, held) = value.split_once(':').ok_or_else(unreadable)?;
    Ok(Counter {
        used: used.parse().map_err(|_| unreadable())?,
        held: held.parse().map_err(|_| unreadable())?,
    })
}

/// The parts of an answer, in order.
pub(super) struct Parts(std::vec::IntoIter<Value>);

impl Parts {
    pub(super) fn of(value: Value) -> Result<Self> {
        match value {
            Value::Array(parts) => Ok(Self(parts.into_iter())),
            _ => Err(unreadable()),
        }
    }

    pub(super) fn next(&mut self) -> Result<Value> {
        self.0.next().ok_or_else(unreadable)
    }

    pub(super) fn text(&mut self) -> Result<String> {
        text(self.next()?)
    }
}

pub(super) fn text(value: Value) -> Result<String> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes).map_err(|_| unreadable()),
        Value::SimpleString(text) => Ok(text),
        Value::Int(number) => Ok(number.to_string()),
        Value::Nil => Ok(String::new()),
        _ => Err(unreadable()),
    }
}

pub(super) fn texts(value: Value) -> Result<Vec<String>> {
    match value {
        Value::Array(values) => values.into_iter().map(text).collect(),
        Value::Map(pairs) => pairs
            .into_iter()
            .flat_map(|(key, value)| [text(key), text(value)])
            .collect(),
        Value::Nil => Ok(Vec::new()),
        _ => Err(unreadable()),
    }
}

pub(super) fn unreadable() -> Error {
    Error::new(
        ErrorKind::LedgerCorrupt,
        "the Redis server's answer cannot be read; is it a ledger of another version?",
    )
}
