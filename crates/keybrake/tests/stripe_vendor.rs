//! The rest of what a vendor answers: tokens, tags, denials in Stripe's shape, what a recorded reply keeps, whose
//! object it is, and what became of an unknown call.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed unwrap is a failed test"
)]

use keybrake::policy::{BudgetView, Catalogue as _, Code, Denial};
use keybrake::request::Call;
use keybrake::vendors::{
    Builtin, Class, Finding, Inquiry, Outcome, Reading, Recognised, Reply, Unresolved, Vendor, vendor,
};
use serde_json::{Value, json};

const NOW_MS: i64 = 1_795_000_000_000;

fn stripe() -> &'static dyn Vendor {
    vendor("stripe").unwrap()
}

fn call(method: &str, path: &str, body: &str) -> Call {
    let form = "application/x-www-form-urlencoded";
    Call {
        method: method.to_owned(),
        url: format!("https://api.stripe.com{path}"),
        headers: match method {
            "POST" => vec![("Content-Type".to_owned(), form.to_owned())],
            _ => Vec::new(),
        },
        body: body.to_owned().into(),
    }
}

fn recognise(method: &str, path: &str, body: &str) -> Recognised {
    stripe().recognise(&call(method, path, body)).unwrap()
}

fn reply(status: u16, body: &Value) -> Reply {
    Reply {
        status,
        headers: Vec::new(),
        body: body.to_string().into(),
    }
}

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
    assert_eq!(operations.len(), 648);
    assert_eq!(operations.iter().filter(|o| o.read).count(), 290);
    let unknown = stripe()
        .operations()
        .iter()
        .filter(|o| o.class == Class::Unknown)
        .count();
    assert!(unknown > 100, "{unknown}");
}

// ---- what became of an unknown call

struct Asked {
    operation: &'static str,
    ids: Vec<String>,
    fields: Vec<(String, String)>,
    pins: Vec<(String, String)>,
    object: Option<&'static str>,
    tag: Option<&'static str>,
}

fn pairs(form: &str) -> Vec<(String, String)> {
    form.split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn asked(operation: &'static str, id: &str, fields: &str) -> Asked {
    Asked {
        operation,
        ids: id
            .split(' ')
            .filter(|id| !id.is_empty())
            .map(str::to_owned)
            .collect(),
        fields: pairs(fields),
        pins: Vec::new(),
        object: None,
        tag: Some("kb_1"),
    }
}

impl Asked {
    fn unresolved(&self) -> Unresolved<'_> {
        Unresolved {
            operation: self.operation,
            ids: &self.ids,
            fields: &self.fields,
            pins: &self.pins,
            object: self.object,
            tag: self.tag,
            reserved_at_ms: 1_000_000_500,
            not_after_ms: 1_000_130_500,
        }
    }

    fn path(&self) -> String {
        match stripe().inquiry(&self.unresolved()) {
            Inquiry::Object { path } => format!("object {path}"),
            Inquiry::Listing { path } => format!("listing {path}"),
            Inquiry::None => "none".to_owned(),
        }
    }

    fn find(&self, body: &Value) -> Finding {
        stripe().finding(&self.unresolved(), &reply(200, body))
    }

    fn found(&self, body: &Value) -> Reading {
        match self.find(body) {
            Finding::Found(reading) => *reading,
            other => panic!("not found: {other:?}"),
        }
    }
}

fn intent(status: &str, received: i64) -> Value {
    json!({"id": "pi_1", "object": "payment_intent", "amount": 10_000, "amount_received": received,
           "currency": "usd", "customer": "cus_1", "status": status, "last_payment_error": null})
}

fn refund(id: &str, tag: &str, amount: i64) -> Value {
    json!({"id": id, "object": "refund", "amount": amount, "currency": "usd", "charge": "ch_1",
           "metadata": {"keybrake": tag}, "status": "succeeded"})
}

fn page(has_more: bool, data: &[Value]) -> Value {
    json!({"object": "list", "has_more": has_more, "data": data})
}

