//! `expand[]`: puts objects where their ids stand.

use serde_json::Value;

use super::form::Params;
use super::list;
use super::world::{Account, Record};

/// Expands one path, such as `latest_charge.balance_transaction` or `data.charge`. What cannot be expanded stays.
pub(super) fn expand(account: &Account, value: &mut Value, path: &str) {
    let (field, rest) = match path.split_once('.') {
        Some((field, rest)) => (field, Some(rest)),
        None => (path, None),
    };
    if let Value::Array(items) = value {
        for item in items {
            expand(account, item, path);
        }
        return;
    }
    if field == "refunds" && value.get("object").is_some_and(|kind| kind == "charge") {
        add_refunds(account, value);
    }
    let Some(child) = value.get_mut(field) else {
        return;
    };
    if let Value::String(id) = child
        && let Some(object) = find(account, id)
    {
        *child = object;
    }
    if let Some(rest) = rest {
        expand(account, child, rest);
    }
}

/// An object of the account by its id, whatever its kind.
pub(super) fn find(account: &Account, id: &str) -> Option<Value> {
    fn show<T: Record>(object: Option<&T>) -> Option<Value> {
        object.map(Record::render)
    }
    let (prefix, _) = id.split_once('_')?;
    match prefix {
        "ch" => show(account.charges.get(id)),
        "pi" => show(account.intents.get(id)),
        "re" => show(account.refunds.get(id)),
        "tr" => show(account.transfers.get(id)),
        "trr" => show(account.reversals.get(id)),
        "po" => show(account.payouts.get(id)),
        "tu" => show(account.topups.get(id)),
        "cus" => show(account.customers.get(id)),
        "file" => show(account.files.get(id)),
        "txn" => show(account.transactions.get(id)),
        _ => None,
    }
}

/// A charge's refunds are shown only when asked for.
fn add_refunds(account: &Account, charge: &mut Value) {
    let id = charge
        .get("id")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    let url = format!("/v1/charges/{id}/refunds");
    let page = list::page(&account.refunds, &Params::default(), &url, |refund| {
        refund.charge == id
    });
    if let (Ok(page), Value::Object(fields)) = (page, charge) {
        fields.insert("refunds".to_owned(), page);
    }
}
