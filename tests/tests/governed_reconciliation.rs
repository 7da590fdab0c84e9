//! Calls whose outcome nobody knew, and how their holds end: by proof, against the simulator's journal.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::Arc;

use keybrake::brake::Decision;
use keybrake::client::Answer;
use keybrake::clock::{Clock, ManualClock, SystemClock};
use keybrake::facade::{Keybrake, Resolution};
use keybrake::ledger::{
    AmountAsk, Ask, CallFacts, HoldFilter, Ledger, Proof, ReplyFacts, ReserveAnswer, ReserveRequest,
    Settlement,
};
use keybrake::policy::Policy;
use keybrake::secret::Secret;
use keybrake_testkit::stripe::{Fault, FaultKind, Simulator, SimulatorOptions, TEST_SECRET};
use keybrake_tests::{World, generated, post, refunds, signed};
use serde_json::json;

#[tokio::test]
async fn scenario_02_joined_429() {
    let world = World::new(refunds(500)).await;
    world.fault_refunds(FaultKind::DropAfterExecuting, 1);
    world.post("/v1/refunds", "charge=ch_1&amount=2000").await;
    world.fault_refunds(FaultKind::RateLimit, 1);
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
    world.fault_refunds(FaultKind::DropAfterExecuting, 1);
    world.post("/v1/refunds", "charge=ch_1&amount=2000").await;
    let again = world.post("/v1/refunds", "charge=ch_1&amount=2000").await;
    assert_eq!(again.status, 200);
    assert_eq!(world.refunded(), 2_000);
    assert_eq!(world.budget().await, (20_000_000, 0), "settled once");
}

/// Refunds $10 of the charge of this number, as a step of its own.
async fn refund_of(world: &World, number: u32) {
    let (step, form) = (format!("s{number}"), format!("charge=ch_{number}&amount=1000"));
    world.step(&step, "/v1/refunds", &form).await;
}

#[tokio::test]
async fn scenario_17_stripe_down_for_ten_minutes() {
    let world = World::new(refunds(500)).await;
    world.fault_refunds(FaultKind::DropAfterExecuting, 3);
    for n in 1..=3 {
        refund_of(&world, n).await;
    }
    world.fault_refunds(FaultKind::DropBefore, 2);
    for n in 4..=5 {
        refund_of(&world, n).await;
    }
    assert_eq!(world.budget().await, (0, 50_000_000));
    let before = world.posts().len();
    assert_eq!(world.reconcile().await, 0);
    let after = world.posts().len();
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
    world.fault_refunds(FaultKind::DropBefore, 1);
    world.clock.advance_ms(3_600_000);
    world.post("/v1/refunds", "charge=ch_1&amount=2000").await;
    assert_eq!(
        world.reconcile().await,
        1,
        "an hour ahead of the vendor: the listing may have looked at the wrong time"
    );
    assert_eq!(world.budget().await, (0, 20_000_000));
}

#[tokio::test]
async fn a_clock_that_was_wrong_when_the_call_was_reserved_hides_nothing() {
    let world = World::new(refunds(500)).await;
    world.fault_refunds(FaultKind::DropAfterExecuting, 1);
    // The ledger's clock is 40 minutes behind the vendor's objects, and agrees with the vendor when it is asked.
    world.stripe.advance_clock_ms(2_400_000);
    world.post("/v1/refunds", "charge=ch_1&amount=2000").await;
    assert_eq!(world.reconcile().await, 0);
    assert_eq!((world.refunded(), world.budget().await), (2_000, (20_000_000, 0)));
}

#[tokio::test]
async fn an_update_that_has_no_identity_ends_with_its_payment() {
    let world = World::new(
        json!({"vendor": "stripe", "label": "intents", "daily_usd_cap": 500, "count_intents": "at_confirm",
        "allowed_endpoints": ["payment_intents.create", "payment_intents.update"]}),
    )
    .await;
    let form = "amount=1000&currency=usd&payment_method=pm_card_visa";
    let id = world.post("/v1/payment_intents", form).await.id();
    world
        .post(&format!("/v1/payment_intents/{id}"), "amount=3000")
        .await;
    assert_eq!(world.budget().await, (0, 30_000_000));
    let asked = world
        .kb
        .reconcile(HoldFilter::default(), |_, _| ())
        .await
        .unwrap();
    assert!(
        matches!(asked.as_slice(), [one] if matches!(one.resolution, Resolution::Open(_))),
        "the payment may still be made: {asked:?}"
    );
    assert_eq!(world.budget().await, (0, 30_000_000));
    world.stripe.advance(&id, "succeeded").unwrap();
    assert_eq!(world.reconcile().await, 0);
    assert_eq!((world.charged(), world.budget().await), (3_000, (30_000_000, 0)));
    world.verify().await;
}

