//! Said again what was lost: merged by rank, once, whatever refuses new calls.

use std::sync::Arc;

use keybrake::ledger::{
    BudgetAssertion, CallAssertion, EventKind, Grant, KeyAssertion, ObjectState, Proof, Reasserted,
    Reassertion, Reservation, ReserveAnswer, Scope, State, Stop, StopAssertion, StopScope, Unit, WindowKind,
};
use keybrake::policy::Code;

use super::super::World;
use super::super::world::{DAY_MS, HOUR_MS, budget, charged, daily, dollars, no_proof, note};

/// A call as another ledger has it, that this one never saw: the one given, under other names.
fn lost(of: &Reservation, call_id: &str) -> Reservation {
    let mut call = of.clone();
    let mut facts = call.facts.as_ref().clone();
    call_id.clone_into(&mut facts.call_id);
    call.facts = Arc::new(facts);
    call.identity = call.identity.map(|own| {
        let mut own = own.as_ref().clone();
        own.id = format!("{}|{call_id}", own.id);
        own.content_id = format!("{}|{call_id}", own.content_id);
        Arc::new(own)
    });
    call
}

/// The call with this outcome, as a proof of it would have left it.
fn ended(of: &Reservation, state: State) -> Reservation {
    let mut call = of.clone();
    call.state = state;
    let amount = of.held;
    let zero = dollars(0);
    let proof = match state {
        State::Held => return call,
        State::Unknown => "no_proof",
        State::Pending => "accepted",
        State::Provisional => "charged_provisionally",
        State::Settled => "charged",
        State::Voided => "failed_for_good",
    };
    call.applied.push((1, proof.to_owned()));
    (call.used, call.held) = match state {
        State::Provisional | State::Settled => (amount, zero),
        State::Voided => (zero, zero),
        State::Held | State::Unknown | State::Pending => (zero, amount),
    };
    call.ended_by = match state {
        State::Provisional | State::Settled => Some("charged".to_owned()),
        State::Voided => Some("declined".to_owned()),
        _ => None,
    };
    for charge in &mut call.charges {
        (charge.used, charge.held) = (call.used.micros(), call.held.micros());
    }
    call
}

fn said(call: Reservation) -> Reassertion {
    Reassertion {
        calls: vec![CallAssertion {
            call,
            found_by: Vec::new(),
            object: None,
        }],
        ..Reassertion::default()
    }
}

impl World {
    async fn reassert(&self, said: &Reassertion) -> Reasserted {
        let first = self.ledger.reassert(said.clone()).await.unwrap();
        let events = self.events().await.len();
        let again = self.ledger.reassert(said.clone()).await.unwrap();
        let all = first.changed + first.unchanged;
        assert_eq!((again.changed, again.unchanged), (0, all), "said twice: {said:?}");
        assert_eq!(self.events().await.len(), events, "said twice: {said:?}");
        first
    }

    async fn call_of(&self, grant: &Grant) -> Reservation {
        self.ledger.reservation(&grant.call_id).await.unwrap().unwrap()
    }
}

/// At a full cap, under a stop, with a revoked key: what was decided stands again, and its twin joins it.
pub async fn reassert_takes_over_what_was_decided(world: &World) {
    let def = daily("a", 100);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    let asked = world.call(&key, 60).step("one");
    let held = world.call_of(&world.granted(&asked).await).await;
    let stop = world.ledger.stop(StopScope::All, note("test")).await.unwrap();
    assert!(stop.keys_refused > 0);
    world.ledger.revoke(&key.id, note("test")).await.unwrap();
    let other = lost(&held, "lost");
    assert_eq!(world.reassert(&said(other.clone())).await.changed, 1);
    assert_eq!(world.used_held(&def).await, (0, 120));
    assert_eq!(world.ledger.reservation("lost").await.unwrap(), Some(other));
    let settled = lost(&ended(&held, State::Settled), "settled");
    world.reassert(&said(settled)).await;
    assert_eq!(world.used_held(&def).await, (60, 120));
    let again: Vec<_> = world.events().await;
    let again: Vec<_> = again
        .iter()
        .filter(|event| event.kind == EventKind::Reasserted)
        .collect();
    assert_eq!(again.len(), 2);
    assert!(
        again
            .iter()
            .all(|event| event.body.begins && event.deltas.len() == 1)
    );

    world.ledger.resume(&StopScope::All, note("test")).await.unwrap();
    let fresh = world.key("a", &[def]).await;
    let mut retry = asked.retry(world, &fresh);
    if let Some(own) = &mut retry.identity {
        own.id = format!("{}|lost", own.id);
        own.content_id = format!("{}|lost", own.content_id);
    }
    let joined = world.granted(&retry).await;
    assert_eq!(
        (joined.call_id.as_str(), joined.joined, joined.attempt),
        ("lost", true, 2)
    );
    if let Some(own) = &mut retry.identity {
        own.fields = vec![("amount".to_owned(), "1".to_owned())];
    }
    retry.facts.call_id = world.call(&fresh, 0).facts.call_id;
    assert_eq!(world.denied(&retry).await.code, Code::IdempotencyConflict);
}

