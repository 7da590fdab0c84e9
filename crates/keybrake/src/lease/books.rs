//! What this process has leased, and the calls that it decides from it.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash as _, Hasher as _, RandomState};
use std::sync::Arc;

use crate::journal::LeaseRows;
use crate::ledger::lease::{MOST_CALLS, leasable};
use crate::ledger::rules::leased_end;
use crate::ledger::{
    CallFacts, ChargeAsk, Grant, LeaseAnswer, LeaseAsk, LeasedCall, ReserveRequest, SettleAnswer, Settlement,
};
use crate::money::Usd;
use crate::policy::BudgetView;

/// Calls that a first lease asks room for.
const FIRST: u32 = 16;
/// The least that is asked for.
const SMALLEST: u32 = 8;
/// Calls of a kind within a lease's time that make it worth one.
const WORTH_IT: u32 = 3;
/// Kinds of calls that are counted to find that out; with more, all are counted anew.
const KINDS: usize = 4_096;

/// Leases that a process has at most.
const MOST_LEASES: usize = 128;
/// A kind of which a lease was refused is not asked for again for so many times a lease's time.
const REFUSED_FOR: i64 = 2;

/// A kind of call: key, vendor, attribution and charges, as a hash under a random key. Compared in full before use.
pub(super) type Kind = u64;

/// Everything that this process has leased.
#[derive(Debug, Default)]
pub(super) struct Books {
    hasher: RandomState,
    pub(super) leases: HashMap<Kind, Lease>,
    /// Kinds that have no lease: calls since then, and when it began, by the boot clock.
    seen: HashMap<Kind, (u32, i64)>,
    /// Calls under way, by id.
    under_way: HashMap<String, UnderWay>,
    pub(super) rows: Option<LeaseRows>,
    /// Kinds to take, renew or give back now.
    pub(super) due: Vec<Kind>,
    /// No more.
    pub(super) ended: bool,
}

/// A lease, or one about to be taken (number 0).
#[derive(Debug)]
pub(super) struct Lease {
    id: Arc<str>,
    /// The number of the last step that was answered.
    number: u64,
    facts: Arc<CallFacts>,
    charges: Vec<ChargeAsk>,
    max_open_holds: u32,
    /// Calls that may still be made.
    left: u32,
    /// Until when, by the boot clock.
    until_boot_ms: i64,
    /// The ledger's time, and the boot clock then.
    now_ms: (i64, i64),
    /// Holds of the key that were open.
    open_holds: u32,
    tightest: Option<BudgetView>,
    under_way: u32,
    next_index: u64,
    /// Calls that ended and were not told.
    done: Vec<LeasedCall>,
    /// The number of the step that tells what ends from now on.
    step: u64,
    /// The step that was asked for and not answered.
    asked: Option<LeaseAsk>,
    /// Room to ask for, and what was made since the last step.
    target: u32,
    made: u32,
    ran_out: bool,
    /// It is not prolonged any more.
    over: bool,
}

#[derive(Debug)]
struct UnderWay {
    kind: Kind,
    call: LeasedCall,
    /// To be made a hold of its own with the next step.
    apart: bool,
}

/// What is to be done of a settlement.
pub(super) enum Told {
    /// It is done.
    Here(SettleAnswer),
    /// The ledger has to be told of the call first.
    Apart(Kind),
    /// It is not about a call of ours.
    Elsewhere,
}

/// How a step of a lease goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Aim {
    /// Prolongs it if it is used, else gives it back.
    Renew,
    /// Gives it back.
    GiveBack,
    /// Tells what was done, if anything was.
    Tell,
}

impl Books {
    fn kind(&self, facts: &CallFacts, charges: &[ChargeAsk]) -> Kind {
        let mut hasher = self.hasher.build_hasher();
        (
            &facts.key_id,
            facts.key_version,
            &facts.vendor,
            facts.livemode,
            &facts.run,
        )
            .hash(&mut hasher);
        for charge in charges {
            (&charge.budget, &charge.customer, charge.amount, charge.limit).hash(&mut hasher);
        }
        hasher.finish()
    }

