//! What others got wrong, by number, as far as it is the ledger's to get right.

use std::sync::Arc;

use keybrake::ErrorKind;
use keybrake::ledger::{Proof, ReserveAnswer, Scope, State, Unit, WindowKind};
use keybrake::policy::Code;

use super::World;
use super::invariants::fastest;
use super::world::{
    DAY_MS, HOLD_MS, HOUR_MS, absent, budget, charged, daily, dollars, no_proof, note, operator, settlement,
};

/// 0.60 with 0.59 left is refused; the hold is what was asked for or nothing.
pub async fn lesson_01_hold_is_never_shrunk(world: &World) {
    let cents = |cents: i64| keybrake::Usd::from_micros(cents * 10_000);
    let mut def = daily("a", 1);
    def.cap = cents(100).micros();
    let key = world.key("a", std::slice::from_ref(&def)).await;
    let mut call = world.call(&key, 0);
    call.usd = cents(41);
    let grant = world.granted(&call).await;
    world.settle(&grant, Proof::Charged { actual: cents(41) }).await;
    let mut call = world.call(&key, 0);
    call.usd = cents(60);
    let denial = world.denied(&call).await;
    assert_eq!(
        (denial.code, denial.requested_micros),
        (Code::CapExceeded, Some(600_000))
    );
    assert_eq!(world.raw(&def).await, (410_000, 0));
    let mut call = world.call(&key, 0);
    call.usd = cents(59);
    assert_eq!(
        world.granted(&call).await.amount,
        cents(59),
        "what fits exactly is admitted in full"
    );
    assert_eq!(world.raw(&def).await, (410_000, 590_000));
}

/// Reserved at 23:59:59.9, settled at 00:00:00.1: in yesterday's day, hour and month.
pub async fn lesson_02_settles_where_it_was_reserved(world: &World) {
    let day = daily("a", 100);
    let hour = budget(
        Scope::Lineage("a".into()),
        Unit::Usd,
        WindowKind::Hour,
        100_000_000,
    );
    let key = world.key("a", &[day.clone(), hour.clone()]).await;
    world.clock.advance_ms(12 * HOUR_MS - 100);
    let grant = world.granted(&world.call(&key, 60)).await;
    world.clock.advance_ms(200);
    world.charge(&grant, 60).await;
    world
        .settle(&world.granted(&world.call(&key, 100)).await, Proof::NeverSent)
        .await;
    assert_eq!(world.used_held(&day).await, (0, 0));
    assert_eq!(world.used_held(&hour).await, (0, 0));
    let call = world.ledger.reservation(&grant.call_id).await.unwrap().unwrap();
    let midnight = world.now_ms() - world.now_ms().rem_euclid(DAY_MS);
    for charge in &call.charges {
        let start: i64 = charge.counter.rsplit('|').next().unwrap().parse().unwrap();
        assert!(start < midnight && charge.used == 60_000_000, "{charge:?}");
    }
}

/// $60 estimated, $90 charged with $40 left: $90 in the books, shown as overrun, and the next call is refused.
pub async fn lesson_03_overrun_is_recorded_in_full(world: &World) {
    let def = daily("a", 100);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    world
        .charge(&world.granted(&world.call(&key, 60)).await, 60)
        .await;
    let grant = world.granted(&world.call(&key, 40)).await;
    let answer = world.charge(&grant, 90).await;
    assert_eq!((answer.used, answer.overrun), (dollars(90), dollars(50)));
    assert_eq!(world.used_held(&def).await, (150, 0));
    assert_eq!(world.denied(&world.call(&key, 1)).await.code, Code::CapExceeded);
    let event = world
        .events()
        .await
        .into_iter()
        .rev()
        .find(|event| event.body.proof.is_some());
    assert_eq!(event.unwrap().body.overrun_micros, Some(50_000_000));
}

/// Two children of a parent with $1 spend $1 between them.
pub async fn lesson_04_a_childs_spend_is_the_parents(world: &World) {
    let parents = daily("boss", 10);
    let parent = world.key("boss", std::slice::from_ref(&parents)).await;
    let mut spent = 0;
    for name in ["one", "two"] {
        let mut draft = world.draft(name, &[daily(name, 9)]);
        draft.ancestors = vec![parent.id.clone()];
        let child = world.issue(draft).await;
        let grandchild = {
            let mut draft = world.draft(&format!("{name}-sub"), &[]);
            draft.ancestors = vec![child.id.clone(), parent.id.clone()];
            world.issue(draft).await
        };
        for _ in 0..9 {
            if let ReserveAnswer::Granted(grant) = world.ask(&world.call(&grandchild, 1)).await {
                world.charge(&grant, 1).await;
                spent += 1;
            }
        }
    }
    assert_eq!(spent, 10);
    assert_eq!(world.used_held(&parents).await, (10, 0));
}

