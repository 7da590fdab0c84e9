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

    /// The method to send.
    #[napi]
    pub fn method(&self) -> napi::Result<String> {
        guarded(|| Ok(self.permit.request()?.method))
    }

    /// Where to send it.
    #[napi]
    pub fn url(&self) -> napi::Result<String> {
        guarded(|| Ok(self.permit.request()?.url))
    }

    /// The headers to send, names and values in turn; the vendor's real secret is among them.
    #[napi]
    pub fn headers(&self) -> napi::Result<Vec<String>> {
        guarded(|| {
            let request = self.permit.request()?;
            let pairs = request.headers.into_iter();
            Ok(pairs
                .flat_map(|(name, value)| [name, value.as_str().to_owned()])
                .collect())
        })
    }

    /// The body to send.
    #[napi]
    pub fn body(&self) -> napi::Result<Buffer> {
        guarded(|| Ok(Vec::from(self.permit.request()?.body).into()))
    }

    /// How long it may still be sent, in milliseconds; 0 once it expired.
    #[napi(getter)]
    pub fn send_within_ms(&self) -> i64 {
        self.permit.send_within_ms()
    }

    /// The longest the request may take, in milliseconds.
    #[napi(getter)]
    pub fn request_ms(&self) -> i64 {
        self.permit.request_ms()
    }

    /// Records the vendor's reply, whole; `headers` alternates names and values.
    #[napi(ts_return_type = "Promise<Answer>")]
    pub fn replied<'env>(
        &self,
        env: &'env Env,
        status: u32,
        headers: Vec<String>,
        body: Uint8Array,
    ) -> napi::Result<Object<'env>> {
        let status = u16::try_from(status).unwrap_or(0);
        let body = Bytes::copy_from_slice(&body);
        self.settle(env, permit::replied(status, pairs(headers), body))
    }

    /// Records that nobody knows whether it was done. The reason in a word.
    #[napi(ts_return_type = "Promise<Answer>")]
    pub fn lost<'env>(&self, env: &'env Env, reason: String) -> napi::Result<Object<'env>> {
        self.settle(env, SendEnd::Lost { reason })
    }

    /// Records that certainly nothing was sent.
    #[napi(ts_return_type = "Promise<Answer>")]
    pub fn never_sent<'env>(&self, env: &'env Env) -> napi::Result<Object<'env>> {
        self.settle(env, SendEnd::NeverSent)
    }

    fn settle<'env>(&self, env: &'env Env, end: SendEnd) -> napi::Result<Object<'env>> {
        let permit = Arc::clone(&self.permit);
        let work = async move { permit.settle(end).await };
        self.worker
            .start(env, None, work, |ended| Answer::new(ended, None))
    }
}
