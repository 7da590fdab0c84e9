//! Payouts from the balance to a bank account.

use serde_json::{Value, json};

use super::currency;
use super::error::ApiError;
use super::form::Params;
use super::journal::{MovementKind, MovementOutcome};
use super::list;
use super::world::{Ctx, Moved, Notes, Record};

const TWO_DAYS_S: i64 = 2 * 24 * 3_600;

/// A payout.
#[derive(Clone, Debug)]
pub(super) struct Payout {
    id: String,
    amount: i64,
    currency: String,
    method: String,
    destination: String,
    pub(super) status: &'static str,
    balance_transaction: String,
    failure: bool,
    created: i64,
    notes: Notes,
}

impl Record for Payout {
    const NOUN: &'static str = "payout";

    fn id(&self) -> &str {
        &self.id
    }

    fn created(&self) -> i64 {
        self.created
    }

    fn render(&self) -> Value {
        let failure = self.failure.then_some("account_closed");
        let message = self.failure.then_some("The bank account has been closed.");
        let mut object = json!({
            "id": self.id, "object": "payout", "amount": self.amount, "application_fee": null,
            "application_fee_amount": null, "arrival_date": self.created.saturating_add(TWO_DAYS_S), "automatic": false,
            "balance_transaction": self.balance_transaction, "created": self.created, "currency": self.currency,
            "destination": self.destination, "failure_balance_transaction": null, "failure_code": failure,
            "failure_message": message, "livemode": false, "method": self.method, "original_payout": null,
            "reconciliation_status": "not_applicable", "reversed_by": null, "source_type": "card",
            "statement_descriptor": null, "status": self.status, "trace_id": null, "type": "bank_account",
        });
        self.notes.show(&mut object);
        object
    }
}

/// `POST /v1/payouts`.
pub(super) fn create(ctx: &mut Ctx<'_>, params: &Params) -> Result<Value, ApiError> {
    let amount = params
        .integer("amount")?
        .ok_or_else(|| ApiError::missing("amount"))?;
    let currency = currency::currency(params.required("currency")?)?;
    let amount = currency::payable_out("amount", amount, &currency)?;
    let method = match params.text("method")? {
        None | Some("standard") => "standard",
        Some("instant") => "instant",
        Some(_) => {
            return Err(ApiError::invalid(
                "method",
                "Invalid method: must be one of standard or instant",
            ));
        }
    };
    let destination = params.text("destination")?.unwrap_or("ba_sim").to_owned();
    let mut notes = Notes::default();
    notes.update(params, &["statement_descriptor"])?;
    ctx.needs_funds(amount, &currency)?;
    let id = ctx.world.ids.next("po");
    let balance_transaction = ctx.book("payout", &id, amount.saturating_neg(), &currency);
    let created = ctx.now();
    let payout = Payout {
        id: id.clone(),
        amount,
        currency,
        method: method.to_owned(),
        destination,
        status: "pending",
        balance_transaction,
        failure: false,
        created,
        notes,
    };
    let object = payout.render();
    write(ctx, &payout, MovementOutcome::Moved);
    ctx.data().payouts.insert(payout);
    Ok(object)
}

/// `GET /v1/payouts/{id}`.
pub(super) fn retrieve(ctx: &mut Ctx<'_>, _: &Params) -> Result<Value, ApiError> {
    Ok(ctx.named(|data| &mut data.payouts)?.render())
}

/// `POST /v1/payouts/{id}`.
pub(super) fn update(ctx: &mut Ctx<'_>, params: &Params) -> Result<Value, ApiError> {
    let payout = ctx.named(|data| &mut data.payouts)?;
    payout.notes.update(params, &[])?;
    Ok(payout.render())
}

/// `GET /v1/payouts`.
pub(super) fn list(ctx: &mut Ctx<'_>, params: &Params) -> Result<Value, ApiError> {
    let status = params.text("status")?;
    let destination = params.text("destination")?;
    list::page(&ctx.data().payouts, params, "/v1/payouts", |payout| {
        status.is_none_or(|word| payout.status == word)
            && destination.is_none_or(|id| payout.destination == id)
    })
}

/// `POST /v1/payouts/{id}/cancel`: only while it is pending.
pub(super) fn cancel(ctx: &mut Ctx<'_>, _: &Params) -> Result<Value, ApiError> {
    let id = ctx.id().to_owned();
    let payout = ctx.data().payouts.find(&id)?;
    if payout.status != "pending" {
        return Err(ApiError::refused(format!(
            "Payouts can only be canceled while they are pending; {id} is {}.",
            payout.status
        )));
    }
    take_back(ctx, &id, "canceled")?;
    Ok(ctx.data().payouts.find(&id)?.render())
}

/// What the bank does later. A payout may fail also after it was paid.
pub(super) fn advance(ctx: &mut Ctx<'_>, id: &str, to: &str) -> Result<(), ApiError> {
    let payout = ctx.data().payouts.find_mut(id)?;
    match (payout.status, to) {
        ("pending", "in_transit") => payout.status = "in_transit",
        ("pending" | "in_transit", "paid") => payout.status = "paid",
        ("pending" | "in_transit" | "paid", "failed") => return take_back(ctx, id, "failed"),
        (status, _) => {
            return Err(ApiError::refused(format!(
                "A payout cannot go from {status} to {to}."
            )));
        }
    }
    Ok(())
}

fn take_back(ctx: &mut Ctx<'_>, id: &str, status: &'static str) -> Result<(), ApiError> {
    let payout = ctx.data().payouts.find_mut(id)?;
    payout.status = status;
    payout.failure = status == "failed";
    let payout = payout.clone();
    let kind = if payout.failure {
        "payout_failure"
    } else {
        "payout_cancel"
    };
    ctx.book(kind, id, payout.amount, &payout.currency);
    write(ctx, &payout, MovementOutcome::Returned);
    Ok(())
}

fn write(ctx: &mut Ctx<'_>, payout: &Payout, outcome: MovementOutcome) {
    ctx.journal(
        MovementKind::Payout,
        outcome,
        Moved {
            object: &payout.id,
            source: Some(&payout.destination),
            amount: payout.amount,
            currency: &payout.currency,
        },
    );
}
