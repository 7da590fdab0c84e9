//! What makes two attempts one spend: joins, replays, conflicts, generations and unknown twins.

use std::sync::Arc;

use super::step::{Step, corrupt, unknown_pointer};
use crate::error::Result;
use crate::ledger::store::Pointer;
use crate::ledger::types::{
    CallFacts, IdentityAsk, IdentityKind, OnRepeat, Reservation, ReserveRequest, State,
};
use crate::policy::{Code, Denial, ExistingCall};

/// An attempt may be repeated under its vendor key for so long after the first send: 23 hours.
const RESEND_MS: i64 = 23 * 60 * 60 * 1_000;

/// Within this time after it was reserved, a call's pointers last for as long as its identity, and a day more.
const HOUR_MS: i64 = 60 * 60 * 1_000;

/// How a reservation ended, in a word, where the identity has to know.
pub(super) mod ended {
    pub(in super::super) const CHARGED: &str = "charged";
    pub(in super::super) const DECLINED: &str = "declined";
    /// It was done and is undone: a payout that failed later.
    pub(in super::super) const REVERSED: &str = "reversed";
    pub(in super::super) const NEVER_SENT: &str = "never_sent";
    pub(in super::super) const DID_NOT_EXECUTE: &str = "did_not_execute";
    pub(in super::super) const ABSENT: &str = "absent";
    pub(in super::super) const OPERATOR: &str = "operator";
    /// The vendor's object was closed before this part of it moved; the call itself was done.
    pub(in super::super) const CLOSED: &str = "closed";
    /// The vendor replayed a success that another reservation has settled.
    pub(in super::super) const REPLAYED: &str = "replayed";
}

/// Calls that one caller's key is remembered for.
const CALLS_PER_CALLER_KEY: usize = 16;

/// What the identity says.
pub(super) enum Resolved {
    /// A new reservation.
    Fresh(Plan),
    /// A further attempt of this one.
    Join(Reservation),
    /// Known to be done.
    Replay(Reservation),
    /// Refused.
    Deny(Box<Denial>),
}

/// How a new reservation continues its identity.
pub(super) struct Plan {
    pub(super) identity: Option<Arc<IdentityAsk>>,
    pub(super) generation: u32,
    pub(super) first_generation: u32,
    /// Whether this generation's count units are taken already.
    pub(super) counts_taken: bool,
}

/// Looks at the call's identity, its newest reservation, and unknown calls with the same content.
pub(super) fn resolve(step: &mut Step<'_>, request: &ReserveRequest) -> Result<Resolved> {
    let Some(ask) = &request.identity else {
        return Ok(Resolved::Fresh(Plan {
            identity: None,
            generation: 1,
            first_generation: 1,
            counts_taken: false,
        }));
    };
    let plan = match newest_of_spend(step, &ask.id)? {
        None => first(ask),
        Some(earlier) => match by_earlier(step, ask, earlier, &request.facts.call_id) {
            Resolved::Fresh(plan) => plan,
            other => return Ok(other),
        },
    };
    if let Some(twin) = unknown_twin(step, ask)? {
        return Ok(if twin.1 {
            Resolved::Join(twin.0)
        } else {
            Resolved::Deny(Box::new(outcome_unknown(&twin.0)))
        });
    }
    if let Some(denial) = foreign_caller_key(step, ask, &request.facts)? {
        return Ok(Resolved::Deny(Box::new(denial)));
    }
    Ok(Resolved::Fresh(plan))
}

/// Whether the vendor still knows the key of this reservation's first attempt, so that another attempt under it cannot
/// be a second spend. Stripe may forget keys that are 24 hours old (<https://docs.stripe.com/api/idempotent_requests>, read
/// 2026-11-21).
fn may_resend(step: &mut Step<'_>, earlier: &Reservation) -> bool {
    !step.reached(earlier.reserved_at_ms.saturating_add(RESEND_MS))
}

fn first(ask: &Arc<IdentityAsk>) -> Plan {
    Plan {
        identity: Some(Arc::clone(ask)),
        generation: 1,
        first_generation: 1,
        counts_taken: false,
    }
}

fn newest(step: &mut Step<'_>, id: &str) -> Result<Option<Reservation>> {
    let Some(pointer) = step.store.pointer(id)? else {
        return Ok(None);
    };
    let Some(call_id) = pointer.call_ids.last() else {
        return Ok(None);
    };
    match step.store.reservation(call_id)? {
        Some(reservation) => Ok(Some(reservation)),
        None => Err(corrupt(format!(
            "the call {call_id} of an identity is not in the ledger"
        ))),
    }
}

