//! A process that drains a ledger in Redis until it is done or killed: `drain_worker LEDGER ARCHIVE BATCH [trim]`. Says
//! `drained N` after each batch, `trimmed N` after each trim, and at the end `done`.

use std::io::Write as _;
use std::sync::Arc;

use keybrake::SystemClock;
use keybrake::audit::drain::trim;
use keybrake::audit::{Archive, Drain, DrainOptions};
use keybrake::ledger::redis::RedisLedger;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let text = |index: usize| args.get(index).map_or("", String::as_str);
    let url = text(0).to_owned();
    let ledger =
        tokio::task::spawn_blocking(move || RedisLedger::open(&url, Arc::new(SystemClock), None)).await??;
    let archive = Archive::open(text(1)).await?;
    let options = DrainOptions {
        batch: text(2).parse()?,
        ..DrainOptions::default()
    };
    let mut drain = Drain::new(&ledger, &archive, options).await?;
    loop {
        let step = drain.step().await?;
        say(&format!("drained {}", step.drained))?;
        if text(3) == "trim" {
            say(&format!("trimmed {}", trim(&ledger, 0).await?.removed))?;
        }
        if step.caught_up {
            return say("done");
        }
    }
}

fn say(line: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}
