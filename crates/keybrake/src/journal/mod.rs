//! Outcomes that the ledger could not take, kept on this machine until it can: docs/decisions/0009.
//!
//! A call's outcome is written here and flushed before the call resolves, when its ledger is gone by then. It is
//! delivered by [`Ledger::settle`], which counts it once however often it is told, by whichever process is first.

mod directory;
mod entry;
mod leased;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use self::directory::{Directory, Taken};
use self::entry::{Entry, Line};
pub(crate) use self::leased::LeaseRows;
use crate::error::{Error, ErrorKind, Result};
use crate::ledger::{Ledger, Settlement};

/// How often a process looks for what others left, when it is in contact with the ledger anyway.
const LOOK_EVERY_MS: i64 = 60_000;
/// Outcomes that are flushed together.
const TOGETHER: usize = 64;
/// Files that a writer begins before it gives up.
const TRIES: u32 = 8;

/// After a delivery that had to leave something, in milliseconds: until then only what is new makes another one.
const AGAIN_MS: i64 = 1_000;
/// For so long an outcome waits for a call that the ledger does not know, in milliseconds: 35 days, as long as a ledger
/// keeps calls that are done. Its server may have lost the call; an archive, or a process that was idle, may say it again.
const UNKNOWN_MS: i64 = 35 * 86_400_000;
/// Why an entry is left where it is, for a process that knows it.
const NEWER: &str = "it was written by a newer version of Keybrake, which has to deliver it";

/// The waiting outcomes of one ledger on this machine.
#[derive(Debug)]
pub struct Journal {
    directory: Directory,
    ledger: String,
    namespace: String,
    /// Lines that are not written yet, and where their end is told.
    queue: Mutex<VecDeque<(Vec<u8>, Arc<Written>)>>,
    /// The process that writes, and the name of its file; a child that was forked gets its own.
    own: Mutex<Option<(u32, String)>>,
    /// Whether something of ours waits, as far as this process knows.
    waits: AtomicBool,
    /// When to look for what others left, by the boot clock.
    look_at_ms: AtomicI64,
    /// Before this nothing that was left is tried again, by the boot clock.
    again_at_ms: AtomicI64,
    /// Whether a delivery runs in the background.
    delivering: AtomicBool,
    /// One delivery at a time.
    turn: tokio::sync::Mutex<()>,
}

/// Whether a line was written, or why not.
type Written = OnceLock<Result<(), String>>;

/// What a delivery did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delivery {
    /// Outcomes that the ledger took.
    pub delivered: u32,
    /// Outcomes that were moved to a `.corrupt` file, because they cannot be read or the ledger refuses them.
    pub set_aside: u32,
    /// Outcomes that still wait.
    pub left: u32,
    /// Of these, those whose calls the ledger does not know, and those that wait in one file with them.
    pub unknown: u32,
    /// Why they do.
    pub why: Option<String>,
}

/// An outcome that waits for the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The call.
    pub call_id: String,
    /// The attempt.
    pub attempt: u32,
    /// What it proved, by the names of states.md.
    pub proof: String,
    /// When it was written, Unix milliseconds.
    pub at_ms: i64,
}

/// What stands in a journal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Where it is.
    pub path: PathBuf,
    /// Outcomes that wait.
    pub waiting: Vec<Waiting>,
    /// Lines that cannot be read; the next delivery sets them aside.
    pub damaged: u32,
    /// Outcomes that a newer version of this library wrote, and only it can deliver.
    pub newer: u32,
    /// Files of outcomes that were set aside, for a person to look at.
    pub set_aside: Vec<PathBuf>,
}

impl Journal {
    /// The journal of an open ledger below a directory; `None` for a ledger that ends with its process. Makes nothing
    /// on the disk.
    ///
    /// # Errors
    /// `Config` when the directory is not this user's alone; `LedgerUnavailable`.
    pub async fn of(ledger: &dyn Ledger, base: &Path) -> Result<Option<Self>> {
        match ledger.namespace() {
            Some(namespace) => Self::at(base, &ledger.info().await?.id, namespace).map(Some),
            None => Ok(None),
        }
    }

    /// The journal of the ledger with this id and namespace, below a directory.
    ///
    /// # Errors
    /// `Config` when the directory is not this user's alone.
    pub fn at(base: &Path, ledger: &str, namespace: &str) -> Result<Self> {
        let directory = Directory::new(base, ledger, namespace)?;
        directory.check()?;
        Ok(Self {
            directory,
            ledger: ledger.to_owned(),
            namespace: namespace.to_owned(),
            queue: Mutex::new(VecDeque::new()),
            own: Mutex::new(None),
            waits: AtomicBool::new(false),
            look_at_ms: AtomicI64::new(i64::MIN),
            again_at_ms: AtomicI64::new(i64::MIN),
            delivering: AtomicBool::new(false),
            turn: tokio::sync::Mutex::new(()),
        })
    }

