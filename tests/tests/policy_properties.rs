//! Properties of policies: reading never panics, narrowing never widens, and the endpoint matcher agrees with one
//! that is too simple to be wrong.
#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a failed unwrap is a failed test"
)]

use std::ops::Range;

use keybrake::policy::{Binding, Catalogue, CompiledPolicy, OperationInfo, Policy, Stage};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Map, Value, json};

/// A small vendor whose routes have every shape: literals beside ids, nested ids, one path with several methods.
struct Small;

const ROUTES: [(&str, &str, &str); 11] = [
    ("a.list", "GET", "/v1/a"),
    ("a.create", "POST", "/v1/a"),
    ("a.search", "GET", "/v1/a/search"),
    ("a.retrieve", "GET", "/v1/a/*"),
    ("a.update", "POST", "/v1/a/*"),
    ("a.delete", "DELETE", "/v1/a/*"),
    ("a.b.list", "GET", "/v1/a/*/b"),
    ("a.b.retrieve", "GET", "/v1/a/*/b/*"),
    ("a.b.go", "POST", "/v1/a/*/b/*/go"),
    ("b.create", "POST", "/v1/b"),
    ("deep.get", "GET", "/v2/core/a/b"),
];

impl Catalogue for Small {
    fn vendors(&self) -> Vec<&'static str> {
        vec!["small"]
    }

    fn operations(&self, _vendor: &str) -> Vec<OperationInfo> {
        let info = |(name, method, path): (&'static str, &'static str, &'static str)| OperationInfo {
            name,
            method,
            path,
            read: method == "GET",
            recurring: false,
        };
        ROUTES.into_iter().map(info).collect()
    }
}

fn operation() -> impl Strategy<Value = (&'static str, &'static str, String)> {
    (
        select(ROUTES.to_vec()),
        select(vec!["x1", "x2"]),
        select(vec!["x1", "x2"]),
    )
        .prop_map(|((name, method, path), first, second)| {
            (
                name,
                method,
                path.replacen('*', first, 1).replacen('*', second, 1),
            )
        })
}

/// An entry made from a route: each segment kept, or turned into an id, `*` or `**`; or a name; or `reads`.
fn entry() -> impl Strategy<Value = String> {
    let pattern =
        (select(ROUTES.to_vec()), prop::collection::vec(0_u8..8, 6)).prop_map(|((_, method, path), dice)| {
            let segments = path
                .split('/')
                .skip(1)
                .zip(dice)
                .map(|(segment, dice)| match (segment, dice) {
                    ("*", 0) => "x1",
                    (_, 1) => "*",
                    (_, 2) => "**",
                    (segment, _) => segment,
                });
            format!("{method} /{}", segments.collect::<Vec<_>>().join("/"))
        });
    prop_oneof![
        6 => pattern,
        2 => select(ROUTES.to_vec()).prop_map(|(name, ..)| name.to_owned()),
        1 => Just("reads".to_owned()),
    ]
}

/// The matcher to compare with: plain recursion over the pattern, the route and the path.
fn fits(pattern: &[&str], route: &[&str], path: &[&str]) -> bool {
    match (pattern.first(), route.first()) {
        (None, None) => true,
        (Some(&"**"), None) => fits(&pattern[1..], route, path),
        (Some(&"**"), Some(_)) => fits(&pattern[1..], route, path) || fits(pattern, &route[1..], &path[1..]),
        (Some(&"*"), Some(&place)) => place == "*" && fits(&pattern[1..], &route[1..], &path[1..]),
        (Some(&word), Some(&place)) => {
            let here = if place == "*" { path[0] } else { place };
            word == here && fits(&pattern[1..], &route[1..], &path[1..])
        }
        _ => false,
    }
}

fn split(path: &str) -> Vec<&str> {
    path.split('/').skip(1).collect()
}

fn simple(entry: &str, (name, method, path): (&str, &str, &str)) -> bool {
    let (_, _, route) = ROUTES.into_iter().find(|route| route.0 == name).unwrap();
    match entry.split_once(' ') {
        Some((wanted, pattern)) => wanted == method && fits(&split(pattern), &split(route), &split(path)),
        None if entry == "reads" => method == "GET",
        None => entry == name,
    }
}

