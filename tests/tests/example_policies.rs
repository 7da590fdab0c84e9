//! The example policies are valid, say what they are meant to say, and fit the published schema.
#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a failed unwrap is a failed test"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use keybrake::policy::{CompiledPolicy, Policy, Question, schema};
use keybrake::vendors::Builtin;
use serde_json::{Value, json};

fn examples() -> BTreeMap<String, PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/policies");
    let paths = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let named = paths.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path));
    named.collect()
}

/// What each example allows and refuses: method, path, and whether the policy's own checks pass.
#[test]
fn examples_say_what_they_mean() {
    let expected = [
        ("support-refunds.json", "POST /v1/refunds", true),
        ("support-refunds.json", "GET /v1/charges/ch_1", true),
        (
            "support-refunds.json",
            "GET /v1/balance_transactions/txn_1",
            false,
        ),
        ("support-refunds.json", "POST /v1/charges", false),
        (
            "billing-agent.yaml",
            "POST /v1/payment_intents/pi_1/confirm",
            true,
        ),
        ("billing-agent.yaml", "POST /v1/customers/cus_1", true),
        (
            "billing-agent.yaml",
            "POST /v1/customers/cus_1/balance_transactions",
            false,
        ),
        ("billing-agent.yaml", "POST /v1/refunds", false),
        ("payouts-operator.toml", "POST /v1/payouts", true),
        ("payouts-operator.toml", "POST /v1/transfers/tr_1/reversals", true),
        ("payouts-operator.toml", "POST /v1/topups", false),
        ("read-only-analyst.json", "GET /v1/invoices", true),
        ("read-only-analyst.json", "GET /v1/issuing/cards", false),
        ("read-only-analyst.json", "POST /v1/customers", false),
        ("observe-rollout.yaml", "DELETE /v1/customers/cus_1", true),
        ("observe-rollout.yaml", "POST /v1/payouts", true),
        ("tenant-platform.json", "POST /v1/invoices/in_1/pay", true),
        ("tenant-platform.json", "POST /v1/payouts", false),
        (
            "support-messages.json",
            "POST /2010-04-01/Accounts/AC1/Messages.json",
            true,
        ),
        (
            "support-messages.json",
            "GET /2010-04-01/Accounts/AC1/Messages/SM1.json",
            true,
        ),
        (
            "support-messages.json",
            "POST /2010-04-01/Accounts/AC1/Calls.json",
            false,
        ),
        ("support-messages.json", "POST /emails", true),
        ("support-messages.json", "POST /emails/e_1/cancel", true),
        ("support-messages.json", "POST /emails/batch", false),
    ];
    let files = examples();
    for name in files.keys() {
        assert!(
            expected.iter().any(|(file, ..)| file == name),
            "nothing is expected of {name}"
        );
    }
    for (file, request, allowed) in expected {
        let policy = Policy::from_file(&files[file]).unwrap();
        let compiled = CompiledPolicy::compile(&policy, &Builtin).unwrap_or_else(|e| panic!("{file}: {e}"));
        let (method, path) = request.split_once(' ').unwrap();
        let vendor = match path.split('/').nth(1).unwrap() {
            "2010-04-01" => "twilio",
            "emails" => "resend",
            _ => "stripe",
        };
        let explained = compiled.explain(Question {
            vendor,
            method,
            path,
            ..Question::default()
        });
        assert_eq!(explained.allowed, allowed, "{file} {request}: {explained:?}");
        assert!(explained.operation.is_some(), "{file} {request} is no operation");
    }
}

#[test]
fn examples_and_their_canonical_forms_fit_the_schema() {
    let schema = schema();
    for (name, path) in examples() {
        let policy = Policy::from_file(&path).unwrap();
        let canonical = policy.to_value();
        validate(&schema, &schema, &canonical).unwrap_or_else(|why| panic!("{name}, canonical: {why}"));
        if path.extension().unwrap() == "json" {
            let written: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
            validate(&schema, &schema, &written).unwrap_or_else(|why| panic!("{name}: {why}"));
        }
        let narrowed = policy
            .narrow(&json!({"run_usd_cap": 1, "expires_in": "30m"}))
            .unwrap();
        validate(&schema, &schema, &narrowed.to_value())
            .unwrap_or_else(|why| panic!("{name}, narrowed: {why}"));
    }
}

/// `docs/policy.md` names every field, and each policy in it is one.
#[test]
fn the_guide_is_complete_and_its_policies_compile() {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/policy.md");
    let text = std::fs::read_to_string(guide).unwrap();
    for field in schema()["properties"].as_object().unwrap().keys() {
        assert!(
            text.contains(&format!("`{field}`")),
            "the guide does not name {field}"
        );
    }
    let of_senders = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/twilio_resend.md");
    let of_senders = std::fs::read_to_string(of_senders).unwrap();
    let blocks: Vec<_> = [&text, &of_senders]
        .into_iter()
        .flat_map(|text| text.split("```").skip(1).step_by(2))
        .collect();
    assert!(blocks.len() >= 5, "the guides have {} policies", blocks.len());
    for block in blocks {
        let (format, body) = block.split_once('\n').unwrap();
        let policy = match format {
            "json" => Policy::from_json(body),
            "yaml" => Policy::from_yaml(body),
            "toml" => Policy::from_toml(body),
            other => panic!("a block of {other}"),
        };
        CompiledPolicy::compile(&policy.unwrap(), &Builtin).unwrap_or_else(|e| panic!("{block}: {e}"));
    }
}

