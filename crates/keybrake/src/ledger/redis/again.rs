//! This process's own steps, as what a ledger may have lost.

use std::collections::BTreeMap;

use super::past::{Done, Range};
use super::records::{self, Record};
use crate::error::Result;
use crate::ledger::reassertion::{BudgetAssertion, CallAssertion, KeyAssertion, Reassertion, StopAssertion};
use crate::ledger::types::{AdminNote, KeyRecord, ObjectState, Stop, StopScope};
use crate::money::Usd;

/// Whether a record is remembered: what the rest follows from.
pub(super) fn is_remembered(name: &str) -> bool {
    match name.as_bytes().first() {
        Some(b'r' | b'a' | b'k' | b'i' | b'o') => true,
        Some(b'b') => name.starts_with("b:"),
        Some(b'p') => !["p:unknown:", "p:key:", "p:act:", "p:leases:"]
            .iter()
            .any(|other| name.starts_with(other)),
        _ => false,
    }
}

/// What these steps wrote: of each record its last text.
pub(super) fn reassertion<'a>(steps: impl Iterator<Item = &'a Done>) -> Result<(Reassertion, Vec<Range>)> {
    let mut records: BTreeMap<&str, (i64, &str)> = BTreeMap::new();
    let (mut said, mut covers) = (Reassertion::default(), Vec::new());
    for step in steps {
        for (name, text) in &step.records {
            records.insert(name, (step.at_ms, text));
        }
        let stops = step.stops.iter();
        said.stops
            .extend(stops.filter_map(|(scope, stop)| stop_of(scope, stop.as_ref(), step.at_ms)));
        covers.push(step.events);
    }
    let records = Records(records);
    for (name, at_ms) in records.names() {
        match records.get(name)? {
            Some(Record::Budget(def)) => said.budgets.push(BudgetAssertion {
                def: (*def).clone(),
                at_ms,
            }),
            Some(Record::Key(state)) => {
                let key_id = name.trim_start_matches("k:").to_owned();
                said.keys.push(KeyAssertion {
                    record: records.issued(&key_id)?,
                    key_id,
                    version: state.version,
                    expires_at_ms: state.expires_at_ms,
                    revoked_at_ms: state.revoked_at_ms,
                    ancestors: state.ancestors,
                });
            }
            Some(Record::Call(mut call)) => {
                let call_id = call.facts.call_id.clone();
                if let Some(Record::Reply(reply)) = records.get(&format!("a:{call_id}"))? {
                    call.reply = Some(reply);
                }
                let object = match &call.object {
                    Some(object) => records.object(object)?,
                    None => None,
                };
                let own = call.identity.as_ref().map(|own| own.id.clone());
                said.calls.push(CallAssertion {
                    found_by: records.pointing_at(&call_id, own.as_deref())?,
                    call: *call,
                    object,
                });
            }
            _ => {}
        }
    }
    Ok((said, covers))
}

fn stop_of(scope: &str, stop: Option<&Stop>, at_ms: i64) -> Option<StopAssertion> {
    match stop {
        Some(stop) => Some(StopAssertion {
            stop: stop.clone(),
            ended_at_ms: None,
        }),
        None => Some(StopAssertion {
            stop: Stop {
                scope: StopScope::named(scope)?,
                since_ms: at_ms,
                admin: AdminNote::default(),
                hard: false,
            },
            ended_at_ms: Some(at_ms),
        }),
    }
}

/// Texts of records by name, with the ledger's time when they were written.
struct Records<'a>(BTreeMap<&'a str, (i64, &'a str)>);

impl<'a> Records<'a> {
    fn names(&self) -> impl Iterator<Item = (&'a str, i64)> {
        self.0.iter().map(|(name, (at_ms, _))| (*name, *at_ms))
    }

    fn get(&self, name: &str) -> Result<Option<Record>> {
        self.0
            .get(name)
            .map(|(_, text)| records::parse(name, text))
            .transpose()
    }

    fn issued(&self, key_id: &str) -> Result<Option<Box<KeyRecord>>> {
        Ok(match self.get(&format!("i:{key_id}"))? {
            Some(Record::Issued(record)) => Some(record),
            _ => None,
        })
    }

    fn object(&self, object: &str) -> Result<Option<ObjectState>> {
        Ok(match self.get(&format!("o:{object}"))? {
            Some(Record::Object(record)) => Some(ObjectState {
                object: object.to_owned(),
                moved: Usd::from_micros(record.moved_micros),
                closed: record.closed,
            }),
            _ => None,
        })
    }

    /// Identities other than its own under which a call is found.
    fn pointing_at(&self, call_id: &str, own: Option<&str>) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for (name, (_, text)) in self.0.range("p:".."p;") {
            let id = name.trim_start_matches("p:");
            if Some(id) == own || !text.contains(call_id) {
                continue;
            }
            if let Record::Pointer(pointer) = records::parse(name, text)?
                && pointer.call_ids.last().is_some_and(|last| last == call_id)
            {
                found.push(id.to_owned());
            }
        }
        Ok(found)
    }
}
