//! What an outcome goes through on its way into the books, whoever still waits for it.
//!
//! A caller can go away at any moment: a timeout around its call, Ctrl-C, a closed program. What is known by then is
//! recorded all the same, on a task of its own; [`UnderWay`] lets whoever closes the engine wait for such tasks.

use std::sync::Arc;

use tokio::sync::watch;

use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::journal::Journal;
use crate::ledger::{Ledger, SettleAnswer, Settlement};

/// Records outcomes in the ledger, else in the journal.
#[derive(Debug)]
pub(super) struct Recorder {
    ledger: Arc<dyn Ledger>,
    journal: Option<Arc<Journal>>,
    clock: Arc<dyn Clock>,
    tasks: Arc<Tasks>,
}

/// Tasks that record something, of the process that began them: a forked child has none of its parent's.
#[derive(Debug)]
struct Tasks {
    count: watch::Sender<(u32, usize)>,
}

/// A task that records something; it is over when this is dropped.
#[derive(Debug)]
pub(crate) struct UnderWay {
    tasks: Arc<Tasks>,
    pid: u32,
}

impl Recorder {
    pub(super) fn new(ledger: Arc<dyn Ledger>, journal: Option<Arc<Journal>>, clock: Arc<dyn Clock>) -> Self {
        let count = watch::Sender::new((std::process::id(), 0));
        Self {
            ledger,
            journal,
            clock,
            tasks: Arc::new(Tasks { count }),
        }
    }

    pub(super) fn ledger(&self) -> &Arc<dyn Ledger> {
        &self.ledger
    }

    /// Tries again: repeating a settlement is harmless, and a connection may have been lost just now. With a journal to
    /// fall back on, once is enough.
    pub(super) async fn record(&self, settlement: &Settlement) -> Result<SettleAnswer> {
        let mut last = self.ledger.settle(settlement.clone()).await;
        let again = if self.journal.is_some() { 1 } else { 2 };
        for _ in 0..again {
            match last {
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::LedgerUnavailable | ErrorKind::LedgerRecovering
                    ) =>
                {
                    last = self.ledger.settle(settlement.clone()).await;
                }
                answered => return answered,
            }
        }
        last
    }

    /// Writes an outcome that the ledger did not take to the journal; answers whether it is safe there.
    pub(super) async fn keep(&self, settlement: Settlement, error: &Error) -> bool {
        let call_id = settlement.call_id.clone();
        // What a ledger refuses for good, it would refuse again. A call that it does not know may have been lost with its
        // server: what became of it is not thrown away.
        let refused = error.kind() == ErrorKind::Internal;
        let Some(journal) = self.journal.as_ref().filter(|_| !refused) else {
            tracing::error!(%call_id, %error, "an outcome could not be recorded; its hold stands");
            return false;
        };
        match journal.append(settlement, self.clock.now_ms()).await {
            Ok(()) => {
                tracing::warn!(%call_id, %error, "an outcome waits in the journal for the ledger; its hold stands until then");
                true
            }
            Err(journal) => {
                tracing::error!(%call_id, %error, %journal, "an outcome could be recorded nowhere; its hold stands");
                false
            }
        }
    }

    /// Counts a task from now on, whether or not it has begun to run.
    pub(super) fn under_way(&self) -> UnderWay {
        let pid = std::process::id();
        self.tasks.count.send_modify(|count| {
            let others = if count.0 == pid { count.1 } else { 0 };
            *count = (pid, others.saturating_add(1));
        });
        UnderWay {
            tasks: Arc::clone(&self.tasks),
            pid,
        }
    }

    /// Waits until none is left.
    pub(super) async fn idle(&self) {
        let mut count = self.tasks.count.subscribe();
        let pid = std::process::id();
        let none = |count: &(u32, usize)| count.0 != pid || count.1 == 0;
        // The sender lives as long as this does.
        let _ = count.wait_for(none).await;
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.tasks.count.send_modify(|count| {
            if count.0 == self.pid {
                count.1 = count.1.saturating_sub(1);
            }
        });
    }
}
