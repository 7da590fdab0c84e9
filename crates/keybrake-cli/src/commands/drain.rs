//! `audit drain`: takes the log to durable storage, and trims it behind that.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use keybrake::audit::drain::{Drain, DrainOptions, Step, Trimmed, trim};
use keybrake::audit::{Archive, printable};
use keybrake::{Error, ErrorKind};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use crate::args::DrainArgs;
use crate::context::{Context, Open};
use crate::failure::{Failure, Outcome, exit};
use crate::show::{count, since, time};

/// How often a follower looks for new events.
const POLL: Duration = Duration::from_secs(1);
/// How long a follower waits after an error.
const PAUSE: Duration = Duration::from_secs(5);
/// A follower trims when so many events can go, …
const TRIM_EVENTS: u64 = 10_000;
/// … or when it has not for so many rounds: each trim makes a signed checkpoint of all counters.
const TRIM_ROUNDS: u32 = 3_600;

pub(crate) async fn run(context: &mut Context<'_>, args: DrainArgs) -> Outcome {
    if let Some(id) = &args.forget {
        return forget(context, id, args.reason.as_deref().unwrap_or_default()).await;
    }
    let keep_ms = keep(&args)?;
    let Some(url) = Context::archive_url(args.to.as_deref())? else {
        return Err(Failure::usage(
            "where to? Say --to sqlite:FILE or --to postgres://user@host/database, or set KEYBRAKE_ARCHIVE",
        ));
    };
    let open = context.open().await?;
    let archive = Archive::open(&url).await?;
    let words = format!("archive {} (id {})", archive.place(), archive.id());
    context.name("archive", archive.place(), &words)?;
    let options = DrainOptions {
        batch: args.batch,
        accept_gap: args.accept_gap,
    };
    if args.follow {
        return follow(context, &open, &archive, (options, keep_ms)).await;
    }
    let bar = bar(context, &open, &archive).await;
    let done = once(&open, &archive, (options, keep_ms), &bar).await;
    bar.finish_and_clear();
    let (step, trimmed) = done?;
    if context.json {
        context.answer(told(&step, trimmed.as_ref()))?;
    } else {
        tell(context, &step, trimmed.as_ref())?;
    }
    Ok(exit::OK)
}

/// What is kept when trimming; `None` when nothing is trimmed.
fn keep(args: &DrainArgs) -> Result<Option<i64>, Failure> {
    match (&args.keep, args.trim) {
        (Some(text), _) => {
            // Seen from the beginning of time, a span is a moment before it.
            let span = since(text, 0).ok().filter(|moment| *moment <= 0);
            let span = span.and_then(i64::checked_neg);
            span.map(Some)
                .ok_or_else(|| Failure::usage(format!("--keep {text:?}: write a span, such as 7d or 12h")))
        }
        (None, true) => Ok(Some(0)),
        (None, false) => Ok(None),
    }
}

async fn once(
    open: &Open,
    archive: &Archive,
    (options, keep_ms): (DrainOptions, Option<i64>),
    bar: &ProgressBar,
) -> Result<(Step, Option<Trimmed>), Error> {
    let mut drain = Drain::new(open.ledger.as_ref(), archive, options).await?;
    drain.run_and_trim(keep_ms, |step| bar.inc(step.drained)).await
}

async fn follow(
    context: &mut Context<'_>,
    open: &Open,
    archive: &Archive,
    (options, keep_ms): (DrainOptions, Option<i64>),
) -> Outcome {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut rounds = TRIM_ROUNDS;
    let mut told_error = None;
    loop {
        let round = follow_once(open, archive, (options, keep_ms), &mut rounds);
        let done = tokio::select! {
            done = round => done,
            _ = interrupt.recv() => return Ok(exit::OK),
            _ = terminate.recv() => return Ok(exit::OK),
        };
        let wait = match done {
            Ok((step, trimmed)) => {
                told_error = None;
                if step.drained > 0 || step.lost > 0 || trimmed.is_some() {
                    tell_round(context, &step, trimmed.as_ref())?;
                }
                POLL
            }
            // What is unreachable may come back; what is wrong stays wrong.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::LedgerUnavailable | ErrorKind::LedgerRecovering
                ) =>
            {
                let words = error.to_string();
                if told_error.as_ref() != Some(&words) {
                    writeln!(context.io.err, "{}; trying again", printable(&words))?;
                    told_error = Some(words);
                }
                PAUSE
            }
            Err(error) => return Err(error.into()),
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = interrupt.recv() => return Ok(exit::OK),
            _ = terminate.recv() => return Ok(exit::OK),
        }
    }
}

