//! Keys, their parents and stops in governed calls, against the simulator's journal.

use std::sync::Arc;

use keybrake::brake::{CallContext, KeyOrigin};
use keybrake::clock::{Clock, SystemClock};
use keybrake::ledger::{AdminNote, StopScope};
use keybrake::policy::{Code, Policy};
use keybrake_testkit::stripe::MovementKind;
use keybrake_tests::{World, generated, post, refunds};
use serde_json::{Value, json};

#[tokio::test]
async fn stop_from_elsewhere_ends_the_run_on_its_next_call() {
    let world = World::new(refunds(500)).await;
    world.post("/v1/refunds", "charge=ch_1&amount=100").await.id();
    let admin = AdminNote {
        by: "oncall".to_owned(),
        reason: "loop".to_owned(),
    };
    world
        .kb
        .stop(StopScope::Run("run_1".to_owned()), admin.clone())
        .await
        .unwrap();
    let sent = world.stripe.request_count();
    let refused = world.post("/v1/refunds", "charge=ch_2&amount=100").await;
    assert_eq!((refused.code(), refused.status), (Some(Code::Stopped), 403));
    assert_eq!(refused.denial.unwrap().stop.unwrap().by, "oncall");
    assert_eq!(world.stripe.request_count(), sent, "nothing left the process");
    let other = world.issue(refunds(500), "run_2").await;
    let context = generated(None);
    let ended = world
        .call(&other, post("/v1/refunds", "charge=ch_3&amount=100"), context)
        .await;
    assert_eq!(ended.status, 200, "another run is untouched");
    world
        .kb
        .resume(&StopScope::Run("run_1".to_owned()), admin)
        .await
        .unwrap();
    world.post("/v1/refunds", "charge=ch_2&amount=100").await.id();
}

#[tokio::test]
async fn scenario_21_observe_child_under_an_enforcing_parent() {
    let world = World::new(refunds(30)).await;
    let child = json!({"vendor": "stripe", "label": "child", "mode": "observe", "daily_usd_cap": 1, "parent": world.key.id,
        "allowed_endpoints": ["refunds.create"]});
    let child = world.issue(child, "run_1").await;
    let context = generated(None);
    let first = world
        .call(
            &child,
            post("/v1/refunds", "charge=ch_1&amount=2000"),
            context.clone(),
        )
        .await;
    assert_eq!(first.status, 200, "its own cap of $1 only observes: {first:?}");
    let second = world
        .call(&child, post("/v1/refunds", "charge=ch_2&amount=2000"), context)
        .await;
    assert_eq!(
        second.code(),
        Some(Code::CapExceeded),
        "the parent's cap of $30 enforces"
    );
    assert_eq!(world.refunded(), 2_000);
}

#[tokio::test]
async fn scenario_21_an_observing_child_hides_nothing_from_its_parents_rules() {
    let mut parent = refunds(500);
    parent["max_amount_per_call_usd"] = json!(50);
    parent["params"] = json!({"refunds.create": {"metadata[order]": {"forbidden": true}}});
    let world = World::new(parent).await;
    // Its own rules are stricter, so each of these calls fails its policy first.
    let child = json!({"vendor": "stripe", "label": "child", "mode": "observe", "parent": world.key.id,
        "daily_usd_cap": 500, "allowed_endpoints": ["refunds.create"], "max_amount_per_call_usd": 10,
        "params": {"refunds.create": {"metadata[order]": {"forbidden": true}, "amount": {"max": 900}}}});
    let child = world.issue(child, "run_1").await;
    let context = || generated(None);
    for (path, form, code) in [
        (
            "/v1/payouts",
            "amount=2000&currency=usd",
            Code::EndpointNotAllowed,
        ),
        ("/v1/refunds", "charge=ch_1&amount=6000", Code::AmountOverLimit),
        (
            "/v1/refunds",
            "charge=ch_1&amount=2000&metadata[order]=7",
            Code::ParamNotAllowed,
        ),
    ] {
        let refused = world.call(&child, post(path, form), context()).await;
        assert_eq!(refused.code(), Some(code), "{path} {form}: {refused:?}");
    }
    assert_eq!(world.refunded(), 0);
    let sent = world
        .call(&child, post("/v1/refunds", "charge=ch_1&amount=2000"), context())
        .await;
    assert_eq!(sent.status, 200, "what only the child refuses is noted: {sent:?}");
}

