//! Where the command reads and writes: given by the caller, so that another program can host it.

use std::io::{BufRead, IsTerminal, Write};

/// Streams of one run of the command. Nothing is printed anywhere else.
pub struct Io<'a> {
    /// Answers.
    pub out: &'a mut (dyn Write + Send),
    /// The ledger's name, progress, errors.
    pub err: &'a mut (dyn Write + Send),
    /// Confirmations.
    pub input: &'a mut (dyn BufRead + Send),
    /// Whether `out` is a terminal.
    pub out_is_terminal: bool,
    /// Whether `err` is a terminal.
    pub err_is_terminal: bool,
    /// Whether `input` is a terminal.
    pub input_is_terminal: bool,
}

impl std::fmt::Debug for Io<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Io")
            .field("out_is_terminal", &self.out_is_terminal)
            .field("err_is_terminal", &self.err_is_terminal)
            .field("input_is_terminal", &self.input_is_terminal)
            .finish_non_exhaustive()
    }
}

/// Runs with the process's own streams.
pub(crate) fn with_process_streams<R>(run: impl FnOnce(Io<'_>) -> R) -> R {
    let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
    let mut input = std::io::BufReader::new(std::io::stdin());
    let terminals = (
        out.is_terminal(),
        err.is_terminal(),
        std::io::stdin().is_terminal(),
    );
    let done = run(Io {
        out: &mut out,
        err: &mut err,
        input: &mut input,
        out_is_terminal: terminals.0,
        err_is_terminal: terminals.1,
        input_is_terminal: terminals.2,
    });
    let _ = (out.flush(), err.flush());
    done
}
