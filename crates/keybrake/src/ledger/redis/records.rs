//! The ledger's records as Redis keeps them: one JSON text each, under a name.
//!
//! | name | record | where |
//! | --- | --- | --- |
//! | `k:<key id>` | what every decision reads of a key | a field of the hash `records` |
//! | `t:<token hash>` | the id of the key | " |
//! | `b:<budget id>` | a budget's definition | " |
//! | `B:<scope>` | ids of the budgets of a scope | " |
//! | `w:<family>` | the present window of a calendar budget | " |
//! | `g:<family>` | a rolling window's buckets; its sum is a counter | " |
//! | `checkpoints` | event numbers of all checkpoints | " |
//! | `clock` | when a person last accepted the server's clock | " |
//! | `i:<key id>` | a key as issued | a key of its own |
//! | `r:<call id>` | a reservation, without its recorded reply | " |
//! | `a:<call id>` | the recorded reply | " |
//! | `p:<id>` | what stands behind an identity or a content | " |
//! | `o:<object>` | what is known of a vendor object | " |
//! | `f:<page>:<object>` | its final contributors | " |
//! | `c:<seq>` | a checkpoint | " |
//! | `n:<random>` | the mark of an administrator's step that ran, for ten minutes | " |

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::ledger::rules;
use crate::ledger::store::{Checkpoint, KeyState, ObjectPage, ObjectRecord, Pointer};
use crate::ledger::types::{BudgetDef, KeyRecord, Reservation, State, Window};

const DAY_MS: i64 = 86_400_000;
/// A mark is kept so long, in milliseconds: ten minutes.
const MARK_MS: i64 = 600_000;
/// A call that is done is kept at least this long: 35 days.
const CALL_KEPT_MS: i64 = 35 * DAY_MS;

/// The buckets of a rolling window.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Buckets {
    /// Start of the oldest bucket that is in the sum.
    pub(super) oldest_ms: i64,
    /// Starts of the buckets that exist, in order.
    pub(super) starts_ms: Vec<i64>,
}

/// A record, read.
#[derive(Clone, Debug)]
pub(super) enum Record {
    Absent,
    Key(KeyState),
    Token(String),
    Budget(Arc<BudgetDef>),
    Names(Vec<String>),
    Window(Window),
    Buckets(Buckets),
    Numbers(Vec<u64>),
    Issued(Box<KeyRecord>),
    Call(Box<Reservation>),
    Reply(Vec<u8>),
    Pointer(Pointer),
    Object(ObjectRecord),
    ObjectPage(ObjectPage),
    Checkpoint(Box<Checkpoint>),
    /// The number of the draft that left it.
    Mark(u32),
}

/// Whether the record of this name is a field of the hash `records`, and not a key of its own.
pub(super) fn is_field(name: &str) -> bool {
    matches!(
        name.as_bytes().first(),
        Some(b'k' | b't' | b'b' | b'B' | b'w' | b'g')
    ) || matches!(name, "checkpoints" | "clock")
}

/// Whether a record belongs to what the ledger's edition stands for: what a decision reads of keys, budgets and windows.
/// It changes so seldom that a step does not send it again as long as the edition is the same.
pub(super) fn has_edition(name: &str) -> bool {
    matches!(name.as_bytes(), [b'k' | b'b' | b'w', b':', ..])
}

fn json<T: DeserializeOwned>(name: &str, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| unreadable(name).because(e))
}

