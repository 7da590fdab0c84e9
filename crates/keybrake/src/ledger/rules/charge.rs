//! What a call takes from its budgets: windows, rolling sums, caps, and all of them at once.

use std::fmt::Write as _;
use std::sync::Arc;

use super::step::{BUCKET_MS, ROLLING_MS, Step, corrupt, internal, split_bucket, sum};
use crate::error::Result;
use crate::ledger::events::Delta;
use crate::ledger::lease::window_ends;
use crate::ledger::store::{Counter, Finding, Rolling};
use crate::ledger::types::{
    BudgetDef, BudgetId, Charge, ChargeAsk, CounterName, HoldFilter, Scope, Unit, Window, WindowKind,
};
use crate::money::Usd;
use crate::policy::{BudgetView, Code, Denial};

/// Holds looked at for the ids in a `cap_held` denial, so that a refusal costs the same with any number.
const HOLDS_LOOKED_AT: u32 = 50;
const HOLD_IDS: usize = 10;

/// One charge as it will be taken. Nothing is written yet.
pub(super) struct Planned {
    def: Arc<BudgetDef>,
    ask: ChargeAsk,
    family: String,
    counter: CounterName,
    slot: Slot,
    /// Used and held in the whole window, before this call.
    total: Counter,
    amount: i64,
}

enum Slot {
    /// No window.
    Whole,
    /// The present calendar window, to be written if it is new.
    Calendar { window: Window, new: bool },
    /// The rolling sum, advanced to now.
    Rolling(Rolling),
}

/// The plan for all charges of a call, or `None` when a proposed window does not contain the ledger's time.
pub(super) type Plan = Option<Vec<Planned>>;

/// Plans all charges: `usd` in every budget of money, and the count units unless this generation took them
/// already.
pub(super) fn plan(
    step: &mut Step<'_>,
    livemode: bool,
    asks: &[ChargeAsk],
    usd: Usd,
    counts: bool,
) -> Result<Plan> {
    let mut planned: Vec<Planned> = Vec::with_capacity(asks.len());
    for ask in asks {
        let amount = match ask.unit {
            Unit::Usd => usd.micros(),
            _ if counts => ask.amount,
            _ => 0,
        };
        if amount < 0 {
            return Err(internal(format!(
                "a charge of {amount} in {} is below zero",
                ask.budget.0
            )));
        }
        let Some(def) = step.store.budget(&ask.budget)? else {
            return Err(corrupt(format!(
                "the budget {} is not in the ledger",
                ask.budget.0
            )));
        };
        let family = family(&def, &ask.budget, ask.customer.as_deref(), livemode)?;
        let Some((counter, slot, total)) = place(step, &def, &family, ask.window)? else {
            return Ok(None);
        };
        if planned.iter().any(|other| other.counter == counter) {
            return Err(internal(format!(
                "the budget {} is charged twice by one call",
                ask.budget.0
            )));
        }
        planned.push(Planned {
            def,
            ask: ask.clone(),
            family,
            counter,
            slot,
            total,
            amount,
        });
    }
    Ok(Some(planned))
}

/// The budget's name with its concrete customer, and the mode: the counter's name without the window.
pub(super) fn family(
    def: &BudgetDef,
    id: &BudgetId,
    customer: Option<&str>,
    livemode: bool,
) -> Result<String> {
    let mode = if livemode { "|live" } else { "|test" };
    let mut family = match (&def.scope, customer) {
        (Scope::Customer(_), Some(customer)) => {
            let concrete = BudgetDef {
                scope: Scope::Customer(plain(customer)),
                ..def.clone()
            };
            concrete.id().0
        }
        (Scope::Customer(_), None) => {
            return Err(internal(format!("a charge of {} names no customer", id.0)));
        }
        _ => {
            let mut name = String::with_capacity(id.0.len().saturating_add(24));
            name.push_str(&id.0);
            name
        }
    };
    family.push_str(mode);
    Ok(family)
}

/// An id as part of a counter's name: everything but letters, digits and `_.:-` as `%` and hex, so that no id
/// can name another's counter.
fn plain(id: &str) -> String {
    let safe = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b':' | b'-');
    if id.bytes().all(safe) {
        return id.to_owned();
    }
    id.bytes()
        .map(|b| {
            if safe(b) {
                char::from(b).to_string()
            } else {
                format!("%{b:02x}")
            }
        })
        .collect()
}

