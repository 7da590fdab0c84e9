//! `stop`, `resume`, `stops`: what 2 am looks like.

use keybrake::audit::printable;
use keybrake::ledger::{EventFilter, Ledger, Reservation, StopAnswer, StopScope, Told};
use serde_json::{Value, json};

use crate::args::{ResumeArgs, ScopeArgs, StopArgs};
use crate::context::{Context, Open};
use crate::failure::{Failure, Outcome, exit};
use crate::show::{Rows, count, ledger_name, short, span, time, usd};

pub(crate) async fn stop(context: &mut Context<'_>, args: StopArgs) -> Outcome {
    let scope = scope_of(&args.scope)?;
    if scope == StopScope::All && !args.yes && !sure(context)? {
        return Err(Failure::refused("nothing was stopped"));
    }
    let open = context.open().await?;
    let admin = Context::admin(&args.reason);
    let began_ms = context.clock.boot_ms();
    let answer = if args.hard {
        open.ledger.stop_hard(scope.clone(), admin.clone()).await?
    } else {
        open.ledger.stop(scope.clone(), admin.clone()).await?
    };
    let took_ms = context.clock.boot_ms().saturating_sub(began_ms);
    let earlier = answer.stop.since_ms < open.info.now_ms || answer.stop.admin != admin;
    let known = answer.keys_refused > 0
        || !answer.in_flight.is_empty()
        || knows(open.ledger.as_ref(), &scope).await?;
    if context.json {
        context.answer(json!({
            "stopped": scope.name(), "took_ms": took_ms, "already": earlier, "known": known,
            "since": keybrake::audit::time_text(answer.stop.since_ms),
            "by": answer.stop.admin.by, "reason": answer.stop.admin.reason,
            "keys_refused": answer.keys_refused, "other_runs": answer.other_runs,
            "in_flight": answer.in_flight.iter().map(in_flight_json).collect::<Vec<_>>(),
            "hard": answer.stop.hard, "processes_told": told(&answer.told),
        }))?;
        return Ok(exit::OK);
    }
    let headline = context.paint.red("STOPPED");
    let name = printable(word(&scope));
    context.line(format!(
        "{headline} {name} on {} in {}",
        printable(&ledger_name(&open.info.url)),
        span(took_ms)
    ))?;
    if earlier {
        let stop = &answer.stop;
        let why = if stop.admin.reason.is_empty() {
            String::new()
        } else {
            format!(": {}", stop.admin.reason)
        };
        let text = format!(
            "was stopped already, since {} by {}{why}",
            time(stop.since_ms),
            stop.admin.by
        );
        context.line(format!("  {}", printable(&text)))?;
    }
    tell_stop(context, &scope, &answer, known)?;
    let undo = format!("keybrake resume {}", typed(&scope));
    let why = match &scope {
        StopScope::Run(run) => format!("why: keybrake why {}          ", quoted(run)),
        _ => String::new(),
    };
    let others = match (&scope, answer.other_runs) {
        (StopScope::All, _) => "nothing is left running".to_owned(),
        (_, runs) => format!("{} untouched", count(u64::from(runs), "other run")),
    };
    context.line(format!("  {others}          {why}undo: {undo}"))?;
    Ok(exit::OK)
}

