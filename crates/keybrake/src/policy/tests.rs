use serde_json::{Value, json};

use super::*;
use crate::money::Usd;
use crate::vendors::Builtin;

const DAY_MS: i64 = 86_400_000;

fn compile(document: &Value) -> CompiledPolicy {
    CompiledPolicy::compile(&Policy::from_value(document).unwrap(), &Builtin).unwrap()
}

fn with(fields: &Value) -> CompiledPolicy {
    let mut document =
        json!({"vendor": "stripe", "allowed_endpoints": ["reads", "refunds.create", "invoices.pay"]});
    for (name, value) in fields.as_object().unwrap() {
        document[name] = value.clone();
    }
    compile(&document)
}

#[test]
fn a_key_always_ends() {
    let now = 1_795_305_600_000;
    let ends = |fields: Value| with(&fields).lifetime().ends_at_ms(now, DAY_MS);
    assert_eq!(ends(json!({})).unwrap(), now + DAY_MS);
    assert_eq!(ends(json!({"expires_in": "90m"})).unwrap(), now + 5_400_000);
    assert_eq!(
        ends(json!({"expires_at": "2026-12-31T23:59:59Z"})).unwrap(),
        1_798_761_599_000
    );
    let over = ends(json!({"expires_at": "2026-11-01T00:00:00Z"})).unwrap_err();
    assert_eq!(
        over.message(),
        "`expires_at` 2026-11-01T00:00:00Z is already over"
    );
    let far = ends(json!({"expires_at": "2036-01-01T00:00:00Z"})).unwrap_err();
    assert!(far.message().contains("more than 366 days ahead"), "{far}");
}

#[test]
fn narrowing_takes_the_earlier_of_a_span_and_a_time() {
    let policy =
        Policy::from_value(&json!({"vendor": "stripe", "allowed_endpoints": ["reads"], "expires_in": "2h"}))
            .unwrap();
    let narrowed = policy
        .narrow(&json!({"expires_at": "1970-01-01T01:00:00Z"}))
        .unwrap();
    let ends = |now| {
        CompiledPolicy::compile(&narrowed, &Builtin)
            .unwrap()
            .lifetime()
            .ends_at_ms(now, DAY_MS)
            .unwrap()
    };
    assert_eq!((ends(0), ends(-3_600_000)), (3_600_000, 3_600_000));
    assert_eq!(ends(-7_200_000), 0);
}

#[test]
fn narrowing_makes_words_and_ceilings_stricter() {
    let policy = Policy::from_value(
        &json!({"vendor": "stripe", "allowed_endpoints": ["reads", "invoices.pay"], "mode": "observe",
        "max_amount_per_call_usd": 50, "operation_costs": {"invoices.pay": 40}}),
    )
    .unwrap();
    let narrowed = policy
        .narrow(&json!({"mode": "enforce", "idempotency": "require", "on_repeat": "refuse", "unknown_cost": "deny",
            "model_detail": "reason", "max_amount_per_call_usd": 30, "operation_costs": {"invoices.pay": 20}}))
        .unwrap();
    let (wide, narrow) = (compile(&policy.to_value()), compile(&narrowed.to_value()));
    assert!(wide.observe() && !narrow.observe());
    assert!(wide.full_detail() && !narrow.full_detail());
    assert_eq!(
        (wide.idempotency(), narrow.idempotency()),
        (Idempotency::Auto, Idempotency::Require)
    );
    assert_eq!(
        (wide.on_repeat(), narrow.on_repeat()),
        (OnRepeat::Replay, OnRepeat::Refuse)
    );
    assert_eq!(
        (wide.unknown_cost(), narrow.unknown_cost()),
        (UnknownCost::Lookup, UnknownCost::Deny)
    );
    assert_eq!(narrow.per_call_ceiling(), Usd::from_dollars(30));
    let cost = |policy: &CompiledPolicy| {
        policy
            .operation_cost("stripe", "invoices.pay", "POST", "/v1/invoices/in_1/pay")
            .unwrap()
            .max
    };
    assert_eq!(
        (cost(&wide), cost(&narrow)),
        (Usd::from_dollars(40).unwrap(), Usd::from_dollars(20).unwrap())
    );
}

