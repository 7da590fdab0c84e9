//! What an archive must do, whatever database it is in: each case runs on a SQLite file and on a PostgreSQL server.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a failed unwrap is a failed test"
)]

use std::collections::BTreeSet;
use std::sync::Arc;

use keybrake::audit::archive::Signatures;
use keybrake::audit::drain::trim;
use keybrake::audit::{Archive, ArchivedLog, Audit, Drain, DrainOptions, RowFilter, SpendBy, Subject};
use keybrake::clock::ManualClock;
use keybrake::ledger::{EventFilter, Ledger, MemoryLedger, State};
use keybrake_tests::archives::{Place, drain, lively, rows};
use keybrake_tests::books::{self, DOLLAR, NOW_MS};

macro_rules! on_both {
    ($($case:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::$case(&super::Place::sqlite()).await;
            })+
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::$case(&super::Place::postgres()).await;
            })+
        }
    };
}

on_both! {
    many_make_one_archive_at_once,
    the_archive_tells_the_same_as_the_ledger,
    a_trimmed_log_tells_the_same_as_before,
    what_is_drained_again_is_there_once,
    two_drainers_at_once_store_each_event_once,
    a_new_archive_behind_a_trimmed_log_says_what_it_lacks,
    records_are_those_of_the_last_event,
    an_altered_archive_is_found_out,
    no_secret_is_in_it,
    several_ledgers_share_one_archive,
    names_of_any_length_are_drained,
}

/// All at once, each on a thread of its own, as the drainers of a fleet do that is started for the first time.
async fn many_make_one_archive_at_once(place: &Place) {
    opened_at_once(&place.url());
}

/// Two that switched a new file to its write-ahead log at once were told that it was locked, or of a disk I/O error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_file_is_set_up_by_one_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    for round in 0..40 {
        let file = directory.path().join(format!("{round}.db"));
        opened_at_once(&format!("sqlite:{}", file.display()));
    }
}

fn opened_at_once(url: &str) {
    const OPENERS: usize = 6;
    let together = Arc::new(std::sync::Barrier::new(OPENERS));
    let openers: Vec<_> = (0..OPENERS)
        .map(|_| {
            let (together, url) = (Arc::clone(&together), url.to_owned());
            let runtime = tokio::runtime::Handle::current();
            std::thread::spawn(move || {
                together.wait();
                runtime
                    .block_on(Archive::open(&url))
                    .map(|archive| archive.id().to_owned())
            })
        })
        .collect();
    let ids: BTreeSet<String> = openers
        .into_iter()
        .map(|opener| opener.join().unwrap().unwrap())
        .collect();
    assert_eq!(ids.len(), 1, "all have the same archive: {ids:?}");
}

fn ledger() -> (Arc<ManualClock>, Arc<dyn Ledger>) {
    let clock = Arc::new(ManualClock::at(NOW_MS));
    let ledger = MemoryLedger::new(clock.clone()).unwrap();
    (clock, Arc::new(ledger))
}

async fn archived(ledger: &dyn Ledger, archive: &Archive) -> ArchivedLog {
    let name = keybrake::audit::archive::LogName {
        ledger: ledger.info().await.unwrap().id,
        namespace: ledger.namespace().unwrap_or_default().to_owned(),
    };
    ArchivedLog::alone(archive.clone(), name).await.unwrap()
}

/// Everything that the audit answers, as text that can be compared.
async fn answers(audit: Audit<'_>) -> Vec<String> {
    let mut told: Vec<String> = rows(audit).await.iter().map(|row| format!("{row:?}")).collect();
    for by in [SpendBy::Run, SpendBy::Agent, SpendBy::Day, SpendBy::Vendor] {
        let (lines, outlook) = audit
            .spend_and_outlook(RowFilter::default(), by, NOW_MS)
            .await
            .unwrap();
        told.push(format!("{lines:?} {outlook:?}"));
    }
    for subject in [
        Subject::Run("run_1".to_owned()),
        Subject::Call("one-charged".to_owned()),
        Subject::Call("one-joined".to_owned()),
        Subject::Call("one-too-much".to_owned()),
    ] {
        told.push(format!("{:?}", audit.why(subject, 1_000).await.unwrap().unwrap()));
    }
    told.push(format!(
        "{:?}",
        audit.cap_hits(RowFilter::default()).await.unwrap()
    ));
    told
}

