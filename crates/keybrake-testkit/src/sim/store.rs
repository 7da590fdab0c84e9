//! The data of a Redis server, with the commands that the ledger uses, as Redis 7 answers them.
//! `tests/tests/simulated_redis.rs` compares it with a real server.

use std::collections::BTreeMap;

/// What a command answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Nothing.
    Nil,
    /// A whole number.
    Int(i64),
    /// A bulk string.
    Text(String),
    /// A status, such as `OK`.
    Status(String),
    /// An array.
    List(Vec<Self>),
    /// An error, with its code first.
    Error(String),
}

#[derive(Clone, Debug)]
enum Entry {
    Text(String),
    Hash(BTreeMap<String, String>),
    Sorted(BTreeMap<String, i64>),
    Stream(BTreeMap<(u64, u64), Vec<String>>),
}

/// The keys of one database.
#[derive(Clone, Debug, Default)]
pub struct Store {
    keys: BTreeMap<String, Entry>,
    expires_ms: BTreeMap<String, i64>,
    /// What was written since [`Store::take_written`]: key, and field of a hash.
    written: Vec<(String, Option<String>)>,
    /// What expired since [`Store::take_expired`].
    expired: Vec<String>,
}

type Answer = Result<Reply, String>;

const WRONG_TYPE: &str = "WRONGTYPE Operation against a key holding the wrong kind of value";
const NOT_A_NUMBER: &str = "ERR value is not an integer or out of range";

/// Gets the entry of a key as one type; a missing key is empty.
macro_rules! typed {
    ($self:ident, $key:expr, $kind:ident) => {
        match $self.keys.get($key) {
            None => None,
            Some(Entry::$kind(found)) => Some(found),
            Some(_) => return Err(WRONG_TYPE.to_owned()),
        }
    };
}

/// The same to write to; a missing key is made.
macro_rules! typed_mut {
    ($self:ident, $key:expr, $kind:ident) => {
        match $self
            .keys
            .entry($key.to_string())
            .or_insert_with(|| Entry::$kind(BTreeMap::new()))
        {
            Entry::$kind(found) => found,
            _ => return Err(WRONG_TYPE.to_owned()),
        }
    };
}

impl Store {
    /// Runs one command at a time in microseconds.
    pub fn run(&mut self, now_us: i64, words: &[String]) -> Reply {
        self.expire(now_us / 1_000);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match self.command(now_us, &words) {
            Ok(reply) => reply,
            Err(error) => Reply::Error(error),
        }
    }

    /// Whether a command may change something; `None` where there is no such command.
    pub fn writes(name: &str) -> Option<bool> {
        match name {
            "HSET" | "HDEL" | "HINCRBY" | "SET" | "DEL" | "ZADD" | "ZREM" | "XADD" => Some(true),
            "HGET" | "HMGET" | "HGETALL" | "HEXISTS" | "HSCAN" | "GET" | "MGET" | "EXISTS" | "ZRANGE"
            | "ZRANGEBYSCORE" | "XRANGE" | "TIME" => Some(false),
            _ => None,
        }
    }

    /// Keys, and fields of hashes, that were written since the last time.
    pub(super) fn take_written(&mut self) -> Vec<(String, Option<String>)> {
        std::mem::take(&mut self.written)
    }

    /// Keys that expired since the last time.
    pub(super) fn take_expired(&mut self) -> Vec<String> {
        std::mem::take(&mut self.expired)
    }

    /// Keys that expire some day.
    pub(super) fn expiring(&self) -> Vec<String> {
        self.expires_ms.keys().cloned().collect()
    }

    /// Everything in one form: by key, what it holds in order, then its type and whether it expires.
    pub(super) fn dump(&self) -> BTreeMap<String, Vec<String>> {
        let entries = self.keys.iter();
        let shown = entries.map(|(key, entry)| {
            let (mut parts, kind): (Vec<String>, _) = match entry {
                Entry::Text(text) => (vec![text.clone()], "string"),
                Entry::Hash(hash) => (
                    hash.iter()
                        .map(|(name, value)| format!("{name}={value}"))
                        .collect(),
                    "hash",
                ),
                Entry::Sorted(set) => (
                    set.iter()
                        .map(|(member, score)| format!("{member}={score}"))
                        .collect(),
                    "zset",
                ),
                Entry::Stream(rows) => (
                    rows.iter()
                        .map(|((ms, seq), fields)| format!("{ms}-{seq} {}", fields.join(" ")))
                        .collect(),
                    "stream",
                ),
            };
            parts.sort();
            let expires = if self.expires_ms.contains_key(key) {
                ", expires"
            } else {
                ""
            };
            parts.push(format!("{kind}{expires}"));
            (key.clone(), parts)
        });
        shown.collect()
    }

