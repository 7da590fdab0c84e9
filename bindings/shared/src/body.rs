//! The body of a reply that is handed on as it arrives.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use keybrake::Result;
use keybrake::client::{ReplyStream, broken_off};
use tokio::sync::watch;

use crate::call::record_json;

/// What a host may know of a body between two pieces.
#[derive(Clone, Debug)]
pub struct Shown {
    /// What Keybrake noted of the call, as JSON.
    pub record: String,
    /// Why the body broke off, if it did.
    pub reason: Option<String>,
    /// The refusal as JSON, if a hard stop broke it off.
    pub denial: Option<String>,
}

/// The body of a reply that is handed on as it arrives.
#[derive(Debug)]
pub struct Body {
    /// `None` once it is over.
    reply: tokio::sync::Mutex<Option<ReplyStream>>,
    /// Whether it was given up: then nobody waits for a piece any more.
    closing: watch::Sender<bool>,
    shown: Mutex<Shown>,
}

impl Body {
    pub(crate) fn new(reply: ReplyStream) -> Self {
        let shown = Shown {
            record: record_json(reply.record()),
            reason: None,
            denial: None,
        };
        Self {
            reply: tokio::sync::Mutex::new(Some(reply)),
            closing: watch::Sender::new(false),
            shown: Mutex::new(shown),
        }
    }

    /// What is known of it now.
    pub fn shown(&self) -> Shown {
        self.shared().clone()
    }

    fn shared(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next piece; `None` at the end, when it is closed meanwhile, and when it broke off, which [`Shown::reason`]
    /// then tells.
    ///
    /// # Errors
    /// When the outcome could not be recorded.
    pub async fn next(&self) -> Result<Option<Bytes>> {
        let mut reply = self.reply.lock().await;
        let Some(stream) = reply.as_mut() else {
            return Ok(None);
        };
        let mut closing = self.closing.subscribe();
        let piece = tokio::select! {
            biased;
            _ = closing.wait_for(|closing| *closing) => return Ok(None),
            piece = stream.next() => piece,
        };
        self.shared().record = record_json(stream.record());
        match piece {
            Some(Ok(piece)) => return Ok(Some(piece)),
            Some(Err(error)) => match broken_off(&error) {
                Some(broken) => {
                    let denial = broken.denial.as_ref().map(serde_json::to_string).transpose();
                    let mut shown = self.shared();
                    shown.reason = Some(broken.reason.clone());
                    shown.denial = denial.ok().flatten();
                }
                None => return Err(error),
            },
            None => {}
        }
        *reply = None;
        Ok(None)
    }

    /// Gives the rest of the body up, also while a piece is waited for. Safe to repeat.
    ///
    /// # Errors
    /// When the outcome could not be recorded.
    pub async fn close(&self) -> Result<()> {
        self.closing.send_replace(true);
        let mut reply = self.reply.lock().await;
        let Some(mut stream) = reply.take() else {
            return Ok(());
        };
        stream.close().await?;
        self.shared().record = record_json(stream.record());
        Ok(())
    }
}
