//! A Redis ledger in a process that forks, and in one with several Tokio runtimes, one after the other or at once.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed unwrap is a failed test"
)]

use std::sync::Arc;

use keybrake::SystemClock;
use keybrake::clock::Clock as _;
use keybrake::ledger::redis::RedisLedger;
use keybrake::ledger::{KeyRecord, Ledger};
use keybrake_testkit::redis::{Persistence, Relay};
use keybrake_tests::books::{self, DOLLAR};
use keybrake_tests::fleet::{Fleet, books_agree, used_and_held};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid};
use tokio::runtime::Runtime;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// Forks a child that does this work and ends with the number that it answers.
fn child(work: impl FnOnce() -> i32) -> Pid {
    #[expect(
        unsafe_code,
        reason = "fork is what is tested; the child uses the ledger and ends, and touches nothing of the test harness"
    )]
    match unsafe { nix::unistd::fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let answer = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or(101);
            #[expect(unsafe_code, reason = "without the parent's exit handlers and destructors")]
            unsafe {
                nix::libc::_exit(answer)
            }
        }
    }
}

fn wait(child: Pid) -> i32 {
    match waitpid(child, None).unwrap() {
        WaitStatus::Exited(_, answer) => answer,
        other => panic!("the child ended with {other:?}"),
    }
}

/// Reserves and settles `count` calls of a dollar; answers how many were granted, or 99 if the ledger failed.
async fn spend(ledger: &RedisLedger, key: &KeyRecord, name: &str, count: i32) -> i32 {
    let mut granted = 0;
    for number in 0..count {
        let id = format!("call-{name}-{}-{number}", std::process::id());
        match books::reserve(ledger, books::call(key, &id, DOLLAR)).await {
            Ok(Ok(_)) => granted += 1,
            Ok(Err(_)) => continue,
            Err(_) => return 99,
        }
        if ledger.settle(books::charged(&id, DOLLAR)).await.is_err() {
            return 99;
        }
    }
    granted
}

#[test]
fn children_of_a_preforking_server_share_one_cap() {
    let fleet = Fleet::start(Persistence::None);
    let parent = runtime();
    let (ledger, key) = parent.block_on(fleet.with_key(20 * DOLLAR));
    assert_eq!(parent.block_on(spend(&ledger, &key, "before", 2)), 2);
    // The server that was started here dies with its parent, not with our children: they only use the ledger.
    let children: Vec<Pid> = (0..4)
        .map(|_| child(|| runtime().block_on(spend(&ledger, &key, "child", 10))))
        .collect();
    let after = parent.block_on(spend(&ledger, &key, "after", 2));
    let granted: Vec<i32> = children.into_iter().map(wait).collect();
    assert!(granted.iter().all(|count| *count <= 10), "{granted:?}");
    assert_eq!(2 + after + granted.iter().sum::<i32>(), 20, "{granted:?}");
    parent.block_on(async {
        assert_eq!(used_and_held(&ledger).await, (20 * DOLLAR, 0));
        books_agree(&ledger).await;
    });
}

#[test]
fn a_childs_child_works_too() {
    let fleet = Fleet::start(Persistence::None);
    let parent = runtime();
    let (ledger, key) = parent.block_on(fleet.with_key(20 * DOLLAR));
    parent.block_on(spend(&ledger, &key, "before", 1));
    let first = child(|| {
        let before = runtime().block_on(spend(&ledger, &key, "first", 3));
        before + wait(child(|| runtime().block_on(spend(&ledger, &key, "second", 3))))
    });
    assert_eq!(wait(first), 6);
    assert_eq!(parent.block_on(used_and_held(&ledger)), (7 * DOLLAR, 0));
}

#[test]
fn a_ledger_outlives_the_runtimes_that_it_was_used_from() {
    let fleet = Fleet::start(Persistence::None);
    let ledger = fleet.open();
    let key = runtime().block_on(keybrake_tests::fleet::key(&ledger, 100 * DOLLAR));
    for round in 0..6 {
        // Each ends here, and with it whatever it drove.
        let name = format!("round {round}");
        assert_eq!(runtime().block_on(spend(&ledger, &key, &name, 3)), 3);
    }
    assert_eq!(runtime().block_on(used_and_held(&ledger)), (18 * DOLLAR, 0));
}

/// The first one stands still while the second works, and the other way round. Nobody waits for an answer that only
/// the other could read.
#[test]
fn runtimes_that_take_turns_do_not_wait_for_each_other() {
    let fleet = Fleet::start(Persistence::None);
    let ledger = fleet.open();
    let (one, other) = (runtime(), runtime());
    let key = one.block_on(keybrake_tests::fleet::key(&ledger, 100 * DOLLAR));
    let began_ms = SystemClock.boot_ms();
    for turn in 0..10 {
        let name = format!("turn {turn}");
        let runtime = if turn % 2 == 0 { &one } else { &other };
        assert_eq!(runtime.block_on(spend(&ledger, &key, &name, 2)), 2);
    }
    // The URL's patience is twenty seconds: one wait for the other would be more than that.
    let took_ms = SystemClock.boot_ms() - began_ms;
    assert!(took_ms < 20_000, "{took_ms} ms");
    let clients = fleet.server.command(&["CLIENT", "LIST"]).unwrap();
    assert_eq!(clients.text().unwrap().lines().count(), 3, "one each, and ours");
}

