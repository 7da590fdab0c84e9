//! What the calls of one engine share: its settings and the ledger opened with them.

use std::sync::Arc;
use std::time::Duration;

use keybrake::{Error, ErrorKind, Keybrake, Result};
use tokio::sync::{OnceCell, watch};

use crate::settings::Settings;
use crate::trouble::Guarded;

/// How long closing waits for calls under way to notice.
pub const CLOSING: Duration = Duration::from_secs(2);
/// How long closing waits for the ledger.
const FLUSHING: Duration = Duration::from_secs(10);

/// What calls need, shared by all of them.
#[derive(Debug)]
pub struct Core {
    settings: Arc<Settings>,
    opened: OnceCell<Keybrake>,
}

impl Core {
    /// Nothing is opened before the first use.
    pub fn new(settings: Arc<Settings>) -> Self {
        Self {
            settings,
            opened: OnceCell::new(),
        }
    }

    /// What it was made with.
    pub const fn settings(&self) -> &Arc<Settings> {
        &self.settings
    }

    /// The opened ledger; opens it on first use, once.
    ///
    /// # Errors
    /// As `Keybrake::builder().build()`; the next use tries again.
    pub async fn keybrake(&self) -> Result<&Keybrake> {
        self.opened.get_or_try_init(|| self.settings.open()).await
    }

    /// Waits until nobody works with it any more (each worker holds a receiver of `closing`, which says `true`),
    /// then writes down what is lazy.
    ///
    /// # Errors
    /// When the ledger does not flush within ten seconds, or says why it cannot.
    pub async fn ended(&self, closing: &watch::Sender<bool>) -> Result<()> {
        let _ = tokio::time::timeout(CLOSING, closing.closed()).await;
        match self.opened.get() {
            Some(keybrake) => tokio::time::timeout(FLUSHING, keybrake.flush())
                .await
                .unwrap_or_else(|_| Err(Error::ledger("the ledger did not flush in time"))),
            None => Ok(()),
        }
    }
}

/// The work, ended early when the engine is closed. A panic in it is its failure.
///
/// The work of a call is some 16 KiB: it is put on the heap here, and not moved from future to future.
///
/// # Errors
/// The work's own, and that the engine was closed.
pub fn until_closed<T: 'static>(
    mut closing: watch::Receiver<bool>,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> impl Future<Output = Result<T>> + Send + 'static {
    let work = Guarded::new(work);
    async move {
        tokio::select! {
            biased;
            _ = closing.wait_for(|closing| *closing) => Err(closed()),
            ended = work => ended,
        }
    }
}

/// What work under way gets when its engine is closed: calls, and questions too.
pub fn closed() -> Error {
    Error::new(
        ErrorKind::Config,
        "this Keybrake was closed; if a call was under way, it may have taken effect, and what it had reserved stays held",
    )
}
