//! What the Redis ledger does when its server starts anew: with all of its data, with some of it, with none, or with
//! another ledger's. It is closed until a process that saw its last state, or a person, opens it.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use keybrake::SystemClock;
use keybrake::error::ErrorKind;
use keybrake::ledger::redis::RedisLedger;
use keybrake::ledger::{EventKind, HoldFilter, KeyRecord, Ledger};
use keybrake_testkit::redis::{Persistence, RedisOptions, RedisServer, Reply};
use keybrake_tests::books::{self, DOLLAR};
use keybrake_tests::fleet::{self, Fleet, books_agree, count, events_of, key, texts, used_and_held};
use keybrake_tests::processes::{Chance, Worker};

const WORKER: &str = env!("CARGO_BIN_EXE_ledger_worker");

async fn spend(ledger: &RedisLedger, key: &KeyRecord, id: &str) -> keybrake::Result<()> {
    let asked = |key: &KeyRecord| books::call(key, id, DOLLAR);
    books::reserve_anew(ledger, key, asked).await?.unwrap();
    ledger.settle(books::charged(id, DOLLAR)).await?;
    Ok(())
}

async fn refusal(ledger: &RedisLedger, key: &KeyRecord, id: &str) -> (ErrorKind, String) {
    let error = ledger.reserve(books::call(key, id, DOLLAR)).await.unwrap_err();
    (error.kind(), error.to_string())
}

async fn assert_closed(ledger: &RedisLedger, key: &KeyRecord, id: &str, why: &str) {
    let (kind, said) = refusal(ledger, key, id).await;
    assert_eq!(kind, ErrorKind::LedgerRecovering, "{said}");
    assert!(said.contains(why), "{said}");
}

#[tokio::test]
async fn a_restart_is_opened_by_who_saw_its_last_state_and_by_no_newcomer() {
    let mut fleet = Fleet::start(Persistence::Always);
    let (ledger, key) = fleet.with_key(10 * DOLLAR).await;
    spend(&ledger, &key, "before").await.unwrap();
    fleet.server.restart().unwrap();

    let newcomer = fleet.open();
    assert_closed(&newcomer, &key, "newcomer", "no process that saw its last state").await;
    assert_closed(&newcomer, &key, "newcomer", "keybrake ledger open").await;
    // Looking is allowed.
    assert_eq!(used_and_held(&newcomer).await, (DOLLAR, 0));

    // The next call of the one that was there finds its connection gone, comes back and opens.
    spend(&ledger, &key, "after").await.unwrap();
    spend(&newcomer, &key, "newcomer").await.unwrap();
    assert_eq!(used_and_held(&newcomer).await, (3 * DOLLAR, 0));
    books_agree(&newcomer).await;
}

#[tokio::test]
async fn a_ledger_that_nobody_remembers_is_opened_by_hand_and_that_is_written_down() {
    let mut fleet = Fleet::start(Persistence::Always);
    let (ledger, key) = fleet.with_key(10 * DOLLAR).await;
    spend(&ledger, &key, "before").await.unwrap();
    drop(ledger);
    fleet.server.restart().unwrap();
    let ledger = fleet.open();
    assert_closed(&ledger, &key, "closed", "no process that saw").await;
    assert!(ledger.open_by_hand(books::admin()).await.unwrap());
    assert!(
        !ledger.open_by_hand(books::admin()).await.unwrap(),
        "it is open already"
    );
    spend(&ledger, &key, "after").await.unwrap();
    let acts = events_of(&ledger, EventKind::Admin).await;
    let opened: Vec<_> = acts
        .iter()
        .filter_map(|event| event.body.admin.as_ref())
        .filter(|admin| admin.act == "open_ledger")
        .collect();
    assert_eq!(opened.len(), 1);
    assert_eq!(opened.first().unwrap().note.by, books::admin().by);
    books_agree(&ledger).await;
}

