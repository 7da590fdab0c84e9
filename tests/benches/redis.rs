//! What a decision costs on the ledger in Redis, beside the floors of the same server in the same rounds: `PING`,
//! `INCRBY`, and functions that do nothing. Prints medians, 99th percentiles, the server's own time, the client's CPU
//! and the ratio to `PING`; asserts nothing.
//!
//! `make bench` runs it. Read the ratios, not the microseconds: client and server share this machine.
//! `cargo bench -p keybrake-tests --bench redis -- 1 growth` runs one number of tasks, and the growth, alone; `-- strict`
//! what it costs to wait for a replica.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::float_arithmetic,
    clippy::as_conversions,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    reason = "a benchmark measures and prints; a failed unwrap is a failed benchmark"
)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use keybrake::clock::{Clock as _, SystemClock};
use keybrake::ledger::{
    AdminNote, AmountAsk, Ask, BudgetDef, BudgetRef, CallFacts, ChargeAsk, IdentityAsk, IdentityKind,
    IssueKey, KeyRecord, Ledger, OnRepeat, Proof, ReplyFacts, ReserveAnswer, ReserveRequest, Scope,
    Settlement, TokenHash, Unit, WindowKind,
};
use keybrake::policy::window;
use keybrake::{SystemClock as Machine, Usd};
use keybrake_testkit::redis::{Connection, RedisOptions, RedisServer, Replicated};
use redis::aio::MultiplexedConnection;
use rustix::time::{ClockId, clock_gettime};
use tokio::task::JoinSet;

const ROUNDS: usize = 8;
/// Of one thing in one round.
const OPERATIONS: usize = 512;
const LIVE_HOLDS: usize = 10_000;
const KEYS: usize = 100_000;
const MICROS: i64 = 1_000_000;
const NOTHING: &str =
    "#!lua name=bench\nredis.register_function('bench_nothing', function() return 'ok' end)";

static NUMBER: AtomicU64 = AtomicU64::new(1);

fn main() {
    let asked: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    let wanted = |word: &str| asked.is_empty() || asked.iter().any(|one| one == word);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        for tasks in [1, 8, 64, 512] {
            if wanted(&tasks.to_string()) {
                decisions(tasks).await;
            }
        }
        if wanted("growth") {
            growth().await;
        }
        if wanted("strict") {
            for tasks in [1, 8, 64] {
                strict(tasks).await;
            }
        }
    });
}

/// One server, the ledger on it, and a connection of our own like the ledger's.
struct Bench {
    stats: Mutex<Connection>,
    ledger: Arc<dyn Ledger>,
    plain: MultiplexedConnection,
}

impl Bench {
    /// On a server of its own, which lives as long as what is answered.
    async fn new() -> (RedisServer, Self) {
        let server = RedisServer::start(RedisOptions::new()).unwrap();
        let bench = Self::on(&server, "").await;
        (server, bench)
    }

    async fn on(server: &RedisServer, options: &str) -> Self {
        let stats = server.connect().unwrap();
        server.command(&["FUNCTION", "LOAD", "REPLACE", NOTHING]).unwrap();
        let url = format!("{}?ns=bench&timeout_ms=20000{options}", server.url());
        let ledger = keybrake::ledger::open(&url, Arc::new(Machine)).unwrap();
        let client = redis::Client::open(server.url()).unwrap();
        let plain = client.get_multiplexed_async_connection().await.unwrap();
        Self {
            stats: Mutex::new(stats),
            ledger,
            plain,
        }
    }

    /// Calls of the functions and commands that are measured, and the microseconds that the server spent on them.
    fn spent(&self) -> (u64, u64) {
        let reply = self
            .stats
            .lock()
            .unwrap()
            .command(&["INFO", "commandstats"])
            .unwrap();
        let counted = [
            "cmdstat_ping:",
            "cmdstat_incrby:",
            "cmdstat_fcall:",
            "cmdstat_fcall_ro:",
        ];
        let mut sum = (0, 0);
        for line in reply.text().unwrap().lines() {
            let Some(rest) = counted.iter().find_map(|name| line.strip_prefix(name)) else {
                continue;
            };
            let number = |name: &str| -> u64 {
                let found = rest
                    .split(',')
                    .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
                found.unwrap().parse().unwrap()
            };
            sum.0 += number("calls");
            sum.1 += number("usec");
        }
        sum
    }

