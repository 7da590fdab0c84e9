//! Hard stops: the channel on which processes that have calls in flight are told to look at the stops.
//!
//! A message says nothing but "look". One that is lost is made up for, since they look by themselves too: every two
//! seconds, and four times a second while they cannot listen.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use redis::{RedisError, Value};

use super::RedisLedger;
use super::link::unavailable;
use super::server::{Server, Subscription};
use super::url::Place;
use crate::error::Result;
use crate::ledger::StopWatch;
use crate::ledger::types::Told;

/// The channel's name in the namespace.
const CHANNEL: &str = "aborts";
/// How long a message is waited for before the stops are looked at all the same.
const AT_MOST: Duration = Duration::from_secs(2);
/// How long before it is tried again to listen.
const PAUSE: Duration = Duration::from_millis(250);

/// What a user needs in order to tell and to be told.
pub(super) fn rights(place: &Place) -> String {
    format!("&{}* +publish +subscribe", place.ns.key(""))
}

/// Listens while it can.
#[derive(Debug)]
struct Listener {
    server: Arc<dyn Server>,
    channel: String,
    listening: Option<Box<dyn Subscription>>,
}

#[async_trait]
impl StopWatch for Listener {
    async fn next(&mut self) {
        match &mut self.listening {
            Some(subscription) => {
                if let Ok(false) = tokio::time::timeout(AT_MOST, subscription.message()).await {
                    self.listening = None;
                }
            }
            None => match self.server.subscribe(&self.channel).await {
                Ok(subscription) => self.listening = Some(subscription),
                Err(_) => tokio::time::sleep(PAUSE).await,
            },
        }
    }
}

impl RedisLedger {
    pub(super) fn listen(&self) -> Box<dyn StopWatch> {
        Box::new(Listener {
            server: Arc::clone(&self.place.server),
            channel: self.place.ns.place(CHANNEL),
            listening: None,
        })
    }

    /// Tells all that listen.
    pub(super) async fn tell(&self) -> Told {
        let mut publish = redis::cmd("PUBLISH");
        publish.arg(self.place.ns.place(CHANNEL)).arg("look");
        match self.own().ask(&publish).await {
            Ok(Value::Int(heard)) => Told::Processes(u32::try_from(heard).unwrap_or(u32::MAX)),
            Ok(_) => Told::Failed("the server's answer cannot be read".to_owned()),
            Err(error) if error.to_string().contains("NOPERM") => {
                Told::Failed(format!("the Redis user lacks a right: {}", rights(&self.place)))
            }
            Err(error) => Told::Failed(error.to_string()),
        }
    }
}

/// Whether this user may listen and tell.
///
/// # Errors
/// `LedgerUnavailable`, naming what the server answered.
pub(super) async fn allowed(place: &Place, told: &Told) -> Result<()> {
    let of = |error: &RedisError| unavailable(place, error);
    place
        .server
        .subscribe(&place.ns.place(CHANNEL))
        .await
        .map_err(|e| of(&e))?;
    match told {
        Told::Failed(why) => Err(crate::error::Error::ledger(why.clone())),
        _ => Ok(()),
    }
}