/// The server is killed and started again while eight processes work, with all acknowledged data on disk.
#[tokio::test]
async fn restarts_under_load_never_exceed_the_cap() {
    const RESTARTS: u64 = 3;
    let mut chance = Chance::of_the_day();
    let mut fleet = Fleet::start(Persistence::EverySecond);
    let cap = 600 * 3;
    let (ledger, _) = fleet.with_key(cap).await;
    let mut workers: Vec<Worker> = (0..8)
        .map(|_| fleet.worker(WORKER, &["endure", "60", "3", "8"]))
        .collect();
    // All of them are at work before the first restart.
    let mut said: Vec<String> = workers.iter_mut().filter_map(Worker::next_line).collect();
    for _ in 0..RESTARTS {
        let first = workers.first_mut().unwrap();
        for _ in 0..20 + chance.below(80) {
            said.extend(first.next_line());
        }
        fleet.server.restart().unwrap();
    }
    said.extend(workers.into_iter().flat_map(Worker::finish));
    let settled = i64::try_from(count(&said, "settled")).unwrap();
    let errors = count(&said, "error");
    let (used, held) = used_and_held(&ledger).await;
    println!(
        "{RESTARTS} restarts: {settled} settled, {errors} refused or lost, {used} used and {held} held of {cap}"
    );
    assert!(errors > 0, "the restarts met nothing");
    assert!(used + held <= cap, "{used} + {held} of {cap}");
    assert!(
        used >= 3 * settled,
        "{settled} were acknowledged, {used} are there"
    );
    let open = ledger
        .holds(HoldFilter {
            limit: 10_000,
            ..HoldFilter::default()
        })
        .await
        .unwrap();
    assert_eq!(open.iter().map(|hold| hold.held.micros()).sum::<i64>(), held);
    books_agree(&ledger).await;
}

/// The data is exchanged under a server that goes on running.
#[tokio::test]
async fn lesson_08_data_that_vanishes_under_a_running_server_is_not_zero() {
    let fleet = Fleet::start(Persistence::None);
    let (ledger, key) = fleet.with_key(2 * DOLLAR).await;
    spend(&ledger, &key, "one").await.unwrap();
    let yesterday = fleet.server.command(&["DUMP", "kb:{fleet}:meta"]).unwrap();
    spend(&ledger, &key, "two").await.unwrap();
    fleet.server.command(&["FLUSHALL"]).unwrap();
    assert_closed(&ledger, &key, "three", "its data is gone").await;
    // A newcomer makes a ledger of its own there; it is not this one, and no key of this one spends on it.
    let other = fleet.open();
    assert_closed(&ledger, &key, "three", "another ledger stands in its place").await;
    self::key(&other, DOLLAR).await;
    assert_closed(&ledger, &key, "three", "another ledger stands in its place").await;
    fleet.server.command(&["FLUSHALL"]).unwrap();
    // Its own record comes back as it was yesterday.
    let record = match yesterday {
        Reply::Bulk(record) => record,
        other => panic!("DUMP answers bytes, not {other:?}"),
    };
    let mut connection = fleet.server.connect().unwrap();
    connection
        .command(&[b"RESTORE".as_slice(), b"kb:{fleet}:meta", b"0", &record])
        .unwrap();
    // The record alone proves nothing of the rest. The process that did all of it says all of it again.
    let refused = books::reserve(&ledger, books::call(&key, "three", DOLLAR))
        .await
        .unwrap();
    assert_eq!(refused.unwrap_err(), "CapExceeded");
    assert_eq!(used_and_held(&ledger).await, (2 * DOLLAR, 0));
}

