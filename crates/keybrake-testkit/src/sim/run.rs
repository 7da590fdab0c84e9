//! One run: who is there, what goes wrong, and how it ends.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keybrake::error::ErrorKind;
use keybrake::ledger::redis::RedisLedger;
use keybrake::ledger::{
    AdminNote, BudgetDef, BudgetRef, IssueKey, KeyRecord, Ledger as _, Scope, StopScope, TokenHash, Unit,
    WindowKind,
};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::books::Cap;
use super::client::{Client, Intent, Key};
use super::mutants::Mutant;
use super::process::{Process, passed_ms};
use super::rng::Rng;
use super::vendor::Habits;
use super::world::{Endpoint, TIMEOUT, Weather, World};

const MASTER: &[u8] = b"a master key of the simulation!!";
const DAY_MS: i64 = 86_400_000;
/// 2026-03-10 00:00:00 UTC.
const MIDNIGHT_MS: i64 = 1_773_100_800_000;

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Everything left to chance comes from it.
    pub seed: u64,
    /// A mistake built into the ledger.
    pub mutant: Option<Mutant>,
    /// Whether to write down what happens.
    pub trace: bool,
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was not as it must be, and when.
    pub violation: Option<String>,
    /// What happened, if it was to be written down.
    pub trace: Vec<String>,
    /// How often what happened.
    pub counts: BTreeMap<&'static str, u64>,
    /// Simulated time, in milliseconds.
    pub simulated_ms: i64,
}

/// Runs a seed to its end, or to the first violation.
pub fn run(options: &Options) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime of one thread");
    runtime.block_on(async {
        let plan = Plan::draw(Arc::new(Rng::new(options.seed)));
        let world = plan.world(options);
        world.count("runs");
        fleet(&world, &plan).await;
        Outcome {
            violation: world.violation(),
            trace: world.trace(),
            counts: world.counts.lock().unwrap().by_name.clone(),
            simulated_ms: passed_ms(world.begun),
        }
    })
}

/// What a seed makes of the run, before it begins.
#[derive(Debug)]
struct Plan {
    rng: Arc<Rng>,
    weather: Weather,
    habits: Habits,
    processes: u64,
    tasks: u64,
    tries: u64,
    mean_awaits: Option<u64>,
    intents: Vec<Intent>,
    restarts: u64,
    failovers: u64,
    server_jumps: u64,
    stops: u64,
    base_ms: i64,
}

impl Plan {
    fn draw(rng: Arc<Rng>) -> Self {
        let calm = rng.chance(150);
        let now_and_then = |most: u64| {
            if calm || rng.chance(400) {
                0
            } else {
                rng.below(most + 1)
            }
        };
        let count = rng.between(6, 24);
        let contents = rng.between(2, count);
        let amounts: Vec<i64> = (0..contents)
            .map(|_| i64::try_from(rng.between(1, 40)).unwrap() * 500_000)
            .collect();
        let intents = (0..count).map(|number| {
            let content = rng.below(contents);
            Intent {
                number,
                key: usize::try_from(content % 2).unwrap(),
                micros: amounts[usize::try_from(content).unwrap()],
                content,
            }
        });
        Self {
            intents: intents.collect(),
            weather: Weather {
                lost: now_and_then(150),
                twice: now_and_then(150),
                late: now_and_then(300),
                late_ms: *rng.pick(&[200, 600, 2_000, 20_000]),
                usual_ms: rng.between(1, 60),
            },
            habits: Habits {
                slow: now_and_then(300),
                refuses: now_and_then(250),
                declines: now_and_then(200),
                breaks: now_and_then(200),
                accepts: now_and_then(200),
            },
            processes: rng.between(1, 4),
            tasks: rng.between(1, 3),
            tries: rng.between(1, 4),
            mean_awaits: (!calm && rng.chance(700)).then(|| rng.between(15, 300)),
            restarts: now_and_then(3),
            failovers: now_and_then(2),
            server_jumps: now_and_then(2),
            stops: now_and_then(2),
            base_ms: MIDNIGHT_MS
                + match rng.below(3) {
                    0 => DAY_MS - 300_000,
                    _ => DAY_MS / 2,
                },
            rng,
        }
    }

    fn world(&self, options: &Options) -> Arc<World> {
        World::new(
            Arc::clone(&self.rng),
            self.base_ms,
            self.weather,
            self.habits,
            (options.mutant, options.trace),
        )
    }
}

/// By whom the simulation's administrative acts are done.
fn note(reason: &str) -> AdminNote {
    AdminNote {
        by: "operator".to_owned(),
        reason: reason.to_owned(),
    }
}

