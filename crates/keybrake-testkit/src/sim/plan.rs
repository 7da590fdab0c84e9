//! What a seed makes of a run before it begins: who is there, what they want, what goes wrong; and the ledger, its budgets
//! and its keys.

use std::sync::Arc;
use std::time::Duration;

use keybrake::ledger::{AdminNote, BudgetDef, BudgetRef, IssueKey, KeyRecord, Scope, Unit, WindowKind};
use keybrake::token::Token;

use super::books::Cap;
use super::client::{Client, Key};
use super::intents::{Content, Intent, What};
use super::process::Process;
use super::rng::Rng;
use super::run::Options;
use super::vendor::{Habits, Vendor};
use super::world::{TrueTime, Weather, World};
use crate::stripe::in_process::InProcess;
use crate::stripe::{Seed, SeedCharge};

const DAY_MS: i64 = 86_400_000;
/// 2026-03-10 00:00:00 UTC.
const MIDNIGHT_MS: i64 = 1_773_100_800_000;
/// A cent in micro-USD.
const CENT: i64 = 10_000;

/// What a seed makes of the run, before it begins.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) rng: Arc<Rng>,
    weather: Weather,
    timeout_ms: u64,
    habits: Habits,
    pub(super) loopback: bool,
    pub(super) processes: u64,
    pub(super) tasks: u64,
    pub(super) tries: u64,
    pub(super) mean_awaits: Option<u64>,
    pub(super) intents: Vec<Intent>,
    pub(super) restarts: u64,
    pub(super) failovers: u64,
    pub(super) server_jumps: u64,
    pub(super) stops: u64,
    base_ms: i64,
}

