//! What this process has seen of the log, and what it wrote itself lately: what a server that comes back without it can
//! be told again.

use std::collections::VecDeque;
use std::sync::Arc;

use super::copies::{Known, Standing};
use super::recall::Unanswered;
use crate::ledger::types::Stop;

/// For how long a process remembers its own steps, in milliseconds: an hour.
const KEPT_MS: i64 = 3_600_000;
/// How many of them it remembers.
const STEPS: usize = 20_000;
/// How much memory they may take, in bytes: 16 MiB.
const BYTES: usize = 16 * 1_024 * 1_024;
/// What a remembered text takes beside its own length.
const OVERHEAD: usize = 64;
/// Steps whose answers were lost that are looked for.
const UNANSWERED: usize = 256;
/// Eras of the log that are remembered.
const ERAS: usize = 16;
/// How often a process tells that it is at work, in milliseconds.
const AT_WORK_MS: i64 = 1_000;

/// A time in which the log only grew. See `era_of` in library.lua.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Era {
    /// Its name: 12 hexadecimal digits.
    pub(super) epoch: u64,
    /// Number of the last event that was there when it began.
    pub(super) from: u64,
    /// Its own events are numbered after this.
    pub(super) start: u64,
}

impl Era {
    /// Reads `epoch:from:start`, with more after it or not.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        Some(Self {
            epoch: u64::from_str_radix(parts.next()?, 16).ok()?,
            from: parts.next()?.parse().ok()?,
            start: parts.next()?.parse().ok()?,
        })
    }
}

/// Events of an era, from one number to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) epoch: u64,
    pub(super) first: u64,
    pub(super) last: u64,
}

impl Range {
    /// How many events they are.
    pub(super) const fn count(&self) -> u64 {
        self.last.saturating_sub(self.first).saturating_add(1)
    }
}

/// What a process has seen of an era: everything after `start` up to `upto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) epoch: u64,
    pub(super) start: u64,
    pub(super) upto: u64,
}

/// A step of this process's own, as it was committed.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) events: Range,
    /// When, in ledger time.
    pub(super) at_ms: i64,
    /// Records that it wrote: name and text.
    pub(super) records: Vec<(String, Arc<str>)>,
    /// Stops that it set, or ended, by the scope's name.
    pub(super) stops: Vec<(String, Option<Stop>)>,
}

impl Done {
    fn bytes(&self) -> usize {
        let of = |(name, text): &(String, Arc<str>)| name.len().saturating_add(text.len());
        let texts = self.records.iter().map(of).fold(OVERHEAD, |sum, more| {
            sum.saturating_add(more).saturating_add(OVERHEAD)
        });
        texts.saturating_add(self.stops.len().saturating_mul(1_024))
    }
}

/// What this process knew when a person opened the ledger without it.
#[derive(Clone, Debug)]
pub(super) struct Owed {
    pub(super) by_hand: u64,
    pub(super) claims: Vec<Claim>,
}

#[derive(Debug, Default)]
pub(super) struct Past {
    /// This process's name among the clients.
    client: Option<u64>,
    /// How many editions it has named.
    editions: u64,
    /// When it last told that it is at work.
    told_ms: Option<i64>,
    /// Each with the number of its last event that this process has seen.
    eras: VecDeque<(Era, u64)>,
    /// Whether there may have been eras between these, in which this process did nothing.
    skipped: bool,
    /// With the boot clock's time of each.
    steps: VecDeque<(i64, Done)>,
    bytes: usize,
    /// Steps that were forgotten, so that each has a number for good.
    forgotten: usize,
    /// Steps that may have been written: their answers were lost.
    unanswered: Vec<Unanswered>,
    pub(super) owed: Option<Owed>,
}

impl Past {
    /// Nothing done yet, in a log that had all of these eras and no other.
    pub(super) fn in_eras(eras: &[Era]) -> Self {
        let mut past = Self::default();
        past.learn_eras(eras);
        past
    }

    /// Takes over the eras of a log that lacks nothing that this process has seen: all of them, so of each there was as
    /// much as the next began with.
    pub(super) fn learn_eras(&mut self, eras: &[Era]) {
        let next = eras.iter().skip(1).map(|era| era.from);
        // What was seen of the present one stands in what is known.
        let upto = next.chain(eras.last().map(|era| era.start));
        let seen = eras.iter().copied().zip(upto);
        self.eras = seen.skip(eras.len().saturating_sub(ERAS)).collect();
        self.skipped = false;
    }

    /// Whether the ledger is to be asked which eras there were.
    pub(super) const fn skipped_eras(&self) -> bool {
        self.skipped
    }

    /// This process's name, made at first.
    pub(super) fn client(&mut self, random: impl Fn() -> u8) -> u64 {
        let made = || u64::from_be_bytes(std::array::from_fn(|_| random()));
        *self.client.get_or_insert_with(made)
    }