async fn the_archive_tells_the_same_as_the_ledger(place: &Place) {
    let (clock, ledger) = ledger();
    lively(&*ledger, "one").await;
    clock.advance_ms(3_600_000);
    lively(&*ledger, "two").await;
    let archive = place.open().await;
    let events = ledger.info().await.unwrap().last_seq;
    assert_eq!(drain(&*ledger, &archive, 7).await, events);
    let log = archived(&*ledger, &archive).await;
    let (in_ledger, in_archive) = (
        answers(Audit::new(&*ledger)).await,
        answers(Audit::of(&log)).await,
    );
    assert!(in_ledger.len() > 16, "{in_ledger:?}");
    for (ledger, archive) in in_ledger.iter().zip(&in_archive) {
        assert_eq!(ledger, archive);
    }
    assert_eq!(in_ledger.len(), in_archive.len());
    let since = EventFilter {
        since_ms: Some(NOW_MS + 1),
        ..EventFilter::default()
    };
    let late = archive.events(1, u64::MAX >> 1, &since).await.unwrap();
    assert_eq!(late, ledger.events(since).await.unwrap());
    let report = archive
        .verify(&log.state().await.unwrap(), Some(ledger.secret()))
        .await
        .unwrap();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(
        (report.events, report.checkpoints),
        (events, 0),
        "nobody has verified yet"
    );
}

async fn a_trimmed_log_tells_the_same_as_before(place: &Place) {
    let (clock, ledger) = ledger();
    lively(&*ledger, "one").await;
    clock.advance_ms(60_000);
    lively(&*ledger, "two").await;
    let before = answers(Audit::new(&*ledger)).await;
    let archive = place.open().await;
    drain(&*ledger, &archive, 1_000).await;
    // Only what is older than half a minute.
    let kept = trim(&*ledger, 30_000).await.unwrap();
    assert!(kept.removed > 0 && kept.verified.is_some(), "{kept:?}");
    assert_eq!(ledger.backlog().await.unwrap().first_at_ms, Some(NOW_MS + 60_000));
    let log = ArchivedLog::with_ledger(archive.clone(), Arc::clone(&ledger))
        .await
        .unwrap();
    assert_eq!(answers(Audit::of(&log)).await, before);
    assert_ne!(
        rows(Audit::new(&*ledger)).await.len(),
        rows(Audit::of(&log)).await.len()
    );

    // All of it, then more calls that the archive does not have yet.
    let all = trim(&*ledger, 0).await.unwrap();
    assert!(all.removed > 0, "{all:?}");
    assert_eq!(ledger.backlog().await.unwrap().kept(), 0);
    assert_eq!(answers(Audit::of(&log)).await, before);
    let settled = books::charged("two-held", DOLLAR);
    ledger.settle(settled).await.unwrap();
    let call = rows(Audit::of(&log)).await;
    let call = call.iter().find(|row| row.call_id == "two-held").unwrap();
    assert_eq!(
        call.note("state"),
        Some("settled"),
        "its beginning is archived, its end is not"
    );
    let story = Audit::of(&log)
        .why(Subject::Call("two-held".to_owned()), 100)
        .await
        .unwrap()
        .unwrap();
    assert!(story.books.differences.is_empty(), "{story:?}");

    drain(&*ledger, &archive, 1_000).await;
    let verified = ledger.verify().await.unwrap();
    assert!(
        verified.chain_ok && verified.differences.is_empty(),
        "{verified:?}"
    );
    drain(&*ledger, &archive, 1_000).await;
    let state = log.state().await.unwrap();
    let report = archive.verify(&state, Some(ledger.secret())).await.unwrap();
    assert!(
        report.is_clean() && report.signatures == Signatures::Good,
        "{report:?}"
    );
    assert_eq!((report.checkpoints, report.proven_seq), (2, state.seq));
    let unsigned = archive.verify(&state, None).await.unwrap();
    assert!(unsigned.is_clean() && unsigned.signatures == Signatures::NotChecked);
}

