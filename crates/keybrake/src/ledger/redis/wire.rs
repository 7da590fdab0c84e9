//! Names, texts and answers that all functions of the library share; a step is in `commit`.

use std::sync::Arc;

use redis::{Cmd, Value};

use super::copies::{Copies, Standing};
use super::past::Range;
use super::records;
use super::url::Namespace;
use crate::error::{Error, ErrorKind, Result};
use crate::ledger::store::Counter;
use crate::ledger::types::{Stop, StopScope};

/// A function of the library, for a namespace.
pub(super) fn function(name: &str, ns: &Namespace, texts: &[String]) -> Cmd {
    function_of(name, ns.places(), texts.iter().map(|text| ns.key(text)))
}

/// The same with some of the namespace's places.
pub(super) fn function_of(
    name: &str,
    places: &[String],
    texts: impl ExactSizeIterator<Item = String>,
) -> Cmd {
    let mut command = redis::cmd("FCALL");
    command
        .arg(super::library::function(name))
        .arg(places.len().saturating_add(texts.len()));
    for place in places {
        command.arg(place);
    }
    for text in texts {
        command.arg(text);
    }
    command
}

/// A request for records, counters and stops.
#[derive(Debug, Default)]
pub(super) struct Look {
    fields: Vec<String>,
    texts: Vec<String>,
    counters: Vec<String>,
    stops: bool,
}

impl Look {
    pub(super) fn record(&mut self, name: String) {
        if records::is_field(&name) {
            self.fields.push(name);
        } else {
            self.texts.push(name);
        }
    }

    pub(super) fn counter(&mut self, name: String) {
        self.counters.push(name);
    }

    pub(super) const fn stops(&mut self) {
        self.stops = true;
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.fields.is_empty() && self.texts.is_empty() && self.counters.is_empty() && !self.stops
    }

    /// The same in parts, each of at most so many names of a kind; none when it looks for nothing.
    pub(super) fn parts(mut self, most: usize) -> Vec<Self> {
        for names in [&mut self.fields, &mut self.texts, &mut self.counters] {
            names.sort_unstable();
            names.dedup();
        }
        let mut parts = Vec::new();
        while !self.is_empty() {
            let some = |names: &mut Vec<String>| names.split_off(names.len().saturating_sub(most));
            parts.push(Self {
                fields: some(&mut self.fields),
                texts: some(&mut self.texts),
                counters: some(&mut self.counters),
                stops: std::mem::take(&mut self.stops),
            });
        }
        parts
    }

    pub(super) fn command(&self, ns: &Namespace) -> Cmd {
        let mut command = function("look", ns, &self.texts);
        for names in [&self.fields, &self.counters] {
            command.arg(names.len());
            for name in names {
                command.arg(name);
            }
        }
        command.arg(i32::from(self.stops));
        command
    }

    pub(super) fn read(self, answer: Value, copies: &mut Copies, boot_ms: i64) -> Result<()> {
        let mut parts = Parts::of(answer)?;
        parts.text()?;
        let standing = standing(parts.next()?)?;
        copies.know(&standing, false);
        copies.stand(standing, boot_ms);
        for names in [&self.fields, &self.texts] {
            for (name, text) in names.iter().zip(texts(parts.next()?)?) {
                copies.learn(name, &text)?;
            }
        }
        for (name, value) in self.counters.iter().zip(texts(parts.next()?)?) {
            copies.learn_counter(name, counter(&value)?);
        }
        if self.stops {
            learn_stops(copies, &texts(parts.next()?)?)?;
        }
        Ok(())
    }
}

pub(super) fn learn_stops(copies: &mut Copies, pairs: &[String]) -> Result<()> {
    let mut stops: std::collections::BTreeMap<StopScope, Stop> = std::collections::BTreeMap::new();
    for pair in pairs.chunks_exact(2) {
        let [_, text] = pair else { continue };
        let stop: Stop = serde_json::from_str(text).map_err(|e| unreadable().because(e))?;
        stops.insert(stop.scope.clone(), stop);
    }
    copies.stops = Some(Arc::new(stops));
    Ok(())
}