    /// Decides a call from its lease; `None` when it is the ledger's to decide. Answers too whether a step is due.
    pub(super) fn reserve(
        &mut self,
        request: &ReserveRequest,
        boot_ms: i64,
        ttl_ms: i64,
    ) -> (Option<Grant>, bool) {
        let Some(charges) = leasable(request).filter(|_| !self.ended) else {
            return (None, false);
        };
        let kind = self.kind(&request.facts, charges);
        let Some(lease) = self.leases.get_mut(&kind) else {
            return (None, self.note(kind, request, charges, (boot_ms, ttl_ms)));
        };
        if !lease.is_for(&request.facts, charges) {
            return (None, false);
        }
        if let Some(same) = self.under_way.get(&request.facts.call_id) {
            return (Some(lease.grant(&same.call)), false);
        }
        let open = lease.open_holds.saturating_add(lease.under_way);
        let usable = lease.left > 0 && boot_ms < lease.until_boot_ms && open < request.max_open_holds;
        if !usable {
            let due = lease.left == 0 && lease.number > 0 && !lease.ran_out && !lease.over;
            lease.ran_out |= due;
            lease.made = lease.made.saturating_add(u32::from(due));
            self.due.extend(due.then_some(kind));
            return (None, due);
        }
        let call = lease.call(request, boot_ms);
        if let Some(rows) = &self.rows
            && let Err(error) = rows.made(&lease.id, &call)
        {
            tracing::warn!(%error, "a call cannot be written down; the ledger decides it");
            return (None, false);
        }
        lease.left = lease.left.saturating_sub(1);
        lease.made = lease.made.saturating_add(1);
        lease.under_way = lease.under_way.saturating_add(1);
        let grant = lease.grant(&call);
        // Half empty: more is fetched before it runs out.
        let due = !lease.ran_out && lease.left < lease.target / 2;
        lease.ran_out |= due;
        self.due.extend(due.then_some(kind));
        let under_way = UnderWay {
            kind,
            call,
            apart: false,
        };
        self.under_way.insert(request.facts.call_id.clone(), under_way);
        (Some(grant), due)
    }

    /// Counts a call of a kind that has no lease, and begins one when there are enough of them.
    fn note(
        &mut self,
        kind: Kind,
        request: &ReserveRequest,
        charges: &[ChargeAsk],
        (boot_ms, ttl_ms): (i64, i64),
    ) -> bool {
        if self.seen.len() >= KINDS {
            self.seen.clear();
        }
        let seen = self.seen.entry(kind).or_insert((0, boot_ms));
        if boot_ms < seen.1 {
            return false;
        }
        if boot_ms.saturating_sub(seen.1) > ttl_ms {
            *seen = (0, boot_ms);
        }
        seen.0 = seen.0.saturating_add(1);
        if seen.0 < WORTH_IT || self.leases.len() >= MOST_LEASES {
            return false;
        }
        self.seen.remove(&kind);
        self.leases.insert(kind, Lease::new(request, charges));
        self.due.push(kind);
        true
    }

    /// A call's end.
    pub(super) fn settle(&mut self, settlement: &Settlement) -> Told {
        let Some(own) = self.under_way.get_mut(&settlement.call_id) else {
            return Told::Elsewhere;
        };
        let kind = own.kind;
        let Some(lease) = self.leases.get_mut(&kind) else {
            return Told::Elsewhere;
        };
        let Some(end) = leased_end(settlement).filter(|_| !own.apart) else {
            own.apart = true;
            return Told::Apart(kind);
        };
        let Some(own) = self.under_way.remove(&settlement.call_id) else {
            return Told::Elsewhere;
        };
        if let Some(rows) = &self.rows
            && let Err(error) = rows.ended(&lease.id, own.call.index, lease.step, settlement)
        {
            tracing::warn!(%error, "a call's end cannot be written down until the ledger is told of it");
        }
        lease.under_way = lease.under_way.saturating_sub(1);
        lease.done.push(LeasedCall {
            step: lease.step,
            settlement: Some(settlement.clone()),
            ..own.call
        });
        Told::Here(SettleAnswer {
            state: end.state,
            used: Usd::ZERO,
            held: Usd::ZERO,
            overrun: Usd::ZERO,
            tightest: lease.tightest.clone(),
            already: false,
        })
    }

    /// Kinds that have a lease, of one key if it is named.
    pub(super) fn kinds(&self, key_id: Option<&str>) -> Vec<Kind> {
        let of_key = |lease: &&Lease| key_id.is_none_or(|id| lease.facts.key_id.as_deref() == Some(id));
        let found = self.leases.iter().filter(|(_, lease)| of_key(lease));
        found.map(|(kind, _)| *kind).collect()
    }

    /// Before a round: new rows go to the other file, with those of the calls under way.
    pub(super) fn turn_rows(&mut self) {
        let Some(rows) = &mut self.rows else { return };
        if rows.turn() {
            self.write_under_way();
        }
    }

    /// Writes down the calls under way in a file that has them not.
    fn write_under_way(&self) {
        let Some(rows) = &self.rows else { return };
        let mut calls: Vec<&UnderWay> = self.under_way.values().collect();
        calls.sort_by_key(|own| (own.kind, own.call.index));
        for own in calls {
            if let Some(lease) = self.leases.get(&own.kind)
                && let Err(error) = rows.made(&lease.id, &own.call)
            {
                tracing::warn!(%error, "a call under way cannot be written down again");
            }
        }
    }

