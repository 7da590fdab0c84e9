//! A restore says which events it stands for, by their eras: other events under the same numbers are still missed, and
//! whoever reports only afterwards misses nothing that was restored.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use keybrake::audit::drain::trim;
use keybrake::audit::{Archive, Drain, DrainOptions};
use keybrake::error::ErrorKind;
use keybrake::ledger::redis::RedisLedger;
use keybrake::ledger::{KeyRecord, Ledger, Life};
use keybrake_testkit::redis::{Persistence, Snapshot};
use keybrake_tests::archives::{Place, drain};
use keybrake_tests::books::{DOLLAR, admin, call, reserve};
use keybrake_tests::fleet::{Fleet, books_agree, used_and_held};
use keybrake_tests::restoring::{hold, restore};

/// A fleet with an archive, and a ledger with a key of $50.
async fn archived() -> (Fleet, Archive, Place, RedisLedger, KeyRecord) {
    let fleet = Fleet::start(Persistence::Always);
    let place = Place::sqlite();
    let archive = place.open().await;
    let (ledger, key) = fleet.with_key(50 * DOLLAR).await;
    (fleet, archive, place, ledger, key)
}

/// A newcomer's ledger on a server that came back with this data, which a person opened without what is lacking.
async fn opened_by_hand(fleet: &mut Fleet, data: &Snapshot) -> RedisLedger {
    fleet.server.replace_data(data).unwrap();
    fleet.server.restart().unwrap();
    let newcomer = fleet.open();
    assert!(newcomer.open_by_hand(admin()).await.unwrap());
    newcomer
}

/// The archive has events of before a person opened the ledger without them; live processes have seen others under the same
/// numbers since. Whichever backup comes back then, the restore speaks for none of the latter.
#[tokio::test]
async fn a_forked_archive_hides_nothing_that_a_live_process_did() {
    for backup_of_before_the_fork in [true, false] {
        let (mut fleet, archive, _place, lost, key) = archived().await;
        hold(&lost, &key, "before").await;
        let before_the_fork = fleet.server.copy_data().unwrap();
        for number in 0..6 {
            hold(&lost, &key, &format!("archived {number}")).await;
        }
        drain(&lost, &archive, 100).await;
        drop(lost);
        // Nobody is left who saw them: their numbers are given to others.
        let live = opened_by_hand(&mut fleet, &before_the_fork).await;
        hold(&live, &key, "since 0").await;
        let since_the_fork = fleet.server.copy_data().unwrap();
        for number in 1..9 {
            hold(&live, &key, &format!("since {number}")).await;
        }
        let witness = fleet.open();
        hold(&witness, &key, "of the witness").await;
        let backup = if backup_of_before_the_fork {
            &before_the_fork
        } else {
            &since_the_fork
        };
        fleet.server.replace_data(backup).unwrap();
        fleet.server.restart().unwrap();

        // One that has seen all of it reports first, so the ledger knows what is missing; then comes the restore; and only
        // then the one whose events they were.
        let refused = reserve(&witness, call(&key, "early", DOLLAR)).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::LedgerRecovering, "{refused}");
        let restorer = fleet.open();
        let restored = restore(&restorer, &archive).await;
        assert_eq!((restored.calls, restored.life), (6, Life::Closed));
        hold(&live, &key, "after").await;
        assert_eq!(
            used_and_held(&live).await,
            (0, (1 + 6 + 9 + 1 + 1) * DOLLAR),
            "before the fork: {backup_of_before_the_fork}"
        );
        books_agree(&live).await;
    }
}