#[tokio::test]
async fn scenario_10_a_promoted_replica_is_opened_only_with_everything_that_was_acknowledged() {
    for lossy in [false, true] {
        let mut pair = keybrake_testkit::redis::Replicated::start(&RedisOptions::new()).unwrap();
        let url = |server: &RedisServer| format!("{}?ns=fleet&timeout_ms=20000", server.url());
        let before = fleet::open(&url(pair.primary())).unwrap();
        let key = key(&before, 10 * DOLLAR).await;
        spend(&before, &key, "one").await.unwrap();
        let error = fleet::open(&url(pair.replica())).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("replica"), "{error}");
        if lossy {
            pair.cut_replication().unwrap();
            spend(&before, &key, "two").await.unwrap();
        } else {
            pair.wait_in_step().unwrap();
        }
        pair.failover().unwrap();
        // The address of one server does not follow the primary: who comes now has no memory, and is refused.
        let after = fleet::open(&url(pair.primary())).unwrap();
        assert_closed(&after, &key, "three", "no process that saw its last state").await;
        assert_eq!(used_and_held(&after).await, (DOLLAR, 0));
        let gone = refusal(&before, &key, "three").await;
        assert_eq!(gone.0, ErrorKind::LedgerUnavailable, "{gone:?}");
    }
}

#[tokio::test]
async fn scenario_24_a_copy_under_another_master_key_cannot_spend() {
    let key_of = |byte: u8| [byte; 32];
    let url = |server: &RedisServer| format!("{}?ns=fleet&timeout_ms=20000", server.url());
    let server = RedisServer::start(RedisOptions::new()).unwrap();
    let clock = || std::sync::Arc::new(SystemClock);
    let ledger = RedisLedger::open(&url(&server), clock(), Some(&key_of(1))).unwrap();
    let key = key(&ledger, 10 * DOLLAR).await;
    spend(&ledger, &key, "one").await.unwrap();
    let mut copy = RedisServer::start(RedisOptions::new()).unwrap();
    copy.replace_data(&server.copy_data().unwrap()).unwrap();
    copy.restart().unwrap();
    for (master, why) in [
        (Some(key_of(2)), "belongs to another master key"),
        (None, "needs its master key"),
    ] {
        let master = master.as_ref().map(<[u8; 32]>::as_slice);
        let error = RedisLedger::open(&url(&copy), clock(), master)
            .map(|_| ())
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains(why), "{error}");
    }
    // Under the right one the copy is closed: it may be older than the ledger that it was taken from.
    let same = RedisLedger::open(&url(&copy), clock(), Some(&key_of(1))).unwrap();
    assert_closed(&same, &key, "two", "no process that saw its last state").await;
}

#[test]
fn lesson_08_a_server_that_may_evict_is_refused_by_name() {
    for policy in ["allkeys-lru", "volatile-ttl"] {
        let server = RedisServer::start(RedisOptions::new().maxmemory_policy(policy)).unwrap();
        let error = fleet::open(&server.url()).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(
            error.to_string().contains(policy) && error.to_string().contains("noeviction"),
            "{error}"
        );
    }
}

/// Its memory is full: it answers an error before it writes anything.
#[tokio::test]
async fn lesson_08_a_server_without_memory_refuses_and_changes_nothing() {
    let fleet = Fleet::start(Persistence::None);
    let (ledger, key) = fleet.with_key(10 * DOLLAR).await;
    spend(&ledger, &key, "one").await.unwrap();
    fleet
        .server
        .command(&["CONFIG", "SET", "maxmemory", "1"])
        .unwrap();
    let (kind, said) = refusal(&ledger, &key, "two").await;
    assert_eq!(kind, ErrorKind::LedgerUnavailable);
    assert!(said.contains("no memory left (maxmemory)"), "{said}");
    fleet
        .server
        .command(&["CONFIG", "SET", "maxmemory", "0"])
        .unwrap();
    assert_eq!(used_and_held(&ledger).await, (DOLLAR, 0));
    spend(&ledger, &key, "two").await.unwrap();
    books_agree(&ledger).await;
}

/// The words with which a process that opens the ledger calls a function, as its server heard them.
fn how_it_is_asked(fleet: &Fleet, function: &str) -> Vec<String> {
    let mut monitor = fleet.server.connect().unwrap();
    monitor.command(&["MONITOR"]).unwrap();
    fleet.open();
    loop {
        let heard = monitor.reply().unwrap();
        // 1795305600.000000 [0 127.0.0.1:40000] "FCALL" "keybrake_..." ...
        let (_, words) = heard.text().unwrap().split_once("] ").unwrap();
        let words = words.trim_matches('"').split("\" \"");
        let words: Vec<String> = words.map(str::to_owned).collect();
        if words.get(1).is_some_and(|name| name == function) {
            return words;
        }
    }
}

