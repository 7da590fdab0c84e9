//! Whole governed calls against the Stripe simulator, whose journal is the truth.

use std::sync::Arc;

use keybrake::brake::{CallContext, Decision, KeyOrigin, SendEnd};
use keybrake::client::Answer;
use keybrake::clock::{Clock, ManualClock, SystemClock};
use keybrake::facade::{Keybrake, Resolution};
use keybrake::ledger::{AdminNote, HoldFilter, State, StopScope};
use keybrake::policy::{Code, Policy};
use keybrake::secret::Secret;
use keybrake::vendors::Reply;
use keybrake_testkit::stripe::{Fault, FaultKind, MovementKind, Simulator, SimulatorOptions};
use keybrake_tests::{World, post};
use serde_json::json;

fn refunds(cap: i64) -> serde_json::Value {
    json!({"vendor": "stripe", "label": "support", "daily_usd_cap": cap, "allowed_endpoints": ["refunds.create", "reads"]})
}

#[tokio::test]
async fn a_stuck_refund_loop_stops_at_its_cap() {
    let world = World::new(refunds(120)).await;
    let mut refused = None;
    for n in 1..=6 {
        let ended = world
            .step(&format!("refund-{n}"), "/v1/refunds", &format!("charge=ch_{n}"))
            .await;
        if ended.denial.is_some() {
            refused = ended.denial;
            break;
        }
        assert_eq!(ended.status, 200, "{ended:?}");
    }
    let denial = refused.unwrap();
    assert_eq!(denial.code, Code::CapExceeded);
    assert_eq!(denial.requested_micros, Some(50_000_000));
    assert_eq!(world.refunded(), 10_000, "two refunds of $50 fit under $120");
    assert_eq!(world.budget().await, (100_000_000, 0));
    world.verify().await;
}

#[tokio::test]
async fn the_amount_is_looked_up_and_pinned() {
    let world = World::new(refunds(500)).await;
    world.post("/v1/refunds", "charge=ch_1").await.id();
    let sent: Vec<_> = world.stripe.requests();
    assert_eq!(sent.iter().filter(|request| request.method == "GET").count(), 1);
    assert_eq!(world.refunded(), 5_000);
}

#[tokio::test]
async fn lesson_14_and_20_the_same_refund_again_is_replayed_and_visible() {
    let world = World::new(refunds(500)).await;
    let first = world.post("/v1/refunds", "charge=ch_1&amount=2000").await;
    for _ in 0..5 {
        let again = world.post("/v1/refunds", "charge=ch_1&amount=2000").await;
        assert_eq!(again.id(), first.id());
        assert!(again.record.replayed);
        assert_eq!(again.record.verdict, "replayed");
    }
    assert_eq!(
        world.refunded(),
        2_000,
        "a tool that charges and then raises, run six times, moves money once"
    );
    assert_eq!(world.budget().await, (20_000_000, 0));
}

#[tokio::test]
async fn scenario_12_same_twenty_dollars_twice() {
    let world = World::new(refunds(500)).await;
    world
        .step("order-1", "/v1/refunds", "charge=ch_1&amount=2000")
        .await
        .id();
    world
        .step("order-2", "/v1/refunds", "charge=ch_1&amount=2000")
        .await
        .id();
    assert_eq!(world.refunded(), 4_000, "two orders with steps are two refunds");
    // A timeout followed by the model's new tool call is one refund.
    world
        .stripe
        .fault(Fault::new(FaultKind::DropAfterExecuting).on("POST", "/v1/refunds"))
        .unwrap();
    let lost = world
        .step("tool-call-1", "/v1/refunds", "charge=ch_2&amount=2000")
        .await;
    assert_eq!(lost.status, 0);
    assert_eq!(lost.record.state, Some(State::Unknown));
    let again = world
        .step("tool-call-2", "/v1/refunds", "charge=ch_2&amount=2000")
        .await;
    again.id();
    assert_eq!(world.refunded(), 6_000);
    assert_eq!(world.budget().await, (60_000_000, 0));
    world.verify().await;
}

