//! A ledger in Redis that lost its data, or some of it, is told again from its archive: SQLite and PostgreSQL.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::Arc;

use keybrake::SystemClock;
use keybrake::audit::Audit;
use keybrake::audit::archive::Signatures;
use keybrake::clock::Clock as _;
use keybrake::error::ErrorKind;
use keybrake::ledger::redis::RedisLedger;
use keybrake::ledger::{EventFilter, IssueKey, KeyRecord, Ledger, Life, Proof, State, StopScope, WindowKind};
use keybrake_testkit::redis::{Persistence, RedisOptions, RedisServer};
use keybrake_tests::archives::{Place, drain, rows};
use keybrake_tests::books::{self, DOLLAR, admin, calls, charged, lifetime, read, settlement};
use keybrake_tests::fleet::{Fleet, books_agree, used_and_held};
use keybrake_tests::restoring::{
    again, assert_same, books_of, call, call_ids, count, hold, lively, only_log, open, restore, spend,
};

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
    a_ledger_whose_data_is_gone_is_told_everything_again,
    older_data_is_told_only_what_it_lacks,
    live_clients_close_the_gap_that_the_archive_leaves,
    what_was_lost_before_and_drained_is_told_too,
    a_closed_ledger_waits_for_the_rest_of_a_restore,
}

async fn a_ledger_whose_data_is_gone_is_told_everything_again(place: &Place) {
    let fleet = Fleet::start(Persistence::None);
    let url = fleet.url();
    let archive = place.open().await;
    let (before, ids, id, told, last_seq) = {
        let ledger = open(&url);
        lively(&ledger).await;
        drain(&ledger, &archive, 10).await;
        // A checkpoint, so that the signatures can be checked too.
        books_agree(&ledger).await;
        drain(&ledger, &archive, 10).await;
        let ids = call_ids(&ledger).await;
        let info = ledger.info().await.unwrap();
        let told = rows(Audit::new(&ledger)).await.len();
        (books_of(&ledger, &ids).await, ids, info.id, told, info.last_seq)
    };
    fleet.server.command(&["FLUSHALL"]).unwrap();

    let ledger = again(&url, &id);
    assert_eq!(ledger.life().await.unwrap(), Life::Gone);
    let restored = restore(&ledger, &archive).await;
    assert_eq!((restored.after_seq, restored.upto_seq), (0, last_seq));
    assert_eq!((restored.calls, restored.keys, restored.budgets), (8, 2, 3));
    assert_eq!((restored.stops, &restored.not_archived), (2, &vec![]));
    // Nobody has seen what happened after the archive's end, so it is closed, and newcomers do not open it.
    assert_eq!((restored.life, &restored.missing), (Life::Closed, &vec![]));
    let newcomer = open(&url);
    assert_eq!(newcomer.id().await.unwrap(), id);
    let key = newcomer.key("vk_1").await.unwrap().unwrap();
    let refused = books::reserve(&newcomer, call(&key, "early", DOLLAR)).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::LedgerRecovering);
    // Twice is once.
    let twice = restore(&newcomer, &archive).await;
    assert_eq!(
        (twice.calls, twice.keys, twice.budgets, twice.stops),
        (0, 0, 0, 0)
    );
    assert_eq!(twice.life, Life::Closed);

    assert!(newcomer.open_by_hand(admin()).await.unwrap());
    assert_same(&books_of(&newcomer, &ids).await, &before);
    books_agree(&newcomer).await;
    let key = newcomer.key("vk_1").await.unwrap().unwrap();
    // Identities still replay, stops and revocations stand, and the cap is what a person set.
    let repeat = books::reserve(&newcomer, call(&key, "settled", DOLLAR))
        .await
        .unwrap();
    assert_eq!(repeat.unwrap_err(), "AlreadyDone");
    let other = {
        let mut request = call(&key, "another id", DOLLAR);
        request.identity = call(&key, "settled", DOLLAR).identity;
        books::reserve(&newcomer, request).await.unwrap().unwrap_err()
    };
    assert_eq!(other, "AlreadyDone");
    let gone = newcomer.key("vk_gone").await.unwrap().unwrap();
    let revoked = books::reserve(&newcomer, call(&gone, "new", 1)).await.unwrap();
    assert_eq!(revoked.unwrap_err(), "KeyRevoked");
    let mut stopped = call(&key, "stopped", DOLLAR);
    Arc::make_mut(&mut stopped.facts).agent = Some("runaway".to_owned());
    assert_eq!(
        books::reserve(&newcomer, stopped).await.unwrap().unwrap_err(),
        "Stopped"
    );
    let mut granted = 0;
    for number in 0..20 {
        let request = call(&key, &format!("new {number}"), DOLLAR);
        granted += i64::from(books::reserve(&newcomer, request).await.unwrap().is_ok());
    }
    assert_eq!(
        granted, 12,
        "$15, of which one is spent, one held and one in doubt"
    );

    // The archive goes on beside what it has, tells each call once, and is still whole.
    drain(&newcomer, &archive, 10).await;
    books_agree(&newcomer).await;
    drain(&newcomer, &archive, 10).await;
    let state = only_log(&archive).await;
    let report = archive.verify(&state, Some(newcomer.secret())).await.unwrap();
    assert!(
        report.is_clean() && report.signatures == Signatures::Good,
        "{report:?}"
    );
    let log = keybrake::audit::ArchivedLog::alone(archive.clone(), state.name.clone())
        .await
        .unwrap();
    let after = rows(Audit::of(&log)).await.len();
    assert_eq!(after, told + 20 + 3, "and a repeat, and a refusal of each kind");
    let thrice = restore(&newcomer, &archive).await;
    assert_eq!(
        (thrice.calls, thrice.keys, thrice.budgets, thrice.stops),
        (0, 0, 0, 0)
    );
    assert_eq!(thrice.life, Life::Open, "a restore closes nothing that is open");
}

