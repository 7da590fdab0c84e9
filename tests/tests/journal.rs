//! Outcomes that the ledger could not take when they were known: none is lost, each is counted once, and the books equal
//! the simulator's journal in the end.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed unwrap is a failed test"
)]

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use keybrake::brake::{CallContext, Decision, KeyOrigin, Permit};
use keybrake::clock::SystemClock;
use keybrake::facade::{IssuedKey, Keybrake};
use keybrake::journal::{Contents, Journal};
use keybrake::ledger::sqlite::{SqliteLedger, SqliteOptions};
use keybrake::ledger::{EventFilter, EventKind, HoldFilter, Ledger, Proof, ReplyFacts, Settlement};
use keybrake::policy::Policy;
use keybrake::secret::Secret;
use keybrake::{ErrorKind, Usd};
use keybrake_testkit::redis::{RedisOptions, RedisServer, Relay};
use keybrake_testkit::stripe::{MovementKind, Simulator, SimulatorOptions, TEST_SECRET};
use keybrake_tests::processes::Worker;
use keybrake_tests::{Ended, ended, noon_zone, post};
use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A payment of one dollar.
const FORM: &str = "amount=100&currency=usd&confirm=true&payment_method=pm_card_visa";
const LIMIT: Duration = Duration::from_secs(30);

/// A vendor, and a directory for ledgers and journals.
struct Place {
    stripe: Simulator,
    directory: TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            stripe: Simulator::start(SimulatorOptions::default()).unwrap(),
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    async fn keybrake(&self, ledger: Arc<dyn Ledger>, journal: &str) -> keybrake::Result<Keybrake> {
        Keybrake::builder()
            .shared_ledger(ledger)
            .secret("stripe", Secret::value(TEST_SECRET))
            .base_url("stripe", self.stripe.url())
            .journal_dir(self.path(journal))
            .build()
            .await
    }

    /// A ledger file whose writers wait for each other shortly.
    fn sqlite(&self, name: &str) -> Arc<dyn Ledger> {
        let options = SqliteOptions {
            wait_ms: 300,
            ..SqliteOptions::default()
        };
        let path = self.path(name);
        let ledger = SqliteLedger::open(path.to_str().unwrap(), "default", Arc::new(SystemClock), options);
        Arc::new(ledger.unwrap())
    }

    /// Keeps every writer out of a ledger file for as long as it lives.
    fn block(&self, name: &str) -> Flock<std::fs::File> {
        let file = std::fs::File::open(self.path(&format!("{name}.lock"))).unwrap();
        Flock::lock(file, FlockArg::LockExclusive).unwrap()
    }

    fn command(&self, program: &str, ledger: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("KEYBRAKE_LEDGER", ledger)
            .env("KEYBRAKE_JOURNAL_DIR", self.path("journal"));
        command
    }

    /// The `keybrake` command in a process of its own.
    fn cli(&self, ledger: &str, args: &[&str]) -> (Output, Value) {
        let mut command = self.command(env!("CARGO_BIN_EXE_governed_worker"), ledger);
        let done = command.args(["keybrake", "--json"]).args(args).output().unwrap();
        let said = serde_json::from_slice(&done.stdout).unwrap();
        (done, said)
    }

    /// What the vendor charged, in micro-USD.
    fn charged_micros(&self) -> i64 {
        self.stripe.moved(MovementKind::Charge, "usd") * 10_000
    }
}

fn open(url: &str) -> Arc<dyn Ledger> {
    keybrake::ledger::open(url, Arc::new(SystemClock)).unwrap()
}

fn url(port: u16) -> String {
    format!("redis://127.0.0.1:{port}?ns=test&timeout_ms=1000")
}

async fn key(kb: &Keybrake) -> IssuedKey {
    let policy = json!({"vendor": "stripe", "label": "support", "daily_usd_cap": 500, "timezone": noon_zone(),
        "allowed_endpoints": ["payment_intents.create"]});
    kb.issue(Policy::from_value(&policy).unwrap()).await.unwrap()
}

