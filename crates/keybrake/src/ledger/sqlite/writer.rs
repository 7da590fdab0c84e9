//! The threads that touch SQLite: one writer per process, which commits its queue as a group, and one reader,
//! which never keeps the writer waiting.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::files::{Disk, Files};
use super::fork;
use super::guard::{Held, LockFile};
use super::store::{CachedMeta, SqliteStore, failed};
use crate::error::{Error, ErrorKind, Result};
use crate::ledger::rules::Flood;

/// Steps waiting in one process; beyond it a caller is refused.
const QUEUE_MAX: usize = 8_192;
/// Steps committed together.
const GROUP_MAX: usize = 256;
/// Steps after which the log is folded into the database.
pub(super) const STEPS_PER_CHECKPOINT: usize = 1_000;
/// Pages in the log from which on writers wait for it to be folded (128 MiB), so that it cannot grow for ever.
const LOG_PAGES_MAX: i64 = 32_768;
/// A log with less room than this left in its file is made longer in advance, by as much as it is, within bounds.
/// Flushing a file that grew writes its new length too, in its own trips to the disk: measured 1.6 to 6 times the cost of
/// overwriting.
const LOG_ROOM: u64 = 256 << 10;
const LENGTHEN_MIN: u64 = 1 << 20;
const LENGTHEN_MAX: u64 = 16 << 20;
/// Longest wait for other writers when the ledger is closed.
const CLOSE_WAIT_MS: i64 = 1_000;

/// One step to take on a thread that owns a connection.
pub(super) trait Job: Send {
    /// The namespace's number.
    fn ns(&self) -> i64;
    /// Whether its caller is gone and it should not happen.
    fn abandoned(&self) -> bool;
    /// Takes the step and keeps the answer; answers whether it stands. May be called again after a rollback.
    fn run(&mut self, store: &mut SqliteStore<'_>, flood: &mut Flood) -> bool;
    /// Whether the kept answer may be given only once it survives a power cut.
    fn durable(&self) -> bool;
    /// Gives the kept answer, or this failure in its place.
    fn answer(self: Box<Self>, failure: Option<Error>);
}

/// A step as a function that answers to a oneshot.
pub(super) struct Work<T, F> {
    pub(super) ns: i64,
    pub(super) rule: F,
    /// Which answers must survive a power cut before they are given.
    pub(super) durable: fn(&T) -> bool,
    /// Whether it should not happen once nobody waits for it.
    pub(super) droppable: bool,
    pub(super) kept: Option<Result<T>>,
    pub(super) to: oneshot::Sender<Result<T>>,
}

impl<T, F> Job for Work<T, F>
where
    T: Send,
    F: FnMut(&mut SqliteStore<'_>, &mut Flood) -> Result<T> + Send,
{
    fn ns(&self) -> i64 {
        self.ns
    }

    fn abandoned(&self) -> bool {
        self.droppable && self.to.is_closed()
    }

    fn run(&mut self, store: &mut SqliteStore<'_>, flood: &mut Flood) -> bool {
        let kept = (self.rule)(store, flood);
        let stands = kept.is_ok();
        self.kept = Some(kept);
        stands
    }

    fn durable(&self) -> bool {
        matches!(&self.kept, Some(Ok(answer)) if (self.durable)(answer))
    }

    fn answer(self: Box<Self>, failure: Option<Error>) {
        let answer = match (failure, self.kept) {
            (Some(failure), _) => Err(failure),
            (None, Some(kept)) => kept,
            (None, None) => Err(Error::new(
                ErrorKind::Internal,
                "a step of the ledger was not taken",
            )),
        };
        // Nobody waits any more: the step stands all the same.
        let _ = self.to.send(answer);
    }
}

/// Where steps wait for their thread.
#[derive(Clone, Debug)]
pub(super) struct Queue(SyncSender<Box<dyn Job>>);

impl Queue {
    /// A queue and its end.
    pub(super) fn new() -> (Self, Receiver<Box<dyn Job>>) {
        let (sender, receiver) = sync_channel(QUEUE_MAX);
        (Self(sender), receiver)
    }

    /// Puts a step in, without waiting.
    pub(super) fn put(&self, job: Box<dyn Job>) -> Result<()> {
        self.0.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => Error::ledger(format!(
                "the ledger is busy: {QUEUE_MAX} steps wait in this process. Nothing was sent"
            )),
            TrySendError::Disconnected(_) => stopped(),
        })
    }
}

pub(super) fn stopped() -> Error {
    Error::ledger("the ledger's thread in this process has ended. Nothing was sent")
}

