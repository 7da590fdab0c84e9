//! Strict durability (`replicas=N` in the ledger's URL): what lets money move is answered only after N replicas have it.
//!
//! A `WAIT` keeps its connection from everything else, so it has one of its own, to the same process of the server. Many
//! tasks share one: whatever was committed before it was sent is covered by it. It waits for what was written on its own
//! connection; so a small write goes before it, and replicas take writes in the order of the primary.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use redis::{RedisError, Value};
use tokio::sync::Mutex as AsyncMutex;

use super::life;
use super::link::{ask, unavailable};
use super::server::Connection;
use super::url::Place;
use super::wire::text;
use crate::error::{Error, Result};

/// The name of the key that the small write goes to.
const MARK: &str = "acknowledged";
/// Shortest time that replicas are given, in milliseconds.
const SHORTEST_MS: u64 = 5;
/// How often a server's replicas are asked for before it is refused at first.
const ROUNDS_AT_OPEN: u32 = 4;

/// The connection on which replicas are waited for.
#[derive(Debug)]
pub(super) struct Replicas {
    connection: Arc<dyn Connection>,
    place: Place,
    /// Commits that were answered, counted as each begins to wait.
    answered: AtomicU64,
    round: AsyncMutex<Round>,
    /// Set while the last round had too few of them.
    missing: AtomicBool,
}

/// The last `WAIT`.
#[derive(Debug, Default)]
struct Round {
    /// The commits that it covers: all up to this one.
    upto: u64,
    outcome: Outcome,
}

#[derive(Clone, Debug, Default)]
enum Outcome {
    #[default]
    Acknowledged,
    /// So few replicas have it.
    Missing(i64),
    /// The connection is of no more use.
    Failed(String),
}

/// How replicas stand, as the server tells it.
pub(super) struct Connected {
    /// Replicas that follow.
    pub(super) online: u32,
    /// All that are connected, those included that are being filled.
    pub(super) all: u32,
}

/// How long replicas are given. A task waits for two rounds at most, so both fit into the URL's timeout.
fn patience_ms(place: &Place) -> u64 {
    let timeout_ms = u64::try_from(place.timeout.as_millis()).unwrap_or(u64::MAX);
    timeout_ms.checked_div(2).unwrap_or(0).max(SHORTEST_MS)
}

impl Replicas {
    /// A connection beside `first`, to the same process of the server.
    pub(super) async fn beside(first: &dyn Connection, place: &Place) -> Result<Arc<Self>> {
        let connection = place.server.connect().await.map_err(|e| unavailable(place, &e))?;
        if run_id(first, place).await? != run_id(&*connection, place).await? {
            return Err(Error::ledger(format!(
                "the ledger at {}: two connections came to two servers; it is tried again with the next call",
                place.shown
            )));
        }
        Ok(Arc::new(Self {
            connection,
            place: place.clone(),
            answered: AtomicU64::new(0),
            round: AsyncMutex::default(),
            missing: AtomicBool::new(false),
        }))
    }

    /// Waits until enough replicas have what the server answered before this was called.
    ///
    /// # Errors
    /// `LedgerUnavailable` when too few have it in time.
    pub(super) async fn acknowledge(&self) -> Result<(), Lack> {
        let mine = self.answered.fetch_add(1, Ordering::SeqCst).saturating_add(1);
        let mut round = self.round.lock().await;
        if round.upto < mine {
            // Whoever took a number by now was answered before the WAIT that is sent next.
            let upto = self.answered.load(Ordering::SeqCst);
            let outcome = self.wait().await;
            self.missing
                .store(matches!(outcome, Outcome::Missing(_)), Ordering::SeqCst);
            *round = Round { upto, outcome };
        }
        match &round.outcome {
            Outcome::Acknowledged => Ok(()),
            Outcome::Missing(have) => Err(Lack {
                error: too_few(&self.place, *have),
                connection_lost: false,
            }),
            Outcome::Failed(what) => Err(Lack {
                error: lost(&self.place, what),
                connection_lost: true,
            }),
        }
    }

    /// While replicas are missing, asks for them before anything is decided: then nothing has to be taken back.
    pub(super) async fn back(&self) -> Result<(), Lack> {
        if self.missing.load(Ordering::SeqCst) {
            return self.acknowledge().await;
        }
        Ok(())
    }