#[tokio::test]
async fn a_child_names_no_secret_that_its_parent_does_not() {
    let world = World::new(refunds(500)).await;
    let child = json!({"vendor": "stripe", "secret": "other", "label": "child", "parent": world.key.id,
        "daily_usd_cap": 5, "allowed_endpoints": ["refunds.create"]});
    let child = Policy::from_value(&child).unwrap();
    let refused = world.kb.issue(child).run("run_1").await.unwrap_err().to_string();
    assert!(
        refused.contains("`secret` is \"other\" here and not given in the parent"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_free_operation_that_the_policy_prices_is_flushed_as_money() {
    let policy = json!({"vendor": "stripe", "label": "support", "daily_usd_cap": 100, "allowed_endpoints": ["customers.update"],
        "operation_costs": {"customers.update": 80}});
    let world = World::new(policy).await;
    let ended = world.post("/v1/customers/cus_1", "balance=-8000").await;
    let call_id = ended.record.call_id.clone();
    let hold = world.kb.ledger().reservation(&call_id).await.unwrap().unwrap();
    assert!(hold.facts.moves_money, "{hold:?}");
}

#[tokio::test]
async fn a_childs_rate_does_not_stand_in_for_its_parents() {
    let world = World::new(refunds(500)).await;
    let now = keybrake::audit::time_text(SystemClock.now_ms());
    let today = now.get(..10).unwrap();
    let child = json!({"vendor": "stripe", "label": "child", "parent": world.key.id, "daily_usd_cap": 500,
        "currency_rates": {"eur": {"usd": "0.01", "as_of": today, "max_age": "366d"}},
        "allowed_endpoints": ["refunds.create"]});
    let child = world.issue(child, "run_1").await;
    let context = generated(None);
    let ended = world
        .call(&child, post("/v1/refunds", "charge=ch_eur&amount=2500"), context)
        .await;
    assert_eq!(
        ended.code(),
        Some(Code::CurrencyNotAllowed),
        "the parent has no rate: {ended:?}"
    );
    assert_eq!(world.stripe.moved(MovementKind::Refund, "eur"), 0);
}

#[tokio::test]
async fn a_raw_vendor_secret_is_key_unknown_and_never_sent_or_shown() {
    let world = World::new(refunds(500)).await;
    let mut call = post("/v1/refunds", "charge=ch_1");
    call.headers.push((
        "Authorization".to_owned(),
        "Bearer sk_live_secretsecret".to_owned(),
    ));
    let answer = world
        .kb
        .shell()
        .send(call, CallContext::default(), std::time::Duration::ZERO)
        .await
        .unwrap();
    let shown = format!("{answer:?}");
    let ended = keybrake_tests::ended(answer);
    assert_eq!((ended.code(), ended.status), (Some(Code::KeyUnknown), 401));
    assert!(!shown.contains("secretsecret"));
    assert_eq!(world.stripe.request_count(), 0);
}

#[tokio::test]
async fn scenario_05_a_key_for_every_request_resets_nothing() {
    let world = World::new(refunds(50)).await;
    for _ in 0..10 {
        let key = world.issue(refunds(50), "run_1").await;
        let ended = world
            .step_by(&key, "refund-1", "/v1/refunds", "charge=ch_1&amount=2000")
            .await;
        assert_eq!(ended.status, 200, "its retry joins the earlier call: {ended:?}");
    }
    assert_eq!(world.refunded(), 2_000);
    let key = world.issue(refunds(50), "run_1").await;
    world
        .step_by(&key, "refund-2", "/v1/refunds", "charge=ch_1&amount=3000")
        .await
        .id();
    let key = world.issue(refunds(50), "run_2").await;
    let refused = world
        .step_by(&key, "refund-3", "/v1/refunds", "charge=ch_2&amount=100")
        .await;
    assert_eq!(
        refused.code(),
        Some(Code::CapExceeded),
        "whatever the run: {refused:?}"
    );
    assert_eq!(
        (world.refunded(), world.budget_of(&key.id).await),
        (5_000, (50_000_000, 0))
    );
}

#[tokio::test]
async fn lesson_07_rotating_a_key_keeps_what_was_spent() {
    let world = World::new(refunds(50)).await;
    world
        .step("a", "/v1/refunds", "charge=ch_1&amount=4000")
        .await
        .id();
    let admin = AdminNote {
        by: "oncall".to_owned(),
        reason: "rotated".to_owned(),
    };
    assert!(world.kb.revoke(&world.key.id, admin).await.unwrap());
    let rotated = world.issue(refunds(50), "run_1").await;
    let refused = world
        .step_by(&rotated, "b", "/v1/refunds", "charge=ch_2&amount=2000")
        .await;
    assert_eq!(refused.code(), Some(Code::CapExceeded));
    let old = world.step("c", "/v1/refunds", "charge=ch_2&amount=100").await;
    assert_eq!((old.code(), old.status), (Some(Code::KeyRevoked), 401));
    assert_eq!(
        (world.refunded(), world.budget_of(&rotated.id).await),
        (4_000, (40_000_000, 0))
    );
}

#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
fn moment(text: &str) -> i64 {
    let parsed: jiff::Timestamp = text.parse().unwrap();
    parsed.as_millisecond()
}

/// A policy with days of a place and a life that outlasts them.
fn days_in(zone: &str, label: &str, cap: i64) -> Value {
    json!({"vendor": "stripe", "label": label, "daily_usd_cap": cap, "timezone": zone, "expires_in": "7d",
        "allowed_endpoints": ["refunds.create"]})
}

#[tokio::test]
async fn scenario_08_a_child_in_new_york_and_its_parent_in_tokyo() {
    let start = moment("2026-12-01T23:59:59.990Z");
    let world = World::at(start, days_in("Asia/Tokyo", "parent", 40)).await;
    let mut child = days_in("America/New_York", "child", 30);
    child["parent"] = world.key.id.clone().into();
    let child = world.issue(child, "run_1").await;
    let to = |text: &str| world.clock.advance_ms(moment(text) - world.clock.now_ms());
    let mut number = 0;
    let mut refund = async |dollars: i64| {
        number += 1;
        let form = format!("charge=ch_{}&amount={}", (number - 1) % 6 + 1, dollars * 100);
        let ended = world
            .step_by(&child, &format!("r{number}"), "/v1/refunds", &form)
            .await;
        (
            ended.code(),
            ended.denial.and_then(|denial| Some(denial.budget?.name)),
        )
    };
    let refused_by = |whose: &str, ended: (Option<Code>, Option<String>)| {
        assert_eq!(ended.0, Some(Code::CapExceeded));
        assert!(ended.1.as_ref().unwrap().contains(whose), "{ended:?}");
    };
    assert_eq!(refund(20).await, (None, None));
    to("2026-12-02T00:00:00.010Z");
    refused_by("child", refund(20).await);
    to("2026-12-02T04:59:59.999Z");
    refused_by("child", refund(20).await);
    // New York begins a day; Tokyo's goes on.
    to("2026-12-02T05:00:00.000Z");
    assert_eq!(refund(15).await, (None, None));
    refused_by("parent", refund(10).await);
    to("2026-12-02T14:59:59.999Z");
    refused_by("parent", refund(10).await);
    // Tokyo begins a day; New York's goes on.
    to("2026-12-02T15:00:00.000Z");
    assert_eq!(refund(10).await, (None, None));
    assert_eq!(world.refunded(), 4_500);
    assert_eq!(world.budget().await, (10_000_000, 0));
    assert_eq!(world.budget_of(&child.id).await, (25_000_000, 0));
    world.verify().await;
}

#[tokio::test]
async fn scenario_08_days_of_23_and_25_hours_are_one_day_each() {
    for (first, last, next) in [
        (
            "2026-11-01T04:00:00Z",
            "2026-11-02T04:59:59.999Z",
            "2026-11-02T05:00:00Z",
        ),
        (
            "2027-03-14T05:00:00Z",
            "2027-03-15T03:59:59.999Z",
            "2027-03-15T04:00:00Z",
        ),
    ] {
        let world = World::at(moment(first), days_in("America/New_York", "ny", 20)).await;
        world
            .step("a", "/v1/refunds", "charge=ch_1&amount=2000")
            .await
            .id();
        world.clock.advance_ms(moment(last) - moment(first));
        let refused = world.step("b", "/v1/refunds", "charge=ch_2&amount=100").await;
        assert_eq!(refused.code(), Some(Code::CapExceeded), "{last}");
        world.clock.advance_ms(moment(next) - moment(last));
        world
            .step("c", "/v1/refunds", "charge=ch_2&amount=2000")
            .await
            .id();
        assert_eq!(world.refunded(), 4_000);
        world.verify().await;
    }
}

#[tokio::test]
async fn scenario_22_a_cap_that_changes_under_load_locks_nobody_out() {
    let world = Arc::new(World::new(refunds(40)).await);
    let budget = world.kb.usage(&world.key.id).await.unwrap().remove(0).def;
    let tasks: Vec<_> = (0..40)
        .map(|n| {
            let world = Arc::clone(&world);
            tokio::spawn(async move {
                let form = format!("charge=ch_{}&amount=200", n % 6 + 1);
                world.step(&format!("s{n}"), "/v1/refunds", &form).await
            })
        })
        .collect();
    for cap in (20..40).rev() {
        let mut changed = budget.clone();
        changed.cap = cap * 1_000_000;
        let admin = AdminNote {
            by: "tuner".to_owned(),
            reason: "every moment".to_owned(),
        };
        world.kb.set_budget(changed, admin).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut done = 0;
    for task in tasks {
        let ended = task.await.unwrap();
        match ended.code() {
            None => done += i64::from(ended.status == 200),
            Some(code) => assert!(matches!(code, Code::CapExceeded | Code::CapHeld), "{ended:?}"),
        }
    }
    assert!(
        (10..=20).contains(&done),
        "{done} of $2 each under a cap between $20 and $40"
    );
    assert_eq!(world.refunded(), done * 200);
    assert_eq!(world.budget().await, (done * 2_000_000, 0));
    world.verify().await;
}

/// What is no id is no run of any row either: it came from outside, and no index takes a text of any length.
#[tokio::test]
async fn a_run_that_is_no_id_is_refused_and_not_recorded() {
    let world = World::new(refunds(500)).await;
    let policy = json!({"vendor": "stripe", "label": "unbound", "daily_usd_cap": 5, "allowed_endpoints": ["refunds.create"]});
    let policy = Policy::from_value(&policy).unwrap();
    let unbound = world.kb.issue(policy).await.unwrap();
    let long = "x".repeat(4_000);
    for (key, code) in [
        (&unbound, Code::RequestMalformed),
        (&world.key, Code::RequestMalformed),
    ] {
        let context = CallContext {
            run: Some(long.clone()),
            key_origin: KeyOrigin::Generated,
            ..Default::default()
        };
        let refused = world
            .call(key, post("/v1/refunds", "charge=ch_1&amount=100"), context)
            .await;
        assert_eq!(refused.code(), Some(code));
    }
    let events = world
        .kb
        .ledger()
        .events(keybrake::ledger::EventFilter::default())
        .await
        .unwrap();
    let denied: Vec<_> = events
        .iter()
        .filter(|event| event.kind == keybrake::ledger::EventKind::Denied)
        .collect();
    assert_eq!(denied.len(), 2);
    for event in denied {
        let run = event.body.facts.as_ref().unwrap().run.as_deref();
        assert!(run.is_none_or(|run| run == "run_1"), "{run:?}");
    }
}