/// Every state against every other, whichever stands and whichever is claimed.
pub async fn reassert_merges_by_rank(world: &World) {
    let (def, key) = world.capped(WindowKind::Rolling24h, 1_000_000_000).await;
    let ranked = [
        State::Held,
        State::Unknown,
        State::Pending,
        State::Provisional,
        State::Voided,
        State::Settled,
    ];
    let (mut used, mut held) = (0, 0);
    for (standing, there) in ranked.into_iter().enumerate() {
        for (said_rank, claimed) in ranked.into_iter().enumerate() {
            let mut call = world.call(&key, 5);
            // No two have the same content, so that none joins another that is unknown.
            call.facts.customer = Some(format!("cus {standing} {said_rank}"));
            let grant = world
                .granted(&call.step(&format!("{standing} {said_rank}")))
                .await;
            let first = world.call_of(&grant).await;
            let proof = match there {
                State::Held => None,
                State::Unknown => Some(no_proof("timeout")),
                State::Pending => Some(Proof::Accepted),
                State::Provisional => Some(Proof::ChargedProvisionally { actual: dollars(5) }),
                State::Voided => Some(Proof::FailedForGood),
                State::Settled => Some(charged(5)),
            };
            if let Some(proof) = proof {
                world.settle(&grant, proof).await;
            }
            // A proof of the other kind, so that neither is what became of the other.
            let came_to = world.reassert(&said(ended(&first, claimed))).await;
            let higher = ranked[standing.max(said_rank)];
            let found = world.call_of(&grant).await;
            assert_eq!(
                found.state, higher,
                "{there:?} stands, {claimed:?} is claimed: {came_to:?}"
            );
            assert!(found.identity.is_some() && found.attempts == 1);
            match higher {
                State::Provisional | State::Settled => used += 5,
                State::Voided => {}
                _ => held += 5,
            }
            assert_eq!(
                world.used_held(&def).await,
                (used, held),
                "{there:?}, {claimed:?}"
            );
        }
    }
}

/// A void proves nothing of an attempt that it did not know; what became of a call stays against its rank.
pub async fn reassert_knows_histories_from_ranks(world: &World) {
    let def = daily("a", 100);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    let asked = world.call(&key, 10).step("joined");
    let grant = world.granted(&asked).await;
    let join = world.granted(&asked.retry(world, &key)).await;
    assert!(join.joined);
    let with_two = world.call_of(&grant).await;
    // Another ledger lost the second attempt, and voided the call by its first.
    let mut with_one = ended(&with_two, State::Voided);
    (with_one.attempts, with_one.joined_by) = (1, Vec::new());
    with_one.not_executed = vec![1];
    with_one.applied = vec![(1, "did_not_execute".to_owned())];
    with_one.ended_by = Some("did_not_execute".to_owned());
    world.reassert(&said(with_one.clone())).await;
    assert_eq!(world.state(&grant.call_id).await, State::Held);
    assert_eq!(world.used_held(&def).await, (0, 10));
    world.reassert(&said(lost(&with_one, "other"))).await;
    assert_eq!(world.state("other").await, State::Voided);
    world.reassert(&said(lost(&with_two, "other"))).await;
    assert_eq!(world.state("other").await, State::Held);
    assert_eq!(world.used_held(&def).await, (0, 20));
    world.settle(&join, charged(10)).await;

    // Undone after it was settled; who only knows that it was settled changes nothing.
    let grant = world.granted(&world.call(&key, 10).step("payout")).await;
    world.charge(&grant, 10).await;
    let settled = world.call_of(&grant).await;
    world.settle(&grant, Proof::Reversed).await;
    let reversed = world.call_of(&grant).await;
    assert_eq!(world.reassert(&said(settled.clone())).await.changed, 0);
    world.reassert(&said(lost(&settled, "undone"))).await;
    assert_eq!(world.used_held(&def).await, (20, 10));
    world.reassert(&said(lost(&reversed, "undone"))).await;
    assert_eq!(world.state("undone").await, State::Voided);
    assert_eq!(world.used_held(&def).await, (10, 10));

    // Held again after it was voided.
    let grant = world.granted(&world.call(&key, 10).step("late")).await;
    world.settle(&grant, Proof::DidNotExecute).await;
    let voided = world.call_of(&grant).await;
    world.settle(&grant, Proof::Accepted).await;
    let pending = world.call_of(&grant).await;
    assert_eq!(world.reassert(&said(voided.clone())).await.changed, 0);
    world.reassert(&said(lost(&voided, "late"))).await;
    world.reassert(&said(lost(&pending, "late"))).await;
    assert_eq!(world.state("late").await, State::Pending);
    assert_eq!(world.used_held(&def).await, (10, 30));
}

