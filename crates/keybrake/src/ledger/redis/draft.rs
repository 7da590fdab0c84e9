//! One step, drafted: the rules run on copies, and what they read, found and want to write is kept for the commit.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::copies::{Copies, Copy, Standing};
use super::records::Record;
use crate::error::{Error, ErrorKind, Result};
use crate::ledger::events::Event;
use crate::ledger::store::{Checkpoint, Counter, Store as _};
use crate::ledger::types::{
    BudgetDef, BudgetId, CounterName, HoldFilter, Reservation, Scope, State, Stop, StopScope,
};

/// Entries of a step that are looked through one by one.
const FEW: usize = 32;
/// Stands for the number of open holds, which only changes by differences here.
pub(super) const OPEN_BASE: u64 = 1 << 40;
/// The sum of a rolling window is a counter of its own, under the family's name with this before it.
pub(super) const SUM: char = '~';
/// The number of a key's open holds is a counter too, under the key's id with this before it.
pub(super) const HOLDS: char = '#';
/// Amounts in Redis are below 2^53 in size, which its scripts count exactly: 9 billion dollars.
pub(super) const LARGEST: i64 = 9_007_199_254_740_991;

/// A record of the step.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    /// The text that the step rests on; empty where there was none.
    pub(super) seen: Arc<str>,
    pub(super) record: Record,
    pub(super) changed: bool,
    /// Whether the edition says that the ledger has it so.
    pub(super) certain: bool,
}

/// A counter of the step; the number of a key's open holds is one too.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) name: String,
    pub(super) before: Counter,
    pub(super) after: Counter,
}

/// A finding about a counter that must still be true at the commit.
#[derive(Debug)]
pub(super) struct Guard {
    /// The tally's number, from 0.
    pub(super) tally: usize,
    /// Of what is used and held: `<=`, `>`; of what is used: `u>`, `u<`, `u>=`; `=` for the counter as it is.
    pub(super) finding: &'static str,
    pub(super) limit: i64,
}

/// What the rules asked for and no copy is at hand.
#[derive(Clone, Debug)]
pub(super) enum Missing {
    Record(String),
    Counter(String),
    Stops,
    Open(HoldFilter),
    Keys,
    Budgets,
}

/// Lists that were fetched for this step. They inform; a decision never rests on them alone.
#[derive(Debug, Default)]
pub(super) struct Lists {
    pub(super) open: Option<(HoldFilter, Vec<String>)>,
    pub(super) keys: Option<Vec<String>>,
    pub(super) budgets: Option<Vec<String>>,
    /// Calls whose deadline has passed.
    pub(super) due: Vec<String>,
}

/// The ledger at one event number, for `verify`.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    pub(super) last_seq: u64,
    pub(super) counters: Vec<(CounterName, Counter)>,
    /// What changed since the last checkpoint.
    pub(super) events: Vec<Event>,
    pub(super) checkpoints: Vec<Checkpoint>,
    /// The checkpoint that is to be added.
    pub(super) made: Option<Checkpoint>,
}

/// What a step may take for granted where it has no copy; the commit finds out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Guess {
    /// Nothing: it is fetched.
    Nothing,
    /// A call, its identity, its object and its windows are new.
    NewCall,
    /// A key, its token and its budgets are new.
    NewKey,
}

