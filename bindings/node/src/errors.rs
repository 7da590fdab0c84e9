//! Failures and panics as JavaScript errors. A refusal is not one of them: it is an answer.

use std::panic::{AssertUnwindSafe, catch_unwind};

use keybrake::Error;
use keybrake_binding::trouble::{kind, panicked, text};
use napi::Status;

/// A failure as `kind: text`; `errors.ts` makes the class that fits of it.
pub(crate) fn text_of(error: &Error) -> String {
    format!("{}: {}", kind(error), text(error))
}

/// A failure as an `Error` with this text.
pub(crate) fn to_node(error: &Error) -> napi::Error {
    napi::Error::new(Status::GenericFailure, text_of(error))
}

/// Runs it; a panic becomes an exception and never crosses into Node.
pub(crate) fn guarded<T>(work: impl FnOnce() -> keybrake::Result<T>) -> napi::Result<T> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|payload| Err(panicked(payload.as_ref())))
        .map_err(|error| to_node(&error))
}
