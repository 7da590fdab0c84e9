//! Processes that lease from one ledger, which counts what it is asked and can be made to go wrong.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use keybrake::audit::{Audit, RowFilter};
use keybrake::clock::{Clock as _, ManualClock};
use keybrake::journal::Journal;
use keybrake::lease::LeasedLedger;
use keybrake::ledger::sqlite::{SqliteLedger, SqliteOptions};
use keybrake::ledger::{
    KeyRecord, LeaseAnswer, LeaseAsk, Ledger, MemoryLedger, Proof, ReserveAnswer, ReserveRequest, Settlement,
    WindowKind,
};
use keybrake::{Error, ErrorKind, Result, Usd};
use keybrake_testkit::{Around, Wrapped};

use crate::books::{self, NOW_MS};

/// How long their leases live.
pub const TTL_MS: i64 = 200;
/// After this every lease's deadline has passed.
pub const OVER_MS: i64 = 5_000;

/// A ledger that counts what it is asked.
#[derive(Debug)]
pub struct Counted {
    inner: Arc<dyn Ledger>,
    reserves: AtomicU32,
    leases: AtomicU32,
    /// Answers of `lease` are lost while it is set.
    pub deaf: AtomicBool,
    /// Steps of leases are refused as none that an honest holder asks, while it is set.
    pub rejects: AtomicBool,
    /// Steps of leases wait while somebody has it.
    pub gate: tokio::sync::Mutex<()>,
    /// Steps that were on their way at once: now, and at most.
    abreast: (AtomicU32, AtomicU32),
    /// The mutant: a lease that runs out goes back to the budget, as if nothing had been done of what was not told.
    returns: bool,
    asks: Mutex<HashMap<String, (LeaseAsk, i64)>>,
    clock: Arc<ManualClock>,
}

impl Counted {
    fn of(inner: Arc<dyn Ledger>, clock: &Arc<ManualClock>, returns: bool) -> Arc<Wrapped<Self>> {
        Arc::new(Wrapped(Self {
            inner,
            reserves: AtomicU32::new(0),
            leases: AtomicU32::new(0),
            deaf: AtomicBool::new(false),
            rejects: AtomicBool::new(false),
            gate: tokio::sync::Mutex::const_new(()),
            abreast: (AtomicU32::new(0), AtomicU32::new(0)),
            returns,
            asks: Mutex::new(HashMap::new()),
            clock: Arc::clone(clock),
        }))
    }

    /// What the mutant does before anything else is decided.
    async fn return_what_ran_out(&self) -> Result<()> {
        let now_ms = self.clock.boot_ms();
        let run_out: Vec<LeaseAsk> = {
            let mut asks = self.asks.lock().unwrap();
            let ids: Vec<String> = asks
                .iter()
                .filter(|(_, (ask, at_ms))| now_ms > at_ms + ask.ttl_ms)
                .map(|(id, _)| id.clone())
                .collect();
            ids.iter()
                .filter_map(|id| asks.remove(id))
                .map(|(ask, _)| ask)
                .collect()
        };
        for ask in run_out.into_iter().filter(|_| self.returns) {
            self.inner
                .lease(LeaseAsk {
                    number: ask.number + 1,
                    keep: 0,
                    wanted: 0,
                    done: Vec::new(),
                    ..ask
                })
                .await
                .ok(); // it may have been told since
        }
        Ok(())
    }
}

#[async_trait]
impl Around for Counted {
    fn inner(&self) -> &dyn Ledger {
        &*self.inner
    }

    async fn reserve(&self, request: ReserveRequest) -> Result<ReserveAnswer> {
        self.return_what_ran_out().await?;
        self.reserves.fetch_add(1, Ordering::SeqCst);
        self.inner.reserve(request).await
    }

    async fn lease(&self, ask: LeaseAsk) -> Result<LeaseAnswer> {
        self.return_what_ran_out().await?;
        self.leases.fetch_add(1, Ordering::SeqCst);
        let abreast = self.abreast.0.fetch_add(1, Ordering::SeqCst) + 1;
        self.abreast.1.fetch_max(abreast, Ordering::SeqCst);
        tokio::task::yield_now().await;
        drop(self.gate.lock().await);
        self.abreast.0.fetch_sub(1, Ordering::SeqCst);
        if self.rejects.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Internal, "an old number"));
        }
        let answer = self.inner.lease(ask.clone()).await?;
        let mut asks = self.asks.lock().unwrap();
        match &answer {
            LeaseAnswer::Held(_) => asks.insert(ask.id.clone(), (ask, self.clock.boot_ms())),
            LeaseAnswer::Refused | LeaseAnswer::Over { .. } => asks.remove(&ask.id),
        };
        if self.deaf.load(Ordering::SeqCst) {
            return Err(Error::ledger("the answer is lost"));
        }
        Ok(answer)
    }
}

