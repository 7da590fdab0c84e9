//! A process that works on a ledger until it is done or killed, for tests with several processes.
//!
//! `ledger_worker LEDGER KEY spend N AMOUNT [TASKS]` reserves and settles N calls in each of TASKS tasks; `... reserve N
//! AMOUNT [TASKS]` reserves only; `... endure N AMOUNT [TASKS]` is `spend` that goes on after an error, and `... fill N
//! AMOUNT [TASKS]` is `endure` that ends with the first refusal. LEDGER is a file or a URL. `... state STATE AMOUNT` brings
//! one call into a state and waits to be killed. `... foreign` is not ours: it opens the database with plain SQLite,
//! counts its events and closes it. Each answer is one line: `granted ID`, `denied CODE`,
//! `settled ID`, `error MESSAGE`, `state STATE`, `events N`, and at the end `longest MICROSECONDS`.
#![expect(
    clippy::disallowed_methods,
    reason = "a program for tests, which measures real time"
)]

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use keybrake::ledger::redis::RedisLedger;
use keybrake::ledger::sqlite::{DEFAULT_NAMESPACE, SqliteLedger, SqliteOptions};
use keybrake::ledger::{KeyRecord, Ledger, Proof, State};
use keybrake::{SystemClock, Usd};
use keybrake_tests::books;
use tokio::task::JoinSet;

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
    let ledger = open(text(0))?;
    if text(2) == "state" {
        let state = reach(&*ledger, text(1), text(3), text(4).parse()?).await?;
        say(&format!("state {state}"))?;
        std::io::stdin().read_to_end(&mut Vec::new())?;
        return Ok(());
    }
    let key = books::key(&*ledger, text(1), &[]).await?;
    let task = Task {
        ledger,
        key,
        settles: text(2) != "reserve",
        endures: matches!(text(2), "endure" | "fill"),
        full: (text(2) == "fill").then(Arc::default),
        count: text(3).parse()?,
        amount: text(4).parse()?,
    };
    let tasks: u32 = if text(5).is_empty() { 1 } else { text(5).parse()? };
    let mut working = JoinSet::new();
    for number in 0..tasks {
        working.spawn(task.clone().work(number));
    }
    let mut longest = Duration::ZERO;
    while let Some(done) = working.join_next().await {
        longest = longest.max(done??);
    }
    say(&format!("longest {}", longest.as_micros()))
}

fn open(ledger: &str) -> anyhow::Result<Arc<dyn Ledger>> {
    if ledger.contains("://") {
        return Ok(Arc::new(RedisLedger::open(ledger, Arc::new(SystemClock), None)?));
    }
    let options = SqliteOptions {
        wait_ms: 30_000,
        ..SqliteOptions::default()
    };
    Ok(Arc::new(SqliteLedger::open(
        ledger,
        DEFAULT_NAMESPACE,
        Arc::new(SystemClock),
        options,
    )?))
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

/// What each task does.
#[derive(Clone)]
struct Task {
    ledger: Arc<dyn Ledger>,
    key: KeyRecord,
    settles: bool,
    endures: bool,
    /// For `fill`: set once a call was refused.
    full: Option<Arc<AtomicBool>>,
    count: u32,
    amount: i64,
}

impl Task {
    /// Makes its calls; answers the longest that a reserve took.
    async fn work(mut self, task: u32) -> anyhow::Result<Duration> {
        let mut longest = Duration::ZERO;
        for number in 1..=self.count {
            if self
                .full
                .as_ref()
                .is_some_and(|full| full.load(Ordering::Relaxed))
            {
                break;
            }
            let call_id = format!("call-{}-{task}-{number}", std::process::id());
            let started = Instant::now();
            let done = self.call(&call_id, started, &mut longest).await;
            match done {
                Err(error) if self.endures => {
                    say(&format!("error {error}"))?;
                    tokio::time::sleep(Duration::from_millis(if self.full.is_some() { 20 } else { 2 })).await;
                }
                done => done?,
            }
        }
        Ok(longest)
    }

    async fn call(&mut self, call_id: &str, started: Instant, longest: &mut Duration) -> anyhow::Result<()> {
        let request = books::call(&self.key, call_id, self.amount);
        let answer = books::reserve(&*self.ledger, request).await?;
        *longest = (*longest).max(started.elapsed());
        match answer {
            Ok(_) => say(&format!("granted {call_id}"))?,
            // A person has opened the ledger: keys have to be read again.
            Err(code) if code == "Stale" && self.full.is_some() => {
                self.key = books::key(&*self.ledger, &self.key.id, &[]).await?;
                return Ok(());
            }
            Err(code) => {
                if let Some(full) = &self.full {
                    full.store(true, Ordering::Relaxed);
                }
                return say(&format!("denied {code}"));
            }
        }
        if self.settles {
            self.ledger.settle(books::charged(call_id, self.amount)).await?;
            say(&format!("settled {call_id}"))?;
        }
        Ok(())
    }
}

fn say(line: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}
