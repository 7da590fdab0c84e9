//! `stop --hard`: calls in flight are aborted in every process and left unknown; nothing else is touched. The vendor's own
//! journal is the truth.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a failed unwrap is a failed test"
)]

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keybrake::brake::{CallContext, KeyOrigin, Limits};
use keybrake::client::{Opened, broken_off};
use keybrake::facade::{IssuedKey, Keybrake};
use keybrake::ledger::{AdminNote, CheckGrade, EventKind, HoldFilter, State, StopScope, Told};
use keybrake::policy::{Code, Denial, Policy, words};
use keybrake::request::Call;
use keybrake::secret::Secret;
use keybrake_testkit::redis::{PATIENCE, Persistence};
use keybrake_testkit::stripe::{
    Fault, FaultKind, MovementKind, Release, Seed, SeedCharge, Simulator, SimulatorOptions, TEST_SECRET,
};
use keybrake_tests::fleet::{Fleet, books_agree, events_of};
use keybrake_tests::processes::Worker;
use keybrake_tests::{Ended, ended, eventually, noon_zone, post, refunds};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

const WORKER: &str = env!("CARGO_BIN_EXE_governed_worker");

#[expect(clippy::disallowed_methods, reason = "measures real time")]
fn now() -> Instant {
    Instant::now()
}

fn admin() -> AdminNote {
    AdminNote {
        by: "ada".to_owned(),
        reason: "refund loop".to_owned(),
    }
}

/// A simulator and an engine on a ledger.
struct Place {
    stripe: Simulator,
    kb: Keybrake,
    url: String,
}

impl Place {
    async fn new(url: &str) -> Self {
        let mut seed = Seed::standard();
        seed.charges.push(SeedCharge::new("ch_large", 100_000_000, "usd"));
        let options = SimulatorOptions {
            seed,
            ..SimulatorOptions::default()
        };
        let stripe = Simulator::start(options).unwrap();
        let kb = Keybrake::builder()
            .ledger(url)
            .secret("stripe", Secret::value(TEST_SECRET))
            .base_url("stripe", stripe.url())
            .limits(Limits {
                request_ms: 60_000,
                ..Limits::default()
            })
            .build()
            .await
            .unwrap();
        Self {
            stripe,
            kb,
            url: url.to_owned(),
        }
    }

    async fn key(&self, run: &str) -> IssuedKey {
        let mut policy = refunds(500_000);
        let fields = policy.as_object_mut().unwrap();
        fields.insert("timezone".to_owned(), noon_zone().into());
        let allowed = [
            "refunds.create",
            "payment_intents.create",
            "payment_intents.confirm",
            "transfers.create",
            "reads",
        ];
        fields.insert("allowed_endpoints".to_owned(), json!(allowed));
        let policy = Policy::from_value(&policy).unwrap();
        self.kb.issue(policy).run(run).await.unwrap()
    }

    /// Starts a refund whose reply the vendor keeps back once it has executed it.
    fn held(&self, key: &IssuedKey, step: &str) -> JoinHandle<Ended> {
        let mut call = post("/v1/refunds", "charge=ch_large&amount=400");
        authorize(&mut call, key);
        let context = CallContext {
            step: Some(step.to_owned()),
            key_origin: KeyOrigin::Generated,
            ..CallContext::default()
        };
        let shell = Arc::clone(self.kb.shell());
        tokio::spawn(async move { ended(shell.send(call, context, Duration::ZERO).await.unwrap()) })
    }

    fn hold_replies(&self) {
        let fault = Fault::new(FaultKind::HoldUntilReleased)
            .on("POST", "/v1/refunds")
            .after_executing();
        self.stripe.fault(fault.times(1_000)).unwrap();
    }

    /// Waits until the vendor holds so many.
    async fn wait(&self, held: u64) {
        let held = self.stripe.wait_held(held, PATIENCE * 6).await;
        assert!(held, "{:?}", self.stripe.requests());
    }

    /// The command of a process of its own.
    fn cli(&self, words: &[&str]) -> Value {
        let mut command = Command::new(WORKER);
        command
            .args(["keybrake", "--json", "--ledger", &self.url])
            .args(words);
        let said = Worker::start(&mut command).finish().join("\n");
        serde_json::from_str(&said).unwrap_or_else(|_| panic!("{said}"))
    }

    async fn state(&self, call_id: &str) -> (State, Option<String>) {
        let call = self.kb.ledger().reservation(call_id).await.unwrap().unwrap();
        (call.state, call.unknown_reason)
    }
}

