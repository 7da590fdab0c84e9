//! The reference model: a list of calls, and everything else computed from it anew. Slow, plain, and written
//! from the contract alone. Only the table of transitions is shared with the ledger.

use std::collections::{BTreeMap, BTreeSet};

use keybrake::ledger::{
    AmountAsk, Ask, BudgetDef, CallFacts, ChargeAsk, IdentityAsk, IdentityKind, OnRepeat, ReserveRequest,
    Scope, State, StopScope, Unit, WindowKind,
};
use keybrake::money::Usd;
use keybrake::policy::Code;

use super::super::world::{DAY_MS, Key};

const BUCKET_MS: i64 = 300_000;

/// What a reserve must answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    Granted {
        call_id: String,
        attempt: u32,
        joined: bool,
        generation: u32,
        amount: Usd,
        identity: Option<String>,
    },
    Replay(String),
    Denied(Code),
}

#[derive(Debug)]
pub(super) struct Model {
    pub(super) now_ms: i64,
    pub(super) caps: BTreeMap<String, i64>,
    windows: BTreeMap<String, WindowKind>,
    pub(super) stops: BTreeSet<StopScope>,
    keys: BTreeMap<String, ModelKey>,
    pub(super) calls: Vec<ModelCall>,
    pub(super) objects: BTreeMap<String, Object>,
    /// Newest call of each identity.
    newest: BTreeMap<String, usize>,
}

#[derive(Debug)]
struct ModelKey {
    agent: Option<String>,
    run: Option<String>,
    ancestors: Vec<String>,
    revoked: bool,
    expires_at_ms: i64,
}

#[derive(Debug, Default)]
pub(super) struct Object {
    pub(super) calls: Vec<usize>,
    pub(super) moved: i64,
    pub(super) closed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    None,
    Charged,
    Declined,
    NeverSent,
    NotExecuted,
    Absent,
    Operator,
    Closed,
    Replayed,
}

#[derive(Clone, Debug)]
pub(super) struct ModelCall {
    pub(super) id: String,
    pub(super) facts: CallFacts,
    pub(super) state: State,
    pub(super) identity: Option<IdentityAsk>,
    pub(super) generation: u32,
    series: u32,
    inherited: bool,
    pub(super) reserved: Usd,
    pub(super) held: Usd,
    pub(super) used: Usd,
    pub(super) parts: Vec<Part>,
    pub(super) object: Option<String>,
    /// What its replies have shown: a refund's id, say.
    pub(super) vendor_object: Option<String>,
    pub(super) attempts: u32,
    joined_by: Vec<String>,
    /// Attempts proven not to have executed, and whether they provably never left.
    pub(super) proven: BTreeMap<u32, bool>,
    pub(super) applied: BTreeSet<(u32, &'static str)>,
    reserved_at_ms: i64,
    pub(super) not_after_ms: i64,
    pub(super) changed_at_ms: i64,
    pub(super) end: End,
    pub(super) has_reply: bool,
}

/// One budget's part of a call. Money is the call's own amount; counts are kept here.
#[derive(Clone, Debug)]
pub(super) struct Part {
    budget: String,
    customer: Option<String>,
    start: Option<i64>,
    pub(super) unit: Unit,
    pub(super) held: i64,
    pub(super) used: i64,
}

impl ModelCall {
    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, State::Held | State::Unknown | State::Pending)
            && (self.facts.moves_money
                || self.held > Usd::ZERO
                || self.parts.iter().any(|part| part.held > 0))
    }

    pub(super) fn is_read(&self) -> bool {
        self.identity.is_none() && !self.facts.moves_money && self.reserved == Usd::ZERO
    }

    /// Used and held of one part.
    fn of(&self, part: &Part) -> (i64, i64) {
        match part.unit {
            Unit::Usd => (self.used.micros(), self.held.micros()),
            _ => (part.used, part.held),
        }
    }
}

