//! Invariants 1 to 7: what the counters are, and how they change.

use std::sync::Arc;

use keybrake::ledger::table;
use keybrake::ledger::{Ask, EventKind, Proof, ReserveAnswer, Scope, State, StopScope, Unit, WindowKind};
use keybrake::policy::{Code, Denial};

use super::super::World;
use super::super::world::{
    DAY_MS, HOLD_MS, HOUR_MS, absent, budget, charged, daily, dollars, no_proof, note, operator, settlement,
};

/// 64 tasks reserve $1 each of $40, half of them settle at once: 40 are admitted, and no moment shows more.
pub async fn invariant_01_settled_plus_held_never_exceeds_cap(world: &World) {
    let def = daily("a", 40);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..64 {
        let ledger = Arc::clone(&world.ledger);
        let request = world.call(&key, 1).request();
        tasks.spawn(async move {
            let ReserveAnswer::Granted(grant) = ledger.reserve(request).await.unwrap() else {
                return 0;
            };
            let view = grant.tightest.clone().expect("a budget of money");
            assert!(view.used + view.held <= view.cap, "over the cap: {view:?}");
            if number % 2 == 0 {
                ledger.settle(settlement(&grant, charged(1))).await.unwrap();
            }
            1
        });
    }
    let admitted: i64 = tasks.join_all().await.into_iter().sum();
    let (used, held) = world.used_held(&def).await;
    assert_eq!((admitted, used + held), (40, 40));
}

/// A call on three budgets of which the last is full takes from none.
pub async fn invariant_02_all_budgets_or_none(world: &World) {
    let wide = daily("a", 100);
    let run = budget(Scope::Run("run_1".into()), Unit::Usd, WindowKind::Run, 50_000_000);
    let calls = budget(Scope::Lineage("a".into()), Unit::Calls, WindowKind::Hour, 1);
    let key = world.key("a", &[wide.clone(), run.clone(), calls.clone()]).await;
    let grant = world.granted(&world.call(&key, 10)).await;
    world.charge(&grant, 10).await;

    let denial = world.denied(&world.call(&key, 10)).await;
    assert_eq!(denial.code, Code::CapExceeded);
    assert_eq!(denial.budget.expect("the full budget").unit, "calls");
    assert_eq!(world.used_held(&wide).await, (10, 0));
    assert_eq!(world.used_held(&run).await, (10, 0));
    assert_eq!(world.raw(&calls).await, (1, 0));
}

/// Every kind of denial leaves every counter as it was, and one event.
pub async fn invariant_02_a_denial_changes_no_counter(world: &World) {
    let def = daily("a", 10);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    let first = world.call(&key, 6).step("one");
    world.granted(&first).await;
    let refused = |early| {
        let mut request = world.call(&key, 1).request();
        let denial = Box::new(Denial::new(Code::EndpointNotAllowed, "no such endpoint"));
        request.ask = Ask::Refuse { denial, early };
        request
    };
    let mut unknown_key = world.call(&key, 1);
    unknown_key.facts.key_id = Some("vk_none".to_owned());
    let mut changed = world.call(&key, 5).step("one");
    changed.usd = dollars(5);
    let requests = [
        (world.call(&key, 11).request(), Code::CapExceeded),
        (world.call(&key, 5).request(), Code::CapHeld),
        (unknown_key.request(), Code::KeyUnknown),
        (changed.request(), Code::IdempotencyConflict),
        (refused(true), Code::EndpointNotAllowed),
        (refused(false), Code::EndpointNotAllowed),
    ];
    for (request, code) in requests {
        let before = (world.used_held(&def).await, world.events().await.len());
        let ReserveAnswer::Denied(denial) = world.ledger.reserve(request).await.unwrap() else {
            panic!("{code} was expected");
        };
        assert_eq!(denial.code, code);
        assert!(!denial.call_id.is_empty(), "the denial names its call");
        let events = world.events().await;
        assert_eq!(
            (world.used_held(&def).await, events.len()),
            (before.0, before.1 + 1),
            "{code}"
        );
        let event = events.last().expect("one event");
        assert_eq!((event.kind, event.deltas.len()), (EventKind::Denied, 0), "{code}");
    }
}

