//! The time to send a permit begins when the ledger is asked: its hold's own time may have begun then.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed unwrap is a failed test"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use keybrake::Keybrake;
use keybrake::brake::{CallContext, Decision, Prepared};
use keybrake::client::{Answer, NoReply, Shell, Wire};
use keybrake::clock::{Clock, ManualClock};
use keybrake::ledger::{HoldFilter, MemoryLedger};
use keybrake::policy::Policy;
use keybrake::request::Call;
use keybrake::secret::Secret;
use keybrake::vendors::Reply;
use serde_json::json;

/// The process's clock: it was frozen for so long whenever it reads an answer of the ledger.
#[derive(Debug)]
struct Frozen {
    clock: Arc<ManualClock>,
    for_ms: i64,
    boot_ms: AtomicI64,
}

impl Clock for Frozen {
    fn now_ms(&self) -> i64 {
        self.clock.now_ms()
    }

    fn boot_ms(&self) -> i64 {
        self.clock.boot_ms() + self.boot_ms.load(Ordering::SeqCst)
    }
}

/// The ledger's clock, which is read whenever it is asked something.
#[derive(Debug)]
struct Asked(Arc<Frozen>);

impl Clock for Asked {
    fn now_ms(&self) -> i64 {
        self.0.boot_ms.fetch_add(self.0.for_ms, Ordering::SeqCst);
        self.0.clock.now_ms()
    }

    fn boot_ms(&self) -> i64 {
        self.0.clock.boot_ms()
    }
}

/// Counts what leaves.
#[derive(Debug, Default)]
struct Counting(AtomicU32);

#[async_trait]
impl Wire for Counting {
    async fn exchange(
        &self,
        _: &Prepared,
        first_byte: &mut (dyn FnMut() -> bool + Send),
        _: Duration,
    ) -> Result<Reply, NoReply> {
        if first_byte() {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
        Err(NoReply::ConnectionLost)
    }
}

/// A payout by a process that is frozen for so long while the ledger answers: how long its permit lives from then on, how
/// often it was sent, and what the shell says.
async fn payout(frozen_ms: i64) -> (i64, u32, Answer, Keybrake) {
    let clock = Arc::new(ManualClock::at(1_795_305_600_000));
    let frozen = Arc::new(Frozen {
        clock: Arc::clone(&clock),
        for_ms: frozen_ms,
        boot_ms: AtomicI64::new(0),
    });
    let ledger = MemoryLedger::new(Arc::new(Asked(Arc::clone(&frozen)))).unwrap();
    let kb = Keybrake::builder()
        .shared_ledger(Arc::new(ledger))
        .clock(frozen.clone())
        .secret("stripe", Secret::value("sk_test_simulator"))
        .build()
        .await
        .unwrap();
    let policy = json!({"vendor": "stripe", "daily_usd_cap": 500, "allowed_endpoints": ["payouts.create"]});
    let key = kb.issue(Policy::from_value(&policy).unwrap()).await.unwrap();
    let header = |name: &str, value: String| (name.to_owned(), value);
    let call = Call {
        method: "POST".to_owned(),
        url: "https://api.stripe.com/v1/payouts".to_owned(),
        headers: vec![
            header("authorization", format!("Bearer {}", key.token.expose())),
            header("content-type", "application/x-www-form-urlencoded".to_owned()),
        ],
        body: "amount=5000&currency=usd".into(),
    };
    let decision = kb.brake().authorize(call, CallContext::default()).await.unwrap();
    let Decision::Permit(permit) = decision else {
        panic!("{decision:?}")
    };
    let left_ms = permit.send_before_boot_ms - frozen.boot_ms();
    let wire = Arc::new(Counting::default());
    let shell = Arc::new(Shell::over(Arc::clone(kb.brake()), wire.clone()));
    let answer = shell.deliver(*permit).await.unwrap();
    (left_ms, wire.0.load(Ordering::SeqCst), answer, kb)
}

#[tokio::test]
async fn the_time_to_send_counts_from_when_the_ledger_was_asked() {
    let (left_ms, sent, answer, _) = payout(0).await;
    assert_eq!((left_ms, sent), (10_000, 1), "{answer:?}");
    let (left_ms, sent, ..) = payout(4_000).await;
    assert!(left_ms <= 6_000, "{left_ms} ms from the answer, which took 4 s");
    assert_eq!(sent, 1);
}

#[tokio::test]
async fn scenario_01_a_process_frozen_before_it_reads_its_permit_sends_nothing() {
    let (left_ms, sent, answer, kb) = payout(11_000).await;
    assert!(left_ms < 0, "{left_ms}");
    assert_eq!(sent, 0, "the hold may have been resolved as absent meanwhile");
    assert!(
        matches!(answer, Answer::Lost { never_sent: true, .. }),
        "{answer:?}"
    );
    assert_eq!(kb.holds(HoldFilter::default()).await.unwrap(), Vec::new());
}
