//! One run or one call replayed in order: what happened, which rule decided, and whether the books agree.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Audit;
use super::row::{Sums, counts_money};
use super::rows::RowFilter;
use super::source::Source;
use crate::error::Result;
use crate::ledger::{AdminAct, CounterName, Event, EventFilter, EventKind, Proof};
use crate::money::Usd;
use crate::policy::BudgetView;

/// Events read at a time.
const PAGE: u32 = 2_000;
/// How often a call is read again while it changes under the reader.
const READS: u32 = 4;

/// What to explain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// Every call of a run.
    Run(String),
    /// One call.
    Call(String),
}

/// One thing that happened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StoryStep {
    /// Number of the event (of the first, when several alike are told as one).
    pub seq: u64,
    /// When, Unix milliseconds on the ledger's clock.
    pub at_ms: i64,
    /// The call.
    pub call_id: Option<String>,
    /// `reserved`, `attempt`, `settled`, `denied`, …
    pub kind: String,
    /// How many in a row were alike.
    pub count: u64,
    /// The attempt that it is about, if any.
    pub attempt: Option<u32>,
    /// The operation, if known.
    pub operation: Option<String>,
    /// The amount reserved, settled or asked for, as decimal dollars.
    pub amount_usd: Option<String>,
    /// Which rule decided: the code of a denial, or what proved the outcome.
    pub rule: Option<String>,
    /// The rule in a sentence.
    pub message: Option<String>,
    /// The tightest budget, or the one that refused.
    pub budget: Option<String>,
    /// Used and held of that budget before, as decimal dollars (or a count).
    pub before: Option<String>,
    /// Used and held of that budget after.
    pub after: Option<String>,
    /// The budget's cap.
    pub cap: Option<String>,
}

/// A call whose events do not add up to what its reservation says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BooksDifference {
    /// The call.
    pub call_id: String,
    /// The counter.
    pub counter: String,
    /// Used and held by the events.
    pub by_events: (i64, i64),
    /// Used and held by the reservation.
    pub in_ledger: (i64, i64),
}

/// Whether events and reservations agree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Books {
    /// Calls compared.
    pub calls: u64,
    /// What does not agree; empty when the books do.
    pub differences: Vec<BooksDifference>,
}

/// A run or a call, replayed in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Story {
    /// What is explained.
    pub subject: Subject,
    /// What happened, in order.
    pub steps: Vec<StoryStep>,
    /// Steps left out at the end because there were too many.
    pub omitted: u64,
    /// Calls let through.
    pub allowed: u64,
    /// Calls refused, by code.
    pub denied: BTreeMap<String, u64>,
    /// Calls answered from a recorded reply.
    pub replayed: u64,
    /// Collected and sent out together, decimal dollars.
    pub spent_usd: String,
    /// Still held, decimal dollars.
    pub held_usd: String,
    /// Calls whose outcome is not known.
    pub unknown: Vec<String>,
    /// Whether the books agree.
    pub books: Books,
}