/// A step being drafted.
pub(super) struct Draft<'a> {
    copies: &'a mut Copies,
    pub(super) lists: &'a Lists,
    guess: Guess,
    pub(super) standing: Standing,
    pub(super) missing: Vec<Missing>,
    pub(super) entries: Vec<Entry>,
    /// Where each entry is, once there are many.
    places: HashMap<String, usize>,
    pub(super) tallies: Vec<Tally>,
    pub(super) guards: Vec<Guard>,
    pub(super) stops: Vec<(String, Option<Stop>)>,
    /// (list, member, score or nothing).
    pub(super) listings: Vec<(&'static str, String, Option<i64>)>,
    pub(super) log: Vec<(Event, Option<usize>)>,
    pub(super) from_ms: i64,
    pub(super) until_ms: i64,
    pub(super) more_groups: i64,
    pub(super) more_open: i64,
    pub(super) looks_at_deadlines: bool,
    /// By how much the time that the step rests on may be off. A hold is given it on top.
    pub(super) slack_ms: i64,
    /// For `verify` only.
    pub(super) snapshot: Option<Snapshot>,
    /// The bucket that was last written, so that its window lists it.
    pub(super) last_counter: Option<String>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(copies: &'a mut Copies, lists: &'a Lists, guess: Guess, standing: Standing) -> Self {
        Self {
            copies,
            lists,
            guess,
            standing,
            missing: Vec::new(),
            entries: Vec::with_capacity(12),
            places: HashMap::new(),
            tallies: Vec::with_capacity(6),
            guards: Vec::new(),
            stops: Vec::new(),
            listings: Vec::new(),
            log: Vec::new(),
            from_ms: 0,
            until_ms: LARGEST,
            more_groups: 0,
            more_open: 0,
            looks_at_deadlines: false,
            slack_ms: 0,
            snapshot: None,
            last_counter: None,
        }
    }

    fn guessed(&self, name: &str) -> bool {
        let kind = name.as_bytes().first();
        match self.guess {
            Guess::Nothing => false,
            Guess::NewCall => matches!(kind, Some(b'r' | b'p' | b'o' | b'f' | b'w' | b'g')),
            Guess::NewKey => matches!(kind, Some(b'k' | b't' | b'i' | b'b' | b'B')),
        }
    }

    /// The record of this name, as this step sees it. One that is not at hand is taken to be absent for the rest of
    /// this draft, which is not committed: so the rules go on, and all that they ask for is fetched at once.
    pub(super) fn entry(&mut self, name: String) -> Result<&mut Entry> {
        let index = if let Some(index) = self.place(&name) {
            index
        } else {
            let copy = self.copies.record(&name).cloned();
            if copy.is_none() && !self.guessed(&name) {
                self.missing.push(Missing::Record(name.clone()));
            }
            let copy = copy.unwrap_or_else(absent);
            self.add(Entry {
                certain: self.copies.is_certain(&name, &copy),
                name,
                seen: copy.text,
                record: copy.record,
                changed: false,
            })
        };
        self.entries.get_mut(index).ok_or_else(lost)
    }

    fn place(&self, name: &str) -> Option<usize> {
        if self.places.is_empty() {
            return self.entries.iter().position(|entry| entry.name == name);
        }
        self.places.get(name).copied()
    }

    fn add(&mut self, entry: Entry) -> usize {
        let index = self.entries.len();
        if index == FEW {
            let named = self.entries.iter().enumerate();
            self.places = named.map(|(index, entry)| (entry.name.clone(), index)).collect();
        }
        if index >= FEW {
            self.places.insert(entry.name.clone(), index);
        }
        self.entries.push(entry);
        index
    }

    pub(super) fn lacks(&mut self, missing: Missing) -> Error {
        self.missing.push(missing);
        Error::ledger("a record of the ledger is not at hand")
    }

    pub(super) fn put(&mut self, name: String, record: Record) -> Result<()> {
        let entry = self.entry(name)?;
        entry.record = record;
        entry.changed = true;
        Ok(())
    }

    pub(super) fn tally(&mut self, name: &str) -> usize {
        if let Some(index) = self.tallies.iter().position(|tally| tally.name == name) {
            return index;
        }
        let before = match self.copies.counter(name) {
            Some(counter) => counter,
            None if self.guess != Guess::Nothing => Counter::default(),
            None => {
                self.missing.push(Missing::Counter(name.to_owned()));
                Counter::default()
            }
        };
        self.tallies.push(Tally {
            name: name.to_owned(),
            before,
            after: before,
        });
        self.tallies.len().saturating_sub(1)
    }

    pub(super) fn tallied(&mut self, name: &str) -> Result<&mut Tally> {
        let index = self.tally(name);
        self.tallies.get_mut(index).ok_or_else(lost)
    }

    /// The number of a key's open holds. What the step makes of it does not depend on what it was.
    pub(super) fn holder(&mut self, key_id: &str) -> Result<(usize, &mut Tally)> {
        let name = format!("{HOLDS}{key_id}");
        let found = self.tallies.iter().position(|tally| tally.name == name);
        let index = found.unwrap_or(self.tallies.len());
        if found.is_none() {
            let before = self.copies.counter(&name).unwrap_or_default();
            self.tallies.push(Tally {
                name,
                before,
                after: before,
            });
        }
        Ok((index, self.tallies.get_mut(index).ok_or_else(lost)?))
    }

    pub(super) fn open_of(&mut self, key_id: &str) -> u32 {
        let name = format!("{HOLDS}{key_id}");
        let open = self.copies.counter(&name);
        if open.is_none() && self.guess == Guess::Nothing {
            self.missing.push(Missing::Counter(name));
        }
        open.map_or(0, |open| u32::try_from(open.used.max(0)).unwrap_or(u32::MAX))
    }

    pub(super) fn standing_stops(&mut self) -> Result<Arc<BTreeMap<StopScope, Stop>>> {
        match self.copies.stops.clone() {
            Some(stops) => Ok(stops),
            None => Err(self.lacks(Missing::Stops)),
        }
    }

    pub(super) fn call(&mut self, call_id: &str) -> Result<Option<Reservation>> {
        match &self.entry(format!("r:{call_id}"))?.record {
            Record::Absent => Ok(None),
            Record::Call(call) => Ok(Some(Reservation::clone(call))),
            _ => Err(lost()),
        }
    }

    /// A call for a list that informs: as it was last seen, and without the step resting on it.
    pub(super) fn shown(&mut self, call_id: &str) -> Result<Option<Reservation>> {
        let name = format!("r:{call_id}");
        if self.place(&name).is_some() {
            return self.call(call_id);
        }
        match self.copies.record(&name).map(|copy| &copy.record) {
            Some(Record::Call(call)) => Ok(Some(Reservation::clone(call))),
            Some(_) => Ok(None),
            None => {
                self.missing.push(Missing::Record(name));
                Ok(None)
            }
        }
    }

    /// Where a reservation is listed, and with which time.
    pub(super) fn listed(call: &Reservation) -> [(&'static str, Option<i64>); 3] {
        [
            (
                "deadlines",
                (call.state == State::Held).then_some(call.not_after_ms),
            ),
            ("open", call.holds_something().then_some(call.reserved_at_ms)),
            (
                "provisional",
                (call.state == State::Provisional).then_some(call.reserved_at_ms),
            ),
        ]
    }

    pub(super) fn list(&mut self, list: &'static str, member: &str, score: Option<i64>) {
        match self
            .listings
            .iter_mut()
            .find(|(of, who, _)| *of == list && who == member)
        {
            Some(listing) => listing.2 = score,
            None => self.listings.push((list, member.to_owned(), score)),
        }
    }

    pub(super) fn budget_names(&mut self, scope: &Scope) -> Result<Vec<String>> {
        match &self.entry(format!("B:{}", scope.name()))?.record {
            Record::Absent => Ok(Vec::new()),
            Record::Names(names) => Ok(names.clone()),
            _ => Err(lost()),
        }
    }

    pub(super) fn defs(&mut self, ids: &[String]) -> Result<Vec<BudgetDef>> {
        let mut found = Vec::with_capacity(ids.len());
        for id in ids {
            if let Some(def) = self.budget(&BudgetId(id.clone()))? {
                found.push(BudgetDef::clone(&def));
            }
        }
        found.sort_by_cached_key(BudgetDef::id);
        Ok(found)
    }

    /// The tally of the budget that a view shows, by the names of both.
    pub(super) fn tally_of_view(&self, view: &crate::policy::BudgetView) -> Option<usize> {
        tally_of_view(self.tallies.iter().map(|tally| tally.name.as_str()), view)
    }
}

/// The counter that a budget's view shows: `stripe lineage:a usd per day` is `stripe|lineage:a|usd|day|…`, and the sum
/// if the window is a rolling one.
pub(super) fn tally_of_view<'n>(
    mut names: impl Iterator<Item = &'n str>,
    view: &crate::policy::BudgetView,
) -> Option<usize> {
    let mut words = view.name.split(' ');
    let (vendor, scope) = (words.next()?, words.next()?);
    let vendor = if vendor == "all" { "*" } else { vendor };
    let rolling = view.per == "rolling_24h";
    let per = if rolling { "day" } else { view.per.as_str() };
    let prefix = format!("{vendor}|{scope}|{}|{per}|", view.unit);
    names.position(|name| {
        let family = if rolling {
            name.strip_prefix(SUM)
        } else {
            Some(name)
        };
        family.is_some_and(|family| family.starts_with(&prefix))
    })
}