/// The newest reservation of the spend that an identity belongs to. One that joined another's call goes on under that
/// one's vendor key; the other may have tried it again since, under the same key, and that is then the one spend.
fn newest_of_spend(step: &mut Step<'_>, id: &str) -> Result<Option<Reservation>> {
    let Some(own) = newest(step, id)? else {
        return Ok(None);
    };
    let joined = own.identity.as_ref().filter(|joined| joined.id != id);
    let Some(joined) = joined.filter(|_| own.state == State::Voided) else {
        return Ok(Some(own));
    };
    let later = newest(step, &joined.id)?.filter(|later| later.generation == own.generation);
    Ok(Some(later.unwrap_or(own)))
}

/// What the identity's newest reservation leads to.
fn by_earlier(step: &mut Step<'_>, ask: &Arc<IdentityAsk>, earlier: Reservation, call_id: &str) -> Resolved {
    if forgotten(step, &earlier) {
        return next_generation(ask, &earlier, true);
    }
    let differing = differing(ask, &earlier);
    let declined = matches!(
        earlier.ended_by.as_deref(),
        Some(ended::DECLINED | ended::REVERSED)
    );
    if !differing.is_empty() && !declined {
        return Resolved::Deny(Box::new(conflict(&earlier, differing)));
    }
    match earlier.state {
        State::Held | State::Unknown => {
            let same_wire = earlier.identity.as_ref().is_some_and(|own| own.wire == ask.wire)
                && may_resend(step, &earlier);
            if same_wire || earlier.joined_by.iter().any(|joined| joined == call_id) {
                Resolved::Join(earlier)
            } else {
                Resolved::Deny(Box::new(outcome_unknown(&earlier)))
            }
        }
        State::Pending | State::Provisional | State::Settled => done(ask, earlier),
        State::Voided if earlier.ended_by.as_deref() == Some(ended::CLOSED) => done(ask, earlier),
        State::Voided if declined => {
            let used = earlier
                .generation
                .saturating_sub(earlier.first_generation)
                .saturating_add(1);
            if used >= ask.max_generations.max(1) {
                Resolved::Deny(Box::new(exhausted(&earlier, used)))
            } else {
                next_generation(ask, &earlier, false)
            }
        }
        State::Voided => same_generation(ask, &earlier),
    }
}

/// A call that is known to be done: replayed, refused, or executed anew, as the policy says.
fn done(ask: &Arc<IdentityAsk>, earlier: Reservation) -> Resolved {
    match ask.on_repeat {
        OnRepeat::Execute => next_generation(ask, &earlier, true),
        OnRepeat::Replay if earlier.reply.is_some() => Resolved::Replay(earlier),
        OnRepeat::Replay | OnRepeat::Refuse => Resolved::Deny(Box::new(already_done(&earlier))),
    }
}

fn next_generation(ask: &Arc<IdentityAsk>, earlier: &Reservation, new_series: bool) -> Resolved {
    let generation = earlier.generation.saturating_add(1);
    Resolved::Fresh(Plan {
        identity: Some(Arc::clone(ask)),
        generation,
        first_generation: if new_series {
            generation
        } else {
            earlier.first_generation
        },
        counts_taken: false,
    })
}

/// The same generation again, so that the vendor sees the same key: the earlier reservation's identity, which
/// may be another's that this one once joined.
fn same_generation(ask: &Arc<IdentityAsk>, earlier: &Reservation) -> Resolved {
    let identity = match &earlier.identity {
        Some(own) if own.id != ask.id => Arc::new(IdentityAsk {
            wire: ask.wire.clone(),
            on_repeat: ask.on_repeat,
            remember_ms: ask.remember_ms,
            max_generations: ask.max_generations,
            ..IdentityAsk::clone(own)
        }),
        _ => Arc::clone(ask),
    };
    let returned = earlier.ended_by.as_deref() == Some(ended::NEVER_SENT);
    Resolved::Fresh(Plan {
        identity: Some(identity),
        generation: earlier.generation,
        first_generation: earlier.first_generation,
        counts_taken: earlier.counts_inherited || !returned,
    })
}

