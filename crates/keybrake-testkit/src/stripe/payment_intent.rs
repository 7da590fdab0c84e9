//! `PaymentIntents`: the object, and the requests that do not move money. `payment_intent_flow` has those that do.

use serde_json::{Value, json};

use super::cards;
use super::currency;
use super::error::ApiError;
use super::form::Params;
use super::list;
use super::payment_intent_flow as flow;
use super::world::{Ctx, Notes, Record};

/// Fields that are only shown.
pub(super) const ECHOED: &[&str] = &[
    "application_fee_amount",
    "on_behalf_of",
    "receipt_email",
    "setup_future_usage",
    "shipping",
    "statement_descriptor",
    "statement_descriptor_suffix",
    "transfer_data",
    "transfer_group",
];

/// Where a `PaymentIntent` stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    RequiresPaymentMethod,
    RequiresConfirmation,
    RequiresAction,
    Processing,
    RequiresCapture,
    Canceled,
    Succeeded,
}

impl Status {
    /// Stripe's word for it.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::RequiresPaymentMethod => "requires_payment_method",
            Self::RequiresConfirmation => "requires_confirmation",
            Self::RequiresAction => "requires_action",
            Self::Processing => "processing",
            Self::RequiresCapture => "requires_capture",
            Self::Canceled => "canceled",
            Self::Succeeded => "succeeded",
        }
    }
}

/// A `PaymentIntent`.
#[derive(Clone, Debug)]
pub(super) struct PaymentIntent {
    pub(super) id: String,
    pub(super) amount: i64,
    pub(super) amount_capturable: i64,
    pub(super) amount_received: i64,
    pub(super) currency: String,
    pub(super) status: Status,
    pub(super) capture_method: String,
    pub(super) customer: Option<String>,
    pub(super) method: Option<String>,
    pub(super) latest_charge: Option<String>,
    pub(super) last_error: Option<Value>,
    pub(super) canceled_at: Option<i64>,
    pub(super) cancellation_reason: Option<String>,
    pub(super) created: i64,
    pub(super) notes: Notes,
}

impl Record for PaymentIntent {
    const NOUN: &'static str = "payment_intent";

    fn id(&self) -> &str {
        &self.id
    }

    fn created(&self) -> i64 {
        self.created
    }

    fn render(&self) -> Value {
        let kind = self.method.as_deref().map_or("card", cards::kind);
        let next_action = (self.status == Status::RequiresAction).then(
            || json!({"type": "use_stripe_sdk", "use_stripe_sdk": {"type": "three_d_secure_redirect"}}),
        );
        let processing = (self.status == Status::Processing).then(|| json!({"type": kind}));
        let mut object = json!({
            "id": self.id, "object": "payment_intent", "amount": self.amount,
            "amount_capturable": self.amount_capturable, "amount_details": {"tip": {}},
            "amount_received": self.amount_received, "application": null, "application_fee_amount": null,
            "automatic_payment_methods": null, "canceled_at": self.canceled_at,
            "cancellation_reason": self.cancellation_reason, "capture_method": self.capture_method,
            "client_secret": format!("{}_secret_Sim", self.id), "confirmation_method": "automatic",
            "created": self.created, "currency": self.currency, "customer": self.customer,
            "last_payment_error": self.last_error, "latest_charge": self.latest_charge, "livemode": false,
            "next_action": next_action, "on_behalf_of": null, "payment_method": self.method,
            "payment_method_configuration_details": null, "payment_method_options": {},
            "payment_method_types": [kind], "processing": processing, "receipt_email": null, "review": null,
            "setup_future_usage": null, "shipping": null, "statement_descriptor": null,
            "statement_descriptor_suffix": null, "status": self.status.word(), "transfer_data": null,
            "transfer_group": null,
        });
        self.notes.show(&mut object);
        object
    }
}

impl PaymentIntent {
    /// The 400 for a request that does not fit the status; it shows the intent, as Stripe does.
    pub(super) fn unexpected(&self, verb: &str) -> ApiError {
        ApiError::state(
            "payment_intent_unexpected_state",
            format!(
                "You cannot {verb} this PaymentIntent because it has a status of {}.",
                self.status.word()
            ),
        )
        .with("payment_intent", self.render())
    }
}

/// The method a request brings: an id, or data for a new one.
pub(super) fn method_param(params: &Params) -> Result<Option<String>, ApiError> {
    if let Some(method) = params.text("payment_method")? {
        return Ok(Some(method.to_owned()));
    }
    if params.text("confirmation_token")?.is_some() {
        return Ok(Some("pm_card_visa".to_owned()));
    }
    Ok(match params.nested("payment_method_data", "type") {
        None => None,
        Some("us_bank_account") => Some("pm_usBankAccount".to_owned()),
        Some("sepa_debit") => Some("pm_sepaDebit".to_owned()),
        Some(_) => Some("pm_card_visa".to_owned()),
    })
}

