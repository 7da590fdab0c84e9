//! `doctor`: what is there, what is missing, and what to do.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use keybrake::journal::Contents;
use keybrake::ledger::{CheckGrade as Grade, State};
use keybrake::secret::Secret;
use keybrake::{ErrorKind, config, vendors};
use serde_json::json;

use crate::args::DoctorArgs;
use crate::context::{Context, Open};
use crate::failure::{Failure, Outcome, exit};
use crate::journal;
use crate::show::{count, span, time};

/// One check: what was found, and what to do about it.
struct Check {
    name: &'static str,
    grade: Grade,
    found: String,
    advice: String,
}

impl Check {
    fn new(name: &'static str, grade: Grade, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            name,
            grade,
            found: found.into(),
            advice: advice.into(),
        }
    }
}

pub(crate) async fn run(context: &mut Context<'_>, args: &DoctorArgs) -> Outcome {
    let mut checks = vec![Check::new("version", Grade::Good, env!("CARGO_PKG_VERSION"), "")];
    let opened = context.open().await;
    let mut failed = opened.as_ref().err().map(|failure| failure.code);
    match opened {
        Ok(open) => {
            if args.accept_clock {
                open.ledger.accept_clock(Context::admin(&args.reason)).await?;
            }
            waiting(&mut checks, &open).await;
            let read = ledger(&mut checks, &open).await;
            place(&mut checks, &open).await;
            log(&mut checks, &open).await;
            let trusted = clock(&mut checks, &open, context.clock.now_ms()).await;
            if let (Err(failure), Ok(())) = (&read, &trusted) {
                let message = failure.message.clone();
                checks.push(Check::new("ledger", Grade::Bad, message, "keybrake audit verify"));
            }
            failed = read.and(trusted).err().map(|failure| failure.code);
            files(&mut checks, &open.info.url);
        }
        Err(failure) => {
            let advice = "set KEYBRAKE_LEDGER or give --ledger, such as sqlite:/var/lib/keybrake/spend.db";
            checks.push(Check::new("ledger", Grade::Bad, failure.message, advice));
            waiting_anywhere(&mut checks);
        }
    }
    secrets(&mut checks);
    tell(context, &checks)?;
    let bad = checks.iter().any(|check| check.grade == Grade::Bad);
    Ok(failed.unwrap_or(if bad { exit::REFUSED } else { exit::OK }))
}

async fn ledger(checks: &mut Vec<Check>, open: &Open) -> Result<(), Failure> {
    let info = &open.info;
    let (events, holds) = (count(info.last_seq, "event"), count(info.open_holds, "open hold"));
    let found = format!("{} (format {}, {events}, {holds})", info.url, info.version);
    let memory = info.url.starts_with("memory:");
    let advice = if memory {
        "a memory ledger forgets everything with its process; use sqlite: for more than tests"
    } else {
        ""
    };
    checks.push(Check::new(
        "ledger",
        if memory { Grade::Look } else { Grade::Good },
        found,
        advice,
    ));
    let stops: Vec<String> = open
        .ledger
        .stops()
        .await?
        .iter()
        .map(|stop| stop.scope.name())
        .collect();
    if !stops.is_empty() {
        checks.push(Check::new(
            "stops",
            Grade::Look,
            stops.join(", "),
            "these are refused until keybrake resume",
        ));
    }
    let holds = open.ledger.holds(keybrake::ledger::HoldFilter::default()).await?;
    let unknown = holds.iter().filter(|hold| hold.state == State::Unknown).count();
    if unknown > 0 {
        let calls = count(u64::try_from(unknown).unwrap_or(u64::MAX), "call");
        checks.push(Check::new(
            "holds",
            Grade::Look,
            format!("the outcome of {calls} is unknown"),
            "keybrake reconcile",
        ));
    }
    Ok(())
}

