//! Replies that are handed on while they arrive.
//!
//! Only where nothing of the body is needed to know the cost ([`Permit::streams`](crate::brake::Permit::streams)). The
//! call is settled at the end of the body, before its last piece and its end are handed on. A reply that breaks off, or
//! that nobody reads to its end, leaves the call unknown: a read's count units are used, and nothing is held.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame};
use tokio::task::JoinHandle;
use tokio::time::Sleep;

use super::http::MOST_REPLY_BYTES;
use super::{ABORTED, Answer, GivenUp, Guard, unless};
use crate::brake::{CallRecord, SendEnd, Settled};
use crate::error::{Error, ErrorKind, Result};
use crate::policy::Denial;
use crate::vendors::Reply;

pub(super) const TIMEOUT: &str = "timeout";
pub(super) const CUT_OFF: &str = "reply_cut_off";
const CLOSED_EARLY: &str = "closed_early";

/// The body of a reply on its way, with a limit on the wait for each piece.
pub(super) struct Incoming {
    body: reqwest::Body,
    most: Duration,
    /// Set while a piece is waited for.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Incoming {
    pub(super) fn new(response: reqwest::Response, most: Duration) -> Self {
        Self {
            body: response.into(),
            most,
            timer: None,
        }
    }

    /// The next piece, `None` at the end, or why there is none, in a word.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, &'static str>>> {
        loop {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Ready(Some(Err(_))) => return Poll::Ready(Some(Err(CUT_OFF))),
                Poll::Ready(Some(Ok(frame))) => {
                    self.timer = None;
                    // Trailers say nothing that anybody asks for.
                    if let Ok(piece) = frame.into_data() {
                        return Poll::Ready(Some(Ok(piece)));
                    }
                }
                Poll::Pending => {
                    let most = self.most;
                    let timer = self
                        .timer
                        .get_or_insert_with(|| Box::pin(tokio::time::sleep(most)));
                    ready!(timer.as_mut().poll(cx));
                    return Poll::Ready(Some(Err(TIMEOUT)));
                }
            }
        }
    }
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming").finish_non_exhaustive()
    }
}

/// How a governed call ended, or how its reply begins.
#[derive(Debug)]
pub enum Opened {
    /// It ended, and its reply, if any, is whole.
    Ended(Box<Answer>),
    /// The reply is being handed on as it arrives.
    Stream(Box<ReplyStream>),
}

impl From<Answer> for Opened {
    fn from(answer: Answer) -> Self {
        Self::Ended(Box::new(answer))
    }
}

impl Opened {
    /// The whole answer: a document is read to its end (64 MiB at most), unless its caller gives it up.
    ///
    /// # Errors
    /// Of [`Brake::settle`](crate::brake::Brake::settle); and `Config` when it was given up while a document was read.
    pub async fn whole(self, given_up: GivenUp<'_>) -> Result<Answer> {
        match self {
            Self::Ended(answer) => Ok(*answer),
            Self::Stream(stream) => unless(given_up, Box::pin(stream.whole())).await,
        }
    }

    pub(super) fn denial(&self) -> Option<&Denial> {
        match self {
            Self::Ended(answer) => match answer.as_ref() {
                Answer::Denied { denial, .. } => Some(denial),
                Answer::Reply { .. } | Answer::Lost { .. } => None,
            },
            Self::Stream(_) => None,
        }
    }
}

/// A reply whose body is handed on as it arrives: a `http_body::Body`, or piece by piece with [`next`](Self::next).
///
/// Dropping it before its end closes the connection and leaves the call unknown.
#[derive(Debug)]
pub struct ReplyStream {
    /// The vendor's reply without its body and without our headers.
    head: Reply,
    /// The same with our headers.
    shown: Reply,
    record: CallRecord,
    guard: Guard,
    phase: Phase,
    /// What the caller is told when a hard stop has aborted it.
    stopped: Option<(Box<Denial>, Reply)>,
}

#[derive(Debug)]
enum Phase {
    Arriving(Incoming),
    Settling {
        task: JoinHandle<Result<Settled>>,
        last: Option<Bytes>,
        broken: Option<&'static str>,
    },
    Over,
}

/// The body of a reply broke off. The call is unknown.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the reply broke off ({reason}; call {call_id})")]
pub struct BrokenOff {
    /// In a word: `timeout`, `reply_cut_off`, `aborted`.
    pub reason: String,
    /// The call's id.
    pub call_id: String,
    /// The denial (`stopped`), when a hard stop aborted it.
    pub denial: Option<Box<Denial>>,
}

impl ReplyStream {
    pub(super) fn new(guard: Guard, head: Reply, begun: Settled, incoming: Incoming) -> Self {
        Self {
            shown: begun.reply.unwrap_or_else(|| head.clone()),
            head,
            record: begun.record,
            guard: guard.saying(CLOSED_EARLY),
            phase: Phase::Arriving(incoming),
            stopped: None,
        }
    }

    /// HTTP status.
    pub const fn status(&self) -> u16 {
        self.head.status
    }

    /// The vendor's headers with ours: by now the verdict and the call's id, not yet what the call has cost.
    pub fn headers(&self) -> &[(String, String)] {
        &self.shown.headers
    }

    /// The call as the audit has it; at the body's end, as it was settled.
    pub const fn record(&self) -> &CallRecord {
        &self.record
    }

