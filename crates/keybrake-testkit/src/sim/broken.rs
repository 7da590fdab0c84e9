//! A ledger with one of the mistakes that are not of its server: it stands between the engine and the real one.

use async_trait::async_trait;
use keybrake::Result;
use keybrake::ledger::redis::RedisLedger;
use keybrake::ledger::{Ledger, LedgerInfo, Proof, SettleAnswer, Settlement, State};
use keybrake::money::Usd;

use super::mutants::Mutant;
use super::vendor::EARLY_MS;
use crate::Around;

#[derive(Debug)]
pub(super) struct Broken {
    pub(super) inner: RedisLedger,
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
impl Around for Broken {
    fn inner(&self) -> &dyn Ledger {
        &self.inner
    }

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
}
