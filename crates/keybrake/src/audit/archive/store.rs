//! What is written and read: events, drained points, records, checkpoints.

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::Archive;
use super::database::{Row, Statement, Value, unreadable};
use super::seal::Sealer;
use crate::error::{Error, ErrorKind, Result};
use crate::ledger::shared::hex;
use crate::ledger::{
    BudgetDef, Checkpoint, EraRange, Event, EventFilter, KeyRecord, LedgerSecret, Reservation, Stop,
};

/// Events read when a filter names no limit.
const EVENTS: u32 = 10_000;
/// The record that the ledger's secret is known by again.
pub(super) const BINDING: &str = "binding";

/// A log's name: its ledger's random id, and its namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct LogName {
    /// [`LedgerInfo::id`](crate::ledger::LedgerInfo::id).
    pub ledger: String,
    /// The namespace; empty for a ledger that has none.
    pub namespace: String,
}

/// A log as far as an archive has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LogState {
    /// Its number in this archive.
    pub log: i64,
    /// Its name.
    pub name: LogName,
    /// Where the ledger was when it was drained last, without a password.
    pub place: String,
    /// The ledger's number of the last event that was drained.
    pub seq: u64,
    /// The last event's number in the archive: `seq`, and more when the ledger has lost events since they were drained.
    pub n: u64,
    /// How often the ledger has lost events after they were drained.
    pub history: u64,
    /// When the last event happened, Unix milliseconds on the ledger's clock.
    pub at_ms: i64,
}

impl LogState {
    /// By how much the archive's numbers are above the ledger's.
    pub const fn shift(&self) -> u64 {
        self.n.saturating_sub(self.seq)
    }

    /// What a write rests on: that nobody else has drained in between.
    fn guard(&self, seq: u64, n: u64, history: u64, at_ms: i64) -> Statement {
        Statement::new(
            "UPDATE keybrake_log SET seq = $1, n = $2, history = $3, at_ms = $4, place = $5
             WHERE log = $6 AND seq = $7 AND n = $8 AND history = $9",
            [
                seq.into(),
                n.into(),
                history.into(),
                at_ms.into(),
                self.place.as_str().into(),
                self.log.into(),
                self.seq.into(),
                self.n.into(),
                self.history.into(),
            ],
        )
    }
}

/// The latest records of what a batch's events are about.
#[derive(Clone, Debug, Default)]
pub struct Records {
    /// Reservations, without their recorded replies.
    pub calls: Vec<Reservation>,
    /// Keys as they stand.
    pub keys: Vec<KeyRecord>,
    /// Budgets' definitions.
    pub budgets: Vec<BudgetDef>,
    /// All standing stops, when they have changed.
    pub stops: Option<Vec<Stop>>,
    /// The eras that the events are of, with all that the ledger had of each by the last of them.
    pub eras: Vec<EraRange>,
    /// What the ledger's secret is known by again ([`LedgerSecret::bound_to`](crate::ledger::LedgerSecret::bound_to)).
    pub binding: Option<String>,
}

/// What is drained in one transaction.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Events that follow the last one that was drained, in order.
    pub events: Vec<Event>,
    /// The records.
    pub records: Records,
    /// Checkpoints that the archive lacks.
    pub checkpoints: Vec<Checkpoint>,
    /// Set when events are missing before the first one, and a person has accepted that.
    pub accepts_gap: bool,
}

/// A moment at which the ledger no longer had what had been drained from it, or had it no longer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ForkNote {
    /// `lost`: the ledger lost these events after they were drained. `gap`: the archive lacks them.
    pub kind: String,
    /// The archive's number of the last event before it.
    pub n: u64,
    /// The ledger's number of the last event before those that it is about.
    pub after_seq: u64,
    /// The ledger's number of the last of them.
    pub upto_seq: u64,
}

impl Archive {
    /// Every log in it.
    ///
    /// # Errors
    /// As all its functions: `LedgerUnavailable` when the database cannot be reached or is busy, `LedgerCorrupt` when
    /// something in it cannot be read.
    pub async fn logs(&self) -> Result<Vec<LogState>> {
        let all = Statement::new(
            "SELECT log, ledger, ns, place, seq, n, history, at_ms FROM keybrake_log ORDER BY log",
            [],
        );
        self.database
            .rows(all)
            .await?
            .into_iter()
            .map(log_state)
            .collect()
    }

