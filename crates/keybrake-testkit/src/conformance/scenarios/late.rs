//! What is told late, once more, or for a second time: by a journal that was asleep, by reconciliation, by a person.

use keybrake::ledger::{Grant, Proof, SettleAnswer, Settlement, State};

use super::super::World;
use super::super::world::{DAY_MS, HOLD_MS, charged, daily, dollars, no_proof, operator, settlement};

/// By reconciliation.
async fn reconciled(world: &World, grant: &Grant, proof: Proof) -> SettleAnswer {
    let mut found = settlement(grant, proof);
    found.attempt = 0;
    world.try_settle(found).await.unwrap()
}

/// A payout that is known to have failed stays failed, when the reply that accepted it is told once more or only then:
/// a journal can be hours behind. Its next try is a new generation.
pub async fn a_failed_payout_stays_failed_whenever_its_acceptance_is_told(world: &World) {
    let def = daily("a", 100);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    let accepted = || Proof::ChargedProvisionally { actual: dollars(50) };
    let told = [true, false, false];
    for (number, (told_before, found)) in (1..).zip(told.into_iter().zip([
        Proof::Reversed,
        Proof::FailedForGood,
        // Read while it was provisional, recorded after older data had come back.
        Proof::Reversed,
    ])) {
        let step = format!("payout-{number}");
        let payout = world.granted(&world.call(&key, 50).step(&step)).await;
        if told_before {
            world.settle(&payout, accepted()).await;
        }
        let ended = reconciled(world, &payout, found).await;
        assert_eq!((ended.state, ended.used), (State::Voided, dollars(0)), "{step}");
        for _ in 0..2 {
            let late = world.settle(&payout, accepted()).await;
            assert_eq!(
                (late.state, late.used, late.held, late.overrun),
                (State::Voided, dollars(0), dollars(0), dollars(0)),
                "{step}"
            );
        }
        assert_eq!(world.used_held(&def).await, (0, 0), "{step}");
        let next = world.granted(&world.call(&key, 50).step(&step)).await;
        assert_eq!((next.generation, next.joined), (2, false), "{step}");
        world.settle(&next, Proof::NeverSent).await;
    }
    // An attempt's own decline proves nothing of the others.
    let call = world.call(&key, 50).step("joined");
    let first = world.granted(&call).await;
    let second = world.granted(&call.retry(world, &key)).await;
    world.settle(&second, Proof::FailedForGood).await;
    let late = world.settle(&first, accepted()).await;
    assert_eq!((late.state, late.used), (State::Settled, dollars(50)));
}

/// A caller's key that comes back when the vendor has forgotten it pays again, although the retry is marked as a replay:
/// what another call has settled stands for the money only if it is the same object of the vendor.
pub async fn a_replay_is_anothers_only_if_it_shows_the_same_object(world: &World) {
    let def = daily("a", 1_000);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    let in_run = |run: &str| {
        let mut call = world.call(&key, 50);
        call.facts.run = Some(run.to_owned());
        call.caller_key("weekly")
    };
    let first = world.granted(&in_run("run_1")).await;
    world
        .try_settle(shows(&first, Some("po_1"), false))
        .await
        .unwrap();
    assert_eq!(world.used_held(&def).await, (50, 0));
    world.clock.advance_ms(3 * DAY_MS);

    let call = in_run("run_2");
    let second = world.granted(&call).await;
    world.settle(&second, no_proof("timeout")).await;
    let retry = world.granted(&call.retry(world, &key)).await;
    let answer = world.try_settle(shows(&retry, Some("po_2"), true)).await.unwrap();
    assert_eq!((answer.state, answer.used), (State::Settled, dollars(50)));
    assert_eq!(world.used_held(&def).await, (50, 0));
    // A reply that shows no object cannot be known to be another's.
    let third = world.granted(&in_run("run_3")).await;
    let answer = world.try_settle(shows(&third, None, true)).await.unwrap();
    assert_eq!(answer.used, dollars(50));
    // The second object once more, in another run and at once: this is the vendor's record and no money.
    let fourth = world.granted(&in_run("run_4")).await;
    let answer = world
        .try_settle(shows(&fourth, Some("po_2"), true))
        .await
        .unwrap();
    assert_eq!((answer.state, answer.used), (State::Settled, dollars(0)));
    assert_eq!(world.used_held(&def).await, (100, 0));
}

