//! Leases: room that one process takes for many calls, in numbered steps, and what becomes of it.

use std::sync::Arc;

use keybrake::SystemClock;
use keybrake::audit::{Audit, RowFilter};
use keybrake::clock::Clock as _;
use keybrake::ledger::{
    BudgetDef, ChargeAsk, EventKind, LeaseAnswer, LeaseAsk, LeaseHeld, LeasedCall, Proof, Scope, Settlement,
    State, Unit, WindowKind,
};
use keybrake::policy::Code;

mod again;
mod refused;

pub use again::{
    a_lease_that_is_said_again_goes_on_from_its_last_step, a_stop_waits_for_a_lease_that_was_said_again,
};
pub use refused::{
    a_key_has_so_many_leases_below_it_and_no_more, a_lowered_cap_refuses_a_renewal,
    a_revocation_waits_for_the_leases_of_descendants, a_stop_refuses_a_renewal_and_waits_for_the_lease,
};

use super::World;
use super::world::{Call, DAY_MS, HOLD_MS, HOUR_MS, Key, budget, charged, daily, no_proof};

/// Of every lease here.
const TTL_MS: i64 = 500;
/// After this a lease's deadline has passed.
const OVER_MS: i64 = 3_000;
/// Less than a stop takes that waits for a lease.
const SOON_MS: i64 = 400;
/// So often it may take longer without waiting for one.
const TIMES: usize = 10;

/// So many calls in each window.
fn calls(window: WindowKind, cap: i64) -> BudgetDef {
    budget(Scope::Lineage("a".into()), Unit::Calls, window, cap)
}

/// Two keys of one lineage with this budget; the first is the second's parent.
async fn parent_and_child(world: &World, def: &BudgetDef) -> (Key, Key) {
    let parent = world.key("a", std::slice::from_ref(def)).await;
    let mut child = world.draft("a", std::slice::from_ref(def));
    child.ancestors = vec![parent.id.clone()];
    (parent, world.issue(child).await)
}

/// A read: counted, without an identity, and no money moves.
fn read(world: &World, key: &Key) -> Call {
    let mut call = world.call(key, 0);
    "customers.list".clone_into(&mut call.facts.operation);
    call.facts.moves_money = false;
    call
}

/// Real time, which a stop waits in.
fn since(begun_ms: i64) -> i64 {
    SystemClock.boot_ms() - begun_ms
}

/// A stop that waits for a lease takes its time to live, every time. This one takes less, once at least: a busy machine
/// may be slow some times.
async fn waits_for_no_lease(why: &str, mut stop: impl AsyncFnMut(usize)) {
    let mut took_ms = Vec::new();
    for time in 0..TIMES {
        let begun_ms = SystemClock.boot_ms();
        stop(time).await;
        took_ms.push(since(begun_ms));
        if took_ms.iter().any(|took_ms| *took_ms < SOON_MS) {
            return;
        }
    }
    panic!("{why}, and the stop took {took_ms:?} ms");
}

/// What a process does with its lease.
struct Holder<'w> {
    world: &'w World,
    key: Key,
    id: String,
    number: u64,
    index: u64,
    done: Vec<LeasedCall>,
}

impl<'w> Holder<'w> {
    fn new(world: &'w World, key: &Key, id: &str) -> Self {
        Self {
            world,
            key: key.clone(),
            id: id.to_owned(),
            number: 0,
            index: 0,
            done: Vec::new(),
        }
    }

    fn ask(&self, keep: u32, wanted: u32) -> LeaseAsk {
        let request = read(self.world, &self.key).request();
        let keybrake::ledger::Ask::Amount(amount) = request.ask else {
            panic!("an amount");
        };
        let charges: Vec<ChargeAsk> = amount.charges;
        LeaseAsk {
            id: self.id.clone(),
            number: self.number,
            facts: request.facts,
            charges,
            keep,
            wanted,
            done: self.done.clone(),
            ttl_ms: TTL_MS,
            max_open_holds: 1_000,
        }
    }

    /// The next step.
    async fn step(&mut self, keep: u32, wanted: u32) -> LeaseAnswer {
        self.number += 1;
        let answer = self.world.ledger.lease(self.ask(keep, wanted)).await.unwrap();
        self.done.clear();
        answer
    }

    /// A step that must stand.
    async fn held(&mut self, keep: u32, wanted: u32) -> LeaseHeld {
        match self.step(keep, wanted).await {
            LeaseAnswer::Held(held) => *held,
            other => panic!("a lease was expected, and the answer is {other:?}"),
        }
    }