/// Whether an identity's time is over. Never while something of it is open.
fn forgotten(step: &mut Step<'_>, earlier: &Reservation) -> bool {
    let open = matches!(earlier.state, State::Held | State::Unknown | State::Pending);
    let remember_ms = earlier.identity.as_ref().map_or(0, |own| own.remember_ms);
    let until_ms = earlier.changed_at_ms.saturating_add(remember_ms);
    !open && step.reached(until_ms.saturating_add(1))
}

/// Names of declared identity fields that are not the same in both calls.
fn differing(ask: &IdentityAsk, earlier: &Reservation) -> Vec<String> {
    let Some(own) = &earlier.identity else {
        return Vec::new();
    };
    if own.fields == ask.fields {
        return Vec::new();
    }
    let find = |fields: &[(String, String)], name: &str| {
        fields
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.clone())
    };
    let mut names: Vec<String> = own
        .fields
        .iter()
        .chain(&ask.fields)
        .map(|(name, _)| name.clone())
        .filter(|name| find(&own.fields, name) != find(&ask.fields, name))
        .collect();
    names.sort();
    names.dedup();
    names
}

/// An unknown call with the same content under another identity, and whether its bytes are the same. While it
/// is unknown, no discriminator opens a second spend.
fn unknown_twin(step: &mut Step<'_>, ask: &IdentityAsk) -> Result<Option<(Reservation, bool)>> {
    if ask.kind == IdentityKind::Transport {
        return Ok(None);
    }
    let Some(pointer) = step.store.pointer(&unknown_pointer(&ask.content_id))? else {
        return Ok(None);
    };
    let mut found = None;
    for call_id in &pointer.call_ids {
        let Some(twin) = step.store.reservation(call_id)? else {
            return Err(corrupt(format!(
                "the unknown call {call_id} is not in the ledger"
            )));
        };
        let Some(own) = &twin.identity else { continue };
        if twin.state != State::Unknown || own.id == ask.id {
            continue;
        }
        let same_wire = own.wire == ask.wire;
        if !same_wire || !may_resend(step, &twin) {
            return Ok(Some((twin, false)));
        }
        found.get_or_insert((twin, true));
    }
    Ok(found)
}

/// A key of the caller's own goes to the vendor unchanged, so two lineages that use the same one would get each
/// other's replies.
fn foreign_caller_key(step: &mut Step<'_>, ask: &IdentityAsk, facts: &CallFacts) -> Result<Option<Denial>> {
    let Some(id) = caller_key_pointer(ask, facts) else {
        return Ok(None);
    };
    let Some(other) = newest(step, &id)? else {
        return Ok(None);
    };
    if lineage(&other.facts) == lineage(facts) {
        return Ok(None);
    }
    let mut denial = Denial::new(
        Code::IdempotencyConflict,
        "another agent has sent this idempotency key to this vendor account; use a key of your own",
    );
    denial.existing = Some(existing(&other, vec!["idempotency_key".to_owned()]));
    Ok(Some(denial))
}

fn lineage(facts: &CallFacts) -> Option<&str> {
    facts.agent.as_deref().or(facts.label.as_deref())
}

/// The pointer from a caller's own key, within its vendor account, to the calls that were sent with it.
fn caller_key_pointer(ask: &IdentityAsk, facts: &CallFacts) -> Option<String> {
    if ask.kind != IdentityKind::CallerKey {
        return None;
    }
    let key = ask.caller_key.as_deref()?;
    Some(format!(
        "key:{}|{}|{}|{key}",
        facts.vendor.as_deref().unwrap_or_default(),
        if facts.livemode { "live" } else { "test" },
        facts.account.as_deref().unwrap_or_default(),
    ))
}

