//! The ledger in one SQLite file: several processes of one machine, durable, no server.
//!
//! | file | what it does |
//! | --- | --- |
//! | `files` | who may touch the ledger's files, and where they may be |
//! | `guard` | locks that SQLite's own cannot lose, and the queue of writers |
//! | `schema`, `names`, `store` | what stands in the database, and one step on it |
//! | `writer` | the threads: steps committed in groups, flushed where money can move |
//! | `engine` | one open file in one process |
//! | `backlog` | up to where archives have the log, and its trimming |
//! | `fork`, `time` | what a fork and a set clock do to it |
//!
//! Every decision is a step of [`rules`] inside one transaction; this module only takes it there
//! and back.

mod backlog;
mod engine;
mod files;
pub mod fork;
mod guard;
mod names;
mod schema;
mod store;
mod time;
mod writer;

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use tokio::sync::oneshot;

pub(crate) use files::check_file;
pub use files::{Disk, FileSystem, SystemDisk};
pub(crate) use guard::{lock_file, same_file};

use self::engine::Engine;
use self::files::Files;
use self::store::SqliteStore;
use self::time::LedgerClock;
use self::writer::{Work, stopped};
use super::Ledger;
use super::backlog::{Backlog, Drained, note_forgotten};
use super::events::{Event, EventFilter};
use super::lease::{self, Before, LeaseAnswer, LeaseAsk};
use super::reassertion::{Reasserted, Reassertion};
use super::rules::{self, Flood};
use super::store::{Checkpoint, Store as _};
use super::types::{
    AdminNote, BudgetDef, BudgetUsage, HoldFilter, IssueKey, KeyRecord, LedgerInfo, LedgerSecret,
    Reservation, ReserveAnswer, ReserveRequest, Scope, SettleAnswer, Settlement, Stop, StopAnswer, StopScope,
    TokenHash, Told, VerifyReport,
};
use crate::clock::Clock;
use crate::error::{Error, Result};

/// The namespace of a URL that names none.
pub const DEFAULT_NAMESPACE: &str = "default";
/// Longest name of a namespace, in bytes.
const NAMESPACE_MAX: usize = 64;

/// How a ledger file is opened; the defaults are right outside tests.
#[derive(Clone, Debug)]
pub struct SqliteOptions {
    /// Longest wait for other processes, in milliseconds, before a step is refused.
    pub wait_ms: i64,
    /// The disk.
    pub disk: Arc<dyn Disk>,
}

impl Default for SqliteOptions {
    fn default() -> Self {
        Self {
            wait_ms: 5_000,
            disk: Arc::new(SystemDisk),
        }
    }
}

/// A handle on a namespace of a ledger file. Handles of one process share one connection; a forked child gets its
/// own by itself.
#[derive(Debug)]
pub struct SqliteLedger {
    files: Files,
    namespace: String,
    ns: i64,
    options: SqliteOptions,
    clock: Arc<LedgerClock>,
    secret: LedgerSecret,
    engines: Generation,
}

/// The engine of this process, and those of the children forked from it.
#[derive(Debug)]
struct Generation {
    number: u32,
    engine: OnceLock<Arc<Engine>>,
    next: OnceLock<Box<Self>>,
}

impl Generation {
    const fn new(number: u32) -> Self {
        Self {
            number,
            engine: OnceLock::new(),
            next: OnceLock::new(),
        }
    }
}

impl SqliteLedger {
    /// Opens a ledger file, or creates it together with its key file. Waits for the disk.
    ///
    /// # Errors
    /// `Config` when the files are not ours alone, on a network or read-only disk, or not a ledger whose key file
    /// is there; `LedgerUnavailable` when other processes keep it busy.
    pub fn open(path: &str, namespace: &str, clock: Arc<dyn Clock>, options: SqliteOptions) -> Result<Self> {
        check_namespace(namespace)?;
        let files = Files::locate(path, &*options.disk)?;
        let number = fork::generation();
        let engine = Engine::get(&files, &options)?;
        let ledger = Self {
            ns: engine.namespace(namespace)?,
            secret: engine.secret().clone(),
            files,
            namespace: namespace.to_owned(),
            options,
            clock: Arc::new(LedgerClock::new(clock)),
            engines: Generation::new(number),
        };
        let _ = ledger.engines.engine.set(engine);
        Ok(ledger)
    }

