//! An archive in one `SQLite` file.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, ErrorCode, OpenFlags, ToSql, TransactionBehavior, params_from_iter};

use super::database::{Database, Row, Statement, Value};
use crate::error::{Error, ErrorKind, Result};
use crate::ledger::sqlite::{check_file, lock_file};

/// Marks a database as an archive (`PRAGMA application_id`): "kbar".
const APPLICATION_ID: i32 = 0x6B62_6172;
/// Longest wait for another process that writes to the archive, in ms.
const BUSY_MS: i64 = 30_000;

/// The file, and the one connection to it.
#[derive(Debug)]
pub(super) struct Sqlite {
    path: PathBuf,
    connection: Arc<Mutex<Connection>>,
}

impl Sqlite {
    /// Opens a file, or creates it for its owner alone.
    pub(super) fn open(path: &str, make: bool) -> Result<Self> {
        let path = locate(path)?;
        if !make && path.symlink_metadata().is_err() {
            return Err(Error::not_found(format!(
                "there is no archive {}",
                path.display()
            )));
        }
        let made = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        match made {
            Ok(file) => drop(file),
            // It is never opened and closed by us while SQLite has it open: that would drop SQLite's locks.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(cannot_open(&path).because(error)),
        }
        let metadata = path
            .symlink_metadata()
            .map_err(|error| cannot_open(&path).because(error))?;
        check_file(&path, &metadata)?;
        let _alone = alone_beside(&path)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let connection = Connection::open_with_flags(&path, flags).map_err(|error| failed("open", &error))?;
        set_up(&connection, &path)?;
        Ok(Self {
            path,
            connection: Arc::new(Mutex::new(connection)),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs on a thread that may wait for the disk.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let connection = Arc::clone(&self.connection);
        let done = tokio::task::spawn_blocking(move || {
            work(&mut connection.lock().unwrap_or_else(PoisonError::into_inner))
        });
        done.await
            .map_err(|e| Error::new(ErrorKind::Internal, "the archive's thread ended").because(e))?
    }
}

fn locate(path: &str) -> Result<PathBuf> {
    if path.is_empty() || path.starts_with("//") || path.contains('?') {
        return Err(Error::config(
            "a SQLite archive is a file: write sqlite:audit.db, or sqlite:/var/lib/keybrake/audit.db; it has no host and \
             no options",
        ));
    }
    let path = Path::new(path);
    let (Some(name), parent) = (path.file_name(), path.parent().unwrap_or(Path::new(""))) else {
        return Err(Error::config(format!("{} names no file", path.display())));
    };
    let parent = if parent.as_os_str().is_empty() {
        Path::new(".")
    } else {
        parent
    };
    let parent = parent
        .canonicalize()
        .map_err(|error| cannot_open(path).because(error))?;
    Ok(parent.join(name))
}

/// Lets one process or thread at a time set an archive of this directory up, until the answer is dropped. Two that
/// switch a new file to its write-ahead log at once get "database is locked", which SQLite does not wait for, or "disk
/// I/O error". It is the directory that is locked: to close another descriptor of the file would drop SQLite's locks.
fn alone_beside(path: &Path) -> Result<File> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let opened = File::open(directory).map_err(|error| cannot_open(path).because(error))?;
    lock_file(&opened, directory, BUSY_MS)?;
    Ok(opened)
}

fn set_up(connection: &Connection, path: &Path) -> Result<()> {
    let set = || -> rusqlite::Result<(i32, i64)> {
        connection.busy_timeout(Duration::from_millis(BUSY_MS.unsigned_abs()))?;
        let application = connection.query_row("PRAGMA application_id", [], |row| row.get(0))?;
        let tables = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        Ok((application, tables))
    };
    let (application, tables) = set().map_err(|error| failed("open", &error))?;
    if application != APPLICATION_ID && (application != 0 || tables != 0) {
        return Err(Error::config(format!(
            "{} is a database, but not a Keybrake archive: name another file (a ledger cannot be its own archive)",
            path.display()
        )));
    }
    let set = || -> rusqlite::Result<()> {
        connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get::<_, String>(0))?;
        connection.pragma_update(None, "application_id", APPLICATION_ID)?;
        // What is in the archive is removed from the ledger: it has to be on the disk.
        connection.execute_batch(
            "PRAGMA synchronous = FULL; PRAGMA temp_store = MEMORY; PRAGMA trusted_schema = OFF;",
        )?;
        connection.set_prepared_statement_cache_capacity(64);
        Ok(())
    };
    set().map_err(|error| failed("set up", &error))
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self {
            Self::Int(number) => ToSqlOutput::from(*number),
            Self::Text(text) => ToSqlOutput::from(text.as_str()),
        })
    }
}

