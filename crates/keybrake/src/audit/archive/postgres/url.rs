//! `postgres://[user[:password]@]host[:port]/database?sslmode=…&sslrootcert=FILE`, and every other option that the
//! PostgreSQL client knows, such as `host=/run/postgresql` for a socket of this machine.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};

use crate::error::{Error, Result};

/// How long a connection may take, unless the URL says `connect_timeout`.
const CONNECT: Duration = Duration::from_secs(10);

/// Where a database is, and how it is reached.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) config: Config,
    /// A file with the certificates to trust, instead of the machine's.
    pub(super) roots: Option<PathBuf>,
    /// The URL without user, password and options.
    pub(super) shown: String,
}

pub(super) fn parse(url: &str) -> Result<Place> {
    let (address, query) = url.split_once('?').unwrap_or((url, ""));
    let (mut mode, mut roots, mut rest) = (None, None, Vec::new());
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("sslmode", value)) => mode = Some(ssl_mode(value)?),
            Some(("sslrootcert", value)) => roots = Some(PathBuf::from(value)),
            _ => rest.push(pair),
        }
    }
    let plain = if rest.is_empty() {
        address.to_owned()
    } else {
        format!("{address}?{}", rest.join("&"))
    };
    // Its own words may repeat the URL, which has a password in it.
    let mut config: Config = plain.parse().map_err(|_| {
        Error::config(
            "the archive's URL cannot be read: write postgres://user@host/database, with sslmode=require for TLS",
        )
    })?;
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        return Err(Error::config(
            "the archive's URL names no host: write postgres://user@host/database, or \
             postgres:///database?host=/run/postgresql for a socket",
        ));
    }
    let near =
        config.get_hosts().iter().all(is_near) && config.get_hostaddrs().iter().all(IpAddr::is_loopback);
    // Without a word about it, plain only where it does not leave this machine.
    config.ssl_mode(mode.unwrap_or(if near { SslMode::Disable } else { SslMode::Require }));
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(CONNECT);
    }
    config.application_name("keybrake");
    let shown = shown(&config);
    Ok(Place { config, roots, shown })
}

fn ssl_mode(text: &str) -> Result<SslMode> {
    match text {
        "disable" => Ok(SslMode::Disable),
        "prefer" => Ok(SslMode::Prefer),
        // A certificate that nobody looks at protects from nobody: `require` looks at it as `verify-full` does.
        "require" | "verify-full" => Ok(SslMode::Require),
        other => Err(Error::config(format!(
            "sslmode {other:?} in the archive's URL is not known: disable, prefer, require or verify-full (require looks \
             at the certificate and the name too)"
        ))),
    }
}

fn is_near(host: &Host) -> bool {
    match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => {
            let address = name.trim_matches(['[', ']']).parse::<IpAddr>();
            name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
        }
    }
}

fn shown(config: &Config) -> String {
    let ports = config.get_ports();
    let hosts = config.get_hosts().iter().enumerate().map(|(index, host)| {
        let port = ports.get(index).or(ports.first()).filter(|port| **port != 5432);
        let port = port.map_or_else(String::new, |port| format!(":{port}"));
        match host {
            Host::Unix(path) => format!("{}{port}", path.display()),
            Host::Tcp(name) => format!("{name}{port}"),
        }
    });
    let hosts: Vec<String> = hosts.collect();
    let database = config.get_dbname().or(config.get_user()).unwrap_or_default();
    format!("postgres://{}/{database}", hosts.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(url: &str) -> SslMode {
        parse(url).unwrap().config.get_ssl_mode()
    }

    #[test]
    fn what_leaves_the_machine_is_encrypted_unless_the_url_says_otherwise() {
        assert_eq!(mode("postgres://ada@db.example.com/audit"), SslMode::Require);
        assert_eq!(mode("postgres://ada@10.0.0.7/audit"), SslMode::Require);
        assert_eq!(mode("postgres://ada@localhost/audit"), SslMode::Disable);
        assert_eq!(mode("postgres://ada@127.0.0.1:5433/audit"), SslMode::Disable);
        assert_eq!(mode("postgres:///audit?host=/run/postgresql"), SslMode::Disable);
        assert_eq!(
            mode("postgres://ada@127.0.0.1/audit?sslmode=require"),
            SslMode::Require
        );
        assert_eq!(mode("postgres://ada@db/audit?sslmode=disable"), SslMode::Disable);
        assert_eq!(
            mode("postgres://ada@db/audit?sslmode=verify-full"),
            SslMode::Require
        );
        // One of several hosts that is not here is enough.
        assert_eq!(mode("postgres://ada@localhost,db/audit"), SslMode::Require);
        assert!(parse("postgres://ada@db/audit?sslmode=verify-ca").is_err());
    }

    #[test]
    fn no_password_is_shown() {
        let place = parse("postgres://ada:hunter2@db.example.com:5433/audit?sslmode=require").unwrap();
        assert_eq!(place.shown, "postgres://db.example.com:5433/audit");
        assert!(!format!("{place:?}").contains("hunter2"));
        let wrong = parse("postgres://ada:hunter2@db:port/audit").unwrap_err();
        assert!(!wrong.to_string().contains("hunter2"), "{wrong}");
        let socket = parse("postgres:///audit?host=/run/postgresql").unwrap();
        assert_eq!(socket.shown, "postgres:///run/postgresql/audit");
        assert!(parse("postgres:///audit").is_err());
    }
}