/// The same identity joins, then replays, and never holds twice.
pub async fn invariant_03_one_reservation_per_generation(world: &World) {
    let def = daily("a", 100);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    let call = world.call(&key, 20).step("refund-17");
    let first = world.granted(&call).await;
    let second = world.granted(&call.retry(world, &key)).await;
    assert!(second.joined && !first.joined);
    assert_eq!(
        (second.call_id.as_str(), second.attempt),
        (first.call_id.as_str(), 2)
    );
    assert_eq!(
        (second.generation, &second.identity),
        (first.generation, &first.identity)
    );
    assert_eq!(world.used_held(&def).await, (0, 20));

    let again = world.granted(&call).await;
    assert_eq!(
        (again.call_id, again.attempt),
        (first.call_id.clone(), 1),
        "the same call, the same permit"
    );
    assert_eq!(world.used_held(&def).await, (0, 20));

    world.charge(&second, 20).await;
    let ReserveAnswer::Replay(earlier) = world.ask(&call.retry(world, &key)).await else {
        panic!("a repeat of a settled call is a replay");
    };
    assert_eq!(earlier.facts.call_id, first.call_id);
    assert_eq!(earlier.reply.as_deref(), Some(b"reply".as_slice()));
    assert_eq!(world.used_held(&def).await, (20, 0));
}

/// Different fields under the same step are a conflict that names them; other bytes are an unknown outcome.
pub async fn invariant_03_a_different_fingerprint_is_a_conflict(world: &World) {
    let def = daily("a", 100);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    world.granted(&world.call(&key, 20).step("s")).await;
    let denial = world.denied(&world.call(&key, 21).step("s")).await;
    assert_eq!(denial.code, Code::IdempotencyConflict);
    assert_eq!(denial.existing.expect("the earlier call").differing, ["amount"]);
    let denial = world
        .denied(&world.call(&key, 20).step("s").wire("other bytes"))
        .await;
    assert_eq!(denial.code, Code::OutcomeUnknown);
    assert_eq!(world.used_held(&def).await, (0, 20));
}

/// Every proof sent twice changes the books once.
pub async fn invariant_04_every_transition_is_idempotent(world: &World) {
    let def = daily("a", 1_000);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    for proof in [
        charged(7),
        Proof::ChargedProvisionally { actual: dollars(7) },
        Proof::Accepted,
        Proof::DidNotExecute,
        Proof::FailedForGood,
        no_proof("timeout"),
        Proof::NeverSent,
    ] {
        let grant = world.granted(&world.call(&key, 10)).await;
        let first = world.settle(&grant, proof.clone()).await;
        let books = world.used_held(&def).await;
        let second = world.settle(&grant, proof.clone()).await;
        assert!(!first.already && second.already, "{proof:?}");
        assert_eq!(
            (second.state, second.used, second.held),
            (first.state, first.used, first.held)
        );
        assert_eq!(world.used_held(&def).await, books, "{proof:?}");
    }
}

/// What the table does not name is refused, and changes nothing.
pub async fn invariant_04_only_the_tables_cells_exist(world: &World) {
    let def = daily("a", 10_000);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    let into = [
        (State::Held, None),
        (State::Unknown, Some(no_proof("timeout"))),
        (State::Pending, Some(Proof::Accepted)),
        (
            State::Provisional,
            Some(Proof::ChargedProvisionally { actual: dollars(7) }),
        ),
        (State::Settled, Some(charged(7))),
        (State::Voided, Some(Proof::FailedForGood)),
    ];
    let mut refused = 0;
    for (state, way) in into {
        for proof in [
            charged(7),
            Proof::ChargedProvisionally { actual: dollars(7) },
            Proof::Accepted,
            Proof::DidNotExecute,
            Proof::FailedForGood,
            Proof::Reversed,
            no_proof("again"),
            Proof::NeverSent,
            absent(),
            operator(None),
        ] {
            if table::effect(proof.kind(), state).is_some()
                || way.as_ref().is_some_and(|w| w.kind() == proof.kind())
            {
                continue;
            }
            let grant = world.granted(&world.call(&key, 10)).await;
            if let Some(way) = &way {
                assert_eq!(world.settle(&grant, way.clone()).await.state, state);
            }
            let books = (world.used_held(&def).await, world.events().await.len());
            world
                .try_settle(settlement(&grant, proof.clone()))
                .await
                .expect_err("a cell that is not in the table");
            assert_eq!(
                (world.used_held(&def).await, world.events().await.len()),
                books,
                "{proof:?} in {state:?}"
            );
            refused += 1;
        }
    }
    assert!(refused >= 6, "only {refused} cells were tried");
}

