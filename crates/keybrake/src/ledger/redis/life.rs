//! What is looked at before a server is used: its version, its eviction policy, the ledger's own record, and whether
//! the ledger is open.

use std::cmp::Ordering;

use redis::{Cmd, Value};
use sha2::Sha256;

use super::copies::Standing;
use super::link::{ask, with_library};
use super::past::{Era, Range};
use super::server::Connection;
use super::url::Place;
use super::wire::{Parts, function, text};
use super::{link, log, wire};
use crate::error::{Error, ErrorKind, Result};
use crate::ledger::shared::{hex, keyed, unhex};
use crate::ledger::types::LedgerSecret;

/// Format of the ledger's data that this library reads and writes.
pub(super) const FORMAT: u32 = 2;
/// The oldest server with functions.
const OLDEST_MAJOR: u32 = 7;

/// A ledger as it was found or made.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) id: String,
    pub(super) secret: LedgerSecret,
    /// Whether the secret stands beside the data, for want of a master key.
    pub(super) secret_in_ledger: bool,
    /// The eras of its log, oldest first.
    pub(super) eras: Vec<Era>,
}

/// What a ledger says of itself.
#[derive(Clone, Debug, Default)]
pub(super) struct About {
    pub(super) open: bool,
    pub(super) standing: Standing,
    /// Events that somebody has seen, that are missing, and that nobody has said again.
    pub(super) uncovered: Vec<Range>,
    fields: Vec<(String, String)>,
}

impl About {
    pub(super) fn read(value: Value) -> Result<Self> {
        Self::of(&mut Parts::of(value)?)
    }

    /// The first parts of an answer.
    pub(super) fn of(parts: &mut Parts) -> Result<Self> {
        Ok(Self {
            open: parts.text()? == "1",
            fields: log::pairs(parts.next()?)?,
            standing: wire::standing(parts.next()?)?,
            uncovered: wire::ranges(parts.next()?)?,
        })
    }

    /// The eras of the log, oldest first.
    pub(super) fn eras(&self) -> Vec<Era> {
        let before = self.field("eras").unwrap_or_default().split(',');
        let mut eras: Vec<Era> = before.filter_map(Era::parse).collect();
        eras.push(Era {
            epoch: self.standing.run,
            from: self.standing.from,
            start: self.standing.start,
        });
        eras
    }

    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|(field, _)| field == name)
            .map(|(_, value)| value.as_str())
    }

    pub(super) const fn exists(&self) -> bool {
        !self.fields.is_empty()
    }

    /// Whether the server has nothing of the ledger with this id: no ledger at all, or another in which nothing ever
    /// happened, because it was made when this one was gone.
    ///
    /// # Errors
    /// `Config` when another ledger is in use there.
    pub(super) fn is_gone(&self, place: &Place, id: &str) -> Result<bool> {
        match self.field("id") {
            None => Ok(true),
            Some(own) if own == id => Ok(false),
            Some(_) if self.standing.last_seq == 0 => Ok(true),
            Some(other) => Err(Error::config(format!(
                "another ledger stands at {}: its id is {other}, not {id}, and it has {} events",
                place.shown, self.standing.last_seq
            ))),
        }
    }
}

/// Looks at a server before it is used, and opens the ledger if it has not been closed since it was opened last.
pub(super) async fn greet(connection: &dyn Connection, place: &Place) -> Result<About> {
    check_version(connection, place).await?;
    check_eviction(connection, place).await?;
    check_role(connection, place).await?;
    let about = About::read(with_library(connection, place, &function("about", &place.ns, &[])).await?)?;
    check_format(&about, place)?;
    check_rights(connection, place).await?;
    if about.exists() && !about.open {
        let id = about.field("id").unwrap_or_default();
        let command = opening(place, id, Why::Same, &Gap::default());
        return About::read(ask(connection, place, &command).await?);
    }
    Ok(about)
}