async fn fleet(world: &Arc<World>, plan: &Plan) {
    let Some(operator) = set_up(world, plan).await else {
        return;
    };
    let todo = Arc::new(Mutex::new(todo(plan)));
    let mut all = JoinSet::new();
    for _ in 0..plan.processes {
        all.spawn(keep_running(
            operator.clone(),
            Arc::clone(&todo),
            (plan.tasks, plan.mean_awaits),
        ));
    }
    let mut around = JoinSet::new();
    around.spawn(trouble(
        Arc::clone(world),
        [plan.restarts, plan.failovers, plan.server_jumps],
    ));
    around.spawn(stops(operator.clone(), plan.stops));
    around.spawn(tend(operator.clone()));
    let work = async { while all.join_next().await.is_some_and(|ended| ended.is_ok()) {} };
    let minutes = Duration::from_secs(plan.rng.between(600, 2_400));
    tokio::select! {
        biased;
        () = world.ended.notified() => {}
        ended = timeout(minutes, work) => drop(ended),
    }
    all.shutdown().await;
    around.shutdown().await;
    if world.violation().is_none() {
        finish(&operator).await;
    }
}

fn todo(plan: &Plan) -> Vec<Intent> {
    let mut todo = Vec::new();
    for intent in &plan.intents {
        for _ in 0..plan.rng.between(1, plan.tries) {
            todo.push(intent.clone());
        }
    }
    todo
}

fn budget(scope: &str, unit: Unit, window: WindowKind, cap: i64) -> BudgetDef {
    BudgetDef {
        vendor: Some("stripe".to_owned()),
        scope: Scope::Lineage(scope.to_owned()),
        unit,
        window,
        timezone: "UTC".to_owned(),
        cap,
    }
}

/// Makes the ledger, its budgets and keys, over a network without faults.
async fn set_up(world: &Arc<World>, plan: &Plan) -> Option<Client> {
    let total: i64 = plan.intents.iter().map(|intent| intent.micros).sum();
    let rng = &plan.rng;
    let share =
        |percent_from: u64, upto: u64| total / 100 * i64::try_from(rng.between(percent_from, upto)).unwrap();
    let shared = budget(
        "team",
        Unit::Usd,
        WindowKind::Lifetime,
        share(30, 120).max(1_000_000),
    );
    let budgets = [
        vec![
            shared.clone(),
            budget("a", Unit::Usd, WindowKind::Day, share(20, 80).max(1_000_000)),
            budget(
                "a",
                Unit::Calls,
                WindowKind::Day,
                i64::try_from(rng.between(3, 30)).unwrap(),
            ),
        ],
        vec![
            shared.clone(),
            budget(
                "b",
                Unit::Usd,
                WindowKind::Rolling24h,
                share(20, 80).max(1_000_000),
            ),
        ],
    ];
    {
        let mut books = world.books.lock().unwrap();
        books.total_cap = shared.cap;
        let caps = budgets.iter().flatten().map(|def| Cap {
            family: format!("{}|live", def.id().0),
            most: def.cap,
            money: def.unit == Unit::Usd,
            rolling: def.window == WindowKind::Rolling24h,
        });
        books.caps = caps.collect();
    }
    let process = Process::new(world.number(), world.begun, world.base_ms, rng, None);
    let endpoint = Endpoint {
        world: Arc::clone(world),
        process: Arc::clone(&process),
        reliable: true,
    };
    let opened = RedisLedger::over(Arc::new(endpoint), TIMEOUT, process.clone(), Some(MASTER)).await;
    let ledger = match opened {
        Ok(ledger) => Arc::new(ledger),
        Err(error) => {
            world.check(Err(format!("the ledger cannot be made: {error}")));
            return None;
        }
    };
    let mut keys = Vec::new();
    for (index, (lineage, budgets)) in ["a", "b"].into_iter().zip(budgets).enumerate() {
        match ledger.issue_key(issue(index, lineage, &budgets)).await {
            Ok(key) => keys.push(Key {
                id: key.id,
                lineage,
                version: AtomicI64::new(i64::try_from(key.version).unwrap()),
                budgets,
            }),
            Err(error) => world.check(Err(format!("no key can be issued: {error}"))),
        }
    }
    Some(Client {
        world: Arc::clone(world),
        process,
        ledger,
        keys: Arc::new(keys),
    })
}

