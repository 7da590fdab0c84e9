//! Stops, keys, budgets and holds, with another process at work on the same ledger.

use crate::common::{POLICY, Place, granted, granted_and_over, masked, reserve, settle};
use keybrake::ledger::{Proof, ReserveAnswer};
use keybrake::policy::Code;
use serde_json::{Value, json};

#[tokio::test]
async fn stop_from_a_second_process_refuses_the_next_reserve() {
    let place = Place::new();
    let (ours, other) = (place.issue("run_42"), place.issue("run_7"));
    let ledger = place.ledger();
    granted(ledger.as_ref(), &ours, "call-1", 50).await;

    let stopped = place.run(&["stop", "run_42", "--reason", "refund loop"]);
    assert_eq!(stopped.code, 0, "{}", stopped.err);
    assert_eq!(
        masked(&stopped.out, &place),
        "STOPPED run_42 on sqlite:DIR/ledger.db in N ms\n  \
           1 key refused from the next call on; new keys for run_42 are refused too\n  \
           1 call in flight may still complete (abort: keybrake stop run_42 --hard):\n    \
             refunds.create $50.00 (call call-1)\n  \
           1 other run untouched          why: keybrake why run_42          undo: keybrake resume run_42"
    );
    match reserve(ledger.as_ref(), &ours, "call-2", 1).await {
        ReserveAnswer::Denied(denial) => {
            assert_eq!(denial.code, Code::Stopped);
            assert_eq!(denial.stop.unwrap().reason, "refund loop");
        }
        other => panic!("admitted after the stop: {other:?}"),
    }
    granted(ledger.as_ref(), &other, "call-3", 1).await;

    let refused = place.run(&["keys", "issue", "--policy", "policy.json", "--run", "run_42"]);
    assert_eq!(refused.code, 1, "{}", refused.out);
    assert!(refused.err.contains("stop"), "{}", refused.err);

    let again = place.json(&["stop", "run_42"]);
    assert_eq!(
        (&again["already"], &again["reason"]),
        (&json!(true), &json!("refund loop"))
    );
    assert_eq!(place.run(&["resume", "run_42"]).code, 0);
    granted(ledger.as_ref(), &ours, "call-4", 1).await;
    assert_eq!(place.run(&["resume", "run_42"]).code, 4);
}

#[test]
fn a_stop_of_an_unknown_name_blocks_it_and_says_so() {
    let place = Place::new();
    let stopped = place.run(&["stop", "run_later"]);
    assert_eq!(stopped.code, 0, "{}", stopped.err);
    assert!(
        stopped
            .out
            .contains("knows no run_later yet; it is blocked from its first call on"),
        "{}",
        stopped.out
    );
    let refused = place.run(&["keys", "issue", "--policy", "policy.json", "--run", "run_later"]);
    assert_eq!(refused.code, 1);
    let stops = place.json(&["stops"]);
    assert_eq!(stops["stops"][0]["scope"], "run:run_later");
    assert_eq!(stops["stops"][0]["by"], "ada");
}

#[test]
fn stop_all_needs_yes_without_a_terminal_and_a_stop_names_one_thing() {
    let place = Place::new();
    let asked = place.run(&["stop", "--all"]);
    assert_eq!(asked.code, 2);
    assert!(asked.err.contains("--yes"), "{}", asked.err);
    assert_eq!(place.json(&["stops"])["stops"], json!([]));
    assert_eq!(place.run(&["stop", "--all", "--yes"]).code, 0);
    assert_eq!(place.json(&["stops"])["stops"][0]["scope"], "all");
    let hard = place.run(&["stop", "run_1", "--hard"]);
    assert_eq!(hard.code, 0, "{}", hard.err);
    assert!(hard.out.contains("no call was in flight"), "{}", hard.out);
    assert!(hard.out.contains("see it within a second"), "{}", hard.out);
    let stops = place.json(&["stops"]);
    assert_eq!(stops["stops"].as_array().unwrap().len(), 2);
    for wrong in [&["stop"][..], &["stop", "run_1", "--agent", "a"]] {
        assert_eq!(place.run(wrong).code, 2, "{wrong:?}");
    }
}

#[tokio::test]
async fn holds_are_listed_with_their_reason_and_resolved_with_evidence() {
    let place = Place::new();
    let key = place.issue("run_42");
    let ledger = place.ledger();
    let lost = || Proof::NoProof {
        reason: "http_500".to_owned(),
    };
    granted(ledger.as_ref(), &key, "call-0", 30).await;
    for proof in [None, Some(lost()), Some(Proof::Accepted)] {
        if let Some(proof) = proof {
            settle(ledger.as_ref(), "call-0", proof).await;
        }
        let early = place.run(&[
            "holds",
            "resolve",
            "call-0",
            "--not-spent",
            "--evidence",
            "I looked",
        ]);
        assert_eq!(early.code, 1, "{}", early.out);
        assert!(early.err.contains("still be in flight until"), "{}", early.err);
    }
    settle(ledger.as_ref(), "call-0", Proof::FailedForGood).await;
    granted_and_over(ledger.as_ref(), &key, "call-1", 30).await;
    settle(ledger.as_ref(), "call-1", lost()).await;

    let holds = place.json(&["holds", "list"]);
    assert_eq!(holds["holds"][0]["state"], "unknown");
    assert_eq!(holds["holds"][0]["reason"], "http_500");
    for wrong in [
        &["holds", "resolve", "call-1", "--evidence", "x"][..],
        &["holds", "resolve", "call-1", "--spent", "1e3", "--evidence", "x"],
        &["holds", "resolve", "call-1", "--spent", "-1", "--evidence", "x"],
        &["holds", "resolve", "call-1", "--not-spent", "--evidence", " "],
    ] {
        assert_eq!(place.run(wrong).code, 2, "{wrong:?}");
    }
    assert_eq!(
        place
            .run(&["holds", "resolve", "call-9", "--not-spent", "--evidence", "x"])
            .code,
        4
    );
    let done = place.json(&[
        "holds",
        "resolve",
        "call-1",
        "--spent",
        "30",
        "--evidence",
        "re_1 in the dashboard",
    ]);
    assert_eq!(
        (&done["state"], &done["spent_usd"]),
        (&json!("settled"), &json!("30.00"))
    );
    assert_eq!(place.json(&["holds", "list"])["holds"], json!([]));
    let row = place.json(&["audit", "list"])["rows"][1].clone();
    assert_eq!(row["metadata"]["evidence"], "re_1 in the dashboard");
    assert_eq!(row["metadata"]["by"], "ada");
    assert_eq!(row["cost_source"], "reconciled");
    assert_eq!(
        place
            .run(&["holds", "resolve", "call-1", "--not-spent", "--evidence", "x"])
            .code,
        1
    );
}

