//! Refunds of charges, also by way of their `PaymentIntents`.

use serde_json::{Value, json};

use super::cards::{self, RefundFate};
use super::charge::ChargeStatus;
use super::currency;
use super::error::ApiError;
use super::form::Params;
use super::journal::{MovementKind, MovementOutcome};
use super::list;
use super::world::{Ctx, Moved, Notes, Record};

/// A refund.
#[derive(Clone, Debug)]
pub(super) struct Refund {
    pub(super) id: String,
    pub(super) amount: i64,
    pub(super) currency: String,
    pub(super) charge: String,
    pub(super) payment_intent: Option<String>,
    pub(super) status: RefundStatus,
    reason: Option<String>,
    failure_reason: Option<&'static str>,
    balance_transaction: Option<String>,
    created: i64,
    notes: Notes,
}

/// Where a refund stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RefundStatus {
    Pending,
    RequiresAction,
    Succeeded,
    Failed,
    Canceled,
}

impl RefundStatus {
    const fn word(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::RequiresAction => "requires_action",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
        }
    }
}

impl Refund {
    /// Whether a bank still has to say how it ends.
    #[cfg(feature = "sim")]
    pub(super) fn is_pending(&self) -> bool {
        self.status == RefundStatus::Pending
    }
}

impl Record for Refund {
    const NOUN: &'static str = "refund";

    fn id(&self) -> &str {
        &self.id
    }

    fn created(&self) -> i64 {
        self.created
    }

    fn render(&self) -> Value {
        let mut object = json!({
            "id": self.id, "object": "refund", "amount": self.amount, "balance_transaction": self.balance_transaction,
            "charge": self.charge, "created": self.created, "currency": self.currency,
            "destination_details": {"card": {"reference_status": "pending", "reference_type": "acquirer_reference_number",
                "type": "refund"}, "type": "card"},
            "payment_intent": self.payment_intent, "reason": self.reason, "receipt_number": null,
            "source_transfer_reversal": null, "status": self.status.word(), "transfer_reversal": null,
        });
        self.notes.show(&mut object);
        if let Value::Object(fields) = &mut object {
            if self.notes.description.is_none() {
                fields.remove("description");
            }
            if let Some(reason) = self.failure_reason {
                fields.insert("failure_reason".to_owned(), reason.into());
            }
        }
        object
    }
}

/// `POST /v1/refunds`.
pub(super) fn create(ctx: &mut Ctx<'_>, params: &Params) -> Result<Value, ApiError> {
    if params.has("origin") || params.has("currency") {
        return Err(ApiError::request(
            "The simulator does not refund customer balances (origin, currency).",
        ));
    }
    let charge = charge_to_refund(ctx, params)?;
    refund_charge(ctx, &charge, params)
}

/// `POST /v1/charges/{id}/refund` and `/refunds`: an old form that may still be served, so the simulator serves it.
pub(super) fn create_on_charge(ctx: &mut Ctx<'_>, params: &Params) -> Result<Value, ApiError> {
    let id = ctx.id().to_owned();
    ctx.data().charges.find(&id)?;
    refund_charge(ctx, &id, params)
}

/// The charge that `charge` or `payment_intent` names.
fn charge_to_refund(ctx: &mut Ctx<'_>, params: &Params) -> Result<String, ApiError> {
    let charge = params.text("charge")?;
    let Some(intent_id) = params.text("payment_intent")? else {
        let id = charge.ok_or_else(|| {
            ApiError::request(
                "One of the following params should be provided for this request: payment_intent or charge.",
            )
            .code("parameter_missing")
        })?;
        return match ctx.data().charges.get(id) {
            Some(_) => Ok(id.to_owned()),
            None => Err(ApiError::no_such_param("charge", "charge", id)),
        };
    };
    let Some(intent) = ctx.data().intents.get(intent_id) else {
        return Err(ApiError::no_such_param(
            "payment_intent",
            "payment_intent",
            intent_id,
        ));
    };
    let Some(of_intent) = intent
        .latest_charge
        .clone()
        .filter(|_| intent.amount_received > 0)
    else {
        return Err(ApiError::refused(format!(
            "This PaymentIntent ({intent_id}) does not have a successful charge to refund."
        )));
    };
    if charge.is_some_and(|id| id != of_intent) {
        return Err(ApiError::invalid(
            "charge",
            format!("The charge is not the charge of the PaymentIntent {intent_id}."),
        ));
    }
    Ok(of_intent)
}