#[test]
fn inquiries_read_the_object_or_list_what_can_be_it() {
    let created = "limit=100&created[gte]=999700&created[lte]=1000431";
    for (asked, path) in [
        (
            asked("refunds.create", "", "charge=ch_1&amount=5"),
            format!("listing /v1/refunds?{created}&charge=ch_1"),
        ),
        (
            asked("refunds.create", "", "payment_intent=pi_1"),
            format!("listing /v1/refunds?{created}&payment_intent=pi_1"),
        ),
        (
            asked("charges.create", "", "amount=5&customer=cus_1"),
            format!("listing /v1/charges?{created}&customer=cus_1"),
        ),
        (
            asked("payment_intents.create", "", "amount=5"),
            format!("listing /v1/payment_intents?{created}"),
        ),
        (
            asked("transfers.create", "", "destination=acct_1"),
            format!("listing /v1/transfers?{created}&destination=acct_1"),
        ),
        (
            asked("payouts.create", "", "amount=5"),
            format!("listing /v1/payouts?{created}"),
        ),
        (
            asked("topups.create", "", "amount=5"),
            format!("listing /v1/topups?{created}"),
        ),
        (
            asked("transfers.reversals.create", "tr_1", ""),
            "listing /v1/transfers/tr_1/reversals?limit=100".to_owned(),
        ),
        (
            asked("payment_intents.confirm", "pi_1", ""),
            "object /v1/payment_intents/pi_1".to_owned(),
        ),
        (
            asked("payment_intents.cancel", "pi_1", ""),
            "object /v1/payment_intents/pi_1".to_owned(),
        ),
        (
            asked("charges.capture", "ch_1", ""),
            "object /v1/charges/ch_1".to_owned(),
        ),
        (asked("customers.update", "cus_1", ""), "none".to_owned()),
        (asked("invoices.pay", "in_1", ""), "none".to_owned()),
        // A field that is no id is not put into a path.
        (
            asked("refunds.create", "", "charge=ch_1%26limit%3D1"),
            format!("listing /v1/refunds?{created}"),
        ),
        (
            asked("payment_intents.confirm", "../refunds", ""),
            "none".to_owned(),
        ),
    ] {
        assert_eq!(asked.path(), path);
    }
    let mut known = asked("refunds.create", "", "charge=ch_1");
    known.object = Some("re_1");
    assert_eq!(known.path(), "object /v1/refunds/re_1");
    let pending =
        json!({"id": "re_1", "object": "refund", "amount": 5, "currency": "usd", "status": "failed"});
    assert_eq!(known.found(&pending).outcome, Outcome::FailedForGood);
}

#[test]
fn scenario_17_a_listing_finds_by_tag_and_proves_absence_only_when_complete() {
    let asked = asked("refunds.create", "", "charge=ch_1");
    let others = [refund("re_7", "kb_7", 5), refund("re_8", "", 5)];
    let ours = refund("re_1", "kb_1", 700);
    let reading = asked.found(&page(true, &[others[0].clone(), ours]));
    assert!(matches!(reading.outcome, Outcome::Charged(amount) if amount.minor == 700));
    assert_eq!(reading.vendor_object.as_deref(), Some("re_1"));

    let Finding::Next(next) = asked.find(&page(true, &others)) else {
        panic!("a page with more behind it is not the end");
    };
    assert_eq!(
        next,
        "/v1/refunds?limit=100&created[gte]=999700&created[lte]=1000431&charge=ch_1&starting_after=re_8"
    );
    assert_eq!(asked.find(&page(false, &others)), Finding::Absent);
    assert_eq!(asked.find(&page(false, &[])), Finding::Absent);
    for body in [
        page(true, &[]),
        json!({"data": []}),
        json!({"has_more": false}),
        json!({"has_more": "false", "data": []}),
        json!({"error": {}}),
        json!([]),
    ] {
        assert!(matches!(asked.find(&body), Finding::Unclear(_)), "{body}");
    }
    for status in [401, 404, 429, 500] {
        let finding = stripe().finding(&asked.unresolved(), &reply(status, &page(false, &[])));
        assert!(matches!(finding, Finding::Unclear(_)), "{status}");
    }
}

#[test]
fn without_a_tag_a_twin_is_unclear_and_none_is_absence() {
    let mut asked = asked("refunds.create", "", "charge=ch_1");
    asked.tag = None;
    asked.pins = pairs("amount=700");
    assert!(matches!(
        asked.find(&page(false, &[refund("re_1", "", 700)])),
        Finding::Unclear(_)
    ));
    assert_eq!(
        asked.find(&page(false, &[refund("re_1", "", 600)])),
        Finding::Absent
    );
    asked.fields = pairs("charge=ch_2");
    assert_eq!(
        asked.find(&page(false, &[refund("re_1", "", 700)])),
        Finding::Absent
    );
}

