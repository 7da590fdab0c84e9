//! Outcomes that the ledger could not take when they were known: none is lost, each is counted once, and the books equal
//! the simulator's journal in the end.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeMap;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use keybrake::Usd;
use keybrake::brake::Permit;
use keybrake::clock::SystemClock;
use keybrake::facade::Keybrake;
use keybrake::ledger::{EventFilter, EventKind, HoldFilter, Ledger};
use keybrake_testkit::redis::{RedisOptions, RedisServer, Relay};
use keybrake_testkit::stripe::TEST_SECRET;
use keybrake_tests::journaling::{FORM, Place, budget, charged, chmod, contents, files, key, mode, permit};
use keybrake_tests::processes::Worker;
use keybrake_tests::{Ended, ended, eventually, generated, post, signed};
use nix::fcntl::{Flock, FlockArg};
use serde_json::Value;

/// Keeps every writer out of a ledger file for as long as it lives.
fn block(place: &Place, name: &str) -> Flock<std::fs::File> {
    let file = std::fs::File::open(place.path(&format!("{name}.lock"))).unwrap();
    Flock::lock(file, FlockArg::LockExclusive).unwrap()
}

fn command(place: &Place, program: &str, ledger: &str) -> Command {
    let mut command = Command::new(program);
    command
        .env("KEYBRAKE_LEDGER", ledger)
        .env("KEYBRAKE_JOURNAL_DIR", place.path("journal"));
    command
}

/// The `keybrake` command in a process of its own.
fn cli(place: &Place, ledger: &str, args: &[&str]) -> (Output, Value) {
    let mut command = command(place, env!("CARGO_BIN_EXE_governed_worker"), ledger);
    let done = command.args(["keybrake", "--json"]).args(args).output().unwrap();
    let said = serde_json::from_slice(&done.stdout).unwrap();
    (done, said)
}

fn open(url: &str) -> Arc<dyn Ledger> {
    keybrake::ledger::open(url, Arc::new(SystemClock)).unwrap()
}

fn url(port: u16) -> String {
    format!("redis://127.0.0.1:{port}?ns=test&timeout_ms=4000")
}

async fn deliver(kb: &Keybrake, permit: Permit) -> Ended {
    ended(kb.shell().deliver(permit).await.unwrap())
}

/// The events that ended a hold, by call.
async fn settlements(ledger: &dyn Ledger) -> BTreeMap<String, u32> {
    let mut found = BTreeMap::new();
    for event in ledger.events(EventFilter::default()).await.unwrap() {
        if event.kind == EventKind::Settled {
            *found.entry(event.call_id.unwrap()).or_default() += 1;
        }
    }
    found
}

async fn verify(kb: &Keybrake) {
    let report = kb.ledger().verify().await.unwrap();
    assert!(report.differences.is_empty() && report.chain_ok, "{report:?}");
}

#[tokio::test]
async fn an_outcome_that_redis_does_not_take_is_delivered_after_the_next_call() {
    let place = Place::start();
    let redis = RedisServer::start(RedisOptions::new()).unwrap();
    let kb = place.keybrake(open(&url(redis.port())), "journal").await.unwrap();
    let key = key(&kb).await;
    let permit_1 = permit(&kb, &key, "one").await;
    assert!(
        !place.path("journal").exists(),
        "nothing is made before it is needed"
    );

    redis.stop().unwrap();
    let done = deliver(&kb, permit_1).await;
    assert_eq!((done.status, place.charged_micros()), (200, 1_000_000));
    assert!(done.record.journaled && !done.record.unrecorded, "{done:?}");
    assert_eq!(done.record.held, Usd::from_micros(1_000_000));
    let waiting = contents(&kb);
    assert_eq!(waiting.waiting.len(), 1);
    assert_eq!(waiting.waiting[0].call_id, done.record.call_id);
    assert_eq!(waiting.waiting[0].proof, "charged");
    let file = &files(&waiting.path, ".journal")[0];
    let modes = [mode(&place.path("journal")), mode(&waiting.path), mode(file)];
    assert_eq!(modes, [0o700, 0o700, 0o600]);
    let text = std::fs::read_to_string(file).unwrap();
    for secret in [TEST_SECRET, key.token.expose(), "client_secret", "Bearer"] {
        assert!(!text.contains(secret), "{text}");
    }

    redis.cont().unwrap();
    // For a moment after a failure, calls are refused without asking.
    eventually(async || kb.usage(&key.id).await.is_ok()).await;
    let permit_2 = permit(&kb, &key, "two").await;
    assert!(!deliver(&kb, permit_2).await.record.journaled);
    eventually(async || contents(&kb).waiting.is_empty()).await;
    assert_eq!(budget(&kb, &key).await, (place.charged_micros(), 0));
    assert_eq!(files(&waiting.path, "").len(), 0);
    verify(&kb).await;
}

