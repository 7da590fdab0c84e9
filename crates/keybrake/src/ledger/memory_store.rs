//! The store behind [`MemoryLedger`](super::MemoryLedger): maps, and a log of what to put back when a step
//! fails.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{Hash, Hasher};
use std::ops::Bound;
use std::sync::Arc;

use super::backlog::Archives;
use super::events::{Event, EventFilter};
use super::store::{Checkpoint, Counter, KeyState, Meta, ObjectPage, ObjectRecord, Pointer, Rolling, Store};
use super::types::{
    BudgetDef, BudgetId, CallFacts, CounterName, HoldFilter, KeyRecord, Reservation, Scope, State, Stop,
    StopScope, TokenHash, Window,
};
use crate::error::Result;

#[derive(Debug, Default)]
pub(super) struct MemoryStore {
    meta: Meta,
    keys: HashMap<String, KeyState>,
    records: HashMap<String, KeyRecord>,
    issued: Vec<String>,
    tokens: HashMap<TokenHash, String>,
    budgets: HashMap<BudgetId, Arc<BudgetDef>>,
    counters: HashMap<CounterName, Counter>,
    /// The counters' names in order, to find a family's next bucket.
    names: BTreeSet<CounterName>,
    windows: HashMap<String, Window>,
    rolling: HashMap<String, Rolling>,
    /// Boxed, so that a step moves a pointer in and the old one out.
    reservations: HashMap<CallKey, Box<Reservation>>,
    /// Held reservations by deadline.
    deadlines: BTreeSet<(i64, CallKey)>,
    /// Reservations that hold something, by age.
    open: BTreeSet<(i64, CallKey)>,
    /// Reservations whose cost may still change, by age.
    provisional: BTreeSet<(i64, CallKey)>,
    pointers: HashMap<String, Pointer>,
    objects: HashMap<String, ObjectRecord>,
    pages: HashMap<(String, u32), ObjectPage>,
    stops: BTreeMap<StopScope, Stop>,
    events: Vec<Arc<Event>>,
    /// Events that were removed from the front of the log.
    trimmed: u64,
    pub(super) archives: Archives,
    checkpoints: Vec<Checkpoint>,
    undo: Vec<Undo>,
    /// Reservations, objects and pages that were looked up.
    #[cfg(test)]
    pub(super) lookups: usize,
}

/// How to take one write back.
#[derive(Debug)]
enum Undo {
    Meta(Meta),
    Key(String, Option<KeyState>),
    Record(String, Option<Box<KeyRecord>>),
    Budget(BudgetId, Option<Arc<BudgetDef>>),
    Counter(CounterName, Option<Counter>),
    Window(String, Option<Window>),
    Rolling(String, Option<Rolling>),
    Reservation(CallKey, Option<Box<Reservation>>),
    Pointer(String, Option<Pointer>),
    Object(String, Option<ObjectRecord>),
    Page((String, u32), Option<ObjectPage>),
    Stop(StopScope, Option<Stop>),
    Event,
    Checkpoint,
}

/// A call's id, shared with its facts.
#[derive(Clone, Debug)]
struct CallKey(Arc<CallFacts>);

impl PartialEq for CallKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.call_id == other.0.call_id
    }
}

impl Eq for CallKey {}

impl Hash for CallKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.call_id.as_str().hash(state);
    }
}

impl PartialOrd for CallKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for CallKey {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.call_id.cmp(&other.0.call_id)
    }
}

impl Borrow<str> for CallKey {
    fn borrow(&self) -> &str {
        &self.0.call_id
    }
}

impl MemoryStore {
    #[cfg_attr(not(test), expect(clippy::unused_self, reason = "counted in tests only"))]
    const fn count_lookup(&mut self) {
        #[cfg(test)]
        {
            self.lookups = self.lookups.saturating_add(1);
        }
    }

    pub(super) fn commit(&mut self) {
        self.undo.clear();
    }