    /// What names an edition that this process makes: its own name, and a number that it uses once.
    pub(super) fn new_edition(&mut self, random: impl Fn() -> u8) -> (u64, u64) {
        self.editions = self.editions.saturating_add(1);
        (self.client(random), self.editions)
    }

    /// Whether it is time to tell that this process is at work.
    pub(super) fn is_to_tell(&self, boot_ms: i64) -> bool {
        self.told_ms
            .is_none_or(|told_ms| boot_ms.saturating_sub(told_ms) >= AT_WORK_MS)
    }

    pub(super) const fn told(&mut self, boot_ms: i64) {
        self.told_ms = Some(boot_ms);
    }

    /// An answer is of this standing, and before it this was known.
    pub(super) fn stands(&mut self, known: Option<Known>, standing: &Standing) {
        if let Some(known) = known
            && standing.by_hand > known.by_hand
        {
            let claims = self.claims(known);
            if !self.steps.is_empty() {
                self.owed = Some(Owed {
                    by_hand: known.by_hand,
                    claims,
                });
            }
            // What was missing then is accepted: it is claimed no more.
            self.eras.clear();
        }
        if self.eras.back().is_some_and(|(era, _)| era.epoch == standing.run) {
            return;
        }
        if let (Some((era, upto)), Some(known)) = (self.eras.back_mut(), known)
            && era.epoch == known.run
        {
            *upto = known.last_seq;
        }
        let present = Era {
            epoch: standing.run,
            from: standing.from,
            start: standing.start,
        };
        self.eras.push_back((present, present.start));
        self.skipped = true;
        while self.eras.len() > ERAS {
            self.eras.pop_front();
        }
    }

    /// What this process has seen, era by era: of an earlier one, no more than what was there when the next began.
    pub(super) fn claims(&self, known: Known) -> Vec<Claim> {
        let next = self.eras.iter().skip(1).map(|(era, _)| era.from);
        let next = next.chain(std::iter::once(u64::MAX));
        let eras = self.eras.iter().zip(next);
        let claims = eras.map(|((era, seen), next)| Claim {
            epoch: era.epoch,
            start: era.start,
            upto: if era.epoch == known.run {
                known.last_seq
            } else {
                next.min(*seen)
            },
        });
        claims.filter(|claim| claim.upto > claim.start).collect()
    }

    /// Remembers a step; the oldest are forgotten when there are too many.
    pub(super) fn remember(&mut self, boot_ms: i64, done: Done) {
        self.bytes = self.bytes.saturating_add(done.bytes());
        self.steps.push_back((boot_ms, done));
        while let Some((at_ms, oldest)) = self.steps.front() {
            let old = boot_ms.saturating_sub(*at_ms) > KEPT_MS;
            if !old && self.steps.len() <= STEPS && self.bytes <= BYTES {
                break;
            }
            self.bytes = self.bytes.saturating_sub(oldest.bytes());
            self.forgotten = self.forgotten.saturating_add(1);
            self.steps.pop_front();
        }
    }

    /// The answer of a step was lost.
    pub(super) fn may_have_done(&mut self, step: Unanswered) {
        if !step.log.is_empty() && self.unanswered.len() < UNANSWERED {
            self.unanswered.push(step);
        }
    }

    /// The steps whose answers were lost, if there are any.
    pub(super) fn take_unanswered(&mut self) -> Option<Vec<Unanswered>> {
        (!self.unanswered.is_empty()).then(|| std::mem::take(&mut self.unanswered))
    }

    /// They were not found yet.
    pub(super) fn put_back(&mut self, steps: Vec<Unanswered>) {
        self.unanswered.extend(steps);
    }

    /// A call was not answered with a permit after all: nothing of it is to be said again. Its events stay this process's.
    pub(super) fn withdraw(&mut self, call_id: &str) {
        let name = format!("r:{call_id}");
        let of_call = |done: &Done| done.records.iter().any(|(record, _)| *record == name);
        self.unanswered.retain(|step| !of_call(&step.done));
        if let Some((_, done)) = self.steps.iter_mut().rev().find(|(_, done)| of_call(done)) {
            let before = done.bytes();
            done.records.clear();
            self.bytes = self.bytes.saturating_sub(before).saturating_add(done.bytes());
        }
    }

    /// This process's own steps among these events, in order and with their numbers, from a number on.
    pub(super) fn own<'a>(
        &'a self,
        missing: &'a Missing,
        from: usize,
    ) -> impl Iterator<Item = (usize, &'a Done)> {
        let known = from.saturating_sub(self.forgotten);
        let steps = self.steps.iter().enumerate().skip(known);
        let numbered = steps.map(|(index, (_, done))| (index.saturating_add(self.forgotten), done));
        numbered.filter(|(_, done)| missing.meets(done.events))
    }
}

/// Events that a ledger lacks. There may be thousands of ranges, and thousands of steps that are looked for in them.
#[derive(Debug)]
pub(super) struct Missing(Vec<Range>);