    /// A call, with its end.
    fn made(&mut self, proof: Option<Proof>) -> String {
        let call = read(self.world, &self.key);
        let call_id = call.facts.call_id.clone();
        self.index += 1;
        self.done.push(LeasedCall {
            index: self.index,
            step: self.number + 1,
            at_ms: self.world.now_ms(),
            not_after_ms: self.world.now_ms() + HOLD_MS,
            settlement: proof.map(|proof| Settlement {
                call_id: call_id.clone(),
                attempt: 1,
                proof,
                object: None,
                reply: None,
                facts: keybrake::ledger::ReplyFacts::default(),
            }),
            facts: Arc::new(call.facts),
        });
        call_id
    }
}

/// Two holders cannot have the same room; what has an identity, moves money or counts in a run or for a lifetime is never
/// leased; all budgets of a key or none.
pub async fn scenario_20_leases(world: &World) {
    let day = calls(WindowKind::Day, 80);
    let key = world.key("a", std::slice::from_ref(&day)).await;
    let (mut one, mut two) = (Holder::new(world, &key, "one"), Holder::new(world, &key, "two"));
    let (first, second) = (one.held(0, 100).await.added, two.held(0, 100).await.added);
    assert_eq!((first, second), (10, 8), "an eighth of what is left");
    assert_eq!(world.raw(&day).await, (0, 18));

    let send = world.call(&key, 0).step("the same message");
    assert!(keybrake::ledger::lease::leasable(&send.request()).is_none());
    let refund = world.call(&key, 1);
    assert!(keybrake::ledger::lease::leasable(&refund.request()).is_none());

    let hour = calls(WindowKind::Hour, 80);
    for window in [WindowKind::Run, WindowKind::Lifetime] {
        let bound = match window {
            WindowKind::Run => budget(Scope::Run("run_1".into()), Unit::Calls, window, 80),
            _ => calls(window, 80),
        };
        let key = world.key("a", &[hour.clone(), bound]).await;
        let mut holder = Holder::new(world, &key, &format!("of {}", key.id));
        assert_eq!(holder.step(0, 100).await, LeaseAnswer::Refused);
        assert_eq!(world.raw(&hour).await, (0, 0), "all budgets or none");
    }
    // A run's budget of money has nothing taken from it by reads.
    let run = budget(Scope::Run("run_1".into()), Unit::Usd, WindowKind::Run, 1_000_000);
    let key = world.key("a", &[hour.clone(), run.clone()]).await;
    let mut holder = Holder::new(world, &key, "beside money");
    assert_eq!(holder.held(0, 100).await.added, 10);
    assert_eq!((world.raw(&hour).await, world.raw(&run).await), ((0, 10), (0, 0)));
}

/// Each step tells what was done and keeps what is under way; an answer that was lost is told again; an old number is
/// refused; a step cannot tell more than there was room for.
pub async fn a_lease_is_told_in_numbered_steps(world: &World) {
    let day = calls(WindowKind::Day, 800);
    let key = world.key("a", std::slice::from_ref(&day)).await;
    let mut holder = Holder::new(world, &key, "lease");
    assert_eq!(holder.held(0, 20).await.added, 20);
    for _ in 0..5 {
        holder.made(Some(charged(0)));
    }
    assert_eq!(holder.held(3, 10).await.added, 10);
    assert_eq!(world.raw(&day).await, (5, 13), "3 kept and 10 more");

    let again = world.ledger.lease(holder.ask(3, 10)).await.unwrap();
    let LeaseAnswer::Held(again) = again else {
        panic!("{again:?}")
    };
    assert_eq!((again.added, world.raw(&day).await), (10, (5, 13)), "nothing new");

    holder.number = 1;
    world.ledger.lease(holder.ask(3, 10)).await.unwrap_err();
    holder.number = 2;
    for _ in 0..10 {
        holder.made(Some(charged(0)));
    }
    holder.number = 3;
    world.ledger.lease(holder.ask(4, 0)).await.unwrap_err();
    holder.number = 2;
    assert_eq!(world.raw(&day).await, (5, 13));
    assert_eq!(holder.step(0, 0).await, LeaseAnswer::Over { forfeited: false });
    assert_eq!(world.raw(&day).await, (15, 0));
    assert!(world.open().await.is_empty());

    let rows = Audit::new(&*world.ledger)
        .list(RowFilter::default(), 100)
        .await
        .unwrap();
    assert_eq!(rows.len(), 15, "one row a call, and none for the lease");
    assert!(
        rows.iter()
            .all(|row| row.policy_verdict == "allowed" && row.note("state") == Some("settled"))
    );
}

