//! What is told late, once more, or for a second time: by a journal that was asleep, by reconciliation, by a person.

use keybrake::ledger::{Grant, Proof, SettleAnswer, State};

use super::super::World;
use super::super::world::{daily, dollars, settlement};

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
