//! Leases: room for many calls, taken, renewed, given back and forfeited.
//!
//! A lease is a reservation without an identity. What its calls have used is moved from held to used when they are told,
//! each with its own event; what is never told is used when the lease's deadline passes. So the counters never show less
//! than what the holder may have done, and a lease that ends with its process is not given out again.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::charge::{self, Planned};
use super::leased::{each, tell, tell_late, uses};
use super::reserve::{Gate, gate};
use super::step::{Step, internal};
use super::sweep::lapse;
use crate::error::Result;
use crate::ledger::events::{Delta, EventBody, EventKind, LeaseNote};
use crate::ledger::lease::{
    Before, LONGEST_MS, LeaseAnswer, LeaseAsk, LeaseHeld, LeaseState, MOST_CALLS, SHORTEST_MS, leasable,
};
use crate::ledger::store::{Finding, KeyState, Pointer, Store};
use crate::ledger::types::{
    AmountAsk, Ask, CallFacts, Charge, KeyRecord, ReplyFacts, Reservation, ReserveRequest, State, StopScope,
};
use crate::money::Usd;

/// Of the room that a key's budgets have, a lease takes at most this part: eight processes can each have one.
const SHARE: i64 = 8;
/// Below so many calls a lease is not worth its steps; the ledger decides the last ones itself.
const LEAST: i64 = 4;
/// From the end of the holder's time to the deadline. On Redis a step's time may be half a second off, when the lease is
/// taken and again when it is swept; the holder counts by its own boot clock and needs none of it.
const MARGIN_MS: i64 = 1_500;
/// Before the end of a window nothing is leased, for the same half second.
const WINDOW_MARGIN_MS: i64 = SLACK_MS;
/// What these margins allow for; where a step's time may be off by more, so much is added to both.
const SLACK_MS: i64 = 500;

/// Leases at or below one key. Each that is taken or given back reads and writes the list of them, for the key and for
/// every ancestor; a call that finds it full is asked of the ledger.
const MOST_LISTED: usize = 256;

/// How a lease ended whose holder gave it back.
pub(in crate::ledger) const GIVEN_BACK: &str = "given_back";
pub(super) const FORFEITED: &str = "forfeited";

/// One step of a lease: takes it, renews it, or gives it back; and records what was done of it. The time of the step may
/// be off by `slack_ms`.
pub fn lease(store: &mut dyn Store, clock_ms: i64, slack_ms: i64, ask: &LeaseAsk) -> Result<LeaseAnswer> {
    let mut step = Step::begin(store, clock_ms)?;
    let more_ms = slack_ms.saturating_sub(SLACK_MS).max(0);
    check(ask)?;
    lapse(&mut step)?;
    let answer = match step.store.reservation(&ask.id)? {
        None if ask.number == 1 => take(&mut step, ask, more_ms)?,
        None if ask.done.is_empty() => LeaseAnswer::Over { forfeited: false },
        None => {
            let (own, state) = lost(&step, ask);
            tell_late(&mut step, None, own, state, ask)?
        }
        Some(own) => {
            let mut own = past_its_deadline(&mut step, own)?;
            let Some(state) = own.lease.take() else {
                return Err(internal(format!("call {} is not a lease", ask.id)));
            };
            if own.state != State::Held {
                let before = Some((own.state, false));
                tell_late(&mut step, before, own, *state, ask)?
            } else if ask.number == 0 {
                LeaseAnswer::Refused
            } else if ask.number == state.number {
                // Its answer was lost: the same again.
                held(&mut step, &own, &state)?
            } else if ask.number == state.number.saturating_add(1) {
                renew(&mut step, own, *state, ask, more_ms)?
            } else {
                return Err(internal(format!(
                    "step {} of lease {} was asked for after step {}",
                    ask.number, ask.id, state.number
                )));
            }
        }
    };
    step.finish()?;
    Ok(answer)
}

