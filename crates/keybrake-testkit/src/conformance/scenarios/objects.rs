//! Scenarios 4 and 19: vendor objects whose exposure several calls share.

use keybrake::ledger::{EventKind, HoldFilter, Proof, ReserveAnswer, Scope, State, Unit, WindowKind};
use keybrake::policy::Code;

use super::super::World;
use super::super::world::{DAY_MS, budget, charged, daily, dollars};

const INTENT: &str = "stripe|live||pi_1";

/// An intent created at $1 and raised to $5,000 reserves the rest when it is raised.
pub async fn scenario_04_cheap_create_dear_update(world: &World) {
    let def = daily("a", 100);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    let create = world.granted(&world.call(&key, 1).step("create")).await;
    let answer = world.seen(&create, Proof::Accepted, (INTENT, 0, false)).await;
    assert_eq!((answer.state, answer.held), (State::Pending, dollars(1)));
    let denial = world.denied(&world.call(&key, 5_000).raising(INTENT)).await;
    assert_eq!(
        (denial.code, denial.requested_micros),
        (Code::CapExceeded, Some(4_999_000_000))
    );

    let update = world.granted(&world.call(&key, 50).raising(INTENT)).await;
    assert_eq!(update.amount, dollars(49), "only what the new total adds");
    world.seen(&update, Proof::Accepted, (INTENT, 0, false)).await;
    assert_eq!(world.used_held(&def).await, (0, 50));
    let confirm = world.granted(&world.call(&key, 50).raising(INTENT)).await;
    assert_eq!(confirm.amount, dollars(0));
    world.seen(&confirm, charged(50), (INTENT, 50, true)).await;
    assert_eq!(world.used_held(&def).await, (50, 0));
    for grant in [&create, &update, &confirm] {
        assert_eq!(world.state(&grant.call_id).await, State::Settled);
    }
    assert!(world.open().await.is_empty());
}

/// Create, confirm and capture of $100 count $100; captures of 60 and then 100 cumulative count 100.
pub async fn scenario_04_captures_are_cumulative(world: &World) {
    let def = daily("a", 1_000);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    let create = world.granted(&world.call(&key, 100).step("create")).await;
    world.seen(&create, Proof::Accepted, (INTENT, 0, false)).await;
    let capture = world.granted(&world.call(&key, 60).raising(INTENT)).await;
    world.seen(&capture, charged(60), (INTENT, 60, false)).await;
    assert_eq!(world.used_held(&def).await, (60, 40));
    let capture = world.granted(&world.call(&key, 100).raising(INTENT)).await;
    world.seen(&capture, charged(100), (INTENT, 100, true)).await;
    assert_eq!(world.used_held(&def).await, (100, 0));
    // An older state that arrives late takes nothing back.
    world.seen(&capture, charged(60), (INTENT, 60, false)).await;
    assert_eq!(world.used_held(&def).await, (100, 0));

    // A partial capture closes the intent: what is left is released, in the window that reserved it.
    let other = "stripe|live||pi_2";
    let create = world.granted(&world.call(&key, 100).step("second")).await;
    world.seen(&create, Proof::Accepted, (other, 0, false)).await;
    world.clock.advance_ms(DAY_MS);
    let capture = world.granted(&world.call(&key, 30).raising(other)).await;
    let answer = world.seen(&capture, charged(30), (other, 30, true)).await;
    assert_eq!((answer.state, answer.used), (State::Settled, dollars(0)));
    assert_eq!(world.used_held(&def).await, (0, 0), "today took nothing");
    let create = world.ledger.reservation(&create.call_id).await.unwrap().unwrap();
    assert_eq!(
        (create.state, create.used, create.held),
        (State::Settled, dollars(30), dollars(0))
    );
}

