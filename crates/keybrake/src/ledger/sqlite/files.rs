//! The ledger's files and who may touch them: owner only, no links, local disk, created before SQLite opens them.
//!
//! Beside `PATH` stand `PATH-wal` and `PATH-shm` (SQLite's, they inherit the database's mode), `PATH.lock` (the
//! guard that writers queue on) and `PATH.key` (the ledger's secret).

use std::fs::{DirBuilder, File, Metadata};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::error::{Error, Result};
use crate::ledger::types::LedgerSecret;

/// What the ledger needs of a disk, so that tests can pull the plug and pretend to be a network mount.
pub trait Disk: Send + Sync + std::fmt::Debug {
    /// The file system that a directory is on.
    fn file_system(&self, dir: &Path) -> std::io::Result<FileSystem>;

    /// Returns when everything written to the file so far survives a power cut.
    fn flush(&self, file: &File) -> std::io::Result<()>;
}

/// What matters of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// The kernel's type number, as in `statfs(2)`; 0 where the system has none.
    pub magic: u64,
    /// Whether it is mounted read-only.
    pub read_only: bool,
}

/// The machine's disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemDisk;

impl Disk for SystemDisk {
    fn file_system(&self, dir: &Path) -> std::io::Result<FileSystem> {
        let flags = rustix::fs::statvfs(dir)?.f_flag;
        Ok(FileSystem {
            magic: magic(dir)?,
            read_only: flags.contains(StatVfsMountFlags::RDONLY),
        })
    }

    fn flush(&self, file: &File) -> std::io::Result<()> {
        file.sync_data()
    }
}

#[cfg(target_os = "linux")]
fn magic(dir: &Path) -> std::io::Result<u64> {
    // The field is signed on some machines and 32 bits wide on others; the numbers fit 32 bits everywhere.
    let number = i128::from(rustix::fs::statfs(dir)?.f_type);
    Ok(u64::try_from(number & 0xFFFF_FFFF).unwrap_or(0))
}

#[cfg(not(target_os = "linux"))]
#[expect(clippy::unnecessary_wraps, reason = "the same shape as on Linux")]
fn magic(_dir: &Path) -> std::io::Result<u64> {
    Ok(0)
}

/// File systems shared by machines (or, like FUSE, possibly so), by the numbers of Linux's `statfs(2)`. SQLite's
/// locks and shared memory hold between processes of one machine only.
const SHARED_FILE_SYSTEMS: &[(u64, &str)] = &[
    (0x6969, "NFS"),
    (0x517B, "SMB"),
    (0xFF53_4D42, "CIFS"),
    (0xFE53_4D42, "SMB2"),
    (0x0102_1997, "9p"),
    (0x6573_5546, "FUSE"),
    (0x00C3_6400, "Ceph"),
    (0x0BD0_0BD0, "Lustre"),
    (0x7461_636F, "OCFS2"),
    (0x0116_1970, "GFS2"),
    (0x5346_414F, "AFS"),
    (0x6B41_4653, "AFS"),
    (0x7375_7245, "Coda"),
    (0x564C, "NCP"),
    (0x786F_4256, "VirtualBox shared folder"),
];

/// Mode of a directory that we create.
const DIR_MODE: u32 = 0o700;
/// Any access by group or others.
const FOREIGN_ACCESS: u32 = 0o077;
/// Write access by others.
const WORLD_WRITABLE: u32 = 0o002;
/// Only owners may rename or remove entries.
const STICKY: u32 = 0o1000;

/// The files of one ledger, by absolute paths without links in their directories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Files {
    /// The database.
    pub(super) database: PathBuf,
}