impl Model {
    pub(super) fn new(now_ms: i64) -> Self {
        Self {
            now_ms,
            caps: BTreeMap::new(),
            windows: BTreeMap::new(),
            stops: BTreeSet::new(),
            keys: BTreeMap::new(),
            calls: Vec::new(),
            objects: BTreeMap::new(),
            newest: BTreeMap::new(),
        }
    }

    pub(super) fn advance(&mut self, ms: i64) {
        self.now_ms += ms;
    }

    pub(super) fn may_issue(&self, key: &Key) -> bool {
        let family: Vec<&String> = key.ancestors.iter().collect();
        let ended = |id: &&String| {
            let ancestor = &self.keys[*id];
            ancestor.revoked || ancestor.expires_at_ms <= self.now_ms
        };
        let stopped = self.stops.iter().any(|stop| match stop {
            StopScope::All => true,
            StopScope::Agent(id) => {
                key.agent.as_ref() == Some(id)
                    || family
                        .iter()
                        .any(|other| self.keys[*other].agent.as_ref() == Some(id))
            }
            StopScope::Run(id) => key.run.as_ref() == Some(id),
            _ => false,
        });
        !stopped && !family.iter().any(ended)
    }

    pub(super) fn issued(&mut self, key: &Key) {
        for budget in &key.budgets {
            self.windows.insert(budget.def.id().0, budget.def.window);
        }
        self.keys.insert(
            key.id.clone(),
            ModelKey {
                agent: key.agent.clone(),
                run: key.run.clone(),
                ancestors: key.ancestors.clone(),
                revoked: false,
                expires_at_ms: key.expires_at_ms,
            },
        );
    }

    pub(super) fn revoke(&mut self, id: &str) {
        if let Some(key) = self.keys.get_mut(id) {
            key.revoked = true;
        }
    }

    /// Deadlines that have passed.
    pub(super) fn lapse(&mut self) {
        for call in &mut self.calls {
            if call.state == State::Held && self.now_ms >= call.not_after_ms {
                call.state = State::Unknown;
                call.changed_at_ms = self.now_ms;
                if call.is_read() {
                    for part in &mut call.parts {
                        part.used += std::mem::take(&mut part.held);
                    }
                }
            }
        }
    }

    pub(super) fn reserve(&mut self, request: &ReserveRequest) -> Expected {
        self.lapse();
        let Ask::Amount(ask) = &request.ask else {
            panic!("the model only asks for amounts");
        };
        let facts = &request.facts;
        if let Some(code) = self.key_denial(facts) {
            return Expected::Denied(code);
        }
        if let Some(seen) = self.calls.iter().find(|call| call.id == facts.call_id) {
            return match seen.state {
                State::Held | State::Unknown => granted(seen, 1, false),
                State::Voided => Expected::Denied(Code::LedgerUnavailable),
                _ => Expected::Denied(Code::AlreadyDone),
            };
        }
        let mut fresh = Fresh {
            identity: request.identity.as_deref().cloned(),
            generation: 1,
            series: 1,
            counted: false,
        };
        if let Some(own) = request.identity.as_deref() {
            if let Some(index) = self.newest_of_spend(&own.id) {
                match self.repeat(own, index, facts) {
                    Ok(plan) => fresh = plan,
                    Err(answer) => return answer,
                }
            }
            if let Some(answer) = self.twin(own, request) {
                return answer;
            }
            if self.foreign_key(own, facts) {
                return Expected::Denied(Code::IdempotencyConflict);
            }
        }
        self.hold(request, ask, fresh)
    }

    /// Of a spend that it joined, what the one it joined did since.
    fn newest_of_spend(&self, id: &str) -> Option<usize> {
        let index = *self.newest.get(id)?;
        let call = &self.calls[index];
        let joined = &call.identity.as_ref().unwrap().id;
        if call.state != State::Voided || joined == id {
            return Some(index);
        }
        let later = self.newest.get(joined).copied();
        let same_key = |later: &usize| self.calls[*later].generation == call.generation;
        Some(later.filter(same_key).unwrap_or(index))
    }