async fn older_data_is_told_only_what_it_lacks(place: &Place) {
    let mut fleet = Fleet::start(Persistence::Always);
    let url = fleet.url();
    let archive = place.open().await;
    let ledger = open(&url);
    let key = lively(&ledger).await;
    let yesterday = fleet.server.copy_data().unwrap();
    let kept_seq = ledger.info().await.unwrap().last_seq;
    spend(&ledger, &key, "later").await;
    ledger.settle(charged("held", DOLLAR)).await.unwrap();
    let scope = StopScope::Run("late".to_owned());
    ledger.stop(scope.clone(), admin()).await.unwrap();
    ledger
        .resume(&StopScope::Agent("runaway".to_owned()), admin())
        .await
        .unwrap();
    ledger
        .put_budget(lifetime("vk_1", 9 * DOLLAR), admin())
        .await
        .unwrap();
    let late = books::key(&ledger, "vk_late", &[lifetime("vk_late", DOLLAR)])
        .await
        .unwrap();
    spend(&ledger, &late, "of the late key").await;
    drain(&ledger, &archive, 7).await;
    let ids = call_ids(&ledger).await;
    let before = books_of(&ledger, &ids).await;
    let last_seq = ledger.info().await.unwrap().last_seq;
    drop(ledger);
    fleet.server.replace_data(&yesterday).unwrap();
    fleet.server.restart().unwrap();

    let ledger = open(&url);
    let restored = restore(&ledger, &archive).await;
    assert_eq!((restored.after_seq, restored.upto_seq), (kept_seq, last_seq));
    assert_eq!(
        (restored.calls, restored.keys, restored.budgets, restored.stops),
        (3, 1, 2, 2)
    );
    assert_eq!((restored.life, &restored.missing), (Life::Closed, &vec![]));
    assert!(ledger.open_by_hand(admin()).await.unwrap());
    assert_same(&books_of(&ledger, &ids).await, &before);
    books_agree(&ledger).await;
    let events = ledger.events(EventFilter::default()).await.unwrap();
    let reused = events
        .iter()
        .filter(|event| (kept_seq + 1..=last_seq).contains(&event.seq));
    assert_eq!(reused.count(), 0, "no number that was drained is another event's");
    let twice = restore(&ledger, &archive).await;
    assert_eq!(
        (twice.calls, twice.keys, twice.budgets, twice.stops),
        (0, 0, 0, 0)
    );
}

