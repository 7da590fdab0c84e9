//! The files of a journal: owner only, one for each process that writes.
//!
//! A file is locked (`flock`) while a line is appended to it and while it is delivered, and never in between: so any
//! process can deliver what any other left, alive or dead. A writer that finds its file locked or gone begins another.

use std::fs::{DirBuilder, File};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::error::{Error, Result};
use crate::ledger::sqlite::{check_file, same_file};

/// What the names of waiting outcomes' files end with.
const WAITING: &str = ".journal";
/// What the names of files end with in which processes write down what they decide from leases.
const LEASED: &str = ".leased";
/// What is added to the name of a file for what was set aside of it.
const ASIDE: &str = ".corrupt";
/// A writer begins a new file beyond so many bytes.
const LONG: u64 = 4 << 20;
/// A longer file is none that we wrote; it is left where it is.
const LONGEST: u64 = 64 << 20;

/// The directory of one ledger's outcomes, below the journal's own.
#[derive(Clone, Debug)]
pub(super) struct Directory {
    base: PathBuf,
    path: PathBuf,
}

impl Directory {
    /// Names it. Nothing is made or looked at.
    pub(super) fn new(base: &Path, ledger: &str, namespace: &str) -> Result<Self> {
        let base = std::path::absolute(base)
            .map_err(|e| Error::config(format!("{} is no path", base.display())).because(e))?;
        let safe = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        if ledger.is_empty() || !ledger.bytes().chain(namespace.bytes()).all(safe) {
            return Err(Error::config("the ledger's id cannot be the name of a directory"));
        }
        let path = base.join(format!("{ledger}.{namespace}"));
        Ok(Self { base, path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is there. Refuses one that others can reach: what stands in it ends holds.
    pub(super) fn check(&self) -> Result<bool> {
        Ok(owner_only(&self.base)? && owner_only(&self.path)?)
    }

    fn create(&self) -> Result<()> {
        for dir in [&self.base, &self.path] {
            if owner_only(dir)? {
                continue;
            }
            let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
            made.map_err(|e| cannot("create", dir).because(e))?;
            if let Some(parent) = dir.parent() {
                flush(parent)?;
            }
            owner_only(dir)?;
        }
        Ok(())
    }

    /// Files that may hold waiting outcomes, and files of what was set aside.
    pub(super) fn files(&self) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
        let (mut waiting, mut aside) = (Vec::new(), Vec::new());
        if !self.check()? {
            return Ok((waiting, aside));
        }
        let unreadable = |e| cannot("list", &self.path).because(e);
        for entry in std::fs::read_dir(&self.path).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            let name = path.as_os_str().as_encoded_bytes();
            if name.ends_with(WAITING.as_bytes()) {
                waiting.push(path);
            } else if name.ends_with(ASIDE.as_bytes()) {
                aside.push(path);
            }
        }
        waiting.sort();
        aside.sort();
        Ok((waiting, aside))
    }

    /// Files of what processes decided from leases, those that were written last first; those of live ones are locked.
    pub(super) fn leased(&self) -> Result<Vec<PathBuf>> {
        if !self.check()? {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        let unreadable = |e| cannot("list", &self.path).because(e);
        for entry in std::fs::read_dir(&self.path).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            if path.as_os_str().as_encoded_bytes().ends_with(LEASED.as_bytes()) {
                let written = path.metadata().and_then(|metadata| metadata.modified());
                found.push((written.ok(), path));
            }
        }
        found.sort();
        Ok(found.into_iter().rev().map(|(_, path)| path).collect())
    }

    /// Makes a file of such, and keeps it locked; `None` when a delivery was quicker to lock it, or has removed it: there
    /// was nothing in it.
    pub(super) fn keep(&self, name: &str) -> Result<Option<Kept>> {
        self.create()?;
        let path = self.path.join(format!("{name}{LEASED}"));
        let file = create(&path)?;
        Ok(Locked::take(file, &path)?.map(|locked| Kept {
            path,
            pid: std::process::id(),
            locked: std::mem::ManuallyDrop::new(locked),
        }))
    }

    /// Appends lines to a file of ours and returns when it survives a power cut. Answers whether it did: not when the
    /// file is gone, full or being delivered, and another should be begun.
    pub(super) fn append(&self, name: &str, lines: &[u8]) -> Result<bool> {
        self.create()?;
        let path = self.path.join(format!("{name}{WAITING}"));
        let (file, new) = match open(&path, OFlags::RDWR | OFlags::APPEND)? {
            Some(file) => (file, false),
            None => (create(&path)?, true),
        };
        let Some(locked) = Locked::take(file, &path)? else {
            return Ok(false);
        };
        let before = locked.length()?;
        if before > LONG {
            return Ok(false);
        }
        let written = (&locked.file)
            .write_all(lines)
            .and_then(|()| locked.file.sync_data());
        if let Err(error) = written {
            // Half a line must not stand before the next one.
            locked.file.set_len(before).ok();
            return Err(cannot("write", &path).because(error));
        }
        if new {
            flush(&self.path)?;
        }
        Ok(true)
    }

    /// Takes a file to deliver it; `None` when another process does, or did.
    pub(super) fn take(path: &Path) -> Result<Option<Taken>> {
        let Some(file) = open(path, OFlags::RDWR)? else {
            return Ok(None);
        };
        let Some(locked) = Locked::take(file, path)? else {
            return Ok(None);
        };
        let content = read(&locked.file, path)?;
        Ok(Some(Taken {
            path: path.to_owned(),
            locked,
            content,
        }))
    }

    /// What stands in a file, whoever has it; nothing when it is gone.
    pub(super) fn look(path: &Path) -> Result<Vec<u8>> {
        match open(path, OFlags::RDONLY)? {
            Some(file) => read(&file, path),
            None => Ok(Vec::new()),
        }
    }
}

/// The ledgers (id and namespace) that have a directory below the journal's own.
pub(super) fn ledgers(base: &Path) -> Result<Vec<(String, String)>> {
    if !owner_only(base)? {
        return Ok(Vec::new());
    }
    let unreadable = |e| cannot("list", base).because(e);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(base).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        let parts = name.to_str().and_then(|name| name.split_once('.'));
        found.extend(parts.map(|(ledger, namespace)| (ledger.to_owned(), namespace.to_owned())));
    }
    found.sort();
    Ok(found)
}

