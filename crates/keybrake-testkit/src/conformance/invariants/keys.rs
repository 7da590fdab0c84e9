//! Invariants 8, 10 and 11: keys, stops, parents and groups.

use std::sync::Arc;

use keybrake::ledger::{Proof, ReserveAnswer, Scope, StopScope, Unit, WindowKind};
use keybrake::policy::Code;

use super::super::World;
use super::super::world::{DAY_MS, budget, daily, note};

/// Whatever was stopped, revoked, has expired or was changed is refused by the very next reserve.
pub async fn invariant_08_stop_revoke_expiry_version_in_the_same_step(world: &World) {
    let def = daily("a", 100);
    let mut draft = world.draft("a", std::slice::from_ref(&def));
    draft.label = Some("billing".to_owned());
    let parent = world.issue(draft).await;
    let mut draft = world.draft("a", &[]);
    draft.ancestors = vec![parent.id.clone()];
    draft.agent = Some("sub".to_owned());
    let child = world.issue(draft).await;
    let scopes = [
        StopScope::All,
        StopScope::Vendor("stripe".to_owned()),
        StopScope::Run("run_1".to_owned()),
        StopScope::Agent("sub".to_owned()),
        StopScope::Agent("a".to_owned()),
        StopScope::Label("billing".to_owned()),
        StopScope::Key(child.id.clone()),
        StopScope::Key(parent.id.clone()),
    ];
    for scope in scopes {
        world.ledger.stop(scope.clone(), note("loop")).await.unwrap();
        let denial = world.denied(&world.call(&child, 1)).await;
        assert_eq!(denial.code, Code::Stopped, "{scope:?}");
        let stop = denial.stop.expect("the stop is named");
        assert_eq!(
            (stop.scope, stop.reason.as_str(), stop.by.as_str()),
            (scope.name(), "loop", "suite")
        );
        assert!(world.ledger.resume(&scope, note("over")).await.unwrap());
        world
            .settle(&world.granted(&world.call(&child, 1)).await, Proof::NeverSent)
            .await;
    }
    let mut stale = world.call(&child, 1);
    stale.facts.key_version += 1;
    assert!(matches!(world.ask(&stale).await, ReserveAnswer::Stale));
    assert!(world.ledger.revoke(&parent.id, note("leaked")).await.unwrap());
    assert_eq!(
        world.denied(&world.call(&child, 1)).await.code,
        Code::KeyRevoked,
        "the parent's end is the child's"
    );
    let short = world.key("a", std::slice::from_ref(&def)).await;
    world.clock.advance_ms(90 * DAY_MS);
    assert_eq!(world.denied(&world.call(&short, 1)).await.code, Code::KeyExpired);
    assert_eq!(world.used_held(&def).await, (0, 0));
}

/// A stop refuses new keys of its scope, names itself, and lets others through.
pub async fn invariant_08_no_key_is_issued_under_a_stop(world: &World) {
    let def = daily("a", 100);
    world
        .ledger
        .stop(StopScope::Run("run_9".to_owned()), note("refund loop"))
        .await
        .unwrap();
    let mut draft = world.draft("a", std::slice::from_ref(&def));
    draft.run = Some("run_9".to_owned());
    let error = world
        .try_issue(draft.clone())
        .await
        .expect_err("a stop covers it");
    assert!(
        error.message().contains("run:run_9") && error.message().contains("refund loop"),
        "{error}"
    );
    let denial = error.denial().expect("a refusal, not a mistake in a policy");
    assert_eq!(denial.code, Code::Stopped);
    assert_eq!(
        denial.stop.as_ref().map(|stop| stop.scope.as_str()),
        Some("run:run_9")
    );
    world.key("a", std::slice::from_ref(&def)).await;
    world
        .ledger
        .resume(&StopScope::Run("run_9".to_owned()), note("over"))
        .await
        .unwrap();
    world.issue(draft).await;
}

