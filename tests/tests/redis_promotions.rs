//! Servers that change places without a restart: what a process of Redis had opened, or heard from clients, before it was
//! demoted says nothing of what it has when it is promoted again.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::os::unix::fs::symlink;
use std::path::PathBuf;

use keybrake::ErrorKind;
use keybrake::ledger::redis::RedisLedger;
use keybrake::ledger::{EventKind, KeyRecord, Ledger};
use keybrake_testkit::redis::{Persistence, RedisOptions, RedisServer, Reply};
use keybrake_tests::books::{DOLLAR, admin, call, reserve_anew};
use keybrake_tests::fleet::{self, books_agree, events_of, used_and_held};

fn two_servers() -> [RedisServer; 2] {
    [(), ()].map(|()| RedisServer::start(RedisOptions::new()).unwrap())
}

fn open(server: &RedisServer) -> RedisLedger {
    fleet::open(&format!("{}?ns=fleet&timeout_ms=20000", server.url())).unwrap()
}

/// When this returns the replica has everything of the primary.
fn follow(replica: &RedisServer, primary: &RedisServer) {
    let port = primary.port().to_string();
    replica.command(&["REPLICAOF", "127.0.0.1", &port]).unwrap();
    // Answered once the replica has everything up to here.
    let mut connection = primary.connect().unwrap();
    connection.command(&["SET", "in step", "1"]).unwrap();
    let have = connection.command(&["WAIT", "1", "20000"]).unwrap();
    assert_eq!(have, Reply::Integer(1));
}

fn promote(server: &RedisServer) {
    server.command(&["REPLICAOF", "NO", "ONE"]).unwrap();
}

async fn hold(ledger: &RedisLedger, key: &KeyRecord, id: &str) {
    let asked = |key: &KeyRecord| call(key, id, DOLLAR);
    reserve_anew(ledger, key, asked).await.unwrap().unwrap();
}

async fn assert_closed(ledger: &RedisLedger, key: &KeyRecord, why: &str) {
    let error = ledger.reserve(call(key, "closed", DOLLAR)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LedgerRecovering, "{error}");
    assert!(error.to_string().contains(why), "{error}");
}

/// What was opened on it before says nothing of the writes that it has missed since.
#[tokio::test]
async fn lesson_08_a_primary_that_comes_back_without_a_restart_is_closed() {
    let [a, b] = two_servers();
    let first = open(&a);
    let key = fleet::key(&first, 50 * DOLLAR).await;
    hold(&first, &key, "one").await;
    drop(first);
    follow(&b, &a);
    promote(&b);
    follow(&a, &b);
    let second = open(&b);
    assert_closed(&second, &key, "no process that saw its last state").await;
    assert!(second.open_by_hand(admin()).await.unwrap());
    hold(&second, &key, "two").await;
    drop(second);
    follow(&a, &b);
    promote(&a);
    assert_closed(&open(&a), &key, "no process that saw its last state").await;
}

/// The dollars of `one` are on both; those of `lost 1` to `lost 5` were acknowledged by A alone, which was then filled from B
/// and promoted again, before anybody had called B.
async fn there_and_back() -> ([RedisServer; 2], RedisLedger, KeyRecord) {
    let [a, b] = two_servers();
    let writer = open(&a);
    let key = fleet::key(&writer, 50 * DOLLAR).await;
    hold(&writer, &key, "one").await;
    follow(&b, &a);
    promote(&b);
    for number in 1..=5 {
        hold(&writer, &key, &format!("lost {number}")).await;
    }
    follow(&a, &b);
    promote(&a);
    ([a, b], writer, key)
}

