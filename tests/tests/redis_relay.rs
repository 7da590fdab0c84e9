//! The Redis ledger behind a network that goes wrong: answers lost after the command ran, silence, refusals, delays.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::Arc;
use std::time::Duration;

use keybrake::SystemClock;
use keybrake::clock::Clock as _;
use keybrake::error::ErrorKind;
use keybrake::ledger::redis::RedisLedger;
use keybrake::ledger::{EventFilter, EventKind, KeyRecord, Ledger, ReserveAnswer, ReserveRequest, StopScope};
use keybrake_testkit::redis::{Persistence, RedisServer, Relay};
use keybrake_tests::books::{self, DOLLAR};
use keybrake_tests::eventually;
use keybrake_tests::fleet::{self, Fleet, books_agree, events_of, key, used_and_held};
use tokio::task::JoinSet;

/// A server, a relay before it, and a ledger that is used through the relay.
struct Behind {
    fleet: Fleet,
    relay: Relay,
    ledger: Arc<RedisLedger>,
    key: KeyRecord,
}

impl Behind {
    async fn patient() -> Self {
        let fleet = Fleet::start(Persistence::None);
        let relay = Relay::start(fleet.server.port()).unwrap();
        let url = format!("{}?ns=fleet&timeout_ms=20000", relay.url());
        let ledger = Arc::new(fleet::open(&url).unwrap());
        let key = key(&*ledger, 10_000 * DOLLAR).await;
        Self {
            fleet,
            relay,
            ledger,
            key,
        }
    }

    /// Another process, which waits for an answer no longer than this.
    async fn impatient(&self, timeout_ms: u32) -> RedisLedger {
        let url = format!("{}?ns=fleet&timeout_ms={timeout_ms}", self.relay.url());
        let mut opened = None;
        eventually(async || {
            opened = fleet::open(&url).ok();
            opened.is_some()
        })
        .await;
        let ledger = opened.unwrap();
        self.recovered(&ledger, &format!("warm {timeout_ms}")).await;
        ledger
    }

    /// Works, or works again after the pause that follows a failed connection.
    async fn recovered(&self, ledger: &RedisLedger, id: &str) {
        let mut answer = None;
        eventually(async || {
            let asked = books::reserve(ledger, books::call(&self.key, id, DOLLAR)).await;
            answer = asked.ok();
            answer.is_some()
        })
        .await;
        answer.unwrap().unwrap();
        eventually(async || ledger.settle(books::charged(id, DOLLAR)).await.is_ok()).await;
    }

    async fn spend(&self, id: &str) {
        books::reserve(&*self.ledger, books::call(&self.key, id, DOLLAR))
            .await
            .unwrap()
            .unwrap();
        self.ledger.settle(books::charged(id, DOLLAR)).await.unwrap();
    }

    async fn refused(&self, id: &str) -> String {
        self.refused_by(&self.ledger, id).await
    }

    async fn refused_by(&self, ledger: &RedisLedger, id: &str) -> String {
        let error = ledger
            .reserve(books::call(&self.key, id, DOLLAR))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LedgerUnavailable, "{error}");
        error.to_string()
    }

    /// What the server has received so far: connections, and commands of the ledger's function.
    fn received(&self) -> (i64, i64) {
        let stats = info(&self.fleet.server, "stats", "total_connections_received:");
        let fcall = info(&self.fleet.server, "commandstats", "cmdstat_fcall:calls=");
        (stats, fcall)
    }
}

fn info(server: &RedisServer, section: &str, field: &str) -> i64 {
    let answer = server.command(&["INFO", section]).unwrap();
    let text = answer.text().unwrap().to_owned();
    let found = text.lines().find_map(|line| line.strip_prefix(field));
    let number = found
        .unwrap_or("0")
        .split([',', '\r'])
        .next()
        .unwrap_or("0")
        .to_owned();
    number.parse().unwrap()
}

/// How many clients the server has, besides the one that asks.
fn clients(server: &RedisServer) -> usize {
    let answer = server.command(&["CLIENT", "LIST"]).unwrap();
    answer.text().unwrap().lines().count().checked_sub(1).unwrap()
}

