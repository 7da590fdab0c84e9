//! Strict durability of the Redis ledger (`replicas=N`): a decision is answered when replicas have it. And, in both
//! modes, a network that is cut between half of the processes and the server.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use keybrake::clock::{Clock as _, SystemClock};
use keybrake::error::ErrorKind;
use keybrake::ledger::redis::RedisLedger;
use keybrake::ledger::{CheckGrade, Event, EventKind, KeyRecord, Ledger, StopScope};
use keybrake::policy::{Code, Policy};
use keybrake::secret::Secret;
use keybrake_testkit::redis::{Cluster, PATIENCE, RedisOptions, RedisServer, Relay, Replicated};
use keybrake_testkit::stripe::{MovementKind, Simulator, SimulatorOptions, TEST_SECRET};
use keybrake_tests::books::{self, DOLLAR};
use keybrake_tests::fleet::{self, books_agree, count, events_of, key, used_and_held};
use keybrake_tests::processes::Worker;
use keybrake_tests::{ended, generated, post, refunds, signed};

const WORKER: &str = env!("CARGO_BIN_EXE_ledger_worker");
/// Of one call.
const AMOUNT: i64 = 3;

fn direct(server: &RedisServer, options: &str) -> String {
    format!("{}?ns=fleet&{options}", server.url())
}

fn sentinels(pair: &mut Replicated, options: &str) -> String {
    let (url, name) = (pair.sentinel().url(), pair.name());
    let address = url.trim_start_matches("redis://");
    format!("redis+sentinel://{address}/{name}?ns=fleet&{options}")
}

/// Processes that reserve until the cap refuses them, and what they have said so far.
struct Crowd {
    readers: Vec<std::thread::JoinHandle<()>>,
    said: Arc<(Mutex<Vec<String>>, Condvar)>,
}

impl Crowd {
    fn start(url: &str, processes: u32, tasks: u32) -> Self {
        let said: Arc<(Mutex<Vec<String>>, Condvar)> = Arc::default();
        let readers = (0..processes).map(|_| {
            let mut command = Command::new(WORKER);
            let words = [url, "vk_1", "fill", "1000000"];
            let mut worker =
                Worker::start(command.args(words).arg(AMOUNT.to_string()).arg(tasks.to_string()));
            let said = Arc::clone(&said);
            std::thread::spawn(move || {
                while let Some(line) = worker.next_line() {
                    said.0.lock().unwrap().push(line);
                    said.1.notify_all();
                }
                worker.finish();
            })
        });
        Self {
            readers: readers.collect(),
            said,
        }
    }

    fn count(&self, word: &str) -> usize {
        count(&self.said.0.lock().unwrap(), word)
    }

    /// Waits until so many lines begin so.
    fn wait_for(&self, word: &str, least: usize) {
        let said = self.said.0.lock().unwrap();
        let enough = |said: &mut Vec<String>| count(said, word) < least;
        let (said, out) = self
            .said
            .1
            .wait_timeout_while(said, PATIENCE * 6, enough)
            .unwrap();
        let (is, last) = (count(&said, word), said.last());
        assert!(
            !out.timed_out(),
            "{is} of {least} {word}; the last line: {last:?}"
        );
    }

    fn ended(&self) -> bool {
        self.readers.iter().all(std::thread::JoinHandle::is_finished)
    }

    /// Ids that were granted, once all have ended.
    fn finish(self) -> BTreeSet<String> {
        for reader in self.readers {
            reader.join().unwrap();
        }
        let said = self.said.0.lock().unwrap();
        let granted = said.iter().filter_map(|line| line.strip_prefix("granted "));
        granted.map(str::to_owned).collect()
    }
}