    /// The text of a key, or of a field of a hash.
    pub(super) fn text(&self, key: &str, field: Option<&str>) -> Option<&str> {
        match (self.keys.get(key)?, field) {
            (Entry::Text(text), None) => Some(text),
            (Entry::Hash(hash), Some(field)) => hash.get(field).map(String::as_str),
            _ => None,
        }
    }

    /// Keys that begin so.
    pub(super) fn keys_with(&self, prefix: &str) -> Vec<String> {
        self.keys
            .range(prefix.to_owned()..)
            .map(|(key, _)| key)
            .take_while(|key| key.starts_with(prefix))
            .cloned()
            .collect()
    }

    /// For how long a key is still kept, in milliseconds; `None` for ever, or when there is no such key.
    pub(super) fn kept_for_ms(&self, key: &str, now_ms: i64) -> Option<i64> {
        self.expires_ms.get(key).map(|at_ms| at_ms - now_ms)
    }

    /// Names and values of a hash.
    pub(super) fn hash(&self, key: &str) -> Vec<(String, String)> {
        match self.keys.get(key) {
            Some(Entry::Hash(hash)) => hash.clone().into_iter().collect(),
            _ => Vec::new(),
        }
    }

    fn expire(&mut self, now_ms: i64) {
        if self.expires_ms.values().any(|at_ms| *at_ms <= now_ms) {
            let gone: Vec<String> = self
                .expires_ms
                .iter()
                .filter(|(_, at_ms)| **at_ms <= now_ms)
                .map(|(key, _)| key.clone())
                .collect();
            for key in gone {
                self.expires_ms.remove(&key);
                self.keys.remove(&key);
                self.expired.push(key);
            }
        }
    }

    fn note(&mut self, key: &str, field: Option<&str>) {
        self.written.push((key.to_owned(), field.map(str::to_owned)));
    }

    fn command(&mut self, now_us: i64, words: &[&str]) -> Answer {
        let (name, args) = words.split_first().ok_or("ERR empty command")?;
        match (*name, args) {
            ("TIME", []) => Ok(Reply::List(vec![
                Reply::Text((now_us / 1_000_000).to_string()),
                Reply::Text((now_us % 1_000_000).to_string()),
            ])),
            ("EXISTS", keys) => Ok(Reply::Int(
                keys.iter().filter(|key| self.keys.contains_key(**key)).count() as i64,
            )),
            ("DEL", keys) => {
                let mut gone = 0;
                for key in keys {
                    self.expires_ms.remove(*key);
                    gone += i64::from(self.keys.remove(*key).is_some());
                }
                Ok(Reply::Int(gone))
            }
            ("GET", [key]) => Ok(bulk(typed!(self, *key, Text).cloned())),
            ("MGET", keys) => Ok(Reply::List(
                keys.iter()
                    .map(|key| match self.keys.get(*key) {
                        Some(Entry::Text(text)) => Reply::Text(text.clone()),
                        _ => Reply::Nil,
                    })
                    .collect(),
            )),
            ("SET", [key, value]) => Ok(self.set(key, value, None)),
            ("SET", [key, value, "PX", ms]) => {
                let ms: i64 = number(ms)?;
                if ms <= 0 {
                    return Err("ERR invalid expire time in 'set' command".to_owned());
                }
                Ok(self.set(key, value, Some(now_us / 1_000 + ms)))
            }
            ("HSET" | "HGET" | "HMGET" | "HGETALL" | "HEXISTS" | "HDEL" | "HINCRBY" | "HSCAN", _) => {
                self.hashes(name, args)
            }
            ("ZADD" | "ZREM" | "ZRANGE" | "ZRANGEBYSCORE", _) => self.sorted(name, args),
            ("XADD", [key, id, fields @ ..]) if !fields.is_empty() && fields.len() % 2 == 0 => {
                self.append(key, id, fields)
            }
            ("XRANGE", [key, from, "+", "COUNT", count]) => self.range(key, from, number(count)?),
            _ if Self::writes(name).is_some() => Err(format!(
                "ERR wrong number of arguments for '{}' command",
                name.to_lowercase()
            )),
            _ => Err(format!("ERR unknown command '{name}'")),
        }
    }

