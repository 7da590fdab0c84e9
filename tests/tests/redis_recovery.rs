//! What live processes say again after their server came back without some of the log, and what keeps the ledger closed.
#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a failed unwrap is a failed test"
)]

use std::sync::Arc;

use keybrake::audit::{Audit, RowFilter};
use keybrake::clock::SystemClock;
use keybrake::error::ErrorKind;
use keybrake::ledger::redis::RedisLedger;
use keybrake::ledger::{
    Ask, EventFilter, EventKind, Grant, HoldFilter, KeyRecord, LeaseAnswer, LeaseAsk, LeasedCall, Ledger,
    StopScope, WindowKind,
};
use keybrake_testkit::redis::{Persistence, RedisOptions, RedisServer, Replicated};
use keybrake_tests::books::{self, DOLLAR, NOW_MS, admin, call, charged, lifetime, reserve};
use keybrake_tests::eventually;
use keybrake_tests::fleet::{Fleet, books_agree, events_of, used_and_held, wait_for_everybody};

async fn spend(ledger: &RedisLedger, key: &KeyRecord, id: &str) {
    reserve(ledger, call(key, id, DOLLAR)).await.unwrap().unwrap();
    ledger.settle(charged(id, DOLLAR)).await.unwrap();
}

async fn hold(ledger: &RedisLedger, key: &KeyRecord, id: &str) -> Grant {
    reserve(ledger, call(key, id, DOLLAR)).await.unwrap().unwrap()
}

async fn assert_closed(ledger: &RedisLedger, key: &KeyRecord, why: &str) {
    let error = ledger.reserve(call(key, "closed", DOLLAR)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LedgerRecovering, "{error}");
    assert!(error.to_string().contains(why), "{error}");
}

fn sentinels(pair: &mut Replicated) -> String {
    let (url, name) = (pair.sentinel().url(), pair.name());
    let address = url.trim_start_matches("redis://");
    format!("redis+sentinel://{address}/{name}?ns=fleet&timeout_ms=20000")
}

fn open(url: &str) -> RedisLedger {
    RedisLedger::open(url, Arc::new(SystemClock), None).unwrap()
}

/// Numbers of all events: rising, and none that was seen before the loss is another event's afterwards.
async fn numbers(ledger: &RedisLedger) -> Vec<u64> {
    let all = ledger.events(EventFilter::default()).await.unwrap();
    all.iter().map(|event| event.seq).collect()
}

/// Redis restarts from yesterday's file. A newcomer is refused; the processes that were at work say again what they did,
/// and then the books are what was reserved.
#[tokio::test]
async fn scenario_09_old_snapshot() {
    let mut fleet = Fleet::start(Persistence::Always);
    let (ledger, key) = fleet.with_key(20 * DOLLAR).await;
    wait_for_everybody(&fleet.server);
    let other = fleet.open();
    spend(&other, &key, "one").await;
    let joined = hold(&ledger, &key, "open yesterday").await;
    let yesterday = fleet.server.copy_data().unwrap();
    spend(&ledger, &key, "two").await;
    hold(&other, &key, "three").await;
    // A call of one process that another ends, and one that was open yesterday.
    ledger.settle(charged("three", DOLLAR)).await.unwrap();
    other.settle(charged(&joined.call_id, DOLLAR)).await.unwrap();
    hold(&other, &key, "four").await;
    let second = books::key(&other, "vk_2", &[lifetime("vk_2", DOLLAR)])
        .await
        .unwrap();
    hold(&ledger, &second, "of the new key").await;
    let before = numbers(&ledger).await;
    let stood = used_and_held(&ledger).await;
    assert_eq!(stood, (4 * DOLLAR, DOLLAR));
    fleet.server.replace_data(&yesterday).unwrap();
    fleet.server.restart().unwrap();

    assert_closed(&fleet.open(), &key, "no process that saw its last state").await;
    // The first of them waits for the other, and neither notices more than that.
    tokio::join!(spend(&ledger, &key, "five"), spend(&other, &key, "six"));
    assert_eq!(used_and_held(&fleet.open()).await, (6 * DOLLAR, DOLLAR));
    let refused = reserve(&fleet.open(), call(&second, "seven", DOLLAR))
        .await
        .unwrap();
    assert_eq!(
        refused.unwrap_err(),
        "CapHeld",
        "the new key and its hold are there"
    );
    for (id, held) in [("two", 0), ("three", 0), ("four", DOLLAR), ("open yesterday", 0)] {
        let found = ledger.reservation(id).await.unwrap().unwrap();
        assert_eq!(found.held.micros(), held, "{id}");
    }
    let again = call(&key, "three", DOLLAR);
    let repeat = reserve(&fleet.open(), again).await.unwrap();
    assert_eq!(repeat.unwrap_err(), "AlreadyDone");
    let after = numbers(&ledger).await;
    let kept = after.iter().filter(|number| before.contains(number)).count();
    let seen = before.last().unwrap();
    assert!(
        after.iter().skip(kept).all(|number| number > seen),
        "{before:?} {after:?}"
    );
    assert!(after.windows(2).all(|pair| pair.first() < pair.last()));
    books_agree(&ledger).await;
    // The audit has one row for each call, whether or not its first event was lost.
    let rows = Audit::new(&ledger).list(RowFilter::default(), 100).await.unwrap();
    let mut calls: Vec<(&str, &str)> = rows
        .iter()
        .filter(|row| row.policy_verdict == "allowed" && row.vault_key_id.as_deref() == Some("vk_1"))
        .map(|row| (row.call_id.as_str(), row.note("state").unwrap()))
        .collect();
    calls.sort_unstable();
    let settled = |id| (id, "settled");
    let all = [
        settled("five"),
        ("four", "held"),
        settled("one"),
        settled("open yesterday"),
        settled("six"),
        settled("three"),
        settled("two"),
    ];
    assert_eq!(calls, all);
}