#[tokio::test]
async fn another_process_delivers_what_a_killed_one_left() {
    let place = Place::start();
    let redis = RedisServer::start(RedisOptions::new()).unwrap();
    let relay = Relay::start(redis.port()).unwrap();
    let (direct, relayed) = (url(redis.port()), url(relay.port()));
    let kb = place.keybrake(open(&direct), "elsewhere").await.unwrap();
    let key = key(&kb).await;
    let mut command = command(&place, env!("CARGO_BIN_EXE_journal_worker"), &relayed);
    let mut worker = Worker::start(command.args(["pay", &relayed, &place.stripe.url(), key.token.expose()]));
    assert_eq!(worker.next_line().as_deref(), Some("permit"));
    // What it tells the ledger from now on never arrives.
    relay.black_hole();
    worker.tell("go on");
    assert_eq!(worker.next_line().as_deref(), Some("journaled"));
    worker.kill();
    assert_eq!(place.charged_micros(), 1_000_000);
    assert_eq!(budget(&kb, &key).await, (0, 1_000_000));

    // The ledger cannot be reached: what waits for it is named all the same.
    let (done, said) = cli(&place, &relayed, &["doctor"]);
    assert_eq!(done.status.code(), Some(3));
    assert!(said.to_string().contains("1 waiting outcome in"), "{said}");
    relay.pass().unwrap();
    let (_, said) = cli(&place, &relayed, &["holds", "list"]);
    assert_eq!(said["holds"][0]["journaled"], true, "{said}");
    let (_, said) = cli(&place, &relayed, &["doctor"]);
    assert!(said.to_string().contains("1 waiting outcome delivered"), "{said}");
    assert_eq!(budget(&kb, &key).await, (place.charged_micros(), 0));
    let (_, said) = cli(&place, &relayed, &["doctor"]);
    assert!(said.to_string().contains("no outcome waits"), "{said}");
    assert!(
        settlements(&**kb.ledger())
            .await
            .values()
            .all(|times| *times == 1)
    );
    verify(&kb).await;
}

#[tokio::test]
async fn two_processes_that_deliver_at_once_count_once() {
    let place = Place::start();
    let redis = RedisServer::start(RedisOptions::new()).unwrap();
    let relay = Relay::start(redis.port()).unwrap();
    let direct = url(redis.port());
    let reader = place.keybrake(open(&direct), "elsewhere").await.unwrap();
    let key = key(&reader).await;
    // Several writers with a file each, which live on and make no further call.
    let mut writers = Vec::new();
    for writer in 0..4 {
        let kb = place.keybrake(open(&url(relay.port())), "journal").await.unwrap();
        let mut permits = Vec::new();
        for number in 0..4 {
            permits.push(permit(&kb, &key, &format!("{writer}-{number}")).await);
        }
        writers.push((kb, permits));
    }
    relay.black_hole();
    let mut calls = Vec::new();
    for (kb, permits) in &mut writers {
        for permit in permits.drain(..) {
            let kb = kb.clone();
            calls.push(tokio::spawn(async move { deliver(&kb, permit).await }));
        }
    }
    for call in calls {
        assert!(call.await.unwrap().record.journaled);
    }
    assert_eq!(files(&contents(&writers[0].0).path, ".journal").len(), 4);
    let journal = place.path("journal");
    let mut workers = [0, 1].map(|_| {
        let mut command = command(&place, env!("CARGO_BIN_EXE_journal_worker"), &direct);
        Worker::start(command.args(["deliver", &direct, journal.to_str().unwrap()]))
    });
    for worker in &mut workers {
        assert_eq!(worker.next_line().as_deref(), Some("open"));
    }
    for worker in &mut workers {
        worker.tell("go");
    }
    let delivered = workers.map(|worker| worker.finish()[0].parse::<u32>().unwrap());
    assert_eq!(delivered.iter().sum::<u32>(), 16, "{delivered:?}");
    let settled = settlements(&**reader.ledger()).await;
    assert_eq!((settled.len(), settled.values().max()), (16, Some(&1)));
    assert_eq!(budget(&reader, &key).await, (place.charged_micros(), 0));
    assert_eq!(place.charged_micros(), 16_000_000);
    verify(&reader).await;
}

#[tokio::test]
async fn a_deliverer_that_dies_before_it_forgets_counts_once() {
    let place = Place::start();
    let kb = place.keybrake(place.sqlite("spend.db"), "journal").await.unwrap();
    let key = key(&kb).await;
    let permit_1 = permit(&kb, &key, "one").await;
    let blocked = block(&place, "spend.db");
    assert!(deliver(&kb, permit_1).await.record.journaled);
    drop(blocked);
    let file = files(&contents(&kb).path, ".journal").remove(0);
    let as_it_was = std::fs::read(&file).unwrap();
    assert_eq!(kb.deliver_outcomes().await.unwrap().delivered, 1);
    assert!(!file.exists());
    std::fs::write(&file, as_it_was).unwrap();
    chmod(&file, 0o600);
    assert_eq!(kb.deliver_outcomes().await.unwrap().delivered, 1);
    assert_eq!(budget(&kb, &key).await, (1_000_000, 0));
    let settled = settlements(&**kb.ledger()).await;
    assert_eq!(settled.values().collect::<Vec<_>>(), [&1]);
}

