//! One ledger file in one process: its two threads, shared by all handles of the process.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::Connection;

use super::files::{self, Files};
use super::guard::{FileId, Held, LockFile};
use super::schema::{self, Format};
use super::store::SqliteStore;
use super::writer::{Job, Queue, Reader, STEPS_PER_CHECKPOINT, Writer, stopped};
use super::{SqliteOptions, fork};
use crate::error::{Error, ErrorKind, Result};
use crate::ledger::rules::Flood;
use crate::ledger::types::LedgerSecret;

/// How long SQLite waits for locks of foreign connections, such as a `sqlite3` shell.
const FOREIGN_BUSY_MS: u64 = 2_000;
/// A log of more than this (4 MiB) is folded into the database soon after it was opened.
const LOG_BYTES_LEFT_MAX: u64 = 4 << 20;
/// Longest wait for another thread that opens or closes a ledger (10 s), in pauses.
const REGISTRY_PAUSES_MAX: u32 = 10_000;
const REGISTRY_PAUSE: Duration = Duration::from_millis(1);

/// The ledgers that this process has open: SQLite's locks are the process's, so two handles share one engine.
static ENGINES: Mutex<Vec<Entry>> = Mutex::new(Vec::new());

struct Entry {
    generation: u32,
    database: PathBuf,
    engine: Weak<Engine>,
    /// The shared memory that SQLite has mapped; in a forked child, that it will use again.
    shm: Option<FileId>,
}

/// A ledger file, open.
#[derive(Debug)]
pub(super) struct Engine {
    /// The process that it belongs to; see [`fork`].
    generation: u32,
    secret: LedgerSecret,
    /// Random id of the ledger.
    pub(super) id: String,
    /// Format version of the file.
    pub(super) version: u32,
    lock: Arc<LockFile>,
    /// Taken out when it is closed.
    threads: Option<Box<Threads>>,
}

#[derive(Debug)]
struct Threads {
    reader: Queue,
    writer: Queue,
    writer_thread: JoinHandle<()>,
}

impl Engine {
    /// The engine of this process for these files, opened if it is not.
    pub(super) fn get(files: &Files, options: &SqliteOptions) -> Result<Arc<Self>> {
        let generation = fork::generation();
        fork::check()?;
        let mut engines = registry()?;
        forget_closed(&mut engines, generation);
        // What this process inherited by a fork: let go of the guard file, so that a lock of the parent's ends with
        // the parent.
        for entry in engines.iter().filter(|entry| entry.generation != generation) {
            if let Some(inherited) = entry.engine.upgrade() {
                inherited.lock.close_in_child();
            }
        }
        let open = engines
            .iter()
            .find(|entry| entry.generation == generation && entry.database == files.database)
            .and_then(|entry| entry.engine.upgrade());
        if let Some(engine) = open {
            return Ok(engine);
        }
        let inherited: Vec<Option<FileId>> = engines
            .iter()
            .filter(|entry| entry.generation != generation && entry.database == files.database)
            .map(|entry| entry.shm)
            .collect();
        let (engine, shm) = Self::start(files, options, generation, &inherited)?;
        let engine = Arc::new(engine);
        engines.push(Entry {
            generation,
            database: files.database.clone(),
            engine: Arc::downgrade(&engine),
            shm,
        });
        Ok(engine)
    }

    fn start(
        files: &Files,
        options: &SqliteOptions,
        generation: u32,
        inherited: &[Option<FileId>],
    ) -> Result<(Self, Option<FileId>)> {
        let lock = LockFile::open(files)?;
        let busy = fork::begin();
        let opened = lock
            .with(options.wait_ms, || {
                let _inside = busy.inside();
                check_inherited(files, inherited)?;
                open(files)
            })
            .flatten()?;
        drop(busy);
        let shm = opened.held.shm_id();
        // Processes that end before their turn to fold the log leave it to the next one.
        let log_bytes = opened.held.wal().and_then(|wal| wal.metadata().ok());
        let steps = match log_bytes {
            Some(log) if log.len() > LOG_BYTES_LEFT_MAX => STEPS_PER_CHECKPOINT,
            _ => 0,
        };
        let (reader, reads) = Queue::new();
        let (writer, writes) = Queue::new();
        let reading = Reader {
            conn: opened.reader,
            held: Arc::clone(&opened.held),
        };
        let reader_thread = spawn("keybrake-read", move || reading.run(&reads))?;
        let writing = Writer {
            conn: opened.writer,
            files: files.clone(),
            lock: Arc::clone(&lock),
            held: opened.held,
            disk: Arc::clone(&options.disk),
            wait_ms: options.wait_ms,
            reader: (reader.clone(), reader_thread),
            dead: None,
            steps,
            floods: BTreeMap::new(),
        };
        let writer_thread = spawn("keybrake-write", move || writing.run(&writes))?;
        let engine = Self {
            generation,
            secret: opened.secret,
            id: opened.format.id,
            version: opened.format.version,
            lock,
            threads: Some(Box::new(Threads {
                reader,
                writer,
                writer_thread,
            })),
        };
        Ok((engine, shm))
    }

    pub(super) const fn secret(&self) -> &LedgerSecret {
        &self.secret
    }

    /// Puts a step into the writer's queue.
    pub(super) fn write(&self, job: Box<dyn Job>) -> Result<()> {
        self.threads.as_ref().ok_or_else(stopped)?.writer.put(job)
    }

    /// Puts a step into the reader's queue.
    pub(super) fn read(&self, job: Box<dyn Job>) -> Result<()> {
        self.threads.as_ref().ok_or_else(stopped)?.reader.put(job)
    }

