//! Restores that are refused: to a ledger that is another or in use, and from archives that prove nothing.

use std::sync::Arc;

use keybrake::SystemClock;
use keybrake::audit::Archive;
use keybrake::error::ErrorKind;
use keybrake::ledger::redis::RedisLedger;
use keybrake::ledger::{Ledger as _, Life};
use keybrake_testkit::redis::Persistence;
use keybrake_tests::archives::{Place, drain};
use keybrake_tests::books::{DOLLAR, admin, lifetime};
use keybrake_tests::fleet::{Fleet, books_agree};
use keybrake_tests::restoring::{
    MASTER, again, assert_same, books_of, call_ids, lively, open, refusal, restore,
};

/// Somebody came before the restore, as every agent does that is started again.
#[tokio::test]
async fn an_empty_ledger_that_was_made_in_between_is_replaced_and_one_in_use_is_not() {
    let fleet = Fleet::start(Persistence::None);
    let url = fleet.url();
    let place = Place::sqlite();
    let archive = place.open().await;
    let ledger = open(&url);
    lively(&ledger).await;
    drain(&ledger, &archive, 100).await;
    let id = ledger.id().await.unwrap();
    let ids = call_ids(&ledger).await;
    let before = books_of(&ledger, &ids).await;
    fleet.server.command(&["FLUSHALL"]).unwrap();
    let early = open(&url);
    assert_ne!(early.id().await.unwrap(), id);

    let late = again(&url, &id);
    assert_eq!(restore(&late, &archive).await.life, Life::Closed);
    let refused = early
        .put_budget(lifetime("vk_1", DOLLAR), admin())
        .await
        .unwrap_err();
    assert!(
        refused.to_string().contains("another ledger stands in its place"),
        "{refused}"
    );
    late.open_by_hand(admin()).await.unwrap();
    assert_same(&books_of(&late, &ids).await, &before);

    fleet.server.command(&["FLUSHALL"]).unwrap();
    let other = open(&url);
    other.put_budget(lifetime("vk_1", DOLLAR), admin()).await.unwrap();
    let refused = RedisLedger::open_to_restore(&url, Arc::new(SystemClock), Some(MASTER), &id).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Config);
    assert!(refused.to_string().contains("another ledger stands"), "{refused}");
    // A process that had it open before is told the same.
    let (kind, text) = refusal(&late, &archive).await;
    assert_eq!(kind, ErrorKind::Config);
    assert!(text.contains("another ledger stands"), "{text}");
    assert_eq!(other.info().await.unwrap().last_seq, 1, "nothing was done to it");
}

#[tokio::test]
async fn archives_that_prove_nothing_restore_nothing() {
    let fleet = Fleet::start(Persistence::None);
    let url = fleet.url();
    let place = Place::sqlite();
    let archive = place.open().await;
    let ledger = open(&url);
    let id = ledger.id().await.unwrap();
    let (kind, text) = refusal(&ledger, &archive).await;
    assert_eq!(kind, ErrorKind::NotFound);
    assert!(text.contains("was never drained to it"), "{text}");
    lively(&ledger).await;
    books_agree(&ledger).await;
    drain(&ledger, &archive, 100).await;
    fleet.server.command(&["FLUSHALL"]).unwrap();

    let file = place.url();
    let file = file.trim_start_matches("sqlite:");
    let sql = |text: &str| {
        rusqlite::Connection::open(file)
            .unwrap()
            .execute_batch(text)
            .unwrap();
    };
    let refused = async |how: &str, back: &str, expected: (ErrorKind, &str)| {
        sql(how);
        let (kind, text) = refusal(&again(&url, &id), &archive).await;
        assert_eq!(kind, expected.0, "{text}");
        assert!(text.contains(expected.1), "{text}");
        sql(back);
    };
    sql("CREATE TABLE kept AS SELECT * FROM keybrake_event");
    let back = "DELETE FROM keybrake_event; INSERT INTO keybrake_event SELECT * FROM kept";
    let altered = "UPDATE keybrake_event SET value = replace(value, '\"used\":1000000', '\"used\":999999')";
    refused(
        altered,
        back,
        (ErrorKind::LedgerCorrupt, "not whole, or was altered"),
    )
    .await;
    refused(
        "DELETE FROM keybrake_event WHERE seq = 3",
        back,
        (ErrorKind::LedgerCorrupt, "not whole"),
    )
    .await;
    sql("CREATE TABLE signed AS SELECT * FROM keybrake_checkpoint");
    let unsigned = "DELETE FROM keybrake_checkpoint; INSERT INTO keybrake_checkpoint SELECT * FROM signed";
    let altered =
        "UPDATE keybrake_checkpoint SET value = replace(value, '\"signature\":\"', '\"signature\":\"00')";
    refused(
        altered,
        unsigned,
        (ErrorKind::Config, "were not signed with the secret"),
    )
    .await;
    let other = "UPDATE keybrake_record SET value = '00' WHERE kind = 'binding'";
    refused(other, "", (ErrorKind::Config, "with another secret")).await;
    let none = "DELETE FROM keybrake_record WHERE kind = 'binding'; DELETE FROM keybrake_checkpoint";
    refused(none, unsigned, (ErrorKind::Config, "nothing in")).await;

    // Another master key, or none; another namespace; a newer format.
    let with = |master| RedisLedger::open_to_restore(&url, Arc::new(SystemClock), master, &id);
    let wrong = with(Some(b"another key of more than 32 characters".as_slice())).unwrap();
    assert_eq!(refusal(&wrong, &archive).await.0, ErrorKind::Config);
    let none = with(None).unwrap_err();
    assert!(none.to_string().contains("set KEYBRAKE_MASTER_KEY"), "{none}");
    let elsewhere = again(&url.replace("ns=fleet", "ns=staging"), &id);
    assert_eq!(refusal(&elsewhere, &archive).await.0, ErrorKind::NotFound);
    let staging = url.replace("ns=fleet", "ns=staging");
    let found = keybrake::audit::restore::open(&staging, Arc::new(SystemClock), &archive, None);
    assert_eq!(found.await.unwrap_err().kind(), ErrorKind::NotFound);
    sql("UPDATE keybrake_archive SET v = 9");
    let newer = Archive::open_existing(&place.url()).await.unwrap_err();
    assert!(newer.to_string().contains("upgrade keybrake"), "{newer}");
    // Nothing of all that made a ledger.
    assert_eq!(ledger.life().await.unwrap(), Life::Gone);
}
