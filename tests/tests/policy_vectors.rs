//! Policies, from the vectors that every language reads: documents, their budgets, their errors, their verdicts.
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a failed unwrap is a failed test"
)]

use std::path::{Path, PathBuf};

use keybrake::money::Currency;
use keybrake::policy::{Binding, CompiledPolicy, Policy, Stage, lineage};
use keybrake::request::Refusal;
use keybrake::vendors::Builtin;
use serde_json::{Value, json};

fn vectors(folder: &str) -> Vec<(PathBuf, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors").join(folder);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no vectors in {}", folder.display());
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        let value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        (path, value)
    };
    files.into_iter().map(read).collect()
}

/// A case has one of `document`, `json`, `yaml`, `toml`; then `narrow`, a list of narrowings.
fn compile(case: &Value) -> keybrake::Result<CompiledPolicy> {
    let text = |name: &str| case[name].as_str();
    let mut policy = match (text("json"), text("yaml"), text("toml")) {
        (Some(json), ..) => Policy::from_json(json)?,
        (_, Some(yaml), _) => Policy::from_yaml(yaml)?,
        (_, _, Some(toml)) => Policy::from_toml(toml)?,
        _ => Policy::from_value(&case["document"])?,
    };
    for narrow in case["narrow"].as_array().into_iter().flatten() {
        policy = policy.narrow(narrow)?;
    }
    // The ledger keeps the canonical form; it must say the same.
    let again = Policy::from_json(&policy.to_json()).expect("canonical JSON is read again");
    assert_eq!(again, policy, "the canonical form says something else");
    CompiledPolicy::compile(&policy, &Builtin)
}

fn budgets(policy: &CompiledPolicy, case: &Value) -> Value {
    let of = |name: &str, own: Option<&str>| case["binding"][name].as_str().or(own).map(str::to_owned);
    let (agent, label) = (of("agent", policy.agent_id()), of("label", policy.label()));
    let binding = Binding {
        lineage: lineage(agent.as_deref(), label.as_deref()).to_owned(),
        run: of("run", policy.run()),
    };
    let refs = policy.budget_refs(&binding).unwrap();
    let shown = refs.into_iter().map(|budget| {
        let mut view =
            json!({"id": budget.def.id().0, "per": budget.def.window.as_str(), "cap": budget.def.cap});
        if let Some(limit) = budget.limit {
            view["limit"] = json!(limit);
        }
        if budget.def.timezone != "UTC" {
            view["timezone"] = json!(budget.def.timezone);
        }
        if !budget.enforce {
            view["enforce"] = json!(false);
        }
        view
    });
    shown.collect()
}

fn pairs(value: &Value) -> Vec<(String, String)> {
    let fields = value.as_object().into_iter().flatten();
    fields
        .map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned()))
        .collect()
}

/// The checks of a call that need no ledger, in their order.
fn judge(policy: &CompiledPolicy, call: &Value) -> Result<(), Refusal> {
    let text = |name: &str| call[name].as_str();
    let vendor = text("vendor").unwrap_or("stripe");
    let operation = text("operation").unwrap_or("unknown");
    let (fields, pins) = (pairs(&call["fields"]), pairs(&call["pins"]));
    policy.check_vendor(vendor)?;
    policy.check_endpoint(vendor, operation, text("method").unwrap(), text("path").unwrap())?;
    policy.check_account(vendor, text("account"))?;
    policy.check_customer(vendor, text("customer"))?;
    policy.check_params(vendor, operation, &[&fields], Stage::Early)?;
    policy.check_params(vendor, operation, &[&fields, &pins], Stage::Final)?;
    if let Some(currency) = text("currency") {
        let now: i64 = call["now_ms"].as_i64().unwrap();
        policy.rate(Currency::parse(currency).unwrap(), now)?;
    }
    Ok(())
}

fn check_case(case: &Value) {
    let compiled = compile(case);
    if let Some(message) = case["error"].as_str() {
        let error = compiled.expect_err("the policy was accepted").to_string();
        assert_eq!(error, message);
        return;
    }
    let policy = compiled.unwrap();
    if case.get("budgets").is_some() {
        assert_eq!(budgets(&policy, case), case["budgets"]);
    }
    for call in case["calls"].as_array().into_iter().flatten() {
        let answer = judge(&policy, call);
        match (&answer, call["code"].as_str()) {
            (Ok(()), None) => {}
            (Err(refusal), Some(code)) if refusal.code.as_str() == code => {
                if let Some(message) = call["message"].as_str() {
                    assert_eq!(refusal.message, message, "{call}");
                }
            }
            _ => panic!("{call}: {answer:?}"),
        }
    }
}

#[test]
fn policy_vectors() {
    const KNOWN: [&str; 10] = [
        "name", "document", "json", "yaml", "toml", "narrow", "binding", "budgets", "error", "calls",
    ];
    let mut failures = Vec::new();
    for (path, file) in vectors("policy") {
        for case in file["cases"].as_array().unwrap() {
            let name = format!(
                "{}: {}",
                path.file_name().unwrap().display(),
                case["name"].as_str().unwrap()
            );
            for field in case.as_object().unwrap().keys() {
                assert!(
                    KNOWN.contains(&field.as_str()),
                    "{name}: {field} is not a field of a vector"
                );
            }
            assert!(case.as_object().unwrap().len() > 2, "{name} expects nothing");
            if let Err(panic) = std::panic::catch_unwind(|| check_case(case)) {
                let text = panic.downcast_ref::<String>().cloned();
                failures.push(format!("{name}: {}", text.unwrap_or_default()));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