async fn follow_once(
    open: &Open,
    archive: &Archive,
    (options, keep_ms): (DrainOptions, Option<i64>),
    rounds: &mut u32,
) -> Result<(Step, Option<Trimmed>), Error> {
    let ledger = open.ledger.as_ref();
    let mut drain = Drain::new(ledger, archive, options).await?;
    let step = drain.run(|_| {}).await?;
    let Some(keep_ms) = keep_ms else {
        return Ok((step, None));
    };
    *rounds = rounds.saturating_add(1);
    let backlog = ledger.backlog().await?;
    let removable = backlog
        .drained_seq()
        .saturating_add(1)
        .saturating_sub(backlog.first_seq);
    if removable == 0 || (removable < TRIM_EVENTS && *rounds < TRIM_ROUNDS) {
        return Ok((step, None));
    }
    *rounds = 0;
    let trimmed = trim(ledger, keep_ms).await?;
    Ok((step, Some(trimmed).filter(|trimmed| trimmed.removed > 0)))
}

async fn forget(context: &mut Context<'_>, id: &str, reason: &str) -> Outcome {
    let open = context.open().await?;
    if !open.ledger.forget_archive(id, Context::admin(reason)).await? {
        let known: Vec<String> = open.ledger.backlog().await?.archives.into_keys().collect();
        return Err(Failure::not_found(format!(
            "the ledger knows no archive {id:?}; it knows {}",
            if known.is_empty() {
                "none".to_owned()
            } else {
                known.join(", ")
            }
        )));
    }
    if context.json {
        context.answer(json!({"forgotten": id}))?;
    } else {
        let headline = context.paint.green("FORGOTTEN");
        context.line(format!(
            "{headline} archive {}: trimming no longer waits for it",
            printable(id)
        ))?;
    }
    Ok(exit::OK)
}

async fn bar(context: &Context<'_>, open: &Open, archive: &Archive) -> ProgressBar {
    if !context.io.err_is_terminal || context.json {
        return ProgressBar::hidden();
    }
    let name = keybrake::audit::archive::LogName {
        ledger: open.info.id.clone(),
        namespace: open.ledger.namespace().unwrap_or_default().to_owned(),
    };
    let done = match archive.log(&name).await {
        Ok(Some(state)) => state.seq,
        _ => 0,
    };
    let bar = ProgressBar::new(open.info.last_seq.saturating_sub(done));
    let style = ProgressStyle::with_template("draining {wide_bar} {pos}/{len} events {per_sec} {eta}");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar
}

fn told(step: &Step, trimmed: Option<&Trimmed>) -> Value {
    json!({
        "drained": step.drained,
        "seq": step.state.seq,
        "lost_by_the_ledger": step.lost,
        "trimmed": trimmed.map(|trimmed| trimmed.removed),
        "log_begins_at_event": trimmed.map(|trimmed| trimmed.first_seq),
    })
}

fn tell_round(context: &mut Context<'_>, step: &Step, trimmed: Option<&Trimmed>) -> Result<(), Failure> {
    if context.json {
        Ok(writeln!(context.io.out, "{}", told(step, trimmed))?)
    } else {
        tell(context, step, trimmed)
    }
}

fn tell(context: &mut Context<'_>, step: &Step, trimmed: Option<&Trimmed>) -> Result<(), Failure> {
    let headline = context.paint.green("DRAINED");
    let upto = match step.state.seq {
        0 => String::new(),
        seq => format!(
            "; the archive has the log up to event {seq} ({})",
            time(step.state.at_ms)
        ),
    };
    context.line(format!("{headline} {}{upto}", count(step.drained, "event")))?;
    if step.lost > 0 {
        let text = format!(
            "  the ledger has lost {} since it was drained; the archive keeps them, marked as lost",
            count(step.lost, "event")
        );
        let text = context.paint.yellow(&text);
        context.line(text)?;
    }
    if let Some(trimmed) = trimmed {
        context.line(format!(
            "  {} trimmed; the ledger's log begins at event {}",
            count(trimmed.removed, "event"),
            trimmed.first_seq
        ))?;
    }
    Ok(())
}
