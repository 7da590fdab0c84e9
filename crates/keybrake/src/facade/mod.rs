//! The front door: what users of the Rust SDK type.

mod issue;
mod reconcile;
mod run;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use issue::{IssueBuilder, IssuedKey, OpenBuilder};
pub use reconcile::{Reconciled, Resolution};
pub use run::Run;

use crate::audit::{Archive, Audit, AuditRow, Drain, DrainOptions, Restore, Restored, RowFilter};
use crate::brake::{Brake, Credentials, Limits};
use crate::client::Shell;
use crate::clock::{Clock, SystemClock};
use crate::config;
use crate::error::Result;
use crate::journal::Delivery;
use crate::ledger::{
    AdminNote, BudgetDef, BudgetUsage, HoldFilter, Ledger, Reservation, Scope, Stop, StopAnswer, StopScope,
};
use crate::policy::Policy;
use crate::secret::{Secret, Secrets};

/// Keybrake in one process: a ledger, the secrets, the engine, and the client that enforces it.
#[derive(Clone, Debug)]
pub struct Keybrake {
    shell: Arc<Shell>,
}

/// What [`Keybrake::drain`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Events that are in the archive now and were not before.
    pub drained: u64,
    /// The number of the last event that the archive has.
    pub seq: u64,
    /// Events that were removed from the ledger.
    pub trimmed: u64,
}

/// Settings of a [`Keybrake`]; everything is optional.
#[derive(Debug, Default)]
pub struct Builder {
    ledger: Option<String>,
    shared: Option<Arc<dyn Ledger>>,
    secrets: Secrets,
    base_urls: BTreeMap<String, String>,
    clock: Option<Arc<dyn Clock>>,
    limits: Limits,
    journal_dir: Option<PathBuf>,
}

impl Keybrake {
    /// From the environment: `KEYBRAKE_LEDGER`, the vendors' usual secret variables, `KEYBRAKE_BASE_URL_<VENDOR>`.
    ///
    /// # Errors
    /// As [`Builder::build`].
    pub async fn from_env() -> Result<Self> {
        Self::builder().build().await
    }

    /// Settings, to be built.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// On a shell that is there already: for the simulation.
    #[doc(hidden)]
    pub const fn over(shell: Arc<Shell>) -> Self {
        Self { shell }
    }

    /// The engine, for embedders: `authorize` and `settle`.
    pub fn brake(&self) -> &Arc<Brake> {
        self.shell.brake()
    }

    /// The client that makes whole governed calls.
    pub const fn shell(&self) -> &Arc<Shell> {
        &self.shell
    }

    /// The ledger.
    pub fn ledger(&self) -> &Arc<dyn Ledger> {
        self.brake().ledger()
    }

    /// Issues a vault key: `kb.issue(policy).run("run_42").await`.
    pub fn issue(&self, policy: Policy) -> IssueBuilder {
        IssueBuilder::new(self.clone(), policy)
    }

    /// Opens a run under a policy: issues a key that closing revokes.
    pub fn open(&self, policy: Policy) -> OpenBuilder {
        OpenBuilder::new(self.clone(), policy)
    }

    /// Opens a handle on a key that exists. Closing it leaves the key as it is.
    ///
    /// # Errors
    /// `NotFound` when the ledger does not know the key; `Policy` when it is no vault key of this ledger.
    pub async fn open_key(&self, token: &str) -> Result<Run> {
        Run::of_token(self.clone(), token).await
    }

    /// A standing refusal for a scope, until resumed. No reservation commits after it returns.
    ///
    /// # Errors
    /// `LedgerUnavailable`.
    pub async fn stop(&self, scope: StopScope, admin: AdminNote) -> Result<StopAnswer> {
        self.ledger().stop(scope, admin).await
    }

    /// As [`stop`](Self::stop), and calls in flight are aborted, in every process that has some: their callers get a denial
    /// (`stopped`), and their outcome is unknown until it is reconciled.
    ///
    /// # Errors
    /// `LedgerUnavailable`.
    pub async fn stop_hard(&self, scope: StopScope, admin: AdminNote) -> Result<StopAnswer> {
        self.ledger().stop_hard(scope, admin).await
    }