/// A holder that comes too late is not better off for coming before the sweep.
fn past_its_deadline(step: &mut Step<'_>, own: Reservation) -> Result<Reservation> {
    if own.state != State::Held || own.lease.is_none() || !step.reached(own.not_after_ms) {
        return Ok(own);
    }
    let id = own.facts.call_id.clone();
    forfeit(step, own)?;
    let ended = step.store.reservation(&id)?;
    ended.ok_or_else(|| internal(format!("the lease {id} is gone")))
}

/// A lease that the ledger never had, or lost with nobody left to say it again: over, with nothing in it. What its holder
/// wrote down is told with it, once.
fn lost(step: &Step<'_>, ask: &LeaseAsk) -> (Reservation, LeaseState) {
    let mut facts = (*ask.facts).clone();
    facts.call_id.clone_from(&ask.id);
    "lease".clone_into(&mut facts.operation);
    let own = Reservation {
        state: State::Settled,
        ended_by: Some(FORFEITED.to_owned()),
        ..fresh(step, Arc::new(facts), Vec::new())
    };
    let state = LeaseState {
        number: 0,
        calls: 0,
        added: 0,
        ttl_ms: ask.ttl_ms,
        until_ms: step.now_ms,
        late: Vec::new(),
    };
    (own, state)
}

fn check(ask: &LeaseAsk) -> Result<()> {
    let wrong = |what: &str| Err(internal(format!("the lease {} {what}", ask.id)));
    if !(SHORTEST_MS..=LONGEST_MS).contains(&ask.ttl_ms) {
        return wrong("has a time to live that no lease has");
    }
    let all = ask.keep.saturating_add(ask.wanted);
    if all > MOST_CALLS || ask.done.len() > usize::try_from(MOST_CALLS).unwrap_or(usize::MAX) {
        return wrong("is for more calls than a lease may have");
    }
    if ask.number == 1 && (ask.keep > 0 || !ask.done.is_empty()) {
        return wrong("was used before it was taken");
    }
    if leasable(&request(ask)).is_none() {
        return wrong("is for calls that cannot be leased");
    }
    Ok(())
}

/// A call of the lease, as the gate and the checks of a reserve see it.
fn request(ask: &LeaseAsk) -> ReserveRequest {
    ReserveRequest {
        facts: Arc::clone(&ask.facts),
        identity: None,
        ask: Ask::Amount(AmountAsk {
            charges: ask.charges.clone(),
            ..AmountAsk::default()
        }),
        hold_for_ms: ask.ttl_ms,
        max_open_holds: ask.max_open_holds,
    }
}

/// The key and the budgets' present windows, when a call of the lease would be let through to the budgets now, and room
/// can be taken in advance.
fn open(step: &mut Step<'_>, ask: &LeaseAsk) -> Result<Option<(KeyState, Vec<Planned>)>> {
    let Gate::Open(key) = gate(step, &request(ask))? else {
        return Ok(None);
    };
    let planned = charge::plan(step, ask.facts.livemode, &ask.charges, Usd::ZERO, true)?;
    Ok(planned
        .filter(|planned| planned.iter().all(Planned::can_be_leased))
        .map(|planned| (key, planned)))
}

/// Until when a lease that is taken now may be used: its time to live, and never past a window's end or the key's.
fn until(
    step: &mut Step<'_>,
    ask: &LeaseAsk,
    (key, planned): (&KeyState, &[Planned]),
    more_ms: i64,
) -> Result<Option<i64>> {
    let mut until_ms = step.now_ms.saturating_add(ask.ttl_ms);
    let margin_ms = WINDOW_MARGIN_MS.saturating_add(more_ms);
    let mut end = |at_ms: i64| until_ms = until_ms.min(at_ms.saturating_sub(margin_ms));
    end(key.expires_at_ms);
    planned
        .iter()
        .filter_map(Planned::slice_ends_ms)
        .for_each(&mut end);
    for ancestor in &key.ancestors {
        if let Some(state) = step.store.key_state(ancestor)? {
            end(state.expires_at_ms);
        }
    }
    let worth_it = until_ms.saturating_sub(step.now_ms) >= SHORTEST_MS;
    Ok(worth_it.then_some(until_ms))
}

