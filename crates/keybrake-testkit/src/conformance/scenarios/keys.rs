//! Scenarios of keys, clocks and floods.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use keybrake::ErrorKind;
use keybrake::ledger::{EventKind, Grant, IssueKey, ReserveAnswer, StopScope, Window};
use keybrake::policy::Code;

use super::super::World;
use super::super::world::{DAY_MS, HOUR_MS, daily, note};

/// A handler that issues a key for each request cannot reset the agent's budget, and its retry joins.
pub async fn scenario_05_fresh_key_same_run(world: &World) {
    let def = daily("a", 50);
    let mut last: Option<Grant> = None;
    for _ in 0..10 {
        let key = world.key("a", std::slice::from_ref(&def)).await;
        let grant = world.granted(&world.call(&key, 20).step("refund-1")).await;
        if let Some(last) = &last {
            assert!(grant.joined && grant.call_id == last.call_id);
        }
        last = Some(grant);
    }
    assert_eq!(world.used_held(&def).await, (0, 20));
    let key = world.key("a", std::slice::from_ref(&def)).await;
    world.granted(&world.call(&key, 30).step("refund-2")).await;
    let key = world.key("a", std::slice::from_ref(&def)).await;
    assert_eq!(
        world.denied(&world.call(&key, 1).step("refund-3")).await.code,
        Code::CapHeld
    );
}

/// A supervisor issues keys as fast as it can; after `stop` returns, nothing of the label is admitted.
pub async fn scenario_06_stop_then_issue(world: &World) {
    let def = daily("a", 1_000_000);
    let stopped = Arc::new(AtomicBool::new(false));
    let mut draft = world.draft("a", std::slice::from_ref(&def));
    draft.label = Some("billing".to_owned());
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..4_u32 {
        let (ledger, stopped) = (Arc::clone(&world.ledger), Arc::clone(&stopped));
        let (draft, call) = (draft.clone(), world.call(&draft, 1));
        tasks.spawn(async move {
            let mut late = 0;
            for number in 0..100_000_u32 {
                let was_stopped = stopped.load(Ordering::SeqCst);
                let mut key = draft.clone();
                key.id = format!("vk_s{task}_{number}");
                key.token_hash.0 = key.id.clone();
                let issued = ledger
                    .issue_key(IssueKey {
                        key,
                        expires_in_ms: Some(DAY_MS),
                        attribution_only: Vec::new(),
                        admin: note("request"),
                    })
                    .await;
                let mut call = call.clone();
                call.facts.call_id = format!("s{task}-{number}");
                if let Ok(key) = issued {
                    call.facts.key_id = Some(key.id);
                    call.facts.key_version = key.version;
                    let answer = ledger.reserve(call.request()).await.unwrap();
                    late += u32::from(was_stopped && matches!(answer, ReserveAnswer::Granted(_)));
                }
                if was_stopped {
                    break;
                }
            }
            late
        });
    }
    while world.ledger.info().await.unwrap().open_holds < 20 {
        tokio::task::yield_now().await;
    }
    let answer = world
        .ledger
        .stop(StopScope::Label("billing".to_owned()), note("refund loop"))
        .await
        .unwrap();
    stopped.store(true, Ordering::SeqCst);
    assert!(answer.keys_refused > 0 && !answer.in_flight.is_empty());
    assert_eq!(
        tasks.join_all().await,
        [0, 0, 0, 0],
        "admitted after stop had returned"
    );
}

/// Two processes whose zone databases differ by an hour share one day; a proposal beside the ledger's time is
/// answered with that time.
pub async fn scenario_08_two_zone_databases_cannot_split_a_day(world: &World) {
    let def = daily("a", 10);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    let mut old = world.call(&key, 1);
    old.now_ms -= DAY_MS;
    let ReserveAnswer::WindowMoved { now_ms } = world.ask(&old).await else {
        panic!("yesterday's window does not contain now");
    };
    assert_eq!(now_ms, world.now_ms());

    let ahead = |at_ms: i64| {
        let mut request = world.call(&key, 1).request();
        if let keybrake::ledger::Ask::Amount(ask) = &mut request.ask {
            let start_ms = at_ms - (at_ms + HOUR_MS).rem_euclid(DAY_MS);
            ask.charges[0].window = Some(Window {
                start_ms,
                end_ms: start_ms + DAY_MS,
            });
        }
        request
    };
    let mut admitted = 0;
    // Two days and two hours, a call every ten minutes, alternating between the two databases.
    for step in 0..300_i64 {
        let request = if step % 2 == 0 {
            ahead(world.now_ms())
        } else {
            world.call(&key, 1).request()
        };
        let answer = world.ledger.reserve(request).await.unwrap();
        admitted += i64::from(matches!(answer, ReserveAnswer::Granted(_)));
        world.clock.advance_ms(10 * 60_000);
    }
    assert!(
        admitted <= 40,
        "{admitted} calls in parts of three days of ten each, and one odd end"
    );
    assert!(
        admitted >= 20,
        "{admitted}: two databases must not lock each other out"
    );
}