/// Into the windows that reserved it: yesterday's day, a bucket that is still in the last 24 hours, one that is not.
pub async fn reassert_counts_in_the_window_that_reserved_it(world: &World) {
    let day = daily("a", 100);
    let rolling = budget(
        Scope::Run("run_1".to_owned()),
        Unit::Usd,
        WindowKind::Rolling24h,
        100_000_000,
    );
    let key = world.key("a", &[day.clone(), rolling.clone()]).await;
    let grant = world.granted(&world.call(&key, 10).step("first")).await;
    world.charge(&grant, 10).await;
    let early = world.call_of(&grant).await;
    world.clock.advance_ms(20 * HOUR_MS);
    let grant = world.granted(&world.call(&key, 10).step("second")).await;
    world.charge(&grant, 10).await;
    let late = world.call_of(&grant).await;
    assert_eq!(world.used_held(&day).await, (10, 0));
    assert_eq!(world.used_held(&rolling).await, (20, 0));
    world.reassert(&said(lost(&early, "early"))).await;
    assert_eq!(world.used_held(&day).await, (10, 0), "it was yesterday");
    assert_eq!(world.used_held(&rolling).await, (30, 0), "it was within 24 hours");
    world.clock.advance_ms(5 * HOUR_MS);
    world.reassert(&said(lost(&early, "too early"))).await;
    world.reassert(&said(lost(&late, "late"))).await;
    assert_eq!(world.used_held(&day).await, (20, 0));
    assert_eq!(world.used_held(&rolling).await, (20, 0));
    world.clock.advance_ms(DAY_MS);
    world
        .charge(&world.granted(&world.call(&key, 10).step("third")).await, 10)
        .await;
    assert_eq!(world.used_held(&rolling).await, (10, 0));
    // The same call in two windows, because it was asked for again where it was lost: it stays where it stands.
    let mut moved = early.clone();
    for charge in &mut moved.charges {
        let (family, _) = charge.counter.rsplit_once('|').unwrap();
        let start_ms = world.now_ms() - world.now_ms().rem_euclid(DAY_MS);
        charge.counter = format!("{family}|{start_ms}").into();
    }
    assert_eq!(world.reassert(&said(moved)).await.changed, 0);
}

