//! A server process that cannot outlive us: `setpriv --pdeathsig KILL` has the kernel kill it when its parent dies,
//! even when that is by SIGKILL and no destructor runs.
//!
//! To the kernel the parent is the thread that started it, not the process. Tests and Tokio's workers come and go, so
//! one thread that stays starts them all.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use super::log::Log;

/// What a shell and `setpriv` answer when there is no such program.
const NOT_FOUND: i32 = 127;

/// A running server and what it prints. Dropping it kills and reaps it.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    program: Program,
    pub(crate) log: Log,
}

/// What is started, as whom, and how it is got when it is missing.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    /// Another user, for a server that refuses to run as root.
    pub(crate) user: Option<u32>,
    /// What to install.
    pub(crate) missing: &'static str,
}

impl Program {
    fn redis() -> Self {
        Self {
            path: PathBuf::from("redis-server"),
            user: None,
            missing: "redis-server is missing: Debian: apt-get install redis-server; macOS: brew install redis",
        }
    }

    fn missing(&self) -> io::Error {
        let setpriv = if cfg!(target_os = "linux") {
            " (or setpriv, of util-linux)"
        } else {
            ""
        };
        io::Error::new(io::ErrorKind::NotFound, format!("{}{setpriv}", self.missing))
    }

    fn name(&self) -> String {
        let name = self.path.file_name().unwrap_or(self.path.as_os_str());
        name.to_string_lossy().into_owned()
    }
}

impl Process {
    /// Starts `redis-server` with these arguments.
    pub(crate) fn start(dir: &Path, args: &[&str]) -> io::Result<Self> {
        Self::start_program(Program::redis(), dir, args)
    }

    /// Starts a program with these arguments.
    pub(crate) fn start_program(program: Program, dir: &Path, args: &[&str]) -> io::Result<Self> {
        let (reading, writing) = io::pipe()?;
        let mut command = if cfg!(target_os = "linux") {
            let mut command = Command::new("setpriv");
            if let Some(user) = program.user {
                let user = user.to_string();
                command.args(["--reuid", &user, "--clear-groups"]);
            }
            command.args(["--pdeathsig", "KILL"]).arg(&program.path);
            command
        } else {
            Command::new(&program.path)
        };
        command
            .args(args)
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(writing.try_clone()?)
            .stderr(writing);
        let child = spawn(command).map_err(|error| {
            if error.kind() == io::ErrorKind::NotFound {
                program.missing()
            } else {
                error
            }
        })?;
        Ok(Self {
            child,
            program,
            log: Log::follow(reading)?,
        })
    }

    /// Waits until it ends by itself.
    pub(crate) fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }

    /// What became of a server that did not get ready, in words.
    pub(crate) fn failure(&mut self) -> io::Error {
        let name = self.program.name();
        let ended = if self.log.ended() {
            self.child.wait().ok()
        } else {
            None
        };
        match ended {
            Some(status) if status.code() == Some(NOT_FOUND) => self.program.missing(),
            Some(status) => io::Error::other(format!("{name} ended ({status}):\n{}", self.log.tail())),
            None => io::Error::new(
                io::ErrorKind::TimedOut,
                format!(
                    "{name} is not ready after {:?}:\n{}",
                    super::PATIENCE,
                    self.log.tail()
                ),
            ),
        }
    }

    /// SIGSTOP; returns when it has stopped.
    pub(crate) fn stop(&self) -> io::Result<()> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::STOP)?;
        // Only looks: whoever reaps it later finds everything as it was.
        let seen = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(pid), seen)?;
        Ok(())
    }

    /// SIGCONT.
    pub(crate) fn cont(&self) -> io::Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), Signal::CONT)?)
    }

    /// SIGKILL, which a stopped process hears too; returns when it is gone.
    pub(crate) fn kill(&mut self) -> io::Result<ExitStatus> {
        self.child.kill()?;
        self.child.wait()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may be gone already, which is what is wanted.
        let _ = self.kill();
    }
}

type Order = (Command, Sender<io::Result<Child>>);

/// Starts a program from the thread that stays.
fn spawn(command: Command) -> io::Result<Child> {
    static STARTER: OnceLock<Sender<Order>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (orders, received) = channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in received {
                // The one who asked waits for it.
                let _ = answer.send(command.spawn());
            }
        });
        orders
    });
    let gone = || io::Error::other("the thread that starts servers is gone");
    let (answer, started) = channel();
    starter.send((command, answer)).map_err(|_| gone())?;
    started.recv().map_err(|_| gone())?
}
