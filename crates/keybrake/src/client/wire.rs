//! What carries requests where there is no network: the simulation's own (`keybrake_testkit::sim`). Everybody else has
//! our HTTP client.

use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;

use crate::brake::Prepared;
use crate::vendors::Reply;

/// Carries one request, without repeating it.
#[async_trait]
pub trait Wire: Send + Sync + Debug {
    /// Connects, then asks `first_byte` whether the body may leave, and sends the request only if it says so. `timeout`
    /// is for all of it.
    ///
    /// # Errors
    /// Why there is no reply.
    async fn exchange(
        &self,
        request: &Prepared,
        first_byte: &mut (dyn FnMut() -> bool + Send),
        timeout: Duration,
    ) -> Result<Reply, NoReply>;
}

/// Why a request that was carried has no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoReply {
    /// No connection was made.
    NoConnection,
    /// The connection ended, or the body was not let go.
    ConnectionLost,
    /// Nothing came in time.
    Timeout,
}

impl NoReply {
    /// In a word, as our HTTP client says it.
    pub(super) const fn reason(self) -> &'static str {
        match self {
            Self::NoConnection => "no_connection",
            Self::ConnectionLost => "connection_lost",
            Self::Timeout => super::stream::TIMEOUT,
        }
    }
}