fn numbered(family: &str, start_ms: i64) -> CounterName {
    let mut name = String::with_capacity(family.len().saturating_add(14));
    name.push_str(family);
    write!(name, "|{start_ms}").ok(); // writing to a String cannot fail
    CounterName::from(name)
}

/// The counter that a budget uses now, its slot, and what stands in the whole window.
fn place(
    step: &mut Step<'_>,
    def: &BudgetDef,
    family: &str,
    proposal: Option<Window>,
) -> Result<Option<(CounterName, Slot, Counter)>> {
    Ok(match def.window {
        WindowKind::Run | WindowKind::Lifetime => {
            let counter = CounterName::from(format!("{family}|-"));
            let total = step.store.counter(&counter)?;
            Some((counter, Slot::Whole, total))
        }
        WindowKind::Hour | WindowKind::Day | WindowKind::Month => {
            let Some((window, new)) = present_window(step, family, proposal)? else {
                return Ok(None);
            };
            let counter = numbered(family, window.start_ms);
            let total = step.store.counter(&counter)?;
            Some((counter, Slot::Calendar { window, new }, total))
        }
        WindowKind::Rolling24h => {
            let bucket_ms = step.bucket_ms();
            let rolling = advanced(step, family)?.unwrap_or(Rolling {
                sum: Counter::default(),
                oldest_ms: bucket_ms,
            });
            Some((numbered(family, bucket_ms), Slot::Rolling(rolling), rolling.sum))
        }
    })
}

/// The window that contains now. The recorded one wins for everyone while it lasts; after it the first proposal
/// that contains now does. Windows of a budget tile time: a proposal that begins before the last window ended
/// (another zone database) does not open a second one for time that is counted already. It begins where the
/// last ended, or prolongs it when most of it is past.
fn present_window(
    step: &mut Step<'_>,
    family: &str,
    proposal: Option<Window>,
) -> Result<Option<(Window, bool)>> {
    let recorded = step.store.window(family)?;
    if let Some(window) = recorded
        && step.within(window)
    {
        return Ok(Some((window, false)));
    }
    let Some(proposal) = proposal.filter(|window| step.within(*window)) else {
        return Ok(None);
    };
    let Some(last) = recorded else {
        return Ok(Some((proposal, true)));
    };
    let overlap = last.end_ms.saturating_sub(proposal.start_ms);
    if overlap <= 0 {
        return Ok(Some((proposal, true)));
    }
    let length = proposal.end_ms.saturating_sub(proposal.start_ms);
    let start_ms = if overlap.saturating_mul(2) >= length {
        last.start_ms
    } else {
        last.end_ms
    };
    let window = Window {
        start_ms,
        end_ms: proposal.end_ms,
    };
    Ok(Some((window, true)))
}

/// The rolling sum without the buckets that have left the window. Each bucket is subtracted once, when the
/// sum is next written.
fn advanced(step: &mut Step<'_>, family: &str) -> Result<Option<Rolling>> {
    let Some(mut rolling) = step.store.rolling(family)? else {
        return Ok(None);
    };
    while step.bucket_expired(rolling.oldest_ms) {
        let gone = step.store.exact_counter(&numbered(family, rolling.oldest_ms))?;
        rolling.sum.used = sum(rolling.sum.used, gone.used.saturating_neg())?;
        rolling.sum.held = sum(rolling.sum.held, gone.held.saturating_neg())?;
        let now_bucket = step.bucket_ms();
        rolling.oldest_ms = step
            .store
            .next_bucket(family, rolling.oldest_ms)?
            .unwrap_or(now_bucket);
    }
    Ok(Some(rolling))
}

impl Planned {
    fn cap(&self) -> i64 {
        self.def.cap.min(self.ask.limit.unwrap_or(i64::MAX))
    }

