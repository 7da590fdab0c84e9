//! A ledger around another, for doubles that change a few of its methods: [`Around`] has what they may change, and
//! [`Wrapped`] forwards everything else, once for all of them.

use std::ops::Deref;

use async_trait::async_trait;
use keybrake::Result;
use keybrake::ledger::{
    AdminNote, ArchivedPart, Backlog, BudgetDef, BudgetUsage, Checkpoint, Event, EventFilter, HoldFilter,
    IssueKey, KeyRecord, LeaseAnswer, LeaseAsk, Ledger, LedgerCheck, LedgerInfo, LedgerSecret, Life,
    Reasserted, Reassertion, Reservation, ReserveAnswer, ReserveRequest, Scope, SettleAnswer, Settlement,
    Stop, StopAnswer, StopScope, StopWatch, TokenHash, VerifyReport,
};

/// What a double does otherwise than the ledger in it. A method that another double has to change is added here, and
/// [`Wrapped`] then asks this one.
#[async_trait]
pub trait Around: Send + Sync + std::fmt::Debug {
    /// The ledger in it. Asked before each call that is forwarded.
    fn inner(&self) -> &dyn Ledger;

    /// See [`Ledger::info`].
    async fn info(&self) -> Result<LedgerInfo> {
        self.inner().info().await
    }

    /// See [`Ledger::namespace`].
    fn namespace(&self) -> Option<&str> {
        self.inner().namespace()
    }

    /// See [`Ledger::reserve`].
    async fn reserve(&self, request: ReserveRequest) -> Result<ReserveAnswer> {
        self.inner().reserve(request).await
    }

    /// See [`Ledger::settle`].
    async fn settle(&self, settlement: Settlement) -> Result<SettleAnswer> {
        self.inner().settle(settlement).await
    }

    /// See [`Ledger::lease`].
    async fn lease(&self, ask: LeaseAsk) -> Result<LeaseAnswer> {
        self.inner().lease(ask).await
    }
}

/// The ledger that a double is.
#[derive(Debug)]
pub struct Wrapped<T>(pub T);

impl<T> Deref for Wrapped<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

#[async_trait]
impl<T: Around> Ledger for Wrapped<T> {
    async fn info(&self) -> Result<LedgerInfo> {
        self.0.info().await
    }

    fn secret(&self) -> &LedgerSecret {
        self.0.inner().secret()
    }

    async fn issue_key(&self, issue: IssueKey) -> Result<KeyRecord> {
        self.0.inner().issue_key(issue).await
    }

    async fn key_by_token(&self, token_hash: &TokenHash) -> Result<Option<KeyRecord>> {
        self.0.inner().key_by_token(token_hash).await
    }

    async fn key(&self, key_id: &str) -> Result<Option<KeyRecord>> {
        self.0.inner().key(key_id).await
    }

    fn records_replies(&self) -> bool {
        self.0.inner().records_replies()
    }

    fn namespace(&self) -> Option<&str> {
        self.0.namespace()
    }

    async fn open_by_hand(&self, admin: AdminNote) -> Result<bool> {
        self.0.inner().open_by_hand(admin).await
    }

    async fn missing_events(&self) -> Result<Vec<(u64, u64)>> {
        self.0.inner().missing_events().await
    }

    async fn id(&self) -> Result<String> {
        self.0.inner().id().await
    }

    async fn life(&self) -> Result<Life> {
        self.0.inner().life().await
    }

    async fn await_archived(&self, part: &ArchivedPart) -> Result<Life> {
        self.0.inner().await_archived(part).await
    }

    async fn checks(&self) -> Result<Vec<LedgerCheck>> {
        self.0.inner().checks().await
    }

    async fn keys(&self) -> Result<Vec<KeyRecord>> {
        self.0.inner().keys().await
    }

    async fn revoke(&self, key_id: &str, admin: AdminNote) -> Result<bool> {
        self.0.inner().revoke(key_id, admin).await
    }

    async fn stop(&self, scope: StopScope, admin: AdminNote) -> Result<StopAnswer> {
        self.0.inner().stop(scope, admin).await
    }

    async fn stop_hard(&self, scope: StopScope, admin: AdminNote) -> Result<StopAnswer> {
        self.0.inner().stop_hard(scope, admin).await
    }

    fn watch_stops(&self) -> Box<dyn StopWatch> {
        self.0.inner().watch_stops()
    }

    async fn resume(&self, scope: &StopScope, admin: AdminNote) -> Result<bool> {
        self.0.inner().resume(scope, admin).await
    }

    async fn stops(&self) -> Result<Vec<Stop>> {
        self.0.inner().stops().await
    }

    async fn reserve(&self, request: ReserveRequest) -> Result<ReserveAnswer> {
        self.0.reserve(request).await
    }

