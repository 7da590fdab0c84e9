//! The conformance suite, for every backend.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::Arc;

use async_trait::async_trait;
use keybrake::clock::ManualClock;
use keybrake::ledger::Ledger;
use keybrake::ledger::sqlite::{SqliteLedger, SqliteOptions};
use keybrake_testkit::conformance;
use keybrake_testkit::conformance::{Fresh, Memory, Opened, Redis};
use tempfile::TempDir;

conformance!(memory, Memory);
conformance!(sqlite, Sqlite);
conformance!(redis, Redis);

/// The ledger in one SQLite file; another process opens the same file.
struct Sqlite;

struct File {
    directory: TempDir,
    clock: Arc<ManualClock>,
    ledger: Arc<dyn Ledger>,
}

#[async_trait]
impl Fresh for Sqlite {
    async fn fresh(&self, clock: Arc<ManualClock>) -> Box<dyn Opened> {
        let directory = tempfile::tempdir().unwrap();
        let ledger = open(&directory, &clock);
        Box::new(File {
            directory,
            clock,
            ledger,
        })
    }

    /// Each has a file of its own, and every reserve of theirs reaches the disk.
    fn model_cases(&self) -> u32 {
        40
    }
}

#[async_trait]
impl Opened for File {
    fn ledger(&self) -> Arc<dyn Ledger> {
        Arc::clone(&self.ledger)
    }

    async fn again(&self) -> Option<Arc<dyn Ledger>> {
        Some(open(&self.directory, &self.clock))
    }
}

fn open(directory: &TempDir, clock: &Arc<ManualClock>) -> Arc<dyn Ledger> {
    let path = directory.path().join("spend.db");
    let ledger = SqliteLedger::open(
        path.to_str().unwrap(),
        "default",
        clock.clone(),
        SqliteOptions::default(),
    );
    Arc::new(ledger.unwrap())
}
