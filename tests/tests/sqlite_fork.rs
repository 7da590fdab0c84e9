//! A process that opened the ledger and then forks, as pre-forking servers do: children go on with the same handle.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed unwrap is a failed test"
)]

use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use keybrake::SystemClock;
use keybrake::ledger::sqlite::{SqliteLedger, SqliteOptions, fork};
use keybrake::ledger::{KeyRecord, Ledger};
use keybrake_tests::books::{self, DOLLAR};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

fn ledger(dir: &Path, cap: i64) -> (SqliteLedger, KeyRecord) {
    let path = dir.join("spend.db");
    let options = SqliteOptions {
        wait_ms: 30_000,
        ..SqliteOptions::default()
    };
    let ledger =
        SqliteLedger::open(path.to_str().unwrap(), "default", Arc::new(SystemClock), options).unwrap();
    let key = runtime()
        .block_on(books::key(&ledger, "vk_1", &[books::lifetime("vk_1", cap)]))
        .unwrap();
    (ledger, key)
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
fn spend(ledger: &SqliteLedger, key: &KeyRecord, count: i32) -> i32 {
    runtime().block_on(async {
        let mut granted = 0;
        for number in 0..count {
            let id = format!("call-{}-{number}", std::process::id());
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
    })
}

fn used(ledger: &SqliteLedger) -> i64 {
    runtime().block_on(async {
        let report = ledger.verify().await.unwrap();
        assert!(report.chain_ok && report.differences.is_empty(), "{report:?}");
        let usage = ledger.usage("vk_1").await.unwrap();
        usage.iter().find(|budget| !budget.livemode).unwrap().view.used
    })
}

#[test]
fn children_of_a_preforking_server_share_one_cap() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, key) = ledger(dir.path(), 20 * DOLLAR);
    assert_eq!(spend(&ledger, &key, 2), 2, "the parent used it before the fork");
    let children: Vec<Pid> = (0..4).map(|_| child(|| spend(&ledger, &key, 10))).collect();
    let parent = spend(&ledger, &key, 2);
    let granted: Vec<i32> = children.into_iter().map(wait).collect();
    assert!(granted.iter().all(|count| *count <= 10), "{granted:?}");
    assert_eq!(2 + parent + granted.iter().sum::<i32>(), 20, "{granted:?}");
    assert_eq!(used(&ledger), 20 * DOLLAR);
}

#[test]
fn a_childs_child_works_too_and_the_ledger_outlives_its_opener() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, key) = ledger(dir.path(), 100 * DOLLAR);
    let first = child(|| {
        let before = spend(&ledger, &key, 3);
        let second = wait(child(|| spend(&ledger, &key, 3)));
        drop(ledger);
        before + second
    });
    assert_eq!(wait(first), 6);
    let ledger = self::ledger(dir.path(), 100 * DOLLAR).0;
    assert_eq!(used(&ledger), 6 * DOLLAR);
}

/// Forks a child that begins to work once `first` is done, the ledger's closing in this process included.
fn child_after(ledger: SqliteLedger, work: impl FnOnce(&SqliteLedger) -> i32, first: impl FnOnce()) -> Pid {
    let (mut signal, mut go) = std::io::pipe().map(|(read, write)| (write, read)).unwrap();
    // The parent's handle outlives the fork and no more; the child's is a copy.
    let kept = std::mem::ManuallyDrop::new(ledger);
    let pid = child(|| {
        go.read_exact(&mut [0]).unwrap();
        work(&kept)
    });
    drop(std::mem::ManuallyDrop::into_inner(kept));
    first();
    signal.write_all(&[1]).unwrap();
    pid
}

#[test]
fn a_child_goes_on_after_its_parent_has_closed_the_ledger() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, key) = ledger(dir.path(), 100 * DOLLAR);
    assert_eq!(spend(&opened, &key, 1), 1);
    let pid = child_after(opened, |ledger| spend(ledger, &key, 3), || {});
    assert_eq!(wait(pid), 3);
    assert_eq!(used(&ledger(dir.path(), 100 * DOLLAR).0), 4 * DOLLAR);
}

#[test]
fn a_child_and_those_who_opened_the_ledger_after_its_parent_had_closed_it_share_one_cap() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, key) = ledger(dir.path(), 10 * DOLLAR);
    let mut by_others = 0;
    let pid = child_after(
        opened,
        |ledger| spend(ledger, &key, 3),
        || {
            by_others += spend(&ledger(dir.path(), 10 * DOLLAR).0, &key, 2);
            by_others += wait(child(|| spend(&ledger(dir.path(), 10 * DOLLAR).0, &key, 2)));
        },
    );
    let open = ledger(dir.path(), 10 * DOLLAR).0;
    by_others += spend(&open, &key, 20);
    assert_eq!(wait(pid) + by_others, 10);
    assert_eq!(used(&open), 10 * DOLLAR);
}

#[test]
fn a_child_whose_shared_memory_was_replaced_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, key) = ledger(dir.path(), 100 * DOLLAR);
    let other = std::cell::OnceCell::new();
    let pid = child_after(
        opened,
        |ledger| spend(ledger, &key, 3),
        || {
            for suffix in ["-wal", "-shm"] {
                std::fs::remove_file(dir.path().join(format!("spend.db{suffix}"))).unwrap();
            }
            other.set(ledger(dir.path(), 100 * DOLLAR).0).unwrap();
            assert_eq!(spend(other.get().unwrap(), &key, 1), 1);
        },
    );
    assert_eq!(wait(pid), 99, "refused");
    assert_eq!(used(other.get().unwrap()), DOLLAR);
}

/// Work on other threads while the process forks.
fn under_load(ledger: &SqliteLedger, key: &KeyRecord, forks: impl FnOnce()) -> i64 {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut granted = 0;
            while !done.load(Ordering::SeqCst) {
                granted += spend_in_order(ledger, key, granted);
            }
            granted
        });
        forks();
        done.store(true, Ordering::SeqCst);
        load.join().unwrap()
    })
}

fn spend_in_order(ledger: &SqliteLedger, key: &KeyRecord, number: i64) -> i64 {
    runtime().block_on(async {
        let id = format!("load-{number}");
        books::reserve(ledger, books::call(key, &id, DOLLAR))
            .await
            .unwrap()
            .unwrap();
        ledger.settle(books::charged(&id, DOLLAR)).await.unwrap();
        1
    })
}

#[test]
fn an_announced_fork_under_load_never_spoils_the_child() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, key) = ledger(dir.path(), i64::MAX / 2);
    let mut by_children = 0;
    let by_load = under_load(&ledger, &key, || {
        for _ in 0..20 {
            fork::before();
            let pid = child(|| {
                fork::after();
                spend(&ledger, &key, 2)
            });
            fork::after();
            assert_eq!(wait(pid), 2);
            by_children += 2;
        }
    });
    assert_eq!(used(&ledger), (by_load + by_children) * DOLLAR);
}

#[test]
fn an_unannounced_fork_under_load_works_or_is_refused_and_never_hangs() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, key) = ledger(dir.path(), i64::MAX / 2);
    let (mut worked, mut refused) = (0, 0);
    let by_load = under_load(&ledger, &key, || {
        for _ in 0..30 {
            match wait(child(|| spend(&ledger, &key, 1))) {
                1 => worked += 1,
                99 => refused += 1,
                other => panic!("the child answered {other}"),
            }
        }
    });
    println!("unannounced forks under load: {worked} children worked, {refused} were refused");
    assert_eq!(used(&ledger), (by_load + worked) * DOLLAR);
}