    async fn settle(&self, settlement: Settlement) -> Result<SettleAnswer> {
        self.0.settle(settlement).await
    }

    async fn reassert(&self, reassertion: Reassertion) -> Result<Reasserted> {
        self.0.inner().reassert(reassertion).await
    }

    async fn lease(&self, ask: LeaseAsk) -> Result<LeaseAnswer> {
        self.0.lease(ask).await
    }

    async fn sweep(&self, limit: u32) -> Result<u32> {
        self.0.inner().sweep(limit).await
    }

    async fn reservation(&self, call_id: &str) -> Result<Option<Reservation>> {
        self.0.inner().reservation(call_id).await
    }

    async fn holds(&self, filter: HoldFilter) -> Result<Vec<Reservation>> {
        self.0.inner().holds(filter).await
    }

    async fn usage(&self, key_id: &str) -> Result<Vec<BudgetUsage>> {
        self.0.inner().usage(key_id).await
    }

    async fn budgets(&self, scope: Option<&Scope>) -> Result<Vec<BudgetUsage>> {
        self.0.inner().budgets(scope).await
    }

    async fn put_budget(&self, budget: BudgetDef, admin: AdminNote) -> Result<BudgetDef> {
        self.0.inner().put_budget(budget, admin).await
    }

    async fn events(&self, filter: EventFilter) -> Result<Vec<Event>> {
        self.0.inner().events(filter).await
    }

    async fn verify(&self) -> Result<VerifyReport> {
        self.0.inner().verify().await
    }

    async fn accept_clock(&self, admin: AdminNote) -> Result<i64> {
        self.0.inner().accept_clock(admin).await
    }

    async fn flush(&self) -> Result<()> {
        self.0.inner().flush().await
    }

    async fn reservations(&self, call_ids: &[String]) -> Result<Vec<Reservation>> {
        self.0.inner().reservations(call_ids).await
    }

    async fn checkpoints(&self, after_seq: u64) -> Result<Vec<Checkpoint>> {
        self.0.inner().checkpoints(after_seq).await
    }

    async fn backlog(&self) -> Result<Backlog> {
        self.0.inner().backlog().await
    }

    async fn note_drained(&self, archive: &str, place: &str, seq: u64) -> Result<()> {
        self.0.inner().note_drained(archive, place, seq).await
    }

    async fn forget_archive(&self, archive: &str, admin: AdminNote) -> Result<bool> {
        self.0.inner().forget_archive(archive, admin).await
    }

    async fn trim(&self, upto_seq: u64) -> Result<u64> {
        self.0.inner().trim(upto_seq).await
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    const TRAIT: &str = include_str!("../../keybrake/src/ledger/mod.rs");

    /// Names of the functions between this line and the end of its block.
    fn functions(source: &'static str, begins: &str) -> BTreeSet<&'static str> {
        let (_, block) = source.split_once(begins).unwrap();
        let block = block.split("\n}\n").next().unwrap();
        block
            .lines()
            .filter_map(|line| {
                let line = line.strip_prefix("    ")?;
                let line = line.strip_prefix("async ").unwrap_or(line);
                line.strip_prefix("fn ")?.split(['(', '<']).next()
            })
            .collect()
    }

    /// A method with a body of its own in the trait that is not here would answer for a ledger that keeps nothing.
    #[test]
    fn every_method_of_a_ledger_is_forwarded() {
        let of_a_ledger = functions(TRAIT, "\npub trait Ledger");
        let here = functions(
            include_str!("around.rs"),
            "\nimpl<T: Around> Ledger for Wrapped<T>",
        );
        assert!(of_a_ledger.len() > 35, "{of_a_ledger:?}");
        assert_eq!(here, of_a_ledger);
    }

    /// The same of the ledger that leases are spent from.
    #[test]
    fn every_method_of_a_ledger_is_answered_by_the_leased_one() {
        let here = functions(
            include_str!("../../keybrake/src/lease/mod.rs"),
            "\nimpl Ledger for LeasedLedger",
        );
        assert_eq!(here, functions(TRAIT, "\npub trait Ledger"));
    }

    /// What a double may change is asked of the double, and everything else of the ledger in it.
    #[test]
    fn what_a_double_may_change_is_asked_of_it() {
        let source = include_str!("around.rs");
        let mut hooks = functions(source, "\npub trait Around");
        assert!(hooks.remove("inner"));
        let (_, wrapped) = source
            .split_once("\nimpl<T: Around> Ledger for Wrapped<T>")
            .unwrap();
        for name in functions(TRAIT, "\npub trait Ledger") {
            let asked = wrapped.contains(&format!("\n        self.0.{name}("));
            let passed = wrapped.contains(&format!("\n        self.0.inner().{name}("));
            assert_eq!(
                (asked, passed),
                (hooks.contains(name), !hooks.contains(name)),
                "{name}"
            );
        }
    }
}
