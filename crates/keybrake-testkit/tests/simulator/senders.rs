//! The simulators of Twilio and Resend: what they take, what they answer, and that the journal says what was sent.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use keybrake_testkit::stripe::{Credential, Fault, FaultKind};
use keybrake_testkit::twilio::TEST_ACCOUNT;
use keybrake_testkit::{SentKind, SimulatedVendor, Simulator, SimulatorOptions};
use serde_json::json;

use crate::client::Client;

fn start(vendor: SimulatedVendor) -> Simulator {
    Simulator::start(SimulatorOptions {
        vendor,
        ..SimulatorOptions::default()
    })
    .unwrap()
}

fn twilio(sim: &Simulator) -> Client {
    let pair = STANDARD.encode(format!("{TEST_ACCOUNT}:test_x"));
    Client::bare(sim).header("Authorization", &format!("Basic {pair}"))
}

fn resend(sim: &Simulator) -> Client {
    Client::bare(sim)
        .header("Authorization", "Bearer re_test_x")
        .content_type("application/json")
}

fn messages() -> String {
    format!("/2010-04-01/Accounts/{TEST_ACCOUNT}/Messages.json")
}

#[test]
fn a_message_is_sent_listed_advanced_and_deleted() {
    let sim = start(SimulatedVendor::Twilio);
    let sent = twilio(&sim)
        .post(
            &messages(),
            "To=%2B15558675310&From=%2B15557122661&Body=hi&MediaUrl=a&MediaUrl=b",
        )
        .unwrap();
    assert_eq!(sent.status, 201, "{:?}", sent.json);
    assert_eq!(
        (&sent.json["status"], &sent.json["price"]),
        (&json!("queued"), &json!(null))
    );
    assert_eq!(sent.json["num_media"], "2");
    assert!(sent.header("twilio-request-id").is_some());
    let sid = sent.json["sid"].as_str().unwrap();
    assert!(sid.starts_with("MM") && sid.len() == 34, "{sid}");
    let rows = sim.sent();
    assert_eq!(rows.len(), 1);
    assert_eq!((rows[0].kind, rows[0].object.as_str()), (SentKind::Message, sid));
    sim.advance(sid, "delivered").unwrap();
    assert_eq!(sim.object(sid).unwrap()["price"], "-0.00830");
    twilio(&sim)
        .post(&messages(), "To=%2B15558675311&From=%2B15557122661&Body=hi")
        .unwrap();
    let list = twilio(&sim).get(&format!("{}?PageSize=1", messages())).unwrap();
    assert_eq!(list.json["messages"][0]["to"], "+15558675311", "newest first");
    assert!(list.json["next_page_uri"].is_string());
    let one = messages().replace(".json", &format!("/{sid}.json"));
    assert_eq!(twilio(&sim).send("DELETE", &one, "").unwrap().status, 204);
    let gone = twilio(&sim).get(&one).unwrap();
    assert_eq!((gone.status, &gone.json["code"]), (404, &json!(20_404)));
    assert_eq!(sim.sent().len(), 2, "what was sent stays sent");
    let told = Client::bare(&sim)
        .get("/_sim/sent?kind=message&to=%2B15558675311")
        .unwrap();
    assert_eq!(
        (&told.json["count"], &told.json["sent"][0]["seq"]),
        (&json!(1), &json!(2))
    );
    sim.reset().unwrap();
    assert!(sim.sent().is_empty() && sim.object(sid).is_none());
}

#[test]
fn twilio_knows_no_idempotency_key_and_sends_what_arrives() {
    let sim = start(SimulatedVendor::Twilio);
    sim.fault(Fault::new(FaultKind::DropAfterExecuting).on("POST", "/2010-04-01"))
        .unwrap();
    let form = "To=%2B15558675310&From=%2B15557122661&Body=hi";
    twilio(&sim).key("k").post(&messages(), form).unwrap_err();
    assert_eq!(twilio(&sim).key("k").post(&messages(), form).unwrap().status, 201);
    assert_eq!(sim.sent().len(), 2);
}

