//! One step on the database: the reads and writes of small records that the rules are written against.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::Arc;

use rusqlite::{Connection, ErrorCode, OptionalExtension, Params, Row, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::names::{TIME_DIGITS, given_name, stored_name};
use super::schema::Kind;
use crate::error::{Error, ErrorKind, Result};
use crate::ledger::events::{Event, EventFilter};
use crate::ledger::store::{
    Checkpoint, Counter, KeyState, Meta, ObjectPage, ObjectRecord, Pointer, Rolling, Store,
};
use crate::ledger::types::{
    BudgetDef, BudgetId, CounterName, HoldFilter, KeyRecord, Reservation, Scope, State, Stop, StopScope,
    TokenHash, Window,
};

/// Holds listed when a filter names no limit.
const HOLDS_DEFAULT: u32 = 1_000;
/// Events read when a filter names no limit.
const EVENTS_DEFAULT: u32 = 10_000;
/// Bits of an event's id below the namespace's number.
const SEQ_BITS: u32 = 40;

/// The ledger's own record between the steps of a group.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CachedMeta {
    value: Option<Meta>,
    changed: bool,
}

/// A step in one namespace. What it writes lasts only if the transaction around it commits.
pub(super) struct SqliteStore<'c> {
    conn: &'c Connection,
    ns: i64,
    wrote: Cell<bool>,
    /// Read once for all steps of a group, written once at its end.
    meta: CachedMeta,
    /// Calls that were read with a recorded reply.
    replies: BTreeSet<String>,
    /// Set for a step on a snapshot, which cannot write: a checkpoint is kept here instead.
    keeps: bool,
    kept: Option<Checkpoint>,
}

impl<'c> SqliteStore<'c> {
    /// A step; `meta` is what the steps before it in the same transaction left.
    pub(super) const fn new(conn: &'c Connection, ns: i64, meta: CachedMeta) -> Self {
        Self {
            conn,
            ns,
            wrote: Cell::new(false),
            meta,
            replies: BTreeSet::new(),
            keeps: false,
            kept: None,
        }
    }

    /// Keeps a checkpoint for [`kept_checkpoint`](Self::kept_checkpoint) instead of writing it.
    pub(super) const fn keep_checkpoint(&mut self) {
        self.keeps = true;
    }

    /// The checkpoint that was kept.
    pub(super) const fn kept_checkpoint(&mut self) -> Option<Checkpoint> {
        self.kept.take()
    }

    /// For the next step of the transaction.
    pub(super) fn into_meta(self) -> CachedMeta {
        self.meta
    }

    /// Writes the ledger's own record, if steps changed it. Call it before the transaction commits.
    pub(super) fn finish(&self) -> Result<()> {
        match self.meta.value {
            Some(meta) if self.meta.changed => self.put_record(Kind::Meta, "", &meta),
            _ => Ok(()),
        }
    }

    /// Whether the step changed anything.
    pub(super) const fn wrote(&self) -> bool {
        self.wrote.get()
    }

