//! Guards around SQLite's own locks.
//!
//! SQLite locks with POSIX record locks, which a process loses when *any* of its descriptors of the file is closed:
//! a foreign `open` and `close` of the database in our process would let another process take the write-ahead log
//! away (measured: ten commits vanished). So:
//! * descriptors of ours, opened before SQLite's and closed after them, hold open-file-description read locks on the
//!   bytes that others would have to lock exclusively to do so;
//! * before answering, the files are checked to be still the ones that have these names;
//! * writers of all processes queue on a guard file with `flock`, which no foreign descriptor can undo.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::files::{self, Files};
use crate::clock::{Clock, SystemClock};
use crate::error::{Error, ErrorKind, Result};

/// First byte of SQLite's shared range in a database file: `PENDING_BYTE + 2` (sqlite3 `os.h`).
const DATABASE_SHARED_FIRST: i64 = 0x4000_0002;
/// Bytes of that range.
const DATABASE_SHARED_SIZE: i64 = 510;
/// The byte of `-shm` that every connected process share-locks: `UNIX_SHM_DMS` (sqlite3 `os_unix.c`).
const SHM_CONNECTED: i64 = 128;

/// Where `-shm` has the number of the last valid frame (`mxFrame` of the WAL-index header, sqlite.org/walformat.html).
const SHM_LAST_FRAME: u64 = 16;
/// Bytes of a page and its header in the log.
const LOG_FRAME_BYTES: u64 = 4_096 + 24;

/// Bytes of zeros written at once.
const LENGTHEN_AT_ONCE: usize = 256 << 10;

/// First pause while another process holds the guard file; doubled up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_micros(20);
const PAUSE_MAX: Duration = Duration::from_micros(500);

/// The guard file that writers of all processes queue on.
#[derive(Debug)]
pub(super) struct LockFile {
    path: PathBuf,
    /// `None` in a child, after the inherited descriptor was closed.
    file: Mutex<Option<File>>,
}

impl LockFile {
    /// Opens it, creating it if need be.
    pub(super) fn open(files: &Files) -> Result<Arc<Self>> {
        let path = files.lock();
        let file = open_or_create(&path)?;
        Ok(Arc::new(Self {
            path,
            file: Mutex::new(Some(file)),
        }))
    }

    /// Runs `work` while no other process and no other thread does, after a wait of at most `wait_ms`.
    pub(super) fn with<T>(&self, wait_ms: i64, work: impl FnOnce() -> T) -> Result<T> {
        let mut slot = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let deadline = SystemClock.boot_ms().saturating_add(wait_ms);
        loop {
            let Some(file) = slot.as_ref() else {
                return Err(Error::new(
                    ErrorKind::Internal,
                    "the guard file was closed by a fork",
                ));
            };
            acquire(file, deadline, &self.path, wait_ms)?;
            // Whoever removed the guard file shut its holders out from each other: take the one that has the name now.
            if same_file(file, &self.path) {
                break;
            }
            *slot = Some(open_or_create(&self.path)?);
        }
        let answer = work();
        if let Some(file) = slot.as_ref() {
            let _ = rustix::fs::flock(file, FlockOperation::Unlock);
        }
        Ok(answer)
    }

    /// Closes the descriptor that a child inherited, so that the parent's lock ends with the parent. Does nothing
    /// if a thread of the parent was using it at the fork.
    pub(super) fn close_in_child(&self) {
        if let Ok(mut slot) = self.file.try_lock() {
            *slot = None;
        }
    }
}

fn open_or_create(path: &Path) -> Result<File> {
    loop {
        if let Some(file) = files::open_existing(path)? {
            return Ok(file);
        }
        match files::create_new(path) {
            Ok(file) => return Ok(file),
            Err(error) if path.exists() => tracing::debug!(%error, "another process created the guard file"),
            Err(error) => return Err(error),
        }
    }
}

/// Locks a file, or a directory, against everybody else who does so, until it is closed; waits for at most `wait_ms`.
///
/// # Errors
/// `LedgerUnavailable` when somebody else has held it for that long, or the file system has no locks.
pub(crate) fn lock_file(file: &File, path: &Path, wait_ms: i64) -> Result<()> {
    acquire(file, SystemClock.boot_ms().saturating_add(wait_ms), path, wait_ms)
}

