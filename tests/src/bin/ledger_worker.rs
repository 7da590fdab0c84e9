//! A process that works on a ledger file until it is done or killed, for tests with several processes.
//!
//! `ledger_worker FILE KEY spend N AMOUNT` reserves and settles N calls; `... reserve N AMOUNT` reserves only;
//! `... idle` opens the ledger and waits for its standard input to close. Each answer of the ledger is one line:
//! `granted ID`, `denied CODE`, `settled ID`, and at the end `longest MICROSECONDS`.
#![expect(
    clippy::disallowed_methods,
    reason = "a program for tests, which measures real time"
)]

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use keybrake::SystemClock;
use keybrake::ledger::Ledger;
use keybrake::ledger::sqlite::{DEFAULT_NAMESPACE, SqliteLedger, SqliteOptions};
use keybrake_tests::books;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let text = |index: usize| args.get(index).map_or("", String::as_str);
    let options = SqliteOptions {
        wait_ms: 30_000,
        ..SqliteOptions::default()
    };
    let ledger = SqliteLedger::open(text(0), DEFAULT_NAMESPACE, Arc::new(SystemClock), options)?;
    if text(2) == "idle" {
        say("open")?;
        std::io::stdin().read_to_end(&mut Vec::new())?;
        return Ok(());
    }
    let (count, amount): (u32, i64) = (text(3).parse()?, text(4).parse()?);
    let longest = work(&ledger, text(1), (text(2) == "spend", count, amount)).await?;
    say(&format!("longest {}", longest.as_micros()))
}

async fn work(ledger: &dyn Ledger, key: &str, what: (bool, u32, i64)) -> anyhow::Result<Duration> {
    let (settles, count, amount) = what;
    let key = books::key(ledger, key, &[]).await?;
    let mut longest = Duration::ZERO;
    for number in 1..=count {
        let call_id = format!("call-{}-{number}", std::process::id());
        let started = Instant::now();
        let answer = books::reserve(ledger, books::call(&key, &call_id, amount)).await?;
        longest = longest.max(started.elapsed());
        match answer {
            Ok(_) => say(&format!("granted {call_id}"))?,
            Err(code) => {
                say(&format!("denied {code}"))?;
                continue;
            }
        }
        if settles {
            ledger.settle(books::charged(&call_id, amount)).await?;
            say(&format!("settled {call_id}"))?;
        }
    }
    Ok(longest)
}

fn say(line: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}