    async fn key(&self, name: &str, budgets: Vec<BudgetDef>) -> Arc<KeyRecord> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let budgets = budgets.into_iter().map(|def| BudgetRef {
            def,
            limit: None,
            enforce: true,
        });
        let key = KeyRecord {
            id: format!("vk_{number:024}"),
            token_hash: TokenHash(format!("{number:064x}")),
            policy_json:
                r#"{"vendor":"stripe","daily_usd_cap":900000,"allowed_endpoints":["refunds.create"]}"#
                    .to_owned(),
            ancestor_policies_json: Vec::new(),
            version: 0,
            lineage: name.to_owned(),
            agent: Some(name.to_owned()),
            label: None,
            run: Some(format!("run_{name}")),
            groups: Vec::new(),
            ancestors: Vec::new(),
            budgets: budgets.collect(),
            issued_at_ms: 0,
            expires_at_ms: 0,
            revoked_at_ms: None,
            metadata: serde_json::Map::new(),
        };
        let issue = IssueKey {
            key,
            expires_in_ms: Some(86_400_000),
            attribution_only: Vec::new(),
            admin: AdminNote::default(),
        };
        Arc::new(self.ledger.issue_key(issue).await.unwrap())
    }
}

/// The first `count` budgets of a key, or one of a rolling window.
fn budgets(name: &str, count: usize) -> Vec<BudgetDef> {
    let lineage = || Scope::Lineage(name.to_owned());
    let all = [
        (lineage(), Unit::Usd, WindowKind::Day),
        (lineage(), Unit::Calls, WindowKind::Day),
        (Scope::Run(format!("run_{name}")), Unit::Usd, WindowKind::Run),
        (lineage(), Unit::Usd, WindowKind::Month),
        (lineage(), Unit::Calls, WindowKind::Hour),
        (lineage(), Unit::Writes, WindowKind::Day),
    ];
    all.into_iter()
        .take(count)
        .map(|(scope, unit, window)| budget(scope, unit, window))
        .collect()
}

fn rolling(name: &str) -> Vec<BudgetDef> {
    vec![budget(
        Scope::Lineage(name.to_owned()),
        Unit::Usd,
        WindowKind::Rolling24h,
    )]
}

fn budget(scope: Scope, unit: Unit, window: WindowKind) -> BudgetDef {
    BudgetDef {
        vendor: Some("stripe".to_owned()),
        scope,
        unit,
        window,
        timezone: "UTC".to_owned(),
        cap: 900_000_000 * MICROS,
    }
}

/// A refund as the engine asks for it: a caller's key, ids and hashes of the usual lengths.
fn request(key: &KeyRecord, number: u64) -> ReserveRequest {
    let usd = Usd::from_micros(MICROS);
    let now_ms = SystemClock.now_ms();
    let charges = key.budgets.iter().map(|budget| ChargeAsk {
        budget: budget.def.id(),
        customer: None,
        unit: budget.def.unit,
        amount: if budget.def.unit == Unit::Usd { MICROS } else { 1 },
        limit: None,
        enforce: true,
        window: window::current(budget.def.window, "UTC", now_ms).unwrap(),
    });
    ReserveRequest {
        facts: Arc::new(CallFacts {
            call_id: format!("0199f3a0-0000-7000-8000-{number:012}"),
            key_id: Some(key.id.clone()),
            key_version: key.version,
            vendor: Some("stripe".to_owned()),
            operation: "refunds.create".to_owned(),
            livemode: true,
            agent: key.agent.clone(),
            run: key.run.clone(),
            customer: Some("cus_NffrFeUfNV2Hib".to_owned()),
            direction: -1,
            moves_money: true,
            ..CallFacts::default()
        }),
        identity: Some(Arc::new(IdentityAsk {
            id: format!("{number:064x}"),
            kind: IdentityKind::CallerKey,
            content_id: format!("{:064x}", number + (1 << 40)),
            fields: vec![
                ("amount".to_owned(), "100".to_owned()),
                ("charge".to_owned(), format!("ch_{number:024}")),
            ],
            wire: format!("{:064x}", number + (1 << 41)),
            caller_key: Some(format!("refund-{number}")),
            on_repeat: OnRepeat::Replay,
            remember_ms: 30 * 86_400_000,
            max_generations: 5,
        })),
        ask: Ask::Amount(AmountAsk {
            usd,
            charges: charges.collect(),
            ..AmountAsk::default()
        }),
        hold_for_ms: 3_600_000,
        max_open_holds: 1_000_000,
    }
}

