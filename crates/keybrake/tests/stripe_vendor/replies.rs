//! Denials in Stripe's shape, and what replies keep when they are recorded or when their call is over.

use keybrake::policy::{BudgetView, Code, Denial};
use keybrake::vendors::{Outcome, Reply};
use serde_json::{Value, json};

use super::{recognise, reply, stripe};

const NOW_MS: i64 = 1_795_000_000_000;

fn cap_exceeded(resets_at_ms: Option<i64>) -> Denial {
    let mut denial = Denial::new(Code::CapExceeded, "the daily limit is reached");
    "0199f3".clone_into(&mut denial.call_id);
    denial.budget = Some(BudgetView {
        name: "stripe lineage:a usd per day".to_owned(),
        unit: "usd".to_owned(),
        per: "day".to_owned(),
        cap: 250_000_000,
        used: 240_000_000,
        held: 5_000_000,
        resets_at_ms,
        hold_ids: Vec::new(),
    });
    denial
}

#[test]
fn a_denial_has_the_shape_that_stripes_sdks_read() {
    let refusal = stripe().refusal(&cap_exceeded(Some(NOW_MS + 3_600_000)), 429, NOW_MS);
    let body: Value = serde_json::from_slice(&refusal.body).unwrap();
    assert_eq!(refusal.status, 429);
    assert_eq!(body["error"]["type"], "invalid_request_error");
    assert_eq!(body["error"]["code"], "cap_exceeded");
    assert_eq!(body["error"]["message"], "the daily limit is reached");
    assert_eq!(body["error"]["keybrake"]["call_id"], "0199f3");
    assert_eq!(body["error"]["keybrake"]["budget"]["cap"], 250_000_000);
    assert!(
        refusal
            .headers
            .iter()
            .all(|(name, _)| *name == name.to_ascii_lowercase())
    );
    for (name, value) in [
        ("content-type", "application/json"),
        ("stripe-should-retry", "false"),
        ("x-should-retry", "false"),
        ("x-keybrake-verdict", "cap_exceeded"),
        ("x-keybrake-call-id", "0199f3"),
        ("x-keybrake-cap-hit", "true"),
        ("x-keybrake-cap-used", "245.00"),
        ("x-keybrake-cap-limit", "250.00"),
        ("x-keybrake-cap-reset", "1795003600"),
    ] {
        assert_eq!(refusal.header(name), Some(value), "{name}");
    }
    assert_eq!(
        refusal.header("retry-after"),
        None,
        "retry layers would sleep for an hour"
    );
    let soon = stripe().refusal(&cap_exceeded(Some(NOW_MS + 12_001)), 429, NOW_MS);
    assert_eq!(soon.header("retry-after"), Some("13"));
    let never = stripe().refusal(&cap_exceeded(None), 429, NOW_MS);
    assert_eq!(
        (never.header("retry-after"), never.header("x-keybrake-cap-reset")),
        (None, None)
    );
}

#[test]
fn a_conflict_is_an_idempotency_error() {
    let denial = Denial::new(Code::IdempotencyConflict, "amount differs");
    let refusal = stripe().refusal(&denial, 400, NOW_MS);
    let body: Value = serde_json::from_slice(&refusal.body).unwrap();
    assert_eq!(body["error"]["type"], "idempotency_error");
    assert_eq!(refusal.header("x-keybrake-cap-hit"), None);
}

/// Our own denial, read as a reply, must never count as a success or as proof about an earlier attempt.
#[test]
fn a_denial_is_not_mistaken_for_a_charge() {
    let refund = recognise("POST", "/v1/refunds", "charge=ch_1");
    for status in [400, 401, 403, 429, 503] {
        let denial = Denial::new(Code::IdempotencyConflict, "x");
        let reading = stripe().read(&refund, &stripe().refusal(&denial, status, NOW_MS));
        assert!(
            matches!(reading.outcome, Outcome::DidNotExecute | Outcome::Unknown(_)),
            "{status}: {:?}",
            reading.outcome
        );
    }
}