/// A file that this process alone writes, for as long as it lives. It goes with its keeper when nothing is left in it.
#[derive(Debug)]
pub(super) struct Kept {
    path: PathBuf,
    /// The process that made it: a child that was forked shares the lock, and must neither end it nor remove the file.
    pid: u32,
    locked: std::mem::ManuallyDrop<Locked>,
}

impl Kept {
    pub(super) fn file(&self) -> &File {
        &self.locked.file
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if self.pid != std::process::id() {
            return;
        }
        if self.locked.length().is_ok_and(|length| length == 0) {
            std::fs::remove_file(&self.path).ok(); // an empty file is no harm
        }
        // Its own end would need `unsafe` here. What is left in it may be delivered by anybody from now on.
        rustix::fs::flock(&self.locked.file, FlockOperation::Unlock).ok(); // it ends with the process too
    }
}

/// A file that this task alone delivers.
#[derive(Debug)]
pub(super) struct Taken {
    path: PathBuf,
    locked: Locked,
    /// What stood in it when it was taken.
    pub(super) content: Vec<u8>,
}

impl Taken {
    /// Overwrites one byte of the file.
    pub(super) fn mark(&self, at: u64, byte: u8) -> Result<()> {
        let written = self.locked.file.write_all_at(&[byte], at);
        written.map_err(|e| cannot("write", &self.path).because(e))
    }

    /// Writes lines, each after its reason, where a person finds them, and answers where that is.
    pub(super) fn set_aside(&self, lines: &[(String, Vec<u8>)]) -> Result<PathBuf> {
        let mut name = self.path.clone().into_os_string();
        name.push(ASIDE);
        let path = PathBuf::from(name);
        let mut file = match open(&path, OFlags::RDWR | OFlags::APPEND)? {
            Some(file) => file,
            None => create(&path)?,
        };
        let mut text = Vec::new();
        for (why, line) in lines {
            text.extend_from_slice(format!("# {}\n", why.replace('\n', " ")).as_bytes());
            text.extend_from_slice(line);
            text.push(b'\n');
        }
        file.write_all(&text)
            .and_then(|()| file.sync_all())
            .map_err(|e| cannot("write", &path).because(e))?;
        flush(path.parent().unwrap_or(Path::new("/")))?;
        Ok(path)
    }