    /// This process's engine; in a child that was forked since, a new one.
    fn engine(&self) -> Result<&Arc<Engine>> {
        let number = fork::generation();
        let mut generation = &self.engines;
        while generation.number != number {
            generation = generation.next.get_or_init(|| Box::new(Generation::new(number)));
        }
        if let Some(engine) = generation.engine.get() {
            return Ok(engine);
        }
        let engine = Engine::get(&self.files, &self.options)?;
        Ok(generation.engine.get_or_init(|| engine))
    }

    /// An administrative step: it is flushed before it is answered.
    async fn admin<T: Send + 'static>(
        &self,
        mut rule: impl FnMut(&mut SqliteStore<'_>, i64) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let clock = Arc::clone(&self.clock);
        self.write(
            false,
            |_| true,
            move |store, _| {
                let clock_ms = clock.read(store)?;
                rule(store, clock_ms)
            },
        )
        .await
    }

    /// A step that may be lost at a power cut, because what it changes can be found out again.
    async fn lazy<T: Send + 'static>(
        &self,
        mut rule: impl FnMut(&mut SqliteStore<'_>, &mut Flood, i64) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let clock = Arc::clone(&self.clock);
        self.write(
            false,
            |_| false,
            move |store, flood| {
                let clock_ms = clock.read(store)?;
                rule(store, flood, clock_ms)
            },
        )
        .await
    }

    /// A step on the writing thread. It is answered after its commit, and after a flush if `durable` says so of the
    /// answer; one that is `droppable` does not happen if its caller is gone by then.
    async fn write<T: Send + 'static>(
        &self,
        droppable: bool,
        durable: fn(&T) -> bool,
        rule: impl FnMut(&mut SqliteStore<'_>, &mut Flood) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (to, answer) = oneshot::channel();
        self.engine()?.write(Box::new(Work {
            ns: self.ns,
            rule,
            durable,
            droppable,
            kept: None,
            to,
        }))?;
        answer.await.map_err(|_| stopped())?
    }

    /// A step on the reading thread, which sees what is committed and changes nothing.
    async fn read<T: Send + 'static>(
        &self,
        mut rule: impl FnMut(&mut SqliteStore<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (to, answer) = oneshot::channel();
        self.engine()?.read(Box::new(Work {
            ns: self.ns,
            rule: move |store: &mut SqliteStore<'_>, _: &mut Flood| rule(store),
            durable: |_: &T| false,
            droppable: true,
            kept: None,
            to,
        }))?;
        answer.await.map_err(|_| stopped())?
    }

    /// The ledger's URL, in full.
    fn url(&self) -> String {
        let path = self.files.database.display();
        match self.namespace.as_str() {
            DEFAULT_NAMESPACE => format!("sqlite:{path}"),
            namespace => format!("sqlite:{path}?ns={namespace}"),
        }
    }
}

impl SqliteLedger {
    async fn stopped(&self, scope: StopScope, admin: AdminNote, hard: bool) -> Result<StopAnswer> {
        let (answer, leases) = self
            .admin(move |store, clock_ms| {
                let answer = rules::stop(store, clock_ms, &scope, &admin, hard)?;
                Ok((answer, rules::leases(store, clock_ms, Before::Stop(&scope))?))
            })
            .await?;
        lease::end(self, leases).await?;
        Ok(answer)
    }
}

#[async_trait]
impl Ledger for SqliteLedger {
    async fn info(&self) -> Result<LedgerInfo> {
        let clock = Arc::clone(&self.clock);
        let (now_ms, meta) = self
            .read(move |store| {
                let meta = store.meta()?;
                Ok((meta.last_seen_ms.max(clock.now_ms()), meta))
            })
            .await?;
        let engine = self.engine()?;
        Ok(LedgerInfo {
            url: self.url(),
            id: engine.id.clone(),
            version: engine.version,
            now_ms,
            last_seq: meta.last_seq,
            open_holds: meta.open_holds,
        })
    }

    fn secret(&self) -> &LedgerSecret {
        &self.secret
    }

    fn namespace(&self) -> Option<&str> {
        Some(&self.namespace)
    }

    async fn issue_key(&self, issue: IssueKey) -> Result<KeyRecord> {
        self.admin(move |store, clock_ms| rules::issue_key(store, clock_ms, &issue))
            .await
    }

