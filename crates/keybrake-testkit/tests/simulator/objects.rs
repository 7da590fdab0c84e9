//! Objects and what moves their money.

use crate::client::{Client, call};
use crate::{refund, simulator};
use keybrake_testkit::stripe::{Fault, FaultKind, MovementKind, MovementOutcome, Seed, SeedCharge};

#[test]
fn a_refund_moves_money_once_and_the_journal_says_so() {
    let sim = simulator();
    let whole = refund(&sim, "charge=ch_1&metadata[order]=17", "k1");
    assert_eq!(whole.status, 200);
    assert_eq!(whole.json["amount"], 5_000);
    assert_eq!(whole.json["status"], "succeeded");
    assert_eq!(whole.json["metadata"]["order"], "17");
    assert!(whole.json["id"].as_str().unwrap().starts_with("re_"));
    assert!(whole.header("request-id").unwrap().starts_with("req_"));

    let row = sim.journal().pop().unwrap();
    assert_eq!(
        (row.kind, row.outcome, row.amount),
        (MovementKind::Refund, MovementOutcome::Moved, 5_000)
    );
    assert_eq!(row.object, whole.json["id"].as_str().unwrap());
    assert_eq!(row.source.as_deref(), Some("ch_1"));
    assert_eq!(row.idempotency_key.as_deref(), Some("k1"));
    assert_eq!(row.request_id.as_deref(), whole.header("request-id"));

    let again = refund(&sim, "charge=ch_1", "k2");
    assert_eq!(again.status, 400);
    assert_eq!(again.json["error"]["code"], "charge_already_refunded");
    assert_eq!(sim.journal().len(), 1);
    assert_eq!(sim.object("ch_1").unwrap()["refunded"], true);
}

#[test]
fn partial_refunds_add_up_and_never_exceed_the_charge() {
    let sim = simulator();
    assert_eq!(refund(&sim, "charge=ch_1&amount=3000", "a").json["amount"], 3_000);
    let over = refund(&sim, "charge=ch_1&amount=2001", "b");
    assert_eq!(
        (over.status, &over.json["error"]["param"]),
        (400, &"amount".into())
    );
    assert_eq!(refund(&sim, "charge=ch_1", "c").json["amount"], 2_000);
    assert_eq!(sim.moved(MovementKind::Refund, "usd"), 5_000);
}

#[test]
fn a_refund_needs_an_existing_charge() {
    let sim = simulator();
    let none = refund(&sim, "charge=ch_none", "a");
    assert_eq!(
        (none.status, &none.json["error"]["code"]),
        (400, &"resource_missing".into())
    );
    assert_eq!(refund(&sim, "amount=5", "b").status, 400);
    assert_eq!(
        refund(&sim, "charge=ch_1&colour=red", "c").json["error"]["code"],
        "parameter_unknown"
    );
    assert_eq!(refund(&sim, "charge=ch_1&amount=0", "d").status, 400);
    assert_eq!(
        refund(&sim, "charge=ch_1&amount=", "e").json["error"]["code"],
        "parameter_invalid_empty"
    );
    assert_eq!(call(&sim, "GET", "/v1/charges/ch_none", "").status, 404);
    assert!(sim.journal().is_empty());
}

#[test]
fn a_pending_refund_can_fail_and_its_money_returns() {
    let sim = simulator();
    let seed = Seed {
        charges: vec![SeedCharge {
            payment_method: "pm_card_pendingRefund".to_owned(),
            ..SeedCharge::new("ch_p", 900, "usd")
        }],
        ..Seed::default()
    };
    sim.seed(&seed).unwrap();
    let made = refund(&sim, "charge=ch_p", "a");
    assert_eq!(made.json["status"], "pending");
    let id = made.json["id"].as_str().unwrap();
    assert_eq!(sim.advance(id, "failed").unwrap()["status"], "failed");
    assert_eq!(sim.moved(MovementKind::Refund, "usd"), 0);
    assert_eq!(sim.object("ch_p").unwrap()["amount_refunded"], 0);
    assert!(sim.advance(id, "succeeded").is_err());
}

