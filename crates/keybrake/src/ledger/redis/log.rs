//! The log: a stream whose entries are numbered as the events are.

use redis::Value;

use super::draft::tally_of_view;
use super::wire::{Parts, counter, text, texts, unreadable};
use crate::error::{Error, ErrorKind, Result};
use crate::ledger::events::{AFTER, Event, EventFilter};
use crate::ledger::types::{HoldFilter, Reservation, State};

/// An event as it is written. Its number, its time, and what the counter of the budget that it shows then was, come from
/// the server.
pub(super) fn print(event: &Event) -> Result<String> {
    serde_json::to_string(event)
        .map_err(|e| Error::new(ErrorKind::Internal, "an event cannot be written").because(e))
}

/// Reads what `XRANGE` answers.
pub(super) fn read(entries: Value) -> Result<Vec<Event>> {
    let Value::Array(entries) = entries else {
        return Err(unreadable());
    };
    entries.into_iter().map(entry).collect()
}

fn entry(value: Value) -> Result<Event> {
    let mut parts = Parts::of(value)?;
    let id = parts.text()?;
    let seq = id
        .split_once('-')
        .and_then(|(seq, _)| seq.parse().ok())
        .ok_or_else(unreadable)?;
    let (mut data, mut stamp, mut gap) = (String::new(), String::new(), None);
    for pair in texts(parts.next()?)?.chunks_exact(2) {
        let [field, value] = pair else { continue };
        match field.as_str() {
            "d" => data.clone_from(value),
            "t" => stamp.clone_from(value),
            "g" => gap = value.parse::<u64>().ok(),
            _ => {}
        }
    }
    let mut event: Event = serde_json::from_str(&data).map_err(|e| unreadable().because(e))?;
    let (at, shown) = match stamp.split_once(',') {
        Some((at, shown)) => (at, Some(shown)),
        None => (stamp.as_str(), None),
    };
    event.seq = seq;
    event.at_ms = at.parse().map_err(|_| unreadable())?;
    if let (Some(after), Some(admin)) = (gap, &mut event.body.admin) {
        admin.detail.insert(AFTER.to_owned(), after.into());
    }
    if let (Some(view), Some(value)) = (&mut event.body.tightest, shown) {
        let counter = counter(value)?;
        (view.used, view.held) = (counter.used, counter.held);
    }
    Ok(event)
}

/// Sets a budget's view to what the committed counters say.
pub(super) fn correct(
    view: Option<&mut crate::policy::BudgetView>,
    counters: &[(String, crate::ledger::store::Counter)],
) {
    let Some(view) = view else { return };
    let names = counters.iter().map(|(name, _)| name.as_str());
    if let Some((_, counter)) = tally_of_view(names, view).and_then(|index| counters.get(index)) {
        (view.used, view.held) = (counter.used, counter.held);
    }
}

/// Whether a filter asks for this event.
pub(super) fn asked(event: &Event, filter: &EventFilter) -> bool {
    let facts = event.body.facts.as_ref();
    let of_call = |call_id: &String| {
        event.call_id.as_ref() == Some(call_id) || facts.is_some_and(|facts| facts.call_id == *call_id)
    };
    let of_run = |run: &String| facts.is_some_and(|facts| facts.run.as_ref() == Some(run));
    filter.call_id.as_ref().is_none_or(of_call)
        && filter.run.as_ref().is_none_or(of_run)
        && filter.since_ms.is_none_or(|since_ms| event.at_ms >= since_ms)
}

/// Whether a filter asks for this hold.
pub(super) fn wanted(call: &Reservation, filter: &HoldFilter) -> bool {
    let listed = call.holds_something() || filter.state == Some(State::Provisional);
    listed
        && filter.state.is_none_or(|state| call.state == state)
        && (filter.run.is_none() || call.facts.run == filter.run)
}

/// The name and value pairs of a hash.
pub(super) fn pairs(value: Value) -> Result<Vec<(String, String)>> {
    let texts = texts(value)?;
    Ok(texts
        .chunks_exact(2)
        .filter_map(|pair| match pair {
            [name, value] => Some((name.clone(), value.clone())),
            _ => None,
        })
        .collect())
}

/// A list of texts.
pub(super) fn list(value: Value) -> Result<Vec<String>> {
    match value {
        Value::Array(values) => values.into_iter().map(text).collect(),
        other => texts(other),
    }
}
