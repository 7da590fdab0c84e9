//! Top-ups of the balance from a bank account.

use serde_json::{Value, json};

use super::currency;
use super::error::ApiError;
use super::form::Params;
use super::journal::{MovementKind, MovementOutcome};
use super::list;
use super::world::{Ctx, Moved, Notes, Record};

const ECHOED: &[&str] = &["statement_descriptor", "transfer_group"];
const FIVE_DAYS_S: i64 = 5 * 24 * 3_600;

/// A top-up.
#[derive(Clone, Debug)]
pub(super) struct Topup {
    id: String,
    amount: i64,
    currency: String,
    status: &'static str,
    balance_transaction: Option<String>,
    created: i64,
    notes: Notes,
}

impl Record for Topup {
    const NOUN: &'static str = "topup";

    fn id(&self) -> &str {
        &self.id
    }

    fn created(&self) -> i64 {
        self.created
    }

    fn render(&self) -> Value {
        let failure = (self.status == "failed").then_some("insufficient_funds");
        let message = failure.map(|_| "The account has insufficient funds.");
        let mut object = json!({
            "id": self.id, "object": "topup", "amount": self.amount, "balance_transaction": self.balance_transaction,
            "created": self.created, "currency": self.currency,
            "expected_availability_date": self.created.saturating_add(FIVE_DAYS_S), "failure_code": failure,
            "failure_message": message, "livemode": false, "source": null, "statement_descriptor": null,
            "status": self.status, "transfer_group": null,
        });
        self.notes.show(&mut object);
        object
    }
}

/// `POST /v1/topups`.
pub(super) fn create(ctx: &mut Ctx<'_>, params: &Params) -> Result<Value, ApiError> {
    let amount = params
        .integer("amount")?
        .ok_or_else(|| ApiError::missing("amount"))?;
    let currency = currency::currency(params.required("currency")?)?;
    let amount = currency::positive("amount", amount, &currency)?;
    let mut notes = Notes::default();
    notes.update(params, ECHOED)?;
    let topup = Topup {
        id: ctx.world.ids.next("tu"),
        amount,
        currency,
        status: "pending",
        balance_transaction: None,
        created: ctx.now(),
        notes,
    };
    write(ctx, &topup, MovementOutcome::Moved);
    let object = topup.render();
    ctx.data().topups.insert(topup);
    Ok(object)
}

/// `GET /v1/topups/{id}`.
pub(super) fn retrieve(ctx: &mut Ctx<'_>, _: &Params) -> Result<Value, ApiError> {
    Ok(ctx.named(|data| &mut data.topups)?.render())
}

/// `POST /v1/topups/{id}`.
pub(super) fn update(ctx: &mut Ctx<'_>, params: &Params) -> Result<Value, ApiError> {
    let topup = ctx.named(|data| &mut data.topups)?;
    topup.notes.update(params, &[])?;
    Ok(topup.render())
}

/// `GET /v1/topups`.
pub(super) fn list(ctx: &mut Ctx<'_>, params: &Params) -> Result<Value, ApiError> {
    let status = params.text("status")?;
    list::page(&ctx.data().topups, params, "/v1/topups", |topup| {
        status.is_none_or(|word| topup.status == word)
    })
}

/// `POST /v1/topups/{id}/cancel`: only while it is pending.
pub(super) fn cancel(ctx: &mut Ctx<'_>, _: &Params) -> Result<Value, ApiError> {
    let id = ctx.id().to_owned();
    let topup = ctx.data().topups.find_mut(&id)?;
    if topup.status != "pending" {
        return Err(ApiError::refused(format!(
            "Top-ups can only be canceled while they are pending; {id} is {}.",
            topup.status
        )));
    }
    topup.status = "canceled";
    let topup = topup.clone();
    write(ctx, &topup, MovementOutcome::Returned);
    Ok(topup.render())
}

/// What the bank does later.
pub(super) fn advance(ctx: &mut Ctx<'_>, id: &str, to: &str) -> Result<(), ApiError> {
    let topup = ctx.data().topups.find(id)?.clone();
    let (status, outcome, booked) = match (topup.status, to) {
        ("pending", "succeeded") => ("succeeded", None, topup.amount),
        ("pending", "failed") => ("failed", Some(MovementOutcome::Returned), 0),
        ("succeeded", "reversed") => (
            "reversed",
            Some(MovementOutcome::Returned),
            topup.amount.saturating_neg(),
        ),
        (status, _) => {
            return Err(ApiError::refused(format!(
                "A top-up cannot go from {status} to {to}."
            )));
        }
    };
    if booked != 0 {
        let transaction = ctx.book("topup", id, booked, &topup.currency);
        ctx.data().topups.find_mut(id)?.balance_transaction = Some(transaction);
    }
    ctx.data().topups.find_mut(id)?.status = status;
    if let Some(outcome) = outcome {
        write(ctx, &topup, outcome);
    }
    Ok(())
}

fn write(ctx: &mut Ctx<'_>, topup: &Topup, outcome: MovementOutcome) {
    ctx.journal(
        MovementKind::Topup,
        outcome,
        Moved {
            object: &topup.id,
            source: None,
            amount: topup.amount,
            currency: &topup.currency,
        },
    );
}