/// The writing thread's own.
pub(super) struct Writer {
    pub(super) conn: Connection,
    pub(super) files: Files,
    pub(super) lock: Arc<LockFile>,
    pub(super) held: Arc<Held>,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) wait_ms: i64,
    /// Where checkpoints are asked for, and the thread that makes them.
    pub(super) reader: (Queue, JoinHandle<()>),
    /// Why nothing may be answered any more.
    pub(super) dead: Option<String>,
    pub(super) steps: usize,
    /// Recent denials by namespace.
    pub(super) floods: BTreeMap<i64, Flood>,
}

impl Writer {
    /// Takes steps until the queue is closed, then closes the database.
    pub(super) fn run(mut self, queue: &Receiver<Box<dyn Job>>) {
        while let Ok(first) = queue.recv() {
            let mut group = vec![first];
            while group.len() < GROUP_MAX
                && let Ok(next) = queue.try_recv()
            {
                group.push(next);
            }
            self.take(group);
        }
        self.close();
    }

    /// One group: guard file, transaction, answers; those that must survive a power cut after the flush.
    fn take(&mut self, mut group: Vec<Box<dyn Job>>) {
        let busy = fork::begin();
        self.steps = self.steps.saturating_add(group.len());
        let lock = Arc::clone(&self.lock);
        let outcome = match &self.dead {
            Some(reason) => Err(Error::ledger(reason.clone())),
            None => lock
                .with(self.wait_ms, || {
                    let _inside = busy.inside();
                    self.commit(&mut group)
                })
                .flatten(),
        };
        if let Err(error) = outcome {
            return answer_all(group, &error);
        }
        let (durable, lazy): (Vec<_>, Vec<_>) = group.into_iter().partition(|job| job.durable());
        for job in lazy {
            job.answer(None);
        }
        if durable.is_empty() {
            return self.maintain();
        }
        match self.flush() {
            Ok(()) => durable.into_iter().for_each(|job| job.answer(None)),
            Err(error) => answer_all(durable, &error),
        }
        self.maintain();
    }

    fn commit(&mut self, group: &mut [Box<dyn Job>]) -> Result<()> {
        let committed = match self.attempt(group, false) {
            Ok(true) => Ok(()),
            // A step failed after it had written: take the group again, able to undo single steps.
            Ok(false) => self.attempt(group, true).map(|_| ()),
            Err(error) => Err(error),
        };
        if committed.is_err() && !self.conn.is_autocommit() {
            self.conn
                .execute_batch("ROLLBACK")
                .map_err(|error| failed("undo a step", &error))?;
        }
        committed?;
        self.held.still_linked().inspect_err(|error| self.die(error))
    }

    /// Takes the steps in one transaction. Answers false, with everything undone, if a step failed after it had
    /// written and `undoable` is not set.
    fn attempt(&mut self, group: &mut [Box<dyn Job>], undoable: bool) -> Result<bool> {
        self.execute("BEGIN IMMEDIATE")?;
        let mut metas: Vec<(i64, CachedMeta)> = Vec::new();
        // Whoever left while the guard file was another's is asked about here, not earlier.
        for job in group.iter_mut().filter(|job| !job.abandoned()) {
            if undoable {
                self.execute("SAVEPOINT step")?;
            }
            let ns = job.ns();
            let known = metas.iter().position(|(of, _)| *of == ns);
            let before = known
                .and_then(|index| metas.get(index))
                .map_or_else(CachedMeta::default, |(_, meta)| *meta);
            let mut store = SqliteStore::new(&self.conn, ns, before);
            if job.run(&mut store, self.floods.entry(ns).or_default()) {
                let after = store.into_meta();
                match known.and_then(|index| metas.get_mut(index)) {
                    Some((_, meta)) => *meta = after,
                    None => metas.push((ns, after)),
                }
            } else if undoable {
                self.execute("ROLLBACK TO step")?;
            } else if store.wrote() {
                self.execute("ROLLBACK")?;
                return Ok(false);
            }
            if undoable {
                self.execute("RELEASE step")?;
            }
        }
        for (ns, meta) in metas {
            SqliteStore::new(&self.conn, ns, meta).finish()?;
        }
        self.lengthen_log();
        self.execute("COMMIT")?;
        Ok(true)
    }

    /// Makes the log longer before SQLite has to, once it is in real use. When it starts over it is overwritten, and
    /// grows no more.
    fn lengthen_log(&self) {
        let Some((used, length)) = self.held.log_bytes() else {
            return;
        };
        if used < LOG_ROOM || used.saturating_add(LOG_ROOM) <= length {
            return;
        }
        let to = length.saturating_add(length.clamp(LENGTHEN_MIN, LENGTHEN_MAX));
        if let Err(error) = self.held.lengthen_log(length, to) {
            // A full disk, perhaps; the commit will say so itself.
            tracing::debug!(%error, "the ledger's log could not be made longer in advance");
        }
    }

