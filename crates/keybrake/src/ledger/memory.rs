//! `memory:`: the ledger of one process, for tests and demonstrations. Everything is gone with the process.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;

use super::backlog::{self, Backlog, Drained};
use super::events::{Event, EventFilter};
use super::lease::{self, Before, LeaseAnswer, LeaseAsk};
use super::reassertion::{Reasserted, Reassertion};
use super::rules::{self, ClockGuard, Flood};
use super::store::{Checkpoint, Store};
use super::types::{
    AdminNote, BudgetDef, BudgetUsage, HoldFilter, IssueKey, KeyRecord, LedgerInfo, LedgerSecret,
    Reservation, ReserveAnswer, ReserveRequest, Scope, SettleAnswer, Settlement, Stop, StopAnswer, StopScope,
    TokenHash, Told, VerifyReport,
};
use super::{Ledger, memory_store::MemoryStore};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};

/// A ledger in this process's memory.
#[derive(Debug)]
pub struct MemoryLedger {
    id: String,
    secret: LedgerSecret,
    clock: Arc<dyn Clock>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: MemoryStore,
    flood: Flood,
    guard: ClockGuard,
}

impl MemoryLedger {
    /// An empty ledger with a secret of its own.
    ///
    /// # Errors
    /// `Config` when the operating system gives no random bytes.
    pub fn new(clock: Arc<dyn Clock>) -> Result<Self> {
        let mut id = [0_u8; 8];
        getrandom::fill(&mut id).map_err(|e| {
            Error::config("the operating system gives no random bytes").because(e.to_string())
        })?;
        Ok(Self {
            id: format!("{:016x}", u64::from_be_bytes(id)),
            secret: LedgerSecret::random()?,
            inner: Mutex::new(Inner {
                store: MemoryStore::default(),
                flood: Flood::default(),
                guard: ClockGuard::trusting(&*clock),
            }),
            clock,
        })
    }

    /// One atomic step: on an error, nothing of it stays.
    fn step<T>(&self, rule: impl FnOnce(&mut MemoryStore, &mut Flood, i64) -> Result<T>) -> Result<T> {
        let mut inner = self
            .inner
            .lock()
            .map_err(|_| Error::new(ErrorKind::LedgerUnavailable, "the ledger in memory is broken"))?;
        let clock_ms = inner.guard.read(&*self.clock)?;
        let Inner { store, flood, .. } = &mut *inner;
        let answer = rule(store, flood, clock_ms);
        match answer {
            Ok(_) => store.commit(),
            Err(_) => store.roll_back(),
        }
        answer
    }
}

impl MemoryLedger {
    async fn stopped(&self, scope: &StopScope, admin: &AdminNote, hard: bool) -> Result<StopAnswer> {
        let (answer, leases) = self.step(|store, _, clock_ms| {
            let answer = rules::stop(store, clock_ms, scope, admin, hard)?;
            Ok((answer, rules::leases(store, clock_ms, Before::Stop(scope))?))
        })?;
        lease::end(self, leases).await?;
        Ok(answer)
    }
}

#[async_trait]
impl Ledger for MemoryLedger {
    async fn info(&self) -> Result<LedgerInfo> {
        self.step(|store, _, clock_ms| {
            let meta = store.meta()?;
            Ok(LedgerInfo {
                url: "memory:".to_owned(),
                id: self.id.clone(),
                version: 1,
                now_ms: rules::ledger_time(store, clock_ms)?,
                last_seq: meta.last_seq,
                open_holds: meta.open_holds,
            })
        })
    }

    fn secret(&self) -> &LedgerSecret {
        &self.secret
    }

    async fn issue_key(&self, issue: IssueKey) -> Result<KeyRecord> {
        self.step(|store, _, clock_ms| rules::issue_key(store, clock_ms, &issue))
    }

    async fn key_by_token(&self, token_hash: &TokenHash) -> Result<Option<KeyRecord>> {
        self.step(|store, _, clock_ms| rules::key_by_token(store, clock_ms, token_hash))
    }

    async fn key(&self, key_id: &str) -> Result<Option<KeyRecord>> {
        self.step(|store, _, clock_ms| rules::key(store, clock_ms, key_id))
    }

    async fn keys(&self) -> Result<Vec<KeyRecord>> {
        self.step(|store, _, clock_ms| rules::keys(store, clock_ms))
    }

    async fn revoke(&self, key_id: &str, admin: AdminNote) -> Result<bool> {
        let (open, leases) = self.step(|store, _, clock_ms| {
            let open = rules::revoke(store, clock_ms, key_id, &admin)?;
            Ok((open, rules::leases(store, clock_ms, Before::Revoke(key_id))?))
        })?;
        lease::end(self, leases).await?;
        Ok(open)
    }

    async fn stop(&self, scope: StopScope, admin: AdminNote) -> Result<StopAnswer> {
        self.stopped(&scope, &admin, false).await
    }

    async fn stop_hard(&self, scope: StopScope, admin: AdminNote) -> Result<StopAnswer> {
        let told = Told::TheyLook;
        let answer = self.stopped(&scope, &admin, true).await?;
        Ok(StopAnswer { told, ..answer })
    }

