//! A primary, a replica of it, and a Sentinel that promotes the replica when the primary is gone.

use std::io;
use std::time::Duration;

use super::PATIENCE;
use super::server::{RedisOptions, RedisServer};

/// The name by which the Sentinel knows the pair.
const NAME: &str = "books";
/// As whom a replica copies. Without this user's right it cannot: that is how the link is cut.
const REPLICA: &str = "replica";
/// After how many milliseconds of silence a primary counts as down. Shorter, and a busy machine would look like a
/// failure. A replica whose link was down for ten times as long is not promoted: it is too old.
const DOWN_AFTER_MS: u32 = 1_000;
/// A Sentinel asks the primary for its replicas every ten seconds, and may be kept from hearing the answer.
const REPLICA_KNOWN_MAX: Duration = PATIENCE.saturating_mul(4);
/// A failover takes two to three seconds; a Sentinel that was itself stalled does nothing for 30 s.
const FAILOVER_MAX: Duration = PATIENCE.saturating_mul(4);

/// Primary, replica and Sentinel, in private directories as [`RedisServer`].
#[derive(Debug)]
pub struct Replicated {
    sentinel: RedisServer,
    primary: RedisServer,
    replica: RedisServer,
}

impl Replicated {
    /// Starts them. When this returns, the replica has caught up and the Sentinel knows both.
    ///
    /// # Errors
    /// Those of [`RedisServer::start`].
    pub fn start(options: &RedisOptions) -> io::Result<Self> {
        // Both have all of it, because they change places.
        let options = options
            .clone()
            .config(format!("user {REPLICA} on >copies +psync +replconf +ping"))
            .config(format!("masteruser {REPLICA}"))
            .config("masterauth copies");
        let primary = RedisServer::start(options.clone())?;
        let port = primary.port();
        let replica = RedisServer::start(options.config(format!("replicaof 127.0.0.1 {port}")))?;
        replica.wait_for_log(0, "MASTER <-> REPLICA sync: Finished with success")?;
        let sentinel = RedisServer::start(
            RedisOptions::new()
                .sentinel()
                .config(format!("sentinel monitor {NAME} 127.0.0.1 {port} 1"))
                .config(format!("sentinel down-after-milliseconds {NAME} {DOWN_AFTER_MS}"))
                .config(format!("sentinel failover-timeout {NAME} 5000")),
        )?;
        sentinel.wait_for_log_within(REPLICA_KNOWN_MAX, 0, "+slave slave")?;
        let pair = Self {
            sentinel,
            primary,
            replica,
        };
        pair.wait_in_step()?;
        Ok(pair)
    }

    /// The one that is written to; after a failover the other one.
    pub fn primary(&mut self) -> &mut RedisServer {
        &mut self.primary
    }

    /// The one that copies; after a failover the primary of before.
    pub fn replica(&mut self) -> &mut RedisServer {
        &mut self.replica
    }

    /// The Sentinel.
    pub fn sentinel(&mut self) -> &mut RedisServer {
        &mut self.sentinel
    }

    /// The name by which the Sentinel knows the pair.
    pub fn name(&self) -> &'static str {
        NAME
    }

    /// Waits until the replica has everything that the primary has acknowledged so far.
    ///
    /// # Errors
    /// It has not after [`PATIENCE`].
    pub fn wait_in_step(&self) -> io::Result<()> {
        let mut connection = self.primary.connect()?;
        // `WAIT` is about what this connection has seen.
        connection.command(&["PING"])?;
        // A little longer than it waits for the replica, so that its answer arrives.
        connection.patience(PATIENCE.saturating_mul(2))?;
        let limit = PATIENCE.as_millis().to_string();
        let copies = connection.command(&["WAIT", "1", &limit])?;
        if copies.integer() == Some(1) {
            return Ok(());
        }
        let told = "the replica has not caught up";
        Err(io::Error::new(io::ErrorKind::TimedOut, told))
    }

    /// Cuts the link to the replica, which has everything up to now. What the primary acknowledges from here on is lost
    /// when it fails; the failover must come within ten seconds, else the replica is too old to be promoted.
    pub fn cut_replication(&self) -> io::Result<()> {
        self.wait_in_step()?;
        self.primary.command(&["ACL", "SETUSER", REPLICA, "off"])?;
        self.primary.command(&["CLIENT", "KILL", "TYPE", "replica"])?;
        Ok(())
    }

    /// Mends the link; when this returns the replica has caught up.
    pub fn mend_replication(&self) -> io::Result<()> {
        self.primary.command(&["ACL", "SETUSER", REPLICA, "on"])?;
        self.wait_in_step()
    }

    /// Kills the primary and waits until the Sentinel has promoted the replica. The old one stays down; when it is
    /// restarted it takes itself for a primary until the Sentinel tells it otherwise, some ten seconds later.
    pub fn failover(&mut self) -> io::Result<()> {
        let before = self.sentinel.log_lines()?;
        self.primary.kill()?;
        self.promoted(before)
    }

    /// The same with a primary that is only stopped. [`RedisServer::cont`] of what is now [`Self::replica`] wakes it:
    /// then there are two that take writes, until the Sentinel demotes it.
    pub fn failover_of_stopped(&mut self) -> io::Result<()> {
        let before = self.sentinel.log_lines()?;
        self.primary.stop()?;
        self.promoted(before)
    }

    fn promoted(&mut self, before: usize) -> io::Result<()> {
        let line = format!("+switch-master {NAME} 127.0.0.1 {}", self.primary.port());
        self.sentinel.wait_for_log_within(FAILOVER_MAX, before, &line)?;
        std::mem::swap(&mut self.primary, &mut self.replica);
        Ok(())
    }
}