    pub(super) fn roll_back(&mut self) {
        while let Some(undo) = self.undo.pop() {
            match undo {
                Undo::Meta(meta) => self.meta = meta,
                Undo::Key(id, old) => restore(&mut self.keys, id, old),
                Undo::Record(id, old) => self.restore_record(id, old),
                Undo::Budget(id, old) => restore(&mut self.budgets, id, old),
                Undo::Counter(name, old) => {
                    if old.is_none() {
                        self.names.remove(&name);
                    }
                    restore(&mut self.counters, name, old);
                }
                Undo::Window(family, old) => restore(&mut self.windows, family, old),
                Undo::Rolling(family, old) => restore(&mut self.rolling, family, old),
                Undo::Reservation(key, old) => {
                    if let Some(present) = self.reservations.remove(&key) {
                        self.unlist(Listing::of(&present), &key);
                    }
                    if let Some(old) = old {
                        self.list(Listing::of(&old), &key);
                        self.reservations.insert(key, old);
                    }
                }
                Undo::Pointer(id, old) => restore(&mut self.pointers, id, old),
                Undo::Object(id, old) => restore(&mut self.objects, id, old),
                Undo::Page(id, old) => restore(&mut self.pages, id, old),
                Undo::Stop(scope, Some(old)) => drop(self.stops.insert(scope, old)),
                Undo::Stop(scope, None) => drop(self.stops.remove(&scope)),
                Undo::Event => drop(self.events.pop()),
                Undo::Checkpoint => drop(self.checkpoints.pop()),
            }
        }
    }

    fn restore_record(&mut self, id: String, old: Option<Box<KeyRecord>>) {
        if let Some(old) = old {
            self.records.insert(id, *old);
        } else {
            if let Some(gone) = self.records.remove(&id) {
                self.tokens.remove(&gone.token_hash);
            }
            self.issued.pop();
        }
    }

    fn list(&mut self, listing: Listing, key: &CallKey) {
        if let Some(not_after_ms) = listing.deadline {
            self.deadlines.insert((not_after_ms, key.clone()));
        }
        if let Some(reserved_at_ms) = listing.open_since {
            self.open.insert((reserved_at_ms, key.clone()));
        }
        if let Some(reserved_at_ms) = listing.provisional_since {
            self.provisional.insert((reserved_at_ms, key.clone()));
        }
    }

    fn unlist(&mut self, listing: Listing, key: &CallKey) {
        if let Some(not_after_ms) = listing.deadline {
            self.deadlines.remove(&(not_after_ms, key.clone()));
        }
        if let Some(reserved_at_ms) = listing.open_since {
            self.open.remove(&(reserved_at_ms, key.clone()));
        }
        if let Some(reserved_at_ms) = listing.provisional_since {
            self.provisional.remove(&(reserved_at_ms, key.clone()));
        }
    }
}

/// Where a reservation is listed, at which Unix milliseconds.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Listing {
    deadline: Option<i64>,
    open_since: Option<i64>,
    provisional_since: Option<i64>,
}

impl Listing {
    fn of(call: &Reservation) -> Self {
        Self {
            deadline: (call.state == State::Held).then_some(call.not_after_ms),
            open_since: call.holds_something().then_some(call.reserved_at_ms),
            provisional_since: (call.state == State::Provisional).then_some(call.reserved_at_ms),
        }
    }
}

fn restore<K: Eq + Hash, V>(map: &mut HashMap<K, V>, key: K, old: Option<V>) {
    match old {
        Some(old) => drop(map.insert(key, old)),
        None => drop(map.remove(&key)),
    }
}

impl Store for MemoryStore {
    fn meta(&mut self) -> Result<Meta> {
        Ok(self.meta)
    }

    fn put_meta(&mut self, meta: Meta) -> Result<()> {
        self.undo.push(Undo::Meta(self.meta));
        self.meta = meta;
        Ok(())
    }

    fn key_state(&mut self, key_id: &str) -> Result<Option<KeyState>> {
        Ok(self.keys.get(key_id).cloned())
    }

    fn put_key_state(&mut self, key_id: &str, state: &KeyState) -> Result<()> {
        let old = match self.keys.get_mut(key_id) {
            Some(present) => Some(std::mem::replace(present, state.clone())),
            None => self.keys.insert(key_id.to_owned(), state.clone()),
        };
        self.undo.push(Undo::Key(key_id.to_owned(), old));
        Ok(())
    }

    fn key_record(&mut self, key_id: &str) -> Result<Option<KeyRecord>> {
        Ok(self.records.get(key_id).cloned())
    }

    fn key_id_by_token(&mut self, token_hash: &TokenHash) -> Result<Option<String>> {
        Ok(self.tokens.get(token_hash).cloned())
    }

    fn put_key_record(&mut self, record: &KeyRecord) -> Result<()> {
        let old = self.records.insert(record.id.clone(), record.clone());
        if old.is_none() {
            self.issued.push(record.id.clone());
            self.tokens.insert(record.token_hash.clone(), record.id.clone());
        }
        self.undo.push(Undo::Record(record.id.clone(), old.map(Box::new)));
        Ok(())
    }

    fn key_records(&mut self) -> Result<Vec<KeyRecord>> {
        let newest_first = self.issued.iter().rev();
        Ok(newest_first
            .filter_map(|id| self.records.get(id).cloned())
            .collect())
    }