/// A clock that was stepped by a day is refused until a person accepts it.
pub async fn scenario_11_a_clock_stepped_forward_a_day(world: &World) {
    let def = daily("a", 100);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    world.granted(&world.call(&key, 60)).await;
    let noon = world.now_ms();
    world.clock.step_to_ms(noon + DAY_MS);
    let error = world
        .ledger
        .reserve(world.call(&key, 1).request())
        .await
        .expect_err("the clock jumped");
    assert_eq!(error.kind(), ErrorKind::LedgerUnavailable);
    world.clock.step_to_ms(noon);
    assert_eq!(
        world.denied(&world.call(&key, 60)).await.code,
        Code::CapHeld,
        "the same day goes on"
    );
    world.clock.step_to_ms(noon + DAY_MS);
    assert_eq!(
        world.ledger.accept_clock(note("checked")).await.unwrap(),
        noon + DAY_MS
    );
    world.granted(&world.call(&key, 60)).await;
    let accepted = world
        .events()
        .await
        .into_iter()
        .filter_map(|event| event.body.admin);
    assert!(accepted.map(|admin| admin.act).any(|act| act == "accept_clock"));
}

/// 2,000 refusals a second for a minute grow the log by hundreds, and every one of them is counted.
pub async fn scenario_15_denial_flood(world: &World) {
    let full = daily("a", 0);
    let other = daily("b", 100);
    let looping = world.key("a", std::slice::from_ref(&full)).await;
    let calm = world.key("b", std::slice::from_ref(&other)).await;
    let before = world.events().await.len();
    let mut refused = 0_u64;
    for tick in 0..60 {
        for _ in 0..200 {
            let denial = world.denied(&world.call(&looping, 1)).await;
            assert_eq!(denial.code, Code::CapExceeded);
            refused += 1;
        }
        world.clock.advance_ms(1_000);
        if tick == 30 {
            world.granted(&world.call(&calm, 1)).await;
            assert_eq!(
                world.denied(&world.call(&calm, 1_000)).await.code,
                Code::CapExceeded
            );
        }
    }
    world.ledger.flush().await.unwrap();
    let events = world.events().await;
    let rows: Vec<_> = events[before..]
        .iter()
        .filter(|event| event.kind == EventKind::Denied)
        .filter(|event| {
            event
                .body
                .facts
                .as_ref()
                .is_some_and(|facts| facts.key_id.as_ref() == Some(&looping.id))
        })
        .collect();
    let counted: u64 = rows.iter().map(|event| event.body.count.unwrap_or(1)).sum();
    assert_eq!(counted, refused, "every refusal is in a row");
    assert!(rows.len() <= 1_300, "{} rows for {refused} refusals", rows.len());
    let calm_rows = events.iter().filter(|event| {
        event.kind == EventKind::Denied
            && event
                .body
                .facts
                .as_ref()
                .is_some_and(|facts| facts.key_id.as_ref() == Some(&calm.id))
    });
    assert_eq!(calm_rows.count(), 1, "others' rows are not coalesced");
}

/// A key that only observes is still bound by its parent's enforcing budget.
pub async fn scenario_21_observe_child_under_an_enforcing_parent(world: &World) {
    let parents = daily("boss", 10);
    let parent = world.key("boss", std::slice::from_ref(&parents)).await;
    let own = daily("child", 1);
    let mut draft = world.draft("child", &[own.clone(), parents.clone()]);
    draft.ancestors = vec![parent.id.clone()];
    for budget in &mut draft.budgets {
        budget.enforce = false;
    }
    let child = world.issue(draft).await;
    world
        .charge(&world.granted(&world.call(&child, 6)).await, 6)
        .await;
    assert_eq!(
        world.used_held(&own).await,
        (6, 0),
        "its own budget counts and does not refuse"
    );
    let denial = world.denied(&world.call(&child, 6)).await;
    assert_eq!(denial.code, Code::CapExceeded);
    assert!(denial.budget.expect("the parent's").name.contains("boss"));
    assert_eq!(world.used_held(&parents).await, (6, 0));
}

/// A cap that changes all the time makes no key stale and never lets more through than the lower cap.
pub async fn scenario_22_caps_change_under_load(world: &World) {
    let def = daily("a", 30);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let ledger = Arc::clone(&world.ledger);
        let request = world.call(&key, 1).request();
        tasks.spawn(async move {
            match ledger.reserve(request).await.unwrap() {
                ReserveAnswer::Granted(_) => 1,
                ReserveAnswer::Denied(_) => 0,
                other => panic!("neither a permit nor a denial: {other:?}"),
            }
        });
    }
    for cap in (20..30).rev() {
        world
            .ledger
            .put_budget(daily("a", cap), note("tuning"))
            .await
            .unwrap();
    }
    let admitted: i64 = tasks.join_all().await.into_iter().sum();
    assert!((20..=30).contains(&admitted), "{admitted}");
    assert_eq!(world.denied(&world.call(&key, 1)).await.code, Code::CapHeld);
    let changes = world
        .events()
        .await
        .into_iter()
        .filter_map(|event| event.body.admin);
    let puts: Vec<_> = changes.filter(|admin| admin.act == "put_budget").collect();
    assert_eq!(puts.len(), 10);
    assert_eq!(puts[0].detail["old_cap"], 30_000_000);
    assert_eq!(puts[0].note.reason, "tuning");
}
