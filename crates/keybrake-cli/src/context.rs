//! What every command needs: its streams, the ledger it uses, and how it answers.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keybrake::audit::printable;
use keybrake::ledger::{AdminNote, Ledger, LedgerInfo};
use keybrake::{Clock, SystemClock, config};
use serde_json::{Map, Value};

use crate::failure::{Failure, exit};
use crate::io::Io;
use crate::show::Paint;

/// One run of the command.
pub(crate) struct Context<'a> {
    pub(crate) io: Io<'a>,
    pub(crate) json: bool,
    pub(crate) paint: Paint,
    pub(crate) clock: Arc<dyn Clock>,
    ledger_argument: Option<String>,
    /// What answers, once it was opened: goes into every JSON answer, errors too.
    named: Map<String, Value>,
}

/// An open ledger.
pub(crate) struct Open {
    pub(crate) ledger: Arc<dyn Ledger>,
    pub(crate) info: LedgerInfo,
}

impl<'a> Context<'a> {
    pub(crate) fn new(io: Io<'a>, json: bool, ledger_argument: Option<String>) -> Self {
        let wants_colour = io.out_is_terminal && config::environment("NO_COLOR").is_none();
        let dumb = config::environment("TERM").is_some_and(|term| term == "dumb");
        Self {
            json,
            paint: Paint(wants_colour && !dumb && !json),
            clock: Arc::new(SystemClock),
            ledger_argument,
            named: Map::new(),
            io,
        }
    }

    /// Opens the ledger and names it on the error stream.
    pub(crate) async fn open(&mut self) -> Result<Open, Failure> {
        let url = self.ledger_url()?;
        let ledger = keybrake::ledger::open(&url, Arc::clone(&self.clock))?;
        let info = ledger.info().await?;
        self.named.insert("ledger".to_owned(), info.url.clone().into());
        if !self.json {
            let new = if info.last_seq == 0 {
                " (empty: nothing was ever recorded in it)"
            } else {
                ""
            };
            writeln!(self.io.err, "ledger {}{new}", printable(&info.url))?;
        }
        Ok(Open { ledger, info })
    }

    /// The ledger's URL: the argument, the environment, an owner-only `keybrake.toml` at the project root, the
    /// user's data directory.
    pub(crate) fn ledger_url(&self) -> Result<String, Failure> {
        let named = self.ledger_argument.is_some()
            || ["KEYBRAKE_LEDGER", "KEYBRAKE_CONFIG"]
                .iter()
                .any(|name| config::environment(name).is_some());
        if !named && let Some(url) = url_of_project("ledger")? {
            return Ok(url);
        }
        Ok(config::ledger_url(self.ledger_argument.as_deref())?)
    }

    /// The archive's URL, if one is configured: the argument, the environment, an owner-only `keybrake.toml` at the
    /// project root.
    pub(crate) fn archive_url(argument: Option<&str>) -> Result<Option<String>, Failure> {
        if let Some(url) = argument {
            return Ok(Some(url.to_owned()));
        }
        match config::archive_url()? {
            Some(url) => Ok(Some(url)),
            None if config::environment("KEYBRAKE_CONFIG").is_some() => Ok(None),
            None => url_of_project("archive"),
        }
    }

    /// Names what answers, on the error stream, and in every JSON answer from now on.
    pub(crate) fn name(&mut self, what: &'static str, place: &str, words: &str) -> Result<(), Failure> {
        self.named.insert(what.to_owned(), place.into());
        if !self.json {
            writeln!(self.io.err, "{}", printable(words))?;
        }
        Ok(())
    }

    /// Prints a line for people. Hostile characters are replaced, so every text may be passed.
    pub(crate) fn line(&mut self, text: impl AsRef<str>) -> Result<(), Failure> {
        Ok(writeln!(self.io.out, "{}", text.as_ref())?)
    }

    /// Prints an answer for scripts, with the ledger's name in it.
    pub(crate) fn answer(&mut self, answer: Value) -> Result<(), Failure> {
        let mut all = self.named.clone();
        match answer {
            Value::Object(fields) => all.extend(fields),
            other => {
                all.insert("answer".to_owned(), other);
            }
        }
        let text = serde_json::to_string_pretty(&Value::Object(all))
            .map_err(|cause| Failure::refused(format!("the answer cannot be written as JSON: {cause}")))?;
        Ok(writeln!(self.io.out, "{text}")?)
    }

    /// Tells a failure, as JSON on the output or as a line on the error stream, and answers its exit code.
    pub(crate) fn tell(&mut self, failure: &Failure) -> u8 {
        if failure.is_closed_pipe() {
            return exit::OK;
        }
        let told = if self.json {
            let error = serde_json::json!({"error": {"kind": failure.kind, "message": failure.message}});
            self.answer(error).map_err(|_| ())
        } else {
            writeln!(self.io.err, "error: {}", printable(&failure.message)).map_err(|_| ())
        };
        // Nobody is there to be told that nobody is there.
        let _ = told;
        failure.code
    }

    /// A question that only a person can answer.
    pub(crate) fn confirm(&mut self, question: &str) -> Result<bool, Failure> {
        write!(self.io.err, "{question} [y/N] ")?;
        self.io.err.flush()?;
        let mut answer = String::new();
        self.io.input.read_line(&mut answer)?;
        Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
    }

    /// By whom, as the operating system knows them, and why.
    pub(crate) fn admin(reason: &str) -> AdminNote {
        let names = ["USER", "LOGNAME"]
            .iter()
            .find_map(|name| config::environment(name));
        let by = names.unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()));
        AdminNote {
            by,
            reason: reason.to_owned(),
        }
    }
}

/// The `ledger` or the `archive` of `keybrake.toml` at the project root: the nearest directory upwards that has one, not above
/// the repository. Only an owner-only file is believed; a file that came with a repository is not.
fn url_of_project(name: &str) -> Result<Option<String>, Failure> {
    let here = std::env::current_dir()?;
    let Some(file) = project_file(&here) else {
        return Ok(None);
    };
    let meta = std::fs::symlink_metadata(&file)?;
    let owner_only = meta.is_file()
        && meta.uid() == rustix::process::geteuid().as_raw()
        && (meta.mode() & 0o077).count_ones() == 0;
    if !owner_only {
        return Err(Failure::usage(format!(
            "{0} is not a plain file of yours that only you can read, so it is not believed. Trust it with \
             `chmod 600 {0}`, or name a ledger with --ledger or KEYBRAKE_LEDGER",
            file.display()
        )));
    }
    Ok(config::url_of_file(&file, name)?)
}

fn project_file(here: &Path) -> Option<PathBuf> {
    for directory in here.ancestors() {
        let file = directory.join("keybrake.toml");
        if file.symlink_metadata().is_ok() {
            return Some(file);
        }
        if directory.join(".git").exists() {
            return None;
        }
    }
    None
}

/// A URL as it may be shown: the password of `scheme://user:password@host` is left out.
pub(crate) fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let authority = rest.split(['/', '?']).next().unwrap_or(rest);
    match authority.rsplit_once('@') {
        None => url.to_owned(),
        Some((user, host)) => {
            let user = user.split(':').next().unwrap_or(user);
            let rest = rest.strip_prefix(authority).unwrap_or_default();
            format!("{scheme}://{user}:…@{host}{rest}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        assert_eq!(
            without_password("redis://u:p@ss@host:1/0?ns=x"),
            "redis://u:…@host:1/0?ns=x"
        );
        assert_eq!(without_password("redis://:p@host"), "redis://:…@host");
        assert_eq!(without_password("sqlite:/a/b.db"), "sqlite:/a/b.db");
    }
}
