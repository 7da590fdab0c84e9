//! Whole governed calls against the Stripe simulator, whose journal is the truth.

use std::sync::Arc;
use std::time::Duration;

use keybrake::brake::{CallContext, Decision, SendEnd};
use keybrake::ledger::{HoldFilter, State};
use keybrake::policy::Code;
use keybrake::vendors::Reply;
use keybrake_testkit::stripe::{Fault, FaultKind, Release};
use keybrake_tests::{World, generated, post, refunds, signed};
use serde_json::json;

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
    world.fault_refunds(FaultKind::DropAfterExecuting, 1);
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
        let context = generated(None);
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
async fn scenario_18_a_callers_own_key_is_forwarded_untagged() {
    let world = World::new(refunds(500)).await;
    let mut call = post("/v1/refunds", "charge=ch_1&amount=100");
    call.headers.retain(|(name, _)| name != "Idempotency-Key");
    call.headers
        .push(("Idempotency-Key".to_owned(), "my-own-key".to_owned()));
    let ended = world.call(&world.key, call, CallContext::default()).await;
    assert_eq!(ended.json.get("metadata"), Some(&json!({})), "{ended:?}");
    let posts = world.posts();
    assert_eq!(
        posts.last().unwrap().idempotency_key.as_deref(),
        Some("my-own-key")
    );
}

#[tokio::test]
async fn lesson_12_a_reply_that_says_no_cost_is_charged_at_the_estimate() {
    let world = World::new(
        json!({"vendor": "stripe", "label": "invoices", "daily_usd_cap": 20,
        "operation_costs": {"invoices.pay": 8}, "allowed_endpoints": ["invoices.pay"]}),
    )
    .await;
    for invoice in ["in_1", "in_2"] {
        let call = signed(&world.key, post(&format!("/v1/invoices/{invoice}/pay"), ""));
        let context = generated(None);
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
    assert_eq!(world.posts().len(), 0);
}

#[tokio::test]
async fn scenario_14_a_step_with_a_changed_amount() {
    let policy =
        json!({"vendor": "stripe", "daily_usd_cap": 500, "allowed_endpoints": ["payment_intents.create"]});
    let world = World::new(policy).await;
    let pay = async |amount: i64, method: &str| {
        let form = format!("amount={amount}&currency=usd&confirm=true&payment_method={method}");
        world.step("order-1", "/v1/payment_intents", &form).await
    };
    assert_eq!(pay(9_000, "pm_card_chargeDeclined").await.status, 402);
    world
        .stripe
        .fault(Fault::new(FaultKind::DropAfterExecuting).on("POST", "/v1/payment_intents"))
        .unwrap();
    let lost = pay(8_000, "pm_card_visa").await;
    assert_eq!(
        lost.record.state,
        Some(State::Unknown),
        "after a decline it may change"
    );
    let conflict = pay(7_000, "pm_card_visa").await;
    assert_eq!(
        (conflict.code(), conflict.status),
        (Some(Code::IdempotencyConflict), 400),
        "while nobody knows it may not"
    );
    pay(8_000, "pm_card_visa").await.id();
    assert_eq!((world.charged(), world.budget().await), (8_000, (80_000_000, 0)));
    world.verify().await;
}

#[tokio::test]
async fn scenario_16_what_is_only_held_can_be_waited_for() {
    let policy =
        json!({"vendor": "stripe", "daily_usd_cap": 100, "allowed_endpoints": ["payment_intents.create"]});
    let world = Arc::new(World::new(policy).await);
    let hold = Fault::new(FaultKind::HoldUntilReleased).on("POST", "/v1/payment_intents");
    world.stripe.fault(hold.times(2)).unwrap();
    let pay = |step: &'static str, amount: i64, method: &'static str, wait: Duration| {
        let world = Arc::clone(&world);
        tokio::spawn(async move {
            let form = format!("amount={amount}&currency=usd&confirm=true&payment_method={method}");
            let call = signed(&world.key, post("/v1/payment_intents", &form));
            let context = generated(Some(step));
            keybrake_tests::ended(world.kb.shell().send(call, context, wait).await.unwrap())
        })
    };
    let declined = "pm_card_chargeDeclined";
    let first = pay("a", 5_000, declined, Duration::ZERO);
    let second = pay("b", 5_000, declined, Duration::ZERO);
    assert!(world.stripe.wait_held(2, Duration::from_secs(20)).await);

    let refused = pay("c", 6_000, "pm_card_visa", Duration::ZERO).await.unwrap();
    let denial = refused.denial.unwrap();
    assert_eq!((denial.code, denial.retryable), (Code::CapHeld, true));
    let budget = denial.budget.unwrap();
    assert_eq!(
        (budget.used, budget.held, budget.hold_ids.len()),
        (0, 100_000_000, 2)
    );

    let waiting = pay("c", 6_000, "pm_card_visa", Duration::from_secs(30));
    world.stripe.release(Release::default());
    for declined in [first, second] {
        assert_eq!(declined.await.unwrap().status, 402);
    }
    waiting.await.unwrap().id();
    assert_eq!((world.charged(), world.budget().await), (6_000, (60_000_000, 0)));
}

#[tokio::test]
async fn scenario_19_authorise_and_cancel_at_no_cost_is_stopped_by_a_count() {
    let policy = json!({"vendor": "stripe", "budgets": [{"usd": 100, "per": "day"}, {"writes": 41, "per": "day"}],
        "allowed_endpoints": ["payment_intents.create", "payment_intents.cancel"]});
    let world = World::new(policy).await;
    let form = "amount=9000&currency=usd&confirm=true&capture_method=manual&payment_method=pm_card_visa";
    let mut refused = None;
    for number in 1..=1_000 {
        let made = world
            .step(&format!("authorise-{number}"), "/v1/payment_intents", form)
            .await;
        if made.denial.is_some() {
            refused = made.denial;
            break;
        }
        let cancel = format!("/v1/payment_intents/{}/cancel", made.id());
        let cancelled = world.step(&format!("cancel-{number}"), &cancel, "").await;
        if cancelled.denial.is_some() {
            assert_eq!(number, 21, "{cancelled:?}");
            refused = cancelled.denial;
            break;
        }
        assert_eq!(cancelled.status, 200, "{cancelled:?}");
    }
    let denial = refused.unwrap();
    assert_eq!(denial.code, Code::CapExceeded);
    assert_eq!(denial.budget.unwrap().unit, "writes");
    assert_eq!(world.charged(), 0);
    world.verify().await;
}
