//! `ledger restore`: says again, from an archive, what a ledger's server lost.

use std::sync::Arc;

use indicatif::ProgressBar;
use keybrake::audit::restore::{self, Progress, Restored};
use keybrake::audit::{Archive, Restore, printable, time_text};
use keybrake::ledger::Life;
use serde_json::{Value, json};

use super::audit::spinner;
use super::ledger::ranges;
use crate::args::RestoreArgs;
use crate::context::{Context, without_password};
use crate::failure::{Failure, Outcome, exit};
use crate::show::{count, ledger_name, time};

pub(crate) async fn run(context: &mut Context<'_>, args: RestoreArgs) -> Outcome {
    let Some(from) = Context::archive_url(args.from.as_deref())? else {
        return Err(Failure::usage(
            "from where? Say --from sqlite:FILE or --from postgres://user@host/database, or set KEYBRAKE_ARCHIVE",
        ));
    };
    let url = context.ledger_url()?;
    let shown = without_password(&url);
    context.name("ledger", &shown, &format!("ledger {shown}"))?;
    let archive = Archive::open_existing(&from).await?;
    context.name(
        "archive",
        archive.place(),
        &format!("archive {} (id {})", archive.place(), archive.id()),
    )?;
    let ledger = restore::open(&url, Arc::clone(&context.clock), &archive, args.log.as_deref()).await?;
    let bar = spinner(context, "events checked");
    let restoring = Restore::new(ledger.as_ref(), &archive).await?;
    let done = restoring.run(|progress| show(&bar, progress)).await;
    bar.finish_and_clear();
    let restored = done?;
    if context.json {
        context.answer(told(&restored))?;
    } else {
        tell(context, &restored, &ledger_name(&shown))?;
    }
    Ok(if restored.not_archived.is_empty() {
        exit::OK
    } else {
        exit::REFUSED
    })
}

fn told(restored: &Restored) -> Value {
    json!({
        "restored": {
            "calls": restored.calls, "keys": restored.keys, "budgets": restored.budgets, "stops": restored.stops,
        },
        "ledger_had_up_to_event": restored.after_seq,
        "archive_ends_at_event": restored.upto_seq,
        "archive_ends_at": time_text(restored.at_ms),
        "not_archived_events": restored.not_archived,
        "missing_events": restored.missing,
        "state": restored.life,
    })
}

fn show(bar: &ProgressBar, progress: Progress) {
    match progress {
        Progress::Checked(events) => bar.set_position(events),
        Progress::Said(calls) => {
            bar.set_message("calls said again, or there already");
            bar.set_position(calls);
        }
    }
}

fn tell(context: &mut Context<'_>, restored: &Restored, name: &str) -> Result<(), Failure> {
    let said = [
        (restored.calls, "call"),
        (restored.keys, "key"),
        (restored.budgets, "budget"),
        (restored.stops, "stop change"),
    ];
    let said: Vec<String> = said
        .iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, what)| count(*number, what))
        .collect();
    let said = if said.is_empty() {
        "nothing was missing that the archive has".to_owned()
    } else {
        format!("{} said again", said.join(", "))
    };
    let headline = context.paint.green("RESTORED");
    context.line(format!("{headline} {}: {said}", printable(name)))?;
    context.line(format!(
        "  up to event {} ({}), where the archive ends; the ledger had its log up to event {}",
        restored.upto_seq,
        time(restored.at_ms),
        restored.after_seq
    ))?;
    context.line(format!(
        "  uncertain: whatever was decided after event {}. It is not in the archive, however much it was; keybrake reconcile \
         asks the vendors about open holds",
        restored.upto_seq
    ))?;
    if !restored.not_archived.is_empty() {
        let text = format!(
            "  not restored: events {}; the archive lacks them, or what their calls had taken",
            ranges(&restored.not_archived)
        );
        let text = context.paint.yellow(&text);
        context.line(text)?;
    }
    if !restored.missing.is_empty() {
        let text = format!(
            "  missing, seen by processes and said again by nobody: events {}",
            ranges(&restored.missing)
        );
        let text = context.paint.yellow(&text);
        context.line(text)?;
    }
    context.line(match restored.life {
        Life::Open => "  it is open: calls are decided",
        Life::Closed | Life::Gone => {
            "  it stays closed until the processes that were at work have reported and lack nothing: that happens by itself. \
             When none is left, compare it with the vendors, then: keybrake ledger open --reason \"…\""
        }
    })
}