#[tokio::test]
async fn scenario_02_joined_429() {
    let world = World::new(refunds(500)).await;
    world
        .stripe
        .fault(Fault::new(FaultKind::DropAfterExecuting).on("POST", "/v1/refunds"))
        .unwrap();
    world.post("/v1/refunds", "charge=ch_1&amount=2000").await;
    world
        .stripe
        .fault(Fault::new(FaultKind::RateLimit).on("POST", "/v1/refunds"))
        .unwrap();
    let joined = world.post("/v1/refunds", "charge=ch_1&amount=2000").await;
    assert_eq!(joined.status, 429);
    assert!(
        joined.denial.is_none(),
        "a vendor's own 429 passes through and is told apart"
    );
    assert_eq!(
        world.budget().await,
        (0, 20_000_000),
        "the first attempt may have happened: the hold stays"
    );
    assert_eq!(world.reconcile().await, 0);
    assert_eq!(world.budget().await, (20_000_000, 0));
    assert_eq!(world.refunded(), 2_000);
}

#[tokio::test]
async fn scenario_03_replay_confirms() {
    let world = World::new(refunds(500)).await;
    world
        .stripe
        .fault(Fault::new(FaultKind::DropAfterExecuting).on("POST", "/v1/refunds"))
        .unwrap();
    world.post("/v1/refunds", "charge=ch_1&amount=2000").await;
    let again = world.post("/v1/refunds", "charge=ch_1&amount=2000").await;
    assert_eq!(again.status, 200);
    assert_eq!(world.refunded(), 2_000);
    assert_eq!(world.budget().await, (20_000_000, 0), "settled once");
}

#[tokio::test]
async fn scenario_04_cheap_create_dear_update() {
    let policy = json!({"vendor": "stripe", "daily_usd_cap": 1000, "allowed_endpoints": ["payment_intents.create",
        "payment_intents.update", "payment_intents.confirm", "payment_intents.capture", "payment_intents.cancel"]});
    let world = World::new(policy).await;
    let id = world
        .post(
            "/v1/payment_intents",
            "amount=100&currency=usd&payment_method=pm_card_visa",
        )
        .await
        .id();
    assert_eq!(world.budget().await, (0, 1_000_000));
    let update = world
        .post(&format!("/v1/payment_intents/{id}"), "amount=500000")
        .await;
    assert_eq!(
        update.code(),
        Some(Code::CapExceeded),
        "the update raises it to $5,000"
    );
    let update = world
        .post(&format!("/v1/payment_intents/{id}"), "amount=10000")
        .await;
    assert_eq!(update.status, 200, "{update:?}");
    assert_eq!(
        world.budget().await,
        (0, 100_000_000),
        "only what the new total adds is reserved"
    );
    let confirm = world.post(&format!("/v1/payment_intents/{id}/confirm"), "").await;
    assert_eq!(confirm.status, 200, "{confirm:?}");
    assert_eq!(world.charged(), 10_000);
    assert_eq!(
        world.budget().await,
        (100_000_000, 0),
        "create, update and confirm of $100 count $100"
    );
    world.verify().await;
}