/// 50 concurrent calls with room for 4, from two handles where the backend has them: exactly 4.
pub async fn lesson_05_exactly_as_many_as_fit(world: &World) {
    let def = daily("a", 40);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    let other = world.another_process().await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..50 {
        let ledger = if number % 2 == 0 {
            Arc::clone(&world.ledger)
        } else {
            Arc::clone(&other)
        };
        let request = world.call(&key, 10).request();
        tasks.spawn(
            async move { matches!(ledger.reserve(request).await.unwrap(), ReserveAnswer::Granted(_)) },
        );
    }
    let admitted = tasks
        .join_all()
        .await
        .into_iter()
        .filter(|granted| *granted)
        .count();
    assert_eq!(admitted, 4);
    assert_eq!(world.used_held(&def).await, (0, 40));
}

/// A settlement that is repeated, or comes late from another attempt, counts once.
pub async fn lesson_06_settling_twice_counts_once(world: &World) {
    let def = daily("a", 100);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    let call = world.call(&key, 20).step("s");
    let first = world.granted(&call).await;
    let second = world.granted(&call.retry(world, &key)).await;
    for grant in [&first, &second, &first, &second] {
        world.charge(grant, 20).await;
        assert_eq!(world.used_held(&def).await, (20, 0));
    }
    let mut reconciled = settlement(&first, charged(20));
    reconciled.attempt = 0;
    world.try_settle(reconciled).await.unwrap();
    assert_eq!(world.used_held(&def).await, (20, 0));
    // Late ends of attempts whose call is known to be settled change nothing and are no failure.
    for proof in [Proof::DidNotExecute, no_proof("timeout"), Proof::FailedForGood] {
        world.settle(&second, proof).await;
        assert_eq!(world.used_held(&def).await, (20, 0));
    }
    assert_eq!(world.state(&first.call_id).await, State::Settled);
}

/// A rotated key draws on the same day.
pub async fn lesson_07_rotating_a_key_keeps_its_budget(world: &World) {
    let def = daily("a", 50);
    let mut spent = 0;
    for _ in 0..10 {
        let key = world.key("a", std::slice::from_ref(&def)).await;
        if let ReserveAnswer::Granted(grant) = world.ask(&world.call(&key, 20)).await {
            world.charge(&grant, 20).await;
            spent += 20;
        }
        world.ledger.revoke(&key.id, note("rotated")).await.unwrap();
    }
    assert_eq!(spent, 40);
    assert_eq!(world.used_held(&def).await, (40, 0));
}

/// A read timeout after the request left keeps the hold until it is reconciled.
pub async fn lesson_09_an_exception_after_dispatch_keeps_the_hold(world: &World) {
    let def = daily("a", 100);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    for (number, reason) in (1..).zip(["timeout", "reset", "http_500", "http_409", "cancelled"]) {
        let grant = world.granted(&world.call(&key, number).step(reason)).await;
        let answer = world.settle(&grant, no_proof(reason)).await;
        assert_eq!(
            (answer.state, answer.held),
            (State::Unknown, dollars(number)),
            "{reason}"
        );
        assert_eq!(
            world.used_held(&def).await,
            (0, number * (number + 1) / 2),
            "{reason}"
        );
    }
    let reasons: Vec<_> = world
        .open()
        .await
        .into_iter()
        .filter_map(|call| call.unknown_reason)
        .collect();
    assert_eq!(reasons, ["timeout", "reset", "http_500", "http_409", "cancelled"]);
}

