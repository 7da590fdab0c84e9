//! The Redis ledger with many of everything: overdue holds, budgets, keys, open calls.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed unwrap is a failed test"
)]

use keybrake::ledger::redis::RedisLedger;
use keybrake::ledger::{
    BudgetDef, EventKind, HoldFilter, KeyRecord, Ledger, Scope, State, StopScope, Unit, WindowKind,
};
use keybrake_testkit::redis::Persistence;
use keybrake_testkit::sim::{Alone, Asked};
use keybrake_tests::books::{self, DOLLAR, NOW_MS};
use keybrake_tests::fleet::{self, Fleet, books_agree, events_of};

/// A fleet that was killed with so many calls in flight, an hour ago.
async fn killed_with(calls: usize) -> (Alone, KeyRecord) {
    let server = Alone::at(NOW_MS);
    let ledger = server.open(1_000).await;
    let key = fleet::key(&ledger, 10_000 * DOLLAR).await;
    for number in 0..calls {
        reserve(&ledger, &key, &format!("call {number}")).await;
    }
    server.advance_ms(3_600_000);
    server.take_asked();
    (server, key)
}

async fn reserve(ledger: &RedisLedger, key: &KeyRecord, name: &str) {
    books::reserve(ledger, books::call(key, name, DOLLAR))
        .await
        .unwrap()
        .unwrap();
}

fn of(asked: &[Asked], name: &str) -> usize {
    asked.iter().filter(|asked| asked.name == name).count()
}

fn longest(asked: &[Asked]) -> usize {
    asked.iter().map(|asked| asked.words).max().unwrap_or(0)
}

#[tokio::test]
async fn a_decision_marks_hundreds_of_overdue_holds_first() {
    let (server, key) = killed_with(700).await;
    let other = server.open(1_000).await;
    server.take_asked();
    reserve(&other, &key, "the next").await;
    let asked = server.take_asked();
    assert!(asked.len() < 60, "{} round trips: {asked:?}", asked.len());
    assert_eq!(events_of(&other, EventKind::Unknown).await.len(), 700);
    books_agree(&other).await;
}

#[tokio::test]
async fn a_sweep_and_a_list_of_holds_mark_hundreds_of_overdue_ones() {
    let (server, _) = killed_with(700).await;
    let sweeper = server.open(1_000).await;
    assert_eq!(sweeper.sweep(300).await.unwrap(), 300);
    assert_eq!(sweeper.sweep(10_000).await.unwrap(), 400);
    assert_eq!(sweeper.sweep(10_000).await.unwrap(), 0);
    books_agree(&sweeper).await;

    let (server, _) = killed_with(700).await;
    let held = HoldFilter {
        state: Some(State::Held),
        ..HoldFilter::default()
    };
    let lister = server.open(1_000).await;
    assert!(lister.holds(held).await.unwrap().is_empty());
    assert_eq!(lister.holds(HoldFilter::default()).await.unwrap().len(), 700);
}