/// Two children of one parent share its cap, with tasks racing for it.
pub async fn invariant_10_children_never_outspend_their_parent(world: &World) {
    let parents = daily("boss", 10);
    let parent = world.key("boss", std::slice::from_ref(&parents)).await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..2 {
        let name = format!("child{number}");
        let mut draft = world.draft(&name, &[daily(&name, 9)]);
        draft.ancestors = vec![parent.id.clone()];
        let child = world.issue(draft).await;
        assert!(
            child.budgets.iter().any(|budget| budget.def == parents),
            "the child draws on the parent"
        );
        for _ in 0..12 {
            let ledger = Arc::clone(&world.ledger);
            let request = world.call(&child, 1).request();
            tasks.spawn(async move {
                matches!(ledger.reserve(request).await.unwrap(), ReserveAnswer::Granted(_))
            });
        }
    }
    let admitted = tasks
        .join_all()
        .await
        .into_iter()
        .filter(|granted| *granted)
        .count();
    assert_eq!(admitted, 10);
    assert_eq!(world.used_held(&parents).await, (0, 10));
}

/// A group's budget counts every key in it, also one that it gained after they were issued.
pub async fn invariant_10_groups_bound_all_their_keys(world: &World) {
    let group = Scope::Group("tenant:acme".to_owned());
    let mut draft = world.draft("a", &[daily("a", 100)]);
    draft.groups = vec!["tenant:acme".to_owned()];
    let error = world
        .try_issue(draft.clone())
        .await
        .expect_err("a group without a budget");
    assert!(error.message().contains("tenant:acme"), "{error}");
    let monthly = budget(group.clone(), Unit::Usd, WindowKind::Month, 20_000_000);
    world
        .ledger
        .put_budget(monthly.clone(), note("plan"))
        .await
        .unwrap();
    let one = world.issue(draft).await;
    let mut draft = world.draft("b", &[daily("b", 100)]);
    draft.groups = vec!["tenant:acme".to_owned()];
    let two = world.issue(draft).await;
    world.granted(&world.call(&one, 15)).await;
    assert_eq!(world.denied(&world.call(&two, 10)).await.code, Code::CapHeld);
    world.granted(&world.call(&two, 5)).await;
    assert_eq!(world.used_held(&monthly).await, (0, 20));

    let hourly = budget(group, Unit::Usd, WindowKind::Hour, 1_000_000);
    world
        .ledger
        .put_budget(hourly.clone(), note("brake"))
        .await
        .unwrap();
    assert!(matches!(
        world.ask(&world.call(&one, 1)).await,
        ReserveAnswer::Stale
    ));
    let fresh = world.ledger.key(&one.id).await.unwrap().unwrap();
    assert!(fresh.budgets.iter().any(|budget| budget.def == hourly));
}

/// A new key of the same lineage continues the counters and cannot change a cap.
pub async fn invariant_11_a_new_key_resets_nothing(world: &World) {
    let def = daily("a", 10);
    let first = world.key("a", std::slice::from_ref(&def)).await;
    world
        .charge(&world.granted(&world.call(&first, 8)).await, 8)
        .await;
    world.ledger.revoke(&first.id, note("rotation")).await.unwrap();
    let second = world.key("a", std::slice::from_ref(&def)).await;
    assert_eq!(
        world.denied(&world.call(&second, 3)).await.code,
        Code::CapExceeded
    );

    let error = world
        .try_issue(world.draft("a", &[daily("a", 1_000)]))
        .await
        .expect_err("a different cap");
    for word in ["10.00", "1000.00", "budget set"] {
        assert!(error.message().contains(word), "{error}");
    }
    let mut tokyo = def.clone();
    "Asia/Tokyo".clone_into(&mut tokyo.timezone);
    let error = world
        .try_issue(world.draft("a", &[tokyo]))
        .await
        .expect_err("a different zone");
    assert!(error.message().contains("Asia/Tokyo"), "{error}");
    let rolling = budget(
        Scope::Lineage("a".into()),
        Unit::Usd,
        WindowKind::Rolling24h,
        10_000_000,
    );
    world
        .try_issue(world.draft("a", &[rolling]))
        .await
        .expect_err("a second shape of the same day");

    world
        .ledger
        .put_budget(daily("a", 20), note("raise"))
        .await
        .unwrap();
    let reserved = world.granted(&world.call(&second, 3)).await;
    assert_eq!(
        reserved.tightest.expect("live").cap,
        20_000_000,
        "a cap is read live"
    );
}