/// What its holder never told is used when its deadline passes: another may have it never more.
pub async fn a_lease_that_is_not_given_back_is_forfeited(world: &World) {
    let day = calls(WindowKind::Day, 80);
    let key = world.key("a", std::slice::from_ref(&day)).await;
    let mut holder = Holder::new(world, &key, "lease");
    holder.held(0, 10).await;
    for _ in 0..4 {
        holder.made(Some(charged(0)));
    }
    let held = holder.held(6, 0).await;
    assert_eq!((held.for_ms, world.raw(&day).await), (TTL_MS, (4, 6)));

    world.clock.advance_ms(TTL_MS + 1);
    world.ledger.sweep(10).await.unwrap();
    assert_eq!(
        world.raw(&day).await,
        (4, 6),
        "the holder's time is over, the deadline is not"
    );
    world.clock.advance_ms(OVER_MS);
    // Any decision looks at deadlines first.
    let grant = world.granted(&read(world, &key)).await;
    assert_eq!(world.raw(&day).await, (10, 1));
    world.settle(&grant, charged(0)).await;
    let last = world
        .events()
        .await
        .into_iter()
        .rfind(|event| event.kind == EventKind::Leased);
    let last = last.expect("the end of the lease");
    assert_eq!(last.body.reason.as_deref(), Some("forfeited"));
    assert_eq!((last.deltas[0].used, last.deltas[0].held), (6, -6));
    for _ in 0..69 {
        let grant = world.granted(&read(world, &key)).await;
        world.settle(&grant, charged(0)).await;
    }
    let denial = world.denied(&read(world, &key)).await;
    assert_eq!((denial.code, world.raw(&day).await), (Code::CapExceeded, (80, 0)));
}

/// Rows that a holder wrote down before it ended come late, once, and change no counter.
pub async fn a_forfeited_leases_calls_are_told_late_and_once(world: &World) {
    let day = calls(WindowKind::Day, 80);
    let key = world.key("a", std::slice::from_ref(&day)).await;
    let mut holder = Holder::new(world, &key, "lease");
    holder.held(0, 10).await;
    holder.made(Some(charged(0)));
    let told = holder.done.clone();
    holder.held(9, 0).await;
    let done = holder.made(Some(no_proof("timeout")));
    let under_way = holder.made(None);
    world.clock.advance_ms(TTL_MS + OVER_MS);

    let journaled: Vec<LeasedCall> = told.into_iter().chain(holder.done.clone()).collect();
    for _ in 0..2 {
        holder.done.clone_from(&journaled);
        let answer = holder.step(0, 0).await;
        assert_eq!(answer, LeaseAnswer::Over { forfeited: true });
        assert_eq!(world.raw(&day).await, (10, 0));
    }
    let rows = Audit::new(&*world.ledger)
        .list(RowFilter::default(), 100)
        .await
        .unwrap();
    let late: Vec<(&str, Option<&str>)> = rows
        .iter()
        .filter(|row| row.metadata.get("late").is_some())
        .map(|row| (row.call_id.as_str(), row.note("state")))
        .collect();
    assert_eq!(
        late,
        [
            (done.as_str(), Some("unknown")),
            (under_way.as_str(), Some("held"))
        ]
    );
    assert_eq!(rows.len(), 3);

    // The one under way may still be told by whoever made it.
    let answer = world
        .try_settle(Settlement {
            call_id: under_way.clone(),
            attempt: 1,
            proof: charged(0),
            object: None,
            reply: None,
            facts: keybrake::ledger::ReplyFacts::default(),
        })
        .await
        .unwrap();
    assert_eq!((answer.state, world.raw(&day).await), (State::Settled, (10, 0)));
}

