//! The one decision before a call leaves.

use std::sync::Arc;

use super::charge;
use super::flood::{self, Flood};
use super::identity::{self, Plan, Resolved};
use super::object;
use super::step::{Step, internal};
use super::stops;
use super::sweep::lapse;
use crate::error::Result;
use crate::ledger::events::{EventBody, EventKind, IdentityNote};
use crate::ledger::store::{Finding, KeyState, Store};
use crate::ledger::types::{
    AmountAsk, Ask, Grant, ReplyFacts, Reservation, ReserveAnswer, ReserveRequest, State, Unit,
};
use crate::money::Usd;
use crate::policy::{BudgetView, Code, Denial};

/// Stops, revocation, expiry, version, identity, and every budget at once; then a hold, a join, a replay or a
/// denial, with its event.
pub fn reserve(
    store: &mut dyn Store,
    flood: &mut Flood,
    clock_ms: i64,
    request: &ReserveRequest,
) -> Result<ReserveAnswer> {
    let mut step = Step::begin(store, clock_ms)?;
    let answer = match decide(&mut step, request)? {
        Decision::Answer(answer) => answer,
        Decision::Deny(denial) => {
            let denial = complete(*denial, request);
            flood::deny(&mut step, flood, &request.facts, &denial)?;
            ReserveAnswer::Denied(Box::new(denial))
        }
    };
    step.finish()?;
    Ok(answer)
}

pub(super) enum Decision {
    Answer(ReserveAnswer),
    Deny(Box<Denial>),
}

fn deny(denial: Denial) -> Decision {
    Decision::Deny(Box::new(denial))
}

/// What the engine may not have known when it made the denial.
fn complete(mut denial: Denial, request: &ReserveRequest) -> Denial {
    let facts = &request.facts;
    denial.call_id.clone_from(&facts.call_id);
    denial.vendor = denial.vendor.or_else(|| facts.vendor.clone());
    denial.operation = denial.operation.or_else(|| Some(facts.operation.clone()));
    if let (None, Ask::Amount(ask)) = (denial.requested_micros, &request.ask) {
        denial.requested_micros = Some(ask.usd.micros());
    }
    denial
}

fn decide(step: &mut Step<'_>, request: &ReserveRequest) -> Result<Decision> {
    let key = match gate(step, request)? {
        Gate::Open(key) => key,
        Gate::Closed(decision) => return Ok(decision),
    };
    if let Some(seen) = step.store.reservation(&request.facts.call_id)? {
        return again(step, &seen);
    }
    lapse(step)?;
    match identity::resolve(step, request)? {
        Resolved::Join(earlier) => join(step, request, earlier),
        Resolved::Replay(earlier) => replay(step, request, earlier),
        Resolved::Deny(denial) => Ok(Decision::Deny(denial)),
        Resolved::Fresh(plan) => match &request.ask {
            Ask::Refuse { denial, .. } => Ok(Decision::Deny(denial.clone())),
            Ask::Lookup => Ok(Decision::Answer(ReserveAnswer::NeedsAmount)),
            Ask::Amount(ask) => hold(step, request, ask, &key, plan),
        },
    }
}

pub(super) enum Gate {
    Open(KeyState),
    Closed(Decision),
}

/// Everything that looks at the key alone: known, stopped, revoked, expired, judged by its present version;
/// then the engine's early refusals.
pub(super) fn gate(step: &mut Step<'_>, request: &ReserveRequest) -> Result<Gate> {
    let facts = &request.facts;
    let closed = |denial| Ok(Gate::Closed(deny(denial)));
    let early = match &request.ask {
        Ask::Refuse { denial, early: true } => Some(denial),
        _ => None,
    };
    let key = match &facts.key_id {
        Some(key_id) => step.store.key_state(key_id)?,
        None => None,
    };
    let (Some(key), Some(key_id)) = (key, &facts.key_id) else {
        return match early {
            Some(denial) => Ok(Gate::Closed(Decision::Deny(denial.clone()))),
            None => closed(Denial::new(
                Code::KeyUnknown,
                "this key is not one of this ledger's",
            )),
        };
    };
    if let Some(stop) = stops::covering(step, facts, key_id, &key)? {
        return closed(stops::denial(&stop));
    }
    if let Some(denial) = ended_key(step, key_id, &key)? {
        return closed(denial);
    }
    if facts.key_version != key.version.saturating_add(step.meta.groups_version) {
        return Ok(Gate::Closed(Decision::Answer(ReserveAnswer::Stale)));
    }
    Ok(match early {
        Some(denial) => Gate::Closed(Decision::Deny(denial.clone())),
        None => Gate::Open(key),
    })
}

