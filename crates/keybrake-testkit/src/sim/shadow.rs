//! A real Redis server beside the imitation. Whatever the imitation is asked, it is asked as well; both have to answer the
//! same, and to hold the same data in the end.
//!
//! The real server's time is the simulation's: in its copy of the library `TIME` and `INFO` read a key that is written
//! before every command. What the imitation lets expire is deleted there.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::{self, Debug};

use super::lua::Data;
use super::rng::Rng;
use super::store::Reply;
use crate::redis::{Connection, Reply as Real};

/// Where the real server's copy of the library finds the time.
const TIME: &str = "shadow:time";
/// Commands that are remembered, to be disturbed in the end.
const REMEMBERED: usize = 300;

type Checked = Result<(), String>;

/// What the imitation did or would say besides its reply.
pub(super) struct Told {
    /// Keys that it let expire before.
    pub(super) expired: Vec<String>,
    /// Its `INFO server`: which process it is.
    pub(super) server: String,
    /// Its `INFO replication`: which history its data has.
    pub(super) replication: String,
}

impl Told {
    pub(super) fn by(data: &mut Data) -> Self {
        let text = |reply| match reply {
            Reply::Text(text) => text,
            _ => String::new(),
        };
        Self {
            server: text(data.info("server")),
            replication: text(data.info("replication")),
            expired: data.store.take_expired(),
        }
    }
}

pub(super) struct Shadow {
    connection: Connection,
    library: Option<String>,
    /// The replica: keys as `DUMP` writes them.
    kept: Vec<(String, Vec<u8>)>,
    remembered: VecDeque<Vec<String>>,
}

impl Debug for Shadow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shadow").finish_non_exhaustive()
    }
}

impl Shadow {
    /// Beside an empty imitation. Everything on the server is removed.
    pub(super) fn new(connection: Connection) -> Self {
        let mut shadow = Self {
            connection,
            library: None,
            kept: Vec::new(),
            remembered: VecDeque::new(),
        };
        shadow.ask(&["FLUSHALL"]);
        shadow.ask(&["FUNCTION", "FLUSH"]);
        shadow
    }

    fn ask<A: AsRef<[u8]>>(&mut self, words: &[A]) -> Real {
        self.connection.command(words).expect("the real server answers")
    }

    /// A command that the imitation has answered at a time in microseconds.
    pub(super) fn asked(&mut self, words: &[String], now_us: i64, told: &Told, reply: &Reply) -> Checked {
        for key in &told.expired {
            self.ask(&["DEL", key]);
        }
        match words.first().map(String::as_str) {
            // The server's own: which one it is, how it is set up.
            Some("INFO" | "CONFIG") => return Ok(()),
            Some("FUNCTION") => {
                self.load(words.last().map_or("", String::as_str));
                return Ok(());
            }
            _ => {}
        }
        let (seconds, micros) = ((now_us / 1_000_000).to_string(), (now_us % 1_000_000).to_string());
        self.ask(&["HSET", TIME, "s", &seconds, "us", &micros]);
        self.ask(&[
            "HSET",
            TIME,
            "server",
            &told.server,
            "replication",
            &told.replication,
        ]);
        let real = match self.connection.command(words) {
            Ok(real) => shown_real(&real),
            Err(refused) => error(&refused.to_string()),
        };
        if words.first().is_some_and(|word| word == "FCALL") {
            self.remembered.push_back(words.to_vec());
            if self.remembered.len() > REMEMBERED {
                self.remembered.pop_front();
            }
        }
        let imitated = shown(reply);
        if real != imitated {
            return Err(format!(
                "Redis and its imitation differ on {words:?}\n  Redis: {real}\n  imitation: {imitated}"
            ));
        }
        Ok(())
    }

    fn load(&mut self, text: &str) {
        let mut text = text.to_owned();
        for (asked, fields) in [
            ("redis.call('TIME')", "redis.call('HMGET', '{TIME}', 's', 'us')"),
            (
                "redis.call('INFO', 'server')",
                "redis.call('HGET', '{TIME}', 'server')",
            ),
            (
                "redis.call('INFO', 'replication')",
                "redis.call('HGET', '{TIME}', 'replication')",
            ),
        ] {
            assert!(text.contains(asked), "the library no longer asks by {asked}");
            text = text.replace(asked, &fields.replace("{TIME}", TIME));
        }
        self.ask(&["FUNCTION", "LOAD", "REPLACE", &text]);
        self.library = Some(text);
    }

    /// The server starts again: its functions' variables are lost.
    pub(super) fn start_again(&mut self) {
        self.ask(&["FUNCTION", "FLUSH"]);
        if let Some(text) = self.library.take() {
            self.ask(&["FUNCTION", "LOAD", &text]);
            self.library = Some(text);
        }
    }

    fn keys(&mut self) -> Vec<String> {
        // A command with wrong words may make a key of any name.
        let Real::Array(keys) = self.ask(&["KEYS", "*"]) else {
            return Vec::new();
        };
        keys.iter()
            .filter_map(|key| Some(key.text()?.to_owned()))
            .filter(|key| key != TIME)
            .collect()
    }