async fn live_clients_close_the_gap_that_the_archive_leaves(place: &Place) {
    let fleet = Fleet::start(Persistence::None);
    let url = fleet.url();
    let archive = place.open().await;
    let (one, other) = (open(&url), open(&url));
    let key = lively(&one).await;
    spend(&other, &key, "of the other").await;
    drain(&one, &archive, 100).await;
    // These are in no archive, and each process knows its own.
    spend(&one, &key, "undrained 1").await;
    spend(&other, &key, "undrained 2").await;
    let ids = call_ids(&one).await;
    let before = books_of(&one, &ids).await;
    let last_seq = one.info().await.unwrap().last_seq;
    fleet.server.command(&["FLUSHALL"]).unwrap();
    let gone = books::reserve(&one, call(&key, "x", DOLLAR)).await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::LedgerRecovering);
    assert!(gone.to_string().contains("keybrake ledger restore"), "{gone}");

    let restored = restore(&again(&url, &one.id().await.unwrap()), &archive).await;
    assert_eq!(restored.life, Life::Closed);
    assert!(restored.upto_seq < last_seq);
    let key = one.key("vk_1").await.unwrap().unwrap();
    // Each says again what is its own; the ledger waits for both and opens by itself.
    let (first, second) = tokio::join!(
        books::reserve(&one, call(&key, "after 1", DOLLAR)),
        books::reserve(&other, call(&key, "after 2", DOLLAR)),
    );
    first.unwrap().unwrap();
    second.unwrap().unwrap();
    for id in ["after 1", "after 2"] {
        one.settle(settlement(id, Proof::NeverSent)).await.unwrap();
    }
    assert_same(&books_of(&one, &ids).await, &before);
    books_agree(&one).await;
}

async fn what_was_lost_before_and_drained_is_told_too(place: &Place) {
    let mut fleet = Fleet::start(Persistence::Always);
    let url = fleet.url();
    let archive = place.open().await;
    let ledger = open(&url);
    let key = lively(&ledger).await;
    let yesterday = fleet.server.copy_data().unwrap();
    spend(&ledger, &key, "lost").await;
    ledger.settle(charged("held", DOLLAR)).await.unwrap();
    ledger
        .stop(StopScope::Run("lost".to_owned()), admin())
        .await
        .unwrap();
    drain(&ledger, &archive, 100).await;
    drop(ledger);
    fleet.server.replace_data(&yesterday).unwrap();
    fleet.server.restart().unwrap();
    // A person opened it without looking at the archive, it went on, and was drained.
    let ledger = open(&url);
    ledger.open_by_hand(admin()).await.unwrap();
    let (used, held) = used_and_held(&ledger).await;
    for number in 0..4 {
        spend(&ledger, &key, &format!("since {number}")).await;
    }
    drain(&ledger, &archive, 100).await;
    assert_eq!(only_log(&archive).await.history, 1);

    let restored = restore(&ledger, &archive).await;
    assert_eq!(
        (restored.calls, restored.stops, restored.life),
        (2, 1, Life::Open)
    );
    assert_eq!(
        used_and_held(&ledger).await,
        (used + 6 * DOLLAR, held - DOLLAR),
        "four since, the lost one, and the held one that was charged"
    );
    assert_eq!(ledger.stops().await.unwrap().len(), 2);
    books_agree(&ledger).await;
    drain(&ledger, &archive, 100).await;
    let twice = restore(&ledger, &archive).await;
    assert_eq!((twice.calls, twice.stops), (0, 0));
}