fn refund_charge(ctx: &mut Ctx<'_>, id: &str, params: &Params) -> Result<Value, ApiError> {
    let asked = params.integer("amount")?;
    let reason = params.text("reason")?;
    if let Some(reason) = reason
        && !["duplicate", "fraudulent", "requested_by_customer"].contains(&reason)
    {
        return Err(ApiError::invalid(
            "reason",
            "Invalid reason: must be one of duplicate, fraudulent, or requested_by_customer",
        ));
    }
    let mut notes = Notes::default();
    notes.update(params, &[])?;
    let charge = ctx.data().charges.find(id)?.clone();
    if charge.released
        || (charge.captured && charge.refundable() == 0 && charge.status == ChargeStatus::Succeeded)
    {
        let message = format!("Charge {id} has already been refunded.");
        return Err(ApiError::state("charge_already_refunded", message));
    }
    if charge.status != ChargeStatus::Succeeded || (!charge.captured && charge.payment_intent.is_some()) {
        let message = format!("Charge {id} cannot be refunded: it has not been captured.");
        return Err(ApiError::state("charge_not_refundable", message));
    }
    // A refund of an uncaptured charge releases its authorisation; no money moves.
    let held = !charge.captured;
    let most = if held { charge.amount } else { charge.refundable() };
    let amount = currency::positive("amount", asked.unwrap_or(most), &charge.currency)?;
    if amount > most {
        return Err(ApiError::invalid(
            "amount",
            format!("Refund amount ({amount}) is greater than unrefunded amount on charge ({most})"),
        ));
    }
    if held && amount < most {
        return Err(ApiError::invalid(
            "amount",
            "An uncaptured charge can only be refunded as a whole.",
        ));
    }
    let refund_id = ctx.world.ids.next("re");
    let refund = Refund {
        id: refund_id.clone(),
        amount,
        currency: charge.currency,
        charge: charge.id,
        payment_intent: charge.payment_intent,
        status: match cards::refund(&charge.method) {
            _ if held => RefundStatus::Succeeded,
            RefundFate::Succeeds => RefundStatus::Succeeded,
            RefundFate::Pending => RefundStatus::Pending,
            RefundFate::NeedsAction => RefundStatus::RequiresAction,
        },
        reason: reason.map(str::to_owned),
        failure_reason: None,
        balance_transaction: None,
        created: ctx.now(),
        notes,
    };
    ctx.data().refunds.insert(refund);
    if held {
        ctx.release_charge(id)?;
    } else {
        pay_out(ctx, &refund_id)?;
    }
    Ok(ctx.data().refunds.find(&refund_id)?.render())
}

/// Moves a refund's money.
fn pay_out(ctx: &mut Ctx<'_>, id: &str) -> Result<(), ApiError> {
    let refund = ctx.data().refunds.find(id)?.clone();
    let transaction = ctx.book("refund", id, refund.amount.saturating_neg(), &refund.currency);
    ctx.data().refunds.find_mut(id)?.balance_transaction = Some(transaction);
    let charge = ctx.data().charges.find_mut(&refund.charge)?;
    charge.amount_refunded = charge.amount_refunded.saturating_add(refund.amount);
    write(ctx, &refund, MovementOutcome::Moved);
    Ok(())
}

