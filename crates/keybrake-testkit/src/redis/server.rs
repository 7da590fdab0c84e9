//! One server.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use super::PATIENCE;
use super::port::Port;
use super::process::Process;
use super::resp::{Connection, Reply};

/// What `redis-server` prints when it can be used.
const READY: &str = "Ready to accept connections";
/// What a Sentinel prints instead.
const SENTINEL_READY: &str = "Sentinel ID is";
/// How many ports are tried before starting is an error.
const PORTS_MAX: usize = 20;

/// What is on disk.
///
/// Killing the process loses only what it had not written; what it wrote the kernel keeps, flushed or not. A power
/// cut is [`RedisServer::copy_data`] at the moment of the cut, then [`RedisServer::replace_data`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Persistence {
    /// Nothing: a restart is empty.
    #[default]
    None,
    /// Append-only file, flushed every second.
    EverySecond,
    /// Append-only file, flushed before each reply.
    Always,
}

/// How a server starts.
#[derive(Clone, Debug, Default)]
pub struct RedisOptions {
    persistence: Persistence,
    eviction: Option<String>,
    lines: Vec<String>,
    sentinel: bool,
}

impl RedisOptions {
    /// No persistence, `noeviction`, defaults otherwise.
    pub fn new() -> Self {
        Self::default()
    }

    /// What is on disk.
    #[must_use]
    pub fn persistence(mut self, persistence: Persistence) -> Self {
        self.persistence = persistence;
        self
    }

    /// `maxmemory-policy`, such as `allkeys-lru`.
    #[must_use]
    pub fn maxmemory_policy(mut self, policy: &str) -> Self {
        self.eviction = Some(policy.to_owned());
        self
    }

    /// One more line of `redis.conf`, such as `maxmemory 10mb`. It stands after the others, so it wins.
    #[must_use]
    pub fn config(mut self, line: impl Into<String>) -> Self {
        self.lines.push(line.into());
        self
    }

    /// Runs as a Sentinel, which has no data and another command set.
    #[must_use]
    pub(super) fn sentinel(mut self) -> Self {
        self.sentinel = true;
        self
    }

    /// The whole of `redis.conf`.
    fn text(&self, dir: &Path, port: u16) -> String {
        let mut text = format!("bind 127.0.0.1\nport {port}\ndaemonize no\nlogfile \"\"\n");
        if !self.sentinel {
            let eviction = self.eviction.as_deref().unwrap_or("noeviction");
            // No rewriting in the background: a copy of the directory is then what was acknowledged, and no more.
            let _ = write!(
                text,
                "unixsocket {}\nunixsocketperm 700\nsave \"\"\nmaxmemory-policy {eviction}\n\
                 auto-aof-rewrite-percentage 0\nrepl-diskless-sync-delay 0\n",
                dir.join("redis.sock").display()
            );
            text.push_str(match self.persistence {
                Persistence::None => "appendonly no\n",
                Persistence::EverySecond => "appendonly yes\nappendfsync everysec\n",
                Persistence::Always => "appendonly yes\nappendfsync always\n",
            });
        }
        for line in &self.lines {
            text.push_str(line);
            text.push('\n');
        }
        text
    }
}

/// What a server's data directory was at one moment.
#[derive(Debug)]
pub struct Snapshot(TempDir);

/// A running server. Dropping it kills it and removes its directory. When this process is killed, the kernel kills the
/// server too; the directory is left.
#[derive(Debug)]
pub struct RedisServer {
    // Before the directory, so that the process is gone when its files are removed.
    process: Option<Process>,
    options: RedisOptions,
    port: Port,
    dir: TempDir,
}

impl RedisServer {
    /// Starts one. When this returns, it answers.
    ///
    /// # Errors
    /// `redis-server` is missing (kind `NotFound`), an option makes no sense to it, or it is not ready after
    /// [`PATIENCE`]; the text has the end of its log.
    pub fn start(options: RedisOptions) -> io::Result<Self> {
        let mut server = Self {
            process: None,
            options,
            port: Port::free()?,
            dir: tempfile::Builder::new().prefix("kb-redis-").tempdir()?,
        };
        for _ in 1..PORTS_MAX {
            match server.launch() {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => server.port = Port::free()?,
                started => return started.map(|()| server),
            }
        }
        server.launch().map(|()| server)
    }