    /// One log, if anything of it was ever drained here.
    pub async fn log(&self, name: &LogName) -> Result<Option<LogState>> {
        let one = Statement::new(
            "SELECT log, ledger, ns, place, seq, n, history, at_ms FROM keybrake_log WHERE ledger = $1 AND ns = $2",
            [name.ledger.as_str().into(), name.namespace.as_str().into()],
        );
        let found = self.database.rows(one).await?;
        found.into_iter().next().map(log_state).transpose()
    }

    /// One log, begun if it is new.
    pub async fn begin(&self, name: &LogName, place: &str) -> Result<LogState> {
        for _ in 0..16 {
            if let Some(mut state) = self.log(name).await? {
                place.clone_into(&mut state.place);
                return Ok(state);
            }
            let insert = Statement::new(
                "INSERT INTO keybrake_log (log, ledger, ns, place, seq, n, history, at_ms)
                 SELECT COALESCE(MAX(log), 0) + 1, $1, $2, $3, 0, 0, 0, 0 FROM keybrake_log WHERE true
                 ON CONFLICT DO NOTHING",
                [
                    name.ledger.as_str().into(),
                    name.namespace.as_str().into(),
                    place.into(),
                ],
            );
            // Another drainer may have been quicker, with this log or with another.
            self.database.write(insert, Vec::new()).await?;
        }
        Err(Error::ledger(format!(
            "the archive at {} is too busy",
            self.place
        )))
    }

    /// Writes a batch and the drained point in one transaction, all of it sealed with the ledger's secret. Answers the new
    /// state, or `None`, with nothing written, when another drainer has drained this log meanwhile.
    pub async fn append(
        &self,
        state: &LogState,
        batch: &Batch,
        secret: &LedgerSecret,
    ) -> Result<Option<LogState>> {
        let sealer = Sealer::new(secret, &state.name);
        let mut after = state.clone();
        let mut rest = Vec::new();
        if let Some(first) = batch.events.first()
            && !first.follows(state.seq)
        {
            if !batch.accepts_gap {
                return Err(Error::new(
                    ErrorKind::Internal,
                    "events are missing before a batch",
                ));
            }
            let upto = first.seq.saturating_sub(1);
            rest.push(note(state, "gap", (state.n, state.seq, upto)));
            after.n = upto.saturating_add(state.shift());
            after.seq = upto;
        }
        for event in &batch.events {
            // Numbers that the ledger lost leave a gap here too.
            after.n = event.seq.saturating_add(state.shift());
            after.seq = event.seq;
            after.at_ms = event.at_ms;
            rest.push(insert(&after, event, &sealer)?);
        }
        if state.history > 0 {
            rest.extend(told_again(state, &batch.events));
        }
        rest.extend(records(&after, &batch.records, &sealer)?);
        for checkpoint in &batch.checkpoints {
            rest.push(Statement::new(
                "INSERT INTO keybrake_checkpoint (log, history, seq, lost, value) VALUES ($1, $2, $3, 0, $4)
                 ON CONFLICT DO NOTHING",
                [
                    state.log.into(),
                    state.history.into(),
                    checkpoint.seq.into(),
                    json(checkpoint)?.into(),
                ],
            ));
        }
        let guard = state.guard(after.seq, after.n, after.history, after.at_ms);
        let written = self.database.write(guard, rest).await?;
        Ok(written.then_some(after))
    }

    /// Notes that the ledger no longer has the events after this number, which it had when they were drained: they stay,
    /// as lost, and what the ledger tells under the same numbers is drained beside them.
    pub async fn fork(&self, state: &LogState, after_seq: u64) -> Result<Option<LogState>> {
        let after = LogState {
            seq: after_seq,
            history: state.history.saturating_add(1),
            ..state.clone()
        };
        let (log, seq) = (Value::from(state.log), Value::from(after_seq));
        let rest = vec![
            Statement::new(
                "UPDATE keybrake_event SET lost = 1 WHERE log = $1 AND seq > $2 AND lost = 0",
                [log.clone(), seq.clone()],
            ),
            Statement::new(
                "UPDATE keybrake_checkpoint SET lost = 1 WHERE log = $1 AND seq > $2 AND lost = 0",
                [log.clone(), seq],
            ),
            // What was known of their calls stays known, whatever the ledger will say of them.
            Statement::new(
                "INSERT INTO keybrake_record (log, kind, name, n, value, seal)
                 SELECT log, 'lost_call', name, n, value, seal FROM keybrake_record WHERE log = $1 AND kind = 'call' AND name IN
                     (SELECT call_id FROM keybrake_event WHERE log = $1 AND lost = 1)
                 ON CONFLICT (log, kind, name) DO UPDATE SET n = excluded.n, value = excluded.value, seal = excluded.seal",
                [log],
            ),
            note(&after, "lost", (state.n, after_seq, state.seq)),
        ];
        let guard = state.guard(after.seq, after.n, after.history, after.at_ms);
        let written = self.database.write(guard, rest).await?;
        Ok(written.then_some(after))
    }

