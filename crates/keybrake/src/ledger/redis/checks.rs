//! What `keybrake doctor` tells of a server: where it is, what it would lose, and whether the ledger on it is open.

use std::time::Duration;

use redis::{Cmd, Value};
use tokio::time::Instant;

use super::life::About;
use super::replicas::{self, Connected};
use super::server::Connection;
use super::url::{Place, Transport};
use super::wire::{Parts, function, text};
use super::{RedisLedger, aborts, library, link, log};
use crate::clock::Clock;
use crate::error::Result;
use crate::ledger::rules::JUMP_MS;
use crate::ledger::types::{CheckGrade, LedgerCheck};

/// Round trips of which the median is told.
const PINGS: usize = 9;
/// A round trip that every call feels, in microseconds.
const SLOW_US: u128 = 20_000;
/// How far the clocks of server and machine may differ before it is said, in milliseconds.
const APART_MS: i64 = 1_000;

/// What the server says of itself.
struct Server {
    info: String,
    /// `appendfsync` and `save`; nothing when the user may not ask.
    config: Vec<(String, String)>,
    /// Names of the libraries of Keybrake; nothing when the user may not ask.
    libraries: Option<Vec<String>>,
}

impl RedisLedger {
    pub(super) async fn checked(&self) -> Result<Vec<LedgerCheck>> {
        let place = &self.place;
        let connection = link::connect(place).await?;
        let median_us = round_trip(&*connection, place).await?;
        let (apart_ms, server_ms) = apart(&*connection, place, &*self.clock).await?;
        let about = About::read(link::ask(&*connection, place, &function("about", &place.ns, &[])).await?)?;
        let server = Server::read(&*connection, place).await?;
        Ok(vec![
            reached(&server, median_us),
            transport(place),
            memory(&server),
            persistence(&server),
            replication(&server, place, &*connection).await,
            functions(&server),
            self.hard_stops().await,
            namespace(place),
            self.kept_secret(),
            apart_check(apart_ms, about.standing.now_ms.saturating_sub(server_ms)),
            state(&about),
        ])
    }

    /// Whether processes can be told to abort what they have in flight.
    async fn hard_stops(&self) -> LedgerCheck {
        match aborts::allowed(&self.place, &self.tell().await).await {
            Ok(()) => check(
                "hard stops",
                CheckGrade::Good,
                "processes are told at once (keybrake stop --hard)",
                "",
            ),
            Err(error) => check(
                "hard stops",
                CheckGrade::Look,
                format!("processes look for them by themselves, within two seconds: {error}"),
                format!("give the ledger's user {}", aborts::rights(&self.place)),
            ),
        }
    }

    fn kept_secret(&self) -> LedgerCheck {
        if self.secret_in_ledger {
            let advice = "set KEYBRAKE_MASTER_KEY (32 random bytes or more, the same for all processes) and begin a new \
                          namespace: then a repeat gets the first reply again, and a copy of the data cannot spend";
            return check(
                "master key",
                CheckGrade::Look,
                "none: the ledger's secret stands beside its data, so replies are not recorded and a repeat is answered \
                 with already_done",
                advice,
            );
        }
        check(
            "master key",
            CheckGrade::Good,
            "the ledger's secret is derived from it and is not in Redis",
            "",
        )
    }
}

impl Server {
    async fn read(connection: &dyn Connection, place: &Place) -> Result<Self> {
        let info = text(link::ask(connection, place, &redis::cmd("INFO")).await?)?;
        let mut config = redis::cmd("CONFIG");
        config.arg("GET").arg("appendfsync").arg("save");
        let mut list = redis::cmd("FUNCTION");
        list.arg("LIST").arg("LIBRARYNAME").arg("keybrake_*");
        // A user may be forbidden to ask either; that is said, and no more.
        let config = allowed(connection, &config).await.map(log::pairs);
        let libraries = allowed(connection, &list).await.map(library_names);
        Ok(Self {
            info,
            config: config.transpose()?.unwrap_or_default(),
            libraries: libraries.transpose()?,
        })
    }

    /// A line of `INFO`.
    fn field(&self, name: &str) -> &str {
        self.info
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .unwrap_or_default()
    }