#[test]
fn the_schema_refuses_what_the_reader_refuses() {
    let schema = schema();
    let good = json!({"vendor": "stripe", "daily_usd_cap": 1, "allowed_endpoints": ["reads"]});
    validate(&schema, &schema, &good).unwrap();
    for (field, wrong) in [
        ("daily_usd_capp", json!(1)),
        ("daily_usd_cap", json!(-1)),
        ("daily_usd_cap", json!("1e3")),
        ("daily_usd_cap", json!(null)),
        ("daily_call_cap", json!(1.5)),
        ("daily_call_cap", json!(-1)),
        ("expires_in", json!("never")),
        ("expires_at", json!("tomorrow")),
        ("mode", json!("audit")),
        ("cap_status", json!(402)),
        ("allowed_endpoints", json!("reads")),
        ("allowed_endpoints", json!([1])),
        ("vendors", json!("stripe")),
        ("budgets", json!([{"usd": 1}])),
        ("budgets", json!([{"usd": 1, "per": "week"}])),
        ("budgets", json!([{"usd": 1, "pre": "day"}])),
        ("params", json!({"refunds.create": {"amount": {"maximum": 1}}})),
        ("operation_costs", json!({"invoices.pay": {"most": 1}})),
        ("currency_rates", json!({"eur": 1.09})),
        ("groups", json!([{"attribution_only": true}])),
        ("metadata", json!([])),
        ("v", json!(2)),
    ] {
        let mut document = good.clone();
        document[field] = wrong;
        assert!(
            Policy::from_value(&document).is_err(),
            "the reader took {document}"
        );
        assert!(
            validate(&schema, &schema, &document).is_err(),
            "the schema took {document}"
        );
    }
}

/// As much of JSON Schema 2020-12 as the policy's schema uses. An unknown keyword is an error, so that nothing
/// in the schema goes unchecked.
fn validate(root: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    let Some(keywords) = schema.as_object() else {
        return if schema == &json!(true) {
            Ok(())
        } else {
            Err("nothing fits".to_owned())
        };
    };
    for (keyword, wanted) in keywords {
        let fits = match keyword.as_str() {
            "$schema" | "title" | "description" | "default" | "$defs" | "format" => true,
            "$ref" => {
                let pointer = wanted.as_str().unwrap().trim_start_matches('#');
                let target = if pointer.is_empty() {
                    root
                } else {
                    root.pointer(pointer).unwrap()
                };
                return validate(root, target, value);
            }
            "type" => match wanted {
                Value::Array(types) => types.iter().any(|name| has_type(name, value)),
                name => has_type(name, value),
            },
            "enum" => wanted.as_array().unwrap().contains(value),
            "const" => wanted == value,
            "minimum" => value.as_f64().is_none_or(|n| n >= wanted.as_f64().unwrap()),
            "maximum" => value.as_f64().is_none_or(|n| n <= wanted.as_f64().unwrap()),
            "exclusiveMinimum" => value.as_f64().is_none_or(|n| n > wanted.as_f64().unwrap()),
            "minItems" => value
                .as_array()
                .is_none_or(|items| items.len() as u64 >= wanted.as_u64().unwrap()),
            "pattern" => value.as_str().is_none_or(|text| {
                regex_lite::Regex::new(wanted.as_str().unwrap())
                    .unwrap()
                    .is_match(text)
            }),
            "anyOf" | "oneOf" => wanted
                .as_array()
                .unwrap()
                .iter()
                .any(|s| validate(root, s, value).is_ok()),
            "items" => {
                for item in value.as_array().into_iter().flatten() {
                    validate(root, wanted, item)?;
                }
                true
            }
            "required" => value.as_object().is_none_or(|object| {
                wanted
                    .as_array()
                    .unwrap()
                    .iter()
                    .all(|name| object.contains_key(name.as_str().unwrap()))
            }),
            "properties" => {
                for (name, part) in value.as_object().into_iter().flatten() {
                    if let Some(schema) = wanted.get(name) {
                        validate(root, schema, part).map_err(|why| format!("{name}: {why}"))?;
                    }
                }
                true
            }
            "propertyNames" => {
                for name in value.as_object().into_iter().flat_map(|object| object.keys()) {
                    validate(root, wanted, &json!(name))?;
                }
                true
            }
            "additionalProperties" => {
                for (name, part) in value.as_object().into_iter().flatten() {
                    if schema
                        .get("properties")
                        .is_none_or(|known| known.get(name).is_none())
                    {
                        validate(root, wanted, part).map_err(|why| format!("{name}: {why}"))?;
                    }
                }
                true
            }
            other => panic!("the schema uses {other}, which this test does not check"),
        };
        if !fits {
            return Err(format!("{value} does not fit {keyword} {wanted}"));
        }
    }
    Ok(())
}

fn has_type(name: &Value, value: &Value) -> bool {
    match name.as_str().unwrap() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "integer" => value.as_i64().is_some() || value.as_u64().is_some(),
        "number" => value.is_number(),
        other => panic!("{other} is no type"),
    }
}