    /// The event of the ledger's present log that has this number there.
    pub async fn event_at(&self, state: &LogState, seq: u64) -> Result<Option<Event>> {
        let one = Statement::new(
            "SELECT value FROM keybrake_event WHERE log = $1 AND seq = $2 AND lost = 0 ORDER BY n DESC LIMIT 1",
            [state.log.into(), seq.into()],
        );
        let found = self.database.rows(one).await?;
        found
            .into_iter()
            .next()
            .map(|mut row| parse(&row.text()?))
            .transpose()
    }

    /// Events up to the archive's number `upto`, numbered as the archive does, without those that were lost and told
    /// again.
    pub async fn events(&self, log: i64, upto: u64, filter: &EventFilter) -> Result<Vec<Event>> {
        let limit = if filter.limit == 0 { EVENTS } else { filter.limit };
        let mut sql =
            "SELECT n, value FROM keybrake_event WHERE log = $1 AND n > $2 AND n <= $3 AND lost < 2"
                .to_owned();
        let mut values: Vec<Value> = vec![log.into(), filter.after_seq.into(), upto.into()];
        let mut also = |condition: &str, value: Value| {
            values.push(value);
            let place = format!("${}", values.len());
            sql.push_str(&condition.replace('$', &place));
        };
        if let Some(call_id) = &filter.call_id {
            also(" AND (call_id = $ OR joining_id = $)", indexed(call_id).into());
        }
        if let Some(run) = &filter.run {
            also(" AND run = $", indexed(run).into());
        }
        if let Some(since_ms) = filter.since_ms {
            also(" AND at_ms >= $", since_ms.into());
        }
        // `+n` keeps the index of the call or the run in charge where there is one.
        let by = if filter.call_id.is_some() || filter.run.is_some() {
            "+n"
        } else {
            "n"
        };
        for part in [" ORDER BY ", by, " LIMIT ", &limit.to_string()] {
            sql.push_str(part);
        }
        let found = self.database.rows(Statement::new(sql, values)).await?;
        let event = |mut row: Row| {
            let n = row.count()?;
            let mut event: Event = parse(&row.text()?)?;
            event.seq = n;
            Ok(event)
        };
        found.into_iter().map(event).collect()
    }

    /// A reservation as it was when its last event was drained.
    pub async fn reservation(&self, log: i64, call_id: &str) -> Result<Option<Reservation>> {
        let one = Statement::new(
            "SELECT value FROM keybrake_record WHERE log = $1 AND kind = 'call' AND name = $2",
            [log.into(), indexed(call_id).into()],
        );
        let found = self.database.rows(one).await?;
        found
            .into_iter()
            .next()
            .map(|mut row| parse(&row.text()?))
            .transpose()
    }

    /// All records of a kind, in the order of their names: `call`, `lost_call`, `key`, `budget`, `stop` or `era`. `after` is
    /// the last name of the page before.
    pub(crate) async fn records<T: DeserializeOwned>(
        &self,
        log: i64,
        kind: &'static str,
        after: &str,
        limit: u32,
    ) -> Result<Vec<(String, T)>> {
        let page = Statement::new(
            format!(
                "SELECT name, value FROM keybrake_record WHERE log = $1 AND kind = $2 AND name > $3 ORDER BY name \
                 LIMIT {limit}"
            ),
            [log.into(), kind.into(), after.into()],
        );
        let found = self.database.rows(page).await?;
        let record = |mut row: Row| Ok((row.text()?, parse(&row.text()?)?));
        found.into_iter().map(record).collect()
    }