    /// Folds the log into the database as far as no reader stands in the way; answers its length in pages.
    pub(super) fn checkpoint(&self) -> Result<i64> {
        self.conn
            .query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| row.get(1))
            .map_err(|error| failed("fold the log into the database", &error))
    }

    /// The number of a namespace, made if it is new.
    pub(super) fn namespace(&self, name: &str) -> Result<i64> {
        let found = self
            .prepare("SELECT ns FROM namespace WHERE name = ?1")?
            .query_row([name], |row| row.get(0))
            .optional()
            .map_err(|error| failed("find the namespace", &error))?;
        if let Some(ns) = found {
            return Ok(ns);
        }
        self.execute("INSERT INTO namespace (name) VALUES (?1)", [name])?;
        Ok(self.conn.last_insert_rowid())
    }

    /// A record of this backend's own.
    pub(super) fn record<T: DeserializeOwned>(&self, kind: Kind, name: &str) -> Result<Option<T>> {
        let mut statement =
            self.prepare("SELECT value FROM record WHERE ns = ?1 AND kind = ?2 AND name = ?3")?;
        statement
            .query_row(params![self.ns, kind.number(), name], |row| Ok(parse(row, 0)))
            .optional()
            .map_err(|error| failed("read a record", &error))?
            .transpose()
    }

    /// Writes a record of this backend's own.
    pub(super) fn put_record<T: Serialize>(&self, kind: Kind, name: &str, value: &T) -> Result<()> {
        self.execute(
            "INSERT INTO record (ns, kind, name, value) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT DO UPDATE SET value = excluded.value",
            params![self.ns, kind.number(), name, json(value)?],
        )
    }

    fn records<T: DeserializeOwned>(&self, kind: Kind) -> Result<Vec<T>> {
        self.rows(
            "SELECT value FROM record WHERE ns = ?1 AND kind = ?2 ORDER BY name",
            params![self.ns, kind.number()],
            |row| parse(row, 0),
        )
    }

    fn prepare(&self, sql: &str) -> Result<rusqlite::CachedStatement<'c>> {
        self.conn
            .prepare_cached(sql)
            .map_err(|error| failed("prepare a statement", &error))
    }

    pub(super) fn execute(&self, sql: &str, params: impl Params) -> Result<()> {
        self.wrote.set(true);
        self.prepare(sql)?
            .execute(params)
            .map_err(|error| failed("write", &error))?;
        Ok(())
    }

    pub(super) fn rows<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl Fn(&Row<'_>) -> Result<T>,
    ) -> Result<Vec<T>> {
        let mut statement = self.prepare(sql)?;
        let mut rows = statement.query(params).map_err(|error| failed("read", &error))?;
        let mut all = Vec::new();
        while let Some(row) = rows.next().map_err(|error| failed("read", &error))? {
            all.push(read(row)?);
        }
        Ok(all)
    }

    /// The part of an event's id that its namespace gives.
    fn first_id(&self) -> Result<i64> {
        self.ns
            .checked_shl(SEQ_BITS)
            .filter(|id| id.checked_shr(SEQ_BITS) == Some(self.ns))
            .ok_or_else(|| Error::new(ErrorKind::Internal, "too many namespaces"))
    }

    pub(super) fn event_id(&self, seq: u64) -> Result<i64> {
        let limit = 1_u64.checked_shl(SEQ_BITS).unwrap_or(u64::MAX);
        let seq = i64::try_from(seq.min(limit.saturating_sub(1))).unwrap_or(i64::MAX);
        Ok(self.first_id()?.saturating_add(seq))
    }

    pub(super) fn reservation_without_reply(&self, call_id: &str) -> Result<Option<Reservation>> {
        self.prepare("SELECT value FROM reservation WHERE ns = ?1 AND call_id = ?2")?
            .query_row(params![self.ns, call_id], |row| Ok(parse(row, 0)))
            .optional()
            .map_err(|error| failed("read a reservation", &error))?
            .transpose()
    }

    /// Puts the recorded reply, which stands apart because reservations are rewritten often, back into it.
    fn with_reply(&mut self, (mut reservation, replied): (Reservation, bool)) -> Result<Reservation> {
        if replied {
            reservation.reply = self
                .prepare("SELECT body FROM reply WHERE ns = ?1 AND call_id = ?2")?
                .query_row(params![self.ns, reservation.facts.call_id], |row| row.get(0))
                .optional()
                .map_err(|error| failed("read a recorded reply", &error))?;
            self.replies.insert(reservation.facts.call_id.clone());
        }
        Ok(reservation)
    }
}

/// A reservation, and whether a reply is recorded for it.
fn replied(row: &Row<'_>) -> Result<(Reservation, bool)> {
    let replied = row.get(1).map_err(|error| failed("read", &error))?;
    Ok((parse(row, 0)?, replied))
}

