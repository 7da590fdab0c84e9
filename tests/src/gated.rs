//! A ledger whose steps wait at a gate, so that a test can do something meanwhile.

use std::sync::Arc;

use async_trait::async_trait;
use keybrake::ledger::{
    AdminNote, BudgetDef, BudgetUsage, Event, EventFilter, HoldFilter, IssueKey, KeyRecord, Ledger,
    LedgerInfo, LedgerSecret, Reasserted, Reassertion, Reservation, ReserveAnswer, ReserveRequest, Scope,
    SettleAnswer, Settlement, Stop, StopAnswer, StopScope, TokenHash, VerifyReport,
};
use keybrake::{Error, Result};
use tokio::sync::watch;

/// What happens to a step that has a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It goes through.
    Open,
    /// It waits.
    Shut,
    /// It is answered with `LedgerUnavailable`.
    Fails,
}

/// A gate, and how many have come to it while it was shut.
#[derive(Debug)]
pub struct Gate {
    way: watch::Sender<Way>,
    came: watch::Sender<usize>,
}

impl Gate {
    fn open() -> Self {
        Self {
            way: watch::Sender::new(Way::Open),
            came: watch::Sender::new(0),
        }
    }

    /// From now on, and for those that wait.
    pub fn set(&self, way: Way) {
        self.way.send_replace(way);
    }

    /// How many have come to it while it was shut.
    pub fn so_far(&self) -> usize {
        *self.came.borrow()
    }

    /// Returns when so many have come to it while it was shut.
    pub async fn came(&self, count: usize) {
        let _ = self.came.subscribe().wait_for(|came| *came >= count).await;
    }

    async fn pass(&self) -> Result<()> {
        if *self.way.borrow() == Way::Shut {
            self.came.send_modify(|came| *came += 1);
        }
        let mut way = self.way.subscribe();
        let passed = way.wait_for(|way| *way != Way::Shut).await.map(|way| *way);
        match passed {
            Ok(Way::Open) => Ok(()),
            _ => Err(Error::ledger("the test's gate is closed")),
        }
    }
}

/// A ledger with gates.
#[derive(Debug)]
pub struct Gated {
    inner: Arc<dyn Ledger>,
    /// Behind a reserve: it was decided, and its answer waits.
    pub after_reserve: Gate,
    /// Before a settlement.
    pub before_settle: Gate,
}

impl Gated {
    /// A ledger with open gates.
    pub fn new(inner: Arc<dyn Ledger>) -> Self {
        Self {
            inner,
            after_reserve: Gate::open(),
            before_settle: Gate::open(),
        }
    }
}

#[async_trait]
impl Ledger for Gated {
    async fn reserve(&self, request: ReserveRequest) -> Result<ReserveAnswer> {
        let answer = self.inner.reserve(request).await;
        self.after_reserve.pass().await?;
        answer
    }

    async fn settle(&self, settlement: Settlement) -> Result<SettleAnswer> {
        self.before_settle.pass().await?;
        self.inner.settle(settlement).await
    }

    /// It outlives its process, as far as the engine knows.
    fn namespace(&self) -> Option<&str> {
        Some("default")
    }

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

    async fn keys(&self) -> Result<Vec<KeyRecord>> {
        self.inner.keys().await
    }

    async fn revoke(&self, key_id: &str, admin: AdminNote) -> Result<bool> {
        self.inner.revoke(key_id, admin).await
    }

    async fn stop(&self, scope: StopScope, admin: AdminNote) -> Result<StopAnswer> {
        self.inner.stop(scope, admin).await
    }

    async fn stop_hard(&self, scope: StopScope, admin: AdminNote) -> Result<StopAnswer> {
        self.inner.stop_hard(scope, admin).await
    }

    async fn resume(&self, scope: &StopScope, admin: AdminNote) -> Result<bool> {
        self.inner.resume(scope, admin).await
    }

    async fn stops(&self) -> Result<Vec<Stop>> {
        self.inner.stops().await
    }

    async fn reassert(&self, reassertion: Reassertion) -> Result<Reasserted> {
        self.inner.reassert(reassertion).await
    }

    async fn sweep(&self, limit: u32) -> Result<u32> {
        self.inner.sweep(limit).await
    }

    async fn reservation(&self, call_id: &str) -> Result<Option<Reservation>> {
        self.inner.reservation(call_id).await
    }

    async fn holds(&self, filter: HoldFilter) -> Result<Vec<Reservation>> {
        self.inner.holds(filter).await
    }

    async fn usage(&self, key_id: &str) -> Result<Vec<BudgetUsage>> {
        self.inner.usage(key_id).await
    }

    async fn budgets(&self, scope: Option<&Scope>) -> Result<Vec<BudgetUsage>> {
        self.inner.budgets(scope).await
    }

    async fn put_budget(&self, budget: BudgetDef, admin: AdminNote) -> Result<BudgetDef> {
        self.inner.put_budget(budget, admin).await
    }

    async fn events(&self, filter: EventFilter) -> Result<Vec<Event>> {
        self.inner.events(filter).await
    }

    async fn verify(&self) -> Result<VerifyReport> {
        self.inner.verify().await
    }

    async fn accept_clock(&self, admin: AdminNote) -> Result<i64> {
        self.inner.accept_clock(admin).await
    }

    async fn flush(&self) -> Result<()> {
        self.inner.flush().await
    }
}
