//! Callers that go away in the middle: a timeout around a call, Ctrl-C, a program that is closing. What is certain by then
//! gets into the books.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed unwrap is a failed test"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use keybrake::brake::{CallContext, Decision, Permit, SendEnd};
use keybrake::clock::SystemClock;
use keybrake::facade::{IssuedKey, Keybrake};
use keybrake::ledger::{HoldFilter, State};
use keybrake::policy::Policy;
use keybrake::request::Call;
use keybrake::secret::Secret;
use keybrake_testkit::Wrapped;
use keybrake_testkit::stripe::{MovementKind, Simulator, SimulatorOptions, TEST_SECRET};
use keybrake_tests::gated::{Gated, Way};
use keybrake_tests::{generated, noon_zone, post, signed};
use serde_json::json;
use tempfile::TempDir;

/// A payment of one dollar.
const FORM: &str = "amount=100&currency=usd&confirm=true&payment_method=pm_card_visa";

struct Place {
    stripe: Simulator,
    ledger: Arc<Wrapped<Gated>>,
    kb: Keybrake,
    key: IssuedKey,
    _journal: TempDir,
}

impl Place {
    async fn new() -> Self {
        let stripe = Simulator::start(SimulatorOptions::default()).unwrap();
        let inner = keybrake::ledger::open("memory:", Arc::new(SystemClock)).unwrap();
        let ledger = Arc::new(Gated::around(inner));
        let journal = tempfile::tempdir().unwrap();
        let kb = Keybrake::builder()
            .shared_ledger(ledger.clone())
            .secret("stripe", Secret::value(TEST_SECRET))
            .base_url("stripe", stripe.url())
            .journal_dir(journal.path().join("journal"))
            .build()
            .await
            .unwrap();
        let policy = json!({"vendor": "stripe", "label": "support", "daily_usd_cap": 500, "timezone": noon_zone(),
            "allowed_endpoints": ["payment_intents.create"]});
        let key = kb.issue(Policy::from_value(&policy).unwrap()).await.unwrap();
        Self {
            stripe,
            ledger,
            kb,
            key,
            _journal: journal,
        }
    }

    fn call(&self, step: &str) -> (Call, CallContext) {
        let call = signed(&self.key, post("/v1/payment_intents", FORM));
        let context = generated(Some(step));
        (call, context)
    }

    async fn permit(&self, step: &str) -> Permit {
        let (call, context) = self.call(step);
        match self.kb.brake().authorize(call, context).await.unwrap() {
            Decision::Permit(permit) => *permit,
            other => panic!("no permit: {other:?}"),
        }
    }

    /// What the vendor charged, in micro-USD.
    fn charged_micros(&self) -> i64 {
        self.stripe.moved(MovementKind::Charge, "usd") * 10_000
    }

    /// Used and held, in micro-USD.
    async fn budget(&self) -> (i64, i64) {
        let usage = self.kb.usage(&self.key.id).await.unwrap();
        let day = usage.iter().find(|usage| !usage.livemode).unwrap();
        (day.view.used, day.view.held)
    }

    /// Nothing was sent, and nothing is held or used.
    async fn nothing_moved(&self, step: &str) {
        assert_eq!(self.budget().await, (0, 0), "{step}");
        assert!(
            self.kb.holds(HoldFilter::default()).await.unwrap().is_empty(),
            "{step}"
        );
        assert!(
            self.stripe
                .requests()
                .iter()
                .all(|request| request.method != "POST"),
            "{step}"
        );
    }
}

/// Sends a payment and gives up when its reply is there and is being recorded.
async fn give_up_while_recording(place: &Place, step: &str) {
    let permit = place.permit(step).await;
    place.ledger.before_settle.set(Way::Shut);
    let shell = Arc::clone(place.kb.shell());
    let task = tokio::spawn(async move { shell.deliver(permit).await.map(drop) });
    place.ledger.before_settle.came(1).await;
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    assert_eq!(place.charged_micros(), 1_000_000);
    assert_eq!(place.budget().await, (0, 1_000_000));
}

#[tokio::test]
async fn an_outcome_is_recorded_although_its_caller_goes_away_meanwhile() {
    let place = Place::new().await;
    give_up_while_recording(&place, "one").await;
    place.ledger.before_settle.set(Way::Open);
    place.kb.flush().await.unwrap();
    assert_eq!(place.budget().await, (1_000_000, 0));
    assert!(place.kb.holds(HoldFilter::default()).await.unwrap().is_empty());
}