    /// Ends a stop; answers whether there was one.
    ///
    /// # Errors
    /// `LedgerUnavailable`.
    pub async fn resume(&self, scope: &StopScope, admin: AdminNote) -> Result<bool> {
        self.ledger().resume(scope, admin).await
    }

    /// All standing stops.
    ///
    /// # Errors
    /// `LedgerUnavailable`.
    pub async fn stops(&self) -> Result<Vec<Stop>> {
        self.ledger().stops().await
    }

    /// Takes the ledger's log to an archive (`sqlite:FILE`, `postgres://…`), exactly once however often and by however
    /// many it is called. With `keep` the ledger's log is then trimmed behind that, but for what is younger.
    ///
    /// # Errors
    /// `Config` for a URL that is wrong, or when the ledger no longer has events that the archive lacks;
    /// `LedgerUnavailable` when ledger or archive do not answer; `LedgerCorrupt` when the counters are not what the
    /// events add up to: then nothing is trimmed.
    pub async fn drain(&self, to: &str, keep: Option<Duration>) -> Result<Drained> {
        let ledger = self.ledger().as_ref();
        let archive = Archive::open(to).await?;
        let mut drain = Drain::new(ledger, &archive, DrainOptions::default()).await?;
        let keep_ms = keep.map(|keep| i64::try_from(keep.as_millis()).unwrap_or(i64::MAX));
        let (step, trimmed) = drain.run_and_trim(keep_ms, |_| {}).await?;
        Ok(Drained {
            drained: step.drained,
            seq: step.state.seq,
            trimmed: trimmed.map_or(0, |trimmed| trimmed.removed),
        })
    }

    /// Says again, from an archive, what the ledger's server has lost: a Redis server that came back with older data, or
    /// with none. Nothing in the ledger is lowered and nothing counts twice, so it may be repeated, and run beside others.
    /// It opens nothing: the processes that saw what happened last do, or a person. A ledger without a master key whose data
    /// is gone altogether can be restored by a process only that has had it open, since its secret is gone with the
    /// data.
    ///
    /// # Errors
    /// `NotFound` when the archive has nothing of this ledger; `LedgerCorrupt` when the archive is not whole; `Config` when
    /// it is another ledger's; `LedgerUnavailable` when ledger or archive do not answer.
    pub async fn restore(&self, from: &str) -> Result<Restored> {
        let archive = Archive::open_existing(from).await?;
        let ledger = self.ledger().as_ref();
        Restore::new(ledger, &archive).await?.run(|_| {}).await
    }

    /// Ends one key for good; answers whether it was open.
    ///
    /// # Errors
    /// `NotFound`, `LedgerUnavailable`.
    pub async fn revoke(&self, key_id: &str, admin: AdminNote) -> Result<bool> {
        self.ledger().revoke(key_id, admin).await
    }

    /// The budgets a key draws on, as they stand.
    ///
    /// # Errors
    /// `NotFound`, `LedgerUnavailable`.
    pub async fn usage(&self, key_id: &str) -> Result<Vec<BudgetUsage>> {
        self.ledger().usage(key_id).await
    }

    /// Calls as the audit has them, one row each, oldest first.
    ///
    /// # Errors
    /// `LedgerUnavailable`.
    pub async fn audit(&self, filter: RowFilter, limit: usize) -> Result<Vec<AuditRow>> {
        Audit::new(self.ledger().as_ref()).list(filter, limit).await
    }

    /// Reservations that still hold something, with the reason.
    ///
    /// # Errors
    /// `LedgerUnavailable`.
    pub async fn holds(&self, filter: HoldFilter) -> Result<Vec<Reservation>> {
        self.ledger().sweep(10_000).await?;
        self.ledger().holds(filter).await
    }

    /// Creates a budget or changes its cap; works on the next call, for everyone.
    ///
    /// # Errors
    /// `Policy` for what cannot be changed, `LedgerUnavailable`.
    pub async fn set_budget(&self, budget: BudgetDef, admin: AdminNote) -> Result<BudgetDef> {
        self.ledger().put_budget(budget, admin).await
    }

    /// Budgets, all or of one scope, as they stand.
    ///
    /// # Errors
    /// `LedgerUnavailable`.
    pub async fn budgets(&self, scope: Option<&Scope>) -> Result<Vec<BudgetUsage>> {
        self.ledger().budgets(scope).await
    }

