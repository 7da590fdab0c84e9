//! `holds list|resolve`.

use keybrake::Usd;
use keybrake::audit::{printable, time_text};
use keybrake::ledger::{CostSource, HoldFilter, Proof, ReplyFacts, Reservation, Settlement, State};
use serde_json::{Value, json};

use crate::args::{HoldsCommand, ResolveArgs};
use crate::context::Context;
use crate::failure::{Failure, Outcome, exit};
use crate::journal;
use crate::show::{Rows, span, time, usd};

pub(crate) async fn run(context: &mut Context<'_>, command: HoldsCommand) -> Outcome {
    match command {
        HoldsCommand::List { run, limit } => list(context, run, limit).await,
        HoldsCommand::Resolve(args) => resolve(context, args).await,
    }
}

async fn list(context: &mut Context<'_>, run: Option<String>, limit: u32) -> Outcome {
    let open = context.open().await?;
    // Holds whose deadline has passed are unknown from now on.
    open.ledger.sweep(10_000).await?;
    let holds = open
        .ledger
        .holds(HoldFilter {
            run,
            state: None,
            limit,
        })
        .await?;
    let now_ms = open.ledger.info().await?.now_ms;
    let waiting = journal::waiting_calls(context, &*open.ledger).await?;
    let waits = |hold: &Reservation| waiting.contains(&hold.facts.call_id);
    if context.json {
        let holds = holds
            .iter()
            .map(|hold| hold_json(hold, now_ms, waits(hold)))
            .collect::<Vec<_>>();
        context.answer(json!({"holds": holds}))?;
        return Ok(exit::OK);
    }
    if holds.is_empty() {
        context.line("no open holds")?;
        return Ok(exit::OK);
    }
    let mut rows = Rows::new(&[
        "CALL",
        "RUN",
        "OPERATION",
        "STATE",
        ">HELD",
        "SINCE",
        "REASON",
        "OBJECT",
    ]);
    for hold in &holds {
        rows.row([
            hold.facts.call_id.clone(),
            hold.facts.run.clone().unwrap_or_else(|| "-".to_owned()),
            hold.facts.operation.clone(),
            hold.state.as_str().to_owned(),
            usd(hold.held),
            format!("{} ago", span(now_ms.saturating_sub(hold.reserved_at_ms))),
            reason(hold, now_ms, waits(hold)),
            hold.reply_facts
                .vendor_object
                .clone()
                .unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    let text = rows.text(context.paint);
    context.line(text)?;
    if holds.iter().any(|hold| hold.state == State::Unknown) {
        context.line("find out what became of them: keybrake reconcile")?;
    }
    Ok(exit::OK)
}

/// Why it still holds something.
fn reason(hold: &Reservation, now_ms: i64, journaled: bool) -> String {
    if journaled {
        return "its outcome waits on this machine: keybrake doctor delivers it".to_owned();
    }
    match hold.state {
        State::Held => format!(
            "in flight, unknown in {}",
            span(hold.not_after_ms.saturating_sub(now_ms))
        ),
        State::Pending => "the vendor accepted it, the outcome comes later".to_owned(),
        _ => hold
            .unknown_reason
            .clone()
            .unwrap_or_else(|| "its deadline passed".to_owned()),
    }
}

fn hold_json(hold: &Reservation, now_ms: i64, journaled: bool) -> Value {
    json!({
        "call_id": hold.facts.call_id, "run": hold.facts.run, "vendor": hold.facts.vendor,
        "operation": hold.facts.operation, "customer": hold.facts.customer, "livemode": hold.facts.livemode,
        "state": hold.state.as_str(), "reason": reason(hold, now_ms, journaled),
        "journaled": journaled, "held_usd": hold.held.to_string(),
        "reserved_at": time_text(hold.reserved_at_ms), "not_after": time_text(hold.not_after_ms),
        "attempts": hold.attempts, "vendor_object": hold.reply_facts.vendor_object,
    })
}

async fn resolve(context: &mut Context<'_>, args: ResolveArgs) -> Outcome {
    let evidence = args.evidence.trim();
    if evidence.is_empty() {
        return Err(Failure::usage(
            "--evidence is empty: say how you know; it goes into the audit",
        ));
    }
    let spent = args.spent.as_deref().map(|text| {
        let spent: Usd = text
            .parse()
            .map_err(|cause| Failure::usage(format!("--spent: {cause}")))?;
        if spent.is_negative() {
            return Err(Failure::usage("--spent is zero or more"));
        }
        Ok(spent)
    });
    let spent = spent.transpose()?;
    let open = context.open().await?;
    open.ledger.sweep(10_000).await?;
    let hold = open.ledger.reservation(&args.call_id).await?;
    let hold =
        hold.ok_or_else(|| Failure::not_found(format!("the ledger knows no call {:?}", args.call_id)))?;
    let over = open.ledger.info().await?.now_ms >= hold.not_after_ms;
    match hold.state {
        State::Unknown | State::Pending if over => {}
        // Whoever cancelled it does not hear what its request still does.
        State::Held | State::Unknown | State::Pending => {
            return Err(Failure::refused(format!(
                "the call may still be in flight until {}; resolve it after that",
                time(hold.not_after_ms)
            )));
        }
        State::Provisional | State::Settled | State::Voided => {
            return Err(Failure::refused(format!(
                "the call is {} already; nothing is held for it",
                hold.state.as_str()
            )));
        }
    }
    let admin = Context::admin("");
    let answer = open.ledger.settle(Settlement {
        call_id: args.call_id.clone(),
        attempt: 0,
        proof: Proof::Operator {
            spent,
            evidence: evidence.to_owned(),
            by: admin.by,
        },
        object: None,
        reply: None,
        facts: ReplyFacts {
            cost_source: CostSource::Reconciled,
            ..ReplyFacts::default()
        },
    });
    let answer = answer.await?;
    if answer.already {
        return Err(Failure::refused(format!(
            "somebody decided it meanwhile: the call is {}, and your evidence was not recorded",
            answer.state.as_str()
        )));
    }
    if context.json {
        context.answer(json!({
            "call_id": args.call_id, "state": answer.state.as_str(), "spent_usd": answer.used.to_string(),
            "held_usd": answer.held.to_string(), "overrun_usd": answer.overrun.to_string(),
        }))?;
    } else {
        let (state, used, held) = (answer.state.as_str(), usd(answer.used), usd(answer.held));
        let id = printable(&args.call_id);
        context.line(format!(
            "{id} is {state}: {used} spent, {held} held; your evidence is in the audit"
        ))?;
    }
    Ok(exit::OK)
}
