//! What this process remembers of the ledger, so that most decisions need one round trip. Never trusted: every copy
//! that a step reads is compared when the step is committed.

use std::collections::BTreeMap;
use std::sync::Arc;

use hashlink::LruCache;
use redis::Cmd;

use super::past::{Era, Past};
use super::records::{self, Record};
use crate::error::{Error, Result};
use crate::ledger::rules::JUMP_MS;
use crate::ledger::store::Counter;
use crate::ledger::types::{Stop, StopScope};

/// Records remembered by a process.
const RECORDS: usize = 20_000;
/// Counters remembered by a process.
const COUNTERS: usize = 10_000;

/// A record as it was last seen.
#[derive(Clone, Debug)]
pub(super) struct Copy {
    /// Its text; empty where there is none.
    pub(super) text: Arc<str>,
    pub(super) record: Record,
    /// Of which [age](Copies::age) it is known to be what the ledger has.
    age: u64,
}

impl Copy {
    pub(super) const fn new(text: Arc<str>, record: Record) -> Self {
        Self { text, record, age: 0 }
    }
}

/// How the ledger stood at an answer.
#[derive(Clone, Debug, Default)]
pub(super) struct Standing {
    pub(super) now_ms: i64,
    /// A test's ledger, whose clock stands still.
    pub(super) fixed: bool,
    pub(super) groups_version: u64,
    pub(super) stops_version: u64,
    pub(super) last_seq: u64,
    pub(super) open: bool,
    /// How often it was opened by hand.
    pub(super) by_hand: u64,
    /// The era of the log.
    pub(super) run: u64,
    /// How many events there were when it began.
    pub(super) from: u64,
    /// After which number its own events begin.
    pub(super) start: u64,
    /// A name, never used twice, for the state of everything that seldom changes: the stops, the versions and runs here,
    /// and the records of which [`records::has_edition`] is true.
    pub(super) edition: Arc<str>,
}

/// What is remembered of the ledger's log, for the server to compare with what it holds: `behind` in eras.lua.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Known {
    pub(super) by_hand: u64,
    pub(super) run: u64,
    pub(super) last_seq: u64,
}

impl Known {
    /// As it is sent.
    pub(super) fn put(self, command: &mut Cmd) {
        command
            .arg(self.by_hand)
            .arg(format!("{:012x}", self.run))
            .arg(self.last_seq);
    }
}

#[derive(Debug)]
pub(super) struct Copies {
    records: LruCache<String, Copy>,
    /// Goes up when the edition of the last answer is another than that of the one before: what was certain is not any more.
    age: u64,
    counters: LruCache<String, Counter>,
    pub(super) stops: Option<Arc<BTreeMap<StopScope, Stop>>>,
    /// The last answer's, and this machine's boot clock then.
    standing: Option<(Standing, i64)>,
    /// Of what an open ledger answered, the most events.
    known: Option<Known>,
    /// What this process has seen and done.
    pub(super) past: Past,
    /// Set when the server's clock jumped, until a person accepts it: by how much, in milliseconds.
    jumped_ms: Option<i64>,
    /// When a person last accepted the clock, as this process took note of it.
    accepted: Option<Vec<u64>>,
}

impl Default for Copies {
    fn default() -> Self {
        Self {
            records: LruCache::new(RECORDS),
            age: 1,
            counters: LruCache::new(COUNTERS),
            stops: None,
            standing: None,
            known: None,
            past: Past::default(),
            jumped_ms: None,
            accepted: None,
        }
    }
}

impl Copies {
    /// Without a bound, for a look at a whole ledger.
    pub(super) fn of_everything() -> Self {
        Self {
            records: LruCache::new_unbounded(),
            counters: LruCache::new_unbounded(),
            ..Self::default()
        }
    }

    /// Nothing remembered of the ledger but what this process has seen and done.
    pub(super) fn anew(past: Past) -> Self {
        Self {
            past,
            ..Self::default()
        }
    }

    pub(super) fn record(&mut self, name: &str) -> Option<&Copy> {
        self.records.get(name)
    }

    pub(super) fn learn(&mut self, name: &str, text: &str) -> Result<()> {
        let record = records::parse(name, text)?;
        self.remember(name.to_owned(), Copy::new(Arc::from(text), record), true);
        Ok(())
    }

