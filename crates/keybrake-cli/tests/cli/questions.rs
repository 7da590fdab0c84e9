//! Why, audit and spend.

use crate::common::{Place, charged, granted, masked, reserve, settle};
use keybrake::ledger::{Proof, ReserveAnswer};
use serde_json::{Value, json};

#[tokio::test]
async fn why_replays_a_run_in_order() {
    let place = Place::new();
    let key = place.issue("run_42");
    let ledger = place.ledger();
    granted(ledger.as_ref(), &key, "call-1", 60).await;
    charged(ledger.as_ref(), "call-1", 60).await;
    granted(ledger.as_ref(), &key, "call-2", 30).await;
    settle(
        ledger.as_ref(),
        "call-2",
        Proof::NoProof {
            reason: "timeout".to_owned(),
        },
    )
    .await;
    for number in 0..3 {
        let refused = reserve(ledger.as_ref(), &key, &format!("call-x{number}"), 70).await;
        assert!(matches!(refused, ReserveAnswer::Denied(_)), "{refused:?}");
    }
    ledger.flush().await.unwrap();
    let told = place.run(&["why", "run_42"]);
    assert_eq!(told.code, 0, "{}", told.err);
    let text = masked(&told.out, &place);
    for expected in [
        "2 calls let through, 3 refused (cap_exceeded 3), 0 replayed; $60.00 spent, $30.00 held",
        "settled",
        "denied x3",
        "UNKNOWN outcome of 1 call (call-2); find out: keybrake reconcile",
        "books agree: events and reservations say the same of 2 calls",
    ] {
        assert!(text.contains(expected), "{expected:?} is missing in:\n{text}");
    }
    let reserved = text.lines().find(|line| line.contains("reserved")).unwrap();
    let words: Vec<&str> = reserved.split_whitespace().collect();
    assert_eq!(
        words[..5],
        ["TIME", "call-1", "reserved", "refunds.create", "60.00"]
    );
    assert_eq!(
        words[words.len() - 3..],
        ["0.00", "60.00", "100.00"],
        "before, after, cap"
    );

    place.issue("run_quiet");
    let quiet = place.run(&["why", "run_quiet"]);
    assert_eq!(quiet.code, 0, "{}", quiet.err);
    assert!(quiet.out.contains("1 key, no calls yet"), "{}", quiet.out);

    let story = place.json(&["why", "run_42"]);
    assert_eq!(story["books_agree"], true);
    assert_eq!(story["why"]["spent_usd"], "60.00");
    let one = place.json(&["why", "call-2"]);
    assert_eq!(one["why"]["subject"], json!({"call": "call-2"}));
    assert_eq!(place.run(&["why", "run_43"]).code, 4);
}

#[tokio::test]
async fn the_audit_lists_filters_and_exports() {
    let place = Place::new();
    let key = place.issue("run_42");
    let ledger = place.ledger();
    granted(ledger.as_ref(), &key, "call-1", 60).await;
    charged(ledger.as_ref(), "call-1", 60).await;
    let refused = reserve(ledger.as_ref(), &key, "=cmd", 70).await;
    assert!(matches!(refused, ReserveAnswer::Denied(_)), "{refused:?}");

    let rows = place.json(&["audit", "list", "--run", "run_42", "--since", "1h"]);
    let row = &rows["rows"][0];
    assert_eq!(row["cost_usd_parsed"], "-60.00");
    assert_eq!(row["cap_usage_after_usd"], "60.00");
    assert_eq!(
        (&row["policy_verdict"], &row["status_code"]),
        (&json!("allowed"), &json!(200))
    );
    assert_eq!(rows["ledger"], place.url);
    let denied = place.json(&["audit", "list", "--denied"]);
    assert_eq!(denied["rows"].as_array().unwrap().len(), 1);
    assert_eq!(denied["rows"][0]["policy_verdict"], "cap_exceeded");
    assert_eq!(
        place.json(&["audit", "list", "--agent", "other"])["rows"],
        json!([])
    );

    let csv = place.run(&["audit", "export", "--format", "csv"]);
    assert_eq!(csv.code, 0, "{}", csv.err);
    let lines: Vec<&str> = csv.out.lines().collect();
    assert_eq!(lines.len(), 3, "{}", csv.out);
    assert!(
        lines[0].starts_with("\"call_id\",\"called_at\",\"vault_key_id\""),
        "{}",
        lines[0]
    );
    assert!(lines[1].contains("\"-60.00\",\"response\""), "{}", lines[1]);
    assert!(lines[2].starts_with("\"'=cmd\","), "no formula: {}", lines[2]);

    let file = place.path().join("out.jsonl");
    let file = file.to_str().unwrap();
    assert_eq!(
        place.json(&["audit", "export", "--format", "jsonl", "--output", file])["rows"],
        2
    );
    let first: Value =
        serde_json::from_str(std::fs::read_to_string(file).unwrap().lines().next().unwrap()).unwrap();
    assert_eq!(first["call_id"], "call-1");
    assert_eq!(
        place
            .run(&["audit", "export", "--format", "jsonl", "--output", file])
            .code,
        2,
        "overwritten"
    );
    for (format, words) in [
        ("parquet", "parquet is not available yet"),
        ("xml", "use csv or jsonl"),
    ] {
        let later = place.run(&["audit", "export", "--format", format]);
        assert_eq!(later.code, 2);
        assert!(later.err.contains(words), "{}", later.err);
    }
    assert_eq!(place.json(&["audit", "caps"])["caps"][0]["hits"], 1);
    assert_eq!(place.json(&["audit", "slow"])["slow"][0]["p95_ms"], 12);
    let verified = place.run(&["audit", "verify"]);
    assert_eq!(verified.code, 0, "{}{}", verified.out, verified.err);
    assert!(verified.out.starts_with("CLEAN "), "{}", verified.out);
}

#[tokio::test]
async fn spend_adds_up_and_never_mixes_what_is_held() {
    let place = Place::new();
    let key = place.issue("run_42");
    let ledger = place.ledger();
    granted(ledger.as_ref(), &key, "call-1", 60).await;
    charged(ledger.as_ref(), "call-1", 60).await;
    granted(ledger.as_ref(), &key, "call-2", 30).await;
    for (by, name) in [
        ("run", "run_42"),
        ("agent", "support"),
        ("vendor", "stripe"),
        ("customer", "cus_1"),
    ] {
        let spend = place.json(&["spend", "--by", by]);
        let line = &spend["spend"][0];
        assert_eq!(line["name"], name, "{by}");
        assert_eq!(
            (&line["sent_usd"], &line["collected_usd"]),
            (&json!("60.00"), &json!("0.00"))
        );
        assert_eq!((&line["held_usd"], &line["calls"]), (&json!("30.00"), &json!(2)));
        assert_eq!(spend["outlook"][0]["last_24h_usd"], "60.00");
    }
    assert_eq!(place.run(&["spend", "--since", "yesterday"]).code, 2);
}
