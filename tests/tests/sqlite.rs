//! The SQLite ledger as one process sees it: files, clock, namespaces, handles.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keybrake::clock::ManualClock;
use keybrake::error::ErrorKind;
use keybrake::ledger::sqlite::{Disk, FileSystem, SqliteLedger, SqliteOptions, SystemDisk};
use keybrake::ledger::{HoldFilter, Ledger, State};
use keybrake_tests::books::{self, DAY_MS, DOLLAR, NOW_MS};
use tempfile::TempDir;

/// A directory of our own, and a clock that stands still.
struct Place {
    dir: TempDir,
    clock: Arc<ManualClock>,
}

impl Place {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            clock: Arc::new(ManualClock::at(NOW_MS)),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("spend.db")
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        self.dir.path().join(format!("spend.db{suffix}"))
    }

    fn open(&self) -> SqliteLedger {
        self.try_open().unwrap()
    }

    fn try_open(&self) -> keybrake::Result<SqliteLedger> {
        self.open_with(SqliteOptions::default())
    }

    fn open_with(&self, options: SqliteOptions) -> keybrake::Result<SqliteLedger> {
        SqliteLedger::open(
            self.path().to_str().unwrap(),
            "default",
            self.clock.clone(),
            options,
        )
    }

    fn refusal(&self) -> String {
        let error = self.try_open().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        error.to_string()
    }
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o7777
}

fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn what_is_reserved_and_settled_is_there_after_reopening() {
    let place = Place::new();
    let ledger = place.open();
    let key = books::key(&ledger, "vk_1", &[books::lifetime("vk_1", 100 * DOLLAR)])
        .await
        .unwrap();
    for id in ["settled", "held"] {
        books::reserve(&ledger, books::call(&key, id, 30 * DOLLAR))
            .await
            .unwrap()
            .unwrap();
    }
    ledger
        .settle(books::charged("settled", 20 * DOLLAR))
        .await
        .unwrap();
    drop(ledger);
    assert!(
        !place.beside("-wal").exists(),
        "the last one out folds the log into the database"
    );

    let ledger = place.open();
    let usage = ledger.usage("vk_1").await.unwrap();
    let test = usage.iter().find(|budget| !budget.livemode).unwrap();
    assert_eq!((test.view.used, test.view.held), (20 * DOLLAR, 30 * DOLLAR));
    let holds = ledger.holds(HoldFilter::default()).await.unwrap();
    assert_eq!(holds.len(), 1);
    assert_eq!(holds.first().unwrap().facts.call_id, "held");
    let denied = books::reserve(&ledger, books::call(&key, "more", 51 * DOLLAR))
        .await
        .unwrap();
    assert_eq!(denied, Err("CapHeld".to_owned()));
    let report = ledger.verify().await.unwrap();
    assert!(report.chain_ok && report.differences.is_empty(), "{report:?}");
    let again = ledger.verify().await.unwrap();
    assert!(
        again.chain_ok && again.from_seq > 0,
        "the second starts from the first's checkpoint: {again:?}"
    );
}