#[test]
fn a_payment_intent_moves_money_when_it_is_confirmed() {
    let sim = simulator();
    let made = call(
        &sim,
        "POST",
        "/v1/payment_intents",
        "amount=2000&currency=usd&payment_method=pm_card_visa",
    );
    assert_eq!(made.json["status"], "requires_confirmation");
    assert!(sim.journal().is_empty());
    let id = made.json["id"].as_str().unwrap();
    let path = format!("/v1/payment_intents/{id}");
    assert_eq!(call(&sim, "POST", &path, "amount=2500").json["amount"], 2_500);
    let done = call(&sim, "POST", &format!("{path}/confirm"), "expand[]=latest_charge");
    assert_eq!(done.json["status"], "succeeded");
    assert_eq!(done.json["amount_received"], 2_500);
    assert_eq!(done.json["latest_charge"]["amount_captured"], 2_500);
    assert_eq!(sim.moved(MovementKind::Charge, "usd"), 2_500);
    let again = call(&sim, "POST", &format!("{path}/confirm"), "");
    assert_eq!(again.json["error"]["code"], "payment_intent_unexpected_state");
    assert_eq!(again.json["error"]["payment_intent"]["id"], id);
    assert_eq!(call(&sim, "POST", &path, "amount=9000").status, 400);
    let back = call(
        &sim,
        "POST",
        "/v1/refunds",
        &format!("payment_intent={id}&amount=500"),
    );
    assert_eq!(back.json["payment_intent"], id);
    assert_eq!(sim.moved(MovementKind::Refund, "usd"), 500);
}

#[test]
fn captures_of_an_authorisation_are_cumulative() {
    let sim = simulator();
    let form = "amount=10000&currency=usd&payment_method=pm_card_visa&confirm=true&capture_method=manual";
    let made = call(&sim, "POST", "/v1/payment_intents", form);
    assert_eq!(
        (&made.json["status"], &made.json["amount_capturable"]),
        (&"requires_capture".into(), &10_000.into())
    );
    assert_eq!(sim.moved(MovementKind::Charge, "usd"), 0);
    let path = format!("/v1/payment_intents/{}", made.json["id"].as_str().unwrap());
    let raised = call(
        &sim,
        "POST",
        &format!("{path}/increment_authorization"),
        "amount=12000",
    );
    assert_eq!(raised.json["amount_capturable"], 12_000);
    assert_eq!(
        call(
            &sim,
            "POST",
            &format!("{path}/increment_authorization"),
            "amount=12000"
        )
        .status,
        400
    );
    let first = call(
        &sim,
        "POST",
        &format!("{path}/capture"),
        "amount_to_capture=6000&final_capture=false",
    );
    assert_eq!(
        (&first.json["status"], &first.json["amount_received"]),
        (&"requires_capture".into(), &6_000.into())
    );
    assert_eq!(
        call(&sim, "POST", &format!("{path}/capture"), "amount_to_capture=6001").status,
        400
    );
    let last = call(&sim, "POST", &format!("{path}/capture"), "amount_to_capture=4000");
    assert_eq!(
        (&last.json["status"], &last.json["amount_received"]),
        (&"succeeded".into(), &10_000.into())
    );
    assert_eq!(last.json["amount_capturable"], 0);
    assert_eq!(sim.moved(MovementKind::Charge, "usd"), 10_000);
}

#[test]
fn a_cancelled_authorisation_moves_nothing() {
    let sim = simulator();
    let gone = call(&sim, "POST", "/v1/payment_intents/pi_hold/cancel", "");
    assert_eq!(
        (&gone.json["status"], &gone.json["amount_capturable"]),
        (&"canceled".into(), &0.into())
    );
    assert_eq!(
        call(&sim, "POST", "/v1/payment_intents/pi_hold/capture", "").status,
        400
    );
    assert_eq!(sim.moved(MovementKind::Charge, "usd"), 0);
    let released = sim.journal().pop().unwrap();
    assert_eq!(
        (released.kind, released.outcome, released.amount),
        (MovementKind::AuthorizationReleased, MovementOutcome::None, 10_000)
    );
    assert!(sim.totals().is_empty());
    assert_eq!(
        call(&sim, "POST", "/v1/payment_intents/pi_1/cancel", "").status,
        400
    );
}

