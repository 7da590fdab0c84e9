//! What must be true after every step: of the ledger's counters, of its calls, and of what the vendor has moved.
//!
//! A *spend* is what the vendor's journal tells apart: a `PaymentIntent`, or the idempotency key of whatever else moves
//! money. All calls that reserve for it are compared with it together.

use std::collections::{BTreeMap, BTreeSet};

use keybrake::idempotency::Keys;
use keybrake::ledger::{Reservation, State};

use super::store::Store;
use crate::stripe::{Movement, MovementOutcome};

const COUNTERS: &str = "kb:{default}:counters";
/// The number of a key's open holds stands among the counters, under a name that begins so.
const HOLDS: char = '#';
const CALLS: &str = "kb:{default}:r:";
/// A cent in micro-USD.
const CENT: i64 = 10_000;

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
    /// What the vendor knows it by, and the object that it is about.
    key: Option<String>,
    identity: Option<String>,
    object: Option<String>,
    state: State,
    /// Whether something is held for it, money or units.
    open: bool,
    used: i64,
    held: i64,
    attempts: u32,
    charges: Vec<(String, i64, i64)>,
}

/// What the vendor moved of one spend, in micro-USD.
#[derive(Clone, Copy, Debug, Default)]
struct Moved {
    gross: i64,
    /// Less what came back.
    net: i64,
}

/// The books as an auditor keeps them beside the ledger.
#[derive(Debug, Default)]
pub(super) struct Books {
    pub(super) caps: Vec<Cap>,
    pub(super) keys: Option<Keys>,
    calls: BTreeMap<String, Call>,
    by_spend: BTreeMap<String, BTreeSet<String>>,
    /// Used and held of every counter, by its calls.
    sums: BTreeMap<String, (i64, i64)>,
    /// What the vendor moved, by spend.
    journal: BTreeMap<String, Moved>,
    /// The spend of refunds and payouts, by their ids.
    of_object: BTreeMap<String, String>,
    /// The `PaymentIntent` that a key made.
    made: BTreeMap<String, String>,
    /// How often every call was admitted, as any server has ever written it: what is said again after a failover was
    /// admitted when it was first written.
    admitted: BTreeMap<String, u32>,
    /// Keys of requests that the vendor has executed.
    executed: BTreeSet<String>,
    /// Whose spend a key is.
    identities: BTreeMap<String, String>,
    /// Calls that their holder gave up, and the ledger said they are voided.
    pub(super) given_up: BTreeSet<String>,
    /// Spends whose reservation was acknowledged by a server that is gone, within its lag.
    excused: BTreeSet<String>,
    /// What may stand above a cap: (micro-USD, calls).
    excess: (i64, i64),
    /// The lifetime cap of all money.
    pub(super) total_cap: i64,
    /// A stop of everything has returned and is not resumed.
    pub(super) stopped: bool,
}

type Checked = Result<(), String>;

impl Books {
    /// Looks at what a step wrote.
    pub(super) fn look(&mut self, store: &Store, written: &[(String, Option<String>)]) -> Checked {
        let mut spends = BTreeSet::new();
        for (key, field) in written {
            if let (Some(id), None) = (key.strip_prefix(CALLS), field) {
                spends.extend(self.take_over(store, id)?);
            }
        }
        for (key, field) in written {
            if let (COUNTERS, Some(counter)) = (key.as_str(), field)
                && !counter.starts_with(HOLDS)
            {
                self.check_counter(store, counter)?;
            }
        }
        for spend in spends {
            self.check_spend(&spend)?;
        }
        Ok(())
    }

    fn spend_of(&self, call: &Call) -> Option<String> {
        if let Some(object) = &call.object {
            return Some(object.clone());
        }
        let key = call.key.as_ref()?;
        Some(self.made.get(key).unwrap_or(key).clone())
    }

