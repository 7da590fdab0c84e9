//! Stripe's idempotency semantics, per account and key.
//!
//! * v1, POST only: the first request's status and body are kept for 24 hours once its endpoint began to execute,
//!   success or failure, also a 402 and a 500, and are sent again with `Idempotent-Replayed: true`.
//! * What ended before execution is not kept: validation failures, 401, 429, a conflict.
//! * While the first request runs, a second one gets 409 `idempotency_key_in_use`.
//! * The same key with other parameters gets 400 `idempotency_error`.
//! * v2, POST and DELETE: only successes are kept, for 30 days; a failure may be tried again.

use std::collections::HashMap;

use bytes::Bytes;

use super::error::ApiError;

const HOUR_MS: i64 = 3_600_000;

/// How long a v1 key is kept, in milliseconds.
pub(super) const V1_KEPT_MS: i64 = 24 * HOUR_MS;
/// How long a v2 key is kept, in milliseconds.
pub(super) const V2_KEPT_MS: i64 = 30 * 24 * HOUR_MS;

/// Identifies a request within the store: acting account and key.
pub(super) type Slot = (String, String);

/// A kept reply.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub(super) status: u16,
    pub(super) body: Bytes,
    /// The request that was executed.
    pub(super) request_id: String,
}

/// What is remembered of the first request with a key.
#[derive(Debug)]
pub(super) struct First {
    /// Method and path.
    pub(super) endpoint: String,
    /// SHA-256 of the canonical parameters.
    pub(super) fingerprint: [u8; 32],
    /// Until when the key is known, Unix milliseconds.
    pub(super) expires_ms: i64,
}

#[derive(Debug)]
struct Entry {
    first: First,
    /// `None` while the first request runs.
    kept: Option<Kept>,
}

/// What the store says of a request with a key.
#[derive(Debug)]
pub(super) enum Known {
    /// Never seen: it is now in flight.
    New,
    /// Executed before: send this again.
    Replay(Kept),
}

/// All keys.
#[derive(Debug, Default)]
pub(super) struct Keys {
    entries: HashMap<Slot, Entry>,
}

impl Keys {
    /// Looks a request up, and marks it in flight if it is new.
    pub(super) fn begin(&mut self, slot: &Slot, this: First, now_ms: i64) -> Result<Known, ApiError> {
        if let Some(entry) = self.entries.get(slot)
            && (entry.kept.is_none() || now_ms < entry.first.expires_ms)
        {
            return match &entry.kept {
                _ if entry.first.endpoint != this.endpoint => {
                    Err(other_endpoint(&slot.1, &entry.first.endpoint))
                }
                _ if entry.first.fingerprint != this.fingerprint => Err(other_parameters(&slot.1)),
                Some(kept) => Ok(Known::Replay(kept.clone())),
                None => Err(in_use(&slot.1)),
            };
        }
        let entry = Entry {
            first: this,
            kept: None,
        };
        self.entries.insert(slot.clone(), entry);
        Ok(Known::New)
    }

    /// The request ended: keep its reply, or forget that it came.
    pub(super) fn end(&mut self, slot: &Slot, reply: Option<Kept>) {
        match reply {
            Some(kept) => {
                if let Some(entry) = self.entries.get_mut(slot) {
                    entry.kept = Some(kept);
                }
            }
            None => {
                self.entries.remove(slot);
            }
        }
    }
}

fn other_endpoint(key: &str, first: &str) -> ApiError {
    misused(
        key,
        &format!("for the same endpoint they were first used for ('{first}')"),
    )
}

fn other_parameters(key: &str) -> ApiError {
    misused(key, "with the same parameters they were first used with")
}

fn misused(key: &str, how: &str) -> ApiError {
    ApiError::new(
        400,
        "idempotency_error",
        format!(
            "Keys for idempotent requests can only be used {how}. Try using a key other than '{key}' if you meant to \
             execute a different request."
        ),
    )
}

fn in_use(key: &str) -> ApiError {
    ApiError::new(
        409,
        "invalid_request_error",
        format!(
            "There is currently another in-progress request using this Idempotent Key (that probably means you submitted \
             twice, and the other request is still going through): {key}. Please try again later."
        ),
    )
    .code("idempotency_key_in_use")
}
