//! One URL selects the ledger.

use std::path::Path;
use std::sync::Arc;

use super::redis::RedisLedger;
use super::sqlite::{DEFAULT_NAMESPACE, SqliteLedger, SqliteOptions};
use super::{Ledger, MemoryLedger};
use crate::clock::Clock;
use crate::error::{Error, Result};

/// Why a ledger in a file needs more than its archive.
const NO_SECRET: &str = "One whose file is gone cannot be restored, since its secret is gone with it: put a backup of the \
                         file, and of its .key file, back first";

/// Opens the ledger of a URL: `memory:` (this process, for tests), `sqlite:PATH[?ns=NAME]` (processes of one
/// machine), or `redis://HOST[:PORT][/DB][?ns=NAME&timeout_ms=N]` (a fleet; `rediss://` for TLS, `redis+unix:///PATH`,
/// `redis+sentinel://HOST:PORT,…/PRIMARY`, `redis+cluster://HOST:PORT,…`).
/// Waits for the disk or the server; open it before or outside of what must not wait. `lease_ms` is accepted, and used
/// by [`crate::lease::open`]: who only looks and administers needs no lease.
///
/// # Errors
/// `Config` for any other URL, and for files and servers that cannot hold a ledger; `LedgerUnavailable` when it is busy
/// or does not answer.
pub fn open(url: &str, clock: Arc<dyn Clock>) -> Result<Arc<dyn Ledger>> {
    let (url, _) = without_leases(url)?;
    let url = url.as_str();
    match url.split_once(':') {
        Some(("memory", "")) => Ok(Arc::new(MemoryLedger::new(clock)?)),
        Some(("sqlite", rest)) => {
            let (path, namespace) = sqlite(rest)?;
            let ledger = SqliteLedger::open(path, namespace, clock, SqliteOptions::default())?;
            Ok(Arc::new(ledger))
        }
        Some((scheme, _)) if scheme.starts_with("redis") => {
            let master = crate::config::master_key()?;
            Ok(Arc::new(RedisLedger::open(
                url,
                clock,
                master.as_ref().map(|key| key.as_slice()),
            )?))
        }
        Some(("memory", _)) => Err(Error::config("a ledger in memory has no name: write memory:")),
        _ => Err(Error::config(
            "the ledger URL has no scheme that is known: write sqlite:PATH, such as sqlite:spend.db, or memory:",
        )),
    }
}

/// Opens the ledger with this id at a URL to restore it from its archive, whether or not its data is still there. Nothing
/// is made: [`Ledger::await_archived`] does that.
///
/// # Errors
/// As [`open`]; `Config` when another ledger stands there, and for one in a file whose data is gone: its secret is gone
/// with it.
pub async fn open_to_restore(url: &str, clock: Arc<dyn Clock>, id: &str) -> Result<Arc<dyn Ledger>> {
    let (plain, _) = without_leases(url)?;
    if plain
        .split_once(':')
        .is_some_and(|(scheme, _)| scheme.starts_with("redis"))
    {
        let master = crate::config::master_key()?;
        let master = master.as_ref().map(|key| key.as_slice());
        return Ok(Arc::new(RedisLedger::open_to_restore(&plain, clock, master, id)?));
    }
    if let Some(("sqlite", rest)) = plain.split_once(':') {
        let (path, _) = sqlite(rest)?;
        if Path::new(path).symlink_metadata().is_err() {
            return Err(Error::config(format!(
                "there is no ledger at {path}. {NO_SECRET}"
            )));
        }
    }
    let ledger = open(url, clock)?;
    let found = ledger.id().await?;
    if found != id {
        return Err(Error::config(format!(
            "the archive's ledger has the id {id}, and the one at this URL {found}: it is another ledger. {NO_SECRET}"
        )));
    }
    Ok(ledger)
}

/// The namespace that a URL names; empty for a ledger that has none.
///
/// # Errors
/// As [`open`], for URLs.
pub fn namespace(url: &str) -> Result<String> {
    let (url, _) = without_leases(url)?;
    match url.split_once(':') {
        Some(("sqlite", rest)) => Ok(sqlite(rest)?.1.to_owned()),
        Some((scheme, _)) if scheme.starts_with("redis") => super::redis::namespace(&url),
        _ => Ok(String::new()),
    }
}