/// A ledger, a key with so many calls a day, and processes that lease from it.
#[derive(Debug)]
pub struct Fleet {
    /// Of all of them.
    pub clock: Arc<ManualClock>,
    /// What they lease from.
    pub ledger: Arc<Wrapped<Counted>>,
    key: KeyRecord,
    number: AtomicU32,
}

impl Fleet {
    /// A ledger in memory.
    pub async fn new(cap: i64) -> Self {
        Self::on(|clock| Arc::new(MemoryLedger::new(clock).unwrap()), cap, false).await
    }

    /// In a file, so that there is something to write down.
    pub async fn in_file(dir: &Path, cap: i64) -> Self {
        let path = dir.join("spend.db");
        let open = |clock: Arc<ManualClock>| {
            let ledger =
                SqliteLedger::open(path.to_str().unwrap(), "default", clock, SqliteOptions::default());
            Arc::new(ledger.unwrap()) as Arc<dyn Ledger>
        };
        Self::on(open, cap, false).await
    }

    /// On any ledger, or its mutant.
    pub async fn on(open: impl FnOnce(Arc<ManualClock>) -> Arc<dyn Ledger>, cap: i64, returns: bool) -> Self {
        let clock = Arc::new(ManualClock::at(NOW_MS));
        let ledger = open(Arc::clone(&clock));
        let budget = books::calls("vk_1", WindowKind::Day, cap);
        let key = books::key(&*ledger, "vk_1", &[budget]).await.unwrap();
        Self {
            ledger: Counted::of(ledger, &clock, returns),
            clock,
            key,
            number: AtomicU32::new(0),
        }
    }

    /// A process that renews by hand.
    pub fn process(&self) -> LeasedLedger {
        let ledger = Arc::clone(&self.ledger) as Arc<dyn Ledger>;
        LeasedLedger::new(ledger, self.clock.clone(), TTL_MS, None).by_hand()
    }

    /// The same, with a journal.
    pub async fn journaling(&self, dir: &Path) -> LeasedLedger {
        let journal = Journal::of(&*self.ledger, dir).await.unwrap();
        let ledger = Arc::clone(&self.ledger) as Arc<dyn Ledger>;
        LeasedLedger::new(ledger, self.clock.clone(), TTL_MS, journal).by_hand()
    }

    /// A new call.
    pub fn request(&self) -> ReserveRequest {
        let number = self.number.fetch_add(1, Ordering::SeqCst);
        books::read(&self.key, &format!("call-{number}"), self.clock.now_ms())
    }

    /// The most steps of leases that were on their way at once.
    pub fn abreast(&self) -> u32 {
        self.ledger.abreast.1.load(Ordering::SeqCst)
    }

    /// A call of a run, not ended yet: each run's are a kind of their own.
    pub async fn call_of(&self, process: &LeasedLedger, run: &str) -> String {
        let mut request = self.request();
        let mut facts = request.facts.as_ref().clone();
        facts.run = Some(run.to_owned());
        request.facts = Arc::new(facts);
        books::reserve(process, request).await.unwrap().unwrap().call_id
    }

    /// A call, not ended yet; its id, or why not.
    pub async fn call(&self, process: &LeasedLedger) -> Result<String, String> {
        let granted = books::reserve(process, self.request()).await.unwrap();
        granted.map(|grant| grant.call_id)
    }

    /// A call from beginning to end.
    pub async fn spend(&self, process: &LeasedLedger) -> Result<String, String> {
        let id = self.call(process).await?;
        process.settle(done(&id)).await.unwrap();
        Ok(id)
    }

    /// As many calls as it takes to have a lease.
    pub async fn warm(&self, process: &LeasedLedger) -> usize {
        for _ in 0..3 {
            self.spend(process).await.unwrap();
        }
        process.renew().await;
        3
    }

    /// Of the budget of calls.
    pub async fn used_and_held(&self) -> (i64, i64) {
        let usage = self.ledger.usage("vk_1").await.unwrap();
        let test = usage.iter().find(|budget| !budget.livemode).unwrap();
        (test.view.used, test.view.held)
    }

    /// What the ledger was asked: reserves, and steps of leases.
    pub fn asked(&self) -> (u32, u32) {
        (
            self.ledger.reserves.load(Ordering::SeqCst),
            self.ledger.leases.load(Ordering::SeqCst),
        )
    }

    /// All rows of the audit.
    pub async fn rows(&self) -> Vec<keybrake::audit::AuditRow> {
        let ledger: &dyn Ledger = &*self.ledger;
        Audit::new(ledger)
            .list(RowFilter::default(), 10_000)
            .await
            .unwrap()
    }
}

/// The end of a read.
pub fn done(call_id: &str) -> Settlement {
    books::settlement(call_id, Proof::Charged { actual: Usd::ZERO })
}