fn take(step: &mut Step<'_>, ask: &LeaseAsk, more_ms: i64) -> Result<LeaseAnswer> {
    let Some((key, planned)) = open(step, ask)? else {
        return Ok(LeaseAnswer::Refused);
    };
    let full = key.open_holds >= ask.max_open_holds;
    if let Some(key_id) = &ask.facts.key_id {
        let max = ask.max_open_holds;
        step.store.found(Finding::OpenHolds { key_id, max, full });
    }
    let Some(until_ms) = until(step, ask, (&key, &planned), more_ms)? else {
        return Ok(LeaseAnswer::Refused);
    };
    let calls = share(charge::room(&planned, 0), ask.wanted);
    if full || calls == 0 {
        return Ok(LeaseAnswer::Refused);
    }
    if let Some(key_id) = &ask.facts.key_id
        && listed_full(step, key_id, &key.ancestors)?
    {
        return Ok(LeaseAnswer::Refused);
    }
    charge::tell_room(step, &planned, i64::from(calls));
    let mut deltas = Vec::with_capacity(planned.len());
    let charges = charge::take_times(step, planned, i64::from(calls), &mut deltas)?;
    let mut facts = (*ask.facts).clone();
    facts.call_id.clone_from(&ask.id);
    let own = Reservation {
        not_after_ms: until_ms.saturating_add(MARGIN_MS).saturating_add(more_ms),
        ..fresh(step, Arc::new(facts), charges)
    };
    let state = LeaseState {
        number: 1,
        calls,
        added: calls,
        ttl_ms: ask.ttl_ms,
        until_ms,
        late: Vec::new(),
    };
    list(step, &own, true)?;
    note(step, &own, &state, deltas, None)?;
    let answer = held(step, &own, &state)?;
    save(step, None, own, state)?;
    Ok(answer)
}

/// A part of the room, or nothing when that is too little.
fn share(room: i64, wanted: u32) -> u32 {
    let share = room.checked_div(SHARE).unwrap_or(0).min(i64::from(wanted));
    if share < LEAST {
        0
    } else {
        u32::try_from(share).unwrap_or(0)
    }
}

fn renew(
    step: &mut Step<'_>,
    mut own: Reservation,
    mut state: LeaseState,
    ask: &LeaseAsk,
    more_ms: i64,
) -> Result<LeaseAnswer> {
    let before = Some((own.state, true));
    let told = u32::try_from(ask.done.len()).unwrap_or(u32::MAX);
    if told.saturating_add(ask.keep) > state.calls {
        return Err(internal(format!(
            "the lease {} has room for {} calls; {told} were made and {} kept",
            ask.id, state.calls, ask.keep
        )));
    }
    // What it does not keep is free again, but for what was done of it.
    let spent = ask.done.iter().filter(|call| uses(call)).count();
    let back = i64::from(state.calls).saturating_sub(i64::from(ask.keep));
    let back = back.saturating_sub(i64::try_from(spent).unwrap_or(i64::MAX));
    let present = match open(step, ask)? {
        // A lease belongs to the windows that it was taken in; and what it keeps, to caps that may be lower by now.
        Some((key, planned))
            if charge::same_counters(&planned, &own.charges) && charge::covers(step, &planned, back) =>
        {
            until(step, ask, (&key, &planned), more_ms)?.map(|until_ms| (planned, until_ms))
        }
        _ => None,
    };
    let added = match &present {
        Some((planned, _)) => share(charge::room(planned, back), ask.wanted),
        None => 0,
    };
    if let Some((planned, _)) = &present {
        charge::tell_room(step, planned, i64::from(added).saturating_sub(back));
    }
    let tightest = charge::tightest(step, &own.charges)?;
    for call in &ask.done {
        tell(step, &mut own, &state, call, tightest.as_ref())?;
    }
    let calls = ask.keep.saturating_add(added);
    let mut deltas = Vec::with_capacity(own.charges.len());
    let difference = i64::from(calls).saturating_sub(i64::from(state.calls));
    // What each call holds of its own, or has used, is in its event; this takes all of it out of the lease.
    for charge in &mut own.charges {
        let by = charge::times(each(charge, &state)?, difference)?;
        step.add(&charge.counter, charge.rolling, (0, by), &mut deltas)?;
        charge.held = charge.held.saturating_add(by);
    }
    state.number = ask.number;
    state.calls = calls;
    state.added = added;
    own.changed_at_ms = step.now_ms;
    if let Some((_, until_ms)) = present {
        state.until_ms = until_ms;
        own.not_after_ms = until_ms.saturating_add(MARGIN_MS).saturating_add(more_ms);
    }
    let refused = present.is_none();
    let given_back = calls == 0;
    note(step, &own, &state, deltas, given_back.then_some(GIVEN_BACK))?;
    if given_back {
        own.state = State::Settled;
        own.ended_by = Some(GIVEN_BACK.to_owned());
        list(step, &own, false)?;
    }
    let answer = match (given_back, refused) {
        (true, _) => LeaseAnswer::Over { forfeited: false },
        (false, true) => LeaseAnswer::Refused,
        (false, false) => held(step, &own, &state)?,
    };
    save(step, before, own, state)?;
    Ok(answer)
}