    fn config(&self, name: &str) -> Option<&str> {
        let found = self.config.iter().find(|(field, _)| field == name);
        found.map(|(_, value)| value.as_str())
    }
}

async fn allowed(connection: &dyn Connection, command: &Cmd) -> Option<Value> {
    let answer = connection.send(command).await;
    answer.and_then(Value::extract_error).ok()
}

fn library_names(value: Value) -> Result<Vec<String>> {
    let Value::Array(libraries) = value else {
        return Ok(Vec::new());
    };
    let mut names = Vec::new();
    for library in libraries {
        // A list of names and values; the functions among them are lists of their own.
        let fields = match library {
            Value::Array(fields) => fields,
            Value::Map(pairs) => pairs
                .into_iter()
                .flat_map(|(name, value)| [name, value])
                .collect(),
            _ => continue,
        };
        let mut fields = fields.into_iter();
        while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
            if text(name)? == "library_name" {
                names.push(text(value)?);
            }
        }
    }
    Ok(names)
}

fn check(
    name: &'static str,
    grade: CheckGrade,
    found: impl Into<String>,
    advice: impl Into<String>,
) -> LedgerCheck {
    LedgerCheck {
        name,
        grade,
        found: found.into(),
        advice: advice.into(),
    }
}

/// Median of some round trips, in microseconds.
async fn round_trip(connection: &dyn Connection, place: &Place) -> Result<u128> {
    let mut micros = Vec::with_capacity(PINGS);
    for _ in 0..PINGS {
        let start = Instant::now();
        link::ask(connection, place, &redis::cmd("PING")).await?;
        micros.push(start.elapsed().as_micros());
    }
    micros.sort_unstable();
    Ok(micros.get(PINGS / 2).copied().unwrap_or(0))
}

/// By how many milliseconds the server's clock is ahead of this machine's.
/// By how much the server's clock is ahead of this machine's, and what it says.
async fn apart(connection: &dyn Connection, place: &Place, clock: &dyn Clock) -> Result<(i64, i64)> {
    let before_ms = clock.now_ms();
    let mut parts = Parts::of(link::ask(connection, place, &redis::cmd("TIME")).await?)?;
    let after_ms = clock.now_ms();
    let mut number = || -> Result<i64> { parts.text()?.parse().map_err(|_| super::wire::unreadable()) };
    let (seconds, micros) = (number()?, number()?);
    let server_ms = seconds
        .saturating_mul(1_000)
        .saturating_add(micros.checked_div(1_000).unwrap_or(0));
    let middle_ms = before_ms.midpoint(after_ms);
    Ok((server_ms.saturating_sub(middle_ms), server_ms))
}

fn reached(server: &Server, median_us: u128) -> LedgerCheck {
    let valkey = server.field("valkey_version");
    let name = if valkey.is_empty() {
        format!("Redis {}", server.field("redis_version"))
    } else {
        format!("Valkey {valkey}")
    };
    let whole = median_us.checked_div(1_000).unwrap_or(0);
    let rest = median_us.checked_rem(1_000).unwrap_or(0);
    let found = format!("{name}, a round trip takes {whole}.{rest:03} ms");
    if median_us > SLOW_US {
        let advice = "every governed call waits for two round trips: put the server nearer to the agents";
        return check("server", CheckGrade::Look, found, advice);
    }
    check("server", CheckGrade::Good, found, "")
}

fn transport(place: &Place) -> LedgerCheck {
    let advice = "write rediss:// and give the server a certificate: whoever reads the network there reads its password \
                  and every call";
    match place.transport {
        Transport::Tls => check("transport", CheckGrade::Good, "TLS", ""),
        Transport::Machine => check("transport", CheckGrade::Good, "plain, on this machine", ""),
        Transport::Network => check("transport", CheckGrade::Look, "plain, to another machine", advice),
    }
}

