//! Finding the one server that holds a namespace: the primary that a Sentinel names, or the node of a cluster that owns
//! the namespace's slot. Asked anew whenever a connection is made, so that a failover or a moved slot is followed.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use redis::io::tcp::TcpSettings;
use redis::{Cmd, ConnectionInfo, IntoConnectionInfo as _, RedisError, RedisResult, Value};

use super::server::{Connection, Network, Server, Subscription};
use super::wire;

/// How the server is found.
#[derive(Clone, Debug)]
pub(super) enum By {
    /// The primary of this name, as Sentinels know it.
    Sentinel { name: String },
    /// The node that owns the slot of this key.
    Cluster { key: String },
}

/// Servers that know where the ledger is.
pub(super) struct Finder {
    by: By,
    /// `redis` or `rediss`.
    scheme: String,
    /// `user:password@`, or nothing.
    login: String,
    /// `host:port` of each.
    seeds: Vec<String>,
    /// `/2`, or nothing.
    database: String,
    timeout: Duration,
}

impl fmt::Debug for Finder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Finder")
            .field("by", &self.by)
            .field("seeds", &self.seeds)
            .finish_non_exhaustive()
    }
}

impl Finder {
    pub(super) fn new(
        by: By,
        (scheme, login): (&str, &str),
        seeds: &str,
        database: &str,
        timeout: Duration,
    ) -> Self {
        Self {
            by,
            scheme: scheme.to_owned(),
            login: login.to_owned(),
            seeds: seeds.split(',').map(str::to_owned).collect(),
            database: database.to_owned(),
            timeout,
        }
    }

    /// Whether every address can be read.
    pub(super) fn check(&self) -> RedisResult<()> {
        self.seeds
            .iter()
            .try_for_each(|seed| self.network(seed).map(drop))
    }

    fn network(&self, address: &str) -> RedisResult<Network> {
        // Sentinels are asked without the server's user, as they have their own.
        self.at(&format!(
            "{}://{}{address}{}",
            self.scheme, self.login, self.database
        ))
    }

    fn at(&self, url: &str) -> RedisResult<Network> {
        let connection: ConnectionInfo = url.into_connection_info()?;
        Ok(Network {
            connection: connection.set_tcp_settings(TcpSettings::default().set_nodelay(true)),
            timeout: self.timeout,
        })
    }

    /// The address of the server, as one of the seeds knows it.
    async fn ask(&self, seed: &str) -> RedisResult<String> {
        let (network, command) = match &self.by {
            By::Sentinel { name } => {
                let mut command = redis::cmd("SENTINEL");
                command.arg("GET-MASTER-ADDR-BY-NAME").arg(name);
                (self.at(&format!("{}://{seed}", self.scheme))?, command)
            }
            By::Cluster { .. } => {
                let mut command = redis::cmd("CLUSTER");
                command.arg("SLOTS");
                (self.network(seed)?, command)
            }
        };
        let connection = network.connect().await?;
        let answer = send(&*connection, &command).await?;
        match &self.by {
            By::Sentinel { name } => match wire::texts(answer).ok().as_deref() {
                Some([host, port]) => Ok(address(host, port, seed)),
                _ => Err(nobody(format!("the Sentinel at {seed} knows no primary {name}"))),
            },
            By::Cluster { key } => {
                let mut command = redis::cmd("CLUSTER");
                command.arg("KEYSLOT").arg(key);
                let slot = match send(&*connection, &command).await? {
                    Value::Int(slot) => slot,
                    _ => -1,
                };
                owner(answer, slot, seed)
                    .ok_or_else(|| nobody(format!("no node of the cluster at {seed} owns slot {slot}")))
            }
        }
    }
}

#[async_trait]
impl Server for Finder {
    async fn connect(&self) -> RedisResult<Arc<dyn Connection>> {
        let mut last = nobody("the ledger URL names no server".to_owned());
        for seed in &self.seeds {
            let found = match self.ask(seed).await {
                Ok(address) => match self.network(&address) {
                    Ok(network) => network.connect().await,
                    Err(error) => Err(error),
                },
                Err(error) => Err(error),
            };
            match found {
                Ok(connection) => return Ok(connection),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn subscribe(&self, channel: &str) -> RedisResult<Box<dyn Subscription>> {
        let mut last = nobody("the ledger URL names no server".to_owned());
        for seed in &self.seeds {
            let found = match self.ask(seed).await {
                Ok(address) => self.network(&address)?.subscribe(channel).await,
                Err(error) => Err(error),
            };
            match found {
                Ok(subscription) => return Ok(subscription),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn boot_ms(&self) -> i64 {
        super::server::boot_ms()
    }

    fn random(&self) -> u8 {
        super::server::random()
    }
}

async fn send(connection: &dyn Connection, command: &Cmd) -> RedisResult<Value> {
    connection.send(command).await.and_then(Value::extract_error)
}

/// `host:port`. A server that does not know its own host is where it was asked.
fn address(host: &str, port: &str, seed: &str) -> String {
    let host = match host {
        "" | "?" => seed.rsplit_once(':').map_or(seed, |(host, _)| host),
        host => host,
    };
    if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// The primary of a slot, from what `CLUSTER SLOTS` answers: from, to, primary (host, port, …), replicas.
fn owner(slots: Value, slot: i64, seed: &str) -> Option<String> {
    let Value::Array(ranges) = slots else { return None };
    ranges.into_iter().find_map(|range| {
        let Value::Array(parts) = range else { return None };
        let mut parts = parts.into_iter();
        match (parts.next()?, parts.next()?, parts.next()?) {
            (Value::Int(from), Value::Int(to), Value::Array(node)) if (from..=to).contains(&slot) => {
                let mut node = node.into_iter();
                let host = wire::text(node.next()?).ok()?;
                let port = wire::text(node.next()?).ok()?;
                Some(address(&host, &port, seed))
            }
            _ => None,
        }
    })
}

fn nobody(message: String) -> RedisError {
    RedisError::from((redis::ErrorKind::Io, "not found", message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slots_owner_is_its_primary() {
        let node = |host: &str, port| Value::Array(vec![Value::BulkString(host.into()), Value::Int(port)]);
        let slots = || {
            Value::Array(vec![
                Value::Array(vec![
                    Value::Int(0),
                    Value::Int(99),
                    node("10.0.0.1", 7_000),
                    node("10.0.0.9", 7_009),
                ]),
                Value::Array(vec![Value::Int(100), Value::Int(199), node("", 7_001)]),
                Value::Array(vec![Value::Int(200), Value::Int(16_383), node("::1", 7_002)]),
            ])
        };
        assert_eq!(owner(slots(), 99, "seed:1").unwrap(), "10.0.0.1:7000");
        assert_eq!(owner(slots(), 100, "seed:1").unwrap(), "seed:7001");
        assert_eq!(owner(slots(), 9_000, "seed:1").unwrap(), "[::1]:7002");
        assert_eq!(owner(slots(), -1, "seed:1"), None);
    }

    #[test]
    fn debug_shows_no_password() {
        let by = By::Sentinel {
            name: "prod".to_owned(),
        };
        let finder = Finder::new(
            by,
            ("redis", "kb:hunter2@"),
            "a:1,b:2",
            "",
            Duration::from_secs(1),
        );
        assert!(!format!("{finder:?}").contains("hunter2"));
        assert!(finder.check().is_ok());
    }
}
