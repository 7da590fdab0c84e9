//! Restores in processes of their own, killed in the middle; and a restore from end to end, where the vendor's journal is the
//! truth.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a failed unwrap is a failed test"
)]

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;

use keybrake::SystemClock;
use keybrake::error::ErrorKind;
use keybrake::facade::Keybrake;
use keybrake::ledger::redis::RedisLedger;
use keybrake::ledger::{EventKind, Ledger, Life, StopScope};
use keybrake::policy::{Code, Policy};
use keybrake::secret::Secret;
use keybrake_testkit::redis::Persistence;
use keybrake_testkit::stripe::{MovementKind, Simulator, SimulatorOptions, TEST_SECRET};
use keybrake_tests::archives::{Place, drain};
use keybrake_tests::books::{self, DOLLAR, admin, call, charged, lifetime};
use keybrake_tests::fleet::{Fleet, books_agree, events_of, used_and_held};
use keybrake_tests::processes::{Chance, Worker};
use keybrake_tests::{noon_zone, refund, refunds};

const MASTER: &str = "a master key of more than 32 characters";
const RESTORER: &str = env!("CARGO_BIN_EXE_restore_worker");

fn open(url: &str) -> RedisLedger {
    RedisLedger::open(url, Arc::new(SystemClock), Some(MASTER.as_bytes())).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_killed_restores_are_begun_again_and_come_to_the_same() {
    killed_restores_are_begun_again_and_come_to_the_same(&Place::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_killed_restores_are_begun_again_and_come_to_the_same() {
    killed_restores_are_begun_again_and_come_to_the_same(&Place::postgres()).await;
}

/// The first attempt is killed in the middle, and nobody spends then; so are those after it, two at a time now and then.
async fn killed_restores_are_begun_again_and_come_to_the_same(place: &Place) {
    const CALLS: usize = 600;
    let mut chance = Chance::of_the_day();
    let fleet = Fleet::start(Persistence::None);
    let (url, archive) = (fleet.url(), place.open().await);
    let ledger = open(&url);
    let key = books::key(&ledger, "vk_1", &[lifetime("vk_1", 10_000 * DOLLAR)])
        .await
        .unwrap();
    for number in 0..CALLS {
        let id = format!("call {number}");
        books::reserve(&ledger, call(&key, &id, DOLLAR))
            .await
            .unwrap()
            .unwrap();
        if number % 3 > 0 {
            ledger.settle(charged(&id, DOLLAR)).await.unwrap();
        }
    }
    drop(ledger);
    // One that has seen all of it, and did next to nothing of it itself.
    let ledger = open(&url);
    books::reserve(&ledger, call(&key, "its own", DOLLAR))
        .await
        .unwrap()
        .unwrap();
    drain(&ledger, &archive, 1_000).await;
    let before = used_and_held(&ledger).await;
    let id = ledger.id().await.unwrap();
    fleet.server.command(&["FLUSHALL"]).unwrap();

    let start =
        |how: &str| Worker::start(Command::new(RESTORER).args([&url, &id, &place.url(), MASTER, how]));
    let mut kills = 0;
    for round in 0..4 {
        let workers: Vec<Worker> = (0..=round % 2).map(|_| start("steps")).collect();
        for mut worker in workers {
            // While it waits, or in whatever it does next.
            for _ in 0..=chance.below(3) {
                if worker.next_line().is_some_and(|line| line.starts_with("said")) && chance.below(3) > 0 {
                    worker.tell("go on");
                } else {
                    break;
                }
            }
            worker.end();
            kills += 1;
        }
        // A later one may have had nothing left to say.
        if round == 0 {
            let early = call(&key, "too early", DOLLAR);
            let error = books::reserve(&ledger, early).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::LedgerRecovering, "{error}");
            assert!(error.to_string().contains("are missing"), "{error}");
            assert!(
                used_and_held(&ledger).await < before,
                "it was killed in the middle"
            );
        }
    }
    println!("{kills} restores were killed");
    let lines = start("").finish();
    println!("the last one: {}", lines.last().unwrap());
    // The process that was at work all the time has seen everything: it opens the ledger.
    let key = ledger.key("vk_1").await.unwrap().unwrap();
    books::reserve(&ledger, call(&key, "after", DOLLAR))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(used_and_held(&ledger).await, (before.0, before.1 + DOLLAR));
    books_agree(&ledger).await;
    let mut again = BTreeMap::<String, u32>::new();
    for event in events_of(&ledger, EventKind::Reasserted).await {
        if let Some(call_id) = event.call_id {
            *again.entry(call_id).or_default() += 1;
        }
    }
    assert_eq!(again.len(), CALLS + 1);
    assert!(again.values().all(|times| *times == 1), "{again:?}");
}

async fn keybrake(ledger: &str, stripe: &Simulator) -> Keybrake {
    Keybrake::builder()
        .ledger(ledger)
        .secret("stripe", Secret::value(TEST_SECRET))
        .base_url("stripe", stripe.url())
        .build()
        .await
        .unwrap()
}

/// The server is empty; a process that was at work restores the ledger from the archive and says the rest itself. Another
/// process, which has seen nothing of all that, cannot spend what was spent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caps_stops_revocations_and_replays_hold_after_a_restore() {
    let mut fleet = Fleet::start(Persistence::None);
    let stripe = Simulator::start(SimulatorOptions::default()).unwrap();
    let place = Place::sqlite();
    let kb = keybrake(&fleet.url(), &stripe).await;
    let policy = |label: &str| {
        let mut policy = refunds(50);
        let fields = policy.as_object_mut().unwrap();
        fields.insert("timezone".to_owned(), noon_zone().into());
        fields.insert("label".to_owned(), label.into());
        fields.insert("run_usd_cap".to_owned(), 46.into());
        Policy::from_value(&policy).unwrap()
    };
    let key = kb.issue(policy("support")).run("run_1").await.unwrap();
    let revoked = kb.issue(policy("revoked")).run("run_2").await.unwrap();
    let stopped = kb.issue(policy("stopped")).run("run_3").await.unwrap();
    let form = |number: usize| format!("charge=ch_{}&amount=400", number % 6 + 1);
    for number in 0..8 {
        refund(&kb, &key, &format!("step {number}"), &form(number))
            .await
            .id();
    }
    kb.revoke(&revoked.id, admin()).await.unwrap();
    kb.stop(StopScope::Run("run_3".to_owned()), admin())
        .await
        .unwrap();
    kb.drain(&place.url(), None).await.unwrap();
    // These are in no archive.
    for number in 8..10 {
        refund(&kb, &key, &format!("step {number}"), &form(number))
            .await
            .id();
    }
    assert_eq!(stripe.moved(MovementKind::Refund, "usd"), 4_000);
    fleet.server.restart().unwrap();
    let closed = refund(&kb, &key, "too early", &form(0)).await;
    assert_eq!(closed.code(), Some(Code::LedgerRecovering), "{closed:?}");

    let restored = kb.restore(&place.url()).await.unwrap();
    assert_eq!(restored.calls, 8);
    assert!(restored.keys == 3 && restored.stops == 1, "{restored:?}");
    // What it did itself it says again with its next call, and the ledger opens.
    refund(&kb, &key, "step 3", &form(3)).await;
    assert_eq!(kb.ledger().life().await.unwrap(), Life::Open);
    let other = keybrake(&fleet.url(), &stripe).await;
    for number in 0..10 {
        let again = refund(&other, &key, &format!("step {number}"), &form(number)).await;
        assert!(
            again.code().is_none_or(|code| code == Code::AlreadyDone),
            "{again:?}"
        );
    }
    assert_eq!(
        stripe.moved(MovementKind::Refund, "usd"),
        4_000,
        "nothing moved twice"
    );
    for (key, code) in [(&revoked, Code::KeyRevoked), (&stopped, Code::Stopped)] {
        assert_eq!(refund(&other, key, "again", &form(0)).await.code(), Some(code));
    }
    let mut done = 0;
    for number in 10..20 {
        let kb = if number % 2 == 0 { &other } else { &kb };
        let ended = refund(kb, &key, &format!("step {number}"), &form(number)).await;
        match ended.code() {
            None => done += 1,
            Some(code) => assert_eq!(code, Code::CapExceeded, "{ended:?}"),
        }
    }
    assert_eq!(done, 1, "$44 of the run's $46");
    assert_eq!(stripe.moved(MovementKind::Refund, "usd"), 4_400);
    books_agree(other.ledger().as_ref()).await;
}