#[tokio::test]
async fn scenario_01_paused_sender() {
    let world = World::new(
        json!({"vendor": "stripe", "label": "intents", "daily_usd_cap": 200,
        "allowed_endpoints": ["payment_intents.create"]}),
    )
    .await;
    let form = "amount=20000&currency=usd&confirm=true&payment_method=pm_card_visa";
    let call = signed(&world.key, post("/v1/payment_intents", form));
    let context = generated(None);
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
    let call = signed(&key, post("/v1/payouts", "amount=5000&currency=usd"));
    let context = generated(None);
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
    world.fault_refunds(FaultKind::DropAfterExecuting, 1);
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

/// A call of this key whose outcome nobody knows, as an earlier process left it in the ledger.
async fn left_over(ledger: &dyn Ledger, key_id: &str, call_id: &str, (vendor, proof): (Option<&str>, Proof)) {
    let key = ledger.key(key_id).await.unwrap().unwrap();
    let facts = CallFacts {
        call_id: call_id.to_owned(),
        key_id: Some(key.id.clone()),
        key_version: key.version,
        vendor: vendor.map(str::to_owned),
        operation: "refunds.create".to_owned(),
        agent: key.agent.clone(),
        label: key.label.clone(),
        run: key.run.clone(),
        moves_money: true,
        ..CallFacts::default()
    };
    let request = ReserveRequest {
        facts: Arc::new(facts),
        identity: None,
        ask: Ask::Amount(AmountAsk::default()),
        hold_for_ms: 1_000,
        max_open_holds: 100_000,
    };
    let answer = ledger.reserve(request).await.unwrap();
    assert!(matches!(answer, ReserveAnswer::Granted(_)), "{answer:?}");
    let settlement = Settlement {
        call_id: call_id.to_owned(),
        attempt: 1,
        proof,
        object: None,
        reply: None,
        facts: ReplyFacts::default(),
    };
    ledger.settle(settlement).await.unwrap();
}

fn lost() -> Proof {
    Proof::NoProof {
        reason: "timeout".to_owned(),
    }
}

/// A refund whose reply was lost.
async fn lost_refund(world: &World) -> String {
    let fault = Fault::new(FaultKind::DropAfterExecuting).on("POST", "/v1/refunds");
    world.stripe.fault(fault).unwrap();
    let lost = world.post("/v1/refunds", "charge=ch_1&amount=2000").await;
    world.clock.advance_ms(40_000);
    lost.record.call_id
}

#[tokio::test]
async fn a_thousand_abandoned_calls_do_not_hide_a_younger_one() {
    let world = World::new(refunds(500)).await;
    let ledger = world.kb.ledger();
    for number in 0..1_001 {
        let proof = if number % 2 == 0 { lost() } else { Proof::Accepted };
        left_over(
            ledger.as_ref(),
            &world.key.id,
            &format!("old-{number:04}"),
            (None, proof),
        )
        .await;
        world.clock.advance_ms(1);
    }
    let call_id = lost_refund(&world).await;
    let asked = world
        .kb
        .reconcile(HoldFilter::default(), |_, _| ())
        .await
        .unwrap();
    assert_eq!(asked.len(), 1_002);
    let found = asked.iter().position(|one| one.call_id == call_id).unwrap();
    assert_eq!(found, 501, "those of which nothing is known come first");
    assert_eq!(asked[found].resolution, Resolution::Found("settled".to_owned()));
    assert_eq!(world.budget().await, (20_000_000, 0));
    let first = HoldFilter {
        limit: 1,
        ..HoldFilter::default()
    };
    let asked = world.kb.reconcile(first, |_, _| ()).await.unwrap();
    assert_eq!((asked.len(), asked[0].call_id.as_str()), (1, "old-0000"));
}

#[tokio::test]
async fn a_call_that_cannot_be_asked_about_does_not_stand_in_the_way_of_others() {
    let world = World::new(refunds(500)).await;
    let policy = json!({"vendor": "stripe", "label": "other", "secret": "elsewhere", "daily_usd_cap": 500,
        "timezone": keybrake_tests::noon_zone(), "allowed_endpoints": ["refunds.create"]});
    let other = world.issue(policy, "run_2").await;
    let ledger = world.kb.ledger();
    left_over(ledger.as_ref(), &other.id, "old-0", (Some("stripe"), lost())).await;
    world.clock.advance_ms(1);
    lost_refund(&world).await;
    let asked = world
        .kb
        .reconcile(HoldFilter::default(), |_, _| ())
        .await
        .unwrap();
    let [first, second] = asked.as_slice() else {
        panic!("{asked:?}");
    };
    assert!(
        matches!(&first.resolution, Resolution::Open(why) if why.contains("elsewhere")),
        "{first:?}"
    );
    assert_eq!(second.resolution, Resolution::Found("settled".to_owned()));
    assert_eq!(world.budget().await, (20_000_000, 0));
}

/// A payment in euros that was captured in part, in the dashboard, is counted at the rate of the day it was made on: three days
/// later the policy's rate is too old for new calls.
#[tokio::test]
async fn what_is_found_later_is_counted_at_the_rate_of_its_own_day() {
    let now = keybrake::audit::time_text(SystemClock.now_ms());
    let today = now.get(..10).unwrap();
    let policy = json!({"vendor": "stripe", "label": "intents", "daily_usd_cap": 500,
        "currency_rates": {"eur": {"usd": "1.10", "as_of": today, "max_age": "2d"}},
        "allowed_endpoints": ["payment_intents.create"]});
    let world = World::new(policy).await;
    let form = "amount=2000&currency=eur&confirm=true&payment_method=pm_card_visa&capture_method=manual";
    let made = world.post("/v1/payment_intents", form).await;
    let call_id = made.record.call_id.clone();
    assert_eq!(world.budget().await, (0, 22_000_000));
    let captured = keybrake::client::base_client()
        .unwrap()
        .post(format!(
            "{}/v1/payment_intents/{}/capture",
            world.stripe.url(),
            made.id()
        ))
        .bearer_auth(TEST_SECRET)
        .body("amount_to_capture=1200")
        .header("Content-Type", "application/x-www-form-urlencoded")
        .send()
        .await
        .unwrap();
    assert!(captured.status().is_success(), "{captured:?}");
    world.clock.advance_ms(3 * 86_400_000);
    let late = world.post("/v1/payment_intents", form).await;
    assert!(late.denial.is_some(), "the rate is too old by now: {late:?}");
    assert_eq!(world.reconcile().await, 0);
    let call = world.kb.ledger().reservation(&call_id).await.unwrap().unwrap();
    assert_eq!(
        (call.used.micros(), call.held.micros()),
        (13_200_000, 0),
        "{call:?}"
    );
    world.verify().await;
}
