//! An archive that somebody wrote to beside its drainers restores nothing, and says what was altered.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use keybrake::audit::Archive;
use keybrake::audit::archive::{ArchiveReport, Signatures};
use keybrake::clock::SystemClock;
use keybrake::error::ErrorKind;
use keybrake::ledger::{Ledger, MemoryLedger};
use keybrake_testkit::redis::Persistence;
use keybrake_tests::archives::{Place, drain, lively};
use keybrake_tests::books::{self, DOLLAR, admin, charged, lifetime};
use keybrake_tests::fleet::{Fleet, used_and_held};
use keybrake_tests::restoring::{hold, refusal, restore};

fn sql(place: &Place, text: &str) {
    let url = place.url();
    let file = rusqlite::Connection::open(url.trim_start_matches("sqlite:")).unwrap();
    file.execute_batch(text).unwrap();
    assert!(file.changes() > 0, "{text}");
}

async fn verified(ledger: &dyn Ledger, archive: &Archive) -> ArchiveReport {
    let state = archive.logs().await.unwrap().remove(0);
    archive.verify(&state, Some(ledger.secret())).await.unwrap()
}

#[tokio::test]
async fn a_record_or_an_event_that_was_altered_is_named_and_nothing_is_restored() {
    let ledger = MemoryLedger::new(std::sync::Arc::new(SystemClock)).unwrap();
    let place = Place::sqlite();
    let archive = place.open().await;
    lively(&ledger, "one").await;
    books::key(&ledger, "vk_gone", &[lifetime("vk_gone", DOLLAR)])
        .await
        .unwrap();
    ledger.revoke("vk_gone", admin()).await.unwrap();
    ledger
        .put_budget(lifetime("vk_1", 5 * DOLLAR), admin())
        .await
        .unwrap();
    drain(&ledger, &archive, 7).await;
    let report = verified(&ledger, &archive).await;
    assert!(
        report.is_clean() && report.signatures == Signatures::Good,
        "{report:?}"
    );
    assert_eq!(restore(&ledger, &archive).await.calls, 0);

    for table in ["keybrake_record", "keybrake_event"] {
        sql(
            &place,
            &format!("CREATE TABLE kept_{table} AS SELECT * FROM {table}; UPDATE {table} SET n = n"),
        );
    }
    let alterations = [
        // A hold that was never taken, a key that was never revoked, a cap that is higher.
        (
            "call one-held",
            "UPDATE keybrake_record SET value = json_set(value, '$.held', 0) WHERE name = 'one-held'",
        ),
        (
            "key vk_gone",
            "UPDATE keybrake_record SET value = json_set(value, '$.revoked_at_ms', NULL) WHERE kind = 'key' AND name = 'vk_gone'",
        ),
        (
            "budget ",
            "UPDATE keybrake_record SET value = json_set(value, '$.cap', 900000000) WHERE kind = 'budget'",
        ),
        (
            "event ",
            "UPDATE keybrake_event SET value = replace(value, '\"cap\":5000000', '\"cap\":9000000') WHERE value LIKE '%\"cap\":5000000%'",
        ),
        // Another call's record under its name.
        (
            "call one-held",
            "UPDATE keybrake_record SET (value, seal) = (SELECT value, seal FROM keybrake_record WHERE name = 'one-declined') WHERE name = 'one-held'",
        ),
        // An event that was lost, under a number that no drainer gives.
        (
            "event -1",
            "INSERT INTO keybrake_event SELECT log, -1, seq, history + 9, 1, at_ms, kind, call_id, joining_id, run, value, seal FROM keybrake_event WHERE call_id = 'one-held' LIMIT 1",
        ),
        // Nobody finds the event by its call any more.
        (
            "event ",
            "UPDATE keybrake_event SET call_id = '' WHERE call_id = 'one-held'",
        ),
    ];
    for (name, how) in alterations {
        sql(&place, how);
        let report = verified(&ledger, &archive).await;
        assert!(!report.is_clean(), "{how}");
        assert!(
            report.altered.iter().any(|altered| altered.starts_with(name)),
            "{how}: {:?}",
            report.altered
        );
        let (kind, text) = refusal(&ledger, &archive).await;
        assert_eq!(kind, ErrorKind::LedgerCorrupt, "{how}");
        assert!(text.contains(name), "{text}");
        for table in ["keybrake_record", "keybrake_event"] {
            sql(
                &place,
                &format!("DELETE FROM {table}; INSERT INTO {table} SELECT * FROM kept_{table}"),
            );
        }
    }
    assert!(verified(&ledger, &archive).await.is_clean());
}

/// Sealed by the ledger, and no longer true: its events go on after it.
#[tokio::test]
async fn a_record_of_before_is_not_taken_for_the_last() {
    let fleet = Fleet::start(Persistence::None);
    let place = Place::sqlite();
    let archive = place.open().await;
    let (ledger, key) = fleet.with_key(50 * DOLLAR).await;
    hold(&ledger, &key, "small").await;
    hold(&ledger, &key, "other").await;
    drain(&ledger, &archive, 100).await;
    sql(
        &place,
        "CREATE TABLE before AS SELECT * FROM keybrake_record WHERE name = 'small'; UPDATE before SET n = n",
    );
    ledger.settle(charged("small", 7 * DOLLAR)).await.unwrap();
    let settled_seq = ledger.info().await.unwrap().last_seq;
    drain(&ledger, &archive, 100).await;
    sql(
        &place,
        "DELETE FROM keybrake_record WHERE name = 'small'; INSERT INTO keybrake_record SELECT * FROM before",
    );
    fleet.server.command(&["FLUSHALL"]).unwrap();
    let restored = restore(&ledger, &archive).await;
    assert_eq!(restored.calls, 1, "the other");
    assert!(
        restored.not_archived.contains(&(settled_seq, settled_seq)),
        "{restored:?}"
    );
    assert_eq!(used_and_held(&ledger).await, (0, DOLLAR));
}
