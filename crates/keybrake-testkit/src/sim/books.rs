//! What must be true after every step: of the ledger's counters, of its calls, and of what the vendor has moved.

use std::collections::{BTreeMap, BTreeSet};

use keybrake::ledger::{Reservation, State};

use super::store::Store;
use super::vendor::Vendor;

const COUNTERS: &str = "kb:{default}:counters";
const CALLS: &str = "kb:{default}:r:";

/// A budget's counters begin with this, and may not stand above that.
#[derive(Clone, Debug)]
pub(super) struct Cap {
    pub(super) family: String,
    pub(super) most: i64,
    pub(super) money: bool,
    pub(super) rolling: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Call {
    /// What the vendor knows it by.
    key: Option<String>,
    state: State,
    used: i64,
    held: i64,
    attempts: u32,
    charges: Vec<(String, i64, i64)>,
}

/// The books as an auditor keeps them beside the ledger.
#[derive(Debug, Default)]
pub(super) struct Books {
    pub(super) caps: Vec<Cap>,
    calls: BTreeMap<String, Call>,
    by_key: BTreeMap<String, BTreeSet<String>>,
    /// Used and held of every counter, by its calls.
    sums: BTreeMap<String, (i64, i64)>,
    /// What the vendor moved, by key.
    pub(super) journal: BTreeMap<String, i64>,
    /// Calls that their holder gave up, and the ledger said they are voided.
    pub(super) given_up: BTreeSet<String>,
    /// Keys whose reservation was acknowledged by a server that is gone, within its lag.
    pub(super) excused: BTreeSet<String>,
    /// What may stand above a cap: (micro-USD, calls).
    pub(super) excess: (i64, i64),
    /// The lifetime cap of all money.
    pub(super) total_cap: i64,
    /// A stop of everything has returned and is not resumed.
    pub(super) stopped: bool,
}

type Checked = Result<(), String>;

/// The vendor's key of an identity's generation.
pub(super) fn vendor_key(identity: &str, generation: u32) -> String {
    format!("{identity}#{generation}")
}

impl Books {
    /// Looks at what a step wrote.
    pub(super) fn look(
        &mut self,
        store: &Store,
        vendor: &Vendor,
        written: &[(String, Option<String>)],
    ) -> Checked {
        let mut keys = BTreeSet::new();
        for (key, field) in written {
            if let (Some(id), None) = (key.strip_prefix(CALLS), field) {
                keys.extend(self.take_over(store, vendor, id)?);
            }
        }
        for (key, field) in written {
            if let (COUNTERS, Some(counter)) = (key.as_str(), field) {
                self.check_counter(store, counter)?;
            }
        }
        for key in keys {
            self.check_key(&key)?;
        }
        Ok(())
    }

    fn take_over(&mut self, store: &Store, vendor: &Vendor, id: &str) -> Result<Option<String>, String> {
        let Some(text) = store.text(&format!("{CALLS}{id}"), None) else {
            return Ok(None);
        };
        let call = read(text).map_err(|e| format!("call {id} cannot be read: {e}"))?;
        let before = self.calls.get(id).cloned();
        if self.stopped
            && before
                .as_ref()
                .is_none_or(|before| before.attempts < call.attempts)
            && call.state == State::Held
        {
            return Err(format!(
                "call {id} was admitted after a stop of everything had returned"
            ));
        }
        let moved = call
            .key
            .as_ref()
            .is_some_and(|key| self.journal.contains_key(key));
        if self.given_up.contains(id) && call.state != State::Voided && !moved {
            return Err(format!(
                "call {id} was given up and voided, and is {} now",
                call.state.as_str()
            ));
        }
        if let (Some(before), Some(key)) = (&before, &call.key)
            && before.state == State::Voided
            && call.held > 0
            && vendor.accepted(key)
        {
            // Let go of as failed, then found to have been accepted: it stands above a cap if need be.
            self.excess.0 += call.held;
            self.excess.1 += 1;
        }
        for (sign, call) in before.iter().map(|call| (-1, call)).chain([(1, &call)]) {
            for (counter, used, held) in &call.charges {
                let sum = self.sums.entry(counter.clone()).or_default();
                sum.0 += sign * used;
                sum.1 += sign * held;
            }
        }
        let key = call.key.clone();
        if let Some(key) = &key {
            self.by_key.entry(key.clone()).or_default().insert(id.to_owned());
        }
        self.calls.insert(id.to_owned(), call);
        Ok(key)
    }

