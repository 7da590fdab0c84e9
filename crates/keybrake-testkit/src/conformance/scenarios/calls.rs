//! Scenarios of one call: attempts, replays, repeats.

use keybrake::ErrorKind;
use keybrake::ledger::{EventKind, Grant, OnRepeat, Proof, ReplyFacts, ReserveAnswer, Settlement, State};
use keybrake::policy::Code;

use super::super::World;
use super::super::world::{HOLD_MS, charged, daily, dollars, no_proof, operator, settlement};

/// The first attempt times out, having charged; the joined retry gets a 429. The hold stays until the truth.
pub async fn scenario_02_joined_429(world: &World) {
    let def = daily("a", 100);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    let call = world.call(&key, 60).step("s");
    let first = world.granted(&call).await;
    world.settle(&first, no_proof("timeout")).await;
    let retry = world.granted(&call.retry(world, &key)).await;
    let answer = world.settle(&retry, Proof::DidNotExecute).await;
    assert_eq!((answer.state, answer.held), (State::Unknown, dollars(60)));
    assert_eq!(
        world.used_held(&def).await,
        (0, 60),
        "a joined 429 proves nothing about the first attempt"
    );
    assert_eq!(world.denied(&world.call(&key, 50)).await.code, Code::CapHeld);
    world.charge(&first, 60).await;
    assert_eq!(world.used_held(&def).await, (60, 0));

    let call = world.call(&key, 10).step("both");
    let first = world.granted(&call).await;
    let second = world.granted(&call.retry(world, &key)).await;
    world.settle(&second, Proof::DidNotExecute).await;
    assert_eq!(world.used_held(&def).await, (60, 10));
    let answer = world.settle(&first, Proof::DidNotExecute).await;
    assert_eq!(answer.state, State::Voided, "every attempt is proven now");
    assert_eq!(world.used_held(&def).await, (60, 0));
}

/// The first attempt crashed after charging; the retry's replayed success settles it, once.
pub async fn scenario_03_replay_confirms(world: &World) {
    let def = daily("a", 100);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    let call = world.call(&key, 60).step("s");
    let first = world.granted(&call).await;
    world.clock.advance_ms(HOLD_MS + 1);
    let retry = world.granted(&call.retry(world, &key)).await;
    assert_eq!(
        (retry.generation, &retry.identity),
        (first.generation, &first.identity),
        "the same vendor key"
    );
    let replayed = |grant: &Grant| {
        let mut replayed = settlement(grant, charged(60));
        replayed.facts.replayed = true;
        replayed.reply = Some(b"reply".to_vec());
        replayed
    };
    let answer = world.try_settle(replayed(&retry)).await.unwrap();
    assert_eq!((answer.state, answer.used), (State::Settled, dollars(60)));
    world.try_settle(replayed(&first)).await.unwrap();
    assert_eq!(world.used_held(&def).await, (60, 0));
}

/// The client gave up before the ledger saw the call; the late reserve meets the tombstone.
pub async fn scenario_07_ambiguous_reserve(world: &World) {
    let def = daily("a", 100);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    let call = world.call(&key, 20).step("s");
    let gave_up = Settlement {
        call_id: call.facts.call_id.clone(),
        attempt: 1,
        proof: Proof::NeverSent,
        object: None,
        reply: None,
        facts: ReplyFacts::default(),
    };
    assert_eq!(world.try_settle(gave_up).await.unwrap().state, State::Voided);
    assert_eq!(world.denied(&call).await.code, Code::LedgerUnavailable);
    assert_eq!(world.used_held(&def).await, (0, 0));
    world.granted(&call.retry(world, &key)).await;
    let mut foreign = settlement(&world.granted(&world.call(&key, 1)).await, charged(1));
    "nobody".clone_into(&mut foreign.call_id);
    assert_eq!(
        world.try_settle(foreign).await.expect_err("no such call").kind(),
        ErrorKind::NotFound
    );
}

/// Two orders with steps of their own are two charges; without, the second is a visible replay.
pub async fn scenario_12_same_twenty_twice(world: &World) {
    let def = daily("a", 100);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    for step in ["order-1", "order-2"] {
        world
            .charge(&world.granted(&world.call(&key, 20).step(step)).await, 20)
            .await;
    }
    assert_eq!(world.used_held(&def).await, (40, 0));
    let plain = world.call(&key, 20).content();
    let first = world.granted(&plain).await;
    world.charge(&first, 20).await;
    let again = world.call(&key, 20).content();
    assert!(matches!(world.ask(&again).await, ReserveAnswer::Replay(_)));
    let refused = world.call(&key, 20).content().on_repeat(OnRepeat::Refuse);
    assert_eq!(world.denied(&refused).await.code, Code::AlreadyDone);
    let execute = world.call(&key, 20).content().on_repeat(OnRepeat::Execute);
    let second = world.granted(&execute).await;
    assert_eq!((second.joined, second.generation), (false, first.generation + 1));
    let replayed = world
        .events()
        .await
        .into_iter()
        .filter(|event| event.kind == EventKind::Replayed)
        .count();
    assert_eq!(replayed, 1, "the replay is a row of its own");
}

