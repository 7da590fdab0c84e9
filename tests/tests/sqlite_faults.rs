//! What happens to the SQLite ledger when the world around it misbehaves: foreign hands on its files, a power cut, a
//! process that keeps the guard file, callers that leave, long readers.
//!
//! The power cut: the ledger flushes through [`Disk`], and the test's disk, each time it is told to flush, copies
//! database and log as they are then to a "platter". What the platter holds is what a machine would find that lost
//! power right after; whatever was written later is gone, or there in part (the log with a torn end).
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use keybrake::SystemClock;
use keybrake::error::ErrorKind;
use keybrake::ledger::sqlite::{Disk, FileSystem, SqliteLedger, SqliteOptions, SystemDisk};
use keybrake::ledger::{HoldFilter, KeyRecord, Ledger, State};
use keybrake_tests::books::{self, DOLLAR};
use tempfile::TempDir;

fn open(dir: &Path, options: SqliteOptions) -> keybrake::Result<SqliteLedger> {
    let path = dir.join("spend.db");
    SqliteLedger::open(path.to_str().unwrap(), "default", Arc::new(SystemClock), options)
}

async fn ledger(dir: &TempDir, options: SqliteOptions) -> (SqliteLedger, KeyRecord) {
    let ledger = open(dir.path(), options).unwrap();
    let key = books::key(&ledger, "vk_1", &[books::lifetime("vk_1", 1_000 * DOLLAR)])
        .await
        .unwrap();
    (ledger, key)
}

async fn grant(ledger: &SqliteLedger, key: &KeyRecord, id: &str) {
    books::reserve(ledger, books::call(key, id, DOLLAR))
        .await
        .unwrap()
        .unwrap();
}

async fn books_agree(ledger: &SqliteLedger) {
    let report = ledger.verify().await.unwrap();
    assert!(report.chain_ok && report.differences.is_empty(), "{report:?}");
}

/// Another process opens the database with plain SQLite, counts the rows of a table and closes it again.
fn foreign_events(database: &Path) -> i64 {
    let out = Command::new(env!("CARGO_BIN_EXE_ledger_worker"))
        .arg(database)
        .args(["-", "foreign"])
        .output()
        .unwrap();
    let said = String::from_utf8(out.stdout).unwrap();
    said.trim().strip_prefix("events ").unwrap().parse().unwrap()
}

/// Opens and closes every file of the database, as a backup or another library in our process does.
fn foreign_hands(dir: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        drop(File::open(dir.join(format!("spend.db{suffix}"))).unwrap());
    }
}

/// The attack is real: without the guards, commits go into a log that nobody else can find.
#[test]
fn scenario_11_foreign_hands_take_the_log_away_from_a_connection_without_guards() {
    let dir = tempfile::tempdir().unwrap();
    let database = dir.path().join("spend.db");
    let unguarded = rusqlite::Connection::open(&database).unwrap();
    unguarded
        .execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE event (x); INSERT INTO event VALUES (1)")
        .unwrap();
    foreign_hands(dir.path());
    assert_eq!(foreign_events(&database), 1);
    unguarded
        .execute_batch("INSERT INTO event VALUES (2), (3)")
        .unwrap();
    let own: i64 = unguarded
        .query_row("SELECT count(*) FROM event", [], |row| row.get(0))
        .unwrap();
    assert_eq!(
        (own, foreign_events(&database)),
        (3, 1),
        "two rows forked away silently"
    );
}

#[tokio::test]
async fn scenario_11_foreign_hands_cannot_take_the_log_away() {
    let dir = tempfile::tempdir().unwrap();
    let database = dir.path().join("spend.db");
    let (ledger, key) = ledger(&dir, SqliteOptions::default()).await;
    for round in 0..10 {
        foreign_hands(dir.path());
        foreign_events(&database);
        grant(&ledger, &key, &format!("call {round}")).await;
        let events = i64::try_from(ledger.info().await.unwrap().last_seq).unwrap();
        assert_eq!(foreign_events(&database), events);
    }
    books_agree(&ledger).await;
}

#[tokio::test]
async fn scenario_11_foreign_hands_while_another_process_commits() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, key) = ledger(&dir, SqliteOptions::default()).await;
    let mut other = Command::new(env!("CARGO_BIN_EXE_ledger_worker"))
        .arg(dir.path().join("spend.db"))
        .args(["vk_1", "spend", "200", "1"])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut own = 0;
    while other.try_wait().unwrap().is_none() {
        foreign_hands(dir.path());
        grant(&ledger, &key, &format!("own {own}")).await;
        ledger
            .settle(books::charged(&format!("own {own}"), 1))
            .await
            .unwrap();
        own += 1;
    }
    assert!(other.wait().unwrap().success());
    let usage = ledger.usage("vk_1").await.unwrap();
    let test = usage.iter().find(|budget| !budget.livemode).unwrap();
    assert_eq!((test.view.used, test.view.held), (200 + own, 0));
    books_agree(&ledger).await;
    drop(ledger);
    books_agree(&open(dir.path(), SqliteOptions::default()).unwrap()).await;
}