impl Audit<'_> {
    /// Tells what happened in a run or to a call; `None` when the log does not know it. At most `limit` steps
    /// are told, like ones in a row as one.
    ///
    /// # Errors
    /// As [`Rows::next`](super::Rows::next).
    pub async fn why(&self, subject: Subject, limit: usize) -> Result<Option<Story>> {
        let mut story = self.totals(subject).await?;
        self.tell(&mut story, limit).await?;
        let known = !story.steps.is_empty() || story.omitted > 0;
        Ok(known.then_some(story))
    }

    async fn totals(&self, subject: Subject) -> Result<Story> {
        let mut rows = self.rows(match &subject {
            Subject::Run(run) => RowFilter {
                run: Some(run.clone()),
                ..RowFilter::default()
            },
            Subject::Call(id) => RowFilter {
                call_id: Some(id.clone()),
                ..RowFilter::default()
            },
        });
        let mut story = Story {
            subject,
            steps: Vec::new(),
            omitted: 0,
            allowed: 0,
            denied: BTreeMap::new(),
            replayed: 0,
            spent_usd: String::new(),
            held_usd: String::new(),
            unknown: Vec::new(),
            books: Books::default(),
        };
        let (mut spent, mut held) = (0_i64, 0_i64);
        while let Some((row, sums)) = rows.next_fold().await? {
            match row.policy_verdict.as_str() {
                "allowed" => story.allowed = story.allowed.saturating_add(1),
                "replayed" => story.replayed = story.replayed.saturating_add(row.count()),
                code => {
                    let seen = story.denied.entry(code.to_owned()).or_default();
                    *seen = seen.saturating_add(row.count());
                }
            }
            let cost = row.cost_usd_parsed.map_or(0, Usd::micros).saturating_abs();
            spent = spent.saturating_add(cost);
            held = held.saturating_add(row.held().micros());
            if row.note("state") == Some("unknown") {
                story.unknown.push(row.call_id.clone());
            }
            if row.note("state").is_some() {
                compare(self.source, &row.call_id, sums, &mut story.books).await?;
            }
        }
        story.spent_usd = Usd::from_micros(spent).to_string();
        story.held_usd = Usd::from_micros(held).to_string();
        Ok(story)
    }

    async fn tell(&self, story: &mut Story, limit: usize) -> Result<()> {
        let mut after_seq = 0;
        loop {
            let mut filter = EventFilter {
                after_seq,
                limit: PAGE,
                ..EventFilter::default()
            };
            match &story.subject {
                Subject::Run(run) => filter.run = Some(run.clone()),
                Subject::Call(id) => filter.call_id = Some(id.clone()),
            }
            let page = self.source.events(filter).await?;
            for event in &page {
                after_seq = event.seq;
                add(story, step(event), limit);
            }
            if u32::try_from(page.len()).unwrap_or(u32::MAX) < PAGE {
                return Ok(());
            }
        }
    }
}

/// Adds a step, or counts it with the one before when a loop repeats itself.
fn add(story: &mut Story, step: StoryStep, limit: usize) {
    if let Some(last) = story.steps.last_mut().filter(|_| story.omitted == 0) {
        let alike = last.kind == step.kind
            && matches!(step.kind.as_str(), "denied" | "replayed")
            && last.rule == step.rule
            && last.operation == step.operation
            && last.amount_usd == step.amount_usd
            && last.after == step.after;
        if alike {
            last.count = last.count.saturating_add(step.count);
            return;
        }
    }
    if story.steps.len() < limit {
        story.steps.push(step);
    } else {
        story.omitted = story.omitted.saturating_add(1);
    }
}

fn step(event: &Event) -> StoryStep {
    let body = &event.body;
    let usd = |micros: i64| Usd::from_micros(micros).to_string();
    let facts = body.facts.as_ref();
    let mut step = StoryStep {
        seq: event.seq,
        at_ms: event.at_ms,
        call_id: event.call_id.clone(),
        kind: kind_word(event.kind).to_owned(),
        count: body.count.unwrap_or(1).max(1),
        attempt: body.attempt,
        operation: facts
            .map(|facts| facts.operation.clone())
            .filter(|name| !name.is_empty()),
        amount_usd: body.amount_micros.map(usd),
        rule: body.proof.as_ref().map(|proof| proof.kind().to_owned()),
        message: body
            .proof
            .as_ref()
            .and_then(proof_text)
            .or_else(|| body.reason.clone()),
        ..StoryStep::default()
    };
    if let Some(calls) = body.lease.as_ref().and_then(|lease| lease.calls) {
        let end = body
            .reason
            .as_deref()
            .map(|end| format!("{}, ", end.replace('_', " ")));
        step.message = Some(format!("{}room for {calls} calls", end.unwrap_or_default()));
    }
    if let Some(original) = &body.original {
        step.message = Some(format!("see call {original}"));
    }
    if let Some(denial) = body.denial.as_ref().or(body.would_deny.as_ref()) {
        let would = if body.denial.is_none() { "would deny: " } else { "" };
        step.rule = Some(format!("{would}{}", denial.code));
        step.message = Some(denial.message.clone());
        step.amount_usd = denial.requested_micros.or(body.amount_micros).map(usd);
    }
    if let Some(act) = &body.admin {
        step.rule = Some(format!("{} {}", act.act, act.subject));
        step.message = Some(act_text(act));
    }
    let refused_by = body.denial.as_ref().and_then(|denial| denial.budget.as_ref());
    if let Some(view) = refused_by.or(body.tightest.as_ref()) {
        see(&mut step, view, event);
    }
    step
}

