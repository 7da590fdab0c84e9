//! The connection: one per process and Tokio runtime, shared by all tasks, made anew when it is lost.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use redis::{Cmd, RedisError, Value};
use tokio::runtime::{Handle, Id};
use tokio::sync::{Mutex as AsyncMutex, oneshot};

use super::replicas::{Lack, Replicas};
use super::server::Connection;
use super::url::Place;
use super::{library, life};
use crate::error::{Error, ErrorKind, Result};

/// After a connection could not be made, calls are refused at once for so long instead of trying too.
const PAUSE_MS: i64 = 100;
/// Runtimes of a process that keep a connection each, besides those that have ended.
const RUNTIMES: usize = 64;

/// Why a command has no answer.
pub(super) enum Failure {
    /// It may have run.
    Lost(Error),
    /// It did not run.
    Refused(Error),
}

impl Failure {
    pub(super) fn into_error(self) -> Error {
        match self {
            Self::Lost(error) | Self::Refused(error) => error,
        }
    }
}

#[derive(Debug)]
pub(super) struct Link {
    place: Place,
    /// The one made last stands last.
    live: Mutex<Vec<Live>>,
    /// Held by whoever connects, in each runtime: one that stands still while it connects keeps no other waiting.
    connecting: Mutex<Vec<Connecting>>,
    /// The last failure to connect, and when.
    failed: Mutex<Option<(i64, String)>>,
    /// Connections made so far.
    made: AtomicU64,
}

/// A runtime, and what its tasks hold while they connect.
type Connecting = (Option<Id>, Arc<AsyncMutex<()>>);

/// A connection as it was when something was done on it.
#[derive(Clone, Debug)]
pub(super) struct Live {
    number: u64,
    /// A task of this runtime drives it: it is silent while that stands still, and dead when that has ended.
    runtime: Option<Id>,
    /// Closed when that runtime has ended.
    driven: Option<Arc<oneshot::Sender<()>>>,
    connection: Arc<dyn Connection>,
    /// In strict durability, where the replicas of the same server are waited for.
    replicas: Option<Arc<Replicas>>,
}

impl Link {
    pub(super) const fn new(place: Place) -> Self {
        Self {
            place,
            live: Mutex::new(Vec::new()),
            connecting: Mutex::new(Vec::new()),
            failed: Mutex::new(None),
            made: AtomicU64::new(0),
        }
    }

    /// Sends one command and waits for its answer, within the URL's timeout.
    pub(super) async fn call(&self, command: &Cmd) -> Result<Value, Failure> {
        self.call_by(command).await.map(|(value, _)| value)
    }

    /// The same, with the connection that answered.
    pub(super) async fn call_by(&self, command: &Cmd) -> Result<(Value, Live), Failure> {
        let live = self.live().await.map_err(Failure::Refused)?;
        match live.connection.send(command).await.and_then(Value::extract_error) {
            Ok(value) => Ok((value, live)),
            Err(error) => Err(self.failed(&live, &error)),
        }
    }

    /// In strict durability: waits until the replicas have what was answered on this connection.
    ///
    /// # Errors
    /// `LedgerUnavailable` when too few have it in time.
    pub(super) async fn replicated(&self, live: &Live) -> Result<()> {
        match &live.replicas {
            Some(replicas) => self.lacks(live, replicas.acknowledge().await),
            None => Ok(()),
        }
    }

    /// In strict durability, while replicas were missing the last time: asks for them once more.
    ///
    /// # Errors
    /// `LedgerUnavailable` while they are missing.
    pub(super) async fn replicas_back(&self) -> Result<()> {
        if self.place.replicas == 0 {
            return Ok(());
        }
        let live = self.live().await?;
        match &live.replicas {
            Some(replicas) => self.lacks(&live, replicas.back().await),
            None => Ok(()),
        }
    }

    fn lacks(&self, live: &Live, acknowledged: Result<(), Lack>) -> Result<()> {
        acknowledged.map_err(|lack| {
            if lack.connection_lost {
                self.drop_connection(live.number);
            }
            lack.error
        })
    }

    fn failed(&self, live: &Live, error: &RedisError) -> Failure {
        if let Some(error) = own(error) {
            return Failure::Refused(error);
        }
        // A server whose functions or role changed is greeted anew, and so is one that went away.
        let answered =
            error.kind() != redis::ErrorKind::Io && !error.is_timeout() && !error.is_connection_dropped();
        // It is another server's now, and the command did not run: the step is tried once more there.
        let elsewhere = matches!(
            error.code(),
            Some("READONLY" | "MOVED" | "ASK" | "CLUSTERDOWN" | "MASTERDOWN")
        );
        let greet_again = !answered || is_missing(error) || elsewhere;
        if greet_again {
            self.drop_connection(live.number);
        }
        if answered && !elsewhere {
            Failure::Refused(unavailable(&self.place, error))
        } else {
            Failure::Lost(unavailable(&self.place, error))
        }
    }

    fn drop_connection(&self, number: u64) {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.retain(|live| live.number != number);
    }

    fn present(&self, runtime: Option<Id>) -> Option<Live> {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.iter().find(|live| live.runtime == runtime).cloned()
    }

    fn connecting(&self, runtime: Option<Id>) -> Arc<AsyncMutex<()>> {
        let mut connecting = self.connecting.lock().unwrap_or_else(PoisonError::into_inner);
        connecting.retain(|(of, held)| *of == runtime || Arc::strong_count(held) > 1);
        if let Some((_, held)) = connecting.iter().find(|(of, _)| *of == runtime) {
            return Arc::clone(held);
        }
        let held = Arc::default();
        connecting.push((runtime, Arc::clone(&held)));
        held
    }

