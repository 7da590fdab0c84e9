//! What a server prints, kept in memory, and waiting for a line of it. The servers say when they are ready, when a
//! replica has caught up and when a failover is over, so that nobody needs to poll or sleep.

use std::io::{BufRead, BufReader, PipeReader};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How many lines an error quotes.
const TAIL: usize = 20;

#[derive(Debug, Default)]
struct Printed {
    lines: Vec<String>,
    ended: bool,
}

#[derive(Debug, Default)]
struct Shared {
    printed: Mutex<Printed>,
    changed: Condvar,
}

impl Shared {
    fn printed(&self) -> MutexGuard<'_, Printed> {
        self.printed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The output of one process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log(Arc<Shared>);

impl Log {
    /// Reads until the process is gone, in a thread of its own.
    pub(crate) fn follow(pipe: PipeReader) -> std::io::Result<Self> {
        let log = Self::default();
        let writing = log.clone();
        std::thread::Builder::new()
            .name("server log".to_owned())
            .spawn(move || {
                let mut pipe = BufReader::new(pipe);
                let mut line = Vec::new();
                while pipe.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                    let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                    writing.0.printed().lines.push(text);
                    writing.0.changed.notify_all();
                    line.clear();
                }
                writing.0.printed().ended = true;
                writing.0.changed.notify_all();
            })?;
        Ok(log)
    }

    /// How many lines there are.
    pub(crate) fn len(&self) -> usize {
        self.0.printed().lines.len()
    }

    /// Waits until a line from number `from` on contains `text`. Answers whether one does; it will not once the
    /// process is gone.
    pub(crate) fn wait(&self, from: usize, text: &str, limit: Duration) -> bool {
        let found = |printed: &Printed| {
            let mut lines = printed.lines.iter().skip(from);
            lines.any(|line| line.contains(text))
        };
        let (printed, _) = self
            .0
            .changed
            .wait_timeout_while(self.0.printed(), limit, |printed| {
                !printed.ended && !found(printed)
            })
            .unwrap_or_else(PoisonError::into_inner);
        found(&printed)
    }

    /// Whether the process has closed its output: it is gone, or about to be.
    pub(crate) fn ended(&self) -> bool {
        self.0.printed().ended
    }

    /// Whether a line contains `text`.
    pub(crate) fn contains(&self, text: &str) -> bool {
        self.0.printed().lines.iter().any(|line| line.contains(text))
    }

    /// The last lines, for errors.
    pub(crate) fn tail(&self) -> String {
        let printed = self.0.printed();
        let skipped = printed.lines.len().saturating_sub(TAIL);
        printed
            .lines
            .iter()
            .skip(skipped)
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join("\n")
    }
}