#[test]
fn twilio_refuses_in_its_own_shape_and_sends_nothing() {
    let sim = start(SimulatedVendor::Twilio);
    for (form, code) in [
        ("From=%2B15557122661&Body=hi", 21_604),
        ("To=%2B15558675310&Body=hi", 21_603),
        ("To=%2B15558675310&From=%2B15557122661", 21_602),
        ("To=nobody&From=%2B15557122661&Body=hi", 21_211),
        ("To=%2B15005550004&From=%2B15557122661&Body=hi", 21_610),
    ] {
        let refused = twilio(&sim).post(&messages(), form).unwrap();
        assert_eq!(
            (refused.status, &refused.json["code"]),
            (400, &json!(code)),
            "{form}"
        );
        assert_eq!(refused.json["status"], 400);
    }
    sim.fault(Fault::new(FaultKind::RateLimit)).unwrap();
    let limited = twilio(&sim).post(&messages(), "To=%2B15558675310").unwrap();
    assert_eq!((limited.status, &limited.json["code"]), (429, &json!(20_429)));
    for (user, kind) in [
        (format!("{TEST_ACCOUNT}:vault_key_x"), Credential::VaultKey),
        (format!("{TEST_ACCOUNT}:0123456789abcdef"), Credential::LiveKey),
        ("someone:test_x".to_owned(), Credential::LiveKey),
    ] {
        let client = Client::bare(&sim).header("Authorization", &format!("Basic {}", STANDARD.encode(user)));
        let refused = client
            .post(&messages(), "To=%2B15558675310&From=%2B15557122661&Body=hi")
            .unwrap();
        assert_eq!((refused.status, &refused.json["code"]), (401, &json!(20_003)));
        assert_eq!(sim.requests().last().unwrap().authorization, kind);
    }
    assert!(sim.sent().is_empty());
}

#[test]
fn calls_and_verifications() {
    let sim = start(SimulatedVendor::Twilio);
    let calls = messages().replace("Messages", "Calls");
    let call = twilio(&sim)
        .post(&calls, "To=%2B15558675310&From=%2B15557122661&Twiml=x")
        .unwrap();
    assert_eq!(call.status, 201);
    let one = calls.replace(".json", &format!("/{}.json", call.json["sid"].as_str().unwrap()));
    assert_eq!(
        twilio(&sim).post(&one, "Status=completed").unwrap().json["status"],
        "completed"
    );
    let verifications = "/v2/Services/VA0123456789abcdef0123456789abcdef/Verifications";
    let begun = twilio(&sim)
        .post(verifications, "To=%2B15558675310&Channel=sms")
        .unwrap();
    assert_eq!((begun.status, &begun.json["status"]), (201, &json!("pending")));
    let check = verifications.replace("Verifications", "VerificationCheck");
    let wrong = twilio(&sim).post(&check, "To=%2B15558675310&Code=1").unwrap();
    assert_eq!(wrong.json["status"], "pending");
    let right = twilio(&sim)
        .post(&check, "To=%2B15558675310&Code=123456")
        .unwrap();
    assert_eq!(right.json["status"], "approved");
    let kinds: Vec<_> = sim.sent().iter().map(|row| row.kind).collect();
    assert_eq!(kinds, [SentKind::Call, SentKind::Verification]);
}

const EMAIL: &str =
    r#"{"from":"a@acme.example","to":["b@example.com"],"cc":"c@example.com","subject":"s","text":"t"}"#;

#[test]
fn an_email_is_sent_once_under_its_key_for_a_day() {
    let sim = start(SimulatedVendor::Resend);
    sim.fault(Fault::new(FaultKind::Status500AfterExecuting).on("POST", "/emails"))
        .unwrap();
    let lost = resend(&sim).key("k").post("/emails", EMAIL).unwrap();
    assert_eq!(
        (lost.status, &lost.json["name"]),
        (500, &json!("application_error"))
    );
    let again = resend(&sim).key("k").post("/emails", EMAIL).unwrap();
    assert_eq!(again.status, 200);
    let rows = sim.sent();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].to, ["b@example.com", "c@example.com"]);
    assert_eq!(again.json["id"], json!(rows[0].object));
    let other = resend(&sim)
        .key("k")
        .post("/emails", &EMAIL.replace("\"t\"", "\"u\""))
        .unwrap();
    assert_eq!(
        (other.status, &other.json["name"]),
        (409, &json!("invalid_idempotent_request"))
    );
    sim.advance_clock_ms(24 * 3_600_000 + 1);
    assert_eq!(resend(&sim).key("k").post("/emails", EMAIL).unwrap().status, 200);
    assert_eq!(sim.sent().len(), 2, "the key was forgotten");
}

