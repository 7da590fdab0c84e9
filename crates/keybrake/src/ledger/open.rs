//! From a URL to a ledger.

use std::sync::Arc;

use super::{Ledger, MemoryLedger};
use crate::clock::Clock;
use crate::error::{Error, Result};

/// Opens the ledger that a URL names: `memory:` (this process alone, for tests).
///
/// # Errors
/// `Config` for a URL that names no ledger; the message lists those that there are.
pub fn open(url: &str, clock: Arc<dyn Clock>) -> Result<Arc<dyn Ledger>> {
    match url.split_once(':') {
        Some(("memory", _)) => Ok(Arc::new(MemoryLedger::new(clock)?)),
        _ => Err(Error::config("this ledger is not supported yet; use memory:")),
    }
}