    fn exceeds(&self) -> Option<Code> {
        if self.amount == 0 || !self.ask.enforce {
            return None;
        }
        let cap = self.cap();
        let fits = |taken: Option<i64>| {
            taken
                .and_then(|taken| taken.checked_add(self.amount))
                .is_some_and(|wanted| wanted <= cap)
        };
        if !fits(Some(self.total.used)) {
            Some(Code::CapExceeded)
        } else if !fits(self.total.used.checked_add(self.total.held)) {
            Some(Code::CapHeld)
        } else {
            None
        }
    }

    /// Tells the store what the decision found of the budget: room, or none and which.
    fn tell(&self, step: &mut Step<'_>, refused: Option<Code>) {
        self.tell_of(step, refused, self.amount);
    }

    /// The same of another amount than one call's.
    fn tell_of(&self, step: &mut Step<'_>, refused: Option<Code>, amount: i64) {
        if self.amount == 0 || !self.ask.enforce {
            return;
        }
        let rolling = matches!(self.slot, Slot::Rolling(_));
        step.store.found(Finding::Room {
            counter: if rolling { &self.family } else { &self.counter },
            rolling,
            found: self.total,
            with_held: refused != Some(Code::CapExceeded),
            amount,
            cap: self.cap(),
            fits: refused.is_none(),
        });
    }

    fn window_end_ms(&self) -> Option<i64> {
        match &self.slot {
            Slot::Whole => None,
            Slot::Calendar { window, .. } => Some(window.end_ms),
            Slot::Rolling(rolling) => Some(frees_at_ms(rolling)),
        }
    }

    fn view(&self, total: Counter) -> BudgetView {
        view(
            &self.def,
            &self.family,
            total,
            self.ask.limit,
            self.window_end_ms(),
        )
    }
}

impl Planned {
    /// Whether room can be taken for later calls: nothing is asked of the budget, or its window ends.
    pub(super) fn can_be_leased(&self) -> bool {
        self.amount == 0 || window_ends(self.def.window)
    }

    /// When the counter is no longer the one that a call is counted in.
    pub(super) fn slice_ends_ms(&self) -> Option<i64> {
        match &self.slot {
            Slot::Whole => None,
            Slot::Calendar { window, .. } => Some(window.end_ms),
            Slot::Rolling(_) => {
                let (_, start_ms) = split_bucket(&self.counter).ok()?;
                Some(start_ms.saturating_add(BUCKET_MS))
            }
        }
    }
}

/// How many such calls the budgets have room for, when `back` of them are returned first.
pub(super) fn room(planned: &[Planned], back: i64) -> i64 {
    let bound = planned
        .iter()
        .filter(|charge| charge.ask.enforce && charge.amount > 0);
    let rooms = bound.map(|charge| {
        let taken = charge.total.used.saturating_add(charge.total.held);
        let left = charge.cap().saturating_sub(taken);
        let left = left.saturating_add(back.saturating_mul(charge.amount));
        left.checked_div(charge.amount).unwrap_or(0)
    });
    rooms.min().unwrap_or(i64::MAX).max(0)
}

/// Whether every enforced budget's cap still covers what stands in it when `back` such calls are returned; told to the
/// store if one does not.
pub(super) fn covers(step: &mut Step<'_>, planned: &[Planned], back: i64) -> bool {
    let bound = planned
        .iter()
        .filter(|charge| charge.ask.enforce && charge.amount > 0);
    for charge in bound {
        let taken = charge.total.used.saturating_add(charge.total.held);
        let returned = back.saturating_mul(charge.amount);
        if taken.saturating_sub(returned) > charge.cap() {
            charge.tell_of(step, Some(Code::CapHeld), returned.saturating_neg());
            return false;
        }
    }
    true
}

/// Tells the store that there is room for so many more such calls; fewer than none when some were returned.
pub(super) fn tell_room(step: &mut Step<'_>, planned: &[Planned], calls: i64) {
    for charge in planned {
        charge.tell_of(step, None, charge.amount.saturating_mul(calls));
    }
}

/// Whether these are the counters of an earlier plan's charges, in the same order.
pub(super) fn same_counters(planned: &[Planned], charges: &[Charge]) -> bool {
    planned.len() == charges.len()
        && planned
            .iter()
            .zip(charges)
            .all(|(now, then)| now.counter == then.counter)
}