    async fn resume(&self, scope: &StopScope, admin: AdminNote) -> Result<bool> {
        self.step(|store, _, clock_ms| rules::resume(store, clock_ms, scope, &admin))
    }

    async fn stops(&self) -> Result<Vec<Stop>> {
        self.step(|store, _, _| store.stops())
    }

    async fn reserve(&self, request: ReserveRequest) -> Result<ReserveAnswer> {
        self.step(|store, flood, clock_ms| rules::reserve(store, flood, clock_ms, &request))
    }

    async fn settle(&self, settlement: Settlement) -> Result<SettleAnswer> {
        self.step(|store, _, clock_ms| rules::settle(store, clock_ms, &settlement))
    }

    async fn reassert(&self, reassertion: Reassertion) -> Result<Reasserted> {
        self.step(|store, _, clock_ms| rules::reassert(store, clock_ms, &reassertion))
    }

    async fn lease(&self, ask: LeaseAsk) -> Result<LeaseAnswer> {
        self.step(|store, _, clock_ms| rules::lease(store, clock_ms, 0, &ask))
    }

    async fn sweep(&self, limit: u32) -> Result<u32> {
        self.step(|store, flood, clock_ms| {
            rules::flush_denials(store, flood, clock_ms)?;
            rules::sweep(store, clock_ms, limit)
        })
    }

    async fn reservation(&self, call_id: &str) -> Result<Option<Reservation>> {
        self.step(|store, _, _| store.reservation(call_id))
    }

    async fn holds(&self, filter: HoldFilter) -> Result<Vec<Reservation>> {
        self.step(|store, _, clock_ms| rules::holds(store, clock_ms, &filter))
    }

    async fn usage(&self, key_id: &str) -> Result<Vec<BudgetUsage>> {
        self.step(|store, _, clock_ms| rules::usage(store, clock_ms, key_id))
    }

    async fn budgets(&self, scope: Option<&Scope>) -> Result<Vec<BudgetUsage>> {
        self.step(|store, _, clock_ms| rules::budgets(store, clock_ms, scope))
    }

    async fn put_budget(&self, budget: BudgetDef, admin: AdminNote) -> Result<BudgetDef> {
        self.step(|store, _, clock_ms| rules::put_budget(store, clock_ms, &budget, &admin))
    }

    async fn events(&self, filter: EventFilter) -> Result<Vec<Event>> {
        self.step(|store, _, _| store.events(&filter))
    }

    async fn verify(&self) -> Result<VerifyReport> {
        self.step(|store, flood, clock_ms| {
            rules::flush_denials(store, flood, clock_ms)?;
            rules::verify(store, clock_ms, &self.secret)
        })
    }

    async fn accept_clock(&self, admin: AdminNote) -> Result<i64> {
        {
            let mut inner = self
                .inner
                .lock()
                .map_err(|_| Error::ledger("the ledger in memory is broken"))?;
            inner.guard = ClockGuard::trusting(&*self.clock);
        }
        self.step(|store, _, clock_ms| rules::accept_clock(store, clock_ms, &admin))
    }

    async fn flush(&self) -> Result<()> {
        self.step(|store, flood, clock_ms| rules::flush_denials(store, flood, clock_ms))
    }

    async fn checkpoints(&self, after_seq: u64) -> Result<Vec<Checkpoint>> {
        self.step(|store, _, _| {
            let mut all = store.checkpoints()?;
            all.retain(|checkpoint| checkpoint.seq > after_seq);
            Ok(all)
        })
    }

    async fn backlog(&self) -> Result<Backlog> {
        self.step(|store, _, _| {
            let last_seq = store.meta()?.last_seq;
            let first = store.first_event();
            Ok(Backlog {
                first_seq: first.map_or(last_seq.saturating_add(1), |(seq, _)| seq),
                first_at_ms: first.map(|(_, at_ms)| at_ms),
                last_seq,
                checkpoint_seq: store.last_checkpoint()?.map_or(0, |last| last.seq),
                archives: store.archives.clone(),
                bytes: None,
                eras: Vec::new(),
            })
        })
    }

    async fn note_drained(&self, archive: &str, place: &str, seq: u64) -> Result<()> {
        self.step(|store, _, clock_ms| {
            let drained = Drained {
                seq,
                at_ms: rules::ledger_time(store, clock_ms)?,
                place: place.to_owned(),
            };
            store.archives.insert(archive.to_owned(), drained);
            Ok(())
        })
    }

    async fn forget_archive(&self, archive: &str, admin: AdminNote) -> Result<bool> {
        self.step(|store, _, clock_ms| {
            if !store.archives.contains_key(archive) {
                return Ok(false);
            }
            backlog::note_forgotten(store, clock_ms, archive, &admin)?;
            store.archives.remove(archive);
            Ok(true)
        })
    }

    async fn trim(&self, upto_seq: u64) -> Result<u64> {
        self.step(|store, _, _| {
            let checkpoint_seq = store.last_checkpoint()?.map_or(0, |last| last.seq);
            backlog::check_trim(&store.archives, checkpoint_seq, upto_seq)?;
            Ok(store.trim(upto_seq))
        })
    }
}
