//! The command beside a process that makes governed calls: same ledger file, the simulator as the vendor, and its
//! journal as the truth.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;

use crate::common::{self, Answer, Place, answer};
use keybrake::policy::{Code, Policy};
use keybrake::{Keybrake, Run, Secret};
use keybrake_testkit::stripe::{Fault, FaultKind, MovementKind, Simulator, SimulatorOptions, TEST_SECRET};
use rustix::process::{Pid, Signal};
use serde_json::{Deserializer, Value, json};

/// An agent's process: the engine over the place's ledger, its calls going to the simulator.
struct Agent {
    simulator: Simulator,
    run: Run,
}

impl Agent {
    async fn start(place: &Place, run: &str) -> Self {
        let simulator = Simulator::start(SimulatorOptions::default()).unwrap();
        let keybrake = Keybrake::builder()
            .ledger(&place.url)
            .secret("stripe", Secret::value(TEST_SECRET))
            .base_url("stripe", simulator.url())
            .build()
            .await
            .unwrap();
        let policy = Policy::from_json(common::POLICY).unwrap();
        let run = keybrake.open(policy).run(run).await.unwrap();
        Self { simulator, run }
    }

    /// A refund of a $50 charge: the HTTP status, or the code of the denial, or `None` when the reply was lost.
    async fn refund(&self, charge: &str) -> Result<u16, Option<Code>> {
        let request = self
            .run
            .client()
            .unwrap()
            .post("https://api.stripe.com/v1/refunds");
        match request.form(&[("charge", charge)]).send().await {
            Ok(reply) => Ok(reply.status().as_u16()),
            Err(error) => Err(keybrake::denied(&error).map(|denial| denial.code)),
        }
    }

    fn refunded(&self) -> i64 {
        self.simulator.moved(MovementKind::Refund, "usd")
    }

    /// The command as a second process that can ask the same vendor.
    fn command(&self, place: &Place, arguments: &[&str]) -> Answer {
        let mut command = place.command();
        command
            .env("KEYBRAKE_LEDGER", &place.url)
            .env("KEYBRAKE_BASE_URL_STRIPE", self.simulator.url())
            .env("STRIPE_SECRET_KEY", TEST_SECRET);
        answer(command.args(arguments).output().unwrap())
    }
}

#[tokio::test]
async fn the_books_of_a_stuck_loop_equal_the_vendors_journal() {
    let place = Place::new();
    let agent = Agent::start(&place, "run_42").await;
    for charge in ["ch_1", "ch_2"] {
        assert_eq!(agent.refund(charge).await, Ok(200));
    }
    for _ in 0..5 {
        assert_eq!(agent.refund("ch_3").await, Err(Some(Code::CapExceeded)));
    }
    assert_eq!(agent.refunded(), 10_000);
    let spend = place.json(&["spend", "--by", "run"]);
    let line = spend.pointer("/spend/0").unwrap();
    assert_eq!(line.get("name").unwrap(), "run_42");
    assert_eq!(line.get("sent_usd").unwrap(), "100.00");
    assert_eq!(line.get("denied").unwrap(), 5);
    let told = place.run(&["why", "run_42"]);
    assert_eq!(told.code, 0, "{}{}", told.out, told.err);
    assert!(
        told.out.contains("denied x5") && told.out.contains("books agree"),
        "{}",
        told.out
    );
    assert!(told.out.contains("cap_exceeded: "), "{}", told.out);
    assert_eq!(place.run(&["audit", "verify"]).code, 0);
}

#[tokio::test]
async fn a_stop_from_a_second_process_ends_the_run_on_its_very_next_call() {
    let place = Place::new();
    let agent = Agent::start(&place, "run_42").await;
    assert_eq!(agent.refund("ch_1").await, Ok(200));
    let stopped = place.run(&["stop", "run_42", "--reason", "refund loop"]);
    assert_eq!(stopped.code, 0, "{}", stopped.err);
    assert_eq!(agent.refund("ch_2").await, Err(Some(Code::Stopped)));
    assert_eq!(agent.refunded(), 5_000, "nothing left after the stop");
    assert_eq!(place.run(&["resume", "run_42"]).code, 0);
    assert_eq!(agent.refund("ch_2").await, Ok(200));
}