/// A permit for that payment.
async fn permit(kb: &Keybrake, key: &IssuedKey, step: &str) -> Permit {
    let mut call = post("/v1/payment_intents", FORM);
    let bearer = format!("Bearer {}", key.token.expose());
    call.headers.push(("Authorization".to_owned(), bearer));
    let context = CallContext {
        step: Some(step.to_owned()),
        key_origin: KeyOrigin::Generated,
        ..CallContext::default()
    };
    match kb.brake().authorize(call, context).await.unwrap() {
        Decision::Permit(permit) => *permit,
        Decision::Denied(refused) => panic!("{:?}", refused.denial),
        _ => panic!("no permit"),
    }
}

async fn deliver(kb: &Keybrake, permit: Permit) -> Ended {
    ended(kb.shell().deliver(permit).await.unwrap())
}

/// Used and held of the key's budget, in micro-USD.
async fn budget(kb: &Keybrake, key: &IssuedKey) -> (i64, i64) {
    let usage = kb.usage(&key.id).await.unwrap();
    let view = &usage.iter().find(|budget| !budget.livemode).unwrap().view;
    (view.used, view.held)
}

fn contents(kb: &Keybrake) -> Contents {
    kb.brake().journal().unwrap().contents().unwrap()
}

/// Waits for something that happens in the background.
async fn eventually(mut happened: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !happened().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, wait).await.unwrap();
}

fn files(directory: &Path, end: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.to_str().unwrap().ends_with(end))
        .collect()
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o7777
}

fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
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
    let place = Place::new();
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
    let place = Place::new();
    let redis = RedisServer::start(RedisOptions::new()).unwrap();
    let relay = Relay::start(redis.port()).unwrap();
    let (direct, relayed) = (url(redis.port()), url(relay.port()));
    let kb = place.keybrake(open(&direct), "elsewhere").await.unwrap();
    let key = key(&kb).await;
    let mut command = place.command(env!("CARGO_BIN_EXE_journal_worker"), &relayed);
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
    let (done, said) = place.cli(&relayed, &["doctor"]);
    assert_eq!(done.status.code(), Some(3));
    assert!(said.to_string().contains("1 waiting outcome in"), "{said}");
    relay.pass().unwrap();
    let (_, said) = place.cli(&relayed, &["holds", "list"]);
    assert_eq!(said["holds"][0]["journaled"], true, "{said}");
    let (_, said) = place.cli(&relayed, &["doctor"]);
    assert!(said.to_string().contains("1 waiting outcome delivered"), "{said}");
    assert_eq!(budget(&kb, &key).await, (place.charged_micros(), 0));
    let (_, said) = place.cli(&relayed, &["doctor"]);
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
    let place = Place::new();
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
        let mut command = place.command(env!("CARGO_BIN_EXE_journal_worker"), &direct);
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
    let place = Place::new();
    let kb = place.keybrake(place.sqlite("spend.db"), "journal").await.unwrap();
    let key = key(&kb).await;
    let permit_1 = permit(&kb, &key, "one").await;
    let blocked = place.block("spend.db");
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
    let place = Place::new();
    let kb = place.keybrake(place.sqlite("spend.db"), "journal").await.unwrap();
    let key = key(&kb).await;
    let permit_1 = permit(&kb, &key, "one").await;
    let blocked = place.block("spend.db");
    let done = deliver(&kb, permit_1).await;
    assert_eq!((done.status, done.record.journaled), (200, true));
    drop(blocked);
    assert_eq!(budget(&kb, &key).await, (0, 1_000_000));
    let again = place.keybrake(place.sqlite("spend.db"), "journal").await.unwrap();
    assert_eq!(budget(&again, &key).await, (1_000_000, 0));
    assert!(again.holds(HoldFilter::default()).await.unwrap().is_empty());
    // The recorded reply travelled with it, encrypted.
    let mut call = post("/v1/payment_intents", FORM);
    let bearer = format!("Bearer {}", key.token.expose());
    call.headers.push(("Authorization".to_owned(), bearer));
    let context = CallContext {
        step: Some("one".to_owned()),
        key_origin: KeyOrigin::Generated,
        ..CallContext::default()
    };
    let replayed = ended(again.shell().send(call, context, Duration::ZERO).await.unwrap());
    assert!(replayed.record.replayed, "{replayed:?}");
    assert_eq!(replayed.id(), done.id());
    assert_eq!(place.charged_micros(), 1_000_000);
}

fn charged(call_id: &str) -> Settlement {
    Settlement {
        call_id: call_id.to_owned(),
        attempt: 1,
        proof: Proof::Charged {
            actual: Usd::from_micros(1_000_000),
        },
        object: None,
        reply: None,
        facts: ReplyFacts::default(),
    }
}

