//! The `keybrake` command as a library, so that the Python package installs the same command.
//!
//! Output goes through [`Io`], the exit code is returned: nothing here ends the process.

mod args;
mod commands;
mod context;
mod failure;
mod io;
mod journal;
mod reading;
mod show;

use std::ffi::OsString;

use clap::Parser;
use clap::error::ErrorKind as ClapKind;

use crate::args::Cli;
use crate::context::Context;
use crate::failure::{Failure, exit};
pub use crate::io::Io;

/// Runs the command with the process's own streams. `arguments` begins with the program's name. Answers the
/// exit code: 0 ok, 1 refused, 2 usage, 3 ledger unreachable, 4 not found (`dev` answers its program's).
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    io::with_process_streams(|io| run(arguments, io))
}

/// Runs the command with the given streams. See [`main`].
pub fn run(arguments: impl IntoIterator<Item = OsString>, io: Io<'_>) -> u8 {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return tell_usage(&error, io),
    };
    let mut context = Context::new(io, cli.json, cli.ledger);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(commands::run(&mut context, cli.command)),
        Err(error) => Err(Failure::from(error)),
    };
    match outcome {
        Ok(code) => code,
        Err(failure) => context.tell(&failure),
    }
}

/// Help and version go to the output and are no mistake; all else goes to the error stream.
fn tell_usage(error: &clap::Error, io: Io<'_>) -> u8 {
    let asked = matches!(error.kind(), ClapKind::DisplayHelp | ClapKind::DisplayVersion);
    let colour = if asked {
        io.out_is_terminal
    } else {
        io.err_is_terminal
    };
    let colour = colour && keybrake::config::environment("NO_COLOR").is_none();
    let text = error.render();
    let text = if colour {
        text.ansi().to_string()
    } else {
        text.to_string()
    };
    let stream = if asked { io.out } else { io.err };
    // A closed stream leaves nobody to tell.
    let _ = stream.write_all(text.as_bytes());
    if asked { exit::OK } else { exit::USAGE }
}