fn memory(server: &Server) -> LedgerCheck {
    let policy = server.field("maxmemory_policy");
    let most = match server.field("maxmemory") {
        "0" | "" => "no limit".to_owned(),
        bytes => format!("at most {bytes} bytes"),
    };
    let found = format!(
        "maxmemory-policy {policy}, {most}, {} used",
        server.field("used_memory_human")
    );
    if policy == "noeviction" {
        let number = |name| server.field(name).parse::<u64>().unwrap_or(0);
        let (used, most) = (number("used_memory"), number("maxmemory"));
        let percent = used.saturating_mul(100).checked_div(most).unwrap_or(0);
        let grade = match percent {
            0..=79 => return check("memory", CheckGrade::Good, found, ""),
            80..=94 => CheckGrade::Look,
            _ => CheckGrade::Bad,
        };
        let advice = "when it is full, the server refuses writes and every call is refused: raise maxmemory, or drain and \
                      trim the log (keybrake audit drain --to … --keep 7d)";
        return check("memory", grade, format!("{found}: {percent} % of it"), advice);
    }
    let advice = "set maxmemory-policy noeviction: this server forgets what was spent";
    check("memory", CheckGrade::Bad, found, advice)
}

/// What a crash of the server, or of its machine, takes with it.
fn persistence(server: &Server) -> LedgerCheck {
    const ADVICE: &str =
        "set appendonly yes, and appendfsync always (or everysec, if a second of spending may be lost)";
    let name = "durability";
    if server.field("aof_enabled") == "1" {
        if server.field("aof_last_write_status") == "err" {
            let advice = "the append-only file cannot be written: is the server's disk full?";
            return check(name, CheckGrade::Bad, "the last write failed", advice);
        }
        return match server.config("appendfsync") {
            Some("always") => check(
                name,
                CheckGrade::Good,
                "appendonly, appendfsync always: what was answered is on the server's disk",
                "",
            ),
            Some("everysec") => check(
                name,
                CheckGrade::Good,
                "appendonly, appendfsync everysec: a killed server loses nothing, a power cut up to two seconds of \
                 decisions",
                "for money, appendfsync always",
            ),
            Some(other) => check(
                name,
                CheckGrade::Look,
                format!("appendonly, appendfsync {other}: a power cut loses what the kernel had not written"),
                ADVICE,
            ),
            None => check(
                name,
                CheckGrade::Look,
                "appendonly; this user may not read appendfsync (CONFIG GET)",
                "see that it is always or everysec",
            ),
        };
    }
    let snapshots = server.config("save").is_some_and(|save| !save.is_empty());
    let found = if snapshots {
        format!(
            "snapshots only: a server that ends without one loses every decision since the last ({} changes now)",
            server.field("rdb_changes_since_last_save")
        )
    } else {
        "none: when the server ends, everything that was spent and held is forgotten, and the caps begin anew"
            .to_owned()
    };
    check(name, CheckGrade::Look, found, ADVICE)
}

/// What a failover would lose.
async fn replication(server: &Server, place: &Place, connection: &dyn Connection) -> LedgerCheck {
    let answered = match place.replicas {
        0 => None,
        _ => Some(replicas::round_trip(connection, place).await),
    };
    replication_check(server, place.replicas, answered)
}

fn replication_check(server: &Server, demanded: u32, answered: Option<Result<Duration>>) -> LedgerCheck {
    let replicas = server.field("connected_slaves");
    if server.field("role") != "master" {
        let advice = "name the primary in the ledger's URL: a replica cannot decide";
        return check("replicas", CheckGrade::Bad, "this server is a replica", advice);
    }
    if let Some(answered) = answered {
        return strict(server, demanded, answered);
    }
    if matches!(replicas, "" | "0") {
        return check("replicas", CheckGrade::Good, "none", "");
    }
    // The server says how many are good enough only when it is to count them.
    if server.field("min_slaves_good_slaves").is_empty() {
        return check(
            "replicas",
            CheckGrade::Look,
            format!("{replicas}, written asynchronously, and this server takes writes without them"),
            "a primary that is cut off with some of the processes goes on beside the one that is promoted, and both spend \
             the same room: set min-replicas-to-write 1 and min-replicas-max-lag 10 on every server, or replicas=N in the \
             ledger's URL",
        );
    }
    check(
        "replicas",
        CheckGrade::Good,
        format!("{replicas}, written asynchronously"),
        "one that is promoted may lack the last decisions; the ledger is then closed until it is known not to. With \
         replicas=N in the ledger's URL, N of them have a decision before it is answered",
    )
}

