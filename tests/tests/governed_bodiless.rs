//! Requests without a body: they have no first byte to be asked for, and must leave in time or not at all like any other.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed unwrap and a refusal are failed tests"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use keybrake::brake::{CallContext, Decision, Limits};
use keybrake::client::Answer;
use keybrake::clock::{Clock, ManualClock, SystemClock};
use keybrake::facade::Keybrake;
use keybrake::ledger::HoldFilter;
use keybrake::policy::Policy;
use keybrake::request::Call;
use keybrake::secret::Secret;
use keybrake_testkit::stripe::{Simulator, SimulatorOptions, TEST_SECRET};
use keybrake_tests::generated;
use serde_json::json;

/// A machine that falls asleep right after somebody has looked at its clock, for longer than a permit lasts.
#[derive(Debug)]
struct Sleepy {
    clock: ManualClock,
    tired: AtomicBool,
}

impl Clock for Sleepy {
    fn now_ms(&self) -> i64 {
        self.clock.now_ms()
    }

    fn boot_ms(&self) -> i64 {
        let now_ms = self.clock.boot_ms();
        if self.tired.swap(false, Ordering::SeqCst) {
            self.clock.advance_ms(15_000);
        }
        now_ms
    }
}

struct Place {
    stripe: Simulator,
    clock: Arc<Sleepy>,
    kb: Keybrake,
    bearer: String,
}

impl Place {
    async fn new(send_within_ms: i64) -> Self {
        let stripe = Simulator::start(SimulatorOptions::default()).unwrap();
        let clock = Arc::new(Sleepy {
            clock: ManualClock::at(SystemClock.now_ms()),
            tired: AtomicBool::new(false),
        });
        let kb = Keybrake::builder()
            .ledger("memory:")
            .secret("stripe", Secret::value(TEST_SECRET))
            .base_url("stripe", stripe.url())
            .clock(clock.clone())
            .limits(Limits {
                send_within_ms,
                ..Limits::default()
            })
            .build()
            .await
            .unwrap();
        let policy = json!({"vendor": "stripe", "label": "invoices", "daily_usd_cap": 20,
            "timezone": keybrake_tests::noon_zone(), "operation_costs": {"invoices.pay": 8, "GET /v1/scores/*": 2},
            "allowed_endpoints": ["invoices.pay", "reads", "GET /v1/scores/*"]});
        let key = kb.issue(Policy::from_value(&policy).unwrap()).await.unwrap();
        let bearer = format!("Bearer {}", key.token.expose());
        Self {
            stripe,
            clock,
            kb,
            bearer,
        }
    }

    fn call(&self, method: &str, path: &str) -> (Call, CallContext) {
        let call = Call {
            method: method.to_owned(),
            url: format!("https://api.stripe.com{path}"),
            headers: vec![("Authorization".to_owned(), self.bearer.clone())],
            body: Bytes::new(),
        };
        let context = generated(None);
        (call, context)
    }

    fn arrived(&self, method: &str) -> usize {
        let requests = self.stripe.requests();
        requests.iter().filter(|request| request.method == method).count()
    }
}

const PAY: (&str, &str) = ("POST", "/v1/invoices/in_1/pay");
/// A read that is in no table, and that the policy prices.
const PAID_READ: (&str, &str) = ("GET", "/v1/scores/sc_1");

#[tokio::test]
async fn a_machine_that_sleeps_while_it_connects_sends_nothing_when_it_wakes() {
    sends_nothing_when_it_wakes(PAY).await;
}

#[tokio::test]
async fn a_read_that_costs_something_leaves_in_time_or_not_at_all() {
    sends_nothing_when_it_wakes(PAID_READ).await;
}

async fn sends_nothing_when_it_wakes((method, path): (&str, &str)) {
    let place = Place::new(10_000).await;
    let (call, context) = place.call(method, path);
    let Decision::Permit(permit) = place.kb.brake().authorize(call, context).await.unwrap() else {
        panic!("refused")
    };
    place.clock.tired.store(true, Ordering::SeqCst);
    let woken = place.kb.shell().deliver(*permit).await.unwrap();
    assert!(
        matches!(woken, Answer::Lost { never_sent: true, .. }),
        "{woken:?}"
    );
    assert!(!place.clock.tired.load(Ordering::SeqCst), "it did sleep");
    assert_eq!(place.arrived(method), 0);
    assert!(place.kb.holds(HoldFilter::default()).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_short_time_to_send_is_enough_for_reads_and_writes_without_a_body() {
    let place = Place::new(3_000).await;
    for (method, path) in [("GET", "/v1/charges/ch_1"), PAY, PAY, ("GET", "/v1/charges/ch_1")] {
        let (call, context) = place.call(method, path);
        let answer = place
            .kb
            .shell()
            .send(call, context, Duration::ZERO)
            .await
            .unwrap();
        assert!(
            matches!(answer, Answer::Reply { .. }),
            "{method} {path}: {answer:?}"
        );
    }
    assert_eq!((place.arrived("GET"), place.arrived("POST")), (2, 2));
}
