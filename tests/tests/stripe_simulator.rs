//! Stripe's rules against the simulator: what a call was said to cost, what its reply was read as, and what an inquiry
//! finds afterwards, each compared with the journal of money that moved. No engine, no ledger.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed unwrap is a failed test"
)]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use keybrake::clock::{Clock as _, SystemClock};
use keybrake::money::VendorAmount;
use keybrake::request::Call;
use keybrake::vendors::{
    Class, Estimate, Exposure, Finding, Inquiry, Outcome, Reading, Recognised, Reply, Unresolved, Vendor,
    vendor,
};
use keybrake_testkit::stripe::{MovementOutcome, TEST_SECRET};
use keybrake_testkit::{Simulator, SimulatorOptions};

fn stripe() -> &'static dyn Vendor {
    vendor("stripe").unwrap()
}

/// A call that went through estimate, lookup, pins, tag, sending and reading.
struct Done {
    recognised: Recognised,
    pins: Vec<(String, String)>,
    estimate: Option<VendorAmount>,
    exposure: Exposure,
    reading: Reading,
    tag: Option<String>,
    sent_ms: i64,
    /// What the journal says that this call moved.
    moved: i64,
}

struct World {
    simulator: Simulator,
    calls: std::cell::Cell<u32>,
}

impl World {
    fn new() -> Self {
        Self {
            simulator: Simulator::start(SimulatorOptions::default()).unwrap(),
            calls: std::cell::Cell::new(0),
        }
    }

    /// Sends over a connection of its own; the simulator gives the body's length.
    fn send(&self, method: &str, path: &str, body: &[u8]) -> Reply {
        let mut stream = TcpStream::connect(("127.0.0.1", self.simulator.port())).unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nConnection: close\r\n\
             Authorization: Bearer {TEST_SECRET}\r\n\
             Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n",
            self.simulator.port(),
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        let body = bytes.split_off(end + 4);
        let head = String::from_utf8(bytes).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap();
        let headers: Vec<(String, String)> = lines
            .map(|line| line.split_once(": ").unwrap())
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let reply = Reply {
            status: status.parse().unwrap(),
            headers,
            body: body.into(),
        };
        assert_eq!(
            reply.header("content-length"),
            Some(reply.body.len().to_string().as_str())
        );
        reply
    }

    /// Sum of what moved, by the journal.
    fn moved(&self) -> i64 {
        let rows = self.simulator.journal();
        rows.iter()
            .filter(|row| row.outcome == MovementOutcome::Moved)
            .map(|row| row.amount)
            .sum()
    }

    /// One governed call.
    fn post(&self, path: &str, form: &str) -> Done {
        let call = Call {
            method: "POST".to_owned(),
            url: format!("https://api.stripe.com{path}"),
            headers: vec![(
                "content-type".to_owned(),
                "application/x-www-form-urlencoded".to_owned(),
            )],
            body: form.to_owned().into(),
        };
        let recognised = stripe().recognise(&call).unwrap();
        let (estimate, exposure, pins) = match stripe().estimate(&recognised, true).unwrap() {
            Estimate::Free => (None, Exposure::Own, Vec::new()),
            Estimate::AtMost { amount, exposure } => (Some(amount), exposure, Vec::new()),
            Estimate::NeedsLookup(lookup) => {
                let reply = self.send("GET", &lookup.path, b"");
                let answer = stripe().read_lookup(&recognised, &reply).unwrap();
                assert_eq!(lookup.amount_given, answer.pins.is_empty(), "{path}");
                (Some(answer.amount), answer.exposure, answer.pins)
            }
            Estimate::Unknown(why) => panic!("{path}: {why}"),
        };
        let number = self.calls.get() + 1;
        self.calls.set(number);
        let tag = stripe()
            .tag_field(&recognised)
            .map(|field| (field.to_owned(), format!("kb_{number}")));
        let fields: Vec<_> = pins.iter().cloned().chain(tag.clone()).collect();
        let body = stripe().append_fields(&call, &fields).unwrap();
        let (sent_ms, before) = (SystemClock.now_ms(), self.moved());
        let reply = self.send("POST", path, &body);
        Done {
            reading: stripe().read(&recognised, &reply),
            moved: self.moved() - before,
            recognised,
            pins,
            estimate,
            exposure,
            tag: tag.map(|(_, tag)| tag),
            sent_ms,
        }
    }

    /// What an inquiry finds, had the reply been lost.
    fn ask(&self, done: &Done, tag: Option<&str>) -> Finding {
        self.inquire(done, tag, None)
    }

    /// The same, where a reply has named the object.
    fn ask_object(&self, done: &Done, object: Option<&str>) -> Finding {
        self.inquire(done, done.tag.as_deref(), object)
    }

