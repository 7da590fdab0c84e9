//! `redis://[user:password@]host[:port][/db]?ns=NAME&timeout_ms=N&replicas=N`, `rediss://` for TLS, `redis+unix:///path?ns=NAME`;
//! `redis+sentinel://[user:password@]host:port,…/PRIMARY`, `redis+cluster://[user:password@]host:port,…`, and both
//! with `rediss+`.

use std::sync::Arc;
use std::time::Duration;

use redis::IntoConnectionInfo as _;
use redis::io::tcp::TcpSettings;

use super::finder::{By, Finder};
use super::server::{Network, Server};
use crate::error::{Error, Result};

/// Longest wait for an answer of the server before a call is refused, in milliseconds, unless the URL says otherwise.
const TIMEOUT_MS: u64 = 1_000;
const TIMEOUT_RANGE_MS: std::ops::RangeInclusive<u64> = 10..=60_000;
const REPLICAS_RANGE: std::ops::RangeInclusive<u32> = 1..=64;

/// Where a ledger is.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) server: Arc<dyn Server>,
    pub(super) transport: Transport,
    pub(super) ns: Namespace,
    pub(super) timeout: Duration,
    /// Replicas that must have a decision before it is answered; 0 for asynchronous replication.
    pub(super) replicas: u32,
    /// The URL without user and password.
    pub(super) shown: String,
}

/// What the way to the server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Tls,
    /// Plain, and it does not leave this machine.
    Machine,
    /// Plain, over a network.
    Network,
}

impl Transport {
    /// Of an address without its query; it may name several hosts.
    fn of(address: &str) -> Self {
        let (scheme, rest) = address.split_once("://").unwrap_or(("redis", address));
        if scheme.starts_with("rediss") {
            return Self::Tls;
        }
        let rest = rest.rsplit_once('@').map_or(rest, |(_, hosts)| hosts);
        let hosts = rest.split('/').next().unwrap_or(rest);
        if scheme == "redis+unix" || hosts.split(',').all(|host| is_loopback(without_port(host))) {
            Self::Machine
        } else {
            Self::Network
        }
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, _)) if name.ends_with(']') || !name.contains(':') => name,
        _ => host,
    }
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    let address = host.parse::<std::net::IpAddr>();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

/// A namespace: all of its keys are in one slot of a cluster.
#[derive(Clone, Debug)]
pub(super) struct Namespace {
    name: String,
    places: [String; 11],
    prefix: String,
}

impl Namespace {
    /// So many places, the first of them, are all that most steps need.
    pub(super) const OFTEN: usize = 6;

    pub(super) fn new(name: &str) -> Self {
        let prefix = format!("kb:{{{name}}}:");
        let place = |name: &str| format!("{prefix}{name}");
        Self {
            name: name.to_owned(),
            // The order of `places` in library.lua.
            places: [
                place("meta"),
                place("counters"),
                place("events"),
                place("deadlines"),
                place("open"),
                place("recovery"),
                place("records"),
                place("stops"),
                place("issued"),
                place("provisional"),
                place("clients"),
            ],
            prefix,
        }
    }

    /// As the URL names it.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) const fn places(&self) -> &[String; 11] {
        &self.places
    }

    /// A place's number, from 1, among those that a function gets.
    pub(super) fn index(&self, name: &str) -> usize {
        let found = self
            .places
            .iter()
            .position(|place| place.strip_prefix(self.prefix.as_str()) == Some(name));
        found.map_or(0, |index| index.saturating_add(1))
    }

    /// One of the places, by its name.
    pub(super) fn place(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The key of a record that is one of its own.
    pub(super) fn key(&self, record: &str) -> String {
        format!("{}{record}", self.prefix)
    }
}

/// Reads a URL.
///
/// # Errors
/// `Config` for what is not such a URL. The message never repeats it: it may hold a password.
pub(super) fn parse(url: &str) -> Result<Place> {
    let (address, query) = url.split_once('?').unwrap_or((url, ""));
    let (mut namespace, mut timeout_ms) = (crate::ledger::sqlite::DEFAULT_NAMESPACE, TIMEOUT_MS);
    let mut replicas = 0;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=').unwrap_or((pair, "")) {
            ("ns", name) => namespace = name,
            ("timeout_ms", text) => {
                timeout_ms = text
                    .parse()
                    .ok()
                    .filter(|ms| TIMEOUT_RANGE_MS.contains(ms))
                    .ok_or_else(|| Error::config("timeout_ms in the ledger URL must be 10 to 60000"))?;
            }
            ("replicas", text) => {
                replicas = text
                    .parse()
                    .ok()
                    .filter(|replicas| REPLICAS_RANGE.contains(replicas))
                    .ok_or_else(|| Error::config("replicas in the ledger URL must be 1 to 64"))?;
            }
            (option, _) => {
                return Err(Error::config(format!(
                    "unknown option {option:?} in the ledger URL: redis:// knows ns, timeout_ms and replicas, as in \
                     redis://localhost?ns=prod"
                )));
            }
        }
    }
    crate::ledger::sqlite::check_namespace(namespace)?;
    let timeout = Duration::from_millis(timeout_ms);
    let ns = Namespace::new(namespace);
    let server: Arc<dyn Server> = match finder(address, &ns, timeout)? {
        Some(finder) => Arc::new(finder),
        None => Arc::new(Network {
            connection: address
                .into_connection_info()
                .map_err(|e| unreadable(&e))?
                .set_tcp_settings(TcpSettings::default().set_nodelay(true)),
            timeout,
        }),
    };
    Ok(Place {
        shown: shown(address, namespace),
        transport: Transport::of(address),
        server,
        ns,
        timeout,
        replicas,
    })
}

