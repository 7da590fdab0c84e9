//! `audit list|verify|export|caps|slow`; `drain` has a file of its own.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use keybrake::audit::archive::{ArchiveReport, Signatures};
use keybrake::audit::{AuditRow, Format, RowFilter, Rows as AuditRows, printable, write_rows};
use keybrake::config;
use serde_json::json;

use super::drain;
use crate::args::{AuditCommand, FilterArgs};
use crate::context::Context;
use crate::failure::{Failure, Outcome, exit};
use crate::reading::{self, Reading};
use crate::show::{Rows, count, short, since, span, time};

pub(crate) async fn run(context: &mut Context<'_>, command: AuditCommand) -> Outcome {
    match command {
        AuditCommand::List {
            source,
            filter,
            limit,
        } => {
            let reading = reading::open(context, &source).await?;
            list(context, &reading, filter, limit).await
        }
        AuditCommand::Verify { source } => match source.from {
            Some(url) => verify_archive(context, &url, source.log.as_deref()).await,
            None => verify(context).await,
        },
        AuditCommand::Export {
            source,
            filter,
            format,
            output,
        } => {
            let format: Format = format.parse()?;
            let reading = reading::open(context, &source).await?;
            export(context, &reading, filter, (format, output.as_deref())).await
        }
        AuditCommand::Caps { source, since } => {
            let reading = reading::open(context, &source).await?;
            caps(context, &reading, &since).await
        }
        AuditCommand::Slow { source, since } => {
            let reading = reading::open(context, &source).await?;
            slow(context, &reading, &since).await
        }
        AuditCommand::Drain(args) => drain::run(context, args).await,
    }
}

/// The filter as the audit takes it.
fn filter_of(args: FilterArgs, now_ms: i64) -> Result<RowFilter, Failure> {
    let since_ms = args
        .since
        .as_deref()
        .map(|text| since(text, now_ms))
        .transpose()?;
    Ok(RowFilter {
        run: args.run,
        agent: args.agent,
        label: args.label,
        vendor: args.vendor,
        customer: args.customer,
        key: args.key,
        denied: args.denied.then_some(true),
        since_ms,
        ..RowFilter::default()
    })
}

async fn list(context: &mut Context<'_>, reading: &Reading, filter: FilterArgs, limit: usize) -> Outcome {
    let filter = filter_of(filter, reading.now_ms())?;
    let found = reading.audit().list(filter, limit).await?;
    if context.json {
        let rows = serde_json::to_value(&found)
            .map_err(|cause| Failure::refused(format!("the rows cannot be written as JSON: {cause}")))?;
        context.answer(json!({"rows": rows}))?;
        return Ok(exit::OK);
    }
    if found.is_empty() {
        context.line("no calls")?;
        return Ok(exit::OK);
    }
    let mut rows = Rows::new(&[
        "TIME",
        "CALL",
        "RUN",
        "LABEL",
        "OPERATION",
        "VERDICT",
        "STATE",
        ">STATUS",
        ">COST USD",
        ">AFTER USD",
        ">MS",
    ]);
    for row in &found {
        rows.row(cells(row));
    }
    let text = rows.text(context.paint);
    context.line(text)?;
    Ok(exit::OK)
}

fn cells(row: &AuditRow) -> [String; 11] {
    let dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let verdict = match row.count() {
        1 => row.policy_verdict.clone(),
        number => format!("{} x{number}", row.policy_verdict),
    };
    [
        time(row.called_at_ms),
        short(&row.call_id).to_owned(),
        dash(row.agent_run_id.clone()),
        dash(row.agent_label.clone()),
        row.operation.clone(),
        verdict,
        dash(row.note("state").map(str::to_owned)),
        dash(row.status_code.map(|code| code.to_string())),
        dash(row.cost_usd_parsed.map(|usd| usd.to_string())),
        dash(row.cap_usage_after_usd.map(|usd| usd.to_string())),
        dash(row.latency_ms.map(|ms| ms.to_string())),
    ]
}

