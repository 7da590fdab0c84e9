//! One atomic step: the store, the ledger's time, and the numbered log.

use crate::error::{Error, ErrorKind, Result};
use crate::ledger::events::{Delta, Event, EventBody, EventKind};
use crate::ledger::store::{Finding, Meta, Store};
use crate::ledger::types::{AdminNote, CounterName, IdentityKind, Reservation, State, Window};

/// Length of a rolling window's bucket: 5 minutes.
pub(super) const BUCKET_MS: i64 = 300_000;
/// Length of the rolling window: 24 hours.
pub(super) const ROLLING_MS: i64 = 86_400_000;

/// A step under way. `finish` writes what it changed of the ledger's own record.
pub(super) struct Step<'a> {
    pub(super) store: &'a mut dyn Store,
    pub(super) now_ms: i64,
    pub(super) meta: Meta,
}

impl<'a> Step<'a> {
    /// Begins at the clock's reading, or at the latest time ever used if that is later: time never goes back.
    pub(super) fn begin(store: &'a mut dyn Store, clock_ms: i64) -> Result<Self> {
        let mut meta = store.meta()?;
        let now_ms = meta.last_seen_ms.max(clock_ms);
        meta.last_seen_ms = now_ms;
        Ok(Self { store, now_ms, meta })
    }

    pub(super) fn finish(self) -> Result<()> {
        self.store.put_meta(self.meta)
    }

    /// Whether the ledger's time has reached this moment. Every comparison with the time goes through here, so that
    /// the backend knows for how long the step's outcome is true.
    pub(super) fn reached(&mut self, at_ms: i64) -> bool {
        self.store.found(Finding::Reached { at_ms });
        at_ms <= self.now_ms
    }

    /// Whether a window contains the ledger's time.
    pub(super) fn within(&mut self, window: Window) -> bool {
        self.reached(window.start_ms) && !self.reached(window.end_ms)
    }

    /// Start of the present bucket of every rolling window.
    pub(super) fn bucket_ms(&mut self) -> i64 {
        let bucket_ms = self.now_ms.saturating_sub(self.now_ms.rem_euclid(BUCKET_MS));
        self.within(Window {
            start_ms: bucket_ms,
            end_ms: bucket_ms.saturating_add(BUCKET_MS),
        });
        bucket_ms
    }

    /// Whether a bucket lies wholly outside the last 24 hours.
    pub(super) fn bucket_expired(&mut self, bucket_ms: i64) -> bool {
        self.reached(bucket_ms.saturating_add(BUCKET_MS).saturating_add(ROLLING_MS))
    }

    /// Appends one event, numbered without gaps.
    pub(super) fn append(
        &mut self,
        kind: EventKind,
        call_id: Option<&str>,
        deltas: Vec<Delta>,
        body: EventBody,
    ) -> Result<()> {
        self.meta.last_seq = self.meta.last_seq.saturating_add(1);
        self.store.append(Event {
            v: 1,
            seq: self.meta.last_seq,
            at_ms: self.now_ms,
            call_id: call_id.map(str::to_owned),
            kind,
            deltas,
            body,
        })
    }

    /// Changes one counter, and with it the running sum of a rolling window, and notes the change.
    pub(super) fn add(
        &mut self,
        counter: &CounterName,
        rolling: bool,
        (used, held): (i64, i64),
        deltas: &mut Vec<Delta>,
    ) -> Result<()> {
        if used == 0 && held == 0 {
            return Ok(());
        }
        let mut value = self.store.counter(counter)?;
        value.used = sum(value.used, used)?;
        value.held = sum(value.held, held)?;
        self.store.put_counter(counter, value)?;
        if rolling {
            self.add_to_rolling(counter, used, held)?;
        }
        deltas.push(Delta {
            counter: counter.clone(),
            used,
            held,
        });
        Ok(())
    }

