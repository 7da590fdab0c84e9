//! What became of an unknown call.

use keybrake::vendors::{Finding, Inquiry, Outcome, Reading, Unresolved};
use serde_json::{Value, json};

use super::{reply, stripe};

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
    let created = "limit=100&created[gte]=913600&created[lte]=1086531";
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
    let mut tracked = asked("payment_intents.update", "", "");
    tracked.object = Some("pi_1");
    assert_eq!(tracked.path(), "object /v1/payment_intents/pi_1");
    for operation in [
        "payment_intents.update",
        "payment_intents.confirm",
        "payment_intents.capture",
    ] {
        tracked.operation = operation;
        for status in ["requires_confirmation", "requires_capture", "processing"] {
            assert!(
                matches!(tracked.find(&intent(status, 0)), Finding::Unclear(_)),
                "what was asked of it is not known, so {status} says nothing of {operation}"
            );
        }
        assert!(matches!(
            tracked.find(&intent("succeeded", 10_000)),
            Finding::Found(_)
        ));
        assert!(matches!(tracked.find(&intent("canceled", 0)), Finding::Found(_)));
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
        "/v1/refunds?limit=100&created[gte]=913600&created[lte]=1086531&charge=ch_1&starting_after=re_8"
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
