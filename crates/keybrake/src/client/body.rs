//! A request body that looks at the clock when its first byte is asked for.
//!
//! Connecting and waiting for a pooled connection come after `.send()`, so a check before it is too early. This
//! body is asked for its bytes when the connection is ready to take them; past `send_before` it fails and
//! nothing leaves. It also tells whether it was ever asked: if not, the vendor cannot have executed the call.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::clock::Clock;

const WAITING: u8 = 0;
const TAKEN: u8 = 1;
const EXPIRED: u8 = 2;

/// What became of a body, readable after the request is gone.
#[derive(Clone, Debug)]
pub(super) struct Fate(Arc<AtomicU8>);

impl Fate {
    /// Whether any byte was handed to the connection.
    pub(super) fn taken(&self) -> bool {
        self.0.load(Ordering::SeqCst) == TAKEN
    }
}

/// The permit had expired when the connection was ready.
#[derive(Debug, thiserror::Error)]
#[error("the permit expired before the first byte could leave; nothing was sent")]
pub(super) struct Expired;

/// Bytes of exact size, guarded by a deadline on the boot clock.
#[derive(Debug)]
pub(super) struct TimedBody {
    bytes: Bytes,
    done: bool,
    clock: Arc<dyn Clock>,
    send_before_boot_ms: i64,
    fate: Fate,
}

impl TimedBody {
    pub(super) fn new(bytes: Bytes, clock: Arc<dyn Clock>, send_before_boot_ms: i64) -> (Self, Fate) {
        let fate = Fate(Arc::new(AtomicU8::new(WAITING)));
        (
            Self {
                bytes,
                done: false,
                clock,
                send_before_boot_ms,
                fate: fate.clone(),
            },
            fate,
        )
    }

    /// Whether its first byte may leave now; asked once.
    pub(super) fn leaves(&mut self) -> bool {
        if self.done {
            return false;
        }
        self.done = true;
        let in_time = self.clock.boot_ms() < self.send_before_boot_ms;
        let fate = if in_time { TAKEN } else { EXPIRED };
        self.fate.0.store(fate, Ordering::SeqCst);
        in_time
    }
}

impl Body for TimedBody {
    type Data = Bytes;
    type Error = Expired;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Expired>>> {
        if self.done {
            return Poll::Ready(None);
        }
        if !self.leaves() {
            return Poll::Ready(Some(Err(Expired)));
        }
        Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.bytes)))))
    }

    fn is_end_stream(&self) -> bool {
        self.done
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(u64::try_from(self.bytes.len()).unwrap_or(u64::MAX))
    }
}