fn issue(index: usize, lineage: &str, budgets: &[BudgetDef]) -> IssueKey {
    let budgets = budgets.iter().map(|def| BudgetRef {
        def: def.clone(),
        limit: None,
        enforce: true,
    });
    IssueKey {
        key: KeyRecord {
            id: format!("vk_{index}"),
            token_hash: TokenHash(format!("{index:064x}")),
            policy_json: r#"{"vendor":"stripe"}"#.to_owned(),
            ancestor_policies_json: Vec::new(),
            version: 0,
            lineage: lineage.to_owned(),
            agent: Some(lineage.to_owned()),
            label: None,
            run: Some("run_1".to_owned()),
            groups: Vec::new(),
            ancestors: Vec::new(),
            budgets: budgets.collect(),
            issued_at_ms: 0,
            expires_at_ms: 0,
            revoked_at_ms: None,
            metadata: serde_json::Map::new(),
        },
        expires_in_ms: Some(30 * DAY_MS),
        attribution_only: Vec::new(),
        admin: note("simulation"),
    }
}

/// A process, and another one whenever it was killed, until nothing is left to do.
async fn keep_running(
    operator: Client,
    todo: Arc<Mutex<Vec<Intent>>>,
    (tasks, mean_awaits): (u64, Option<u64>),
) {
    let world = &operator.world;
    while !world.is_over() && !todo.lock().unwrap().is_empty() {
        let process = Process::new(
            world.number(),
            world.begun,
            world.base_ms,
            &world.rng,
            mean_awaits,
        );
        if world.rng.chance(400) {
            let off_ms = i64::try_from(world.rng.below(240_000)).unwrap() - 120_000;
            process.wall_off_ms.store(off_ms, Ordering::SeqCst);
        }
        let life = live(operator.clone(), Arc::clone(&process), Arc::clone(&todo), tasks);
        Arc::clone(&process).run(Box::pin(life)).await;
        if process.dead() {
            world.count("killed");
            world.tell(|| format!("p{} is dead", process.number));
        }
        process.kill();
        sleep(Duration::from_millis(world.rng.between(1, 20_000))).await;
    }
}

async fn live(operator: Client, process: Arc<Process>, todo: Arc<Mutex<Vec<Intent>>>, tasks: u64) {
    let world = &operator.world;
    let endpoint = Arc::new(Endpoint {
        world: Arc::clone(world),
        process: Arc::clone(&process),
        reliable: false,
    });
    let Ok(ledger) = RedisLedger::over(endpoint, TIMEOUT, process.clone(), Some(MASTER)).await else {
        return;
    };
    let client = Client {
        world: Arc::clone(world),
        process: Arc::clone(&process),
        ledger: Arc::new(ledger),
        keys: Arc::clone(&operator.keys),
    };
    let mut running = JoinSet::new();
    for _ in 0..tasks {
        let work = work(client.clone(), Arc::clone(&todo));
        running.spawn(Arc::clone(&process).run(Box::pin(work)));
    }
    let mut beside = JoinSet::new();
    beside.spawn(Arc::clone(&process).run(Box::pin(resolve(client.clone()))));
    while let Some(ended) = running.join_next().await {
        if let Err(panicked) = ended
            && panicked.is_panic()
        {
            world.check(Err(format!("a client panicked: {panicked}")));
        }
    }
}

async fn work(client: Client, todo: Arc<Mutex<Vec<Intent>>>) {
    let world = &client.world;
    while !world.is_over() {
        let next = {
            let mut todo = todo.lock().unwrap();
            let count = todo.len() as u64;
            if count == 0 {
                return;
            }
            todo.swap_remove(usize::try_from(world.rng.below(count)).unwrap())
        };
        if world.rng.chance(80) {
            // Its caller loses patience.
            let patience = Duration::from_millis(world.rng.below(4_000));
            if timeout(patience, client.attempt(&next)).await.is_err() {
                world.count("cancelled");
                world.tell(|| format!("p{} intent {} cancelled", client.process.number, next.number));
            }
        } else {
            client.attempt(&next).await;
        }
        if world.rng.chance(50) {
            let off_ms = i64::try_from(world.rng.below(600_000)).unwrap() - 300_000;
            client.process.wall_off_ms.store(off_ms, Ordering::SeqCst);
            world.count("client clock set");
        }
        sleep(Duration::from_millis(world.rng.below(15_000))).await;
    }
}

/// Reconciliation beside the calls.
async fn resolve(client: Client) {
    let world = Arc::clone(&client.world);
    let most_ms = *world.rng.pick(&[2_000, 20_000, 240_000]);
    while !world.is_over() {
        sleep(Duration::from_millis(world.rng.between(500, most_ms))).await;
        drop(client.reconcile().await);
    }
}

