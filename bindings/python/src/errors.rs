//! Failures and panics as Python exceptions. A refusal is not one of them: it is an answer.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use keybrake::{Error, ErrorKind, Result};
use pyo3::prelude::{PyAnyMethods, PyErr, PyResult, Python};
use pyo3::types::PyModule;

/// A failure as `keybrake.KeybrakeError` or the child that fits its kind.
pub(crate) fn to_python(py: Python<'_>, error: &Error) -> PyErr {
    let kind = match error.kind() {
        ErrorKind::Config => "config",
        ErrorKind::Policy => "policy",
        ErrorKind::LedgerUnavailable => "ledger_unavailable",
        ErrorKind::LedgerRecovering => "ledger_recovering",
        ErrorKind::LedgerCorrupt => "ledger_corrupt",
        ErrorKind::NotFound => "not_found",
        ErrorKind::Vendor => "vendor",
        _ => "internal",
    };
    let made = PyModule::import(py, "keybrake._errors")
        .and_then(|errors| errors.getattr("error_of_kind"))
        .and_then(|make| make.call1((kind, error.to_string())));
    made.map_or_else(|broken| broken, PyErr::from_value)
}

/// What a panic becomes. The hook has already written where it happened to standard error.
fn panicked(payload: &(dyn Any + Send)) -> Error {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    Error::new(
        ErrorKind::Internal,
        format!(
            "a defect inside Keybrake ({text}); what the call had reserved stays held until it is resolved"
        ),
    )
}

/// Runs it; a panic becomes an exception and never crosses into Python.
pub(crate) fn guarded<T>(py: Python<'_>, work: impl FnOnce() -> PyResult<T>) -> PyResult<T> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|payload| Err(to_python(py, &panicked(payload.as_ref()))))
}

/// A future whose panic is a failure.
pub(crate) struct Guarded<T>(Pin<Box<dyn Future<Output = Result<T>> + Send>>);

impl<T> Guarded<T> {
    pub(crate) fn new(future: impl Future<Output = Result<T>> + Send + 'static) -> Self {
        Self(Box::pin(future))
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
