//! The call as the SDK hands it over: one buffer, parsed strictly, never repaired (security rules 1 to 10).
//!
//! The judge reads the exact bytes that will be sent. On anything that two parsers could read differently the
//! call is refused with [`Refusal`].

pub mod authority;
pub mod form;
pub mod headers;
pub mod json;
pub mod path;

use bytes::Bytes;

use crate::policy::Code;

/// A call as the host's SDK made it, before anything of ours is added.
#[derive(Clone)]
pub struct Call {
    /// HTTP method as given by the SDK; upper-cased by the shell.
    pub method: String,
    /// The whole URL as given, never normalised.
    pub url: String,
    /// Header names and values in order, the SDK's own `Authorization` (the vault key) included.
    pub headers: Vec<(String, String)>,
    /// The body; empty when there is none.
    pub body: Bytes,
}

impl std::fmt::Debug for Call {
    /// Shows method, URL and sizes; never header values or the body, which may carry secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Call")
            .field("method", &self.method)
            .field("url", &self.url.split('?').next().unwrap_or_default())
            .field("headers", &self.headers.len())
            .field("body_bytes", &self.body.len())
            .finish()
    }
}

/// Why a request cannot be judged: which code it is refused with, and what in it was wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// `request_malformed`, `vendor_not_allowed` or `endpoint_not_allowed`, …
    pub code: Code,
    /// What was wrong, where, and what to do; holds no value from the request that could be a secret.
    pub message: String,
}

impl Refusal {
    /// A refusal with this code and message.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}
