//! What ends a call early: its caller, or the time that its caller gave it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use napi_derive::napi;
use tokio::sync::watch;
use tokio::time::Instant;

/// A way to give a call up: what an `AbortSignal` becomes.
#[napi]
pub struct Cancel {
    cancelled: watch::Sender<bool>,
}

#[napi]
impl Cancel {
    /// Not cancelled.
    #[napi(constructor)]
    pub fn new() -> Self {
        Self {
            cancelled: watch::Sender::new(false),
        }
    }

    /// Gives up every call that was started with it.
    #[napi]
    pub fn cancel(&self) {
        self.cancelled.send_replace(true);
    }

    fn heard(&self) -> watch::Receiver<bool> {
        self.cancelled.subscribe()
    }
}

/// Ends when it is cancelled, else never.
async fn until(cancelled: Option<watch::Receiver<bool>>) {
    if let Some(mut cancelled) = cancelled
        && cancelled.wait_for(|cancelled| *cancelled).await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}

/// Whether a call was given up because its time was over.
#[derive(Clone, Default)]
pub(crate) struct Overdue(Arc<AtomicBool>);

impl Overdue {
    pub(crate) fn is(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// What ends when the caller gives the call up by `cancel`, or `most_ms` from now on (0: never); the latter is told apart.
pub(crate) fn given_up(
    cancel: Option<&Cancel>,
    most_ms: u32,
) -> (impl Future<Output = ()> + Send + use<>, Overdue) {
    let cancelled = cancel.map(Cancel::heard);
    let most = (most_ms > 0).then(|| Duration::from_millis(u64::from(most_ms)));
    let deadline = most.and_then(|most| Instant::now().checked_add(most));
    let overdue = Overdue::default();
    let told = overdue.clone();
    let ended = async move {
        tokio::select! {
            biased;
            () = until(cancelled) => {}
            () = over(deadline) => told.0.store(true, Ordering::Release),
        }
    };
    (ended, overdue)
}

/// Ends at the deadline; never without one.
async fn over(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