/// An object that the request itself names was there before, and each call moves money anew: there, a replay is another
/// call's only while the vendor certainly has that call's key.
pub async fn a_replay_on_a_named_object_is_anothers_for_23_hours(world: &World) {
    let def = daily("a", 1_000);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    let in_run = |run: &str| {
        let mut call = world.call(&key, 50);
        call.facts.run = Some(run.to_owned());
        let mut call = call.caller_key("monthly");
        if let Some(identity) = &mut call.identity {
            identity.fields.push(("path.0".to_owned(), "sub_1".to_owned()));
        }
        call
    };
    let first = world.granted(&in_run("run_1")).await;
    world
        .try_settle(shows(&first, Some("sub_1"), false))
        .await
        .unwrap();
    let at_once = world.granted(&in_run("run_2")).await;
    let answer = world
        .try_settle(shows(&at_once, Some("sub_1"), true))
        .await
        .unwrap();
    assert_eq!(answer.used, dollars(0));
    world.clock.advance_ms(30 * DAY_MS);
    let later = world.granted(&in_run("run_3")).await;
    let answer = world
        .try_settle(shows(&later, Some("sub_1"), true))
        .await
        .unwrap();
    assert_eq!(answer.used, dollars(50));
}

fn shows(grant: &Grant, object: Option<&str>, replayed: bool) -> Settlement {
    let mut shows = settlement(grant, charged(50));
    shows.facts.vendor_object = object.map(str::to_owned);
    shows.facts.replayed = replayed;
    shows
}

/// What reconciliation found, or a person decided, is no longer so once a reply shows that the call was accepted after
/// all: then the next finding and the next decision count, and each once.
pub async fn a_call_that_is_held_again_can_be_resolved_again(world: &World) {
    let def = daily("a", 100);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    for (step, resolution) in [("found", Proof::FailedForGood), ("decided", operator(None))] {
        let grant = world.granted(&world.call(&key, 50).step(step)).await;
        world.clock.advance_ms(HOLD_MS);
        let first = reconciled(world, &grant, resolution.clone()).await;
        assert_eq!((first.state, first.already), (State::Voided, false), "{step}");
        let again = world.settle(&grant, Proof::Accepted).await;
        assert_eq!((again.state, again.held), (State::Pending, dollars(50)), "{step}");
        let second = reconciled(world, &grant, resolution.clone()).await;
        assert_eq!(
            (second.state, second.held, second.already),
            (State::Voided, dollars(0), false),
            "{step}"
        );
        assert!(reconciled(world, &grant, resolution).await.already, "{step}");
        // The reply was told before: it does not hold again what has been looked at since.
        assert_eq!(world.settle(&grant, Proof::Accepted).await.state, State::Voided);
        assert_eq!(world.used_held(&def).await, (0, 0), "{step}");
    }
}

/// The caller gave up, so the call is unknown at once; but its request can still be under way until its deadline, and
/// nobody would hear of what it did. Until then a person decides nothing, whichever way; a further attempt puts it off.
pub async fn a_person_decides_only_what_can_no_longer_be_in_flight(world: &World) {
    let def = daily("a", 100);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    let decide = |grant: &Grant, spent| {
        let mut decided = settlement(grant, operator(spent));
        decided.attempt = 0;
        world.try_settle(decided)
    };
    for (step, proof, spent) in [
        ("cancelled", no_proof("cancelled"), None),
        ("less", no_proof("cancelled"), Some(1)),
        ("accepted", Proof::Accepted, None),
    ] {
        let call = world.call(&key, 50).step(step);
        let first = world.granted(&call).await;
        world.settle(&first, proof).await;
        world.clock.advance_ms(HOLD_MS - 1);
        assert!(decide(&first, spent).await.is_err(), "{step}");
        assert_eq!(world.used_held(&def).await.1, 50, "{step}");
        if step == "cancelled" {
            let retry = world.granted(&call.retry(world, &key)).await;
            world.settle(&retry, no_proof("cancelled")).await;
            world.clock.advance_ms(HOLD_MS - 1);
            assert!(decide(&first, spent).await.is_err(), "{step}");
        }
        world.clock.advance_ms(1);
        let decided = decide(&first, spent).await.unwrap();
        assert_eq!(
            (decided.used, decided.held),
            (dollars(spent.unwrap_or(0)), dollars(0))
        );
    }
    assert_eq!(world.used_held(&def).await, (1, 0));
}