    /// A counter is what its calls add up to, and within its cap.
    fn check_counter(&self, store: &Store, counter: &str) -> Checked {
        let value = store.text(COUNTERS, Some(counter)).unwrap_or("0:0");
        let (used, held) = value
            .split_once(':')
            .and_then(|(used, held)| Some((used.parse::<i64>().ok()?, held.parse::<i64>().ok()?)))
            .ok_or_else(|| format!("the counter {counter} is {value}"))?;
        if used < 0 || held < 0 {
            return Err(format!("the counter {counter} is below zero: {value}"));
        }
        let sum = counter.starts_with('~');
        if !sum {
            let by_calls = self.sums.get(counter).copied().unwrap_or_default();
            if by_calls != (used, held) {
                return Err(format!(
                    "the counter {counter} is {value}, and its calls add up to {}:{}",
                    by_calls.0, by_calls.1
                ));
            }
        }
        let name = counter.trim_start_matches('~');
        for cap in self
            .caps
            .iter()
            .filter(|cap| name.starts_with(&cap.family) && cap.rolling == sum)
        {
            let excess = if cap.money { self.excess.0 } else { self.excess.1 };
            if used + held > cap.most + excess {
                return Err(format!(
                    "{counter} stands at {used} used and {held} held, and its cap is {}",
                    cap.most
                ));
            }
        }
        Ok(())
    }

    /// The vendor moves money.
    pub(super) fn charged(&mut self, key: &str, micros: i64) -> Checked {
        let identity = key.split('#').next().unwrap_or_default();
        let twice = self
            .journal
            .keys()
            .any(|other| other.split('#').next() == Some(identity));
        if twice && !self.excused.contains(key) {
            return Err(format!(
                "the vendor was asked twice to move what is one spend: {key}"
            ));
        }
        self.journal.insert(key.to_owned(), micros);
        let total: i64 = self.journal.values().sum();
        if total > self.total_cap + self.excess.0 {
            return Err(format!(
                "the vendor has moved {total}, and the cap is {}",
                self.total_cap
            ));
        }
        self.check_key(key)
    }

    /// What moved is counted or still held, and nothing else is counted.
    fn check_key(&self, key: &str) -> Checked {
        if self.excused.contains(key) {
            return Ok(());
        }
        let moved = self.journal.get(key).copied().unwrap_or(0);
        let (used, held) = self.of_key(key);
        if used > moved {
            return Err(format!(
                "{key}: {used} are counted as used, and the vendor moved {moved}"
            ));
        }
        if used + held < moved {
            return Err(format!(
                "{key}: the vendor moved {moved}, and only {used} are counted and {held} held for it"
            ));
        }
        Ok(())
    }

    fn of_key(&self, key: &str) -> (i64, i64) {
        let calls = self
            .by_key
            .get(key)
            .into_iter()
            .flatten()
            .filter_map(|id| self.calls.get(id));
        calls.fold((0, 0), |sum, call| (sum.0 + call.used, sum.1 + call.held))
    }

    /// The server's data is another now: what it held when it was copied.
    pub(super) fn replaced(&mut self, store: &Store) -> Checked {
        let before = std::mem::take(&mut self.calls);
        self.by_key.clear();
        self.sums.clear();
        for key in store.keys_with(CALLS) {
            let id = key.strip_prefix(CALLS).unwrap_or_default().to_owned();
            let call = read(store.text(&key, None).unwrap_or_default())?;
            for (counter, used, held) in &call.charges {
                let sum = self.sums.entry(counter.clone()).or_default();
                sum.0 += used;
                sum.1 += held;
            }
            if let Some(key) = &call.key {
                self.by_key.entry(key.clone()).or_default().insert(id.clone());
            }
            self.calls.insert(id, call);
        }
        for (id, old) in before {
            let new = self.calls.get(&id);
            let stands = new.is_some_and(|new| {
                new.attempts == old.attempts && new.used + new.held >= old.used + old.held
            });
            if !stands {
                self.excess.0 += old.used.max(old.held);
                self.excess.1 += 1;
                self.excused.extend(old.key);
                self.given_up.remove(&id);
            }
        }
        Ok(())
    }

    /// At the end nothing is open, and the books are the journal.
    pub(super) fn closed(&self, store: &Store) -> Checked {
        for (id, call) in &self.calls {
            let open = matches!(call.state, State::Held | State::Unknown | State::Pending);
            if (open || call.held != 0) && !call.key.as_ref().is_some_and(|key| self.excused.contains(key)) {
                return Err(format!(
                    "call {id} is still {} with {} held",
                    call.state.as_str(),
                    call.held
                ));
            }
        }
        for (counter, _) in store.hash(COUNTERS) {
            self.check_counter(store, &counter)?;
        }
        let keys: BTreeSet<&String> = self.journal.keys().chain(self.by_key.keys()).collect();
        for key in keys.into_iter().filter(|key| !self.excused.contains(*key)) {
            let moved = self.journal.get(key).copied().unwrap_or(0);
            let (used, held) = self.of_key(key);
            if (used, held) != (moved, 0) {
                return Err(format!(
                    "{key}: the vendor moved {moved}; {used} used and {held} held in the books"
                ));
            }
        }
        Ok(())
    }
}

fn read(text: &str) -> Result<Call, String> {
    let call: Reservation = serde_json::from_str(text).map_err(|e| e.to_string())?;
    Ok(Call {
        key: call
            .identity
            .as_ref()
            .map(|own| vendor_key(&own.id, call.generation)),
        state: call.state,
        used: call.used.micros(),
        held: call.held.micros(),
        attempts: call.attempts,
        charges: call
            .charges
            .iter()
            .map(|charge| (charge.counter.as_str().to_owned(), charge.used, charge.held))
            .collect(),
    })
}
