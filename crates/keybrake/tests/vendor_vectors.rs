//! Runs `tests/vectors/{stripe,twilio,resend}/*.json`: request → operation, scopes, identity, estimate; lookup → amount and pins;
//! reply → what it means for money. Every case of a file is run; all that differ are named.
#![expect(clippy::unwrap_used, reason = "a vector that cannot be read is a failed test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use keybrake::money::VendorAmount;
use keybrake::request::Call;
use keybrake::vendors::{
    Class, Estimate, Exposure, LookupAnswer, Outcome, Reading, Recognised, Reply, Vendor, vendor,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    v: u32,
    vendor: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    request: Request,
    /// The code that the request is refused with; then only `says` is compared.
    refused: Option<String>,
    /// A part of the refusal's message.
    says: Option<String>,
    operation: Option<String>,
    class: Option<String>,
    #[serde(default)]
    ids: Vec<String>,
    account: Option<String>,
    customer: Option<String>,
    destination: Option<String>,
    idempotency_key: Option<String>,
    #[serde(default)]
    identity: BTreeMap<String, String>,
    #[serde(default = "yes")]
    count_at_creation: bool,
    #[serde(default)]
    estimate: Value,
    lookup_reply: Option<VectorReply>,
    #[serde(default)]
    lookup: Value,
    #[serde(default)]
    replies: Vec<ReplyCase>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    method: String,
    url: String,
    /// Besides `Authorization` and, with a body (Stripe: on a POST), the vendor's `Content-Type`; null takes one of them
    /// away.
    #[serde(default)]
    headers: BTreeMap<String, Option<String>>,
    #[serde(default)]
    body: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VectorReply {
    status: u16,
    body: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReplyCase {
    name: String,
    status: u16,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    body: Value,
    reading: Value,
}

const fn yes() -> bool {
    true
}

mod stripe {
    use super::run;

    #[test]
    fn charges() {
        run("stripe", "charges");
    }

    #[test]
    fn payment_intents() {
        run("stripe", "payment_intents");
    }

    #[test]
    fn reads_and_free() {
        run("stripe", "reads_and_free");
    }

    #[test]
    fn refunds() {
        run("stripe", "refunds");
    }

    #[test]
    fn refused() {
        run("stripe", "refused");
    }

    #[test]
    fn transfers_payouts_topups() {
        run("stripe", "transfers_payouts_topups");
    }

    #[test]
    fn unknown() {
        run("stripe", "unknown");
    }
}

mod twilio {
    use super::run;

    #[test]
    fn calls_and_others() {
        run("twilio", "calls_and_others");
    }

    #[test]
    fn messages() {
        run("twilio", "messages");
    }

    #[test]
    fn refused() {
        run("twilio", "refused");
    }
}

mod resend {
    use super::run;

    #[test]
    fn emails() {
        run("resend", "emails");
    }

    #[test]
    fn others() {
        run("resend", "others");
    }

    #[test]
    fn refused() {
        run("resend", "refused");
    }
}

/// A file that no test above names would never be run.
#[test]
fn every_file_is_run() {
    let named: [(&str, &[&str]); 3] = [
        (
            "stripe",
            &[
                "charges",
                "payment_intents",
                "reads_and_free",
                "refunds",
                "refused",
                "transfers_payouts_topups",
                "unknown",
            ],
        ),
        ("twilio", &["calls_and_others", "messages", "refused"]),
        ("resend", &["emails", "others", "refused"]),
    ];
    for (vendor, expected) in named {
        let mut names: Vec<String> = std::fs::read_dir(folder(vendor))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let expected: Vec<_> = expected.iter().map(|name| format!("{name}.json")).collect();
        assert_eq!(names, expected);
    }
}

fn folder(vendor: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/vectors")
        .join(vendor)
}

fn run(name_of_vendor: &str, name: &str) {
    let path = folder(name_of_vendor).join(name).with_extension("json");
    let file: File = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!((file.v, file.vendor.as_str()), (1, name_of_vendor));
    let vendor = vendor(name_of_vendor).unwrap();
    let wrong: Vec<String> = file.cases.iter().flat_map(|case| check(vendor, case)).collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// What differs, one line each.
fn check(vendor: &dyn Vendor, case: &Case) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut same = |what: &str, expected: Value, found: Value| {
        if expected != found {
            wrong.push(format!(
                "{} / {what}:\n  expected {expected}\n  found    {found}",
                case.name
            ));
        }
    };
    let call = call(vendor.name(), &case.request);
    let recognised = match (vendor.recognise(&call), &case.refused) {
        (Ok(recognised), None) => recognised,
        (Ok(recognised), Some(code)) => {
            same("refused", json!(code), json!(recognised.operation.name));
            return wrong;
        }
        (Err(refusal), expected) => {
            same("refused", json!(expected), json!(refusal.code.as_str()));
            let says = case.says.as_deref().unwrap_or("(nothing)");
            if !refusal.message.contains(says) {
                same("says", json!(says), json!(refusal.message));
            }
            return wrong;
        }
    };
    let class = match recognised.operation.class {
        Class::Read => "read",
        Class::Free => "free",
        Class::Money => "money",
        Class::Unknown => "unknown",
    };
    same(
        "operation",
        json!([case.operation, case.class, case.ids]),
        json!([recognised.operation.name, class, recognised.ids]),
    );
    same(
        "scopes",
        json!([
            case.account,
            case.customer,
            case.destination,
            case.idempotency_key
        ]),
        json!([
            recognised.account,
            recognised.customer,
            recognised.destination,
            recognised.idempotency_key
        ]),
    );
    same("identity", json!(case.identity), identity(&recognised));
    let estimate = match vendor.estimate(&recognised, case.count_at_creation) {
        Ok(estimate) => show_estimate(&estimate),
        Err(refusal) => json!({ "refused": refusal.code.as_str() }),
    };
    same("estimate", case.estimate.clone(), estimate);
    if let Some(reply) = &case.lookup_reply {
        let reply = reply_of(reply.status, &BTreeMap::new(), &reply.body);
        let found = match vendor.read_lookup(&recognised, &reply) {
            Ok(answer) => show_answer(&answer),
            Err(refusal) => json!({ "refused": refusal.code.as_str() }),
        };
        same("lookup", case.lookup.clone(), found);
    }
    for reply in &case.replies {
        let read = vendor.read(&recognised, &reply_of(reply.status, &reply.headers, &reply.body));
        same(&reply.name, reply.reading.clone(), show_reading(&read));
    }
    wrong
}

fn call(vendor: &str, request: &Request) -> Call {
    let mut headers = BTreeMap::from([("Authorization", Some("Bearer vault_key_x"))]);
    let content_type = match vendor {
        "resend" => "application/json",
        _ => "application/x-www-form-urlencoded",
    };
    if !request.body.is_empty() || (vendor == "stripe" && request.method == "POST") {
        headers.insert("Content-Type", Some(content_type));
    }
    for (name, value) in &request.headers {
        headers.insert(name, value.as_deref());
    }
    Call {
        method: request.method.clone(),
        url: request.url.clone(),
        headers: headers
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
            .collect(),
        body: request.body.clone().into(),
    }
}

/// A body that is a text is sent as it is: for replies that are no JSON.
fn reply_of(status: u16, headers: &BTreeMap<String, String>, body: &Value) -> Reply {
    let body = match body {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    Reply {
        status,
        headers: headers.clone().into_iter().collect(),
        body: body.into(),
    }
}

fn identity(recognised: &Recognised) -> Value {
    let declared = recognised.operation.identity_fields;
    let below = |name: &str, field: &str| {
        name.strip_prefix(field)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('['))
    };
    let chosen: BTreeMap<_, _> = recognised
        .fields
        .iter()
        .filter(|(name, _)| declared.is_empty() || declared.iter().any(|field| below(name, field)))
        .cloned()
        .collect();
    json!(chosen)
}

fn show_amount(amount: &VendorAmount) -> Value {
    json!({ "minor": amount.minor, "currency": amount.currency.as_str(), "exponent": amount.exponent })
}

fn show_exposure(exposure: &Exposure) -> Value {
    match exposure {
        Exposure::Own => json!("own"),
        Exposure::NewObject => json!("new_object"),
        Exposure::Object(id) => json!({ "object": id }),
    }
}

fn show_estimate(estimate: &Estimate) -> Value {
    match estimate {
        Estimate::Free => json!("free"),
        Estimate::AtMost { amount, exposure } => {
            json!({ "at_most": show_amount(amount), "exposure": show_exposure(exposure) })
        }
        Estimate::NeedsLookup(lookup) => {
            json!({ "lookup": lookup.path, "amount_given": lookup.amount_given })
        }
        Estimate::Unknown(_) => json!("unknown"),
    }
}

fn show_answer(answer: &LookupAnswer) -> Value {
    let mut shown = json!({
        "amount": show_amount(&answer.amount),
        "exposure": show_exposure(&answer.exposure),
        "pins": answer.pins.iter().cloned().collect::<BTreeMap<_, _>>(),
    });
    if let (Some(customer), Some(shown)) = (&answer.customer, shown.as_object_mut()) {
        shown.insert("customer".to_owned(), json!(customer));
    }
    shown
}

fn show_reading(reading: &Reading) -> Value {
    let mut shown = Map::new();
    let mut put = |name: &str, value: Value| {
        if value != Value::Null && value != json!(false) {
            shown.insert(name.to_owned(), value);
        }
    };
    let (outcome, amount, reason) = match &reading.outcome {
        Outcome::Charged(amount) => ("charged", Some(amount), None),
        Outcome::ChargedProvisionally(amount) => ("charged_provisionally", Some(amount), None),
        Outcome::Free => ("free", None, None),
        Outcome::Executed => ("executed", None, None),
        Outcome::Accepted => ("accepted", None, None),
        Outcome::DidNotExecute => ("did_not_execute", None, None),
        Outcome::FailedForGood => ("failed_for_good", None, None),
        Outcome::Unknown(reason) => ("unknown", None, Some(reason)),
    };
    put("outcome", json!(outcome));
    put("amount", amount.map_or(Value::Null, show_amount));
    put("reason", json!(reason));
    put(
        "object",
        reading
            .object
            .as_ref()
            .map_or(Value::Null, |(id, moved, closed)| {
                json!([id, moved.minor, closed])
            }),
    );
    put("vendor_object", json!(reading.vendor_object));
    put("request_id", json!(reading.request_id));
    put("replayed", json!(reading.replayed));
    put("customer", json!(reading.customer));
    Value::Object(shown)
}
