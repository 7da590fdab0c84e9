//! What needs no ledger: words, keys, names, and the command line.

use std::ffi::OsString;

use keybrake::idempotency;
use keybrake_binding::helpers as shared;
use pyo3::prelude::{PyResult, Python};
use pyo3::pyfunction;

use crate::errors::{guarded, to_python};

/// A refusal in words for a language model.
#[pyfunction]
pub(crate) fn for_model(py: Python<'_>, denial: &str) -> PyResult<String> {
    guarded(py, || {
        shared::for_model(denial).map_err(|error| to_python(py, &error))
    })
}

/// Waits until no step of a ledger file is in progress in this process, and lets none begin.
#[pyfunction]
pub(crate) fn before_fork(py: Python<'_>) {
    py.detach(keybrake::ledger::sqlite::fork::before);
}

/// Lets steps begin again.
#[pyfunction]
pub(crate) fn after_fork() {
    keybrake::ledger::sqlite::fork::after();
}

/// SHA-256 over run and step, 48 hex digits.
#[pyfunction]
pub(crate) fn step_key(py: Python<'_>, run: &str, step: &str) -> PyResult<String> {
    guarded(py, || {
        idempotency::step_key(run, step).map_err(|error| to_python(py, &error))
    })
}

/// SHA-256 over fields (a JSON object), 32 hex digits. Values that are not text count as their JSON.
#[pyfunction]
pub(crate) fn content_key(py: Python<'_>, fields: &str) -> PyResult<String> {
    guarded(py, || {
        shared::content_key(fields).map_err(|error| to_python(py, &error))
    })
}

/// `run-item`.
#[pyfunction]
pub(crate) fn item_key(py: Python<'_>, run: &str, item: &str) -> PyResult<String> {
    guarded(py, || {
        idempotency::item_key(run, item).map_err(|error| to_python(py, &error))
    })
}

/// Names of a vendor's operations.
#[pyfunction]
pub(crate) fn operations(py: Python<'_>, vendor: &str) -> PyResult<Vec<&'static str>> {
    shared::operations(vendor).map_err(|error| to_python(py, &error))
}

/// Runs the command line; answers its exit code.
#[pyfunction]
pub(crate) fn cli(py: Python<'_>, arguments: Vec<OsString>) -> PyResult<u8> {
    guarded(py, || Ok(py.detach(|| keybrake_cli::main(arguments))))
}

/// Panics, to test that a panic becomes an exception.
#[pyfunction]
#[expect(clippy::panic, reason = "its purpose")]
pub(crate) fn panic(py: Python<'_>) -> PyResult<()> {
    guarded(py, || panic!("asked to panic"))
}
