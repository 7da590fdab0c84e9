//! Processes that make governed calls on one ledger, killed and stopped, against the Stripe simulator, whose journal
//! is the truth.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeSet;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use keybrake::audit::RowFilter;
use keybrake::brake::Limits;
use keybrake::clock::{Clock, ManualClock, SystemClock};
use keybrake::facade::{IssuedKey, Keybrake, Resolution};
use keybrake::ledger::{AdminNote, Event, EventFilter, EventKind, HoldFilter, Reservation, State, StopScope};
use keybrake::policy::{Code, Policy};
use keybrake::secret::Secret;
use keybrake_testkit::stripe::{
    Fault, FaultKind, MovementKind, Seed, SeedCharge, Simulator, SimulatorOptions, TEST_SECRET,
};
use keybrake_tests::processes::{Chance, Worker};
use keybrake_tests::{Ended, ended, generated, noon_zone, post, signed};
use serde_json::{Value, json};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_mins(2);

/// A ledger file and a vendor that processes share.
struct Place {
    stripe: Simulator,
    directory: TempDir,
}

impl Place {
    fn new() -> Self {
        let mut seed = Seed::standard();
        seed.charges.push(SeedCharge::new("ch_large", 100_000_000, "usd"));
        let options = SimulatorOptions {
            seed,
            ..SimulatorOptions::default()
        };
        Self {
            stripe: Simulator::start(options).unwrap(),
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn ledger(&self) -> String {
        format!("sqlite:{}", self.directory.path().join("spend.db").display())
    }

    async fn keybrake(&self, clock: Arc<dyn Clock>) -> Keybrake {
        Keybrake::builder()
            .ledger(self.ledger())
            .secret("stripe", Secret::value(TEST_SECRET))
            .base_url("stripe", self.stripe.url())
            .clock(clock)
            .limits(Limits {
                send_within_ms: 10_000,
                request_ms: 20_000,
                max_open_holds: 10_000,
                ..Limits::default()
            })
            .build()
            .await
            .unwrap()
    }

    /// A clock that stands at a moment at which every deadline of a call that has ended has passed.
    fn later() -> Arc<dyn Clock> {
        Arc::new(ManualClock::at(SystemClock.now_ms() + 40_000))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_governed_worker"));
        command.env("KEYBRAKE_LEDGER", self.ledger());
        command
    }

    fn worker(&self, what: &str, args: &[&str]) -> Worker {
        Worker::start(
            self.command()
                .args([what, &self.ledger(), &self.stripe.url()])
                .args(args),
        )
    }

    /// The `keybrake` command in a process of its own.
    fn cli(&self, args: &[&str]) -> Output {
        let done = self.command().arg("keybrake").args(args).output().unwrap();
        assert!(done.status.success(), "{args:?}: {done:?}");
        done
    }
}

/// A key with a cap of its own for one kind of spend.
struct Till {
    kind: MovementKind,
    cap: i64,
    key: IssuedKey,
}

impl Till {
    async fn open(kb: &Keybrake, kind: MovementKind, cap: i64, endpoints: &[&str]) -> Self {
        let policy = json!({"vendor": "stripe", "label": format!("{kind:?}"), "daily_usd_cap": cap,
            "timezone": noon_zone(), "allowed_endpoints": endpoints});
        let issue = kb.issue(Policy::from_value(&policy).unwrap());
        Self {
            kind,
            cap: cap * 1_000_000,
            key: issue.run("run_1").await.unwrap(),
        }
    }

    /// Used and held, in micro-USD.
    async fn books(&self, kb: &Keybrake) -> (i64, i64) {
        let usage = kb.usage(&self.key.id).await.unwrap();
        let budget = usage.iter().find(|budget| !budget.livemode).unwrap();
        assert_eq!(budget.view.cap, self.cap);
        (budget.view.used, budget.view.held)
    }

    /// What the vendor says moved, in micro-USD.
    fn moved(&self, stripe: &Simulator) -> i64 {
        stripe.moved(self.kind, "usd") * 10_000
    }

    /// A call by this process, as an SDK makes it.
    async fn call(&self, kb: &Keybrake, step: &str, path: &str, form: &str) -> Ended {
        let call = signed(&self.key, post(path, form));
        let context = generated(Some(step));
        ended(kb.shell().send(call, context, Duration::ZERO).await.unwrap())
    }
}

/// Reasons, not a bare "unknown": what happened, or what the hold waits for.
fn reason(hold: &Reservation) -> Option<&str> {
    match hold.state {
        State::Unknown => hold.unknown_reason.as_deref(),
        // An intent that was made and not confirmed holds what it could still move.
        State::Pending => hold.reply_facts.vendor_object.as_deref(),
        _ => None,
    }
}

/// Kills so many processes in one lane, each while it works; answers how many calls they had heard the end of.
fn kill_in_turn(place: &Place, keys: &[&str], lane: u64, kills: u64, seed: u64) -> usize {
    let mut chance = Chance::new(seed);
    let (mut first, mut killed, mut heard) = (lane * 1_000_000, 0, 0);
    while killed < kills {
        let from = first.to_string();
        let args = [&[from.as_str()], keys].concat();
        let seen = place.stripe.request_count();
        let mut worker = place.worker("spend", &args);
        match chance.below(8) {
            // Before it has done anything, or while it opens the ledger.
            0 => {}
            // When it has heard the end of some calls.
            1..=3 => {
                for _ in 0..chance.below(16) {
                    heard += usize::from(worker.next_line().is_some());
                }
            }
            // While calls are at the vendor (those of the other lane count too).
            _ => {
                let requests = seen + 1 + chance.below(40);
                assert!(place.stripe.wait_requests_blocking(requests, LIMIT));
            }
        }
        // And some microseconds on, to meet it anywhere between two such points.
        std::thread::sleep(Duration::from_micros(chance.below(4_000)));
        heard += worker.kill().len();
        killed += 1;
        // Half of the next processes take up the work where this one was killed, the others go on.
        first += chance.below(2) * 13;
    }
    heard
}

#[tokio::test(flavor = "multi_thread")]
async fn lesson_11_two_hundred_kills_leave_books_that_equal_the_journal() {
    const KILLS: u64 = 200;
    const LANES: u64 = 4;
    let mut chance = Chance::of_the_day();
    let place = Arc::new(Place::new());
    // Every reply is kept back a moment, so that a kill often comes between the deed and its answer; some are lost.
    for (kind, skip) in [(FaultKind::DropAfterExecuting, 20), (FaultKind::DropBefore, 33)] {
        for round in 0..5 {
            let fault = Fault::new(kind).on("POST", "/v1").skip(skip + round * 50);
            place.stripe.fault(fault).unwrap();
        }
    }
    let slow = Fault::new(FaultKind::DelayMs)
        .on("POST", "/v1")
        .delay_ms(3)
        .times(0);
    place.stripe.fault(slow.after_executing()).unwrap();

    let kb = place.keybrake(Arc::new(SystemClock)).await;
    let intents = [
        "payment_intents.create",
        "payment_intents.confirm",
        "payment_intents.cancel",
    ];
    let tills = [
        Till::open(&kb, MovementKind::Refund, 900, &["refunds.create", "reads"]).await,
        Till::open(&kb, MovementKind::Charge, 50_000, &intents).await,
        Till::open(&kb, MovementKind::Transfer, 50_000, &["transfers.create"]).await,
    ];
    let tokens: Vec<String> = tills
        .iter()
        .map(|till| till.key.token.expose().to_owned())
        .collect();
    drop(kb);

    let lanes: Vec<_> = (0..LANES)
        .map(|lane| {
            let (place, tokens) = (Arc::clone(&place), tokens.clone());
            let seed = chance.below(u64::MAX);
            std::thread::spawn(move || {
                let keys: Vec<&str> = tokens.iter().map(String::as_str).collect();
                kill_in_turn(&place, &keys, lane, KILLS / LANES, seed)
            })
        })
        .collect();
    let heard: usize = lanes.into_iter().map(|lane| lane.join().unwrap()).sum();
    place.stripe.clear_faults();
    place.cli(&["audit", "verify"]);

    // Every open hold is listed with its reason, and they are all that is held.
    let kb = place.keybrake(Place::later()).await;
    let open = kb.holds(HoldFilter::default()).await.unwrap();
    assert!(open.iter().all(|hold| reason(hold).is_some()), "{open:#?}");
    let mut held_by_budgets = 0;
    for till in &tills {
        let (used, held) = till.books(&kb).await;
        let moved = till.moved(&place.stripe);
        println!(
            "{:?}: {moved} micro-USD moved of a cap of {}",
            till.kind, till.cap
        );
        assert!(moved > 0, "nothing was tried");
        assert!(
            moved <= till.cap,
            "{:?}: {moved} moved, the cap is {}",
            till.kind,
            till.cap
        );
        assert!(
            used <= moved && moved <= used + held,
            "{:?}: {used} {moved} {held}",
            till.kind
        );
        held_by_budgets += held;
    }
    let listed: i64 = open.iter().map(|hold| hold.held.micros()).sum();
    assert_eq!(listed, held_by_budgets);

    // After asking the vendor, the books are the journal.
    let writes = || {
        place
            .stripe
            .requests()
            .iter()
            .filter(|request| request.method == "POST")
            .count()
    };
    let before = writes();
    let found = kb.reconcile(HoldFilter::default(), |_, _| ()).await.unwrap();
    assert_eq!(writes(), before, "reconciliation never sends a write");
    for till in &tills {
        let (used, _) = till.books(&kb).await;
        assert_eq!(used, till.moved(&place.stripe), "{:?}", till.kind);
    }
    let left = kb.holds(HoldFilter::default()).await.unwrap();
    println!(
        "{KILLS} kills, {heard} ends heard, {} requests; {} holds open, {} found at the vendor, {} absent, {} intents unconfirmed",
        place.stripe.request_count(),
        open.len(),
        found
            .iter()
            .filter(|call| matches!(call.resolution, Resolution::Found(_)))
            .count(),
        found
            .iter()
            .filter(|call| call.resolution == Resolution::Absent)
            .count(),
        left.len(),
    );
    assert!(open.len() > 20, "the kills met nothing");

    // What is left are intents that nobody confirmed; cancelling them ends every hold.
    let charges = tills.get(1).unwrap();
    for hold in left {
        assert_eq!(hold.state, State::Pending, "{hold:#?}");
        let intent = hold.reply_facts.vendor_object.unwrap();
        let path = format!("/v1/payment_intents/{intent}/cancel");
        charges
            .call(&kb, &format!("cancel-{intent}"), &path, "")
            .await
            .id();
    }
    assert!(kb.holds(HoldFilter::default()).await.unwrap().is_empty());

    // What remains of each cap can be spent to the cent, and not one cent more.
    for (till, path, rest) in [
        (&tills[0], "/v1/refunds", "charge=ch_large"),
        (
            &tills[1],
            "/v1/payment_intents",
            "currency=usd&confirm=true&payment_method=pm_card_visa",
        ),
        (&tills[2], "/v1/transfers", "currency=usd&destination=acct_2"),
    ] {
        let (used, held) = till.books(&kb).await;
        assert_eq!((used, held), (till.moved(&place.stripe), 0), "{:?}", till.kind);
        let cents = (till.cap - used) / 10_000;
        let above = format!("amount={}&{rest}", cents + 1);
        let refused = till.call(&kb, "above", path, &above).await;
        assert_eq!(refused.code(), Some(Code::CapExceeded), "{refused:?}");
        if cents >= 50 {
            till.call(&kb, "rest", path, &format!("amount={cents}&{rest}"))
                .await
                .id();
            assert_eq!(till.moved(&place.stripe), till.cap);
            assert_eq!(till.books(&kb).await, (till.cap, 0));
        }
    }
    place.cli(&["audit", "verify"]);
}

/// What the log has after its last stop that let a call out.
async fn reserved_since_the_stop(kb: &Keybrake) -> Vec<Event> {
    let (mut after_seq, mut since) = (0, Vec::new());
    loop {
        let filter = EventFilter {
            after_seq,
            ..EventFilter::default()
        };
        let page = kb.ledger().events(filter).await.unwrap();
        let Some(last) = page.last() else { return since };
        after_seq = last.seq;
        for event in page {
            let act = event.body.admin.as_ref().map(|admin| admin.act.as_str());
            if act == Some("stop") {
                since.clear();
            } else if matches!(event.kind, EventKind::Reserved | EventKind::Attempt) {
                since.push(event);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_06_stop_from_another_process_outruns_supervisors_that_issue_keys() {
    const ROUNDS: u64 = 5;
    let place = Place::new();
    let policy =
        json!({"vendor": "stripe", "label": "supervised", "daily_usd_cap": 100_000, "timezone": noon_zone(),
        "allowed_endpoints": ["refunds.create"]})
        .to_string();
    let kb = place.keybrake(Arc::new(SystemClock)).await;
    let mut chance = Chance::new(6);
    for round in 1..=ROUNDS {
        let seen = place.stripe.request_count();
        let mut supervisors: Vec<Worker> = (0..2).map(|_| place.worker("supervise", &[&policy])).collect();
        let enough = seen + 10 + chance.below(20);
        assert!(
            place.stripe.wait_requests(enough, LIMIT).await,
            "they are not at work"
        );

        let began_ms = SystemClock.boot_ms();
        let done = place.cli(&["--json", "stop", "--label", "supervised", "--reason", "2 am"]);
        let last_before = place.stripe.request_count();
        let took_ms = SystemClock.boot_ms() - began_ms;

        // They go on trying, and each is refused over and over.
        for supervisor in &mut supervisors {
            let mut refused = 0;
            while refused < 20 {
                let line = supervisor.next_line().unwrap();
                refused += u32::from(line == "refused" || line == "denied stopped");
            }
        }
        for supervisor in supervisors {
            supervisor.kill();
        }
        let stop: Value = serde_json::from_slice(&done.stdout).unwrap();
        let in_flight: BTreeSet<&str> = stop["in_flight"]
            .as_array()
            .unwrap()
            .iter()
            .map(|call| call["call_id"].as_str().unwrap())
            .collect();

        // By the ledger: nothing was reserved after the stop. By the vendor: writes that still
        // came in were in flight then (the bounded read that comes before a decision may come in; it moves nothing).
        assert_eq!(reserved_since_the_stop(&kb).await, Vec::<Event>::new());
        let rows = kb.audit(RowFilter::default(), 100_000).await.unwrap();
        let late: Vec<_> = place
            .stripe
            .requests()
            .into_iter()
            .filter(|request| request.method == "POST" && request.seq > last_before)
            .collect();
        for request in &late {
            let call = rows
                .iter()
                .find(|row| row.idempotency_key == request.idempotency_key)
                .unwrap();
            assert!(
                in_flight.contains(call.call_id.as_str()),
                "{request:?} of {call:?} left after the stop"
            );
        }
        println!(
            "round {round}: the stop took {} ms in the ledger, {took_ms} ms with its process; {} calls were in flight, {} \
             of them reached the vendor after it had returned",
            stop["took_ms"],
            in_flight.len(),
            late.len(),
        );
        assert!(stop["took_ms"].as_i64().unwrap() < 30_000, "{stop}");
        let admin = AdminNote {
            by: "test".to_owned(),
            reason: "next round".to_owned(),
        };
        assert!(
            kb.resume(&StopScope::Label("supervised".to_owned()), admin)
                .await
                .unwrap()
        );
    }
    place.cli(&["audit", "verify"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn lesson_19_a_key_revoked_by_another_process_is_refused_on_the_very_next_call() {
    let place = Place::new();
    let kb = place.keybrake(Arc::new(SystemClock)).await;
    let till = Till::open(&kb, MovementKind::Refund, 100, &["refunds.create"]).await;
    for round in 0..20 {
        till.call(
            &kb,
            &format!("before-{round}"),
            "/v1/refunds",
            "charge=ch_1&amount=100",
        )
        .await
        .id();
    }
    place.cli(&["keys", "revoke", &till.key.id]);
    let sent = place.stripe.request_count();
    let refused = till
        .call(&kb, "after", "/v1/refunds", "charge=ch_2&amount=100")
        .await;
    assert_eq!((refused.code(), refused.status), (Some(Code::KeyRevoked), 401));
    assert_eq!(place.stripe.request_count(), sent);
    assert_eq!(till.moved(&place.stripe), 20_000_000);
}
