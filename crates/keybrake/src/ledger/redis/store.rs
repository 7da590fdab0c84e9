//! What the rules read and write of a step being drafted.

use std::sync::Arc;

use super::draft::{Draft, Guard, Missing, OPEN_BASE, SUM, clamp, lost};
use super::log;
use super::records::{Buckets, Record};
use crate::error::Result;
use crate::ledger::events::{Event, EventFilter};
use crate::ledger::store::{
    Checkpoint, Counter, Finding, KeyState, Meta, ObjectPage, ObjectRecord, Pointer, Rolling, Store,
};
use crate::ledger::types::{
    BudgetDef, BudgetId, CounterName, HoldFilter, KeyRecord, Reservation, Scope, State, Stop, StopScope,
    TokenHash, Window,
};

impl Store for Draft<'_> {
    fn found(&mut self, finding: Finding<'_>) {
        match finding {
            Finding::Reached { at_ms } if at_ms <= self.standing.now_ms => {
                self.from_ms = self.from_ms.max(at_ms);
            }
            Finding::Reached { at_ms } => self.until_ms = self.until_ms.min(at_ms),
            Finding::OpenHolds { key_id, max, full } => {
                let Ok((tally, _)) = self.holder(key_id) else {
                    return;
                };
                let finding = if full { "u>=" } else { "u<" };
                self.guards.push(Guard {
                    tally,
                    finding,
                    limit: i64::from(max),
                });
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
                let tally = self.tally(&name);
                let before = self.tallies.get(tally).map_or(found, |tally| tally.before);
                // What the step makes of the counter before it adds: buckets that leave a rolling window.
                let difference = |now: i64, then: i64| i128::from(now).saturating_sub(i128::from(then));
                let mut gone = difference(found.used, before.used);
                let mut finding = "u>";
                if with_held {
                    gone = gone.saturating_add(difference(found.held, before.held));
                    finding = if fits { "<=" } else { ">" };
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
        let open_holds = self.open_of(key_id);
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
        let (_, holder) = self.holder(key_id)?;
        holder.after.used = holder.after.used.saturating_add(if more { 1 } else { -1 });
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
        let tally = self.tally(name);
        if !self
            .guards
            .iter()
            .any(|guard| guard.tally == tally && guard.finding == "=")
        {
            self.guards.push(Guard {
                tally,
                finding: "=",
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
            match call.filter(|call| call.state == State::Held) {
                Some(call) if call.not_after_ms <= now_ms => found.push(call),
                // Marked by another process meanwhile, or not a deadline of this call at all: the list is put right,
                // because every decision waits for it.
                other => self.list("deadlines", call_id, other.map(|call| call.not_after_ms)),
            }
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
            found.extend(self.shown(&id)?);
        }
        found.retain(|call| log::wanted(call, filter));
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
