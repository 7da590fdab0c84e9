//! Durable storage for the logs of ledgers: a `SQLite` file or a `PostgreSQL` database.
//!
//! | file | what it does |
//! | --- | --- |
//! | `schema` | the tables, in words that both databases understand, and their version |
//! | `database` | what the archive needs of a database |
//! | `sqlite`, `postgres` | the two databases |
//! | `store` | what is written and read: events, drained points, records, checkpoints |
//! | `seal` | who wrote it |
//! | `again` | what a ledger that lost some of its log is told again |
//! | `verify` | the proof that the archive is whole: checkpoints and events against each other |
//!
//! An archive holds any number of logs, each named by its ledger's id and namespace. It never holds a secret: tokens
//! are there as the ledger's keyed hashes, recorded replies and the ledger's own secret are not there at all.

mod again;
mod database;
mod postgres;
mod schema;
mod seal;
mod sqlite;
mod store;
mod verify;

use std::sync::Arc;

pub use store::{Batch, ForkNote, LogName, LogState, Records};
pub use verify::{ArchiveReport, Signatures};

use self::database::Database;
use crate::error::{Error, Result};

/// An open archive. Clones share its connection.
#[derive(Clone, Debug)]
pub struct Archive {
    database: Arc<dyn Database>,
    id: String,
    place: String,
}

impl Archive {
    /// Opens an archive, or makes it: `sqlite:FILE`, or `postgres://[user[:password]@]host[:port]/database` with
    /// `sslmode=disable|prefer|require|verify-full` and `sslrootcert=FILE`.
    ///
    /// # Errors
    /// `Config` when the URL is wrong, the file is not ours alone, or the tables are a newer version's;
    /// `LedgerUnavailable` when the file is busy or the server does not answer.
    pub async fn open(url: &str) -> Result<Self> {
        Self::opened(url, true).await
    }

    /// Opens an archive that is there, to read it.
    ///
    /// # Errors
    /// As [`open`](Self::open), and `NotFound` when there is none.
    pub async fn open_existing(url: &str) -> Result<Self> {
        Self::opened(url, false).await
    }

    async fn opened(url: &str, make: bool) -> Result<Self> {
        let (database, place): (Arc<dyn Database>, String) = match url.split_once(':') {
            Some(("sqlite", path)) => {
                let opened = sqlite::Sqlite::open(path, make)?;
                let place = format!("sqlite:{}", opened.path().display());
                (Arc::new(opened), place)
            }
            Some(("postgres" | "postgresql", _)) => {
                let opened = postgres::Postgres::open(url)?;
                let place = opened.place().to_owned();
                (Arc::new(opened), place)
            }
            _ => {
                return Err(Error::config(
                    "the archive's URL has no scheme that is known: write sqlite:FILE, such as sqlite:audit.db, or \
                     postgres://user@host/database",
                ));
            }
        };
        let id = schema::prepare(&*database, &place, make).await?;
        Ok(Self { database, id, place })
    }

    /// Its random id, made when it was created: what ledgers remember it by.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where it is, without a password.
    pub fn place(&self) -> &str {
        &self.place
    }
}