/// Takes every planned charge for so many calls.
pub(super) fn take_times(
    step: &mut Step<'_>,
    mut planned: Vec<Planned>,
    calls: i64,
    deltas: &mut Vec<Delta>,
) -> Result<Vec<Charge>> {
    for charge in &mut planned {
        charge.amount = times(charge.amount, calls)?;
    }
    take(step, planned, deltas).map(|(charges, _)| charges)
}

/// An amount for so many calls; an overflow refuses the whole step.
pub(super) fn times(amount: i64, calls: i64) -> Result<i64> {
    amount
        .checked_mul(calls)
        .ok_or_else(|| internal("an amount would overflow; nothing was changed"))
}

/// When the oldest bucket leaves the rolling window: the first moment at which room comes back.
const fn frees_at_ms(rolling: &Rolling) -> i64 {
    rolling
        .oldest_ms
        .saturating_add(BUCKET_MS)
        .saturating_add(ROLLING_MS)
}

/// A budget as it stands, in the words of the denial and the audit. `family` names the concrete customer.
pub(super) fn view(
    def: &BudgetDef,
    family: &str,
    total: Counter,
    limit: Option<i64>,
    resets_at_ms: Option<i64>,
) -> BudgetView {
    let mut parts = family.split('|');
    let (vendor, scope) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let vendor = if vendor == "*" { "all" } else { vendor };
    let (unit, per) = (def.unit.as_str(), def.window.as_str());
    BudgetView {
        name: [vendor, " ", scope, " ", unit, " per ", per].concat(),
        unit: unit.to_owned(),
        per: per.to_owned(),
        cap: def.cap.min(limit.unwrap_or(i64::MAX)),
        used: total.used,
        held: total.held,
        resets_at_ms,
        hold_ids: Vec::new(),
    }
}

/// The denial if any budget is too full: final ones before those that only open holds cause.
pub(super) fn refusal(step: &mut Step<'_>, planned: &[Planned]) -> Result<Option<Denial>> {
    let full = |code| planned.iter().find(|charge| charge.exceeds() == Some(code));
    if let Some(charge) = full(Code::CapExceeded) {
        charge.tell(step, Some(Code::CapExceeded));
        let budget = charge.view(charge.total);
        let message = format!(
            "{} would go over its cap of {}: {} used, {} asked for",
            budget.name,
            amount(charge.def.unit, budget.cap),
            amount(charge.def.unit, budget.used),
            amount(charge.def.unit, charge.amount),
        );
        return Ok(Some(with_budget(Denial::new(Code::CapExceeded, message), budget)));
    }
    let Some(charge) = full(Code::CapHeld) else {
        for charge in planned {
            charge.tell(step, None);
        }
        return Ok(None);
    };
    charge.tell(step, Some(Code::CapHeld));
    let mut budget = charge.view(charge.total);
    budget.hold_ids = holders(step, charge)?;
    let message = format!(
        "{} has no room beside its open holds: cap {}, {} used, {} held, {} asked for",
        budget.name,
        amount(charge.def.unit, budget.cap),
        amount(charge.def.unit, budget.used),
        amount(charge.def.unit, budget.held),
        amount(charge.def.unit, charge.amount),
    );
    let mut denial = with_budget(Denial::new(Code::CapHeld, message), budget);
    denial.retryable = true;
    Ok(Some(denial))
}

fn with_budget(mut denial: Denial, budget: BudgetView) -> Denial {
    denial.budget = Some(budget);
    denial
}

/// `$50.00`, or a count.
pub(super) fn amount(unit: Unit, amount: i64) -> String {
    match unit {
        Unit::Usd => format!("${}", Usd::from_micros(amount)),
        _ => amount.to_string(),
    }
}

fn holders(step: &mut Step<'_>, charge: &Planned) -> Result<Vec<String>> {
    let open = step.store.open_reservations(&HoldFilter {
        limit: HOLDS_LOOKED_AT,
        ..HoldFilter::default()
    })?;
    let prefix = format!("{}|", charge.family);
    Ok(open
        .iter()
        .filter(|hold| {
            hold.charges
                .iter()
                .any(|held| held.held > 0 && held.counter.starts_with(&prefix))
        })
        .take(HOLD_IDS)
        .map(|hold| hold.facts.call_id.clone())
        .collect())
}