    fn set(&mut self, key: &str, value: &str, until_ms: Option<i64>) -> Reply {
        self.keys.insert(key.to_owned(), Entry::Text(value.to_owned()));
        match until_ms {
            Some(until_ms) => self.expires_ms.insert(key.to_owned(), until_ms),
            None => self.expires_ms.remove(key),
        };
        self.note(key, None);
        Reply::Status("OK".to_owned())
    }

    fn hashes(&mut self, name: &str, args: &[&str]) -> Answer {
        let wrong = || {
            format!(
                "ERR wrong number of arguments for '{}' command",
                name.to_lowercase()
            )
        };
        let (key, args) = args.split_first().ok_or_else(wrong)?;
        match (name, args) {
            ("HGET", [field]) => Ok(bulk(
                typed!(self, *key, Hash)
                    .and_then(|hash| hash.get(*field))
                    .cloned(),
            )),
            ("HMGET", [_, ..]) => {
                let hash = typed!(self, *key, Hash);
                let value = |field: &&str| bulk(hash.and_then(|hash| hash.get(*field)).cloned());
                Ok(Reply::List(args.iter().map(value).collect()))
            }
            ("HEXISTS", [field]) => Ok(Reply::Int(i64::from(
                typed!(self, *key, Hash).is_some_and(|hash| hash.contains_key(*field)),
            ))),
            ("HGETALL", []) => {
                let pairs = typed!(self, *key, Hash).into_iter().flatten();
                Ok(Reply::List(
                    pairs
                        .flat_map(|(name, value)| [Reply::Text(name.clone()), Reply::Text(value.clone())])
                        .collect(),
                ))
            }
            ("HSCAN", ["0", "MATCH", pattern, ..]) => {
                let prefix = pattern.trim_end_matches('*');
                let pairs = typed!(self, *key, Hash).into_iter().flatten();
                let found = pairs
                    .filter(|(name, _)| name.starts_with(prefix))
                    .flat_map(|(name, value)| [Reply::Text(name.clone()), Reply::Text(value.clone())])
                    .collect();
                Ok(Reply::List(vec![Reply::Text("0".to_owned()), Reply::List(found)]))
            }
            ("HSET", [_, _, ..]) if args.len() % 2 == 0 => {
                let hash = typed_mut!(self, key, Hash);
                let mut new = 0;
                for pair in args.chunks_exact(2) {
                    new += i64::from(hash.insert(pair[0].to_owned(), pair[1].to_owned()).is_none());
                }
                for pair in args.chunks_exact(2) {
                    self.note(key, Some(pair[0]));
                }
                Ok(Reply::Int(new))
            }
            ("HDEL", [_, ..]) => {
                if typed!(self, *key, Hash).is_none() {
                    return Ok(Reply::Int(0));
                }
                let hash = typed_mut!(self, key, Hash);
                let gone = args.iter().filter(|field| hash.remove(**field).is_some()).count();
                if hash.is_empty() {
                    self.keys.remove(*key);
                }
                Ok(Reply::Int(gone as i64))
            }
            ("HINCRBY", [field, more]) => {
                let more: i64 = number(more)?;
                let hash = typed_mut!(self, key, Hash);
                let before: i64 = match hash.get(*field) {
                    None => 0,
                    Some(text) => text
                        .parse()
                        .map_err(|_| "ERR hash value is not an integer".to_owned())?,
                };
                let after = before
                    .checked_add(more)
                    .ok_or("ERR increment or decrement would overflow")?;
                hash.insert((*field).to_owned(), after.to_string());
                self.note(key, Some(field));
                Ok(Reply::Int(after))
            }
            _ => Err(wrong()),
        }
    }

