//! A process that restores a ledger in Redis from its archive until it is done or killed: `restore_worker LEDGER ID ARCHIVE
//! MASTER [steps]`. Says `said N` after each step, and waits for a line then if it is to go by steps; at the end `done N`,
//! with how many calls it said again.

use std::io::Write as _;
use std::sync::Arc;

use keybrake::SystemClock;
use keybrake::audit::restore::Progress;
use keybrake::audit::{Archive, Restore};
use keybrake::ledger::redis::RedisLedger;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let text = |index: usize| args.get(index).map_or("", String::as_str);
    let (url, id, master) = (text(0).to_owned(), text(1).to_owned(), text(3).to_owned());
    let open =
        move || RedisLedger::open_to_restore(&url, Arc::new(SystemClock), Some(master.as_bytes()), &id);
    let ledger = tokio::task::spawn_blocking(open).await??;
    let archive = Archive::open_existing(text(2)).await?;
    let steps = text(4) == "steps";
    let mut failed = Ok(());
    let restored = Restore::new(&ledger, &archive)
        .await?
        .run(|progress| {
            if let Progress::Said(calls) = progress
                && let Err(error) = said(calls, steps)
            {
                failed = Err(error);
            }
        })
        .await?;
    failed?;
    say(&format!("done {}", restored.calls))
}

fn said(calls: u64, steps: bool) -> anyhow::Result<()> {
    say(&format!("said {calls}"))?;
    if steps {
        std::io::stdin().read_line(&mut String::new())?;
    }
    Ok(())
}

fn say(line: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}