/// A restore that ended in the middle has said what it said; until another says the rest, nobody spends.
async fn a_closed_ledger_waits_for_the_rest_of_a_restore(place: &Place) {
    let mut fleet = Fleet::start(Persistence::Always);
    let url = fleet.url();
    let archive = place.open().await;
    let (ledger, live) = (open(&url), open(&url));
    let key = lively(&ledger).await;
    // It has seen this much, and is idle from now on.
    spend(&live, &key, "of the live one").await;
    let yesterday = fleet.server.copy_data().unwrap();
    spend(&ledger, &key, "lost 1").await;
    spend(&ledger, &key, "lost 2").await;
    drain(&ledger, &archive, 100).await;
    let state = only_log(&archive).await;
    let expected = used_and_held(&ledger).await;
    let after_seq = state.seq - 4;
    drop(ledger);
    fleet.server.replace_data(&yesterday).unwrap();
    fleet.server.restart().unwrap();

    // The first words of a restore that is killed then.
    let restorer = open(&url);
    let part = keybrake::ledger::ArchivedPart {
        archive: archive.id().to_owned(),
        after_seq,
        upto_seq: state.seq,
        at_ms: state.at_ms,
    };
    assert_eq!(restorer.await_archived(&part).await.unwrap(), Life::Closed);
    drop(restorer);
    let closed = books::reserve(&live, call(&key, "too early", DOLLAR))
        .await
        .unwrap_err();
    assert_eq!(closed.kind(), ErrorKind::LedgerRecovering);
    assert!(closed.to_string().contains("are missing"), "{closed}");
    assert_eq!(live.missing_events().await.unwrap(), [(after_seq + 1, state.seq)]);

    let restored = restore(&open(&url), &archive).await;
    assert_eq!((restored.calls, &restored.missing), (2, &vec![]));
    spend(&live, &key, "after").await;
    assert_eq!(used_and_held(&live).await, (expected.0 + DOLLAR, expected.1));
    books_agree(&live).await;
}

/// Without a master key the secret is gone with the data, but not from a process that has the ledger open.
#[tokio::test]
async fn a_process_that_had_it_open_restores_a_ledger_without_a_master_key_on_a_new_server() {
    let place = Place::sqlite();
    let archive = place.open().await;
    let server = RedisServer::start(RedisOptions::new()).unwrap();
    let port = server.port();
    let fleet = Fleet { server };
    let ledger = fleet.open();
    let key = lively(&ledger).await;
    drain(&ledger, &archive, 100).await;
    spend(&ledger, &key, "undrained").await;
    let expected = used_and_held(&ledger).await;
    let mut fleet = fleet;
    // The same address, with nothing on it: no data and no functions.
    fleet.server.restart().unwrap();
    assert_eq!(fleet.server.port(), port);
    let restored = restore(&ledger, &archive).await;
    assert_ne!(restored.life, Life::Gone);
    let key = ledger.key("vk_1").await.unwrap().unwrap();
    hold(&ledger, &key, "after").await;
    assert_eq!(used_and_held(&ledger).await, (expected.0, expected.1 + DOLLAR));
    let bound = |ledger: &RedisLedger| ledger.secret().bound_to("x").unwrap();
    assert_eq!(bound(&fleet.open()), bound(&ledger));
    books_agree(&ledger).await;
}

/// Restores of two commands at once, on a ledger that is opened and used meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_restores_beside_live_clients_come_to_the_same() {
    let mut fleet = Fleet::start(Persistence::Always);
    let url = fleet.url();
    let place = Place::sqlite();
    let archive = place.open().await;
    let ledger = open(&url);
    let key = lively(&ledger).await;
    ledger
        .put_budget(lifetime("vk_1", 1_000 * DOLLAR), admin())
        .await
        .unwrap();
    let yesterday = fleet.server.copy_data().unwrap();
    for number in 0..60 {
        spend(&ledger, &key, &format!("lost {number}")).await;
    }
    drain(&ledger, &archive, 100).await;
    let (used, held) = used_and_held(&ledger).await;
    fleet.server.replace_data(&yesterday).unwrap();
    fleet.server.restart().unwrap();
    // The first client has seen everything and remembers all of it; it says the same that both restores say.
    let (one, two) = (open(&url), open(&url));
    let working = async {
        for number in 0..20 {
            spend(&ledger, &key, &format!("meanwhile {number}")).await;
        }
    };
    let (first, second, ()) = tokio::join!(restore(&one, &archive), restore(&two, &archive), working);
    assert_eq!(first.upto_seq, second.upto_seq);
    assert_eq!(used_and_held(&ledger).await, (used + 20 * DOLLAR, held));
    assert_eq!(ledger.life().await.unwrap(), Life::Open);
    books_agree(&ledger).await;
    let last = restore(&one, &archive).await;
    assert_eq!((last.calls, last.keys, last.budgets, last.stops), (0, 0, 0, 0));
}