    /// All keys, in no order.
    pub async fn keys(&self, log: i64) -> Result<Vec<KeyRecord>> {
        self.all_of(log, "key").await
    }

    /// All budgets' definitions, in no order.
    pub async fn budgets(&self, log: i64) -> Result<Vec<BudgetDef>> {
        self.all_of(log, "budget").await
    }

    /// The eras of the events that are here, those that the ledger has lost too, in no order.
    pub(crate) async fn eras(&self, log: i64) -> Result<Vec<EraRange>> {
        self.all_of(log, "era").await
    }

    /// The stops that stood when the log was drained last.
    pub async fn stops(&self, log: i64) -> Result<Vec<Stop>> {
        self.all_of(log, "stop").await
    }

    async fn all_of<T: DeserializeOwned>(&self, log: i64, kind: &'static str) -> Result<Vec<T>> {
        let all = self.records(log, kind, "", i32::MAX.cast_unsigned()).await?;
        Ok(all.into_iter().map(|(_, record)| record).collect())
    }

    /// The event number of the last checkpoint of the ledger's present log; 0 without one.
    pub(crate) async fn last_checkpoint_seq(&self, log: i64) -> Result<u64> {
        let last = Statement::new(
            "SELECT COALESCE(MAX(seq), 0) FROM keybrake_checkpoint WHERE log = $1 AND lost = 0",
            [log.into()],
        );
        let found = self.database.rows(last).await?;
        found.into_iter().next().map_or(Ok(0), |mut row| row.count())
    }

    /// The checkpoints of the ledger's present log, in order.
    pub async fn checkpoints(&self, log: i64) -> Result<Vec<Checkpoint>> {
        let all = Statement::new(
            "SELECT value FROM keybrake_checkpoint WHERE log = $1 AND lost = 0 ORDER BY seq",
            [log.into()],
        );
        let found = self.database.rows(all).await?;
        found.into_iter().map(|mut row| parse(&row.text()?)).collect()
    }

    /// What was lost or is missing, in order.
    pub async fn notes(&self, log: i64) -> Result<Vec<ForkNote>> {
        let all = Statement::new(
            "SELECT kind, n, after_seq, upto_seq FROM keybrake_note WHERE log = $1 ORDER BY history, n, kind",
            [log.into()],
        );
        let found = self.database.rows(all).await?;
        let note = |mut row: Row| {
            Ok(ForkNote {
                kind: row.text()?,
                n: row.count()?,
                after_seq: row.count()?,
                upto_seq: row.count()?,
            })
        };
        found.into_iter().map(note).collect()
    }

    /// Events of the ledger's present log by the ledger's own numbers, for the proof.
    pub(super) async fn present_events(&self, log: i64, after_seq: u64, limit: u32) -> Result<Vec<Event>> {
        let page = Statement::new(
            format!(
                "SELECT seq, value FROM keybrake_event WHERE log = $1 AND seq > $2 AND lost = 0 ORDER BY seq LIMIT {limit}"
            ),
            [log.into(), after_seq.into()],
        );
        let found = self.database.rows(page).await?;
        let event = |mut row: Row| {
            let seq = row.count()?;
            let mut event: Event = parse(&row.text()?)?;
            event.seq = seq;
            Ok(event)
        };
        found.into_iter().map(event).collect()
    }
}

fn log_state(mut row: Row) -> Result<LogState> {
    Ok(LogState {
        log: row.int()?,
        name: LogName {
            ledger: row.text()?,
            namespace: row.text()?,
        },
        place: row.text()?,
        seq: row.count()?,
        n: row.count()?,
        history: row.count()?,
        at_ms: row.int()?,
    })
}

fn note(state: &LogState, kind: &'static str, (n, after_seq, upto_seq): (u64, u64, u64)) -> Statement {
    Statement::new(
        "INSERT INTO keybrake_note (log, n, kind, after_seq, upto_seq, history) VALUES ($1, $2, $3, $4, $5, $6)",
        [
            state.log.into(),
            n.into(),
            kind.into(),
            after_seq.into(),
            upto_seq.into(),
            state.history.into(),
        ],
    )
}