async fn what_is_drained_again_is_there_once(place: &Place) {
    let (_, ledger) = ledger();
    lively(&*ledger, "one").await;
    let archive = place.open().await;
    let events = drain(&*ledger, &archive, 5).await;
    assert_eq!(drain(&*ledger, &archive, 5).await, 0);
    // Another handle, as another process opens it.
    let again = place.open().await;
    assert_eq!(again.id(), archive.id());
    assert_eq!(drain(&*ledger, &again, 5).await, 0);
    lively(&*ledger, "two").await;
    let more = drain(&*ledger, &again, 5).await;
    let state = archive.logs().await.unwrap().remove(0);
    assert_eq!(
        (state.seq, state.n, state.history),
        (events + more, events + more, 0)
    );
    let all = EventFilter::default();
    assert_eq!(
        archive.events(state.log, state.n, &all).await.unwrap(),
        ledger.events(all).await.unwrap()
    );
}

async fn two_drainers_at_once_store_each_event_once(place: &Place) {
    let (_, ledger) = ledger();
    for round in 0..12 {
        lively(&*ledger, &round.to_string()).await;
    }
    let (one, two) = (place.open().await, place.open().await);
    let (first, second) = tokio::join!(drain(&*ledger, &one, 3), drain(&*ledger, &two, 3));
    let all = EventFilter::default();
    let events = ledger.events(all.clone()).await.unwrap();
    println!("{first} and {second} of {}", events.len());
    assert_eq!(first + second, u64::try_from(events.len()).unwrap());
    assert_eq!(one.events(1, u64::MAX >> 1, &all).await.unwrap(), events);
    let backlog = ledger.backlog().await.unwrap();
    assert_eq!(backlog.archives.len(), 1, "two drainers, one archive");
    assert!(backlog.archives[one.id()].seq <= backlog.last_seq);
}

async fn a_new_archive_behind_a_trimmed_log_says_what_it_lacks(place: &Place) {
    let (_, ledger) = ledger();
    lively(&*ledger, "one").await;
    let old = Place::sqlite();
    let old_archive = old.open().await;
    let gone = drain(&*ledger, &old_archive, 1_000).await;
    trim(&*ledger, 0).await.unwrap();
    ledger.settle(books::charged("one-held", DOLLAR)).await.unwrap();
    let new = place.open().await;
    let refused = Drain::new(&*ledger, &new, DrainOptions::default())
        .await
        .unwrap()
        .step()
        .await
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains(&format!("begins at event {}", gone + 1)) && refused.contains("--accept-gap"),
        "{refused}"
    );
    // What the new one lacks is not trimmed from now on, though the old one has it.
    drain(&*ledger, &old_archive, 1_000).await;
    assert_eq!(trim(&*ledger, 0).await.unwrap().removed, 0);

    let options = DrainOptions {
        accept_gap: true,
        ..DrainOptions::default()
    };
    let mut drain = Drain::new(&*ledger, &new, options).await.unwrap();
    let step = drain.run(|_| {}).await.unwrap();
    assert_eq!((step.drained, step.state.seq), (1, gone + 1));
    let report = new.verify(&step.state, Some(ledger.secret())).await.unwrap();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(report.notes.len(), 1);
    assert_eq!((report.notes[0].after_seq, report.notes[0].upto_seq), (0, gone));
    // The keys and open holds of the time before came along.
    assert_eq!(new.keys(step.state.log).await.unwrap().len(), 1);
    assert_eq!(new.budgets(step.state.log).await.unwrap().len(), 1);
}

