//! `make sim`: many seeds of the simulation, or one with its trace.
#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a tool of the developers'"
)]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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
            println!("seed {seed}: {violation}");
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

fn many(first: u64, seeds: u64) -> ExitCode {
    let began = Instant::now();
    let bar = ProgressBar::new(seeds);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} seeds, {per_sec}, {eta} left") {
        bar.set_style(style);
    }
    let (next, failed) = (AtomicU64::new(first), AtomicBool::new(false));
    let found: Mutex<Option<(u64, Outcome)>> = Mutex::new(None);
    let all: Mutex<(BTreeMap<&'static str, u64>, i64)> = Mutex::default();
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let broken = mutant();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !failed.load(Ordering::SeqCst) {
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
                    if let Ok(mut all) = all.lock() {
                        for (name, count) in &outcome.counts {
                            let sum = all.0.entry(name).or_default();
                            *sum = sum.saturating_add(*count);
                        }
                        all.1 = all.1.saturating_add(outcome.simulated_ms);
                    }
                    if outcome.violation.is_some() {
                        failed.store(true, Ordering::SeqCst);
                        if let Ok(mut found) = found.lock() {
                            found.get_or_insert((seed, outcome));
                        }
                    }
                }
            });
        }
    });
    bar.finish_and_clear();
    if let Ok(all) = all.lock() {
        show(&all.0);
        let (hours, seconds) = (all.1 / 3_600_000, began.elapsed().as_secs_f32());
        println!("{hours} hours simulated in {seconds:.1} s");
    }
    if let Ok(Some((seed, _))) = found.into_inner() {
        println!("seed {seed} failed: make sim SEED={seed} (TRACE=1 shows all of it)");
        return one(seed, false);
    }
    println!("{seeds} seeds from {first}: all clean");
    ExitCode::SUCCESS
}
