//! A ledger with one of the mistakes that are not of its server: it stands between the engine and the real one.

use std::sync::Arc;

use async_trait::async_trait;
use keybrake::Result;
use keybrake::ledger::redis::RedisLedger;
use keybrake::ledger::{
    AdminNote, BudgetDef, BudgetUsage, Event, EventFilter, HoldFilter, IssueKey, KeyRecord, Ledger,
    LedgerInfo, LedgerSecret, Proof, Reasserted, Reassertion, Reservation, ReserveAnswer, ReserveRequest,
    Scope, SettleAnswer, Settlement, State, Stop, StopAnswer, StopScope, TokenHash, VerifyReport,
};
use keybrake::money::Usd;

use super::mutants::Mutant;
use super::vendor::EARLY_MS;

#[derive(Debug)]
pub(super) struct Broken {
    pub(super) inner: Arc<RedisLedger>,
    pub(super) mutant: Mutant,
}

impl Broken {
    /// Whether the mistake lets go of what this settlement is about.
    fn lets_go(&self, settlement: &Settlement) -> bool {
        match (self.mutant, &settlement.proof) {
            (Mutant::ReleaseOnTimeout, Proof::NoProof { .. }) => true,
            (Mutant::VoidOnJoined429, Proof::DidNotExecute) => settlement.attempt > 1,
            (Mutant::ReplayAsVoid, Proof::Charged { .. }) => settlement.facts.replayed,
            (Mutant::EarlyAbsence, Proof::Absent { .. }) => true,
            _ => false,
        }
    }
}

#[async_trait]
impl Ledger for Broken {
    async fn settle(&self, settlement: Settlement) -> Result<SettleAnswer> {
        if self.mutant == Mutant::LateReserve
            && settlement.proof == Proof::NeverSent
            && self.inner.reservation(&settlement.call_id).await?.is_none()
        {
            return Ok(SettleAnswer {
                state: State::Voided,
                used: Usd::ZERO,
                held: Usd::ZERO,
                overrun: Usd::ZERO,
                tightest: None,
                already: false,
            });
        }
        if !self.lets_go(&settlement) {
            return self.inner.settle(settlement).await;
        }
        // As if the vendor had refused it for good.
        self.inner
            .settle(Settlement {
                proof: Proof::FailedForGood,
                object: None,
                ..settlement
            })
            .await
    }

    async fn info(&self) -> Result<LedgerInfo> {
        let mut info = self.inner.info().await?;
        if self.mutant == Mutant::EarlyAbsence {
            info.now_ms += EARLY_MS;
        }
        Ok(info)
    }

    fn secret(&self) -> &LedgerSecret {
        self.inner.secret()
    }

    fn namespace(&self) -> Option<&str> {
        self.inner.namespace()
    }

    fn records_replies(&self) -> bool {
        self.inner.records_replies()
    }

    async fn open_by_hand(&self, admin: AdminNote) -> Result<bool> {
        self.inner.open_by_hand(admin).await
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

    async fn reserve(&self, request: ReserveRequest) -> Result<ReserveAnswer> {
        self.inner.reserve(request).await
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
