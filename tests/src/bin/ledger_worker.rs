//! A process that works on a ledger file until it is done or killed, for tests with several processes.
//!
//! `ledger_worker FILE KEY spend N AMOUNT` reserves and settles N calls; `... reserve N AMOUNT` reserves only;
//! `... state STATE AMOUNT` brings one call into a state and waits to be killed. `... foreign` is not ours: it opens the
//! database with plain SQLite, counts its events and closes it. Each answer is one line: `granted ID`, `denied CODE`,
//! `settled ID`, `state STATE`, `events N`, and at the end `longest MICROSECONDS`.
#![expect(
    clippy::disallowed_methods,
    reason = "a program for tests, which measures real time"
)]

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use keybrake::ledger::sqlite::{DEFAULT_NAMESPACE, SqliteLedger, SqliteOptions};
use keybrake::ledger::{Ledger, Proof, State};
use keybrake::{SystemClock, Usd};
use keybrake_tests::books;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let text = |index: usize| args.get(index).map_or("", String::as_str);
    if text(2) == "foreign" {
        let database = rusqlite::Connection::open(text(0))?;
        let events: i64 = database.query_row("SELECT count(*) FROM event", [], |row| row.get(0))?;
        drop(database);
        return say(&format!("events {events}"));
    }
    let options = SqliteOptions {
        wait_ms: 30_000,
        ..SqliteOptions::default()
    };
    let ledger = SqliteLedger::open(text(0), DEFAULT_NAMESPACE, Arc::new(SystemClock), options)?;
    if text(2) == "state" {
        let state = reach(&ledger, text(1), text(3), text(4).parse()?).await?;
        say(&format!("state {state}"))?;
        std::io::stdin().read_to_end(&mut Vec::new())?;
        return Ok(());
    }
    let (count, amount): (u32, i64) = (text(3).parse()?, text(4).parse()?);
    let longest = work(&ledger, text(1), (text(2) == "spend", count, amount)).await?;
    say(&format!("longest {}", longest.as_micros()))
}

/// Brings the call that is named after a state into it.
async fn reach(ledger: &dyn Ledger, key: &str, state: &str, amount: i64) -> anyhow::Result<&'static str> {
    let key = books::key(ledger, key, &[]).await?;
    if let Err(code) = books::reserve(ledger, books::call(&key, state, amount)).await? {
        anyhow::bail!("refused: {code}");
    }
    let actual = Usd::from_micros(amount);
    let proof = match state {
        "held" => return Ok(State::Held.as_str()),
        "unknown" => Proof::NoProof {
            reason: "timeout".to_owned(),
        },
        "pending" => Proof::Accepted,
        "provisional" => Proof::ChargedProvisionally { actual },
        "settled" => Proof::Charged { actual },
        "voided" => Proof::FailedForGood,
        other => anyhow::bail!("no such state: {other}"),
    };
    let answer = ledger.settle(books::settlement(state, proof)).await?;
    Ok(answer.state.as_str())
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