#[test]
fn an_intents_status_tells_what_became_of_its_operations() {
    let absent = |operation: &'static str, status: &str| {
        let asked = asked(operation, "pi_1", "");
        assert_eq!(
            asked.find(&intent(status, 0)),
            Finding::Absent,
            "{operation} {status}"
        );
    };
    let outcome = |operation: &'static str, status: &str, received: i64| {
        asked(operation, "pi_1", "").found(&intent(status, received))
    };
    absent("payment_intents.confirm", "requires_confirmation");
    absent("payment_intents.confirm", "requires_payment_method");
    absent("payment_intents.capture", "requires_capture");
    absent("payment_intents.cancel", "requires_capture");
    for status in ["processing", "requires_action", "requires_capture"] {
        assert_eq!(
            outcome("payment_intents.confirm", status, 0).outcome,
            Outcome::Accepted,
            "{status}"
        );
    }
    for operation in ["payment_intents.confirm", "payment_intents.capture"] {
        let reading = outcome(operation, "succeeded", 9_000);
        let (id, moved, closed) = reading.object.unwrap();
        assert_eq!(
            (id.as_str(), moved.minor, closed),
            ("pi_1", 9_000, true),
            "{operation}"
        );
        let cancelled = outcome(operation, "canceled", 0);
        assert_eq!(cancelled.outcome, Outcome::FailedForGood, "{operation}");
    }
    let reading = outcome("payment_intents.cancel", "canceled", 0);
    assert_eq!(
        (reading.outcome, reading.object.unwrap().2),
        (Outcome::Free, true)
    );

    let several = asked(
        "payment_intents.capture",
        "pi_1",
        "final_capture=false&amount_to_capture=5",
    );
    assert!(matches!(
        several.find(&intent("requires_capture", 5)),
        Finding::Unclear(_)
    ));
    assert_eq!(several.find(&intent("requires_capture", 0)), Finding::Absent);
    assert!(matches!(
        asked("payment_intents.confirm", "pi_1", "").find(&intent("teleported", 0)),
        Finding::Unclear(_)
    ));
}

/// A confirm that waited for the customer, who then failed, is over; one that nobody has answered yet is not, whatever
/// an earlier confirm left behind.
#[test]
fn a_confirm_that_was_accepted_and_failed_later_is_found_as_failed() {
    let mut failed = intent("requires_payment_method", 0);
    failed["last_payment_error"] = json!({"type": "card_error"});
    let mut confirm = asked("payment_intents.confirm", "pi_1", "");
    assert_eq!(confirm.find(&failed), Finding::Absent);
    confirm.object = Some("pi_1");
    assert_eq!(confirm.found(&failed).outcome, Outcome::FailedForGood);
    assert_eq!(
        confirm.find(&intent("requires_payment_method", 0)),
        Finding::Absent
    );
}

#[test]
fn a_raised_amount_is_there_or_it_is_not() {
    for operation in [
        "payment_intents.update",
        "payment_intents.increment_authorization",
    ] {
        let raised = asked(operation, "pi_1", "amount=10000").found(&intent("requires_capture", 0));
        assert_eq!(raised.outcome, Outcome::Accepted, "{operation}");
        let higher = asked(operation, "pi_1", "amount=10001");
        assert_eq!(
            higher.find(&intent("requires_capture", 0)),
            Finding::Absent,
            "{operation}"
        );
        let none = asked(operation, "pi_1", "");
        assert!(
            matches!(none.find(&intent("requires_capture", 0)), Finding::Unclear(_)),
            "{operation}"
        );
    }
}

#[test]
fn a_capture_of_a_charge_is_there_or_it_is_not() {
    let charge = |captured: Value, amount: i64| {
        json!({"id": "ch_1", "object": "charge", "amount": 2_000, "amount_captured": amount, "captured": captured,
               "currency": "usd", "status": "succeeded", "refunded": false})
    };
    let asked = asked("charges.capture", "ch_1", "amount=1200");
    let (_, moved, closed) = asked.found(&charge(json!(true), 1_200)).object.unwrap();
    assert_eq!((moved.minor, closed), (1_200, true));
    assert_eq!(asked.find(&charge(json!(false), 0)), Finding::Absent);
    assert!(matches!(asked.find(&charge(json!(null), 0)), Finding::Unclear(_)));
}

#[test]
fn a_declined_create_is_found_as_declined() {
    let mut declined = intent("requires_payment_method", 0);
    declined["last_payment_error"] = json!({"type": "card_error"});
    declined["metadata"] = json!({"keybrake": "kb_1"});
    let asked = asked(
        "payment_intents.create",
        "",
        "amount=10000&currency=usd&confirm=true",
    );
    assert_eq!(
        asked.found(&page(false, &[declined])).outcome,
        Outcome::FailedForGood
    );
}