/// The URL without its `lease_ms`, and what that is, in milliseconds: how long a process may decide by itself from what
/// it has leased of a key's budgets.
///
/// # Errors
/// `Config` for a time that no lease has, and for a ledger of one process.
pub fn without_leases(url: &str) -> Result<(String, Option<i64>)> {
    let Some((address, query)) = url.split_once('?') else {
        return Ok((url.to_owned(), None));
    };
    let (leases, others): (Vec<&str>, Vec<&str>) = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .partition(|pair| pair.split_once('=').unwrap_or((pair, "")).0 == "lease_ms");
    let [lease] = leases[..] else {
        return if leases.is_empty() {
            Ok((url.to_owned(), None))
        } else {
            Err(Error::config("lease_ms stands twice in the ledger URL"))
        };
    };
    if address.starts_with("memory") {
        return Err(Error::config(
            "lease_ms is for ledgers that processes share; a ledger in memory has nobody to share it with",
        ));
    }
    let range = super::lease::SHORTEST_MS..=super::lease::LONGEST_MS;
    let text = lease.split_once('=').map_or("", |(_, text)| text);
    let ttl_ms = text.parse().ok().filter(|ms| range.contains(ms)).ok_or_else(|| {
        Error::config(format!(
            "lease_ms in the ledger URL must be {} to {}, as in redis://localhost?ns=prod&lease_ms=250",
            range.start(),
            range.end()
        ))
    })?;
    let url = if others.is_empty() {
        address.to_owned()
    } else {
        format!("{address}?{}", others.join("&"))
    };
    Ok((url, Some(ttl_ms)))
}

/// Path and namespace of what follows `sqlite:`.
fn sqlite(rest: &str) -> Result<(&str, &str)> {
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    if path.starts_with("//") {
        return Err(Error::config(
            "a SQLite ledger has no host: write sqlite:spend.db, or sqlite:/var/lib/agents/spend.db for an absolute path",
        ));
    }
    let mut namespace = DEFAULT_NAMESPACE;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (option, value) = pair.split_once('=').unwrap_or((pair, ""));
        if option != "ns" {
            return Err(Error::config(format!(
                "unknown option {option:?} in the ledger URL: sqlite: knows ns, as in sqlite:spend.db?ns=prod"
            )));
        }
        namespace = value;
    }
    Ok((path, namespace))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    fn refusal(url: &str) -> String {
        let clock = Arc::new(ManualClock::at(1_795_305_600_000));
        open(url, clock).unwrap_err().to_string()
    }

    #[test]
    fn memory_opens() {
        let clock = Arc::new(ManualClock::at(1_795_305_600_000));
        assert!(open("memory:", clock).is_ok());
    }

    #[test]
    fn a_url_names_path_and_namespace() {
        assert_eq!(sqlite("spend.db").unwrap(), ("spend.db", "default"));
        assert_eq!(
            sqlite("/var/lib/spend.db?ns=prod").unwrap(),
            ("/var/lib/spend.db", "prod")
        );
    }

    #[test]
    fn leases_are_an_option_of_shared_ledgers() {
        let of = |url: &str| without_leases(url).unwrap();
        assert_eq!(of("sqlite:a.db"), ("sqlite:a.db".to_owned(), None));
        assert_eq!(
            of("sqlite:a.db?lease_ms=50"),
            ("sqlite:a.db".to_owned(), Some(50))
        );
        let redis = of("redis://kb:6379?ns=prod&lease_ms=250&timeout_ms=500");
        assert_eq!(
            redis,
            ("redis://kb:6379?ns=prod&timeout_ms=500".to_owned(), Some(250))
        );
        for wrong in [
            "lease_ms",
            "lease_ms=",
            "lease_ms=49",
            "lease_ms=501",
            "lease_ms=0.1",
            "lease_ms=-1",
        ] {
            let refused = refusal(&format!("sqlite:a.db?{wrong}"));
            assert!(
                refused.contains("lease_ms in the ledger URL must be 50 to 500"),
                "{refused}"
            );
        }
        assert!(refusal("sqlite:a.db?lease_ms=50&lease_ms=60").contains("stands twice"));
        assert!(refusal("memory:?lease_ms=250").contains("lease_ms is for ledgers that processes share"));
    }

    #[test]
    fn other_urls_are_refused_by_name_and_without_their_passwords() {
        let redis = refusal("redis://user:hunter2@127.0.0.1:1?ns=prod&timeout_ms=500");
        assert!(
            redis.contains("redis://127.0.0.1:1?ns=prod cannot be reached"),
            "{redis}"
        );
        assert!(!redis.contains("hunter2"), "{redis}");
        let other = refusal("redis+magic://user:hunter2@kb-prod:6379?ns=prod");
        assert!(other.contains("redis+magic:// ledgers are not known"), "{other}");
        assert!(refusal("sqlite://spend.db").contains("has no host"));
        assert!(refusal("sqlite:spend.db?mode=ro").contains("unknown option \"mode\""));
        assert!(refusal("postgres://x").contains("no scheme that is known"));
        assert!(refusal("spend.db").contains("no scheme that is known"));
        assert!(refusal("memory:shared").contains("write memory:"));
        assert!(refusal("sqlite:").contains("names no file"));
        assert!(refusal("sqlite:/tmp/x/spend.db?ns=a b").contains("namespace"));
    }
}
