//! What a decision costs: authorize + settle of one PaymentIntent, parsing included, on each embedded ledger,
//! beside a floor measured in the same run. Prints medians, 99th percentiles, CPU and ratios; asserts nothing.
//!
//! `make bench` runs it. Read the ratios, not the microseconds: they are what a busy machine leaves standing.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::float_arithmetic,
    clippy::as_conversions,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::cast_possible_truncation,
    reason = "a benchmark measures and prints; a failed unwrap is a failed benchmark"
)]

use std::collections::{BTreeMap, HashMap};
use std::io::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use keybrake::brake::{Brake, CallContext, Decision, KeyOrigin, SendEnd};
use keybrake::clock::{Clock, SystemClock};
use keybrake::facade::Keybrake;
use keybrake::policy::Policy;
use keybrake::request::Call;
use keybrake::secret::Secret;
use keybrake::vendors::Reply;
use rustix::time::{ClockId, clock_gettime};

const CALLS: usize = 20_000;
const POLICY: &str = r#"{"vendor": "stripe", "label": "bench", "daily_usd_cap": 900000000,
    "allowed_endpoints": ["payment_intents.create", "reads"]}"#;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    // `cargo bench --bench engine -- profile memory: 2000` runs one ledger alone, for a profiler.
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "profile") {
        let calls = arguments[at + 2].parse().unwrap();
        let sample = runtime.block_on(engine_of(&arguments[at + 1], 0, calls));
        return show(&arguments[at + 1], &sample, None);
    }
    runtime.block_on(async {
        println!("authorize + settle of payment_intents.create, one caller, {CALLS} calls\n");
        println!(
            "{:<34} {:>9} {:>9} {:>9} {:>8}",
            "", "p50 us", "p99 us", "cpu us", "ratio"
        );
        let floor = floor_memory();
        show("floor: mutex + two map updates", &floor, None);
        show("memory ledger", &engine("memory:", 0).await, Some(&floor));
        let folder = tempfile::tempdir().unwrap();
        let flush = floor_flush(folder.path());
        show("floor: 4 KiB append + fdatasync", &flush, None);
        let url = format!(
            "sqlite:{}",
            folder.path().join("bench").join("spend.db").display()
        );
        show(
            "sqlite ledger, flushed reserve",
            &engine(&url, 0).await,
            Some(&flush),
        );
        println!("\nreserve with live holds and keys (memory ledger; flat means at most 1.3)\n");
        let one = engine("memory:", 1).await;
        show("1 hold, 1 key", &one, None);
        for holds in [1_000, 100_000] {
            show(
                &format!("{holds} holds, {holds} keys"),
                &engine("memory:", holds).await,
                Some(&one),
            );
        }
    });
}

struct Sample {
    nanos: Vec<u64>,
    cpu_nanos: u64,
}

fn show(name: &str, sample: &Sample, floor: Option<&Sample>) {
    let at = |sample: &Sample, part: usize| {
        sample.nanos[(sample.nanos.len() * part / 1_000).min(sample.nanos.len() - 1)]
    };
    let micros = |nanos: u64| nanos as f64 / 1_000.0;
    let cpu = micros(sample.cpu_nanos) / sample.nanos.len() as f64;
    let ratio = floor.map_or(String::new(), |floor| {
        format!("{:.2}", at(sample, 500) as f64 / at(floor, 500) as f64)
    });
    println!(
        "{name:<34} {:>9.2} {:>9.2} {cpu:>9.2} {ratio:>8}",
        micros(at(sample, 500)),
        micros(at(sample, 990))
    );
}

fn measured(count: usize, mut one: impl FnMut(usize)) -> Sample {
    let cpu = cpu_nanos();
    let mut nanos: Vec<u64> = (0..count)
        .map(|n| {
            let start = Instant::now();
            one(n);
            start.elapsed().as_nanos() as u64
        })
        .collect();
    nanos.sort_unstable();
    Sample {
        nanos,
        cpu_nanos: cpu_nanos() - cpu,
    }
}

