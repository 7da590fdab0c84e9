//! `why`: what happened, which rule decided, do the books agree.

use std::collections::BTreeSet;

use keybrake::audit::{RowFilter, Story, StoryStep, Subject, printable};
use keybrake::ledger::{EventFilter, StopScope};
use serde_json::json;

use crate::args::WhyArgs;
use crate::context::Context;
use crate::failure::{Failure, Outcome, exit};
use crate::reading::{self, Reading};
use crate::show::{Rows, count, short, time};

pub(crate) async fn run(context: &mut Context<'_>, args: WhyArgs) -> Outcome {
    let reading = reading::open(context, &args.source).await?;
    let subject = find(&reading, &args.subject).await?;
    let story = reading.audit().why(subject, args.limit).await?;
    let Some(story) = story else {
        return without_calls(context, &reading, &args.subject).await;
    };
    if context.json {
        let answer = serde_json::to_value(&story)
            .map_err(|cause| Failure::refused(format!("the story cannot be written as JSON: {cause}")))?;
        context.answer(json!({"why": answer, "books_agree": story.books.differences.is_empty()}))?;
    } else {
        tell(context, &reading, &story).await?;
    }
    Ok(if story.books.differences.is_empty() {
        exit::OK
    } else {
        exit::REFUSED
    })
}

/// Whether a key or a stop names this run, though no call was made in it.
async fn is_run(reading: &Reading, run: &str) -> Result<bool, Failure> {
    let stopped = reading
        .stops()
        .await?
        .iter()
        .any(|stop| stop.scope == StopScope::Run(run.to_owned()));
    Ok(stopped
        || reading
            .keys()
            .await?
            .iter()
            .any(|key| key.run.as_deref() == Some(run)))
}

/// A run that only keys or stops know of.
async fn without_calls(context: &mut Context<'_>, reading: &Reading, run: &str) -> Outcome {
    if !is_run(reading, run).await? {
        return Err(nothing(run));
    }
    let keys = reading.keys().await?;
    let keys: Vec<&str> = keys
        .iter()
        .filter(|key| key.run.as_deref() == Some(run))
        .map(|key| key.id.as_str())
        .collect();
    if context.json {
        let subject = Subject::Run(run.to_owned());
        context
            .answer(json!({"why": {"subject": subject, "steps": []}, "keys": keys, "books_agree": true}))?;
    } else {
        let headline = context.paint.bold(&printable(&format!("run {run}")));
        context.line(headline)?;
        let keys = count(u64::try_from(keys.len()).unwrap_or(u64::MAX), "key");
        context.line(format!("  {keys}, no calls yet"))?;
        tell_stops(context, reading, run).await?;
    }
    Ok(exit::OK)
}

fn nothing(subject: &str) -> Failure {
    Failure::not_found(format!(
        "the ledger knows no run and no call {subject:?}; see keybrake audit list"
    ))
}

/// A run by its name; else a call by its id, or by enough of its beginning or end.
async fn find(reading: &Reading, text: &str) -> Result<Subject, Failure> {
    let by_run = EventFilter {
        run: Some(text.to_owned()),
        limit: 1,
        ..EventFilter::default()
    };
    if !reading.events(by_run).await?.is_empty() {
        return Ok(Subject::Run(text.to_owned()));
    }
    let by_call = EventFilter {
        call_id: Some(text.to_owned()),
        limit: 1,
        ..EventFilter::default()
    };
    // A call that joined an earlier one is told with it.
    if let Some(event) = reading.events(by_call).await?.into_iter().next() {
        return Ok(Subject::Call(event.call_id.unwrap_or_else(|| text.to_owned())));
    }
    if is_run(reading, text).await? {
        return Ok(Subject::Run(text.to_owned()));
    }
    let plausible = text.len() >= 4 && text.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
    if !plausible {
        return Err(nothing(text));
    }
    let mut found = BTreeSet::new();
    let mut rows = reading.audit().rows(RowFilter::default());
    while let Some(row) = rows.next().await? {
        if row.call_id.starts_with(text) || row.call_id.ends_with(text) {
            found.insert(row.note("joined").unwrap_or(&row.call_id).to_owned());
            if found.len() > 10 {
                break;
            }
        }
    }
    let several = found.len() > 1;
    match (found.pop_first(), several) {
        (None, _) => Err(nothing(text)),
        (Some(id), false) => Ok(Subject::Call(id)),
        (Some(first), true) => {
            let others: Vec<String> = found.into_iter().collect();
            Err(Failure::usage(format!(
                "{text} is several calls: {first}, {}",
                others.join(", ")
            )))
        }
    }
}