async fn reserve(ledger: &dyn Ledger, request: ReserveRequest) {
    match ledger.reserve(request).await.unwrap() {
        ReserveAnswer::Granted(_) => {}
        other => panic!("not granted: {other:?}"),
    }
}

async fn settle(ledger: &dyn Ledger, call_id: String) {
    let settlement = Settlement {
        call_id,
        attempt: 1,
        proof: Proof::Charged {
            actual: Usd::from_micros(MICROS),
        },
        object: None,
        reply: None,
        facts: ReplyFacts {
            status_code: Some(200),
            vendor_request_id: Some("req_Tf3xDDeVgLFqyh".to_owned()),
            vendor_object: Some("re_3MmlLrLkdIwHu7ix0uke3Ezy".to_owned()),
            latency_ms: Some(212),
            ..ReplyFacts::default()
        },
    };
    ledger.settle(settlement).await.unwrap();
}

/// What was measured of one thing, over all rounds.
#[derive(Default)]
struct Sample {
    nanos: Vec<u64>,
    cpu_nanos: u64,
    calls: u64,
    server_micros: u64,
}

impl Sample {
    fn at(&mut self, part: usize) -> f64 {
        self.nanos.sort_unstable();
        let index = (self.nanos.len() * part / 1_000).min(self.nanos.len() - 1);
        self.nanos[index] as f64 / 1_000.0
    }
}

fn cpu_nanos() -> u64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Does `one` for every item, by so many tasks at once, and adds what it took to the sample.
async fn measure<I, F, W>(bench: &Bench, sample: &mut Sample, tasks: usize, items: Vec<I>, one: F)
where
    I: Send + 'static,
    F: Fn(I) -> W + Clone + Send + 'static,
    W: Future<Output = ()> + Send,
{
    let (calls, micros) = bench.spent();
    let cpu = cpu_nanos();
    let mut parts: Vec<Vec<I>> = (0..tasks).map(|_| Vec::new()).collect();
    for (index, item) in items.into_iter().enumerate() {
        parts[index % tasks].push(item);
    }
    let mut set = JoinSet::new();
    for part in parts {
        let one = one.clone();
        set.spawn(async move {
            let mut nanos = Vec::with_capacity(part.len());
            for item in part {
                let start = Instant::now();
                one(item).await;
                nanos.push(start.elapsed().as_nanos() as u64);
            }
            nanos
        });
    }
    for nanos in set.join_all().await {
        sample.nanos.extend(nanos);
    }
    sample.cpu_nanos += cpu_nanos() - cpu;
    let (calls_after, micros_after) = bench.spent();
    sample.calls += calls_after - calls;
    sample.server_micros += micros_after - micros;
}

/// A command of our own.
async fn plain(bench: &Bench, sample: &mut Sample, tasks: usize, command: &redis::Cmd) {
    let items = vec![(); OPERATIONS.max(tasks)];
    let (connection, command) = (bench.plain.clone(), command.clone());
    measure(bench, sample, tasks, items, move |()| {
        let (mut connection, command) = (connection.clone(), command.clone());
        async move {
            connection.send_packed_command(&command).await.unwrap();
        }
    })
    .await;
}

