//! The Redis ledger over hours and days, on a server whose time the test sets.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::Arc;

use keybrake::Usd;
use keybrake::ledger::redis::RedisLedger;
use keybrake::ledger::{
    HoldFilter, IdentityAsk, IdentityKind, KeyRecord, Ledger, Proof, ReserveRequest, State,
};
use keybrake_testkit::sim::Alone;
use keybrake_tests::books::{self, DAY_MS, DOLLAR, NOW_MS};

const HOUR_MS: i64 = 3_600_000;

/// A key that is good for a day; all of them draw on one budget.
async fn key(ledger: &RedisLedger, id: &str) -> KeyRecord {
    books::key(ledger, id, &[books::lifetime("a", 100 * DOLLAR)])
        .await
        .unwrap()
}

/// A call that is known by its content alone, for a day.
fn by_content(key: &KeyRecord, call_id: &str, content: &str) -> ReserveRequest {
    let mut call = books::call(key, call_id, DOLLAR);
    let mut ask = IdentityAsk::clone(call.identity.as_ref().unwrap());
    ask.kind = IdentityKind::Content;
    ask.id = format!("identity-of-{content}");
    content.clone_into(&mut ask.content_id);
    ask.remember_ms = DAY_MS;
    call.identity = Some(Arc::new(ask));
    call
}

fn no_proof(call_id: &str) -> keybrake::ledger::Settlement {
    let reason = "timeout".to_owned();
    books::settlement(call_id, Proof::NoProof { reason })
}

async fn repeat(ledger: &RedisLedger, request: ReserveRequest) -> String {
    match books::reserve(ledger, request).await.unwrap() {
        Ok(grant) => format!(
            "granted generation {}, joined: {}",
            grant.generation, grant.joined
        ),
        Err(code) => code,
    }
}

/// Its time is over after a day, but not while nobody knows what became of it.
#[tokio::test]
async fn an_open_calls_identity_has_no_end() {
    let server = Alone::at(NOW_MS);
    let ledger = server.open(1_000).await;
    let first = key(&ledger, "vk_1").await;
    for name in ["timed out", "accepted", "silent"] {
        let call = by_content(&first, name, name);
        books::reserve(&ledger, call).await.unwrap().unwrap();
    }
    ledger.settle(no_proof("timed out")).await.unwrap();
    let accepted = books::settlement("accepted", Proof::Accepted);
    ledger.settle(accepted).await.unwrap();
    // Of the third nobody hears anything, and nobody asks for days.
    server.advance_ms(49 * HOUR_MS);
    let other = server.open(1_000).await;
    let second = key(&other, "vk_2").await;
    for name in ["timed out", "silent"] {
        let call = by_content(&second, &format!("{name} again"), name);
        assert_eq!(repeat(&other, call).await, "OutcomeUnknown", "{name}");
    }
    let call = by_content(&second, "accepted again", "accepted");
    assert_eq!(repeat(&other, call).await, "AlreadyDone");
    assert_eq!(other.holds(HoldFilter::default()).await.unwrap().len(), 3);
}

/// From its end on it is remembered for as long as it says, then its pointer goes, and with it the call.
#[tokio::test]
async fn an_identity_is_remembered_from_the_end_of_its_call() {
    let server = Alone::at(NOW_MS);
    let ledger = server.open(1_000).await;
    let first = key(&ledger, "vk_1").await;
    books::reserve(&ledger, by_content(&first, "one", "one"))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(server.kept_for_ms("p:identity-of-one"), Some(2 * DAY_MS));
    ledger.settle(no_proof("one")).await.unwrap();
    assert!(server.has("p:identity-of-one"));
    assert_eq!(server.kept_for_ms("p:identity-of-one"), None, "without an end");
    server.advance_ms(40 * DAY_MS);
    // Another process settles it: what it does not know of the identity it is told.
    let other = server.open(1_000).await;
    other.settle(books::charged("one", DOLLAR)).await.unwrap();
    assert_eq!(server.kept_for_ms("p:identity-of-one"), Some(2 * DAY_MS));
    let second = key(&other, "vk_2").await;
    server.advance_ms(DAY_MS - 1);
    assert_eq!(
        repeat(&other, by_content(&second, "again", "one")).await,
        "AlreadyDone"
    );
    server.advance_ms(DAY_MS + 2);
    assert!(!server.has("p:identity-of-one"));
    assert!(server.has("r:one"));
    let third = key(&other, "vk_3").await;
    assert!(
        repeat(&other, by_content(&third, "later", "one"))
            .await
            .starts_with("granted")
    );
    server.advance_ms(40 * DAY_MS);
    assert!(!server.has("r:one"));
}