/// Delivers outcomes that the ledger could not take when they were known, and says what still waits.
async fn waiting(checks: &mut Vec<Check>, open: &Open) {
    let mut check = |grade, found: String, advice: &str| {
        checks.push(Check::new("journal", grade, found, advice));
    };
    let (done, contents) = match journal::deliver(&*open.ledger).await {
        Ok(Some(found)) => found,
        Ok(None) => return,
        Err(error) => return check(Grade::Bad, error.to_string(), ""),
    };
    let path = contents.path.display();
    if done.delivered > 0 {
        let outcomes = count(done.delivered.into(), "waiting outcome");
        check(Grade::Good, format!("{outcomes} delivered to the ledger"), "");
    }
    if contents.waiting.is_empty() {
        check(Grade::Good, "no outcome waits for the ledger".to_owned(), "");
    } else {
        let advice = done
            .why
            .unwrap_or_else(|| "another process is delivering them".to_owned());
        check(Grade::Look, outcomes(&contents), &advice);
    }
    if contents.newer > 0 {
        let found = format!(
            "{} in {path} were written by a newer version of Keybrake",
            count(contents.newer.into(), "outcome")
        );
        let advice = "only that version can deliver them; until then their holds stand";
        check(Grade::Look, found, advice);
    }
    if !contents.set_aside.is_empty() {
        let files = count(number(contents.set_aside.len()), "file");
        let found = format!("{files} of outcomes set aside in {path}");
        let advice =
            "each line has its reason before it; the holds stand: keybrake reconcile, then remove the files";
        check(Grade::Look, found, advice);
    }
}

/// What waits for ledgers that cannot be asked.
fn waiting_anywhere(checks: &mut Vec<Check>) {
    match journal::all() {
        Ok(all) => {
            for contents in all.iter().filter(|contents| !contents.waiting.is_empty()) {
                let advice = "they are delivered when their ledger is back";
                checks.push(Check::new("journal", Grade::Look, outcomes(contents), advice));
            }
        }
        Err(error) => checks.push(Check::new("journal", Grade::Bad, error.to_string(), "")),
    }
}

fn outcomes(contents: &Contents) -> String {
    let oldest_ms = contents.waiting.iter().map(|entry| entry.at_ms).min();
    format!(
        "{} in {}, since {}",
        count(number(contents.waiting.len()), "waiting outcome"),
        contents.path.display(),
        time(oldest_ms.unwrap_or_default())
    )
}