#[tokio::test]
async fn a_reserve_and_a_settlement_whose_answers_are_lost_count_once() {
    let at = Behind::patient().await;
    at.spend("warm").await;
    at.relay.lose_reply("call-lost");
    let granted = books::reserve(&*at.ledger, books::call(&at.key, "call-lost", DOLLAR)).await;
    assert!(at.relay.wait_caught(1), "no answer was lost");
    assert_eq!(granted.unwrap().unwrap().attempt, 1);
    assert_eq!(used_and_held(&*at.ledger).await, (DOLLAR, DOLLAR));
    let reserved = events_of(&*at.ledger, EventKind::Reserved).await;
    assert_eq!(reserved.len(), 2, "one for each call");

    at.relay.lose_reply("call-lost");
    let settled = at.ledger.settle(books::charged("call-lost", DOLLAR)).await;
    assert!(at.relay.wait_caught(2), "no answer was lost");
    settled.unwrap();
    assert_eq!(used_and_held(&*at.ledger).await, (2 * DOLLAR, 0));
    books_agree(&*at.ledger).await;
}

/// The one whose call is in flight, asked a second time with another call id, joins it once.
#[tokio::test]
async fn a_repeat_in_flight_whose_answer_is_lost_joins_once() {
    let at = Behind::patient().await;
    at.spend("warm").await;
    let first = books::call(&at.key, "call-first", DOLLAR);
    books::reserve(&*at.ledger, first.clone()).await.unwrap().unwrap();
    let mut again = first;
    let mut facts = keybrake::ledger::CallFacts::clone(&again.facts);
    facts.call_id = "call-again".to_owned();
    again.facts = Arc::new(facts);
    let plain = format!("{:?}", at.ledger.reserve(again.clone()).await.unwrap());
    at.relay.lose_reply("call-again");
    let lost = at.ledger.reserve(again).await.unwrap();
    assert!(at.relay.wait_caught(1), "no answer was lost");
    assert!(!matches!(lost, ReserveAnswer::Denied(_)), "{lost:?}");
    println!("{plain}\n{lost:?}");
    assert_eq!(used_and_held(&*at.ledger).await, (DOLLAR, DOLLAR));
    books_agree(&*at.ledger).await;
}

/// A refused call, and a repeat of one that is done, have one row each in the audit, although the first answer was lost.
#[tokio::test]
async fn denials_and_repeats_whose_answers_are_lost_have_one_row() {
    let at = Behind::patient().await;
    at.spend("warm").await;
    let lost = async |request: ReserveRequest, nth: u64, code: &str| {
        let call_id = request.facts.call_id.clone();
        at.relay.lose_reply(call_id.as_str());
        let refused = books::reserve(&*at.ledger, request).await.unwrap().unwrap_err();
        assert!(at.relay.wait_caught(nth), "no answer was lost");
        assert_eq!(refused, code);
        let events = at.ledger.events(EventFilter::default()).await.unwrap();
        let rows = events.iter().filter(|event| {
            let own = event.body.facts.as_ref();
            own.is_some_and(|own| own.call_id == call_id)
        });
        assert_eq!(rows.count(), 1, "{call_id}");
    };
    lost(
        books::call(&at.key, "call-dear", 1_000_000 * DOLLAR),
        1,
        "CapExceeded",
    )
    .await;
    let mut repeat = books::call(&at.key, "warm", DOLLAR);
    Arc::make_mut(&mut repeat.facts).call_id = "call-repeat".to_owned();
    lost(repeat, 2, "AlreadyDone").await;
    books_agree(&*at.ledger).await;
}

/// A call that was let through in a draft whose answer was lost, and refused in the next one, is refused, also when the
/// network said the refusal twice and only the second, vain answer arrived.
#[tokio::test]
async fn a_refusal_that_the_network_says_twice_stays_a_refusal() {
    let at = Behind::patient().await;
    let key = books::key(
        &*at.ledger,
        "vk_tight",
        &[books::lifetime("vk_tight", 2 * DOLLAR)],
    )
    .await
    .unwrap();
    books::reserve(&*at.ledger, books::call(&key, "call-first", DOLLAR))
        .await
        .unwrap()
        .unwrap();
    // What is left goes to another process, so that this one drafts on what was.
    let other = fleet::open(&at.fleet.url()).unwrap();
    books::reserve(&other, books::call(&key, "call-other", DOLLAR))
        .await
        .unwrap()
        .unwrap();
    at.relay.lose_reply("call-second");
    at.relay.say_twice("kind\":\"denied");
    let refused = books::reserve(&*at.ledger, books::call(&key, "call-second", DOLLAR)).await;
    assert!(
        at.relay.wait_caught(2),
        "nothing was lost, or nothing was said twice"
    );
    assert_eq!(refused.unwrap().unwrap_err(), "CapHeld");
    assert_eq!(events_of(&*at.ledger, EventKind::Denied).await.len(), 1);
    assert_eq!(events_of(&*at.ledger, EventKind::Reserved).await.len(), 2);
    books_agree(&*at.ledger).await;
}