/// Windows that are over stay over: what was spent in them is in the books, and takes no room.
#[tokio::test]
async fn what_left_a_rolling_window_takes_no_room_after_a_restore() {
    use keybrake::clock::ManualClock;
    use keybrake::ledger::MemoryLedger;
    // Any ledger is told by the same rule; this one's clock can be set.
    let place = Place::sqlite();
    let archive = place.open().await;
    let clock = Arc::new(ManualClock::at(books::NOW_MS));
    let before = MemoryLedger::new(clock.clone()).unwrap();
    let key = key_for_long(&before).await;
    for number in 0..4 {
        count(&before, &key, &format!("old {number}")).await;
        clock.advance_ms(6 * 3_600_000);
    }
    clock.advance_ms(40 * 86_400_000);
    for number in 0..3 {
        count(&before, &key, &format!("new {number}")).await;
        clock.advance_ms(60_000);
    }
    drain(&before, &archive, 100).await;
    assert_eq!(used_and_held(&before).await, (3, 0));
    let told = MemoryLedger::new(clock.clone()).unwrap();
    told_again(&told, &before, 0).await;
    // And to Redis, whose clock is the machine's: as long ago.
    let fleet = Fleet::start(Persistence::None);
    let ago = SystemClock.now_ms() - clock.now_ms();
    told_again(&fleet.open(), &before, ago - ago.rem_euclid(300_000)).await;
}

async fn key_for_long(ledger: &dyn Ledger) -> KeyRecord {
    let issue = books::issue("vk_1", &[calls("vk_1", WindowKind::Rolling24h, 5)]);
    let expires_in_ms = Some(100 * books::DAY_MS);
    ledger
        .issue_key(IssueKey {
            expires_in_ms,
            ..issue
        })
        .await
        .unwrap()
}

/// Says again to one ledger what happened in another, so many milliseconds later.
async fn told_again(ledger: &dyn Ledger, before: &dyn Ledger, later_ms: i64) {
    let key = key_for_long(ledger).await;
    let mut known = archive_calls(before).await;
    for charge in known.iter_mut().flat_map(|known| &mut known.call.charges) {
        let (family, start) = charge.counter.rsplit_once('|').unwrap();
        let start = start.parse::<i64>().unwrap() + later_ms;
        charge.counter = format!("{family}|{start}").into();
    }
    for calls in known.chunks(3) {
        let said = keybrake::ledger::Reassertion {
            calls: calls.to_vec(),
            ..keybrake::ledger::Reassertion::default()
        };
        ledger.reassert(said).await.unwrap();
    }
    assert_eq!(used_and_held(ledger).await, (3, 0));
    books_agree(ledger).await;
    count(ledger, &key, "now 1").await;
    count(ledger, &key, "now 2").await;
    let now_ms = ledger.info().await.unwrap().now_ms;
    let full = books::reserve(ledger, read(&key, "now 3", now_ms)).await.unwrap();
    assert_eq!(full.unwrap_err(), "CapExceeded");
    books_agree(ledger).await;
}

async fn archive_calls(ledger: &dyn Ledger) -> Vec<keybrake::ledger::CallAssertion> {
    let ids = call_ids(ledger).await;
    let calls = ledger.reservations(&ids).await.unwrap();
    assert!(calls.iter().all(|call| call.state == State::Settled));
    let asserted = calls.into_iter().map(|call| keybrake::ledger::CallAssertion {
        call,
        found_by: Vec::new(),
        object: None,
    });
    asserted.collect()
}
