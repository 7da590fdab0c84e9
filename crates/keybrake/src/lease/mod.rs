//! A ledger that decides what it can from leases, and asks another ledger for everything else. Opt in, with `lease_ms` in
//! the ledger's URL; docs/leases.md says when it is worth it and what it costs.
//!
//! | file | what it does |
//! | --- | --- |
//! | `books` | what this process has leased, and the calls that it decides from it: a lookup and a few numbers |
//! | `keeper` | the thread that takes, renews and gives back; no call ever waits for it |
//!
//! What is decided here was allowed by the ledger in advance, for at most half a second: the rules are those of
//! [`rules::lease`](crate::ledger::rules::lease). A call that does not fit, for whatever reason, is asked of the ledger, so
//! every refusal is the ledger's own.

mod books;
mod keeper;

use std::path::Path;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;

use self::keeper::Keeper;
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::journal::Journal;
use crate::ledger::{
    self, AdminNote, ArchivedPart, Backlog, BudgetDef, BudgetUsage, Checkpoint, Event, EventFilter,
    HoldFilter, IssueKey, KeyRecord, LeaseAnswer, LeaseAsk, Ledger, LedgerCheck, LedgerInfo, LedgerSecret,
    Life, Reasserted, Reassertion, Reservation, ReserveAnswer, ReserveRequest, Scope, SettleAnswer,
    Settlement, Stop, StopAnswer, StopScope, StopWatch, TokenHash, VerifyReport,
};

/// Opens the ledger of a URL as [`ledger::open`] does; with `lease_ms` in it, one that decides from leases.
/// `journal_dir` is where its calls are written down until the ledger was told of them.
///
/// # Errors
/// As [`ledger::open`]; `Config` when leases are asked for and there is no directory for a journal.
pub async fn open(url: &str, clock: Arc<dyn Clock>, journal_dir: Option<&Path>) -> Result<Arc<dyn Ledger>> {
    let (url, ttl_ms) = ledger::without_leases(url)?;
    let inner = ledger::open(&url, Arc::clone(&clock))?;
    let Some(ttl_ms) = ttl_ms else {
        return Ok(inner);
    };
    let Some(dir) = journal_dir else {
        return Err(Error::config(
            "lease_ms needs a directory where calls are written down: set KEYBRAKE_JOURNAL_DIR",
        ));
    };
    let journal = Journal::of(&*inner, dir).await?;
    Ok(Arc::new(LeasedLedger::new(inner, clock, ttl_ms, journal)))
}

/// A ledger that decides from leases of another.
#[derive(Debug)]
pub struct LeasedLedger {
    inner: Arc<dyn Ledger>,
    clock: Arc<dyn Clock>,
    ttl_ms: i64,
    journal: Option<Arc<Journal>>,
    /// Whether a thread renews; a test may do it by hand.
    threaded: bool,
    own: Generation,
}

/// What this process has leased, and the children forked from it: a lease is never inherited.
#[derive(Debug)]
struct Generation {
    pid: u32,
    own: OnceLock<Arc<Keeper>>,
    next: OnceLock<Box<Self>>,
}

impl Generation {
    fn new() -> Self {
        Self {
            pid: std::process::id(),
            own: OnceLock::new(),
            next: OnceLock::new(),
        }
    }
}

impl LeasedLedger {
    /// Leases of a ledger that live so long, in milliseconds. Without a journal nothing is written down of calls that the
    /// ledger was not told of: for a ledger that ends with its process.
    pub fn new(inner: Arc<dyn Ledger>, clock: Arc<dyn Clock>, ttl_ms: i64, journal: Option<Journal>) -> Self {
        Self {
            inner,
            clock,
            ttl_ms: ttl_ms.clamp(ledger::lease::SHORTEST_MS, ledger::lease::LONGEST_MS),
            journal: journal.map(Arc::new),
            threaded: true,
            own: Generation::new(),
        }
    }

    /// Without a thread: whoever made it calls [`renew`](Self::renew).
    #[must_use]
    pub fn by_hand(mut self) -> Self {
        self.threaded = false;
        self
    }

    /// Takes, renews and gives back what is due, once, as the thread does twice in each lease's time.
    pub async fn renew(&self) {
        self.keeper().round().await;
    }

    /// Tells what was done, and gives every lease back.
    pub async fn give_back(&self) {
        self.keeper().give_back(None).await;
    }

    fn keeper(&self) -> &Arc<Keeper> {
        let pid = std::process::id();
        let mut generation = &self.own;
        while generation.pid != pid {
            generation = generation.next.get_or_init(|| Box::new(Generation::new()));
        }
        generation.own.get_or_init(|| {
            Arc::new(Keeper::new(
                Arc::clone(&self.inner),
                Arc::clone(&self.clock),
                self.ttl_ms,
                self.journal.clone(),
                self.threaded,
            ))
        })
    }

    /// The ledger, once it was told all that this process did.
    async fn told(&self) -> &dyn Ledger {
        self.keeper().tell().await;
        &*self.inner
    }
}

impl Drop for LeasedLedger {
    fn drop(&mut self) {
        let own = self.own.own.get().filter(|_| self.own.pid == std::process::id());
        if let Some(keeper) = own {
            keeper.end();
        }
    }
}

#[async_trait]
impl Ledger for LeasedLedger {
    async fn info(&self) -> Result<LedgerInfo> {
        self.inner.info().await
    }

    fn secret(&self) -> &LedgerSecret {
        self.inner.secret()
    }