/// The denial of a key that is revoked or expired, itself or through an ancestor.
fn ended_key(step: &mut Step<'_>, key_id: &str, key: &KeyState) -> Result<Option<Denial>> {
    let mut revoked = key.revoked_at_ms.map(|at_ms| (key_id.to_owned(), at_ms));
    let mut expired = step.reached(key.expires_at_ms).then(|| key_id.to_owned());
    for ancestor in &key.ancestors {
        let Some(state) = step.store.key_state(ancestor)? else {
            return Ok(Some(Denial::new(
                Code::KeyUnknown,
                format!("the parent key {ancestor} is not in this ledger"),
            )));
        };
        if let (None, Some(at_ms)) = (&revoked, state.revoked_at_ms) {
            revoked = Some((ancestor.clone(), at_ms));
        }
        if expired.is_none() && step.reached(state.expires_at_ms) {
            expired = Some(ancestor.clone());
        }
    }
    if let Some((id, _)) = revoked {
        let message = format!("the key {id} was revoked; ask for a new one");
        return Ok(Some(Denial::new(Code::KeyRevoked, message)));
    }
    Ok(expired.map(|id| {
        let message = format!("the lifetime of the key {id} is over; ask for a new one");
        Denial::new(Code::KeyExpired, message)
    }))
}

/// The same call asked for twice: the same permit while it is open, and never a second one afterwards.
fn again(step: &mut Step<'_>, seen: &Reservation) -> Result<Decision> {
    if matches!(seen.state, State::Held | State::Unknown) {
        let tightest = charge::tightest(step, &seen.charges)?;
        let grant = grant(step, seen, (1, false), tightest);
        return Ok(Decision::Answer(ReserveAnswer::Granted(Box::new(grant))));
    }
    if seen.state == State::Voided {
        let message = "this call was given up before the ledger answered; nothing was sent";
        return Ok(deny(Denial::new(Code::LedgerUnavailable, message)));
    }
    Ok(deny(identity::already_done(seen)))
}

fn grant(
    step: &Step<'_>,
    of: &Reservation,
    (attempt, joined): (u32, bool),
    tightest: Option<BudgetView>,
) -> Grant {
    Grant {
        call_id: of.facts.call_id.clone(),
        attempt,
        joined,
        identity: of.identity.as_ref().map(|own| own.id.clone()),
        generation: of.generation,
        caller_key: of.identity.as_ref().and_then(|own| own.caller_key.clone()),
        pins: of.pins.clone(),
        amount: of.reserved,
        now_ms: step.now_ms,
        not_after_ms: of.not_after_ms,
        tightest,
        would_deny: None,
    }
}

/// A further attempt of a call whose outcome is open. Takes nothing from any budget.
fn join(step: &mut Step<'_>, request: &ReserveRequest, mut earlier: Reservation) -> Result<Decision> {
    let call_id = &request.facts.call_id;
    let seen = earlier.joined_by.iter().position(|joined| joined == call_id);
    let tightest = charge::tightest(step, &earlier.charges)?;
    let attempt = match seen {
        // The first attempt is not in the list, so the first that joined is attempt 2.
        Some(index) => u32::try_from(index).unwrap_or(u32::MAX).saturating_add(2),
        None => earlier.attempts.saturating_add(1),
    };
    if seen.is_none() {
        earlier.attempts = attempt;
        earlier.joined_by.push(call_id.clone());
        let until_ms = step.now_ms.saturating_add(request.hold_for_ms);
        earlier.not_after_ms = earlier.not_after_ms.max(until_ms);
        earlier.changed_at_ms = step.now_ms;
        if let Some(ask) = &request.identity {
            identity::follow(step, ask, &mut earlier)?;
        }
        let body = EventBody {
            facts: Some(Arc::clone(&request.facts)),
            identity: note(&earlier),
            attempt: Some(attempt),
            amount_micros: Some(earlier.reserved.micros()),
            state: Some(earlier.state),
            tightest: tightest.clone(),
            pins: earlier.pins.clone(),
            ..EventBody::default()
        };
        step.append(EventKind::Attempt, Some(&earlier.facts.call_id), Vec::new(), body)?;
    }
    let grant = grant(step, &earlier, (attempt, true), tightest);
    let before = Some((earlier.state, earlier.holds_something()));
    step.save(before, earlier)?;
    Ok(Decision::Answer(ReserveAnswer::Granted(Box::new(grant))))
}

fn note(of: &Reservation) -> Option<IdentityNote> {
    of.identity.as_ref().map(|own| IdentityNote {
        id: own.id.clone(),
        kind: own.kind,
        generation: of.generation,
    })
}