    /// Takes over what the ledger has, for `certain` at the last answer.
    pub(super) fn remember(&mut self, name: String, mut copy: Copy, certain: bool) {
        copy.age = if certain { self.age } else { 0 };
        self.records.insert(name, copy);
    }

    pub(super) fn counter(&mut self, name: &str) -> Option<Counter> {
        self.counters.get(name).copied()
    }

    pub(super) fn learn_counter(&mut self, name: &str, counter: Counter) {
        self.counters.insert(name.to_owned(), counter);
    }

    /// Whether a record that changes with the edition is certainly what this process has of it, while the edition is the
    /// one of the last answer.
    pub(super) fn is_certain(&self, name: &str, copy: &Copy) -> bool {
        copy.age == self.age && records::has_edition(name) && !copy.text.is_empty()
    }

    /// Takes note that the ledger had this text when its edition was this one.
    pub(super) fn confirm(&mut self, edition: &str, name: &str, text: &str) {
        let age = self.age;
        if self.is_at(edition)
            && let Some(copy) = self.records.get_mut(name)
            && *copy.text == *text
        {
            copy.age = age;
        }
    }

    /// Whether the last answer was of this edition.
    pub(super) fn is_at(&self, edition: &str) -> bool {
        let standing = self.standing.as_ref();
        !edition.is_empty() && standing.is_some_and(|(standing, _)| *standing.edition == *edition)
    }

    /// A step of this process made another edition of this one, and changed what it then remembers.
    pub(super) fn edited(&mut self, before: &str, edition: &Arc<str>) {
        if self.is_at(before)
            && let Some((standing, _)) = &mut self.standing
        {
            standing.edition = Arc::clone(edition);
        }
    }

    /// Takes over how the ledger stands, and looks whether its clock kept pace with this machine's boot clock, which
    /// never jumps.
    pub(super) fn stand(&mut self, standing: Standing, boot_ms: i64) {
        if !self.is_at(&standing.edition) {
            self.age = self.age.saturating_add(1);
        }
        if let Some((before, before_boot_ms)) = &mut self.standing {
            let version = |of: &Standing| (of.stops_version, of.by_hand, of.run);
            if version(&standing) != version(before) {
                self.stops = None;
            }
            let passed_ms = boot_ms.saturating_sub(*before_boot_ms);
            let expected_ms = before.now_ms.saturating_add(passed_ms);
            let jump_ms = standing.now_ms.saturating_sub(expected_ms);
            if jump_ms.saturating_abs() > JUMP_MS {
                // The last time that could be trusted stays what the next answer is compared with.
                *before = Standing {
                    now_ms: before.now_ms,
                    ..standing
                };
                self.jumped_ms = Some(jump_ms);
                return;
            }
        }
        if self.standing.is_none() {
            // Nothing says that the stops have not changed since they were copied.
            self.stops = None;
        }
        self.jumped_ms = None;
        self.standing = Some((standing, boot_ms));
    }

    /// The ledger's time at the last answer; nothing for a test's ledger.
    pub(super) fn told_ms(&self) -> Option<i64> {
        let (standing, _) = self.standing.as_ref()?;
        (!standing.fixed).then_some(standing.now_ms)
    }

    /// What this process remembers of the log.
    pub(super) const fn known(&self) -> Option<Known> {
        self.known
    }

    /// What this process remembered of the log before it forgot the rest.
    pub(super) const fn known_before(&mut self, known: Option<Known>) {
        self.known = known;
    }

    /// Takes note of how many events there are. Only an answer before which the server `compared` them with what this
    /// process knew takes it into another run; and what a closed ledger holds is no memory of its last state.
    pub(super) fn know(&mut self, standing: &Standing, compared: bool) {
        if !standing.open {
            return;
        }
        let now = Known {
            by_hand: standing.by_hand,
            run: standing.run,
            last_seq: standing.last_seq,
        };
        match &mut self.known {
            // Answers may be read in another order than they were given.
            Some(known) if (known.by_hand, known.run) == (now.by_hand, now.run) => {
                known.last_seq = known.last_seq.max(now.last_seq);
            }
            Some(_) if !compared => {}
            known => {
                self.past.stands(*known, standing);
                *known = Some(now);
            }
        }
    }