/// A usual call writes its identity's pointer once.
#[tokio::test]
async fn a_call_that_ends_at_once_leaves_its_pointer_alone() {
    let server = Alone::at(NOW_MS);
    let ledger = server.open(1_000).await;
    let first = key(&ledger, "vk_1").await;
    books::reserve(&ledger, by_content(&first, "one", "one"))
        .await
        .unwrap()
        .unwrap();
    server.advance_ms(60_000);
    ledger.settle(books::charged("one", DOLLAR)).await.unwrap();
    assert_eq!(server.kept_for_ms("p:identity-of-one"), Some(2 * DAY_MS - 60_000));
}

/// The same content under another identity joins an unknown call; that identity, too, has no end before the call has.
#[tokio::test]
async fn an_identity_that_joined_an_open_call_has_no_end_either() {
    let server = Alone::at(NOW_MS);
    let ledger = server.open(1_000).await;
    let first = key(&ledger, "vk_1").await;
    books::reserve(&ledger, by_content(&first, "one", "one"))
        .await
        .unwrap()
        .unwrap();
    ledger.settle(no_proof("one")).await.unwrap();
    let as_step = |key: &KeyRecord, call_id: &str| {
        let mut call = by_content(key, call_id, "one");
        let mut ask = IdentityAsk::clone(call.identity.as_ref().unwrap());
        ask.kind = IdentityKind::Step;
        ask.id = "identity-of-step".to_owned();
        call.identity = Some(Arc::new(ask));
        call
    };
    let joined = repeat(&ledger, as_step(&first, "two")).await;
    assert_eq!(joined, "granted generation 1, joined: true");
    // The vendor accepted it: now only the pointer says that the step has been done.
    ledger
        .settle(books::settlement("one", Proof::Accepted))
        .await
        .unwrap();
    server.advance_ms(49 * HOUR_MS);
    let second = key(&ledger, "vk_2").await;
    assert_eq!(repeat(&ledger, as_step(&second, "three")).await, "AlreadyDone");
    ledger.settle(books::charged("one", DOLLAR)).await.unwrap();
    assert_eq!(server.kept_for_ms("p:identity-of-step"), Some(2 * DAY_MS));
    let call = ledger.reservation("one").await.unwrap().unwrap();
    assert_eq!(
        (call.state, call.used),
        (State::Settled, Usd::from_micros(DOLLAR))
    );
}

/// Commands reach the server later than half a second after they were sent, every time.
#[tokio::test]
async fn a_far_server_can_be_used() {
    let server = Alone::at(NOW_MS);
    let ledger = server.open(5_000).await;
    let first = key(&ledger, "vk_1").await;
    server.set_late_ms(700);
    for name in ["one", "two"] {
        let granted = books::reserve(&ledger, books::call(&first, name, DOLLAR)).await;
        let granted = granted.unwrap().unwrap();
        let left_ms = granted.not_after_ms - server.now_ms();
        assert!(left_ms >= 130_000, "a hold is given the time on top: {left_ms}");
    }
    server.take_asked();
    ledger.settle(books::charged("one", DOLLAR)).await.unwrap();
    assert_eq!(server.take_asked().len(), 1, "once it is known");
}