/// A cancelled call stays held, becomes unknown, is found by its id and can be resolved by hand.
pub async fn lesson_10_a_cancelled_call_is_kept_and_resolvable(world: &World) {
    let def = daily("a", 100);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    let grant = world.granted(&world.call(&key, 10).step("s")).await;
    // The task is gone: nobody settles.
    world.clock.advance_ms(HOLD_MS);
    assert_eq!(world.ledger.sweep(100).await.unwrap(), 1);
    let call = world.ledger.reservation(&grant.call_id).await.unwrap().unwrap();
    assert_eq!(
        (call.state, call.unknown_reason.as_deref()),
        (State::Unknown, Some("deadline"))
    );
    assert_eq!(world.used_held(&def).await, (0, 10));
    let mut by_hand = settlement(&grant, operator(Some(10)));
    by_hand.attempt = 0;
    world.try_settle(by_hand).await.unwrap();
    assert_eq!(world.used_held(&def).await, (10, 0));
    let event = world
        .events()
        .await
        .into_iter()
        .rev()
        .find(|event| event.body.proof.is_some());
    let Some(Proof::Operator { by, evidence, .. }) = event.unwrap().body.proof else {
        panic!("the decision is recorded as one");
    };
    assert_eq!((by.as_str(), evidence.as_str()), ("ops", "seen in the dashboard"));
}

/// 1,000 cancels and 1,000 timeouts: each listed with its reason, each resolvable, the books exact.
pub async fn lesson_11_leaked_holds_are_listed_and_resolved(world: &World) {
    let def = daily("a", 3_000);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    let mut leaked = Vec::new();
    for number in 0..2_000 {
        let grant = world.granted(&world.call(&key, 1)).await;
        if number % 2 == 0 {
            world.settle(&grant, no_proof("timeout")).await;
        }
        leaked.push(grant);
    }
    assert_eq!(world.used_held(&def).await, (0, 2_000));
    world.clock.advance_ms(HOLD_MS + HOUR_MS);
    let open = world.open().await;
    assert_eq!(open.len(), 2_000);
    assert!(
        open.iter()
            .all(|call| call.state == State::Unknown && call.unknown_reason.is_some())
    );
    for (number, grant) in leaked.iter().enumerate() {
        let proof = if number % 4 == 0 { charged(1) } else { absent() };
        let mut reconciled = settlement(grant, proof);
        reconciled.attempt = 0;
        world.try_settle(reconciled).await.unwrap();
    }
    assert_eq!(world.used_held(&def).await, (500, 0));
    assert_eq!(world.ledger.info().await.unwrap().open_holds, 0);
    // A read that failed holds nothing and stands in nobody's way.
    for _ in 0..1_000 {
        let mut read = world.call(&key, 0);
        read.facts.moves_money = false;
        let mut request = read.request();
        request.max_open_holds = 100;
        let ReserveAnswer::Granted(grant) = world.ledger.reserve(request).await.unwrap() else {
            panic!("a phantom refusal");
        };
        world.settle(&grant, no_proof("timeout")).await;
    }
    assert!(world.open().await.is_empty());
}

/// A charge that names no known budget is refused, never left uncounted.
pub async fn lesson_13_an_unknown_budget_is_refused(world: &World) {
    let def = daily("a", 100);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    let mut call = world.call(&key, 1);
    call.budgets[0].def.vendor = Some("nobody".to_owned());
    let error = world
        .ledger
        .reserve(call.request())
        .await
        .expect_err("no such budget");
    assert_eq!(error.kind(), ErrorKind::LedgerCorrupt);
    assert!(world.open().await.is_empty());
}

/// A decline opens the next generation with a new vendor key; a 400 keeps the generation.
pub async fn lesson_14_a_decline_opens_the_next_generation(world: &World) {
    let def = daily("a", 100);
    let calls = budget(Scope::Lineage("a".into()), Unit::Calls, WindowKind::Day, 100);
    let key = world.key("a", &[def.clone(), calls.clone()]).await;
    let call = world.call(&key, 20).step("s");
    let first = world.granted(&call).await;
    world.settle(&first, Proof::DidNotExecute).await;
    let second = world.granted(&call.retry(world, &key)).await;
    assert_eq!(
        (second.generation, second.joined, &second.identity),
        (1, false, &first.identity)
    );
    world.settle(&second, Proof::FailedForGood).await;
    let third = world.granted(&call.retry(world, &key)).await;
    assert_eq!((third.generation, third.joined), (2, false));
    assert_eq!(
        world.raw(&calls).await,
        (1, 1),
        "a count unit for each generation, not for each attempt"
    );
    world.charge(&third, 20).await;
    assert_eq!(world.used_held(&def).await, (20, 0));
    assert_eq!(world.raw(&calls).await, (2, 0));

    let unsent = world.call(&key, 20).step("unsent");
    world
        .settle(&world.granted(&unsent).await, Proof::NeverSent)
        .await;
    assert_eq!(
        world.raw(&calls).await,
        (2, 0),
        "certified never sent: the unit is returned"
    );
    let again = world.granted(&unsent.retry(world, &key)).await;
    assert_eq!(again.generation, 1);
    assert_eq!(world.raw(&calls).await, (2, 1));
}