    fn take_over(&mut self, store: &Store, id: &str) -> Result<Option<String>, String> {
        let Some(text) = store.text(&format!("{CALLS}{id}"), None) else {
            return Ok(None);
        };
        let call = self
            .read(text)
            .map_err(|e| format!("call {id} cannot be read: {e}"))?;
        let before = self.calls.get(id).cloned();
        let admitted = self.admitted.entry(id.to_owned()).or_default();
        if self.stopped && *admitted < call.attempts && call.state == State::Held {
            return Err(format!(
                "call {id} was admitted after a stop of everything had returned"
            ));
        }
        *admitted = call.attempts.max(*admitted);
        let executed = call.key.as_ref().is_some_and(|key| self.executed.contains(key));
        if self.given_up.contains(id) && call.state != State::Voided && !executed {
            return Err(format!(
                "call {id} was given up and voided, and is {} now",
                call.state.as_str()
            ));
        }
        if let Some(before) = &before
            && before.state == State::Voided
            && call.held > 0
            && executed
        {
            // Let go of as failed, then found to have been accepted: it stands above a cap if need be.
            self.excess.0 += call.held;
            self.excess.1 += 1;
        }
        if let Some(before) = before {
            self.add(&before, -1);
            let spend = self.spend_of(&before).unwrap_or_default();
            if let Some(calls) = self.by_spend.get_mut(&spend) {
                calls.remove(id);
            }
        }
        Ok(self.put(id, call))
    }

    fn add(&mut self, call: &Call, sign: i64) {
        for (counter, used, held) in &call.charges {
            let sum = self.sums.entry(counter.clone()).or_default();
            sum.0 += sign * used;
            sum.1 += sign * held;
        }
    }