/// Rows of a lease that a server lost, and that nobody is left to say again, are told all the same: late, once, and
/// without a counter, since nobody knows of which window they were.
pub async fn rows_of_a_lease_that_the_ledger_lost_are_told_once(world: &World) {
    let day = calls(WindowKind::Day, 80);
    let key = world.key("a", std::slice::from_ref(&day)).await;
    let mut holder = Holder::new(world, &key, "lost");
    let (ended, under_way) = (holder.made(Some(charged(0))), holder.made(None));
    holder.index = 6;
    let later = holder.made(Some(no_proof("timeout")));
    for _ in 0..2 {
        let mut left = holder.ask(0, 0);
        left.number = 0;
        let answer = world.ledger.lease(left).await.unwrap();
        assert_eq!(answer, LeaseAnswer::Over { forfeited: true });
    }
    assert_eq!(world.raw(&day).await, (0, 0));
    let rows = Audit::new(&*world.ledger)
        .list(RowFilter::default(), 100)
        .await
        .unwrap();
    let told: Vec<(&str, Option<&str>, bool)> = rows
        .iter()
        .map(|row| {
            (
                row.call_id.as_str(),
                row.note("state"),
                row.metadata.contains_key("late"),
            )
        })
        .collect();
    let mut expected = [
        (ended.as_str(), Some("settled"), true),
        (under_way.as_str(), Some("held"), true),
        (later.as_str(), Some("unknown"), true),
    ];
    expected.sort_unstable();
    let mut told = told;
    told.sort_unstable();
    assert_eq!(told, expected);
    // A living holder that goes on meets no lease, and loses no row either.
    let mut living = Holder::new(world, &key, "living");
    living.number = 4;
    let call_id = living.made(Some(charged(0)));
    assert_eq!(living.step(5, 5).await, LeaseAnswer::Over { forfeited: true });
    assert!(
        world
            .events()
            .await
            .iter()
            .any(|event| event.call_id.as_ref() == Some(&call_id))
    );
}

/// A lease takes an eighth of the room, and nothing of the last units: those the ledger decides, to the last one.
pub async fn a_lease_leaves_room_for_others_and_for_the_last_unit(world: &World) {
    let day = calls(WindowKind::Day, 60);
    let key = world.key("a", std::slice::from_ref(&day)).await;
    let (mut spent, mut leases, mut number) = (0, 0, 0);
    loop {
        number += 1;
        let mut holder = Holder::new(world, &key, &format!("lease-{number}"));
        match holder.step(0, 512).await {
            LeaseAnswer::Held(held) => {
                leases += 1;
                spent += held.added;
                for _ in 0..held.added {
                    holder.made(Some(charged(0)));
                }
                holder.step(0, 0).await;
            }
            _ => break,
        }
    }
    assert!(leases > 2, "{leases}");
    assert!((24..60).contains(&spent), "{spent}");
    for _ in spent..60 {
        let grant = world.granted(&read(world, &key)).await;
        world.settle(&grant, charged(0)).await;
    }
    assert_eq!(world.denied(&read(world, &key)).await.code, Code::CapExceeded);
    assert_eq!(world.raw(&day).await, (60, 0));
}

/// A lease belongs to the window that it was taken in: it is not prolonged past its end, and what is told afterwards
/// counts there.
pub async fn a_lease_ends_with_its_window(world: &World) {
    let (hour, day) = (calls(WindowKind::Hour, 80), calls(WindowKind::Day, 8_000));
    let key = world.key("a", &[hour.clone(), day.clone()]).await;
    world.clock.advance_ms(HOUR_MS - 700);
    let mut holder = Holder::new(world, &key, "lease");
    let held = holder.held(0, 100).await;
    assert_eq!(
        (held.added, held.for_ms),
        (10, 200),
        "half a second before the end is left alone"
    );
    holder.made(Some(charged(0)));
    world.clock.advance_ms(300);
    assert_eq!(
        Holder::new(world, &key, "too late").step(0, 100).await,
        LeaseAnswer::Refused
    );
    world.clock.advance_ms(500);
    // What is under way stays; nothing is added, nothing prolonged.
    assert_eq!(holder.step(1, 100).await, LeaseAnswer::Refused);
    holder.made(Some(charged(0)));
    assert_eq!(holder.step(0, 0).await, LeaseAnswer::Over { forfeited: false });
    assert_eq!((world.raw(&hour).await, world.raw(&day).await), ((0, 0), (2, 0)));
    let grant = world.granted(&read(world, &key)).await;
    world.settle(&grant, charged(0)).await;
    assert_eq!((world.raw(&hour).await, world.raw(&day).await), ((1, 0), (3, 0)));
}

