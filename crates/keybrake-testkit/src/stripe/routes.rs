//! Which handler answers which method and path, and which parameters it knows.

use serde_json::Value;

use super::error::ApiError;
use super::form::Params;
use super::world::Ctx;
use super::{charge, customer, file, payment_intent, payment_intent_flow, payout, refund, topup, transfer};

/// A handler of a v1 endpoint.
pub(super) type Handler = fn(&mut Ctx<'_>, &Params) -> Result<Value, ApiError>;

/// One endpoint.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) method: &'static str,
    /// `*` stands for an id.
    pub(super) path: &'static str,
    pub(super) handler: Handler,
    /// Known parameters besides `expand`, separated by spaces. Others are refused, as Stripe refuses them.
    pub(super) params: &'static str,
}

const fn route(method: &'static str, path: &'static str, handler: Handler, params: &'static str) -> Route {
    Route {
        method,
        path,
        handler,
        params,
    }
}

const CHARGE_CREATE: &str = "amount application_fee application_fee_amount capture currency customer description \
    destination metadata on_behalf_of radar_options receipt_email shipping source statement_descriptor \
    statement_descriptor_suffix transfer_data transfer_group";
const CHARGE_CAPTURE: &str = "amount application_fee application_fee_amount receipt_email statement_descriptor \
    statement_descriptor_suffix transfer_data transfer_group";
const CHARGE_UPDATE: &str =
    "customer description fraud_details metadata receipt_email shipping transfer_group";
const INTENT_CREATE: &str = "allowed_payment_method_types amount amount_details application_fee_amount \
    automatic_payment_methods capture_method confirm confirmation_method confirmation_token currency customer \
    customer_account description error_on_requires_action excluded_payment_method_types hooks mandate mandate_data \
    metadata off_session on_behalf_of payment_details payment_method payment_method_configuration payment_method_data \
    payment_method_options payment_method_types radar_options receipt_email return_url setup_future_usage shipping \
    statement_descriptor statement_descriptor_suffix transfer_data transfer_group use_stripe_sdk";
const INTENT_UPDATE: &str = "allowed_payment_method_types amount amount_details application_fee_amount capture_method \
    currency customer customer_account description excluded_payment_method_types hooks metadata payment_details \
    payment_method payment_method_configuration payment_method_data payment_method_options payment_method_types \
    receipt_email setup_future_usage shipping statement_descriptor statement_descriptor_suffix transfer_data \
    transfer_group";
const INTENT_CONFIRM: &str = "allowed_payment_method_types amount_details amount_to_confirm capture_method \
    confirmation_token error_on_requires_action excluded_payment_method_types hooks mandate mandate_data off_session \
    payment_details payment_method payment_method_data payment_method_options payment_method_types radar_options \
    receipt_email return_url setup_future_usage shipping use_stripe_sdk";
const INTENT_CAPTURE: &str = "amount_details amount_to_capture application_fee_amount final_capture hooks metadata \
    payment_details statement_descriptor statement_descriptor_suffix transfer_data";
const INTENT_INCREMENT: &str = "amount amount_details application_fee_amount description hooks metadata \
    payment_details statement_descriptor transfer_data";
const REFUND_CREATE: &str = "amount charge currency customer instructions_email metadata origin payment_intent reason \
    refund_application_fee reverse_transfer";
const TRANSFER_CREATE: &str = "amount currency description destination metadata source_transaction source_type \
    transfer_group";
const PAYOUT_CREATE: &str = "amount currency description destination metadata method payout_method source_type \
    statement_descriptor";
const TOPUP_CREATE: &str = "amount currency description metadata payment_method payment_method_options source \
    statement_descriptor transfer_group";
const CUSTOMER_CREATE: &str = "address balance business_name cash_balance description email individual_name \
    invoice_prefix invoice_settings metadata name next_invoice_sequence payment_method phone preferred_locales \
    shipping source tax tax_exempt tax_id_data test_clock validate";
const CUSTOMER_UPDATE: &str = "address balance business_name cash_balance default_source description email \
    individual_name invoice_prefix invoice_settings metadata name next_invoice_sequence phone preferred_locales \
    shipping source tax tax_exempt validate";
/// Every list takes these.
pub(super) const PAGE: &str = "created ending_before limit starting_after";