fn proof_text(proof: &Proof) -> Option<String> {
    match proof {
        Proof::NoProof { reason } => Some(reason.clone()),
        Proof::Absent { evidence, .. } => Some(evidence.clone()),
        Proof::Operator { evidence, by, .. } => Some(format!("{evidence} (by {by})")),
        _ => None,
    }
}

fn act_text(act: &AdminAct) -> String {
    match act.note.reason.as_str() {
        "" => format!("by {}", act.note.by),
        reason => format!("{reason} (by {})", act.note.by),
    }
}

/// The budget before and after: what the view says, less what this event changed.
fn see(step: &mut StoryStep, view: &BudgetView, event: &Event) {
    let money = view.unit == "usd";
    let changes = event
        .deltas
        .iter()
        .filter(|delta| counts_money(&delta.counter) == money);
    let changes = changes.map(|delta| delta.used.saturating_add(delta.held));
    let change = changes.max_by_key(|change| change.saturating_abs()).unwrap_or(0);
    let show = |amount: i64| {
        let dollars = || Usd::from_micros(amount).to_string();
        if money { dollars() } else { amount.to_string() }
    };
    let after = view.used.saturating_add(view.held);
    step.budget = Some(view.name.clone());
    if view.counts() {
        step.before = Some(show(after.saturating_sub(change)));
        step.after = Some(show(after));
    }
    step.cap = Some(show(view.cap));
}

const fn kind_word(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Reserved => "reserved",
        EventKind::Attempt => "attempt",
        EventKind::Settled => "settled",
        EventKind::Provisional => "provisional",
        EventKind::Pending => "pending",
        EventKind::Voided => "voided",
        EventKind::Unknown => "unknown",
        EventKind::Corrected => "corrected",
        EventKind::Denied => "denied",
        EventKind::Replayed => "replayed",
        EventKind::Reasserted => "reasserted",
        EventKind::Leased => "leased",
        EventKind::Admin => "admin",
    }
}

/// Compares what a call's events add up to with what its reservation says. A call that changes meanwhile is
/// read again.
async fn compare(source: Source<'_>, call_id: &str, mut sums: Sums, books: &mut Books) -> Result<()> {
    books.calls = books.calls.saturating_add(1);
    let mut found = Vec::new();
    for _ in 0..READS {
        let Some(reservation) = source.reservation(call_id).await? else {
            // Trimmed: the log is all that is left.
            return Ok(());
        };
        let mut charges = Sums::new();
        for charge in reservation.charges {
            let sum = charges.entry(charge.counter).or_default();
            *sum = (
                sum.0.saturating_add(charge.used),
                sum.1.saturating_add(charge.held),
            );
        }
        found = differences(call_id, &sums, &charges);
        if found.is_empty() {
            return Ok(());
        }
        sums = sums_of(source, call_id).await?;
    }
    books.differences.append(&mut found);
    Ok(())
}

fn differences(call_id: &str, sums: &Sums, charges: &Sums) -> Vec<BooksDifference> {
    let mut names: Vec<&CounterName> = sums.keys().chain(charges.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let values = |of: &Sums, name: &CounterName| of.get(name).copied().unwrap_or_default();
    let pairs = names
        .into_iter()
        .map(|name| (name, values(sums, name), values(charges, name)));
    let wrong = pairs.filter(|(_, by_events, in_ledger)| by_events != in_ledger);
    wrong
        .map(|(name, by_events, in_ledger)| BooksDifference {
            call_id: call_id.to_owned(),
            counter: name.to_string(),
            by_events,
            in_ledger,
        })
        .collect()
}

async fn sums_of(source: Source<'_>, call_id: &str) -> Result<Sums> {
    let filter = EventFilter {
        call_id: Some(call_id.to_owned()),
        ..EventFilter::default()
    };
    let mut sums = Sums::new();
    for event in source.events(filter).await? {
        for delta in event.deltas {
            let sum = sums.entry(delta.counter).or_default();
            *sum = (sum.0.saturating_add(delta.used), sum.1.saturating_add(delta.held));
        }
    }
    Ok(sums)
}