#[tokio::test]
async fn an_outcome_is_journaled_although_its_caller_went_away() {
    let place = Place::new().await;
    give_up_while_recording(&place, "one").await;
    place.ledger.before_settle.set(Way::Fails);
    place.kb.brake().idle().await;
    let waiting = place.kb.brake().journal().unwrap().contents().unwrap().waiting;
    assert_eq!(waiting.len(), 1);
    assert_eq!(waiting[0].proof, "charged");
    let hold = place.kb.holds(HoldFilter::default()).await.unwrap().remove(0);
    assert_eq!(hold.state, State::Held);

    place.ledger.before_settle.set(Way::Open);
    place.kb.flush().await.unwrap();
    assert_eq!(
        place.budget().await,
        (1_000_000, 0),
        "the books equal the journal"
    );
}

/// Asks for a permit and gives up when the ledger has decided, before its answer is there.
async fn give_up_while_asking(place: &Place, step: &str, then: Way) {
    let before = place.ledger.after_reserve.so_far();
    place.ledger.after_reserve.set(Way::Shut);
    let kb = place.kb.clone();
    let (call, context) = place.call(step);
    let task = tokio::spawn(async move { kb.brake().authorize(call, context).await.map(drop) });
    place.ledger.after_reserve.came(before + 1).await;
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    assert_eq!(place.budget().await, (0, 1_000_000), "it was decided");
    place.ledger.after_reserve.set(then);
    place.kb.flush().await.unwrap();
    place.ledger.after_reserve.set(Way::Open);
}

#[tokio::test]
async fn a_call_that_is_given_up_while_the_ledger_is_asked_holds_nothing() {
    let place = Place::new().await;
    for (step, then) in [("answered", Way::Open), ("lost", Way::Fails)] {
        give_up_while_asking(&place, step, then).await;
        place.nothing_moved(step).await;
    }
    // The ledger is asked again under the same identity, and the books are whole.
    let permit = place.permit("answered").await;
    place.kb.shell().deliver(permit).await.unwrap();
    assert_eq!(place.budget().await, (1_000_000, 0));
    let report = place.kb.ledger().verify().await.unwrap();
    assert!(report.differences.is_empty() && report.chain_ok, "{report:?}");
}

#[tokio::test]
async fn an_attempt_that_joined_and_was_given_up_is_certified_under_its_own_number() {
    let place = Place::new().await;
    let first = place.permit("one").await;
    give_up_while_asking(&place, "one", Way::Open).await;
    let hold = place.kb.holds(HoldFilter::default()).await.unwrap().remove(0);
    assert_eq!((hold.attempts, hold.not_executed), (2, vec![2]));
    // The other attempt is the only one that can have left.
    drop(place.kb.brake().settle(first, SendEnd::NeverSent).await.unwrap());
    assert_eq!(place.budget().await, (0, 0));
}

/// The permit is there, and nothing of it has left when its caller is asked for the last time.
#[tokio::test]
async fn a_call_that_is_given_up_between_its_permit_and_its_first_byte_holds_nothing() {
    let place = Place::new().await;
    place.ledger.after_reserve.set(Way::Shut);
    let decided = Arc::new(AtomicBool::new(false));
    let (shell, (call, context)) = (Arc::clone(place.kb.shell()), place.call("one"));
    let task = tokio::spawn({
        let decided = Arc::clone(&decided);
        let mut asked = false;
        // It ends when it is asked for the second time after the decision: the first time is while the decision arrives.
        let given_up = std::future::poll_fn(move |_| {
            let over = decided.load(Ordering::SeqCst);
            let before = std::mem::replace(&mut asked, over);
            if before { Poll::Ready(()) } else { Poll::Pending }
        });
        async move {
            let given_up = std::pin::pin!(given_up);
            shell
                .open_unless(call, context, Duration::ZERO, given_up)
                .await
                .map(drop)
        }
    });
    place.ledger.after_reserve.came(1).await;
    decided.store(true, Ordering::SeqCst);
    place.ledger.after_reserve.set(Way::Open);
    let given_up = task.await.unwrap().unwrap_err();
    assert!(given_up.to_string().contains("gave this call up"), "{given_up}");
    place.kb.flush().await.unwrap();
    place.nothing_moved("one").await;
}
