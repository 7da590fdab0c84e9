//! An archive in a `PostgreSQL` database.

mod tls;
mod url;

use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::try_join_all;
use tokio::sync::Mutex;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, NoTls};

use self::tls::Tls;
use self::url::Place;
use super::database::{Database, Row, Statement, Value, unreadable};
use crate::error::{Error, ErrorKind, Result};

/// Longest wait for an answer of the server.
const PATIENCE: Duration = Duration::from_mins(2);
/// Two processes that make the tables at the same time wait for each other under this number: "kbar".
const LOCK: i64 = 0x6B62_6172;

/// The database, and the one connection to it, made anew when it is lost.
#[derive(Debug)]
pub(super) struct Postgres {
    place: Place,
    client: Mutex<Option<Client>>,
}

type Sql<'a> = &'a (dyn ToSql + Sync);

impl Postgres {
    /// Reads the URL; the first command connects.
    pub(super) fn open(url: &str) -> Result<Self> {
        Ok(Self {
            place: url::parse(url)?,
            client: Mutex::new(None),
        })
    }

    pub(super) fn place(&self) -> &str {
        &self.place.shown
    }

    /// Runs on the connection, and gives it up after an error: whatever it was in the middle of ends with it.
    async fn run<T>(
        &self,
        work: impl AsyncFnOnce(&mut Client) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T> {
        let mut kept = self.client.lock().await;
        let mut client = match kept.take() {
            Some(client) if !client.is_closed() => client,
            _ => self.connect().await?,
        };
        let done = tokio::time::timeout(PATIENCE, work(&mut client)).await;
        match done {
            Ok(Ok(answer)) => {
                *kept = Some(client);
                Ok(answer)
            }
            Ok(Err(error)) => Err(self.failed(&error)),
            Err(_) => Err(Error::ledger(format!(
                "the archive at {} did not answer within {} s",
                self.place.shown,
                PATIENCE.as_secs()
            ))),
        }
    }

    async fn connect(&self) -> Result<Client> {
        let mode = self.place.config.get_ssl_mode();
        let connected = if mode == tokio_postgres::config::SslMode::Disable {
            let made = self.place.config.connect(NoTls).await;
            made.map(|(client, connection)| {
                tokio::spawn(connection);
                client
            })
        } else {
            let made = self
                .place
                .config
                .connect(Tls::new(self.place.roots.as_deref())?)
                .await;
            made.map(|(client, connection)| {
                tokio::spawn(connection);
                client
            })
        };
        let client = connected.map_err(|error| self.failed(&error))?;
        // What is in the archive is removed from the ledger: it has to be on the disk, whatever the server's default is.
        client
            .batch_execute(
                "SELECT set_config('synchronous_commit', 'on', false)
                 WHERE current_setting('synchronous_commit') IN ('off', 'local')",
            )
            .await
            .map_err(|error| self.failed(&error))?;
        Ok(client)
    }

    /// The server's words name tables and columns; its details, which may name values, are left out.
    fn failed(&self, error: &tokio_postgres::Error) -> Error {
        let shown = &self.place.shown;
        if let Some(error) = error.as_db_error() {
            let code = error.code().code();
            let kind = if passes(code) {
                ErrorKind::LedgerUnavailable
            } else {
                ErrorKind::Config
            };
            return Error::new(
                kind,
                format!("the archive at {shown} answered {code}: {}", error.message()),
            );
        }
        let mut cause: &dyn std::error::Error = error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        Error::ledger(format!("the archive at {shown} cannot be reached: {cause}"))
    }
}

/// Whether what a server answers with this code passes by itself, or when there is room again. Everything else (no right
/// to write, a constraint, a limit of its own) is answered to every try, and a person has to look at it.
fn passes(code: &str) -> bool {
    const CLASSES: [&str; 8] = ["08", "25", "40", "53", "55", "57", "58", "XX"];
    code.get(..2).is_some_and(|class| CLASSES.contains(&class))
}

fn values(statement: &Statement) -> Vec<Sql<'_>> {
    statement
        .values
        .iter()
        .map(|value| match value {
            Value::Int(number) => {
                let number: Sql<'_> = number;
                number
            }
            Value::Text(text) => text,
        })
        .collect()
}

/// An unknown type of a value would be the server's guess: all are named.
fn types(statement: &Statement) -> Vec<Type> {
    let types = statement.values.iter().map(|value| match value {
        Value::Int(_) => Type::INT8,
        Value::Text(_) => Type::TEXT,
    });
    types.collect()
}

fn read(rows: &[tokio_postgres::Row]) -> Result<Vec<Row>> {
    let mut found = Vec::with_capacity(rows.len());
    for row in rows {
        let mut values = Vec::with_capacity(row.len());
        for (index, column) in row.columns().iter().enumerate() {
            let value = if *column.type_() == Type::INT8 {
                row.try_get(index).map(Value::Int)
            } else {
                row.try_get(index).map(Value::Text)
            };
            values.push(value.map_err(|e| unreadable("a column has another type").because(e.to_string()))?);
        }
        found.push(Row::new(values));
    }
    Ok(found)
}

#[async_trait]
impl Database for Postgres {
    async fn prepare(&self, tables: &[&'static str], then: Statement) -> Result<Vec<Row>> {
        let rows = self
            .run(async |client| {
                let transaction = client.transaction().await?;
                transaction
                    .execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK])
                    .await?;
                for table in tables {
                    transaction.batch_execute(table).await?;
                }
                let prepared = transaction.prepare_typed(&then.sql, &types(&then)).await?;
                let rows = transaction.query(&prepared, &values(&then)).await?;
                transaction.commit().await?;
                Ok(rows)
            })
            .await?;
        read(&rows)
    }

    async fn has(&self, table: &'static str) -> Result<bool> {
        let tables = Statement::new(
            "SELECT 1::bigint WHERE to_regclass($1) IS NOT NULL",
            [table.into()],
        );
        Ok(!self.rows(tables).await?.is_empty())
    }

    async fn rows(&self, statement: Statement) -> Result<Vec<Row>> {
        let rows = self
            .run(async |client| {
                let prepared = client.prepare_typed(&statement.sql, &types(&statement)).await?;
                client.query(&prepared, &values(&statement)).await
            })
            .await?;
        read(&rows)
    }

    async fn write(&self, guard: Statement, rest: Vec<Statement>) -> Result<bool> {
        self.run(async |client| {
            let transaction = client.transaction().await?;
            let prepared = transaction.prepare_typed(&guard.sql, &types(&guard)).await?;
            if transaction.execute(&prepared, &values(&guard)).await? != 1 {
                transaction.rollback().await?;
                return Ok(false);
            }
            // Each text is prepared once; then statements that follow each other are sent without waiting.
            let mut from = 0;
            while let Some(first) = rest.get(from) {
                let alike = rest.iter().skip(from).take_while(|next| next.sql == first.sql);
                let alike: Vec<&Statement> = alike.collect();
                let prepared = transaction.prepare_typed(&first.sql, &types(first)).await?;
                let given: Vec<Vec<Sql<'_>>> = alike.iter().map(|statement| values(statement)).collect();
                try_join_all(given.iter().map(|values| transaction.execute(&prepared, values))).await?;
                from = from.saturating_add(alike.len());
            }
            transaction.commit().await?;
            Ok(true)
        })
        .await
    }
}
