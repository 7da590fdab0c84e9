//! Do the books agree: checkpoint plus later events against the counters, and a signed, hash-chained checkpoint
//! when they do.

use std::collections::BTreeMap;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use super::step::{BUCKET_MS, Step, internal, split_bucket, sum};
use crate::error::Result;
use crate::ledger::events::EventFilter;
use crate::ledger::shared::{hex, unhex};
use crate::ledger::store::{Checkpoint, Store};
use crate::ledger::types::{CounterDifference, CounterName, LedgerSecret, VerifyReport};

/// Events read at a time.
const PAGE: u32 = 10_000;
const SIGNED_AS: &[u8] = b"keybrake checkpoint v1";

/// Compares the counters with the last checkpoint plus later events, and adds a checkpoint when they agree.
pub fn verify(store: &mut dyn Store, clock_ms: i64, secret: &LedgerSecret) -> Result<VerifyReport> {
    let mut step = Step::begin(store, clock_ms)?;
    let chain_ok = chain_holds(&step.store.checkpoints()?, secret)?;
    let last = step.store.last_checkpoint()?;
    let from_seq = last.as_ref().map_or(0, |checkpoint| checkpoint.seq);
    let mut by_events: BTreeMap<CounterName, (i64, i64)> = BTreeMap::new();
    for (name, used, held) in last.iter().flat_map(|checkpoint| checkpoint.counters.iter()) {
        by_events.insert(name.clone(), (*used, *held));
    }
    let (events, gapless) = add_events(&mut step, from_seq, &mut by_events)?;
    let (counters, mut differences) = compare(&mut step, &by_events)?;
    differences.extend(compare_rolling(&mut step, &by_events)?);
    let report = VerifyReport {
        events,
        from_seq,
        counters,
        differences,
        chain_ok: chain_ok && gapless,
    };
    if report.chain_ok && report.differences.is_empty() && (events > 0 || last.is_none()) {
        let checkpoint = sign(&step, last.as_ref(), by_events, secret)?;
        step.store.put_checkpoint(&checkpoint)?;
    }
    step.finish()?;
    Ok(report)
}

/// Adds the deltas of all later events; answers how many events there were, and whether none is missing.
fn add_events(
    step: &mut Step<'_>,
    from_seq: u64,
    totals: &mut BTreeMap<CounterName, (i64, i64)>,
) -> Result<(u64, bool)> {
    let mut seen = 0_u64;
    let mut last_seq = from_seq;
    let mut gapless = true;
    loop {
        let page = step.store.events(&EventFilter {
            after_seq: last_seq,
            limit: PAGE,
            ..EventFilter::default()
        })?;
        let Some(newest) = page.last() else { break };
        let newest = newest.seq;
        for event in &page {
            gapless &= event.follows(last_seq);
            last_seq = event.seq;
            seen = seen.saturating_add(1);
            for delta in &event.deltas {
                let total = totals.entry(delta.counter.clone()).or_default();
                *total = (sum(total.0, delta.used)?, sum(total.1, delta.held)?);
            }
        }
        last_seq = last_seq.max(newest);
    }
    Ok((seen, gapless && last_seq == step.meta.last_seq))
}

fn compare(
    step: &mut Step<'_>,
    by_events: &BTreeMap<CounterName, (i64, i64)>,
) -> Result<(u64, Vec<CounterDifference>)> {
    let mut in_ledger: BTreeMap<CounterName, (i64, i64)> = step
        .store
        .counters()?
        .into_iter()
        .map(|(name, counter)| (name, (counter.used, counter.held)))
        .collect();
    let counters = u64::try_from(in_ledger.len()).unwrap_or(u64::MAX);
    let mut differences = Vec::new();
    for (name, expected) in by_events {
        let found = in_ledger.remove(name).unwrap_or_default();
        if found != *expected {
            differences.push(difference(name, *expected, found));
        }
    }
    // What is left has no event at all.
    for (name, found) in in_ledger {
        if found != (0, 0) {
            differences.push(difference(&name, (0, 0), found));
        }
    }
    Ok((counters, differences))
}

fn difference(counter: &CounterName, by_events: (i64, i64), in_ledger: (i64, i64)) -> CounterDifference {
    CounterDifference {
        counter: counter.clone(),
        by_events,
        in_ledger,
    }
}

