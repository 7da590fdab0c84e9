//! What a read costs that counts in a budget, asked of the ledger in Redis and decided from a lease: nanoseconds for each
//! reserve and settle, and round trips and commands of the server for 1,000 calls. Prints; asserts nothing.
//!
//! `cargo bench -p keybrake-tests --bench leases`. Read the ratios: client and server share this machine.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::arithmetic_side_effects,
    reason = "a benchmark measures and prints; a failed unwrap is a failed benchmark"
)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keybrake::clock::Clock as _;
use keybrake::ledger::{BudgetRef, KeyRecord, Ledger, Proof, WindowKind};
use keybrake::{SystemClock, Usd};
use keybrake_testkit::redis::{RedisOptions, RedisServer};
use keybrake_tests::books;

const ROUNDS: usize = 5;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let server = RedisServer::start(RedisOptions::new()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let journal = directory.path().join("journal");
        println!("reads that count in one budget of calls per day; medians of {ROUNDS} rounds");
        println!(
            "{:<34}{:>12}{:>16}{:>16}",
            "", "ns/call", "round trips", "commands"
        );
        println!("{:<34}{:>12}{:>16}{:>16}", "", "", "/1,000 calls", "/1,000 calls");
        row(&server, &journal, "asked of the ledger", "", (2_000, None)).await;
        let leased = "&lease_ms=250";
        row(
            &server,
            &journal,
            "leased, one after the other",
            leased,
            (200_000, None),
        )
        .await;
        let spaced = Some(Duration::from_micros(500));
        row(
            &server,
            &journal,
            "leased, one each 0.5 ms",
            leased,
            (2_000, spaced),
        )
        .await;
    });
}

/// Calls one after the other, or one in each so much time.
async fn row(
    server: &RedisServer,
    journal: &Path,
    name: &str,
    options: &str,
    (calls, each): (u32, Option<Duration>),
) {
    let url = format!("{}?ns=bench&timeout_ms=20000{options}", server.url());
    let ledger = keybrake::lease::open(&url, Arc::new(SystemClock), Some(journal))
        .await
        .unwrap();
    let budget = books::calls("bench", WindowKind::Day, 1_000_000_000);
    let mut key = books::key(&*ledger, "vk_bench", std::slice::from_ref(&budget))
        .await
        .unwrap();
    key.budgets = vec![BudgetRef {
        def: budget,
        limit: None,
        enforce: true,
    }];
    spend(&*ledger, &key, 1_000, each).await;
    let mut rounds = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let before = commands(server);
        let took = spend(&*ledger, &key, calls, each).await;
        let after = commands(server);
        let per_thousand = |now: u64, then: u64| (now - then) * 1_000 / u64::from(calls);
        rounds.push((
            took.as_nanos() / u128::from(calls),
            per_thousand(after.0, before.0),
            per_thousand(after.1, before.1),
        ));
    }
    rounds.sort_unstable();
    let (nanos, trips, commands) = rounds.get(ROUNDS / 2).copied().unwrap();
    println!("{name:<34}{nanos:>12}{trips:>16}{commands:>16}");
    ledger.flush().await.unwrap();
}

/// The time that the calls themselves took.
async fn spend(ledger: &dyn Ledger, key: &KeyRecord, calls: u32, each: Option<Duration>) -> Duration {
    let mut took = Duration::ZERO;
    for _ in 0..calls {
        let request = books::read(key, &uuid(), SystemClock.now_ms());
        let begun = Instant::now();
        let grant = books::reserve(ledger, request).await.unwrap().unwrap();
        let proof = Proof::Charged { actual: Usd::ZERO };
        ledger
            .settle(books::settlement(&grant.call_id, proof))
            .await
            .unwrap();
        took += begun.elapsed();
        if let Some(each) = each {
            tokio::time::sleep(each).await;
        }
    }
    took
}

fn uuid() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NUMBER: AtomicU64 = AtomicU64::new(1);
    format!(
        "019aaaaa-0000-7000-8000-{:012x}",
        NUMBER.fetch_add(1, Ordering::Relaxed)
    )
}

/// Functions called, and all commands that ran, those in functions too.
fn commands(server: &RedisServer) -> (u64, u64) {
    let reply = server.command(&["INFO", "commandstats"]).unwrap();
    let mut sum = (0, 0);
    for line in reply.text().unwrap().lines() {
        let Some((name, rest)) = line
            .strip_prefix("cmdstat_")
            .and_then(|line| line.split_once(":calls="))
        else {
            continue;
        };
        let calls: u64 = rest.split(',').next().unwrap().parse().unwrap();
        sum.1 += calls;
        sum.0 += if name.starts_with("fcall") { calls } else { 0 };
    }
    sum
}