impl Store for SqliteStore<'_> {
    fn meta(&mut self) -> Result<Meta> {
        if let Some(meta) = self.meta.value {
            return Ok(meta);
        }
        let meta = self.record(Kind::Meta, "")?.unwrap_or_default();
        self.meta.value = Some(meta);
        Ok(meta)
    }

    fn put_meta(&mut self, meta: Meta) -> Result<()> {
        self.wrote.set(true);
        self.meta = CachedMeta {
            value: Some(meta),
            changed: true,
        };
        Ok(())
    }

    fn key_state(&mut self, key_id: &str) -> Result<Option<KeyState>> {
        self.record(Kind::KeyState, key_id)
    }

    fn put_key_state(&mut self, key_id: &str, state: &KeyState) -> Result<()> {
        self.put_record(Kind::KeyState, key_id, state)
    }

    fn key_record(&mut self, key_id: &str) -> Result<Option<KeyRecord>> {
        self.record(Kind::KeyRecord, key_id)
    }

    fn key_id_by_token(&mut self, token_hash: &TokenHash) -> Result<Option<String>> {
        self.record(Kind::Token, &token_hash.0)
    }

    fn put_key_record(&mut self, record: &KeyRecord) -> Result<()> {
        self.put_record(Kind::KeyRecord, &record.id, record)?;
        self.put_record(Kind::Token, &record.token_hash.0, &record.id)
    }

    fn key_records(&mut self) -> Result<Vec<KeyRecord>> {
        let mut all: Vec<KeyRecord> = self.records(Kind::KeyRecord)?;
        all.sort_by(|a, b| (b.issued_at_ms, &b.id).cmp(&(a.issued_at_ms, &a.id)));
        Ok(all)
    }

    fn budget(&mut self, id: &BudgetId) -> Result<Option<Arc<BudgetDef>>> {
        Ok(self.record(Kind::Budget, &id.0)?.map(Arc::new))
    }

    fn put_budget(&mut self, def: &BudgetDef) -> Result<()> {
        self.put_record(Kind::Budget, &def.id().0, def)
    }

    fn budgets(&mut self, scope: Option<&Scope>) -> Result<Vec<BudgetDef>> {
        let mut all: Vec<BudgetDef> = self.records(Kind::Budget)?;
        all.retain(|def| scope.is_none_or(|scope| def.scope == *scope));
        Ok(all)
    }

    fn counter(&mut self, name: &str) -> Result<Counter> {
        Ok(self
            .record(Kind::Counter, &stored_name(name))?
            .unwrap_or_default())
    }

    fn put_counter(&mut self, name: &CounterName, counter: Counter) -> Result<()> {
        self.put_record(Kind::Counter, &stored_name(name.as_str()), &counter)
    }

    fn counters(&mut self) -> Result<Vec<(CounterName, Counter)>> {
        let mut all = self.rows(
            "SELECT name, value FROM record WHERE ns = ?1 AND kind = ?2",
            params![self.ns, Kind::Counter.number()],
            |row| Ok((CounterName::from(given_name(text(row, 0)?)), parse(row, 1)?)),
        )?;
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(all)
    }

    fn window(&mut self, family: &str) -> Result<Option<Window>> {
        self.record(Kind::Window, family)
    }

    fn put_window(&mut self, family: &str, window: Window) -> Result<()> {
        self.put_record(Kind::Window, family, &window)
    }

    fn rolling(&mut self, family: &str) -> Result<Option<Rolling>> {
        self.record(Kind::Rolling, family)
    }

    fn put_rolling(&mut self, family: &str, rolling: Rolling) -> Result<()> {
        self.put_record(Kind::Rolling, family, &rolling)
    }

    fn next_bucket(&mut self, family: &str, after_ms: i64) -> Result<Option<i64>> {
        // Times sort as numbers because they are stored with one length; `/` sorts before digits and `:` after.
        let after = if after_ms < 0 {
            "/".to_owned()
        } else {
            format!("{after_ms:0>TIME_DIGITS$}")
        };
        let found: Option<String> = self
            .prepare(
                "SELECT name FROM record WHERE ns = ?1 AND kind = ?2 AND name > ?3 AND name < ?4
                 ORDER BY name LIMIT 1",
            )?
            .query_row(
                params![
                    self.ns,
                    Kind::Counter.number(),
                    format!("{family}|{after}"),
                    format!("{family}|:")
                ],
                |row| row.get(0),
            )
            .optional()
            .map_err(|error| failed("find a bucket", &error))?;
        Ok(found
            .as_deref()
            .and_then(|name| name.rsplit_once('|'))
            .and_then(|(_, start)| start.parse().ok()))
    }

    fn reservation(&mut self, call_id: &str) -> Result<Option<Reservation>> {
        let found = self
            .prepare("SELECT value, replied FROM reservation WHERE ns = ?1 AND call_id = ?2")?
            .query_row(params![self.ns, call_id], |row| Ok(replied(row)))
            .optional()
            .map_err(|error| failed("read a reservation", &error))?
            .transpose()?;
        found.map(|found| self.with_reply(found)).transpose()
    }

    fn put_reservation(&mut self, mut reservation: Reservation) -> Result<()> {
        let reply = reservation.reply.take();
        let call_id = reservation.facts.call_id.clone();
        self.execute(
            "INSERT INTO reservation (ns, call_id, open, state, not_after_ms, replied, value)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
             ON CONFLICT (ns, call_id) DO UPDATE SET open = excluded.open, state = excluded.state,
                 not_after_ms = excluded.not_after_ms, replied = excluded.replied, value = excluded.value",
            params![
                self.ns,
                call_id,
                reservation.holds_something(),
                reservation.state.as_str(),
                reservation.not_after_ms,
                reply.is_some(),
                json(&reservation)?
            ],
        )?;
        match reply {
            Some(body) => self.execute(
                "INSERT INTO reply (ns, call_id, body) VALUES (?1, ?2, ?3)
                 ON CONFLICT (ns, call_id) DO UPDATE SET body = excluded.body WHERE body <> excluded.body",
                params![self.ns, call_id, body],
            ),
            None if self.replies.remove(&call_id) => self.execute(
                "DELETE FROM reply WHERE ns = ?1 AND call_id = ?2",
                params![self.ns, call_id],
            ),
            None => Ok(()),
        }
    }

    fn overdue(&mut self, now_ms: i64, limit: u32) -> Result<Vec<Reservation>> {
        let found = self.rows(
            "SELECT value, replied FROM reservation
             WHERE ns = ?1 AND state = 'held' AND not_after_ms <= ?2
             ORDER BY not_after_ms, call_id LIMIT ?3",
            params![self.ns, now_ms, limit],
            replied,
        )?;
        found.into_iter().map(|found| self.with_reply(found)).collect()
    }

    fn open_reservations(&mut self, filter: &HoldFilter) -> Result<Vec<Reservation>> {
        let limit = if filter.limit == 0 {
            HOLDS_DEFAULT
        } else {
            filter.limit
        };
        // Each spelling fits one partial index.
        let found = if filter.state == Some(State::Provisional) {
            self.rows(
                "SELECT value, replied FROM reservation
                 WHERE ns = ?1 AND state = 'provisional' AND (?2 IS NULL OR value ->> '$.facts.run' = ?2)
                 ORDER BY value ->> '$.reserved_at_ms', call_id LIMIT ?3",
                params![self.ns, filter.run, limit],
                replied,
            )?
        } else {
            self.rows(
                "SELECT value, replied FROM reservation
                 WHERE ns = ?1 AND state IN ('held', 'unknown', 'pending') AND open AND (?2 IS NULL OR state = ?2)
                 AND (?3 IS NULL OR value ->> '$.facts.run' = ?3)
                 ORDER BY value ->> '$.reserved_at_ms', call_id LIMIT ?4",
                params![self.ns, filter.state.map(State::as_str), filter.run, limit],
                replied,
            )?
        };
        found.into_iter().map(|found| self.with_reply(found)).collect()
    }

    fn pointer(&mut self, id: &str) -> Result<Option<Pointer>> {
        self.record(Kind::Pointer, id)
    }

    fn put_pointer(&mut self, id: &str, pointer: Pointer) -> Result<()> {
        self.put_record(Kind::Pointer, id, &pointer)
    }

    fn object(&mut self, object: &str) -> Result<Option<ObjectRecord>> {
        self.record(Kind::Object, object)
    }

    fn put_object(&mut self, object: &str, record: ObjectRecord) -> Result<()> {
        self.put_record(Kind::Object, object, &record)
    }

    fn object_page(&mut self, object: &str, page: u32) -> Result<Option<ObjectPage>> {
        self.record(Kind::ObjectPage, &format!("{object}|{page}"))
    }

    fn put_object_page(&mut self, object: &str, number: u32, page: ObjectPage) -> Result<()> {
        self.put_record(Kind::ObjectPage, &format!("{object}|{number}"), &page)
    }

    fn stop(&mut self, scope: &StopScope) -> Result<Option<Stop>> {
        self.record(Kind::Stop, &scope.name())
    }

    fn put_stop(&mut self, stop: &Stop) -> Result<()> {
        self.put_record(Kind::Stop, &stop.scope.name(), stop)
    }

    fn remove_stop(&mut self, scope: &StopScope) -> Result<()> {
        self.execute(
            "DELETE FROM record WHERE ns = ?1 AND kind = ?2 AND name = ?3",
            params![self.ns, Kind::Stop.number(), scope.name()],
        )
    }

    fn stops(&mut self) -> Result<Vec<Stop>> {
        let mut all: Vec<Stop> = self.records(Kind::Stop)?;
        all.sort_by(|a, b| a.scope.cmp(&b.scope));
        Ok(all)
    }

    fn append(&mut self, event: Event) -> Result<()> {
        let facts = event.body.facts.as_deref();
        let run = facts.and_then(|facts| facts.run.as_deref());
        let joining = facts
            .map(|facts| facts.call_id.as_str())
            .filter(|call_id| event.call_id.as_deref() != Some(call_id));
        let id = self.event_id(event.seq)?;
        self.execute(
            "INSERT INTO event (id, at_ms, call_id, joining_id, run, value) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![id, event.at_ms, event.call_id, joining, run, json(&event)?],
        )
    }

    fn events(&mut self, filter: &EventFilter) -> Result<Vec<Event>> {
        let limit = if filter.limit == 0 {
            EVENTS_DEFAULT
        } else {
            filter.limit
        };
        // `+id` keeps the index of the call or run in charge where there is one.
        let (which, order) = match (&filter.call_id, &filter.run) {
            (Some(_), _) => (
                "(call_id = ?3 OR joining_id = ?3) AND (?4 IS NULL OR run = ?4)",
                "+id",
            ),
            (None, Some(_)) => ("?3 IS NULL AND run = ?4", "+id"),
            (None, None) => ("?3 IS NULL AND ?4 IS NULL", "id"),
        };
        self.rows(
            &format!(
                "SELECT value FROM event WHERE id > ?1 AND id < ?2 AND {which} AND (?5 IS NULL OR at_ms >= ?5)
                 ORDER BY {order} LIMIT ?6"
            ),
            params![
                self.event_id(filter.after_seq)?,
                self.event_id(u64::MAX)?,
                filter.call_id,
                filter.run,
                filter.since_ms,
                limit
            ],
            |row| parse(row, 0),
        )
    }

    fn last_checkpoint(&mut self) -> Result<Option<Checkpoint>> {
        let last = self.rows(
            "SELECT value FROM checkpoint WHERE ns = ?1 ORDER BY seq DESC LIMIT 1",
            params![self.ns],
            |row| parse(row, 0),
        )?;
        Ok(last.into_iter().next())
    }

    fn checkpoints(&mut self) -> Result<Vec<Checkpoint>> {
        self.rows(
            "SELECT value FROM checkpoint WHERE ns = ?1 ORDER BY seq",
            params![self.ns],
            |row| parse(row, 0),
        )
    }

    fn put_checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        if self.keeps {
            self.kept = Some(checkpoint.clone());
            return Ok(());
        }
        let seq = i64::try_from(checkpoint.seq)
            .map_err(|_| Error::new(ErrorKind::Internal, "a checkpoint's number is out of range"))?;
        self.execute(
            "INSERT INTO checkpoint (ns, seq, value) VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET value = excluded.value",
            params![self.ns, seq, json(checkpoint)?],
        )
    }
}