/// A name in the list of deadlines behind which there is no held call: somebody has deleted it by hand.
#[tokio::test]
async fn a_deadline_without_its_call_stops_nobody() {
    let fleet = Fleet::start(Persistence::None);
    let (ledger, key) = fleet.with_key(100 * DOLLAR).await;
    reserve(&ledger, &key, "one").await;
    let list = "kb:{fleet}:deadlines";
    fleet.server.command(&["ZADD", list, "1", "gone"]).unwrap();
    fleet.server.command(&["ZADD", list, "2", "one"]).unwrap();
    // The step looks at the list when the first deadline has passed, as far as the ledger knows.
    let due = ["HSET", "kb:{fleet}:meta", "due", "1"];
    fleet.server.command(&due).unwrap();
    let left = || {
        let left = fleet.server.command(&["ZRANGE", list, "0", "-1"]).unwrap();
        let left = left.items().unwrap().iter();
        left.map(|name| name.text().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(left(), ["gone", "one"]);
    reserve(&ledger, &key, "two").await;
    assert_eq!(left(), ["one", "two"], "by their own deadlines");
    assert_eq!(ledger.sweep(10).await.unwrap(), 0);
    assert_eq!(left(), ["one", "two"]);
    assert!(events_of(&ledger, EventKind::Unknown).await.is_empty());
}

#[tokio::test]
async fn hundreds_of_budgets_are_listed_in_a_few_round_trips() {
    let server = Alone::at(NOW_MS);
    let ledger = server.open(1_000).await;
    let budgets: Vec<BudgetDef> = (0..300)
        .map(|number| books::lifetime(&format!("lineage_{number}"), 7 * DOLLAR))
        .collect();
    let mut keys = Vec::new();
    for (number, budget) in budgets.iter().enumerate() {
        let id = format!("vk_{number}");
        let key = books::key(&ledger, &id, std::slice::from_ref(budget)).await;
        keys.push(key.unwrap());
    }
    reserve(&ledger, &keys[7], "one").await;
    server.take_asked();
    let listed = ledger.budgets(None).await.unwrap();
    let asked = server.take_asked();
    assert_eq!(listed.len(), 600, "in both modes");
    assert_eq!(listed.iter().filter(|usage| usage.view.held == DOLLAR).count(), 1);
    assert!(asked.len() < 12, "{} round trips: {asked:?}", asked.len());
    assert_eq!(ledger.keys().await.unwrap().len(), 300);
    let asked = server.take_asked();
    assert!(asked.len() < 12, "{} round trips: {asked:?}", asked.len());
}

#[tokio::test]
async fn thousands_of_keys_are_listed_and_stopped() {
    const KEYS: &str = "12000";
    let fleet = Fleet::start(Persistence::None);
    let (ledger, key) = fleet.with_key(100 * DOLLAR).await;
    reserve(&ledger, &key, "one").await;
    // As if they had been issued, one after the other.
    let copies = "local i = redis.call('GET', KEYS[1]) local k = redis.call('HGET', KEYS[2], 'k:vk_1') \
                  for n = 2, tonumber(ARGV[1]) do local id = 'vk_' .. n \
                  redis.call('SET', KEYS[4] .. id, (string.gsub(i, 'vk_1', id))) \
                  redis.call('HSET', KEYS[2], 'k:' .. id, k) redis.call('ZADD', KEYS[3], n, id) end";
    let names = ["i:vk_1", "records", "issued", "i:"].map(|name| format!("kb:{{fleet}}:{name}"));
    let [record, records, issued, prefix] = &names;
    fleet
        .server
        .command(&["EVAL", copies, "4", record, records, issued, prefix, KEYS])
        .unwrap();
    assert_eq!(ledger.keys().await.unwrap().len(), 12_000);
    let stop = ledger.stop(StopScope::All, books::admin()).await.unwrap();
    assert_eq!((stop.keys_refused, stop.in_flight.len()), (12_000, 1));
}

/// What a refusal names, and what a list shows, is not what it rests on: others' calls may change meanwhile.
#[tokio::test]
async fn lists_are_not_compared_when_a_step_is_committed() {
    let server = Alone::at(NOW_MS);
    let ledger = server.open(1_000).await;
    let key = fleet::key(&ledger, 1_500 * DOLLAR).await;
    for number in 0..1_500 {
        reserve(&ledger, &key, &format!("call {number}")).await;
    }
    let other = server.open(1_000).await;
    server.take_asked();
    let refused = books::reserve(&other, books::call(&key, "one more", DOLLAR)).await;
    assert_eq!(refused.unwrap().unwrap_err(), "CapHeld");
    let asked = server.take_asked();
    assert!(longest(&asked) < 200, "{asked:?}");
    let denied = events_of(&other, EventKind::Denied).await;
    let view = denied
        .last()
        .unwrap()
        .body
        .denial
        .as_ref()
        .unwrap()
        .budget
        .clone()
        .unwrap();
    assert_eq!(view.hold_ids.len(), 10, "{view:?}");
    server.take_asked();

    let filter = HoldFilter {
        limit: 10_000,
        ..HoldFilter::default()
    };
    assert_eq!(other.holds(filter).await.unwrap().len(), 1_500);
    let stop = other.stop(StopScope::All, books::admin()).await.unwrap();
    assert_eq!(stop.in_flight.len(), 100);
    let asked = server.take_asked();
    let commits: Vec<Asked> = asked.into_iter().filter(|asked| asked.name == "commit").collect();
    assert!(longest(&commits) < 100, "{commits:?}");
    assert_eq!(of(&commits, "commit"), commits.len());
}

/// What does not wait for anything has its answer at once.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut context) {
        std::task::Poll::Ready(answer) => answer,
        std::task::Poll::Pending => panic!("it waits for something"),
    }
}

/// A group gains a budget while a process loads one of its keys: it has the new cap, or it is loaded again.
#[tokio::test]
async fn a_key_is_not_loaded_without_the_budget_that_its_group_just_gained() {
    let server = Alone::at(NOW_MS);
    let ledger = server.open(1_000).await;
    let def = |unit, cap| BudgetDef {
        scope: Scope::Group("team".to_owned()),
        unit,
        cap,
        ..books::lifetime("a", 0)
    };
    ledger
        .put_budget(def(Unit::Calls, 100), books::admin())
        .await
        .unwrap();
    let mut issue = books::issue("vk_1", &[books::lifetime("a", 100 * DOLLAR)]);
    issue.key.groups = vec!["team".to_owned()];
    ledger.issue_key(issue).await.unwrap();
    server.take_asked();
    ledger.key("vk_1").await.unwrap();
    let looks = of(&server.take_asked(), "look");
    for number in 1..=looks {
        let reader = server.open(1_000).await;
        let admin = server.open(1_000).await;
        let cap = 1_000 + i64::try_from(number).unwrap();
        let window = WindowKind::Lifetime;
        let gains = BudgetDef {
            vendor: Some(format!("vendor{number}")),
            window,
            ..def(Unit::Usd, cap)
        };
        server.take_asked();
        server.after_looks(number, move || {
            at_once(admin.put_budget(gains, books::admin())).unwrap();
        });
        let loaded = reader.key("vk_1").await.unwrap().unwrap();
        let present = reader.key("vk_1").await.unwrap().unwrap();
        assert!(present.budgets.iter().any(|budget| budget.def.cap == cap));
        if loaded.version == present.version {
            assert_eq!(loaded.budgets, present.budgets, "after look {number}");
        }
    }
}