/// Reserves for all items, then settlements of them.
async fn pairs(bench: &Bench, samples: (&mut Sample, &mut Sample), tasks: usize, key: &Arc<KeyRecord>) {
    let count = OPERATIONS.max(tasks);
    let first = NUMBER.fetch_add(count as u64, Ordering::Relaxed);
    let numbers = first..first + count as u64;
    let requests: Vec<ReserveRequest> = numbers.map(|number| request(key, number)).collect();
    let ids: Vec<String> = requests.iter().map(|one| one.facts.call_id.clone()).collect();
    let ledger = Arc::clone(&bench.ledger);
    measure(bench, samples.0, tasks, requests, move |request| {
        let ledger = Arc::clone(&ledger);
        async move { reserve(&*ledger, request).await }
    })
    .await;
    let ledger = Arc::clone(&bench.ledger);
    measure(bench, samples.1, tasks, ids, move |id| {
        let ledger = Arc::clone(&ledger);
        async move { settle(&*ledger, id).await }
    })
    .await;
}

/// A function that does nothing, with that many bytes of arguments in as many words as a reserve has.
fn nothing(bytes: usize) -> redis::Cmd {
    let mut command = redis::cmd("FCALL");
    command.arg("bench_nothing").arg(14);
    for key in 0..14 {
        command.arg(format!("kb:{{bench}}:{key:020}"));
    }
    for _ in 0..80 {
        command.arg("x".repeat(bytes / 80));
    }
    command
}

async fn decisions(tasks: usize) {
    let (server, bench) = Bench::new().await;
    let mut increment = redis::cmd("INCRBY");
    increment.arg("bench").arg(17);
    let floors = [
        ("PING", redis::cmd("PING")),
        ("INCRBY", increment),
        ("FCALL of nothing", nothing(0)),
        ("FCALL of nothing, 4 KB", nothing(4_000)),
    ];
    let mut keys = Vec::new();
    for count in [1, 3, 6] {
        let name = format!("b{count}");
        let key = bench.key(&name, budgets(&name, count)).await;
        keys.push((format!("{count} budgets"), key));
    }
    keys.push((
        "rolling window".to_owned(),
        bench.key("roll", rolling("roll")).await,
    ));

    let mut plain_samples: Vec<Sample> = floors.iter().map(|_| Sample::default()).collect();
    let mut samples: Vec<(Sample, Sample)> = keys.iter().map(|_| Default::default()).collect();
    for round in 0..=ROUNDS {
        for ((_, command), sample) in floors.iter().zip(&mut plain_samples) {
            plain(&bench, sample, tasks, command).await;
        }
        for ((_, key), (reserves, settles)) in keys.iter().zip(&mut samples) {
            pairs(&bench, (reserves, settles), tasks, key).await;
        }
        if round == 0 {
            // The first warms up.
            plain_samples.fill_with(Sample::default);
            samples.fill_with(Default::default);
        }
    }
    heading(
        &format!(
            "{tasks} tasks on one connection, {ROUNDS} rounds of {}",
            OPERATIONS.max(tasks)
        ),
        "PING",
    );
    let floor = plain_samples[0].at(500);
    for ((name, _), mut sample) in floors.iter().zip(plain_samples) {
        show(name, &mut sample, floor);
    }
    for ((name, _), (mut reserves, mut settles)) in keys.iter().zip(samples) {
        show(&format!("reserve, {name}"), &mut reserves, floor);
        show(&format!("settle, {name}"), &mut settles, floor);
        let (reserve, settle) = (reserves.at(500), settles.at(500));
        println!(
            "{:<34} {:>9.1} {:>53.2}",
            format!("reserve + settle, {name}"),
            reserve + settle,
            (reserve + settle) / floor
        );
    }
    drop(server);
}

