//! `ledger open`: after the restart of its server, when no process is left that saw what it held. `ledger restore` has a
//! file of its own.

use keybrake::audit::printable;
use keybrake::ledger::HoldFilter;
use serde_json::json;

use super::restore;
use crate::args::LedgerCommand;
use crate::context::Context;
use crate::failure::{Outcome, exit};
use crate::show::{count, ledger_name};

pub(crate) async fn run(context: &mut Context<'_>, command: LedgerCommand) -> Outcome {
    let reason = match command {
        LedgerCommand::Open { reason } => reason,
        LedgerCommand::Restore(args) => return restore::run(context, args).await,
    };
    let open = context.open().await?;
    let missing = open.ledger.missing_events().await?;
    let opened = open.ledger.open_by_hand(Context::admin(&reason)).await?;
    let info = open.ledger.info().await?;
    let held = open.ledger.holds(HoldFilter::default()).await?.len();
    if context.json {
        context.answer(json!({
            "opened": opened, "was_open": !opened, "events": info.last_seq, "open_holds": held,
            "missing_events": missing,
        }))?;
        return Ok(exit::OK);
    }
    let name = printable(&ledger_name(&info.url));
    if !opened {
        context.line(format!("{name} is open already; nothing was changed"))?;
        return Ok(exit::OK);
    }
    let headline = context.paint.green("OPENED");
    let events = count(info.last_seq, "event");
    let holds = count(u64::try_from(held).unwrap_or(u64::MAX), "open hold");
    context.line(format!("{headline} {name} with {events} and {holds}"))?;
    context.line("  calls are decided again from the next one on, in every process; the audit says who opened it and why")?;
    if !missing.is_empty() {
        context.line(format!(
            "  missing, and remembered by no process that reported: events {}",
            ranges(&missing)
        ))?;
    }
    context.line(
        "  what its server lost is not counted: keybrake reconcile asks the vendors about open holds",
    )?;
    Ok(exit::OK)
}

/// `91-95, 97`.
pub(crate) fn ranges(ranges: &[(u64, u64)]) -> String {
    let text = |(first, last): &(u64, u64)| {
        if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        }
    };
    let texts: Vec<String> = ranges.iter().map(text).collect();
    texts.join(", ")
}
