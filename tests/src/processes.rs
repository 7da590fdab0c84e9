//! Helper programs that a test starts, listens to and kills, and numbers to choose the moment by.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ChildStdout, Command, Stdio};

use keybrake::SystemClock;
use keybrake::clock::Clock as _;

/// A helper program that answers in lines.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Worker {
    /// Starts it, with a pipe to its input and from its output.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// Writes a line to its input.
    pub fn tell(&mut self, line: &str) {
        let input = self.child.stdin.as_mut().unwrap();
        writeln!(input, "{line}").unwrap();
    }

    /// The next line that it says; `None` when it has ended.
    pub fn next_line(&mut self) -> Option<String> {
        self.lines.next().transpose().unwrap()
    }

    /// All that it says until it ends by itself, in good order.
    pub fn finish(mut self) -> Vec<String> {
        let said = std::iter::from_fn(|| self.next_line()).collect();
        assert!(self.child.wait().unwrap().success());
        said
    }

    /// Ends it with SIGKILL, in whatever it is doing; answers what it had said and nobody had read yet (the last line
    /// may be cut off).
    pub fn kill(mut self) -> Vec<String> {
        self.child.kill().unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.signal().is_some(), "it ended by itself: {status}");
        std::iter::from_fn(|| self.next_line()).collect()
    }
}

impl Worker {
    /// Its number, which is in the ids of its calls.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it with SIGKILL, unless it has come to its end by itself, in good order.
    pub fn end(mut self) {
        self.child.kill().unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.signal().is_some() || status.success(), "{status}");
    }
}

/// Numbers that look random and are the same for the same seed.
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    /// From a seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// From another seed every time, which is printed; or from `KEYBRAKE_SEED`, which repeats what failed.
    #[expect(
        clippy::disallowed_methods,
        clippy::print_stdout,
        reason = "only tests use it, which print what it takes to repeat them"
    )]
    pub fn of_the_day() -> Self {
        let seed = match std::env::var("KEYBRAKE_SEED") {
            Ok(seed) => seed.parse().unwrap(),
            Err(_) => u64::try_from(SystemClock.now_ms()).unwrap(),
        };
        println!("KEYBRAKE_SEED={seed}");
        Self(seed)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)).checked_rem(limit).unwrap()
    }
}