    /// Removes the file: everything in it was delivered or set aside.
    pub(super) fn remove(self) -> Result<()> {
        std::fs::remove_file(&self.path).map_err(|e| cannot("remove", &self.path).because(e))
    }
}

/// A file that has its name and that nobody else has locked. Unlocked at its end, also for a child that was forked
/// meanwhile and shares the lock.
#[derive(Debug)]
struct Locked {
    file: File,
}

impl Locked {
    fn take(file: File, path: &Path) -> Result<Option<Self>> {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(errno) => return Err(cannot("lock", path).because(errno)),
        }
        let locked = Self { file };
        // Whoever had it before may have delivered and removed it.
        Ok(same_file(&locked.file, path).then_some(locked))
    }

    fn length(&self) -> Result<u64> {
        let metadata = self.file.metadata();
        metadata
            .map(|metadata| metadata.len())
            .map_err(|e| Error::config("cannot look at a journal file").because(e))
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        rustix::fs::flock(&self.file, FlockOperation::Unlock).ok(); // closing unlocks it too
    }
}

fn read(file: &File, path: &Path) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    let all = file.take(LONGEST.saturating_add(1)).read_to_end(&mut content);
    all.map_err(|e| cannot("read", path).because(e))?;
    if u64::try_from(content.len()).unwrap_or(u64::MAX) > LONGEST {
        return Err(Error::config(format!(
            "{} is too long for a journal",
            path.display()
        )));
    }
    Ok(content)
}

/// Opens a plain file of ours alone; `None` if there is none.
fn open(path: &Path, flags: OFlags) -> Result<Option<File>> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => {
            let file = File::from(fd);
            let metadata = file.metadata().map_err(|e| cannot("look at", path).because(e))?;
            // One that was removed since has no name left, and is no business of ours.
            if metadata.nlink() == 0 {
                return Ok(None);
            }
            check_file(path, &metadata)?;
            Ok(Some(file))
        }
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(cannot("open", path).because(errno)),
    }
}

fn create(path: &Path) -> Result<File> {
    let flags =
        OFlags::RDWR | OFlags::APPEND | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let owner = Mode::RUSR | Mode::WUSR;
    let fd = rustix::fs::open(path, flags, owner).map_err(|errno| cannot("create", path).because(errno))?;
    // A strict umask may have taken bits away from the owner too.
    rustix::fs::fchmod(&fd, owner).map_err(|errno| cannot("protect", path).because(errno))?;
    Ok(File::from(fd))
}

/// Whether the directory is there; refuses one that is not ours alone. Where we may not even look, nothing of ours is, and
/// nothing can be made: that shows when something is to be written.
fn owner_only(dir: &Path) -> Result<bool> {
    let shown = dir.display();
    let metadata = match dir.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::PermissionDenied
            ) =>
        {
            return Ok(false);
        }
        Err(error) => return Err(cannot("look at", dir).because(error)),
    };
    let us = geteuid().as_raw();
    if !metadata.is_dir() {
        return Err(Error::config(format!(
            "{shown} is not a directory; outcomes that wait for the ledger are kept there: name another with \
             KEYBRAKE_JOURNAL_DIR"
        )));
    }
    if metadata.uid() != us {
        return Err(Error::config(format!(
            "{shown} belongs to user {} and this process runs as user {us}: name a directory of its own with \
             KEYBRAKE_JOURNAL_DIR",
            metadata.uid()
        )));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(Error::config(format!(
            "{shown} can be reached by other users (mode {:04o}), and outcomes in it end holds. Run: chmod 700 '{shown}'",
            metadata.mode() & 0o7777
        )));
    }
    Ok(true)
}

/// Makes the names of new files survive a power cut.
fn flush(dir: &Path) -> Result<()> {
    let flushed = File::open(dir).and_then(|dir| dir.sync_all());
    flushed.map_err(|e| cannot("flush", dir).because(e))
}

fn cannot(verb: &str, path: &Path) -> Error {
    Error::config(format!("cannot {verb} {}", path.display()))
}
