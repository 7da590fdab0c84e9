//! What the ledger asks of the world around it: a server to connect to, and what differs between two runs of the same
//! program. The simulation has its own (`keybrake_testkit::sim`); everybody else has `Network`.

use std::fmt::Debug;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_core::Stream as _;
use redis::aio::{MultiplexedConnection, PubSubStream};
use redis::{AsyncConnectionConfig, Client, Cmd, ConnectionInfo, RedisError, RedisResult, Value};

use crate::clock::{Clock as _, SystemClock};
use crate::error::{Error, Result};

/// A server that can be connected to.
#[async_trait]
pub trait Server: Send + Sync + Debug {
    /// Connects, within the ledger's timeout.
    async fn connect(&self) -> RedisResult<Arc<dyn Connection>>;

    /// Listens to a channel, within the ledger's timeout.
    async fn subscribe(&self, channel: &str) -> RedisResult<Box<dyn Subscription>> {
        Err(RedisError::from((
            redis::ErrorKind::Client,
            "no channels",
            channel.to_owned(),
        )))
    }

    /// Milliseconds on a clock that never jumps, for pauses between tries.
    fn boot_ms(&self) -> i64;

    /// A random number, for how long to step aside and for the names of marks.
    fn random(&self) -> u8;

    /// Random bytes for the id of a new ledger.
    ///
    /// # Errors
    /// `Config` when there are none.
    fn new_id(&self) -> Result<[u8; 8]> {
        let mut bytes = [0_u8; 8];
        getrandom::fill(&mut bytes).map_err(|e| {
            Error::config("the operating system gives no random bytes").because(e.to_string())
        })?;
        Ok(bytes)
    }
}

/// A connection, shared by all tasks of a process.
#[async_trait]
pub trait Connection: Send + Sync + Debug {
    /// Sends one command and waits for its answer, within the ledger's timeout.
    async fn send(&self, command: &Cmd) -> RedisResult<Value>;

    /// Sends two, one right after the other, and answers what the second was answered.
    async fn send_both(&self, first: &Cmd, second: &Cmd) -> RedisResult<Value> {
        self.send(first).await.and_then(Value::extract_error)?;
        self.send(second).await.and_then(Value::extract_error)
    }
}

/// A connection that listens to a channel.
#[async_trait]
pub trait Subscription: Send + Debug {
    /// Waits for a message; answers `false` when the connection has ended. Dropping the future loses nothing.
    async fn message(&mut self) -> bool;
}

/// A server on a network.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) connection: ConnectionInfo,
    pub(super) timeout: Duration,
}

#[async_trait]
impl Server for Network {
    async fn connect(&self) -> RedisResult<Arc<dyn Connection>> {
        let client = self.client()?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(Some(self.timeout));
        let connection = client
            .get_multiplexed_async_connection_with_config(&config)
            .await?;
        Ok(Arc::new(Multiplexed(connection)))
    }

    async fn subscribe(&self, channel: &str) -> RedisResult<Box<dyn Subscription>> {
        let client = self.client()?;
        let listening = async {
            let mut listener = client.get_async_pubsub().await?;
            listener.subscribe(channel).await?;
            Ok(listener)
        };
        let listener = tokio::time::timeout(self.timeout, listening).await;
        let listener = listener.unwrap_or_else(|_| {
            let silent = std::io::Error::from(std::io::ErrorKind::TimedOut);
            Err(RedisError::from(silent))
        })?;
        Ok(Box::new(Channel(listener.into_on_message())))
    }

    fn boot_ms(&self) -> i64 {
        boot_ms()
    }

    fn random(&self) -> u8 {
        random()
    }
}

impl Network {
    fn client(&self) -> RedisResult<Client> {
        if matches!(self.connection.addr(), redis::ConnectionAddr::TcpTls { .. }) {
            // Another library may have installed a provider already; either will do.
            let _ = rustls::crypto::CryptoProvider::install_default(rustls::crypto::ring::default_provider());
        }
        Client::open(self.connection.clone())
    }
}

pub(super) fn boot_ms() -> i64 {
    SystemClock.boot_ms()
}

pub(super) fn random() -> u8 {
    let mut random = [0_u8; 1];
    let _ = getrandom::fill(&mut random);
    let [random] = random;
    random
}

struct Channel(PubSubStream);

impl Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel").finish_non_exhaustive()
    }
}

#[async_trait]
impl Subscription for Channel {
    async fn message(&mut self) -> bool {
        let next = std::future::poll_fn(|cx| Pin::new(&mut self.0).poll_next(cx));
        next.await.is_some()
    }
}

#[derive(Clone, Debug)]
struct Multiplexed(MultiplexedConnection);

#[async_trait]
impl Connection for Multiplexed {
    async fn send(&self, command: &Cmd) -> RedisResult<Value> {
        self.0.clone().send_packed_command(command).await
    }

    async fn send_both(&self, first: &Cmd, second: &Cmd) -> RedisResult<Value> {
        let mut both = redis::pipe();
        both.add_command(first.clone())
            .ignore()
            .add_command(second.clone());
        let answers = self.0.clone().send_packed_commands(&both, 0, 2).await?;
        let answers = answers.into_iter().map(Value::extract_error);
        let mut answers = answers.collect::<RedisResult<Vec<Value>>>()?;
        Ok(answers.pop().unwrap_or(Value::Nil))
    }
}