    /// Takes over the eras that an open ledger lists, if it is as far as this process: then it lacks nothing of them.
    pub(super) fn learn_eras(&mut self, standing: &Standing, eras: &[Era]) {
        let known = self.known.map(|known| (known.by_hand, known.run));
        if standing.open && known == Some((standing.by_hand, standing.run)) {
            self.past.learn_eras(eras);
        }
    }

    /// Whether the server's clock could not be trusted at the last answer.
    pub(super) const fn jumped(&self) -> bool {
        self.jumped_ms.is_some()
    }

    /// Trusts the clock if a person has accepted it since it was last trusted here. `times` is the record of that, with
    /// the ledger's time last. That never goes back, so what was accepted later has a later time, or the same while it
    /// stands still because the server's clock was set back.
    pub(super) fn accepted(&mut self, times: &[u64]) {
        let trusted_ms = self
            .standing
            .as_ref()
            .map_or(i64::MIN, |(standing, _)| standing.now_ms);
        let later = times
            .last()
            .is_some_and(|at_ms| at_ms.cast_signed() >= trusted_ms);
        if later && self.accepted.as_deref() != Some(times) {
            self.trust_clock();
        }
        self.accepted = Some(times.to_vec());
    }

    /// Trusts the server's clock as it stands.
    pub(super) fn trust_clock(&mut self) {
        self.jumped_ms = None;
        self.standing = None;
        self.stops = None;
    }

    /// How the ledger stood when it last answered, with its time as it must be by now.
    ///
    /// # Errors
    /// `LedgerUnavailable` when the server's clock jumped and nobody has accepted it.
    pub(super) fn standing(&self, boot_ms: i64) -> Result<Option<Standing>> {
        if let Some(jump_ms) = self.jumped_ms {
            return Err(Error::ledger(format!(
                "the clock of the Redis server jumped by {} s; nothing was sent. Check the clock, then accept it \
                 by hand: keybrake doctor --accept-clock",
                jump_ms.checked_div(1_000).unwrap_or(0)
            )));
        }
        Ok(self.standing.as_ref().map(|(standing, then_boot_ms)| {
            let passed_ms = if standing.fixed {
                0
            } else {
                boot_ms.saturating_sub(*then_boot_ms).max(0)
            };
            Standing {
                now_ms: standing.now_ms.saturating_add(passed_ms),
                ..standing.clone()
            }
        }))
    }

    /// After an answer that was lost, nothing that it may have changed is known.
    pub(super) fn forget(&mut self, names: impl IntoIterator<Item = String>) {
        for name in names {
            self.records.remove(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(now_ms: i64, stops_version: u64) -> Standing {
        Standing {
            now_ms,
            stops_version,
            open: true,
            ..Standing::default()
        }
    }

    /// A stop may have been set while the clock was being accepted.
    #[test]
    fn stops_are_asked_for_again_once_the_clock_is_trusted_again() {
        let mut copies = Copies::default();
        copies.stand(at(1_000, 1), 0);
        copies.stops = Some(Arc::default());
        copies.trust_clock();
        assert!(copies.stops.is_none());
        // An answer that was on its way brings them back, and another says that there are later ones.
        copies.stops = Some(Arc::default());
        copies.stand(at(2_000, 2), 1_000);
        assert!(copies.stops.is_none());
    }

    #[test]
    fn a_clock_is_accepted_once() {
        let mut copies = Copies::default();
        copies.stand(at(1_000_000, 1), 0);
        let jumped = |copies: &mut Copies| {
            // The ledger's time stands still, and this machine's clock does not.
            copies.stand(at(1_000_000, 1), 400_000);
            copies.jumped()
        };
        assert!(jumped(&mut copies));
        copies.accepted(&[6, 900_000]);
        assert!(copies.jumped(), "accepted before it jumped");
        copies.accepted(&[7, 1_000_000]);
        assert!(!copies.jumped());
        copies.stand(at(1_000_000, 1), 0);
        assert!(jumped(&mut copies), "another jump");
        copies.accepted(&[7, 1_000_000]);
        assert!(copies.jumped(), "accepted already");
        copies.accepted(&[9, 1_000_000]);
        assert!(!copies.jumped());
    }
}
