//! Invariants 9 and 12 to 16: time, and what it may not wear away.

use std::time::Duration;

use keybrake::ledger::{LedgerInfo, OnRepeat, Proof, ReserveAnswer, Scope, Unit, WindowKind};
use keybrake::policy::Code;

use super::super::World;
use super::super::world::{
    Call, DAY_MS, HOLD_MS, HOUR_MS, absent, absent_after, budget, daily, note, settlement,
};

/// A clock that goes back by minutes does not take the ledger's time with it.
pub async fn invariant_09_time_never_goes_back(world: &World) {
    let def = daily("a", 100);
    let mut draft = world.draft("a", std::slice::from_ref(&def));
    draft.expires_at_ms = world.now_ms() + HOUR_MS;
    let key = world
        .ledger
        .issue_key(keybrake::ledger::IssueKey {
            key: draft,
            expires_in_ms: None,
            attribution_only: Vec::new(),
            admin: note("test"),
        })
        .await
        .unwrap();
    world.clock.advance_ms(HOUR_MS);
    assert_eq!(world.denied(&world.call(&key, 1)).await.code, Code::KeyExpired);
    let LedgerInfo { now_ms, .. } = world.ledger.info().await.unwrap();
    world.clock.step_to_ms(world.now_ms() - 4 * 60_000);
    assert_eq!(
        world.denied(&world.call(&key, 1)).await.code,
        Code::KeyExpired,
        "it does not come back to life"
    );
    assert!(world.ledger.info().await.unwrap().now_ms >= now_ms);
}

/// An old window is kept and takes late settlements; another process sees the same books.
pub async fn invariant_12_no_counter_restarts_from_zero(world: &World) {
    let def = daily("a", 100);
    let life = budget(
        Scope::Lineage("a".into()),
        Unit::Usd,
        WindowKind::Lifetime,
        100_000_000,
    );
    let key = world.key("a", &[def.clone(), life.clone()]).await;
    let grant = world.granted(&world.call(&key, 60)).await;
    for _ in 0..40 {
        world.clock.advance_ms(DAY_MS);
        world
            .settle(&world.granted(&world.call(&key, 1)).await, Proof::NeverSent)
            .await;
    }
    world.charge(&grant, 60).await;
    assert_eq!(world.used_held(&def).await, (0, 0), "today is untouched");
    assert_eq!(world.used_held(&life).await, (60, 0));
    let other = world.another_process().await;
    let seen = other.budgets(Some(&life.scope)).await.unwrap();
    assert!(
        seen.iter()
            .any(|usage| usage.id == life.id() && usage.view.used == 60_000_000)
    );
    let refused = other.reserve(world.call(&key, 41).request()).await.unwrap();
    assert!(matches!(refused, ReserveAnswer::Denied(_)));
}

/// Verification starts from the last checkpoint, and finds nothing to say.
pub async fn invariant_13_checkpoints_and_events_are_the_counters(world: &World) {
    let def = daily("a", 1_000);
    let rolling = budget(
        Scope::Run("run_1".into()),
        Unit::Usd,
        WindowKind::Rolling24h,
        1_000_000_000,
    );
    let key = world.key("a", &[def, rolling]).await;
    let mut from = 0;
    for round in 0..4_u64 {
        for _ in 0..5 {
            let grant = world.granted(&world.call(&key, 3)).await;
            world.charge(&grant, 2).await;
        }
        let report = world.ledger.verify().await.unwrap();
        assert_eq!(
            (report.from_seq, report.differences.len(), report.chain_ok),
            (from, 0, true),
            "{report:?}"
        );
        assert!(report.events >= 10 && report.counters >= 2, "{report:?}");
        from = world.ledger.info().await.unwrap().last_seq;
        world.clock.advance_ms(i64::try_from(round).unwrap() * HOUR_MS);
    }
}

/// A reserve among 5,000 holds and 500 keys costs what it costs among a few.
pub async fn invariant_14_reserve_is_flat(world: &World) {
    let (_, key) = world.capped(WindowKind::Lifetime, i64::MAX).await;
    let few = fastest(world, &key).await;
    for number in 0..500 {
        let lineage = format!("l{number}");
        let other = world.key(&lineage, &[daily(&lineage, 1_000)]).await;
        for _ in 0..10 {
            world.granted(&world.call(&other, 1)).await;
        }
    }
    // The fastest of many batches is the least disturbed one, also on a machine that is busy for a while; a walk over
    // the holds would cost a hundredfold each time.
    let mut many = Duration::MAX;
    for _ in 0..10 {
        many = many.min(fastest(world, &key).await);
        if many < few * 4 + Duration::from_micros(200) {
            return;
        }
    }
    panic!("{few:?} with few holds, {many:?} with 5,000");
}

/// The fastest of twenty batches of ten reserves.
pub(in super::super) async fn fastest(world: &World, key: &super::super::Key) -> Duration {
    let mut best = Duration::MAX;
    for _ in 0..20 {
        let calls: Vec<Call> = (0..10).map(|_| world.call(key, 1)).collect();
        let requests: Vec<_> = calls.iter().map(Call::request).collect();
        #[expect(clippy::disallowed_methods, reason = "this measures, it decides nothing")]
        let begun = std::time::Instant::now();
        for request in requests {
            world.ledger.reserve(request).await.unwrap();
        }
        best = best.min(begun.elapsed());
    }
    best
}

