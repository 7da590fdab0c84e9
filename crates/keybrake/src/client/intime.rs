//! A look at the clock when a connection stands, for requests without a body that cost something or change something.
//!
//! Such a request has no first byte of a body to be asked for ([`TimedBody`](super::body::TimedBody)), and connecting can
//! take as long as a laptop sleeps. So it gets a connection of its own, and the permit's deadline is looked at when that
//! is made, which is the last thing that is waited for before the request is written.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tower_layer::Layer;
use tower_service::Service;

use super::body::Expired;
use crate::clock::Clock;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

tokio::task_local! {
    /// The deadline of the request that is being sent: its connection is made as a part of it.
    static SEND_BEFORE: SendBefore;
}

/// Until when the first byte has to leave, on the boot clock.
#[derive(Clone, Debug)]
pub(super) struct SendBefore {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) boot_ms: i64,
}

impl SendBefore {
    fn is_over(&self) -> bool {
        self.clock.boot_ms() >= self.boot_ms
    }

    /// Sends under this deadline.
    pub(super) async fn send<T>(self, sending: impl Future<Output = T>) -> T {
        SEND_BEFORE.scope(self, sending).await
    }
}

/// Makes connections that are refused when they come too late. One outside of a request with a deadline is refused too.
#[derive(Clone, Copy, Debug)]
pub(super) struct InTime;

impl<S> Layer<S> for InTime {
    type Service = Connects<S>;

    fn layer(&self, inner: S) -> Connects<S> {
        Connects(inner)
    }
}

#[derive(Clone, Debug)]
pub(super) struct Connects<S>(S);

impl<S, R> Service<R> for Connects<S>
where
    S: Service<R, Error = BoxError>,
    S::Future: Send + 'static,
    S::Response: Send,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, to: R) -> Self::Future {
        let connecting = self.0.call(to);
        Box::pin(async move {
            let connection = connecting.await?;
            match SEND_BEFORE.try_with(SendBefore::is_over) {
                Ok(false) => Ok(connection),
                Ok(true) | Err(_) => Err(Expired.into()),
            }
        })
    }
}