#[test]
fn costs_are_found_by_name_then_by_the_highest_path() {
    let policy = with(
        &json!({"operation_costs": {"invoices.pay": 5, "POST /v1/invoices/**": {"max": "20.50"}, "POST /v1/invoices/*/send": 9}}),
    );
    let cost = |operation: &str, path: &str| {
        policy
            .operation_cost("stripe", operation, "POST", path)
            .map(|cost| cost.max.to_string())
    };
    assert_eq!(
        cost("invoices.pay", "/v1/invoices/in_1/pay").as_deref(),
        Some("5.00")
    );
    assert_eq!(
        cost("invoices.send_invoice", "/v1/invoices/in_1/send").as_deref(),
        Some("20.50")
    );
    assert_eq!(cost("refunds.create", "/v1/refunds"), None);
    assert_eq!(
        policy.operation_cost("twilio", "invoices.pay", "POST", "/v1/invoices/in_1/pay"),
        None
    );
}

#[test]
fn what_the_engine_asks_before_it_looks_anything_up() {
    assert!(!with(&json!({})).has_customer_rule());
    assert!(with(&json!({"allowed_customers": ["cus_1"]})).has_customer_rule());
    assert!(with(&json!({"per_customer_daily_usd_cap": 1})).has_customer_rule());
    assert!(with(&json!({"run_usd_cap": 1})).only_run_budgets());
    assert!(with(&json!({"run_usd_cap": 1})).has_run_budget());
    assert!(!with(&json!({"run_usd_cap": 1, "daily_usd_cap": 1})).only_run_budgets());
    assert!(!with(&json!({})).only_run_budgets());
    let policy = with(
        &json!({"secret": {"stripe": "acme"}, "caller_keys": "replace", "cap_status": 403, "count_intents": "at_confirm",
        "label": "l", "agent_id": "a", "agent_run_id": "r", "parent": "vk_1", "metadata": {"team": "x"},
        "groups": ["g1", {"name": "g2", "attribution_only": true}], "budgets": [{"usd": 1, "per": "day", "scope": "g3"}]}),
    );
    assert_eq!(policy.secret_name("stripe"), Some("acme"));
    assert_eq!(
        (
            policy.caller_keys(),
            policy.cap_status(),
            policy.count_at_creation()
        ),
        (Some(CallerKeys::Replace), 403, false)
    );
    assert_eq!(
        (policy.label(), policy.agent_id(), policy.run(), policy.parent()),
        (Some("l"), Some("a"), Some("r"), Some("vk_1"))
    );
    assert_eq!(
        (policy.groups(), policy.attribution_only()),
        (
            ["g1", "g2", "g3"].map(str::to_owned).as_slice(),
            ["g2".to_owned()].as_slice()
        )
    );
    assert_eq!(policy.metadata()["team"], "x");
    assert_eq!(
        (
            lineage(None, None),
            lineage(None, Some("l")),
            lineage(Some("a"), Some("l"))
        ),
        ("default", "l", "a")
    );
}

#[test]
fn before_a_lookup_an_absent_field_passes_and_after_it_fails() {
    let policy = with(&json!({"params": {"refunds.create": {"amount": {"max": 5}}}}));
    let check = |fields: &[(String, String)], stage| {
        policy
            .check_params("stripe", "refunds.create", &[fields], stage)
            .is_ok()
    };
    let amount = |value: &str| vec![("amount".to_owned(), value.to_owned())];
    assert!(check(&[], Stage::Early) && !check(&[], Stage::Final));
    assert!(check(&amount("5"), Stage::Early) && check(&amount("5"), Stage::Final));
    assert!(!check(&amount("6"), Stage::Early));
}

