//! The `keybrake` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(keybrake_cli::main(std::env::args_os()))
}
