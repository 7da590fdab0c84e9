//! An agent stuck in a refund loop, stopped at its cap. The same program as `examples/python/01_stuck_loop.py`.
//!
//! Run it against the simulator: `keybrake dev -- cargo run --bin stuck_loop`.
#![expect(clippy::print_stdout, reason = "a program that talks to a person")]

use keybrake::{Keybrake, Policy, Step};
use serde_json::json;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let keybrake = Keybrake::from_env().await?;
    let policy = Policy::from_value(&json!({
        "vendor": "stripe",
        "label": "support-agent",
        "daily_usd_cap": 120,
        "allowed_endpoints": ["refunds.create", "charges.list"],
    }))?;
    let run = keybrake.open(policy).await?;
    let http = run.client()?;

    // The agent believes that each customer was charged twice, and does not stop believing it.
    for charge in ["ch_1", "ch_2", "ch_3", "ch_4", "ch_5", "ch_6"] {
        let call = http
            .post("https://api.stripe.com/v1/refunds")
            .form(&[("charge", charge)]);
        match call
            .with_extension(Step::new(format!("refund-{charge}")))
            .send()
            .await
        {
            Ok(reply) => println!("{charge}: {} refunded", reply.status()),
            Err(error) => match keybrake::denied(&error) {
                Some(denial) => {
                    println!("{charge}: {}", keybrake::policy::words::for_model(denial));
                    break;
                }
                None => return Err(error.into()),
            },
        }
    }
    if let Some((spent, cap)) = run.spent().await? {
        println!("spent {spent} of {cap}");
    }
    run.close().await.map_err(Into::into)
}
