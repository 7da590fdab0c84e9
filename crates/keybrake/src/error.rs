//! What can go wrong besides a refusal. A refused call is not an error: it is a
//! [`Denial`], an ordinary answer.

use std::fmt;

use crate::policy::Denial;

/// The result of everything here that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of failure it was, so that callers can act without reading the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A setting is missing or wrong: ledger URL, secret, base URL, file permissions. Mend it and start again.
    Config,
    /// A policy or a budget is wrong. The message names the field, the place and the nearest valid name.
    Policy,
    /// The ledger refuses it, as a standing stop refuses that a key is issued: [`Error::denial`] says what stands in the
    /// way.
    Denied,
    /// The ledger cannot be reached, is closed, or its clock cannot be trusted. Nothing was sent.
    LedgerUnavailable,
    /// The ledger's server has just started, and nobody has confirmed that nothing was lost. Nothing was sent.
    LedgerRecovering,
    /// The ledger's content contradicts itself or cannot be read. Nothing was sent; do not retry.
    LedgerCorrupt,
    /// No such key, run, call, budget or file.
    NotFound,
    /// A vendor could not be reached or its answer could not be read.
    Vendor,
    /// A defect of ours.
    Internal,
}

/// A failure: what was wrong, where, and what to do. Never contains a secret.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
    denial: Option<Box<Denial>>,
}

impl Error {
    /// A failure of this kind with a message for a person.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
            denial: None,
        }
    }

    /// A refusal where a refusal is no answer ([`ErrorKind::Denied`]); its message is the denial's.
    pub fn denied(denial: Denial) -> Self {
        Self {
            denial: Some(Box::new(denial.clone())),
            ..Self::new(ErrorKind::Denied, denial.message)
        }
    }

    /// The refusal, when it is one.
    pub fn denial(&self) -> Option<&Denial> {
        self.denial.as_deref()
    }

    /// The same failure with what caused it.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What kind of failure it is.
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The message without its cause.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Shorthand for [`ErrorKind::Config`].
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Config, message)
    }

    /// Shorthand for [`ErrorKind::Policy`].
    pub fn policy(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Policy, message)
    }

    /// Shorthand for [`ErrorKind::LedgerUnavailable`].
    pub fn ledger(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::LedgerUnavailable, message)
    }

    /// Shorthand for [`ErrorKind::NotFound`].
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.source {
            Some(source) => Some(source.as_ref()),
            None => None,
        }
    }
}