impl Plan {
    pub(super) fn draw(rng: Arc<Rng>) -> Self {
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
        let (waits, declines) = (now_and_then(400), now_and_then(300));
        let contents: Vec<Content> = (0..contents)
            .map(|number| Content::draw(&rng, number, waits, declines))
            .collect();
        let named = if rng.chance(700) { 1_000 } else { 500 };
        let timeout_ms = *rng.pick(&[150, 400, 1_000]);
        let intents: Vec<Intent> = (0..count)
            .map(|number| {
                let content = rng.pick(&contents).clone();
                Intent {
                    number,
                    key: usize::try_from(content.number % 2).unwrap(),
                    named: rng.chance(named),
                    content,
                }
            })
            .collect();
        Self {
            intents,
            weather: Weather {
                lost: now_and_then(150),
                twice: now_and_then(150),
                late: now_and_then(300),
                late_ms: *rng.pick(&[200, 500, 600, 2_000, 20_000]),
                // Opening the ledger takes nine answers within the timeout.
                usual_ms: rng.between(1, timeout_ms / 12),
                freezes: now_and_then(40),
            },
            habits: Habits {
                slow: now_and_then(300),
                refuses: now_and_then(250),
                declines: now_and_then(200),
                breaks: now_and_then(200),
                fails_later: now_and_then(500),
            },
            timeout_ms,
            loopback: rng.chance(500),
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

    pub(super) fn world(&self, options: &Options) -> Arc<World> {
        let time = TrueTime {
            begun: tokio::time::Instant::now(),
            base_ms: self.base_ms,
        };
        let mut seed = Seed::default();
        seed.balance.insert("usd".to_owned(), 1_000_000_000);
        let refunds = self
            .intents
            .iter()
            .filter(|intent| intent.content.what == What::Refund);
        let refunded: std::collections::BTreeMap<u64, &Content> = refunds
            .map(|intent| (intent.content.number, &intent.content))
            .collect();
        for content in refunded.values() {
            let charge = SeedCharge {
                payment_method: content.method.to_owned(),
                ..SeedCharge::new(&content.charge(), 1_000_000, "usd")
            };
            seed.charges.push(charge);
        }
        let stripe = InProcess::new(Arc::new(time), &seed, self.rng.next()).expect("a seed that makes sense");
        World::new(
            Arc::clone(&self.rng),
            time,
            (self.weather, Duration::from_millis(self.timeout_ms)),
            Vendor::new(stripe, self.habits, self.loopback),
            (options.mutant, options.trace),
        )
    }

    /// Every try of every intent.
    pub(super) fn todo(&self) -> Vec<Intent> {
        let mut todo = Vec::new();
        for intent in &self.intents {
            for _ in 0..self.rng.between(1, self.tries) {
                todo.push(intent.clone());
            }
        }
        todo
    }

    /// What one key counts, and what both do.
    fn budgets(&self) -> [Vec<BudgetDef>; 2] {
        let total: i64 = self
            .intents
            .iter()
            .map(|intent| intent.content.cents * CENT)
            .sum();
        let share = |from: u64, upto: u64| {
            let percent = i64::try_from(self.rng.between(from, upto)).unwrap();
            (total / 100 * percent).max(1_000_000)
        };
        let shared = budget("team", Unit::Usd, WindowKind::Lifetime, share(30, 120));
        let calls = i64::try_from(self.rng.between(3, 40)).unwrap();
        [
            vec![
                shared.clone(),
                budget("a", Unit::Usd, WindowKind::Day, share(20, 80)),
                budget("a", Unit::Calls, WindowKind::Day, calls),
            ],
            vec![
                shared,
                budget("b", Unit::Usd, WindowKind::Rolling24h, share(20, 80)),
            ],
        ]
    }
}

/// By whom the simulation's administrative acts are done.
pub(super) fn note(reason: &str) -> AdminNote {
    AdminNote {
        by: "operator".to_owned(),
        reason: reason.to_owned(),
    }
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
pub(super) async fn set_up(world: &Arc<World>, plan: &Plan) -> Result<Client, String> {
    let budgets = plan.budgets();
    {
        let mut books = world.books.lock().unwrap();
        books.total_cap = budgets[0][0].cap;
        let caps = budgets.iter().flatten().map(|def| Cap {
            family: format!("{}|test", def.id().0),
            most: def.cap,
            money: def.unit == Unit::Usd,
            rolling: def.window == WindowKind::Rolling24h,
        });
        books.caps = caps.collect();
    }
    let process = Process::new(world.number(), world.time, &plan.rng, None);
    let failed = |error: keybrake::Error| format!("the ledger cannot be made: {error}");
    let operator = Client::start(world, &process, None).await.map_err(failed)?;
    let brake = operator.keybrake.brake();
    world.books.lock().unwrap().keys = Some(brake.keys().clone());
    let mut keys = Vec::new();
    for (lineage, budgets) in ["a", "b"].into_iter().zip(budgets) {
        let random = lineage.repeat(28);
        let token = Token::of(brake.ledger_tag(), &random).expose().to_owned();
        let record = record(lineage, &budgets, brake.keys().token_hash(&token));
        operator
            .keybrake
            .ledger()
            .issue_key(record)
            .await
            .map_err(failed)?;
        keys.push(Key { token });
    }
    Ok(Client {
        keys: Arc::new(keys),
        ..operator
    })
}

fn record(lineage: &str, budgets: &[BudgetDef], token_hash: keybrake::ledger::TokenHash) -> IssueKey {
    let budgets = budgets.iter().map(|def| BudgetRef {
        def: def.clone(),
        limit: None,
        enforce: true,
    });
    // One key counts a payment when it is made, the other when it is confirmed.
    let counts = if lineage == "a" {
        "at_creation"
    } else {
        "at_confirm"
    };
    let policy = format!(
        r#"{{"vendor":"stripe","count_intents":"{counts}","allowed_endpoints":["refunds.create","payouts.create","payment_intents.create","payment_intents.update","payment_intents.confirm","payment_intents.capture","payment_intents.cancel"]}}"#
    );
    IssueKey {
        key: KeyRecord {
            id: format!("vk_{lineage}"),
            token_hash,
            policy_json: policy,
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