#[tokio::test]
async fn budgets_change_for_everyone_on_the_next_call() {
    let place = Place::new();
    let key = place.issue("run_42");
    let ledger = place.ledger();
    granted(ledger.as_ref(), &key, "call-1", 60).await;
    let set = [
        "budget",
        "set",
        "lineage:support",
        "--vendor",
        "stripe",
        "--usd",
        "50",
        "--per",
        "day",
    ];
    let lowered = place.run(&set);
    assert_eq!(lowered.code, 0, "{}", lowered.err);
    assert!(lowered.out.contains("(was $100.00)"), "{}", lowered.out);
    assert!(
        lowered
            .out
            .contains("$60.00 of it are taken already: nothing more fits"),
        "{}",
        lowered.out
    );
    assert!(matches!(
        reserve(ledger.as_ref(), &key, "call-2", 1).await,
        ReserveAnswer::Denied(_)
    ));

    let new = place.json(&[
        "budget",
        "set",
        "tenant:acme",
        "--usd",
        "500",
        "--per",
        "month",
        "--reason",
        "plan",
    ]);
    assert_eq!(
        (&new["cap"], &new["cap_before"]),
        (&json!("500.00"), &Value::Null)
    );
    let shown = place.json(&["budget", "show", "tenant:acme"]);
    assert_eq!(shown["budgets"][0]["budget"]["cap"], "500.00");
    assert!(
        place.json(&["budget", "list"])["budgets"]
            .as_array()
            .unwrap()
            .len()
            >= 2
    );
    assert_eq!(place.run(&["budget", "show", "tenant:nobody"]).code, 4);
    for wrong in [
        &["budget", "set", "tenant:acme", "--per", "month"][..],
        &[
            "budget",
            "set",
            "tenant:acme",
            "--usd",
            "0.0000001",
            "--per",
            "month",
        ],
        &["budget", "set", "tenant:acme", "--usd", "5", "--per", "week"],
        &["budget", "set", "customer:cus_1", "--usd", "5", "--per", "day"],
    ] {
        assert_eq!(place.run(wrong).code, 2, "{wrong:?}");
    }
    let zone = [
        "budget",
        "set",
        "tenant:acme",
        "--usd",
        "5",
        "--per",
        "month",
        "--timezone",
        "Europe/Paris",
    ];
    assert_eq!(place.run(&zone).code, 1, "a zone cannot be changed yet");
}

#[test]
fn a_key_is_shown_once_listed_and_revoked() {
    let place = Place::new();
    let issued = place.run(&[
        "keys",
        "issue",
        "--policy",
        "policy.json",
        "--run",
        "run_42",
        "--token-only",
    ]);
    assert_eq!(issued.code, 0, "{}", issued.err);
    let token = issued.out.trim();
    assert!(
        token.starts_with("vault_key_") && !token.contains(char::is_whitespace),
        "{token}"
    );
    let keys = place.json(&["keys", "list"]);
    let id = keys["keys"][0]["id"].as_str().unwrap();
    assert_eq!(
        (&keys["keys"][0]["state"], &keys["keys"][0]["run"]),
        (&json!("open"), &json!("run_42"))
    );
    let shown = place.run(&["keys", "show", id]);
    assert_eq!(shown.code, 0);
    assert!(
        shown.out.contains("refunds.create") && !shown.out.contains(token),
        "{}",
        shown.out
    );
    assert_eq!(
        place.run(&["keys", "show", token]).code,
        2,
        "a token on a command line is refused"
    );
    assert_eq!(place.run(&["keys", "show", "vk_nobody"]).code, 4);
    assert_eq!(place.json(&["keys", "revoke", id])["was_open"], true);
    assert_eq!(place.json(&["keys", "list"])["keys"], json!([]));
    assert_eq!(
        place.json(&["keys", "list", "--all"])["keys"][0]["state"],
        "revoked"
    );
}

#[test]
fn the_command_that_a_cap_conflict_names_does_what_it_says() {
    let place = Place::new();
    place.issue("run_1");
    let higher = POLICY.replace("100", "150");
    place.file("higher.json", &higher);
    let refused = place.run(&["keys", "issue", "--policy", "higher.json", "--run", "run_2"]);
    assert_eq!(refused.code, 1, "{}", refused.out);
    let named = refused.err.split('`').nth(1).unwrap();
    let words: Vec<&str> = named.split_whitespace().skip(1).collect();
    assert_eq!(place.run(&words).code, 0, "{named}");
    let issued = place.run(&["keys", "issue", "--policy", "higher.json", "--run", "run_2"]);
    assert_eq!(issued.code, 0, "{named}: {}", issued.err);
}
