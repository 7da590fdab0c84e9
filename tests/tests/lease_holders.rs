//! Holders of many leases, of leases that the ledger will not hear of, and of calls that never end.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use keybrake::journal::Journal;
use keybrake::ledger::{HoldFilter, Ledger, Proof, State, StopScope};
use keybrake_tests::books;
use keybrake_tests::eventually;
use keybrake_tests::fleet::books_agree;
use keybrake_tests::leasing::{Fleet, OVER_MS, TTL_MS, done};

/// A permit that nobody settles is a hold by its deadline, however busy its lease is, and found before by its id.
#[tokio::test]
async fn a_permit_that_is_dropped_on_a_busy_lease_becomes_a_hold() {
    let fleet = Fleet::new(100_000).await;
    let process = fleet.process();
    fleet.warm(&process).await;
    let dropped = fleet.call(&process).await.unwrap();
    let asked_for = fleet.call(&process).await.unwrap();
    assert!(fleet.ledger.reservation(&dropped).await.unwrap().is_none());
    let found = process.reservation(&asked_for).await.unwrap().unwrap();
    assert_eq!(found.state, State::Held);
    assert!(fleet.ledger.reservation(&dropped).await.unwrap().is_none());
    // Busy for as long as a permit lives.
    let mut spent = 3;
    for _ in 0..1_310 {
        fleet.spend(&process).await.unwrap();
        spent += 1;
        fleet.clock.advance_ms(TTL_MS / 2);
        process.renew().await;
    }
    let held = process.holds(HoldFilter::default()).await.unwrap();
    assert!(held.iter().all(|hold| hold.lease.is_some()), "{held:#?}");
    for id in [&dropped, &asked_for] {
        let call = fleet.ledger.reservation(id).await.unwrap().unwrap();
        assert_eq!(
            call.state,
            State::Unknown,
            "the read may have been made, and counts"
        );
    }
    process
        .settle(books::settlement(&asked_for, Proof::NeverSent))
        .await
        .unwrap();
    process.settle(done(&dropped)).await.unwrap();
    process.give_back().await;
    assert_eq!(fleet.used_and_held().await.1, 0);
    assert!(fleet.used_and_held().await.0 > spent);
    books_agree(&*fleet.ledger).await;
}

/// Bytes in the files of what was decided from leases.
fn written_down(dir: &Path) -> u64 {
    let ledgers = std::fs::read_dir(dir).unwrap();
    let files = ledgers.flat_map(|ledger| std::fs::read_dir(ledger.unwrap().path()).unwrap());
    let lengths = files.map(|file| file.unwrap().metadata().unwrap().len());
    lengths.sum()
}

/// One lease is left to its deadline. The rows of all others go on as before, and its own are told, by anybody.
#[tokio::test]
async fn a_lease_that_the_ledger_will_not_hear_of_holds_up_no_rows() {
    let dir = tempfile::tempdir().unwrap();
    let journal_dir = dir.path().join("journal");
    let fleet = Fleet::in_file(dir.path(), 100_000).await;
    let process = fleet.journaling(&journal_dir).await;
    for _ in 0..3 {
        fleet.call_of(&process, "run_2").await;
    }
    fleet.warm(&process).await;
    assert_eq!(fleet.asked(), (6, 2), "two leases");
    let other = fleet.call_of(&process, "run_2").await;
    for _ in 0..5 {
        fleet.spend(&process).await.unwrap();
    }
    fleet.ledger.rejects.store(true, Ordering::SeqCst);
    process.renew().await;
    fleet.ledger.rejects.store(false, Ordering::SeqCst);
    let left = written_down(&journal_dir);
    assert!(left > 0);
    // It leases anew, and its files are emptied as ever.
    fleet.warm(&process).await;
    for _ in 0..20 {
        for _ in 0..5 {
            fleet.spend(&process).await.unwrap();
        }
        process.renew().await;
    }
    process.give_back().await;
    let now = written_down(&journal_dir);
    assert!(now <= left, "{left} bytes were left, and {now} are there");

    fleet.clock.advance_ms(OVER_MS);
    let journal = Journal::of(&*fleet.ledger, &journal_dir).await.unwrap().unwrap();
    let told = journal.deliver(&*fleet.ledger).await.unwrap();
    assert_eq!(told.left, 0, "{told:?}");
    assert_eq!(written_down(&journal_dir), 0);
    let rows = fleet.rows().await;
    let late = rows.iter().filter(|row| row.metadata.contains_key("late"));
    assert_eq!(late.count(), 6, "5 that ended, and one that did not");
    assert!(
        rows.iter()
            .any(|row| row.call_id == other && row.note("state") == Some("held"))
    );
    books_agree(&*fleet.ledger).await;
}

/// Leases of different kinds take their steps side by side: a round of many takes no longer than some.
#[tokio::test]
async fn many_leases_are_renewed_side_by_side() {
    let fleet = Fleet::new(1_000_000).await;
    let process = fleet.process();
    for run in 0..100 {
        for _ in 0..3 {
            let id = fleet.call_of(&process, &format!("run_{run}")).await;
            process.settle(done(&id)).await.unwrap();
        }
    }
    process.renew().await;
    let (_, leases) = fleet.asked();
    assert_eq!(leases, 100);
    let abreast = fleet.abreast();
    assert!((8..=16).contains(&abreast), "{abreast}");
    process.give_back().await;
    assert_eq!(fleet.used_and_held().await, (300, 0));
}

/// A stop by a process that has leases stands before anything is given back.
#[tokio::test]
async fn a_stop_stands_before_the_stopping_process_gives_its_leases_back() {
    let fleet = Fleet::new(10_000).await;
    let process = Arc::new(fleet.process());
    fleet.warm(&process).await;
    let gate = fleet.ledger.gate.lock().await;
    let stopping = {
        let process = Arc::clone(&process);
        tokio::spawn(async move { process.stop(StopScope::All, books::admin()).await.map(drop) })
    };
    eventually(async || !fleet.ledger.stops().await.unwrap().is_empty()).await;
    assert_eq!(fleet.used_and_held().await, (3, 16), "its lease stands");
    drop(gate);
    stopping.await.unwrap().unwrap();
    assert_eq!(fleet.used_and_held().await, (3, 0));
    assert_eq!(fleet.call(&process).await, Err("Stopped".to_owned()));
}

/// What asks for the books tells what was done, and gives nothing back.
#[tokio::test]
async fn a_look_at_the_books_leaves_leases_as_they_are() {
    let fleet = Fleet::new(10_000).await;
    let process = fleet.process();
    fleet.warm(&process).await;
    let (_, leases) = fleet.asked();
    process.usage("vk_1").await.unwrap();
    assert_eq!((fleet.used_and_held().await, fleet.asked().1), ((3, 16), leases));
    fleet.spend(&process).await.unwrap();
    for _ in 0..3 {
        process.usage("vk_1").await.unwrap();
    }
    assert_eq!(fleet.asked().1, leases + 1, "one step told it");
    let (used, held) = fleet.used_and_held().await;
    assert_eq!(used, 4);
    assert!(held > 0);
    // It was used, so the next round prolongs it, and the one after gives it back.
    process.renew().await;
    assert!(fleet.used_and_held().await.1 > 0);
    process.renew().await;
    assert_eq!(fleet.used_and_held().await, (4, 0));
}