fn absent() -> Copy {
    Copy::new(Arc::from(""), Record::Absent)
}

pub(super) fn lost() -> Error {
    Error::new(
        ErrorKind::Internal,
        "a record of a step is not what its name says",
    )
}

pub(super) fn clamp(value: i128) -> i64 {
    let largest = i128::from(LARGEST);
    i64::try_from(value.clamp(largest.saturating_neg(), largest)).unwrap_or(LARGEST)
}

impl Draft<'_> {
    /// What only `verify` asks for.
    pub(super) fn snapshot(&mut self) -> Result<&mut Snapshot> {
        self.snapshot.as_mut().ok_or_else(lost)
    }

    /// Writes down for the other processes that a person accepted the server's clock.
    pub(super) fn clock_accepted(&mut self, now_ms: i64) -> Result<()> {
        // The event's number tells two of them apart while the ledger's time stands still.
        let times = vec![self.standing.last_seq, now_ms.cast_unsigned()];
        self.put("clock".to_owned(), Record::Numbers(times))
    }

    /// A reply is written over whatever stands there. One that is there and not known here makes the step be drafted once
    /// more; its call's record, which is compared too, names it.
    pub(super) fn put_reply(&mut self, name: String, reply: Vec<u8>) {
        let record = Record::Reply(reply);
        let place = self.place(&name);
        if let Some(entry) = place.and_then(|place| self.entries.get_mut(place)) {
            (entry.record, entry.changed) = (record, true);
            return;
        }
        let known = self.copies.record(&name);
        let seen = known.map_or_else(|| Arc::from(""), |copy| Arc::clone(&copy.text));
        self.add(Entry {
            name,
            seen,
            record,
            changed: true,
            certain: false,
        });
    }

    /// Leaves a mark, with the draft's number, if the step writes anything, and rests on none having been left yet: one
    /// draft of the step runs, once.
    pub(super) fn mark(&mut self, name: &str, draft: u32) {
        self.add(Entry {
            name: name.to_owned(),
            seen: Arc::from(""),
            record: Record::Mark(draft),
            changed: !self.log.is_empty(),
            certain: false,
        });
    }

    /// Leaves only what the step rests on: it failed, and the commit confirms why.
    pub(super) fn write_nothing(&mut self) {
        self.log.clear();
        self.stops.clear();
        self.listings.clear();
        self.more_groups = 0;
        self.more_open = 0;
        self.looks_at_deadlines = false;
        for entry in &mut self.entries {
            entry.changed = false;
        }
        for tally in &mut self.tallies {
            tally.after = tally.before;
        }
    }
}