async fn records_are_those_of_the_last_event(place: &Place) {
    let (_, ledger) = ledger();
    lively(&*ledger, "one").await;
    let archive = place.open().await;
    drain(&*ledger, &archive, 1_000).await;
    let log = archive.logs().await.unwrap()[0].log;
    let state = async |call: &str| {
        archive
            .reservation(log, call)
            .await
            .unwrap()
            .map(|call| call.state)
    };
    assert_eq!(state("one-charged").await, Some(State::Settled));
    assert_eq!(state("one-held").await, Some(State::Held));
    assert_eq!(state("one-declined").await, Some(State::Voided));
    assert_eq!(state("one-too-much").await, None, "a refusal has no reservation");
    ledger.settle(books::charged("one-held", DOLLAR)).await.unwrap();
    let scope = keybrake::ledger::StopScope::All;
    ledger.stop(scope, books::admin()).await.unwrap();
    ledger.revoke("vk_1", books::admin()).await.unwrap();
    drain(&*ledger, &archive, 1_000).await;
    assert_eq!(state("one-held").await, Some(State::Settled));
    assert_eq!(archive.stops(log).await.unwrap(), ledger.stops().await.unwrap());
    assert_eq!(archive.keys(log).await.unwrap(), ledger.keys().await.unwrap());
    assert!(archive.keys(log).await.unwrap()[0].revoked_at_ms.is_some());
    ledger
        .resume(&keybrake::ledger::StopScope::All, books::admin())
        .await
        .unwrap();
    drain(&*ledger, &archive, 1_000).await;
    assert_eq!(archive.stops(log).await.unwrap(), []);
}

/// Runs a statement on the archive behind its back.
async fn behind_its_back(place: &Place, sql: &str) {
    match place {
        Place::Sqlite(directory) => {
            let database = rusqlite::Connection::open(directory.path().join("audit.db")).unwrap();
            assert!(database.execute(sql, []).unwrap() > 0, "{sql}");
        }
        Place::Postgres(server) => {
            let (client, connection) = tokio_postgres::connect(&server.url(), tokio_postgres::NoTls)
                .await
                .unwrap();
            let driver = tokio::spawn(connection);
            assert!(client.execute(sql, &[]).await.unwrap() > 0, "{sql}");
            drop(client);
            driver.await.unwrap().unwrap();
        }
    }
}

async fn an_altered_archive_is_found_out(place: &Place) {
    let (_, ledger) = ledger();
    lively(&*ledger, "one").await;
    ledger.verify().await.unwrap();
    let archive = place.open().await;
    drain(&*ledger, &archive, 1_000).await;
    let state = archive.logs().await.unwrap().remove(0);
    let report = async || archive.verify(&state, Some(ledger.secret())).await.unwrap();
    assert!(report().await.is_clean());
    behind_its_back(
        place,
        "UPDATE keybrake_event SET value = replace(value, '\"held\":2000000', '\"held\":1000000') WHERE kind = 'reserved'",
    )
    .await;
    let altered = report().await;
    assert!(
        !altered.is_clean() && !altered.differences.is_empty(),
        "{altered:?}"
    );
    behind_its_back(
        place,
        "UPDATE keybrake_event SET value = replace(value, '\"held\":1000000', '\"held\":2000000')
         WHERE kind = 'reserved' AND call_id = 'one-charged'",
    )
    .await;
    behind_its_back(
        place,
        "UPDATE keybrake_checkpoint SET value = replace(value, '\"at_ms\":17', '\"at_ms\":18')",
    )
    .await;
    assert_eq!(report().await.signatures, Signatures::Wrong);
    behind_its_back(place, "DELETE FROM keybrake_event WHERE n = 3").await;
    assert!(!report().await.chain_ok);
}

async fn no_secret_is_in_it(place: &Place) {
    let (_, ledger) = ledger();
    lively(&*ledger, "one").await;
    let key = books::key(&*ledger, "vk_1", &[]).await.unwrap();
    books::reserve(&*ledger, books::call(&key, "replied", DOLLAR))
        .await
        .unwrap()
        .unwrap();
    let mut settled = books::charged("replied", DOLLAR);
    settled.reply = Some(b"a recorded reply".to_vec());
    ledger.settle(settled).await.unwrap();
    assert!(
        ledger
            .reservation("replied")
            .await
            .unwrap()
            .unwrap()
            .reply
            .is_some()
    );
    let archive = place.open().await;
    drain(&*ledger, &archive, 1_000).await;
    let log = archive.logs().await.unwrap()[0].log;
    let kept = archive.reservation(log, "replied").await.unwrap().unwrap();
    assert_eq!((kept.state, kept.reply), (State::Settled, None));
    if let Place::Sqlite(directory) = place {
        for entry in std::fs::read_dir(directory.path()).unwrap() {
            use std::os::unix::fs::PermissionsExt as _;
            let entry = entry.unwrap();
            let mode = entry.metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{}", entry.path().display());
        }
        let open = directory.path().join("audit.db");
        std::fs::set_permissions(&open, open_to_all()).unwrap();
        let refused = Archive::open(&place.url()).await.unwrap_err().to_string();
        assert!(refused.contains("chmod 600"), "{refused}");
    }
}