    /// A replica is as this is now.
    pub(super) fn keep(&mut self) {
        self.kept.clear();
        for key in self.keys() {
            if let Real::Bulk(dump) = self.ask(&["DUMP", &key]) {
                self.kept.push((key, dump));
            }
        }
    }

    /// The replica takes over.
    pub(super) fn take_kept(&mut self, expiring: &[String]) {
        self.ask(&["FLUSHALL"]);
        for (key, dump) in std::mem::take(&mut self.kept) {
            // Whatever has an end is kept for as long as the run takes.
            let ttl: &[u8] = if expiring.contains(&key) {
                b"86400000"
            } else {
                b"0"
            };
            self.ask(&[b"RESTORE".as_slice(), key.as_bytes(), ttl, &dump]);
        }
    }

    /// Compares all data with the imitation's, as [`super::store::Store::dump`] shows it.
    pub(super) fn compare(&mut self, imitated: &BTreeMap<String, Vec<String>>) -> Checked {
        let mut real = BTreeMap::new();
        for key in self.keys() {
            let entry = self.entry(&key);
            real.insert(key, entry);
        }
        for key in real.keys().chain(imitated.keys()) {
            let (there, here) = (real.get(key), imitated.get(key));
            if there != here {
                return Err(format!(
                    "{key} differs\n  Redis: {there:?}\n  imitation: {here:?}"
                ));
            }
        }
        Ok(())
    }

    fn entry(&mut self, key: &str) -> Vec<String> {
        let kind = self.ask(&["TYPE", key]).text().unwrap_or_default().to_owned();
        let expires = self.ask(&["PTTL", key]).integer().is_some_and(|ms| ms >= 0);
        let words: &[&str] = match kind.as_str() {
            "string" => &["GET", key],
            "hash" => &["HGETALL", key],
            "zset" => &["ZRANGE", key, "0", "-1", "WITHSCORES"],
            _ => &["XRANGE", key, "-", "+"],
        };
        let answer = self.ask(words);
        let mut parts = match (&answer, kind.as_str()) {
            (Real::Array(parts), "hash" | "zset") => parts
                .chunks(2)
                .map(|pair| pair.iter().filter_map(Real::text).collect::<Vec<_>>().join("="))
                .collect(),
            (Real::Array(rows), _) => rows.iter().map(row).collect(),
            (other, _) => vec![other.text().unwrap_or_default().to_owned()],
        };
        parts.sort();
        parts.push(format!("{kind}{}", if expires { ", expires" } else { "" }));
        parts
    }

    /// One of the commands that were asked, changed somewhere, so that it says what no client would.
    pub(super) fn disturbed(&self, rng: &Rng) -> Option<Vec<String>> {
        let count = self.remembered.len() as u64;
        if count == 0 {
            return None;
        }
        let mut words = self.remembered[usize::try_from(rng.below(count)).unwrap()].clone();
        for _ in 0..rng.below(3) {
            // Not the number of keys: that is the server's to check.
            let at = 3 + usize::try_from(rng.below(words.len() as u64 - 3)).unwrap();
            let other = words[3 + usize::try_from(rng.below(words.len() as u64 - 3)).unwrap()].clone();
            words[at] = match rng.below(9) {
                0 => String::new(),
                1 => "0".to_owned(),
                2 => "1".to_owned(),
                3 => "-1".to_owned(),
                4 => "word".to_owned(),
                5 => "9007199254740992".to_owned(),
                6 => rng.below(1_000_000_000).to_string(),
                _ => other,
            };
        }
        Some(words)
    }
}

/// A row of a stream: its id and its fields.
fn row(row: &Real) -> String {
    let fields = |part: &Real| part.items().unwrap_or_default().to_vec();
    let parts = fields(row).into_iter().flat_map(|part| match part {
        Real::Array(fields) => fields,
        id => vec![id],
    });
    let texts: Vec<String> = parts.filter_map(|part| Some(part.text()?.to_owned())).collect();
    texts.join(" ")
}

fn shown(reply: &Reply) -> String {
    match reply {
        Reply::Nil => "nil".to_owned(),
        Reply::Int(number) => format!("int {number}"),
        Reply::Text(text) | Reply::Status(text) => format!("text {text}"),
        Reply::Error(text) => error(text),
        Reply::List(parts) => list(parts.iter().map(shown).collect()),
    }
}

fn shown_real(reply: &Real) -> String {
    match reply {
        Real::Nil => "nil".to_owned(),
        Real::Integer(number) => format!("int {number}"),
        Real::Error(text) => error(text),
        Real::Array(parts) => list(parts.iter().map(shown_real).collect()),
        other => format!("text {}", other.text().unwrap_or_default()),
    }
}

/// Its code: what comes after it names lines of a script.
fn error(text: &str) -> String {
    format!("error {}", text.split(' ').next().unwrap_or_default())
}

/// In order, except that the pairs of a hash come in any: a list of texts in pairs is taken for one.
fn list(mut parts: Vec<String>) -> String {
    if parts.len().is_multiple_of(2) && parts.iter().all(|part| part.starts_with("text ")) {
        let mut pairs: Vec<String> = parts.chunks(2).map(|pair| pair.join("=")).collect();
        pairs.sort();
        parts = pairs;
    }
    format!("[{}]", parts.join(", "))
}
