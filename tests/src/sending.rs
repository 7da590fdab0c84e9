//! What is asserted of every vendor that sends (Twilio and Resend): one scenario each, with the vendor's own words as
//! data. What only one of them does is in its own test file.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::Arc;

use keybrake::ledger::State;
use keybrake::policy::Code;
use keybrake_testkit::SimulatedVendor;
use keybrake_testkit::stripe::{Fault, FaultKind};
use serde_json::{Value, json};

use crate::sender::{By, Sender};
use crate::world::Ended;

/// Every way in which an answer is lost: the request was executed or it was not, and the caller cannot tell.
pub const LOSSES: [FaultKind; 4] = [
    FaultKind::DropAfterExecuting,
    FaultKind::Status500AfterExecuting,
    FaultKind::ResetMidBody,
    FaultKind::DropBefore,
];

/// A vendor that sends, in its own words.
#[derive(Clone, Copy, Debug)]
pub struct Sending {
    /// Which one.
    pub vendor: SimulatedVendor,
    /// The operation that sends, such as `emails.send`; one cent each under [`cents`](Self::cents).
    pub operation: &'static str,
    /// How the path of every request that sends begins.
    pub path: &'static str,
    /// Someone to send to.
    pub to: &'static str,
    /// Someone the vendor refuses to send to, and the status it does so with.
    pub refused: (&'static str, u16),
    /// The status of a success.
    pub done: u16,
    /// The member by which its own 429 is known, and its value.
    pub limited: (&'static str, fn() -> Value),
    /// The policy of most tests, by its cap in dollars a day.
    pub cents: fn(&str) -> Value,
}

impl Sending {
    /// A world under the policy of most tests.
    pub async fn world(&self, cap: &str) -> Sender {
        Sender::new(self.vendor, (self.cents)(cap)).await
    }

    /// Sends a text.
    pub async fn send(&self, world: &Sender, to: &str, text: &str, step: Option<&str>) -> Ended {
        if self.vendor == SimulatedVendor::Twilio {
            world.message(to, text, step).await
        } else {
            let by = step.map_or(By::Content, By::Step);
            world.resend("POST", "/emails", &email(to, text), by).await
        }
    }

    /// The next request that sends meets this fault.
    pub fn fault(&self, world: &Sender, kind: FaultKind) {
        world
            .vendor
            .fault(Fault::new(kind).on("POST", self.path))
            .unwrap();
    }

    /// Reads a list.
    async fn list(&self, world: &Sender, path: &str) -> Ended {
        if self.vendor == SimulatedVendor::Twilio {
            world.twilio("GET", path, "", None).await
        } else {
            world.resend("GET", path, &Value::Null, By::Content).await
        }
    }

    /// Without a cost in the policy nothing is sent, and the denial says which line is missing; `shape` looks at how the
    /// vendor's SDKs see it. The list at `path` can be read.
    pub async fn nothing_is_sent_without_a_cost(&self, path: &str, shape: impl FnOnce(&Value)) {
        let policy = json!({"vendor": self.vendor.name(), "daily_usd_cap": 100,
            "allowed_endpoints": [self.operation, "reads"]});
        let world = Sender::new(self.vendor, policy).await;
        let refused = self.send(&world, self.to, "hi", None).await;
        let denial = refused.denial.unwrap();
        assert_eq!(denial.code, Code::CostUnknown);
        let line = format!(r#""operation_costs": {{"{}": 5}}"#, self.operation);
        assert!(denial.message.contains(&line), "{}", denial.message);
        assert_eq!(refused.status, 403);
        assert_eq!(refused.json.get("message"), Some(&json!(denial.message)));
        shape(&refused.json);
        assert_eq!(world.vendor.request_count(), 0);
        let read = self.list(&world, path).await;
        assert_eq!(read.status, 200, "reads pass: {read:?}");
        assert_eq!(world.budget().await, (0, 0));
        world.verify().await;
    }

    /// Fifty at once, of which twelve fit under the cap. `over` looks at each that was refused for it.
    pub async fn fifty_at_once_never_pass_the_cap(
        self,
        recipient: fn(u32) -> String,
        step: fn(u32) -> Option<String>,
        over: impl Fn(&Ended),
    ) {
        let world = Arc::new(self.world("0.12").await);
        let tasks: Vec<_> = (0..50)
            .map(|n| {
                let world = world.clone();
                tokio::spawn(async move { self.send(&world, &recipient(n), "hi", step(n).as_deref()).await })
            })
            .collect();
        let mut done = 0;
        for task in tasks {
            let ended = task.await.unwrap();
            let Some(code) = ended.code() else {
                done += 1;
                continue;
            };
            assert!(matches!(code, Code::CapExceeded | Code::CapHeld), "{ended:?}");
            over(&ended);
        }
        assert_eq!(done, 12, "twelve of a cent fit under $0.12");
        assert_eq!(world.sent().len(), 12);
        assert_eq!(world.budget().await, (120_000, 0));
        world.verify().await;
    }

    /// A world in which the answer to one send was lost: it is counted until somebody knows.
    pub async fn with_a_lost_answer(&self, kind: FaultKind) -> Sender {
        let world = self.world("1").await;
        self.fault(&world, kind);
        let lost = self.send(&world, self.to, "hi", None).await;
        assert_eq!(lost.record.state, Some(State::Unknown), "{kind:?} {lost:?}");
        assert_eq!(
            world.budget().await,
            (0, 10_000),
            "{kind:?}: counted until it is known"
        );
        world
    }

    /// What the vendor itself refuses costs nothing, and the same may be tried again.
    pub async fn what_it_refused_is_free_and_may_be_tried_again(&self) {
        let world = self.world("0.01").await;
        self.fault(&world, FaultKind::RateLimit);
        let limited = self.send(&world, self.to, "hi", None).await;
        assert_eq!(
            (limited.status, limited.code()),
            (429, None),
            "the vendor's own 429 passes"
        );
        let (member, value) = self.limited;
        assert_eq!(limited.json.get(member), Some(&value()));
        assert_eq!(world.budget().await, (0, 0));
        let (nobody, status) = self.refused;
        let invalid = self.send(&world, nobody, "hi", None).await;
        assert_eq!(invalid.status, status, "{invalid:?}");
        assert_eq!(world.budget().await, (0, 0));
        assert_eq!(self.send(&world, self.to, "hi", None).await.status, self.done);
        assert_eq!(world.sent().len(), 1);
        assert_eq!(world.budget().await, (10_000, 0));
        world.verify().await;
    }
}

/// Asserts that each of these calls was refused with its code, and that nothing reached the vendor or the books.
pub async fn refused_before_anything_left(world: &Sender, calls: Vec<(String, Ended, Code)>) {
    for (what, refused, code) in calls {
        assert_eq!(refused.code(), Some(code), "{what}");
        assert_eq!(refused.status, 403, "{what}");
    }
    assert_eq!(world.vendor.request_count(), 0);
    assert_eq!(world.budget().await, (0, 0));
    world.verify().await;
}

/// An e-mail as Resend's SDKs write it.
pub fn email(to: &str, text: &str) -> Value {
    json!({"from": "a@acme.example", "to": [to], "subject": "hello", "text": text})
}