/// It never comes to a decision: then it says so, and does not go on asking.
#[tokio::test]
async fn a_step_that_is_always_too_late_is_given_up() {
    let server = Alone::at(NOW_MS);
    let ledger = server.open(1_000).await;
    let first = key(&ledger, "vk_1").await;
    server.set_late_ms(1_600);
    server.take_asked();
    let refused = books::reserve(&ledger, books::call(&first, "one", DOLLAR)).await;
    let said = refused.unwrap_err().to_string();
    assert!(said.contains("no decision within 3 times 1000 ms"), "{said}");
    assert!(server.take_asked().len() < 5);
    server.set_late_ms(0);
    books::reserve(&ledger, books::call(&first, "one", DOLLAR))
        .await
        .unwrap()
        .unwrap();
}

/// The server was ten minutes fast and is set right: the ledger's time stands still for as long.
#[tokio::test]
async fn a_clock_that_was_set_back_can_be_accepted() {
    let server = Alone::at(NOW_MS);
    server.set_ahead_ms(600_000);
    let (idle, other) = (server.open(1_000).await, server.open(1_000).await);
    let first = key(&idle, "vk_1").await;
    books::reserve(&idle, books::call(&first, "one", DOLLAR))
        .await
        .unwrap()
        .unwrap();
    server.set_ahead_ms(0);
    server.advance_ms(6 * 60_000);
    let refused = books::reserve(&idle, books::call(&first, "two", DOLLAR)).await;
    assert!(refused.unwrap_err().to_string().contains("jumped"));
    other.accept_clock(books::admin()).await.unwrap();
    books::reserve(&idle, books::call(&first, "two", DOLLAR))
        .await
        .unwrap()
        .unwrap();
    // It was accepted once, and not for whatever comes.
    server.set_ahead_ms(3_600_000);
    let refused = books::reserve(&idle, books::call(&first, "three", DOLLAR)).await;
    assert!(refused.unwrap_err().to_string().contains("jumped"));
}

/// A process has died, and it is waited for three seconds. The server's clock goes back by four minutes meanwhile.
#[tokio::test]
async fn a_clock_that_is_set_back_while_the_dead_are_waited_for_keeps_nobody_waiting_longer() {
    let server = Alone::at(NOW_MS);
    let [ledger, dies] = [server.open(100).await, server.open(100).await].map(Arc::new);
    let first = key(&ledger, "vk_1").await;
    let grant = |of: &Arc<RedisLedger>, id| {
        let of = Arc::clone(of);
        let call = books::call(&first, id, DOLLAR);
        async move { books::reserve(&*of, call).await }
    };
    grant(&dies, "one").await.unwrap().unwrap();
    grant(&ledger, "two").await.unwrap().unwrap();
    drop(dies);
    server.restart();
    for set_back_ms in [0, 240_000] {
        server.set_ahead_ms(-set_back_ms);
        let refused = grant(&ledger, "three").await.unwrap_err();
        assert!(refused.to_string().contains("waits for 1 processes"), "{refused}");
    }
    server.advance_ms(3_001);
    grant(&ledger, "three").await.unwrap().unwrap();
}

/// A read of which nobody heard: it holds nothing, and nobody can resolve it.
#[tokio::test]
async fn a_lost_read_goes_after_a_while() {
    let server = Alone::at(NOW_MS);
    let ledger = server.open(1_000).await;
    let first = key(&ledger, "vk_1").await;
    for name in ["read", "money"] {
        let mut call = books::call(&first, name, if name == "read" { 0 } else { DOLLAR });
        if name == "read" {
            let mut facts = keybrake::ledger::CallFacts::clone(&call.facts);
            (facts.moves_money, facts.direction) = (false, 0);
            call.facts = Arc::new(facts);
            call.identity = None;
        }
        books::reserve(&ledger, call).await.unwrap().unwrap();
    }
    server.advance_ms(HOUR_MS);
    assert_eq!(ledger.sweep(10).await.unwrap(), 2);
    assert_eq!(server.kept_for_ms("r:money"), None);
    assert!(server.kept_for_ms("r:read").is_some());
    server.advance_ms(40 * DAY_MS);
    assert!(server.has("r:money") && !server.has("r:read"));
    let verified = ledger.verify().await.unwrap();
    assert!(verified.differences.is_empty(), "{verified:?}");
}