impl Missing {
    /// These, of which no two meet.
    pub(super) fn of(mut ranges: Vec<Range>) -> Self {
        ranges.sort_unstable_by_key(|range| (range.epoch, range.first));
        Self(ranges)
    }

    fn meets(&self, own: Range) -> bool {
        // The last that begins before this ends.
        let after = self
            .0
            .partition_point(|range| (range.epoch, range.first) <= (own.epoch, own.last));
        let before = after.checked_sub(1).and_then(|index| self.0.get(index));
        before.is_some_and(|range| range.epoch == own.epoch && own.first <= range.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(first: u64, last: u64, bytes: usize) -> Done {
        Done {
            events: Range {
                epoch: 1,
                first,
                last,
            },
            at_ms: 0,
            records: vec![("r:call".to_owned(), Arc::from("x".repeat(bytes)))],
            stops: Vec::new(),
        }
    }

    fn all(past: &Past) -> Vec<u64> {
        let everything = Missing::of(vec![Range {
            epoch: 1,
            first: 0,
            last: u64::MAX,
        }]);
        past.own(&everything, 0)
            .map(|(_, done)| done.events.first)
            .collect()
    }

    #[test]
    fn it_forgets_by_age_by_number_and_by_size() {
        let mut past = Past::default();
        past.remember(0, done(1, 1, 10));
        past.remember(KEPT_MS, done(2, 2, 10));
        assert_eq!(all(&past), [1, 2]);
        past.remember(KEPT_MS + 1, done(3, 3, 10));
        assert_eq!(all(&past), [2, 3]);
        past.remember(KEPT_MS + 1, done(4, 4, BYTES - 300));
        assert_eq!(all(&past), [3, 4]);
        past.remember(KEPT_MS + 1, done(5, 5, 200));
        assert_eq!(all(&past), [5]);
        for number in 6..=u64::try_from(STEPS).unwrap() + 5 {
            past.remember(KEPT_MS + 1, done(number, number, 1));
        }
        assert_eq!(all(&past).len(), STEPS);
    }

    #[test]
    fn own_steps_are_found_among_many_gaps() {
        let range = |epoch, first, last| Range { epoch, first, last };
        let missing = Missing::of(vec![range(2, 1, 9), range(1, 20, 29), range(1, 5, 5)]);
        let meets = |epoch, first, last| missing.meets(range(epoch, first, last));
        assert!(meets(1, 5, 5) && meets(1, 4, 6) && meets(1, 29, 40) && meets(1, 18, 20) && meets(2, 9, 9));
        assert!(
            !meets(1, 4, 4) && !meets(1, 6, 19) && !meets(1, 30, 30) && !meets(2, 10, 11) && !meets(3, 5, 5)
        );
    }

    #[test]
    fn a_claim_ends_where_the_next_era_began() {
        let era = |epoch, from, start| Era { epoch, from, start };
        let past = Past::in_eras(&[era(1, 0, 0), era(2, 90, 10_100), era(3, 10_120, 10_120)]);
        let known = Known {
            by_hand: 0,
            run: 3,
            last_seq: 10_125,
        };
        let claim = |epoch, start, upto| Claim { epoch, start, upto };
        assert_eq!(
            past.claims(known),
            [
                claim(1, 0, 90),
                claim(2, 10_100, 10_120),
                claim(3, 10_120, 10_125)
            ]
        );
        assert_eq!(
            Era::parse("00000000000a:90:10100:0123"),
            Some(era(10, 90, 10_100))
        );
    }

    /// Of what another process did in an era that this one slept through, nothing is claimed for an earlier one.
    #[test]
    fn nothing_is_claimed_of_an_era_but_what_was_seen_of_it() {
        let era = |epoch, from, start| Era { epoch, from, start };
        let known = |run, last_seq| Known {
            by_hand: 0,
            run,
            last_seq,
        };
        let claim = |epoch, start, upto| Claim { epoch, start, upto };
        let mut past = Past::in_eras(&[era(1, 0, 0)]);
        assert!(!past.skipped_eras());
        // Era 2 had events 12 to 61.
        let standing = Standing {
            run: 3,
            from: 61,
            start: 61,
            ..Standing::default()
        };
        past.stands(Some(known(1, 11)), &standing);
        assert_eq!(past.claims(known(3, 70)), [claim(1, 0, 11), claim(3, 61, 70)]);
        assert!(past.skipped_eras());
        past.learn_eras(&[era(1, 0, 0), era(2, 11, 11), era(3, 61, 61)]);
        let all = [claim(1, 0, 11), claim(2, 11, 61), claim(3, 61, 70)];
        assert_eq!(past.claims(known(3, 70)), all);
        assert!(!past.skipped_eras());
        // One that did nothing in the only era it knew has seen nothing of it.
        let mut forked = Past::in_eras(&[era(1, 0, 0)]);
        forked.stands(None, &standing);
        assert_eq!(forked.claims(known(3, 70)), [claim(3, 61, 70)]);
    }
}
