//! The thread that takes, renews and gives back leases, so that no call waits for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;

use super::books::{Aim, Books, Kind, Told};
use crate::clock::{Clock, SystemClock};
use crate::error::ErrorKind;
use crate::journal::Journal;
use crate::ledger::{Grant, Ledger, ReserveRequest, SettleAnswer, Settlement};

/// Steps of one lease in one go: what it tells may make another one necessary.
const STEPS: u32 = 4;

/// Steps of different leases at one time: a round of many must not take as long as a lease lives.
const SIDE_BY_SIDE: usize = 16;
const TURNS: u64 = 16;
/// How long nothing is leased after the journal did not take rows, or no thread could be started, in milliseconds.
const PUT_OFF_MS: i64 = 10_000;

/// The leases of one process.
#[derive(Debug)]
pub(super) struct Keeper {
    inner: Arc<dyn Ledger>,
    clock: Arc<dyn Clock>,
    ttl_ms: i64,
    journal: Option<Arc<Journal>>,
    threaded: bool,
    running: AtomicBool,
    books: Mutex<Books>,
    wake: Condvar,
    /// One step of a lease at a time: their numbers are in order, and whoever waits for its turn finds what the others
    /// did. Leases of different kinds take their steps side by side, as many as there are turns.
    turns: [tokio::sync::Mutex<()>; SIDE_BY_SIDE],
    /// Whether the last step failed: said once.
    failing: AtomicBool,
}