/// What a step that stands answers, also when it is asked for again.
fn held(step: &mut Step<'_>, own: &Reservation, state: &LeaseState) -> Result<LeaseAnswer> {
    let key = match &own.facts.key_id {
        Some(key_id) => step.store.key_state(key_id)?,
        None => None,
    };
    Ok(LeaseAnswer::Held(Box::new(LeaseHeld {
        added: state.added,
        for_ms: state.until_ms.saturating_sub(step.now_ms),
        now_ms: step.now_ms,
        open_holds: key.map_or(u32::MAX, |key| key.open_holds),
        tightest: charge::tightest(step, &own.charges)?,
    })))
}

/// The end of a lease that nobody gave back: for all that is known, everything in it was used.
pub(super) fn forfeit(step: &mut Step<'_>, mut own: Reservation) -> Result<()> {
    let before = Some((own.state, own.holds_something()));
    let Some(mut state) = own.lease.take() else {
        return Err(internal("what is forfeited is a lease"));
    };
    let mut deltas = Vec::with_capacity(own.charges.len());
    for charge in &mut own.charges {
        let by = (charge.held, charge.held.saturating_neg());
        step.add(&charge.counter, charge.rolling, by, &mut deltas)?;
        charge.used = charge.used.saturating_add(charge.held);
        charge.held = 0;
    }
    own.state = State::Settled;
    own.ended_by = Some(FORFEITED.to_owned());
    own.changed_at_ms = step.now_ms;
    note(step, &own, &state, deltas, Some(FORFEITED))?;
    state.calls = 0;
    list(step, &own, false)?;
    save(step, before, own, *state)
}

fn note(
    step: &mut Step<'_>,
    own: &Reservation,
    state: &LeaseState,
    deltas: Vec<Delta>,
    reason: Option<&str>,
) -> Result<()> {
    let body = EventBody {
        facts: Some(Arc::clone(&own.facts)),
        state: Some(own.state),
        reason: reason.map(str::to_owned),
        lease: Some(note_of(&own.facts.call_id, state)),
        ..EventBody::default()
    };
    step.append(EventKind::Leased, Some(&own.facts.call_id), deltas, body)
}

/// What the log says of a lease after a step.
pub(super) fn note_of(id: &str, state: &LeaseState) -> LeaseNote {
    LeaseNote {
        id: id.to_owned(),
        number: state.number,
        at_ms: None,
        late: false,
        calls: Some(state.calls),
    }
}

fn save(
    step: &mut Step<'_>,
    before: Option<(State, bool)>,
    mut own: Reservation,
    state: LeaseState,
) -> Result<()> {
    own.lease = Some(Box::new(state));
    step.save(before, own)
}

