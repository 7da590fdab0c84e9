//! One step, drafted: the rules run on copies, and what they read, found and want to write is kept for the commit.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::copies::{Copies, Copy, Standing};
use super::records::{self, Buckets, Record};
use crate::error::{Error, ErrorKind, Result};
use crate::ledger::events::{Event, EventFilter};
use crate::ledger::store::{
    Checkpoint, Counter, Finding, KeyState, Meta, ObjectPage, ObjectRecord, Pointer, Rolling, Store,
};
use crate::ledger::types::{
    BudgetDef, BudgetId, CounterName, HoldFilter, KeyRecord, Reservation, Scope, State, Stop, StopScope,
    TokenHash, Window,
};

/// Stands for the number of open holds, which only changes by differences here.
const OPEN_BASE: u64 = 1 << 40;
/// The sum of a rolling window is a counter of its own, under the family's name with this before it.
pub(super) const SUM: &str = "~";
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
}

/// A counter of the step.
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
    /// `total<=`, `total>`, `used>` or `exact`.
    pub(super) finding: &'static str,
    pub(super) limit: i64,
}

/// The open holds of a key.
#[derive(Debug)]
pub(super) struct Holder {
    pub(super) key_id: String,
    pub(super) more: i64,
    /// `<`, `>=` or nothing.
    pub(super) finding: &'static str,
    pub(super) limit: u32,
}

