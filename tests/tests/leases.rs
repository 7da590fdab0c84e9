//! What a process decides from its leases: never more than the ledger allowed, whatever happens to the process.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use keybrake::Result;
use keybrake::clock::ManualClock;
use keybrake::journal::Journal;
use keybrake::lease::LeasedLedger;
use keybrake::ledger::{Ledger, MemoryLedger, Proof, State, StopScope};
use keybrake_tests::books;
use keybrake_tests::fleet::books_agree;
use keybrake_tests::leasing::{Fleet, OVER_MS, TTL_MS, done};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// The third call of a kind makes a lease worth it; from then on the ledger is asked when the lease is renewed.
#[tokio::test]
async fn calls_of_a_kind_are_decided_from_a_lease() {
    let fleet = Fleet::new(10_000).await;
    let process = fleet.process();
    fleet.warm(&process).await;
    assert_eq!(fleet.asked(), (3, 1));
    for _ in 0..10 {
        fleet.spend(&process).await.unwrap();
    }
    assert_eq!(fleet.asked(), (3, 1));
    assert_eq!(fleet.used_and_held().await, (3, 16));
    process.renew().await;
    assert_eq!(fleet.asked(), (3, 2));
    let (used, held) = fleet.used_and_held().await;
    assert_eq!(
        (used, held),
        (13, 32),
        "it was half empty, so that more is asked for"
    );
    let rows = fleet.rows().await;
    assert_eq!(rows.len(), 13);
    assert!(rows.iter().all(|row| row.note("state") == Some("settled")));
    // Nothing was done since: it is given back, with the next round.
    process.renew().await;
    assert_eq!(fleet.used_and_held().await, (13, 0));
    books_agree(&*fleet.ledger).await;
}

/// A process that was frozen finds its lease's time over by the clock that goes on while it sleeps.
#[tokio::test]
async fn a_frozen_holder_spends_nothing_after_its_lease_expired() {
    let fleet = Fleet::new(160).await;
    let process = fleet.process();
    fleet.warm(&process).await;
    let under_way = fleet.call(&process).await.unwrap();
    fleet.clock.advance_ms(TTL_MS - 1);
    fleet.spend(&process).await.unwrap();
    assert_eq!(fleet.asked(), (3, 1), "to the last millisecond");
    fleet.clock.advance_ms(1);
    fleet.spend(&process).await.unwrap();
    assert_eq!(fleet.asked(), (4, 1), "the ledger is asked");

    // Long enough for others to have what was forfeited counted.
    fleet.clock.advance_ms(OVER_MS);
    fleet.ledger.sweep(100).await.unwrap();
    let (used, held) = fleet.used_and_held().await;
    assert_eq!((used, held), (3 + 16 + 1, 0));
    // What it did before is told late, and what is under way can still be settled.
    process.renew().await;
    process.settle(done(&under_way)).await.unwrap();
    assert_eq!(fleet.used_and_held().await, (20, 0));
    let rows = fleet.rows().await;
    let late = rows
        .iter()
        .filter(|row| row.metadata.contains_key("late"))
        .count();
    assert_eq!((rows.len(), late), (6, 2));
    assert!(
        rows.iter().all(|row| row.note("state") == Some("settled")),
        "{rows:#?}"
    );
    books_agree(&*fleet.ledger).await;
}

/// What a killed process wrote down is told by whoever comes next, once its leases are over.
#[tokio::test]
async fn a_killed_holders_lease_is_forfeited_and_its_rows_are_told_by_another() {
    let dir = tempfile::tempdir().unwrap();
    let journal_dir = dir.path().join("journal");
    let fleet = Fleet::in_file(dir.path(), 800).await;
    let process = fleet.journaling(&journal_dir).await;
    fleet.warm(&process).await;
    fleet.spend(&process).await.unwrap();
    process.renew().await;
    for _ in 0..4 {
        fleet.spend(&process).await.unwrap();
    }
    let under_way = fleet.call(&process).await.unwrap();
    // Its end: nothing more is told. (A process that is killed leaves its files unlocked.)
    drop(process);

    let journal = Journal::of(&*fleet.ledger, &journal_dir).await.unwrap().unwrap();
    let early = journal.deliver(&*fleet.ledger).await.unwrap();
    assert_eq!((early.delivered, early.left), (0, 1), "its lease is not over yet");
    fleet.clock.advance_ms(OVER_MS);
    fleet.ledger.sweep(100).await.unwrap();
    let after = fleet.used_and_held().await;
    assert_eq!(after, (3 + 1 + 8, 0), "all that it had is used");
    let told = journal.deliver(&*fleet.ledger).await.unwrap();
    assert!(told.delivered >= 5 && told.left == 0, "{told:?}");
    assert_eq!(journal.deliver(&*fleet.ledger).await.unwrap().delivered, 0);
    assert_eq!(fleet.used_and_held().await, after);
    let rows = fleet.rows().await;
    let late = rows
        .iter()
        .filter(|row| row.metadata.contains_key("late"))
        .count();
    assert_eq!((rows.len(), late), (9, 5));
    let open = rows.iter().find(|row| row.call_id == under_way).unwrap();
    assert_eq!(open.note("state"), Some("held"));
    fleet.clock.advance_ms(200_000);
    fleet.ledger.sweep(100).await.unwrap();
    let call = fleet.ledger.reservation(&under_way).await.unwrap().unwrap();
    assert_eq!((call.state, fleet.used_and_held().await), (State::Unknown, after));
    books_agree(&*fleet.ledger).await;
}

