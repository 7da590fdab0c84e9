//! Failures by name, and panics as failures. A refusal is neither: it is an answer.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use keybrake::{Error, ErrorKind, Result};

/// The name of a failure's kind, by which a host chooses its class.
pub fn kind(error: &Error) -> &'static str {
    match error.kind() {
        ErrorKind::Config => "config",
        ErrorKind::Policy => "policy",
        ErrorKind::Denied => "denied",
        ErrorKind::LedgerUnavailable => "ledger_unavailable",
        ErrorKind::LedgerRecovering => "ledger_recovering",
        ErrorKind::LedgerCorrupt => "ledger_corrupt",
        ErrorKind::NotFound => "not_found",
        ErrorKind::Vendor => "vendor",
        _ => "internal",
    }
}

/// What a host is told besides the kind: the denial as JSON for `denied`, else the message.
pub fn text(error: &Error) -> String {
    let denial = error.denial().map(serde_json::to_string);
    denial
        .and_then(std::result::Result::ok)
        .unwrap_or_else(|| error.to_string())
}

/// What a panic becomes. The hook has already written where it happened to standard error.
pub fn panicked(payload: &(dyn Any + Send)) -> Error {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    Error::new(
        ErrorKind::Internal,
        format!(
            "a defect inside Keybrake ({text}); a call under way may have taken effect, and what it had reserved stays \
             held until it is resolved"
        ),
    )
}

/// A future whose panic is its failure.
pub struct Guarded<T>(Pin<Box<dyn Future<Output = Result<T>> + Send>>);

impl<T> Guarded<T> {
    /// Guards it.
    pub fn new(future: impl Future<Output = Result<T>> + Send + 'static) -> Self {
        Self(Box::pin(future))
    }
}

impl<T> std::fmt::Debug for Guarded<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guarded").finish_non_exhaustive()
    }
}

impl<T> Future for Guarded<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let future = self.0.as_mut();
        catch_unwind(AssertUnwindSafe(|| future.poll(cx)))
            .unwrap_or_else(|payload| Poll::Ready(Err(panicked(payload.as_ref()))))
    }
}