    fn budget(&mut self, id: &BudgetId) -> Result<Option<Arc<BudgetDef>>> {
        Ok(self.budgets.get(id).cloned())
    }

    fn put_budget(&mut self, def: &BudgetDef) -> Result<()> {
        let old = self.budgets.insert(def.id(), Arc::new(def.clone()));
        self.undo.push(Undo::Budget(def.id(), old));
        Ok(())
    }

    fn budgets(&mut self, scope: Option<&Scope>) -> Result<Vec<BudgetDef>> {
        let wanted = |def: &&Arc<BudgetDef>| scope.is_none_or(|scope| def.scope == *scope);
        let mut found: Vec<BudgetDef> = self
            .budgets
            .values()
            .filter(wanted)
            .map(|def| BudgetDef::clone(def))
            .collect();
        found.sort_by_cached_key(BudgetDef::id);
        Ok(found)
    }

    fn counter(&mut self, name: &str) -> Result<Counter> {
        Ok(self.counters.get(name).copied().unwrap_or_default())
    }

    fn put_counter(&mut self, name: &CounterName, counter: Counter) -> Result<()> {
        let old = self.counters.insert(name.clone(), counter);
        if old.is_none() {
            self.names.insert(name.clone());
        }
        self.undo.push(Undo::Counter(name.clone(), old));
        Ok(())
    }

    fn counters(&mut self) -> Result<Vec<(CounterName, Counter)>> {
        let value = |name: &CounterName| self.counters.get(name).copied().unwrap_or_default();
        Ok(self
            .names
            .iter()
            .map(|name| (name.clone(), value(name)))
            .collect())
    }

    fn window(&mut self, family: &str) -> Result<Option<Window>> {
        Ok(self.windows.get(family).copied())
    }

    fn put_window(&mut self, family: &str, window: Window) -> Result<()> {
        let old = self.windows.insert(family.to_owned(), window);
        self.undo.push(Undo::Window(family.to_owned(), old));
        Ok(())
    }

    fn rolling(&mut self, family: &str) -> Result<Option<Rolling>> {
        Ok(self.rolling.get(family).copied())
    }

    fn put_rolling(&mut self, family: &str, rolling: Rolling) -> Result<()> {
        let old = self.rolling.insert(family.to_owned(), rolling);
        self.undo.push(Undo::Rolling(family.to_owned(), old));
        Ok(())
    }

    fn next_bucket(&mut self, family: &str, after_ms: i64) -> Result<Option<i64>> {
        // Starts have 13 digits until the year 2286, so their order as text is their order in time.
        let prefix = format!("{family}|");
        let from = format!("{prefix}{after_ms}");
        let next = self
            .names
            .range::<str, _>((Bound::Excluded(from.as_str()), Bound::Unbounded))
            .next();
        Ok(next.and_then(|name| name.strip_prefix(&prefix)?.parse().ok()))
    }

    fn reservation(&mut self, call_id: &str) -> Result<Option<Reservation>> {
        self.count_lookup();
        Ok(self
            .reservations
            .get(call_id)
            .map(|call| Reservation::clone(call)))
    }

    fn put_reservation(&mut self, reservation: Reservation) -> Result<()> {
        let key = CallKey(Arc::clone(&reservation.facts));
        let before = self.reservations.get(&key).map(|old| Listing::of(old));
        let after = Listing::of(&reservation);
        if before != Some(after) {
            if let Some(before) = before {
                self.unlist(before, &key);
            }
            self.list(after, &key);
        }
        let old = self.reservations.insert(key.clone(), Box::new(reservation));
        self.undo.push(Undo::Reservation(key, old));
        Ok(())
    }