/// The grant names its moment; past its deadline the call is asked for anew under the same identity, and the
/// hold is the same one.
pub async fn invariant_15_a_late_permit_is_asked_for_anew(world: &World) {
    let def = daily("a", 100);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    let call = world.call(&key, 20).step("s");
    let first = world.granted(&call).await;
    assert_eq!(
        (first.now_ms, first.not_after_ms),
        (world.now_ms(), world.now_ms() + HOLD_MS)
    );
    world.clock.advance_ms(HOLD_MS + 5_000);
    let anew = world.granted(&call.retry(world, &key)).await;
    assert!(anew.joined && anew.attempt == 2);
    assert_eq!(
        anew.not_after_ms,
        world.now_ms() + HOLD_MS,
        "the new attempt is covered too"
    );
    assert_eq!(world.used_held(&def).await, (0, 20));
    let mut listed = settlement(&first, absent());
    listed.attempt = 0;
    assert!(
        world.try_settle(listed).await.is_err(),
        "absence proves nothing while it may be in flight"
    );
}

/// The vendor forgets a key after a day, so an unknown call is joined for 23 hours and never later: an attempt under a
/// forgotten key would be a second spend.
pub async fn invariant_03_an_unknown_call_is_joined_for_23_hours(world: &World) {
    let (def, key) = world.capped(WindowKind::Lifetime, 1_000_000_000).await;
    let call = world.call(&key, 10).step("one");
    let first = world.granted(&call).await;
    world.clock.advance_ms(23 * 3_600_000 - 1);
    let joined = world.granted(&call.retry(world, &key)).await;
    assert_eq!(
        (joined.call_id.as_str(), joined.attempt),
        (first.call_id.as_str(), 2)
    );
    world.clock.advance_ms(1);
    assert_eq!(
        world.denied(&call.retry(world, &key)).await.code,
        Code::OutcomeUnknown
    );
    world.clock.advance_ms(HOLD_MS);
    let twin = world.call(&key, 10).step("two");
    assert_eq!(
        world.denied(&twin).await.code,
        Code::OutcomeUnknown,
        "nor under another step"
    );
    assert_eq!(world.used_held(&def).await, (0, 10));
}

/// A step that joined another's unknown call is one spend with it, also after that call was found absent and the other
/// step has tried it again under the same vendor key: two holds for one key would count its one movement twice.
pub async fn invariant_03_a_spend_that_was_joined_stays_one(world: &World) {
    let (def, key) = world.capped(WindowKind::Lifetime, 1_000_000_000).await;
    let one = world.call(&key, 10).step("one");
    let first = world.granted(&one).await;
    world.clock.advance_ms(HOLD_MS);
    world.ledger.sweep(100).await.expect("swept");
    let two = world.call(&key, 10).step("two");
    let joined = world.granted(&two).await;
    assert_eq!(joined.call_id, first.call_id, "it joins the unknown call");
    world.clock.advance_ms(HOLD_MS);
    world.ledger.sweep(100).await.expect("swept");
    let mut listed = settlement(&first, absent_after(2));
    listed.attempt = 0;
    world.try_settle(listed).await.expect("absent");

    let again = world.granted(&one.retry(world, &key)).await;
    assert!(!again.joined);
    let other = world.granted(&two.retry(world, &key)).await;
    assert_eq!(
        (other.call_id.as_str(), other.joined),
        (again.call_id.as_str(), true),
        "one vendor key, one hold"
    );
    assert_eq!(world.used_held(&def).await, (0, 10));
}

/// Another attempt that began after the listing makes the listing prove nothing.
pub async fn invariant_06_absence_is_of_the_attempts_that_were_known(world: &World) {
    let (def, key) = world.capped(WindowKind::Lifetime, 1_000_000_000).await;
    let call = world.call(&key, 10).step("one");
    let first = world.granted(&call).await;
    world.clock.advance_ms(HOLD_MS);
    world.granted(&call.retry(world, &key)).await;
    world.clock.advance_ms(HOLD_MS);
    let mut listed = settlement(&first, absent());
    listed.attempt = 0;
    assert!(
        world.try_settle(listed).await.is_err(),
        "the listing knew of one attempt, and there are two"
    );
    assert_eq!(world.used_held(&def).await, (0, 10));
}

/// An identity is kept for 30 days after its last change, and as long as anything of it is open.
pub async fn invariant_16_identities_outlive_their_holds(world: &World) {
    let (def, key) = world.capped(WindowKind::Lifetime, 1_000_000_000).await;
    let open = world.call(&key, 10).step("open");
    let first = world.granted(&open).await;
    let done = world.call(&key, 11).step("done");
    world.charge(&world.granted(&done).await, 11).await;

    world.clock.advance_ms(29 * DAY_MS);
    assert!(matches!(
        world.ask(&done.retry(world, &key)).await,
        ReserveAnswer::Replay(_)
    ));
    world.clock.advance_ms(31 * DAY_MS);
    let denial = world.denied(&open.retry(world, &key)).await;
    assert_eq!(denial.code, Code::OutcomeUnknown, "open for 60 days");
    assert_eq!(denial.existing.expect("the earlier call").call_id, first.call_id);
    let forgotten = world.granted(&done.retry(world, &key)).await;
    assert_eq!(
        (forgotten.joined, forgotten.generation),
        (false, 2),
        "a new spend has a new vendor key"
    );
    assert_eq!(world.used_held(&def).await, (11, 21));
    let refuse = world.call(&key, 12).step("refuse").on_repeat(OnRepeat::Refuse);
    world.charge(&world.granted(&refuse).await, 12).await;
    let denial = world.denied(&refuse.retry(world, &key)).await;
    assert_eq!(denial.code, Code::AlreadyDone);
    assert_eq!(
        denial.existing.expect("the earlier call").amount_micros,
        12_000_000
    );
}