/// After a timeout the model's new tool call is the same charge; other bytes are refused.
pub async fn scenario_12_a_timeout_and_a_new_tool_call_id(world: &World) {
    let def = daily("a", 100);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    let first = world.granted(&world.call(&key, 20).step("toolu_1")).await;
    // Nobody even noticed the timeout: the deadline alone makes it unknown.
    world.clock.advance_ms(HOLD_MS);
    let other_bytes = world.call(&key, 20).step("toolu_2").wire("other bytes");
    assert_eq!(world.denied(&other_bytes).await.code, Code::OutcomeUnknown);
    let second = world.granted(&world.call(&key, 20).step("toolu_2")).await;
    assert_eq!(
        (second.joined, second.call_id.as_str()),
        (true, first.call_id.as_str())
    );
    assert_eq!(second.identity, first.identity, "the same vendor key");
    assert_eq!(world.used_held(&def).await, (0, 20));
    world.charge(&second, 20).await;
    let third = world.call(&key, 20).step("toolu_2");
    assert!(
        matches!(world.ask(&third).await, ReserveAnswer::Replay(_)),
        "it follows the call that it joined"
    );
    assert_eq!(world.used_held(&def).await, (20, 0));
}

/// The caller's own key in two connected accounts is two identities; in another lineage it is a conflict.
pub async fn scenario_13_two_connected_accounts_one_caller_key(world: &World) {
    let def = daily("a", 100);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    for account in ["acct_1", "acct_2"] {
        let mut call = world.call(&key, 20);
        call.facts.account = Some(account.to_owned());
        let grant = world.granted(&call.caller_key("order-7")).await;
        assert_eq!(
            (grant.joined, grant.caller_key.as_deref()),
            (false, Some("order-7"))
        );
    }
    assert_eq!(world.used_held(&def).await, (0, 40));
    let other = world.key("b", &[daily("b", 100)]).await;
    let mut call = world.call(&other, 20);
    call.facts.account = Some("acct_1".to_owned());
    let denial = world.denied(&call.caller_key("order-7")).await;
    assert_eq!(denial.code, Code::IdempotencyConflict);
}

/// A step with a changed amount is a new generation after a decline, and a conflict after an unknown outcome.
pub async fn scenario_14_step_with_a_changed_amount(world: &World) {
    let def = daily("a", 100);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    let first = world.granted(&world.call(&key, 20).step("s")).await;
    world.settle(&first, Proof::FailedForGood).await;
    let second = world.granted(&world.call(&key, 15).step("s")).await;
    assert_eq!(
        (second.generation, second.amount, second.joined),
        (2, dollars(15), false)
    );
    world.settle(&second, no_proof("timeout")).await;
    let denial = world.denied(&world.call(&key, 10).step("s")).await;
    assert_eq!(denial.code, Code::IdempotencyConflict);

    // Resolved by hand or by absence: the same generation, so the same vendor key; a change is a conflict.
    world.clock.advance_ms(HOLD_MS);
    let mut by_hand = settlement(&second, operator(None));
    by_hand.attempt = 0;
    world.try_settle(by_hand).await.unwrap();
    assert_eq!(
        world.denied(&world.call(&key, 10).step("s")).await.code,
        Code::IdempotencyConflict
    );
    let third = world.granted(&world.call(&key, 15).step("s")).await;
    assert_eq!((third.generation, third.joined), (2, false));
    assert_ne!(third.call_id, second.call_id);
    assert_eq!(world.used_held(&def).await, (0, 15));
}

/// Ten calls that may cost $12 and do cost less: `cap_held` while they are open, and room afterwards.
pub async fn scenario_16_concurrent_upper_bounds(world: &World) {
    let def = daily("a", 100);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    let mut open = Vec::new();
    for _ in 0..8 {
        open.push(world.granted(&world.call(&key, 12)).await);
    }
    let denial = world.denied(&world.call(&key, 12)).await;
    assert_eq!((denial.code, denial.retryable), (Code::CapHeld, true));
    let view = denial.budget.expect("the budget");
    assert_eq!((view.cap, view.used, view.held), (100_000_000, 0, 96_000_000));
    assert_eq!(view.hold_ids.len(), 8, "the calls that hold it are named");
    for grant in &open {
        world.charge(grant, 1).await;
    }
    for _ in 0..2 {
        world.granted(&world.call(&key, 12)).await;
    }
    assert_eq!(world.used_held(&def).await, (8, 24));
}