/// A newcomer has seen nothing, so it opens nothing, although the process of the server is the one that the ledger was
/// opened on last. Whoever made the lost calls says them again.
#[tokio::test]
async fn a_server_that_was_demoted_and_promoted_again_is_opened_by_no_newcomer() {
    let (servers, writer, key) = there_and_back().await;
    let newcomer = open(&servers[0]);
    assert_closed(&newcomer, &key, "no process that saw its last state").await;
    assert_eq!(used_and_held(&newcomer).await, (0, DOLLAR));
    hold(&writer, &key, "two").await;
    assert_eq!(used_and_held(&newcomer).await, (0, 7 * DOLLAR));
    hold(&newcomer, &key, "three").await;
    books_agree(&newcomer).await;
}

/// A person opens it, and it is worked on until its log is longer than the lost one was. Whoever still remembers the lost
/// calls says them again even then.
#[tokio::test]
async fn what_such_a_server_lost_is_said_again_although_a_person_opened_it() {
    let (servers, writer, key) = there_and_back().await;
    let newcomer = open(&servers[0]);
    assert!(newcomer.open_by_hand(admin()).await.unwrap());
    for number in 0..7 {
        hold(&newcomer, &key, &format!("new {number}")).await;
    }
    // Its next call hears of the opening; the one after that says first what is missing.
    hold(&writer, &key, "two").await;
    hold(&writer, &key, "three").await;
    assert_eq!(events_of(&writer, EventKind::Reasserted).await.len(), 5);
    assert_eq!(used_and_held(&newcomer).await, (0, 15 * DOLLAR));
    books_agree(&newcomer).await;
}

/// A socket that leads to one server or to another.
struct Door(PathBuf, tempfile::TempDir);

impl Door {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        Self(place.path().join("redis.sock"), place)
    }

    fn lead_to(&self, server: &RedisServer) {
        let url = server.unix_url();
        let path = url.trim_start_matches("redis+unix://");
        let next = self.1.path().join("next");
        symlink(path, &next).unwrap();
        std::fs::rename(next, &self.0).unwrap();
    }

    fn open(&self, timeout_ms: u32) -> RedisLedger {
        let path = self.0.display();
        fleet::open(&format!("redis+unix://{path}?ns=fleet&timeout_ms={timeout_ms}")).unwrap()
    }
}

/// A server waits for what nobody remembers; it is demoted and promoted again, and both times it keeps what its functions
/// remember. Who reported the first time has not reported the second time, and who was at work in between is waited for.
#[tokio::test]
async fn reports_of_before_a_failover_count_for_nothing_after_the_failback() {
    let persistent = RedisOptions::new().persistence(Persistence::Always);
    let mut a = RedisServer::start(persistent).unwrap();
    let b = RedisServer::start(RedisOptions::new()).unwrap();
    let door = Door::new();
    door.lead_to(&a);
    // The server waits three seconds for who was at work: the first gives up well before.
    let (one, two, dies) = (door.open(1_000), door.open(20_000), door.open(20_000));
    let key = fleet::key(&one, 50 * DOLLAR).await;
    hold(&two, &key, "two 1").await;
    let yesterday = a.copy_data().unwrap();
    hold(&dies, &key, "forgotten").await;
    drop(dies);
    hold(&one, &key, "one 1").await;
    a.replace_data(&yesterday).unwrap();
    a.restart().unwrap();
    assert_closed(&one, &key, "is closed").await;

    follow(&b, &a);
    promote(&b);
    follow(&a, &b);
    door.lead_to(&b);
    assert!(door.open(20_000).open_by_hand(admin()).await.unwrap());
    hold(&one, &key, "one 2").await;
    hold(&two, &key, "two 2").await;
    follow(&a, &b);
    promote(&a);
    for number in 0..3 {
        hold(&two, &key, &format!("two lost {number}")).await;
    }
    door.lead_to(&a);
    drop(b);
    assert_closed(&one, &key, "processes that were at work").await;
    hold(&two, &key, "two 3").await;
    hold(&one, &key, "one 3").await;
    // "forgotten" is what the person took for gone.
    assert_eq!(used_and_held(&one).await, (0, 9 * DOLLAR));
    books_agree(&one).await;
    assert!(!one.open_by_hand(admin()).await.unwrap(), "it is open");
}