    async fn wait(&self) -> Outcome {
        let mut mark = redis::cmd("SET");
        mark.arg(self.place.ns.place(MARK)).arg(1);
        let mut wait = redis::cmd("WAIT");
        wait.arg(self.place.replicas).arg(patience_ms(&self.place));
        match self.connection.send_both(&mark, &wait).await {
            Ok(Value::Int(have)) if have >= i64::from(self.place.replicas) => Outcome::Acknowledged,
            Ok(Value::Int(have)) => Outcome::Missing(have),
            Ok(_) => Outcome::Failed("its answer to WAIT cannot be read".to_owned()),
            Err(error) => Outcome::Failed(told(&self.place, &error)),
        }
    }
}

/// Replicas that did not acknowledge.
pub(super) struct Lack {
    pub(super) error: Error,
    /// Whether the connection has to be made anew.
    pub(super) connection_lost: bool,
}

fn told(place: &Place, error: &RedisError) -> String {
    if error.code() == Some("NOPERM") {
        return "this user may not use WAIT: add +wait to its rights".to_owned();
    }
    unavailable(place, error).to_string()
}

fn too_few(place: &Place, have: i64) -> Error {
    Error::ledger(format!(
        "the ledger at {}: replication: {have} of the {} replicas that its URL demands (replicas={}) acknowledged \
         within {} ms; see that they are connected: keybrake doctor",
        place.shown,
        place.replicas,
        place.replicas,
        patience_ms(place),
    ))
}

fn lost(place: &Place, what: &str) -> Error {
    Error::ledger(format!(
        "the ledger at {}: replication: it is not known whether replicas have it: {what}",
        place.shown
    ))
}

/// The error of an administrator's act that stands on the primary alone.
pub(super) fn stands(error: &Error) -> Error {
    Error::ledger(format!(
        "it is done on the primary and works from now on, but it is lost if the primary fails before its replicas have \
         it; repeat it once they are back. {error}"
    ))
}

async fn run_id(connection: &dyn Connection, place: &Place) -> Result<String> {
    let info = text(ask(connection, place, redis::cmd("INFO").arg("server")).await?)?;
    Ok(life::field(&info, "run_id").to_owned())
}

/// The replicas of the server.
pub(super) fn connected(info: &str) -> Connected {
    let field = |line: &str, name: &str| line.split([',', ':']).any(|part| part == name);
    let lines = info.lines().filter(|line| {
        let number = line.strip_prefix("slave").and_then(|rest| rest.split(':').next());
        number.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
    });
    let (mut online, mut all) = (0_u32, 0_u32);
    for line in lines {
        all = all.saturating_add(1);
        online = online.saturating_add(u32::from(field(line, "state=online")));
    }
    Connected { online, all }
}

/// Refuses a server that has too few replicas, before it is used for the first time.
///
/// # Errors
/// `LedgerUnavailable`, with what to do.
pub(super) async fn demand(place: &Place) -> Result<()> {
    if place.replicas == 0 {
        return Ok(());
    }
    let first = place.server.connect().await.map_err(|e| unavailable(place, &e))?;
    let info = text(ask(&*first, place, redis::cmd("INFO").arg("replication")).await?)?;
    let Connected { online, .. } = connected(&info);
    if online < place.replicas {
        return Err(Error::ledger(format!(
            "the ledger at {} demands {} (replicas={}), and its server has {online}: connect them (replicaof), or lower \
             replicas= in the URL. To look at it or to stop something meanwhile, use the URL without replicas=",
            place.shown,
            counted(place.replicas),
            place.replicas,
        )));
    }
    let replicas = Replicas::beside(&*first, place).await?;
    // One that has only just been filled acknowledges nothing for up to a second.
    for _ in 1..ROUNDS_AT_OPEN {
        if replicas.acknowledge().await.is_ok() {
            return Ok(());
        }
    }
    replicas.acknowledge().await.map_err(|lack| lack.error)
}

pub(super) fn counted(replicas: u32) -> String {
    match replicas {
        1 => "1 replica".to_owned(),
        n => format!("{n} replicas"),
    }
}

/// How long the server's replicas take to acknowledge something small.
pub(super) async fn round_trip(first: &dyn Connection, place: &Place) -> Result<Duration> {
    let replicas = Replicas::beside(first, place).await?;
    let began = tokio::time::Instant::now();
    replicas.acknowledge().await.map_err(|lack| lack.error)?;
    Ok(began.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_that_is_being_filled_is_not_counted() {
        let info = "role:master\r\nconnected_slaves:2\r\n\
                    slave0:ip=10.0.0.2,port=6379,state=online,offset=71,lag=0\r\n\
                    slave1:ip=10.0.0.3,port=6379,state=wait_bgsave,offset=0,lag=0\r\n\
                    slave_read_only:1\r\nmaster_replid:x\r\n";
        let found = connected(info);
        assert_eq!((found.online, found.all), (1, 2));
    }
}
