//! What needs no ledger: words, keys, names.

use std::collections::BTreeMap;

use keybrake::policy::{Denial, words};
use keybrake::{Error, Result, idempotency, vendors};
use serde_json::Value;

/// A refusal, as JSON, in words for a language model.
///
/// # Errors
/// When the text is not a refusal.
pub fn for_model(denial: &str) -> Result<String> {
    let denial: Denial = serde_json::from_str(denial)
        .map_err(|e| Error::config("this is not a refusal of Keybrake").because(e))?;
    Ok(words::for_model(&denial))
}

/// SHA-256 over fields (a JSON object), 32 hex digits. Values that are not text count as their JSON.
///
/// # Errors
/// When the text is not a JSON object.
pub fn content_key(fields: &str) -> Result<String> {
    let fields: BTreeMap<String, Value> = serde_json::from_str(fields)
        .map_err(|e| Error::config("the fields must be a mapping by name").because(e))?;
    let texts = fields.into_iter().map(|(name, value)| match value {
        Value::String(text) => (name, text),
        other => (name, other.to_string()),
    });
    Ok(idempotency::content_key(&texts.collect()))
}

/// Names of a vendor's operations.
///
/// # Errors
/// When there is no such vendor.
pub fn operations(vendor: &str) -> Result<Vec<&'static str>> {
    let vendor = vendors::vendor(vendor).ok_or_else(|| Error::config(format!("no vendor {vendor:?}")))?;
    Ok(vendor
        .operations()
        .iter()
        .map(|operation| operation.name)
        .collect())
}
