//! A question to the ledger whose answer may find nobody left.
//!
//! A caller can go away while the ledger decides, and the decision is taken all the same: the command is on its way, or
//! has run. No permit reaches anybody then, so it is certain that nothing is sent, and the ledger is told so.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::runtime::Handle;

use super::recorder::Recorder;
use crate::error::Result;
use crate::ledger::{Ask, Proof, ReplyFacts, ReserveAnswer, ReserveRequest, Settlement};

type Answer = Pin<Box<dyn Future<Output = Result<ReserveAnswer>> + Send>>;

/// The ledger's answer to a reserve. Dropped before it is there, it is waited for on a task of its own, and what it holds
/// is given back.
pub(super) struct Asked {
    answer: Option<Answer>,
    /// `None` when nothing would be held: the request names no amount.
    abandoned: Option<Abandoned>,
}

/// What is needed once nobody waits any more.
struct Abandoned {
    recorder: Arc<Recorder>,
    call_id: String,
    runtime: Handle,
}

impl Asked {
    pub(super) fn new(recorder: &Arc<Recorder>, request: ReserveRequest) -> Self {
        let holds = matches!(request.ask, Ask::Amount(_));
        let runtime = Handle::try_current().ok().filter(|_| holds);
        let abandoned = runtime.map(|runtime| Abandoned {
            recorder: Arc::clone(recorder),
            call_id: request.facts.call_id.clone(),
            runtime,
        });
        let ledger = Arc::clone(recorder.ledger());
        Self {
            answer: Some(Box::pin(async move { ledger.reserve(request).await })),
            abandoned,
        }
    }
}

impl Future for Asked {
    type Output = Result<ReserveAnswer>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(answer) = self.answer.as_mut() else {
            return Poll::Pending;
        };
        let polled = answer.as_mut().poll(cx);
        if polled.is_ready() {
            self.answer = None;
        }
        polled
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let (Some(answer), Some(abandoned)) = (self.answer.take(), self.abandoned.take()) else {
            return;
        };
        let under_way = abandoned.recorder.under_way();
        abandoned.runtime.clone().spawn(async move {
            abandoned.give_back(answer).await;
            drop(under_way);
        });
    }
}

impl Abandoned {
    async fn give_back(self, answer: Answer) {
        let (never_sent, known) = match answer.await {
            Ok(ReserveAnswer::Granted(grant)) => (never_sent(grant.call_id, grant.attempt), true),
            Ok(_) => return,
            // It may have been decided: then this is its end, and if the command is still on its way, it meets this.
            Err(_) => (never_sent(self.call_id, 1), false),
        };
        if let Err(error) = self.recorder.record(&never_sent).await {
            if known {
                self.recorder.keep(never_sent, &error).await;
            } else {
                tracing::debug!(call_id = never_sent.call_id, %error, "a call that was given up may be held");
            }
        }
    }
}

fn never_sent(call_id: String, attempt: u32) -> Settlement {
    Settlement {
        call_id,
        attempt,
        proof: Proof::NeverSent,
        object: None,
        reply: None,
        facts: ReplyFacts::default(),
    }
}
