//! Stripe's operations, and which of them a method and a path name (security rule 5).

mod free;
mod reads;
mod unknown;

use std::borrow::Cow;
use std::sync::LazyLock;

use crate::vendors::table::{ALL, Routes, free, money, read, unknown};
use crate::vendors::{Class, Operation};

/// The methods of Stripe's API.
const METHODS: &[&str] = &["GET", "POST", "DELETE"];

/// Host of nearly everything.
pub(super) const API: &str = "api.stripe.com";
/// Host of uploads, downloads and quotes' documents.
pub(super) const FILES: &str = "files.stripe.com";
/// Host of OAuth.
pub(super) const CONNECT: &str = "connect.stripe.com";
/// Host of the stream of meter events.
pub(super) const METER: &str = "meter-events.stripe.com";

/// Operations whose cost we know, and those that release money: everything that `estimate.rs` and `reply.rs` name.
#[rustfmt::skip]
const KNOWN: &[Operation] = &[
    money("charges.create", "/v1/charges", 1, &[
        "amount", "currency", "customer", "source", "card", "capture", "on_behalf_of", "application_fee_amount",
        "destination", "transfer_data[destination]", "transfer_data[amount]",
    ], true),
    money("charges.capture", "/v1/charges/*/capture", 1, &["amount"], false),
    money("payment_intents.create", "/v1/payment_intents", 1, &[
        "amount", "currency", "customer", "customer_account", "payment_method", "payment_method_data", "source",
        "confirmation_token", "confirm", "capture_method", "on_behalf_of", "application_fee_amount", "transfer_data[destination]", "transfer_data[amount]",
    ], true),
    money("payment_intents.update", "/v1/payment_intents/*", 1, ALL, false),
    money("payment_intents.confirm", "/v1/payment_intents/*/confirm", 1,
        &["amount_to_confirm", "payment_method", "payment_method_data", "confirmation_token", "capture_method"], false),
    money("payment_intents.capture", "/v1/payment_intents/*/capture", 1, &["amount_to_capture", "final_capture"], false),
    money("payment_intents.increment_authorization", "/v1/payment_intents/*/increment_authorization", 1, &["amount"], false),
    free("POST", "payment_intents.cancel", "/v1/payment_intents/*/cancel"),
    money("refunds.create", "/v1/refunds", -1, &[
        "charge", "payment_intent", "amount", "currency", "customer", "origin", "reverse_transfer",
        "refund_application_fee",
    ], true),
    free("POST", "refunds.cancel", "/v1/refunds/*/cancel"),
    money("transfers.create", "/v1/transfers", -1,
        &["amount", "currency", "destination", "source_transaction", "source_type", "transfer_group"], true),
    money("transfers.reversals.create", "/v1/transfers/*/reversals", 1, &["amount", "refund_application_fee"], true),
    money("payouts.create", "/v1/payouts", -1,
        &["amount", "currency", "destination", "method", "source_type"], true),
    free("POST", "payouts.cancel", "/v1/payouts/*/cancel"),
    money("topups.create", "/v1/topups", 1, &["amount", "currency", "source"], true),
    free("POST", "topups.cancel", "/v1/topups/*/cancel"),
    free("POST", "customers.create", "/v1/customers"),
    free("POST", "customers.update", "/v1/customers/*"),
    // The `url` of a file object; stripe-python has no method for it (docs.stripe.com/file-upload, "Retrieving files").
    read("files.contents", "/v1/files/*/contents"),
];

/// Paths of older API versions that the SDK does not use any more and that may still be served. They are judged as
/// the operation they stand for, so that denying that one denies them; their cost is not known.
/// Source: Stripe's public OpenAPI document of 2023-08-16.
#[rustfmt::skip]
const LEGACY: &[Operation] = &[
    unknown("POST", "refunds.create", "/v1/charges/*/refund"),
    unknown("POST", "refunds.create", "/v1/charges/*/refunds"),
    unknown("POST", "refunds.update", "/v1/charges/*/refunds/*"),
    unknown("POST", "disputes.update", "/v1/charges/*/dispute"),
    unknown("POST", "disputes.close", "/v1/charges/*/dispute/close"),
    unknown("POST", "application_fees.refunds.create", "/v1/application_fees/*/refund"),
    unknown("POST", "subscriptions.create", "/v1/customers/*/subscriptions"),
    unknown("POST", "subscriptions.update", "/v1/customers/*/subscriptions/*"),
    unknown("DELETE", "subscriptions.cancel", "/v1/customers/*/subscriptions/*"),
];

