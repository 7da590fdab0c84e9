//! The simulators behave as Stripe, Twilio and Resend are documented to behave, and their journals tell the truth.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a failed unwrap is a failed test"
)]

mod attacks;
mod client;
mod controls;
mod faults;
mod idempotency;
mod objects;
mod senders;
mod wire;

use std::time::Duration;

use client::{Answer, Client};
use keybrake_testkit::{Simulator, SimulatorOptions};

/// A limit for what should come at once; a test that reaches it has failed.
const LONG: Duration = Duration::from_secs(20);

fn simulator() -> Simulator {
    Simulator::start(SimulatorOptions::default()).unwrap()
}

fn refund(sim: &Simulator, form: &str, key: &str) -> Answer {
    Client::new(sim).key(key).post("/v1/refunds", form).unwrap()
}