    /// Delivers outcomes that wait on this machine for the ledger, of this process and of others. It happens by itself
    /// when the ledger is opened and when calls reach it again.
    ///
    /// # Errors
    /// `Config` when the journal cannot be read or is not this user's alone. A ledger that cannot be reached leaves
    /// them waiting.
    pub async fn deliver_outcomes(&self) -> Result<Delivery> {
        match self.brake().journal() {
            Some(journal) => journal.deliver(&**self.ledger()).await,
            None => Ok(Delivery::default()),
        }
    }

    /// Waits for outcomes that are being recorded (of calls whose callers went away, too), delivers those that wait, and
    /// writes down what is still lazy.
    ///
    /// # Errors
    /// `LedgerUnavailable`.
    pub async fn flush(&self) -> Result<()> {
        self.brake().idle().await;
        if let Err(error) = self.deliver_outcomes().await {
            tracing::warn!(%error, "waiting outcomes cannot be delivered");
        }
        self.ledger().flush().await
    }
}

impl Builder {
    /// The ledger's URL: `memory:`, `sqlite:PATH`, `redis://HOST`. With `lease_ms=N` in it, reads are decided from
    /// [leases](crate::lease).
    #[must_use]
    pub fn ledger(mut self, url: impl Into<String>) -> Self {
        self.ledger = Some(url.into());
        self
    }

    /// A ledger that is open already.
    #[must_use]
    pub fn shared_ledger(mut self, ledger: Arc<dyn Ledger>) -> Self {
        self.shared = Some(ledger);
        self
    }

    /// A vendor's secret.
    #[must_use]
    pub fn secret(mut self, vendor: &str, secret: Secret) -> Self {
        self.secrets.insert(vendor, None, secret);
        self
    }

    /// One of several secrets of a vendor; policies name it with `secret`.
    #[must_use]
    pub fn named_secret(mut self, vendor: &str, name: &str, secret: Secret) -> Self {
        self.secrets.insert(vendor, Some(name), secret);
        self
    }

    /// A loopback base URL that replaces a vendor's hosts (a simulator). Test-mode secrets only.
    #[must_use]
    pub fn base_url(mut self, vendor: &str, url: impl Into<String>) -> Self {
        self.base_urls.insert(vendor.to_owned(), url.into());
        self
    }

    /// The clock; the machine's by default.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = Some(clock);
        self
    }

    /// How long permits and calls live.
    #[must_use]
    pub const fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Where outcomes wait for a ledger that cannot take them, instead of `KEYBRAKE_JOURNAL_DIR` or the user's data
    /// directory. It is made, for its owner alone, when it is needed.
    #[must_use]
    pub fn journal_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.journal_dir = Some(dir.into());
        self
    }

    /// Opens the ledger and makes the engine.
    ///
    /// # Errors
    /// `Config` for a missing or refused setting (with what to set), `LedgerUnavailable`.
    pub async fn build(self) -> Result<Keybrake> {
        let clock = self.clock.unwrap_or_else(|| Arc::new(SystemClock));
        let mut secrets = config::secrets_from_environment();
        for (vendor, name, secret) in self.secrets.into_entries() {
            secrets.insert(&vendor, Some(&name), secret);
        }
        let mut base_urls = self.base_urls;
        for vendor in crate::vendors::vendors() {
            if let (false, Some(url)) = (
                base_urls.contains_key(vendor.name()),
                config::base_url(vendor.name()),
            ) {
                base_urls.insert(vendor.name().to_owned(), url);
            }
        }
        let journal_dir = self.journal_dir.or_else(config::journal_dir);
        let ledger = if let Some(ledger) = self.shared {
            ledger
        } else {
            let url = config::ledger_url(self.ledger.as_deref())?;
            crate::lease::open(&url, Arc::clone(&clock), journal_dir.as_deref()).await?
        };
        let credentials = Credentials::new(secrets, base_urls)?;
        let brake =
            Brake::with_journal(ledger, clock, credentials, self.limits, journal_dir.as_deref()).await?;
        Ok(Keybrake {
            shell: Arc::new(Shell::new(Arc::new(brake))),
        })
    }
}
