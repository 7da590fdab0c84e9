//! Customers, and the account's balance.

use serde_json::{Value, json};

use super::error::ApiError;
use super::form::Params;
use super::list;
use super::world::{Ctx, Notes, Record};

/// Fields that are only shown.
const ECHOED: &[&str] = &["address", "preferred_locales", "shipping", "tax_exempt"];

/// A customer.
#[derive(Clone, Debug)]
pub(super) struct Customer {
    pub(super) id: String,
    pub(super) name: Option<String>,
    pub(super) email: Option<String>,
    pub(super) phone: Option<String>,
    pub(super) balance: i64,
    /// What a charge without a source is paid with.
    pub(super) default_method: Option<String>,
    pub(super) deleted: bool,
    pub(super) created: i64,
    pub(super) notes: Notes,
}

impl Record for Customer {
    const NOUN: &'static str = "customer";

    fn id(&self) -> &str {
        &self.id
    }

    fn created(&self) -> i64 {
        self.created
    }

    fn render(&self) -> Value {
        if self.deleted {
            return json!({"id": self.id, "object": "customer", "deleted": true});
        }
        let source = self
            .default_method
            .as_deref()
            .filter(|method| !method.starts_with("pm_"));
        let method = self
            .default_method
            .as_deref()
            .filter(|method| method.starts_with("pm_"));
        let mut object = json!({
            "id": self.id, "object": "customer", "address": null, "balance": self.balance, "created": self.created,
            "currency": null, "default_source": source, "delinquent": false, "discount": null, "email": self.email,
            "invoice_prefix": "SIM00001", "invoice_settings": {"custom_fields": null, "default_payment_method": method,
                "footer": null, "rendering_options": null},
            "livemode": false, "name": self.name, "next_invoice_sequence": 1, "phone": self.phone,
            "preferred_locales": [], "shipping": null, "tax_exempt": "none", "test_clock": null,
        });
        self.notes.show(&mut object);
        object
    }
}

impl Customer {
    fn update(&mut self, params: &Params) -> Result<(), ApiError> {
        let mut new = self.clone();
        for (name, field) in [
            ("name", &mut new.name),
            ("email", &mut new.email),
            ("phone", &mut new.phone),
        ] {
            if params.has(name) {
                *field = params.text(name)?.map(str::to_owned);
            }
        }
        if let Some(balance) = params.integer("balance")? {
            new.balance = balance;
        }
        for name in ["source", "default_source", "payment_method"] {
            if let Some(method) = params.text(name)? {
                new.default_method = Some(method.to_owned());
            }
        }
        if let Some(method) = params.nested("invoice_settings", "default_payment_method") {
            new.default_method = Some(method.to_owned()).filter(|method| !method.is_empty());
        }
        new.notes.update(params, ECHOED)?;
        *self = new;
        Ok(())
    }
}

/// `POST /v1/customers`.
pub(super) fn create(ctx: &mut Ctx<'_>, params: &Params) -> Result<Value, ApiError> {
    let mut customer = Customer {
        id: ctx.world.ids.short("cus"),
        name: None,
        email: None,
        phone: None,
        balance: 0,
        default_method: None,
        deleted: false,
        created: ctx.now(),
        notes: Notes::default(),
    };
    customer.update(params)?;
    let object = customer.render();
    ctx.data().customers.insert(customer);
    Ok(object)
}

/// `GET /v1/customers/{id}`; a deleted one answers as such.
pub(super) fn retrieve(ctx: &mut Ctx<'_>, _: &Params) -> Result<Value, ApiError> {
    Ok(ctx.named(|data| &mut data.customers)?.render())
}

/// `POST /v1/customers/{id}`.
pub(super) fn update(ctx: &mut Ctx<'_>, params: &Params) -> Result<Value, ApiError> {
    let id = ctx.id().to_owned();
    let customer = ctx.data().customers.find_mut(&id)?;
    if customer.deleted {
        return Err(ApiError::no_such("customer", &id));
    }
    customer.update(params)?;
    Ok(customer.render())
}

/// `DELETE /v1/customers/{id}`.
pub(super) fn delete(ctx: &mut Ctx<'_>, _: &Params) -> Result<Value, ApiError> {
    let id = ctx.id().to_owned();
    let customer = ctx.data().customers.find_mut(&id)?;
    if customer.deleted {
        return Err(ApiError::no_such("customer", &id));
    }
    customer.deleted = true;
    Ok(customer.render())
}

/// `GET /v1/customers`.
pub(super) fn list(ctx: &mut Ctx<'_>, params: &Params) -> Result<Value, ApiError> {
    let email = params.text("email")?;
    list::page(&ctx.data().customers, params, "/v1/customers", |customer| {
        !customer.deleted && email.is_none_or(|email| customer.email.as_deref() == Some(email))
    })
}

/// `GET /v1/balance`.
#[expect(clippy::unnecessary_wraps, reason = "every handler has this form")]
pub(super) fn balance(ctx: &mut Ctx<'_>, _: &Params) -> Result<Value, ApiError> {
    let data = ctx.data();
    let mut available: Vec<Value> = data
        .balance
        .iter()
        .map(|(currency, amount)| json!({"amount": amount, "currency": currency, "source_types": {"card": amount}}))
        .collect();
    if available.is_empty() {
        available.push(json!({"amount": 0, "currency": "usd", "source_types": {"card": 0}}));
    }
    let pending: Vec<Value> = available
        .iter()
        .map(|row| json!({"amount": 0, "currency": row.get("currency"), "source_types": {"card": 0}}))
        .collect();
    Ok(json!({"object": "balance", "available": available, "livemode": false, "pending": pending}))
}

/// `GET /v1/balance_transactions/{id}`.
pub(super) fn transaction(ctx: &mut Ctx<'_>, _: &Params) -> Result<Value, ApiError> {
    Ok(ctx.named(|data| &mut data.transactions)?.render())
}

/// `GET /v1/balance_transactions`.
pub(super) fn transactions(ctx: &mut Ctx<'_>, params: &Params) -> Result<Value, ApiError> {
    let kind = params.text("type")?;
    let source = params.text("source")?;
    let currency = params.text("currency")?;
    list::page(
        &ctx.data().transactions,
        params,
        "/v1/balance_transactions",
        |row| {
            kind.is_none_or(|word| row.kind == word)
                && source.is_none_or(|id| row.source == id)
                && currency.is_none_or(|code| row.currency.eq_ignore_ascii_case(code))
        },
    )
}