/// Restarts, failovers, and jumps of the server's clock.
async fn trouble(world: Arc<World>, [restarts, failovers, jumps]: [u64; 3]) {
    let mut events: Vec<u8> = Vec::new();
    for (kind, count) in [(0, restarts), (1, failovers), (2, jumps)] {
        events.extend((0..count).map(|_| kind));
    }
    while !events.is_empty() {
        let index = usize::try_from(world.rng.below(events.len() as u64)).unwrap();
        sleep(Duration::from_millis(world.rng.between(1, 60_000))).await;
        match events.swap_remove(index) {
            0 => {
                world.go_down();
                sleep(Duration::from_millis(world.rng.below(5_000))).await;
                world.start_again(None);
                world.count("restarts");
                world.tell(|| "the server has restarted".to_owned());
            }
            1 => {
                let replica = world.copy();
                sleep(Duration::from_millis(world.rng.below(1_500))).await;
                world.go_down();
                sleep(Duration::from_millis(world.rng.below(5_000))).await;
                world.start_again(Some(replica));
                world.count("failovers");
                world.tell(|| "a replica has taken over".to_owned());
            }
            _ => {
                let by_ms = match world.rng.below(3) {
                    0 => i64::try_from(world.rng.below(800)).unwrap() - 400,
                    1 => i64::try_from(world.rng.below(400_000)).unwrap() - 200_000,
                    _ => i64::try_from(world.rng.between(310_000, 1_200_000)).unwrap(),
                };
                world.server_off_ms.fetch_add(by_ms, Ordering::SeqCst);
                world.count("server clock set");
                world.tell(|| format!("the server's clock moves by {by_ms} ms"));
            }
        }
    }
}

/// Stops everything for a while.
async fn stops(operator: Client, count: u64) {
    let world = &operator.world;
    for _ in 0..count {
        sleep(Duration::from_millis(world.rng.between(1, 120_000))).await;
        if operator
            .ledger
            .stop(StopScope::All, note("simulation"))
            .await
            .is_err()
        {
            continue;
        }
        world.books.lock().unwrap().stopped = true;
        world.count("stops");
        world.tell(|| "everything is stopped".to_owned());
        sleep(Duration::from_millis(world.rng.between(1, 30_000))).await;
        loop {
            world.books.lock().unwrap().stopped = false;
            if operator
                .ledger
                .resume(&StopScope::All, note("simulation"))
                .await
                .is_ok()
            {
                break;
            }
            sleep(Duration::from_secs(5)).await;
        }
    }
}

/// A person who looks after the ledger now and then.
async fn tend(operator: Client) {
    loop {
        sleep(Duration::from_millis(operator.world.rng.between(20_000, 120_000))).await;
        if look_after(&operator).await {
            drop(operator.reconcile().await);
        }
    }
}

/// Opens a ledger that nobody else opened, and accepts a clock that jumped.
async fn look_after(operator: &Client) -> bool {
    let world = &operator.world;
    match operator.ledger.sweep(100).await {
        Ok(_) => true,
        Err(error) if error.kind() == ErrorKind::LedgerRecovering => {
            world.count("opened by hand");
            let opened = operator.ledger.open_by_hand(note("simulation")).await;
            world.tell(|| format!("opened by hand: {opened:?}"));
            false
        }
        Err(error) => {
            world.tell(|| format!("the operator meets: {error}"));
            if error.to_string().contains("jumped") {
                world.count("clock accepted");
                let accepted = operator.ledger.accept_clock(note("simulation")).await;
                world.tell(|| format!("the clock is accepted: {accepted:?}"));
            }
            false
        }
    }
}

/// Everything is mended and delivered, every open call is asked about; then the books are the journal.
async fn finish(operator: &Client) {
    let world = &operator.world;
    *world.weather.lock().unwrap() = Weather::FINE;
    world.start_again(None);
    world.server_off_ms.store(0, Ordering::SeqCst);
    world.books.lock().unwrap().stopped = false;
    sleep(Duration::from_secs(400)).await;
    let begun = Instant::now();
    let mut open = None;
    while begun.elapsed() < Duration::from_hours(8) && world.violation().is_none() {
        sleep(Duration::from_mins(10)).await;
        if !look_after(operator).await {
            continue;
        }
        match operator.reconcile().await {
            Ok(0) => {
                open = Some(0);
                break;
            }
            Ok(more) => open = Some(more),
            Err(error) => world.tell(|| format!("reconciliation meets: {error}")),
        }
    }
    if open != Some(0) {
        world.check(Err(format!("after eight hours {open:?} calls are still open")));
    }
    world.close_books();
    match operator.ledger.verify().await {
        Ok(report) if report.chain_ok && report.differences.is_empty() => {}
        other => world.check(Err(format!("the ledger cannot be verified: {other:?}"))),
    }
}