/// As after a failover in which the process that wrote died: the other had seen its events, and knows only its own.
#[tokio::test]
async fn who_reports_after_a_restore_lacks_nothing_that_was_restored() {
    for data_is_gone in [false, true] {
        let (mut fleet, archive, _place, dead, key) = archived().await;
        let live = fleet.open();
        hold(&live, &key, "seen").await;
        let yesterday = fleet.server.copy_data().unwrap();
        for number in 0..4 {
            hold(&dead, &key, &format!("of the dead {number}")).await;
        }
        hold(&live, &key, "of the live").await;
        drain(&dead, &archive, 100).await;
        hold(&live, &key, "undrained").await;
        if data_is_gone {
            fleet.server.command(&["FLUSHALL"]).unwrap();
            // Without a master key only a process that had it open can restore it.
            let restored = restore(&dead, &archive).await;
            assert_eq!((restored.calls, restored.not_archived.len()), (6, 0));
        } else {
            fleet.server.replace_data(&yesterday).unwrap();
            fleet.server.restart().unwrap();
            let restorer = fleet.open();
            let restored = restore(&restorer, &archive).await;
            assert_eq!((restored.calls, restored.life), (5, Life::Closed));
        }
        drop(dead);
        // What it lacked is there when it asks for the first time, or is its own.
        let key = live.key("vk_1").await.unwrap().unwrap();
        hold(&live, &key, "after").await;
        assert_eq!(used_and_held(&live).await, (0, 8 * DOLLAR));
        assert_eq!(live.missing_events().await.unwrap(), []);
        books_agree(&live).await;
    }
}

/// What only the dead process did after the last drain is missed all the same.
#[tokio::test]
async fn what_the_archive_lacks_is_still_missed_after_a_restore() {
    let (mut fleet, archive, _place, dead, key) = archived().await;
    let live = fleet.open();
    hold(&live, &key, "seen").await;
    let yesterday = fleet.server.copy_data().unwrap();
    hold(&dead, &key, "archived").await;
    drain(&dead, &archive, 100).await;
    hold(&dead, &key, "undrained").await;
    let lost_seq = dead.info().await.unwrap().last_seq;
    hold(&live, &key, "of the live").await;
    drop(dead);
    fleet.server.replace_data(&yesterday).unwrap();
    fleet.server.restart().unwrap();
    let restorer = fleet.open();
    assert_eq!(restore(&restorer, &archive).await.calls, 1);
    let refused = reserve(&live, call(&key, "after", DOLLAR)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::LedgerRecovering);
    assert_eq!(live.missing_events().await.unwrap(), [(lost_seq, lost_seq)]);
}

/// A drainer that came after the ledger had lost a revocation took the key as it was before; the act itself is in the archive.
#[tokio::test]
async fn a_revocation_that_was_drained_and_lost_is_restored() {
    let (mut fleet, archive, _place, dead, key) = archived().await;
    hold(&dead, &key, "before").await;
    let yesterday = fleet.server.copy_data().unwrap();
    dead.revoke(&key.id, admin()).await.unwrap();
    drain(&dead, &archive, 100).await;
    drop(dead);
    let newcomer = opened_by_hand(&mut fleet, &yesterday).await;
    hold(&newcomer, &key, "since").await;
    // Somebody else's archive has it too, and what both need no more is gone: all keys are read again over the gap.
    let other = Place::sqlite();
    drain(&newcomer, &other.open().await, 100).await;
    hold(&newcomer, &key, "later").await;
    trim(&newcomer, 0).await.unwrap();
    let options = DrainOptions {
        accept_gap: true,
        ..DrainOptions::default()
    };
    let mut late = Drain::new(&newcomer, &archive, options).await.unwrap();
    late.run(|_| {}).await.unwrap();
    let kept = archive.logs().await.unwrap().remove(0);
    assert!(
        archive
            .notes(kept.log)
            .await
            .unwrap()
            .iter()
            .any(|note| note.kind == "gap")
    );
    fleet.server.command(&["FLUSHALL"]).unwrap();
    assert_eq!(restore(&newcomer, &archive).await.keys, 1);
    let restored = newcomer.key(&key.id).await.unwrap().unwrap();
    assert!(restored.revoked_at_ms.is_some(), "{restored:?}");
}