    async fn key_by_token(&self, token_hash: &TokenHash) -> Result<Option<KeyRecord>> {
        let (clock, token_hash) = (Arc::clone(&self.clock), token_hash.clone());
        self.read(move |store| rules::key_by_token(store, clock.now_ms(), &token_hash))
            .await
    }

    async fn key(&self, key_id: &str) -> Result<Option<KeyRecord>> {
        let (clock, key_id) = (Arc::clone(&self.clock), key_id.to_owned());
        self.read(move |store| rules::key(store, clock.now_ms(), &key_id))
            .await
    }

    async fn keys(&self) -> Result<Vec<KeyRecord>> {
        let clock = Arc::clone(&self.clock);
        self.read(move |store| rules::keys(store, clock.now_ms())).await
    }

    async fn revoke(&self, key_id: &str, admin: AdminNote) -> Result<bool> {
        let key_id = key_id.to_owned();
        let (open, leases) = self
            .admin(move |store, clock_ms| {
                let open = rules::revoke(store, clock_ms, &key_id, &admin)?;
                Ok((open, rules::leases(store, clock_ms, Before::Revoke(&key_id))?))
            })
            .await?;
        lease::end(self, leases).await?;
        Ok(open)
    }

    async fn stop(&self, scope: StopScope, admin: AdminNote) -> Result<StopAnswer> {
        self.stopped(scope, admin, false).await
    }

    async fn stop_hard(&self, scope: StopScope, admin: AdminNote) -> Result<StopAnswer> {
        let told = Told::TheyLook;
        let answer = self.stopped(scope, admin, true).await?;
        Ok(StopAnswer { told, ..answer })
    }

    async fn resume(&self, scope: &StopScope, admin: AdminNote) -> Result<bool> {
        let scope = scope.clone();
        self.admin(move |store, clock_ms| rules::resume(store, clock_ms, &scope, &admin))
            .await
    }

    async fn stops(&self) -> Result<Vec<Stop>> {
        self.read(|store| store.stops()).await
    }

    async fn reserve(&self, request: ReserveRequest) -> Result<ReserveAnswer> {
        let clock = Arc::clone(&self.clock);
        let moves_money = request.facts.moves_money;
        let durable = |(answer, moves_money): &(ReserveAnswer, bool)| {
            *moves_money && matches!(answer, ReserveAnswer::Granted(_))
        };
        let (answer, _) = self
            .write(true, durable, move |store, flood| {
                let clock_ms = clock.read(store)?;
                let answer = rules::reserve(store, flood, clock_ms, &request)?;
                Ok((answer, moves_money))
            })
            .await?;
        Ok(answer)
    }

    async fn settle(&self, settlement: Settlement) -> Result<SettleAnswer> {
        self.lazy(move |store, _, clock_ms| rules::settle(store, clock_ms, &settlement))
            .await
    }

    async fn reassert(&self, reassertion: Reassertion) -> Result<Reasserted> {
        self.admin(move |store, clock_ms| rules::reassert(store, clock_ms, &reassertion))
            .await
    }

    async fn lease(&self, ask: LeaseAsk) -> Result<LeaseAnswer> {
        self.lazy(move |store, _, clock_ms| rules::lease(store, clock_ms, 0, &ask))
            .await
    }

    async fn sweep(&self, limit: u32) -> Result<u32> {
        self.lazy(move |store, flood, clock_ms| {
            rules::flush_denials(store, flood, clock_ms)?;
            rules::sweep(store, clock_ms, limit)
        })
        .await
    }

    async fn reservation(&self, call_id: &str) -> Result<Option<Reservation>> {
        let call_id = call_id.to_owned();
        self.read(move |store| store.reservation(&call_id)).await
    }

    async fn holds(&self, filter: HoldFilter) -> Result<Vec<Reservation>> {
        self.lazy(move |store, _, clock_ms| rules::holds(store, clock_ms, &filter))
            .await
    }

    async fn usage(&self, key_id: &str) -> Result<Vec<BudgetUsage>> {
        let (clock, key_id) = (Arc::clone(&self.clock), key_id.to_owned());
        self.read(move |store| rules::usage(store, clock.now_ms(), &key_id))
            .await
    }

