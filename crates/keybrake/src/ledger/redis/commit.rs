//! A step as one command, and its answer: `step` in `step.lua`.

use std::fmt::Write as _;
use std::sync::Arc;

use redis::{Cmd, Value};

use super::copies::{Copies, Copy, Known, Standing};
use super::draft::{Draft, Entry, LARGEST, Tally};
use super::past::{Done, Range};
use super::recall::Unanswered;
use super::url::Namespace;
use super::wire::{Look, Parts, counter, function_of, integer, standing, texts, unreadable};
use super::{again, records};
use crate::error::{Error, ErrorKind, Result};
use crate::ledger::store::Counter;
use crate::ledger::types::Stop;

/// A step as it is sent, with what is needed to read the answer.
pub(super) struct Sent {
    pub(super) command: Cmd,
    /// How the ledger stood for it.
    standing: Standing,
    /// Records that are fields and were sent, with what they were.
    fields: Vec<(String, Arc<str>)>,
    /// Names of the records that are keys of their own.
    texts: Vec<String>,
    /// The counters, as they are after it if they were what it was drafted on.
    counters: Vec<(String, Counter)>,
    /// What the records are after it.
    written: Vec<(String, Copy)>,
    /// The edition that it makes, if it makes another.
    edition: Option<Arc<str>>,
    /// What this process knew of the log.
    known: Known,
    /// Texts of the events that it writes.
    log: Vec<String>,
    more_groups: i64,
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
    /// Whether it says all that it rests on, so that it may be written whatever the edition is.
    pub(super) all: bool,
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

/// A record that the step writes.
struct New<'d> {
    entry: &'d Entry,
    text: Arc<str>,
}