/// A process that knew less has opened it already, for the other one took too long, and has gone on.
#[tokio::test]
async fn scenario_09_an_idle_process_says_it_again_when_it_comes_back() {
    let mut fleet = Fleet::start(Persistence::Always);
    let (ledger, key) = fleet.with_key(20 * DOLLAR).await;
    let quiet = fleet.open();
    spend(&quiet, &key, "one").await;
    let yesterday = fleet.server.copy_data().unwrap();
    spend(&ledger, &key, "two").await;
    ledger
        .stop(StopScope::Run("run_9".to_owned()), admin())
        .await
        .unwrap();
    fleet.server.replace_data(&yesterday).unwrap();
    fleet.server.restart().unwrap();
    for number in 0..5 {
        spend(&quiet, &key, &format!("early {number}")).await;
    }
    assert_eq!(
        used_and_held(&quiet).await,
        (6 * DOLLAR, 0),
        "nobody else knows of it"
    );
    assert!(quiet.stops().await.unwrap().is_empty());
    // By now the log is longer than what the other one knows.
    spend(&ledger, &key, "three").await;
    assert_eq!(used_and_held(&quiet).await, (8 * DOLLAR, 0));
    assert_eq!(quiet.stops().await.unwrap().len(), 1);
    spend(&quiet, &key, "four").await;
    books_agree(&quiet).await;
}