impl Keeper {
    pub(super) fn new(
        inner: Arc<dyn Ledger>,
        clock: Arc<dyn Clock>,
        ttl_ms: i64,
        journal: Option<Arc<Journal>>,
        threaded: bool,
    ) -> Self {
        Self {
            inner,
            clock,
            ttl_ms,
            journal,
            threaded,
            running: AtomicBool::new(false),
            books: Mutex::new(Books::default()),
            wake: Condvar::new(),
            turns: std::array::from_fn(|_| tokio::sync::Mutex::const_new(())),
            failing: AtomicBool::new(false),
        }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides a call from a lease, if there is one for it.
    pub(super) fn reserve(self: &Arc<Self>, request: &ReserveRequest) -> Option<Grant> {
        let boot_ms = self.clock.boot_ms();
        let (grant, due) = self.books().reserve(request, boot_ms, self.ttl_ms);
        if due {
            self.run();
            self.wake.notify_one();
        }
        grant
    }

    /// Records a call's end, if it was decided here and its end needs no judging; else makes sure that the ledger knows of
    /// the call.
    pub(super) async fn settle(&self, settlement: &Settlement) -> Option<SettleAnswer> {
        let told = self.books().settle(settlement);
        match told {
            Told::Here(answer) => Some(answer),
            Told::Apart(kind) => {
                self.step(kind, Aim::Renew).await;
                None
            }
            Told::Elsewhere => None,
        }
    }

    /// Every lease's next step: what is idle is given back, and what was told is forgotten.
    pub(super) async fn round(&self) {
        let kinds = {
            let mut books = self.books();
            books.turn_rows();
            books.due.clear();
            books.kinds(None)
        };
        self.steps(kinds, Aim::Renew).await;
        self.books().rows_told();
    }

    /// Tells what was done.
    pub(super) async fn tell(&self) {
        let kinds = self.books().kinds(None);
        self.steps(kinds, Aim::Tell).await;
    }

    /// Lets the ledger know of a call that is under way.
    pub(super) async fn tell_of(&self, call_id: &str) {
        let kind = self.books().set_apart(call_id);
        if let Some(kind) = kind {
            self.step(kind, Aim::Renew).await;
        }
    }

    async fn steps(&self, kinds: Vec<Kind>, aim: Aim) {
        join_all(kinds.into_iter().map(|kind| self.step(kind, aim))).await;
    }

    /// Tells what was done, and gives leases back: all, or those of a key.
    pub(super) async fn give_back(&self, key_id: Option<&str>) {
        let kinds = self.books().kinds(key_id);
        self.steps(kinds, Aim::GiveBack).await;
        if key_id.is_none() {
            self.books().rows_told();
        }
    }

    /// One step of a lease, and those that follow from its answer.
    async fn step(&self, kind: Kind, aim: Aim) {
        let turn = usize::try_from(kind % TURNS)
            .ok()
            .and_then(|turn| self.turns.get(turn));
        let _turn = match turn {
            Some(turn) => turn.lock().await,
            None => return,
        };
        for _ in 0..STEPS {
            let now = (self.clock.boot_ms(), self.ttl_ms);
            let Some((ask, repeated)) = self.books().ask(kind, aim, now) else {
                return;
            };
            // Counted from before it is sent: whatever time passes until the answer is read is the holder's loss.
            let asked_boot_ms = self.clock.boot_ms();
            match self.inner.lease(ask.clone()).await {
                Ok(answer) => {
                    self.failing.store(false, Ordering::Relaxed);
                    let more = self.books().answered(kind, &ask, asked_boot_ms, &answer);
                    if !more && !repeated {
                        return;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Internal => {
                    tracing::error!(lease = %ask.id, %error, "a lease is left to its deadline");
                    self.abandon(kind);
                    return;
                }
                // Asked again with the next round; until then its time runs out.
                Err(error) => {
                    if self.failing.swap(true, Ordering::Relaxed) {
                        tracing::debug!(lease = %ask.id, %error, "a lease cannot be renewed");
                    } else {
                        tracing::warn!(lease = %ask.id, %error, "leases cannot be renewed; calls are asked of the ledger");
                    }
                    return;
                }
            }
        }
    }

    /// Leaves a lease to its deadline. New rows go to new files, so that what stands in the old ones can be told.
    fn abandon(&self, kind: Kind) {
        let rows = self.journal.as_ref().map(|journal| journal.lease_rows());
        let mut books = self.books();
        match rows.transpose() {
            Ok(rows) => books.abandon(kind, rows),
            Err(error) => {
                tracing::warn!(%error, "nothing is leased any more: calls cannot be written down");
                books.abandon(kind, None);
                // Left as they are, for whoever delivers them.
                (books.rows, books.ended) = (None, true);
            }
        }
    }

    /// Starts the thread, once there is something for it to do.
    fn run(self: &Arc<Self>) {
        if self.running.swap(true, Ordering::SeqCst) {
            return;
        }
        if let Err(error) = self.write_down() {
            tracing::warn!(%error, "nothing is leased for now: calls cannot be written down");
            self.put_off();
            return;
        }
        if !self.threaded {
            return;
        }
        let keeper = Arc::clone(self);
        let started = std::thread::Builder::new()
            .name("keybrake-leases".to_owned())
            .spawn(
                move || match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                    Ok(runtime) => keeper.keep(&runtime),
                    Err(error) => keeper.fail(&error),
                },
            );
        if let Err(error) = started {
            self.fail(&error);
        }
    }

    fn fail(&self, error: &dyn std::fmt::Display) {
        tracing::warn!(%error, "nothing is leased for now: no thread can renew leases");
        self.put_off();
    }

    /// Tried again with a later lease.
    fn put_off(&self) {
        let until_boot_ms = self.clock.boot_ms().saturating_add(PUT_OFF_MS);
        self.books().put_off(until_boot_ms);
        self.running.store(false, Ordering::SeqCst);
    }

    /// Makes the files for what is decided here.
    fn write_down(&self) -> crate::error::Result<()> {
        if let Some(journal) = &self.journal {
            let rows = journal.lease_rows()?;
            self.books().rows = Some(rows);
        }
        Ok(())
    }

    fn keep(&self, runtime: &tokio::runtime::Runtime) {
        let half_ms = self.ttl_ms.checked_div(2).unwrap_or(1);
        let mut next_ms = SystemClock.boot_ms();
        loop {
            let (due, ended) = self.wait(next_ms);
            if ended {
                runtime.block_on(self.give_back(None));
                return;
            }
            if SystemClock.boot_ms() >= next_ms {
                next_ms = SystemClock.boot_ms().saturating_add(half_ms);
                runtime.block_on(self.round());
            } else {
                runtime.block_on(self.steps(due, Aim::Renew));
            }
        }
    }

    /// Waits until something is due, at most until `next_ms`; for as long as it takes while nothing is leased.
    fn wait(&self, next_ms: i64) -> (Vec<Kind>, bool) {
        let mut books = self.books();
        loop {
            if books.ended || !books.due.is_empty() {
                return (std::mem::take(&mut books.due), books.ended);
            }
            let left_ms = next_ms.saturating_sub(SystemClock.boot_ms());
            if books.leases.is_empty() {
                books = self.wake.wait(books).unwrap_or_else(PoisonError::into_inner);
            } else if left_ms <= 0 {
                return (Vec::new(), false);
            } else {
                let left = Duration::from_millis(u64::try_from(left_ms).unwrap_or(1));
                let woken = self.wake.wait_timeout(books, left);
                books = woken.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    /// The handle is gone: the thread gives back what it has, and ends.
    pub(super) fn end(&self) {
        self.books().ended = true;
        self.wake.notify_one();
    }
}