#[tokio::test]
async fn scenario_11_nothing_is_granted_once_a_file_was_taken_away() {
    for suffix in ["-wal", ""] {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, key) = ledger(&dir, SqliteOptions::default()).await;
        grant(&ledger, &key, "before").await;
        let file = dir.path().join(format!("spend.db{suffix}"));
        std::fs::rename(&file, dir.path().join("taken")).unwrap();
        for id in ["after", "and later"] {
            let error = ledger.reserve(books::call(&key, id, DOLLAR)).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::LedgerUnavailable);
            assert!(error.to_string().contains("removed or replaced"), "{error}");
        }
    }
}

/// A disk that remembers what it was told to keep.
#[derive(Debug)]
struct Platter {
    machine: PathBuf,
    keeps: PathBuf,
    /// Bytes of the log at the last flush.
    flushed: Mutex<u64>,
}

impl Disk for Platter {
    fn file_system(&self, dir: &Path) -> std::io::Result<FileSystem> {
        SystemDisk.file_system(dir)
    }

    fn flush(&self, wal: &File) -> std::io::Result<()> {
        for file in ["spend.db", "spend.db-wal", "spend.db.key"] {
            let to = self.keeps.join(file);
            std::fs::copy(self.machine.join(file), &to)?;
        }
        *self.flushed.lock().unwrap() = wal.metadata()?.len();
        Ok(())
    }
}

/// What the machine finds when the power is back: what was flushed, and `torn` bytes of what was not.
fn after_the_cut(disk: &Platter, torn: u64) -> TempDir {
    let found = tempfile::tempdir().unwrap();
    for file in ["spend.db", "spend.db-wal", "spend.db.key"] {
        std::fs::copy(disk.keeps.join(file), found.path().join(file)).unwrap();
    }
    let log = std::fs::read(disk.machine.join("spend.db-wal")).unwrap();
    let flushed = *disk.flushed.lock().unwrap();
    let end = usize::try_from(flushed + torn).unwrap().min(log.len());
    let mut kept = std::fs::read(found.path().join("spend.db-wal")).unwrap();
    kept.extend_from_slice(log.get(kept.len()..end).unwrap_or_default());
    std::fs::write(found.path().join("spend.db-wal"), kept).unwrap();
    found
}

#[tokio::test]
async fn scenario_11_a_power_cut_after_a_permit_leaves_its_hold() {
    let (machine, platter) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let disk = Arc::new(Platter {
        machine: machine.path().to_path_buf(),
        keeps: platter.path().to_path_buf(),
        flushed: Mutex::new(0),
    });
    let options = SqliteOptions {
        disk: disk.clone(),
        ..SqliteOptions::default()
    };
    let (ledger, key) = ledger(&machine, options).await;
    let mut lost_settlements = 0;
    for round in 0..12_u64 {
        let id = format!("call {round}");
        grant(&ledger, &key, &id).await;
        ledger.settle(books::charged(&id, DOLLAR)).await.unwrap();
        for torn in [0, 1_000, 4_200, 20_000] {
            let found = after_the_cut(&disk, torn);
            let survivor = open(found.path(), SqliteOptions::default()).unwrap();
            for earlier in 0..=round {
                let call = survivor
                    .reservation(&format!("call {earlier}"))
                    .await
                    .unwrap()
                    .unwrap();
                // A lost settlement leaves the hold; a lost hold would have let the money be spent twice.
                assert!(
                    matches!(call.state, State::Held | State::Settled),
                    "{:?}",
                    call.state
                );
                lost_settlements += u32::from(call.state == State::Held);
            }
            books_agree(&survivor).await;
        }
    }
    assert!(lost_settlements > 0, "the cut takes away what was not flushed");
}

#[tokio::test]
async fn stops_and_keys_survive_a_power_cut_too() {
    let (machine, platter) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let disk = Arc::new(Platter {
        machine: machine.path().to_path_buf(),
        keeps: platter.path().to_path_buf(),
        flushed: Mutex::new(0),
    });
    let options = SqliteOptions {
        disk: disk.clone(),
        ..SqliteOptions::default()
    };
    let (ledger, key) = ledger(&machine, options).await;
    let scope = keybrake::ledger::StopScope::Label("tests".to_owned());
    ledger.stop(scope, books::admin()).await.unwrap();
    let found = after_the_cut(&disk, 0);
    let survivor = open(found.path(), SqliteOptions::default()).unwrap();
    let denied = books::reserve(&survivor, books::call(&key, "a", DOLLAR))
        .await
        .unwrap();
    assert_eq!(denied, Err("Stopped".to_owned()));
}

/// A disk that fails from some moment on.
#[derive(Debug, Default)]
struct Failing(std::sync::atomic::AtomicBool);

impl Disk for Failing {
    fn file_system(&self, dir: &Path) -> std::io::Result<FileSystem> {
        SystemDisk.file_system(dir)
    }