static OPERATIONS: LazyLock<Vec<Operation>> = LazyLock::new(|| {
    let mut all: Vec<Operation> = [KNOWN, free::FREE, unknown::UNKNOWN, reads::READS].concat();
    all.sort_by_key(|operation| (operation.path, operation.method));
    all
});

static ROUTES: LazyLock<Routes> =
    LazyLock::new(|| Routes::new(METHODS, id_in, OPERATIONS.iter().chain(LEGACY)));

/// All operations that a policy can name, by path and method.
pub(super) fn operations() -> &'static [Operation] {
    &OPERATIONS
}

/// The host that serves an operation.
pub(super) fn host(operation: &Operation) -> &'static str {
    match operation.name {
        "files.create" | "files.contents" | "quotes.pdf" => FILES,
        "v2.billing.meter_event_stream.create" => METER,
        _ => API,
    }
}

/// Reads that are answered with a document, not with an object.
pub(super) fn is_document(operation: &Operation) -> bool {
    operation.class == Class::Read && matches!(operation.name, "files.contents" | "quotes.pdf")
}

/// The operation that a method and a path name, and the ids in the path; see [`Routes::find`].
pub(super) fn route(method: &str, segments: &[Cow<'_, str>]) -> Option<(&'static Operation, Vec<String>)> {
    ROUTES.find(method, segments)
}

fn id_in(segment: &str, _is_last: bool) -> Option<&str> {
    is_id(segment).then_some(segment)
}

/// Ids are letters, digits, `_` and `-`; those that users choose (coupons, plans, products) may also have a dot, a
/// colon, `@`, `+`, a space and the like. At most 255 bytes, and never beginning with a dot.
fn is_id(segment: &str) -> bool {
    segment.len() <= 255 && !segment.starts_with('.') && !segment.contains(['*', '[', ']'])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vendors::table::tests::{all_route_to_themselves, named};

    fn name(method: &str, path: &str) -> (&'static str, Vec<String>) {
        named(&route, method, path)
    }

    #[test]
    fn the_table_is_whole() {
        // stripe-python 16.1.0: 330 POST, 28 DELETE and 290 GET; and `files.contents`.
        let count = |method: &str| operations().iter().filter(|o| o.method == method).count();
        assert_eq!((count("POST"), count("DELETE"), count("GET")), (330, 28, 291));
    }

    #[test]
    fn every_operation_routes_to_itself() {
        all_route_to_themselves(operations().iter().chain(LEGACY), "x_1", "", &route);
    }

    #[test]
    fn rule_05_literal_routes_are_never_ids() {
        assert_eq!(name("GET", "/v1/charges/search").0, "charges.search");
        assert_eq!(name("GET", "/v1/charges/ch_1").0, "charges.retrieve");
        assert_eq!(name("POST", "/v1/charges/search").0, "unknown");
        assert_eq!(name("POST", "/v1/charges/search/capture").0, "unknown");
        assert_eq!(
            name("POST", "/v1/invoices/create_preview").0,
            "invoices.create_preview"
        );
        assert_eq!(
            name("POST", "/v1/apps/secrets/delete").0,
            "apps.secrets.delete_where"
        );
    }

    #[test]
    fn rule_05_aliases_are_their_canonical_operation() {
        assert_eq!(
            name("POST", "/v1/charges/ch_1/refund"),
            ("refunds.create", vec!["ch_1".into()])
        );
        assert_eq!(name("POST", "/v1/charges/ch_1/refunds").0, "refunds.create");
        assert_eq!(
            name("POST", "/v1/customers/cus_1/subscriptions").0,
            "subscriptions.create"
        );
    }

    #[test]
    fn lesson_13_unmatched_route_is_unknown() {
        for (method, path) in [
            ("POST", "/v1/refund"),
            ("POST", "/v1/refunds/re_1/approve"),
            ("POST", "/v3/refunds"),
            ("POST", "/v1"),
            ("POST", "/V1/refunds"),
            ("POST", "/v1/charges/*/capture".replace('*', "%2A").as_str()),
            ("DELETE", "/v1/refunds"),
            ("GET", "/v1/money"),
        ] {
            assert_eq!(name(method, path).0, "unknown", "{method} {path}");
        }
        assert_eq!(route("PATCH", &[Cow::Borrowed("v1")]), None);
    }
}