    /// After every lease had its turn: what was written down before it is told, if every lease's step was answered.
    pub(super) fn rows_told(&mut self) {
        let Some(rows) = &mut self.rows else { return };
        if self.leases.is_empty() {
            rows.all_told();
        } else if self.leases.values().all(|lease| lease.asked.is_none()) {
            rows.told();
        }
    }

    /// The next step of a lease, if it needs one, and whether it was asked for before and not answered.
    pub(super) fn ask(
        &mut self,
        kind: Kind,
        aim: Aim,
        (boot_ms, ttl_ms): (i64, i64),
    ) -> Option<(LeaseAsk, bool)> {
        let lease = self.leases.get_mut(&kind)?;
        if let Some(asked) = &lease.asked {
            return Some((asked.clone(), true));
        }
        let taken = lease.number > 0;
        if aim == Aim::Tell && (!taken || lease.done.is_empty()) {
            return None;
        }
        let idle = taken && lease.made == 0 && aim != Aim::Tell;
        let ends = lease.over || idle || aim == Aim::GiveBack;
        if !taken && aim == Aim::GiveBack {
            self.leases.remove(&kind);
            return None;
        }
        if taken && aim != Aim::Tell {
            lease.adapt();
        }
        let mut done = std::mem::take(&mut lease.done);
        if ends {
            lease.left = 0;
        }
        let mut own_calls: Vec<&mut UnderWay> = self
            .under_way
            .values_mut()
            .filter(|own| own.kind == kind)
            .collect();
        own_calls.sort_by_key(|own| own.call.index);
        // By the deadline of a call that is still under way the ledger knows of it, and looks at that deadline itself.
        let by_ms = lease.ledger_ms(boot_ms).saturating_add(ttl_ms);
        for own in own_calls {
            own.apart |= ends || own.call.not_after_ms <= by_ms;
            if own.apart {
                done.push(own.call.clone());
            }
        }
        let apart = done.iter().filter(|call| call.settlement.is_none()).count();
        let stay = lease
            .under_way
            .saturating_sub(u32::try_from(apart).unwrap_or(u32::MAX));
        let keep = lease.left.saturating_add(stay);
        let wanted = lease.target.saturating_sub(lease.left);
        let ask = LeaseAsk {
            id: lease.id.to_string(),
            number: lease.number.saturating_add(1),
            facts: Arc::clone(&lease.facts),
            charges: lease.charges.clone(),
            keep,
            wanted: if ends {
                0
            } else {
                wanted.min(MOST_CALLS.saturating_sub(keep))
            },
            done,
            ttl_ms,
            max_open_holds: lease.max_open_holds,
        };
        if aim != Aim::Tell {
            lease.made = 0;
        }
        lease.ran_out = false;
        lease.step = ask.number.saturating_add(1);
        lease.asked = Some(ask.clone());
        Some((ask, false))
    }

    /// What the ledger answered to a step that was asked for at `asked_boot_ms`. Answers whether another one is due.
    pub(super) fn answered(
        &mut self,
        kind: Kind,
        ask: &LeaseAsk,
        asked_boot_ms: i64,
        answer: &LeaseAnswer,
    ) -> bool {
        for call in ask.done.iter().filter(|call| call.settlement.is_none()) {
            self.under_way.remove(&call.facts.call_id);
        }
        let Some(lease) = self.leases.get_mut(&kind) else {
            return false;
        };
        let told = ask.done.iter().filter(|call| call.settlement.is_none()).count();
        lease.under_way = lease
            .under_way
            .saturating_sub(u32::try_from(told).unwrap_or(u32::MAX));
        lease.asked = None;
        lease.number = ask.number;
        match answer {
            LeaseAnswer::Held(held) => {
                lease.left = lease.left.saturating_add(held.added);
                lease.until_boot_ms = asked_boot_ms.saturating_add(held.for_ms);
                lease.now_ms = (held.now_ms, asked_boot_ms);
                lease.open_holds = held.open_holds;
                lease.tightest.clone_from(&held.tightest);
                false
            }
            LeaseAnswer::Refused if ask.number > 1 => {
                (lease.left, lease.over) = (0, true);
                true
            }
            LeaseAnswer::Refused | LeaseAnswer::Over { .. } => {
                if ask.number == 1 {
                    // Little room, a stop, the end of a window: not worth asking again at once.
                    let later_ms = ask.ttl_ms.saturating_mul(REFUSED_FOR);
                    self.seen
                        .insert(kind, (0, asked_boot_ms.saturating_add(later_ms)));
                }
                (lease.left, lease.over) = (0, true);
                let more = lease.under_way > 0 || !lease.done.is_empty();
                if !more {
                    self.leases.remove(&kind);
                }
                more
            }
        }
    }

