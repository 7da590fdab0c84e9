//! What an archive needs of a database: rows, and writes that all happen or none.

use std::borrow::Cow;
use std::fmt::Debug;

use async_trait::async_trait;

use crate::error::{Error, ErrorKind, Result};

/// A number or a text. Nothing that an archive keeps is ever absent: an empty text says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Int(i64),
    Text(String),
}

impl Value {
    /// A text as it will be kept; nothing of a number.
    pub(super) fn as_text(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Int(_) => "",
        }
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Int(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<&str> for Value {
    /// A database's text has no NUL, and one that names something stays recognisable without.
    fn from(text: &str) -> Self {
        Self::Text(text.replace('\0', "\u{fffd}"))
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        if text.contains('\0') {
            Self::from(text.as_str())
        } else {
            Self::Text(text)
        }
    }
}

/// A statement with its values, which stand in it as `$1`, `$2`, …
#[derive(Clone, Debug)]
pub(super) struct Statement {
    pub(super) sql: Cow<'static, str>,
    pub(super) values: Vec<Value>,
}

impl Statement {
    pub(super) fn new(sql: impl Into<Cow<'static, str>>, values: impl IntoIterator<Item = Value>) -> Self {
        Self {
            sql: sql.into(),
            values: values.into_iter().collect(),
        }
    }
}

/// A row of an answer, read from the left.
#[derive(Debug)]
pub(super) struct Row(std::vec::IntoIter<Value>);

impl Row {
    pub(super) fn new(values: Vec<Value>) -> Self {
        Self(values.into_iter())
    }

    pub(super) fn text(&mut self) -> Result<String> {
        match self.0.next() {
            Some(Value::Text(text)) => Ok(text),
            _ => Err(unreadable("a column is not a text")),
        }
    }

    pub(super) fn int(&mut self) -> Result<i64> {
        match self.0.next() {
            Some(Value::Int(number)) => Ok(number),
            _ => Err(unreadable("a column is not a number")),
        }
    }

    pub(super) fn count(&mut self) -> Result<u64> {
        u64::try_from(self.int()?).map_err(|_| unreadable("a number is below zero"))
    }
}

/// A database that holds an archive's tables.
#[async_trait]
pub(super) trait Database: Send + Sync + Debug {
    /// Makes the tables if they are not there, in one transaction that nobody else is in; then answers the rows of
    /// `then`.
    async fn prepare(&self, tables: &[&'static str], then: Statement) -> Result<Vec<Row>>;

    /// Whether there is a table of this name. Every failure to find that out is its own error.
    async fn has(&self, table: &'static str) -> Result<bool>;

    /// The rows of an answer.
    async fn rows(&self, statement: Statement) -> Result<Vec<Row>>;

    /// One transaction, durable when this returns: `guard` has to change exactly one row, or nothing is written at all
    /// and the answer is `false`.
    async fn write(&self, guard: Statement, rest: Vec<Statement>) -> Result<bool>;
}

pub(super) fn unreadable(what: &str) -> Error {
    Error::new(
        ErrorKind::LedgerCorrupt,
        format!("the archive cannot be read: {what}"),
    )
}