    fn key_denial(&self, facts: &CallFacts) -> Option<Code> {
        let key = &self.keys[facts.key_id.as_ref().unwrap()];
        let family: Vec<&ModelKey> = key
            .ancestors
            .iter()
            .map(|id| &self.keys[id])
            .chain([key])
            .collect();
        let stopped = self.stops.iter().any(|stop| match stop {
            StopScope::All => true,
            StopScope::Vendor(id) => facts.vendor.as_ref() == Some(id),
            StopScope::Agent(id) => family.iter().any(|key| key.agent.as_ref() == Some(id)),
            StopScope::Run(id) => family.iter().any(|key| key.run.as_ref() == Some(id)),
            _ => false,
        });
        if stopped {
            Some(Code::Stopped)
        } else if family.iter().any(|key| key.revoked) {
            Some(Code::KeyRevoked)
        } else if family.iter().any(|key| key.expires_at_ms <= self.now_ms) {
            Some(Code::KeyExpired)
        } else {
            None
        }
    }

    /// What an identity that was seen before leads to: a new reservation, or an answer.
    fn repeat(&mut self, own: &IdentityAsk, index: usize, facts: &CallFacts) -> Result<Fresh, Expected> {
        let earlier = &self.calls[index];
        let before = earlier.identity.clone().unwrap();
        let next = |series: u32| Fresh {
            identity: Some(own.clone()),
            generation: earlier.generation + 1,
            series,
            counted: false,
        };
        let open = matches!(earlier.state, State::Held | State::Unknown | State::Pending);
        if !open && self.now_ms > earlier.changed_at_ms + before.remember_ms {
            return Ok(next(earlier.generation + 1));
        }
        if before.fields != own.fields && earlier.end != End::Declined {
            return Err(Expected::Denied(Code::IdempotencyConflict));
        }
        let done = match earlier.state {
            State::Held | State::Unknown => {
                if (before.wire == own.wire && self.may_resend(earlier.reserved_at_ms))
                    || earlier.joined_by.contains(&facts.call_id)
                {
                    return Err(self.join(index, facts, own));
                }
                return Err(Expected::Denied(Code::OutcomeUnknown));
            }
            State::Voided => earlier.end == End::Closed,
            _ => true,
        };
        if done {
            return match own.on_repeat {
                OnRepeat::Execute => Ok(next(earlier.generation + 1)),
                OnRepeat::Replay if earlier.has_reply => Err(Expected::Replay(earlier.id.clone())),
                _ => Err(Expected::Denied(Code::AlreadyDone)),
            };
        }
        if earlier.end == End::Declined {
            if earlier.generation - earlier.series + 1 >= own.max_generations {
                return Err(Expected::Denied(Code::AttemptsExhausted));
            }
            return Ok(next(earlier.series));
        }
        let mut identity = before;
        identity.wire.clone_from(&own.wire);
        identity.on_repeat = own.on_repeat;
        Ok(Fresh {
            identity: Some(identity),
            generation: earlier.generation,
            series: earlier.series,
            counted: earlier.inherited || earlier.end != End::NeverSent,
        })
    }

    /// An unknown call with the same content under another identity.
    fn twin(&mut self, own: &IdentityAsk, request: &ReserveRequest) -> Option<Expected> {
        if own.kind == IdentityKind::Transport {
            return None;
        }
        let twins: Vec<usize> = (0..self.calls.len())
            .filter(|index| {
                let call = &self.calls[*index];
                call.state == State::Unknown
                    && call.identity.as_ref().is_some_and(|other| {
                        other.kind != IdentityKind::Transport
                            && other.content_id == own.content_id
                            && other.id != own.id
                    })
            })
            .collect();
        let wire = |index: &usize| self.calls[*index].identity.as_ref().unwrap().wire.clone();
        let refuses =
            |index: &usize| wire(index) != own.wire || !self.may_resend(self.calls[*index].reserved_at_ms);
        if twins.iter().any(refuses) {
            return Some(Expected::Denied(Code::OutcomeUnknown));
        }
        // Which of several it joins is the ledger's choice: the one that became unknown first.
        let first = *twins
            .iter()
            .min_by_key(|index| self.calls[**index].changed_at_ms)?;
        Some(self.join(first, &request.facts, own))
    }