    /// The next piece; `None` at the end. By the last piece the call is settled.
    ///
    /// # Errors
    /// [`BrokenOff`] inside the error's source when the body breaks off; `Internal` for defects.
    pub async fn next(&mut self) -> Option<Result<Bytes>> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Ends it: what has not been read is not wanted. Returns when it is recorded; at the end of the body, or for a
    /// second time, it does nothing.
    ///
    /// # Errors
    /// `Internal` for defects.
    pub async fn close(&mut self) -> Result<()> {
        if matches!(self.phase, Phase::Arriving(_)) {
            self.settle(lost(CLOSED_EARLY), None, None)?;
        }
        match std::future::poll_fn(|cx| self.poll_settled(cx)).await {
            Some(Err(error)) => Err(error),
            Some(Ok(_)) | None => Ok(()),
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes>>> {
        loop {
            let Phase::Arriving(incoming) = &mut self.phase else {
                let ended = ready!(self.poll_settled(cx));
                return Poll::Ready(ended.and_then(|last| match last {
                    Ok((last, None)) => last.map(Ok),
                    Ok((_, Some(broken))) => Some(Err(self.broken(broken))),
                    Err(error) => Some(Err(error)),
                }));
            };
            let begun = match self.guard.poll_aborted(cx) {
                Poll::Ready(stop) => {
                    let told = self
                        .guard
                        .permit()
                        .map(|permit| self.guard.brake().aborted(permit, &stop));
                    self.stopped = told.map(|(denial, reply)| (Box::new(denial), reply));
                    Err(ABORTED)
                }
                Poll::Pending => Ok(ready!(incoming.poll_piece(cx))),
            };
            let begun = match begun.unwrap_or_else(|reason| Some(Err(reason))) {
                Some(Ok(piece)) if !incoming.body.is_end_stream() => return Poll::Ready(Some(Ok(piece))),
                // Whoever reads by length asks for nothing after this piece: so settle before it.
                Some(Ok(last)) => {
                    // HTTP/2 may end with an empty piece, which is none.
                    let last = (!last.is_empty()).then_some(last);
                    self.settle(SendEnd::Reply(self.head.clone()), last, None)
                }
                None => self.settle(SendEnd::Reply(self.head.clone()), None, None),
                Some(Err(reason)) => self.settle(lost(reason), None, Some(reason)),
            };
            if let Err(error) = begun {
                self.phase = Phase::Over;
                return Poll::Ready(Some(Err(error)));
            }
        }
    }

    /// Settles on a task of its own, which a reader that goes away does not stop.
    fn settle(&mut self, end: SendEnd, last: Option<Bytes>, broken: Option<&'static str>) -> Result<()> {
        let task = self.guard.settle(end)?;
        self.phase = Phase::Settling { task, last, broken };
        Ok(())
    }

    /// What is left to hand on once the settlement is recorded; `None` when that was done.
    #[expect(clippy::type_complexity, reason = "a piece, or why there is none, once")]
    fn poll_settled(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<(Option<Bytes>, Option<&'static str>)>>> {
        let Phase::Settling { task, last, broken } = &mut self.phase else {
            return Poll::Ready(None);
        };
        let settled = ready!(Pin::new(task).poll(cx));
        let (last, broken) = (last.take(), *broken);
        self.phase = Phase::Over;
        Poll::Ready(Some(match settled {
            Ok(Ok(settled)) => {
                self.record = settled.record;
                if let Some(reply) = settled.reply {
                    self.shown = reply;
                }
                Ok((last, broken))
            }
            Ok(Err(error)) => Err(error),
            Err(error) => {
                Err(Error::new(ErrorKind::Internal, "a settlement was not finished").because(error))
            }
        }))
    }

    fn broken(&self, reason: &str) -> Error {
        let broken = BrokenOff {
            reason: reason.to_owned(),
            call_id: self.record.call_id.clone(),
            denial: self.stopped.as_ref().map(|(denial, _)| denial.clone()),
        };
        Error::new(ErrorKind::Vendor, broken.to_string()).because(broken)
    }

    /// Reads it whole, within the limit of whole replies.
    pub(super) async fn whole(mut self) -> Result<Answer> {
        let mut body = BytesMut::new();
        let reason = loop {
            match self.next().await {
                None => break None,
                Some(Ok(piece)) => body.extend_from_slice(&piece),
                Some(Err(error)) => match broken_off(&error) {
                    Some(broken) => break Some(broken.reason.clone()),
                    None => return Err(error),
                },
            }
            if body.len() > MOST_REPLY_BYTES {
                if matches!(self.phase, Phase::Arriving(_)) {
                    self.settle(lost(CUT_OFF), None, None)?;
                }
                self.close().await?;
                break Some(CUT_OFF.to_owned());
            }
        };
        Ok(match reason {
            None => Answer::Reply {
                reply: Reply {
                    body: body.freeze(),
                    ..self.shown
                },
                record: self.record,
            },
            Some(_) if self.stopped.is_some() => {
                let Some((denial, reply)) = self.stopped else {
                    return Err(Error::new(ErrorKind::Internal, "a denial was lost"));
                };
                Answer::Denied {
                    denial,
                    reply,
                    record: self.record,
                }
            }
            Some(reason) => Answer::Lost {
                reason,
                never_sent: false,
                record: self.record,
                error: None,
            },
        })
    }
}

/// The broken reply inside an error of [`ReplyStream::next`].
pub fn broken_off<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a BrokenOff> {
    std::iter::successors(Some(error), |error| error.source()).find_map(|error| error.downcast_ref())
}

fn lost(reason: &str) -> SendEnd {
    SendEnd::Lost {
        reason: reason.to_owned(),
    }
}

impl Body for ReplyStream {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.poll_next(cx)
            .map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
}
