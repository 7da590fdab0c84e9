//! Tokens, secrets, headers, keys and tags; whose object it is; what policies see.

use keybrake::policy::Catalogue as _;
use keybrake::request::Call;
use keybrake::vendors::{Builtin, Class, Exposure};
use serde_json::{Value, json};

use super::{call, recognise, reply, stripe};

fn with_authorization(values: &[&str]) -> Call {
    let mut call = call("GET", "/v1/charges", "");
    for value in values {
        call.headers
            .push(("authorization".to_owned(), (*value).to_owned()));
    }
    call
}

#[test]
fn rule_20_tokens_are_bearer_or_basic_and_nowhere_else() {
    let token = |values: &[&str]| stripe().token(&with_authorization(values));
    assert_eq!(token(&["Bearer vault_key_a1"]).as_deref(), Some("vault_key_a1"));
    assert_eq!(token(&["bearer vault_key_a1"]).as_deref(), Some("vault_key_a1"));
    // curl -u vault_key_a1:
    assert_eq!(
        token(&["Basic dmF1bHRfa2V5X2ExOg=="]).as_deref(),
        Some("vault_key_a1")
    );
    for values in [
        &[][..],
        &["Bearer "],
        &["Bearer a b"],
        &["Bearer vault_key_a1,"],
        &["vault_key_a1"],
        &["Token vault_key_a1"],
        // With a password, and broken Base64.
        &["Basic dmF1bHRfa2V5X2ExOng="],
        &["Basic %%%"],
        &["Bearer vault_key_a1", "Bearer vault_key_b2"],
    ] {
        assert_eq!(token(values), None, "{values:?}");
    }
    assert_eq!(
        stripe().token(&call("GET", "/v1/charges?api_key=vault_key_a1", "")),
        None
    );
}

#[test]
fn rule_03_secrets_are_live_or_test_or_not_stripes() {
    for (secret, live) in [
        ("sk_live_x", Some(true)),
        ("rk_live_x", Some(true)),
        ("sk_test_x", Some(false)),
        ("rk_test_x", Some(false)),
        ("pk_live_x", None),
        ("re_x", None),
        ("SK_LIVE_x", None),
        ("", None),
    ] {
        assert_eq!(stripe().livemode(secret), live, "{secret}");
    }
    let headers = stripe().credentials("sk_test_x");
    assert_eq!(
        (headers[0].0.as_str(), headers[0].1.as_str()),
        ("authorization", "Bearer sk_test_x")
    );
}

#[test]
fn rule_07_only_listed_headers_are_forwarded() {
    for name in [
        "Stripe-Version",
        "stripe-account",
        "Content-Type",
        "X-Stripe-Client-User-Agent",
    ] {
        assert!(stripe().forwards(name), "{name}");
    }
    for name in [
        "Authorization",
        "Idempotency-Key",
        "Host",
        "Content-Length",
        "traceparent",
        "X-Api-Key",
    ] {
        assert!(!stripe().forwards(name), "{name}");
    }
}

#[test]
fn idempotency_keys_go_where_stripe_takes_them() {
    for (method, path, takes) in [
        ("POST", "/v1/refunds", true),
        ("POST", "/v2/core/accounts", true),
        ("DELETE", "/v2/core/event_destinations/ed_1", true),
        ("DELETE", "/v1/customers/cus_1", false),
        ("GET", "/v1/charges", false),
    ] {
        assert_eq!(
            stripe().takes_idempotency_key(&call(method, path, "")),
            takes,
            "{method} {path}"
        );
    }
}

#[test]
fn pins_and_tags_are_appended_and_the_rest_stays_as_it_is() {
    let fields = [
        ("amount".to_owned(), "500".to_owned()),
        ("metadata[keybrake]".to_owned(), "kb_1".to_owned()),
    ];
    let original = "charge=ch_1&reason=requested%5fby_customer";
    let body = stripe()
        .append_fields(&call("POST", "/v1/refunds", original), &fields)
        .unwrap();
    assert_eq!(body, format!("{original}&amount=500&metadata[keybrake]=kb_1"));
    let empty = stripe()
        .append_fields(&call("POST", "/v1/charges/ch_1/capture", ""), &fields[..1])
        .unwrap();
    assert_eq!(empty, "amount=500");
    let mut json = call("POST", "/v2/core/accounts", "{}");
    json.headers = vec![("content-type".to_owned(), "application/json".to_owned())];
    assert_eq!(stripe().append_fields(&json, &[]).unwrap(), "{}");
    assert!(stripe().append_fields(&json, &fields).is_err());
}

#[test]
fn scenario_18_tags_go_where_they_can_be_found_again() {
    let tag = |path: &str, body: &str| stripe().tag_field(&recognise("POST", path, body));
    assert_eq!(tag("/v1/refunds", "charge=ch_1"), Some("metadata[keybrake]"));
    assert_eq!(
        tag("/v1/refunds", "charge=ch_1&metadata[a]=b"),
        Some("metadata[keybrake]")
    );
    // Clearing all metadata is not mixed with setting some; nor is a 51st key.
    assert_eq!(tag("/v1/refunds", "charge=ch_1&metadata="), None);
    let full: Vec<_> = (0..50).map(|n| format!("metadata[k{n}]=v")).collect();
    assert_eq!(
        tag("/v1/refunds", &format!("charge=ch_1&{}", full.join("&"))),
        None
    );
    assert_eq!(tag("/v1/payment_intents/pi_1/confirm", ""), None);
    assert_eq!(tag("/v1/customers", "name=x"), None);
}

