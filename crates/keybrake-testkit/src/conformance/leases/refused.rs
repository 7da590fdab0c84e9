//! Leases that are not prolonged, or not given at all: after a stop, a revocation, a lower cap, and where there are many.

use keybrake::SystemClock;
use keybrake::clock::Clock as _;
use keybrake::ledger::{LeaseAnswer, StopScope, WindowKind};
use keybrake::policy::Code;

use super::super::World;
use super::super::world::{charged, note};
use super::{Holder, TIMES, TTL_MS, calls, parent_and_child, read, since, waits_for_no_lease};

/// After a stop a lease is not prolonged; the stop returns when it is given back, or after the lease's time to live.
pub async fn a_stop_refuses_a_renewal_and_waits_for_the_lease(world: &World) {
    let day = calls(WindowKind::Day, 800);
    let key = world.key("a", std::slice::from_ref(&day)).await;
    let mut holder = Holder::new(world, &key, "lease");
    holder.held(0, 10).await;
    waits_for_no_lease("not this lease's agent", async |time| {
        let other = StopScope::Agent(format!("b{time}"));
        world.ledger.stop(other, note("others")).await.unwrap();
    })
    .await;

    let begun_ms = SystemClock.boot_ms();
    let answer = world
        .ledger
        .stop(StopScope::Agent("a".into()), note("test"))
        .await
        .unwrap();
    let waited_ms = since(begun_ms);
    assert!(waited_ms >= TTL_MS, "{waited_ms}");
    assert!(answer.in_flight.is_empty(), "a lease is no call");

    holder.made(Some(charged(0)));
    assert_eq!(holder.step(5, 10).await, LeaseAnswer::Refused);
    assert_eq!(holder.step(0, 0).await, LeaseAnswer::Over { forfeited: false });
    assert_eq!(world.raw(&day).await, (1, 0));
    assert_eq!(
        Holder::new(world, &key, "another").step(0, 10).await,
        LeaseAnswer::Refused
    );
    waits_for_no_lease("no lease is left", async |_| {
        world.ledger.stop(StopScope::All, note("test")).await.unwrap();
        assert!(world.ledger.resume(&StopScope::All, note("test")).await.unwrap());
    })
    .await;
}

/// A cap that is lowered below what its leases keep reaches their holders with the next step, as a stop does.
pub async fn a_lowered_cap_refuses_a_renewal(world: &World) {
    let day = calls(WindowKind::Day, 800);
    let key = world.key("a", std::slice::from_ref(&day)).await;
    let mut holder = Holder::new(world, &key, "lease");
    assert_eq!(holder.held(0, 20).await.added, 20);
    holder.made(Some(charged(0)));
    let lower = |cap| world.ledger.put_budget(calls(WindowKind::Day, cap), note("test"));
    lower(20).await.unwrap();
    let held = holder.held(19, 20).await;
    assert_eq!((held.added, held.for_ms), (0, TTL_MS), "what it keeps still fits");
    holder.made(Some(charged(0)));
    lower(12).await.unwrap();
    let held = holder.held(10, 0).await;
    assert_eq!(
        (held.for_ms, world.raw(&day).await),
        (TTL_MS, (2, 10)),
        "it keeps no more"
    );

    lower(11).await.unwrap();
    holder.made(Some(charged(0)));
    assert_eq!(holder.step(9, 8).await, LeaseAnswer::Refused);
    assert_eq!(world.raw(&day).await, (3, 9));
    assert_eq!(holder.step(0, 0).await, LeaseAnswer::Over { forfeited: false });
    assert_eq!(world.raw(&day).await, (3, 0));
    for _ in 3..11 {
        let grant = world.granted(&read(world, &key)).await;
        world.settle(&grant, charged(0)).await;
    }
    assert_eq!(world.denied(&read(world, &key)).await.code, Code::CapExceeded);
}

/// Each lease is listed under its key and all above it. A list that is full takes no more: those calls are asked of the
/// ledger, until one is given back.
pub async fn a_key_has_so_many_leases_below_it_and_no_more(world: &World) {
    const MOST: usize = 256;
    let day = calls(WindowKind::Day, 1_000_000);
    let (parent, child) = parent_and_child(world, &day).await;
    for number in 0..MOST {
        let key = if number % 2 == 0 { &parent } else { &child };
        Holder::new(world, key, &format!("lease-{number}"))
            .held(0, 8)
            .await;
    }
    for key in [&parent, &child] {
        let mut refused = Holder::new(world, key, &format!("one more of {}", key.id));
        assert_eq!(refused.step(0, 8).await, LeaseAnswer::Refused);
        world.granted(&read(world, key)).await;
    }
    let mut first = Holder::new(world, &child, "lease-1");
    first.number = 1;
    assert_eq!(first.step(0, 0).await, LeaseAnswer::Over { forfeited: false });
    Holder::new(world, &child, "there is room").held(0, 8).await;
}

/// Revoking a parent ends the leases of its children, and waits for them.
pub async fn a_revocation_waits_for_the_leases_of_descendants(world: &World) {
    let day = calls(WindowKind::Day, 800);
    let (parent, child) = parent_and_child(world, &day).await;
    let mut others = Vec::new();
    for _ in 0..TIMES {
        others.push(world.key("a", std::slice::from_ref(&day)).await);
    }
    let mut holder = Holder::new(world, &child, "lease");
    holder.held(0, 10).await;

    waits_for_no_lease("not this lease's key", async |time| {
        let other = &others[time].id;
        assert!(world.ledger.revoke(other, note("another")).await.unwrap());
    })
    .await;
    let begun_ms = SystemClock.boot_ms();
    world.ledger.revoke(&parent.id, note("test")).await.unwrap();
    assert!(since(begun_ms) >= TTL_MS);
    assert_eq!(holder.step(2, 10).await, LeaseAnswer::Refused);
    assert_eq!(holder.step(0, 0).await, LeaseAnswer::Over { forfeited: false });
    assert_eq!(world.raw(&day).await, (0, 0));
}
