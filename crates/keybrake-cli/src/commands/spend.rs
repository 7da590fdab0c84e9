//! `spend`: what was spent, and where it is going.

use keybrake::audit::{Outlook, RowFilter, SpendBy, SpendLine};
use serde_json::json;

use crate::args::{By, SpendArgs};
use crate::context::Context;
use crate::failure::{Failure, Outcome, exit};
use crate::reading;
use crate::show::{Rows, since, usd};

pub(crate) async fn run(context: &mut Context<'_>, args: SpendArgs) -> Outcome {
    let reading = reading::open(context, &args.source).await?;
    let by = match args.by {
        By::Run => SpendBy::Run,
        By::Agent => SpendBy::Agent,
        By::Vendor => SpendBy::Vendor,
        By::Day => SpendBy::Day,
        By::Customer => SpendBy::Customer,
        By::Label => SpendBy::Label,
        By::Group => SpendBy::Group,
    };
    let filter = RowFilter {
        run: args.run,
        agent: args.agent,
        vendor: args.vendor,
        customer: args.customer,
        since_ms: Some(since(&args.since, reading.now_ms())?),
        ..RowFilter::default()
    };
    let now_ms = reading.now_ms();
    let (mut lines, outlook) = reading.audit().spend_and_outlook(filter, by, now_ms).await?;
    let left_out = lines.len().saturating_sub(args.limit);
    lines.truncate(args.limit);
    if context.json {
        context.answer(json!({"by": by, "spend": lines, "left_out": left_out, "outlook": outlook}))?;
        return Ok(exit::OK);
    }
    if lines.is_empty() {
        context.line("no calls")?;
        return Ok(exit::OK);
    }
    let text = table(&lines, by).text(context.paint);
    context.line(text)?;
    if left_out > 0 {
        context.line(format!("… and {left_out} more; see --limit"))?;
    }
    for line in &outlook {
        tell_outlook(context, line)?;
    }
    Ok(exit::OK)
}

fn table(lines: &[SpendLine], by: SpendBy) -> Rows {
    let name = match by {
        SpendBy::Run => "RUN",
        SpendBy::Agent => "AGENT",
        SpendBy::Vendor => "VENDOR",
        SpendBy::Day => "DAY",
        SpendBy::Customer => "CUSTOMER",
        SpendBy::Label => "LABEL",
        SpendBy::Group => "GROUP",
    };
    let mut rows = Rows::new(&[
        name,
        "MONEY",
        ">CALLS",
        ">REFUSED",
        ">REPLAYED",
        ">COLLECTED",
        ">SENT OUT",
        ">COUNTED",
        ">HELD",
        ">PER CALL",
    ]);
    for line in lines {
        rows.row([
            line.name.clone().unwrap_or_else(|| "-".to_owned()),
            mode(line.livemode).to_owned(),
            line.calls.to_string(),
            line.denied.to_string(),
            line.replayed.to_string(),
            usd(line.collected_usd),
            usd(line.sent_usd),
            usd(line.counted_usd),
            usd(line.held_usd),
            usd(line.per_call_usd),
        ]);
    }
    rows
}

const fn mode(livemode: bool) -> &'static str {
    if livemode { "live" } else { "test" }
}

fn tell_outlook(context: &mut Context<'_>, line: &Outlook) -> Result<(), Failure> {
    context.line(format!(
        "{} money: {} this month so far, {} if it goes on like this; {} in the last 24 h, {} on a usual day",
        mode(line.livemode),
        usd(line.month_so_far_usd),
        usd(line.projected_month_usd),
        usd(line.last_24h_usd),
        usd(line.usual_day_usd),
    ))
}