    /// The ledger will not hear of a lease: it is left to its deadline. Its rows are told then, by anybody, from where
    /// they were written down; those of the others go on in `rows`.
    pub(super) fn abandon(&mut self, kind: Kind, rows: Option<LeaseRows>) {
        self.leases.remove(&kind);
        self.under_way.retain(|_, own| own.kind != kind);
        if rows.is_some() {
            self.rows = rows;
            self.write_under_way();
        }
    }

    /// Nothing can be leased now: the kinds that leases were to be taken of are counted anew from that moment on.
    pub(super) fn put_off(&mut self, until_boot_ms: i64) {
        let kinds: Vec<Kind> = self.leases.drain().map(|(kind, _)| kind).collect();
        self.seen
            .extend(kinds.into_iter().map(|kind| (kind, (0, until_boot_ms))));
        self.due.clear();
    }

    /// Has a call that is under way told to the ledger with the next step of its lease; answers which lease that is.
    pub(super) fn set_apart(&mut self, call_id: &str) -> Option<Kind> {
        let own = self.under_way.get_mut(call_id)?;
        own.apart = true;
        Some(own.kind)
    }
}

impl Lease {
    fn new(request: &ReserveRequest, charges: &[ChargeAsk]) -> Self {
        Self {
            id: Arc::from(format!("lease-{}", uuid::Uuid::now_v7())),
            number: 0,
            facts: Arc::new(CallFacts {
                operation: "lease".to_owned(),
                account: None,
                customer: None,
                context: serde_json::Map::new(),
                read_headers: Vec::new(),
                ..(*request.facts).clone()
            }),
            charges: charges.to_vec(),
            max_open_holds: request.max_open_holds,
            left: 0,
            until_boot_ms: i64::MIN,
            now_ms: (0, 0),
            open_holds: u32::MAX,
            tightest: None,
            under_way: 0,
            next_index: 0,
            done: Vec::new(),
            step: 2,
            asked: None,
            target: FIRST,
            made: 0,
            ran_out: false,
            over: false,
        }
    }

    /// Whether it is for calls like this one: what stops look at, and what each takes of which budget.
    fn is_for(&self, facts: &CallFacts, charges: &[ChargeAsk]) -> bool {
        let own = &*self.facts;
        let same = |(a, b): (&ChargeAsk, &ChargeAsk)| {
            (&a.budget, &a.customer, a.amount, a.limit, a.enforce, a.unit)
                == (&b.budget, &b.customer, b.amount, b.limit, b.enforce, b.unit)
        };
        own.key_id == facts.key_id
            && own.key_version == facts.key_version
            && own.vendor == facts.vendor
            && own.livemode == facts.livemode
            && own.run == facts.run
            && own.agent == facts.agent
            && own.label == facts.label
            && own.groups == facts.groups
            && self.charges.len() == charges.len()
            && self.charges.iter().zip(charges).all(same)
    }

    /// The ledger's time, by the holder's estimate.
    const fn ledger_ms(&self, boot_ms: i64) -> i64 {
        let (now_ms, then_boot_ms) = self.now_ms;
        now_ms.saturating_add(boot_ms.saturating_sub(then_boot_ms))
    }

    fn call(&mut self, request: &ReserveRequest, boot_ms: i64) -> LeasedCall {
        self.next_index = self.next_index.saturating_add(1);
        let at_ms = self.ledger_ms(boot_ms);
        LeasedCall {
            index: self.next_index,
            // Until its end is known, no step has told it.
            step: u64::MAX,
            facts: Arc::clone(&request.facts),
            at_ms,
            not_after_ms: at_ms.saturating_add(request.hold_for_ms),
            settlement: None,
        }
    }

    fn grant(&self, call: &LeasedCall) -> Grant {
        Grant {
            call_id: call.facts.call_id.clone(),
            attempt: 1,
            joined: false,
            identity: None,
            generation: 1,
            caller_key: None,
            pins: Vec::new(),
            amount: Usd::ZERO,
            now_ms: call.at_ms,
            not_after_ms: call.not_after_ms,
            tightest: self.tightest.clone(),
            would_deny: None,
        }
    }

    /// Asks for more where it ran out, for less where it was not needed.
    fn adapt(&mut self) {
        if self.ran_out {
            self.target = self.target.saturating_mul(2).min(MOST_CALLS);
        } else if self.made < self.target / 4 {
            self.target = (self.target / 2).max(SMALLEST);
            self.left = self.left.min(self.target);
        }
    }
}