/// How the ledger stands: time, whether it is fixed, versions, number of the last event.
pub(super) fn standing(value: Value) -> Result<Standing> {
    let texts = texts(value)?;
    let number = |index: usize| -> Result<i64> {
        texts
            .get(index)
            .and_then(|text| text.parse().ok())
            .ok_or_else(unreadable)
    };
    let unsigned = |index| number(index).map(|n| n.max(0).cast_unsigned());
    Ok(Standing {
        now_ms: number(0)?,
        fixed: number(1)? == 1,
        groups_version: unsigned(2)?,
        stops_version: unsigned(3)?,
        last_seq: unsigned(4)?,
        open: number(5)? == 1,
        by_hand: unsigned(6)?,
        run: texts
            .get(7)
            .and_then(|run| u64::from_str_radix(run, 16).ok())
            .unwrap_or(0),
        from: unsigned(8)?,
        start: unsigned(9)?,
        edition: texts
            .get(10)
            .map_or_else(|| Arc::from(""), |edition| Arc::from(edition.as_str())),
    })
}

/// Ranges of events: era, first and last of each.
pub(super) fn ranges(value: Value) -> Result<Vec<Range>> {
    let texts = texts(value)?;
    let range = |parts: &[String]| match parts {
        [epoch, first, last] => Some(Range {
            epoch: u64::from_str_radix(epoch, 16).ok()?,
            first: first.parse().ok()?,
            last: last.parse().ok()?,
        }),
        _ => None,
    };
    texts
        .chunks(3)
        .map(|parts| range(parts).ok_or_else(unreadable))
        .collect()
}

/// `used:held`; nothing is zero.
pub(super) fn counter(value: &str) -> Result<Counter> {
    if value.is_empty() {
        return Ok(Counter::default());
    }
    let (used, held) = value.split_once(':').ok_or_else(unreadable)?;
    Ok(Counter {
        used: used.parse().map_err(|_| unreadable())?,
        held: held.parse().map_err(|_| unreadable())?,
    })
}

/// The parts of an answer, in order.
pub(super) struct Parts(std::vec::IntoIter<Value>);

impl Parts {
    pub(super) fn of(value: Value) -> Result<Self> {
        match value {
            Value::Array(parts) => Ok(Self(parts.into_iter())),
            _ => Err(unreadable()),
        }
    }

    pub(super) fn next(&mut self) -> Result<Value> {
        self.0.next().ok_or_else(unreadable)
    }

    /// One more part, if there is one.
    pub(super) fn last(&mut self) -> Option<Value> {
        self.0.next()
    }

    pub(super) fn text(&mut self) -> Result<String> {
        text(self.next()?)
    }
}

pub(super) fn text(value: Value) -> Result<String> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes).map_err(|_| unreadable()),
        Value::SimpleString(text) => Ok(text),
        Value::Int(number) => Ok(number.to_string()),
        Value::Nil => Ok(String::new()),
        _ => Err(unreadable()),
    }
}

/// A whole number.
pub(super) fn integer(value: &Value) -> Result<i64> {
    match value {
        Value::Int(number) => Ok(*number),
        _ => Err(unreadable()),
    }
}

pub(super) fn texts(value: Value) -> Result<Vec<String>> {
    match value {
        Value::Array(values) => values.into_iter().map(text).collect(),
        Value::Map(pairs) => pairs
            .into_iter()
            .flat_map(|(key, value)| [text(key), text(value)])
            .collect(),
        Value::Nil => Ok(Vec::new()),
        _ => Err(unreadable()),
    }
}

pub(super) fn unreadable() -> Error {
    Error::new(
        ErrorKind::LedgerCorrupt,
        "the Redis server's answer cannot be read; is it a ledger of another version?",
    )
}