/// The same calls with a replica that copies asynchronously and with one that is waited for (`replicas=1`), in turns, on
/// one primary.
async fn strict(tasks: usize) {
    let mut pair = Replicated::start(&RedisOptions::new()).unwrap();
    let mut sides = Vec::new();
    for (name, options) in [("asynchronous", ""), ("strict", "&replicas=1")] {
        let bench = Bench::on(pair.primary(), options).await;
        let key = bench.key(name, budgets(name, 3)).await;
        sides.push((name, bench, key, Sample::default(), Sample::default()));
    }
    for round in 0..=ROUNDS {
        for (_, bench, key, reserves, settles) in &mut sides {
            if round == 1 {
                (*reserves, *settles) = Default::default();
            }
            pairs(bench, (reserves, settles), tasks, key).await;
        }
    }
    heading(
        &format!("a replica, 3 budgets, {tasks} tasks on one connection"),
        "async",
    );
    let floors = (sides[0].3.at(500), sides[0].4.at(500));
    for (name, _, _, mut reserves, mut settles) in sides {
        show(&format!("reserve, {name}"), &mut reserves, floors.0);
        show(&format!("settle, {name}"), &mut settles, floors.1);
    }
}

/// The same calls on an empty ledger and on a full one, in turns. Flat means at most 1.3.
async fn growth() {
    let ((_small, small), (_large, large)) = (Bench::new().await, Bench::new().await);
    fill(&large).await;
    let mut keys = Vec::new();
    for bench in [&small, &large] {
        keys.push(bench.key("b3", budgets("b3", 3)).await);
    }
    let mut samples: Vec<(Sample, Sample)> = vec![Default::default(), Default::default()];
    for round in 0..=ROUNDS {
        for ((bench, key), (reserves, settles)) in [&small, &large].into_iter().zip(&keys).zip(&mut samples) {
            pairs(bench, (reserves, settles), 1, key).await;
        }
        if round == 0 {
            samples.fill_with(Default::default);
        }
    }
    heading("growth, 3 budgets, 1 task (flat means at most 1.3)", "empty");
    let (mut reserve_floor, mut settle_floor) = (0.0, 0.0);
    let names = [
        "empty ledger".to_owned(),
        format!("{LIVE_HOLDS} holds, {KEYS} keys"),
    ];
    for (index, (name, (mut reserves, mut settles))) in names.iter().zip(samples).enumerate() {
        if index == 0 {
            (reserve_floor, settle_floor) = (reserves.at(500), settles.at(500));
        }
        show(&format!("reserve, {name}"), &mut reserves, reserve_floor);
        show(&format!("settle, {name}"), &mut settles, settle_floor);
    }
}

async fn fill(bench: &Bench) {
    const AT_ONCE: usize = 64;
    let key = bench.key("live", budgets("live", 3)).await;
    let first = NUMBER.fetch_add(LIVE_HOLDS as u64, Ordering::Relaxed);
    for chunk in (first..first + LIVE_HOLDS as u64)
        .collect::<Vec<_>>()
        .chunks(AT_ONCE)
    {
        let mut set = JoinSet::new();
        for number in chunk {
            let (ledger, request) = (Arc::clone(&bench.ledger), request(&key, *number));
            set.spawn(async move { reserve(&*ledger, request).await });
        }
        set.join_all().await;
    }
    let bench = &bench;
    for at in 0..KEYS {
        bench.key(&format!("k{}", at % 1_000), Vec::new()).await;
    }
}

fn heading(text: &str, floor: &str) {
    println!("\n{text}\n");
    println!(
        "{:<34} {:>9} {:>9} {:>10} {:>10} {:>10} {:>9}",
        "",
        "p50 us",
        "p99 us",
        "server us",
        "calls/op",
        "client us",
        format!("x {floor}")
    );
}

fn show(name: &str, sample: &mut Sample, floor: f64) {
    let (p50, p99) = (sample.at(500), sample.at(990));
    let count = sample.nanos.len() as f64;
    println!(
        "{name:<34} {p50:>9.1} {p99:>9.1} {:>10.1} {:>10.2} {:>10.1} {:>9.2}",
        sample.server_micros as f64 / sample.calls.max(1) as f64,
        sample.calls as f64 / count,
        sample.cpu_nanos as f64 / 1_000.0 / count,
        p50 / floor
    );
}