/// A step to be committed. `known` is what this process remembers of the log of the ledger with this id; `maker` and
/// `number` name the edition that the step may make.
///
/// # Errors
/// `LedgerUnavailable` when an amount is too large for Redis.
pub(super) fn commit(
    draft: &Draft<'_>,
    ns: &Namespace,
    (id, known): (&str, Known),
    (maker, number): (u64, u64),
    telling: Telling<'_>,
) -> Result<Sent> {
    let standing = &draft.standing;
    let (mut compared, mut absent, mut present) = (Vec::new(), Vec::new(), Vec::new());
    for entry in &draft.entries {
        if !records::is_field(&entry.name) {
            if entry.seen.is_empty() {
                &mut absent
            } else {
                &mut present
            }
            .push(entry);
        } else if telling.all || !entry.certain {
            compared.push(entry);
        }
    }
    let absent_count = absent.len();
    let mut texts: Vec<&Entry> = absent;
    texts.append(&mut present);
    let new = written(draft)?;
    let (new_fields, new_texts): (Vec<&New<'_>>, Vec<&New<'_>>) =
        new.iter().partition(|new| records::is_field(&new.entry.name));
    let edits = |new: &&New<'_>| records::has_edition(&new.entry.name) && !new.entry.seen.is_empty();
    let edits = new_fields.iter().any(edits) || !draft.stops.is_empty() || draft.more_groups != 0;
    let edition: Option<Arc<str>> = edits.then(|| Arc::from(format!("{maker:016x}-{number}")));
    let writes_seldom = edits || !new_fields.is_empty() || telling.again.is_some();
    let sends_fields = writes_seldom || !compared.is_empty();
    let needs_all = sends_fields || telling.all || telling.client.is_some();
    let places = places(draft, ns, needs_all);

    let mut command = function_of(
        telling.again.map_or("commit", |_| "reassert"),
        places,
        texts.iter().map(|entry| ns.key(&entry.name)),
    );
    // In the order of `step` in step.lua.
    let trusted = (known.by_hand, known.run) == (standing.by_hand, standing.run);
    let earliest_ms = standing.now_ms.saturating_sub(draft.slack_ms);
    let latest_ms = standing.now_ms.saturating_add(draft.slack_ms);
    command
        .arg(&*standing.edition)
        .arg(if trusted { known.last_seq } else { u64::MAX })
        .arg(draft.from_ms.max(earliest_ms))
        .arg(draft.until_ms.min(latest_ms.saturating_add(1)))
        .arg(i32::from(draft.looks_at_deadlines))
        .arg(
            telling
                .client
                .map_or_else(String::new, |client| format!("{client:016x}")),
        )
        .arg(draft.more_open)
        .arg(format!(
            "{id} {} {:012x} {} {} {} {}",
            known.by_hand,
            known.run,
            known.last_seq,
            standing.groups_version,
            standing.stops_version,
            i32::from(telling.all),
        ))
        .arg(places.len());
    counters(&mut command, draft)?;
    command
        .arg(absent_count)
        .arg(texts.len().saturating_sub(absent_count));
    for entry in texts.iter().skip(absent_count) {
        command.arg(&*entry.seen);
    }
    command.arg(new_texts.len());
    for new in &new_texts {
        let place = texts.iter().position(|entry| entry.name == new.entry.name);
        let kept_for_ms = records::kept_for_ms(&new.entry.record, standing.now_ms);
        command
            .arg(place.map_or(0, |place| place.saturating_add(1)))
            .arg(&*new.text)
            .arg(kept_for_ms.map_or_else(String::new, |ms| ms.to_string()));
    }
    command.arg(draft.listings.len());
    for (name, member, score) in &draft.listings {
        command
            .arg(ns.index(name))
            .arg(member)
            .arg(score.map_or_else(String::new, |score| score.to_string()));
    }
    command.arg(draft.log.len());
    let mut log = Vec::with_capacity(draft.log.len());
    for (event, shown) in &draft.log {
        let text = super::log::print(event)?;
        command
            .arg(&text)
            .arg(shown.map_or_else(String::new, |index| index.saturating_add(1).to_string()));
        log.push(text);
    }
    if sends_fields {
        command.arg(compared.len());
        for entry in &compared {
            command.arg(&entry.name).arg(&*entry.seen);
        }
    }
    if writes_seldom {
        seldom(&mut command, draft, &new_fields, edition.as_deref())?;
    }
    if let Some(again) = telling.again {
        said_again(&mut command, again);
    }
    Ok(Sent {
        command,
        fields: compared
            .iter()
            .map(|entry| (entry.name.clone(), Arc::clone(&entry.seen)))
            .collect(),
        texts: texts.iter().map(|entry| entry.name.clone()).collect(),
        counters: draft
            .tallies
            .iter()
            .map(|tally| (tally.name.clone(), tally.after))
            .collect(),
        written: new
            .iter()
            .map(|new| {
                let copy = Copy::new(Arc::clone(&new.text), new.entry.record.clone());
                (new.entry.name.clone(), copy)
            })
            .collect(),
        standing: standing.clone(),
        edition,
        more_groups: draft.more_groups,
        known,
        log,
        stops: draft.stops.clone(),
        tells: telling.client.is_some(),
        again: telling.again.is_some(),
    })
}

/// The places that a step needs: the first few, and the others only if it uses one of them.
fn places<'n>(draft: &Draft<'_>, ns: &'n Namespace, all: bool) -> &'n [String] {
    let often = Namespace::OFTEN;
    if all || draft.listings.iter().any(|(name, _, _)| ns.index(name) > often) {
        return ns.places();
    }
    ns.places().get(..often).unwrap_or(ns.places())
}

/// The records that a step changes.
fn written<'d>(draft: &'d Draft<'_>) -> Result<Vec<New<'d>>> {
    let mut written = Vec::new();
    for entry in draft.entries.iter().filter(|entry| entry.changed) {
        let text = records::print(&entry.record)?;
        if *text != *entry.seen {
            written.push(New {
                entry,
                text: Arc::from(text),
            });
        }
    }
    Ok(written)
}

/// A counter as the server has it.
fn text_of(counter: Counter) -> String {
    format!("{}:{}", counter.used, counter.held)
}

