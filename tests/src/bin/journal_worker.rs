//! A process for the tests of the journal. It does one thing, then one more for each line that it is told, and says how
//! it ended in a line.
//!
//! `journal_worker pay LEDGER_URL STRIPE_URL TOKEN` takes a permit for a payment and says `permit`; told to go on, it
//! sends it and says `journaled`, `unrecorded` or `recorded`. `journal_worker deliver LEDGER_URL DIRECTORY` opens a
//! ledger and says `open`; told to go on, it delivers what waits and says how many.

use std::io::Write as _;
use std::path::Path;

use keybrake::SystemClock;
use keybrake::brake::{CallContext, Decision, KeyOrigin};
use keybrake::client::Answer;
use keybrake::facade::Keybrake;
use keybrake::journal::Journal;
use keybrake::secret::Secret;
use keybrake_testkit::stripe::TEST_SECRET;
use keybrake_tests::post;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    match args[..] {
        ["pay", ledger, stripe, token] => runtime.block_on(pay(ledger, stripe, token)),
        ["deliver", ledger, directory] => deliver(&runtime, ledger, Path::new(directory)),
        _ => anyhow::bail!("see the source"),
    }
}

async fn pay(ledger: &str, stripe: &str, token: &str) -> anyhow::Result<()> {
    let kb = Keybrake::builder()
        .ledger(ledger)
        .secret("stripe", Secret::value(TEST_SECRET))
        .base_url("stripe", stripe)
        .build()
        .await?;
    let mut call = post(
        "/v1/payment_intents",
        "amount=100&currency=usd&confirm=true&payment_method=pm_card_visa",
    );
    call.headers
        .push(("Authorization".to_owned(), format!("Bearer {token}")));
    let context = CallContext {
        key_origin: KeyOrigin::Generated,
        ..CallContext::default()
    };
    let Decision::Permit(permit) = kb.brake().authorize(call, context).await? else {
        anyhow::bail!("no permit")
    };
    say("permit")?;
    wait()?;
    let (Answer::Reply { record, .. } | Answer::Denied { record, .. } | Answer::Lost { record, .. }) =
        kb.shell().deliver(*permit).await?;
    say(match (record.journaled, record.unrecorded) {
        (true, _) => "journaled",
        (_, true) => "unrecorded",
        _ => "recorded",
    })?;
    wait()
}

fn deliver(runtime: &tokio::runtime::Runtime, ledger: &str, directory: &Path) -> anyhow::Result<()> {
    let ledger = keybrake::ledger::open(ledger, std::sync::Arc::new(SystemClock))?;
    let journal = runtime.block_on(Journal::of(&*ledger, directory))?;
    let journal = journal.ok_or_else(|| anyhow::anyhow!("this ledger has no journal"))?;
    say("open")?;
    wait()?;
    let done = runtime.block_on(journal.deliver(&*ledger))?;
    say(&done.delivered.to_string())
}

/// Until the next line.
fn wait() -> anyhow::Result<()> {
    std::io::stdin().read_line(&mut String::new())?;
    Ok(())
}

fn say(line: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}
