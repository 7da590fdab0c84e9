//! Charges, also those that `PaymentIntents` make.

use serde_json::{Value, json};

use super::cards::{self, Decline, Payment};
use super::currency;
use super::error::ApiError;
use super::form::Params;
use super::journal::{MovementKind, MovementOutcome};
use super::list;
use super::world::{Ctx, Moved, Notes, Record};

/// Fields that are only shown.
const ECHOED: &[&str] = &[
    "application_fee_amount",
    "fraud_details",
    "on_behalf_of",
    "receipt_email",
    "shipping",
    "statement_descriptor",
    "statement_descriptor_suffix",
    "transfer_data",
    "transfer_group",
];

/// Where a charge stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChargeStatus {
    Succeeded,
    Pending,
    Failed,
}

/// A charge.
#[derive(Clone, Debug)]
pub(super) struct Charge {
    pub(super) id: String,
    pub(super) amount: i64,
    pub(super) amount_captured: i64,
    pub(super) amount_refunded: i64,
    pub(super) currency: String,
    pub(super) status: ChargeStatus,
    /// Whether nothing more can be captured because it was, at least once.
    pub(super) captured: bool,
    /// Whether an authorisation was given back without a capture.
    pub(super) released: bool,
    pub(super) customer: Option<String>,
    pub(super) payment_intent: Option<String>,
    /// The method it was paid with, such as `pm_card_visa`.
    pub(super) method: String,
    pub(super) decline: Option<&'static Decline>,
    pub(super) balance_transaction: Option<String>,
    pub(super) created: i64,
    pub(super) notes: Notes,
}

impl Charge {
    /// What can still be refunded.
    pub(super) fn refundable(&self) -> i64 {
        self.amount_captured.saturating_sub(self.amount_refunded)
    }
}

impl Record for Charge {
    const NOUN: &'static str = "charge";

    fn id(&self) -> &str {
        &self.id
    }

    fn created(&self) -> i64 {
        self.created
    }

    fn render(&self) -> Value {
        let paid = self.status == ChargeStatus::Succeeded;
        let refunded = self.released || (self.captured && paid && self.refundable() == 0);
        let mut object = json!({
            "id": self.id, "object": "charge", "amount": self.amount, "amount_captured": self.amount_captured,
            "amount_refunded": if self.released { self.amount } else { self.amount_refunded },
            "application": null, "application_fee": null, "application_fee_amount": null,
            "balance_transaction": self.balance_transaction,
            "billing_details": {"address": null, "email": null, "name": null, "phone": null, "tax_id": null},
            "calculated_statement_descriptor": "KEYBRAKE SIMULATOR", "captured": self.captured, "created": self.created,
            "currency": self.currency, "customer": self.customer, "disputed": false,
            "failure_balance_transaction": null, "failure_code": self.decline.map(|decline| decline.code),
            "failure_message": self.decline.map(|decline| decline.message), "fraud_details": {}, "livemode": false,
            "on_behalf_of": null, "outcome": self.outcome(), "paid": paid, "payment_intent": self.payment_intent,
            "payment_method": self.method, "payment_method_details": self.method_details(), "receipt_email": null,
            "receipt_number": null, "receipt_url": format!("https://pay.stripe.com/receipts/payment/{}", self.id),
            "refunded": refunded, "review": null, "shipping": null, "source_transfer": null,
            "statement_descriptor": null, "statement_descriptor_suffix": null,
            "status": match self.status {
                ChargeStatus::Succeeded => "succeeded",
                ChargeStatus::Pending => "pending",
                ChargeStatus::Failed => "failed",
            },
            "transfer_data": null, "transfer_group": null,
        });
        self.notes.show(&mut object);
        object
    }
}

impl Charge {
    fn outcome(&self) -> Value {
        match self.decline {
            None => json!({
                "network_status": "approved_by_network", "reason": null, "risk_level": "normal",
                "seller_message": "Payment complete.", "type": "authorized",
            }),
            Some(decline) => json!({
                "network_status": "declined_by_network", "reason": decline.reason.unwrap_or(decline.code),
                "risk_level": "normal", "seller_message": "The bank did not return any further details with this decline.",
                "type": "issuer_declined",
            }),
        }
    }

    fn method_details(&self) -> Value {
        let kind = cards::kind(&self.method);
        if kind != "card" {
            return json!({"type": kind, kind: {"bank_name": "STRIPE TEST BANK", "last4": "6789"}});
        }
        let (brand, last4) = cards::face(&self.method);
        json!({"type": "card", "card": {
            "brand": brand, "country": "US", "exp_month": 12, "exp_year": 2034, "fingerprint": "Sim0fingerprint0",
            "funding": "credit", "last4": last4, "network": brand, "wallet": null,
            "multicapture": {"status": "available"}, "incremental_authorization": {"status": "available"},
        }})
    }
}

