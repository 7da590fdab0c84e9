//! The tables of an archive.

use super::database::{Database, Row, Statement};
use crate::error::{Error, Result};

/// Version of the tables that this library writes and reads.
const VERSION: i64 = 2;

/// Version 2. `log` is the number of a log in this archive. `n` numbers a log's events as they came: it is the
/// event's own number (`seq`), and more once the ledger has lost events that were drained. `history` counts how often it
/// did. `lost` is 0 for an event of the ledger's present log, 1 for one that the ledger lost after it was drained, 2 for
/// a lost one whose call the ledger has told of again. Absent texts are empty. `value` is JSON, and `seal`
/// the keyed hash that says who wrote it (`seal`).
const TABLES: [&str; 10] = [
    "CREATE TABLE IF NOT EXISTS keybrake_archive (v BIGINT NOT NULL, id TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS keybrake_log (
        log BIGINT PRIMARY KEY, ledger TEXT NOT NULL, ns TEXT NOT NULL, place TEXT NOT NULL,
        seq BIGINT NOT NULL, n BIGINT NOT NULL, history BIGINT NOT NULL, at_ms BIGINT NOT NULL,
        UNIQUE (ledger, ns))",
    "CREATE TABLE IF NOT EXISTS keybrake_event (
        log BIGINT NOT NULL, n BIGINT NOT NULL, seq BIGINT NOT NULL, history BIGINT NOT NULL, lost BIGINT NOT NULL,
        at_ms BIGINT NOT NULL, kind TEXT NOT NULL, call_id TEXT NOT NULL, joining_id TEXT NOT NULL, run TEXT NOT NULL,
        value TEXT NOT NULL, seal TEXT NOT NULL,
        PRIMARY KEY (log, n), UNIQUE (log, call_id, seq, history))",
    "CREATE INDEX IF NOT EXISTS keybrake_event_joining ON keybrake_event (log, joining_id) WHERE joining_id <> ''",
    "CREATE INDEX IF NOT EXISTS keybrake_event_run ON keybrake_event (log, run) WHERE run <> ''",
    "CREATE INDEX IF NOT EXISTS keybrake_event_seq ON keybrake_event (log, seq)",
    "CREATE INDEX IF NOT EXISTS keybrake_event_lost ON keybrake_event (log, call_id) WHERE lost = 1",
    "CREATE TABLE IF NOT EXISTS keybrake_record (
        log BIGINT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL, n BIGINT NOT NULL, value TEXT NOT NULL,
        seal TEXT NOT NULL, PRIMARY KEY (log, kind, name))",
    "CREATE TABLE IF NOT EXISTS keybrake_checkpoint (
        log BIGINT NOT NULL, history BIGINT NOT NULL, seq BIGINT NOT NULL, lost BIGINT NOT NULL, value TEXT NOT NULL,
        PRIMARY KEY (log, history, seq))",
    "CREATE TABLE IF NOT EXISTS keybrake_note (
        log BIGINT NOT NULL, n BIGINT NOT NULL, kind TEXT NOT NULL, after_seq BIGINT NOT NULL, upto_seq BIGINT NOT NULL,
        history BIGINT NOT NULL, PRIMARY KEY (log, history, n, kind))",
];

/// Makes the tables if there are none; answers the archive's id. A user who may only read finds them made.
///
/// # Errors
/// `NotFound` only when the database has no archive. That it cannot be reached or read is not that.
pub(super) async fn prepare(database: &dyn Database, place: &str, make_it: bool) -> Result<String> {
    let own = || Statement::new("SELECT v, id FROM keybrake_archive", []);
    let mut found = Vec::new();
    if database.has("keybrake_archive").await? {
        found = database.rows(own()).await?;
    }
    if found.is_empty() && !make_it {
        return Err(Error::not_found(format!("there is no archive at {place}")));
    }
    if found.is_empty() {
        found = make(database, own()).await?;
    }
    let Some(mut row) = found.into_iter().next() else {
        return Err(Error::config(format!(
            "{place} is not an archive: its own record is gone"
        )));
    };
    let (version, id) = (row.int()?, row.text()?);
    if version > VERSION {
        return Err(Error::config(format!(
            "the archive at {place} has format {version} and this library reads up to {VERSION}: upgrade keybrake"
        )));
    }
    if version < VERSION {
        return Err(Error::config(format!(
            "the archive at {place} has format {version}, of a version of keybrake before its first release: begin another"
        )));
    }
    Ok(id)
}

async fn make(database: &dyn Database, own: Statement) -> Result<Vec<Row>> {
    let mut random = [0_u8; 8];
    getrandom::fill(&mut random)
        .map_err(|e| Error::config("the operating system gives no random bytes").because(e.to_string()))?;
    let id = format!("{:016x}", u64::from_be_bytes(random));
    let first = Statement::new(
        "INSERT INTO keybrake_archive (v, id) SELECT $1, $2 WHERE NOT EXISTS (SELECT 1 FROM keybrake_archive)
         RETURNING v, id",
        [VERSION.into(), id.into()],
    );
    let made = database.prepare(&TABLES, first).await?;
    if made.is_empty() {
        return database.rows(own).await;
    }
    Ok(made)
}