    /// Notes a call as it stands; answers its spend.
    fn put(&mut self, id: &str, call: Call) -> Option<String> {
        self.add(&call, 1);
        let spend = self.spend_of(&call);
        if let Some(spend) = &spend {
            self.by_spend
                .entry(spend.clone())
                .or_default()
                .insert(id.to_owned());
        }
        if let (Some(key), Some(identity)) = (&call.key, &call.identity) {
            self.identities.insert(key.clone(), identity.clone());
        }
        self.calls.insert(id.to_owned(), call);
        spend
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

    /// The vendor has executed a request, or said for good that it will not; it made this `PaymentIntent` by it.
    pub(super) fn executed(&mut self, key: &str, made: Option<String>) -> Checked {
        self.executed.insert(key.to_owned());
        if let Some(object) = made {
            let calls = self.by_spend.remove(key).unwrap_or_default();
            self.by_spend.entry(object.clone()).or_default().extend(calls);
            if self.excused.contains(key) {
                self.excused.insert(object.clone());
            }
            self.made.insert(key.to_owned(), object.clone());
            return self.check_spend(&object);
        }
        Ok(())
    }

    /// A row of the vendor's journal.
    pub(super) fn moved(&mut self, row: &Movement) -> Checked {
        let amount = row.amount * CENT;
        let intent = row.source.as_ref().filter(|source| source.starts_with("pi_"));
        let spend = match (row.outcome, intent, &row.idempotency_key) {
            (MovementOutcome::None, ..) => return Ok(()),
            (_, Some(intent), _) => intent.clone(),
            (MovementOutcome::Moved, None, Some(key)) => {
                self.check_once(key)?;
                self.of_object.insert(row.object.clone(), key.clone());
                key.clone()
            }
            _ => self.of_object.get(&row.object).cloned().unwrap_or_default(),
        };
        let moved = self.journal.entry(spend.clone()).or_default();
        if row.outcome == MovementOutcome::Moved {
            moved.gross += amount;
            moved.net += amount;
        } else {
            moved.net -= amount;
        }
        let total: i64 = self.journal.values().map(|moved| moved.net).sum();
        if total > self.total_cap + self.excess.0 {
            return Err(format!(
                "the vendor has moved {total}, and the cap is {}",
                self.total_cap
            ));
        }
        self.check_spend(&spend)
    }

    /// No other key has moved money for the same spend.
    fn check_once(&self, key: &str) -> Checked {
        let Some(identity) = self.identities.get(key) else {
            return Ok(());
        };
        let twin =
            |(other, moved): (&String, &Moved)| moved.net > 0 && self.identities.get(other) == Some(identity);
        if self.journal.iter().any(twin) && !self.excused.contains(key) {
            return Err(format!(
                "the vendor was asked twice to move what is one spend: {key}"
            ));
        }
        Ok(())
    }

    /// What moved is counted or still held, and nothing else is counted.
    fn check_spend(&self, spend: &str) -> Checked {
        if self.excused.contains(spend) {
            return Ok(());
        }
        let moved = self.journal.get(spend).copied().unwrap_or_default();
        let (used, held) = self.of_spend(spend);
        if used > moved.gross {
            return Err(format!(
                "{spend}: {used} are counted as used, and the vendor moved {}",
                moved.gross
            ));
        }
        if used + held < moved.net {
            return Err(format!(
                "{spend}: the vendor moved {}, and only {used} are counted and {held} held for it",
                moved.net
            ));
        }
        Ok(())
    }

    fn of_spend(&self, spend: &str) -> (i64, i64) {
        let calls = self
            .by_spend
            .get(spend)
            .into_iter()
            .flatten()
            .filter_map(|id| self.calls.get(id));
        calls.fold((0, 0), |sum, call| (sum.0 + call.used, sum.1 + call.held))
    }

    /// The server's data is another now: what it held when it was copied.
    pub(super) fn replaced(&mut self, store: &Store) -> Checked {
        let before = std::mem::take(&mut self.calls);
        let spends = std::mem::take(&mut self.by_spend);
        self.sums.clear();
        for key in store.keys_with(CALLS) {
            let call = self.read(store.text(&key, None).unwrap_or_default())?;
            self.put(key.strip_prefix(CALLS).unwrap_or_default(), call);
        }
        for (id, old) in before {
            let new = self.calls.get(&id);
            let stands = new.is_some_and(|new| {
                new.attempts == old.attempts
                    && new.object == old.object
                    && new.used + new.held >= old.used + old.held
            });
            if !stands {
                self.excess.0 += old.used.max(old.held);
                self.excess.1 += 1;
                let spend = spends.iter().find(|(_, calls)| calls.contains(&id));
                self.excused.extend(spend.map(|(spend, _)| spend.clone()));
                self.excused.extend(old.key);
            }
        }
        // A void that was lost with the old server leaves the hold that it ended, which is on the safe side.
        let calls = &self.calls;
        self.given_up
            .retain(|id| calls.get(id).is_some_and(|call| call.state == State::Voided));
        Ok(())
    }

    /// At the end nothing is open, and the books are the journal.
    pub(super) fn closed(&self, store: &Store) -> Checked {
        for (id, call) in &self.calls {
            let excused = self
                .spend_of(call)
                .is_some_and(|spend| self.excused.contains(&spend));
            if (call.open || call.held != 0) && !excused {
                return Err(format!(
                    "call {id} is still {} with {} held",
                    call.state.as_str(),
                    call.held
                ));
            }
        }
        for (counter, _) in store
            .hash(COUNTERS)
            .into_iter()
            .filter(|(name, _)| !name.starts_with(HOLDS))
        {
            self.check_counter(store, &counter)?;
        }
        let spends: BTreeSet<&String> = self.journal.keys().chain(self.by_spend.keys()).collect();
        for spend in spends.into_iter().filter(|spend| !self.excused.contains(*spend)) {
            let moved = self.journal.get(spend).copied().unwrap_or_default();
            let (used, held) = self.of_spend(spend);
            if (used, held) != (moved.net, 0) {
                return Err(format!(
                    "{spend}: the vendor moved {}; {used} used and {held} held in the books",
                    moved.net
                ));
            }
        }
        Ok(())
    }

    fn read(&self, text: &str) -> Result<Call, String> {
        let call: Reservation = serde_json::from_str(text).map_err(|e| e.to_string())?;
        let keys = self.keys.as_ref().ok_or("before its keys are known")?;
        let identity = call.identity.as_ref();
        Ok(Call {
            key: identity.map(|own| keys.vendor_key(&own.id, call.generation)),
            identity: identity.map(|own| own.id.clone()),
            object: call
                .object
                .as_ref()
                .and_then(|name| name.rsplit('|').next().map(str::to_owned)),
            state: call.state,
            open: call.holds_something(),
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
}