/// After five declines of one identity the sixth is refused.
pub async fn lesson_14_declines_are_bounded(world: &World) {
    let def = daily("a", 100);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    let call = world.call(&key, 20).step("s");
    for generation in 1..=5 {
        let grant = world.granted(&call.retry(world, &key)).await;
        assert_eq!(grant.generation, generation);
        world.settle(&grant, Proof::FailedForGood).await;
    }
    let denial = world.denied(&call.retry(world, &key)).await;
    assert_eq!(denial.code, Code::AttemptsExhausted);
    assert_eq!(world.used_held(&def).await, (0, 0));
}

/// A success that the vendor marks as a replay of a call that is settled already counts nothing new.
pub async fn lesson_15_a_replayed_success_counts_nothing_new(world: &World) {
    let (def, key) = world.capped(WindowKind::Lifetime, 100_000_000).await;
    let first = world.granted(&world.call(&key, 20).caller_key("order-7")).await;
    let mut charged_once = settlement(&first, charged(20));
    charged_once.facts.vendor_object = Some("re_1".to_owned());
    world.try_settle(charged_once).await.unwrap();
    // The same key in another run is another identity, and the vendor answers from its record.
    let mut other_run = world.call(&key, 20);
    other_run.facts.run = Some("run_2".to_owned());
    let second = world.granted(&other_run.caller_key("order-7")).await;
    assert!(!second.joined);
    assert_eq!(world.used_held(&def).await, (20, 20));
    let mut replayed = settlement(&second, charged(20));
    replayed.facts.replayed = true;
    replayed.facts.vendor_object = Some("re_1".to_owned());
    let answer = world.try_settle(replayed).await.unwrap();
    assert_eq!((answer.state, answer.used), (State::Settled, dollars(0)));
    assert_eq!(world.used_held(&def).await, (20, 0));
}

/// The caller's idea of the time decides nothing: expiry and windows are the ledger's.
pub async fn lesson_17_the_ledgers_clock_decides_expiry(world: &World) {
    let def = daily("a", 100);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    let mut early = world.call(&key, 1);
    early.now_ms -= 400 * DAY_MS;
    assert!(matches!(
        world.ask(&early).await,
        ReserveAnswer::WindowMoved { .. }
    ));
    world.clock.advance_ms(91 * DAY_MS);
    let mut backdated = world.call(&key, 1);
    backdated.now_ms -= 91 * DAY_MS;
    assert_eq!(world.denied(&backdated).await.code, Code::KeyExpired);
}

/// A refusal among 3,000 holds costs what it costs among few.
pub async fn lesson_18_a_denial_is_flat_in_holds(world: &World) {
    let (_, looping) = world.capped(WindowKind::Lifetime, 0).await;
    let few = fastest(world, &looping).await;
    let wide = budget(
        Scope::Lineage("b".into()),
        Unit::Usd,
        WindowKind::Lifetime,
        i64::MAX,
    );
    let busy = world.key("b", std::slice::from_ref(&wide)).await;
    for _ in 0..3_000 {
        world.granted(&world.call(&busy, 1)).await;
    }
    let many = fastest(world, &looping).await;
    let bound = few * 4 + std::time::Duration::from_micros(200);
    assert!(many < bound, "{few:?} with few holds, {many:?} with 3,000");
}

/// A key revoked through one handle is refused on the very next call through another.
pub async fn lesson_19_a_revoked_key_is_refused_at_once(world: &World) {
    let def = daily("a", 100);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    let other = world.another_process().await;
    assert!(matches!(
        other.reserve(world.call(&key, 1).request()).await.unwrap(),
        ReserveAnswer::Granted(_)
    ));
    assert!(world.ledger.revoke(&key.id, note("leaked")).await.unwrap());
    let ReserveAnswer::Denied(denial) = other.reserve(world.call(&key, 1).request()).await.unwrap() else {
        panic!("the key was revoked");
    };
    assert_eq!(denial.code, Code::KeyRevoked);
    assert!(!world.ledger.revoke(&key.id, note("again")).await.unwrap());
}
