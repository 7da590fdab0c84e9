//! `PaymentIntents` from confirmation to their end: what authorises, captures and cancels.

use serde_json::Value;

use super::cards::{self, Payment};
use super::charge::{Made, NewCharge};
use super::currency;
use super::error::ApiError;
use super::form::Params;
use super::journal::{MovementKind, MovementOutcome};
use super::payment_intent::{ECHOED, PaymentIntent, Status, capture_method_param, method_param};
use super::world::{Ctx, Moved, Record};

/// What a confirmation may say, also as part of a creation.
#[derive(Debug)]
pub(super) struct Confirmation {
    amount: Option<i64>,
    method: Option<String>,
    capture_method: Option<String>,
    off_session: bool,
    error_on_requires_action: bool,
}

impl Confirmation {
    pub(super) fn read(params: &Params) -> Result<Self, ApiError> {
        // `off_session` is a boolean, or the words "one_off" and "recurring".
        let off_session = match params.text("off_session")? {
            Some("one_off" | "recurring") => true,
            _ => params.boolean("off_session", false)?,
        };
        Ok(Self {
            amount: params.integer("amount_to_confirm")?,
            method: method_param(params)?,
            capture_method: capture_method_param(params)?,
            off_session,
            error_on_requires_action: params.boolean("error_on_requires_action", false)?,
        })
    }
}

/// The 400 for a confirmation without anything to charge.
pub(super) fn no_method() -> ApiError {
    ApiError::request(
        "You cannot confirm this PaymentIntent because it's missing a payment method. You can either update the \
         PaymentIntent with a payment method and then confirm it again, or confirm it again directly with a payment \
         method or ConfirmationToken.",
    )
    .code("payment_intent_unexpected_state")
}

/// `POST /v1/payment_intents/{id}/confirm`.
pub(super) fn confirm(ctx: &mut Ctx<'_>, params: &Params) -> Result<Value, ApiError> {
    let id = ctx.id().to_owned();
    let confirmation = Confirmation::read(params)?;
    let intent = ctx.data().intents.find_mut(&id)?;
    if !matches!(
        intent.status,
        Status::RequiresPaymentMethod | Status::RequiresConfirmation | Status::RequiresAction
    ) {
        return Err(intent.unexpected("confirm"));
    }
    if confirmation.method.is_none() && intent.method.is_none() {
        return Err(no_method().with("payment_intent", intent.render()));
    }
    if let Some(amount) = confirmation.amount {
        currency::chargeable("amount_to_confirm", amount, &intent.currency)?;
    }
    let mut notes = intent.notes.clone();
    notes.update(params, ECHOED)?;
    intent.notes = notes;
    confirm_now(ctx, &id, &confirmation)?;
    Ok(ctx.data().intents.find(&id)?.render())
}

/// Confirms an intent whose request is already checked.
pub(super) fn confirm_now(ctx: &mut Ctx<'_>, id: &str, confirmation: &Confirmation) -> Result<(), ApiError> {
    let intent = ctx.data().intents.find_mut(id)?;
    if let Some(amount) = confirmation.amount {
        intent.amount = amount;
    }
    if confirmation.method.is_some() {
        intent.method.clone_from(&confirmation.method);
    }
    if let Some(capture_method) = &confirmation.capture_method {
        intent.capture_method.clone_from(capture_method);
    }
    intent.last_error = None;
    let mut payment = intent.method.as_deref().map_or(Payment::Succeeds, cards::payment);
    if payment == Payment::NeedsAction {
        if confirmation.off_session || confirmation.error_on_requires_action {
            payment = Payment::Declines(&cards::AUTHENTICATION_REQUIRED);
        } else {
            intent.status = Status::RequiresAction;
            return Ok(());
        }
    }
    pay(ctx, id, payment)
}