/// Strict durability: how many replicas are demanded, and how many there are.
fn strict(server: &Server, demanded: u32, answered: Result<Duration>) -> LedgerCheck {
    let Connected { online, all } = replicas::connected(&server.info);
    let took = match answered {
        Ok(took) => took.as_micros(),
        Err(error) => {
            let advice = format!(
                "no call that can move money is let through: connect {}, or lower replicas= in the ledger's URL",
                replicas::counted(demanded)
            );
            return check("replicas", CheckGrade::Bad, error.to_string(), advice);
        }
    };
    let whole = took.checked_div(1_000).unwrap_or(0);
    let rest = took.checked_rem(1_000).unwrap_or(0);
    let found = format!(
        "{online}, of which {demanded} must have a decision before it is answered; they take {whole}.{rest:03} ms"
    );
    if all > demanded {
        let advice = format!(
            "write replicas={all}: another than those that have the last decisions may be promoted; the ledger is then \
             closed until it is known that none is missing"
        );
        return check("replicas", CheckGrade::Look, found, advice);
    }
    check(
        "replicas",
        CheckGrade::Good,
        found,
        "when one of them is gone, calls that can move money are refused until it is back",
    )
}

fn functions(server: &Server) -> LedgerCheck {
    let own = format!("keybrake_{}", library::digest());
    let Some(libraries) = &server.libraries else {
        let found = format!("{own} is loaded; this user may not list others (+function|list)");
        return check("functions", CheckGrade::Good, found, "");
    };
    let others: Vec<&str> = libraries
        .iter()
        .map(String::as_str)
        .filter(|name| *name != own)
        .collect();
    if others.is_empty() {
        return check("functions", CheckGrade::Good, format!("{own} is loaded"), "");
    }
    check(
        "functions",
        CheckGrade::Good,
        format!("{own} is loaded, and of other versions {}", others.join(", ")),
        "once no process of another version runs: FUNCTION DELETE and its name",
    )
}

fn namespace(place: &Place) -> LedgerCheck {
    let found = format!("{}: every key begins with {}", place.ns.name(), place.ns.key(""));
    check("namespace", CheckGrade::Good, found, "")
}

fn apart_check(apart_ms: i64, ahead_ms: i64) -> LedgerCheck {
    let size_ms = apart_ms.saturating_abs();
    let way = if apart_ms < 0 { "behind" } else { "ahead of" };
    let found = format!("the server is {size_ms} ms {way} this machine");
    if ahead_ms > JUMP_MS {
        let seconds = ahead_ms.checked_div(1_000).unwrap_or(0);
        return check(
            "clocks",
            CheckGrade::Bad,
            format!(
                "{found}, and {seconds} s behind the ledger's time, which stands still: it was set back, or was ahead before"
            ),
            "put the server's clock right; if it is right now, windows end late by that much: lower what must not be spent \
             meanwhile (keybrake budget set), or stop it (keybrake stop)",
        );
    }
    if size_ms > JUMP_MS {
        let advice = "one of the two clocks jumped, and a process that starts now cannot tell which: put it right (NTP) before \
                      anything is started; the ledger's time never goes back, so what is spent by a clock that is ahead is counted in \
                      later windows";
        return check("clocks", CheckGrade::Bad, found, advice);
    }
    if size_ms <= APART_MS {
        return check("clocks", CheckGrade::Good, found, "");
    }
    let advice = "windows begin and end by the server's clock: see that both machines keep time (NTP)";
    check("clocks", CheckGrade::Look, found, advice)
}

