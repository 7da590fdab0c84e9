//! A ledger whose steps wait at a gate, so that a test can do something meanwhile.

use std::sync::Arc;

use async_trait::async_trait;
use keybrake::ledger::{Ledger, ReserveAnswer, ReserveRequest, SettleAnswer, Settlement};
use keybrake::{Error, Result};
use keybrake_testkit::{Around, Wrapped};
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
    pub fn around(inner: Arc<dyn Ledger>) -> Wrapped<Self> {
        Wrapped(Self {
            inner,
            after_reserve: Gate::open(),
            before_settle: Gate::open(),
        })
    }
}

#[async_trait]
impl Around for Gated {
    fn inner(&self) -> &dyn Ledger {
        &*self.inner
    }

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
}