/// Spends what still fits; then everything that was granted is in the books, and they are at the cap exactly. Answers how
/// many calls are counted whose callers were refused.
async fn exactly_what_fits(
    ledger: &RedisLedger,
    key: &KeyRecord,
    mut granted: BTreeSet<String>,
    cap: i64,
) -> usize {
    for number in 0.. {
        let id = format!("rest-{number}");
        let answer = books::reserve(ledger, books::call(key, &id, AMOUNT)).await;
        if let Err(code) = answer.unwrap() {
            assert!(matches!(code.as_str(), "CapHeld" | "CapExceeded"), "{code}");
            break;
        }
        granted.insert(id);
    }
    let calls = |events: Vec<Event>| -> BTreeSet<String> {
        events.into_iter().filter_map(|event| event.call_id).collect()
    };
    let reserved = calls(events_of(ledger, EventKind::Reserved).await);
    let voided = calls(events_of(ledger, EventKind::Voided).await);
    let counted: BTreeSet<String> = reserved.difference(&voided).cloned().collect();
    let missing: Vec<&String> = granted.difference(&counted).collect();
    assert!(
        missing.is_empty(),
        "{} acknowledged and gone: {missing:?}",
        missing.len()
    );
    let (used, held) = used_and_held(ledger).await;
    assert_eq!(used + held, cap, "{used} used and {held} held");
    assert_eq!(i64::try_from(counted.len()).unwrap() * AMOUNT, cap);
    books_agree(ledger).await;
    counted.len() - granted.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promoted_replica_has_every_reserve_that_was_acknowledged() {
    let mut pair = Replicated::start(&RedisOptions::new()).unwrap();
    let url = sentinels(&mut pair, "timeout_ms=4000&replicas=1");
    let ledger = fleet::open(&url).unwrap();
    let cap = AMOUNT * 3_000;
    let record = key(&ledger, cap).await;
    let crowd = Crowd::start(&url, 8, 64);
    crowd.wait_for("granted", 800);
    pair.failover().unwrap();
    let before = crowd.count("granted");

    // Until the new primary has a replica, nothing is let through; the old one becomes it.
    let port = pair.primary().port().to_string();
    pair.replica().restart().unwrap();
    pair.replica()
        .command(&["REPLICAOF", "127.0.0.1", port.as_str()])
        .unwrap();
    let mut by_hand = 0;
    while !crowd.ended() {
        // Settlements and refusals are not waited for. Were one of them lost, a person has to look.
        if let Err(error) = books::reserve(&ledger, books::call(&record, "probe", AMOUNT)).await
            && error.to_string().contains("older data")
        {
            by_hand += usize::from(ledger.open_by_hand(books::admin()).await.unwrap_or(false));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let errors = crowd.count("error");
    let granted = crowd.finish();
    assert!(granted.len() > before, "they did not go on after the failover");
    assert!(errors > 0, "the failover met nothing");
    let all = granted.len();
    let unanswered = exactly_what_fits(&ledger, &record, granted, cap).await;
    println!(
        "{before} granted before the failover, {all} in all, {errors} refused meanwhile; {unanswered} counted whose \
         callers were refused; opened by hand {by_hand} times"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_replica_nothing_is_let_through_and_it_goes_on_by_itself() {
    let mut pair = Replicated::start(&RedisOptions::new()).unwrap();
    let url = direct(pair.primary(), "timeout_ms=1000&replicas=1");
    let ledger = Arc::new(fleet::open(&url).unwrap());
    let record = key(&*ledger, 100 * DOLLAR).await;
    let reserve = |id: &'static str| {
        let (ledger, record) = (Arc::clone(&ledger), record.clone());
        async move { books::reserve(&*ledger, books::call(&record, id, DOLLAR)).await }
    };
    for id in ["one", "two"] {
        reserve(id).await.unwrap().unwrap();
    }
    pair.replica().stop().unwrap();

    let clock = SystemClock;
    let began_ms = clock.boot_ms();
    let calls = ["three", "four", "five"].map(|id| tokio::spawn(reserve(id)));
    for call in calls {
        let error = call.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LedgerUnavailable, "{error}");
        let said = error.to_string();
        assert!(said.contains("replication: 0 of the 1 replicas"), "{said}");
    }
    let took_ms = clock.boot_ms() - began_ms;
    println!(
        "three calls refused within {took_ms} ms of {} that they may take",
        1_000
    );
    assert!(took_ms < 10_000, "{took_ms} ms");
    // They were taken back: nothing of them is held.
    assert_eq!(used_and_held(&*ledger).await, (0, 2 * DOLLAR));
    assert_eq!(events_of(&*ledger, EventKind::Voided).await.len(), 3);

    // From now on they are refused before anything is written; an outcome is recorded as ever.
    let events = ledger.info().await.unwrap().last_seq;
    reserve("six").await.unwrap_err();
    assert_eq!(ledger.info().await.unwrap().last_seq, events);
    ledger.settle(books::charged("one", DOLLAR)).await.unwrap();
    assert_eq!(used_and_held(&*ledger).await, (DOLLAR, DOLLAR));
    // A stop stands, and whoever set it is told that it may be lost.
    let error = ledger
        .stop(StopScope::Run("run_9".to_owned()), books::admin())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("it is done on the primary"), "{error}");
    assert_eq!(ledger.stops().await.unwrap().len(), 1);
    let checks = ledger.checks().await.unwrap();
    let replicas = checks.iter().find(|check| check.name == "replicas").unwrap();
    assert_eq!(replicas.grade, CheckGrade::Bad, "{replicas:?}");

    pair.replica().cont().unwrap();
    pair.wait_in_step().unwrap();
    for id in ["three", "four", "five", "six"] {
        // Those that were given up are told apart from new ones by their ids; each is asked for under a new one.
        books::reserve(&*ledger, books::call(&record, &format!("{id} again"), DOLLAR))
            .await
            .unwrap()
            .unwrap();
    }
    assert_eq!(used_and_held(&*ledger).await, (DOLLAR, 5 * DOLLAR));
    let checks = ledger.checks().await.unwrap();
    let replicas = checks.iter().find(|check| check.name == "replicas").unwrap();
    assert_eq!(replicas.grade, CheckGrade::Good, "{replicas:?}");
    books_agree(&*ledger).await;
}

/// A call that joins another's hold needs replicas as much, and its void takes nothing from the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_joined_call_that_no_replica_has_is_refused_and_the_first_stays_held() {
    let mut pair = Replicated::start(&RedisOptions::new()).unwrap();
    let url = direct(pair.primary(), "timeout_ms=1000&replicas=1");
    let ledger = fleet::open(&url).unwrap();
    let record = key(&ledger, 100 * DOLLAR).await;
    let twin = |id: &str| {
        let mut twin = books::call(&record, "one", DOLLAR);
        Arc::make_mut(&mut twin.facts).call_id = id.to_owned();
        twin
    };
    books::reserve(&ledger, twin("one")).await.unwrap().unwrap();
    pair.replica().stop().unwrap();
    let error = books::reserve(&ledger, twin("two")).await.unwrap_err();
    assert!(error.to_string().contains("replication"), "{error}");
    assert_eq!(used_and_held(&ledger).await, (0, DOLLAR));
    pair.replica().cont().unwrap();
    pair.wait_in_step().unwrap();
    let joined = books::reserve(&ledger, twin("three")).await.unwrap().unwrap();
    assert!(joined.joined);
    assert_eq!(used_and_held(&ledger).await, (0, DOLLAR));
    books_agree(&ledger).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_byte_reaches_the_vendor_while_the_replica_is_silent() {
    let mut pair = Replicated::start(&RedisOptions::new()).unwrap();
    let stripe = Simulator::start(SimulatorOptions::default()).unwrap();
    let kb = keybrake::Keybrake::builder()
        .ledger(direct(pair.primary(), "timeout_ms=1000&replicas=1"))
        .secret("stripe", Secret::value(TEST_SECRET))
        .base_url("stripe", stripe.url())
        .build()
        .await
        .unwrap();
    let issued = kb
        .issue(Policy::from_value(&refunds(250)).unwrap())
        .run("run_1")
        .await
        .unwrap();
    let send = |step: &'static str| {
        let call = signed(&issued, post("/v1/refunds", "charge=ch_1&amount=400"));
        let shell = Arc::clone(kb.shell());
        async move {
            ended(
                shell
                    .send(call, generated(Some(step)), Duration::ZERO)
                    .await
                    .unwrap(),
            )
        }
    };
    pair.replica().stop().unwrap();
    let refused = send("one").await;
    let denial = refused.denial.unwrap();
    assert_eq!(denial.code, Code::LedgerUnavailable);
    assert!(denial.message.contains("replication"), "{}", denial.message);
    assert_eq!(refused.status, 503);
    assert_eq!(stripe.moved(MovementKind::Refund, "usd"), 0);
    pair.replica().cont().unwrap();
    pair.wait_in_step().unwrap();
    assert_eq!(send("one").await.status, 200);
    assert_eq!(stripe.moved(MovementKind::Refund, "usd"), 400);
}

#[test]
fn a_server_with_too_few_replicas_is_refused_with_what_to_do() {
    let alone = RedisServer::start(RedisOptions::new()).unwrap();
    let said = |url: &str| fleet::open(url).map(|_| ()).unwrap_err().to_string();
    let error = said(&direct(&alone, "replicas=1"));
    for words in [
        "demands 1 replica (replicas=1), and its server has 0",
        "lower replicas= in the URL",
        "use the URL without replicas=",
    ] {
        assert!(error.contains(words), "{error}");
    }
    let mut pair = Replicated::start(&RedisOptions::new()).unwrap();
    let error = said(&sentinels(&mut pair, "replicas=2"));
    assert!(
        error.contains("demands 2 replicas (replicas=2), and its server has 1"),
        "{error}"
    );
    let cluster = Cluster::start(&RedisOptions::new()).unwrap();
    let seeds: Vec<String> = cluster.urls();
    let seeds: Vec<&str> = seeds
        .iter()
        .map(|url| url.trim_start_matches("redis://"))
        .collect();
    let error = said(&format!(
        "redis+cluster://{}?ns=fleet&replicas=1",
        seeds.join(",")
    ));
    assert!(error.contains("and its server has 0"), "{error}");

    // A user that may not wait is told which right is missing.
    let primary = pair.primary();
    primary
        .command(&["ACL", "SETUSER", "kb", "on", ">p", "~*", "+@all", "-wait"])
        .unwrap();
    let url = format!("redis://kb:p@127.0.0.1:{}?ns=fleet&replicas=1", primary.port());
    let error = said(&url);
    assert!(error.contains("add +wait"), "{error}");
}

/// The network between half of the processes and the server is cut: those are refused, the others go on, and when it is
/// whole again the cap is spent exactly.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_of_the_processes_are_cut_off_and_the_books_stay_exact() {
    for strict in [false, true] {
        let options = if strict {
            "timeout_ms=2000&replicas=1"
        } else {
            "timeout_ms=2000"
        };
        let mut pair = Replicated::start(&RedisOptions::new()).unwrap();
        // Nobody is to be promoted, however slow this machine is.
        pair.sentinel().kill().unwrap();
        let relay = Relay::start(pair.primary().port()).unwrap();
        let patient = direct(pair.primary(), "timeout_ms=20000");
        let ledger = fleet::open(&patient).unwrap();
        let cap = AMOUNT * 3_000;
        let record = key(&ledger, cap).await;
        let near = Crowd::start(&direct(pair.primary(), options), 4, 16);
        let far = Crowd::start(&format!("{}?ns=fleet&{options}", relay.url()), 4, 16);
        near.wait_for("granted", 200);
        far.wait_for("granted", 200);
        relay.partition();
        let before = near.count("granted");
        far.wait_for("error", 4);
        let refused_from = far.count("granted");
        near.wait_for("granted", before + 300);
        assert_eq!(
            far.count("granted"),
            refused_from,
            "the cut let something through"
        );
        relay.pass().unwrap();
        let errors = far.count("error");
        let mut granted = near.finish();
        let by_near = granted.len();
        granted.extend(far.finish());
        let all = granted.len();
        let unanswered = exactly_what_fits(&ledger, &record, granted, cap).await;
        println!(
            "strict {strict}: {by_near} granted to the near, {} to the far, {errors} refused while it was cut; \
             {unanswered} counted whose callers were refused",
            all - by_near
        );
    }
}