/// Keys and calls that the stop met.
fn tell_stop(
    context: &mut Context<'_>,
    scope: &StopScope,
    answer: &StopAnswer,
    known: bool,
) -> Result<(), Failure> {
    let name = printable(word(scope));
    let keys = count(u64::from(answer.keys_refused), "key");
    match (known, scope) {
        (false, _) => context.line(format!(
            "  the ledger knows no {name} yet; it is blocked from its first call on, and its keys when they are issued"
        ))?,
        (_, StopScope::Vendor(_)) => context.line(format!("  calls to {name} are refused from the next on"))?,
        (_, StopScope::All) => {
            context.line(format!("  {keys} refused from the next call on; new keys are refused too"))?;
        }
        _ => context.line(format!("  {keys} refused from the next call on; new keys for {name} are refused too"))?,
    }
    let calls = u64::try_from(answer.in_flight.len()).unwrap_or(u64::MAX);
    let hard = answer.told != Told::NotAsked;
    if calls > 0 {
        let fate = match (hard, calls) {
            (true, 1) => "was in flight and is aborted; whether it took effect is unknown:".to_owned(),
            (true, _) => "were in flight and are aborted; whether they took effect is unknown:".to_owned(),
            (false, _) => format!(
                "in flight may still complete (abort: keybrake stop {} --hard):",
                typed(scope)
            ),
        };
        context.line(format!("  {} {fate}", count(calls, "call")))?;
        for call in answer.in_flight.iter().take(10) {
            let text = format!(
                "{} {} (call {})",
                call.facts.operation,
                usd(call.held),
                short(&call.facts.call_id)
            );
            context.line(format!("    {}", printable(&text)))?;
        }
        if calls > 10 {
            context.line(format!(
                "    and {} more: keybrake holds list",
                calls.saturating_sub(10)
            ))?;
        }
    } else if hard {
        context.line("  no call was in flight")?;
    }
    match &answer.told {
        Told::NotAsked => {}
        Told::Processes(told) => {
            let told = count(u64::from(*told), "process");
            context.line(format!("  {told} told at once          then: keybrake reconcile"))?;
        }
        Told::TheyLook => {
            context.line(
                "  processes with calls in flight see it within a second          then: keybrake reconcile",
            )?;
        }
        Told::Failed(why) => {
            let why = printable(why);
            context.line(format!(
                "  processes could not be told ({why}); they see it within some seconds          then: keybrake reconcile"
            ))?;
        }
    }
    Ok(())
}

/// How many processes were told at once; `null` when they look for themselves.
const fn told(told: &Told) -> Option<u32> {
    match told {
        Told::Processes(told) => Some(*told),
        Told::NotAsked | Told::TheyLook | Told::Failed(_) => None,
    }
}

pub(crate) async fn resume(context: &mut Context<'_>, args: ResumeArgs) -> Outcome {
    let scope = scope_of(&args.scope)?;
    let open = context.open().await?;
    let was = open.ledger.resume(&scope, Context::admin(&args.reason)).await?;
    if !was {
        return Err(Failure::not_found(format!(
            "{} is not stopped; see keybrake stops",
            word(&scope)
        )));
    }
    if context.json {
        context.answer(json!({"resumed": scope.name()}))?;
    } else {
        let headline = context.paint.green("RESUMED");
        context.line(format!(
            "{headline} {} on {}",
            printable(word(&scope)),
            printable(&ledger_name(&open.info.url))
        ))?;
        tell_other_stops(context, &open).await?;
    }
    Ok(exit::OK)
}

/// Another stop may still cover what was resumed.
async fn tell_other_stops(context: &mut Context<'_>, open: &Open) -> Result<(), Failure> {
    let left = open.ledger.stops().await?;
    if !left.is_empty() {
        let names: Vec<String> = left.iter().map(|stop| stop.scope.name()).collect();
        context.line(format!("  still stopped: {}", printable(&names.join(", "))))?;
    }
    Ok(())
}

pub(crate) async fn list(context: &mut Context<'_>) -> Outcome {
    let open = context.open().await?;
    let stops = open.ledger.stops().await?;
    if context.json {
        let stops = stops.iter().map(|stop| {
            json!({"scope": stop.scope.name(), "since": keybrake::audit::time_text(stop.since_ms),
                   "by": stop.admin.by, "reason": stop.admin.reason})
        });
        context.answer(json!({"stops": stops.collect::<Vec<_>>()}))?;
    } else if stops.is_empty() {
        context.line("nothing is stopped")?;
    } else {
        let mut rows = Rows::new(&["STOPPED", "SINCE", "BY", "REASON"]);
        for stop in &stops {
            rows.row([
                &stop.scope.name(),
                &time(stop.since_ms),
                &stop.admin.by,
                &stop.admin.reason,
            ]);
        }
        let text = rows.text(context.paint);
        context.line(text)?;
    }
    Ok(exit::OK)
}