#[test]
fn declines_authentication_and_bank_debits_of_a_payment_intent() {
    let sim = simulator();
    let start = |method: &str, more: &str| {
        let form = format!("amount=700&currency=usd&confirm=true&payment_method={method}{more}");
        call(&sim, "POST", "/v1/payment_intents", &form)
    };
    let declined = start("pm_card_visa_chargeDeclined", "");
    assert_eq!(
        (declined.status, &declined.json["error"]["code"]),
        (402, &"card_declined".into())
    );
    let intent = &declined.json["error"]["payment_intent"];
    assert_eq!(intent["status"], "requires_payment_method");
    let path = format!("/v1/payment_intents/{}/confirm", intent["id"].as_str().unwrap());
    assert_eq!(call(&sim, "POST", &path, "").status, 400);
    assert_eq!(
        call(&sim, "POST", &path, "payment_method=pm_card_visa").json["status"],
        "succeeded"
    );

    let action = start("pm_card_authenticationRequired", "");
    assert_eq!(action.json["status"], "requires_action");
    assert_eq!(
        start("pm_card_authenticationRequired", "&off_session=true").status,
        402
    );
    assert_eq!(sim.moved(MovementKind::Charge, "usd"), 700);
    let id = action.json["id"].as_str().unwrap();
    assert_eq!(sim.advance(id, "succeeded").unwrap()["status"], "succeeded");
    assert_eq!(sim.moved(MovementKind::Charge, "usd"), 1_400);

    let debit = start("pm_usBankAccount", "");
    assert_eq!(
        (&debit.json["status"], &debit.json["amount_received"]),
        (&"processing".into(), &0.into())
    );
    let id = debit.json["id"].as_str().unwrap();
    assert_eq!(
        sim.advance(id, "failed").unwrap()["status"],
        "requires_payment_method"
    );
    assert_eq!(sim.moved(MovementKind::Charge, "usd"), 1_400);
}

#[test]
fn charges_can_be_authorised_and_captured() {
    let sim = simulator();
    let made = call(
        &sim,
        "POST",
        "/v1/charges",
        "amount=800&currency=usd&customer=cus_1&capture=false",
    );
    assert_eq!(
        (&made.json["captured"], &made.json["paid"]),
        (&false.into(), &true.into())
    );
    assert_eq!(sim.moved(MovementKind::Charge, "usd"), 0);
    let path = format!("/v1/charges/{}/capture", made.json["id"].as_str().unwrap());
    assert_eq!(call(&sim, "POST", &path, "amount=801").status, 400);
    assert_eq!(
        call(&sim, "POST", &path, "amount=500").json["amount_captured"],
        500
    );
    assert_eq!(
        call(&sim, "POST", &path, "").json["error"]["code"],
        "charge_already_captured"
    );
    assert_eq!(sim.moved(MovementKind::Charge, "usd"), 500);
    assert_eq!(
        call(&sim, "POST", "/v1/charges", "amount=800&currency=usd").status,
        400
    );
}

#[test]
fn amounts_follow_each_currency() {
    let sim = simulator();
    let status = |amount: &str, currency: &str| {
        let form = format!("amount={amount}&currency={currency}&source=tok_visa");
        call(&sim, "POST", "/v1/charges", &form).status
    };
    for (amount, currency) in [
        ("50", "usd"),
        ("50", "USD"),
        ("500", "isk"),
        ("50", "jpy"),
        ("5120", "kwd"),
    ] {
        assert_eq!(status(amount, currency), 200, "{amount} {currency}");
    }
    for (amount, currency) in [
        ("49", "usd"),
        ("510", "isk"),
        ("550", "ugx"),
        ("5124", "kwd"),
        ("500", "zzz"),
        ("-5", "usd"),
        ("9999999999999", "usd"),
    ] {
        assert_eq!(status(amount, currency), 400, "{amount} {currency}");
    }
}

