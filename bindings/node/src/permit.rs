//! Permission to send, for code that keeps its own fetch.

use std::sync::Arc;

use bytes::Bytes;
use keybrake::brake::SendEnd;
use keybrake_binding::permit;
use napi::Env;
use napi::bindgen_prelude::{Buffer, Object, Uint8Array};
use napi_derive::napi;

use crate::call::Answer;
use crate::engine::{Worker, pairs};
use crate::errors::guarded;

/// What was decided: a permit, or the answer that stands in for a reply.
#[napi]
pub struct Verdict {
    permit: Option<Permit>,
    answer: Option<Answer>,
}

impl Verdict {
    pub(crate) fn new(verdict: permit::Verdict, worker: Worker) -> Self {
        match verdict {
            permit::Verdict::Permit(permit) => Self {
                permit: Some(Permit {
                    permit: Arc::from(permit),
                    worker,
                }),
                answer: None,
            },
            permit::Verdict::Ended(answer) => Self {
                permit: None,
                answer: Some(Answer::new(*answer, None)),
            },
        }
    }
}

#[napi]
impl Verdict {
    /// Takes the permit, if there is one, once.
    #[napi]
    pub fn take_permit(&mut self) -> Option<Permit> {
        self.permit.take()
    }

    /// Takes the answer, if there is no permit, once.
    #[napi]
    pub fn take_answer(&mut self) -> Option<Answer> {
        self.answer.take()
    }
}

/// The request of a permit.
#[napi(object)]
pub struct Handed {
    /// HTTP method.
    pub method: String,
    /// Where to send it.
    pub url: String,
    /// Names and values in turn.
    pub headers: Vec<String>,
    /// Body.
    pub body: Buffer,
}

/// Permission to send one attempt. Garbage-collected without an outcome, its hold stands.
#[napi]
pub struct Permit {
    permit: Arc<permit::Permit>,
    worker: Worker,
}

#[napi]
impl Permit {
    /// The reservation's id.
    #[napi(getter)]
    pub fn call_id(&self) -> &str {
        self.permit.call_id()
    }

    /// What is reserved for it: micro-USD in decimal.
    #[napi(getter)]
    pub fn micros(&self) -> String {
        self.permit.micros().to_string()
    }

    /// What to send; the vendor's real secret is among the headers. Once: either for a user's own way to send, or for
    /// `send`, after which it cannot be said to be never sent.
    #[napi]
    pub fn hand_out(&self, sending: bool) -> napi::Result<Handed> {
        let to = if sending {
            permit::Handed::Sending
        } else {
            permit::Handed::User
        };
        guarded(|| {
            let request = self.permit.hand_out(to)?;
            let pairs = request.headers.into_iter();
            Ok(Handed {
                method: request.method,
                url: request.url,
                headers: pairs
                    .flat_map(|(name, value)| [name, value.as_str().to_owned()])
                    .collect(),
                body: Vec::from(request.body).into(),
            })
        })
    }

    /// Whether its time was over before it was handed out.
    #[napi(getter)]
    pub fn expired(&self) -> bool {
        self.permit.expired()
    }

    /// How long it may still be sent, in milliseconds; 0 when that is over.
    #[napi(getter)]
    pub fn send_within_ms(&self) -> i64 {
        self.permit.send_within_ms()
    }

    /// The longest the request may take, in milliseconds.
    #[napi(getter)]
    pub fn request_ms(&self) -> i64 {
        self.permit.request_ms()
    }

    /// Whether it was handed out: then it may have left.
    #[napi(getter)]
    pub fn handed_out(&self) -> bool {
        self.permit.handed_out()
    }

    /// Records the vendor's reply, whole; `headers` alternates names and values. `sent` by `send`, else it is the word of
    /// whoever sent it.
    #[napi(ts_return_type = "Promise<Answer>")]
    pub fn replied<'env>(
        &self,
        env: &'env Env,
        status: u32,
        headers: Vec<String>,
        body: Uint8Array,
        sent: bool,
    ) -> napi::Result<Object<'env>> {
        let status = u16::try_from(status).unwrap_or(0);
        let body = Bytes::copy_from_slice(&body);
        let end = guarded(|| permit::replied(status, pairs(headers), body))?;
        let by = if sent {
            permit::Handed::Sending
        } else {
            permit::Handed::User
        };
        self.settle(env, end, by)
    }

    /// Records that nobody knows whether it was done. The reason in a word.
    #[napi(ts_return_type = "Promise<Answer>")]
    pub fn lost<'env>(&self, env: &'env Env, reason: String) -> napi::Result<Object<'env>> {
        self.settle(env, SendEnd::Lost { reason }, permit::Handed::User)
    }

    /// Records that certainly nothing was sent.
    #[napi(ts_return_type = "Promise<Answer>")]
    pub fn never_sent<'env>(&self, env: &'env Env) -> napi::Result<Object<'env>> {
        self.settle(env, SendEnd::NeverSent, permit::Handed::User)
    }

    fn settle<'env>(&self, env: &'env Env, end: SendEnd, by: permit::Handed) -> napi::Result<Object<'env>> {
        // Said here and now: until the worker's turn comes, JavaScript could still take the request and send it.
        let settling = self.permit.settling(end, by);
        let work = async move { settling?.await };
        let work = self.worker.to_the_end(work);
        self.worker.promise(env, work, |ended| Answer::new(ended, None))
    }
}