fn insert(state: &LogState, event: &Event, sealer: &Sealer<'_>) -> Result<Statement> {
    let facts = event.body.facts.as_deref();
    let call_id = event.call_id.as_deref().unwrap_or_default();
    let joining = facts
        .map(|facts| facts.call_id.as_str())
        .filter(|id| *id != call_id);
    let kind = serde_json::to_value(event.kind)
        .map_err(|e| Error::new(ErrorKind::Internal, "an event's kind cannot be written").because(e))?;
    let kind = kind.as_str().unwrap_or_default();
    let (found_by, value) = (indexed(call_id), Value::from(json(event)?));
    let seal = sealer.of_event((state.n, event.seq), kind, &found_by, value.as_text())?;
    Ok(Statement::new(
        "INSERT INTO keybrake_event (log, n, seq, history, lost, at_ms, kind, call_id, joining_id, run, value, seal)
         VALUES ($1, $2, $3, $4, 0, $5, $6, $7, $8, $9, $10, $11)",
        [
            state.log.into(),
            state.n.into(),
            event.seq.into(),
            state.history.into(),
            event.at_ms.into(),
            kind.into(),
            found_by.into(),
            indexed(joining.unwrap_or_default()).into(),
            indexed(facts.and_then(|facts| facts.run.as_deref()).unwrap_or_default()).into(),
            value,
            seal.into(),
        ],
    ))
}

/// A text as it stands in an indexed column. No database indexes any text: what is too long, or what it would not take,
/// is cut off and told from others by its hash. The event itself is kept whole.
fn indexed(text: &str) -> String {
    const LONGEST: usize = 512;
    const KEPT: usize = 400;
    if text.len() <= LONGEST && !text.contains('\0') {
        return text.to_owned();
    }
    let begins = text.get(..text.floor_char_boundary(KEPT)).unwrap_or_default();
    let hash = hex(&Sha256::digest(text.as_bytes()));
    format!("{}~{hash}", begins.replace('\0', ""))
}

/// Lost events of calls that the ledger tells of again would count twice.
fn told_again(state: &LogState, events: &[Event]) -> Vec<Statement> {
    let calls: std::collections::BTreeSet<&str> = events
        .iter()
        .filter_map(|event| event.call_id.as_deref())
        .collect();
    let again = calls.into_iter().map(|call_id| {
        Statement::new(
            "UPDATE keybrake_event SET lost = 2 WHERE log = $1 AND call_id = $2 AND lost = 1",
            [state.log.into(), indexed(call_id).into()],
        )
    });
    again.collect()
}

fn records(state: &LogState, records: &Records, sealer: &Sealer<'_>) -> Result<Vec<Statement>> {
    let put = |kind: &'static str, name: &str, value: String| -> Result<Statement> {
        let (name, value) = (indexed(name), Value::from(value));
        let seal = sealer.of_record(kind, &name, state.n, value.as_text())?;
        Ok(Statement::new(
            "INSERT INTO keybrake_record (log, kind, name, n, value, seal) VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT (log, kind, name) DO UPDATE SET n = excluded.n, value = excluded.value, seal = excluded.seal",
            [
                state.log.into(),
                kind.into(),
                name.into(),
                state.n.into(),
                value,
                seal.into(),
            ],
        ))
    };
    let mut statements = Vec::new();
    if let Some(binding) = &records.binding {
        statements.push(put(BINDING, "", binding.clone())?);
    }
    if records.stops.is_some() {
        statements.push(Statement::new(
            "DELETE FROM keybrake_record WHERE log = $1 AND kind = 'stop'",
            [state.log.into()],
        ));
    }
    for stop in records.stops.iter().flatten() {
        statements.push(put("stop", &stop.scope.name(), json(stop)?)?);
    }
    for call in &records.calls {
        let call = Reservation {
            reply: None,
            ..call.clone()
        };
        statements.push(put("call", &call.facts.call_id, json(&call)?)?);
    }
    for key in &records.keys {
        statements.push(put("key", &key.id, json(key)?)?);
    }
    for events in &records.eras {
        statements.push(put("era", &format!("{:012x}", events.era), json(events)?)?);
    }
    for budget in &records.budgets {
        statements.push(put("budget", &budget.id().0, json(budget)?)?);
    }
    Ok(statements)
}

fn json<T: Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|e| Error::new(ErrorKind::Internal, "a record cannot be written").because(e))
}

pub(super) fn parse<T: DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| unreadable("a record is damaged").because(e))
}