/// The server restarts with the library of two versions loaded; each finds the ledger open once one has opened it.
#[tokio::test]
async fn scenario_23_two_versions_of_the_functions_work_side_by_side() {
    let mut fleet = Fleet::start(Persistence::Always);
    let (ledger, key) = fleet.with_key(10 * DOLLAR).await;
    spend(&ledger, &key, "one").await.unwrap();
    // Another version: the same functions under another digest.
    let library = fleet.server.command(&["FUNCTION", "LIST", "WITHCODE"]).unwrap();
    let code = texts(&library)
        .into_iter()
        .find(|text| text.starts_with("#!lua"))
        .unwrap();
    let (_, rest) = code.split_once("name=keybrake_").unwrap();
    let digest = rest.split('\n').next().unwrap().to_owned();
    let other = code.replace(&digest, "0123456789ab");
    fleet.server.command(&["FUNCTION", "LOAD", &other]).unwrap();
    // With an open call, so that it matters which place is which.
    let open = books::reserve(&ledger, books::call(&key, "open", DOLLAR)).await;
    open.unwrap().unwrap();
    let asked = how_it_is_asked(&fleet, &format!("keybrake_about_{digest}"));
    let about = |server: &RedisServer, digest: &str| {
        let mut words = asked.clone();
        words[1] = format!("keybrake_about_{digest}");
        let answer = server.command(&words).unwrap();
        let open = answer.items().unwrap().first().unwrap();
        open.text().unwrap().to_owned()
    };
    assert_eq!(about(&fleet.server, &digest), "1");
    assert_eq!(
        about(&fleet.server, "0123456789ab"),
        "0",
        "it has not been opened in this version"
    );
    spend(&ledger, &key, "two").await.unwrap();
    // A process whose version is not loaded loads it, and finds the ledger open in this run of the server.
    fleet
        .server
        .command(&["FUNCTION", "DELETE", &format!("keybrake_{digest}")])
        .unwrap();
    let newcomer = fleet.open();
    spend(&newcomer, &key, "three").await.unwrap();
    spend(&ledger, &key, "four").await.unwrap();
    fleet.server.restart().unwrap();
    assert_eq!(about(&fleet.server, "0123456789ab"), "0");
    assert_closed(&fleet.open(), &key, "five", "no process that saw").await;
    spend(&ledger, &key, "five").await.unwrap();
    books_agree(&ledger).await;
}

/// A cap that was raised, and lost: whoever had read the key then does not spend by it after a person opened the ledger,
/// although as many caps were changed since.
#[tokio::test]
async fn a_key_with_a_cap_that_was_lost_has_to_be_read_again() {
    let mut fleet = Fleet::start(Persistence::Always);
    let (ledger, key) = fleet.with_key(10 * DOLLAR).await;
    let yesterday = fleet.server.copy_data().unwrap();
    let cap = |dollars: i64| books::lifetime(&key.lineage, dollars * DOLLAR);
    ledger.put_budget(cap(20), books::admin()).await.unwrap();
    let raised = ledger.key(&key.id).await.unwrap().unwrap();
    drop(ledger);
    fleet.server.replace_data(&yesterday).unwrap();
    fleet.server.restart().unwrap();

    let newcomer = fleet.open();
    assert!(newcomer.open_by_hand(books::admin()).await.unwrap());
    newcomer.put_budget(cap(5), books::admin()).await.unwrap();
    let asked = books::reserve(&newcomer, books::call(&raised, "by the lost cap", DOLLAR)).await;
    assert_eq!(asked.unwrap().unwrap_err(), "Stale");
    spend(&newcomer, &raised, "read again").await.unwrap();
}
