//! The simulator behaves as Stripe is documented to behave, and its journal tells the truth.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a failed unwrap is a failed test"
)]

mod client;
mod idempotency;
mod objects;

use client::{Answer, Client};
use keybrake_testkit::{Simulator, SimulatorOptions};

fn simulator() -> Simulator {
    Simulator::start(SimulatorOptions::default()).unwrap()
}

fn refund(sim: &Simulator, form: &str, key: &str) -> Answer {
    Client::new(sim).key(key).post("/v1/refunds", form).unwrap()
}