#[tokio::test]
async fn reconcile_finds_what_became_of_a_lost_reply() {
    let place = Place::new();
    let agent = Agent::start(&place, "run_42").await;
    let fault = Fault::new(FaultKind::DropAfterExecuting).on("POST", "/v1/refunds");
    agent.simulator.fault(fault).unwrap();
    assert_eq!(agent.refund("ch_1").await, Err(None));
    assert_eq!(agent.refunded(), 5_000, "the vendor did it");
    let holds = place.json(&["holds", "list"]);
    assert_eq!(holds.pointer("/holds/0/state").unwrap(), "unknown", "{holds}");
    assert_eq!(holds.pointer("/holds/0/held_usd").unwrap(), "50.00");

    let writes = |agent: &Agent| {
        agent
            .simulator
            .requests()
            .iter()
            .filter(|request| request.method == "POST")
            .count()
    };
    let before = writes(&agent);
    let found = agent.command(&place, &["--json", "reconcile"]);
    assert_eq!(found.code, 0, "{}{}", found.out, found.err);
    let found = found.json();
    assert_eq!(found.get("left_open").unwrap(), 0, "{found}");
    assert_eq!(
        found.pointer("/calls/0/resolution").unwrap(),
        &json!({"kind": "found", "detail": "settled"})
    );
    assert_eq!(writes(&agent), before, "reconciliation never sends a write");

    assert_eq!(place.json(&["holds", "list"]).get("holds").unwrap(), &json!([]));
    let row = place.json(&["audit", "list"]);
    let row = row.pointer("/rows/0").unwrap();
    assert_eq!(row.get("cost_usd_parsed").unwrap(), "-50.00");
    assert_eq!(row.get("cost_source").unwrap(), "reconciled");
    assert_eq!(place.run(&["audit", "verify"]).code, 0);
    assert_eq!(
        agent.command(&place, &["reconcile"]).out.trim(),
        "no unknown calls"
    );
}

#[tokio::test]
async fn a_retry_that_joined_has_a_row_of_its_own_and_is_told_with_the_first() {
    let place = Place::new();
    let agent = Agent::start(&place, "run_42").await;
    let fault = Fault::new(FaultKind::DropAfterExecuting).on("POST", "/v1/refunds");
    agent.simulator.fault(fault).unwrap();
    assert_eq!(agent.refund("ch_1").await, Err(None));
    assert_eq!(agent.refund("ch_1").await, Ok(200));
    assert_eq!(agent.refunded(), 5_000, "one refund");
    let rows = place.json(&["audit", "list"]);
    let rows = rows.get("rows").and_then(|rows| rows.as_array()).unwrap();
    let [first, second] = rows.as_slice() else {
        panic!("{rows:?}");
    };
    assert_eq!(first.get("cost_usd_parsed").unwrap(), "-50.00");
    assert_eq!(second.get("cost_usd_parsed").unwrap(), &json!(null));
    let (first, joined) = (first.get("call_id").unwrap(), second.get("call_id").unwrap());
    assert_eq!(second.pointer("/metadata/joined").unwrap(), first);
    let told = place.json(&["why", joined.as_str().unwrap()]);
    assert_eq!(told.pointer("/why/subject/call").unwrap(), first);
    assert_eq!(told.pointer("/why/spent_usd").unwrap(), "50.00");
    let by_end = place.json(&["why", joined.as_str().unwrap().get(28..).unwrap()]);
    assert_eq!(by_end.pointer("/why/subject/call").unwrap(), first);
}

#[test]
fn the_simulator_says_where_it_is_and_in_the_end_what_moved() {
    let place = Place::new();
    let mut command = place.command();
    command
        .args(["--json", "simulate", "--port", "0"])
        .stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut answers = Deserializer::from_reader(child.stdout.take().unwrap()).into_iter::<Value>();
    let begun = answers.next().unwrap().unwrap();
    let port = begun.get("port").unwrap().as_u64().unwrap();
    let mut connection = TcpStream::connect(("127.0.0.1", u16::try_from(port).unwrap())).unwrap();
    let request = format!(
        "POST /v1/refunds HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {TEST_SECRET}\r\n\
         Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 11\r\nConnection: close\r\n\r\ncharge=ch_1"
    );
    connection.write_all(request.as_bytes()).unwrap();
    let mut reply = String::new();
    connection.read_to_string(&mut reply).unwrap();
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    rustix::process::kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let ended = answers.next().unwrap().unwrap();
    assert_eq!(ended.pointer("/moved/0/moved_minor").unwrap(), 5_000, "{ended}");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn two_vendors_are_simulated_each_on_a_port_of_its_own() {
    let place = Place::new();
    let mut command = place.command();
    command
        .args(["--json", "simulate", "--vendor", "twilio,resend", "--port", "0"])
        .stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut answers = Deserializer::from_reader(child.stdout.take().unwrap()).into_iter::<Value>();
    let begun = answers.next().unwrap().unwrap();
    assert_eq!(begun.get("vendor").unwrap(), "twilio", "{begun}");
    assert_eq!(begun.pointer("/simulators/1/vendor").unwrap(), "resend");
    let port = begun.pointer("/simulators/1/port").unwrap().as_u64().unwrap();
    let mut connection = TcpStream::connect(("127.0.0.1", u16::try_from(port).unwrap())).unwrap();
    let body = r#"{"from":"a@acme.example","to":"b@example.com","subject":"s","text":"t"}"#;
    let request = format!(
        "POST /emails HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer re_test_simulator\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    connection.write_all(request.as_bytes()).unwrap();
    let mut reply = String::new();
    connection.read_to_string(&mut reply).unwrap();
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    rustix::process::kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let ended = answers.next().unwrap().unwrap();
    assert_eq!(ended, json!({"sent": {"twilio": {}, "resend": {"email": 1}}}));
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let unknown = place.run(&["simulate", "--vendor", "postmark"]);
    assert!(
        unknown.err.contains("there is stripe, twilio, resend"),
        "{}",
        unknown.err
    );
}