fn authorize(call: &mut Call, key: &IssuedKey) {
    let bearer = format!("Bearer {}", key.token.expose());
    call.headers.push(("Authorization".to_owned(), bearer));
}

fn aborted(ended: &Ended) -> Denial {
    let denial = ended.denial.clone().unwrap_or_else(|| panic!("{ended:?}"));
    assert_eq!((denial.code, denial.aborted), (Code::Stopped, true), "{denial:?}");
    assert_eq!(ended.status, 403);
    for text in [&denial.message, &words::for_model(&denial)] {
        assert!(
            !text.contains("othing was sent") && !text.contains("no money moved"),
            "{text}"
        );
        assert!(text.to_lowercase().contains("unknown"), "{text}");
    }
    assert_eq!(ended.record.state, Some(State::Unknown));
    denial
}

/// One call in flight in this process, stopped by the command in another; then reconciled.
async fn stopped_from_another_process(url: &str, told: Value) {
    let place = Place::new(url).await;
    let (loops, other) = (place.key("run_42").await, place.key("run_7").await);
    place.hold_replies();
    let call = place.held(&loops, "a");
    let untouched = place.held(&other, "b");
    place.wait(2).await;

    let began = now();
    let answer = tokio::task::block_in_place(|| place.cli(&["stop", "run_42", "--hard", "--reason", "loop"]));
    let said = began.elapsed();
    let ended = call.await.unwrap();
    let took = began.elapsed();
    println!(
        "{}: the command took {said:?} in all ({} ms in the ledger); the caller had its denial after {took:?}",
        url.split(':').next().unwrap(),
        answer["took_ms"]
    );
    assert_eq!(answer["hard"], true);
    assert_eq!(answer["in_flight"].as_array().unwrap().len(), 1, "{answer}");
    assert_eq!(answer["processes_told"], told);
    assert!(
        answer["took_ms"].as_i64().unwrap() < 30_000,
        "{answer}: it waited for the call's reply"
    );
    assert!(took < Duration::from_mins(1), "{took:?}");
    let denial = aborted(&ended);
    assert_eq!(
        place.state(&denial.call_id).await,
        (State::Unknown, Some("aborted".to_owned()))
    );
    assert_eq!(place.held(&loops, "c").await.unwrap().code(), Some(Code::Stopped));

    // The vendor had executed it, and reconciliation finds that out; the other run was not touched.
    place.stripe.release(Release::default());
    assert_eq!(untouched.await.unwrap().status, 200);
    place.stripe.clear_faults();
    assert_eq!(place.stripe.moved(MovementKind::Refund, "usd"), 800);
    place
        .kb
        .reconcile(HoldFilter::default(), |_, _| ())
        .await
        .unwrap();
    assert_eq!(place.state(&denial.call_id).await.0, State::Settled);
    assert!(place.kb.holds(HoldFilter::default()).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hard_stop_aborts_what_another_process_has_in_flight_redis() {
    let fleet = Fleet::start(Persistence::None);
    stopped_from_another_process(&fleet.url(), json!(1)).await;
    books_agree(&fleet.open()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hard_stop_aborts_what_another_process_has_in_flight_sqlite() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", dir.path().join("spend.db").display());
    stopped_from_another_process(&url, Value::Null).await;
}

/// In one process, by every scope; the key's ancestors count.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_scope_aborts_its_calls_and_no_others() {
    let place = Place::new("memory:").await;
    let key = place.key("run_42").await;
    let scopes = [
        (
            StopScope::Run("run_42".to_owned()),
            StopScope::Run("run_4".to_owned()),
        ),
        (
            StopScope::Label("support".to_owned()),
            StopScope::Label("sup".to_owned()),
        ),
        (
            StopScope::Vendor("stripe".to_owned()),
            StopScope::Vendor("twilio".to_owned()),
        ),
        (StopScope::Key(key.id.clone()), StopScope::Key("vk_0".to_owned())),
        (StopScope::All, StopScope::Agent("nobody".to_owned())),
    ];
    for (number, (scope, other)) in scopes.into_iter().enumerate() {
        place.hold_replies();
        let call = place.held(&key, &format!("step-{number}"));
        place.wait(1).await;
        let untouched = place.kb.stop_hard(other.clone(), admin()).await.unwrap();
        assert!(untouched.in_flight.is_empty(), "{other:?}");
        // A soft stop lets it go on, and becomes a hard one.
        let soft = place.kb.stop(scope.clone(), admin()).await.unwrap();
        assert_eq!((soft.told, soft.stop.hard), (Told::NotAsked, false));
        assert!(!call.is_finished());
        let hard = place.kb.stop_hard(scope.clone(), admin()).await.unwrap();
        assert_eq!((hard.told, hard.stop.hard), (Told::TheyLook, true));
        assert_eq!(hard.stop.since_ms, soft.stop.since_ms);
        let denial = aborted(&call.await.unwrap());
        assert_eq!(denial.stop.unwrap().scope, scope.name());
        for scope in [scope, other] {
            assert!(place.kb.resume(&scope, admin()).await.unwrap());
        }
        place.stripe.release(Release::default());
        place.stripe.clear_faults();
    }
    // After the last was resumed, calls go through: nothing old aborts them.
    assert_eq!(place.held(&key, "afterwards").await.unwrap().status, 200);
}

/// Eight processes in the stopped run, and 49 runs in this one, with a call in flight each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_admitted_after_a_hard_stop_and_other_runs_are_untouched() {
    let fleet = Fleet::start(Persistence::None);
    let place = Place::new(&fleet.url()).await;
    let key = place.key("run_42").await;
    let token = key.token.expose();
    let mut workers: Vec<Worker> = (0..8)
        .map(|worker| {
            let first = (worker * 1_000_000).to_string();
            let words = [
                "spend",
                &place.url,
                &place.stripe.url(),
                &first,
                token,
                token,
                token,
            ];
            Worker::start(Command::new(WORKER).args(words))
        })
        .collect();
    for worker in &mut workers {
        while worker.next_line().unwrap() != "done" {}
    }
    let mut others = Vec::new();
    place.hold_replies();
    for run in 0..49 {
        let key = place.key(&format!("other-{run}")).await;
        others.push(place.held(&key, "one"));
    }
    // Each of the eight is held at its next refund.
    place.wait(49 + 8).await;
    until_listening(&fleet, 9).await;

    let began = now();
    let stop = place
        .kb
        .stop_hard(StopScope::Run("run_42".to_owned()), admin())
        .await
        .unwrap();
    let took = began.elapsed();
    assert_eq!((stop.other_runs, stop.in_flight.len()), (49, 8));
    assert_eq!(stop.told, Told::Processes(9));
    let ledger = fleet.open();
    let stopped_at = events_of(&ledger, EventKind::Admin).await.last().unwrap().seq;
    // Each is refused from then on: what it has in flight by an abort, then before anything is sent.
    for worker in &mut workers {
        let mut refused = 0;
        while refused < 20 {
            refused += u32::from(worker.next_line().unwrap() == "denied stopped");
        }
    }
    let late = events_of(&ledger, EventKind::Reserved)
        .await
        .into_iter()
        .filter(|event| event.seq > stopped_at)
        .count();
    assert_eq!(late, 0, "reserved after the stop");
    let unknown = place.kb.holds(HoldFilter::default()).await.unwrap();
    let unknown = unknown.iter().filter(|hold| hold.state == State::Unknown).count();
    println!(
        "a hard stop among 8 processes took {took:?}; {} calls were in flight, {:?}; {unknown} are unknown",
        stop.in_flight.len(),
        stop.told
    );
    for worker in workers {
        worker.kill();
    }
    assert!(others.iter().all(|call| !call.is_finished()));
    place.stripe.release(Release::default());
    for call in others {
        assert_eq!(call.await.unwrap().status, 200);
    }
    books_agree(&ledger).await;
}

/// Waits until so many processes would hear of a hard stop.
async fn until_listening(fleet: &Fleet, processes: i64) {
    eventually(async || {
        let asked = ["PUBSUB", "NUMSUB", "kb:{fleet}:aborts"];
        let answer = fleet.server.command(&asked).unwrap();
        answer.items().unwrap()[1].integer().unwrap() == processes
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_whose_connection_is_killed_comes_back() {
    let fleet = Fleet::start(Persistence::None);
    let place = Place::new(&fleet.url()).await;
    let key = place.key("run_42").await;
    place.hold_replies();
    let call = place.held(&key, "a");
    place.wait(1).await;
    until_listening(&fleet, 1).await;
    for _ in 0..3 {
        let killed = fleet
            .server
            .command(&["CLIENT", "KILL", "TYPE", "pubsub"])
            .unwrap();
        assert_eq!(killed.integer(), Some(1));
        until_listening(&fleet, 1).await;
    }
    let began = now();
    let stop = place.kb.stop_hard(StopScope::All, admin()).await.unwrap();
    assert_eq!(stop.told, Told::Processes(1));
    aborted(&call.await.unwrap());
    println!(
        "the caller had its denial {:?} after the stop was asked for",
        began.elapsed()
    );
    place.stripe.release(Release::default());
}

/// Without the channel's rights it takes a little longer, and both the stop and the doctor say so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_without_the_channel_aborts_by_looking() {
    let fleet = Fleet::start(Persistence::None);
    let rights = ["on", ">p", "~kb:{fleet}:*", "resetchannels", "+@all"];
    let words: Vec<&str> = ["ACL", "SETUSER", "kb"].into_iter().chain(rights).collect();
    fleet.server.command(&words).unwrap();
    let url = fleet.url().replace("redis://", "redis://kb:p@");
    let place = Place::new(&url).await;
    let key = place.key("run_42").await;
    place.hold_replies();
    let call = place.held(&key, "a");
    place.wait(1).await;
    let began = now();
    let stop = place.kb.stop_hard(StopScope::All, admin()).await.unwrap();
    aborted(&call.await.unwrap());
    println!(
        "aborted by looking, {:?} after the stop was asked for",
        began.elapsed()
    );
    let Told::Failed(why) = stop.told else {
        panic!("{:?}", stop.told)
    };
    assert!(why.contains("&kb:{fleet}:* +publish +subscribe"), "{why}");
    let checks = place.kb.ledger().checks().await.unwrap();
    let check = checks.iter().find(|check| check.name == "hard stops").unwrap();
    assert_eq!(check.grade, CheckGrade::Look, "{check:?}");
    assert!(
        check.advice.contains("&kb:{fleet}:* +publish +subscribe"),
        "{check:?}"
    );
    fleet
        .server
        .command(&["ACL", "SETUSER", "kb", "allchannels"])
        .unwrap();
    let checks = place.kb.ledger().checks().await.unwrap();
    let check = checks.iter().find(|check| check.name == "hard stops").unwrap();
    assert_eq!(check.grade, CheckGrade::Good, "{check:?}");
    place.stripe.release(Release::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_on_its_way_is_cut_off_with_the_denial() {
    let place = Place::new("memory:").await;
    let key = place.key("run_42").await;
    let fault = Fault::new(FaultKind::HoldBody)
        .on("GET", "/v1/")
        .chunk_bytes(1_000);
    place.stripe.fault(fault.times(2)).unwrap();
    let mut call = Call {
        method: "GET".to_owned(),
        url: "https://files.stripe.com/v1/quotes/qt_1/pdf".to_owned(),
        headers: Vec::new(),
        body: bytes::Bytes::new(),
    };
    authorize(&mut call, &key);
    let (shell, context) = (place.kb.shell(), CallContext::default);
    let whole = {
        let (shell, call) = (Arc::clone(shell), call.clone());
        tokio::spawn(async move { ended(shell.send(call, context(), Duration::ZERO).await.unwrap()) })
    };
    let Opened::Stream(mut stream) = shell.open(call, context(), Duration::ZERO).await.unwrap() else {
        panic!("not streamed")
    };
    assert!(stream.next().await.unwrap().is_ok());
    place.wait(2).await;
    place.kb.stop_hard(StopScope::All, admin()).await.unwrap();
    let error = loop {
        match stream.next().await.unwrap() {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    let broken = broken_off(&error).unwrap();
    assert_eq!(broken.reason, "aborted");
    assert!(broken.denial.as_ref().unwrap().aborted);
    let call_id = stream.record().call_id.clone();
    assert_eq!(
        place.state(&call_id).await,
        (State::Unknown, Some("aborted".to_owned()))
    );
    aborted(&whole.await.unwrap());
    place.stripe.release(Release::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_middleware_tells_its_caller() {
    let place = Place::new("memory:").await;
    let key = place.key("run_42").await;
    place.hold_replies();
    let run = place.kb.open_key(key.token.expose()).await.unwrap();
    let http = run.client().unwrap();
    let call = tokio::spawn(async move {
        let request = http
            .post("https://api.stripe.com/v1/refunds")
            .header("content-type", "application/x-www-form-urlencoded")
            .header("idempotency-key", "mine")
            .body("charge=ch_large&amount=400");
        request.send().await
    });
    place.wait(1).await;
    place
        .kb
        .stop_hard(StopScope::Run("run_42".to_owned()), admin())
        .await
        .unwrap();
    let error = call.await.unwrap().unwrap_err();
    let denial = keybrake::denied(&error).unwrap();
    assert_eq!((denial.code, denial.aborted), (Code::Stopped, true), "{denial:?}");
    place.stripe.release(Release::default());
    run.leave_open();
}