/// A rolling window's calls leave it a day after they were made, not later and not earlier.
pub async fn a_rolling_window_is_leased_one_bucket_at_a_time(world: &World) {
    let rolling = calls(WindowKind::Rolling24h, 80);
    let key = world.key("a", std::slice::from_ref(&rolling)).await;
    world.clock.advance_ms(299_000);
    let mut holder = Holder::new(world, &key, "lease");
    let held = holder.held(0, 100).await;
    assert_eq!((held.added, held.for_ms), (10, 500));
    for _ in 0..10 {
        holder.made(Some(charged(0)));
    }
    world.clock.advance_ms(1_500);
    assert_eq!(holder.step(0, 100).await, LeaseAnswer::Over { forfeited: false });
    assert_eq!(world.raw(&rolling).await, (10, 0));
    world.clock.advance_ms(DAY_MS - 1_500);
    assert_eq!(world.raw(&rolling).await, (10, 0));
    world.clock.advance_ms(1_000);
    assert_eq!(world.raw(&rolling).await, (0, 0));
}

/// For each proof: the same counters, state and reason as a call that was decided by the ledger.
pub async fn a_leased_call_ends_as_any_other(world: &World) {
    let proofs = [
        charged(0),
        Proof::DidNotExecute,
        Proof::FailedForGood,
        no_proof("timeout"),
        Proof::NeverSent,
    ];
    for (number, proof) in proofs.into_iter().enumerate() {
        let mut ends = Vec::new();
        for leased in [false, true] {
            let lineage = format!("{number}-{leased}");
            let day = budget(Scope::Lineage(lineage.clone()), Unit::Calls, WindowKind::Day, 80);
            let money = daily(&lineage, 5);
            let key = world.key(&lineage, &[day.clone(), money.clone()]).await;
            let call_id = if leased {
                let mut holder = Holder::new(world, &key, &format!("lease-{number}"));
                holder.held(0, 10).await;
                let call_id = holder.made(Some(proof.clone()));
                holder.step(0, 0).await;
                call_id
            } else {
                let grant = world.granted(&read(world, &key)).await;
                world.settle(&grant, proof.clone()).await;
                grant.call_id
            };
            let filter = RowFilter {
                call_id: Some(call_id.clone()),
                ..RowFilter::default()
            };
            let rows = Audit::new(&*world.ledger).list(filter, 9).await.unwrap();
            let row = rows.first().expect("a row");
            let word = |name: &str| row.note(name).map(str::to_owned);
            ends.push((
                world.raw(&day).await,
                world.raw(&money).await,
                (word("state"), word("reason"), word("proof"), word("reserved_usd")),
                (
                    row.policy_verdict.clone(),
                    row.cost_usd_parsed,
                    row.cap_usage_after_usd,
                ),
            ));
        }
        assert_eq!(ends[0], ends[1], "{proof:?}");
    }
    // What it cannot judge itself is asked of the ledger, as a hold of its own.
    let day = calls(WindowKind::Day, 80);
    let key = world.key("a", std::slice::from_ref(&day)).await;
    let mut holder = Holder::new(world, &key, "lease");
    holder.held(0, 10).await;
    holder.made(Some(charged(3)));
    holder.number += 1;
    world.ledger.lease(holder.ask(0, 0)).await.unwrap_err();
    assert_eq!(world.raw(&day).await, (0, 10));
}

/// A call that outlives its lease is an ordinary hold from then on.
pub async fn a_call_under_way_becomes_a_hold_of_its_own(world: &World) {
    let day = calls(WindowKind::Day, 80);
    let key = world.key("a", std::slice::from_ref(&day)).await;
    let mut holder = Holder::new(world, &key, "lease");
    holder.held(0, 10).await;
    let (kept, ended) = (holder.made(None), holder.made(None));
    assert_eq!(holder.step(0, 0).await, LeaseAnswer::Over { forfeited: false });
    assert_eq!(world.raw(&day).await, (0, 2));
    let settle = |call_id: &str, proof| Settlement {
        call_id: call_id.to_owned(),
        attempt: 1,
        proof,
        object: None,
        reply: None,
        facts: keybrake::ledger::ReplyFacts::default(),
    };
    world.try_settle(settle(&ended, Proof::NeverSent)).await.unwrap();
    assert_eq!(world.raw(&day).await, (0, 1));
    world.clock.advance_ms(HOLD_MS + 1);
    world.ledger.sweep(10).await.unwrap();
    assert_eq!(
        (world.state(&kept).await, world.raw(&day).await),
        (State::Unknown, (1, 0))
    );
}
