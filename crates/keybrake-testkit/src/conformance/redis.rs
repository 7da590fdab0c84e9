//! The ledger in Redis, on a clock that the test moves: the suite's clock is written into the ledger's own record
//! before every operation, where only a holder of the server's password could.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use keybrake::Result;
use keybrake::clock::{Clock as _, ManualClock};
use keybrake::ledger::redis::RedisLedger;
use keybrake::ledger::{
    AdminNote, Backlog, BudgetDef, BudgetUsage, Checkpoint, Event, EventFilter, HoldFilter, IssueKey,
    KeyRecord, LeaseAnswer, LeaseAsk, Ledger, LedgerInfo, LedgerSecret, Reasserted, Reassertion, Reservation,
    ReserveAnswer, ReserveRequest, Scope, SettleAnswer, Settlement, Stop, StopAnswer, StopScope, TokenHash,
    VerifyReport,
};

use super::{Fresh, Opened};
use crate::redis::{Connection, RedisOptions, RedisServer};

/// Makes every ledger on a private server of its own.
#[derive(Clone, Copy, Debug)]
pub struct Redis;

struct OnServer {
    clock: Arc<ManualClock>,
    ledger: Arc<dyn Ledger>,
    server: RedisServer,
}

#[async_trait]
impl Fresh for Redis {
    async fn fresh(&self, clock: Arc<ManualClock>) -> Box<dyn Opened> {
        let server = RedisServer::start(RedisOptions::new()).expect("a private Redis");
        Box::new(OnServer {
            ledger: open(&server, &clock),
            clock,
            server,
        })
    }

    fn model_cases(&self) -> u32 {
        40
    }
}

#[async_trait]
impl Opened for OnServer {
    fn ledger(&self) -> Arc<dyn Ledger> {
        Arc::clone(&self.ledger)
    }

    async fn again(&self) -> Option<Arc<dyn Ledger>> {
        Some(open(&self.server, &self.clock))
    }
}

fn open(server: &RedisServer, clock: &Arc<ManualClock>) -> Arc<dyn Ledger> {
    // Many tasks of a debug build share two cores with the server: patience is not what is tested.
    let url = format!("{}?ns=suite&timeout_ms=20000", server.url());
    let ledger =
        RedisLedger::open(&url, clock.clone(), Some(b"a master key of the suite, 32 bytes!")).expect("opens");
    Arc::new(Moved {
        ledger,
        clock: Arc::clone(clock),
        server: Mutex::new((0, server.connect().expect("connects"))),
    })
}

/// A ledger whose server's clock follows the test's.
#[derive(Debug)]
struct Moved {
    ledger: RedisLedger,
    clock: Arc<ManualClock>,
    /// The time that was written last.
    server: Mutex<(i64, Connection)>,
}

impl Moved {
    fn at_this_time(&self) -> &RedisLedger {
        let mut server = self.server.lock().expect("no test panics here");
        let now_ms = self.clock.now_ms();
        if server.0 != now_ms {
            let now = now_ms.to_string();
            server
                .1
                .command(&["HSET", "kb:{suite}:meta", "fixed", &now])
                .expect("the server answers");
            server.0 = now_ms;
        }
        &self.ledger
    }
}

#[async_trait]
impl Ledger for Moved {
    async fn info(&self) -> Result<LedgerInfo> {
        self.at_this_time().info().await
    }

    fn secret(&self) -> &LedgerSecret {
        self.ledger.secret()
    }

    fn records_replies(&self) -> bool {
        self.ledger.records_replies()
    }

    async fn issue_key(&self, issue: IssueKey) -> Result<KeyRecord> {
        self.at_this_time().issue_key(issue).await
    }

    async fn key_by_token(&self, token_hash: &TokenHash) -> Result<Option<KeyRecord>> {
        self.at_this_time().key_by_token(token_hash).await
    }

    async fn key(&self, key_id: &str) -> Result<Option<KeyRecord>> {
        self.at_this_time().key(key_id).await
    }

    async fn keys(&self) -> Result<Vec<KeyRecord>> {
        self.at_this_time().keys().await
    }

    async fn revoke(&self, key_id: &str, admin: AdminNote) -> Result<bool> {
        self.at_this_time().revoke(key_id, admin).await
    }

    async fn stop(&self, scope: StopScope, admin: AdminNote) -> Result<StopAnswer> {
        self.at_this_time().stop(scope, admin).await
    }

    async fn stop_hard(&self, scope: StopScope, admin: AdminNote) -> Result<StopAnswer> {
        self.at_this_time().stop_hard(scope, admin).await
    }

    async fn resume(&self, scope: &StopScope, admin: AdminNote) -> Result<bool> {
        self.at_this_time().resume(scope, admin).await
    }

    async fn stops(&self) -> Result<Vec<Stop>> {
        self.at_this_time().stops().await
    }

    async fn reserve(&self, request: ReserveRequest) -> Result<ReserveAnswer> {
        self.at_this_time().reserve(request).await
    }

    async fn settle(&self, settlement: Settlement) -> Result<SettleAnswer> {
        self.at_this_time().settle(settlement).await
    }

    async fn reassert(&self, reassertion: Reassertion) -> Result<Reasserted> {
        self.at_this_time().reassert(reassertion).await
    }

    async fn lease(&self, ask: LeaseAsk) -> Result<LeaseAnswer> {
        self.at_this_time().lease(ask).await
    }

    async fn sweep(&self, limit: u32) -> Result<u32> {
        self.at_this_time().sweep(limit).await
    }

    async fn reservation(&self, call_id: &str) -> Result<Option<Reservation>> {
        self.at_this_time().reservation(call_id).await
    }

    async fn holds(&self, filter: HoldFilter) -> Result<Vec<Reservation>> {
        self.at_this_time().holds(filter).await
    }

    async fn usage(&self, key_id: &str) -> Result<Vec<BudgetUsage>> {
        self.at_this_time().usage(key_id).await
    }

    async fn budgets(&self, scope: Option<&Scope>) -> Result<Vec<BudgetUsage>> {
        self.at_this_time().budgets(scope).await
    }

    async fn put_budget(&self, budget: BudgetDef, admin: AdminNote) -> Result<BudgetDef> {
        self.at_this_time().put_budget(budget, admin).await
    }

    async fn events(&self, filter: EventFilter) -> Result<Vec<Event>> {
        self.at_this_time().events(filter).await
    }

    async fn verify(&self) -> Result<VerifyReport> {
        self.at_this_time().verify().await
    }

    async fn accept_clock(&self, admin: AdminNote) -> Result<i64> {
        self.at_this_time().accept_clock(admin).await
    }

    async fn flush(&self) -> Result<()> {
        self.at_this_time().flush().await
    }

    async fn reservations(&self, call_ids: &[String]) -> Result<Vec<Reservation>> {
        self.at_this_time().reservations(call_ids).await
    }

    async fn checkpoints(&self, after_seq: u64) -> Result<Vec<Checkpoint>> {
        self.at_this_time().checkpoints(after_seq).await
    }

    async fn backlog(&self) -> Result<Backlog> {
        self.at_this_time().backlog().await
    }

    async fn note_drained(&self, archive: &str, place: &str, seq: u64) -> Result<()> {
        self.at_this_time().note_drained(archive, place, seq).await
    }

    async fn forget_archive(&self, archive: &str, admin: AdminNote) -> Result<bool> {
        self.at_this_time().forget_archive(archive, admin).await
    }

    async fn trim(&self, upto_seq: u64) -> Result<u64> {
        self.at_this_time().trim(upto_seq).await
    }
}