/// Charges an intent's method with a given end, and moves the intent on.
pub(super) fn pay(ctx: &mut Ctx<'_>, id: &str, payment: Payment) -> Result<(), ApiError> {
    let intent = ctx.data().intents.find(id)?.clone();
    let manual = intent.capture_method == "manual";
    let made = ctx.charge_as(
        NewCharge {
            amount: intent.amount,
            currency: intent.currency,
            capture: !manual,
            customer: intent.customer,
            payment_intent: Some(id.to_owned()),
            method: intent.method.unwrap_or_else(|| "pm_card_visa".to_owned()),
            notes: intent.notes,
        },
        payment,
    );
    let intent = ctx.data().intents.find_mut(id)?;
    match made {
        Made::Charged(charge) => {
            intent.latest_charge = Some(charge);
            if payment == Payment::Processing {
                intent.status = Status::Processing;
            } else if manual {
                intent.status = Status::RequiresCapture;
                intent.amount_capturable = intent.amount;
            } else {
                intent.status = Status::Succeeded;
                intent.amount_received = intent.amount;
            }
            Ok(())
        }
        Made::Declined(charge, decline) => {
            intent.latest_charge = Some(charge.clone());
            Err(fail(intent, &decline.error().with("charge", charge)))
        }
        Made::NeedsAction => {
            intent.status = Status::RequiresAction;
            Ok(())
        }
    }
}

/// Puts a failed intent back to where a new method can be given, and shows it in the error.
fn fail(intent: &mut PaymentIntent, error: &ApiError) -> ApiError {
    intent.status = Status::RequiresPaymentMethod;
    intent.method = None;
    intent.last_error = Some(error.object());
    error.clone().with("payment_intent", intent.render())
}

/// `POST /v1/payment_intents/{id}/capture`. Several captures add up in `amount_received`.
pub(super) fn capture(ctx: &mut Ctx<'_>, params: &Params) -> Result<Value, ApiError> {
    let id = ctx.id().to_owned();
    let asked = params.integer("amount_to_capture")?;
    let last = params.boolean("final_capture", true)?;
    let intent = ctx.data().intents.find(&id)?;
    if intent.status != Status::RequiresCapture {
        return Err(intent.unexpected("capture"));
    }
    let capturable = intent.amount_capturable;
    let amount = currency::positive("amount_to_capture", asked.unwrap_or(capturable), &intent.currency)?;
    if amount > capturable {
        return Err(ApiError::invalid(
            "amount_to_capture",
            format!("The requested capture amount is greater than the amount you can capture for this charge ({capturable})."),
        )
        .code("amount_too_large"));
    }
    let mut notes = intent.notes.clone();
    notes.update(params, ECHOED)?;
    let charge = intent.latest_charge.clone().unwrap_or_default();
    ctx.capture_charge(&charge, amount)?;
    let intent = ctx.data().intents.find_mut(&id)?;
    intent.notes = notes;
    intent.amount_received = intent.amount_received.saturating_add(amount);
    if last || amount == capturable {
        intent.amount_capturable = 0;
        intent.status = Status::Succeeded;
    } else {
        intent.amount_capturable = capturable.saturating_sub(amount);
    }
    Ok(intent.render())
}

/// `POST /v1/payment_intents/{id}/cancel`. What is authorised and not captured is released.
pub(super) fn cancel(ctx: &mut Ctx<'_>, params: &Params) -> Result<Value, ApiError> {
    let id = ctx.id().to_owned();
    let reason = params.text("cancellation_reason")?;
    if let Some(reason) = reason
        && !["duplicate", "fraudulent", "requested_by_customer", "abandoned"].contains(&reason)
    {
        return Err(ApiError::invalid(
            "cancellation_reason",
            "Invalid cancellation_reason: must be one of duplicate, fraudulent, requested_by_customer, or abandoned",
        ));
    }
    let now = ctx.now();
    let intent = ctx.data().intents.find_mut(&id)?;
    if matches!(
        intent.status,
        Status::Succeeded | Status::Canceled | Status::Processing
    ) {
        return Err(intent.unexpected("cancel"));
    }
    let authorized = intent.status == Status::RequiresCapture;
    let captured_some = intent.amount_received > 0;
    intent.status = if captured_some {
        Status::Succeeded
    } else {
        Status::Canceled
    };
    intent.amount_capturable = 0;
    if !captured_some {
        intent.canceled_at = Some(now);
        intent.cancellation_reason = reason.map(str::to_owned);
    }
    if authorized
        && !captured_some
        && let Some(charge) = intent.latest_charge.clone()
    {
        ctx.release_charge(&charge)?;
    }
    Ok(ctx.data().intents.find(&id)?.render())
}