/// A declined confirm gives back its own part; the creation's exposure stays until cancel.
pub async fn scenario_04_a_declined_confirm_keeps_the_creation(world: &World) {
    let def = daily("a", 100);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    let create = world.granted(&world.call(&key, 40).step("create")).await;
    world.seen(&create, Proof::Accepted, (INTENT, 0, false)).await;
    let confirm = world.granted(&world.call(&key, 60).raising(INTENT)).await;
    assert_eq!(confirm.amount, dollars(20));
    world
        .seen(&confirm, Proof::FailedForGood, (INTENT, 0, false))
        .await;
    assert_eq!(world.used_held(&def).await, (0, 40));
    let again = world.granted(&world.call(&key, 60).raising(INTENT)).await;
    assert_eq!(again.amount, dollars(20), "what was given back is reserved again");
    world.settle(&again, Proof::NeverSent).await;
    let cancel = world.granted(&world.call(&key, 0).raising(INTENT)).await;
    world.seen(&cancel, charged(0), (INTENT, 0, true)).await;
    assert_eq!(world.used_held(&def).await, (0, 0));
    assert_eq!(world.state(&create.call_id).await, State::Voided);
    let last = world
        .events()
        .await
        .into_iter()
        .find(|event| event.kind == EventKind::Corrected);
    assert_eq!(
        last.expect("the release is an event of the creation").call_id,
        Some(create.call_id)
    );
}

/// A payout that was accepted and failed later is nothing spent, in the window that counted it; the next try of it is
/// a new generation. What moved through an object stays.
pub async fn a_reversal_restores_the_window_that_counted_it(world: &World) {
    let def = daily("a", 100);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    let payout = world.granted(&world.call(&key, 80).step("payout")).await;
    let sent = Proof::ChargedProvisionally { actual: dollars(80) };
    assert_eq!(world.settle(&payout, sent).await.state, State::Provisional);
    let provisional = HoldFilter {
        state: Some(State::Provisional),
        ..HoldFilter::default()
    };
    let listed = world.ledger.holds(provisional.clone()).await.unwrap();
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert!(world.open().await.is_empty(), "it holds nothing");
    assert_eq!(world.denied(&world.call(&key, 30)).await.code, Code::CapExceeded);

    world.clock.advance_ms(DAY_MS);
    let today = world.granted(&world.call(&key, 30)).await;
    world.charge(&today, 30).await;
    let back = world.settle(&payout, Proof::Reversed).await;
    assert_eq!(
        (back.state, back.used, back.held),
        (State::Voided, dollars(0), dollars(0))
    );
    let event = world.events().await.pop().unwrap();
    assert_eq!(event.kind, EventKind::Corrected);
    assert_eq!(
        event.deltas.iter().map(|delta| delta.used).sum::<i64>(),
        -80_000_000
    );
    assert_eq!(
        world.used_held(&def).await,
        (30, 0),
        "yesterday was restored, today is untouched"
    );
    assert!(world.settle(&payout, Proof::Reversed).await.already);
    assert!(world.ledger.holds(provisional).await.unwrap().is_empty());
    let next = world.granted(&world.call(&key, 60).step("payout")).await;
    assert_eq!(
        next.generation, 2,
        "the vendor would replay the failed one under its key"
    );

    let capture = world.granted(&world.call(&key, 10).step("capture")).await;
    world.seen(&capture, charged(10), (INTENT, 10, true)).await;
    let still = world.settle(&capture, Proof::Reversed).await;
    assert_eq!((still.state, still.used), (State::Settled, dollars(10)));
}

/// Authorised and cancelled a thousand times at $0: money does not stop it, a count does.
pub async fn scenario_19_authorise_and_cancel_a_thousand_times(world: &World) {
    let usd = daily("a", 100);
    let writes = budget(Scope::Lineage("a".into()), Unit::Writes, WindowKind::Day, 40);
    let key = world.key("a", &[usd.clone(), writes.clone()]).await;
    let mut admitted = 0;
    for number in 0..1_000 {
        let object = format!("stripe|live||pi_{number}");
        let ReserveAnswer::Granted(create) = world.ask(&world.call(&key, 50)).await else {
            continue;
        };
        admitted += 1;
        world.seen(&create, Proof::Accepted, (&object, 0, false)).await;
        let ReserveAnswer::Granted(cancel) = world.ask(&world.call(&key, 0).raising(&object)).await else {
            // The count ran out between the two: the creation stays exposed, as it is at the vendor.
            assert_eq!(world.used_held(&usd).await, (0, 50));
            break;
        };
        admitted += 1;
        world.seen(&cancel, charged(0), (&object, 0, true)).await;
    }
    assert_eq!(admitted, 40);
    assert_eq!(
        world.raw(&writes).await,
        (40, 0),
        "cancelled or not, each was a write"
    );
    assert_eq!(world.used_held(&usd).await, (0, 0));
    let denial = world.denied(&world.call(&key, 1)).await;
    assert_eq!(
        denial.code,
        Code::CapExceeded,
        "final: no open hold stands in the way"
    );
}