/// A process has a lease, and its server comes back from before the last step, or from before it was taken: the process
/// says it again and goes on, and all that it may still do is held.
#[tokio::test]
async fn a_holder_goes_on_after_its_servers_data_was_older_than_its_lease() {
    for taken in [false, true] {
        let mut fleet = Fleet::start(Persistence::Always);
        let ledger = fleet.open();
        let now = NOW_MS.to_string();
        let mut server = fleet.server.connect().unwrap();
        server
            .command(&["HSET", "kb:{fleet}:meta", "fixed", &now])
            .unwrap();
        let budget = books::calls("vk_1", WindowKind::Day, 8_000);
        let key = books::key(&ledger, "vk_1", &[budget]).await.unwrap();
        reserve(&ledger, books::read(&key, "before", NOW_MS))
            .await
            .unwrap()
            .unwrap();
        ledger.settle(charged("before", 0)).await.unwrap();
        let mut yesterday = fleet.server.copy_data().unwrap();
        let step = |number, keep, wanted, done: std::ops::Range<u64>| {
            ledger.lease(lease_step(&key, (number, keep, wanted), done))
        };
        held_with(step(1, 0, 64, 0..0).await, 64);
        if taken {
            yesterday = fleet.server.copy_data().unwrap();
        }
        held_with(step(2, 60, 100, 0..4).await, 100);
        assert_eq!(used_and_held(&ledger).await, (5, 160));
        drop(server);
        fleet.server.replace_data(&yesterday).unwrap();
        fleet.server.restart().unwrap();

        held_with(step(3, 100, 0, 4..64).await, 0);
        let other = fleet.open();
        assert_eq!(used_and_held(&other).await, (65, 100), "taken: {taken}");
        // Nobody else gave the lease a step; so a stop finds it and waits for it.
        let (stopped, refused) = tokio::join!(other.stop(StopScope::All, admin()), async {
            while other.stops().await.unwrap().is_empty() {
                tokio::task::yield_now().await;
            }
            step(4, 0, 0, 64..65).await
        });
        stopped.unwrap();
        assert_eq!(refused.unwrap(), LeaseAnswer::Over { forfeited: false });
        assert_eq!(used_and_held(&other).await, (66, 0));
        books_agree(&other).await;
    }
}

fn held_with(answer: keybrake::Result<LeaseAnswer>, added: u32) {
    match answer.unwrap() {
        LeaseAnswer::Held(held) => assert_eq!(held.added, added),
        other => panic!("{other:?}"),
    }
}

/// A step of `vk_1`'s lease: its number, calls kept and wanted, and the calls that it tells.
fn lease_step(
    key: &KeyRecord,
    (number, keep, wanted): (u64, u32, u32),
    done: std::ops::Range<u64>,
) -> LeaseAsk {
    let request = books::read(key, "lease", NOW_MS);
    let Ask::Amount(amount) = request.ask else {
        panic!("an amount")
    };
    let told = |index: u64| {
        let id = format!("leased-{index}");
        LeasedCall {
            index: index + 1,
            step: number,
            facts: books::read(key, &id, NOW_MS).facts,
            at_ms: NOW_MS,
            not_after_ms: NOW_MS + 1_000,
            settlement: Some(charged(&id, 0)),
        }
    };
    LeaseAsk {
        id: "lease-1".to_owned(),
        number,
        facts: request.facts,
        charges: amount.charges,
        keep,
        wanted,
        done: done.map(told).collect(),
        ttl_ms: 500,
        max_open_holds: 1_000,
    }
}

/// Two processes know the same call: one made it, the other joined it. Both say it again, and it counts once.
#[tokio::test]
async fn a_call_that_two_processes_say_again_counts_once() {
    let mut fleet = Fleet::start(Persistence::Always);
    let (ledger, key) = fleet.with_key(20 * DOLLAR).await;
    let other = fleet.open();
    spend(&other, &key, "before").await;
    let yesterday = fleet.server.copy_data().unwrap();
    hold(&ledger, &key, "first").await;
    let mut retry = call(&key, "first", DOLLAR);
    let mut facts = retry.facts.as_ref().clone();
    "second".clone_into(&mut facts.call_id);
    retry.facts = Arc::new(facts);
    let join = reserve(&other, retry).await.unwrap().unwrap();
    assert_eq!((join.call_id.as_str(), join.attempt), ("first", 2));
    // The first attempt provably did not execute; of the second nobody knows.
    let mut unsent = charged("first", DOLLAR);
    unsent.proof = keybrake::ledger::Proof::DidNotExecute;
    ledger.settle(unsent).await.unwrap();
    fleet.server.replace_data(&yesterday).unwrap();
    fleet.server.restart().unwrap();
    tokio::join!(spend(&ledger, &key, "after"), spend(&other, &key, "after too"));
    let found = ledger.reservation("first").await.unwrap().unwrap();
    assert_eq!((found.attempts, found.held.micros()), (2, DOLLAR));
    assert_eq!(
        (found.joined_by, found.not_executed),
        (vec!["second".to_owned()], vec![1])
    );
    assert_eq!(used_and_held(&ledger).await, (3 * DOLLAR, DOLLAR));
    books_agree(&ledger).await;
}