    fn sorted(&mut self, name: &str, args: &[&str]) -> Answer {
        match (name, args) {
            ("ZADD", [key, score, member]) => {
                let score: i64 = score
                    .parse()
                    .map_err(|_| "ERR value is not a valid float".to_owned())?;
                let set = typed_mut!(self, key, Sorted);
                Ok(Reply::Int(i64::from(
                    set.insert((*member).to_owned(), score).is_none(),
                )))
            }
            ("ZREM", [key, member]) => {
                if typed!(self, *key, Sorted).is_none() {
                    return Ok(Reply::Int(0));
                }
                let set = typed_mut!(self, key, Sorted);
                let gone = set.remove(*member).is_some();
                if set.is_empty() {
                    self.keys.remove(*key);
                }
                Ok(Reply::Int(i64::from(gone)))
            }
            ("ZRANGE", [key, from, upto, rest @ ..]) => {
                let mut members = by_score(typed!(self, *key, Sorted));
                if rest == ["REV"] {
                    members.reverse();
                }
                let (from, upto): (i64, i64) = (number(from)?, number(upto)?);
                let place = |index: i64| {
                    if index < 0 {
                        members.len() as i64 + index
                    } else {
                        index
                    }
                };
                let (from, upto) = (place(from).max(0), place(upto));
                let range = members
                    .iter()
                    .enumerate()
                    .filter(|(index, _)| (*index as i64) >= from && (*index as i64) <= upto);
                let scores = rest == ["WITHSCORES"];
                Ok(Reply::List(
                    range
                        .flat_map(|(_, (score, member))| {
                            let score = scores.then(|| Reply::Text(score.to_string()));
                            [Some(Reply::Text(member.clone())), score].into_iter().flatten()
                        })
                        .collect(),
                ))
            }
            ("ZRANGEBYSCORE", [key, "-inf", most, "LIMIT", skip, count]) => {
                let most: i64 = most
                    .parse()
                    .map_err(|_| "ERR min or max is not a float".to_owned())?;
                let (skip, count): (usize, usize) = (number(skip)?, number(count)?);
                let members = by_score(typed!(self, *key, Sorted));
                let due = members.into_iter().filter(|(score, _)| *score <= most);
                Ok(Reply::List(
                    due.skip(skip)
                        .take(count)
                        .map(|(_, member)| Reply::Text(member))
                        .collect(),
                ))
            }
            _ => Err(format!(
                "ERR wrong number of arguments for '{}' command",
                name.to_lowercase()
            )),
        }
    }

    fn append(&mut self, key: &str, id: &str, fields: &[&str]) -> Answer {
        let at = stream_id(id)?;
        if at == (0, 0) {
            return Err("ERR The ID specified in XADD must be greater than 0-0".to_owned());
        }
        let stream = typed_mut!(self, key, Stream);
        if stream.last_key_value().is_some_and(|(last, _)| *last >= at) {
            return Err(
                "ERR The ID specified in XADD is equal or smaller than the target stream top item".to_owned(),
            );
        }
        stream.insert(at, fields.iter().map(|text| (*text).to_owned()).collect());
        self.note(key, Some(id));
        Ok(Reply::Text(id.to_owned()))
    }

    fn range(&self, key: &str, from: &str, count: usize) -> Answer {
        let after = stream_id(from.trim_start_matches('('))?;
        let exclusive = from.starts_with('(');
        let entries = typed!(self, key, Stream).into_iter().flatten();
        let found = entries
            .filter(|(id, _)| if exclusive { **id > after } else { **id >= after })
            .take(count)
            .map(|((ms, seq), fields)| {
                Reply::List(vec![
                    Reply::Text(format!("{ms}-{seq}")),
                    Reply::List(fields.iter().cloned().map(Reply::Text).collect()),
                ])
            });
        Ok(Reply::List(found.collect()))
    }
}

fn bulk(text: Option<String>) -> Reply {
    text.map_or(Reply::Nil, Reply::Text)
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| NOT_A_NUMBER.to_owned())
}

fn stream_id(text: &str) -> Result<(u64, u64), String> {
    let wrong = || "ERR Invalid stream ID specified as stream command argument".to_owned();
    let (ms, seq) = text.split_once('-').ok_or_else(wrong)?;
    Ok((
        ms.parse().map_err(|_| wrong())?,
        seq.parse().map_err(|_| wrong())?,
    ))
}

fn by_score(set: Option<&BTreeMap<String, i64>>) -> Vec<(i64, String)> {
    let mut members: Vec<(i64, String)> = set
        .into_iter()
        .flatten()
        .map(|(member, score)| (*score, member.clone()))
        .collect();
    members.sort();
    members
}