#[test]
fn an_explanation_names_the_line_that_decided() {
    let policy = with(
        &json!({"daily_usd_cap": 250, "max_amount_per_call_usd": 50, "denied_endpoints": ["GET /v1/balance/**"],
        "params": {"refunds.create": {"amount": {"max": 5}}}}),
    );
    let explain = |method, path, fields: &[(String, String)]| {
        policy.explain(Question {
            vendor: "stripe",
            method,
            path,
            fields,
            ..Question::default()
        })
    };
    let allowed = explain("POST", "/v1/refunds", &[]);
    assert_eq!(
        (allowed.allowed, allowed.operation.as_deref()),
        (true, Some("refunds.create"))
    );
    let endpoint = allowed
        .steps
        .iter()
        .find(|step| step.check == "endpoint")
        .unwrap();
    assert_eq!(endpoint.because, "`allowed_endpoints[1]` \"refunds.create\"");
    assert_eq!(
        allowed.limits,
        [
            "at most $50.00 for one call (`max_amount_per_call_usd`)",
            "$250.00 per day (`daily_usd_cap`)"
        ]
    );
    let denied = explain("GET", "/v1/balance", &[]);
    assert_eq!(
        (denied.allowed, denied.code),
        (false, Some(Code::EndpointNotAllowed))
    );
    assert!(
        denied.steps.iter().any(|step| step.because
            == "balance.retrieve is denied by `denied_endpoints[0]` \"GET /v1/balance/**\"")
    );
    let param = explain("POST", "/v1/refunds", &[("amount".to_owned(), "6".to_owned())]);
    assert_eq!(param.code, Some(Code::ParamNotAllowed));
    let other = policy.explain(Question {
        vendor: "twilio",
        method: "POST",
        path: "/x",
        ..Question::default()
    });
    assert_eq!((other.code, other.steps.len()), (Some(Code::VendorNotAllowed), 1));
}

#[test]
fn ids_that_would_break_ledger_keys_are_refused() {
    for (kind, id) in [
        ("run", ""),
        ("run", "a b"),
        ("run", "a::b"),
        ("agent", "a|b"),
        ("label", "ä"),
        ("group", "run"),
        ("group", "customer"),
        ("group", "a\nb"),
        ("key", "a*"),
    ] {
        let error = validate_id(kind, id).unwrap_err();
        assert!(error.message().starts_with(kind), "{error}");
    }
    validate_id("group", "tenant::acme").unwrap();
    validate_id("run", "run_42:step.1-b").unwrap();
    validate_id("run", &"r".repeat(128)).unwrap();
    validate_id("run", &"r".repeat(129)).unwrap_err();
}

#[test]
fn a_file_is_read_by_its_ending_and_errors_name_it() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let yaml = Policy::from_file(write("a.yml", "vendor: stripe\nallowed_endpoints: [reads]\n")).unwrap();
    let toml = Policy::from_file(write(
        "a.toml",
        "vendor = 'stripe'\nallowed_endpoints = ['reads']\n",
    ))
    .unwrap();
    assert_eq!(yaml, toml);
    let wrong = Policy::from_file(write("b.json", r#"{"vendr": "stripe"}"#)).unwrap_err();
    assert!(
        wrong
            .message()
            .ends_with("b.json: `vendr` is not a field of the policy; did you mean `vendor`?"),
        "{wrong}"
    );
    let ending = Policy::from_file(write("c.txt", "{}")).unwrap_err();
    assert!(ending.message().contains("ends in .json"), "{ending}");
    let none = Policy::from_file(folder.path().join("none.json")).unwrap_err();
    assert_eq!(none.kind(), crate::ErrorKind::NotFound);
}

#[test]
fn canonical_form_is_stable_and_exact() {
    let policy = Policy::from_json(r#"{"vendor": "stripe", "daily_usd_cap": 0.10, "expires_in": "24h", "expires_at": "2027-01-01T01:00:00+01:00", "allowed_endpoints": ["reads"]}"#).unwrap();
    assert_eq!(
        policy.to_value(),
        json!({"vendor": "stripe", "daily_usd_cap": "0.10", "expires_in": "1d", "expires_at": "2027-01-01T00:00:00Z", "allowed_endpoints": ["reads"]})
    );
    let through_serde: Policy = serde_json::from_str(&serde_json::to_string(&policy).unwrap()).unwrap();
    assert_eq!(through_serde, policy);
}
