//! The simulation of a fleet: some hundreds of seeds are clean, and every broken ledger is caught. `make sim` runs more.

#![expect(clippy::panic, reason = "a failed seed is a failed test")]

use keybrake_testkit::sim::{Mutant, Options, Outcome, run};

fn seed(seed: u64, mutant: Option<Mutant>) -> Outcome {
    run(&Options {
        seed,
        mutant,
        trace: false,
    })
}

fn all_clean(seeds: std::ops::Range<u64>) {
    let (mut charges, mut killed) = (0, 0);
    for number in seeds {
        let outcome = seed(number, None);
        if let Some(violation) = outcome.violation {
            panic!("make sim SEED={number}: {violation}");
        }
        charges += outcome.counts.get("movements").copied().unwrap_or(0);
        killed += outcome.counts.get("killed").copied().unwrap_or(0);
    }
    // A simulation in which nothing happens proves nothing.
    assert!(charges > 100, "only {charges} movements of money");
    assert!(killed > 10, "only {killed} processes were killed");
}

#[test]
fn seeds_0_to_99_are_clean() {
    all_clean(0..100);
}

#[test]
fn seeds_100_to_199_are_clean() {
    all_clean(100..200);
}

#[test]
fn seeds_200_to_299_are_clean() {
    all_clean(200..300);
}

#[test]
fn a_seed_is_the_same_run_every_time() {
    for number in [5, 17, 42] {
        let once = || {
            run(&Options {
                seed: number,
                mutant: None,
                trace: true,
            })
        };
        let (first, second) = (once(), once());
        assert!(first.trace.len() > 20, "seed {number} does nothing");
        assert_eq!(first.trace, second.trace, "seed {number}");
    }
}

/// Every broken ledger is caught, within this many seeds that are clean without the mistake.
const SEEDS: u64 = 400;

fn caught(mutant: Mutant) {
    let Some(number) = (0..SEEDS).find(|number| seed(*number, Some(mutant)).violation.is_some()) else {
        panic!("{mutant:?} survives {SEEDS} seeds");
    };
    let violation = seed(number, None).violation;
    assert_eq!(
        violation, None,
        "seed {number} is not clean without {mutant:?} either"
    );
}

macro_rules! mutants {
    ($($name:ident: $mutant:ident),+ $(,)?) => {
        $(
            #[test]
            fn $name() {
                caught(Mutant::$mutant);
            }
        )+

        #[test]
        fn every_mutant_has_its_test() {
            let tested = [$(Mutant::$mutant),+];
            for mutant in Mutant::ALL {
                assert!(tested.contains(&mutant), "{mutant:?} is never built in");
            }
        }
    };
}

mutants! {
    caught_release_on_timeout: ReleaseOnTimeout,
    caught_two_step_check: TwoStepCheck,
    caught_settle_twice: SettleTwice,
    caught_client_clock: ClientClock,
    caught_early_absence: EarlyAbsence,
    caught_void_on_joined_429: VoidOnJoined429,
    caught_replay_as_void: ReplayAsVoid,
    caught_send_window_from_answer: SendWindowFromAnswer,
    caught_open_after_restart: OpenAfterRestart,
    caught_no_event: NoEvent,
    caught_stale_stops: StaleStops,
    caught_reassert_as_reserve: ReassertAsReserve,
    caught_late_reserve: LateReserve,
}