/// `POST /v1/charges`.
pub(super) fn create(ctx: &mut Ctx<'_>, params: &Params) -> Result<Value, ApiError> {
    let amount = params
        .integer("amount")?
        .ok_or_else(|| ApiError::missing("amount"))?;
    let currency = currency::currency(params.required("currency")?)?;
    let amount = currency::chargeable("amount", amount, &currency)?;
    let capture = params.boolean("capture", true)?;
    let customer = ctx.customer_param(params)?;
    let method = match (params.text("source")?, &customer) {
        (Some(source), _) => source.to_owned(),
        (None, Some(customer)) => ctx.default_method(customer).ok_or_else(|| {
            ApiError::card(
                "missing",
                None,
                "Cannot charge a customer that has no active card",
            )
            .param("card")
        })?,
        (None, None) => {
            return Err(ApiError::request("Must provide source or customer.").code("parameter_missing"));
        }
    };
    let mut notes = Notes::default();
    notes.update(params, ECHOED)?;
    let made = ctx.charge(NewCharge {
        amount,
        currency,
        capture,
        customer,
        payment_intent: None,
        method,
        notes,
    });
    match made {
        Made::Charged(id) => Ok(ctx.data().charges.find(&id)?.render()),
        Made::Declined(id, decline) => Err(decline.error().with("charge", id)),
        // The Charges API has no step in which a customer could act.
        Made::NeedsAction => Err(cards::AUTHENTICATION_REQUIRED.error()),
    }
}

/// `GET /v1/charges/{id}`.
pub(super) fn retrieve(ctx: &mut Ctx<'_>, _: &Params) -> Result<Value, ApiError> {
    Ok(ctx.named(|data| &mut data.charges)?.render())
}

/// `POST /v1/charges/{id}`.
pub(super) fn update(ctx: &mut Ctx<'_>, params: &Params) -> Result<Value, ApiError> {
    let id = ctx.id().to_owned();
    let customer = ctx.customer_param(params)?;
    let charge = ctx.data().charges.find_mut(&id)?;
    if let Some(customer) = customer {
        if charge.customer.as_ref().is_some_and(|old| *old != customer) {
            return Err(ApiError::invalid(
                "customer",
                "You cannot update `customer` on a charge that already has a customer.",
            ));
        }
        charge.notes.update(params, ECHOED)?;
        charge.customer = Some(customer);
    } else {
        charge.notes.update(params, ECHOED)?;
    }
    Ok(charge.render())
}

/// `GET /v1/charges`.
pub(super) fn list(ctx: &mut Ctx<'_>, params: &Params) -> Result<Value, ApiError> {
    let customer = params.text("customer")?;
    let intent = params.text("payment_intent")?;
    let group = params.text("transfer_group")?;
    list::page(&ctx.data().charges, params, "/v1/charges", |charge| {
        customer.is_none_or(|id| charge.customer.as_deref() == Some(id))
            && intent.is_none_or(|id| charge.payment_intent.as_deref() == Some(id))
            && group.is_none_or(|id| charge.notes.is_in_group(id))
    })
}

/// `POST /v1/charges/{id}/capture`.
pub(super) fn capture(ctx: &mut Ctx<'_>, params: &Params) -> Result<Value, ApiError> {
    let id = ctx.id().to_owned();
    let asked = params.integer("amount")?;
    let charge = ctx.data().charges.find(&id)?;
    if charge.payment_intent.is_some() {
        return Err(ApiError::request(
            "This charge was created by a PaymentIntent. Capture the PaymentIntent instead.",
        ));
    }
    if charge.captured {
        let message = format!("Charge {id} has already been captured.");
        return Err(ApiError::state("charge_already_captured", message));
    }
    if charge.released {
        let message = format!("Charge {id} has already been refunded.");
        return Err(ApiError::state("charge_already_refunded", message));
    }
    if charge.status != ChargeStatus::Succeeded {
        return Err(ApiError::refused(format!(
            "Charge {id} cannot be captured because it failed."
        )));
    }
    let whole = charge.amount;
    let currency = charge.currency.clone();
    let amount = currency::positive("amount", asked.unwrap_or(whole), &currency)?;
    if amount > whole {
        return Err(
            ApiError::invalid("amount", format!("Amount must be no more than {whole}"))
                .code("amount_too_large"),
        );
    }
    ctx.data().charges.find_mut(&id)?.notes.update(params, ECHOED)?;
    ctx.capture_charge(&id, amount)?;
    Ok(ctx.data().charges.find(&id)?.render())
}