    fn launch(&mut self) -> io::Result<()> {
        let data = self.data();
        fs::create_dir_all(&data)?;
        let config = self.dir.path().join("redis.conf");
        fs::write(&config, self.options.text(self.dir.path(), self.port.number()))?;
        let config = config
            .to_str()
            .ok_or_else(|| io::Error::other("the temporary directory's name is not UTF-8"))?;
        let (args, ready) = if self.options.sentinel {
            (&[config, "--sentinel"][..], SENTINEL_READY)
        } else {
            (&[config][..], READY)
        };
        let mut process = Process::start(&data, args)?;
        if !process.log.wait(0, ready, PATIENCE) {
            return Err(if process.log.contains("Address already in use") {
                io::ErrorKind::AddrInUse.into()
            } else {
                process.failure()
            });
        }
        self.process = Some(process);
        self.command(&["PING"])?;
        if self.options.persistence == Persistence::None {
            // A snapshot that was put back is read once, so that the next restart is empty again.
            remove_if_there(&data.join("dump.rdb"))?;
        }
        Ok(())
    }

    /// `redis://127.0.0.1:PORT`, the same for its whole life.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port())
    }

    /// `redis+unix://` and the path of its socket.
    pub fn unix_url(&self) -> String {
        format!("redis+unix://{}", self.dir.path().join("redis.sock").display())
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Sends a command on a connection of its own and waits for the reply.
    ///
    /// # Errors
    /// Those of [`Connection::command`].
    pub fn command<A: AsRef<[u8]>>(&self, words: &[A]) -> io::Result<Reply> {
        self.connect()?.command(words)
    }

    /// A connection.
    pub fn connect(&self) -> io::Result<Connection> {
        Connection::open(self.port())
    }

    /// SIGKILL. When this returns it is gone; its address stays reserved for it.
    pub fn kill(&mut self) -> io::Result<()> {
        match self.process.take() {
            Some(mut process) => process.kill().map(|_| ()),
            None => Ok(()),
        }
    }

    /// SIGSTOP: connections are accepted by the kernel and nothing is answered, until [`Self::cont`]. When this returns
    /// it has stopped.
    pub fn stop(&self) -> io::Result<()> {
        self.running()?.stop()
    }

    /// SIGCONT: goes on where it was, and answers what has arrived meanwhile.
    pub fn cont(&self) -> io::Result<()> {
        self.running()?.cont()
    }

    /// Kills it if it runs, then starts it in the same directory at the same address.
    ///
    /// # Errors
    /// Those of [`Self::start`].
    pub fn restart(&mut self) -> io::Result<()> {
        self.kill()?;
        self.launch()
    }

    /// Copies what is on disk now. Without persistence it is told to `SAVE` first.
    pub fn copy_data(&self) -> io::Result<Snapshot> {
        let unsaved = self.options.persistence == Persistence::None && self.process.is_some();
        if unsaved {
            self.command(&["SAVE"])?;
        }
        let copy = tempfile::Builder::new().prefix("kb-redis-copy-").tempdir()?;
        copy_dir(&self.data(), copy.path())?;
        if unsaved {
            remove_if_there(&self.data().join("dump.rdb"))?;
        }
        Ok(Snapshot(copy))
    }

    /// Kills it if it runs and puts a snapshot in place of what is on disk. [`Self::restart`] then starts from it.
    pub fn replace_data(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        self.kill()?;
        fs::remove_dir_all(self.data())?;
        copy_dir(snapshot.0.path(), &self.data())
    }

    /// How many lines it has printed since it was started.
    pub fn log_lines(&self) -> io::Result<usize> {
        Ok(self.running()?.log.len())
    }

    /// Waits until it prints a line that contains `text`, after the first `skip` lines.
    ///
    /// # Errors
    /// It is not running, ends, or does not print it within [`PATIENCE`]; the text has the end of its log.
    pub fn wait_for_log(&self, skip: usize, text: &str) -> io::Result<()> {
        self.wait_for_log_within(PATIENCE, skip, text)
    }

    pub(super) fn wait_for_log_within(&self, limit: Duration, skip: usize, text: &str) -> io::Result<()> {
        let log = &self.running()?.log;
        if log.wait(skip, text, limit) {
            return Ok(());
        }
        let told = format!("redis-server did not print {text:?}:\n{}", log.tail());
        Err(io::Error::new(io::ErrorKind::TimedOut, told))
    }

    fn running(&self) -> io::Result<&Process> {
        self.process
            .as_ref()
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "the server was killed"))
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }
}

fn copy_dir(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_dir(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

fn remove_if_there(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
