//! A process whose ledger cannot always be told what became of a call, and the journal that keeps it meanwhile.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed unwrap is a failed test"
)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keybrake::Usd;
use keybrake::brake::{Decision, Permit};
use keybrake::clock::SystemClock;
use keybrake::facade::{IssuedKey, Keybrake};
use keybrake::journal::Contents;
use keybrake::ledger::sqlite::{SqliteLedger, SqliteOptions};
use keybrake::ledger::{Ledger, Proof, ReplyFacts, Settlement};
use keybrake::policy::Policy;
use keybrake::secret::Secret;
use keybrake_testkit::stripe::{MovementKind, Simulator, SimulatorOptions, TEST_SECRET};
use serde_json::json;
use tempfile::TempDir;

use crate::{generated, noon_zone, post, signed};

/// A payment of one dollar.
pub const FORM: &str = "amount=100&currency=usd&confirm=true&payment_method=pm_card_visa";

/// A vendor, and a directory for ledgers and journals.
#[derive(Debug)]
pub struct Place {
    /// The vendor.
    pub stripe: Simulator,
    directory: TempDir,
}

impl Place {
    /// A vendor where nothing has happened yet.
    pub fn start() -> Self {
        Self {
            stripe: Simulator::start(SimulatorOptions::default()).unwrap(),
            directory: tempfile::tempdir().unwrap(),
        }
    }

    /// A path in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A process with this ledger, which keeps what that does not take in this journal.
    pub async fn keybrake(&self, ledger: Arc<dyn Ledger>, journal: &str) -> keybrake::Result<Keybrake> {
        Keybrake::builder()
            .shared_ledger(ledger)
            .secret("stripe", Secret::value(TEST_SECRET))
            .base_url("stripe", self.stripe.url())
            .journal_dir(self.path(journal))
            .build()
            .await
    }

    /// A ledger file whose writers wait for each other shortly.
    pub fn sqlite(&self, name: &str) -> Arc<dyn Ledger> {
        let options = SqliteOptions {
            wait_ms: 300,
            ..SqliteOptions::default()
        };
        let path = self.path(name);
        let ledger = SqliteLedger::open(path.to_str().unwrap(), "default", Arc::new(SystemClock), options);
        Arc::new(ledger.unwrap())
    }

    /// What the vendor charged, in micro-USD.
    pub fn charged_micros(&self) -> i64 {
        self.stripe.moved(MovementKind::Charge, "usd") * 10_000
    }
}

/// A key for such payments.
pub async fn key(kb: &Keybrake) -> IssuedKey {
    let policy = json!({"vendor": "stripe", "label": "support", "daily_usd_cap": 500, "timezone": noon_zone(),
        "allowed_endpoints": ["payment_intents.create"]});
    kb.issue(Policy::from_value(&policy).unwrap()).await.unwrap()
}

/// The outcome of such a call, in this engine's journal.
pub async fn journaled(kb: &Keybrake, key: &IssuedKey, step: &str) {
    let call = permit(kb, key, step).await.call_id().to_owned();
    let journal = kb.brake().journal().unwrap();
    journal.append(charged(&call), 1).await.unwrap();
}

/// A permit for that payment.
pub async fn permit(kb: &Keybrake, key: &IssuedKey, step: &str) -> Permit {
    let call = signed(key, post("/v1/payment_intents", FORM));
    match kb.brake().authorize(call, generated(Some(step))).await.unwrap() {
        Decision::Permit(permit) => *permit,
        Decision::Denied(refused) => panic!("{:?}", refused.denial),
        _ => panic!("no permit"),
    }
}

/// Used and held of the key's budget, in micro-USD.
pub async fn budget(kb: &Keybrake, key: &IssuedKey) -> (i64, i64) {
    let usage = kb.usage(&key.id).await.unwrap();
    let view = &usage.iter().find(|budget| !budget.livemode).unwrap().view;
    (view.used, view.held)
}

/// What is in its journal.
pub fn contents(kb: &Keybrake) -> Contents {
    kb.brake().journal().unwrap().contents().unwrap()
}

/// The files of a directory that end so.
pub fn files(directory: &Path, end: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.to_str().unwrap().ends_with(end))
        .collect()
}

/// Who may do what with it.
pub fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o7777
}

/// Sets who may do what with it.
pub fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// The end of such a payment.
pub fn charged(call_id: &str) -> Settlement {
    Settlement {
        call_id: call_id.to_owned(),
        attempt: 1,
        proof: Proof::Charged {
            actual: Usd::from_micros(1_000_000),
        },
        object: None,
        reply: None,
        facts: ReplyFacts::default(),
    }
}
