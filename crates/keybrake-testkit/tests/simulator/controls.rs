//! The control endpoints, as a test in another language uses them.

use std::thread;

use serde_json::{Value, json};

use crate::client::{Answer, Client, call};
use crate::{refund, simulator};
use keybrake_testkit::Simulator;
use keybrake_testkit::stripe::FaultKind;

/// Controls need no credential.
fn control(sim: &Simulator, method: &str, path: &str, body: &Value) -> Answer {
    let client = Client::bare(sim).content_type("application/json");
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    client.send(method, path, &body).unwrap()
}

fn get(sim: &Simulator, path: &str) -> Value {
    control(sim, "GET", path, &Value::Null).json
}

#[test]
fn the_journal_and_its_totals_can_be_read() {
    let sim = simulator();
    refund(&sim, "charge=ch_1&amount=100", "a");
    refund(&sim, "charge=ch_jpy&amount=70", "b");
    let journal = get(&sim, "/_sim/journal");
    assert_eq!(journal["movements"][0]["kind"], "refund");
    assert_eq!(journal["movements"][0]["outcome"], "moved");
    assert_eq!(journal["totals"]["refund"]["usd"]["net"], 100);
    assert_eq!(get(&sim, "/_sim/totals")["refund"]["jpy"]["count"], 1);
    assert_eq!(get(&sim, "/_sim/totals?account=acct_other"), json!({}));
    assert_eq!(
        get(&sim, "/_sim/journal?after_seq=1&kind=refund&currency=jpy")["movements"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(get(&sim, "/_sim/journal?kind=payout")["movements"], json!([]));
}

#[test]
fn a_test_can_say_what_arrived() {
    let sim = simulator();
    refund(&sim, "charge=ch_1&amount=100", "a");
    call(&sim, "GET", "/v1/charges/ch_1?expand[]=customer", "");
    let log = get(&sim, "/_sim/requests?method=post&path_prefix=/v1/refunds");
    assert_eq!((&log["count"], &log["total"]), (&1.into(), &2.into()));
    let row = &log["requests"][0];
    assert_eq!(
        (&row["idempotency_key"], &row["authorization"]),
        (&"a".into(), &"bearer_test_key".into())
    );
    assert_eq!(
        (&row["status"], &row["executed"], &row["replayed"]),
        (&200.into(), &true.into(), &false.into())
    );
    // sha256 of the body's bytes, so that a retry can be shown to be byte-identical.
    assert_eq!(
        row["body_sha256"],
        "6cb7f11870f4fb94b2d2f8c40653084418854ffd2f95c26b6481914469b622be"
    );
    assert_eq!(get(&sim, "/_sim/requests?after_seq=2")["count"], 0);
}

#[test]
fn seeds_faults_and_releases_over_http() {
    let sim = simulator();
    let seed = json!({"charges": [{"id": "ch_mine", "amount": 4200, "metadata": {"a": "b"}}], "customers": [{"email": "e@example.com"}]});
    let made = control(&sim, "POST", "/_sim/seed", &seed).json;
    assert_eq!(made["charges"], json!(["ch_mine"]));
    let customer = made["customers"][0].as_str().unwrap().to_owned();
    assert_eq!(
        call(&sim, "GET", &format!("/v1/customers/{customer}"), "").json["email"],
        "e@example.com"
    );
    assert_eq!(get(&sim, "/_sim/objects/ch_mine")["amount"], 4_200);

    let fault =
        json!({"match": {"method": "POST", "path_prefix": "/v1/refunds"}, "kind": "hold_until_released"});
    let id = control(&sim, "POST", "/_sim/faults", &fault).json["id"].clone();
    thread::scope(|scope| {
        let held = scope.spawn(|| refund(&sim, "charge=ch_mine", "k"));
        let waiting = get(&sim, "/_sim/waiting?at_least=1&timeout_ms=20000");
        assert_eq!(
            (&waiting["count"], &waiting["waiting"][0]["fault"]),
            (&1.into(), &id)
        );
        let release = json!({"fault": id});
        assert_eq!(
            control(&sim, "POST", "/_sim/release", &release).json["released"],
            1
        );
        assert_eq!(held.join().unwrap().status, 200);
    });
    assert_eq!(get(&sim, "/_sim/faults")["faults"][0]["fired"], 1);
    assert_eq!(
        control(&sim, "DELETE", &format!("/_sim/faults/{id}"), &Value::Null).json["removed"],
        1
    );

    let clock = control(&sim, "POST", "/_sim/clock", &json!({"advance_ms": 86_400_000}));
    assert!(clock.json["now_ms"].as_i64().unwrap() > 86_400_000);
    let payout = call(&sim, "POST", "/v1/payouts", "amount=100&currency=usd").json["id"].clone();
    let advance = json!({"object": payout, "to": "paid"});
    assert_eq!(
        control(&sim, "POST", "/_sim/advance", &advance).json["status"],
        "paid"
    );

    assert_eq!(
        control(&sim, "POST", "/_sim/reset", &json!({"seed": "empty"})).status,
        200
    );
    assert_eq!(call(&sim, "GET", "/v1/charges", "").json["data"], json!([]));
    assert_eq!(get(&sim, "/_sim/journal")["movements"], json!([]));
    assert_eq!(control(&sim, "POST", "/_sim/reset", &Value::Null).status, 200);
    assert_eq!(call(&sim, "GET", "/v1/charges/ch_1", "").status, 200);
}

#[test]
fn a_mistake_is_named() {
    let sim = simulator();
    for (method, path, body, word) in [
        (
            "POST",
            "/_sim/faults",
            json!({"kind": "drop_befor"}),
            "drop_befor",
        ),
        (
            "POST",
            "/_sim/faults",
            json!({"kind": "drop_before", "time": 2}),
            "time",
        ),
        ("POST", "/_sim/faults", json!({"kind": "delay_ms"}), "delay_ms"),
        (
            "POST",
            "/_sim/seed",
            json!({"charges": [{"amount": 0}]}),
            "greater",
        ),
        ("POST", "/_sim/clock", json!({"advance_ms": -1}), "forward"),
        (
            "POST",
            "/_sim/advance",
            json!({"object": "ch_1", "to": "paid"}),
            "advanced",
        ),
        ("POST", "/_sim/reset", json!({"seed": "nothing"}), "nothing"),
        ("GET", "/_sim/nowhere", Value::Null, "nowhere"),
        (
            "GET",
            "/_sim/waiting?at_least=1&timeout_ms=1",
            Value::Null,
            "waited",
        ),
    ] {
        let answer = control(&sim, method, path, &body);
        assert!((400..500).contains(&answer.status), "{path}: {answer:?}");
        let message = answer.json["error"]["message"].as_str().unwrap();
        assert!(message.contains(word), "{path}: {message}");
    }
    let index = control(&sim, "GET", "/_sim", &Value::Null);
    assert!(String::from_utf8(index.body).unwrap().contains("/_sim/journal"));
}

#[test]
fn controls_are_not_in_the_log() {
    let sim = simulator();
    get(&sim, "/_sim/journal");
    assert!(sim.requests().is_empty());
}

#[test]
fn the_guide_names_every_control_and_every_fault() {
    let guide = include_str!("../../../../docs/simulator.md");
    let sim = simulator();
    let index = String::from_utf8(control(&sim, "GET", "/_sim", &Value::Null).body).unwrap();
    assert!(index.lines().count() >= 12);
    for line in index.lines() {
        let mut words = line.split_whitespace();
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let path = path.replace("[/ID]", "/ID");
        assert!(guide.contains(&format!("`{method} {path}`")), "{method} {path}");
    }
    for kind in [
        FaultKind::DelayMs,
        FaultKind::DropBefore,
        FaultKind::DropAfterExecuting,
        FaultKind::Status500AfterExecuting,
        FaultKind::ResetMidBody,
        FaultKind::SlowBody,
        FaultKind::RateLimit,
        FaultKind::HoldUntilReleased,
        FaultKind::Status,
    ] {
        let name = json!(kind);
        assert!(
            guide.contains(&format!("| `{}` |", name.as_str().unwrap())),
            "{name}"
        );
    }
}