async fn tell(context: &mut Context<'_>, reading: &Reading, story: &Story) -> Result<(), Failure> {
    let name = match &story.subject {
        Subject::Run(run) => format!("run {run}"),
        Subject::Call(id) => format!("call {id}"),
    };
    let headline = context.paint.bold(&printable(&name));
    context.line(headline)?;
    let refused: u64 = story
        .denied
        .values()
        .fold(0, |sum, number| sum.saturating_add(*number));
    let codes: Vec<String> = story
        .denied
        .iter()
        .map(|(code, number)| format!("{code} {number}"))
        .collect();
    let codes = if codes.is_empty() {
        String::new()
    } else {
        format!(" ({})", codes.join(", "))
    };
    context.line(format!(
        "  {} let through, {refused} refused{codes}, {} replayed; ${} spent, ${} held",
        count(story.allowed, "call"),
        story.replayed,
        story.spent_usd,
        story.held_usd,
    ))?;
    let mut rows = Rows::new(&[
        "TIME",
        "CALL",
        "WHAT",
        "OPERATION",
        ">USD",
        "RULE",
        "BUDGET",
        ">BEFORE",
        ">AFTER",
        ">CAP",
    ]);
    for step in &story.steps {
        rows.row(cells(step));
    }
    let text = rows.text(context.paint);
    context.line(format!("\n{text}"))?;
    if story.omitted > 0 {
        context.line(format!(
            "… and {} more; see --limit",
            count(story.omitted, "step")
        ))?;
    }
    tell_reasons(context, story)?;
    if let Subject::Run(run) = &story.subject {
        tell_stops(context, reading, run).await?;
    }
    tell_books(context, story)
}

fn cells(step: &StoryStep) -> [String; 10] {
    let dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let mut what = step.kind.clone();
    if let Some(attempt) = step.attempt.filter(|attempt| *attempt > 1) {
        what = format!("{what} #{attempt}");
    }
    if step.count > 1 {
        what = format!("{what} x{}", step.count);
    }
    [
        time(step.at_ms),
        step.call_id.as_deref().map_or("-", short).to_owned(),
        what,
        dash(&step.operation),
        dash(&step.amount_usd),
        dash(&step.rule),
        dash(&step.budget),
        dash(&step.before),
        dash(&step.after),
        dash(&step.cap),
    ]
}

/// The sentences behind the rules, each once.
fn tell_reasons(context: &mut Context<'_>, story: &Story) -> Result<(), Failure> {
    let mut told = BTreeSet::new();
    let mut lines = Vec::new();
    for step in &story.steps {
        if let (Some(rule), Some(message)) = (&step.rule, &step.message)
            && told.insert((rule.clone(), message.clone()))
        {
            lines.push(format!("  {}: {}", printable(rule), printable(message)));
        }
    }
    if !lines.is_empty() {
        context.line("")?;
    }
    for line in lines.iter().take(20) {
        context.line(line)?;
    }
    if lines.len() > 20 {
        context.line(format!(
            "  … and {} more; see --json",
            lines.len().saturating_sub(20)
        ))?;
    }
    Ok(())
}

async fn tell_stops(context: &mut Context<'_>, reading: &Reading, run: &str) -> Result<(), Failure> {
    for stop in reading.stops().await? {
        if stop.scope == StopScope::All || stop.scope == StopScope::Run(run.to_owned()) {
            let since = time(stop.since_ms);
            let text = format!(
                "{} since {since} by {}: {}",
                stop.scope.name(),
                stop.admin.by,
                stop.admin.reason
            );
            let headline = context.paint.red("STOPPED");
            context.line(format!("  {headline} {}", printable(&text)))?;
        }
    }
    Ok(())
}

fn tell_books(context: &mut Context<'_>, story: &Story) -> Result<(), Failure> {
    if !story.unknown.is_empty() {
        let ids: Vec<&str> = story.unknown.iter().take(5).map(String::as_str).collect();
        let headline = context.paint.yellow("UNKNOWN");
        let calls = count(u64::try_from(story.unknown.len()).unwrap_or(u64::MAX), "call");
        let ids = printable(&ids.join(", "));
        context.line(format!(
            "  {headline} outcome of {calls} ({ids}); find out: keybrake reconcile"
        ))?;
    }
    let calls = count(story.books.calls, "call");
    if story.books.differences.is_empty() {
        let headline = context.paint.green("books agree");
        return context.line(format!(
            "  {headline}: events and reservations say the same of {calls}"
        ));
    }
    let headline = context.paint.red("BOOKS DIFFER");
    context.line(format!("  {headline} ({calls} compared):"))?;
    for difference in &story.books.differences {
        let text = format!(
            "{} {}: events say used {} held {}, the reservation says used {} held {}",
            difference.call_id,
            difference.counter,
            difference.by_events.0,
            difference.by_events.1,
            difference.in_ledger.0,
            difference.in_ledger.1,
        );
        context.line(format!("    {}", printable(&text)))?;
    }
    Ok(())
}