#[test]
fn threads_with_runtimes_of_their_own_share_a_ledger() {
    let fleet = Fleet::start(Persistence::None);
    let ledger = Arc::new(fleet.open());
    let key = runtime().block_on(keybrake_tests::fleet::key(&*ledger, 40 * DOLLAR));
    let threads: Vec<_> = (0..6)
        .map(|thread| {
            let (ledger, key) = (Arc::clone(&ledger), key.clone());
            std::thread::spawn(move || {
                runtime().block_on(spend(&ledger, &key, &format!("thread {thread}"), 10))
            })
        })
        .collect();
    let granted: i32 = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    assert_eq!(granted, 40);
    runtime().block_on(async {
        assert_eq!(used_and_held(&*ledger).await, (40 * DOLLAR, 0));
        books_agree(&*ledger).await;
    });
}

/// Each keeps its connection, however many there are.
#[test]
fn many_runtimes_that_take_turns_keep_their_connections() {
    const RUNTIMES: usize = 9;
    let fleet = Fleet::start(Persistence::None);
    let ledger = fleet.open();
    let runtimes: Vec<Runtime> = (0..RUNTIMES).map(|_| runtime()).collect();
    let key = runtimes[0].block_on(keybrake_tests::fleet::key(&ledger, 100 * DOLLAR));
    let made = || {
        let stats = fleet.server.command(&["INFO", "stats"]).unwrap();
        let stats = stats.text().unwrap().to_owned();
        let line = stats
            .lines()
            .find_map(|line| line.strip_prefix("total_connections_received:"));
        line.unwrap().trim().parse::<usize>().unwrap()
    };
    let mut after_each = Vec::new();
    for round in 0..3 {
        for (number, runtime) in runtimes.iter().enumerate() {
            let name = format!("round {round} runtime {number}");
            assert_eq!(runtime.block_on(spend(&ledger, &key, &name, 1)), 1);
        }
        after_each.push(made());
    }
    // Between two rounds only this test connects, to ask.
    assert_eq!(after_each[2] - after_each[1], 1, "{after_each:?}");
}

/// It has begun to connect, and nobody drives it any more.
#[test]
fn a_runtime_that_stands_still_while_it_connects_keeps_nobody_waiting() {
    let fleet = Fleet::start(Persistence::None);
    let ledger = fleet.open();
    let (stands_still, other) = (runtime(), runtime());
    let mut begun = Box::pin(ledger.info());
    stands_still.block_on(async {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(begun.as_mut().poll(&mut context).is_pending());
    });
    let answer = other
        .block_on(async { tokio::time::timeout(std::time::Duration::from_secs(15), ledger.info()).await });
    answer.expect("the other waits for it").unwrap();
    stands_still.block_on(begun).unwrap();
}

/// It reports what it saw before the server's restart, and nobody drives it any more while others of its process wait for
/// their turn.
#[test]
fn a_runtime_that_stands_still_while_it_reports_keeps_nobody_waiting() {
    let mut fleet = Fleet::start(Persistence::Always);
    let relay = Relay::start(fleet.server.port()).unwrap();
    let url = format!("{}?ns=fleet&timeout_ms=5000", relay.url());
    let ledger = keybrake_tests::fleet::open(&url).unwrap();
    let (stands_still, other) = (runtime(), runtime());
    let key = other.block_on(keybrake_tests::fleet::key(&ledger, 10 * DOLLAR));
    let dies = fleet.open();
    assert_eq!(other.block_on(spend(&dies, &key, "dies", 1)), 1);
    drop(dies);
    fleet.server.restart().unwrap();
    // The ledger stays closed: the one that died is waited for.
    relay.hold_reply("keybrake_report");
    let mut begun = Box::pin(books::reserve(&ledger, books::call(&key, "begun", DOLLAR)));
    let relay = stands_still.block_on(async {
        let caught = tokio::task::spawn_blocking(move || {
            assert!(relay.wait_caught(1));
            relay
        });
        tokio::select! {
            answer = &mut begun => panic!("its report is held: {answer:?}"),
            relay = caught => relay.unwrap(),
        }
    });
    relay.pass().unwrap();
    assert_eq!(other.block_on(spend(&ledger, &key, "other", 1)), 1);
    stands_still.block_on(begun).unwrap().unwrap();
}