impl Files {
    /// Finds the directory, creating it if need be, and refuses one that cannot hold a ledger.
    pub(super) fn locate(path: &str, disk: &dyn Disk) -> Result<Self> {
        let path = Path::new(path);
        let Some(name) = path.file_name() else {
            return Err(Error::config(
                "the ledger URL names no file: write sqlite:spend.db or sqlite:/var/lib/agents/spend.db",
            ));
        };
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        if !dir.exists() {
            DirBuilder::new()
                .recursive(true)
                .mode(DIR_MODE)
                .create(dir)
                .map_err(|error| {
                    unwritable(dir, &error).unwrap_or_else(|| cannot("create", dir).because(error))
                })?;
        }
        let dir = dir
            .canonicalize()
            .map_err(|error| cannot("find", dir).because(error))?;
        check_dir(&dir, disk)?;
        Ok(Self {
            database: dir.join(name),
        })
    }

    /// A file beside the database, by what is appended to its name.
    pub(super) fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.database.clone().into_os_string();
        name.push(suffix);
        PathBuf::from(name)
    }

    /// SQLite's write-ahead log.
    pub(super) fn wal(&self) -> PathBuf {
        self.beside("-wal")
    }

    /// SQLite's shared memory.
    pub(super) fn shm(&self) -> PathBuf {
        self.beside("-shm")
    }

    /// The guard that writers queue on.
    pub(super) fn lock(&self) -> PathBuf {
        self.beside(".lock")
    }

    /// The ledger's secret.
    pub(super) fn key(&self) -> PathBuf {
        self.beside(".key")
    }

    /// Makes the names of new files survive a power cut.
    pub(super) fn flush_directory(&self) -> Result<()> {
        let dir = self.database.parent().unwrap_or(Path::new("/"));
        File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(|error| cannot("flush", dir).because(error))
    }

    /// The secret in the key file, or `None` if there is no such file.
    pub(super) fn read_secret(&self) -> Result<Option<LedgerSecret>> {
        let path = self.key();
        let Some(mut file) = open_existing(&path)? else {
            return Ok(None);
        };
        let mut text = zeroize::Zeroizing::new(String::new());
        file.read_to_string(&mut text)
            .map_err(|error| cannot("read", &path).because(error))?;
        let mut bytes = [0_u8; 32];
        if !from_hex(text.trim_end(), &mut bytes) {
            return Err(Error::config(format!(
                "{} does not hold a ledger secret (64 hexadecimal digits): restore it from where it was copied",
                path.display()
            )));
        }
        Ok(Some(LedgerSecret(bytes)))
    }

    /// Makes a new secret and writes it down.
    pub(super) fn create_secret(&self) -> Result<LedgerSecret> {
        let secret = LedgerSecret::random()?;
        let path = self.key();
        let mut file = create_new(&path)?;
        let text = zeroize::Zeroizing::new(format!("{}\n", to_hex(&secret.0)));
        file.write_all(text.as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(|error| cannot("write", &path).because(error))?;
        Ok(secret)
    }
}

/// Opens a file for reading and writing after checking that it is ours alone; `None` if there is none.
pub(super) fn open_existing(path: &Path) -> Result<Option<File>> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => {
            let file = File::from(fd);
            let metadata = file
                .metadata()
                .map_err(|error| cannot("look at", path).because(error))?;
            check_file(path, &metadata)?;
            Ok(Some(file))
        }
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(cannot_open(path, errno)),
    }
}

/// Creates a file that was not there, for its owner alone.
pub(super) fn create_new(path: &Path) -> Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let owner_only = Mode::RUSR | Mode::WUSR;
    let fd = rustix::fs::open(path, flags, owner_only).map_err(|errno| cannot_open(path, errno))?;
    // A strict umask may have taken bits away from the owner too.
    rustix::fs::fchmod(&fd, owner_only).map_err(|errno| cannot("protect", path).because(errno))?;
    Ok(File::from(fd))
}