fn sure(context: &mut Context<'_>) -> Result<bool, Failure> {
    if !context.io.input_is_terminal {
        return Err(Failure::usage(
            "--all stops everything in the ledger; confirm it with --yes",
        ));
    }
    let url = context.ledger_url()?;
    context.confirm(&format!(
        "Stop everything on {}?",
        printable(&ledger_name(&crate::context::without_password(&url)))
    ))
}

fn scope_of(args: &ScopeArgs) -> Result<StopScope, Failure> {
    let given = [
        args.run.clone().map(StopScope::Run),
        args.agent.clone().map(StopScope::Agent),
        args.label.clone().map(StopScope::Label),
        args.group.clone().map(StopScope::Group),
        args.vendor.clone().map(StopScope::Vendor),
        args.key.clone().map(StopScope::Key),
        args.all.then_some(StopScope::All),
    ];
    let mut given = given.into_iter().flatten();
    match (given.next(), given.next()) {
        (Some(scope), None) => Ok(scope),
        _ => Err(Failure::usage(
            "name one run, or one of --agent, --label, --group, --vendor, --key, --all",
        )),
    }
}

/// Whether the ledger has heard of it.
async fn knows(ledger: &dyn Ledger, scope: &StopScope) -> Result<bool, Failure> {
    let keys = || ledger.keys();
    Ok(match scope {
        StopScope::Run(run) => {
            let filter = EventFilter {
                run: Some(run.clone()),
                limit: 1,
                ..EventFilter::default()
            };
            !ledger.events(filter).await?.is_empty()
                || keys().await?.iter().any(|key| key.run.as_ref() == Some(run))
        }
        StopScope::Agent(agent) => keys().await?.iter().any(|key| key.agent.as_ref() == Some(agent)),
        StopScope::Label(label) => keys().await?.iter().any(|key| key.label.as_ref() == Some(label)),
        StopScope::Group(group) => keys().await?.iter().any(|key| key.groups.contains(group)),
        StopScope::Key(id) => ledger.key(id).await?.is_some(),
        StopScope::Vendor(_) | StopScope::All => true,
    })
}

/// The scope as a person says it.
fn word(scope: &StopScope) -> &str {
    match scope {
        StopScope::Run(id)
        | StopScope::Agent(id)
        | StopScope::Label(id)
        | StopScope::Group(id)
        | StopScope::Vendor(id)
        | StopScope::Key(id) => id,
        StopScope::All => "everything",
    }
}

/// The scope as it is typed.
fn typed(scope: &StopScope) -> String {
    match scope {
        StopScope::Run(id) => quoted(id),
        StopScope::Agent(id) => format!("--agent {}", quoted(id)),
        StopScope::Label(id) => format!("--label {}", quoted(id)),
        StopScope::Group(id) => format!("--group {}", quoted(id)),
        StopScope::Vendor(id) => format!("--vendor {}", quoted(id)),
        StopScope::Key(id) => format!("--key {}", quoted(id)),
        StopScope::All => "--all".to_owned(),
    }
}

/// A word as a shell takes it.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.:-@/".contains(c);
    let text = printable(text);
    if !text.is_empty() && text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

fn in_flight_json(call: &Reservation) -> Value {
    json!({"call_id": call.facts.call_id, "operation": call.facts.operation, "run": call.facts.run,
           "held_usd": call.held.to_string(), "state": call.state.as_str()})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_typed_survives_a_shell() {
        assert_eq!(typed(&StopScope::Run("run_42".into())), "run_42");
        assert_eq!(typed(&StopScope::Agent("a b; rm".into())), "--agent 'a b; rm'");
        assert_eq!(quoted("it's"), "'it'\\''s'");
    }
}