#[test]
fn owners_are_looked_up_for_calls_that_name_only_an_object() {
    let path = |method: &str, path: &str, body: &str| {
        stripe()
            .owner_lookup(&recognise(method, path, body))
            .map(|lookup| lookup.path)
    };
    assert_eq!(
        path("POST", "/v1/payment_intents/pi_1/cancel", "").as_deref(),
        Some("/v1/payment_intents/pi_1")
    );
    assert_eq!(
        path("POST", "/v1/payment_intents/pi_1", "description=x").as_deref(),
        Some("/v1/payment_intents/pi_1")
    );
    assert_eq!(
        path("GET", "/v1/charges/ch_1", "").as_deref(),
        Some("/v1/charges/ch_1")
    );
    assert_eq!(
        path("POST", "/v1/refunds/re_1", "metadata[a]=b").as_deref(),
        Some("/v1/refunds/re_1?expand[0]=charge")
    );
    assert_eq!(path("GET", "/v1/customers/cus_1", ""), None);
    assert_eq!(path("POST", "/v1/customers", "name=x"), None);
    assert_eq!(path("GET", "/v1/charges/a%20b", ""), None);

    let cancel = recognise("POST", "/v1/payment_intents/pi_1/cancel", "");
    let owner = |status: u16, body: Value| stripe().read_owner(&cancel, &reply(status, &body));
    assert_eq!(
        owner(200, json!({"customer": "cus_1"})).unwrap().as_deref(),
        Some("cus_1")
    );
    assert_eq!(
        owner(200, json!({"customer": {"id": "cus_1"}}))
            .unwrap()
            .as_deref(),
        Some("cus_1")
    );
    assert_eq!(
        owner(200, json!({"charge": {"customer": "cus_1"}}))
            .unwrap()
            .as_deref(),
        Some("cus_1")
    );
    assert_eq!(owner(200, json!({"customer": null})).unwrap(), None);
    assert!(owner(404, json!({"error": {}})).is_err());
    assert!(owner(200, json!([])).is_err());
}

#[test]
fn policies_see_every_operation() {
    let operations = Builtin.operations("stripe");
    assert_eq!(operations.len(), 649);
    assert_eq!(operations.iter().filter(|o| o.read).count(), 291);
    let unknown = stripe()
        .operations()
        .iter()
        .filter(|o| o.class == Class::Unknown)
        .count();
    assert!(unknown > 100, "{unknown}");
}

// ---- what became of an unknown call

#[test]
fn one_of_several_captures_holds_all_that_can_be_captured() {
    let intent = json!({"id": "pi_1", "object": "payment_intent", "amount": 10_000, "amount_received": 3_000,
        "amount_capturable": 7_000, "currency": "usd", "customer": null});
    let answer = |body: &str| {
        let capture = recognise("POST", "/v1/payment_intents/pi_1/capture", body);
        let answer = stripe().read_lookup(&capture, &reply(200, &intent)).unwrap();
        assert_eq!(answer.exposure, Exposure::Object("pi_1".to_owned()), "{body}");
        let pins: Vec<_> = answer
            .pins
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        (answer.amount.minor, pins.join("&"))
    };
    let none = String::new;
    assert_eq!(
        answer("amount_to_capture=1000"),
        (4_000, none()),
        "the last capture: what moved, and this"
    );
    // Another one may be under way of which this reading knows nothing.
    assert_eq!(
        answer("amount_to_capture=1000&final_capture=false"),
        (10_000, none())
    );
    assert_eq!(
        answer("final_capture=false"),
        (10_000, "amount_to_capture=7000".to_owned()),
        "what is pinned is what can be captured, not the whole"
    );
    assert_eq!(
        answer("final_capture=true"),
        (10_000, "amount_to_capture=7000".to_owned())
    );
}

#[test]
fn a_recognised_call_shows_neither_token_nor_values() {
    let mut call = call("POST", "/v1/customers", "name=Ada&email=ada@example.com");
    for (name, value) in [
        ("Authorization", "Bearer vault_key_abc"),
        ("Idempotency-Key", "order-17"),
    ] {
        call.headers.push((name.to_owned(), value.to_owned()));
    }
    let recognised = stripe().recognise(&call).unwrap();
    assert_eq!(recognised.token.as_deref(), Some("vault_key_abc"));
    let shown = format!("{recognised:?} {recognised:#?}");
    assert!(shown.contains("customers.create"), "{shown}");
    for hidden in ["vault_key_abc", "Ada", "ada@example.com", "order-17"] {
        assert!(!shown.contains(hidden), "{shown}");
    }
}