/// What a new charge is made of; everything is already checked.
#[derive(Debug)]
pub(super) struct NewCharge {
    pub(super) amount: i64,
    pub(super) currency: String,
    pub(super) capture: bool,
    pub(super) customer: Option<String>,
    pub(super) payment_intent: Option<String>,
    pub(super) method: String,
    pub(super) notes: Notes,
}

/// What became of a new charge.
#[derive(Debug)]
pub(super) enum Made {
    /// There is a charge: captured, authorised or pending.
    Charged(String),
    /// There is a failed charge.
    Declined(String, &'static Decline),
    /// There is no charge yet.
    NeedsAction,
}

impl Ctx<'_> {
    /// Charges a payment method as its test id says.
    pub(super) fn charge(&mut self, new: NewCharge) -> Made {
        let payment = cards::payment(&new.method);
        if payment == Payment::NeedsAction {
            return Made::NeedsAction;
        }
        self.charge_as(new, payment)
    }

    /// Charges a payment method with a given end, whatever its id says.
    pub(super) fn charge_as(&mut self, new: NewCharge, payment: Payment) -> Made {
        let id = self.world.ids.next("ch");
        let (status, decline) = match payment {
            Payment::Declines(decline) => (ChargeStatus::Failed, Some(decline)),
            Payment::Processing => (ChargeStatus::Pending, None),
            Payment::Succeeds | Payment::NeedsAction => (ChargeStatus::Succeeded, None),
        };
        let (amount, capture) = (new.amount, new.capture);
        let charge = Charge {
            id: id.clone(),
            amount,
            amount_captured: 0,
            amount_refunded: 0,
            currency: new.currency,
            status,
            captured: status == ChargeStatus::Pending,
            released: false,
            customer: new.customer,
            payment_intent: new.payment_intent,
            method: new.method,
            decline,
            balance_transaction: None,
            created: self.now(),
            notes: new.notes,
        };
        let source = charge.payment_intent.clone();
        let currency = charge.currency.clone();
        self.data().charges.insert(charge);
        let row = Moved {
            object: &id,
            source: source.as_deref(),
            amount,
            currency: &currency,
        };
        if let Some(decline) = decline {
            self.journal(MovementKind::Charge, MovementOutcome::None, row);
            return Made::Declined(id, decline);
        }
        if status == ChargeStatus::Succeeded {
            if capture {
                // The charge was inserted above, so this cannot fail.
                let _ = self.capture_charge(&id, amount);
            } else {
                self.journal(MovementKind::Authorization, MovementOutcome::None, row);
            }
        }
        Made::Charged(id)
    }

    /// Moves money: captures this much (more) of a charge. The caller has checked the amount.
    pub(super) fn capture_charge(&mut self, id: &str, amount: i64) -> Result<(), ApiError> {
        let charge = self.data().charges.find(id)?;
        let currency = charge.currency.clone();
        let source = charge.payment_intent.clone();
        let transaction = self.book("charge", id, amount, &currency);
        let charge = self.data().charges.find_mut(id)?;
        charge.amount_captured = charge.amount_captured.saturating_add(amount);
        charge.captured = true;
        charge.status = ChargeStatus::Succeeded;
        charge.balance_transaction = Some(transaction);
        self.journal(
            MovementKind::Charge,
            MovementOutcome::Moved,
            Moved {
                object: id,
                source: source.as_deref(),
                amount,
                currency: &currency,
            },
        );
        Ok(())
    }

    /// Gives an authorisation back; no money moves.
    pub(super) fn release_charge(&mut self, id: &str) -> Result<(), ApiError> {
        let charge = self.data().charges.find_mut(id)?;
        charge.released = true;
        let (amount, currency, source) = (
            charge.amount,
            charge.currency.clone(),
            charge.payment_intent.clone(),
        );
        self.journal(
            MovementKind::AuthorizationReleased,
            MovementOutcome::None,
            Moved {
                object: id,
                source: source.as_deref(),
                amount,
                currency: &currency,
            },
        );
        Ok(())
    }

    /// A pending charge failed after all.
    pub(super) fn fail_charge(&mut self, id: &str) -> Result<(), ApiError> {
        let charge = self.data().charges.find_mut(id)?;
        charge.status = ChargeStatus::Failed;
        charge.captured = false;
        Ok(())
    }

    /// The `customer` parameter, checked to exist.
    pub(super) fn customer_param(&mut self, params: &Params) -> Result<Option<String>, ApiError> {
        let Some(id) = params.text("customer")? else {
            return Ok(None);
        };
        match self.data().customers.get(id) {
            Some(customer) if !customer.deleted => Ok(Some(id.to_owned())),
            _ => Err(ApiError::no_such_param("customer", "customer", id)),
        }
    }

    /// The method a customer pays with when a charge names none.
    fn default_method(&mut self, customer: &str) -> Option<String> {
        self.data().customers.get(customer)?.default_method.clone()
    }
}
