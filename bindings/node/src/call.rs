//! How a governed call ended, as Node sees it.

use keybrake_binding::call;
use napi::bindgen_prelude::Buffer;
use napi_derive::napi;

use crate::errors::guarded;
use crate::stream::{Reading, Stream};

/// How a governed call ended.
#[napi]
pub struct Answer {
    ended: call::Answer,
    stream: Option<Stream>,
}

impl Answer {
    pub(crate) fn new(mut ended: call::Answer, reading: Option<Reading>) -> Self {
        let stream = ended.stream.take().zip(reading);
        Self {
            ended,
            stream: stream.map(|(body, reading)| Stream::new(body, reading)),
        }
    }
}

/// A refusal that needs no ledger, in the shape of the vendor that the URL names; `null` when it names none.
#[napi]
pub fn refused(url: String, code: String, message: String) -> napi::Result<Option<Answer>> {
    guarded(|| Ok(call::refused(&url, &code, &message)?.map(|ended| Answer::new(ended, None))))
}

#[napi]
impl Answer {
    /// `reply`, `denied`, `lost` or `stream`.
    #[napi(getter, ts_return_type = "'reply' | 'denied' | 'lost' | 'stream'")]
    pub fn kind(&self) -> &'static str {
        self.ended.kind
    }

    /// HTTP status; 0 when there was no reply.
    #[napi(getter)]
    pub fn status(&self) -> u16 {
        self.ended.status
    }

    /// Headers of the reply: names in lower case and values, in turn.
    #[napi(getter)]
    pub fn headers(&self) -> Vec<String> {
        let pairs = self.ended.headers.iter();
        pairs
            .flat_map(|(name, value)| [name.to_ascii_lowercase(), value.clone()])
            .collect()
    }

    /// Takes the body of the reply; empty for a stream, and the second time.
    #[napi]
    pub fn take_body(&mut self) -> Buffer {
        Vec::from(std::mem::take(&mut self.ended.body)).into()
    }

    /// What Keybrake noted of the call, as JSON.
    #[napi(getter)]
    pub fn record(&self) -> &str {
        &self.ended.record
    }

    /// The refusal as JSON, when it was denied.
    #[napi(getter)]
    pub fn denial(&self) -> Option<&str> {
        self.ended.denial.as_deref()
    }

    /// Why there is no reply, when it was lost.
    #[napi(getter)]
    pub fn reason(&self) -> Option<&str> {
        self.ended.reason.as_deref()
    }

    /// Whether a lost call surely never left.
    #[napi(getter)]
    pub fn never_sent(&self) -> bool {
        self.ended.never_sent
    }

    /// Takes the body of a stream, once.
    #[napi]
    pub fn take_stream(&mut self) -> Option<Stream> {
        self.stream.take()
    }
}