fn compile(document: &Value) -> Option<CompiledPolicy> {
    CompiledPolicy::compile(&Policy::from_value(document).unwrap(), &Small).ok()
}

/// A policy for the small vendor: any of its fields, with values from small pools so that they meet.
fn document(caps: Range<i64>, ids_at_least: usize) -> impl Strategy<Value = Map<String, Value>> {
    let ids = move || subsequence(vec!["c1", "c2", "c3"], ids_at_least..=3);
    let cap = || prop::option::of(caps.clone());
    (
        prop::collection::vec(entry(), 1..5),
        prop::collection::vec(entry(), 0..2),
        (prop::option::of(ids()), prop::option::of(ids())),
        (cap(), cap(), cap(), cap()),
        prop::option::of((select(vec!["a.create", "b.create", "*"]), caps.clone(), any::<bool>())),
        prop::option::of(select(vec!["1h", "2h", "3h"])),
    )
        .prop_map(|(allow, deny, (customers, accounts), (day, run, ceiling, calls), rule, life)| {
            let rule = rule.map(|(operation, max, required)| json!({operation: {"amount": {"max": max, "required": required}}}));
            let fields = [
                ("allowed_endpoints", Some(json!(allow))),
                ("denied_endpoints", Some(json!(deny))),
                ("allowed_customers", customers.map(|ids| json!(ids))),
                ("allowed_accounts", accounts.map(|ids| json!(ids))),
                ("daily_usd_cap", day.map(|cap| json!(cap))),
                ("run_usd_cap", run.map(|cap| json!(cap))),
                ("max_amount_per_call_usd", ceiling.map(|cap| json!(cap))),
                ("daily_call_cap", calls.map(|cap| json!(cap))),
                ("params", rule),
                ("expires_in", life.map(|life| json!(life))),
            ];
            let given = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
            given.collect()
        })
}

fn base() -> impl Strategy<Value = Value> {
    document(3..7, 2).prop_map(|mut fields| {
        fields.insert("vendor".to_owned(), json!("small"));
        Value::Object(fields)
    })
}

/// A narrowing has some of a document's fields.
fn narrowing() -> impl Strategy<Value = Value> {
    (
        document(1..4, 1),
        prop::collection::vec(prop::bool::weighted(0.3), 10),
    )
        .prop_map(|(fields, keep)| {
            let kept = fields
                .into_iter()
                .zip(keep)
                .filter(|(_, keep)| *keep)
                .map(|(field, _)| field);
            Value::Object(kept.collect())
        })
}

type Request = (
    (&'static str, &'static str, String),
    Option<&'static str>,
    Option<&'static str>,
    Option<i64>,
);

fn request() -> impl Strategy<Value = Request> {
    let id = || prop::option::of(select(vec!["c1", "c2", "c3"]));
    (operation(), id(), id(), prop::option::of(0_i64..7))
}

fn allows(policy: &CompiledPolicy, ((name, method, path), customer, account, amount): &Request) -> bool {
    let fields: Vec<_> = amount
        .iter()
        .map(|amount| ("amount".to_owned(), amount.to_string()))
        .collect();
    policy.check_endpoint("small", name, method, path).is_ok()
        && policy.check_customer("small", *customer).is_ok()
        && policy.check_account("small", *account).is_ok()
        && policy
            .check_params("small", name, &[&fields], Stage::Final)
            .is_ok()
}

/// Every budget's cap as this key sees it, by the budget's id; ceiling and end of life beside them.
fn limits(policy: &CompiledPolicy) -> (Vec<(String, i64)>, i64, i64) {
    let binding = Binding {
        lineage: "l".to_owned(),
        run: Some("r".to_owned()),
    };
    let budgets = policy.budget_refs(&binding).unwrap().into_iter();
    let caps = budgets.map(|b| (b.def.id().0.clone(), b.limit.unwrap_or(i64::MAX).min(b.def.cap)));
    let ceiling = policy.per_call_ceiling().map_or(i64::MAX, keybrake::Usd::micros);
    (
        caps.collect(),
        ceiling,
        policy.lifetime().ends_at_ms(0, 86_400_000).unwrap(),
    )
}