fn number(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// Whether the log is drained, and how much of it there is.
async fn log(checks: &mut Vec<Check>, open: &Open) {
    match open.ledger.backlog().await {
        Ok(backlog) => {
            let check = backlog.check(open.info.now_ms);
            checks.push(Check::new(check.name, check.grade, check.found, check.advice));
        }
        Err(error) => checks.push(Check::new("log", Grade::Bad, error.to_string(), "")),
    }
}

/// What the ledger says of the server that it is on.
async fn place(checks: &mut Vec<Check>, open: &Open) {
    match open.ledger.checks().await {
        Ok(found) => checks.extend(
            found
                .into_iter()
                .map(|check| Check::new(check.name, check.grade, check.found, check.advice)),
        ),
        Err(error) => checks.push(Check::new("server", Grade::Bad, error.to_string(), "")),
    }
}

/// Whether the ledger trusts the machine's clock: with a clock that jumped, it refuses everything.
async fn clock(checks: &mut Vec<Check>, open: &Open, machine_ms: i64) -> Result<(), Failure> {
    // Every step that may write looks at the clock first; this one has nothing to do.
    if let Err(error) = open.ledger.sweep(0).await {
        let closed = error.kind() == ErrorKind::LedgerRecovering;
        let failure = Failure::from(error);
        if closed {
            // Said already: it is not the clock.
            return Err(failure);
        }
        let advice = "when the machine's clock is right: keybrake doctor --accept-clock";
        checks.push(Check::new("clock", Grade::Bad, failure.message.clone(), advice));
        return Err(failure);
    }
    let info = &open.info;
    let ahead = info.now_ms.saturating_sub(machine_ms);
    let found = format!("ledger {}, machine {}", time(info.now_ms), time(machine_ms));
    if ahead.saturating_abs() < 5_000 {
        checks.push(Check::new("clock", Grade::Good, found, ""));
    } else {
        let advice = format!(
            "the ledger is {} ahead: a clock was wrong once, and the ledger's time never goes back. Windows end late \
             until the machine has caught up",
            span(ahead)
        );
        checks.push(Check::new("clock", Grade::Look, found, advice));
    }
    Ok(())
}

/// Ledger files are their owner's alone.
fn files(checks: &mut Vec<Check>, url: &str) {
    let Some(path) = url
        .strip_prefix("sqlite:")
        .and_then(|rest| rest.split('?').next())
    else {
        return;
    };
    let path = path.trim_start_matches("//");
    for suffix in ["", ".key", "-wal", "-shm"] {
        let file = PathBuf::from(format!("{path}{suffix}"));
        let Ok(meta) = file.metadata() else { continue };
        let mine = meta.uid() == rustix::process::geteuid().as_raw();
        if meta.mode() & 0o077 != 0 || !mine {
            let advice = format!(
                "chmod 600 {0} and chown it to the user that runs the agents",
                file.display()
            );
            let found = format!("{} is open to others", file.display());
            checks.push(Check::new("permissions", Grade::Bad, found, advice));
        }
    }
    if !checks.iter().any(|check| check.name == "permissions") {
        checks.push(Check::new(
            "permissions",
            Grade::Good,
            "the ledger's files are their owner's alone",
            "",
        ));
    }
}

/// Which secrets are there. That some vendors have none says nothing: not every program uses all of them.
fn secrets(checks: &mut Vec<Check>) {
    let set = |vendor: &&'static str| config::secret_variables_set(vendor).is_some();
    let names = || vendors::vendors().iter().map(|vendor| vendor.name());
    if !names().any(|vendor| set(&vendor)) {
        let variables = names().map(config::secret_variables_in_words);
        let variables = variables.collect::<Vec<_>>().join(", or ");
        let advice = format!("programs that send need {variables}, or Secret::file");
        checks.push(Check::new(
            "secret",
            Grade::Look,
            "no vendor's is in the environment",
            advice,
        ));
    }
    for vendor in names().filter(set) {
        secret(checks, vendor);
    }
}

/// Which secret is there, by presence and mode only: never a character of it.
fn secret(checks: &mut Vec<Check>, vendor: &'static str) {
    let names = config::secret_variables_set(vendor).unwrap_or_default();
    let name = names.join(" and ");
    // One that cannot be a key is of unknown kind.
    let value = Secret::env_parts(names).load().unwrap_or_default();
    if value.contains("vault_key_") {
        let advice =
            "put the token where the SDK's API key goes; this variable is for the vendor's own secret";
        checks.push(Check::new(
            "secret",
            Grade::Bad,
            format!("{vendor}: {name} holds a vault key"),
            advice,
        ));
        return;
    }
    let (mode, grade) = match vendors::vendor(vendor).and_then(|vendor| vendor.livemode(&value)) {
        Some(true) => ("live", Grade::Look),
        Some(false) => ("test", Grade::Good),
        None => ("of unknown kind", Grade::Bad),
    };
    let advice = match grade {
        Grade::Good => String::new(),
        Grade::Look => {
            format!("{name} is readable by everything in its process; prefer a file with Secret::file")
        }
        Grade::Bad => format!("{name} does not look like a secret of {vendor}"),
    };
    checks.push(Check::new(
        "secret",
        grade,
        format!("{vendor}: {name} is set, {mode}"),
        advice,
    ));
    if let Some(url) = config::base_url(vendor) {
        let advice = "calls go there, not to the vendor";
        checks.push(Check::new(
            "base url",
            Grade::Look,
            format!("{vendor}: {url}"),
            advice,
        ));
    }
}

fn tell(context: &mut Context<'_>, checks: &[Check]) -> Result<(), Failure> {
    let word = |grade| match grade {
        Grade::Good => "ok",
        Grade::Look => "look",
        Grade::Bad => "bad",
    };
    if context.json {
        let checks = checks.iter().map(|check| {
            json!({"check": check.name, "grade": word(check.grade), "found": check.found, "advice": check.advice})
        });
        return context.answer(json!({"checks": checks.collect::<Vec<_>>()}));
    }
    for check in checks {
        let mark = format!("{:<4}", word(check.grade));
        let mark = match check.grade {
            Grade::Good => context.paint.green(&mark),
            Grade::Look => context.paint.yellow(&mark),
            Grade::Bad => context.paint.red(&mark),
        };
        let found = keybrake::audit::printable(&check.found);
        context.line(format!("{mark} {:<12} {found}", check.name))?;
        if !check.advice.is_empty() {
            context.line(format!("{:17} {}", "", keybrake::audit::printable(&check.advice)))?;
        }
    }
    Ok(())
}