/// A repeat of a call that is done: its recorded reply, and a row that says so.
fn replay(step: &mut Step<'_>, request: &ReserveRequest, earlier: Reservation) -> Result<Decision> {
    let body = EventBody {
        facts: Some(Arc::clone(&request.facts)),
        identity: note(&earlier),
        state: Some(earlier.state),
        reply: Some(earlier.reply_facts.clone()),
        original: Some(earlier.facts.call_id.clone()),
        tightest: charge::tightest(step, &earlier.charges)?,
        ..EventBody::default()
    };
    step.append(
        EventKind::Replayed,
        Some(&request.facts.call_id),
        Vec::new(),
        body,
    )?;
    Ok(Decision::Answer(ReserveAnswer::Replay(Box::new(earlier))))
}

/// A new hold, if every budget has room for it.
fn hold(
    step: &mut Step<'_>,
    request: &ReserveRequest,
    ask: &AmountAsk,
    key: &KeyState,
    plan: Plan,
) -> Result<Decision> {
    check(ask)?;
    let full = key.open_holds >= request.max_open_holds;
    if let Some(key_id) = &request.facts.key_id {
        let max = request.max_open_holds;
        step.store.found(Finding::OpenHolds { key_id, max, full });
    }
    if full {
        let message = format!(
            "this key has {} calls open whose outcome is not known yet, the most it may have",
            key.open_holds
        );
        let mut denial = Denial::new(Code::CapHeld, message);
        denial.retryable = true;
        return Ok(deny(denial));
    }
    let usd = match &ask.raise {
        Some(raise) => object::added(step, raise)?,
        None => ask.usd,
    };
    let livemode = request.facts.livemode;
    let Some(planned) = charge::plan(step, livemode, &ask.charges, usd, !plan.counts_taken)? else {
        let now_ms = step.now_ms;
        return Ok(Decision::Answer(ReserveAnswer::WindowMoved { now_ms }));
    };
    if let Some(mut denial) = charge::refusal(step, &planned)? {
        denial.requested_micros = Some(usd.micros());
        return Ok(deny(denial));
    }
    let mut deltas = Vec::with_capacity(planned.len());
    let (charges, tightest) = charge::take(step, planned, &mut deltas)?;
    let aliases = identity::alias(request.identity.as_deref(), plan.identity.as_deref());
    let reservation = Reservation {
        facts: Arc::clone(&request.facts),
        state: State::Held,
        identity: plan.identity,
        generation: plan.generation,
        first_generation: plan.first_generation,
        counts_inherited: plan.counts_taken,
        reserved: usd,
        held: usd,
        used: Usd::ZERO,
        charges,
        object: ask.raise.as_ref().map(|raise| raise.object.clone()),
        attempts: 1,
        joined_by: Vec::new(),
        aliases,
        not_executed: Vec::new(),
        applied: Vec::new(),
        reserved_at_ms: step.now_ms,
        not_after_ms: step.now_ms.saturating_add(request.hold_for_ms),
        changed_at_ms: step.now_ms,
        unknown_reason: None,
        ended_by: None,
        pins: ask.pins.clone(),
        reply_facts: ReplyFacts::default(),
        reply: None,
        lease: None,
    };
    if let Some(raise) = &ask.raise {
        object::contribute(step, &raise.object, &request.facts.call_id, usd)?;
    }
    if let (Some(came_as), Some(reserved_as)) = (&request.identity, &reservation.identity) {
        identity::point(step, came_as, reserved_as, &request.facts)?;
    }
    let body = EventBody {
        facts: Some(Arc::clone(&request.facts)),
        identity: note(&reservation),
        attempt: Some(1),
        amount_micros: Some(usd.micros()),
        state: Some(State::Held),
        would_deny: ask.would_deny.clone(),
        tightest: tightest.clone(),
        pins: ask.pins.clone(),
        ..EventBody::default()
    };
    let mut grant = grant(step, &reservation, (1, false), tightest);
    grant.would_deny.clone_from(&ask.would_deny);
    step.append(EventKind::Reserved, Some(&request.facts.call_id), deltas, body)?;
    step.save(None, reservation)?;
    Ok(Decision::Answer(ReserveAnswer::Granted(Box::new(grant))))
}

/// What a defect of the engine could get wrong: an amount below zero, or two amounts for one call.
fn check(ask: &AmountAsk) -> Result<()> {
    if ask.usd.is_negative() || ask.raise.as_ref().is_some_and(|raise| raise.to.is_negative()) {
        return Err(internal("an amount to reserve is below zero"));
    }
    let differs = |charge: &&crate::ledger::types::ChargeAsk| {
        charge.unit == Unit::Usd && charge.amount != ask.usd.micros()
    };
    match ask.charges.iter().find(differs) {
        Some(charge) if ask.raise.is_none() => Err(internal(format!(
            "the charge of {} is not the call's amount",
            charge.budget.0
        ))),
        _ => Ok(()),
    }
}