/// What finds the server, where the URL names Sentinels or nodes of a cluster.
fn finder(address: &str, ns: &Namespace, timeout: Duration) -> Result<Option<Finder>> {
    let (scheme, rest) = address.split_once("://").unwrap_or(("", address));
    let Some((plain, how)) = scheme.split_once('+').filter(|(_, how)| *how != "unix") else {
        return Ok(None);
    };
    let (login, rest) = match rest.rsplit_once('@') {
        Some((login, rest)) => (format!("{login}@"), rest),
        None => (String::new(), rest),
    };
    let (seeds, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (by, database) = match how {
        "sentinel" => {
            let (name, database) = path.split_once('/').unwrap_or((path, ""));
            if name.is_empty() {
                return Err(Error::config(
                    "the ledger URL names no primary: write redis+sentinel://host:26379,host:26379/PRIMARY?ns=prod",
                ));
            }
            (
                By::Sentinel {
                    name: name.to_owned(),
                },
                database,
            )
        }
        "cluster" if path.is_empty() => (
            By::Cluster {
                key: ns.place("meta"),
            },
            "",
        ),
        "cluster" => {
            return Err(Error::config(
                "a Redis cluster has one database: the ledger URL must not name one",
            ));
        }
        _ => {
            return Err(Error::config(format!(
                "{scheme}:// ledgers are not known: write redis://, redis+sentinel://, redis+cluster:// or redis+unix://"
            )));
        }
    };
    let database = if database.is_empty() {
        String::new()
    } else {
        format!("/{database}")
    };
    let finder = Finder::new(by, (plain, &login), seeds, &database, timeout);
    finder.check().map_err(|e| unreadable(&e))?;
    Ok(Some(finder))
}

fn unreadable(error: &redis::RedisError) -> Error {
    Error::config(format!(
        "the ledger URL cannot be read ({}): write redis://host:6379?ns=prod",
        error.category()
    ))
}

fn shown(address: &str, namespace: &str) -> String {
    let (scheme, rest) = address.split_once("://").unwrap_or(("redis", address));
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    format!("{scheme}://{host}?ns={namespace}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_server_namespace_and_patience() {
        let place = parse("redis://kb:hunter2@kb-prod:6380/2?ns=prod&timeout_ms=250").unwrap();
        assert_eq!(place.shown, "redis://kb-prod:6380/2?ns=prod");
        assert_eq!(place.timeout, Duration::from_millis(250));
        assert_eq!(place.ns.key("r:1"), "kb:{prod}:r:1");
        assert_eq!(
            parse("redis://localhost").unwrap().shown,
            "redis://localhost?ns=default"
        );
        assert!(parse("rediss://kb-prod:6379").is_ok());
        assert_eq!(parse("redis://localhost").unwrap().replicas, 0);
        assert_eq!(parse("redis://localhost?replicas=2").unwrap().replicas, 2);
        let sentinel = parse("rediss+sentinel://kb:hunter2@a:26379,b:26379/prod?ns=x").unwrap();
        assert_eq!(sentinel.shown, "rediss+sentinel://a:26379,b:26379/prod?ns=x");
        assert!(parse("redis+cluster://a:7000,b:7000?ns=x").is_ok());
        assert!(parse("redis+unix:///run/redis.sock?ns=a").is_ok());
    }

    #[test]
    fn it_is_known_which_ways_leave_the_machine() {
        let way = |url| parse(url).unwrap().transport;
        for near in [
            "redis://127.0.0.1:1",
            "redis://localhost",
            "redis://[::1]:1",
            "redis+unix:///run/a.sock",
        ] {
            assert_eq!(way(near), Transport::Machine, "{near}");
        }
        assert_eq!(way("rediss://kb-prod"), Transport::Tls);
        assert_eq!(way("redis://kb-prod"), Transport::Network);
        assert_eq!(way("redis://10.0.0.7"), Transport::Network);
    }

    #[test]
    fn what_is_wrong_is_said_without_the_password() {
        for url in [
            "redis://u:hunter2@h?nss=prod",
            "redis://u:hunter2@h?timeout_ms=0",
            "redis://u:hunter2@h?replicas=0",
            "redis://u:hunter2@h?replicas=all",
            "redis://u:hunter2@h?ns=a b",
            "redis://u:hunter2@h:port",
            "redis+sentinel://u:hunter2@h:1",
            "redis+cluster://u:hunter2@h:1/2",
            "redis+cluster://u:hunter2@h:port",
            "redis+magic://u:hunter2@h:1",
        ] {
            let error = parse(url).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