#[tokio::test]
async fn what_is_damaged_or_refused_is_set_aside_and_stops_no_other() {
    let place = Place::new();
    let kb = place.keybrake(place.sqlite("spend.db"), "journal").await.unwrap();
    let key = key(&kb).await;
    let journal = kb.brake().journal().unwrap();
    let mut calls = Vec::new();
    for step in ["damaged", "whole", "torn"] {
        // Their permits are dropped, as by a crash.
        calls.push(permit(&kb, &key, step).await.call_id().to_owned());
    }
    let unknown = "call_of_nobody".to_owned();
    for call in [&calls[0], &unknown, &calls[1], &calls[2]] {
        journal.append(charged(call), 1).await.unwrap();
    }
    let file = files(&contents(&kb).path, ".journal").remove(0);
    let mut content = std::fs::read(&file).unwrap();
    content[60] ^= 1;
    content.truncate(content.len() - 5);
    std::fs::write(&file, &content).unwrap();
    assert_eq!((contents(&kb).damaged, contents(&kb).waiting.len()), (2, 2));

    let done = kb.deliver_outcomes().await.unwrap();
    assert_eq!((done.delivered, done.set_aside, done.left), (1, 3, 0), "{done:?}");
    assert_eq!(budget(&kb, &key).await, (1_000_000, 2_000_000));
    assert!(!file.exists());
    let aside = contents(&kb).set_aside;
    assert_eq!((aside.len(), mode(&aside[0])), (1, 0o600));
    let kept = std::fs::read(&aside[0]).unwrap();
    let text = String::from_utf8_lossy(&kept);
    assert!(text.contains("# its checksum does not match\n"), "{text}");
    assert!(text.contains("# it is cut off\n"), "{text}");
    assert!(text.contains("no call call_of_nobody in this ledger"), "{text}");
    for line in content.split(|byte| *byte == b'\n') {
        let delivered = String::from_utf8_lossy(line).contains(&calls[1]);
        let kept = kept.windows(line.len()).any(|window| window == line);
        assert_eq!(kept, !delivered, "{}", String::from_utf8_lossy(line));
    }
    assert_eq!(kb.deliver_outcomes().await.unwrap().set_aside, 0, "once");
}

/// The checksum of a line.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

/// During an upgrade an older process finds what a newer one wrote: it delivers its own, and leaves that alone.
#[tokio::test]
async fn an_outcome_of_a_newer_version_is_left_for_it() {
    let place = Place::new();
    let kb = place.keybrake(place.sqlite("spend.db"), "journal").await.unwrap();
    let key = key(&kb).await;
    let call = permit(&kb, &key, "known").await.call_id().to_owned();
    kb.brake()
        .journal()
        .unwrap()
        .append(charged(&call), 1)
        .await
        .unwrap();
    let file = files(&contents(&kb).path, ".journal").remove(0);
    let json = "{\"v\":2,\"ledger\":\"l\",\"settlement\":{\"proof\":{\"witnessed\":{}}}}";
    let newer = format!("w {:08x} {:08x} {json}\n", json.len(), crc32(json.as_bytes()));
    let mut content = std::fs::read(&file).unwrap();
    content.extend(newer.bytes());
    std::fs::write(&file, &content).unwrap();
    for delivered in [1, 0] {
        let done = kb.deliver_outcomes().await.unwrap();
        assert_eq!(
            (done.delivered, done.set_aside, done.left),
            (delivered, 0, 1),
            "{done:?}"
        );
        assert!(done.why.unwrap().contains("newer version"));
    }
    let there = contents(&kb);
    assert_eq!((there.newer, there.damaged, there.waiting.len()), (1, 0, 0));
    assert!(std::fs::read_to_string(&file).unwrap().ends_with(&newer));
}