fn state(about: &About) -> LedgerCheck {
    if about.open {
        return check("state", CheckGrade::Good, "open", "");
    }
    if !about.uncovered.is_empty() {
        let events: Vec<String> = about
            .uncovered
            .iter()
            .map(|range| format!("{}-{}", range.first, range.last))
            .collect();
        return check(
            "state",
            CheckGrade::Bad,
            format!(
                "closed: events that were seen before are missing: {}",
                events.join(", ")
            ),
            "it opens when the processes that wrote them call again, or once they are restored from the archive (keybrake \
             ledger restore --from …); else compare it with the vendor (keybrake reconcile), then: keybrake ledger open \
             --reason \"…\"",
        );
    }
    check(
        "state",
        CheckGrade::Bad,
        "closed: the server has started since the ledger was opened, and no process that saw its last state is left",
        "restore what an archive has and it may lack (keybrake ledger restore --from …), compare it with the vendor \
         (keybrake reconcile), then: keybrake ledger open --reason \"…\"",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_jumped_is_told_also_to_those_who_come_after() {
        let grade = |apart_ms, ahead_ms| apart_check(apart_ms, ahead_ms).grade;
        assert_eq!(grade(20, 0), CheckGrade::Good);
        assert_eq!(grade(-2_000, 0), CheckGrade::Look);
        assert_eq!(grade(-JUMP_MS, 10), CheckGrade::Look);
        assert_eq!(grade(JUMP_MS + 1, 0), CheckGrade::Bad, "ahead");
        let set_back = apart_check(-7_200_000, 7_200_000);
        assert_eq!(set_back.grade, CheckGrade::Bad);
        assert!(
            set_back.found.contains("7200 s behind the ledger's time"),
            "{set_back:?}"
        );
        let put_right = apart_check(0, 7_200_000);
        assert_eq!(put_right.grade, CheckGrade::Bad, "the ledger was ahead before");
    }

    fn server(info: &str, config: &[(&str, &str)]) -> Server {
        let config = config
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Server {
            info: info.to_owned(),
            config: config.collect(),
            libraries: None,
        }
    }

    #[test]
    fn only_what_is_on_disk_is_called_durable() {
        let grade = |info, config: &[(&str, &str)]| persistence(&server(info, config)).grade;
        let aof = "aof_enabled:1\r\naof_last_write_status:ok\r\n";
        assert_eq!(grade(aof, &[("appendfsync", "always")]), CheckGrade::Good);
        assert_eq!(grade(aof, &[("appendfsync", "everysec")]), CheckGrade::Good);
        assert_eq!(grade(aof, &[("appendfsync", "no")]), CheckGrade::Look);
        assert_eq!(grade(aof, &[]), CheckGrade::Look);
        assert_eq!(
            grade("aof_enabled:0\r\n", &[("save", "3600 1")]),
            CheckGrade::Look
        );
        assert_eq!(grade("aof_enabled:0\r\n", &[("save", "")]), CheckGrade::Look);
        let full = "aof_enabled:1\r\naof_last_write_status:err\r\n";
        assert_eq!(grade(full, &[("appendfsync", "always")]), CheckGrade::Bad);
    }

    #[test]
    fn a_server_that_is_nearly_full_is_named() {
        let grade = |used: u64| {
            let info = format!("maxmemory_policy:noeviction\r\nmaxmemory:1000\r\nused_memory:{used}\r\n");
            memory(&server(&info, &[])).grade
        };
        assert_eq!(grade(799), CheckGrade::Good);
        assert_eq!(grade(800), CheckGrade::Look);
        assert_eq!(grade(1_001), CheckGrade::Bad);
        let unlimited = "maxmemory_policy:noeviction\r\nmaxmemory:0\r\nused_memory:999999\r\n";
        assert_eq!(memory(&server(unlimited, &[])).grade, CheckGrade::Good);
    }

    #[test]
    fn a_replica_cannot_be_a_ledger() {
        let of = |info| replication_check(&server(info, &[]), 0, None);
        assert_eq!(of("role:slave\r\n").grade, CheckGrade::Bad);
        let primary = of("role:master\r\nconnected_slaves:2\r\n");
        assert_eq!(primary.grade, CheckGrade::Look);
        assert!(
            primary.advice.contains("min-replicas-to-write"),
            "{}",
            primary.advice
        );
        let primary = of("role:master\r\nconnected_slaves:2\r\nmin_slaves_good_slaves:2\r\n");
        assert_eq!(primary.grade, CheckGrade::Good);
        assert!(primary.found.contains("asynchronously"), "{}", primary.found);
    }
}