/// The server restarts once more while it is being recovered, with what was said again or without.
#[tokio::test]
async fn a_server_that_restarts_while_it_is_recovered_loses_nothing() {
    for keeps in [true, false] {
        let mut fleet = Fleet::start(Persistence::Always);
        // The server waits for longer than the two do.
        let url = format!("{}?ns=fleet&timeout_ms=3000", fleet.server.url());
        let (one, two) = (open(&url), open(&url));
        wait_for_everybody(&fleet.server);
        let key = keybrake_tests::fleet::key(&one, 20 * DOLLAR).await;
        spend(&two, &key, "before").await;
        let yesterday = fleet.server.copy_data().unwrap();
        spend(&one, &key, "one").await;
        spend(&two, &key, "two").await;
        spend(&one, &key, "three").await;
        fleet.server.replace_data(&yesterday).unwrap();
        fleet.server.restart().unwrap();
        // One of them has reported and said its own again; the other's is still missing.
        assert_closed(&one, &key, "1 processes that were at work").await;
        assert_eq!(used_and_held(&one).await.0, 3 * DOLLAR);
        if !keeps {
            fleet.server.replace_data(&yesterday).unwrap();
        }
        fleet.server.restart().unwrap();
        let url = format!("{}?ns=fleet&timeout_ms=20000", fleet.server.url());
        assert_closed(&open(&url), &key, "is closed").await;
        tokio::join!(
            until_granted(&one, &key, "four"),
            until_granted(&two, &key, "five")
        );
        assert_eq!(
            used_and_held(&one).await,
            (4 * DOLLAR, 2 * DOLLAR),
            "keeps: {keeps}"
        );
        books_agree(&one).await;
    }
}

/// Its patience is short: it is refused until the other one has reported.
async fn until_granted(ledger: &RedisLedger, key: &KeyRecord, id: &str) {
    eventually(async || reserve(ledger, call(key, id, DOLLAR)).await.is_ok()).await;
}

/// A stop, a revocation and a lowered cap that the dead primary acknowledged still hold on the replica that takes over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scenario_10_revocation_lost_in_failover() {
    let mut pair = Replicated::start(&RedisOptions::new()).unwrap();
    let url = sentinels(&mut pair);
    let (operator, agent) = (open(&url), open(&url));
    wait_for_everybody(pair.primary());
    let key = keybrake_tests::fleet::key(&operator, 20 * DOLLAR).await;
    let label = |name: &str| {
        let (operator, name) = (&operator, name.to_owned());
        async move {
            books::key(operator, &name, &[lifetime(&name, 9 * DOLLAR)])
                .await
                .unwrap()
        }
    };
    let (revoked, capped) = (label("vk_2").await, label("vk_3").await);
    hold(&agent, &key, "before").await;
    pair.wait_in_step().unwrap();
    pair.cut_replication().unwrap();
    let scope = StopScope::Key("vk_1".to_owned());
    operator.stop(scope, admin()).await.unwrap();
    assert!(operator.revoke("vk_2", admin()).await.unwrap());
    operator
        .put_budget(lifetime("vk_3", DOLLAR), admin())
        .await
        .unwrap();
    pair.failover().unwrap();

    let newcomer = open(&url);
    assert_closed(&newcomer, &key, "no process that saw").await;
    assert!(
        newcomer.stops().await.unwrap().is_empty(),
        "the replica has not heard of it"
    );
    // The agent's next call comes while the operator's process looks at its holds.
    let asked = call(&key, "stopped", DOLLAR);
    let (refused, held) = tokio::join!(reserve(&agent, asked), operator.holds(HoldFilter::default()));
    assert_eq!(refused.unwrap().unwrap_err(), "Stopped");
    assert_eq!(held.unwrap().len(), 1);
    for (key, code) in [(&revoked, "KeyRevoked"), (&capped, "CapExceeded")] {
        let refused = reserve(&newcomer, call(key, "refused", 2 * DOLLAR))
            .await
            .unwrap();
        assert_eq!(refused.unwrap_err(), code);
    }
    books_agree(&newcomer).await;
}