fn json<T: Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|error| Error::new(ErrorKind::Internal, "a record cannot be written").because(error))
}

fn text(row: &Row<'_>, column: usize) -> Result<String> {
    row.get(column).map_err(|error| failed("read", &error))
}

fn parse<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> Result<T> {
    let bytes = row
        .get_ref(column)
        .map_err(|error| failed("read", &error))?
        .as_bytes()
        .map_err(|error| corrupt(error.to_string()))?;
    serde_json::from_slice(bytes).map_err(|error| corrupt(error.to_string()))
}

fn corrupt(detail: String) -> Error {
    Error::new(
        ErrorKind::LedgerCorrupt,
        "a record in the ledger cannot be read; restore the file from a backup. Nothing was sent",
    )
    .because(detail)
}

/// What a failure of SQLite means to the caller.
pub(super) fn failed(doing: &str, error: &rusqlite::Error) -> Error {
    let kind = match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => ErrorKind::LedgerCorrupt,
        Some(ErrorCode::ApiMisuse | ErrorCode::Unknown) => ErrorKind::Internal,
        Some(_) => ErrorKind::LedgerUnavailable,
        None => ErrorKind::Internal,
    };
    // SQLite's own words name tables and files, never values.
    Error::new(kind, format!("the ledger could not {doing}; nothing was sent")).because(error.to_string())
}
