//! Leases that a server lost and that a process says again: their holders go on, and nobody forgets them.

use std::sync::Arc;

use keybrake::SystemClock;
use keybrake::audit::{Audit, RowFilter};
use keybrake::clock::Clock as _;
use keybrake::ledger::{CallAssertion, LeaseAnswer, Reassertion, Reservation, State, StopScope, WindowKind};

use super::super::World;
use super::super::world::{Key, charged, note};
use super::{Holder, OVER_MS, TTL_MS, calls, parent_and_child, since, waits_for_no_lease};

/// A lease as another ledger has it, that this one never saw: the one given, under another name.
fn lost(of: &Reservation, id: &str) -> Reservation {
    let mut lease = of.clone();
    let mut facts = lease.facts.as_ref().clone();
    id.clone_into(&mut facts.call_id);
    lease.facts = Arc::new(facts);
    lease
}

impl World {
    /// Says it twice, and the second time changes nothing. Answers whether the first did.
    async fn said_again(&self, lease: &Reservation) -> bool {
        let said = Reassertion {
            calls: vec![CallAssertion {
                call: lease.clone(),
                found_by: Vec::new(),
                object: None,
            }],
            ..Reassertion::default()
        };
        let first = self.ledger.reassert(said.clone()).await.unwrap();
        let again = self.ledger.reassert(said).await.unwrap();
        assert_eq!((again.changed, again.unchanged), (0, 1));
        first.changed == 1
    }

    async fn lease_of(&self, id: &str) -> Reservation {
        self.ledger.reservation(id).await.unwrap().unwrap()
    }
}

/// A lease of which a server has an older step: its holder, which had the answer to the next one, goes on.
async fn two_steps(world: &World, key: &Key) -> (Reservation, Reservation) {
    let mut holder = Holder::new(world, key, "lease");
    holder.held(0, 20).await;
    let older = world.lease_of("lease").await;
    for _ in 0..5 {
        holder.made(Some(charged(0)));
    }
    holder.held(10, 10).await;
    (older, world.lease_of("lease").await)
}

/// Of two steps of one lease the later one stands, in whatever order they are said and whatever became of the older one.
pub async fn a_lease_that_is_said_again_goes_on_from_its_last_step(world: &World) {
    let day = calls(WindowKind::Day, 8_000);
    let key = world.key("a", std::slice::from_ref(&day)).await;
    let (older, newer) = two_steps(world, &key).await;
    assert_eq!(world.raw(&day).await, (5, 20));

    assert!(world.said_again(&lost(&older, "other")).await);
    assert_eq!(world.raw(&day).await, (5, 40));
    assert!(world.said_again(&lost(&newer, "other")).await);
    assert_eq!(world.raw(&day).await, (10, 40), "5 told, 20 held");
    assert!(!world.said_again(&lost(&older, "other")).await);
    // Its holder knows of no loss.
    let mut holder = Holder::new(world, &key, "other");
    holder.number = 2;
    holder.made(Some(charged(0)));
    assert_eq!(holder.held(9, 0).await.added, 0);
    assert_eq!(world.raw(&day).await, (11, 29));

    // Another's older step was forfeited meanwhile: what the later one says counts, and is forfeited in its turn.
    assert!(world.said_again(&lost(&older, "late")).await);
    world.clock.advance_ms(TTL_MS + OVER_MS);
    world.ledger.sweep(10).await.unwrap();
    assert_eq!(world.raw(&day).await, (11 + 20 + 9 + 20, 0));
    assert!(world.said_again(&lost(&newer, "late")).await);
    assert_eq!(world.state("late").await, State::Held);
    assert_eq!(world.raw(&day).await, (60 - 20 + 5, 20));
    let mut holder = Holder::new(world, &key, "late");
    holder.number = 2;
    let told = holder.made(Some(charged(0)));
    assert_eq!(holder.step(9, 0).await, LeaseAnswer::Over { forfeited: true });
    assert_eq!(world.raw(&day).await, (65, 0));

    let rows = Audit::new(&*world.ledger)
        .list(RowFilter::default(), 100)
        .await
        .unwrap();
    assert!(
        rows.iter()
            .all(|row| row.vault_key_id.is_some() && !["other", "late"].contains(&row.call_id.as_str()))
    );
    assert!(rows.iter().any(|row| row.call_id == told));
    assert_eq!(rows.len(), 5 + 1 + 1, "no row for a lease");
}

/// A stop finds a lease that was said again, as it finds any other; one that had ended is not waited for.
pub async fn a_stop_waits_for_a_lease_that_was_said_again(world: &World) {
    let day = calls(WindowKind::Day, 8_000);
    let (parent, child) = parent_and_child(world, &day).await;
    let mut holder = Holder::new(world, &child, "lease");
    holder.held(0, 20).await;
    let held = world.lease_of("lease").await;
    holder.step(0, 0).await;
    let ended = world.lease_of("lease").await;

    world.said_again(&lost(&ended, "ended")).await;
    world.said_again(&lost(&held, "given back")).await;
    world.said_again(&lost(&ended, "given back")).await;
    waits_for_no_lease("none stands", async |_| {
        let scope = StopScope::Key(child.id.clone());
        world.ledger.stop(scope.clone(), note("test")).await.unwrap();
        assert!(world.ledger.resume(&scope, note("test")).await.unwrap());
    })
    .await;

    world.said_again(&lost(&held, "other")).await;
    let begun_ms = SystemClock.boot_ms();
    world.ledger.revoke(&parent.id, note("test")).await.unwrap();
    assert!(since(begun_ms) >= TTL_MS);
}