fn acquire(file: &File, deadline_ms: i64, path: &Path, wait_ms: i64) -> Result<()> {
    let mut pause = PAUSE_MIN;
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK | Errno::INTR) => {}
            Err(errno) => {
                return Err(Error::ledger(format!("cannot lock {}", path.display())).because(errno));
            }
        }
        if SystemClock.boot_ms() >= deadline_ms {
            return Err(Error::ledger(format!(
                "busy: another process has held {} for {wait_ms} ms (stopped in a debugger?). Nothing was sent",
                path.display()
            )));
        }
        std::thread::sleep(pause);
        pause = pause.saturating_mul(2).min(PAUSE_MAX);
    }
}

/// The files that SQLite has open, held so that their locks cannot be lost and their names not taken unnoticed.
/// Open it under the guard file, before SQLite; drop it after SQLite's connections.
#[derive(Debug)]
pub(super) struct Held {
    database: (PathBuf, File),
    /// Once WAL mode is set.
    wal: Option<(PathBuf, File)>,
    shm: Option<(PathBuf, File)>,
}

impl Held {
    /// Holds the database file, which is open already.
    pub(super) fn database(files: &Files, file: File) -> Self {
        Self {
            database: (files.database.clone(), file),
            wal: None,
            shm: None,
        }
    }

    /// Takes the locks, and holds the log and the shared memory too. Call it after WAL mode is set.
    pub(super) fn lock(&mut self, files: &Files) -> Result<()> {
        let open = |path: PathBuf| -> Result<(PathBuf, File)> {
            match files::open_existing(&path)? {
                Some(file) => Ok((path, file)),
                None => Err(gone(&path)),
            }
        };
        let shm = open(files.shm())?;
        share(
            &self.database.1,
            DATABASE_SHARED_FIRST,
            DATABASE_SHARED_SIZE,
            true,
        )
        .map_err(|error| cannot_lock(&self.database.0, error))?;
        share(&shm.1, SHM_CONNECTED, 1, true).map_err(|error| cannot_lock(&shm.0, error))?;
        self.wal = Some(open(files.wal())?);
        self.shm = Some(shm);
        Ok(())
    }

    /// The shared memory's file, by which a forked child knows it again.
    pub(super) fn shm_id(&self) -> Option<FileId> {
        FileId::of(&self.shm.as_ref()?.1.metadata().ok()?)
    }

    /// Gives the locks up, so that SQLite can fold the log into the database when its last connection closes. Keep
    /// what is answered until then.
    ///
    /// A child that was forked meanwhile has these descriptors too, and its SQLite has the shared memory as it is now:
    /// the files must stay. So the descriptors are closed, not unlocked: the locks end with the last process that has
    /// them. Closing one takes SQLite's own lock away as well, hence another one in its place.
    pub(super) fn give_up(self, files: &Files) -> Result<Option<File>> {
        let Some(file) = files::open_existing(&files.database)? else {
            return Ok(None);
        };
        let range = (DATABASE_SHARED_FIRST, DATABASE_SHARED_SIZE);
        share(&file, range.0, range.1, true).map_err(|error| cannot_lock(&files.database, error))?;
        drop(self);
        share_as_sqlite_does(&file, range.0, range.1).map_err(|error| cannot_lock(&files.database, error))?;
        share(&file, range.0, range.1, false).map_err(|error| cannot_lock(&files.database, error))?;
        Ok(Some(file))
    }

    /// The log, to be flushed.
    pub(super) fn wal(&self) -> Option<&File> {
        self.wal.as_ref().map(|(_, file)| file)
    }

    /// Bytes of the log's file that are in use, and how long it is.
    pub(super) fn log_bytes(&self) -> Option<(u64, u64)> {
        let length = self.wal()?.metadata().ok()?.len();
        let mut frames = [0_u8; 4];
        self.shm
            .as_ref()?
            .1
            .read_exact_at(&mut frames, SHM_LAST_FRAME)
            .ok()?;
        let used = u64::from(u32::from_ne_bytes(frames)).checked_mul(LOG_FRAME_BYTES)?;
        Some((used, length))
    }