/// What a counter is taken to be, and what the step makes of it. Where that would be too large, only the difference is
/// right: the server applies it to what the counter is, and refuses if that is too large.
fn texts_of(tally: &Tally) -> Result<(String, String)> {
    let used = tally.after.used.saturating_sub(tally.before.used);
    let held = tally.after.held.saturating_sub(tally.before.held);
    let fits = |number: i64| number.saturating_abs() <= LARGEST;
    if !fits(used) || !fits(held) {
        return Err(Error::ledger(
            "the amount is too large for a ledger in Redis, which counts up to 9,007,199,254 dollars; nothing was sent",
        ));
    }
    if tally.after == tally.before {
        return Ok((text_of(tally.before), String::new()));
    }
    if fits(tally.after.used) && fits(tally.after.held) {
        return Ok((text_of(tally.before), text_of(tally.after)));
    }
    // No counter is written like that, so it is never taken for what the step was drafted on.
    Ok(("00:0".to_owned(), text_of(Counter { used, held })))
}

fn counters(command: &mut Cmd, draft: &Draft<'_>) -> Result<()> {
    command.arg(draft.tallies.len());
    for tally in &draft.tallies {
        command.arg(&tally.name);
    }
    let mut after = Vec::with_capacity(draft.tallies.len());
    for tally in &draft.tallies {
        let (was, becomes) = texts_of(tally)?;
        command.arg(was);
        after.push(becomes);
    }
    for becomes in after {
        command.arg(becomes);
    }
    let mut findings = String::new();
    for guard in &draft.guards {
        let number = guard.tally.saturating_add(1);
        // Writing to a String does not fail.
        let _ = match guard.finding {
            "=" => write!(findings, "{number}= "),
            finding => write!(findings, "{number}{finding}{} ", guard.limit),
        };
    }
    command.arg(findings);
    Ok(())
}

