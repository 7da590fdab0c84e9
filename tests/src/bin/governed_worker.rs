//! A process that makes governed calls until it is killed, for tests with several processes.
//!
//! `governed_worker spend LEDGER_URL STRIPE_URL FIRST REFUNDS CHARGES TRANSFERS` makes the calls numbered FIRST and
//! after with three vault keys; each is a step named after its number, so that another process that is given the same
//! number continues the same spend. `governed_worker supervise LEDGER_URL STRIPE_URL POLICY` issues a key for every
//! call. `governed_worker keybrake ARGUMENTS...` is the `keybrake` command. Each answer is one
//! line: `done`, `denied CODE`, `lost`, `refused` (no key was issued).

use std::io::Write as _;
use std::process::ExitCode;

use keybrake::brake::Limits;
use keybrake::client::base_client;
use keybrake::facade::Keybrake;
use keybrake::policy::Policy;
use keybrake::secret::Secret;
use keybrake::{Run, Step, denied};
use keybrake_testkit::stripe::TEST_SECRET;
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use serde_json::Value;

fn main() -> anyhow::Result<ExitCode> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|what| what == "keybrake") {
        return Ok(ExitCode::from(keybrake_cli::main(args.iter().map(Into::into))));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(work(&args))?;
    Ok(ExitCode::SUCCESS)
}

async fn work(args: &[String]) -> anyhow::Result<()> {
    let text = |index: usize| args.get(index).map_or("", String::as_str);
    let kb = Keybrake::builder()
        .ledger(text(1))
        .secret("stripe", Secret::value(TEST_SECRET))
        .base_url("stripe", text(2))
        .limits(Limits {
            send_within_ms: 10_000,
            request_ms: 20_000,
            max_open_holds: 10_000,
            ..Limits::default()
        })
        .build()
        .await?;
    if text(0) == "supervise" {
        return supervise(&kb, text(3)).await;
    }
    let http = base_client()?;
    let client = |run: Run| ClientBuilder::new(http.clone()).with(run.enforcement()).build();
    let till = Till {
        refunds: client(kb.open_key(text(4)).await?),
        charges: client(kb.open_key(text(5)).await?),
        transfers: client(kb.open_key(text(6)).await?),
    };
    for number in text(3).parse::<u64>()?.. {
        till.spend(number).await?;
    }
    Ok(())
}

/// One governed client for each kind of spend.
struct Till {
    refunds: ClientWithMiddleware,
    charges: ClientWithMiddleware,
    transfers: ClientWithMiddleware,
}

impl Till {
    /// The spend of a number: its kind and amount follow from it.
    async fn spend(&self, number: u64) -> anyhow::Result<()> {
        let amount = 100_u64.saturating_add(number.wrapping_mul(37).checked_rem(900).unwrap_or(0));
        let money = format!("amount={amount}&currency=usd");
        let step = format!("spend-{number}");
        match number.checked_rem(4) {
            Some(0) => {
                let form = format!("charge=ch_large&amount={amount}");
                post(&self.refunds, &step, "refunds", form).await?;
            }
            Some(1) => {
                let form = format!("{money}&confirm=true&payment_method=pm_card_visa");
                post(&self.charges, &step, "payment_intents", form).await?;
            }
            Some(2) => {
                let form = format!("{money}&payment_method=pm_card_visa");
                let made = post(&self.charges, &step, "payment_intents", form).await?;
                if let Some(id) = made.as_ref().and_then(|made| made.get("id")?.as_str()) {
                    let confirm = format!("payment_intents/{id}/confirm");
                    post(&self.charges, &step, &confirm, String::new()).await?;
                }
            }
            _ => {
                let form = format!("{money}&destination=acct_2");
                post(&self.transfers, &step, "transfers", form).await?;
            }
        }
        Ok(())
    }
}

/// Code that gives every task a key of its own, as a web handler does, and so could outrun a stop of its keys.
async fn supervise(kb: &Keybrake, policy: &str) -> anyhow::Result<()> {
    let policy: Value = serde_json::from_str(policy)?;
    for number in 0_u64.. {
        let run = format!("run-{}-{number}", std::process::id());
        match kb.open(Policy::from_value(&policy)?).run(run).await {
            Ok(run) => {
                let amount = 100_u64.saturating_add(number.checked_rem(900).unwrap_or(0));
                let form = format!("charge=ch_large&amount={amount}");
                post(&run.client()?, "refund", "refunds", form).await?;
                run.leave_open();
            }
            Err(_) => say("refused")?,
        }
    }
    Ok(())
}

/// Makes one call and says how it ended; answers the reply of a call that succeeded.
async fn post(
    http: &ClientWithMiddleware,
    step: &str,
    path: &str,
    form: String,
) -> anyhow::Result<Option<Value>> {
    let request = http
        .post(format!("https://api.stripe.com/v1/{path}"))
        .header("Content-Type", "application/x-www-form-urlencoded")
        .with_extension(Step::new(step))
        .body(form);
    match request.send().await {
        Ok(reply) if reply.status().is_success() => {
            let object = serde_json::from_slice(&reply.bytes().await?)?;
            say("done")?;
            return Ok(Some(object));
        }
        Ok(reply) => say(&format!("status {}", reply.status().as_u16()))?,
        Err(error) => match denied(&error) {
            Some(denial) => say(&format!("denied {}", denial.code))?,
            None => say("lost")?,
        },
    }
    Ok(None)
}

fn say(line: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}