/// Eight processes work; the replica that takes over lacks their last calls. All of them go on: nothing is lost, and no
/// cap is passed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_with_eight_live_clients_loses_nothing() {
    let (mut pair, clients, key, before) = eight_at_work(wait_for_everybody).await;
    pair.failover().unwrap();
    let mut after = tokio::task::JoinSet::new();
    for (number, client) in clients.into_iter().enumerate() {
        let key = key.clone();
        after.spawn(async move {
            let mut granted = 0;
            for call_number in 0..20 {
                let id = format!("after {number} {call_number}");
                granted += i64::from(reserve(&client, call(&key, &id, DOLLAR)).await.unwrap().is_ok());
            }
            (client, granted)
        });
    }
    let mut granted = before;
    let mut clients = Vec::new();
    while let Some(done) = after.join_next().await {
        let (client, more) = done.unwrap();
        granted += more;
        clients.push(client);
    }
    let ledger = clients.first().unwrap();
    let again = events_of(ledger, EventKind::Reasserted).await.len();
    println!("{before} calls before the failover, {again} of them said again, {granted} in all");
    assert!(again > 0, "nothing was lost");
    assert_eq!(granted, CAP, "the cap is reached, and not passed");
    let (used, held) = used_and_held(ledger).await;
    assert_eq!(used + held, CAP * DOLLAR);
    books_agree(ledger).await;
}

/// The same, but half of them die with the primary. The ledger stays closed until a person opens it; what may be spent
/// beyond the cap then is what the dead ones held within the lag, and no more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_with_half_of_the_clients_dead_stays_closed() {
    let (mut pair, mut clients, key, granted) = eight_at_work(|_| ()).await;
    let here: i64 = 8 * BEFORE;
    let dead = clients.split_off(4);
    drop(dead);
    pair.failover().unwrap();
    let first = clients.first().unwrap();
    assert_closed(first, &key, "are missing").await;
    for client in &clients {
        assert_closed(client, &key, "older data than was seen before").await;
    }
    let missing = first.missing_events().await.unwrap();
    let (used, held) = used_and_held(first).await;
    let excess = granted * DOLLAR - (used + held);
    let dead_ones = 4 * LOST;
    println!(
        "{granted} granted, {here} of them before the lag; {} are counted, missing events {missing:?}: at most ${} \
         of the dead clients' holds may be spent again",
        (used + held) / DOLLAR,
        excess / DOLLAR,
    );
    assert_eq!(excess, dead_ones * DOLLAR);
    let count: u64 = missing.iter().map(|(first, last)| last - first + 1).sum();
    // Nobody who is left has seen the very last events, which were theirs.
    assert_eq!(i64::try_from(count).unwrap(), dead_ones - 4);
    assert!(first.open_by_hand(admin()).await.unwrap());
    let key = first.key(&key.id).await.unwrap().unwrap();
    let mut again = 0;
    for number in 0..CAP {
        let id = format!("after {number}");
        again += i64::from(reserve(first, call(&key, &id, DOLLAR)).await.unwrap().is_ok());
    }
    assert_eq!(granted + again, CAP + dead_ones, "the excess is exactly that");
    books_agree(first).await;
}

/// Calls of one dollar each.
const CAP: i64 = 150;
/// Calls of each process that the replica has.
const BEFORE: i64 = 5;
/// Calls of each process that it lacks.
const LOST: i64 = 4;

/// Eight processes, each with calls that the replica has and calls that it lacks; and how many calls there are.
async fn eight_at_work(prepare: fn(&RedisServer)) -> (Replicated, Vec<RedisLedger>, KeyRecord, i64) {
    let mut pair = Replicated::start(&RedisOptions::new()).unwrap();
    let url = sentinels(&mut pair);
    let clients: Vec<RedisLedger> = (0..8).map(|_| open(&url)).collect();
    prepare(pair.primary());
    let key = keybrake_tests::fleet::key(clients.first().unwrap(), CAP * DOLLAR).await;
    let mut granted = 0;
    for (lost, calls) in [(false, BEFORE), (true, LOST)] {
        if lost {
            pair.wait_in_step().unwrap();
            pair.cut_replication().unwrap();
        }
        for number in 0..calls {
            for (index, client) in clients.iter().enumerate() {
                hold(client, &key, &format!("{lost} {index} {number}")).await;
                granted += 1;
            }
        }
    }
    (pair, clients, key, granted)
}