    async fn live(&self) -> Result<Live> {
        let handle = Handle::try_current().ok();
        let runtime = handle.as_ref().map(Handle::id);
        if let Some(live) = self.present(runtime) {
            return Ok(live);
        }
        let connecting = self.connecting(runtime);
        let _connecting = connecting.lock().await;
        if let Some(live) = self.present(runtime) {
            return Ok(live);
        }
        let failed = |failed| *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = failed;
        if let Some((at_ms, message)) = &*self.failed.lock().unwrap_or_else(PoisonError::into_inner)
            && self.place.server.boot_ms().saturating_sub(*at_ms) < PAUSE_MS
        {
            return Err(Error::ledger(message.clone()));
        }
        match self.connect().await {
            Ok((connection, replicas)) => {
                failed(None);
                let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
                let number = self.made.fetch_add(1, Ordering::Relaxed);
                let made = Live {
                    number,
                    runtime,
                    driven: handle.as_ref().map(driven),
                    connection,
                    replicas,
                };
                live.retain(Live::is_driven);
                if live.len() >= RUNTIMES {
                    live.remove(0);
                }
                live.push(made.clone());
                Ok(made)
            }
            Err(error) => {
                failed(Some((self.place.server.boot_ms(), error.to_string())));
                Err(error)
            }
        }
    }

    async fn connect(&self) -> Result<(Arc<dyn Connection>, Option<Arc<Replicas>>)> {
        let connection = connect(&self.place).await?;
        let replicas = match self.place.replicas {
            0 => None,
            _ => Some(Replicas::beside(&*connection, &self.place).await?),
        };
        Ok((connection, replicas))
    }
}

impl Live {
    fn is_driven(&self) -> bool {
        self.driven.as_ref().is_none_or(|driven| !driven.is_closed())
    }
}

/// Is closed when a runtime has ended: a task of it holds the other end.
fn driven(handle: &Handle) -> Arc<oneshot::Sender<()>> {
    let (sender, receiver) = oneshot::channel();
    handle.spawn(receiver);
    Arc::new(sender)
}

/// A connection to a server that was looked at and has the library.
pub(super) async fn connect(place: &Place) -> Result<Arc<dyn Connection>> {
    let connection = place.server.connect().await.map_err(|e| unavailable(place, &e))?;
    life::greet(&*connection, place).await?;
    Ok(connection)
}

/// One command on a connection that is being greeted.
pub(super) async fn ask(connection: &dyn Connection, place: &Place, command: &Cmd) -> Result<Value> {
    match connection.send(command).await.and_then(Value::extract_error) {
        Ok(value) => Ok(value),
        Err(error) => Err(own(&error).unwrap_or_else(|| unavailable(place, &error))),
    }
}

/// Loads the library if the server does not have it. Answers what the first call of it answered.
pub(super) async fn with_library(connection: &dyn Connection, place: &Place, command: &Cmd) -> Result<Value> {
    match connection.send(command).await.and_then(Value::extract_error) {
        Ok(value) => return Ok(value),
        Err(error) if is_missing(&error) => {}
        Err(error) => return Err(own(&error).unwrap_or_else(|| unavailable(place, &error))),
    }
    let load = redis::cmd("FUNCTION").arg("LOAD").arg(library::text()).clone();
    if let Err(error) = connection.send(&load).await.and_then(Value::extract_error) {
        // Another process may have loaded it in the meantime.
        if !error.to_string().contains("already exists") {
            return Err(Error::config(format!(
                "the Redis server at {} does not have Keybrake's functions ({}), and this user may not load them: \
                 run `keybrake doctor` once as a user with +function",
                place.shown,
                library::digest(),
            ))
            .because(error.to_string()));
        }
    }
    ask(connection, place, command).await
}

fn is_missing(error: &RedisError) -> bool {
    error.to_string().contains("Function not found")
}

/// An error that our own functions raise.
fn own(error: &RedisError) -> Option<Error> {
    match error.code()? {
        "KBOVERFLOW" => Some(Error::new(
            ErrorKind::Internal,
            "a counter would overflow; nothing was changed",
        )),
        "KBCORRUPT" => Some(Error::new(
            ErrorKind::LedgerCorrupt,
            format!(
                "the ledger in Redis cannot be read: {}",
                error.detail().unwrap_or_default()
            ),
        )),
        _ => None,
    }
}

pub(super) fn unavailable(place: &Place, error: &RedisError) -> Error {
    let what = if error.is_timeout() {
        format!("did not answer within {} ms", place.timeout.as_millis())
    } else if error.is_connection_dropped() || error.is_io_error() || error.is_connection_refusal() {
        match error.detail() {
            Some(detail) => format!("cannot be reached: {detail}"),
            None => "cannot be reached".to_owned(),
        }
    } else {
        match (error.code(), error.detail()) {
            (Some("MOVED" | "ASK"), Some(to)) => format!(
                "is a node of a Redis Cluster that does not have this namespace: use the node that has it ({})",
                to.split(' ').next_back().unwrap_or_default()
            ),
            (Some("OOM"), _) => {
                "has no memory left (maxmemory) and refuses writes: raise it, or drain and trim the \
                                 ledger's log (keybrake audit drain --keep 7d)"
                    .to_owned()
            }
            (Some("READONLY"), _) => "is a replica, which takes no writes: use its primary".to_owned(),
            (Some(code), Some(detail)) => format!("answered {code} {detail}"),
            _ => format!("failed: {}", error.category()),
        }
    };
    Error::ledger(format!("the ledger at {} {what}", place.shown))
}
