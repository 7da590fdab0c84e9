//! Transfers to connected accounts, and their reversals.

use serde_json::{Value, json};

use super::currency;
use super::error::ApiError;
use super::form::Params;
use super::journal::{MovementKind, MovementOutcome};
use super::list;
use super::world::{Ctx, Moved, Notes, PLATFORM, Record};

const ECHOED: &[&str] = &["transfer_group"];

/// A transfer.
#[derive(Clone, Debug)]
pub(super) struct Transfer {
    id: String,
    amount: i64,
    amount_reversed: i64,
    currency: String,
    destination: String,
    destination_payment: String,
    source_transaction: Option<String>,
    balance_transaction: String,
    created: i64,
    notes: Notes,
}

impl Record for Transfer {
    const NOUN: &'static str = "transfer";

    fn id(&self) -> &str {
        &self.id
    }

    fn created(&self) -> i64 {
        self.created
    }

    fn render(&self) -> Value {
        let mut object = json!({
            "id": self.id, "object": "transfer", "amount": self.amount, "amount_reversed": self.amount_reversed,
            "balance_transaction": self.balance_transaction, "created": self.created, "currency": self.currency,
            "destination": self.destination, "destination_payment": self.destination_payment, "livemode": false,
            "reversals": {"object": "list", "data": [], "has_more": false, "url": format!("/v1/transfers/{}/reversals", self.id)},
            "reversed": self.amount_reversed == self.amount, "source_transaction": self.source_transaction,
            "source_type": "card", "transfer_group": null,
        });
        self.notes.show(&mut object);
        object
    }
}

/// A transfer reversal.
#[derive(Clone, Debug)]
pub(super) struct Reversal {
    id: String,
    amount: i64,
    currency: String,
    transfer: String,
    balance_transaction: String,
    created: i64,
    notes: Notes,
}

impl Record for Reversal {
    const NOUN: &'static str = "transfer reversal";

    fn id(&self) -> &str {
        &self.id
    }

    fn created(&self) -> i64 {
        self.created
    }

    fn render(&self) -> Value {
        json!({
            "id": self.id, "object": "transfer_reversal", "amount": self.amount,
            "balance_transaction": self.balance_transaction, "created": self.created, "currency": self.currency,
            "destination_payment_refund": null, "metadata": self.notes.metadata, "source_refund": null,
            "transfer": self.transfer,
        })
    }
}

/// `POST /v1/transfers`.
pub(super) fn create(ctx: &mut Ctx<'_>, params: &Params) -> Result<Value, ApiError> {
    let currency = currency::currency(params.required("currency")?)?;
    let destination = params.required("destination")?.to_owned();
    let asked = params.integer("amount")?;
    let source = params.text("source_transaction")?;
    if !destination.starts_with("acct_") || destination == PLATFORM {
        return Err(ApiError::no_such_param(
            "destination",
            "destination",
            &destination,
        ));
    }
    let most = source_amount(ctx, source, &currency)?;
    let amount = match (asked, most) {
        (Some(amount), _) => amount,
        (None, Some(most)) => most,
        (None, None) => return Err(ApiError::missing("amount")),
    };
    let amount = currency::positive("amount", amount, &currency)?;
    if most.is_some_and(|most| amount > most) {
        return Err(ApiError::invalid(
            "amount",
            "The transfer is greater than its source charge.",
        ));
    }
    if source.is_none() {
        ctx.needs_funds(amount, &currency)?;
    }
    let mut notes = Notes::default();
    notes.update(params, ECHOED)?;
    let id = ctx.world.ids.next("tr");
    let balance_transaction = ctx.book("transfer", &id, amount.saturating_neg(), &currency);
    let created = ctx.now();
    let destination_payment = ctx.world.ids.next("py");
    ctx.credit(&destination, amount, &currency);
    ctx.data().transfers.insert(Transfer {
        id: id.clone(),
        amount,
        amount_reversed: 0,
        currency: currency.clone(),
        destination: destination.clone(),
        destination_payment,
        source_transaction: source.map(str::to_owned),
        balance_transaction,
        created,
        notes,
    });
    ctx.journal(
        MovementKind::Transfer,
        MovementOutcome::Moved,
        Moved {
            object: &id,
            source: Some(&destination),
            amount,
            currency: &currency,
        },
    );
    Ok(ctx.data().transfers.find(&id)?.render())
}

/// What the charge in `source_transaction` captured.
fn source_amount(ctx: &mut Ctx<'_>, source: Option<&str>, currency: &str) -> Result<Option<i64>, ApiError> {
    let Some(id) = source else {
        return Ok(None);
    };
    let Some(charge) = ctx.data().charges.get(id) else {
        return Err(ApiError::no_such_param("source_transaction", "charge", id));
    };
    if charge.currency != currency {
        return Err(ApiError::invalid(
            "currency",
            format!(
                "The currency of source_transaction's balance transaction ({}) must be the same.",
                charge.currency
            ),
        ));
    }
    Ok(Some(charge.amount_captured))
}