/// Keys, revocations, stops, resumes and caps: the last act stays, in whatever order they are said.
pub async fn reassert_keeps_the_last_act(world: &World) {
    let def = daily("a", 100);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    let of_key = |id: &str, revoked_at_ms| {
        let mut record = key.clone();
        id.clone_into(&mut record.id);
        record.token_hash.0 = format!("hash of {id}");
        KeyAssertion {
            key_id: id.to_owned(),
            record: Some(Box::new(record)),
            version: 1,
            expires_at_ms: key.expires_at_ms,
            revoked_at_ms,
            ancestors: Vec::new(),
        }
    };
    let keys = |keys: Vec<KeyAssertion>| Reassertion {
        keys,
        ..Reassertion::default()
    };
    world.reassert(&keys(vec![of_key("vk_lost", None)])).await;
    let found = world.ledger.key("vk_lost").await.unwrap().unwrap();
    assert_eq!((found.version, found.revoked_at_ms), (key.version, None));
    let mut call = world.call(&key, 1);
    call.facts.key_id = Some("vk_lost".to_owned());
    world.granted(&call).await;
    // Its revocation was lost, too; and of another key the revocation is said before the key.
    let revoked = |id: &str| KeyAssertion {
        record: None,
        version: 2,
        ..of_key(id, Some(world.now_ms()))
    };
    world
        .reassert(&keys(vec![revoked("vk_lost"), revoked("vk_late")]))
        .await;
    world
        .reassert(&keys(vec![of_key("vk_late", None), of_key("vk_lost", None)]))
        .await;
    for id in ["vk_lost", "vk_late"] {
        let mut call = world.call(&key, 1);
        call.facts.key_id = Some(id.to_owned());
        assert_eq!(world.denied(&call).await.code, Code::KeyRevoked, "{id}");
    }

    let one = |since_ms, ended_at_ms, hard| Reassertion {
        stops: vec![StopAssertion {
            stop: Stop {
                scope: StopScope::Agent("a".to_owned()),
                since_ms,
                admin: note("said again"),
                hard,
            },
            ended_at_ms,
        }],
        ..Reassertion::default()
    };
    let stop = |since_ms, ended_at_ms| one(since_ms, ended_at_ms, false);
    let now_ms = world.now_ms();
    world.reassert(&stop(now_ms - 20, None)).await;
    assert_eq!(world.denied(&world.call(&key, 1)).await.code, Code::Stopped);
    // It was made a hard one, and that is not taken back by whoever knows only of the first.
    for (hard, changed) in [(true, 1), (false, 0), (true, 0)] {
        let again = one(now_ms - 20, None, hard);
        assert_eq!(world.reassert(&again).await.changed, changed);
        let stops = world.ledger.stops().await.unwrap();
        assert!(stops.iter().all(|stop| stop.hard), "{stops:?}");
    }
    world.reassert(&stop(now_ms - 30, Some(now_ms - 10))).await;
    world.granted(&world.call(&key, 1)).await;
    assert_eq!(world.reassert(&stop(now_ms - 20, None)).await.changed, 0);
    world.granted(&world.call(&key, 1)).await;
    // What is done now is later than all of that.
    world
        .ledger
        .stop(StopScope::Agent("a".to_owned()), note("test"))
        .await
        .unwrap();
    assert_eq!(
        world.reassert(&stop(now_ms - 30, Some(now_ms - 5))).await.changed,
        0
    );
    assert_eq!(world.denied(&world.call(&key, 1)).await.code, Code::Stopped);
    world
        .ledger
        .resume(&StopScope::Agent("a".to_owned()), note("test"))
        .await
        .unwrap();

    let capped = |cap: i64, at_ms| Reassertion {
        budgets: vec![BudgetAssertion {
            def: daily("a", cap),
            at_ms,
        }],
        ..Reassertion::default()
    };
    let cap = || async {
        let all = world.ledger.budgets(Some(&def.scope)).await.unwrap();
        all.first().unwrap().def.cap / 1_000_000
    };
    world.reassert(&capped(150, now_ms - 10)).await;
    world.reassert(&capped(200, now_ms - 20)).await;
    assert_eq!(cap().await, 150, "the older change stays away");
    world.reassert(&capped(120, now_ms - 10)).await;
    world.reassert(&capped(180, now_ms - 10)).await;
    assert_eq!(cap().await, 120, "of the same moment the lower");
    world
        .ledger
        .put_budget(daily("a", 90), note("test"))
        .await
        .unwrap();
    world.reassert(&capped(300, now_ms - 1)).await;
    assert_eq!(cap().await, 90);
}

/// The exposure of an intent comes back with its calls, and what has moved is still counted once.
pub async fn reassert_restores_exposure(world: &World) {
    const INTENT: &str = "stripe|live||pi_1";
    const OTHER: &str = "stripe|live||pi_2";
    let def = daily("a", 1_000);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    let create = world.granted(&world.call(&key, 100).step("create")).await;
    world.seen(&create, Proof::Accepted, (INTENT, 0, false)).await;
    let capture = world.granted(&world.call(&key, 60).raising(INTENT)).await;
    world.seen(&capture, charged(60), (INTENT, 60, false)).await;
    let of = |call: &Reservation, id: &str| {
        let mut call = lost(call, id);
        call.object = Some(OTHER.to_owned());
        CallAssertion {
            call,
            found_by: Vec::new(),
            object: Some(ObjectState {
                object: OTHER.to_owned(),
                moved: dollars(60),
                closed: false,
            }),
        }
    };
    let both = Reassertion {
        calls: vec![
            of(&world.call_of(&create).await, "lost create"),
            of(&world.call_of(&capture).await, "lost capture"),
        ],
        ..Reassertion::default()
    };
    world.reassert(&both).await;
    assert_eq!(world.used_held(&def).await, (120, 80));
    // What is exposed already is not reserved again, and the next capture is counted to its total.
    let grant = world.granted(&world.call(&key, 100).raising(OTHER)).await;
    assert_eq!(grant.amount, dollars(0));
    world.seen(&grant, charged(100), (OTHER, 100, true)).await;
    assert_eq!(world.used_held(&def).await, (160, 40));
}

/// A call whose amounts are not those of its charges is no ledger's, and nothing of what came with it is taken over.
pub async fn reassert_refuses_what_no_ledger_wrote(world: &World) {
    let def = daily("a", 100);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    let held = world.call_of(&world.granted(&world.call(&key, 10)).await).await;
    let mut wrong = lost(&held, "wrong");
    wrong.held = dollars(1);
    let mut both = said(lost(&held, "right"));
    both.calls.extend(said(wrong).calls);
    assert!(world.ledger.reassert(both).await.is_err());
    assert_eq!(world.used_held(&def).await, (0, 10));
    assert!(world.ledger.reservation("right").await.unwrap().is_none());
    match world.ask(&world.call(&key, 90)).await {
        ReserveAnswer::Granted(_) => {}
        other => panic!("{other:?}"),
    }
}