/// Whether another reservation that was sent with the same caller's key already stands for the money that a replayed
/// success reports: it is of the same object of the vendor. The key alone says nothing: a vendor forgets keys, and
/// another of its accounts never knew this one, so the replay may be of an attempt of this very call.
///
/// An object that the request names was there before, and every call moves money anew; then the vendor must certainly
/// have had the other's key still.
pub(super) fn settled_elsewhere(
    step: &mut Step<'_>,
    reservation: &Reservation,
    object: Option<&str>,
) -> Result<bool> {
    let (Some(own), Some(object)) = (&reservation.identity, object) else {
        return Ok(false);
    };
    let Some(id) = caller_key_pointer(own, &reservation.facts) else {
        return Ok(false);
    };
    let Some(pointer) = step.store.pointer(&id)? else {
        return Ok(false);
    };
    let named = own.fields.iter().any(|(_, value)| value == object);
    for call_id in &pointer.call_ids {
        if *call_id == reservation.facts.call_id {
            continue;
        }
        let Some(other) = step.store.reservation(call_id)? else {
            continue;
        };
        let stands = matches!(other.state, State::Settled | State::Provisional | State::Pending);
        let same = other.reply_facts.vendor_object.as_deref() == Some(object);
        if stands && same && (!named || may_resend(step, &other)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Points the identity (and the alias under which the call came) at its newest reservation.
pub(super) fn point(
    step: &mut Step<'_>,
    came_as: &IdentityAsk,
    reserved_as: &IdentityAsk,
    facts: &CallFacts,
) -> Result<()> {
    let until_ms = step.now_ms.saturating_add(came_as.remember_ms);
    let pointer = || Pointer {
        call_ids: vec![facts.call_id.clone()],
        until_ms,
    };
    step.store.put_pointer(&came_as.id, pointer())?;
    if reserved_as.id != came_as.id {
        step.store.put_pointer(&reserved_as.id, pointer())?;
    }
    if let Some(id) = caller_key_pointer(reserved_as, facts) {
        let calls = step.store.pointer(&id)?.unwrap_or_default();
        add_caller_key(step, &id, calls, (facts, until_ms))?;
    }
    Ok(())
}

/// Lets a call that the ledger had lost be found again by its identity, by those that joined it, and by its caller's own
/// key; a newer call that stands there stays. Answers whether anything changed.
pub(super) fn find_again(step: &mut Step<'_>, call: &Reservation, found_by: &[String]) -> Result<bool> {
    let Some(own) = &call.identity else {
        return Ok(false);
    };
    let until_ms = pointed_until_ms(step, call.state, own.remember_ms);
    let mut changed = false;
    for id in std::iter::once(&own.id).chain(found_by) {
        changed |= find_by(step, call, id, until_ms)?;
    }
    if let Some(id) = caller_key_pointer(own, &call.facts) {
        let calls = step.store.pointer(&id)?.unwrap_or_default();
        if !calls.call_ids.contains(&call.facts.call_id) {
            add_caller_key(step, &id, calls, (&call.facts, until_ms))?;
            changed = true;
        }
    }
    Ok(changed)
}

fn find_by(step: &mut Step<'_>, call: &Reservation, id: &str, until_ms: i64) -> Result<bool> {
    let call_id = &call.facts.call_id;
    let standing = step.store.pointer(id)?;
    if let Some(other_id) = standing.as_ref().and_then(|pointer| pointer.call_ids.last()) {
        let age = |call: &Reservation| (call.generation, call.reserved_at_ms);
        let other = step.store.reservation(other_id)?;
        if other_id == call_id || other.is_some_and(|other| age(&other) >= age(call)) {
            return Ok(false);
        }
    }
    let pointer = Pointer {
        call_ids: vec![call_id.clone()],
        until_ms,
    };
    step.store.put_pointer(id, pointer)?;
    Ok(true)
}

fn add_caller_key(
    step: &mut Step<'_>,
    id: &str,
    mut calls: Pointer,
    (facts, until_ms): (&CallFacts, i64),
) -> Result<()> {
    if calls.call_ids.len() >= CALLS_PER_CALLER_KEY {
        calls.call_ids.remove(0);
    }
    calls.call_ids.push(facts.call_id.clone());
    calls.until_ms = until_ms;
    step.store.put_pointer(id, calls)
}

/// Lets an identity that joined another's unknown call follow it from now on.
pub(super) fn follow(step: &mut Step<'_>, ask: &IdentityAsk, joined: &mut Reservation) -> Result<()> {
    if joined.identity.as_ref().is_some_and(|own| own.id == ask.id) {
        return Ok(());
    }
    let pointer = Pointer {
        call_ids: vec![joined.facts.call_id.clone()],
        until_ms: pointed_until_ms(step, joined.state, ask.remember_ms),
    };
    add_aliases(joined, std::slice::from_ref(&ask.id));
    step.store.put_pointer(&ask.id, pointer)
}

/// Notes the identities that point at a call besides its own.
pub(super) fn add_aliases(call: &mut Reservation, found_by: &[String]) {
    for id in found_by {
        let own = call.identity.as_ref().is_some_and(|own| own.id == *id);
        if !own && !call.aliases.contains(id) {
            call.aliases.push(id.clone());
        }
    }
}

/// The identity under which a call came, when it is reserved under another.
pub(super) fn alias(came_as: Option<&IdentityAsk>, reserved_as: Option<&IdentityAsk>) -> Vec<String> {
    let came_as = came_as.filter(|ask| reserved_as.is_some_and(|own| own.id != ask.id));
    came_as.map(|ask| ask.id.clone()).into_iter().collect()
}

/// Whether a call in this state may be open for longer than any pointer to it that has an end.
const fn outlasts_its_hold(state: State) -> bool {
    matches!(state, State::Unknown | State::Pending)
}

/// Until when a call in this state is pointed at from now on.
const fn pointed_until_ms(step: &Step<'_>, state: State, remember_ms: i64) -> i64 {
    if outlasts_its_hold(state) {
        i64::MAX
    } else {
        step.now_ms.saturating_add(remember_ms)
    }
}

/// Keeps the pointers to a call for as long as it may be asked about: without an end while its outcome is open, and
/// from its end on for as long as the identity is remembered. Else a repeat would be a new spend. A hold that ends in
/// the hour it was taken in has pointers that last already, so that the usual call writes none.
pub(super) fn keep(step: &mut Step<'_>, before: Option<State>, call: &Reservation) -> Result<()> {
    let (Some(own), Some(before)) = (&call.identity, before) else {
        return Ok(());
    };
    let open = outlasts_its_hold(call.state);
    let age_ms = call.changed_at_ms.saturating_sub(call.reserved_at_ms);
    let lasts = outlasts_its_hold(before) == open && (open || age_ms <= HOUR_MS);
    if call.state == State::Held || lasts {
        return Ok(());
    }
    let until_ms = if open {
        i64::MAX
    } else {
        call.changed_at_ms.saturating_add(own.remember_ms)
    };
    for id in kept_pointers(call, own) {
        let mut pointer = step.store.pointer(&id)?.unwrap_or_default();
        match pointer.call_ids.last() {
            Some(newest) if *newest != call.facts.call_id => continue,
            Some(_) => {}
            None => pointer.call_ids.push(call.facts.call_id.clone()),
        }
        pointer.until_ms = until_ms;
        step.store.put_pointer(&id, pointer)?;
    }
    Ok(())
}

fn kept_pointers<'a>(call: &'a Reservation, own: &'a IdentityAsk) -> impl Iterator<Item = String> + 'a {
    let ids = call.aliases.iter().chain([&own.id]).cloned();
    ids.chain(caller_key_pointer(own, &call.facts))
}

/// The pointers that change when a held call becomes unknown, for a backend that fetches them beforehand.
pub(in crate::ledger) fn pointers(call: &Reservation) -> Vec<String> {
    let Some(own) = &call.identity else {
        return Vec::new();
    };
    kept_pointers(call, own)
        .chain([unknown_pointer(&own.content_id)])
        .collect()
}

fn existing(earlier: &Reservation, differing: Vec<String>) -> ExistingCall {
    let amount = earlier.used.max(earlier.reserved);
    ExistingCall {
        call_id: earlier.facts.call_id.clone(),
        object: earlier.reply_facts.vendor_object.clone(),
        amount_micros: amount.micros(),
        at_ms: earlier.reserved_at_ms,
        differing,
    }
}

fn refused(code: Code, message: String, earlier: &Reservation, differing: Vec<String>) -> Denial {
    let mut denial = Denial::new(code, message);
    denial.existing = Some(existing(earlier, differing));
    denial
}

fn conflict(earlier: &Reservation, differing: Vec<String>) -> Denial {
    let message = format!(
        "the same step, item or key was used for call {} with another {}; give this call its own",
        earlier.facts.call_id,
        differing.join(", "),
    );
    refused(Code::IdempotencyConflict, message, earlier, differing)
}

fn outcome_unknown(earlier: &Reservation) -> Denial {
    let message = format!(
        "call {} with the same content was sent before and its outcome is not known; it must be resolved first",
        earlier.facts.call_id,
    );
    refused(Code::OutcomeUnknown, message, earlier, Vec::new())
}

pub(super) fn already_done(earlier: &Reservation) -> Denial {
    let message = format!("this was done already, by call {}", earlier.facts.call_id);
    refused(Code::AlreadyDone, message, earlier, Vec::new())
}

fn exhausted(earlier: &Reservation, used: u32) -> Denial {
    let message = format!(
        "the vendor refused this call for good {used} times, the last as call {}; it is not tried again",
        earlier.facts.call_id,
    );
    refused(Code::AttemptsExhausted, message, earlier, Vec::new())
}