/// Every v1 endpoint but those with a body or answer of their own (file upload and contents, quote PDF).
pub(super) static ROUTES: &[Route] = &[
    route("POST", "/v1/charges", charge::create, CHARGE_CREATE),
    route(
        "GET",
        "/v1/charges",
        charge::list,
        "customer payment_intent transfer_group",
    ),
    route("GET", "/v1/charges/search", search, "query limit page"),
    route("GET", "/v1/charges/*", charge::retrieve, ""),
    route("POST", "/v1/charges/*", charge::update, CHARGE_UPDATE),
    route("POST", "/v1/charges/*/capture", charge::capture, CHARGE_CAPTURE),
    route(
        "POST",
        "/v1/charges/*/refund",
        refund::create_on_charge,
        REFUND_CREATE,
    ),
    route(
        "POST",
        "/v1/charges/*/refunds",
        refund::create_on_charge,
        REFUND_CREATE,
    ),
    route("GET", "/v1/charges/*/refunds", refund::list_on_charge, ""),
    route(
        "POST",
        "/v1/payment_intents",
        payment_intent::create,
        INTENT_CREATE,
    ),
    route(
        "GET",
        "/v1/payment_intents",
        payment_intent::list,
        "customer customer_account",
    ),
    route("GET", "/v1/payment_intents/search", search, "query limit page"),
    route(
        "GET",
        "/v1/payment_intents/*",
        payment_intent::retrieve,
        "client_secret",
    ),
    route(
        "POST",
        "/v1/payment_intents/*",
        payment_intent::update,
        INTENT_UPDATE,
    ),
    route(
        "POST",
        "/v1/payment_intents/*/confirm",
        payment_intent_flow::confirm,
        INTENT_CONFIRM,
    ),
    route(
        "POST",
        "/v1/payment_intents/*/capture",
        payment_intent_flow::capture,
        INTENT_CAPTURE,
    ),
    route(
        "POST",
        "/v1/payment_intents/*/cancel",
        payment_intent_flow::cancel,
        "cancellation_reason",
    ),
    route(
        "POST",
        "/v1/payment_intents/*/increment_authorization",
        payment_intent_flow::increment,
        INTENT_INCREMENT,
    ),
    route("POST", "/v1/refunds", refund::create, REFUND_CREATE),
    route("GET", "/v1/refunds", refund::list, "charge payment_intent"),
    route("GET", "/v1/refunds/*", refund::retrieve, ""),
    route("POST", "/v1/refunds/*", refund::update, "metadata"),
    route("POST", "/v1/refunds/*/cancel", refund::cancel, ""),
    route("POST", "/v1/transfers", transfer::create, TRANSFER_CREATE),
    route(
        "GET",
        "/v1/transfers",
        transfer::list,
        "destination transfer_group",
    ),
    route("GET", "/v1/transfers/*", transfer::retrieve, ""),
    route(
        "POST",
        "/v1/transfers/*",
        transfer::update,
        "description metadata",
    ),
    route(
        "POST",
        "/v1/transfers/*/reversals",
        transfer::reverse,
        "amount description metadata refund_application_fee",
    ),
    route("GET", "/v1/transfers/*/reversals", transfer::list_reversals, ""),
    route(
        "GET",
        "/v1/transfers/*/reversals/*",
        transfer::retrieve_reversal,
        "",
    ),
    route(
        "POST",
        "/v1/transfers/*/reversals/*",
        transfer::update_reversal,
        "metadata",
    ),
    route("POST", "/v1/payouts", payout::create, PAYOUT_CREATE),
    route(
        "GET",
        "/v1/payouts",
        payout::list,
        "arrival_date destination status",
    ),
    route("GET", "/v1/payouts/*", payout::retrieve, ""),
    route("POST", "/v1/payouts/*", payout::update, "metadata"),
    route("POST", "/v1/payouts/*/cancel", payout::cancel, ""),
    route("POST", "/v1/topups", topup::create, TOPUP_CREATE),
    route("GET", "/v1/topups", topup::list, "amount status"),
    route("GET", "/v1/topups/*", topup::retrieve, ""),
    route("POST", "/v1/topups/*", topup::update, "description metadata"),
    route("POST", "/v1/topups/*/cancel", topup::cancel, ""),
    route("POST", "/v1/customers", customer::create, CUSTOMER_CREATE),
    route("GET", "/v1/customers", customer::list, "email test_clock"),
    route("GET", "/v1/customers/search", search, "query limit page"),
    route("GET", "/v1/customers/*", customer::retrieve, ""),
    route("POST", "/v1/customers/*", customer::update, CUSTOMER_UPDATE),
    route("DELETE", "/v1/customers/*", customer::delete, ""),
    route("GET", "/v1/balance", customer::balance, ""),
    route(
        "GET",
        "/v1/balance_transactions",
        customer::transactions,
        "currency payout source type",
    ),
    route("GET", "/v1/balance_transactions/*", customer::transaction, ""),
    route("GET", "/v1/files", file::list, "purpose"),
    route("GET", "/v1/files/*", file::retrieve, ""),
];

/// The route for a method and a path's segments, and the ids in it. A literal route wins over an id.
pub(super) fn find<'a>(method: &str, segments: &[&'a str]) -> Option<(&'static Route, Vec<&'a str>)> {
    ROUTES.iter().find_map(|route| {
        if route.method != method {
            return None;
        }
        ids(route.path, segments).map(|ids| (route, ids))
    })
}

/// The ids in a path, if it has this form.
pub(super) fn ids<'a>(pattern: &str, segments: &[&'a str]) -> Option<Vec<&'a str>> {
    let mut ids = Vec::new();
    let mut actual = segments.iter();
    for expected in pattern.split('/').skip(1) {
        let segment = actual.next()?;
        if expected == "*" {
            ids.push(*segment);
        } else if expected != *segment {
            return None;
        }
    }
    actual.next().is_none().then_some(ids)
}

/// Refuses parameters that the endpoint does not know.
pub(super) fn check_params(route: &Route, params: &Params) -> Result<(), ApiError> {
    let page = if route.method == "GET" { PAGE } else { "" };
    for name in params.names() {
        let known = name == "expand"
            || route.params.split(' ').any(|known| known == name)
            || page.split(' ').any(|known| known == name);
        if !known {
            return Err(
                ApiError::invalid(name, format!("Received unknown parameter: {name}"))
                    .code("parameter_unknown"),
            );
        }
    }
    Ok(())
}

/// Search is eventually consistent at Stripe and nothing here depends on it.
fn search(_: &mut Ctx<'_>, _: &Params) -> Result<Value, ApiError> {
    Err(ApiError::request(
        "Search is not supported by the simulator; list with filters instead.",
    ))
}