    fn inquire(&self, done: &Done, tag: Option<&str>, object: Option<&str>) -> Finding {
        let unresolved = Unresolved {
            operation: done.recognised.operation.name,
            ids: &done.recognised.ids,
            fields: &done.recognised.fields,
            pins: &done.pins,
            object,
            tag,
            reserved_at_ms: done.sent_ms,
            not_after_ms: done.sent_ms + 130_000,
        };
        let (Inquiry::Object { mut path } | Inquiry::Listing { mut path }) = stripe().inquiry(&unresolved)
        else {
            panic!("{} cannot be asked about", unresolved.operation);
        };
        for _ in 0..20 {
            let reply = self.send("GET", &path, b"");
            match stripe().finding(&unresolved, &reply) {
                Finding::Next(next) => path = next,
                other => return other,
            }
        }
        panic!("{path} does not end");
    }
}

/// What a reading says was moved by the call, given what its object had moved before.
fn read_as_moved(reading: &Reading, before: i64) -> i64 {
    match (&reading.outcome, &reading.object) {
        (_, Some((_, moved, _))) => moved.minor - before,
        (Outcome::Charged(amount) | Outcome::ChargedProvisionally(amount), None) => amount.minor,
        _ => 0,
    }
}

/// Every operation, once: the estimate bounds what moved, the reading says what moved, and the inquiry says the same.
#[test]
fn the_journal_agrees_with_estimates_readings_and_findings() {
    let world = World::new();
    // Path, form, and what the object had moved before.
    let calls = [
        ("/v1/refunds", "charge=ch_1", 0),
        ("/v1/refunds", "charge=ch_2&amount=1200", 0),
        ("/v1/refunds", "charge=ch_2", 0),
        ("/v1/refunds", "payment_intent=pi_1", 0),
        ("/v1/refunds", "charge=ch_jpy&amount=700", 0),
        ("/v1/refunds", "charge=ch_kwd", 0),
        ("/v1/charges", "amount=2000&currency=usd&source=tok_visa", 0),
        (
            "/v1/charges",
            "amount=2100&currency=usd&source=tok_visa&capture=false",
            0,
        ),
        ("/v1/charges/ch_hold/capture", "amount=6000", 0),
        (
            "/v1/payment_intents",
            "amount=9900&currency=usd&customer=cus_1",
            0,
        ),
        (
            "/v1/payment_intents",
            "amount=9000&currency=usd&confirm=true&payment_method=pm_card_visa",
            0,
        ),
        (
            "/v1/payment_intents",
            "amount=8000&currency=usd&confirm=true&payment_method=pm_card_visa&capture_method=manual",
            0,
        ),
        ("/v1/payment_intents/pi_2", "amount=4000", 0),
        (
            "/v1/payment_intents/pi_2/confirm",
            "payment_method=pm_card_visa",
            0,
        ),
        ("/v1/payment_intents/pi_hold/capture", "amount_to_capture=2500", 0),
        ("/v1/transfers", "amount=7000&currency=usd&destination=acct_2", 0),
        ("/v1/payouts", "amount=1100&currency=usd", 0),
    ];
    for (path, form, before) in calls {
        let done = world.post(path, form);
        let name = format!("{path} {form}: {:?}", done.reading);
        assert!(
            !matches!(done.reading.outcome, Outcome::Unknown(_) | Outcome::DidNotExecute),
            "{name}"
        );
        assert_eq!(read_as_moved(&done.reading, before), done.moved, "{name}");
        assert!(
            done.moved <= done.estimate.map_or(0, |amount| amount.minor),
            "{name}"
        );
        let tag = done.tag.clone();
        match world.ask(&done, tag.as_deref()) {
            Finding::Found(found) => {
                assert_eq!(found.outcome, done.reading.outcome, "{name}");
                assert_eq!(found.object, done.reading.object, "{name}");
                assert_eq!(found.vendor_object, done.reading.vendor_object, "{name}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

/// Scenario 4: create, update, confirm of one intent raise one total; nothing is counted twice.
#[test]
fn scenario_04_one_intents_operations_raise_one_total() {
    let world = World::new();
    let create = world.post(
        "/v1/payment_intents",
        "amount=100&currency=usd&capture_method=manual",
    );
    let (id, moved, closed) = create.reading.object.clone().unwrap();
    assert_eq!(
        (create.estimate.unwrap().minor, moved.minor, closed),
        (100, 0, false)
    );
    assert_eq!(create.exposure, Exposure::NewObject);
    let path = format!("/v1/payment_intents/{id}");
    let total = |suffix: &str, form: &str| {
        let done = world.post(&format!("{path}{suffix}"), form);
        assert_eq!(done.exposure, Exposure::Object(id.clone()), "{suffix}");
        let (_, moved, closed) = done.reading.object.clone().unwrap();
        (done.estimate.unwrap().minor, moved.minor, closed)
    };
    assert_eq!(total("", "amount=500000"), (500_000, 0, false));
    assert_eq!(
        total("/confirm", "payment_method=pm_card_visa"),
        (500_000, 0, false)
    );
    assert_eq!(
        total("/capture", "amount_to_capture=500000"),
        (500_000, 500_000, true)
    );
    assert_eq!(world.moved(), 500_000);
}

/// A decline moves nothing, is final for its attempt, and is found as such.
#[test]
fn a_decline_is_read_and_found_as_one() {
    let world = World::new();
    for (path, form) in [
        (
            "/v1/charges",
            "amount=2000&currency=usd&source=tok_chargeDeclined",
        ),
        (
            "/v1/payment_intents",
            "amount=9000&currency=usd&confirm=true&payment_method=pm_card_chargeDeclined",
        ),
    ] {
        let done = world.post(path, form);
        assert_eq!(
            (done.reading.outcome.clone(), done.moved),
            (Outcome::FailedForGood, 0),
            "{path}"
        );
        match world.ask(&done, done.tag.as_deref()) {
            Finding::Found(found) => assert_eq!(found.outcome, Outcome::FailedForGood, "{path}"),
            // A vendor that keeps no object of it: then nothing moved either.
            other => assert_eq!(other, Finding::Absent, "{path}"),
        }
    }
}

/// Scenario 17: among 230 refunds of one charge each is found by its tag, and one that was never sent is absent, but only
/// after the last page.
#[test]
fn scenario_17_listings_are_read_to_their_end() {
    let world = World::new();
    let mut first = None;
    for _ in 0..230 {
        let done = world.post("/v1/refunds", "charge=ch_3&amount=1");
        first.get_or_insert(done);
    }
    let first = first.unwrap();
    let oldest = first.tag.clone().unwrap();
    assert!(matches!(world.ask(&first, Some(&oldest)), Finding::Found(_)));
    let before = world.simulator.request_count();
    assert_eq!(world.ask(&first, Some("kb_never")), Finding::Absent);
    assert_eq!(world.simulator.request_count() - before, 3, "three pages");
    // Without a tag nobody can say which of the twins it was.
    assert!(matches!(world.ask(&first, None), Finding::Unclear(_)));
}

/// What is left of a transfer is looked up, pinned, and moves.
#[test]
fn a_reversal_takes_back_what_is_left() {
    let world = World::new();
    let transfer = world.post("/v1/transfers", "amount=7000&currency=usd&destination=acct_2");
    let path = format!(
        "/v1/transfers/{}/reversals",
        transfer.reading.vendor_object.unwrap()
    );
    let part = world.post(&path, "amount=2500");
    assert_eq!((part.moved, part.pins.len()), (2_500, 0));
    let rest = world.post(&path, "");
    assert_eq!(
        (rest.moved, rest.pins.clone()),
        (4_500, vec![("amount".to_owned(), "4500".to_owned())])
    );
    for done in [part, rest] {
        let Finding::Found(found) = world.ask(&done, done.tag.as_deref()) else {
            panic!("not found by its tag");
        };
        assert_eq!(found.outcome, done.reading.outcome);
    }
}

/// A top-up waits; asked about by its object later, it has been charged.
#[test]
fn a_pending_topup_is_settled_by_its_object() {
    let world = World::new();
    let done = world.post("/v1/topups", "amount=2000&currency=usd");
    assert_eq!(done.reading.outcome, Outcome::Accepted);
    assert_eq!(
        done.estimate.unwrap().minor,
        done.moved,
        "held in full while it waits"
    );
    let id = done.reading.vendor_object.clone().unwrap();
    world.simulator.advance(&id, "succeeded").unwrap();
    let Finding::Found(found) = world.ask_object(&done, Some(&id)) else {
        panic!("not found by its object");
    };
    assert!(matches!(found.outcome, Outcome::Charged(amount) if amount.minor == 2_000));
}

/// Free operations are free by the journal too.
#[test]
fn free_operations_move_nothing() {
    let world = World::new();
    for (path, form) in [
        ("/v1/customers", "email=a%40example.com&metadata[a]=b"),
        ("/v1/customers/cus_1", "name=Ada"),
        ("/v1/charges/ch_1", "description=x"),
        ("/v1/payment_intents/pi_2", "metadata[a]=b"),
        ("/v1/payment_intents/pi_hold/cancel", ""),
    ] {
        let done = world.post(path, form);
        assert_eq!((done.reading.outcome, done.moved), (Outcome::Free, 0), "{path}");
        assert_ne!(done.recognised.operation.class, Class::Unknown, "{path}");
    }
}