    /// The number of a namespace, made if it is new. Waits for the writer.
    pub(super) fn namespace(&self, name: &str) -> Result<i64> {
        let (to, answer) = std::sync::mpsc::channel();
        self.write(Box::new(Lookup {
            name: name.to_owned(),
            kept: None,
            to,
        }))?;
        answer.recv().map_err(|_| stopped())?
    }
}

/// Finds a namespace for [`Engine::namespace`], which waits outside of any runtime.
struct Lookup {
    name: String,
    kept: Option<Result<i64>>,
    to: std::sync::mpsc::Sender<Result<i64>>,
}

impl Job for Lookup {
    fn ns(&self) -> i64 {
        0
    }

    fn abandoned(&self) -> bool {
        false
    }

    fn run(&mut self, store: &mut SqliteStore<'_>, _flood: &mut Flood) -> bool {
        let kept = store.namespace(&self.name);
        let stands = kept.is_ok();
        self.kept = Some(kept);
        stands
    }

    fn durable(&self) -> bool {
        true
    }

    fn answer(self: Box<Self>, failure: Option<Error>) {
        let answer = match failure {
            Some(failure) => Err(failure),
            None => self.kept.unwrap_or_else(|| Err(stopped())),
        };
        // Nobody waits any more.
        let _ = self.to.send(answer);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let Some(threads) = self.threads.take() else {
            return;
        };
        if self.generation != fork::generation() {
            // Inherited: the threads do not exist here, and SQLite's memory is the parent's.
            Box::leak(threads);
            return;
        }
        // While the files are being closed nobody may open them: closing would take the newcomer's locks away.
        let mut engines = registry();
        let Threads {
            reader,
            writer,
            writer_thread,
        } = *threads;
        drop(reader);
        drop(writer);
        if writer_thread.join().is_err() {
            tracing::error!("the ledger's writing thread had stopped");
        }
        if let Ok(engines) = &mut engines {
            forget_closed(engines, self.generation);
        }
    }
}

/// Takes what this process has closed off the list. What it inherited stays: SQLite cannot forget it.
fn forget_closed(engines: &mut Vec<Entry>, generation: u32) {
    engines.retain(|entry| entry.generation != generation || entry.engine.strong_count() > 0);
}

/// Refuses a database whose shared memory is not the one that was inherited. SQLite keeps one mapping for each file
/// that a process has open, and a fork copies it: a child would work on the old one, and every other process on the
/// one with the name. Call it under the guard file.
fn check_inherited(files: &Files, inherited: &[Option<FileId>]) -> Result<()> {
    let path = files.shm();
    let named = FileId::named(&path);
    if inherited.iter().all(|shm| shm.is_some() && *shm == named) {
        return Ok(());
    }
    Err(Error::ledger(format!(
        "{} was removed or replaced between the fork of this process and its first use of the ledger: open the ledger \
         after the fork, or keep it open in the parent. Nothing was sent",
        path.display()
    )))
}

/// The list of open ledgers. A thread that held it at a fork never gives it back in the child: hence a bound.
fn registry() -> Result<MutexGuard<'static, Vec<Entry>>> {
    for _ in 0..REGISTRY_PAUSES_MAX {
        match ENGINES.try_lock() {
            Ok(engines) => return Ok(engines),
            Err(TryLockError::Poisoned(poisoned)) => return Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => std::thread::sleep(REGISTRY_PAUSE),
        }
    }
    Err(Error::ledger(
        "another thread has been opening or closing a ledger for 10 s, or was when this process was forked. Nothing \
         was sent",
    ))
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map_err(|error| Error::ledger("cannot start the ledger's thread").because(error))
}

struct Opened {
    writer: Connection,
    reader: Connection,
    held: Arc<Held>,
    secret: LedgerSecret,
    format: Format,
}

/// Opens the files, or creates them. Call it under the guard file.
fn open(files: &Files) -> Result<Opened> {
    for path in [files.wal(), files.shm()] {
        if let Ok(metadata) = path.symlink_metadata() {
            files::check_file(&path, &metadata)?;
        }
    }
    let secret = files.read_secret()?;
    let database = match (files::open_existing(&files.database)?, &secret) {
        (Some(file), _) => file,
        (None, Some(_)) => return Err(database_gone(files, &files.key())),
        (None, None) if files.wal().exists() => return Err(database_gone(files, &files.wal())),
        (None, None) => files::create_new(&files.database)?,
    };
    // From here on our descriptor outlives SQLite's.
    let mut held = Held::database(files, database);
    let path = &files.database;
    let writer = schema::connect(path, FOREIGN_BUSY_MS)?;
    let found = Format::read(&writer, path)?;
    let (format, secret) = match (found, secret) {
        (Some(format), Some(secret)) => {
            format.check(&secret, path)?;
            schema::set_up(&writer, path)?;
            (format, secret)
        }
        (Some(_), None) => return Err(schema::clone_refused(path)),
        (None, secret) => {
            let secret = secret.map_or_else(|| files.create_secret(), Ok)?;
            schema::set_up(&writer, path)?;
            (schema::create(&writer, &secret)?, secret)
        }
    };
    let reader = schema::connect(path, FOREIGN_BUSY_MS)?;
    schema::set_up(&reader, path)?;
    schema::read_only(&reader)?;
    held.lock(files)?;
    held.still_linked()?;
    files.flush_directory()?;
    Ok(Opened {
        writer,
        reader,
        held: Arc::new(held),
        secret,
        format,
    })
}

fn database_gone(files: &Files, remains: &std::path::Path) -> Error {
    Error::new(
        ErrorKind::Config,
        format!(
            "{} is gone, but {} is still there: restore the database, or remove that file too to start an empty \
             ledger, in which nothing was spent yet",
            files.database.display(),
            remains.display()
        ),
    )
}