/// A spinner on a terminal, nothing elsewhere.
pub(crate) fn spinner(context: &Context<'_>, what: &str) -> ProgressBar {
    if !context.io.err_is_terminal || context.json {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner().with_message(what.to_owned());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {pos} {elapsed}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

async fn verify(context: &mut Context<'_>) -> Outcome {
    let open = context.open().await?;
    let bar = spinner(context, "reading events");
    let report = open.ledger.verify().await;
    bar.finish_and_clear();
    let report = report?;
    let clean = report.differences.is_empty() && report.chain_ok;
    if context.json {
        let report = serde_json::to_value(&report)
            .map_err(|cause| Failure::refused(format!("the report cannot be written as JSON: {cause}")))?;
        context.answer(json!({"clean": clean, "report": report}))?;
    } else {
        let from = match report.from_seq {
            0 => "from the beginning".to_owned(),
            seq => format!("since the checkpoint at event {seq}"),
        };
        let (events, counters) = (count(report.events, "event"), count(report.counters, "counter"));
        let headline = if clean {
            context.paint.green("CLEAN")
        } else {
            context.paint.red("DIFFERENT")
        };
        context.line(format!("{headline} {events} read {from}, {counters} compared"))?;
        for difference in &report.differences {
            let text = format!(
                "{}: events say used {} held {}, the ledger says used {} held {}",
                difference.counter,
                difference.by_events.0,
                difference.by_events.1,
                difference.in_ledger.0,
                difference.in_ledger.1,
            );
            context.line(format!("  {}", printable(&text)))?;
        }
        if !report.chain_ok {
            context.line("  the chain of checkpoints is broken, or was signed by another ledger")?;
        }
    }
    Ok(if clean { exit::OK } else { exit::REFUSED })
}

/// The archive's own proof, without its ledger.
async fn verify_archive(context: &mut Context<'_>, url: &str, wanted: Option<&str>) -> Outcome {
    let (log, state) = reading::alone(context, url, wanted).await?;
    // Of a fleet's ledger; that of a SQLite ledger is in the file beside it.
    let master = config::master_key()?;
    let secret = match &master {
        Some(master) => Some(keybrake::ledger::redis::secret_of(master, &state.name.ledger)?),
        None => None,
    };
    let bar = spinner(context, "reading events");
    let report = log.archive().verify(&state, secret.as_ref()).await;
    bar.finish_and_clear();
    let report = report?;
    if context.json {
        let clean = report.is_clean();
        let report = serde_json::to_value(&report)
            .map_err(|cause| Failure::refused(format!("the report cannot be written as JSON: {cause}")))?;
        context.answer(json!({"clean": clean, "report": report}))?;
    } else {
        tell_archive(context, &report)?;
    }
    Ok(if report.is_clean() {
        exit::OK
    } else {
        exit::REFUSED
    })
}

fn tell_archive(context: &mut Context<'_>, report: &ArchiveReport) -> Result<(), Failure> {
    let headline = if report.is_clean() {
        context.paint.green("CLEAN")
    } else {
        context.paint.red("DIFFERENT")
    };
    context.line(format!(
        "{headline} {} read, {} compared, proven up to event {}",
        count(report.events, "event"),
        count(report.checkpoints, "checkpoint"),
        report.proven_seq
    ))?;
    let words = match report.signatures {
        Signatures::Good => "signatures are the ledger's own",
        Signatures::Wrong => "a checkpoint was not signed by this ledger",
        Signatures::NotChecked => "signatures were not checked: that needs KEYBRAKE_MASTER_KEY",
    };
    context.line(format!("  {words}"))?;
    if !report.chain_ok {
        context.line("  events are missing, or a checkpoint does not name the one before it")?;
    }
    for name in &report.altered {
        let text = format!("{name} was altered: no drainer of this ledger wrote it, or not like this");
        context.line(format!("  {}", printable(&text)))?;
    }
    for difference in &report.differences {
        let text = format!(
            "{}: events say used {} held {}, the checkpoint says used {} held {}",
            difference.counter,
            difference.by_events.0,
            difference.by_events.1,
            difference.in_ledger.0,
            difference.in_ledger.1,
        );
        context.line(format!("  {}", printable(&text)))?;
    }
    for note in &report.notes {
        let what = if note.kind == "lost" {
            "were lost by the ledger after they were drained; they are kept, marked as lost"
        } else {
            "were never drained here"
        };
        context.line(format!(
            "  events {} to {} {what}",
            note.after_seq.saturating_add(1),
            note.upto_seq
        ))?;
    }
    Ok(())
}

async fn export(
    context: &mut Context<'_>,
    reading: &Reading,
    filter: FilterArgs,
    (format, output): (Format, Option<&Path>),
) -> Outcome {
    let filter = filter_of(filter, reading.now_ms())?;
    let bar = spinner(context, "events read");
    let mut rows = reading.audit().rows(filter);
    let done = write_to(context, &mut rows, (format, output), &bar).await;
    bar.finish_and_clear();
    let rows = done?;
    let told = match output {
        Some(file) => format!("{} written to {}", count(rows, "row"), file.display()),
        None => count(rows, "row"),
    };
    if context.json && output.is_some() {
        context.answer(json!({"rows": rows, "output": output}))?;
    } else if !context.json {
        writeln!(context.io.err, "{}", printable(&told))?;
    }
    Ok(exit::OK)
}

async fn write_to(
    context: &mut Context<'_>,
    rows: &mut AuditRows<'_>,
    (format, output): (Format, Option<&Path>),
    bar: &ProgressBar,
) -> Result<u64, Failure> {
    let mut progress = |events| bar.set_position(events);
    let done = match output {
        None => write_rows(rows, format, &mut *context.io.out, &mut progress).await?,
        Some(path) => {
            // Owner-only: an audit names customers. An existing file is not overwritten.
            let file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path);
            let mut file = file.map_err(|cause| Failure::usage(format!("{}: {cause}", path.display())))?;
            write_rows(rows, format, &mut file, &mut progress).await?
        }
    };
    Ok(done.rows)
}

async fn caps(context: &mut Context<'_>, reading: &Reading, since_text: &str) -> Outcome {
    let since_ms = Some(since(since_text, reading.now_ms())?);
    let filter = RowFilter {
        since_ms,
        ..RowFilter::default()
    };
    let hits = reading.audit().cap_hits(filter).await?;
    if context.json {
        let hits = hits.iter().map(|hit| {
            json!({"budget": hit.budget, "code": hit.code, "hits": hit.hits, "last_run": hit.last_run,
                   "last_at": keybrake::audit::time_text(hit.last_at_ms)})
        });
        context.answer(json!({"caps": hits.collect::<Vec<_>>()}))?;
    } else if hits.is_empty() {
        context.line("no budget refused a call")?;
    } else {
        let mut rows = Rows::new(&["BUDGET", "CODE", ">HITS", "LAST", "LAST RUN"]);
        for hit in &hits {
            let run = hit.last_run.clone().unwrap_or_else(|| "-".to_owned());
            rows.row([
                &hit.budget,
                &hit.code,
                &hit.hits.to_string(),
                &time(hit.last_at_ms),
                &run,
            ]);
        }
        let text = rows.text(context.paint);
        context.line(text)?;
    }
    Ok(exit::OK)
}

async fn slow(context: &mut Context<'_>, reading: &Reading, since_text: &str) -> Outcome {
    let since_ms = Some(since(since_text, reading.now_ms())?);
    let filter = RowFilter {
        since_ms,
        ..RowFilter::default()
    };
    let slow = reading.audit().slow(filter).await?;
    if context.json {
        context.answer(json!({"slow": slow.iter().map(|line| json!(line)).collect::<Vec<_>>()}))?;
    } else if slow.is_empty() {
        context.line("no calls were answered")?;
    } else {
        let mut rows = Rows::new(&["VENDOR", "OPERATION", ">CALLS", ">P50", ">P95", ">SLOWEST"]);
        for line in &slow {
            let times = [line.p50_ms, line.p95_ms, line.max_ms].map(span);
            let [p50, p95, slowest] = times;
            rows.row([
                &line.vendor,
                &line.operation,
                &line.calls.to_string(),
                &p50,
                &p95,
                &slowest,
            ]);
        }
        let text = rows.text(context.paint);
        context.line(text)?;
    }
    Ok(exit::OK)
}
