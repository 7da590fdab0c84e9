//! The list of an object's contributors, kept short: thousands of calls may name one object, and each settlement
//! goes through the list in order.
//!
//! A contributor that is final and holds nothing can take no more of what the object moves. It stays in its place as an
//! amount, without being looked up; a row of them becomes one sum, and their names go into pages. What is settled of
//! such a call later (a late proof, a correction) puts it back into its place by name.

use super::step::{Step, corrupt, internal};
use crate::error::Result;
use crate::ledger::store::{Contributor, ObjectPage, ObjectRecord};
use crate::ledger::types::{Reservation, State};

/// Final contributors that make a page.
const PAGE: usize = 8;

/// Whether nothing but a settlement of its own can change what this reservation holds or has used.
pub(super) fn is_final(call: &Reservation) -> bool {
    !matches!(call.state, State::Held | State::Unknown | State::Pending) && call.held.micros() == 0
}

/// Lists a contributor by name, in its place, because a settlement of its own may change it.
pub(super) fn reopen(
    step: &mut Step<'_>,
    object: &str,
    record: &mut ObjectRecord,
    call_id: &str,
) -> Result<()> {
    // The newest are asked about most.
    for contributor in record.contributors.iter_mut().rev() {
        match contributor {
            Contributor::Open(id) if id == call_id => return Ok(()),
            Contributor::Final(id, _) if id == call_id => {
                *contributor = Contributor::Open(std::mem::take(id));
                return Ok(());
            }
            _ => {}
        }
    }
    for index in (0..record.contributors.len()).rev() {
        if let Some(parts) = split(step, object, record.contributors.get(index), call_id)? {
            record.contributors.splice(index..=index, parts);
            return Ok(());
        }
    }
    Err(corrupt(format!(
        "the call {call_id} is not among the contributors of its object"
    )))
}

/// Cuts a folded row in three where a call is in it: what comes before its page, the page's calls, what comes after.
fn split(
    step: &mut Step<'_>,
    object: &str,
    row: Option<&Contributor>,
    call_id: &str,
) -> Result<Option<Vec<Contributor>>> {
    let Some(&Contributor::Folded {
        used_micros,
        page: last,
    }) = row
    else {
        return Ok(None);
    };
    let mut after_micros = 0;
    let mut next = None;
    let mut number = last;
    loop {
        let page = read(step, object, number)?;
        let own_micros = page.calls.iter().try_fold(0, |sum, (_, used)| add(sum, *used))?;
        if !page.calls.iter().any(|(id, _)| id == call_id) {
            after_micros = add(after_micros, own_micros)?;
            let Some(before) = page.before else {
                return Ok(None);
            };
            next = Some((number, page));
            number = before;
            continue;
        }
        let mut parts = Vec::with_capacity(PAGE.saturating_add(2));
        if let Some(before) = page.before {
            let used_micros = used_micros
                .saturating_sub(after_micros)
                .saturating_sub(own_micros);
            parts.push(Contributor::Folded {
                used_micros,
                page: before,
            });
        }
        parts.extend(page.calls.into_iter().map(|(id, used)| {
            if id == call_id {
                Contributor::Open(id)
            } else {
                Contributor::Final(id, used)
            }
        }));
        if let Some((number, mut first)) = next {
            first.before = None;
            step.store.put_object_page(object, number, first)?;
            parts.push(Contributor::Folded {
                used_micros: after_micros,
                page: last,
            });
        }
        return Ok(Some(parts));
    }
}

/// Makes pages of final contributors that stand in a row.
pub(super) fn fold(step: &mut Step<'_>, object: &str, record: &mut ObjectRecord) -> Result<()> {
    let is_final = |contributor: &Contributor| matches!(contributor, Contributor::Final(..));
    let row = |record: &ObjectRecord| {
        let mut rows = record.contributors.windows(PAGE);
        rows.position(|row| row.iter().all(is_final))
    };
    while let Some(start) = row(record) {
        make_page(step, object, record, start)?;
    }
    Ok(())
}

/// Puts the contributors from `start` on into a page of their own, the newest of the row before them if there is one.
fn make_page(step: &mut Step<'_>, object: &str, record: &mut ObjectRecord, start: usize) -> Result<()> {
    let mut page = ObjectPage::default();
    let mut used = 0;
    for contributor in record.contributors.drain(start..start.saturating_add(PAGE)) {
        if let Contributor::Final(id, used_micros) = contributor {
            used = add(used, used_micros)?;
            page.calls.push((id, used_micros));
        }
    }
    let number = record.pages;
    record.pages = number
        .checked_add(1)
        .ok_or_else(|| internal("an object has too many contributors"))?;
    let before = start
        .checked_sub(1)
        .and_then(|at| record.contributors.get_mut(at));
    if let Some(Contributor::Folded {
        used_micros,
        page: last,
    }) = before
    {
        page.before = Some(*last);
        *used_micros = add(*used_micros, used)?;
        *last = number;
    } else {
        let row = Contributor::Folded {
            used_micros: used,
            page: number,
        };
        record.contributors.insert(start, row);
    }
    step.store.put_object_page(object, number, page)
}

fn read(step: &mut Step<'_>, object: &str, number: u32) -> Result<ObjectPage> {
    step.store.object_page(object, number)?.ok_or_else(|| {
        corrupt(format!(
            "page {number} of an object's contributors is not in the ledger"
        ))
    })
}