    fn flush(&self, wal: &File) -> std::io::Result<()> {
        if self.0.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(std::io::Error::other("the disk is gone"));
        }
        SystemDisk.flush(wal)
    }
}

#[tokio::test]
async fn a_disk_that_cannot_be_flushed_closes_the_ledger() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(Failing::default());
    let options = SqliteOptions {
        disk: disk.clone(),
        ..SqliteOptions::default()
    };
    let (ledger, key) = ledger(&dir, options).await;
    disk.0.store(true, std::sync::atomic::Ordering::SeqCst);
    let error = ledger.reserve(books::call(&key, "a", DOLLAR)).await.unwrap_err();
    assert!(error.to_string().contains("could not be flushed"), "{error}");
    // The kernel may have dropped the pages: a later flush that succeeds proves nothing.
    disk.0.store(false, std::sync::atomic::Ordering::SeqCst);
    let error = ledger.reserve(books::call(&key, "b", DOLLAR)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LedgerUnavailable);
}

#[tokio::test]
async fn a_ledger_kept_busy_refuses_in_time_and_reserves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let options = SqliteOptions {
        wait_ms: 50,
        ..SqliteOptions::default()
    };
    let (ledger, key) = ledger(&dir, options).await;
    let guard = File::open(dir.path().join("spend.db.lock")).unwrap();
    guard.lock().unwrap();
    let error = ledger.reserve(books::call(&key, "a", DOLLAR)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LedgerUnavailable);
    assert!(error.to_string().contains("othing was sent"), "{error}");
    guard.unlock().unwrap();
    assert!(ledger.reservation("a").await.unwrap().is_none());
    grant(&ledger, &key, "b").await;
}

#[tokio::test]
async fn a_caller_who_left_reserves_nothing_but_settles_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let options = SqliteOptions {
        wait_ms: 30_000,
        ..SqliteOptions::default()
    };
    let (ledger, key) = ledger(&dir, options).await;
    grant(&ledger, &key, "sent").await;
    let guard = File::open(dir.path().join("spend.db.lock")).unwrap();
    guard.lock().unwrap();
    {
        // Polled once, so that both are in the queue, and then dropped.
        let mut reserve = ledger.reserve(books::call(&key, "given up", DOLLAR));
        let mut settle = ledger.settle(books::charged("sent", DOLLAR));
        tokio::select! {
            biased;
            _ = &mut reserve => panic!("the guard file is ours"),
            _ = &mut settle => panic!("the guard file is ours"),
            () = std::future::ready(()) => {}
        }
    }
    guard.unlock().unwrap();
    // The queue is in order: when this is answered, those before it are done.
    ledger.flush().await.unwrap();
    assert!(ledger.reservation("given up").await.unwrap().is_none());
    let sent = ledger.reservation("sent").await.unwrap().unwrap();
    assert_eq!(sent.state, State::Settled);
    books_agree(&ledger).await;
}

#[tokio::test]
async fn a_reader_never_blocks_a_writer() {
    let dir = tempfile::tempdir().unwrap();
    let options = SqliteOptions {
        wait_ms: 1_000,
        ..SqliteOptions::default()
    };
    let (ledger, key) = ledger(&dir, options).await;
    grant(&ledger, &key, "before").await;
    let reader = rusqlite::Connection::open(dir.path().join("spend.db")).unwrap();
    reader.execute_batch("BEGIN").unwrap();
    let count = || -> i64 {
        reader
            .query_row("SELECT count(*) FROM event", [], |row| row.get(0))
            .unwrap()
    };
    let before = count();
    for number in 0..50 {
        let id = format!("call {number}");
        grant(&ledger, &key, &id).await;
        ledger.settle(books::charged(&id, DOLLAR)).await.unwrap();
    }
    assert_eq!(count(), before, "the reader sees one moment");
    reader.execute_batch("COMMIT").unwrap();
    assert_eq!(count(), before + 100);
    let holds = ledger.holds(HoldFilter::default()).await.unwrap();
    assert_eq!(holds.len(), 1);
    books_agree(&ledger).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_folded_into_the_database_while_it_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, key) = ledger(&dir, SqliteOptions::default()).await;
    let ledger = Arc::new(ledger);
    for round in 0..4 {
        let tasks: Vec<_> = (0..32)
            .map(|task| {
                let (ledger, key) = (Arc::clone(&ledger), key.clone());
                tokio::spawn(async move {
                    for number in 0..25 {
                        let id = format!("{round}-{task}-{number}");
                        books::reserve(&*ledger, books::call(&key, &id, 1))
                            .await
                            .unwrap()
                            .unwrap();
                        ledger.settle(books::charged(&id, 1)).await.unwrap();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    }
    books_agree(&ledger).await;
    let database = std::fs::metadata(dir.path().join("spend.db")).unwrap().len();
    assert!(
        database > 1 << 20,
        "only {database} bytes were folded into the database"
    );
}
