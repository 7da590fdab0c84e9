//! The proof that an archive is whole, without its ledger: every event is there, every checkpoint names the one before
//! it, and each says of the counters what the events up to it add up to.

use std::collections::BTreeMap;

use serde::Serialize;

use super::seal::Sealer;
use super::{Archive, ForkNote, LogState};
use crate::error::Result;
use crate::ledger::rules::{checkpoint_hash, checkpoint_is_signed};
use crate::ledger::{Checkpoint, CounterDifference, CounterName, Event, LedgerSecret};

/// Events read at a time.
const PAGE: u32 = 5_000;
/// Differences that are told.
const MOST: usize = 100;

type Totals = BTreeMap<CounterName, (i64, i64)>;

/// What is known of the checkpoints' signatures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Signatures {
    /// All were made with the ledger's secret.
    Good,
    /// One was not.
    Wrong,
    /// The ledger's secret was not there to check them with.
    NotChecked,
}

/// What the verification of an archive found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ArchiveReport {
    /// Events of the ledger's present log that were read.
    pub events: u64,
    /// Checkpoints that were compared with them.
    pub checkpoints: u64,
    /// The event number of the last one: what comes after it is not proven yet.
    pub proven_seq: u64,
    /// Whether no event is missing but those of the gaps, and each checkpoint names the one before it.
    pub chain_ok: bool,
    /// Whether the signatures were made with the ledger's secret.
    pub signatures: Signatures,
    /// Counters of which a checkpoint says something else than the events up to it; at most 100.
    pub differences: Vec<CounterDifference>,
    /// Events (by the archive's numbers) and records that no drainer of this ledger wrote, or not like this; at most 100.
    /// Not looked for without the ledger's secret.
    pub altered: Vec<String>,
    /// What the ledger lost after it was drained, and what was never drained.
    pub notes: Vec<ForkNote>,
}

impl ArchiveReport {
    /// Whether nothing is wrong with what is there.
    pub fn is_clean(&self) -> bool {
        self.chain_ok
            && self.differences.is_empty()
            && self.altered.is_empty()
            && self.signatures != Signatures::Wrong
    }
}

/// The counters as the events up to one add up to, while they are read.
struct Sum {
    totals: Totals,
    /// Unknown after a gap, until a checkpoint says what the counters were.
    known: bool,
    seq: u64,
}

impl Archive {
    /// Verifies a log. With the ledger's secret the checkpoints' signatures and the seals of events and records are checked
    /// too.
    ///
    /// # Errors
    /// As [`logs`](Self::logs).
    pub async fn verify(&self, state: &LogState, secret: Option<&LedgerSecret>) -> Result<ArchiveReport> {
        self.verify_telling(state, secret, &mut |_| {}).await
    }

    /// As [`verify`](Self::verify); `seen` is told how many events were read.
    pub(crate) async fn verify_telling(
        &self,
        state: &LogState,
        secret: Option<&LedgerSecret>,
        seen: &mut (dyn FnMut(u64) + Send),
    ) -> Result<ArchiveReport> {
        let checkpoints = self.checkpoints(state.log).await?;
        let notes = self.notes(state.log).await?;
        let mut report = ArchiveReport {
            events: 0,
            checkpoints: 0,
            proven_seq: 0,
            chain_ok: chain_holds(&checkpoints),
            signatures: signatures(&checkpoints, secret)?,
            differences: Vec::new(),
            altered: Vec::new(),
            notes,
        };
        let mut sum = Sum {
            totals: Totals::new(),
            known: true,
            seq: 0,
        };
        let mut next = checkpoints.iter().peekable();
        loop {
            let page = self.present_events(state.log, sum.seq, PAGE).await?;
            if page.is_empty() {
                break;
            }
            for event in &page {
                while let Some(checkpoint) = next.next_if(|checkpoint| checkpoint.seq < event.seq) {
                    sum.meet(checkpoint, &mut report);
                }
                sum.add(event, &mut report);
            }
            seen(report.events);
        }
        for checkpoint in next {
            sum.meet(checkpoint, &mut report);
        }
        report.chain_ok &= sum.seq == state.seq;
        if let Some(secret) = secret {
            report.altered = self.altered(state.log, &Sealer::new(secret, &state.name)).await?;
        }
        Ok(report)
    }
}

impl Sum {
    fn add(&mut self, event: &Event, report: &mut ArchiveReport) {
        report.events = report.events.saturating_add(1);
        if !event.follows(self.seq) {
            let told = report.notes.iter().any(|note| {
                note.kind == "gap"
                    && note.after_seq <= self.seq
                    && note.upto_seq >= event.seq.saturating_sub(1)
            });
            report.chain_ok &= told;
            self.known = false;
        }
        self.seq = event.seq;
        for delta in &event.deltas {
            let total = self.totals.entry(delta.counter.clone()).or_default();
            let (used, held) = (total.0.checked_add(delta.used), total.1.checked_add(delta.held));
            match (used, held) {
                (Some(used), Some(held)) => *total = (used, held),
                _ => report.chain_ok = false,
            }
        }
    }

    /// Compares a checkpoint with the events up to it, or takes its word where events are missing.
    fn meet(&mut self, checkpoint: &Checkpoint, report: &mut ArchiveReport) {
        let said: Totals = checkpoint
            .counters
            .iter()
            .map(|(name, used, held)| (name.clone(), (*used, *held)))
            .collect();
        // A checkpoint in the middle of a gap, or beyond what was drained, says nothing of these events.
        if checkpoint.seq != self.seq {
            if checkpoint.seq > self.seq {
                self.known = false;
            }
            return;
        }
        if self.known {
            report.checkpoints = report.checkpoints.saturating_add(1);
            report.proven_seq = checkpoint.seq;
            let names = said.keys().chain(self.totals.keys());
            let names: std::collections::BTreeSet<&CounterName> = names.collect();
            for name in names {
                let value = |of: &Totals| of.get(name).copied().unwrap_or_default();
                let (by_events, in_ledger) = (value(&self.totals), value(&said));
                if by_events != in_ledger && report.differences.len() < MOST {
                    report.differences.push(CounterDifference {
                        counter: name.clone(),
                        by_events,
                        in_ledger,
                    });
                }
            }
        }
        (self.totals, self.known) = (said, true);
    }
}

fn chain_holds(checkpoints: &[Checkpoint]) -> bool {
    let mut previous = String::new();
    for checkpoint in checkpoints {
        if checkpoint.previous != previous {
            return false;
        }
        previous = checkpoint_hash(checkpoint);
    }
    true
}

fn signatures(checkpoints: &[Checkpoint], secret: Option<&LedgerSecret>) -> Result<Signatures> {
    let Some(secret) = secret else {
        return Ok(Signatures::NotChecked);
    };
    for checkpoint in checkpoints {
        if !checkpoint_is_signed(checkpoint, secret)? {
            return Ok(Signatures::Wrong);
        }
    }
    Ok(Signatures::Good)
}