    /// Makes the log's file longer by zeros, which SQLite takes for its end. Call it inside a write transaction before
    /// anything is committed: then nobody else writes to the log.
    pub(super) fn lengthen_log(&self, from: u64, to: u64) -> std::io::Result<()> {
        let Some(wal) = self.wal() else { return Ok(()) };
        let zeros = vec![0_u8; LENGTHEN_AT_ONCE];
        let mut at = from;
        while at < to {
            let rest = usize::try_from(to.saturating_sub(at)).unwrap_or(LENGTHEN_AT_ONCE);
            wal.write_all_at(zeros.get(..rest).unwrap_or(&zeros), at)?;
            at = at.saturating_add(u64::try_from(rest.min(LENGTHEN_AT_ONCE)).unwrap_or(u64::MAX));
        }
        Ok(())
    }

    /// Whether the database and the log still have their names: a commit into a file that nobody else can find
    /// must not be answered.
    pub(super) fn still_linked(&self) -> Result<()> {
        if !same_file(&self.database.1, &self.database.0) {
            return Err(gone(&self.database.0));
        }
        match &self.wal {
            Some((path, file)) if !same_file(file, path) => Err(gone(path)),
            _ => Ok(()),
        }
    }
}

fn gone(path: &Path) -> Error {
    Error::ledger(format!(
        "{} was removed or replaced while the ledger was open: stop every process that uses it, put the file back, \
         and start again. Nothing was sent",
        path.display()
    ))
}

fn cannot_lock(path: &Path, error: std::io::Error) -> Error {
    Error::ledger(format!("cannot share-lock {}", path.display())).because(error)
}

/// Whether the open file is the one that has this name now.
pub(crate) fn same_file(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(named)) = (file.metadata(), path.symlink_metadata()) else {
        return false;
    };
    open.dev() == named.dev() && open.ino() == named.ino() && open.nlink() > 0
}

/// What tells one file from all others while it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileId {
    dev: u64,
    ino: u64,
}

impl FileId {
    /// Of a file that still has a name.
    fn of(metadata: &std::fs::Metadata) -> Option<Self> {
        (metadata.nlink() > 0).then(|| Self {
            dev: metadata.dev(),
            ino: metadata.ino(),
        })
    }

    /// Of the file with this name.
    pub(super) fn named(path: &Path) -> Option<Self> {
        Self::of(&path.symlink_metadata().ok()?)
    }
}

/// Sets or clears an open-file-description read lock.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn share(file: &File, start: i64, len: i64, set: bool) -> std::io::Result<()> {
    use nix::fcntl::{FcntlArg, fcntl};

    fcntl(file, FcntlArg::F_OFD_SETLK(&range(start, len, set)))?;
    Ok(())
}

/// Sets the process's own read lock, the kind that SQLite takes.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn share_as_sqlite_does(file: &File, start: i64, len: i64) -> std::io::Result<()> {
    use nix::fcntl::{FcntlArg, fcntl};

    fcntl(file, FcntlArg::F_SETLK(&range(start, len, true)))?;
    Ok(())
}

#[cfg(any(target_os = "linux", target_os = "android"))]
#[expect(
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    reason = "the kernel's constants are small"
)]
const fn range(start: i64, len: i64, set: bool) -> nix::libc::flock {
    use nix::libc;

    libc::flock {
        l_type: if set { libc::F_RDLCK } else { libc::F_UNLCK } as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}

/// Elsewhere the check before answering has to do.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
#[expect(clippy::unnecessary_wraps, reason = "the same shape as on Linux")]
fn share(_file: &File, _start: i64, _len: i64, _set: bool) -> std::io::Result<()> {
    Ok(())
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
#[expect(clippy::unnecessary_wraps, reason = "the same shape as on Linux")]
fn share_as_sqlite_does(_file: &File, _start: i64, _len: i64) -> std::io::Result<()> {
    Ok(())
}
