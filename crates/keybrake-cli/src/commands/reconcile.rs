//! `reconcile`: asks the vendors what became of unknown calls.

use indicatif::{ProgressBar, ProgressStyle};
use keybrake::Usd;
use keybrake::facade::{Keybrake, Reconciled, Resolution};
use keybrake::ledger::HoldFilter;
use serde_json::json;

use crate::args::ReconcileArgs;
use crate::context::Context;
use crate::failure::{Outcome, exit};
use crate::show::{Rows, count, usd};

pub(crate) async fn run(context: &mut Context<'_>, args: ReconcileArgs) -> Outcome {
    let open = context.open().await?;
    let keybrake = Keybrake::builder()
        .shared_ledger(open.ledger.clone())
        .build()
        .await?;
    let bar = bar(context);
    let filter = HoldFilter {
        run: args.run,
        ..HoldFilter::default()
    };
    let progress = |done: usize, all: usize| {
        bar.set_length(u64::try_from(all).unwrap_or(u64::MAX));
        bar.set_position(u64::try_from(done).unwrap_or(u64::MAX));
    };
    let found = keybrake.reconcile(filter, progress).await;
    bar.finish_and_clear();
    let found = found?;
    let left = found
        .iter()
        .filter(|call| matches!(call.resolution, Resolution::Open(_)))
        .count();
    if context.json {
        let calls = found.iter().map(|call| {
            json!({"call_id": call.call_id, "vendor": call.vendor, "operation": call.operation, "run": call.run,
                   "held_usd": Usd::from_micros(call.held_micros).to_string(), "resolution": call.resolution})
        });
        context.answer(json!({"calls": calls.collect::<Vec<_>>(), "left_open": left}))?;
        return Ok(exit::OK);
    }
    if found.is_empty() {
        context.line("no unknown calls")?;
        return Ok(exit::OK);
    }
    let mut rows = Rows::new(&["CALL", "RUN", "OPERATION", ">HELD", "FOUND"]);
    for call in &found {
        rows.row([
            call.call_id.clone(),
            call.run.clone().unwrap_or_else(|| "-".to_owned()),
            call.operation.clone(),
            usd(Usd::from_micros(call.held_micros)),
            words(call),
        ]);
    }
    let text = rows.text(context.paint);
    context.line(text)?;
    if left > 0 {
        let calls = count(u64::try_from(left).unwrap_or(u64::MAX), "call");
        context.line(format!(
            "{calls} left open; their holds stand. Ask again later, or decide by hand: keybrake holds resolve CALL_ID"
        ))?;
    }
    Ok(exit::OK)
}

fn words(call: &Reconciled) -> String {
    match &call.resolution {
        Resolution::Found(state) if state == "voided" => "it failed, and no money is out: voided".to_owned(),
        Resolution::Found(state) => format!("it took effect: {state}"),
        Resolution::Absent => "it never took effect: voided".to_owned(),
        Resolution::Open(reason) => format!("open: {reason}"),
    }
}

fn bar(context: &Context<'_>) -> ProgressBar {
    if !context.io.err_is_terminal || context.json {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("asking the vendors {bar:20} {pos}/{len}") {
        bar.set_style(style);
    }
    bar
}
