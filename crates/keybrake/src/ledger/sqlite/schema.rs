//! What stands in the database, and how a database is bound to its secret.

use std::path::Path;

use hmac::{Hmac, KeyInit, Mac};
use rusqlite::{Connection, OpenFlags, params};
use sha2::Sha256;

use super::files::to_hex;
use super::store::failed;
use crate::error::{Error, ErrorKind, Result};
use crate::ledger::types::LedgerSecret;

/// Version of the format that this library writes and reads.
pub(super) const VERSION: u32 = 1;

/// Marks a database as a ledger (`PRAGMA application_id`): "kbrk".
const APPLICATION_ID: i32 = 0x6B62_726B;

/// Kinds of small records. Numbers are part of the format.
///
/// Meta, counters, windows and key states come first and are small, so that the records that every call touches
/// share a few pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The ledger's own record; one, without a name.
    Meta = 0,
    /// What the clock was set against; one, without a name.
    Clock = 1,
    /// By counter name.
    Counter = 2,
    /// The current window of a counter family.
    Window = 3,
    /// The running sum of a rolling counter family.
    Rolling = 4,
    /// By budget id.
    Budget = 5,
    /// By scope.
    Stop = 6,
    /// The hot part of a key, by key id.
    KeyState = 7,
    /// A key as issued, by key id.
    KeyRecord = 8,
    /// Key id by token hash.
    Token = 9,
    /// By identity id or content id.
    Pointer = 10,
    /// By vendor object.
    Object = 11,
    /// By vendor object and number.
    ObjectPage = 12,
    /// Up to where each archive has the log; one, without a name.
    Archives = 13,
}

impl Kind {
    /// The number in the database.
    #[expect(
        clippy::as_conversions,
        reason = "a field-less enum with its numbers written out"
    )]
    pub(super) const fn number(self) -> i64 {
        self as i64
    }
}