/// What another version wrote in another format is neither read nor opened.
fn check_format(about: &About, place: &Place) -> Result<()> {
    let format: u32 = about.field("v").and_then(|v| v.parse().ok()).unwrap_or(0);
    let instead = match format.cmp(&FORMAT) {
        _ if !about.exists() => return Ok(()),
        Ordering::Equal => return Ok(()),
        Ordering::Less => {
            "go on with the version that wrote it, or let its calls end and begin another namespace (ns=NAME in the URL)"
        }
        Ordering::Greater => "use the version that wrote it, or a newer one",
    };
    Err(Error::config(format!(
        "the ledger at {} has format {format}, and this version of Keybrake reads format {FORMAT}: {instead}",
        place.shown
    )))
}

/// Why a ledger is opened.
#[derive(Clone, Copy, Debug)]
pub(super) enum Why {
    /// The server has neither restarted nor been promoted since it was opened last; only this version of the functions is
    /// new to it. The server looks whether that is so.
    Same,
    /// A person takes what is there.
    Person,
}

/// What begins where events were lost: the name of an era, and the event that says which numbers are left out.
#[derive(Clone, Debug, Default)]
pub(super) struct Gap {
    pub(super) epoch: String,
    pub(super) event: String,
}

/// The command that opens a ledger on a server as it runs now.
pub(super) fn opening(place: &Place, id: &str, why: Why, gap: &Gap) -> Cmd {
    let mut command = function("open", &place.ns, &[]);
    command.arg(id).arg(match why {
        Why::Same => "same",
        Why::Person => "person",
    });
    command.arg(&gap.epoch).arg(&gap.event);
    command
}

/// The ledger of this namespace, made if there is none.
pub(super) async fn find(place: &Place, master: Option<&[u8]>) -> Result<Found> {
    let connection = link::connect(place).await?;
    let mut about = greet(&*connection, place).await?;
    if !about.exists() {
        about = create(&*connection, place, master).await?;
    }
    identify(&about, place, master)
}

/// The ledger with this id, whether or not its data is still there.
pub(super) async fn find_again(place: &Place, master: Option<&[u8]>, id: &str) -> Result<Found> {
    let connection = link::connect(place).await?;
    let about = greet(&*connection, place).await?;
    if !about.is_gone(place, id)? {
        return identify(&about, place, master);
    }
    let Some(master) = master else {
        return Err(Error::config(format!(
            "the data of the ledger at {} is gone, and its secret is derived from its master key: set KEYBRAKE_MASTER_KEY, \
             or KEYBRAKE_MASTER_KEY_FILE. The secret of a ledger that had none is gone with the data: only a process that \
             still has it open can restore it (Keybrake::restore); else begin another namespace",
            place.shown
        )));
    };
    Ok(Found {
        secret: derive(master, id)?,
        id: id.to_owned(),
        secret_in_ledger: false,
        eras: Vec::new(),
    })
}

/// What a ledger's own record says of its id and its secret.
fn identify(about: &About, place: &Place, master: Option<&[u8]>) -> Result<Found> {
    let id = about.field("id").unwrap_or_default().to_owned();
    let eras = about.eras();
    match (about.field("secret"), about.field("bound"), master) {
        (Some(secret), _, _) => Ok(Found {
            id,
            secret: secret_of_hex(secret).ok_or_else(|| broken(place))?,
            secret_in_ledger: true,
            eras,
        }),
        (None, Some(bound), Some(master)) => {
            let secret = derive(master, &id)?;
            if binding(&secret, &id)? != bound {
                return Err(Error::config(format!(
                    "the ledger at {} belongs to another master key (KEYBRAKE_MASTER_KEY): a copy of it cannot spend",
                    place.shown
                )));
            }
            Ok(Found {
                id,
                secret,
                secret_in_ledger: false,
                eras,
            })
        }
        (None, Some(_), None) => Err(Error::config(format!(
            "the ledger at {} needs its master key: set KEYBRAKE_MASTER_KEY, or KEYBRAKE_MASTER_KEY_FILE",
            place.shown
        ))),
        (None, None, _) => Err(broken(place)),
    }
}

async fn create(connection: &dyn Connection, place: &Place, master: Option<&[u8]>) -> Result<About> {
    let id = hex(&place.server.new_id()?);
    let secret = match master {
        Some(master) => derive(master, &id)?,
        None => LedgerSecret::random()?,
    };
    let mut command = function("create", &place.ns, &[]);
    for (name, value) in own_record(&id, &secret, master.is_none())? {
        command.arg(name).arg(value);
    }
    About::read(ask(connection, place, &command).await?)
}