/// Takes a refund's money back, because it failed or was cancelled.
fn take_back(ctx: &mut Ctx<'_>, id: &str, status: RefundStatus) -> Result<(), ApiError> {
    let refund = ctx.data().refunds.find_mut(id)?;
    refund.status = status;
    if status == RefundStatus::Failed {
        refund.failure_reason = Some("expired_or_canceled_card");
    }
    let refund = refund.clone();
    ctx.book("refund_failure", id, refund.amount, &refund.currency);
    let charge = ctx.data().charges.find_mut(&refund.charge)?;
    charge.amount_refunded = charge.amount_refunded.saturating_sub(refund.amount);
    write(ctx, &refund, MovementOutcome::Returned);
    Ok(())
}

fn write(ctx: &mut Ctx<'_>, refund: &Refund, outcome: MovementOutcome) {
    ctx.journal(
        MovementKind::Refund,
        outcome,
        Moved {
            object: &refund.id,
            source: Some(&refund.charge),
            amount: refund.amount,
            currency: &refund.currency,
        },
    );
}

/// `GET /v1/refunds/{id}`.
pub(super) fn retrieve(ctx: &mut Ctx<'_>, _: &Params) -> Result<Value, ApiError> {
    Ok(ctx.named(|data| &mut data.refunds)?.render())
}

/// `POST /v1/refunds/{id}`.
pub(super) fn update(ctx: &mut Ctx<'_>, params: &Params) -> Result<Value, ApiError> {
    let refund = ctx.named(|data| &mut data.refunds)?;
    refund.notes.update(params, &[])?;
    Ok(refund.render())
}

/// `POST /v1/refunds/{id}/cancel`: only while it requires action.
pub(super) fn cancel(ctx: &mut Ctx<'_>, _: &Params) -> Result<Value, ApiError> {
    let id = ctx.id().to_owned();
    let refund = ctx.data().refunds.find(&id)?;
    if refund.status != RefundStatus::RequiresAction {
        return Err(ApiError::refused(format!(
            "You cannot cancel this refund because it has a status of {}. Only refunds with status requires_action can be canceled.",
            refund.status.word()
        )));
    }
    take_back(ctx, &id, RefundStatus::Canceled)?;
    Ok(ctx.data().refunds.find(&id)?.render())
}

/// `GET /v1/refunds`.
pub(super) fn list(ctx: &mut Ctx<'_>, params: &Params) -> Result<Value, ApiError> {
    let charge = params.text("charge")?;
    let intent = params.text("payment_intent")?;
    list::page(&ctx.data().refunds, params, "/v1/refunds", |refund| {
        charge.is_none_or(|id| refund.charge == id)
            && intent.is_none_or(|id| refund.payment_intent.as_deref() == Some(id))
    })
}

/// `GET /v1/charges/{id}/refunds`.
pub(super) fn list_on_charge(ctx: &mut Ctx<'_>, params: &Params) -> Result<Value, ApiError> {
    let charge = ctx.id().to_owned();
    ctx.data().charges.find(&charge)?;
    let url = format!("/v1/charges/{charge}/refunds");
    list::page(&ctx.data().refunds, params, &url, |refund| {
        refund.charge == charge
    })
}

/// What a bank does later: a pending refund succeeds, any refund may fail.
pub(super) fn advance(ctx: &mut Ctx<'_>, id: &str, to: &str) -> Result<(), ApiError> {
    let refund = ctx.data().refunds.find_mut(id)?;
    match (refund.status, to) {
        (RefundStatus::Pending | RefundStatus::RequiresAction, "succeeded") => {
            refund.status = RefundStatus::Succeeded;
            Ok(())
        }
        (RefundStatus::RequiresAction, "pending") => {
            refund.status = RefundStatus::Pending;
            Ok(())
        }
        (RefundStatus::Pending | RefundStatus::RequiresAction | RefundStatus::Succeeded, "failed") => {
            take_back(ctx, id, RefundStatus::Failed)
        }
        (status, _) => Err(ApiError::refused(format!(
            "A refund cannot go from {} to {to}.",
            status.word()
        ))),
    }
}