/// Reserved before midnight, settled after it: yesterday's counter, not today's.
pub async fn invariant_05_settles_into_the_window_that_reserved_it(world: &World) {
    let def = daily("a", 100);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    world.clock.advance_ms(12 * HOUR_MS - 50);
    let grant = world.granted(&world.call(&key, 60)).await;
    world.clock.advance_ms(100);
    let today = world.granted(&world.call(&key, 5)).await;
    let answer = world.charge(&grant, 60).await;
    assert_eq!(
        world.used_held(&def).await,
        (0, 5),
        "today knows nothing of yesterday's call"
    );
    assert_eq!(answer.tightest.expect("yesterday's budget").used, 60_000_000);
    world.charge(&today, 5).await;
    assert_eq!(world.used_held(&def).await, (5, 0));
}

/// A rolling day forgets what is 24 hours old, to the bucket, and counts a late settlement where it was reserved.
pub async fn invariant_05_rolling_buckets_keep_their_place(world: &World) {
    let (def, key) = world.capped(WindowKind::Rolling24h, 100_000_000).await;
    let morning = world.granted(&world.call(&key, 60)).await;
    world.clock.advance_ms(20 * HOUR_MS);
    let evening = world.granted(&world.call(&key, 40)).await;
    world.charge(&evening, 40).await;
    assert_eq!(world.denied(&world.call(&key, 1)).await.code, Code::CapHeld);
    world.settle(&morning, no_proof("timeout")).await;
    world.charge(&morning, 60).await;
    assert_eq!(world.denied(&world.call(&key, 1)).await.code, Code::CapExceeded);

    world.clock.advance_ms(4 * HOUR_MS);
    assert_eq!(
        world.used_held(&def).await,
        (100, 0),
        "the oldest bucket counts in full"
    );
    world.clock.advance_ms(5 * 60_000);
    assert_eq!(world.used_held(&def).await, (40, 0));
    world
        .charge(&world.granted(&world.call(&key, 60)).await, 60)
        .await;
    assert_eq!(world.denied(&world.call(&key, 1)).await.code, Code::CapExceeded);
    world.clock.advance_ms(20 * HOUR_MS);
    assert_eq!(world.used_held(&def).await, (60, 0));
}

/// Nothing but a proof ends a hold: no timeout, sweep, revocation, stop, expiry or end of the window.
pub async fn invariant_06_a_hold_ends_by_proof_only(world: &World) {
    let (def, key) = world.capped(WindowKind::Lifetime, 100_000_000).await;
    let grant = world.granted(&world.call(&key, 30).step("s")).await;
    world.settle(&grant, no_proof("timeout")).await;
    assert_eq!(world.used_held(&def).await, (0, 30), "after a timeout");
    world.clock.advance_ms(HOLD_MS + 1);
    world.ledger.sweep(100).await.unwrap();
    assert_eq!(world.used_held(&def).await, (0, 30), "after the deadline");
    world.ledger.stop(StopScope::All, note("stop")).await.unwrap();
    world.ledger.revoke(&key.id, note("over")).await.unwrap();
    assert_eq!(world.used_held(&def).await, (0, 30), "after stop and revocation");
    world.clock.advance_ms(100 * DAY_MS);
    world.ledger.sweep(100).await.unwrap();
    assert_eq!(world.used_held(&def).await, (0, 30), "after a hundred days");
    let open = world.open().await;
    assert_eq!(open.len(), 1);
    assert_eq!(
        open[0].unknown_reason.as_deref(),
        Some("timeout"),
        "it is listed with its reason"
    );
    world.charge(&grant, 30).await;
    assert_eq!(world.used_held(&def).await, (30, 0));
}