/// The pointer that lists the open leases of a key and of its descendants.
pub(in crate::ledger) fn leases_of(key_id: &str) -> String {
    format!("leases:{key_id}")
}

/// Whether so many leases stand at or below the key, or one of its ancestors, that their list takes no more.
fn listed_full(step: &mut Step<'_>, key_id: &str, ancestors: &[String]) -> Result<bool> {
    for id in std::iter::once(key_id).chain(ancestors.iter().map(String::as_str)) {
        let listed = step.store.pointer(&leases_of(id))?;
        if listed.is_some_and(|pointer| pointer.call_ids.len() >= MOST_LISTED) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Lists an open lease under its key and the key's ancestors, or takes it off.
pub(super) fn list(step: &mut Step<'_>, own: &Reservation, open: bool) -> Result<()> {
    let Some(key_id) = &own.facts.key_id else {
        return Ok(());
    };
    let ancestors = step.store.key_state(key_id)?.map(|key| key.ancestors);
    for id in std::iter::once(key_id).chain(ancestors.iter().flatten()) {
        let name = leases_of(id);
        let mut pointer = step.store.pointer(&name)?.unwrap_or_default();
        pointer.call_ids.retain(|lease| *lease != own.facts.call_id);
        if open {
            pointer.call_ids.push(own.facts.call_id.clone());
        }
        pointer.until_ms = i64::MAX;
        step.store.put_pointer(&name, pointer)?;
    }
    Ok(())
}

/// Leases that stand and that a stop or revocation may cover, by id.
pub fn leases(store: &mut dyn Store, clock_ms: i64, before: Before<'_>) -> Result<Vec<String>> {
    let step = Step::begin(store, clock_ms)?;
    let keys: Vec<String> = match before {
        Before::Revoke(key_id) => vec![key_id.to_owned()],
        Before::Stop(StopScope::Key(key_id)) => vec![key_id.clone()],
        Before::Stop(scope) => step
            .store
            .key_records()?
            .into_iter()
            .filter(|key| may_cover(scope, key))
            .map(|key| key.id)
            .collect(),
    };
    let mut found = BTreeSet::new();
    for key_id in keys {
        let pointer: Option<Pointer> = step.store.pointer(&leases_of(&key_id))?;
        found.extend(pointer.into_iter().flat_map(|pointer| pointer.call_ids));
    }
    Ok(found.into_iter().collect())
}

/// Whether a stop may cover calls of a key, or of a key below it. A key without a run makes calls of any.
fn may_cover(scope: &StopScope, key: &KeyRecord) -> bool {
    match scope {
        StopScope::Run(id) => key.run.as_ref().is_none_or(|run| run == id),
        StopScope::Agent(id) => key.agent.as_ref() == Some(id),
        StopScope::Label(id) => key.label.as_ref() == Some(id),
        StopScope::Group(id) => key.groups.contains(id),
        StopScope::All | StopScope::Vendor(_) | StopScope::Key(_) => true,
    }
}

/// A reservation of no money that begins now.
pub(super) fn fresh(step: &Step<'_>, facts: Arc<CallFacts>, charges: Vec<Charge>) -> Reservation {
    Reservation {
        facts,
        state: State::Held,
        identity: None,
        generation: 1,
        first_generation: 1,
        counts_inherited: false,
        reserved: Usd::ZERO,
        held: Usd::ZERO,
        used: Usd::ZERO,
        charges,
        object: None,
        attempts: 1,
        joined_by: Vec::new(),
        aliases: Vec::new(),
        not_executed: Vec::new(),
        applied: Vec::new(),
        reserved_at_ms: step.now_ms,
        not_after_ms: step.now_ms,
        changed_at_ms: step.now_ms,
        unknown_reason: None,
        ended_by: None,
        pins: Vec::new(),
        reply_facts: ReplyFacts::default(),
        reply: None,
        lease: None,
    }
}