#[tokio::test]
async fn two_handles_in_one_process_share_the_books() {
    let place = Place::new();
    let (one, other) = (place.open(), place.open());
    let key = books::key(&one, "vk_1", &[books::lifetime("vk_1", 100 * DOLLAR)])
        .await
        .unwrap();
    books::reserve(&one, books::call(&key, "a", 60 * DOLLAR))
        .await
        .unwrap()
        .unwrap();
    let denied = books::reserve(&other, books::call(&key, "b", 60 * DOLLAR))
        .await
        .unwrap();
    assert_eq!(denied, Err("CapHeld".to_owned()));
    drop(one);
    other.settle(books::charged("a", 10 * DOLLAR)).await.unwrap();
    books::reserve(&other, books::call(&key, "c", 60 * DOLLAR))
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn namespaces_of_one_file_know_nothing_of_each_other() {
    let place = Place::new();
    let open = |namespace: &str| {
        let path = place.path();
        SqliteLedger::open(
            path.to_str().unwrap(),
            namespace,
            place.clock.clone(),
            SqliteOptions::default(),
        )
    };
    let (prod, dev) = (open("prod").unwrap(), open("dev").unwrap());
    let key = books::key(&prod, "vk_1", &[books::lifetime("vk_1", 10 * DOLLAR)])
        .await
        .unwrap();
    assert!(dev.key("vk_1").await.unwrap().is_none());
    let twin = books::key(&dev, "vk_1", &[books::lifetime("vk_1", 10 * DOLLAR)])
        .await
        .unwrap();
    for (ledger, key) in [(&prod, &key), (&dev, &twin)] {
        books::reserve(ledger, books::call(key, "same id", 10 * DOLLAR))
            .await
            .unwrap()
            .unwrap();
    }
    assert_eq!(prod.info().await.unwrap().open_holds, 1);
    assert!(prod.info().await.unwrap().url.ends_with("spend.db?ns=prod"));
    assert!(open("no spaces").unwrap_err().to_string().contains("namespace"));
}

#[tokio::test]
async fn files_are_for_their_owner_alone() {
    let place = Place::new();
    let dir = place.dir.path().join("new/deeper");
    let path = dir.join("spend.db");
    let ledger = SqliteLedger::open(
        path.to_str().unwrap(),
        "default",
        place.clock.clone(),
        SqliteOptions::default(),
    )
    .unwrap();
    assert_eq!(mode(&dir), 0o700);
    for suffix in ["", "-wal", "-shm", ".key", ".lock"] {
        let path = dir.join(format!("spend.db{suffix}"));
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
    drop(ledger);
}

#[test]
fn files_that_others_can_reach_are_refused_with_the_command_that_mends_it() {
    for suffix in ["", ".key", ".lock"] {
        let place = Place::new();
        drop(place.open());
        let path = place.beside(suffix);
        chmod(&path, 0o640);
        let refusal = place.refusal();
        let command = format!("chmod 600 '{}'", path.canonicalize().unwrap().display());
        assert!(refusal.contains(&command), "{refusal}");
        chmod(&path, 0o600);
        drop(place.open());
    }
    let place = Place::new();
    chmod(place.dir.path(), 0o777);
    assert!(place.refusal().contains("chmod o-w"));
}

#[test]
fn links_are_refused() {
    let place = Place::new();
    let elsewhere = Place::new();
    drop(elsewhere.open());
    symlink(elsewhere.path(), place.path()).unwrap();
    assert!(place.refusal().contains("symbolic link"));
    std::fs::remove_file(place.path()).unwrap();

    std::fs::hard_link(elsewhere.path(), place.path()).unwrap();
    assert!(place.refusal().contains("second name"));
}

#[test]
fn a_clone_cannot_spend() {
    let (place, clone) = (Place::new(), Place::new());
    drop(place.open());
    std::fs::copy(place.path(), clone.path()).unwrap();
    assert!(
        clone.refusal().contains("a clone cannot spend"),
        "without any key file"
    );

    let stranger = Place::new();
    drop(stranger.open());
    std::fs::copy(stranger.beside(".key"), clone.beside(".key")).unwrap();
    assert!(
        clone.refusal().contains("a clone cannot spend"),
        "with another ledger's key file"
    );

    std::fs::copy(place.beside(".key"), clone.beside(".key")).unwrap();
    drop(clone.try_open().unwrap());
}

#[test]
fn no_counter_restarts_from_zero_because_the_database_went_missing() {
    let place = Place::new();
    drop(place.open());
    std::fs::remove_file(place.path()).unwrap();
    assert!(place.refusal().contains("spend.db.key is still there"));
}

#[test]
fn a_newer_format_and_foreign_databases_are_refused_by_name() {
    let place = Place::new();
    drop(place.open());
    let database = rusqlite::Connection::open(place.path()).unwrap();
    database.execute_batch("UPDATE format SET v = 2").unwrap();
    drop(database);
    let refusal = place.refusal();
    assert!(
        refusal.contains("format 2") && refusal.contains("up to 1"),
        "{refusal}"
    );

    let place = Place::new();
    let database = rusqlite::Connection::open(place.path()).unwrap();
    database.execute_batch("CREATE TABLE mine (x)").unwrap();
    drop(database);
    chmod(&place.path(), 0o600);
    assert!(place.refusal().contains("not a Keybrake ledger"));
    assert!(!place.beside(".key").exists());
}

/// A disk that says what the test wants to hear.
#[derive(Debug)]
struct Pretend(FileSystem);

impl Disk for Pretend {
    fn file_system(&self, _dir: &Path) -> std::io::Result<FileSystem> {
        Ok(self.0)
    }

    fn flush(&self, file: &std::fs::File) -> std::io::Result<()> {
        SystemDisk.flush(file)
    }
}

#[test]
fn scenario_11_a_network_mount_is_refused() {
    for (magic, name) in [(0x6969, "NFS"), (0xFF53_4D42, "CIFS"), (0x6573_5546, "FUSE")] {
        let place = Place::new();
        let disk = Arc::new(Pretend(FileSystem {
            magic,
            read_only: false,
        }));
        let options = SqliteOptions {
            disk,
            ..SqliteOptions::default()
        };
        let refusal = place.open_with(options).unwrap_err().to_string();
        assert!(
            refusal.contains(name) && refusal.contains("KEYBRAKE_LEDGER=sqlite:"),
            "{refusal}"
        );
        assert!(!place.path().exists(), "nothing was created");
    }
    // The machine's own answer for a local directory passes.
    drop(Place::new().open());
}

#[test]
fn a_read_only_disk_is_refused_with_what_to_set() {
    let place = Place::new();
    let disk = Arc::new(Pretend(FileSystem {
        magic: 0xEF53,
        read_only: true,
    }));
    let options = SqliteOptions {
        disk,
        ..SqliteOptions::default()
    };
    let refusal = place.open_with(options).unwrap_err().to_string();
    assert!(
        refusal.contains("read-only") && refusal.contains("KEYBRAKE_LEDGER="),
        "{refusal}"
    );
}

#[tokio::test]
async fn scenario_11_a_clock_stepped_forward_a_day_is_refused_until_accepted() {
    let place = Place::new();
    let ledger = place.open();
    let key = books::key(&ledger, "vk_1", &[books::lifetime("vk_1", 100 * DOLLAR)])
        .await
        .unwrap();
    place.clock.step_to_ms(NOW_MS + DAY_MS / 2);
    let error = books::reserve(&ledger, books::call(&key, "a", DOLLAR))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LedgerUnavailable);
    drop(ledger);

    // A process that starts after the jump knows too: the offset stands in the ledger under the boot's id.
    let ledger = place.open();
    let error = books::reserve(&ledger, books::call(&key, "a", DOLLAR))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("clock jumped"), "{error}");
    assert_eq!(ledger.info().await.unwrap().open_holds, 0);

    let now_ms = ledger.accept_clock(books::admin()).await.unwrap();
    assert_eq!(now_ms, NOW_MS + DAY_MS / 2);
    books::reserve(&ledger, books::call(&key, "a", DOLLAR))
        .await
        .unwrap()
        .unwrap();

    // Time never goes back, even when the clock is set back and accepted.
    place.clock.step_to_ms(NOW_MS);
    ledger.accept_clock(books::admin()).await.unwrap();
    let grant = books::reserve(&ledger, books::call(&key, "b", DOLLAR))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(grant.now_ms, NOW_MS + DAY_MS / 2);
}

#[tokio::test]
async fn after_a_reboot_the_clock_is_trusted_anew_and_still_never_goes_back() {
    let place = Place::new();
    let ledger = place.open();
    let key = books::key(&ledger, "vk_1", &[books::lifetime("vk_1", 100 * DOLLAR)])
        .await
        .unwrap();
    drop(ledger);
    place.clock.reboot("another boot");
    place.clock.step_to_ms(NOW_MS - DAY_MS);
    let ledger = place.open();
    let grant = books::reserve(&ledger, books::call(&key, "a", DOLLAR))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(grant.now_ms, NOW_MS);
}

#[tokio::test]
async fn a_hold_is_unknown_after_its_deadline() {
    let place = Place::new();
    let ledger = place.open();
    let key = books::key(&ledger, "vk_1", &[books::lifetime("vk_1", 100 * DOLLAR)])
        .await
        .unwrap();
    books::reserve(&ledger, books::call(&key, "a", DOLLAR))
        .await
        .unwrap()
        .unwrap();
    place.clock.advance_ms(130_001);
    assert_eq!(ledger.sweep(100).await.unwrap(), 1);
    let call = ledger.reservation("a").await.unwrap().unwrap();
    assert_eq!(call.state, State::Unknown);
}
