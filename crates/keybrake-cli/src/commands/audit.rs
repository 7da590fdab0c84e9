//! `audit list|verify|export|caps|slow`.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use keybrake::audit::{Audit, AuditRow, Format, RowFilter, Rows as AuditRows, printable, write_rows};
use serde_json::json;

use crate::args::{AuditCommand, FilterArgs};
use crate::context::Context;
use crate::failure::{Failure, Outcome, exit};
use crate::show::{Rows, count, short, since, span, time};

pub(crate) async fn run(context: &mut Context<'_>, command: AuditCommand) -> Outcome {
    match command {
        AuditCommand::List { filter, limit } => list(context, filter, limit).await,
        AuditCommand::Verify => verify(context).await,
        AuditCommand::Export {
            filter,
            format,
            output,
        } => export(context, filter, &format, output.as_deref()).await,
        AuditCommand::Caps { since } => caps(context, &since).await,
        AuditCommand::Slow { since } => slow(context, &since).await,
        AuditCommand::Drain(_) => Err(Failure::later("keybrake audit drain")),
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

async fn list(context: &mut Context<'_>, filter: FilterArgs, limit: usize) -> Outcome {
    let open = context.open().await?;
    let filter = filter_of(filter, open.info.now_ms)?;
    let found = Audit::new(open.ledger.as_ref()).list(filter, limit).await?;
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

async fn export(
    context: &mut Context<'_>,
    filter: FilterArgs,
    format: &str,
    output: Option<&Path>,
) -> Outcome {
    let format: Format = format.parse()?;
    let open = context.open().await?;
    let filter = filter_of(filter, open.info.now_ms)?;
    let bar = spinner(context, "events read");
    let mut rows = Audit::new(open.ledger.as_ref()).rows(filter);
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

async fn caps(context: &mut Context<'_>, since_text: &str) -> Outcome {
    let open = context.open().await?;
    let since_ms = Some(since(since_text, open.info.now_ms)?);
    let filter = RowFilter {
        since_ms,
        ..RowFilter::default()
    };
    let hits = Audit::new(open.ledger.as_ref()).cap_hits(filter).await?;
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

async fn slow(context: &mut Context<'_>, since_text: &str) -> Outcome {
    let open = context.open().await?;
    let since_ms = Some(since(since_text, open.info.now_ms)?);
    let filter = RowFilter {
        since_ms,
        ..RowFilter::default()
    };
    let slow = Audit::new(open.ledger.as_ref()).slow(filter).await?;
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