/// A rolling sum is what its buckets add up to, from its oldest on.
fn compare_rolling(
    step: &mut Step<'_>,
    by_events: &BTreeMap<CounterName, (i64, i64)>,
) -> Result<Vec<CounterDifference>> {
    let mut expected: BTreeMap<String, (i64, i64)> = BTreeMap::new();
    let mut found: BTreeMap<String, (i64, i64)> = BTreeMap::new();
    for (name, (used, held)) in by_events {
        let Ok((family, bucket_ms)) = split_bucket(name) else {
            continue;
        };
        let Some(rolling) = step.store.rolling(family)? else {
            continue;
        };
        let total = expected.entry(family.to_owned()).or_default();
        found.insert(family.to_owned(), (rolling.sum.used, rolling.sum.held));
        if bucket_ms >= rolling.oldest_ms && bucket_ms.rem_euclid(BUCKET_MS) == 0 {
            *total = (sum(total.0, *used)?, sum(total.1, *held)?);
        }
    }
    Ok(expected
        .into_iter()
        .zip(found.into_values())
        .filter(|((_, expected), found)| expected != found)
        .map(|((family, expected), found)| {
            let counter = CounterName::from(format!("{family}|rolling"));
            difference(&counter, expected, found)
        })
        .collect())
}

/// Whether every checkpoint is signed by this ledger's secret and names the one before it.
fn chain_holds(checkpoints: &[Checkpoint], secret: &LedgerSecret) -> Result<bool> {
    let mut previous = String::new();
    let mut last_seq = None;
    for checkpoint in checkpoints {
        let whole = checkpoint_is_signed(checkpoint, secret)?
            && checkpoint.previous == previous
            && last_seq.is_none_or(|last| last < checkpoint.seq);
        if !whole {
            return Ok(false);
        }
        previous = checkpoint_hash(checkpoint);
        last_seq = Some(checkpoint.seq);
    }
    Ok(true)
}

fn sign(
    step: &Step<'_>,
    last: Option<&Checkpoint>,
    totals: BTreeMap<CounterName, (i64, i64)>,
    secret: &LedgerSecret,
) -> Result<Checkpoint> {
    let mut checkpoint = Checkpoint {
        v: 1,
        seq: step.meta.last_seq,
        at_ms: step.now_ms,
        counters: totals
            .into_iter()
            .map(|(name, (used, held))| (name, used, held))
            .collect(),
        previous: last.map(checkpoint_hash).unwrap_or_default(),
        signature: String::new(),
    };
    checkpoint.signature = hex(&keyed(&checkpoint, secret)?.finalize().into_bytes());
    Ok(checkpoint)
}

fn keyed(checkpoint: &Checkpoint, secret: &LedgerSecret) -> Result<Hmac<Sha256>> {
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&secret.0)
        .map_err(|e| internal("a checkpoint cannot be signed").because(e))?;
    mac.update(SIGNED_AS);
    mac.update(&content(checkpoint));
    Ok(mac)
}

/// Whether a checkpoint was signed with this secret.
pub fn checkpoint_is_signed(checkpoint: &Checkpoint, secret: &LedgerSecret) -> Result<bool> {
    let mac = keyed(checkpoint, secret)?;
    Ok(unhex(&checkpoint.signature).is_some_and(|signature| mac.verify_slice(&signature).is_ok()))
}

/// The checkpoint's hash, which the next one names.
pub fn checkpoint_hash(checkpoint: &Checkpoint) -> String {
    let mut hasher = Sha256::new();
    hasher.update(content(checkpoint));
    hasher.update(checkpoint.signature.as_bytes());
    hex(&hasher.finalize())
}

/// Everything but the signature, each text with its length before it, so that no two contents read the same.
fn content(checkpoint: &Checkpoint) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(256);
    bytes.extend_from_slice(&checkpoint.v.to_be_bytes());
    bytes.extend_from_slice(&checkpoint.seq.to_be_bytes());
    bytes.extend_from_slice(&checkpoint.at_ms.to_be_bytes());
    let mut text = |text: &str| {
        let length = u64::try_from(text.len()).unwrap_or(u64::MAX);
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(text.as_bytes());
    };
    text(&checkpoint.previous);
    for (name, used, held) in &checkpoint.counters {
        text(name);
        text(&used.to_string());
        text(&held.to_string());
    }
    bytes
}
