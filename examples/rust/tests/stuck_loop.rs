//! The example does what it says, by the simulator's journal.

use std::process::Command;

use keybrake_testkit::stripe::{MovementKind, Simulator, SimulatorOptions, TEST_SECRET};

#[test]
fn the_stuck_loop_stops_at_its_cap() {
    let stripe = Simulator::start(SimulatorOptions::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_stuck_loop"))
        .env(
            "KEYBRAKE_LEDGER",
            format!("sqlite:{}", folder.path().join("kb").join("spend.db").display()),
        )
        .env("KEYBRAKE_BASE_URL_STRIPE", stripe.url())
        .env("STRIPE_SECRET_KEY", TEST_SECRET)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(
        stripe.moved(MovementKind::Refund, "usd"),
        10_000,
        "two refunds of $50 fit under $120"
    );
    assert!(said.contains("ch_3: NOT DONE. Spending limit reached"), "{said}");
    assert!(said.contains("spent 100.00 of 120.00"), "{said}");
}
