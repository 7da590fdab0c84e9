//! The command inside another program, on a terminal of its own making.

use std::io::{self, Write};

use keybrake_cli::{Io, run};

/// Runs with a terminal on which this is typed; answers exit code, output and error output.
fn on_a_terminal(arguments: &[&str], typed: &str) -> (u8, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = run(
        ["keybrake"].iter().chain(arguments).map(Into::into),
        Io {
            out: &mut out,
            err: &mut err,
            input: &mut typed.as_bytes(),
            out_is_terminal: true,
            err_is_terminal: false,
            input_is_terminal: true,
        },
    );
    (
        code,
        String::from_utf8(out).unwrap(),
        String::from_utf8(err).unwrap(),
    )
}

#[test]
fn stop_all_asks_on_a_terminal() {
    let stop = ["--ledger", "memory:", "stop", "--all"];
    let (code, out, err) = on_a_terminal(&stop, "n\n");
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(
        err.contains("Stop everything on memory:? [y/N]") && err.contains("nothing was stopped"),
        "{err}"
    );
    let (code, _, _) = on_a_terminal(&stop, "");
    assert_eq!(code, 1, "no answer is no");
    let (code, out, _) = on_a_terminal(&stop, "y\n");
    assert_eq!(code, 0);
    assert!(out.contains("STOPPED"), "{out}");
    let (code, _, err) = on_a_terminal(&[&stop[..], &["--yes"]].concat(), "");
    assert_eq!(code, 0);
    assert!(!err.contains("[y/N]"), "{err}");
}

#[test]
fn colour_is_for_terminals_without_no_color() {
    let wanted =
        std::env::var_os("NO_COLOR").is_none() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
    let (_, out, _) = on_a_terminal(&["--ledger", "memory:", "stop", "run_1"], "");
    assert_eq!(out.contains("\u{1b}[31mSTOPPED\u{1b}[0m"), wanted, "{out:?}");
    let (_, out, _) = on_a_terminal(&["--ledger", "memory:", "--json", "stop", "run_1"], "");
    assert!(!out.contains('\u{1b}'), "{out:?}");
}

/// A pipe whose reader went away.
struct Closed;

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_reader_that_goes_away_is_no_mistake() {
    let mut err = Vec::new();
    let code = run(
        ["keybrake", "policy", "schema"].map(Into::into),
        Io {
            out: &mut Closed,
            err: &mut err,
            input: &mut io::empty(),
            out_is_terminal: false,
            err_is_terminal: false,
            input_is_terminal: false,
        },
    );
    assert_eq!((code, err.as_slice()), (0, &b""[..]));
}