/// `capture_method`, if the request brings one.
pub(super) fn capture_method_param(params: &Params) -> Result<Option<String>, ApiError> {
    match params.text("capture_method")? {
        None => Ok(None),
        Some(method @ ("automatic" | "automatic_async" | "manual")) => Ok(Some(method.to_owned())),
        Some(other) => Err(ApiError::invalid(
            "capture_method",
            format!(
                "Invalid capture_method: must be one of automatic, automatic_async, or manual (was {other})"
            ),
        )),
    }
}

/// `POST /v1/payment_intents`.
pub(super) fn create(ctx: &mut Ctx<'_>, params: &Params) -> Result<Value, ApiError> {
    let amount = params
        .integer("amount")?
        .ok_or_else(|| ApiError::missing("amount"))?;
    let currency = currency::currency(params.required("currency")?)?;
    let amount = currency::chargeable("amount", amount, &currency)?;
    let customer = ctx.customer_param(params)?;
    let method = method_param(params)?;
    let capture_method = capture_method_param(params)?.unwrap_or_else(|| "automatic_async".to_owned());
    let confirm = params.boolean("confirm", false)?;
    let mut notes = Notes::default();
    notes.update(params, ECHOED)?;
    let confirmation = if confirm {
        if method.is_none() {
            return Err(flow::no_method());
        }
        Some(flow::Confirmation::read(params)?)
    } else {
        for name in [
            "off_session",
            "return_url",
            "error_on_requires_action",
            "mandate_data",
        ] {
            if params.has(name) {
                return Err(ApiError::invalid(
                    name,
                    format!("You can only use `{name}` when `confirm` is set to `true`."),
                ));
            }
        }
        None
    };
    let id = ctx.world.ids.next("pi");
    let intent = PaymentIntent {
        id: id.clone(),
        amount,
        amount_capturable: 0,
        amount_received: 0,
        currency,
        status: match method {
            Some(_) => Status::RequiresConfirmation,
            None => Status::RequiresPaymentMethod,
        },
        capture_method,
        customer,
        method,
        latest_charge: None,
        last_error: None,
        canceled_at: None,
        cancellation_reason: None,
        created: ctx.now(),
        notes,
    };
    ctx.data().intents.insert(intent);
    if let Some(confirmation) = confirmation {
        flow::confirm_now(ctx, &id, &confirmation)?;
    }
    Ok(ctx.data().intents.find(&id)?.render())
}

/// `GET /v1/payment_intents/{id}`.
pub(super) fn retrieve(ctx: &mut Ctx<'_>, _: &Params) -> Result<Value, ApiError> {
    Ok(ctx.named(|data| &mut data.intents)?.render())
}

/// `GET /v1/payment_intents`.
pub(super) fn list(ctx: &mut Ctx<'_>, params: &Params) -> Result<Value, ApiError> {
    let customer = params.text("customer")?;
    list::page(&ctx.data().intents, params, "/v1/payment_intents", |intent| {
        customer.is_none_or(|id| intent.customer.as_deref() == Some(id))
    })
}

/// `POST /v1/payment_intents/{id}`.
pub(super) fn update(ctx: &mut Ctx<'_>, params: &Params) -> Result<Value, ApiError> {
    let id = ctx.id().to_owned();
    let customer = ctx.customer_param(params)?;
    let asked = params.integer("amount")?;
    let method = method_param(params)?;
    let capture_method = capture_method_param(params)?;
    let intent = ctx.data().intents.find_mut(&id)?;
    let before_payment = matches!(
        intent.status,
        Status::RequiresPaymentMethod | Status::RequiresConfirmation | Status::RequiresAction
    );
    let changes_payment =
        asked.is_some() || method.is_some() || capture_method.is_some() || params.has("currency");
    if intent.status == Status::Canceled || (changes_payment && !before_payment) {
        return Err(intent.unexpected("update"));
    }
    let currency = match params.text("currency")? {
        Some(text) => currency::currency(text)?,
        None => intent.currency.clone(),
    };
    let amount = match asked {
        Some(amount) => currency::chargeable("amount", amount, &currency)?,
        None => intent.amount,
    };
    let mut notes = intent.notes.clone();
    notes.update(params, ECHOED)?;
    intent.notes = notes;
    intent.currency = currency;
    intent.amount = amount;
    if let Some(customer) = customer {
        intent.customer = Some(customer);
    }
    if let Some(capture_method) = capture_method {
        intent.capture_method = capture_method;
    }
    if method.is_some() {
        intent.method = method;
    }
    if changes_payment && before_payment {
        intent.status = match intent.method {
            Some(_) => Status::RequiresConfirmation,
            None => Status::RequiresPaymentMethod,
        };
    }
    Ok(intent.render())
}
