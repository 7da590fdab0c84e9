//! What would happen to a call, asked without consequences.

use super::job::Job;
use super::judge::Stage;
use super::{Brake, CallContext, Check};
use crate::error::Result;
use crate::ledger::{AmountAsk, Ask, BudgetUsage, KeyRecord, Stop, StopScope};
use crate::policy::{Code, Denial};
use crate::request::Call;

impl Brake {
    /// Judges a call by policy, stops and budgets as they stand. Nothing is reserved, sent or recorded, so repeats
    /// are not looked at, and a cost that only a read of the vendor can tell stays unknown: `Ok(Ok(None))`.
    ///
    /// # Errors
    /// `LedgerUnavailable`, and those of [`Brake::authorize`].
    pub async fn check(&self, call: Call, context: CallContext) -> Result<Check> {
        let mut job = Job::new(self.clock().as_ref(), self.chance(), call, context);
        let stage = self.judge(&mut job).await?;
        let verdict = match self.standing_refusal(&job).await? {
            Some(denial) => Err(denial),
            None => match stage {
                Stage::Unreachable(denial)
                | Stage::Ask {
                    ask: Ask::Refuse { denial, .. },
                    ..
                } => Err(*denial),
                Stage::Lookup { .. } | Stage::Ask { ask: Ask::Lookup, .. } => Ok(None),
                Stage::Ask {
                    ask: Ask::Amount(asked),
                    ..
                } => self.fits(&job, &asked).await?.map(|()| Some(asked.usd)),
            },
        };
        Ok(verdict.map_err(|mut denial| {
            job.complete(&mut denial);
            denial
        }))
    }

    /// A stop, revocation or expiry, which come before what the policy says.
    async fn standing_refusal(&self, job: &Job) -> Result<Option<Denial>> {
        let Some(cached) = &job.key else { return Ok(None) };
        let Some(record) = self.ledger().key(&cached.record.id).await? else {
            return Ok(None);
        };
        let vendor = job.vendor.map(crate::vendors::Vendor::name);
        let run = record.run.as_deref().or(job.run.as_deref());
        if let Some(stop) = self
            .ledger()
            .stops()
            .await?
            .into_iter()
            .find(|stop| covers(stop, &record, run, vendor))
        {
            let Stop { scope, admin, .. } = stop;
            let message = format!("{} is stopped by {}: {}", scope.name(), admin.by, admin.reason);
            return Ok(Some(Denial::new(Code::Stopped, message)));
        }
        if record.revoked_at_ms.is_some() {
            return Ok(Some(Denial::new(Code::KeyRevoked, "the key was revoked")));
        }
        if record.expires_at_ms <= self.ledger().info().await?.now_ms {
            return Ok(Some(Denial::new(Code::KeyExpired, "the key's lifetime is over")));
        }
        Ok(None)
    }

    /// Whether every enforcing budget has room now.
    async fn fits(&self, job: &Job, asked: &AmountAsk) -> Result<std::result::Result<(), Denial>> {
        let Some(key) = &job.key else { return Ok(Ok(())) };
        let usage = self.ledger().usage(&key.record.id).await?;
        for charge in asked
            .charges
            .iter()
            .filter(|charge| charge.enforce && charge.customer.is_none())
        {
            let stands =
                |budget: &&BudgetUsage| budget.id == charge.budget && budget.livemode == job.livemode;
            let Some(budget) = usage.iter().find(stands) else {
                continue;
            };
            let mut view = budget.view.clone();
            view.cap = charge.limit.map_or(view.cap, |limit| limit.min(view.cap));
            if charge.amount > view.remaining() {
                let alone = view
                    .used
                    .checked_add(charge.amount)
                    .is_some_and(|sum| sum <= view.cap);
                let code = if alone { Code::CapHeld } else { Code::CapExceeded };
                let mut denial = Denial::new(code, format!("{} has no room for it", view.name));
                denial.retryable = alone;
                denial.requested_micros = Some(asked.usd.micros());
                denial.budget = Some(view);
                return Ok(Err(denial));
            }
        }
        Ok(Ok(()))
    }
}

fn covers(stop: &Stop, key: &KeyRecord, run: Option<&str>, vendor: Option<&str>) -> bool {
    match &stop.scope {
        StopScope::Run(id) => run == Some(id),
        StopScope::Agent(id) => key.agent.as_ref() == Some(id),
        StopScope::Label(id) => key.label.as_ref() == Some(id),
        StopScope::Group(id) => key.groups.contains(id),
        StopScope::Vendor(id) => vendor == Some(id),
        StopScope::Key(id) => key.id == *id || key.ancestors.contains(id),
        StopScope::All => true,
    }
}