#[tokio::test]
async fn a_ledger_file_that_was_busy_gets_its_outcomes_and_replays_when_it_is_opened() {
    let place = Place::start();
    let kb = place.keybrake(place.sqlite("spend.db"), "journal").await.unwrap();
    let key = key(&kb).await;
    let permit_1 = permit(&kb, &key, "one").await;
    let blocked = block(&place, "spend.db");
    let done = deliver(&kb, permit_1).await;
    assert_eq!((done.status, done.record.journaled), (200, true));
    drop(blocked);
    assert_eq!(budget(&kb, &key).await, (0, 1_000_000));
    let again = place.keybrake(place.sqlite("spend.db"), "journal").await.unwrap();
    assert_eq!(budget(&again, &key).await, (1_000_000, 0));
    assert!(again.holds(HoldFilter::default()).await.unwrap().is_empty());
    // The recorded reply travelled with it, encrypted.
    let call = signed(&key, post("/v1/payment_intents", FORM));
    let sent = again.shell().send(call, generated(Some("one")), Duration::ZERO);
    let replayed = ended(sent.await.unwrap());
    assert!(replayed.record.replayed, "{replayed:?}");
    assert_eq!(replayed.id(), done.id());
    assert_eq!(place.charged_micros(), 1_000_000);
}

#[tokio::test]
async fn what_cannot_be_journaled_either_stays_held_and_says_so() {
    let place = Place::start();
    let kb = place.keybrake(place.sqlite("spend.db"), "journal").await.unwrap();
    let key = key(&kb).await;
    let permit_1 = permit(&kb, &key, "one").await;
    std::fs::write(place.path("journal"), "in the way").unwrap();
    let blocked = block(&place, "spend.db");
    let done = deliver(&kb, permit_1).await;
    drop(blocked);
    assert_eq!((done.status, place.charged_micros()), (200, 1_000_000));
    assert!(done.record.unrecorded && !done.record.journaled, "{done:?}");
    assert_eq!(budget(&kb, &key).await, (0, 1_000_000));
}

#[tokio::test]
async fn a_place_where_no_journal_can_be_hinders_nobody_until_it_is_needed() {
    let place = Place::start();
    std::fs::write(place.path("file"), "no directory").unwrap();
    let kb = place
        .keybrake(place.sqlite("spend.db"), "file/journal")
        .await
        .unwrap();
    let key = key(&kb).await;
    let permit_1 = permit(&kb, &key, "one").await;
    let permit_2 = permit(&kb, &key, "two").await;
    let done = deliver(&kb, permit_1).await;
    assert!(!done.record.unrecorded && !done.record.journaled, "{done:?}");
    let blocked = block(&place, "spend.db");
    assert!(deliver(&kb, permit_2).await.record.unrecorded);
    drop(blocked);
    assert_eq!(budget(&kb, &key).await, (1_000_000, 1_000_000));
}

#[tokio::test]
async fn many_outcomes_at_once_are_all_written_and_all_delivered() {
    let place = Place::start();
    let kb = place.keybrake(place.sqlite("spend.db"), "journal").await.unwrap();
    let key = key(&kb).await;
    let mut calls = Vec::new();
    for number in 0..200 {
        calls.push(permit(&kb, &key, &number.to_string()).await.call_id().to_owned());
    }
    let writers = calls.iter().map(|call| {
        let (journal, settlement) = (kb.brake().journal().unwrap().clone(), charged(call));
        tokio::spawn(async move { journal.append(settlement, 1).await })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap().unwrap();
    }
    let mut waiting: Vec<_> = contents(&kb)
        .waiting
        .into_iter()
        .map(|entry| entry.call_id)
        .collect();
    waiting.sort();
    calls.sort();
    assert_eq!(waiting, calls);
    assert_eq!(kb.deliver_outcomes().await.unwrap().delivered, 200);
    assert_eq!(budget(&kb, &key).await, (200_000_000, 0));
}

#[tokio::test]
async fn a_ledger_that_is_still_gone_leaves_everything() {
    let place = Place::start();
    let kb = place.keybrake(place.sqlite("spend.db"), "journal").await.unwrap();
    let key = key(&kb).await;
    let permits = [permit(&kb, &key, "one").await, permit(&kb, &key, "two").await];
    let blocked = block(&place, "spend.db");
    for permit in permits {
        assert!(deliver(&kb, permit).await.record.journaled);
    }
    let done = kb.deliver_outcomes().await.unwrap();
    assert_eq!((done.delivered, done.set_aside, done.left), (0, 0, 2));
    assert!(done.why.unwrap().contains("busy"));
    drop(blocked);
    kb.flush().await.unwrap();
    assert_eq!(budget(&kb, &key).await, (place.charged_micros(), 0));
    assert!(contents(&kb).waiting.is_empty());
}