fn open_to_all() -> std::fs::Permissions {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::Permissions::from_mode(0o644)
}

async fn several_ledgers_share_one_archive(place: &Place) {
    let ((_, one), (_, two)) = (ledger(), ledger());
    lively(&*one, "one").await;
    lively(&*two, "one").await;
    lively(&*two, "two").await;
    let archive = place.open().await;
    tokio::join!(drain(&*one, &archive, 4), drain(&*two, &archive, 4));
    assert_eq!(archive.logs().await.unwrap().len(), 2);
    for ledger in [&one, &two] {
        let log = archived(&**ledger, &archive).await;
        assert_eq!(rows(Audit::of(&log)).await, rows(Audit::new(&**ledger)).await);
    }
}

/// What a ledger of an older version wrote down unseen: no name in an event stops the drain, and each is found again.
async fn names_of_any_length_are_drained(place: &Place) {
    let (_, ledger) = ledger();
    let key = keybrake_tests::archives::key(&*ledger).await;
    // No two letters in a row that a database could make short.
    let noise = |from: u32| -> String {
        let letters = (0..6_000_u32).map(|n| (n + from).wrapping_mul(2_654_435_761) >> 7);
        letters
            .map(|n| char::from(b'!' + u8::try_from(n % 90).unwrap_or(0)))
            .collect()
    };
    let runs = [
        noise(0),
        noise(1),
        "with a \0 in it".to_owned(),
        "run_1".to_owned(),
    ];
    for (number, run) in runs.iter().enumerate() {
        let mut request = books::call(&key, &format!("{number}{}", noise(7)), DOLLAR);
        let mut facts = request.facts.as_ref().clone();
        facts.run = Some(run.clone());
        request.facts = Arc::new(facts);
        books::reserve(&*ledger, request).await.unwrap().unwrap();
    }
    let archive = place.open().await;
    assert_eq!(
        drain(&*ledger, &archive, 100).await,
        ledger.info().await.unwrap().last_seq
    );
    for run in runs {
        let of_run = EventFilter {
            run: Some(run),
            ..EventFilter::default()
        };
        let kept = archive.events(1, u64::MAX >> 1, &of_run).await.unwrap();
        assert_eq!(kept, ledger.events(of_run).await.unwrap());
        let call_id = kept[0].call_id.clone().unwrap();
        let call = archive.reservation(1, &call_id).await.unwrap().unwrap();
        assert_eq!(call.facts.call_id, call_id);
    }
}

/// What the server refuses for good is not tried for ever; what passes is.
#[tokio::test]
async fn a_database_that_refuses_for_good_says_so() {
    let (_, ledger) = ledger();
    lively(&*ledger, "one").await;
    let place = Place::postgres();
    let archive = place.open().await;
    let mut drain = Drain::new(&*ledger, &archive, DrainOptions::default())
        .await
        .unwrap();
    altered(&place, "ADD CONSTRAINT impossible CHECK (seq < 0)").await;
    let refused = drain.run(|_| {}).await.unwrap_err();
    assert_eq!(refused.kind(), keybrake::ErrorKind::Config, "{refused}");
    assert!(refused.to_string().contains("23514"), "{refused}");
    altered(&place, "DROP CONSTRAINT impossible").await;
    assert!(drain.run(|_| {}).await.unwrap().drained > 0);
}

async fn altered(place: &Place, how: &str) {
    let url = place.url();
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls)
        .await
        .unwrap();
    let driver = tokio::spawn(connection);
    let sql = format!("ALTER TABLE keybrake_event {how}");
    client.batch_execute(&sql).await.unwrap();
    drop(client);
    driver.await.unwrap().unwrap();
}