/// Vendor proof, timed absence, a certified never-sent, a named operator: each ends a hold, and says so.
pub async fn invariant_06_four_ways_to_end_a_hold(world: &World) {
    let def = daily("a", 100);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    for (proof, wait, state, word) in [
        (charged(9), false, State::Settled, "charged"),
        (absent(), true, State::Voided, "absent"),
        (Proof::NeverSent, false, State::Voided, "never_sent"),
        (operator(None), true, State::Voided, "operator"),
        (operator(Some(4)), true, State::Settled, "operator"),
    ] {
        let grant = world.granted(&world.call(&key, 10)).await;
        let mut settlement = settlement(&grant, proof.clone());
        if wait {
            settlement.attempt = 0;
            let early = world.try_settle(settlement.clone()).await;
            assert!(early.is_err(), "{proof:?} while the call may be in flight");
            world.clock.advance_ms(HOLD_MS);
        }
        let answer = world.try_settle(settlement).await.unwrap();
        assert_eq!((answer.state, answer.held.micros()), (state, 0), "{proof:?}");
        let call = world.ledger.reservation(&grant.call_id).await.unwrap().unwrap();
        assert_eq!(call.ended_by.as_deref(), Some(word));
    }
    assert_eq!(world.used_held(&def).await, (13, 0));
    assert!(world.open().await.is_empty());
}

/// The deltas of each event are exactly what its step changed.
pub async fn invariant_07_every_change_has_its_event(world: &World) {
    let def = daily("a", 100);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    let call = world.call(&key, 10).step("s");
    let mut seen = 0;
    let mut sum = (0, 0);
    let mut kinds = Vec::new();
    let first = world.granted(&call).await;
    for step in 0..5 {
        match step {
            0 => {}
            1 => drop(world.granted(&call.retry(world, &key)).await),
            2 => drop(world.settle(&first, no_proof("timeout")).await),
            3 => drop(world.charge(&first, 12).await),
            _ => drop(world.ask(&call.retry(world, &key)).await),
        }
        let events = world.events().await;
        for event in &events[seen..] {
            for delta in &event.deltas {
                sum = (sum.0 + delta.used, sum.1 + delta.held);
            }
            if event.kind != EventKind::Admin {
                kinds.push(event.kind);
                assert!(event.call_id.is_some() && event.body.facts.is_some());
            }
        }
        seen = events.len();
        assert_eq!(world.raw(&def).await, sum, "after step {step}");
    }
    let expected = [
        EventKind::Reserved,
        EventKind::Attempt,
        EventKind::Unknown,
        EventKind::Settled,
        EventKind::Replayed,
    ];
    assert_eq!(kinds, expected);
}

/// A step that fails half-way leaves no counter, event or reservation behind.
pub async fn invariant_07_a_failed_step_leaves_nothing(world: &World) {
    let def = daily("a", 100);
    let huge = budget(
        Scope::Lineage("a".into()),
        Unit::Usd,
        WindowKind::Lifetime,
        i64::MAX,
    );
    let key = world.key("a", &[def.clone(), huge.clone()]).await;
    let grant = world.granted(&world.call(&key, 10)).await;
    let events = world.events().await.len();
    let mut wrong = world.call(&key, 10);
    wrong.usd = keybrake::Usd::from_micros(-1);
    assert!(
        world.ledger.reserve(wrong.request()).await.is_err(),
        "an amount below zero"
    );
    let mut missing = world.call(&key, 10);
    missing.budgets[1].def.scope = Scope::Lineage("nobody".into());
    assert!(
        world.ledger.reserve(missing.request()).await.is_err(),
        "a budget that is not there"
    );
    // The first budget has room for any number, the second has not: the step fails between its two writes.
    let wide = world.key("a", std::slice::from_ref(&huge)).await;
    world
        .charge(&world.granted(&world.call(&wide, 10)).await, 10)
        .await;
    let above = Proof::Charged {
        actual: keybrake::Usd::from_micros(i64::MAX - 5),
    };
    let refused = world.try_settle(settlement(&grant, above)).await;
    assert!(refused.is_err(), "a counter would overflow");
    assert_eq!(world.state(&grant.call_id).await, State::Held);
    assert_eq!(world.used_held(&def).await, (0, 10), "the first budget as well");
    assert_eq!(world.used_held(&huge).await, (10, 10));
    assert_eq!(
        world.events().await.len(),
        events + 3,
        "issued, reserved and settled: the other call's"
    );
}