/// What an administrator does is done once and answered as done, although the first answer was lost.
#[tokio::test]
async fn an_administrators_acts_whose_answers_are_lost_are_done_once_and_said_so() {
    let at = Behind::patient().await;
    let scope = || StopScope::Label("tests".to_owned());
    at.relay.lose_reply("vk_2");
    let issued = books::key(&*at.ledger, "vk_2", &[books::lifetime("vk_2", DOLLAR)]).await;
    assert!(at.relay.wait_caught(1), "no answer was lost");
    assert_eq!(issued.unwrap().id, "vk_2");

    // Again without the helper, which looks for the key when it cannot be issued.
    let mut key = at.ledger.key("vk_2").await.unwrap().unwrap();
    key.id = "vk_3".to_owned();
    key.token_hash = keybrake::ledger::TokenHash("hash-of-vk_3".to_owned());
    let issue = keybrake::ledger::IssueKey {
        key,
        expires_in_ms: Some(books::DAY_MS),
        attribution_only: Vec::new(),
        admin: books::admin(),
    };
    at.relay.lose_reply("hash-of-vk_3");
    let issued = at.ledger.issue_key(issue.clone()).await.unwrap();
    assert!(at.relay.wait_caught(2), "no answer was lost");
    assert_eq!((issued.id.as_str(), issued.version), ("vk_3", 1));
    let twice = at.ledger.issue_key(issue).await.unwrap_err();
    assert!(twice.to_string().contains("exists already"), "{twice}");

    at.relay.lose_reply("label:tests");
    at.ledger.stop(scope(), books::admin()).await.unwrap();
    assert!(at.relay.wait_caught(3), "no answer was lost");
    assert_eq!(at.ledger.stops().await.unwrap().len(), 1);

    at.relay.lose_reply("label:tests");
    assert!(
        at.ledger.resume(&scope(), books::admin()).await.unwrap(),
        "it was stopped"
    );
    assert!(at.relay.wait_caught(4), "no answer was lost");
    assert!(!at.ledger.resume(&scope(), books::admin()).await.unwrap());

    at.relay.lose_reply("revoke");
    assert!(
        at.ledger.revoke("vk_2", books::admin()).await.unwrap(),
        "it was open"
    );
    assert!(at.relay.wait_caught(5), "no answer was lost");
    assert!(!at.ledger.revoke("vk_2", books::admin()).await.unwrap());

    let acts = events_of(&*at.ledger, EventKind::Admin).await;
    let mut acts: Vec<&str> = acts
        .iter()
        .filter_map(|event| event.body.admin.as_ref())
        .map(|admin| admin.act.as_str())
        .collect();
    acts.sort_unstable();
    assert_eq!(acts, ["issue", "issue", "issue", "resume", "revoke", "stop"]);
    books_agree(&*at.ledger).await;
}

/// A command that waits in the network and arrives after its repeat has been answered does nothing.
#[tokio::test]
async fn a_command_that_arrives_late_changes_nothing() {
    let at = Behind::patient().await;
    at.spend("warm").await;
    let impatient = at.impatient(400).await;
    let before = used_and_held(&*at.ledger).await.0;
    let waiting = "late";
    // It is sent into the cut, is given up, and so is its repeat.
    at.relay.partition();
    at.refused_by(&impatient, waiting).await;
    at.relay.pass().unwrap();
    // Whatever arrived late and whatever is asked now is one call.
    let patient = fleet::open(&at.fleet.url()).unwrap();
    books::reserve(&patient, books::call(&at.key, waiting, DOLLAR))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(used_and_held(&patient).await, (before, DOLLAR));
    patient.settle(books::charged(waiting, DOLLAR)).await.unwrap();
    assert_eq!(used_and_held(&patient).await, (before + DOLLAR, 0));
    books_agree(&patient).await;
}

