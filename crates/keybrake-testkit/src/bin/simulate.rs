//! `make sim`: many seeds of the simulation, or one with its trace; with `MUTANT=…`, until that broken ledger is caught.
#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a tool of the developers'"
)]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use keybrake_testkit::sim::{Mutant, Options, Outcome, run};

/// Lines shown of the trace of a run that failed.
const LINES: usize = 60;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn mutant() -> Option<Mutant> {
    let name = std::env::var("MUTANT").ok().filter(|name| !name.is_empty())?;
    Mutant::ALL
        .into_iter()
        .find(|mutant| format!("{mutant:?}") == name)
}

fn main() -> ExitCode {
    if mutant().is_none() && std::env::var("MUTANT").is_ok_and(|name| !name.is_empty()) {
        println!("there is no such mutant; there are {:?}", Mutant::ALL);
        return ExitCode::FAILURE;
    }
    match number("SEED") {
        Some(seed) => one(seed, number("TRACE").is_some()),
        None => many(number("FIRST").unwrap_or(0), number("SEEDS").unwrap_or(10_000)),
    }
}

fn one(seed: u64, whole: bool) -> ExitCode {
    let outcome = run(&Options {
        seed,
        mutant: mutant(),
        trace: true,
    });
    let from = if whole {
        0
    } else {
        outcome.trace.len().saturating_sub(LINES)
    };
    if whole || outcome.violation.is_some() {
        for line in outcome.trace.iter().skip(from) {
            println!("{line}");
        }
    }
    show(&outcome.counts);
    match outcome.violation {
        None => {
            println!("seed {seed}: clean, {} s simulated", outcome.simulated_ms / 1_000);
            ExitCode::SUCCESS
        }
        Some(violation) => {
            println!("seed {seed}: {violation} (TRACE=1 shows all of it)");
            ExitCode::FAILURE
        }
    }
}

fn show(counts: &BTreeMap<&'static str, u64>) {
    let counts: Vec<String> = counts
        .iter()
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    println!("{}", counts.join(", "));
}

/// What many runs came to.
#[derive(Default)]
struct Tally {
    counts: BTreeMap<&'static str, u64>,
    simulated_ms: i64,
    /// Seeds that failed, and how.
    failed: BTreeMap<u64, String>,
}

impl Tally {
    fn add(&mut self, seed: u64, outcome: Outcome) {
        for (name, count) in outcome.counts {
            let sum = self.counts.entry(name).or_default();
            *sum = sum.saturating_add(count);
        }
        self.simulated_ms = self.simulated_ms.saturating_add(outcome.simulated_ms);
        if let Some(violation) = outcome.violation {
            self.failed.insert(seed, violation);
        }
    }
}

/// How it is run again.
fn command(seed: u64) -> String {
    let broken = mutant()
        .map(|mutant| format!(" MUTANT={mutant:?}"))
        .unwrap_or_default();
    format!("make sim SEED={seed}{broken}")
}

/// Runs seeds on all cores and answers what they came to. A broken ledger is caught by its first failure; otherwise every
/// seed is run, and every failure is told when it happens.
fn run_all(first: u64, seeds: u64) -> Tally {
    let bar = ProgressBar::new(seeds);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} seeds, {per_sec}, {eta} left") {
        bar.set_style(style);
    }
    let (next, caught) = (AtomicU64::new(first), AtomicBool::new(false));
    let tally: Mutex<Tally> = Mutex::default();
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let broken = mutant();
    let work = || {
        while !caught.load(Ordering::SeqCst) {
            let seed = next.fetch_add(1, Ordering::SeqCst);
            if seed >= first.saturating_add(seeds) {
                return;
            }
            let outcome = run(&Options {
                seed,
                mutant: broken,
                trace: false,
            });
            bar.inc(1);
            if let Some(violation) = &outcome.violation {
                bar.suspend(|| println!("{}: {violation}", command(seed)));
                caught.store(broken.is_some(), Ordering::SeqCst);
            } else if bar.is_hidden() && bar.position().is_multiple_of(1_000) {
                println!("{}/{seeds} seeds", bar.position());
            }
            tally
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .add(seed, outcome);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    bar.finish_and_clear();
    tally.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn many(first: u64, seeds: u64) -> ExitCode {
    let began = Instant::now();
    let tally = run_all(first, seeds);
    show(&tally.counts);
    let (hours, seconds) = (tally.simulated_ms / 3_600_000, began.elapsed().as_secs_f32());
    println!("{hours} hours simulated in {seconds:.1} s");
    let Some(failed) = tally.failed.first_key_value().map(|(seed, _)| *seed) else {
        println!("{seeds} seeds from {first}: all clean");
        return ExitCode::SUCCESS;
    };
    println!(
        "{} of {seeds} seeds failed; the end of the first one's trace:",
        tally.failed.len()
    );
    one(failed, false);
    for (seed, violation) in &tally.failed {
        println!("{}: {violation}", command(*seed));
    }
    ExitCode::FAILURE
}