    /// The vendor keeps a key for a day; an attempt under it is safe for 23 hours.
    fn may_resend(&self, reserved_at_ms: i64) -> bool {
        self.now_ms - reserved_at_ms < 23 * 3_600_000
    }

    fn join(&mut self, index: usize, facts: &CallFacts, own: &IdentityAsk) -> Expected {
        let now_ms = self.now_ms;
        let call = &mut self.calls[index];
        if let Some(at) = call.joined_by.iter().position(|joined| *joined == facts.call_id) {
            return granted(call, u32::try_from(at).unwrap() + 2, true);
        }
        call.attempts += 1;
        call.joined_by.push(facts.call_id.clone());
        call.not_after_ms = call.not_after_ms.max(now_ms + super::super::world::HOLD_MS);
        call.changed_at_ms = now_ms;
        self.newest.insert(own.id.clone(), index);
        let call = &self.calls[index];
        granted(call, call.attempts, true)
    }

    /// The caller's own key, sent before by another agent to the same account.
    fn foreign_key(&self, own: &IdentityAsk, facts: &CallFacts) -> bool {
        self.same_caller_key(own, facts)
            .last()
            .is_some_and(|other| other.facts.agent != facts.agent)
    }

    pub(super) fn same_caller_key<'a>(
        &'a self,
        own: &'a IdentityAsk,
        facts: &'a CallFacts,
    ) -> impl Iterator<Item = &'a ModelCall> {
        self.calls.iter().filter(move |call| {
            own.kind == IdentityKind::CallerKey
                && call.facts.account == facts.account
                && call.identity.as_ref().is_some_and(|other| {
                    other.kind == IdentityKind::CallerKey && other.caller_key == own.caller_key
                })
        })
    }

    fn hold(&mut self, request: &ReserveRequest, ask: &AmountAsk, fresh: Fresh) -> Expected {
        let usd = match &ask.raise {
            None => ask.usd,
            Some(raise) => Usd::from_micros((raise.to.micros() - self.exposed(&raise.object)).max(0)),
        };
        let mut parts = Vec::new();
        let mut full = None;
        for charge in &ask.charges {
            let amount = match charge.unit {
                Unit::Usd => usd.micros(),
                _ if fresh.counted => 0,
                _ => charge.amount,
            };
            let part = self.part(charge, amount);
            let (used, held) = self.total(&part.budget, part.customer.as_deref());
            let cap = self.caps[&part.budget];
            if charge.enforce && amount > 0 {
                if used + amount > cap {
                    full = Some(Code::CapExceeded);
                } else if used + held + amount > cap {
                    full = full.or(Some(Code::CapHeld));
                }
            }
            parts.push(part);
        }
        if let Some(code) = full {
            return Expected::Denied(code);
        }
        let index = self.calls.len();
        if let Some(raise) = &ask.raise {
            self.objects
                .entry(raise.object.clone())
                .or_default()
                .calls
                .push(index);
        }
        for identity in [request.identity.as_deref(), fresh.identity.as_ref()]
            .into_iter()
            .flatten()
        {
            self.newest.insert(identity.id.clone(), index);
        }
        self.calls.push(ModelCall {
            id: request.facts.call_id.clone(),
            facts: CallFacts::clone(&request.facts),
            state: State::Held,
            identity: fresh.identity,
            generation: fresh.generation,
            series: fresh.series,
            inherited: fresh.counted,
            reserved: usd,
            held: usd,
            used: Usd::ZERO,
            parts,
            object: ask.raise.as_ref().map(|raise| raise.object.clone()),
            vendor_object: None,
            attempts: 1,
            joined_by: Vec::new(),
            proven: BTreeMap::new(),
            applied: BTreeSet::new(),
            reserved_at_ms: self.now_ms,
            not_after_ms: self.now_ms + request.hold_for_ms,
            changed_at_ms: self.now_ms,
            end: End::None,
            has_reply: false,
        });
        granted(&self.calls[index], 1, false)
    }

    fn part(&self, charge: &ChargeAsk, amount: i64) -> Part {
        let length_ms = match self.windows[&charge.budget.0] {
            WindowKind::Hour => Some(3_600_000),
            WindowKind::Day => Some(DAY_MS),
            WindowKind::Rolling24h => Some(BUCKET_MS),
            _ => None,
        };
        Part {
            budget: charge.budget.0.clone(),
            customer: charge.customer.clone(),
            start: length_ms.map(|length| self.now_ms - self.now_ms.rem_euclid(length)),
            unit: charge.unit,
            held: if charge.unit == Unit::Usd { 0 } else { amount },
            used: 0,
        }
    }

    /// What an object exposes: everything that its calls hold and have used.
    pub(super) fn exposed(&self, object: &str) -> i64 {
        self.objects.get(object).map_or(0, |object| {
            object
                .calls
                .iter()
                .map(|index| exposure(&self.calls[*index]))
                .sum()
        })
    }

    /// Used and held of a budget in its present window, added up over all calls.
    fn total(&self, budget: &str, customer: Option<&str>) -> (i64, i64) {
        let now_ms = self.now_ms;
        let present = |part: &Part| match (self.windows[budget], part.start) {
            (WindowKind::Hour, Some(start)) => now_ms < start + 3_600_000,
            (WindowKind::Day, Some(start)) => now_ms < start + DAY_MS,
            (WindowKind::Rolling24h, Some(start)) => start + BUCKET_MS > now_ms - DAY_MS,
            _ => true,
        };
        let mut total = (0, 0);
        for call in &self.calls {
            for part in &call.parts {
                if part.budget == budget && part.customer.as_deref() == customer && present(part) {
                    let (used, held) = call.of(part);
                    total = (total.0 + used, total.1 + held);
                }
            }
        }
        total
    }

    /// What a budget must show now.
    pub(super) fn standing(&self, def: &BudgetDef, customer: Option<&str>) -> (i64, i64) {
        self.total(&def.id().0, customer)
    }

    /// Every counter that was ever used, by the name that it must have.
    pub(super) fn by_counter(&self) -> BTreeMap<String, (i64, i64)> {
        let mut totals: BTreeMap<String, (i64, i64)> = BTreeMap::new();
        for call in &self.calls {
            for part in &call.parts {
                let id = match &part.customer {
                    Some(customer) => part
                        .budget
                        .replace("customer:*", &Scope::Customer(customer.clone()).name()),
                    None => part.budget.clone(),
                };
                let start = part.start.map_or("-".to_owned(), |start| start.to_string());
                let (used, held) = call.of(part);
                let total = totals.entry(format!("{id}|live|{start}")).or_default();
                *total = (total.0 + used, total.1 + held);
            }
        }
        totals
    }
}

/// How a new reservation continues its identity.
struct Fresh {
    identity: Option<IdentityAsk>,
    generation: u32,
    series: u32,
    /// Whether this generation's count units are taken already.
    counted: bool,
}

pub(super) fn exposure(call: &ModelCall) -> i64 {
    call.held.micros() + call.used.micros()
}

fn granted(call: &ModelCall, attempt: u32, joined: bool) -> Expected {
    Expected::Granted {
        call_id: call.id.clone(),
        attempt,
        joined,
        generation: call.generation,
        amount: call.reserved,
        identity: call.identity.as_ref().map(|own| own.id.clone()),
    }
}