/// What the rules asked for and no copy is at hand.
#[derive(Clone, Debug)]
pub(super) enum Missing {
    Record(String),
    Counter(String),
    Holder(String),
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
    lists: &'a Lists,
    guess: Guess,
    standing: Standing,
    pub(super) missing: Vec<Missing>,
    pub(super) entries: Vec<Entry>,
    pub(super) tallies: Vec<Tally>,
    pub(super) guards: Vec<Guard>,
    pub(super) holders: Vec<Holder>,
    pub(super) stops: Vec<(String, Option<Stop>)>,
    /// (list, member, score or nothing).
    pub(super) listings: Vec<(&'static str, String, Option<i64>)>,
    pub(super) log: Vec<(Event, Option<usize>)>,
    pub(super) from_ms: i64,
    pub(super) until_ms: i64,
    pub(super) more_groups: i64,
    pub(super) more_open: i64,
    pub(super) looks_at_deadlines: bool,
    /// For `verify` only.
    pub(super) snapshot: Option<Snapshot>,
    /// The bucket that was last written, so that its window lists it.
    last_counter: Option<String>,
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
            tallies: Vec::with_capacity(6),
            guards: Vec::new(),
            holders: Vec::new(),
            stops: Vec::new(),
            listings: Vec::new(),
            log: Vec::new(),
            from_ms: 0,
            until_ms: LARGEST,
            more_groups: 0,
            more_open: 0,
            looks_at_deadlines: false,
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

    /// The record of this name, as this step sees it.
    fn entry(&mut self, name: String) -> Result<&mut Entry> {
        let found = self.entries.iter().position(|entry| entry.name == name);
        let index = if let Some(index) = found {
            index
        } else {
            let copy = match self.copies.record(&name).cloned() {
                Some(copy) => copy,
                None if self.guessed(&name) => absent(),
                None => return Err(self.lacks(Missing::Record(name))),
            };
            self.entries.push(Entry {
                name,
                seen: copy.text,
                record: copy.record,
                changed: false,
            });
            self.entries.len().saturating_sub(1)
        };
        self.entries.get_mut(index).ok_or_else(lost)
    }

    fn lacks(&mut self, missing: Missing) -> Error {
        self.missing.push(missing);
        Error::ledger("a record of the ledger is not at hand")
    }

    fn put(&mut self, name: String, record: Record) -> Result<()> {
        let entry = self.entry(name)?;
        entry.record = record;
        entry.changed = true;
        Ok(())
    }

    fn tally(&mut self, name: &str) -> Result<usize> {
        if let Some(index) = self.tallies.iter().position(|tally| tally.name == name) {
            return Ok(index);
        }
        let before = match self.copies.counter(name) {
            Some(counter) => counter,
            None if self.guess != Guess::Nothing => Counter::default(),
            None => return Err(self.lacks(Missing::Counter(name.to_owned()))),
        };
        self.tallies.push(Tally {
            name: name.to_owned(),
            before,
            after: before,
        });
        Ok(self.tallies.len().saturating_sub(1))
    }

    fn tallied(&mut self, name: &str) -> Result<&mut Tally> {
        let index = self.tally(name)?;
        self.tallies.get_mut(index).ok_or_else(lost)
    }

    fn holder(&mut self, key_id: &str) -> Result<&mut Holder> {
        let found = self.holders.iter().position(|holder| holder.key_id == key_id);
        let index = found.unwrap_or(self.holders.len());
        if found.is_none() {
            self.holders.push(Holder {
                key_id: key_id.to_owned(),
                more: 0,
                finding: "",
                limit: 0,
            });
        }
        self.holders.get_mut(index).ok_or_else(lost)
    }

    fn open_of(&mut self, key_id: &str) -> Result<u32> {
        match self.copies.holder(key_id) {
            Some(open) => Ok(open),
            None if self.guess != Guess::Nothing => Ok(0),
            None => Err(self.lacks(Missing::Holder(key_id.to_owned()))),
        }
    }

    fn standing_stops(&mut self) -> Result<Arc<BTreeMap<StopScope, Stop>>> {
        match self.copies.stops.clone() {
            Some(stops) => Ok(stops),
            None => Err(self.lacks(Missing::Stops)),
        }
    }

    fn call(&mut self, call_id: &str) -> Result<Option<Reservation>> {
        match &self.entry(format!("r:{call_id}"))?.record {
            Record::Absent => Ok(None),
            Record::Call(call) => Ok(Some(Reservation::clone(call))),
            _ => Err(lost()),
        }
    }

    /// Where a reservation is listed, and with which time.
    fn listed(call: &Reservation) -> [(&'static str, Option<i64>); 3] {
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

    fn list(&mut self, list: &'static str, member: &str, score: Option<i64>) {
        match self
            .listings
            .iter_mut()
            .find(|(of, who, _)| *of == list && who == member)
        {
            Some(listing) => listing.2 = score,
            None => self.listings.push((list, member.to_owned(), score)),
        }
    }

    fn budget_names(&mut self, scope: &Scope) -> Result<Vec<String>> {
        match &self.entry(format!("B:{}", scope.name()))?.record {
            Record::Absent => Ok(Vec::new()),
            Record::Names(names) => Ok(names.clone()),
            _ => Err(lost()),
        }
    }

    fn defs(&mut self, ids: &[String]) -> Result<Vec<BudgetDef>> {
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
    let sum = if rolling { SUM } else { "" };
    let prefix = format!("{sum}{vendor}|{scope}|{}|{per}|", view.unit);
    names.position(|name| name.starts_with(&prefix))
}

fn absent() -> Copy {
    Copy {
        text: Arc::from(""),
        record: Record::Absent,
    }
}

fn lost() -> Error {
    Error::new(
        ErrorKind::Internal,
        "a record of a step is not what its name says",
    )
}

fn clamp(value: i128) -> i64 {
    let largest = i128::from(LARGEST);
    i64::try_from(value.clamp(largest.saturating_neg(), largest)).unwrap_or(LARGEST)
}

impl Store for Draft<'_> {
    fn found(&mut self, finding: Finding<'_>) {
        match finding {
            Finding::Reached { at_ms } if at_ms <= self.standing.now_ms => {
                self.from_ms = self.from_ms.max(at_ms);
            }
            Finding::Reached { at_ms } => self.until_ms = self.until_ms.min(at_ms),
            Finding::OpenHolds { key_id, max, full } => {
                if let Ok(holder) = self.holder(key_id) {
                    (holder.finding, holder.limit) = (if full { ">=" } else { "<" }, max);
                }
            }
            Finding::Room {
                counter,
                rolling,
                found,
                with_held,
                amount,
                cap,
                fits,
            } => {
                let name = if rolling {
                    format!("{SUM}{counter}")
                } else {
                    counter.to_owned()
                };
                let Ok(tally) = self.tally(&name) else { return };
                let before = self.tallies.get(tally).map_or(found, |tally| tally.before);
                // What the step makes of the counter before it adds: buckets that leave a rolling window.
                let difference = |now: i64, then: i64| i128::from(now).saturating_sub(i128::from(then));
                let mut gone = difference(found.used, before.used);
                let mut finding = "used>";
                if with_held {
                    gone = gone.saturating_add(difference(found.held, before.held));
                    finding = if fits { "total<=" } else { "total>" };
                }
                let limit = clamp(difference(cap, amount).saturating_sub(gone));
                self.guards.push(Guard {
                    tally,
                    finding,
                    limit,
                });
            }
        }
    }

    fn meta(&mut self) -> Result<Meta> {
        let stops = self.standing_stops()?;
        Ok(Meta {
            last_seen_ms: 0,
            last_seq: self.standing.last_seq,
            groups_version: self.standing.groups_version,
            stops: u64::try_from(stops.len()).unwrap_or(u64::MAX),
            open_holds: OPEN_BASE,
            // Calls past their deadline are dealt with by a step of their own, before this one is committed.
            next_deadline_ms: i64::MAX,
        })
    }

    fn put_meta(&mut self, meta: Meta) -> Result<()> {
        let difference = |now: u64, before: u64| now.cast_signed().saturating_sub(before.cast_signed());
        self.more_groups = difference(meta.groups_version, self.standing.groups_version);
        self.more_open = difference(meta.open_holds, OPEN_BASE);
        Ok(())
    }

    fn key_state(&mut self, key_id: &str) -> Result<Option<KeyState>> {
        let state = match &self.entry(format!("k:{key_id}"))?.record {
            Record::Absent => return Ok(None),
            Record::Key(state) => state.clone(),
            _ => return Err(lost()),
        };
        let open_holds = self.open_of(key_id)?;
        Ok(Some(KeyState { open_holds, ..state }))
    }

    fn put_key_state(&mut self, key_id: &str, state: &KeyState) -> Result<()> {
        let state = KeyState {
            open_holds: 0,
            ..state.clone()
        };
        self.put(format!("k:{key_id}"), Record::Key(state))
    }

    fn count_open_hold(&mut self, key_id: &str, more: bool) -> Result<()> {
        let holder = self.holder(key_id)?;
        holder.more = holder.more.saturating_add(if more { 1 } else { -1 });
        Ok(())
    }

    fn key_record(&mut self, key_id: &str) -> Result<Option<KeyRecord>> {
        match &self.entry(format!("i:{key_id}"))?.record {
            Record::Absent => Ok(None),
            Record::Issued(key) => Ok(Some(KeyRecord::clone(key))),
            _ => Err(lost()),
        }
    }

    fn key_id_by_token(&mut self, token_hash: &TokenHash) -> Result<Option<String>> {
        match &self.entry(format!("t:{}", token_hash.0))?.record {
            Record::Absent => Ok(None),
            Record::Token(id) => Ok(Some(id.clone())),
            _ => Err(lost()),
        }
    }

    fn put_key_record(&mut self, record: &KeyRecord) -> Result<()> {
        self.put(
            format!("t:{}", record.token_hash.0),
            Record::Token(record.id.clone()),
        )?;
        self.list("issued", &record.id, Some(record.issued_at_ms));
        self.put(
            format!("i:{}", record.id),
            Record::Issued(Box::new(record.clone())),
        )
    }

    fn key_records(&mut self) -> Result<Vec<KeyRecord>> {
        let Some(ids) = self.lists.keys.clone() else {
            return Err(self.lacks(Missing::Keys));
        };
        let mut found = Vec::with_capacity(ids.len());
        for id in ids {
            found.extend(self.key_record(&id)?);
        }
        Ok(found)
    }

    fn budget(&mut self, id: &BudgetId) -> Result<Option<Arc<BudgetDef>>> {
        match &self.entry(format!("b:{}", id.0))?.record {
            Record::Absent => Ok(None),
            Record::Budget(def) => Ok(Some(Arc::clone(def))),
            _ => Err(lost()),
        }
    }

    fn put_budget(&mut self, def: &BudgetDef) -> Result<()> {
        let id = def.id().0;
        let mut names = self.budget_names(&def.scope)?;
        if !names.contains(&id) {
            names.push(id.clone());
            self.put(format!("B:{}", def.scope.name()), Record::Names(names))?;
        }
        self.put(format!("b:{id}"), Record::Budget(Arc::new(def.clone())))
    }

    fn budgets(&mut self, scope: Option<&Scope>) -> Result<Vec<BudgetDef>> {
        let ids = match scope {
            Some(scope) => self.budget_names(scope)?,
            None => match self.lists.budgets.clone() {
                Some(ids) => ids,
                None => return Err(self.lacks(Missing::Budgets)),
            },
        };
        self.defs(&ids)
    }

    fn counter(&mut self, name: &str) -> Result<Counter> {
        Ok(self.tallied(name)?.after)
    }

    fn exact_counter(&mut self, name: &str) -> Result<Counter> {
        let tally = self.tally(name)?;
        if !self
            .guards
            .iter()
            .any(|guard| guard.tally == tally && guard.finding == "exact")
        {
            self.guards.push(Guard {
                tally,
                finding: "exact",
                limit: 0,
            });
        }
        self.counter(name)
    }

    fn put_counter(&mut self, name: &CounterName, counter: Counter) -> Result<()> {
        self.tallied(name)?.after = counter;
        self.last_counter = Some(name.as_str().to_owned());
        Ok(())
    }

    fn counters(&mut self) -> Result<Vec<(CounterName, Counter)>> {
        self.snapshot().map(|snapshot| snapshot.counters.clone())
    }

    fn window(&mut self, family: &str) -> Result<Option<Window>> {
        match &self.entry(format!("w:{family}"))?.record {
            Record::Absent => Ok(None),
            Record::Window(window) => Ok(Some(*window)),
            _ => Err(lost()),
        }
    }

    fn put_window(&mut self, family: &str, window: Window) -> Result<()> {
        self.put(format!("w:{family}"), Record::Window(window))
    }

    fn rolling(&mut self, family: &str) -> Result<Option<Rolling>> {
        let oldest_ms = match &self.entry(format!("g:{family}"))?.record {
            Record::Absent => return Ok(None),
            Record::Buckets(buckets) => buckets.oldest_ms,
            _ => return Err(lost()),
        };
        let sum = self.tallied(&format!("{SUM}{family}"))?.after;
        Ok(Some(Rolling { sum, oldest_ms }))
    }

    fn put_rolling(&mut self, family: &str, rolling: Rolling) -> Result<()> {
        if matches!(self.entry(format!("g:{family}"))?.record, Record::Absent) {
            // A sum begins at nothing. A copy of it may be of a server that is gone with its last writes: what is
            // taken off for it would be missing for good.
            self.exact_counter(&format!("{SUM}{family}"))?;
        }
        self.tallied(&format!("{SUM}{family}"))?.after = rolling.sum;
        let written = self
            .last_counter
            .as_deref()
            .and_then(|name| name.strip_prefix(family)?.strip_prefix('|')?.parse().ok());
        let entry = self.entry(format!("g:{family}"))?;
        let before = match &entry.record {
            Record::Buckets(buckets) => buckets.clone(),
            _ => Buckets::default(),
        };
        let mut buckets = before.clone();
        buckets.oldest_ms = rolling.oldest_ms;
        if let Some(start_ms) = written
            && !buckets.starts_ms.contains(&start_ms)
        {
            buckets.starts_ms.push(start_ms);
            buckets.starts_ms.sort_unstable();
        }
        buckets
            .starts_ms
            .retain(|start_ms| *start_ms >= rolling.oldest_ms);
        if buckets != before || matches!(entry.record, Record::Absent) {
            entry.record = Record::Buckets(buckets);
            entry.changed = true;
        }
        Ok(())
    }

    fn next_bucket(&mut self, family: &str, after_ms: i64) -> Result<Option<i64>> {
        match &self.entry(format!("g:{family}"))?.record {
            Record::Absent => Ok(None),
            Record::Buckets(buckets) => Ok(buckets.starts_ms.iter().copied().find(|start| *start > after_ms)),
            _ => Err(lost()),
        }
    }

    fn reservation(&mut self, call_id: &str) -> Result<Option<Reservation>> {
        let Some(mut call) = self.call(call_id)? else {
            return Ok(None);
        };
        // An empty reply says that there is one, under a name of its own; only a call that is done is replayed.
        let done = matches!(call.state, State::Settled | State::Provisional | State::Pending);
        if done && call.reply.as_ref().is_some_and(Vec::is_empty) {
            let entry = self.entry(format!("a:{call_id}"))?;
            call.reply = match &entry.record {
                Record::Reply(bytes) => Some(bytes.clone()),
                _ => None,
            };
        }
        Ok(Some(call))
    }

    fn put_reservation(&mut self, mut reservation: Reservation) -> Result<()> {
        let call_id = reservation.facts.call_id.clone();
        let before = self.call(&call_id)?.map(|call| Self::listed(&call));
        for (index, (list, after)) in Self::listed(&reservation).into_iter().enumerate() {
            let before = before.and_then(|before| before.get(index)?.1);
            if before != after {
                self.list(list, &call_id, after);
            }
        }
        if let Some(reply) = reservation.reply.take() {
            if !reply.is_empty() {
                let name = format!("a:{call_id}");
                let kept = self.entries.iter().find(|entry| entry.name == name);
                if !matches!(kept.map(|entry| &entry.record), Some(Record::Reply(known)) if *known == reply) {
                    self.put_reply(name, reply);
                }
            }
            reservation.reply = Some(Vec::new());
        }
        self.put(format!("r:{call_id}"), Record::Call(Box::new(reservation)))
    }

    fn overdue(&mut self, now_ms: i64, limit: u32) -> Result<Vec<Reservation>> {
        let mut found = Vec::new();
        for call_id in &self.lists.due {
            if found.len() >= usize::try_from(limit).unwrap_or(usize::MAX) {
                break;
            }
            let call = self.call(call_id)?;
            found.extend(call.filter(|call| call.state == State::Held && call.not_after_ms <= now_ms));
        }
        found.sort_by_key(|call| call.not_after_ms);
        Ok(found)
    }

    fn open_reservations(&mut self, filter: &HoldFilter) -> Result<Vec<Reservation>> {
        let ids = match &self.lists.open {
            Some((asked, ids)) if asked == filter => ids.clone(),
            _ => return Err(self.lacks(Missing::Open(filter.clone()))),
        };
        let mut found = Vec::with_capacity(ids.len());
        for id in ids {
            found.extend(self.call(&id)?);
        }
        found.retain(|call| super::log::wanted(call, filter));
        Ok(found)
    }

    fn pointer(&mut self, id: &str) -> Result<Option<Pointer>> {
        match &self.entry(format!("p:{id}"))?.record {
            Record::Absent => Ok(None),
            Record::Pointer(pointer) => Ok(Some(pointer.clone())),
            _ => Err(lost()),
        }
    }

    fn put_pointer(&mut self, id: &str, pointer: Pointer) -> Result<()> {
        self.put(format!("p:{id}"), Record::Pointer(pointer))
    }

    fn object(&mut self, object: &str) -> Result<Option<ObjectRecord>> {
        match &self.entry(format!("o:{object}"))?.record {
            Record::Absent => Ok(None),
            Record::Object(record) => Ok(Some(record.clone())),
            _ => Err(lost()),
        }
    }

    fn put_object(&mut self, object: &str, record: ObjectRecord) -> Result<()> {
        self.put(format!("o:{object}"), Record::Object(record))
    }

    fn object_page(&mut self, object: &str, page: u32) -> Result<Option<ObjectPage>> {
        match &self.entry(format!("f:{page}:{object}"))?.record {
            Record::Absent => Ok(None),
            Record::ObjectPage(page) => Ok(Some(page.clone())),
            _ => Err(lost()),
        }
    }

    fn put_object_page(&mut self, object: &str, number: u32, page: ObjectPage) -> Result<()> {
        self.put(format!("f:{number}:{object}"), Record::ObjectPage(page))
    }

    fn stop(&mut self, scope: &StopScope) -> Result<Option<Stop>> {
        Ok(self.standing_stops()?.get(scope).cloned())
    }

    fn put_stop(&mut self, stop: &Stop) -> Result<()> {
        self.stops.push((stop.scope.name(), Some(stop.clone())));
        Ok(())
    }

    fn remove_stop(&mut self, scope: &StopScope) -> Result<()> {
        self.stops.push((scope.name(), None));
        Ok(())
    }

    fn stops(&mut self) -> Result<Vec<Stop>> {
        Ok(self.standing_stops()?.values().cloned().collect())
    }

    fn append(&mut self, event: Event) -> Result<()> {
        let shown = event
            .body
            .tightest
            .as_ref()
            .and_then(|view| self.tally_of_view(view));
        self.log.push((event, shown));
        Ok(())
    }

    fn events(&mut self, filter: &EventFilter) -> Result<Vec<Event>> {
        let limit = usize::try_from(filter.limit).unwrap_or(usize::MAX);
        let events = &self.snapshot()?.events;
        let later = events.iter().skip_while(|event| event.seq <= filter.after_seq);
        Ok(later.take(limit).cloned().collect())
    }

    fn last_checkpoint(&mut self) -> Result<Option<Checkpoint>> {
        Ok(self.snapshot()?.checkpoints.last().cloned())
    }

    fn checkpoints(&mut self) -> Result<Vec<Checkpoint>> {
        Ok(self.snapshot()?.checkpoints.clone())
    }

    fn put_checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        self.snapshot()?.made = Some(checkpoint.clone());
        Ok(())
    }
}

impl Draft<'_> {
    /// What only `verify` asks for.
    fn snapshot(&mut self) -> Result<&mut Snapshot> {
        self.snapshot.as_mut().ok_or_else(lost)
    }

    /// Writes down for the other processes that a person accepted the server's clock.
    pub(super) fn clock_accepted(&mut self, now_ms: i64) -> Result<()> {
        self.put("clock".to_owned(), Record::Numbers(vec![now_ms.cast_unsigned()]))
    }

    /// Adds a checkpoint after the one of this number, if that is still the last.
    pub(super) fn add_checkpoint(&mut self, after_seq: u64, checkpoint: &Checkpoint) -> Result<()> {
        let mut numbers = match &self.entry("checkpoints".to_owned())?.record {
            Record::Absent => Vec::new(),
            Record::Numbers(numbers) => numbers.clone(),
            _ => return Err(lost()),
        };
        if numbers.last().copied().unwrap_or(0) != after_seq {
            return Ok(());
        }
        numbers.push(checkpoint.seq);
        self.put("checkpoints".to_owned(), Record::Numbers(numbers))?;
        let name = format!("c:{}", checkpoint.seq);
        self.put(name, Record::Checkpoint(Box::new(checkpoint.clone())))
    }

    /// A reply is written over whatever stands there: its call's record, which is compared, names it.
    fn put_reply(&mut self, name: String, reply: Vec<u8>) {
        let record = Record::Reply(reply);
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.name == name) {
            (entry.record, entry.changed) = (record, true);
            return;
        }
        let known = self.copies.record(&name);
        let seen = known.map_or_else(|| Arc::from(""), |copy| Arc::clone(&copy.text));
        self.entries.push(Entry {
            name,
            seen,
            record,
            changed: true,
        });
    }

    /// Leaves a mark if the step writes anything, and rests on it not having been left yet: the step runs once.
    pub(super) fn mark(&mut self, name: &str) {
        self.entries.push(Entry {
            name: name.to_owned(),
            seen: Arc::from(""),
            record: Record::Mark,
            changed: !self.log.is_empty(),
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
        for holder in &mut self.holders {
            holder.more = 0;
        }
    }

    /// The texts that the step writes: number of the entry, and its text.
    pub(super) fn texts(&self) -> Result<Vec<(usize, String)>> {
        let mut texts = Vec::new();
        for (index, entry) in self.entries.iter().enumerate() {
            if !entry.changed {
                continue;
            }
            let text = records::print(&entry.record)?;
            if *text != *entry.seen {
                texts.push((index, text));
            }
        }
        Ok(texts)
    }
}
