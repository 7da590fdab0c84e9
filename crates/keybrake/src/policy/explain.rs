//! What a policy would say to a request, check by check, without a ledger: for `keybrake policy explain`.

use serde::Serialize;

use super::budget::WindowKind;
use super::compiled::CompiledPolicy;
use super::endpoint::{Decision, Target};
use super::rule::Stage;
use super::verdict::Code;
use crate::request::Refusal;

/// A request to explain. Fields are decoded, as the vendor names them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Question<'a> {
    /// The vendor.
    pub vendor: &'a str,
    /// HTTP method, upper case.
    pub method: &'a str,
    /// Path without the query.
    pub path: &'a str,
    /// The operation if it was recognised; else it is found by method and path.
    pub operation: Option<&'a str>,
    /// Request fields.
    pub fields: &'a [(String, String)],
    /// Connected account, if any.
    pub account: Option<&'a str>,
    /// Customer, if known.
    pub customer: Option<&'a str>,
}

/// One check and how it went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// `vendor`, `endpoint`, `account`, `customer` or `params`.
    pub check: &'static str,
    /// Whether it passed. Checks after the first failure are made too.
    pub passed: bool,
    /// The code that the call would be refused with, if it did not pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
    /// What decided, and where it stands in the policy.
    pub because: String,
}

/// What a policy would say to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The operation, if there is one that Keybrake knows.
    pub operation: Option<String>,
    /// Whether every check passed. Cost, ceiling, repeats and budgets are then judged by the ledger.
    pub allowed: bool,
    /// The code of the first check that failed.
    pub code: Option<Code>,
    /// All checks, in their order.
    pub steps: Vec<Step>,
    /// What would then count the call: ceiling and budgets, in words.
    pub limits: Vec<String>,
}

impl CompiledPolicy {
    /// What the policy says to a request, check by check, and what would count it. Needs no ledger, so nothing
    /// is said of stops, repeats or what is left of a budget.
    pub fn explain(&self, question: Question<'_>) -> Explanation {
        let Question {
            vendor,
            method,
            path,
            fields,
            ..
        } = question;
        let rules = match self.rules(vendor) {
            Ok(rules) => rules,
            Err(refusal) => return conclude(None, vec![step("vendor", Err(refusal), "")], Vec::new()),
        };
        let known = question.operation.and_then(|name| rules.routes.by_name(name));
        let operation = known.or_else(|| rules.routes.find(method, path));
        let name = operation.map_or("", |operation| operation.name);
        let target = Target {
            operation,
            method,
            path,
        };
        let steps = vec![
            step("vendor", Ok(()), &format!("the policy opens {vendor}")),
            step(
                "endpoint",
                self.check_endpoint(vendor, name, method, path),
                &self.allowed_by(vendor, target),
            ),
            step(
                "account",
                self.check_account(vendor, question.account),
                &listed(self, vendor, "allowed_accounts"),
            ),
            step(
                "customer",
                self.check_customer(vendor, question.customer),
                &listed(self, vendor, "allowed_customers"),
            ),
            step(
                "params",
                self.check_params(vendor, name, &[fields], Stage::Early),
                "every rule on its fields passes",
            ),
        ];
        conclude(
            operation.map(|operation| operation.name.to_owned()),
            steps,
            self.limits(vendor, target),
        )
    }

    /// The entries that allow a call, one for each document that has a say.
    fn allowed_by(&self, vendor: &str, target: Target<'_>) -> String {
        let Ok(rules) = self.rules(vendor) else {
            return String::new();
        };
        let entries =
            rules
                .layers
                .iter()
                .filter_map(|layer| match layer.endpoints.decide(target, &rules.routes) {
                    Decision::Allowed(place, text) if !place.is_empty() => {
                        Some(format!("`{place}` {text:?}"))
                    }
                    _ => None,
                });
        entries.collect::<Vec<_>>().join(" and ")
    }

    /// Ceiling, cost and budgets that would count a call, in words.
    fn limits(&self, vendor: &str, target: Target<'_>) -> Vec<String> {
        let name = target.operation.map_or("", |operation| operation.name);
        if target.operation.is_some_and(|operation| operation.read) {
            return vec!["a read: it costs nothing; budgets of calls count it".to_owned()];
        }
        let mut limits = Vec::new();
        if let Some(ceiling) = self.per_call_ceiling() {
            limits.push(format!(
                "at most ${ceiling} for one call (`max_amount_per_call_usd`)"
            ));
        }
        if let Some(cost) = self.operation_cost(vendor, name, target.method, target.path) {
            limits.push(format!("counted as ${} (`operation_costs`)", cost.max));
        }
        for (line, limit) in &self.lines {
            if line.vendor.as_deref().is_some_and(|other| other != vendor) {
                continue;
            }
            let per = match line.window {
                WindowKind::Rolling24h => "in 24 hours".to_owned(),
                WindowKind::Lifetime => "in all".to_owned(),
                other => format!("per {}", other.as_str()),
            };
            let unit = if line.unit == super::Unit::Usd {
                String::new()
            } else {
                format!(" {}", line.unit.as_str())
            };
            let narrowed = limit.map_or_else(String::new, |limit| {
                let lower = super::caps::Line {
                    cap: limit,
                    ..line.clone()
                };
                format!(", narrowed to {}", lower.cap_text())
            });
            limits.push(format!(
                "{}{unit} {per}{narrowed} (`{}`)",
                line.cap_text(),
                line.field
            ));
        }
        limits
    }
}

fn step(check: &'static str, answer: Result<(), Refusal>, passed: &str) -> Step {
    match answer {
        Ok(()) => Step {
            check,
            passed: true,
            code: None,
            because: passed.to_owned(),
        },
        Err(refusal) => Step {
            check,
            passed: false,
            code: Some(refusal.code),
            because: refusal.message,
        },
    }
}

fn conclude(operation: Option<String>, steps: Vec<Step>, limits: Vec<String>) -> Explanation {
    let code = steps.iter().find_map(|step| step.code);
    Explanation {
        operation,
        allowed: code.is_none(),
        code,
        steps,
        limits,
    }
}

fn listed(policy: &CompiledPolicy, vendor: &str, field: &str) -> String {
    let layers = policy
        .rules(vendor)
        .map(|rules| rules.layers.as_slice())
        .unwrap_or_default();
    let restricts = layers.iter().any(|layer| match field {
        "allowed_accounts" => layer.accounts.is_some(),
        _ => layer.customers.is_some(),
    });
    if restricts {
        format!("it is in `{field}`")
    } else {
        format!("the policy has no `{field}`")
    }
}