/// What a ledger's own record begins with: names and values, the id first.
pub(super) fn own_record(
    id: &str,
    secret: &LedgerSecret,
    secret_in_ledger: bool,
) -> Result<[(&'static str, String); 3]> {
    let (name, value) = if secret_in_ledger {
        ("secret", hex(&secret.0))
    } else {
        ("bound", binding(secret, id)?)
    };
    Ok([("id", id.to_owned()), ("v", FORMAT.to_string()), (name, value)])
}

/// A field of what `INFO` answers.
pub(super) fn field<'a>(info: &'a str, name: &str) -> &'a str {
    info.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .unwrap_or_default()
}

async fn check_version(connection: &dyn Connection, place: &Place) -> Result<()> {
    let info = text(ask(connection, place, redis::cmd("INFO").arg("server")).await?)?;
    let version = field(&info, "redis_version");
    let major: u32 = version
        .split('.')
        .next()
        .and_then(|major| major.parse().ok())
        .unwrap_or(0);
    if major < OLDEST_MAJOR {
        return Err(Error::config(format!(
            "the server at {} is Redis {version}: a ledger needs Redis 7 or later, or Valkey, for its functions",
            place.shown
        )));
    }
    Ok(())
}

/// A server that may evict keys forgets what was spent.
async fn check_eviction(connection: &dyn Connection, place: &Place) -> Result<()> {
    let info = text(ask(connection, place, redis::cmd("INFO").arg("memory")).await?)?;
    match field(&info, "maxmemory_policy") {
        "noeviction" => Ok(()),
        "" => Err(Error::config(format!(
            "the Redis server at {} does not say its maxmemory-policy; it must be noeviction",
            place.shown
        ))),
        policy => Err(Error::config(format!(
            "the Redis server at {} evicts keys (maxmemory-policy {policy}), so it would forget what was spent: \
             set maxmemory-policy noeviction",
            place.shown
        ))),
    }
}

/// A user who may not run a command that a step needs is told so before the first step.
async fn check_rights(connection: &dyn Connection, place: &Place) -> Result<()> {
    let command = function("rights", &place.ns, &["r:-".to_owned()]);
    let missing = log::list(ask(connection, place, &command).await?)?;
    if missing.is_empty() {
        return Ok(());
    }
    let rights: Vec<String> = missing.iter().map(|name| format!("+{name}")).collect();
    Err(Error::config(format!(
        "the user of the Redis server at {} lacks rights on ~{}: ACL SETUSER … {}. docs/redis.md has the whole line",
        place.shown,
        place.ns.key("*"),
        rights.join(" ")
    )))
}

/// A replica answers what it has, which may be old, and takes no writes.
async fn check_role(connection: &dyn Connection, place: &Place) -> Result<()> {
    let info = text(ask(connection, place, redis::cmd("INFO").arg("replication")).await?)?;
    if field(&info, "role") == "slave" {
        return Err(Error::ledger(format!(
            "the Redis server at {} is a replica: a ledger is used on its primary, {}:{}",
            place.shown,
            field(&info, "master_host"),
            field(&info, "master_port"),
        )));
    }
    Ok(())
}

/// The secret of one ledger, from the master key that all its processes share.
pub(super) fn derive(master: &[u8], id: &str) -> Result<LedgerSecret> {
    let mut secret = [0_u8; 32];
    hkdf::Hkdf::<Sha256>::new(Some(id.as_bytes()), master)
        .expand(b"keybrake ledger secret v1", &mut secret)
        .map_err(|_| Error::new(ErrorKind::Internal, "the ledger's secret cannot be derived"))?;
    Ok(LedgerSecret(secret))
}

/// What a ledger keeps to know its secret again.
fn binding(secret: &LedgerSecret, id: &str) -> Result<String> {
    keyed(&secret.0, &[b"keybrake ledger binding v1", id.as_bytes()])
}

fn broken(place: &Place) -> Error {
    Error::new(
        ErrorKind::LedgerCorrupt,
        format!(
            "the ledger at {} has no secret: its own record is damaged",
            place.shown
        ),
    )
}

fn secret_of_hex(text: &str) -> Option<LedgerSecret> {
    unhex(text)?.try_into().ok().map(LedgerSecret)
}
