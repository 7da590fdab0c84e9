//! How a command ends.

use keybrake::{Error, ErrorKind};

/// Exit codes that scripts rely on.
pub(crate) mod exit {
    pub(crate) const OK: u8 = 0;
    pub(crate) const REFUSED: u8 = 1;
    pub(crate) const USAGE: u8 = 2;
    pub(crate) const LEDGER: u8 = 3;
    pub(crate) const NOT_FOUND: u8 = 4;
}

/// Why a command did not do what it was asked to.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: u8,
    /// For scripts, such as `policy`.
    pub(crate) kind: &'static str,
    /// For people.
    pub(crate) message: String,
}

/// The exit code, or why there is nothing to show.
pub(crate) type Outcome = Result<u8, Failure>;

impl Failure {
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self {
            code: exit::USAGE,
            kind: "usage",
            message: message.into(),
        }
    }

    pub(crate) fn refused(message: impl Into<String>) -> Self {
        Self {
            code: exit::REFUSED,
            kind: "refused",
            message: message.into(),
        }
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self {
            code: exit::NOT_FOUND,
            kind: "not_found",
            message: message.into(),
        }
    }

    /// Something that will come.
    pub(crate) fn later(what: &str) -> Self {
        Self {
            code: exit::USAGE,
            kind: "not_available_yet",
            message: format!("{what} is not available yet"),
        }
    }

    /// Whether the reader of our output went away, which is nobody's mistake.
    pub(crate) fn is_closed_pipe(&self) -> bool {
        self.kind == "closed_pipe"
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let (code, kind) = match error.kind() {
            ErrorKind::Config => (exit::USAGE, "config"),
            ErrorKind::Policy => (exit::REFUSED, "policy"),
            ErrorKind::Denied => {
                let code = error.denial().map(|denial| denial.code.as_str());
                (exit::REFUSED, code.unwrap_or("denied"))
            }
            ErrorKind::LedgerUnavailable => (exit::LEDGER, "ledger_unavailable"),
            ErrorKind::LedgerRecovering => (exit::LEDGER, "ledger_recovering"),
            ErrorKind::LedgerCorrupt => (exit::LEDGER, "ledger_corrupt"),
            ErrorKind::NotFound => (exit::NOT_FOUND, "not_found"),
            ErrorKind::Vendor => (exit::REFUSED, "vendor"),
            _ => (exit::REFUSED, "internal"),
        };
        Self {
            code,
            kind,
            message: error.to_string(),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        let closed = error.kind() == std::io::ErrorKind::BrokenPipe;
        Self {
            code: if closed { exit::OK } else { exit::USAGE },
            kind: if closed { "closed_pipe" } else { "io" },
            message: error.to_string(),
        }
    }
}