/// Refuses a file that is not a plain file of ours, for us alone.
pub(crate) fn check_file(path: &Path, metadata: &Metadata) -> Result<()> {
    let shown = path.display();
    if !metadata.is_file() {
        return Err(Error::config(format!("{shown} is not a plain file")));
    }
    let us = geteuid().as_raw();
    if metadata.uid() != us {
        return Err(Error::config(format!(
            "{shown} belongs to user {} and this process runs as user {us}: give it its own ledger, or run: \
             chown {us} '{shown}'",
            metadata.uid()
        )));
    }
    if metadata.mode() & FOREIGN_ACCESS != 0 {
        return Err(Error::config(format!(
            "{shown} can be reached by other users (mode {:04o}). Run: chmod 600 '{shown}'",
            metadata.mode() & 0o7777
        )));
    }
    if metadata.nlink() > 1 {
        return Err(Error::config(format!(
            "{shown} has a second name (a hard link), under which its locks would not hold: remove the other name"
        )));
    }
    Ok(())
}

fn check_dir(dir: &Path, disk: &dyn Disk) -> Result<()> {
    let shown = dir.display();
    let metadata = dir
        .metadata()
        .map_err(|error| cannot("look at", dir).because(error))?;
    if !metadata.is_dir() {
        return Err(Error::config(format!("{shown} is not a directory")));
    }
    let (us, owner, mode) = (geteuid().as_raw(), metadata.uid(), metadata.mode());
    if owner != us && owner != 0 {
        return Err(Error::config(format!(
            "{shown} belongs to user {owner}, who could replace the ledger in it: use a directory of user {us}"
        )));
    }
    if mode & WORLD_WRITABLE != 0 && mode & STICKY == 0 {
        return Err(Error::config(format!(
            "everybody can write to {shown} and so replace the ledger in it. Run: chmod o-w '{shown}'"
        )));
    }
    let file_system = disk
        .file_system(dir)
        .map_err(|error| cannot("look at the file system of", dir).because(error))?;
    if let Some((_, name)) = SHARED_FILE_SYSTEMS
        .iter()
        .find(|(magic, _)| *magic == file_system.magic)
    {
        return Err(Error::config(format!(
            "{shown} is on a network or shared file system ({name}), where two machines would each have their own \
             cap: set KEYBRAKE_LEDGER=sqlite:/path/on/a/local/disk"
        )));
    }
    if file_system.read_only {
        return Err(read_only(dir));
    }
    Ok(())
}

fn cannot_open(path: &Path, errno: Errno) -> Error {
    let error = std::io::Error::from(errno);
    match errno {
        Errno::LOOP => Error::config(format!(
            "{} is a symbolic link; name the file itself",
            path.display()
        )),
        _ => unwritable(path, &error).unwrap_or_else(|| cannot("open", path).because(error)),
    }
}

fn unwritable(path: &Path, error: &std::io::Error) -> Option<Error> {
    match error.kind() {
        std::io::ErrorKind::ReadOnlyFilesystem => Some(read_only(path)),
        std::io::ErrorKind::PermissionDenied => Some(Error::config(format!(
            "this process may not write to {}: set KEYBRAKE_LEDGER=sqlite:/path/that/it/may/write/spend.db",
            path.display()
        ))),
        _ => None,
    }
}

fn read_only(path: &Path) -> Error {
    Error::config(format!(
        "{} is on a read-only file system: set KEYBRAKE_LEDGER=sqlite:/path/on/a/writable/disk/spend.db",
        path.display()
    ))
}

fn cannot(verb: &str, path: &Path) -> Error {
    Error::config(format!("cannot {verb} {}", path.display()))
}

/// Lower-case hexadecimal.
pub(super) fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Reads exactly `into.len()` bytes of hexadecimal; answers whether it was that.
fn from_hex(text: &str, into: &mut [u8]) -> bool {
    let digits = text.as_bytes();
    if digits.len() != into.len().saturating_mul(2) {
        return false;
    }
    for (byte, pair) in into.iter_mut().zip(digits.chunks_exact(2)) {
        let Some(value) = std::str::from_utf8(pair)
            .ok()
            .filter(|pair| pair.bytes().all(|digit| digit.is_ascii_hexdigit()))
            .and_then(|pair| u8::from_str_radix(pair, 16).ok())
        else {
            return false;
        };
        *byte = value;
    }
    true
}
