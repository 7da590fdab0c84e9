//! What needs no ledger: words, keys, names, and the command line.

use std::ffi::OsString;

use keybrake::idempotency;
use keybrake_binding::helpers as shared;
use napi_derive::napi;

use crate::errors::guarded;

/// The version of the native module.
#[napi]
pub fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// A refusal, as JSON, in words for a language model.
#[napi]
pub fn for_model(denial: String) -> napi::Result<String> {
    guarded(|| shared::for_model(&denial))
}

/// SHA-256 over run and step, 48 hex digits.
#[napi]
pub fn step_key(run: String, step: String) -> napi::Result<String> {
    guarded(|| idempotency::step_key(&run, &step))
}

/// SHA-256 over fields (a JSON object), 32 hex digits. Values that are not text count as their JSON.
#[napi]
pub fn content_key(fields: String) -> napi::Result<String> {
    guarded(|| shared::content_key(&fields))
}

/// `run-item`.
#[napi]
pub fn item_key(run: String, item: String) -> napi::Result<String> {
    guarded(|| idempotency::item_key(&run, &item))
}

/// Names of a vendor's operations.
#[napi]
pub fn operations(vendor: String) -> napi::Result<Vec<&'static str>> {
    guarded(|| shared::operations(&vendor))
}

/// Runs the command line; answers its exit code. `arguments` begins with the program's name.
#[napi]
pub fn cli(arguments: Vec<String>) -> napi::Result<u32> {
    guarded(|| {
        let arguments = arguments.into_iter().map(OsString::from).collect::<Vec<_>>();
        Ok(u32::from(keybrake_cli::main(arguments)))
    })
}

/// Panics, to test that a panic becomes an exception.
#[napi]
pub fn panic() -> napi::Result<()> {
    guarded(asked)
}

#[expect(clippy::panic, reason = "its purpose")]
fn asked() -> keybrake::Result<()> {
    panic!("asked to panic")
}