/// Version 1. `ns` is the number of a namespace. Values are JSON. An event's id is its namespace's number times
/// 2^40 plus its number in the log, so that the log is one tree that grows at its ends. `joining_id` is the id of a
/// call that joined an earlier one, whose id is `call_id`.
const TABLES: &str = "
CREATE TABLE format (v INTEGER NOT NULL, id TEXT NOT NULL, proof TEXT NOT NULL) STRICT;
CREATE TABLE namespace (ns INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE record (
    ns INTEGER NOT NULL, kind INTEGER NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL,
    PRIMARY KEY (ns, kind, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE reservation (
    ns INTEGER NOT NULL, call_id TEXT NOT NULL, open INTEGER NOT NULL, state TEXT NOT NULL,
    not_after_ms INTEGER NOT NULL, replied INTEGER NOT NULL, value TEXT NOT NULL,
    UNIQUE (ns, call_id)
) STRICT;
CREATE INDEX reservation_open ON reservation (ns, state, not_after_ms) WHERE state IN ('held', 'unknown', 'pending');
CREATE INDEX reservation_provisional ON reservation (ns, not_after_ms) WHERE state = 'provisional';
CREATE TABLE reply (
    ns INTEGER NOT NULL, call_id TEXT NOT NULL, body BLOB NOT NULL,
    UNIQUE (ns, call_id)
) STRICT;
CREATE TABLE event (
    id INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, call_id TEXT, joining_id TEXT, run TEXT, value TEXT NOT NULL
) STRICT;
CREATE INDEX event_call ON event (call_id) WHERE call_id IS NOT NULL;
CREATE INDEX event_joining ON event (joining_id) WHERE joining_id IS NOT NULL;
CREATE INDEX event_run ON event (run) WHERE run IS NOT NULL;
CREATE TABLE checkpoint (
    ns INTEGER NOT NULL, seq INTEGER NOT NULL, value TEXT NOT NULL,
    PRIMARY KEY (ns, seq)
) STRICT, WITHOUT ROWID;
";

/// Opens the database file, which must exist, and changes nothing. `busy_ms` is how long SQLite waits for locks of
/// foreign connections; ours queue on the guard file.
pub(super) fn connect(path: &Path, busy_ms: u64) -> Result<Connection> {
    // The path is absolute and its directory canonical, so a link can only be the file itself.
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let conn =
        Connection::open_with_flags(path, flags).map_err(|error| failed("open the database", &error))?;
    conn.busy_timeout(std::time::Duration::from_millis(busy_ms))
        .map_err(|error| failed("set up the connection", &error))?;
    Ok(conn)
}

/// Sets WAL mode and what holds for one connection.
pub(super) fn set_up(conn: &Connection, path: &Path) -> Result<()> {
    let mode: String = conn
        .query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))
        .map_err(|error| failed("set WAL mode", &error))?;
    if mode != "wal" {
        return Err(Error::config(format!(
            "{} cannot be used by several processes here (SQLite answered journal mode {mode}): move it to a local disk",
            path.display()
        )));
    }
    conn.execute_batch(
        "PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 0; PRAGMA temp_store = MEMORY;
         PRAGMA cache_size = -16384; PRAGMA trusted_schema = OFF; PRAGMA foreign_keys = OFF;",
    )
    .map_err(|error| failed("set up the connection", &error))?;
    conn.set_prepared_statement_cache_capacity(64);
    Ok(())
}

/// Lets a connection read only (folding the log into the database is still allowed).
pub(super) fn read_only(conn: &Connection) -> Result<()> {
    conn.execute_batch("PRAGMA query_only = ON")
        .map_err(|error| failed("set up the connection", &error))
}

/// The format record, or `None` for a database that holds nothing yet.
pub(super) struct Format {
    /// Version of the format.
    pub(super) version: u32,
    /// Random id of the ledger.
    pub(super) id: String,
    proof: String,
}

impl Format {
    /// Reads it.
    pub(super) fn read(conn: &Connection, path: &Path) -> Result<Option<Self>> {
        let application: i32 = conn
            .query_row("PRAGMA application_id", [], |row| row.get(0))
            .map_err(|error| failed("read the database", &error))?;
        let tables: i64 = conn
            .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
            .map_err(|error| failed("read the database", &error))?;
        if application == 0 && tables == 0 {
            return Ok(None);
        }
        if application != APPLICATION_ID {
            return Err(Error::config(format!(
                "{} is a database, but not a Keybrake ledger: name another file",
                path.display()
            )));
        }
        let format = conn
            .query_row("SELECT v, id, proof FROM format", [], |row| {
                Ok(Self {
                    version: row.get(0)?,
                    id: row.get(1)?,
                    proof: row.get(2)?,
                })
            })
            .map_err(|error| failed("read the ledger's format", &error))?;
        Ok(Some(format))
    }

    /// Refuses a newer format, and a database whose secret is another's.
    pub(super) fn check(&self, secret: &LedgerSecret, path: &Path) -> Result<()> {
        if self.version > VERSION {
            return Err(Error::config(format!(
                "{} has ledger format {} and this library reads up to {VERSION}: upgrade keybrake",
                path.display(),
                self.version
            )));
        }
        if !proves(secret, &self.id, &self.proof)? {
            return Err(clone_refused(path));
        }
        Ok(())
    }
}

/// The refusal of a database without its own key file.
pub(super) fn clone_refused(path: &Path) -> Error {
    Error::config(format!(
        "{path} is a ledger, and {path}.key beside it is missing or another ledger's: a clone cannot spend. Restore \
         the key file from where the ledger comes from, or name another file to start an empty ledger",
        path = path.display()
    ))
}

/// Makes an empty database a ledger, bound to the secret.
pub(super) fn create(conn: &Connection, secret: &LedgerSecret) -> Result<Format> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::config(format!("the system gives no random numbers: {error}")))?;
    let id = to_hex(&bytes);
    let proof = to_hex(&mac(secret, &id)?.finalize().into_bytes());
    let made = (|| {
        conn.execute_batch("BEGIN IMMEDIATE")?;
        conn.execute_batch(TABLES)?;
        conn.execute(
            "INSERT INTO format (v, id, proof) VALUES (?1, ?2, ?3)",
            params![VERSION, id, proof],
        )?;
        conn.pragma_update(None, "application_id", APPLICATION_ID)?;
        conn.execute_batch("COMMIT")
    })();
    made.map_err(|error| failed("create the ledger's tables", &error))?;
    Ok(Format {
        version: VERSION,
        id,
        proof,
    })
}

fn mac(secret: &LedgerSecret, id: &str) -> Result<Hmac<Sha256>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(&secret.0)
        .map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))?;
    mac.update(b"keybrake ledger id v1\0");
    mac.update(id.as_bytes());
    Ok(mac)
}

fn proves(secret: &LedgerSecret, id: &str, proof: &str) -> Result<bool> {
    use subtle::ConstantTimeEq as _;
    let expected = to_hex(&mac(secret, id)?.finalize().into_bytes());
    Ok(bool::from(expected.as_bytes().ct_eq(proof.as_bytes())))
}
