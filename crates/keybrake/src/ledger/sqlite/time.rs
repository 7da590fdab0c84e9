//! The clock of a handle, watched against the machine's boot clock also across processes.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use serde::{Deserialize, Serialize};

use super::schema::Kind;
use super::store::SqliteStore;
use crate::clock::Clock;
use crate::error::Result;
use crate::ledger::rules::ClockGuard;

/// What the ledger remembers of the clock: under one boot id, wall time minus boot time changes only when somebody
/// sets the clock (time servers that slew move both).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Trusted {
    boot_id: String,
    offset_ms: i64,
}

/// A handle's clock.
#[derive(Debug)]
pub(super) struct LedgerClock {
    clock: Arc<dyn Clock>,
    boot_id: Option<String>,
    /// For machines without a boot id: as it stood when the handle was opened or the clock accepted.
    opened_offset_ms: AtomicI64,
}

impl LedgerClock {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            boot_id: clock.boot_id(),
            opened_offset_ms: AtomicI64::new(ClockGuard::trusting(&*clock).offset_ms()),
            clock,
        }
    }

    /// The clock's reading, whether it jumped or not.
    pub(super) fn now_ms(&self) -> i64 {
        self.clock.now_ms()
    }

    /// The clock's reading.
    ///
    /// # Errors
    /// `LedgerUnavailable` when it jumped since it was last trusted.
    pub(super) fn read(&self, store: &mut SqliteStore<'_>) -> Result<i64> {
        let Some(boot_id) = &self.boot_id else {
            let offset_ms = self.opened_offset_ms.load(Ordering::SeqCst);
            return ClockGuard::with_offset_ms(offset_ms).read(&*self.clock);
        };
        match store.record::<Trusted>(Kind::Clock, "")? {
            Some(trusted) if trusted.boot_id == *boot_id => {
                ClockGuard::with_offset_ms(trusted.offset_ms).read(&*self.clock)
            }
            // The first process since the machine started: nothing to compare with.
            _ => {
                self.trust(store)?;
                Ok(self.clock.now_ms())
            }
        }
    }

    /// Trusts the clock as it stands from now on.
    pub(super) fn trust(&self, store: &mut SqliteStore<'_>) -> Result<()> {
        let offset_ms = ClockGuard::trusting(&*self.clock).offset_ms();
        self.opened_offset_ms.store(offset_ms, Ordering::SeqCst);
        match &self.boot_id {
            Some(boot_id) => store.put_record(
                Kind::Clock,
                "",
                &Trusted {
                    boot_id: boot_id.clone(),
                    offset_ms,
                },
            ),
            None => Ok(()),
        }
    }
}
