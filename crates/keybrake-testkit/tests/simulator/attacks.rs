//! The simulator reads a request as a lenient server would. What slips past a strict reader moves money here, so an
//! end-to-end test can show that it was stopped before it left.

use crate::client::{Client, call};
use crate::{refund, simulator};
use keybrake_testkit::stripe::MovementKind;

#[test]
fn near_miss_amounts_are_amounts() {
    for form in [
        "charge=ch_1&[amount]=300",
        "charge=ch_1&amount]=300",
        "charge=ch_1&amount=1&amount=300",
        "charge=ch_1&amount=1;amount=300",
        "charge=ch_1&amount=%2B300",
        "charge=ch_1&amount=0300",
        "charge=ch_2&charge=ch_1&amount=300",
    ] {
        let sim = simulator();
        let answer = refund(&sim, form, "k");
        assert_eq!(
            (answer.status, &answer.json["charge"]),
            (200, &"ch_1".into()),
            "{form}"
        );
        assert_eq!(sim.moved(MovementKind::Refund, "usd"), 300, "{form}");
    }
}

#[test]
fn paths_that_web_servers_resolve_and_old_aliases_are_served() {
    for path in [
        "/v1/charges/ch_1/../../refunds",
        "/v1/customers/..%2frefunds",
        "/v1//refunds",
        "/v1/refunds/",
        "/v1/%72efunds",
        "/v1/charges/ch_1/refund",
        "/v1/charges/ch_1/refunds",
        "/v1/refunds?charge=ch_1",
    ] {
        let sim = simulator();
        let form = if path.contains("ch_1/refund") || path.contains('?') {
            "amount=300"
        } else {
            "charge=ch_1&amount=300"
        };
        assert_eq!(call(&sim, "POST", path, form).status, 200, "{path}");
        assert_eq!(sim.moved(MovementKind::Refund, "usd"), 300, "{path}");
    }
}

#[test]
fn a_confirm_written_as_one_or_in_capitals_confirms() {
    for confirm in ["1", "True", "TRUE", "true"] {
        let sim = simulator();
        let form = format!("amount=300&currency=uSd&payment_method=pm_card_visa&confirm={confirm}");
        assert_eq!(
            call(&sim, "POST", "/v1/payment_intents", &form).json["status"],
            "succeeded"
        );
        assert_eq!(sim.moved(MovementKind::Charge, "usd"), 300, "{confirm}");
    }
}

#[test]
fn json_and_unknown_parameters_are_refused_in_v1() {
    let sim = simulator();
    let json = Client::new(&sim).content_type("application/json");
    assert_eq!(
        json.post("/v1/refunds", r#"{"charge":"ch_1"}"#).unwrap().status,
        400
    );
    let error = call(&sim, "POST", "/v1/refunds", "charge=ch_1&Amount=300").json;
    assert_eq!(error["error"]["code"], "parameter_unknown");
    assert_eq!(
        call(&sim, "POST", "/v1/refunds", "charge=ch_1&amount[a]=300").status,
        400
    );
    assert!(sim.journal().is_empty());
}
