//! Failures and panics as Python exceptions. A refusal is not one of them: it is an answer.

use std::panic::{AssertUnwindSafe, catch_unwind};

use keybrake::Error;
use keybrake_binding::trouble::{kind, panicked, text};
use pyo3::prelude::{PyAnyMethods, PyErr, PyResult, Python};
use pyo3::types::PyModule;

/// A failure as `keybrake.KeybrakeError` or the child that fits its kind.
pub(crate) fn to_python(py: Python<'_>, error: &Error) -> PyErr {
    let made = PyModule::import(py, "keybrake._errors")
        .and_then(|errors| errors.getattr("error_of_kind"))
        .and_then(|make| make.call1((kind(error), text(error))));
    made.map_or_else(|broken| broken, PyErr::from_value)
}

/// Runs it; a panic becomes an exception and never crosses into Python.
pub(crate) fn guarded<T>(py: Python<'_>, work: impl FnOnce() -> PyResult<T>) -> PyResult<T> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|payload| Err(to_python(py, &panicked(payload.as_ref()))))
}