fn cpu_nanos() -> u64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The least that a ledger in memory could do.
fn floor_memory() -> Sample {
    let map: Mutex<HashMap<String, (i64, i64)>> = Mutex::default();
    measured(CALLS, |n| {
        for (used, held) in [(0, 1), (1, -1)] {
            let mut map = map.lock().unwrap();
            let counter = map.entry(format!("counter-{}", n % 16)).or_default();
            counter.0 += used;
            counter.1 += held;
        }
    })
}

/// The least that a durable ledger could do: one flushed append.
fn floor_flush(folder: &std::path::Path) -> Sample {
    let mut file = std::fs::File::create(folder.join("floor")).unwrap();
    let page = [7_u8; 4_096];
    measured(CALLS / 20, |_| {
        file.write_all(&page).unwrap();
        file.sync_data().unwrap();
    })
}

async fn engine(url: &str, live: usize) -> Sample {
    let calls = if url.starts_with("sqlite") {
        CALLS / 20
    } else {
        CALLS
    };
    engine_of(url, live, calls).await
}

async fn engine_of(url: &str, live: usize, count: usize) -> Sample {
    let keybrake = Keybrake::builder()
        .ledger(url)
        .secret("stripe", Secret::value("sk_test_bench"))
        .base_url("stripe", "http://127.0.0.1:9")
        .limits(keybrake::brake::Limits {
            max_open_holds: u32::MAX,
            ..Default::default()
        })
        .build()
        .await
        .unwrap();
    let policy = Policy::from_json(POLICY).unwrap();
    let key = keybrake.issue(policy.clone()).await.unwrap();
    for _ in 1..live {
        keybrake.issue(policy.clone()).await.unwrap();
    }
    for n in 0..live {
        let decision = keybrake
            .brake()
            .authorize(call(key.token.expose(), "hold", n), context())
            .await
            .unwrap();
        assert!(matches!(decision, Decision::Permit(_)), "{decision:?}");
    }
    let clock = SystemClock;
    let cpu = cpu_nanos();
    let mut nanos = Vec::with_capacity(count);
    for n in 0..count {
        let call = call(key.token.expose(), "call", n);
        let start = Instant::now();
        once(keybrake.brake(), call, n).await;
        nanos.push(start.elapsed().as_nanos() as u64);
    }
    let _ = clock.now_ms();
    nanos.sort_unstable();
    Sample {
        nanos,
        cpu_nanos: cpu_nanos() - cpu,
    }
}

async fn once(brake: &Arc<Brake>, call: Call, n: usize) {
    let Decision::Permit(permit) = brake.authorize(call, context()).await.unwrap() else {
        panic!("refused")
    };
    // Every intent is its own object, as at the vendor.
    let body = r#"{"id":"pi_@","object":"payment_intent","amount":100,"amount_capturable":0,"amount_received":100,
        "currency":"usd","status":"succeeded","latest_charge":"ch_1","metadata":{}}"#;
    let reply = Reply {
        status: 200,
        headers: vec![("request-id".to_owned(), "req_1".to_owned())],
        body: body.replace('@', &n.to_string()).into(),
    };
    let settled = brake.settle(*permit, SendEnd::Reply(reply)).await.unwrap();
    assert!(!settled.record.unrecorded);
}

fn context() -> CallContext {
    CallContext {
        key_origin: KeyOrigin::Caller,
        ..CallContext::default()
    }
}

fn call(token: &str, kind: &str, n: usize) -> Call {
    let headers = BTreeMap::from([
        ("Authorization", format!("Bearer {token}")),
        ("Content-Type", "application/x-www-form-urlencoded".to_owned()),
        ("Idempotency-Key", format!("{kind}-{n}")),
        ("Stripe-Version", "2026-10-28.endive".to_owned()),
    ]);
    Call {
        method: "POST".to_owned(),
        url: "https://api.stripe.com/v1/payment_intents".to_owned(),
        headers: headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        body: "amount=100&currency=usd&confirm=true&payment_method=pm_card_visa&customer=cus_1&description=order".into(),
    }
}