/// Reads a record's text; the empty text is a record that does not exist.
pub(super) fn parse(name: &str, text: &str) -> Result<Record> {
    if text.is_empty() {
        return Ok(Record::Absent);
    }
    Ok(match name.as_bytes().first() {
        _ if matches!(name, "checkpoints" | "clock") => Record::Numbers(json(name, text)?),
        Some(b'k') => Record::Key(json(name, text)?),
        Some(b't') => Record::Token(text.to_owned()),
        Some(b'b') => Record::Budget(Arc::new(json(name, text)?)),
        Some(b'B') => Record::Names(json(name, text)?),
        Some(b'w') => Record::Window(json(name, text)?),
        Some(b'g') => Record::Buckets(json(name, text)?),
        Some(b'i') => Record::Issued(json(name, text)?),
        Some(b'r') => Record::Call(json(name, text)?),
        Some(b'a') => Record::Reply(BASE64.decode(text).map_err(|e| unreadable(name).because(e))?),
        Some(b'p') => Record::Pointer(json(name, text)?),
        Some(b'o') => Record::Object(json(name, text)?),
        Some(b'f') => Record::ObjectPage(json(name, text)?),
        Some(b'c') => Record::Checkpoint(json(name, text)?),
        Some(b'n') => Record::Mark(text.parse().map_err(|e| unreadable(name).because(e))?),
        _ => return Err(unreadable(name)),
    })
}

/// A record's text.
pub(super) fn print(record: &Record) -> Result<String> {
    fn json(value: &impl Serialize) -> Result<String> {
        serde_json::to_string(value)
            .map_err(|e| Error::new(ErrorKind::Internal, "a record cannot be written").because(e))
    }
    match record {
        Record::Absent => Ok(String::new()),
        Record::Key(state) => json(state),
        Record::Token(id) => Ok(id.clone()),
        Record::Budget(def) => json(&**def),
        Record::Names(names) => json(names),
        Record::Window(window) => json(window),
        Record::Buckets(buckets) => json(buckets),
        Record::Numbers(numbers) => json(numbers),
        Record::Issued(key) => json(key),
        Record::Call(call) => json(call),
        Record::Reply(bytes) => Ok(BASE64.encode(bytes)),
        Record::Pointer(pointer) => json(pointer),
        Record::Object(object) => json(object),
        Record::ObjectPage(page) => json(page),
        Record::Checkpoint(checkpoint) => json(checkpoint),
        Record::Mark(draft) => Ok(draft.to_string()),
    }
}

/// For how long a record is kept after this write, in milliseconds; `None` for ever. Nothing that is open ends, and
/// what points at a call ends before the call does.
pub(super) fn kept_for_ms(record: &Record, now_ms: i64) -> Option<i64> {
    match record {
        Record::Call(call) => {
            // One that was given back has nothing more to tell.
            if call.lease.is_some() && call.ended_by.as_deref() == Some(rules::GIVEN_BACK) {
                return Some(DAY_MS);
            }
            let done = matches!(call.state, State::Settled | State::Voided) && call.object.is_none();
            let remember_ms = call.identity.as_ref().map_or(0, |own| own.remember_ms);
            // A read of which nobody heard holds nothing, and nobody can find out more.
            let lost_read = call.state == State::Unknown
                && !call.facts.moves_money
                && call.identity.is_none()
                && call.object.is_none();
            ((done || lost_read) && !call.holds_something())
                .then(|| CALL_KEPT_MS.max(remember_ms.saturating_add(5 * DAY_MS)))
        }
        // Lists have no end of their own; what has one is a note of an act (`rules::acts`), and must be there for as long as
        // any process may say an earlier one again.
        Record::Pointer(pointer) if pointer.call_ids.is_empty() => Some(if pointer.until_ms < i64::MAX {
            CALL_KEPT_MS
        } else {
            DAY_MS
        }),
        Record::Pointer(pointer) if pointer.until_ms < i64::MAX => Some(
            pointer
                .until_ms
                .saturating_sub(now_ms)
                .max(0)
                .saturating_add(DAY_MS),
        ),
        Record::Reply(_) => Some(CALL_KEPT_MS),
        // No command waits in a network for so long.
        Record::Mark(_) => Some(MARK_MS),
        _ => None,
    }
}

fn unreadable(name: &str) -> Error {
    Error::new(
        ErrorKind::LedgerCorrupt,
        format!("the ledger's record {name} cannot be read; nothing was sent"),
    )
}