/// Silence is a refusal after at most two attempts, each no longer than the URL says, and it is over when it is over.
#[tokio::test]
async fn silence_refuses_in_bounded_time_and_ends_without_a_restart() {
    let at = Behind::patient().await;
    let impatient = at.impatient(300).await;
    for round in 0..3 {
        let before = at.relay.accepted();
        match round {
            0 => at.relay.black_hole(),
            1 => at.relay.partition(),
            _ => at.fleet.server.stop().unwrap(),
        }
        let began_ms = SystemClock.boot_ms();
        let said = at.refused_by(&impatient, &format!("silent {round}")).await;
        let took_ms = SystemClock.boot_ms() - began_ms;
        println!("round {round}: refused after {took_ms} ms: {said}");
        assert!(
            said.contains("300 ms") || said.contains("cannot be reached"),
            "{said}"
        );
        // An answer waited for, then one connection. More would be another attempt.
        assert!((250..30_000).contains(&took_ms), "{took_ms} ms");
        let made = at.relay.accepted() - before;
        assert!(made <= 1, "{made} connections were tried in round {round}");
        at.relay.pass().unwrap();
        at.fleet.server.cont().unwrap();
        at.recovered(&impatient, &format!("after {round}")).await;
    }
    books_agree(&*at.ledger).await;
}

#[tokio::test]
async fn an_unreachable_server_refuses_at_once_and_is_found_again() {
    let at = Behind::patient().await;
    at.spend("warm").await;
    let before = at.received();
    at.relay.refuse().unwrap();
    at.relay.drop_all();
    eventually(async || clients(&at.fleet.server) == 0).await;
    for number in 0..50 {
        let said = at.refused(&format!("refused {number}")).await;
        assert!(said.contains("cannot be reached"), "{said}");
    }
    let after = at.received();
    assert_eq!(after.1, before.1, "no command reached the server");
    at.relay.pass().unwrap();
    at.recovered(&at.ledger, "after").await;
    books_agree(&*at.ledger).await;
}

#[tokio::test]
async fn a_slow_network_is_slow_and_nothing_else() {
    let at = Behind::patient().await;
    at.spend("warm").await;
    at.relay.delay(Duration::from_millis(30));
    // A step that took longer than the ledger thinks is drafted again, as after any pause of this machine: one command
    // each it is once at least, and at most one more each.
    let mut commands = Vec::new();
    for number in 0..5 {
        let before = at.received().1;
        at.spend(&format!("slow {number}")).await;
        commands.push(at.received().1 - before);
    }
    assert!(commands.contains(&2), "{commands:?}");
    assert!(commands.iter().all(|commands| *commands <= 4), "{commands:?}");
    books_agree(&*at.ledger).await;
}

/// 200 tasks lose their connection at once: one of them makes a new one, for all.
#[tokio::test]
async fn a_process_has_one_connection_whatever_happens_to_it() {
    let at = Arc::new(Behind::patient().await);
    at.spend("warm").await;
    assert_eq!(clients(&at.fleet.server), 1);
    for round in 0..5 {
        let before = at.received().0;
        let mut tasks = JoinSet::new();
        for task in 0..200 {
            let at = Arc::clone(&at);
            tasks.spawn(async move { at.spend(&format!("{round}-{task}")).await });
            if task == 100 {
                tokio::task::yield_now().await;
            }
        }
        at.relay.drop_all();
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        // Ours, and the two with which this test asked for the number.
        let made = at.received().0 - before;
        assert!(made <= 3, "{made} connections in round {round}");
        assert_eq!(clients(&at.fleet.server), 1);
    }
    books_agree(&*at.ledger).await;
}

/// The same when the server is gone for a while: the tasks do not queue up to try one after the other.
#[tokio::test]
async fn tasks_do_not_storm_a_server_that_is_down() {
    let at = Arc::new(Behind::patient().await);
    let impatient = Arc::new(at.impatient(200).await);
    at.relay.black_hole();
    let began_ms = SystemClock.boot_ms();
    let mut tasks = JoinSet::new();
    for task in 0..300 {
        let (at, impatient) = (Arc::clone(&at), Arc::clone(&impatient));
        tasks.spawn(async move { at.refused_by(&impatient, &format!("down {task}")).await });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let took_ms = SystemClock.boot_ms() - began_ms;
    println!("300 tasks were refused in {took_ms} ms with a timeout of 200 ms");
    // One after the other they would take a minute, twice.
    assert!(took_ms < 30_000, "they waited one after the other: {took_ms} ms");
}