#[test]
fn transfers_reversals_payouts_and_topups() {
    let sim = simulator();
    let post = |path: &str, form: &str| call(&sim, "POST", path, form);
    let sent = post("/v1/transfers", "amount=1000&currency=usd&destination=acct_b");
    assert_eq!(sent.json["destination"], "acct_b");
    let transfer = sent.json["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/transfers/{transfer}/reversals");
    assert_eq!(post(&path, "amount=400").json["amount"], 400);
    assert_eq!(post(&path, "amount=601").status, 400);
    assert_eq!(post(&path, "").json["amount"], 600);
    assert_eq!(sim.object(&transfer).unwrap()["reversed"], true);
    assert_eq!(sim.moved(MovementKind::Transfer, "usd"), 1_000);
    assert_eq!(sim.moved(MovementKind::TransferReversal, "usd"), 1_000);
    let whole = post(
        "/v1/transfers",
        "currency=usd&destination=acct_b&source_transaction=ch_1",
    );
    assert_eq!(whole.json["amount"], 5_000);
    assert_eq!(
        post("/v1/transfers", "amount=1&currency=usd&destination=ba_1").status,
        400
    );

    let poor = post("/v1/payouts", "amount=999999999&currency=usd");
    assert_eq!(poor.json["error"]["code"], "balance_insufficient");
    let paid = post("/v1/payouts", "amount=300&currency=usd");
    assert_eq!(paid.json["status"], "pending");
    let payout = paid.json["id"].as_str().unwrap();
    for to in ["in_transit", "paid", "failed"] {
        assert_eq!(sim.advance(payout, to).unwrap()["status"], to);
    }
    assert_eq!(sim.moved(MovementKind::Payout, "usd"), 0);
    assert_eq!(post(&format!("/v1/payouts/{payout}/cancel"), "").status, 400);
    let cancelled = post("/v1/payouts", "amount=300&currency=usd");
    let path = format!("/v1/payouts/{}/cancel", cancelled.json["id"].as_str().unwrap());
    assert_eq!(post(&path, "").json["status"], "canceled");
    assert_eq!(post("/v1/payouts", "amount=1045&currency=huf").status, 400);

    let topup = post("/v1/topups", "amount=2000&currency=usd&description=x");
    assert_eq!(topup.json["status"], "pending");
    assert_eq!(sim.moved(MovementKind::Topup, "usd"), 2_000);
    let path = format!("/v1/topups/{}/cancel", topup.json["id"].as_str().unwrap());
    assert_eq!(post(&path, "").json["status"], "canceled");
    assert_eq!(sim.moved(MovementKind::Topup, "usd"), 0);
}

