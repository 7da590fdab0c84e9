//! Outcomes of calls that the ledger does not know: its server may have lost them, and somebody may say them again.

use std::sync::Arc;

use keybrake::clock::{Clock as _, SystemClock};
use keybrake::journal::Journal;
use keybrake::ledger::sqlite::{SqliteLedger, SqliteOptions};
use keybrake_tests::books::{self, DAY_MS, DOLLAR, call, charged, lifetime};
use keybrake_tests::fleet::{books_agree, used_and_held};

#[tokio::test]
async fn the_outcome_of_a_call_that_the_ledger_lost_waits_until_it_is_said_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("spend.db");
    let clock = Arc::new(SystemClock);
    let ledger =
        SqliteLedger::open(path.to_str().unwrap(), "default", clock, SqliteOptions::default()).unwrap();
    let key = books::key(&ledger, "vk_1", &[lifetime("vk_1", 20 * DOLLAR)])
        .await
        .unwrap();
    let journal = Journal::of(&ledger, &directory.path().join("journal"))
        .await
        .unwrap()
        .unwrap();
    let journal = Arc::new(journal);
    let now_ms = SystemClock.now_ms();
    journal.append(charged("lost", DOLLAR), now_ms).await.unwrap();
    for _ in 0..2 {
        let done = journal.deliver(&ledger).await.unwrap();
        assert_eq!(
            (done.delivered, done.set_aside, done.left, done.unknown),
            (0, 0, 1, 1),
            "{done:?}"
        );
        assert!(done.why.unwrap().contains("no call lost"));
    }

    // As an archive says it again, or a process that was idle.
    books::reserve(&ledger, call(&key, "lost", DOLLAR))
        .await
        .unwrap()
        .unwrap();
    let done = journal.deliver(&ledger).await.unwrap();
    assert_eq!((done.delivered, done.left), (1, 0), "{done:?}");
    assert_eq!(used_and_held(&ledger).await, (DOLLAR, 0));
    books_agree(&ledger).await;

    // Not for ever.
    let long_ago = now_ms - 36 * DAY_MS;
    journal.append(charged("gone", DOLLAR), long_ago).await.unwrap();
    let done = journal.deliver(&ledger).await.unwrap();
    assert_eq!((done.delivered, done.set_aside, done.left), (0, 1, 0), "{done:?}");
}