/// `GET /v1/transfers/{id}`.
pub(super) fn retrieve(ctx: &mut Ctx<'_>, _: &Params) -> Result<Value, ApiError> {
    let id = ctx.id().to_owned();
    let mut object = ctx.data().transfers.find(&id)?.render();
    let reversals: Vec<Value> = ctx
        .data()
        .reversals
        .rows()
        .iter()
        .rev()
        .filter(|reversal| reversal.transfer == id)
        .take(10)
        .map(Record::render)
        .collect();
    if let Some(data) = object.pointer_mut("/reversals/data") {
        *data = Value::Array(reversals);
    }
    Ok(object)
}

/// `POST /v1/transfers/{id}`.
pub(super) fn update(ctx: &mut Ctx<'_>, params: &Params) -> Result<Value, ApiError> {
    let transfer = ctx.named(|data| &mut data.transfers)?;
    transfer.notes.update(params, &[])?;
    Ok(transfer.render())
}

/// `GET /v1/transfers`.
pub(super) fn list(ctx: &mut Ctx<'_>, params: &Params) -> Result<Value, ApiError> {
    let destination = params.text("destination")?;
    let group = params.text("transfer_group")?;
    list::page(&ctx.data().transfers, params, "/v1/transfers", |transfer| {
        destination.is_none_or(|id| transfer.destination == id)
            && group.is_none_or(|id| transfer.notes.is_in_group(id))
    })
}

/// `POST /v1/transfers/{id}/reversals`.
pub(super) fn reverse(ctx: &mut Ctx<'_>, params: &Params) -> Result<Value, ApiError> {
    let transfer_id = ctx.id().to_owned();
    let asked = params.integer("amount")?;
    let transfer = ctx.data().transfers.find(&transfer_id)?.clone();
    let most = transfer.amount.saturating_sub(transfer.amount_reversed);
    if most == 0 {
        return Err(ApiError::refused(format!(
            "Transfer {transfer_id} is already fully reversed."
        )));
    }
    let amount = currency::positive("amount", asked.unwrap_or(most), &transfer.currency)?;
    if amount > most {
        return Err(ApiError::invalid(
            "amount",
            format!(
                "Transfer reversal amount ({amount}) is greater than unreversed amount on transfer ({most})"
            ),
        ));
    }
    let mut notes = Notes::default();
    notes.update(params, &[])?;
    let id = ctx.world.ids.next("trr");
    let balance_transaction = ctx.book("transfer_refund", &id, amount, &transfer.currency);
    ctx.credit(&transfer.destination, amount.saturating_neg(), &transfer.currency);
    let created = ctx.now();
    ctx.data().reversals.insert(Reversal {
        id: id.clone(),
        amount,
        currency: transfer.currency.clone(),
        transfer: transfer_id.clone(),
        balance_transaction,
        created,
        notes,
    });
    let of = ctx.data().transfers.find_mut(&transfer_id)?;
    of.amount_reversed = of.amount_reversed.saturating_add(amount);
    ctx.journal(
        MovementKind::TransferReversal,
        MovementOutcome::Moved,
        Moved {
            object: &id,
            source: Some(&transfer_id),
            amount,
            currency: &transfer.currency,
        },
    );
    Ok(ctx.data().reversals.find(&id)?.render())
}

/// `GET /v1/transfers/{id}/reversals`.
pub(super) fn list_reversals(ctx: &mut Ctx<'_>, params: &Params) -> Result<Value, ApiError> {
    let id = ctx.id().to_owned();
    ctx.data().transfers.find(&id)?;
    let url = format!("/v1/transfers/{id}/reversals");
    list::page(&ctx.data().reversals, params, &url, |reversal| {
        reversal.transfer == id
    })
}

/// `GET /v1/transfers/{id}/reversals/{id}`.
pub(super) fn retrieve_reversal(ctx: &mut Ctx<'_>, _: &Params) -> Result<Value, ApiError> {
    let transfer = ctx.id().to_owned();
    let id = ctx.ids.get(1).copied().unwrap_or_default();
    let reversal = ctx.data().reversals.find(id)?;
    if reversal.transfer != transfer {
        return Err(ApiError::no_such("transfer reversal", id));
    }
    Ok(reversal.render())
}

/// `POST /v1/transfers/{id}/reversals/{id}`.
pub(super) fn update_reversal(ctx: &mut Ctx<'_>, params: &Params) -> Result<Value, ApiError> {
    let transfer = ctx.id().to_owned();
    let id = ctx.ids.get(1).copied().unwrap_or_default();
    let reversal = ctx.data().reversals.find_mut(id)?;
    if reversal.transfer != transfer {
        return Err(ApiError::no_such("transfer reversal", id));
    }
    reversal.notes.update(params, &[])?;
    Ok(reversal.render())
}

impl Ctx<'_> {
    /// Refuses what the acting account's available balance does not cover.
    pub(super) fn needs_funds(&mut self, amount: i64, currency: &str) -> Result<(), ApiError> {
        let available = self.data().balance.get(currency).copied().unwrap_or(0);
        if available >= amount {
            return Ok(());
        }
        Err(ApiError::state(
            "balance_insufficient",
            format!("You have insufficient available funds in your Stripe account ({available} {currency})."),
        ))
    }

    /// Changes another account's balance.
    fn credit(&mut self, account: &str, amount: i64, currency: &str) {
        let balance = self
            .world
            .account(account)
            .balance
            .entry(currency.to_owned())
            .or_default();
        *balance = balance.saturating_add(amount);
    }
}