#[tokio::test]
async fn outcomes_of_another_ledger_are_not_delivered_to_this_one() {
    let place = Place::new();
    let one = place.keybrake(place.sqlite("one.db"), "journal").await.unwrap();
    let key = key(&one).await;
    let call = permit(&one, &key, "one").await.call_id().to_owned();
    one.brake()
        .journal()
        .unwrap()
        .append(charged(&call), 1)
        .await
        .unwrap();
    let other = place.keybrake(place.sqlite("other.db"), "journal").await.unwrap();
    assert_eq!(other.deliver_outcomes().await.unwrap().delivered, 0);
    assert_eq!(contents(&one).waiting.len(), 1);
    // Not even when somebody moves the file there.
    let file = files(&contents(&one).path, ".journal").remove(0);
    let there = contents(&other).path;
    std::fs::create_dir(&there).unwrap();
    chmod(&there, 0o700);
    std::fs::rename(&file, there.join(file.file_name().unwrap())).unwrap();
    let done = other.deliver_outcomes().await.unwrap();
    assert_eq!((done.delivered, done.set_aside), (0, 1));
    let aside = std::fs::read_to_string(&contents(&other).set_aside[0]).unwrap();
    assert!(aside.contains("it belongs to the ledger"), "{aside}");
}

#[tokio::test]
async fn a_directory_or_a_file_that_is_not_ours_alone_is_refused() {
    let place = Place::new();
    let ledger = place.sqlite("spend.db");
    let kb = place.keybrake(ledger.clone(), "journal").await.unwrap();
    let key = key(&kb).await;
    let call = permit(&kb, &key, "one").await.call_id().to_owned();
    let journal = kb.brake().journal().unwrap();
    journal.append(charged(&call), 1).await.unwrap();
    let inner = contents(&kb).path;
    let file = files(&inner, ".journal").remove(0);

    for directory in [&place.path("journal"), &inner] {
        chmod(directory, 0o750);
        let refused = place.keybrake(ledger.clone(), "journal").await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Config);
        assert!(refused.to_string().contains("chmod 700"), "{refused}");
        assert!(kb.deliver_outcomes().await.is_err());
        assert!(journal.append(charged(&call), 1).await.is_err());
        chmod(directory, 0o700);
    }
    std::os::unix::fs::symlink(place.path("journal"), place.path("link")).unwrap();
    let refused = place.keybrake(ledger.clone(), "link").await.unwrap_err();
    assert!(refused.to_string().contains("is not a directory"), "{refused}");
    // As root we can make one of another user, else there is one.
    std::fs::create_dir(place.path("foreign")).unwrap();
    let given_away = std::os::unix::fs::chown(place.path("foreign"), Some(65_534), None).is_ok();
    let foreign = if given_away {
        place.path("foreign")
    } else {
        "/usr".into()
    };
    let refused = Journal::at(&foreign, "id", "default").unwrap_err();
    assert!(refused.to_string().contains("belongs to user"), "{refused}");

    chmod(&file, 0o640);
    let done = kb.deliver_outcomes().await.unwrap();
    assert_eq!((done.delivered, done.left), (0, 1), "{done:?}");
    chmod(&file, 0o600);
    assert_eq!(kb.deliver_outcomes().await.unwrap().delivered, 1);
    assert_eq!(budget(&kb, &key).await, (1_000_000, 0));
}

#[tokio::test]
async fn what_cannot_be_journaled_either_stays_held_and_says_so() {
    let place = Place::new();
    let kb = place.keybrake(place.sqlite("spend.db"), "journal").await.unwrap();
    let key = key(&kb).await;
    let permit_1 = permit(&kb, &key, "one").await;
    std::fs::write(place.path("journal"), "in the way").unwrap();
    let blocked = place.block("spend.db");
    let done = deliver(&kb, permit_1).await;
    drop(blocked);
    assert_eq!((done.status, place.charged_micros()), (200, 1_000_000));
    assert!(done.record.unrecorded && !done.record.journaled, "{done:?}");
    assert_eq!(budget(&kb, &key).await, (0, 1_000_000));
}

#[tokio::test]
async fn a_place_where_no_journal_can_be_hinders_nobody_until_it_is_needed() {
    let place = Place::new();
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
    let blocked = place.block("spend.db");
    assert!(deliver(&kb, permit_2).await.record.unrecorded);
    drop(blocked);
    assert_eq!(budget(&kb, &key).await, (1_000_000, 1_000_000));
}

#[tokio::test]
async fn many_outcomes_at_once_are_all_written_and_all_delivered() {
    let place = Place::new();
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
    let place = Place::new();
    let kb = place.keybrake(place.sqlite("spend.db"), "journal").await.unwrap();
    let key = key(&kb).await;
    let permits = [permit(&kb, &key, "one").await, permit(&kb, &key, "two").await];
    let blocked = place.block("spend.db");
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
