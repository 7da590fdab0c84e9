//! The body of a reply that is handed on as it arrives.

use std::sync::Arc;

use keybrake_binding::Body;
use napi::Env;
use napi::bindgen_prelude::{Buffer, Object};
use napi_derive::napi;

use crate::engine::Worker;

/// What reading needs of the engine that the call was made with.
pub(crate) struct Reading(pub(crate) Worker);

/// The body of a reply that is handed on as it arrives.
#[napi]
pub struct Stream {
    body: Arc<Body>,
    reading: Reading,
}

impl Stream {
    pub(crate) const fn new(body: Arc<Body>, reading: Reading) -> Self {
        Self { body, reading }
    }
}

#[napi]
impl Stream {
    /// The next piece; `null` at the end, and when it broke off, which `reason` then tells.
    #[napi(ts_return_type = "Promise<Buffer | null>")]
    pub fn read<'env>(&self, env: &'env Env) -> napi::Result<Object<'env>> {
        let body = Arc::clone(&self.body);
        let work = async move { body.next().await };
        let convert = |piece: Option<bytes::Bytes>| piece.map(|piece| Buffer::from(Vec::from(piece)));
        let worker = &self.reading.0;
        worker.promise(env, worker.unless_closed(work), convert)
    }

    /// Gives the rest up: the call's outcome is then unknown. Safe to repeat.
    #[napi(ts_return_type = "Promise<void>")]
    pub fn close<'env>(&self, env: &'env Env) -> napi::Result<Object<'env>> {
        let body = Arc::clone(&self.body);
        let work = async move { body.close().await };
        let worker = &self.reading.0;
        worker.promise(env, worker.unless_closed(work), |()| ())
    }

    /// What Keybrake noted of the call so far, as JSON.
    #[napi(getter)]
    pub fn record(&self) -> String {
        self.body.shown().record
    }

    /// Why the body broke off, if it did.
    #[napi(getter)]
    pub fn reason(&self) -> Option<String> {
        self.body.shown().reason
    }

    /// The refusal as JSON, if a hard stop broke it off.
    #[napi(getter)]
    pub fn denial(&self) -> Option<String> {
        self.body.shown().denial
    }
}