    fn overdue(&mut self, now_ms: i64, limit: u32) -> Result<Vec<Reservation>> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        Ok(self
            .deadlines
            .iter()
            .take_while(|(not_after_ms, _)| *not_after_ms <= now_ms)
            .take(limit)
            .filter_map(|(_, key)| self.reservations.get(key))
            .map(|call| Reservation::clone(call))
            .collect())
    }

    fn open_reservations(&mut self, filter: &HoldFilter) -> Result<Vec<Reservation>> {
        let limit = if filter.limit == 0 { 1_000 } else { filter.limit };
        let wanted = |call: &&Reservation| {
            filter.state.is_none_or(|state| call.state == state)
                && (filter.run.is_none() || call.facts.run == filter.run)
        };
        let listed = match filter.state {
            Some(State::Provisional) => &self.provisional,
            _ => &self.open,
        };
        Ok(listed
            .iter()
            .filter_map(|(_, key)| self.reservations.get(key).map(AsRef::as_ref))
            .filter(wanted)
            .take(usize::try_from(limit).unwrap_or(usize::MAX))
            .cloned()
            .collect())
    }

    fn pointer(&mut self, id: &str) -> Result<Option<Pointer>> {
        Ok(self.pointers.get(id).cloned())
    }

    fn put_pointer(&mut self, id: &str, pointer: Pointer) -> Result<()> {
        let old = self.pointers.insert(id.to_owned(), pointer);
        self.undo.push(Undo::Pointer(id.to_owned(), old));
        Ok(())
    }

    fn object(&mut self, object: &str) -> Result<Option<ObjectRecord>> {
        self.count_lookup();
        Ok(self.objects.get(object).cloned())
    }

    fn put_object(&mut self, object: &str, record: ObjectRecord) -> Result<()> {
        let old = self.objects.insert(object.to_owned(), record);
        self.undo.push(Undo::Object(object.to_owned(), old));
        Ok(())
    }

    fn object_page(&mut self, object: &str, page: u32) -> Result<Option<ObjectPage>> {
        self.count_lookup();
        Ok(self.pages.get(&(object.to_owned(), page)).cloned())
    }

    fn put_object_page(&mut self, object: &str, number: u32, page: ObjectPage) -> Result<()> {
        let name = (object.to_owned(), number);
        let old = self.pages.insert(name.clone(), page);
        self.undo.push(Undo::Page(name, old));
        Ok(())
    }

    fn stop(&mut self, scope: &StopScope) -> Result<Option<Stop>> {
        Ok(self.stops.get(scope).cloned())
    }

    fn put_stop(&mut self, stop: &Stop) -> Result<()> {
        let old = self.stops.insert(stop.scope.clone(), stop.clone());
        self.undo.push(Undo::Stop(stop.scope.clone(), old));
        Ok(())
    }

    fn remove_stop(&mut self, scope: &StopScope) -> Result<()> {
        let old = self.stops.remove(scope);
        self.undo.push(Undo::Stop(scope.clone(), old));
        Ok(())
    }

    fn stops(&mut self) -> Result<Vec<Stop>> {
        Ok(self.stops.values().cloned().collect())
    }

    fn append(&mut self, event: Event) -> Result<()> {
        self.events.push(Arc::new(event));
        self.undo.push(Undo::Event);
        Ok(())
    }

    fn events(&mut self, filter: &EventFilter) -> Result<Vec<Event>> {
        let limit = if filter.limit == 0 { 10_000 } else { filter.limit };
        let skip = usize::try_from(filter.after_seq.saturating_sub(self.trimmed)).unwrap_or(usize::MAX);
        Ok(self
            .events
            .iter()
            .skip(skip)
            .filter(|event| matches(event, filter))
            .take(usize::try_from(limit).unwrap_or(usize::MAX))
            .map(|event| Event::clone(event))
            .collect())
    }

    fn last_checkpoint(&mut self) -> Result<Option<Checkpoint>> {
        Ok(self.checkpoints.last().cloned())
    }

    fn checkpoints(&mut self) -> Result<Vec<Checkpoint>> {
        Ok(self.checkpoints.clone())
    }

    fn put_checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        self.checkpoints.push(checkpoint.clone());
        self.undo.push(Undo::Checkpoint);
        Ok(())
    }
}

impl MemoryStore {
    /// Number and time of the first event that is still there.
    pub(super) fn first_event(&self) -> Option<(u64, i64)> {
        self.events.first().map(|event| (event.seq, event.at_ms))
    }

    /// Removes the events up to a number; answers how many. It cannot be taken back: call it last in a step.
    pub(super) fn trim(&mut self, upto_seq: u64) -> u64 {
        let gone = self
            .events
            .iter()
            .take_while(|event| event.seq <= upto_seq)
            .count();
        self.events.drain(..gone);
        let gone = u64::try_from(gone).unwrap_or(0);
        self.trimmed = self.trimmed.saturating_add(gone);
        gone
    }
}

fn matches(event: &Event, filter: &EventFilter) -> bool {
    let of_call = |call_id: &String| {
        event.call_id.as_ref() == Some(call_id)
            || event
                .body
                .facts
                .as_ref()
                .is_some_and(|facts| facts.call_id == *call_id)
    };
    let of_run = |run: &String| {
        event
            .body
            .facts
            .as_ref()
            .is_some_and(|facts| facts.run.as_ref() == Some(run))
    };
    filter.call_id.as_ref().is_none_or(of_call)
        && filter.run.as_ref().is_none_or(of_run)
        && filter.since_ms.is_none_or(|since_ms| event.at_ms >= since_ms)
}