/// Any JSON value, often with names that policies have.
fn any_value() -> impl Strategy<Value = Value> {
    let names = vec![
        "vendor",
        "vendors",
        "budgets",
        "usd",
        "per",
        "scope",
        "daily_usd_cap",
        "allowed_endpoints",
        "stripe",
        "params",
        "refunds.create",
        "*",
        "amount",
        "max",
        "matches",
        "expires_in",
        "expires_at",
        "currency_rates",
        "eur",
        "as_of",
        "max_age",
        "operation_costs",
        "groups",
        "name",
        "narrowed",
        "timezone",
        "cap_status",
        "recurring",
        "$schema",
    ];
    let words = vec![
        "stripe",
        "reads",
        "GET /v1/**",
        "POST /v1/refunds",
        "24h",
        "2026-12-31T23:59:59Z",
        "day",
        "(",
        "9e999",
        "-0",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        select(words).prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 5, move |inner| {
        let name = prop_oneof![4 => select(names.clone()).prop_map(str::to_owned), 1 => ".{0,8}"];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((name, inner), 0..5)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, max_global_rejects: 8_192, ..ProptestConfig::default() })]

    #[test]
    fn reading_any_text_never_panics(text in ".{0,200}") {
        let answers = [Policy::from_json(&text), Policy::from_yaml(&text), Policy::from_toml(&text)];
        for answer in answers.into_iter().flatten() {
            prop_assert_eq!(Policy::from_json(&answer.to_json()).unwrap(), answer);
        }
    }

    #[test]
    fn reading_any_value_never_panics(value in any_value()) {
        let text = value.to_string();
        let answers = [Policy::from_value(&value), Policy::from_json(&text), Policy::from_yaml(&text)];
        for answer in answers.into_iter().flatten() {
            prop_assert_eq!(&Policy::from_json(&answer.to_json()).unwrap(), &answer);
            drop(CompiledPolicy::compile(&answer, &keybrake::vendors::Builtin));
        }
    }

    #[test]
    fn the_endpoint_matcher_agrees_with_a_simple_one(
        allow in prop::collection::vec(entry(), 1..5),
        deny in prop::collection::vec(entry(), 0..3),
        calls in prop::collection::vec(operation(), 8),
    ) {
        let document = json!({"vendor": "small", "allowed_endpoints": allow, "denied_endpoints": deny});
        let compiled = compile(&document);
        prop_assume!(compiled.is_some());
        let policy = compiled.unwrap();
        for (name, method, path) in &calls {
            let call = (*name, *method, path.as_str());
            let expected = allow.iter().any(|entry| simple(entry, call)) && !deny.iter().any(|entry| simple(entry, call));
            let answer = policy.check_endpoint("small", name, method, path);
            prop_assert_eq!(answer.is_ok(), expected, "{} {} by {}: {:?}", method, path, document, answer);
        }
    }

    #[test]
    fn narrowing_never_widens(
        base in base(),
        first in narrowing(),
        second in narrowing(),
        requests in prop::collection::vec(request(), 16),
    ) {
        let policy = Policy::from_value(&base).unwrap();
        let wide = CompiledPolicy::compile(&policy, &Small);
        prop_assume!(wide.is_ok());
        let narrowed = policy.narrow(&first).and_then(|once| once.narrow(&second).or(Ok(once)));
        let compiled = narrowed.and_then(|narrowed| CompiledPolicy::compile(&narrowed, &Small));
        prop_assume!(compiled.is_ok());
        let (wide, narrow) = (wide.unwrap(), compiled.unwrap());
        for request in &requests {
            prop_assert!(!allows(&narrow, request) || allows(&wide, request), "{:?}", request);
        }
        let ((caps, ceiling, end), (lower_caps, lower_ceiling, lower_end)) = (limits(&wide), limits(&narrow));
        prop_assert!(lower_ceiling <= ceiling && lower_end <= end);
        for (id, cap) in caps {
            let lower = lower_caps.iter().find(|(other, _)| *other == id).map(|(_, cap)| *cap);
            prop_assert!(lower.is_some_and(|lower| lower <= cap), "{} {:?} above {}", id, lower, cap);
        }
    }
}
