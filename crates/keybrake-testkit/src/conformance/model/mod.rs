//! Random operations against a ledger and against a reference model that recomputes everything from its list of
//! calls. After each operation answers, counters, calls and the log must agree.

mod ops;
mod reference;
mod settling;

use std::collections::BTreeMap;

use keybrake::ledger::{
    BudgetDef, EventFilter, Grant, Proof, ReplyFacts, Reservation, ReserveAnswer, ReserveRequest, Scope,
    Settlement, State, StopScope, Unit, WindowKind,
};
use keybrake::money::Usd;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use self::ops::{Identity, Op, Settle};
use self::reference::{Expected, Model};
use super::world::{Key, budget, daily, dollars, note};
use super::{Fresh, World};

/// Compares a backend with the reference model over `cases` random sequences of operations: the same ones every
/// time, or as many fresh ones as `KEYBRAKE_MODEL_CASES` says.
///
/// # Panics
/// When they disagree, with the shortest sequence that was found.
pub fn agrees_with_the_model(fresh: &dyn Fresh, cases: u32) {
    #[expect(clippy::disallowed_methods, reason = "a test's own setting")]
    let more = std::env::var("KEYBRAKE_MODEL_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok());
    let config = Config {
        cases: more.unwrap_or(cases),
        failure_persistence: None,
        max_shrink_iters: 4_000,
        ..Config::default()
    };
    let mut runner = match more {
        Some(_) => TestRunner::new(config),
        None => TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha)),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let outcome = runner.run(&ops::sequences(), |operations| {
        runtime.block_on(async {
            let mut run = Run::begin(fresh).await;
            for (number, operation) in operations.iter().enumerate() {
                run.apply(operation).await.map_err(|wrong| {
                    proptest::test_runner::TestCaseError::fail(format!("{number}: {wrong}"))
                })?;
            }
            run.world.books_agree().await;
            Ok(())
        })
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

/// One sequence under way: the ledger, the model, and what both have seen.
struct Run {
    world: World,
    model: Model,
    keys: Vec<Key>,
    asked: Vec<ReserveRequest>,
    grants: Vec<Grant>,
    budgets: Vec<BudgetDef>,
    seq: u64,
    by_events: BTreeMap<String, (i64, i64)>,
}

type Checked = Result<(), String>;

const STOPS: [fn() -> StopScope; 5] = [
    || StopScope::All,
    || StopScope::Vendor("stripe".to_owned()),
    || StopScope::Agent("b".to_owned()),
    || StopScope::Agent("a".to_owned()),
    || StopScope::Run("run_1".to_owned()),
];

/// The budgets that the four keys draw on.
fn budgets() -> Vec<BudgetDef> {
    let of = |name: &str| Scope::Lineage(name.to_owned());
    vec![
        daily("a", 100),
        budget(of("a"), Unit::Calls, WindowKind::Day, 20),
        budget(of("b"), Unit::Usd, WindowKind::Rolling24h, 80_000_000),
        budget(
            Scope::Customer("*".to_owned()),
            Unit::Usd,
            WindowKind::Hour,
            50_000_000,
        ),
        budget(of("c"), Unit::Usd, WindowKind::Lifetime, 60_000_000),
        budget(
            Scope::Run("run_1".to_owned()),
            Unit::Usd,
            WindowKind::Run,
            90_000_000,
        ),
    ]
}

/// Which budgets each key has of its own, its lineage, and whether it is a child of the first and observes.
const KEYS: [(&str, &[usize], bool, bool); 4] = [
    ("a", &[0, 1], false, false),
    ("b", &[2, 3], true, false),
    ("c", &[4], true, true),
    ("a", &[0, 5], false, false),
];

impl Run {
    async fn begin(fresh: &dyn Fresh) -> Self {
        let world = World::new(fresh).await;
        let mut run = Self {
            model: Model::new(world.now_ms()),
            world,
            keys: Vec::new(),
            asked: Vec::new(),
            grants: Vec::new(),
            budgets: budgets(),
            seq: 0,
            by_events: BTreeMap::new(),
        };
        for budget in &run.budgets {
            run.world
                .ledger
                .put_budget(budget.clone(), note("model"))
                .await
                .unwrap();
            run.model.caps.insert(budget.id().0, budget.cap);
        }
        for slot in 0..KEYS.len() {
            run.issue(slot).await.unwrap();
        }
        run
    }

    /// Issues the key of a slot anew.
    async fn issue(&mut self, slot: usize) -> Checked {
        let (lineage, own, child, observes) = KEYS[slot];
        let defs: Vec<BudgetDef> = own
            .iter()
            .map(|index| {
                let mut def = self.budgets[*index].clone();
                def.cap = self.model.caps[&def.id().0];
                def
            })
            .collect();
        let mut draft = self.world.draft(lineage, &defs);
        for budget in &mut draft.budgets {
            budget.enforce = !observes;
        }
        if child {
            draft.ancestors = vec![self.keys[0].id.clone()];
        }
        let allowed = self.model.may_issue(&draft);
        match self.world.try_issue(draft).await {
            Ok(key) if allowed => {
                self.model.issued(&key);
                if slot < self.keys.len() {
                    self.keys[slot] = key;
                } else {
                    self.keys.push(key);
                }
                Ok(())
            }
            Err(_) if !allowed => Ok(()),
            other => Err(format!("issue: the model says {allowed}, the ledger {other:?}")),
        }
    }

    async fn apply(&mut self, operation: &Op) -> Checked {
        match operation {
            Op::Reserve { .. } => {
                let request = self.request(operation);
                self.asked.push(request.clone());
                self.reserve(request).await?;
            }
            Op::Again { call } => {
                let Some(mut request) = pick(&self.asked, *call).cloned() else {
                    return Ok(());
                };
                refresh(&mut request, self.world.now_ms());
                self.reserve(request).await?;
            }
            Op::Settle(settle) => self.settle(settle).await?,
            Op::Advance { ms } => {
                self.world.clock.advance_ms(*ms);
                self.model.advance(*ms);
                // Nobody looks at the ledger here, so that the next operation meets deadlines that nobody swept.
                return Ok(());
            }
            Op::Sweep => drop(self.world.ledger.sweep(3).await.unwrap()),
            Op::Stop { scope } => {
                let scope = STOPS[scope % STOPS.len()]();
                self.world
                    .ledger
                    .stop(scope.clone(), note("model"))
                    .await
                    .unwrap();
                self.model.stops.insert(scope);
            }
            Op::Resume { scope } => {
                let scope = STOPS[scope % STOPS.len()]();
                let there = self.world.ledger.resume(&scope, note("model")).await.unwrap();
                if there != self.model.stops.remove(&scope) {
                    return Err(format!("resume of {scope:?} answered {there}"));
                }
            }
            Op::Revoke { key } => {
                let id = self.keys[key % KEYS.len()].id.clone();
                self.world.ledger.revoke(&id, note("model")).await.unwrap();
                self.model.revoke(&id);
            }
            Op::Rotate { key } => self.issue(key % KEYS.len()).await?,
            Op::Cap { budget, usd } => {
                let mut def = self.budgets[budget % self.budgets.len()].clone();
                def.cap = if def.unit == Unit::Usd {
                    usd * 1_000_000
                } else {
                    *usd
                };
                self.model.caps.insert(def.id().0, def.cap);
                self.world.ledger.put_budget(def, note("model")).await.unwrap();
            }
        }
        self.compare().await
    }

    fn request(&self, operation: &Op) -> ReserveRequest {
        let Op::Reserve {
            key,
            usd,
            identity,
            wire,
            customer,
            raise,
            on_repeat,
            read,
        } = operation
        else {
            panic!("only for reserves");
        };
        let key = &self.keys[key % KEYS.len()];
        let mut call = self.world.call(key, if *read { 0 } else { *usd });
        call.facts.customer = Some(format!("cus_{customer}"));
        call.facts.moves_money = !*read;
        if *read {
            return call.request();
        }
        call = match identity {
            Identity::None => call,
            Identity::Step(step) => call.step(&format!("s{step}")),
            Identity::Content => call.content(),
            Identity::CallerKey(key) => {
                // In two runs, so that one key comes under two identities.
                call.facts.run = Some(format!("run_{}", customer + 1));
                call.caller_key(&format!("k{key}"))
            }
            Identity::Transport(id) => call.transport(&format!("t{id}")),
        };
        call = call.on_repeat(*on_repeat).remembered_for_ms(2 * 86_400_000);
        if *wire {
            call = call.wire("other bytes");
        }
        if let Some(object) = raise {
            call = call.raising(&object_name(*object));
        }
        call.request()
    }

    async fn reserve(&mut self, request: ReserveRequest) -> Checked {
        let expected = self.model.reserve(&request);
        let answer = self
            .world
            .ledger
            .reserve(request)
            .await
            .map_err(|e| format!("reserve: {e}"))?;
        let got = match &answer {
            ReserveAnswer::Granted(grant) => Expected::Granted {
                call_id: grant.call_id.clone(),
                attempt: grant.attempt,
                joined: grant.joined,
                generation: grant.generation,
                amount: grant.amount,
                identity: grant.identity.clone(),
            },
            ReserveAnswer::Replay(earlier) => Expected::Replay(earlier.facts.call_id.clone()),
            ReserveAnswer::Denied(denial) => Expected::Denied(denial.code),
            other => return Err(format!("reserve answered {other:?}")),
        };
        if got != expected {
            return Err(format!(
                "reserve: the model says {expected:?}, the ledger {got:?}"
            ));
        }
        if let ReserveAnswer::Granted(grant) = answer {
            self.grants.push(*grant);
        }
        Ok(())
    }

    async fn settle(&mut self, settle: &Settle) -> Checked {
        let Some(grant) = pick(&self.grants, settle.grant) else {
            return Ok(());
        };
        let attempt = if settle.by_hand { 0 } else { grant.attempt };
        let mut proof = settle.proof.clone();
        if let Proof::Absent { attempts, .. } = &mut proof {
            // A listing that began now; one that began before another attempt is the invariant's test.
            let call = self.world.ledger.reservation(&grant.call_id).await.unwrap();
            *attempts = call.map_or(0, |call| call.attempts);
        }
        let settlement = Settlement {
            call_id: grant.call_id.clone(),
            attempt,
            proof,
            object: settle
                .object
                .map(|(object, moved, closed)| keybrake::ledger::ObjectState {
                    object: object_name(object),
                    moved: dollars(moved),
                    closed,
                }),
            reply: matches!(settle.proof, Proof::Charged { .. } | Proof::Accepted).then(|| b"reply".to_vec()),
            facts: ReplyFacts {
                replayed: settle.replayed,
                vendor_object: settle.shows.map(|number| format!("re_{number}")),
                ..ReplyFacts::default()
            },
        };
        let expected = self.model.settle(&settlement);
        let got = self.world.try_settle(settlement.clone()).await.ok();
        let got = got.map(|answer| (answer.state, answer.used, answer.held));
        if got != expected {
            return Err(format!(
                "{settlement:?}: the model says {expected:?}, the ledger {got:?}"
            ));
        }
        Ok(())
    }

    /// Everything that can be seen of the ledger against the model.
    async fn compare(&mut self) -> Checked {
        let open = self.world.open().await;
        self.model.lapse();
        self.compare_counters().await?;
        self.compare_events().await?;
        for call in &self.model.calls {
            let found = self.world.ledger.reservation(&call.id).await.unwrap();
            let found = found.ok_or_else(|| format!("{} is not in the ledger", call.id))?;
            let wanted = (call.state, call.used, call.held, call.generation, call.attempts);
            let seen = seen(&found);
            if seen != wanted {
                return Err(format!(
                    "{}: the model says {wanted:?}, the ledger {seen:?}",
                    call.id
                ));
            }
        }
        let wanted: Vec<&String> = self
            .model
            .calls
            .iter()
            .filter(|call| call.is_open())
            .map(|call| &call.id)
            .collect();
        let listed: Vec<&String> = open.iter().map(|call| &call.facts.call_id).collect();
        if wanted.len() != listed.len() || !wanted.iter().all(|id| listed.contains(id)) {
            return Err(format!("open: the model says {wanted:?}, the ledger {listed:?}"));
        }
        Ok(())
    }

    async fn compare_counters(&self) -> Checked {
        for def in &self.budgets {
            let customers: &[Option<&str>] = match def.scope {
                Scope::Customer(_) => &[Some("cus_0"), Some("cus_1")],
                _ => &[None],
            };
            for customer in customers {
                let scope = customer.map_or(def.scope.clone(), |id| Scope::Customer(id.to_owned()));
                let all = self.world.ledger.budgets(Some(&scope)).await.unwrap();
                let found = all
                    .iter()
                    .find(|usage| usage.id == def.id() && usage.livemode)
                    .unwrap();
                let got = (found.view.used, found.view.held);
                let wanted = self.model.standing(def, *customer);
                if got != wanted {
                    return Err(format!(
                        "{} {customer:?}: the model says {wanted:?}, the ledger {got:?}",
                        def.id().0
                    ));
                }
            }
        }
        Ok(())
    }

    async fn compare_events(&mut self) -> Checked {
        let later = EventFilter {
            after_seq: self.seq,
            ..EventFilter::default()
        };
        for event in self.world.ledger.events(later).await.unwrap() {
            self.seq = event.seq;
            for delta in event.deltas {
                let total = self.by_events.entry(delta.counter.to_string()).or_default();
                *total = (total.0 + delta.used, total.1 + delta.held);
            }
        }
        let wanted = self.model.by_counter();
        let nonzero = |totals: &BTreeMap<String, (i64, i64)>| -> BTreeMap<String, (i64, i64)> {
            totals
                .iter()
                .filter(|(_, total)| **total != (0, 0))
                .map(|(n, t)| (n.clone(), *t))
                .collect()
        };
        if nonzero(&self.by_events) != nonzero(&wanted) {
            return Err(format!(
                "events: the model says {wanted:?}, the log {:?}",
                self.by_events
            ));
        }
        Ok(())
    }
}

type Seen = (State, Usd, Usd, u32, u32);

fn seen(call: &Reservation) -> Seen {
    (call.state, call.used, call.held, call.generation, call.attempts)
}

fn object_name(object: u8) -> String {
    format!("stripe|live||pi_{object}")
}

fn pick<T>(all: &[T], index: usize) -> Option<&T> {
    match all.len() {
        0 => None,
        count => all.get(index % count),
    }
}

/// Proposes the windows of now, as an engine that asks again does.
fn refresh(request: &mut ReserveRequest, now_ms: i64) {
    if let keybrake::ledger::Ask::Amount(ask) = &mut request.ask {
        for charge in &mut ask.charges {
            if let Some(window) = &mut charge.window {
                let length_ms = window.end_ms - window.start_ms;
                window.start_ms = now_ms - now_ms.rem_euclid(length_ms);
                window.end_ms = window.start_ms + length_ms;
            }
        }
    }
}