#[tokio::test]
async fn a_decline_frees_the_next_attempt() {
    let policy =
        json!({"vendor": "stripe", "daily_usd_cap": 100, "allowed_endpoints": ["payment_intents.create"]});
    let world = World::new(policy).await;
    let declined = world
        .step(
            "order-1",
            "/v1/payment_intents",
            "amount=9000&currency=usd&confirm=true&payment_method=pm_card_chargeDeclined",
        )
        .await;
    assert_eq!(declined.status, 402, "{declined:?}");
    assert_eq!(world.budget().await, (0, 0));
    let paid = world
        .step(
            "order-1",
            "/v1/payment_intents",
            "amount=9000&currency=usd&confirm=true&payment_method=pm_card_visa",
        )
        .await;
    assert_eq!(paid.status, 200, "{paid:?}");
    assert_eq!(world.charged(), 9_000);
}

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
    let context = CallContext {
        key_origin: KeyOrigin::Generated,
        ..Default::default()
    };
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
async fn scenario_17_stripe_down_for_ten_minutes() {
    let world = World::new(refunds(500)).await;
    world
        .stripe
        .fault(
            Fault::new(FaultKind::DropAfterExecuting)
                .on("POST", "/v1/refunds")
                .times(3),
        )
        .unwrap();
    for n in 1..=3 {
        world
            .step(
                &format!("s{n}"),
                "/v1/refunds",
                &format!("charge=ch_{n}&amount=1000"),
            )
            .await;
    }
    world
        .stripe
        .fault(
            Fault::new(FaultKind::DropBefore)
                .on("POST", "/v1/refunds")
                .times(2),
        )
        .unwrap();
    for n in 4..=5 {
        world
            .step(
                &format!("s{n}"),
                "/v1/refunds",
                &format!("charge=ch_{n}&amount=1000"),
            )
            .await;
    }
    assert_eq!(world.budget().await, (0, 50_000_000));
    let before = world
        .stripe
        .requests()
        .iter()
        .filter(|request| request.method == "POST")
        .count();
    assert_eq!(world.reconcile().await, 0);
    let after = world
        .stripe
        .requests()
        .iter()
        .filter(|request| request.method == "POST")
        .count();
    assert_eq!(after, before, "reconciliation never sends a write");
    assert_eq!(world.refunded(), 3_000);
    assert_eq!(
        world.budget().await,
        (30_000_000, 0),
        "the books equal the journal"
    );
    world.verify().await;
}

#[tokio::test]
async fn absence_proves_nothing_when_the_clocks_disagree() {
    let world = World::new(refunds(500)).await;
    world
        .stripe
        .fault(Fault::new(FaultKind::DropAfterExecuting).on("POST", "/v1/refunds"))
        .unwrap();
    world.clock.advance_ms(3_600_000);
    world.post("/v1/refunds", "charge=ch_1&amount=2000").await;
    assert_eq!(
        world.reconcile().await,
        1,
        "an hour ahead of the vendor: the listing looked at the wrong hour"
    );
    assert_eq!(world.budget().await, (0, 20_000_000));
}

#[tokio::test]
async fn fifty_at_once_never_pass_the_cap() {
    let world = Arc::new(World::new(refunds(50)).await);
    let tasks: Vec<_> = (0..50)
        .map(|n| {
            let world = world.clone();
            tokio::spawn(async move {
                let charge = n % 6 + 1;
                world
                    .step(
                        &format!("s{n}"),
                        "/v1/refunds",
                        &format!("charge=ch_{charge}&amount=400"),
                    )
                    .await
                    .status
            })
        })
        .collect();
    let mut done = 0;
    for task in tasks {
        if task.await.unwrap() == 200 {
            done += 1;
        }
    }
    assert_eq!(done, 12, "twelve refunds of $4 fit under $50");
    assert_eq!(world.refunded(), 4_800);
    assert_eq!(world.budget().await, (48_000_000, 0));
    world.verify().await;
}

