//! A process that makes calls from leases until its budget is spent, it is stopped or it is killed.
//!
//! `lease_worker URL JOURNAL KEY` says `ready`, waits for a line, and then says `granted ID MS` for each call that it may
//! make, where MS is this machine's uptime when it asked; in the end `denied CODE` and, when everything is told, `end`.
//! `lease_worker URL JOURNAL KEY doomed` waits after `denied CODE` to be killed.
use std::io::{BufRead as _, Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use keybrake::clock::Clock as _;
use keybrake::ledger::Proof;
use keybrake::{SystemClock, Usd};
use keybrake_tests::books;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (url, journal, key, doomed) = match &args[..] {
        [url, journal, key] => (url, journal, key, false),
        [url, journal, key, doomed] if doomed == "doomed" => (url, journal, key, true),
        _ => anyhow::bail!("lease_worker URL JOURNAL KEY [doomed]"),
    };
    let ledger = keybrake::lease::open(url, Arc::new(SystemClock), Some(Path::new(journal))).await?;
    let key = books::key(&*ledger, key, &[]).await?;
    say("ready")?;
    std::io::stdin().lock().read_line(&mut String::new())?;
    for number in 0_u64.. {
        let id = format!("call-{}-{number}", std::process::id());
        let asked_ms = SystemClock.boot_ms();
        let mut request = books::read(&key, &id, SystemClock.now_ms());
        // What a killed process has under way is not waited for as long as for a request.
        request.hold_for_ms = 2_000;
        match books::reserve(&*ledger, request).await? {
            Ok(_) => say(&format!("granted {id} {asked_ms}"))?,
            // Others have leased what is left; they use it or give it back.
            Err(code) if code == "CapHeld" => {
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            }
            Err(code) => {
                say(&format!("denied {code}"))?;
                break;
            }
        }
        let proof = Proof::Charged { actual: Usd::ZERO };
        ledger.settle(books::settlement(&id, proof)).await?;
    }
    if doomed {
        std::io::stdin().read_to_end(&mut Vec::new())?;
    }
    ledger.flush().await?;
    say("end")
}

fn say(line: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}