    fn execute(&self, sql: &str) -> Result<()> {
        let done = self
            .conn
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute([]));
        done.map(|_| ()).map_err(|error| failed(sql, &error))
    }

    /// Writes the log to the disk. After a failure the kernel may have dropped what it could not write, so that
    /// nothing may be trusted any more.
    fn flush(&mut self) -> Result<()> {
        let Some(wal) = self.held.wal() else {
            return Err(Error::new(ErrorKind::Internal, "the ledger's log is not open"));
        };
        self.disk.flush(wal).map_err(|error| {
            let error = Error::ledger(format!(
                "the ledger could not be flushed to disk ({error}); nothing was sent. Mend the disk and start again"
            ));
            self.die(&error);
            error
        })
    }

    fn die(&mut self, error: &Error) {
        tracing::error!(%error, "the ledger is closed in this process");
        self.dead = Some(error.to_string());
    }

    /// Has the log folded into the database from time to time, on the other thread.
    fn maintain(&mut self) {
        if self.steps >= STEPS_PER_CHECKPOINT {
            self.steps = 0;
            let _ = self.reader.0.put(Box::new(Checkpoint {
                lock: Arc::clone(&self.lock),
                wait_ms: self.wait_ms,
            }));
        }
    }

    /// Closes the connection as the last one of this process: SQLite folds the log into the database and removes
    /// it if no other process has it open.
    fn close(self) {
        let Self {
            conn,
            files,
            lock,
            held,
            dead,
            reader: (queue, thread),
            ..
        } = self;
        drop(queue);
        if thread.join().is_err() {
            tracing::error!("the ledger's reading thread had stopped");
        }
        if dead.is_some() {
            // Closing would fold a log that is not the database's any more.
            Box::leak(Box::new(conn));
            return;
        }
        let busy = fork::begin();
        let (mut held, mut conn) = (Some(held), Some(conn));
        let closed = lock.with(CLOSE_WAIT_MS, || {
            let _inside = busy.inside();
            // The reading thread has ended, and its share with it.
            let own = held.take().and_then(Arc::into_inner);
            let given_up = own.map(|held| held.give_up(&files));
            drop(conn.take());
            if let Some(Err(error)) = given_up {
                tracing::warn!(%error, "the ledger's log stays, to be folded by the next process");
            }
        });
        if closed.is_err() {
            let _inside = busy.inside();
            drop(conn);
        }
    }
}

fn answer_all(group: Vec<Box<dyn Job>>, error: &Error) {
    for job in group {
        job.answer(Some(Error::new(error.kind(), error.to_string())));
    }
}

/// The reading thread's own: a connection that sees what is committed.
pub(super) struct Reader {
    pub(super) conn: Connection,
    pub(super) held: Arc<Held>,
}

impl Reader {
    /// Takes reading steps until the queue is closed.
    pub(super) fn run(self, queue: &Receiver<Box<dyn Job>>) {
        while let Ok(mut job) = queue.recv() {
            if job.abandoned() {
                continue;
            }
            let busy = fork::begin();
            let failure = {
                let _inside = busy.inside();
                self.held
                    .still_linked()
                    .and_then(|()| self.take(job.as_mut()))
                    .err()
            };
            drop(busy);
            job.answer(failure);
        }
        let busy = fork::begin();
        let _inside = busy.inside();
        drop(self.conn);
    }

    fn take(&self, job: &mut dyn Job) -> Result<()> {
        let execute = |sql: &str| self.conn.execute_batch(sql).map_err(|error| failed(sql, &error));
        if job.ns() == 0 {
            job.run(
                &mut SqliteStore::new(&self.conn, 0, CachedMeta::default()),
                &mut Flood::default(),
            );
            return Ok(());
        }
        execute("BEGIN")?;
        job.run(
            &mut SqliteStore::new(&self.conn, job.ns(), CachedMeta::default()),
            &mut Flood::default(),
        );
        execute("ROLLBACK")
    }
}

/// Folds the log into the database. Runs on the reading thread, outside any transaction (namespace 0).
struct Checkpoint {
    lock: Arc<LockFile>,
    wait_ms: i64,
}

impl Job for Checkpoint {
    fn ns(&self) -> i64 {
        0
    }

    fn abandoned(&self) -> bool {
        false
    }

    fn run(&mut self, store: &mut SqliteStore<'_>, _flood: &mut Flood) -> bool {
        let folded = match store.checkpoint() {
            // Writers that never pause keep the log from starting over: make them pause.
            Ok(pages) if pages > LOG_PAGES_MAX => {
                self.lock.with(self.wait_ms, || store.checkpoint()).flatten()
            }
            other => other,
        };
        if let Err(error) = folded {
            tracing::warn!(%error, "the ledger's log could not be folded into the database; it will be tried again");
        }
        true
    }

    fn durable(&self) -> bool {
        false
    }

    fn answer(self: Box<Self>, _failure: Option<Error>) {}
}
