//! Strict durability of the Redis ledger (`replicas=N`): a decision is answered when replicas have it. And, in both
//! modes, a network that is cut between half of the processes and the server.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use keybrake::clock::{Clock as _, SystemClock};
use keybrake::error::ErrorKind;
use keybrake::ledger::redis::RedisLedger;
use keybrake::ledger::{CheckGrade, Event, EventKind, Ledger, State, StopScope};
use keybrake::policy::{Code, Policy};
use keybrake::secret::Secret;
use keybrake_testkit::redis::{Cluster, RedisOptions, RedisServer, Relay, Replicated};
use keybrake_testkit::stripe::{MovementKind, Simulator, SimulatorOptions, TEST_SECRET};
use keybrake_tests::books::{self, DOLLAR};
use keybrake_tests::crowd::{self, AMOUNT, Crowd, end_at};
use keybrake_tests::fleet::{self, books_agree, count, events_of, key, used_and_held};
use keybrake_tests::{ended, generated, post, refunds, signed};

const WORKER: &str = env!("CARGO_BIN_EXE_ledger_worker");

fn direct(server: &RedisServer, options: &str) -> String {
    format!("{}?ns=fleet&{options}", server.url())
}

fn sentinels(pair: &mut Replicated, options: &str) -> String {
    let (url, name) = (pair.sentinel().url(), pair.name());
    let address = url.trim_start_matches("redis://");
    format!("redis+sentinel://{address}/{name}?ns=fleet&{options}")
}

/// Spends what still fits; then everything that was granted is in the books, and they are at the cap exactly. Answers how
/// many calls are counted whose callers were refused.
async fn exactly_what_fits(ledger: &RedisLedger, mut granted: BTreeSet<String>, cap: i64) -> usize {
    // With its cap as it is now.
    let key = key(ledger, 0).await;
    for number in 0.. {
        let id = format!("rest-{number}");
        let answer = books::reserve(ledger, books::call(&key, &id, AMOUNT)).await;
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
    key(&ledger, crowd::FAR).await;
    let crowd = Crowd::start(WORKER, &url, 8, 64);
    crowd.wait_for("granted", 800);
    pair.failover().unwrap();
    let before = crowd.count("granted");

    // Until the new primary has a replica, nothing is let through; the old one becomes it.
    let port = pair.primary().port().to_string();
    crowd.wait_for("error", 1);
    pair.replica().restart().unwrap();
    pair.replica()
        .command(&["REPLICAOF", "127.0.0.1", port.as_str()])
        .unwrap();
    let mut by_hand = 0;
    // Settlements and refusals are not waited for. Were one of them lost, a person has to look.
    let look = async |error: keybrake::Error| {
        if error.to_string().contains("older data") {
            by_hand += usize::from(ledger.open_by_hand(books::admin()).await.unwrap_or(false));
        }
    };
    crowd.goes_on(before + 500, &ledger, look).await;
    let patient = fleet::open(&direct(pair.primary(), "timeout_ms=20000")).unwrap();
    let cap = end_at(&patient, 500).await;
    let said = crowd.finish();
    let (errors, mut granted) = (count(&said, "error"), crowd::granted(&said));
    let all = granted.len();
    assert!(errors > 0, "the failover met nothing");
    // This process's own probe may have been let through.
    let probe = patient.reservation("probe").await.unwrap();
    granted.extend(
        probe
            .filter(|probe| probe.state == State::Held)
            .map(|_| "probe".to_owned()),
    );
    let unanswered = exactly_what_fits(&patient, granted, cap).await;
    println!(
        "{before} granted before the failover, {all} in all, {errors} refused meanwhile; {unanswered} counted whose \
         callers were refused; opened by hand {by_hand} times"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_replica_nothing_is_let_through_and_it_goes_on_by_itself() {
    let mut pair = Replicated::start(&RedisOptions::new()).unwrap();
    let url = direct(pair.primary(), "timeout_ms=6000&replicas=1");
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
        6_000
    );
    assert!(took_ms < 60_000, "{took_ms} ms");
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
    let url = direct(pair.primary(), "timeout_ms=6000&replicas=1");
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
        .ledger(direct(pair.primary(), "timeout_ms=6000&replicas=1"))
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
        key(&ledger, crowd::FAR).await;
        let near = Crowd::start(WORKER, &direct(pair.primary(), options), 4, 16);
        let far = Crowd::start(WORKER, &format!("{}?ns=fleet&{options}", relay.url()), 4, 16);
        near.wait_for("granted", 200);
        far.wait_for("granted", 200);
        relay.partition();
        let before = near.count("granted");
        far.wait_for("error", 4);
        let by_far = far.reserved(&ledger).await;
        near.wait_for("granted", before + 300);
        assert_eq!(
            far.reserved(&ledger).await,
            by_far,
            "the cut let something through"
        );
        let cap = end_at(&ledger, 500).await;
        relay.pass().unwrap();
        let errors = far.count("error");
        let mut granted = crowd::granted(&near.finish());
        let by_near = granted.len();
        granted.extend(crowd::granted(&far.finish()));
        let all = granted.len();
        let unanswered = exactly_what_fits(&ledger, granted, cap).await;
        println!(
            "strict {strict}: {by_near} granted to the near, {} to the far, {errors} refused while it was cut; \
             {unanswered} counted whose callers were refused",
            all - by_near
        );
    }
}