    async fn budgets(&self, scope: Option<&Scope>) -> Result<Vec<BudgetUsage>> {
        let (clock, scope) = (Arc::clone(&self.clock), scope.cloned());
        self.read(move |store| rules::budgets(store, clock.now_ms(), scope.as_ref()))
            .await
    }

    async fn put_budget(&self, budget: BudgetDef, admin: AdminNote) -> Result<BudgetDef> {
        self.admin(move |store, clock_ms| rules::put_budget(store, clock_ms, &budget, &admin))
            .await
    }

    async fn events(&self, filter: EventFilter) -> Result<Vec<Event>> {
        self.read(move |store| store.events(&filter)).await
    }

    async fn verify(&self) -> Result<VerifyReport> {
        self.lazy(|store, flood, clock_ms| rules::flush_denials(store, flood, clock_ms))
            .await?;
        // The long part reads a snapshot, so that no writer waits for it.
        let (clock, secret) = (Arc::clone(&self.clock), self.secret.clone());
        let (report, checkpoint) = self
            .read(move |store| {
                store.keep_checkpoint();
                let report = rules::verify(store, clock.now_ms(), &secret)?;
                Ok((report, store.kept_checkpoint()))
            })
            .await?;
        if let Some(checkpoint) = checkpoint {
            let from_seq = report.from_seq;
            self.admin(move |store, _| {
                // Another verification may have been quicker; its checkpoint is as good.
                let last_seq = store.last_checkpoint()?.map_or(0, |last| last.seq);
                if last_seq == from_seq {
                    store.put_checkpoint(&checkpoint)?;
                }
                Ok(())
            })
            .await?;
        }
        Ok(report)
    }

    async fn accept_clock(&self, admin: AdminNote) -> Result<i64> {
        let clock = Arc::clone(&self.clock);
        self.write(
            false,
            |_| true,
            move |store, _| {
                clock.trust(store)?;
                rules::accept_clock(store, clock.now_ms(), &admin)
            },
        )
        .await
    }

    async fn flush(&self) -> Result<()> {
        let clock = Arc::clone(&self.clock);
        self.write(
            false,
            |()| true,
            move |store, flood| rules::flush_denials(store, flood, clock.now_ms()),
        )
        .await
    }

    async fn reservations(&self, call_ids: &[String]) -> Result<Vec<Reservation>> {
        let call_ids = call_ids.to_vec();
        self.read(move |store| store.without_replies(&call_ids)).await
    }

    async fn checkpoints(&self, after_seq: u64) -> Result<Vec<Checkpoint>> {
        self.read(move |store| store.checkpoints_after(after_seq)).await
    }

    async fn backlog(&self) -> Result<Backlog> {
        self.read(|store| store.backlog(None)).await
    }

    async fn note_drained(&self, archive: &str, place: &str, seq: u64) -> Result<()> {
        let (archive, place) = (archive.to_owned(), place.to_owned());
        self.admin(move |store, clock_ms| {
            let drained = Drained {
                seq,
                at_ms: rules::ledger_time(store, clock_ms)?,
                place: place.clone(),
            };
            store.note_archive(&archive, Some(drained)).map(|_| ())
        })
        .await
    }

    async fn forget_archive(&self, archive: &str, admin: AdminNote) -> Result<bool> {
        let archive = archive.to_owned();
        self.admin(move |store, clock_ms| {
            let known = store.note_archive(&archive, None)?;
            if known {
                note_forgotten(store, clock_ms, &archive, &admin)?;
            }
            Ok(known)
        })
        .await
    }

    async fn trim(&self, upto_seq: u64) -> Result<u64> {
        let mut removed = 0_u64;
        loop {
            // Some at a time, so that no call waits long for it.
            let (gone, more) = self.admin(move |store, _| store.trim_some(upto_seq)).await?;
            removed = removed.saturating_add(gone);
            if !more {
                return Ok(removed);
            }
        }
    }
}

pub(in crate::ledger) fn check_namespace(name: &str) -> Result<()> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    if (1..=NAMESPACE_MAX).contains(&name.len()) && name.bytes().all(allowed) {
        return Ok(());
    }
    Err(Error::config(format!(
        "the ledger URL's namespace must be 1 to {NAMESPACE_MAX} of the characters A-Z a-z 0-9 _ . -, such as ?ns=prod"
    )))
}