fn seldom(command: &mut Cmd, draft: &Draft<'_>, fields: &[&New<'_>], edition: Option<&str>) -> Result<()> {
    command.arg(fields.len());
    for new in fields {
        command.arg(&new.entry.name).arg(&*new.text);
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
    command.arg(draft.more_groups).arg(edition.unwrap_or_default());
    Ok(())
}

fn said_again(command: &mut Cmd, again: &[Range]) {
    command.arg(again.len());
    for events in again {
        command
            .arg(format!("{:012x}", events.epoch))
            .arg(events.first)
            .arg(events.last);
    }
}

impl Sent {
    /// The time that it rests on.
    pub(super) const fn guessed_ms(&self) -> i64 {
        self.standing.now_ms
    }

    /// Names of all records of the step.
    pub(super) fn names(&self) -> impl Iterator<Item = String> + '_ {
        let written = self.written.iter().map(|(name, _)| name);
        let compared = self.fields.iter().map(|(name, _)| name);
        written.chain(compared).chain(&self.texts).cloned()
    }

    /// All that the step rests on, to be looked at again.
    pub(super) fn look(&self) -> Look {
        let mut look = Look::default();
        for name in self.names() {
            look.record(name);
        }
        for (name, _) in &self.counters {
            look.counter(name.clone());
        }
        look
    }

    /// The step as this process remembers it.
    fn remembered(&self, standing: &Standing) -> Done {
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
        let done = self.remembered(&Standing::default());
        Unanswered {
            era: self.known.run,
            after: self.known.last_seq,
            log: self.log,
            done,
            tries: 0,
        }
    }

    /// Reads the answer into the copies.
    pub(super) fn read(self, answer: Value, copies: &mut Copies, boot_ms: i64) -> Result<Answer> {
        let mut parts = Parts::of(answer)?;
        match parts.text()?.as_str() {
            "done" => self.done(parts, copies, boot_ms),
            "moved" => self.moved(parts, copies, boot_ms),
            "closed" => Ok(Answer::Closed),
            _ => Err(unreadable()),
        }
    }

    /// How the ledger stands after the step: told where it had not the step's edition, and else as the step made it.
    fn standing_after(&self, told: Value, last_seq: u64) -> Result<Standing> {
        if let Value::Int(now_ms) = told {
            return Ok(Standing {
                now_ms,
                last_seq,
                groups_version: self
                    .standing
                    .groups_version
                    .saturating_add_signed(self.more_groups),
                stops_version: self
                    .standing
                    .stops_version
                    .saturating_add(u64::from(!self.stops.is_empty())),
                edition: Arc::clone(self.edition.as_ref().unwrap_or(&self.standing.edition)),
                // Nothing else is written while it is closed but what is said again, and then it is told.
                open: true,
                ..self.standing.clone()
            });
        }
        standing(told)
    }

    fn done(self, mut parts: Parts, copies: &mut Copies, boot_ms: i64) -> Result<Answer> {
        let told = parts.next()?;
        let as_sent = matches!(told, Value::Int(_));
        let last_seq = integer(&parts.next()?)?.max(0).cast_unsigned();
        let standing = self.standing_after(told, last_seq)?;
        // Such a step is not compared with what this process has seen.
        copies.know(&standing, !self.again);
        if self.tells {
            copies.past.told(boot_ms);
        }
        if !self.log.is_empty() {
            copies.past.remember(boot_ms, self.remembered(&standing));
        }
        if as_sent {
            self.certain(standing, copies, boot_ms);
        } else {
            let edition = Arc::clone(&standing.edition);
            copies.stand(standing, boot_ms);
            for (name, seen) in &self.fields {
                copies.confirm(&edition, name, seen);
            }
            for (name, copy) in &self.written {
                copies.remember(name.clone(), copy.clone(), true);
            }
        }
        let mut counters = self.counters;
        if let Some(values) = parts.last() {
            for ((_, counted), value) in counters.iter_mut().zip(texts(values)?) {
                *counted = counter(&value)?;
            }
        }
        for (name, counter) in &counters {
            copies.learn_counter(name, *counter);
        }
        Ok(Answer::Done(counters))
    }

    /// Takes over what a step says that was written at the edition it was sent with. If another answer has been read since
    /// that is of another edition, nothing is certain of what was written.
    fn certain(&self, standing: Standing, copies: &mut Copies, boot_ms: i64) {
        let before = &self.standing.edition;
        let present = copies.is_at(before);
        for (name, seen) in &self.fields {
            copies.confirm(before, name, seen);
        }
        if present {
            copies.edited(before, &standing.edition);
            copies.stand(standing, boot_ms);
        }
        for (name, copy) in &self.written {
            copies.remember(name.clone(), copy.clone(), present);
        }
    }

    fn moved(self, mut parts: Parts, copies: &mut Copies, boot_ms: i64) -> Result<Answer> {
        let standing = standing(parts.next()?)?;
        let edition = Arc::clone(&standing.edition);
        copies.know(&standing, !self.again);
        copies.stand(standing, boot_ms);
        for (name, seen) in &self.fields {
            copies.confirm(&edition, name, seen);
        }
        let fields: Vec<String> = self.fields.into_iter().map(|(name, _)| name).collect();
        for names in [&fields, &self.texts] {
            let changed = texts(parts.next()?)?;
            for pair in changed.chunks_exact(2) {
                let [index, text] = pair else { continue };
                let index: usize = index.parse().map_err(|_| unreadable())?;
                let name = names.get(index.saturating_sub(1)).ok_or_else(unreadable)?;
                copies.learn(name, text)?;
            }
        }
        for ((name, _), value) in self.counters.iter().zip(texts(parts.next()?)?) {
            copies.learn_counter(name, counter(&value)?);
        }
        let due = texts(parts.next()?)?;
        let stops = texts(parts.next()?)?;
        if !stops.is_empty() {
            super::wire::learn_stops(copies, &stops)?;
        }
        Ok(Answer::Moved(due))
    }
}