    async fn issue_key(&self, issue: IssueKey) -> Result<KeyRecord> {
        self.inner.issue_key(issue).await
    }

    async fn key_by_token(&self, token_hash: &TokenHash) -> Result<Option<KeyRecord>> {
        self.inner.key_by_token(token_hash).await
    }

    async fn key(&self, key_id: &str) -> Result<Option<KeyRecord>> {
        self.inner.key(key_id).await
    }

    fn records_replies(&self) -> bool {
        self.inner.records_replies()
    }

    fn namespace(&self) -> Option<&str> {
        self.inner.namespace()
    }

    async fn open_by_hand(&self, admin: AdminNote) -> Result<bool> {
        self.inner.open_by_hand(admin).await
    }

    async fn missing_events(&self) -> Result<Vec<(u64, u64)>> {
        self.inner.missing_events().await
    }

    async fn id(&self) -> Result<String> {
        self.inner.id().await
    }

    async fn life(&self) -> Result<Life> {
        self.inner.life().await
    }

    async fn await_archived(&self, part: &ArchivedPart) -> Result<Life> {
        self.inner.await_archived(part).await
    }

    async fn checks(&self) -> Result<Vec<LedgerCheck>> {
        self.inner.checks().await
    }

    async fn keys(&self) -> Result<Vec<KeyRecord>> {
        self.inner.keys().await
    }

    async fn revoke(&self, key_id: &str, admin: AdminNote) -> Result<bool> {
        let own = self.keeper().give_back(Some(key_id));
        tokio::join!(self.inner.revoke(key_id, admin), own).0
    }

    async fn stop(&self, scope: StopScope, admin: AdminNote) -> Result<StopAnswer> {
        // It stands first; then it waits for this process's leases as for all others.
        let own = self.keeper().give_back(None);
        tokio::join!(self.inner.stop(scope, admin), own).0
    }

    async fn stop_hard(&self, scope: StopScope, admin: AdminNote) -> Result<StopAnswer> {
        let own = self.keeper().give_back(None);
        tokio::join!(self.inner.stop_hard(scope, admin), own).0
    }

    fn watch_stops(&self) -> Box<dyn StopWatch> {
        self.inner.watch_stops()
    }

    async fn resume(&self, scope: &StopScope, admin: AdminNote) -> Result<bool> {
        self.inner.resume(scope, admin).await
    }

    async fn stops(&self) -> Result<Vec<Stop>> {
        self.inner.stops().await
    }

    async fn reserve(&self, request: ReserveRequest) -> Result<ReserveAnswer> {
        if let Some(grant) = self.keeper().reserve(&request) {
            return Ok(ReserveAnswer::Granted(Box::new(grant)));
        }
        self.inner.reserve(request).await
    }

    async fn settle(&self, settlement: Settlement) -> Result<SettleAnswer> {
        match self.keeper().settle(&settlement).await {
            Some(answer) => Ok(answer),
            None => self.inner.settle(settlement).await,
        }
    }

    async fn reassert(&self, reassertion: Reassertion) -> Result<Reasserted> {
        self.inner.reassert(reassertion).await
    }

    async fn lease(&self, ask: LeaseAsk) -> Result<LeaseAnswer> {
        self.inner.lease(ask).await
    }

    async fn sweep(&self, limit: u32) -> Result<u32> {
        self.inner.sweep(limit).await
    }

    async fn reservation(&self, call_id: &str) -> Result<Option<Reservation>> {
        self.keeper().tell_of(call_id).await;
        self.inner.reservation(call_id).await
    }

    async fn holds(&self, filter: HoldFilter) -> Result<Vec<Reservation>> {
        self.told().await.holds(filter).await
    }

    async fn usage(&self, key_id: &str) -> Result<Vec<BudgetUsage>> {
        self.told().await.usage(key_id).await
    }

    async fn budgets(&self, scope: Option<&Scope>) -> Result<Vec<BudgetUsage>> {
        self.told().await.budgets(scope).await
    }

    async fn put_budget(&self, budget: BudgetDef, admin: AdminNote) -> Result<BudgetDef> {
        self.inner.put_budget(budget, admin).await
    }

    async fn events(&self, filter: EventFilter) -> Result<Vec<Event>> {
        self.told().await.events(filter).await
    }

    async fn verify(&self) -> Result<VerifyReport> {
        self.told().await.verify().await
    }

    async fn accept_clock(&self, admin: AdminNote) -> Result<i64> {
        self.inner.accept_clock(admin).await
    }

    async fn flush(&self) -> Result<()> {
        self.keeper().give_back(None).await;
        self.inner.flush().await
    }

    async fn reservations(&self, call_ids: &[String]) -> Result<Vec<Reservation>> {
        self.inner.reservations(call_ids).await
    }

    async fn checkpoints(&self, after_seq: u64) -> Result<Vec<Checkpoint>> {
        self.inner.checkpoints(after_seq).await
    }

    async fn backlog(&self) -> Result<Backlog> {
        self.inner.backlog().await
    }

    async fn note_drained(&self, archive: &str, place: &str, seq: u64) -> Result<()> {
        self.inner.note_drained(archive, place, seq).await
    }

    async fn forget_archive(&self, archive: &str, admin: AdminNote) -> Result<bool> {
        self.inner.forget_archive(archive, admin).await
    }

    async fn trim(&self, upto_seq: u64) -> Result<u64> {
        self.inner.trim(upto_seq).await
    }
}
