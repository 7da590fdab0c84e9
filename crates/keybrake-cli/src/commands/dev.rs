//! `dev -- COMMAND`: a program against the simulators and a throw-away ledger, and what it moved.

use std::process::ExitStatus;
use std::sync::Arc;

use keybrake::audit::{Audit, AuditRow, RowFilter, printable};
use keybrake::ledger::HoldFilter;
use keybrake_testkit::SimulatedVendor;
use serde_json::{Value, json};
use tokio::process::Child;
use tokio::signal::unix::{Signal as Interrupts, SignalKind, signal};

use super::simulate::{self, Done};
use crate::args::DevArgs;
use crate::context::Context;
use crate::failure::{Failure, Outcome, exit};
use crate::show::{Rows, count, usd};

pub(crate) async fn run(context: &mut Context<'_>, args: DevArgs) -> Outcome {
    let Some((program, arguments)) = args.command.split_first() else {
        return Err(Failure::usage("name a program: keybrake dev -- python agent.py"));
    };
    let directory = tempfile::Builder::new().prefix("keybrake-dev-").tempdir()?;
    let url = format!("sqlite:{}", directory.path().join("ledger.db").display());
    let simulators = simulate::start(&SimulatedVendor::ALL, 0)?;
    if !context.json {
        let on = simulators
            .iter()
            .map(|simulator| format!("{} on {}", simulator.vendor(), simulator.url()));
        writeln!(
            context.io.err,
            "keybrake dev: simulators of {}, throw-away ledger {url}",
            on.collect::<Vec<_>>().join(", ")
        )?;
        context.io.err.flush()?;
    }
    let mut command = tokio::process::Command::new(program);
    command
        .args(arguments)
        .env("KEYBRAKE_LEDGER", &url)
        .env_remove("STRIPE_API_KEY")
        .env_remove("TWILIO_API_KEY")
        .env_remove("TWILIO_API_SECRET");
    for simulator in &simulators {
        command.envs(simulator.vendor().environment(&simulator.url()));
    }
    // Before the program runs: it may be interrupted at once.
    let interrupted = signal(SignalKind::interrupt())?;
    let child = command
        .spawn()
        .map_err(|cause| Failure::not_found(format!("{}: {cause}", program.to_string_lossy())))?;
    let status = wait(child, interrupted).await?;
    tell(context, &url, &Done::of(&simulators), status).await?;
    Ok(code_of(status))
}

/// Waits for the program. Ctrl-C goes to it as well; what it moved is told all the same.
async fn wait(mut child: Child, mut interrupted: Interrupts) -> Result<ExitStatus, Failure> {
    loop {
        tokio::select! {
            status = child.wait() => return Ok(status?),
            _ = interrupted.recv() => {}
        }
    }
}

fn code_of(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let by_signal = || status.signal().and_then(|signal| signal.checked_add(128));
    let code = status.code().or_else(by_signal).unwrap_or(1);
    u8::try_from(code).unwrap_or(exit::REFUSED)
}

async fn tell(context: &mut Context<'_>, url: &str, done: &Done, status: ExitStatus) -> Result<(), Failure> {
    let ledger = keybrake::ledger::open(url, Arc::clone(&context.clock))?;
    ledger.sweep(10_000).await?;
    let audit = Audit::new(ledger.as_ref());
    let refused = audit
        .list(
            RowFilter {
                denied: Some(true),
                ..RowFilter::default()
            },
            1_000,
        )
        .await?;
    let holds = ledger.holds(HoldFilter::default()).await?;
    let clean = ledger.verify().await?;
    let clean = clean.differences.is_empty() && clean.chain_ok;
    if context.json {
        let refused = refused.iter().map(|row| {
            json!({"call_id": row.call_id, "run": row.agent_run_id, "operation": row.operation,
                   "code": row.policy_verdict, "count": row.count(), "message": row.note("message")})
        });
        let mut answer = json!({
            "exit": code_of(status), "refused": refused.collect::<Vec<_>>(), "open_holds": holds.len(),
            "books_agree": clean,
        });
        if let (Some(members), Value::Object(done)) = (answer.as_object_mut(), done.json()) {
            members.extend(done);
        }
        return context.answer(answer);
    }
    let headline = context.paint.bold("What moved (the simulators' own journals)");
    context.line(format!("\n{headline}"))?;
    done.tell(context)?;
    let headline = context.paint.bold("What was refused");
    context.line(format!("\n{headline}"))?;
    tell_refused(context, &refused)?;
    for hold in &holds {
        let text = format!(
            "{} {} {}",
            hold.facts.call_id,
            hold.facts.operation,
            hold.state.as_str()
        );
        context.line(format!("  still held: {} {}", usd(hold.held), printable(&text)))?;
    }
    let books = if clean {
        context.paint.green("agree")
    } else {
        context.paint.red("DIFFER")
    };
    context.line(format!(
        "\nthe books {books}; the program ended with {}",
        code_of(status)
    ))
}

/// Refusals that are alike, as one line each.
fn tell_refused(context: &mut Context<'_>, refused: &[AuditRow]) -> Result<(), Failure> {
    if refused.is_empty() {
        return context.line("nothing was refused");
    }
    let mut alike: Vec<(&AuditRow, u64)> = Vec::new();
    for row in refused {
        let same = alike.iter_mut().find(|(known, _)| {
            known.policy_verdict == row.policy_verdict
                && known.operation == row.operation
                && known.agent_run_id == row.agent_run_id
        });
        match same {
            Some((_, times)) => *times = times.saturating_add(row.count()),
            None => alike.push((row, row.count())),
        }
    }
    let mut rows = Rows::new(&["CODE", "RUN", "OPERATION", ">TIMES", "WHY"]);
    let all = alike
        .iter()
        .fold(0_u64, |sum, (_, times)| sum.saturating_add(*times));
    for (row, times) in alike {
        let run = row.agent_run_id.as_deref().unwrap_or("-");
        let why = row.note("message").unwrap_or_default();
        rows.row([
            row.policy_verdict.as_str(),
            run,
            &row.operation,
            &times.to_string(),
            why,
        ]);
    }
    let text = rows.text(context.paint);
    context.line(text)?;
    context.line(format!("{} refused before they were sent", count(all, "call")))
}