/// Takes every planned charge; answers the reservation's charges and the tightest budget of money afterwards.
pub(super) fn take(
    step: &mut Step<'_>,
    planned: Vec<Planned>,
    deltas: &mut Vec<Delta>,
) -> Result<(Vec<Charge>, Option<BudgetView>)> {
    let mut charges = Vec::with_capacity(planned.len());
    let mut tightest: Option<(i64, BudgetView)> = None;
    for charge in planned {
        match &charge.slot {
            Slot::Calendar { window, new: true } => step.store.put_window(&charge.family, *window)?,
            Slot::Rolling(rolling) => step.store.put_rolling(&charge.family, *rolling)?,
            Slot::Whole | Slot::Calendar { new: false, .. } => {}
        }
        let rolling = matches!(charge.slot, Slot::Rolling(_));
        step.add(&charge.counter, rolling, (0, charge.amount), deltas)?;
        let after = Counter {
            used: charge.total.used,
            held: sum(charge.total.held, charge.amount)?,
        };
        consider(
            &mut tightest,
            &charge.def,
            || charge.view(after),
            after,
            charge.ask.limit,
        );
        charges.push(Charge {
            window_end_ms: charge.window_end_ms(),
            counter: charge.counter,
            budget: charge.ask.budget,
            unit: charge.ask.unit,
            held: charge.amount,
            used: 0,
            limit: charge.ask.limit,
            rolling,
        });
    }
    Ok((charges, tightest.map(|(_, view)| view)))
}

/// Keeps the budget of money with the least room.
fn consider(
    tightest: &mut Option<(i64, BudgetView)>,
    def: &BudgetDef,
    view: impl FnOnce() -> BudgetView,
    total: Counter,
    limit: Option<i64>,
) {
    if def.unit != Unit::Usd {
        return;
    }
    let left = def
        .cap
        .min(limit.unwrap_or(i64::MAX))
        .saturating_sub(total.used)
        .saturating_sub(total.held);
    if tightest.as_ref().is_none_or(|(least, _)| left < *least) {
        *tightest = Some((left, view()));
    }
}

/// The tightest budget of money of a reservation, as it stands now, in the windows that it was reserved in.
pub(super) fn tightest(step: &mut Step<'_>, charges: &[Charge]) -> Result<Option<BudgetView>> {
    let mut tightest = None;
    for charge in charges.iter().filter(|charge| charge.unit == Unit::Usd) {
        let Some(def) = step.store.budget(&charge.budget)? else {
            return Err(corrupt(format!(
                "the budget {} is not in the ledger",
                charge.budget.0
            )));
        };
        let family = charge.counter.rsplit_once('|').map_or("", |(family, _)| family);
        let (total, ends_ms) = if charge.rolling {
            let rolling = advanced(step, family)?.unwrap_or_default();
            (rolling.sum, Some(frees_at_ms(&rolling)))
        } else {
            (step.store.counter(&charge.counter)?, charge.window_end_ms)
        };
        let view = || view(&def, family, total, charge.limit, ends_ms);
        consider(&mut tightest, &def, view, total, charge.limit);
    }
    Ok(tightest.map(|(_, view)| view))
}

/// What a budget has used and holds now, and when its window ends, without writing anything.
pub(super) fn standing(step: &mut Step<'_>, def: &BudgetDef, family: &str) -> Result<(Counter, Option<i64>)> {
    Ok(match def.window {
        WindowKind::Run | WindowKind::Lifetime => (
            step.store.counter(&CounterName::from(format!("{family}|-")))?,
            None,
        ),
        WindowKind::Rolling24h => match advanced(step, family)? {
            Some(rolling) => (rolling.sum, Some(frees_at_ms(&rolling))),
            None => (Counter::default(), None),
        },
        WindowKind::Hour | WindowKind::Day | WindowKind::Month => match step.store.window(family)? {
            Some(window) if step.within(window) => {
                let total = step.store.counter(&numbered(family, window.start_ms))?;
                (total, Some(window.end_ms))
            }
            _ => (Counter::default(), None),
        },
    })
}