/// Whatever a vendor answers, the ledger gets it: what a lease cannot judge becomes a hold first.
#[tokio::test]
async fn an_end_that_a_lease_cannot_judge_is_the_ledgers() {
    let fleet = Fleet::new(800).await;
    let process = fleet.process();
    fleet.warm(&process).await;
    let call = fleet.call(&process).await.unwrap();
    let answer = process
        .settle(books::settlement(&call, Proof::Accepted))
        .await
        .unwrap();
    assert_eq!(answer.state, State::Pending);
    let known = fleet.ledger.reservation(&call).await.unwrap().unwrap();
    assert_eq!(known.state, State::Pending);
    let unsent = fleet.call(&process).await.unwrap();
    let answer = process
        .settle(books::settlement(&unsent, Proof::NeverSent))
        .await
        .unwrap();
    assert_eq!(answer.state, State::Voided);
    process.give_back().await;
    assert_eq!(fleet.used_and_held().await, (4, 0));
    books_agree(&*fleet.ledger).await;
}

/// Answers of the ledger that are lost neither count twice nor lose a call.
#[tokio::test]
async fn a_lost_answer_is_asked_for_again() {
    let fleet = Fleet::new(8_000).await;
    let process = fleet.process();
    fleet.warm(&process).await;
    for _ in 0..5 {
        fleet.spend(&process).await.unwrap();
    }
    fleet.ledger.deaf.store(true, Ordering::SeqCst);
    process.renew().await;
    for _ in 0..5 {
        fleet.spend(&process).await.unwrap();
    }
    process.renew().await;
    fleet.ledger.deaf.store(false, Ordering::SeqCst);
    process.give_back().await;
    assert_eq!(fleet.used_and_held().await, (13, 0));
    assert_eq!(fleet.rows().await.len(), 13);
    books_agree(&*fleet.ledger).await;
}

/// A stop is known with the next renewal at the latest; the ledger refuses by the stop's own name.
#[tokio::test]
async fn a_stopped_holder_gives_back_and_is_refused() {
    let fleet = Fleet::new(800).await;
    let process = fleet.process();
    fleet.warm(&process).await;
    fleet.spend(&process).await.unwrap();
    let scope = StopScope::Run("run_1".to_owned());
    let (stopped, ()) = tokio::join!(fleet.ledger.stop(scope, books::admin()), process.renew());
    stopped.unwrap();
    process.renew().await;
    assert_eq!(fleet.call(&process).await, Err("Stopped".to_owned()));
    assert_eq!(fleet.used_and_held().await, (4, 0));
}

/// One that leaves the last units of a budget to the ledger, so that they can be spent by anybody.
#[tokio::test]
async fn several_holders_spend_a_cap_to_the_last_unit() {
    const CAP: i64 = 500;
    let fleet = Fleet::new(CAP).await;
    let processes: Vec<LeasedLedger> = (0..8).map(|_| fleet.process()).collect();
    let mut spent = 0;
    loop {
        let mut exceeded = 0;
        for process in &processes {
            for _ in 0..7 {
                match fleet.spend(process).await {
                    Ok(_) => spent += 1,
                    Err(code) if code == "CapExceeded" => exceeded += 1,
                    Err(code) => assert_eq!(code, "CapHeld"),
                }
            }
            process.renew().await;
            fleet.clock.advance_ms(10);
        }
        if exceeded == 8 * 7 {
            break;
        }
    }
    let (reserves, leases) = fleet.asked();
    println!("{spent} calls: {reserves} asked of the ledger, {leases} steps of leases");
    assert_eq!((spent, fleet.used_and_held().await), (CAP, (CAP, 0)));
    books_agree(&*fleet.ledger).await;
}

/// What may happen to a process, or to time.
#[derive(Clone, Debug)]
enum Happens {
    /// It makes so many calls; every third is left under way.
    Calls(u8),
    /// What it has under way ends, sent or not.
    Ends(bool),
    Renews,
    GivesBack,
    /// Killed: another takes its place.
    Dies,
    Passes(i64),
    /// The ledger's answers to leases are lost, or heard again.
    Deaf(bool),
    Sweep,
}