#[test]
fn lists_page_and_filter() {
    let sim = simulator();
    for amount in [101, 102, 103, 104] {
        call(
            &sim,
            "POST",
            "/v1/refunds",
            &format!("charge=ch_1&amount={amount}"),
        );
    }
    call(&sim, "POST", "/v1/refunds", "payment_intent=pi_1&amount=105");
    let amounts = |query: &str| -> (Vec<i64>, bool, Vec<String>) {
        let page = call(&sim, "GET", &format!("/v1/refunds?{query}"), "").json;
        let data = page["data"].as_array().unwrap();
        (
            data.iter().map(|row| row["amount"].as_i64().unwrap()).collect(),
            page["has_more"].as_bool().unwrap(),
            data.iter()
                .map(|row| row["id"].as_str().unwrap().to_owned())
                .collect(),
        )
    };
    assert_eq!(amounts("charge=ch_1").0, [104, 103, 102, 101]);
    assert_eq!(amounts("payment_intent=pi_1").0, [105]);
    let (first, more, ids) = amounts("charge=ch_1&limit=2");
    assert_eq!((first, more), (vec![104, 103], true));
    let (next, more, _) = amounts(&format!("charge=ch_1&limit=2&starting_after={}", ids[1]));
    assert_eq!((next, more), (vec![102, 101], false));
    let (oldest, ..) = amounts("limit=1&charge=ch_1&created[gte]=0&created[lt]=99999999999");
    assert_eq!(oldest, [104]);
    assert!(amounts("created[gt]=99999999999").0.is_empty());
    let all = amounts("").2;
    assert_eq!(
        amounts(&format!("ending_before={}&limit=2", all[3])).0,
        [104, 103]
    );
    assert_eq!(call(&sim, "GET", "/v1/refunds?limit=101", "").status, 400);
    assert_eq!(
        call(&sim, "GET", "/v1/refunds?starting_after=re_none", "").status,
        400
    );
    assert_eq!(
        call(&sim, "GET", "/v1/charges?payment_intent=pi_1", "").json["data"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    let expanded = call(&sim, "GET", "/v1/refunds?limit=1&expand[]=data.charge", "").json;
    assert_eq!(expanded["data"][0]["charge"]["object"], "charge");
}

#[test]
fn customers_live_and_are_deleted() {
    let sim = simulator();
    let made = call(
        &sim,
        "POST",
        "/v1/customers",
        "email=x%40example.com&name=X&metadata[a]=1&metadata[b]=2",
    );
    let path = format!("/v1/customers/{}", made.json["id"].as_str().unwrap());
    let changed = call(&sim, "POST", &path, "metadata[a]=&phone=123");
    assert_eq!(changed.json["metadata"], serde_json::json!({"b": "2"}));
    assert_eq!(
        call(&sim, "GET", "/v1/customers?email=x@example.com", "").json["data"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(call(&sim, "DELETE", &path, "").json["deleted"], true);
    assert_eq!(call(&sim, "GET", &path, "").json["deleted"], true);
    assert_eq!(call(&sim, "POST", &path, "name=Y").status, 404);
    assert_eq!(
        call(
            &sim,
            "POST",
            "/v1/charges",
            "amount=500&currency=usd&customer=cus_none"
        )
        .status,
        400
    );
}

#[test]
fn only_test_keys_are_let_in_and_secrets_are_not_logged() {
    let sim = simulator();
    for (value, status) in [
        ("Bearer sk_test_anything", 200),
        ("Basic c2tfdGVzdF9hOg==", 200),
        ("Bearer vault_key_abcdef", 401),
        ("Bearer sk_live_abcdef", 401),
        ("Bearer rk_test_abcdef", 401),
        ("nonsense", 401),
    ] {
        let answer = Client::bare(&sim)
            .header("Authorization", value)
            .get("/v1/balance")
            .unwrap();
        assert_eq!(answer.status, status, "{value}");
        assert!(answer.header("request-id").is_some());
    }
    assert_eq!(Client::bare(&sim).get("/v1/balance").unwrap().status, 401);
    let log = serde_json::to_string(&sim.requests()).unwrap();
    for secret in ["anything", "abcdef", "c2tf"] {
        assert!(!log.contains(secret), "{log}");
    }
    assert!(log.contains("vault_key") && log.contains("live_key"));
}

#[test]
fn what_is_not_served_is_a_404_of_stripes_shape() {
    let sim = simulator();
    for (method, path) in [
        ("GET", "/v1/nothing"),
        ("POST", "/"),
        ("DELETE", "/v1/charges/ch_1"),
        ("POST", "/v2/core/x"),
    ] {
        let answer = call(&sim, method, path, "");
        assert_eq!(answer.status, 404, "{path}");
        assert_eq!(answer.json["error"]["type"], "invalid_request_error");
    }
}

#[test]
fn files_pdfs_and_v2() {
    let sim = simulator();
    let form = "--b\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\ndispute_evidence\r\n--b\r\nContent-Disposition: \
                form-data; name=\"file\"; filename=\"a.pdf\"\r\n\r\n12345\r\n--b--\r\n";
    let file = Client::new(&sim)
        .content_type("multipart/form-data; boundary=b")
        .post("/v1/files", form)
        .unwrap();
    assert_eq!(
        (&file.json["object"], &file.json["size"]),
        (&"file".into(), &5.into())
    );

    let pdf = call(&sim, "GET", "/v1/quotes/qt_1/pdf", "");
    assert_eq!(pdf.header("transfer-encoding"), Some("chunked"));
    assert_eq!(pdf.body.len(), 256 * 1_024);
    assert!(pdf.body.starts_with(b"%PDF"));

    assert_eq!(
        call(&sim, "GET", "/v2/core/events", "").json["data"],
        serde_json::json!([])
    );
    let json = r#"{"name":"n","type":"webhook_endpoint","event_payload":"thin","enabled_events":["*"]}"#;
    let client = Client::new(&sim).content_type("application/json").key("k");
    let made = client.post("/v2/core/event_destinations", json).unwrap();
    assert_eq!(made.json["object"], "v2.core.event_destination");
    let replay = client.post("/v2/core/event_destinations", json).unwrap();
    assert_eq!(
        (replay.header("idempotent-replayed"), &replay.body),
        (Some("true"), &made.body)
    );
    let client = Client::new(&sim).content_type("application/json").key("f");
    assert_eq!(
        client.post("/v2/core/event_destinations", "{}").unwrap().status,
        400
    );
    assert_eq!(
        client
            .post("/v2/core/event_destinations", "{}")
            .unwrap()
            .header("idempotent-replayed"),
        None
    );
}

#[test]
fn a_reset_starts_again() {
    let sim = simulator();
    refund(&sim, "charge=ch_1", "k");
    sim.fault(Fault::new(FaultKind::DropBefore)).unwrap();
    sim.reset().unwrap();
    assert!(sim.journal().is_empty() && sim.requests().is_empty() && sim.faults().is_empty());
    assert_eq!(
        refund(&sim, "charge=ch_1", "k").header("idempotent-replayed"),
        None
    );
}

#[test]
fn nothing_listens_after_stop() {
    let sim = simulator();
    let port = sim.port();
    sim.stop();
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
}
