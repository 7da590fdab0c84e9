//! Private PostgreSQL servers for tests: each in a temporary directory of its own, reached by a socket in it, without
//! any configuration of the machine. They need Debian's `postgresql`; without it starting one is an error that says how
//! to get it. PostgreSQL refuses to run as root: a test that does starts it as `postgres`, else as `nobody`.
//!
//! ```no_run
//! # fn main() -> std::io::Result<()> {
//! let postgres = keybrake_testkit::postgres::PostgresServer::start()?;
//! let archive = postgres.url();
//! # Ok(())
//! # }
//! ```

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::redis::PATIENCE;
use crate::redis::process::{Process, Program};

/// What the server prints when it can be used.
const READY: &str = "database system is ready to accept connections";
const MISSING: &str =
    "PostgreSQL is missing: Debian: apt-get install postgresql; macOS: brew install postgresql";

/// A running server. Dropping it kills it and removes its directory. When this process is killed, the kernel kills the
/// server too; the directory is left.
#[derive(Debug)]
pub struct PostgresServer {
    // Before the directory, so that the process is gone when its files are removed.
    process: Option<Process>,
    dir: TempDir,
    settings: Vec<String>,
}

impl PostgresServer {
    /// Starts one. When this returns, it answers. The superuser is `postgres`, without a password on its socket.
    ///
    /// # Errors
    /// PostgreSQL is missing (kind `NotFound`), or it is not ready after
    /// [`PATIENCE`]; the text has the end of its log.
    pub fn start() -> io::Result<Self> {
        Self::start_with(&[])
    }

    /// Starts one with these settings of `postgresql.conf`, such as `max_connections=4`.
    ///
    /// # Errors
    /// Those of [`Self::start`].
    pub fn start_with(settings: &[&str]) -> io::Result<Self> {
        let dir = tempfile::Builder::new().prefix("kb-pg-").tempdir()?;
        if let Some(user) = user()? {
            chown(dir.path(), Some(user), None)?;
        }
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700))?;
        let mut server = Self {
            process: None,
            dir,
            settings: settings.iter().map(|setting| (*setting).to_owned()).collect(),
        };
        server.make()?;
        server.launch()?;
        Ok(server)
    }

    fn make(&self) -> io::Result<()> {
        let args = [
            "-D",
            "data",
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-sync",
            "--locale=C",
        ];
        let mut made = Process::start_program(program("initdb")?, self.dir.path(), &args)?;
        if made.wait()?.success() {
            return Ok(());
        }
        Err(made.failure())
    }

    fn launch(&mut self) -> io::Result<()> {
        let socket = self.socket()?;
        let mut args = vec![
            "-D",
            "data",
            "-k",
            &socket,
            "-c",
            "listen_addresses=",
            "-c",
            "fsync=off",
        ];
        for setting in &self.settings {
            args.extend(["-c", setting]);
        }
        let mut process = Process::start_program(program("postgres")?, self.dir.path(), &args)?;
        if !process.log.wait(0, READY, PATIENCE) {
            return Err(process.failure());
        }
        self.process = Some(process);
        Ok(())
    }

    /// `postgres://postgres@/postgres?host=` and the directory of its socket.
    pub fn url(&self) -> String {
        self.url_of("postgres")
    }

    /// The URL for another user, or another database's name is not needed in tests: one server, one database.
    pub fn url_of(&self, user: &str) -> String {
        format!("postgres://{user}@/postgres?host={}", self.dir.path().display())
    }

    /// Its directory, which its user owns.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// SIGKILL, with everything that it was in the middle of. When this returns it is gone.
    ///
    /// # Errors
    /// Those of the system.
    pub fn kill(&mut self) -> io::Result<()> {
        match self.process.take() {
            Some(mut process) => process.kill().map(|_| ()),
            None => Ok(()),
        }
    }

    fn socket(&self) -> io::Result<String> {
        let path = self.dir.path().to_str();
        path.map(str::to_owned)
            .ok_or_else(|| io::Error::other("the temporary directory's name is not UTF-8"))
    }
}

/// A program of the newest PostgreSQL here: Debian keeps them beside the `PATH`.
fn program(name: &str) -> io::Result<Program> {
    let mut versions: Vec<(u32, PathBuf)> = Vec::new();
    for place in ["/usr/lib/postgresql", "/opt/homebrew/opt", "/usr/local/opt"] {
        let Ok(entries) = fs::read_dir(place) else {
            continue;
        };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let version = name.trim_start_matches("postgresql@").parse();
            if let Ok(version) = version {
                versions.push((version, entry.path().join("bin")));
            }
        }
    }
    versions.sort();
    let found = versions.into_iter().rev().map(|(_, bin)| bin.join(name));
    let path = found
        .into_iter()
        .find(|path| path.exists())
        .unwrap_or_else(|| PathBuf::from(name));
    Ok(Program {
        path,
        user: user()?,
        missing: MISSING,
    })
}

/// Whom to run as instead of root; `None` for everybody else.
fn user() -> io::Result<Option<u32>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd")?;
    let id = |wanted: &str| {
        let mut lines = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
        lines.find_map(|fields| match fields.as_slice() {
            [name, _, id, ..] if *name == wanted => id.parse().ok(),
            _ => None,
        })
    };
    let found = id("postgres").or_else(|| id("nobody"));
    found.map(Some).ok_or_else(|| {
        io::Error::other("root cannot run PostgreSQL, and there is no user postgres or nobody")
    })
}