#[test]
fn batches_are_all_or_none_unless_they_are_permissive() {
    let sim = start(SimulatedVendor::Resend);
    let batch = format!("[{EMAIL},{{\"from\":\"a@acme.example\"}}]");
    let refused = resend(&sim).post("/emails/batch", &batch).unwrap();
    assert_eq!(
        (refused.status, &refused.json["name"]),
        (422, &json!("missing_required_field"))
    );
    assert!(sim.sent().is_empty());
    let some = resend(&sim)
        .header("x-batch-validation", "permissive")
        .post("/emails/batch", &batch)
        .unwrap();
    assert_eq!(some.status, 200);
    assert_eq!(some.json["data"].as_array().unwrap().len(), 1);
    assert_eq!(some.json["errors"][0]["index"], 1);
    assert_eq!(sim.sent().len(), 1);
}

#[test]
fn resend_refuses_in_its_own_shape_and_sends_nothing() {
    let sim = start(SimulatedVendor::Resend);
    for (body, name) in [
        ("{}", "missing_required_field"),
        ("[]", "validation_error"),
        (
            r#"{"from":"a@b","to":"nobody","subject":"s","text":"t"}"#,
            "validation_error",
        ),
        (r#"{"from":"a@b","to":"c@d","subject":"s"}"#, "validation_error"),
    ] {
        let refused = resend(&sim).post("/emails", body).unwrap();
        assert_eq!(
            (refused.status, &refused.json["name"]),
            (422, &json!(name)),
            "{body}"
        );
        assert_eq!(refused.json["statusCode"], 422);
    }
    for (key, kind) in [
        ("vault_key_x", Credential::VaultKey),
        ("re_abc", Credential::LiveKey),
    ] {
        let client = Client::bare(&sim).header("Authorization", &format!("Bearer {key}"));
        assert_eq!(
            client
                .content_type("application/json")
                .post("/emails", EMAIL)
                .unwrap()
                .status,
            401
        );
        assert_eq!(sim.requests().last().unwrap().authorization, kind);
    }
    assert!(sim.sent().is_empty());
    assert_eq!(resend(&sim).get("/nothing").unwrap().status, 404);
}

#[test]
fn a_scheduled_email_is_cancelled_and_a_draft_goes_when_it_is_sent() {
    let sim = start(SimulatedVendor::Resend);
    let scheduled = EMAIL.replace("\"text\"", "\"scheduled_at\":\"in 1 hour\",\"text\"");
    let id = resend(&sim).post("/emails", &scheduled).unwrap().json["id"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(
        resend(&sim)
            .post(&format!("/emails/{id}/cancel"), "")
            .unwrap()
            .status,
        200
    );
    assert_eq!(
        resend(&sim)
            .post(&format!("/emails/{id}/cancel"), "")
            .unwrap()
            .status,
        422
    );
    assert_eq!(sim.object(&id).unwrap()["last_event"], "canceled");
    let draft = r#"{"from":"a@acme.example","subject":"s","segment_id":"s_1"}"#;
    let id = resend(&sim).post("/broadcasts", draft).unwrap().json["id"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(sim.sent().len(), 1, "a draft is not sent");
    resend(&sim)
        .post(&format!("/broadcasts/{id}/send"), "{}")
        .unwrap();
    let rows = sim.sent();
    assert_eq!(
        (rows[1].kind, rows[1].object.as_str()),
        (SentKind::Broadcast, id.as_str())
    );
}

#[test]
fn only_stripe_is_seeded_and_each_banner_names_its_variables() {
    for vendor in SimulatedVendor::ALL {
        let sim = start(vendor);
        assert_eq!(sim.vendor(), vendor);
        let banner = sim.banner();
        for (name, value) in vendor.environment(&sim.url()) {
            assert!(banner.contains(&format!("export {name}={value}")), "{banner}");
        }
        let seeded = Client::bare(&sim).post("/_sim/seed", "{}").unwrap().status;
        assert_eq!(seeded == 200, vendor == SimulatedVendor::Stripe);
        let known = keybrake::vendors::vendor(vendor.name()).unwrap();
        assert_eq!(known.livemode(vendor.test_secret()), Some(false));
    }
}
