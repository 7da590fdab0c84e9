//! What needs no ledger: words, keys, names, and the command line.

use std::collections::BTreeMap;
use std::ffi::OsString;

use keybrake::policy::{Denial, words};
use keybrake::{Error, idempotency, vendors};
use pyo3::prelude::{PyResult, Python};
use pyo3::pyfunction;
use serde_json::Value;

use crate::errors::{guarded, to_python};

/// A refusal in words for a language model.
#[pyfunction]
pub(crate) fn for_model(py: Python<'_>, denial: &str) -> PyResult<String> {
    guarded(py, || {
        let denial: Denial = serde_json::from_str(denial)
            .map_err(|e| to_python(py, &Error::config("this is not a refusal of Keybrake").because(e)))?;
        Ok(words::for_model(&denial))
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
        let fields: BTreeMap<String, Value> = serde_json::from_str(fields).map_err(|e| {
            to_python(
                py,
                &Error::config("the fields must be a mapping by name").because(e),
            )
        })?;
        let texts = fields.into_iter().map(|(name, value)| match value {
            Value::String(text) => (name, text),
            other => (name, other.to_string()),
        });
        Ok(idempotency::content_key(&texts.collect()))
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
    let vendor = vendors::vendor(vendor)
        .ok_or_else(|| to_python(py, &Error::config(format!("no vendor {vendor:?}"))))?;
    Ok(vendor
        .operations()
        .iter()
        .map(|operation| operation.name)
        .collect())
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