/// `$1` is what PostgreSQL writes for SQLite's `?1`.
fn translated(sql: &str) -> String {
    sql.replace('$', "?")
}

fn execute(connection: &Connection, statement: &Statement) -> Result<usize> {
    let mut prepared = connection
        .prepare_cached(&translated(&statement.sql))
        .map_err(|error| failed("write", &error))?;
    prepared
        .execute(params_from_iter(&statement.values))
        .map_err(|error| failed("write", &error))
}

fn query(connection: &Connection, statement: &Statement) -> Result<Vec<Row>> {
    let read = || -> rusqlite::Result<Vec<Row>> {
        let mut prepared = connection.prepare_cached(&translated(&statement.sql))?;
        let columns = prepared.column_count();
        let mut rows = prepared.query(params_from_iter(&statement.values))?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let mut values = Vec::with_capacity(columns);
            for column in 0..columns {
                values.push(match row.get_ref(column)? {
                    ValueRef::Integer(number) => Value::Int(number),
                    other => Value::Text(other.as_str()?.to_owned()),
                });
            }
            found.push(Row::new(values));
        }
        Ok(found)
    };
    read().map_err(|error| failed("read", &error))
}

#[async_trait]
impl Database for Sqlite {
    async fn prepare(&self, tables: &[&'static str], then: Statement) -> Result<Vec<Row>> {
        let tables = tables.to_vec();
        self.run(move |connection| {
            let transaction = connection
                .transaction_with_behavior(TransactionBehavior::Immediate)
                .map_err(|error| failed("write", &error))?;
            for table in tables {
                transaction
                    .execute_batch(table)
                    .map_err(|error| failed("make its tables", &error))?;
            }
            let found = query(&transaction, &then)?;
            transaction.commit().map_err(|error| failed("write", &error))?;
            Ok(found)
        })
        .await
    }

    async fn has(&self, table: &'static str) -> Result<bool> {
        let tables = Statement::new(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name = $1",
            [table.into()],
        );
        Ok(!self.rows(tables).await?.is_empty())
    }

    async fn rows(&self, statement: Statement) -> Result<Vec<Row>> {
        self.run(move |connection| query(connection, &statement)).await
    }

    async fn write(&self, guard: Statement, rest: Vec<Statement>) -> Result<bool> {
        self.run(move |connection| {
            let transaction = connection
                .transaction_with_behavior(TransactionBehavior::Immediate)
                .map_err(|error| failed("write", &error))?;
            if execute(&transaction, &guard)? != 1 {
                return Ok(false);
            }
            for statement in &rest {
                execute(&transaction, statement)?;
            }
            transaction.commit().map_err(|error| failed("write", &error))?;
            Ok(true)
        })
        .await
    }
}

fn cannot_open(path: &Path) -> Error {
    Error::config(format!("cannot open the archive {}", path.display()))
}

/// SQLite's own words name tables and files, never values.
fn failed(doing: &str, error: &rusqlite::Error) -> Error {
    let kind = match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => ErrorKind::LedgerCorrupt,
        Some(_) => ErrorKind::LedgerUnavailable,
        None => ErrorKind::Internal,
    };
    Error::new(kind, format!("the archive could not {doing}")).because(error.to_string())
}