/// `POST /v1/payment_intents/{id}/increment_authorization`. `amount` is the new total.
pub(super) fn increment(ctx: &mut Ctx<'_>, params: &Params) -> Result<Value, ApiError> {
    let id = ctx.id().to_owned();
    let asked = params
        .integer("amount")?
        .ok_or_else(|| ApiError::missing("amount"))?;
    let intent = ctx.data().intents.find(&id)?;
    if intent.status != Status::RequiresCapture || intent.amount_received > 0 {
        return Err(intent.unexpected("increment the authorization of"));
    }
    let amount = currency::chargeable("amount", asked, &intent.currency)?;
    let delta = amount.saturating_sub(intent.amount);
    if delta <= 0 {
        return Err(ApiError::invalid(
            "amount",
            format!(
                "The amount must be greater than the currently authorized amount ({}).",
                intent.amount
            ),
        ));
    }
    let mut notes = intent.notes.clone();
    notes.update(params, ECHOED)?;
    let charge_id = intent.latest_charge.clone().unwrap_or_default();
    let currency = intent.currency.clone();
    ctx.data().charges.find_mut(&charge_id)?.amount = amount;
    ctx.journal(
        MovementKind::Authorization,
        MovementOutcome::None,
        Moved {
            object: &charge_id,
            source: Some(&id),
            amount: delta,
            currency: &currency,
        },
    );
    let intent = ctx.data().intents.find_mut(&id)?;
    intent.notes = notes;
    intent.amount = amount;
    intent.amount_capturable = amount;
    Ok(intent.render())
}

/// What a customer or a bank does later, without a request of the account's: pays, fails, lets it expire.
pub(super) fn advance(ctx: &mut Ctx<'_>, id: &str, to: &str) -> Result<(), ApiError> {
    let intent = ctx.data().intents.find_mut(id)?;
    match (intent.status, to) {
        (
            Status::RequiresPaymentMethod | Status::RequiresConfirmation | Status::RequiresAction,
            "succeeded",
        ) => pay(ctx, id, Payment::Succeeds),
        (Status::RequiresConfirmation | Status::RequiresAction, "failed") => {
            fail(intent, &cards::AUTHENTICATION_REQUIRED.error());
            Ok(())
        }
        (Status::Processing, "succeeded") => {
            let (amount, charge) = (intent.amount, intent.latest_charge.clone().unwrap_or_default());
            intent.status = Status::Succeeded;
            intent.amount_received = amount;
            ctx.capture_charge(&charge, amount)
        }
        (Status::Processing, "failed") => {
            let charge = intent.latest_charge.clone().unwrap_or_default();
            fail(
                intent,
                &ApiError::card("payment_method_failed", None, "The bank returned the debit."),
            );
            ctx.fail_charge(&charge)
        }
        (Status::RequiresCapture, "canceled") => {
            let charge = intent.latest_charge.clone().unwrap_or_default();
            intent.status = Status::Canceled;
            intent.amount_capturable = 0;
            intent.cancellation_reason = Some("automatic".to_owned());
            ctx.release_charge(&charge)
        }
        _ => Err(intent.unexpected(&format!("advance to {to}"))),
    }
}