fn add(a: i64, b: i64) -> Result<i64> {
    a.checked_add(b)
        .ok_or_else(|| internal("the amounts of an object would overflow"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::ledger::memory_store::MemoryStore;
    use crate::ledger::rules::{Flood, reserve, settle};
    use crate::ledger::store::{KeyState, Store};
    use crate::ledger::types::{
        AmountAsk, Ask, CallFacts, ObjectRaise, ObjectState, Proof, ReplyFacts, ReserveAnswer,
        ReserveRequest, Settlement,
    };
    use crate::money::Usd;

    const NOW_MS: i64 = 1_795_305_600_000;

    fn store() -> MemoryStore {
        let mut store = MemoryStore::default();
        let key = KeyState {
            version: 1,
            expires_at_ms: i64::MAX,
            revoked_at_ms: None,
            ancestors: Vec::new(),
            open_holds: 0,
        };
        store.put_key_state("vk", &key).unwrap();
        store
    }

    /// Reserves a call that raises the object `pi` to this many micro-USD.
    fn raise(store: &mut MemoryStore, call_id: &str, to: i64) {
        let facts = CallFacts {
            call_id: call_id.to_owned(),
            key_id: Some("vk".to_owned()),
            key_version: 1,
            moves_money: true,
            ..CallFacts::default()
        };
        let raise = ObjectRaise {
            object: "pi".to_owned(),
            to: Usd::from_micros(to),
        };
        let request = ReserveRequest {
            facts: Arc::new(facts),
            identity: None,
            ask: Ask::Amount(AmountAsk {
                usd: Usd::from_micros(to),
                raise: Some(raise),
                ..AmountAsk::default()
            }),
            hold_for_ms: 1_000,
            max_open_holds: u32::MAX,
        };
        let answer = reserve(store, &mut Flood::default(), NOW_MS, &request).unwrap();
        assert!(matches!(answer, ReserveAnswer::Granted(_)), "{answer:?}");
        store.commit();
    }

    fn show(store: &mut MemoryStore, call_id: &str, proof: Proof, (moved, closed): (i64, bool)) {
        let settlement = Settlement {
            call_id: call_id.to_owned(),
            attempt: 1,
            proof,
            object: Some(ObjectState {
                object: "pi".to_owned(),
                moved: Usd::from_micros(moved),
                closed,
            }),
            reply: None,
            facts: ReplyFacts::default(),
        };
        settle(store, NOW_MS, &settlement).unwrap();
        store.commit();
    }

    fn used_held(store: &mut MemoryStore, call_id: &str) -> (i64, i64) {
        let call = store.reservation(call_id).unwrap().unwrap();
        (call.used.micros(), call.held.micros())
    }

    fn charged(micros: i64) -> Proof {
        Proof::Charged {
            actual: Usd::from_micros(micros),
        }
    }

    /// One intent that thousands of calls name: what a settlement looks up does not grow with them.
    #[test]
    fn the_cost_of_a_settlement_does_not_grow_with_an_objects_calls() {
        let mut store = store();
        raise(&mut store, "create", 50);
        show(&mut store, "create", Proof::Accepted, (0, false));
        let mut most = Vec::new();
        for hundred in 0..20_i64 {
            let mut lookups = 0;
            for n in 1..=100 {
                let (call_id, to) = (format!("{hundred}-{n}"), 50 + hundred * 100 + n);
                let before = store.lookups;
                raise(&mut store, &call_id, to);
                show(&mut store, &call_id, charged(to), (to, false));
                lookups = lookups.max(store.lookups - before);
            }
            most.push(lookups);
        }
        let (first, last) = (most.first().unwrap(), most.last().unwrap());
        assert!(last <= first, "{most:?}");
        // The call itself twice, the object a few times, the call before it, and what is still open.
        assert!(*last <= 8, "{most:?}");
        let record = store.object("pi").unwrap().unwrap();
        assert!(record.contributors.len() < 2 * PAGE, "{record:?}");
        assert_eq!((record.moved_micros, record.exposed_micros), (2_050, 2_050));
    }

    /// A call that ended long ago takes its place again when a late proof says so: before those that came later.
    #[test]
    fn a_late_proof_finds_its_place_in_a_folded_row() {
        let mut store = store();
        for n in 0..100 {
            let call_id = n.to_string();
            raise(&mut store, &call_id, 10);
            show(&mut store, &call_id, Proof::DidNotExecute, (0, false));
        }
        raise(&mut store, "open", 10);
        show(&mut store, "open", Proof::Accepted, (0, false));
        let record = store.object("pi").unwrap().unwrap();
        assert!(record.contributors.len() < 2 * PAGE, "{record:?}");
        // It happened after all: what it holds again comes before "open" when something moves.
        show(&mut store, "30", Proof::Accepted, (0, false));
        assert_eq!(used_held(&mut store, "30"), (0, 10));
        show(&mut store, "open", charged(15), (15, false));
        assert_eq!(used_held(&mut store, "30"), (10, 0));
        assert_eq!(used_held(&mut store, "open"), (5, 5));
        // And after it has been folded once more nothing of it is lost.
        for n in 100..200 {
            let call_id = n.to_string();
            raise(&mut store, &call_id, 20);
            show(&mut store, &call_id, charged(15), (15, false));
        }
        show(&mut store, "open", charged(40), (40, true));
        let mut total = 0;
        for call_id in (0..200).map(|n| n.to_string()).chain(["open".to_owned()]) {
            let (used, held) = used_held(&mut store, &call_id);
            total += used + held;
        }
        assert_eq!(total, 40);
    }
}