fn happenings() -> impl Strategy<Value = Vec<(usize, Happens)>> {
    let one = prop_oneof![
        8 => (1..12_u8).prop_map(Happens::Calls),
        3 => any::<bool>().prop_map(Happens::Ends),
        5 => Just(Happens::Renews),
        1 => Just(Happens::GivesBack),
        1 => Just(Happens::Dies),
        4 => prop_oneof![1..150_i64, 150..400_i64, 1_000..4_000_i64].prop_map(Happens::Passes),
        1 => any::<bool>().prop_map(Happens::Deaf),
        1 => Just(Happens::Sweep),
    ];
    proptest::collection::vec((0..3_usize, one), 1..60)
}

/// Lets it happen to a process with these calls under way; answers by how many more calls left, or fewer.
async fn happen(
    fleet: &Fleet,
    (process, under_way): &mut (LeasedLedger, Vec<String>),
    happens: &Happens,
) -> Result<i64> {
    let mut left = 0;
    match happens {
        Happens::Calls(calls) => {
            for number in 0..*calls {
                let Ok(id) = fleet.call(process).await else {
                    continue;
                };
                left += 1;
                if number % 3 == 2 {
                    under_way.push(id);
                } else {
                    process.settle(done(&id)).await?;
                }
            }
        }
        Happens::Ends(sent) => {
            for id in std::mem::take(under_way) {
                let settlement = if *sent {
                    done(&id)
                } else {
                    books::settlement(&id, Proof::NeverSent)
                };
                // While answers are lost, the ledger may not know of the call yet: it stays under way.
                match process.settle(settlement).await {
                    Ok(_) => left -= i64::from(!sent),
                    Err(_) => under_way.push(id),
                }
            }
        }
        Happens::Renews => process.renew().await,
        Happens::GivesBack => process.give_back().await,
        Happens::Dies => {
            *process = fleet.process();
            under_way.clear();
        }
        Happens::Passes(ms) => fleet.clock.advance_ms(*ms),
        Happens::Deaf(deaf) => fleet.ledger.deaf.store(*deaf, Ordering::SeqCst),
        Happens::Sweep => drop(fleet.ledger.sweep(100).await?),
    }
    Ok(left)
}

/// Plays a sequence against a cap; says what went wrong.
async fn play(happenings: &[(usize, Happens)], returns: bool) -> Result<(), String> {
    const CAP: i64 = 100;
    let open = |clock: Arc<ManualClock>| Arc::new(MemoryLedger::new(clock).unwrap()) as Arc<dyn Ledger>;
    let fleet = Fleet::on(open, CAP, returns).await;
    let mut processes: Vec<(LeasedLedger, Vec<String>)> =
        (0..3).map(|_| (fleet.process(), Vec::new())).collect();
    // Calls that were let through and not certified never to have left.
    let mut left = 0_i64;
    for (number, happens) in happenings {
        let Some(process) = processes.get_mut(*number) else {
            continue;
        };
        left += happen(&fleet, process, happens)
            .await
            .map_err(|e| e.to_string())?;
        if left > CAP {
            return Err(format!("{left} calls left under a cap of {CAP}"));
        }
        let (used, held) = fleet.used_and_held().await;
        if used + held > CAP || used + held < left {
            return Err(format!(
                "{used} used and {held} held of {CAP}, and {left} calls left"
            ));
        }
    }
    // Everybody gives back; what nobody can give back is forfeited.
    fleet.ledger.deaf.store(false, Ordering::SeqCst);
    for (process, _) in &processes {
        process.give_back().await;
    }
    fleet.clock.advance_ms(200_000);
    fleet.ledger.sweep(1_000).await.map_err(|e| e.to_string())?;
    let (used, held) = fleet.used_and_held().await;
    if used < left || used > CAP || held != 0 {
        return Err(format!(
            "in the end {used} used and {held} held, and {left} calls left"
        ));
    }
    let report = fleet.ledger.verify().await.map_err(|e| e.to_string())?;
    if !report.differences.is_empty() || !report.chain_ok {
        return Err(format!("{report:?}"));
    }
    Ok(())
}

fn first_failure(cases: u32, returns: bool) -> Option<String> {
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let outcome = TestRunner::new_with_rng(config, rng).run(&happenings(), |happenings| {
        let played = runtime.block_on(play(&happenings, returns));
        played.map_err(TestCaseError::fail)
    });
    outcome.err().map(|failure| failure.to_string())
}

/// Under any interleaving of calls, renewals, lost answers, deaths and time.
#[test]
fn leases_never_let_more_through_than_the_cap() {
    let failure = first_failure(600, false);
    assert!(failure.is_none(), "{}", failure.unwrap_or_default());
}

/// A ledger that gives back what a dead process had leased is found out by the same test.
#[test]
fn a_ledger_that_returns_leases_which_ran_out_is_caught() {
    let failure = first_failure(600, true);
    println!("{}", failure.as_deref().unwrap_or("not caught"));
    assert!(failure.is_some());
}