#[tokio::test]
async fn refusals_send_nothing_and_hold_nothing() {
    let world = World::new(refunds(500)).await;
    let sent = world.stripe.request_count();
    let cases = [
        (
            post("/v1/payouts", "amount=100&currency=usd"),
            Code::EndpointNotAllowed,
        ),
        (
            post("/v1/refunds/../payouts", "amount=100"),
            Code::EndpointNotAllowed,
        ),
        (
            post("/v1/refunds", "charge=ch_1&amount=100&amount=1"),
            Code::RequestMalformed,
        ),
        (
            post("/v1/refunds", "charge=ch_1&[amount]=100"),
            Code::RequestMalformed,
        ),
        (
            post("/v1/refunds", "charge=ch_1&amount=%2B5"),
            Code::RequestMalformed,
        ),
    ];
    for (call, code) in cases {
        let shown = format!("{call:?}");
        let context = CallContext {
            key_origin: KeyOrigin::Generated,
            ..Default::default()
        };
        let ended = world.call(&world.key, call, context).await;
        assert_eq!(ended.code(), Some(code), "{shown}: {ended:?}");
    }
    let mut foreign = post("/v1/refunds", "charge=ch_1");
    foreign.url = "https://api.stripe.com\\@evil.example/v1/refunds".to_owned();
    let ended = world.call(&world.key, foreign, CallContext::default()).await;
    assert_eq!(ended.code(), Some(Code::VendorNotAllowed));
    assert_eq!(world.stripe.request_count(), sent, "nothing left the process");
    assert!(world.kb.holds(HoldFilter::default()).await.unwrap().is_empty());
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
async fn scenario_21_observe_child_under_an_enforcing_parent() {
    let world = World::new(refunds(30)).await;
    let child = json!({"vendor": "stripe", "label": "child", "mode": "observe", "daily_usd_cap": 1, "parent": world.key.id,
        "allowed_endpoints": ["refunds.create"]});
    let child = world.issue(child, "run_1").await;
    let context = CallContext {
        key_origin: KeyOrigin::Generated,
        ..Default::default()
    };
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
async fn scenario_18_a_callers_own_key_is_forwarded_untagged() {
    let world = World::new(refunds(500)).await;
    let mut call = post("/v1/refunds", "charge=ch_1&amount=100");
    call.headers.retain(|(name, _)| name != "Idempotency-Key");
    call.headers
        .push(("Idempotency-Key".to_owned(), "my-own-key".to_owned()));
    let ended = world.call(&world.key, call, CallContext::default()).await;
    assert_eq!(ended.json.get("metadata"), Some(&json!({})), "{ended:?}");
    let posts: Vec<_> = world
        .stripe
        .requests()
        .into_iter()
        .filter(|request| request.method == "POST")
        .collect();
    assert_eq!(
        posts.last().unwrap().idempotency_key.as_deref(),
        Some("my-own-key")
    );
}

#[tokio::test]
async fn scenario_01_paused_sender() {
    let world = World::new(
        json!({"vendor": "stripe", "label": "intents", "daily_usd_cap": 200,
        "allowed_endpoints": ["payment_intents.create"]}),
    )
    .await;
    let form = "amount=20000&currency=usd&confirm=true&payment_method=pm_card_visa";
    let mut call = post("/v1/payment_intents", form);
    let bearer = format!("Bearer {}", world.key.token.expose());
    call.headers.push(("Authorization".to_owned(), bearer));
    let context = CallContext {
        key_origin: KeyOrigin::Generated,
        ..CallContext::default()
    };
    let Decision::Permit(permit) = world.kb.brake().authorize(call, context).await.unwrap() else {
        panic!("refused")
    };
    // The sender is frozen before its first byte; meanwhile its hold is resolved as absent and another spends.
    assert_eq!(world.reconcile().await, 0);
    assert_eq!(world.budget().await, (0, 0));
    world.step("other", "/v1/payment_intents", form).await.id();
    assert_eq!(world.charged(), 20_000);
    // It wakes: it must not send.
    let woken = world.kb.shell().deliver(*permit).await.unwrap();
    assert!(
        matches!(woken, Answer::Lost { never_sent: true, .. }),
        "{woken:?}"
    );
    assert_eq!(world.charged(), 20_000, "the cap of $200 holds");
    assert_eq!(world.budget().await, (200_000_000, 0));
    world.verify().await;
}

#[tokio::test]
async fn lesson_12_a_reply_that_says_no_cost_is_charged_at_the_estimate() {
    let world = World::new(
        json!({"vendor": "stripe", "label": "invoices", "daily_usd_cap": 20,
        "operation_costs": {"invoices.pay": 8}, "allowed_endpoints": ["invoices.pay"]}),
    )
    .await;
    for invoice in ["in_1", "in_2"] {
        let mut call = post(&format!("/v1/invoices/{invoice}/pay"), "");
        call.headers.push((
            "Authorization".to_owned(),
            format!("Bearer {}", world.key.token.expose()),
        ));
        let context = CallContext {
            key_origin: KeyOrigin::Generated,
            ..CallContext::default()
        };
        let Decision::Permit(permit) = world.kb.brake().authorize(call, context).await.unwrap() else {
            panic!("refused")
        };
        let reply = Reply {
            status: 200,
            headers: Vec::new(),
            body: r#"{"id":"in_1"}"#.into(),
        };
        world
            .kb
            .brake()
            .settle(*permit, SendEnd::Reply(reply))
            .await
            .unwrap();
    }
    assert_eq!(world.budget().await, (16_000_000, 0), "never free");
    assert_eq!(
        world.post("/v1/invoices/in_3/pay", "").await.code(),
        Some(Code::CapExceeded)
    );
}

#[tokio::test]
async fn a_live_call_is_never_resolved_with_a_test_mode_secret() {
    let clock = Arc::new(ManualClock::at(SystemClock.now_ms()));
    let ledger = keybrake::ledger::open("memory:", clock.clone()).unwrap();
    let build = |secret: &str| {
        Keybrake::builder()
            .shared_ledger(ledger.clone())
            .secret("stripe", Secret::value(secret))
            .clock(clock.clone())
    };
    let live = build("sk_live_0123456789abcdef").build().await.unwrap();
    let policy = json!({"vendor": "stripe", "label": "live", "daily_usd_cap": 500,
        "timezone": keybrake_tests::noon_zone(), "allowed_endpoints": ["payouts.create"]});
    let key = live.issue(Policy::from_value(&policy).unwrap()).await.unwrap();
    let mut call = post("/v1/payouts", "amount=5000&currency=usd");
    call.headers.push((
        "Authorization".to_owned(),
        format!("Bearer {}", key.token.expose()),
    ));
    let context = CallContext {
        key_origin: KeyOrigin::Generated,
        ..CallContext::default()
    };
    // The permit is dropped, as by a crash: nobody knows whether it left.
    drop(live.brake().authorize(call, context).await.unwrap());
    clock.advance_ms(2 * 3_600_000);
    let stripe = Simulator::start(SimulatorOptions::default()).unwrap();
    let test = build("sk_test_simulator")
        .base_url("stripe", stripe.url())
        .build()
        .await
        .unwrap();
    let found = test.reconcile(HoldFilter::default(), |_, _| ()).await.unwrap();
    assert!(
        matches!(&found[0].resolution, Resolution::Open(why) if why.contains("live-mode")),
        "{found:?}"
    );
    assert_eq!(
        test.holds(HoldFilter::default()).await.unwrap().len(),
        1,
        "the hold stands"
    );
}

#[tokio::test]
async fn a_call_that_could_carry_no_tag_is_not_taken_for_absent() {
    let world = World::new(refunds(500)).await;
    world
        .stripe
        .fault(Fault::new(FaultKind::DropAfterExecuting).on("POST", "/v1/refunds"))
        .unwrap();
    let lost = world
        .post("/v1/refunds", "charge=ch_1&amount=2000&metadata=")
        .await;
    assert!(lost.denial.is_none(), "{lost:?}");
    assert_eq!(
        world.reconcile().await,
        1,
        "an object without a tag could be ours: the hold stands"
    );
    assert_eq!((world.refunded(), world.budget().await), (2_000, (0, 20_000_000)));
}

#[tokio::test]
async fn the_vendor_says_whose_object_it_is_not_the_request() {
    let policy = json!({"vendor": "stripe", "label": "one", "daily_usd_cap": 500, "allowed_customers": ["cus_2"],
        "allowed_endpoints": ["refunds.create", "payment_intents.update"]});
    let world = World::new(policy).await;
    for (path, form) in [
        ("/v1/refunds", "charge=ch_1&amount=100&customer=cus_2"),
        ("/v1/payment_intents/pi_2", "description=mine&customer=cus_2"),
    ] {
        let ended = world.post(path, form).await;
        assert_eq!(ended.code(), Some(Code::CustomerNotAllowed), "{path}: {ended:?}");
    }
    assert_eq!(
        world
            .stripe
            .requests()
            .iter()
            .filter(|request| request.method == "POST")
            .count(),
        0
    );
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
    let context = CallContext {
        key_origin: KeyOrigin::Generated,
        ..CallContext::default()
    };
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
