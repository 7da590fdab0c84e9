//! The log of requests that arrived, so that a test can say what left the process and what did not.
//! It holds no bodies and no secrets.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::number::{u64_of, usize_of};

/// How many requests are remembered; older ones are forgotten and counted.
const KEPT: usize = 100_000;

/// What kind of credential a request brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Credential {
    /// None at all.
    None,
    /// `Bearer sk_test_…`.
    BearerTestKey,
    /// `Basic` with `sk_test_…` as the user.
    BasicTestKey,
    /// A vault key, which a vendor does not know.
    VaultKey,
    /// A live key. The simulator refuses it; it should never come here.
    LiveKey,
    /// Anything else.
    Other,
}

/// One request that arrived.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestLog {
    /// Position from 1 since the start or the last reset.
    pub seq: u64,
    /// The simulator's time of arrival, Unix milliseconds.
    pub at_ms: i64,
    /// Method.
    pub method: String,
    /// Path as sent, without the query.
    pub path: String,
    /// Query as sent.
    pub query: String,
    /// The `Idempotency-Key` header.
    pub idempotency_key: Option<String>,
    /// SHA-256 of the body as sent, lower-case hex.
    pub body_sha256: String,
    /// Length of the body in bytes.
    pub body_bytes: u64,
    /// What kind of credential it brought; never the credential.
    pub authorization: Credential,
    /// The `Stripe-Account` or `Stripe-Context` header.
    pub account: Option<String>,
    /// The `Stripe-Context` header alone.
    pub context: Option<String>,
    /// The `Stripe-Version` header.
    pub version: Option<String>,
    /// The `Content-Type` header.
    pub content_type: Option<String>,
    /// The id that the reply carries in `Request-Id`.
    pub request_id: String,
    /// The status answered; `None` while it waits or when the connection was closed without an answer.
    pub status: Option<u16>,
    /// Whether the endpoint ran for this request (a replay does not run).
    pub executed: bool,
    /// Whether the answer was a replay.
    pub replayed: bool,
    /// The fault that it met.
    pub fault: Option<u64>,
}

/// The log.
#[derive(Debug, Default)]
pub(super) struct Requests {
    rows: VecDeque<RequestLog>,
    forgotten: u64,
}

impl Requests {
    /// Writes an arrival down; answers its position.
    pub(super) fn arrive(&mut self, mut row: RequestLog) -> u64 {
        row.seq = self.count().saturating_add(1);
        let seq = row.seq;
        self.rows.push_back(row);
        if self.rows.len() > KEPT {
            self.rows.pop_front();
            self.forgotten = self.forgotten.saturating_add(1);
        }
        seq
    }

    /// A row, to complete it. Rows from before a reset are gone.
    pub(super) fn get_mut(&mut self, seq: u64) -> Option<&mut RequestLog> {
        let index = usize_of(seq.checked_sub(self.forgotten)?.checked_sub(1)?);
        self.rows.get_mut(index)
    }

    /// Rows that are remembered, oldest first.
    pub(super) fn rows(&self) -> impl Iterator<Item = &RequestLog> {
        self.rows.iter()
    }

    /// How many requests arrived in all.
    pub(super) fn count(&self) -> u64 {
        self.forgotten.saturating_add(u64_of(self.rows.len()))
    }
}