#[test]
fn rule_17_recorded_replies_lose_their_secrets() {
    let body = json!({
        "id": "pi_1",
        "client_secret": "pi_1_secret_x",
        "nested": [{"client_secret": "y", "kept": 1}],
        "secret": "whsec_z",
    });
    let mut original = reply(200, &body);
    for (name, value) in [
        ("Content-Type", "application/json"),
        ("Request-Id", "req_1"),
        ("Set-Cookie", "session=1"),
        ("Authorization", "Bearer sk_live_x"),
    ] {
        original.headers.push((name.to_owned(), value.to_owned()));
    }
    let kept = stripe().strip(&original);
    let text = String::from_utf8(kept.body.to_vec()).unwrap();
    assert!(!text.contains("secret"), "{text}");
    assert_eq!(
        serde_json::from_str::<Value>(&text).unwrap(),
        json!({"id": "pi_1", "nested": [{"kept": 1}]})
    );
    assert_eq!(kept.header("request-id"), Some("req_1"));
    assert_eq!(
        (kept.header("set-cookie"), kept.header("authorization")),
        (None, None)
    );

    let plain = reply(200, &json!({"b": 1, "a": 2}));
    assert_eq!(
        stripe().strip(&plain).body,
        plain.body,
        "bytes without secrets stay as they are"
    );
    let broken = Reply {
        body: "client_secret".into(),
        ..plain
    };
    assert!(stripe().strip(&broken).body.is_empty());
}

#[test]
fn a_reply_whose_call_moved_nothing_gives_no_client_secret_away() {
    let url = "https://hooks.stripe.com/3ds?payment_intent_client_secret=pi_1_secret_x&merchant=acct_1";
    let mut declined = reply(
        402,
        &json!({"error": {
            "type": "card_error", "code": "card_declined", "decline_code": "generic_decline",
            "payment_intent": {"id": "pi_1", "client_secret": "pi_1_secret_x", "amount": 9_000,
                "next_action": {"redirect_to_url": {"url": url}}},
            "setup_intent": {"id": "seti_1", "client_secret": "seti_1_secret_y"},
            "payment_method": {"metadata": {"note": "keep the secret, and src_client_secret_z not"}},
        }}),
    );
    let length = declined.body.len().to_string();
    for (name, value) in [
        ("Content-Length", length.as_str()),
        ("Content-Encoding", "identity"),
        ("Request-Id", "req_1"),
    ] {
        declined.headers.push((name.to_owned(), value.to_owned()));
    }
    let shown = stripe().redact(declined);
    let body: Value = serde_json::from_slice(&shown.body).unwrap();
    assert_eq!(
        body,
        json!({"error": {
            "type": "card_error", "code": "card_declined", "decline_code": "generic_decline",
            "payment_intent": {"id": "pi_1", "client_secret": null, "amount": 9_000, "next_action": {"redirect_to_url":
                {"url": "https://hooks.stripe.com/3ds?payment_intent_client_secret=redacted&merchant=acct_1"}}},
            "setup_intent": {"id": "seti_1", "client_secret": null},
            "payment_method": {"metadata": {"note": "keep the secret, and redacted not"}},
        }})
    );
    assert_eq!(
        shown.header("content-length"),
        Some(shown.body.len().to_string().as_str())
    );
    assert_eq!(
        (shown.header("content-encoding"), shown.header("request-id")),
        (None, Some("req_1"))
    );
}

#[test]
fn a_reply_that_could_hide_a_client_secret_is_kept_back() {
    for body in [
        &b"\x1f\x8b\x08\x00 compressed"[..],
        b"client_secret=pi_1_secret_x",
    ] {
        let mut hidden = reply(402, &json!(null));
        hidden.body = body.to_vec().into();
        hidden
            .headers
            .push(("content-encoding".to_owned(), "gzip".to_owned()));
        let shown = stripe().redact(hidden);
        let body: Value = serde_json::from_slice(&shown.body).unwrap();
        assert_eq!(
            (shown.status, body["error"]["type"].as_str()),
            (402, Some("api_error"))
        );
        assert_eq!(shown.header("content-encoding"), None);
    }
    let spelt = Reply {
        body: r#"{"client\u005fsecret": "pi_1_secre\u0074_x", "n": 12345678901234567}"#.into(),
        ..reply(400, &json!(null))
    };
    let shown = stripe().redact(spelt);
    assert_eq!(shown.body, r#"{"client_secret":null,"n":12345678901234567}"#);
    let plain = reply(404, &json!({"b": 1, "a": 2}));
    assert_eq!(
        stripe().redact(plain.clone()).body,
        plain.body,
        "bytes without secrets stay as they are"
    );
}