    fn add_to_rolling(&mut self, counter: &CounterName, used: i64, held: i64) -> Result<()> {
        let (family, bucket_ms) = split_bucket(counter)?;
        let Some(mut rolling) = self.store.rolling(family)? else {
            return Err(corrupt(format!("the rolling window {family} has no sum")));
        };
        // An older bucket counts again only while it is inside the last 24 hours; all that exist after it are
        // in the sum already.
        if bucket_ms < rolling.oldest_ms {
            if self.bucket_expired(bucket_ms) {
                return Ok(());
            }
            rolling.oldest_ms = bucket_ms;
        }
        rolling.sum.used = sum(rolling.sum.used, used)?;
        rolling.sum.held = sum(rolling.sum.held, held)?;
        self.store.put_rolling(family, rolling)
    }

    /// Writes a reservation that is new or has changed, and what hangs on its state: the count of open holds,
    /// the list of unknown calls with the same content, and for how long its identity is remembered.
    pub(super) fn save(&mut self, before: Option<(State, bool)>, reservation: Reservation) -> Result<()> {
        let (old_state, was_open) = before.map_or((None, false), |(state, open)| (Some(state), open));
        let open = reservation.holds_something();
        if open != was_open {
            self.count_open(&reservation, open)?;
        }
        let unknown = reservation.state == State::Unknown;
        let was_unknown = old_state == Some(State::Unknown);
        if unknown != was_unknown {
            self.note_unknown(&reservation, unknown)?;
        }
        super::identity::keep(self, old_state, &reservation)?;
        if reservation.state == State::Held {
            self.meta.next_deadline_ms = self.meta.next_deadline_ms.min(reservation.not_after_ms);
        }
        self.store.put_reservation(reservation)
    }

    fn count_open(&mut self, reservation: &Reservation, open: bool) -> Result<()> {
        self.meta.open_holds = if open {
            self.meta.open_holds.saturating_add(1)
        } else {
            self.meta.open_holds.saturating_sub(1)
        };
        let Some(key_id) = &reservation.facts.key_id else {
            return Ok(());
        };
        self.store.count_open_hold(key_id, open)
    }

    fn note_unknown(&mut self, reservation: &Reservation, unknown: bool) -> Result<()> {
        let Some(identity) = &reservation.identity else {
            return Ok(());
        };
        if identity.kind == IdentityKind::Transport {
            return Ok(());
        }
        let id = unknown_pointer(&identity.content_id);
        let mut pointer = self.store.pointer(&id)?.unwrap_or_default();
        pointer.call_ids.retain(|call| *call != reservation.facts.call_id);
        if unknown {
            pointer.call_ids.push(reservation.facts.call_id.clone());
        }
        pointer.until_ms = i64::MAX;
        self.store.put_pointer(&id, pointer)
    }
}

/// The pointer that lists the unknown calls with this content.
pub(super) fn unknown_pointer(content_id: &str) -> String {
    format!("unknown:{content_id}")
}

/// Family and start of a rolling bucket's counter.
pub(super) fn split_bucket(counter: &str) -> Result<(&str, i64)> {
    counter
        .rsplit_once('|')
        .and_then(|(family, start)| Some((family, start.parse().ok()?)))
        .ok_or_else(|| corrupt(format!("{counter} is not the counter of a rolling window")))
}

/// A sum of counters; an overflow refuses the whole step.
pub(super) fn sum(a: i64, b: i64) -> Result<i64> {
    a.checked_add(b)
        .ok_or_else(|| internal("a counter would overflow; nothing was changed"))
}

pub(super) fn internal(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Internal, message)
}

pub(super) fn corrupt(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::LedgerCorrupt, message)
}

/// An administrative event's body.
pub(super) fn admin_body(
    act: &str,
    subject: impl Into<String>,
    note: &AdminNote,
    detail: &[(&str, serde_json::Value)],
) -> EventBody {
    EventBody {
        admin: Some(Box::new(crate::ledger::events::AdminAct {
            act: act.to_owned(),
            subject: subject.into(),
            note: note.clone(),
            detail: detail
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.clone()))
                .collect(),
        })),
        ..EventBody::default()
    }
}
