//! Places for archives, and logs to put into them.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use keybrake::audit::{Archive, Audit, AuditRow, Drain, DrainOptions, RowFilter};
use keybrake::ledger::{AdminNote, KeyRecord, Ledger, Proof, StopScope};
use keybrake_testkit::postgres::PostgresServer;
use tempfile::TempDir;

use crate::books::{self, DOLLAR};

/// A place for an archive, which lives as long as this.
#[derive(Debug)]
pub enum Place {
    /// A file in a directory of its own.
    Sqlite(TempDir),
    /// A private server.
    Postgres(PostgresServer),
}

impl Place {
    /// A file.
    pub fn sqlite() -> Self {
        Self::Sqlite(tempfile::tempdir().unwrap())
    }

    /// A server.
    pub fn postgres() -> Self {
        Self::Postgres(PostgresServer::start().unwrap())
    }

    /// The archive's URL.
    pub fn url(&self) -> String {
        match self {
            Self::Sqlite(directory) => format!("sqlite:{}", directory.path().join("audit.db").display()),
            Self::Postgres(server) => server.url(),
        }
    }

    /// The archive.
    pub async fn open(&self) -> Archive {
        Archive::open(&self.url()).await.unwrap()
    }
}

/// Drains everything that is there, some events at a time; answers how many were new to the archive.
pub async fn drain(ledger: &dyn Ledger, archive: &Archive, batch: u32) -> u64 {
    let options = DrainOptions {
        batch,
        ..DrainOptions::default()
    };
    let mut drain = Drain::new(ledger, archive, options).await.unwrap();
    drain.run(|_| {}).await.unwrap().drained
}

/// `vk_1` with one lifetime budget of a hundred dollars.
pub async fn key(ledger: &dyn Ledger) -> KeyRecord {
    books::key(ledger, "vk_1", &[books::lifetime("vk_1", 100 * DOLLAR)])
        .await
        .unwrap()
}

/// One of everything that a log can hold: a charge, a hold, a doubt that ends, a decline, a joined call, a
/// refusal, a stop and its end, a cap that changes.
pub async fn lively(ledger: &dyn Ledger, round: &str) {
    let key = key(ledger).await;
    let name = |call: &str| format!("{round}-{call}");
    let reserve = async |call: &str, dollars: i64| {
        let request = books::call(&key, &name(call), dollars * DOLLAR);
        books::reserve(ledger, request).await.unwrap()
    };
    reserve("charged", 2).await.unwrap();
    ledger
        .settle(books::charged(&name("charged"), 2 * DOLLAR))
        .await
        .unwrap();
    reserve("held", 1).await.unwrap();
    reserve("doubt", 3).await.unwrap();
    let nothing = Proof::NoProof {
        reason: "timeout".to_owned(),
    };
    ledger
        .settle(books::settlement(&name("doubt"), nothing))
        .await
        .unwrap();
    ledger
        .settle(books::charged(&name("doubt"), DOLLAR))
        .await
        .unwrap();
    reserve("declined", 4).await.unwrap();
    ledger
        .settle(books::settlement(&name("declined"), Proof::FailedForGood))
        .await
        .unwrap();
    // The same identity as the held one: it joins.
    let mut joining = books::call(&key, &name("held"), DOLLAR);
    let facts = std::sync::Arc::make_mut(&mut joining.facts);
    facts.call_id = name("joined");
    books::reserve(ledger, joining).await.unwrap().unwrap();
    assert!(reserve("too-much", 1_000).await.is_err());
    let scope = StopScope::Run(format!("{round}-run"));
    ledger.stop(scope.clone(), note()).await.unwrap();
    ledger.resume(&scope, note()).await.unwrap();
    ledger
        .put_budget(books::lifetime("vk_1", 100 * DOLLAR), note())
        .await
        .unwrap();
    ledger.flush().await.unwrap();
}

fn note() -> AdminNote {
    AdminNote {
        by: "ada".to_owned(),
        reason: "a test".to_owned(),
    }
}

/// All rows.
pub async fn rows(audit: Audit<'_>) -> Vec<AuditRow> {
    audit.list(RowFilter::default(), usize::MAX).await.unwrap()
}