    /// The journals of all ledgers below a directory, also of those that cannot be reached.
    ///
    /// # Errors
    /// `Config` when a directory cannot be read or is not this user's alone.
    pub fn all(base: &Path) -> Result<Vec<Self>> {
        let ledgers = directory::ledgers(base)?;
        let journals = ledgers
            .iter()
            .map(|(ledger, namespace)| Self::at(base, ledger, namespace));
        journals.collect()
    }

    /// Writes an outcome down, and returns when it survives a power cut.
    ///
    /// # Errors
    /// `Config` when the disk does not take it, or the directory is not this user's alone.
    pub async fn append(self: &Arc<Self>, settlement: Settlement, at_ms: i64) -> Result<()> {
        let journal = Arc::clone(self);
        blocking(move || journal.write(settlement, at_ms)).await?;
        self.again_at_ms.store(i64::MIN, Ordering::Relaxed);
        self.waits.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn write(&self, settlement: Settlement, at_ms: i64) -> Result<()> {
        let line = entry::line(&Entry {
            v: entry::VERSION,
            ledger: self.ledger.clone(),
            namespace: self.namespace.clone(),
            at_ms,
            settlement,
        })?;
        let written = Arc::new(Written::new());
        self.queue().push_back((line, Arc::clone(&written)));
        // Whoever writes next writes what others put there meanwhile, with one flush for all.
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(written) = written.get() {
                return written.clone().map_err(Error::config);
            }
            let batch: Vec<_> = {
                let mut queue = self.queue();
                let count = queue.len().min(TOGETHER);
                queue.drain(..count).collect()
            };
            if batch.is_empty() {
                return Err(Error::new(
                    ErrorKind::Internal,
                    "an outcome was taken and not written",
                ));
            }
            let lines: Vec<u8> = batch.iter().flat_map(|(line, _)| line.iter().copied()).collect();
            let result = self.write_lines(&mut own, &lines).map_err(|e| e.to_string());
            for (_, written) in &batch {
                written.set(result.clone()).ok(); // nobody else sets it
            }
        }
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<(Vec<u8>, Arc<Written>)>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_lines(&self, own: &mut Option<(u32, String)>, lines: &[u8]) -> Result<()> {
        let pid = std::process::id();
        for _ in 0..TRIES {
            let name = match own {
                Some((of, name)) if *of == pid => name.clone(),
                _ => format!("{pid}-{}", crate::token::random_base62(12)?),
            };
            // A file that failed once is not written to again.
            *own = None;
            if self.directory.append(&name, lines)? {
                *own = Some((pid, name));
                return Ok(());
            }
        }
        Err(Error::config(format!(
            "every new file in {} is locked at once",
            self.directory.path().display()
        )))
    }

    /// Delivers what waits here, of this process and of others, until everything is delivered or the ledger is gone.
    /// What is damaged, or refused by the ledger for good, is set aside with the reason.
    ///
    /// # Errors
    /// `Config` when the directory cannot be read or is not this user's alone. A ledger that cannot be reached is no
    /// error: its outcomes are left.
    pub async fn deliver(&self, ledger: &dyn Ledger) -> Result<Delivery> {
        let _turn = self.turn.lock().await;
        self.waits.store(false, Ordering::SeqCst);
        let (mut report, mut gone) = (Delivery::default(), false);
        // First the calls that processes decided themselves, so that the ledger knows them when it hears of their ends.
        self.deliver_leased(ledger, &mut report, &mut gone).await;
        let directory = self.directory.clone();
        let (files, _) = blocking(move || directory.files()).await?;
        for path in files {
            let name = path.clone();
            let taken = match blocking(move || Directory::take(&name)).await {
                Ok(Some(taken)) => taken,
                Ok(None) => continue,
                // One file that cannot be used stops no other.
                Err(error) => {
                    report.left = report.left.saturating_add(1);
                    report.why = Some(error.to_string());
                    tracing::warn!(%error, "a journal of outcomes cannot be read; it is left where it is");
                    continue;
                }
            };
            self.deliver_file(ledger, taken, &mut report, &mut gone).await;
        }
        if report.left > 0 {
            self.waits.store(true, Ordering::SeqCst);
        }
        Ok(report)
    }

    /// Tells what processes that ended had decided from their leases. It is left where it is until a lease is over. What
    /// a process wrote last comes first: an end there is of a call that may stand in an older file without one.
    async fn deliver_leased(&self, ledger: &dyn Ledger, report: &mut Delivery, gone: &mut bool) {
        let directory = self.directory.clone();
        let files = match blocking(move || directory.leased()).await {
            Ok(files) => files,
            Err(error) => return tracing::warn!(%error, "what was decided from leases cannot be listed"),
        };
        // Processes of which something newer has to stay.
        let mut waiting: Vec<String> = Vec::new();
        for path in files {
            let writer = writer_of(&path);
            if *gone || waiting.contains(&writer) {
                continue;
            }
            let told = async {
                let Some(taken) = blocking(move || Directory::take(&path)).await? else {
                    return Ok(Some(0));
                };
                let told = leased::deliver(ledger, &taken).await?;
                if told.is_some_and(|calls| calls > 0) {
                    ledger.flush().await?;
                }
                if told.is_some() {
                    blocking(move || taken.remove()).await?;
                }
                Ok::<_, Error>(told)
            };
            let why = match told.await {
                Ok(Some(calls)) => {
                    report.delivered = report.delivered.saturating_add(calls);
                    continue;
                }
                Ok(None) => None,
                Err(error) => Some(error),
            };
            waiting.push(writer);
            report.left = report.left.saturating_add(1);
            if let Some(error) = why {
                tracing::warn!(%error, "what was decided from leases cannot be told yet");
                *gone = is_gone(&error);
                report.why = Some(error.to_string());
            }
        }
    }

    /// Files of this process's own for what it decides from leases.
    ///
    /// # Errors
    /// `Config` when the directory is not this user's alone, or the disk does not take them.
    pub(crate) fn lease_rows(&self) -> Result<LeaseRows> {
        LeaseRows::create(&self.directory)
    }

    async fn deliver_file(&self, ledger: &dyn Ledger, taken: Taken, report: &mut Delivery, gone: &mut bool) {
        let (mut done, mut aside, mut left, mut unknown) = (Vec::new(), Vec::new(), 0_u32, 0_u32);
        for line in entry::lines(&taken.content) {
            let (at, entry) = match line {
                Line::Waiting(at, entry) => (at, entry),
                Line::Newer => {
                    left = left.saturating_add(1);
                    report.why = Some(NEWER.to_owned());
                    continue;
                }
                Line::Damaged(at, why) => {
                    aside.push((why.to_owned(), entry::raw(&taken.content, at).to_owned()));
                    continue;
                }
            };
            match self.tell(ledger, &entry, *gone).await {
                Told::Taken => done.push(at),
                Told::Refused(why) => aside.push((why, entry::raw(&taken.content, at).to_owned())),
                Told::Unknown(why) => {
                    left = left.saturating_add(1);
                    unknown = unknown.saturating_add(1);
                    report.why = Some(why);
                }
                Told::Later(why) => {
                    left = left.saturating_add(1);
                    if let Some(error) = why {
                        // Any other failure is about this outcome alone.
                        *gone = is_gone(&error);
                        report.why = Some(error.to_string());
                    }
                }
            }
        }
        match Self::finish(ledger, taken, &done, &aside, left > 0).await {
            Ok(()) => {
                if left == unknown && left > 0 {
                    unknown = unknown.saturating_add(number(aside.len()));
                }
                report.delivered = report.delivered.saturating_add(number(done.len()));
                if left == 0 {
                    report.set_aside = report.set_aside.saturating_add(number(aside.len()));
                } else {
                    left = left.saturating_add(number(aside.len()));
                }
            }
            Err(error) => {
                tracing::warn!(%error, "delivered outcomes are told again later, which changes nothing");
                left = left.saturating_add(number(done.len().saturating_add(aside.len())));
                report.why = Some(error.to_string());
            }
        }
        report.left = report.left.saturating_add(left);
        report.unknown = report.unknown.saturating_add(unknown);
    }

    /// Tells the ledger one outcome.
    async fn tell(&self, ledger: &dyn Ledger, entry: &Entry, gone: bool) -> Told {
        if entry.ledger != self.ledger || entry.namespace != self.namespace {
            return Told::Refused(format!(
                "it belongs to the ledger {} (namespace {})",
                entry.ledger, entry.namespace
            ));
        }
        if gone {
            return Told::Later(None);
        }
        match ledger.settle(entry.settlement.clone()).await {
            Ok(answer) => {
                tracing::info!(call_id = %entry.settlement.call_id, state = answer.state.as_str(), already = answer.already,
                    "a waiting outcome was delivered");
                Told::Taken
            }
            Err(error) if error.kind() == ErrorKind::Internal => Told::Refused(error.to_string()),
            Err(error) if error.kind() == ErrorKind::NotFound => match ledger.info().await {
                Ok(info) if info.now_ms.saturating_sub(entry.at_ms) <= UNKNOWN_MS => {
                    Told::Unknown(error.to_string())
                }
                Ok(_) => Told::Refused(error.to_string()),
                Err(error) => Told::Later(Some(error)),
            },
            Err(error) => Told::Later(Some(error)),
        }
    }

    /// Makes what was told durable in the ledger, and only then forgets it here.
    async fn finish(
        ledger: &dyn Ledger,
        taken: Taken,
        done: &[u64],
        aside: &[(String, Vec<u8>)],
        keep: bool,
    ) -> Result<()> {
        if !done.is_empty() {
            ledger.flush().await?;
        }
        if keep {
            for at in done {
                taken.mark(*at, entry::DELIVERED)?;
            }
            return Ok(());
        }
        let aside = aside.to_vec();
        blocking(move || {
            if !aside.is_empty() {
                let path = taken.set_aside(&aside)?;
                for (why, _) in &aside {
                    tracing::warn!(%why, path = %path.display(), "a waiting outcome was set aside; what it would have ended stands");
                }
            }
            taken.remove()
        })
        .await
    }

    /// After the ledger answered: delivers in the background, if something waits or it is time to look.
    pub(crate) fn contact(self: &Arc<Self>, ledger: &Arc<dyn Ledger>, boot_ms: i64) {
        let waits = self.waits.load(Ordering::Relaxed) && boot_ms >= self.again_at_ms.load(Ordering::Relaxed);
        if !waits && boot_ms < self.look_at_ms.load(Ordering::Relaxed) {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        if self.delivering.swap(true, Ordering::SeqCst) {
            return;
        }
        self.looked(boot_ms);
        let running = Running(Arc::clone(self));
        let ledger = Arc::clone(ledger);
        runtime.spawn(async move {
            match running.0.deliver(&*ledger).await {
                Ok(done) if done.left == 0 => {}
                Ok(done) => {
                    // A call that was lost is not there again so soon.
                    let rests = done.left == done.unknown;
                    let again_at_ms = boot_ms.saturating_add(if rests { LOOK_EVERY_MS } else { AGAIN_MS });
                    running.0.again_at_ms.store(again_at_ms, Ordering::Relaxed);
                }
                Err(error) => tracing::warn!(%error, "waiting outcomes cannot be delivered"),
            }
        });
    }

    /// Puts the next look for what others left off.
    pub(crate) fn looked(&self, boot_ms: i64) {
        self.look_at_ms
            .store(boot_ms.saturating_add(LOOK_EVERY_MS), Ordering::Relaxed);
    }

    /// What stands in it now. Reads only.
    ///
    /// # Errors
    /// `Config` when the directory cannot be read or is not this user's alone.
    pub fn contents(&self) -> Result<Contents> {
        let (files, set_aside) = self.directory.files()?;
        let mut contents = Contents {
            path: self.directory.path().to_owned(),
            set_aside,
            ..Contents::default()
        };
        for path in files {
            for line in entry::lines(&Directory::look(&path)?) {
                let entry = match line {
                    Line::Waiting(_, entry) => entry,
                    Line::Newer => {
                        contents.newer = contents.newer.saturating_add(1);
                        continue;
                    }
                    Line::Damaged(..) => {
                        contents.damaged = contents.damaged.saturating_add(1);
                        continue;
                    }
                };
                contents.waiting.push(Waiting {
                    call_id: entry.settlement.call_id,
                    attempt: entry.settlement.attempt,
                    proof: entry.settlement.proof.kind().to_owned(),
                    at_ms: entry.at_ms,
                });
            }
        }
        Ok(contents)
    }
}

/// Whether the ledger cannot be asked at all.
fn is_gone(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::LedgerUnavailable | ErrorKind::LedgerRecovering
    )
}

/// The process that wrote a file of leased calls, by the file's name: its number begins it.
fn writer_of(path: &Path) -> String {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = name.unwrap_or_default();
    name.split('-').next().unwrap_or_default().to_owned()
}

/// How the ledger took an outcome.
enum Told {
    Taken,
    Refused(String),
    /// The ledger does not know the call, and may know it again.
    Unknown(String),
    Later(Option<Error>),
}

/// Ends when its task does, also when the runtime ends first.
struct Running(Arc<Journal>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.delivering.store(false, Ordering::SeqCst);
    }
}

/// Work that waits for the disk, on a thread where that is allowed.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => runtime.spawn_blocking(work).await.unwrap_or_else(|e| {
            Err(Error::new(ErrorKind::Internal, "a disk write was interrupted").because(e))
        }),
        Err(_) => work(),
    }
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
