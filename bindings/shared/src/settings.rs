//! The settings of an engine, as a host gives them, kept for children after a fork.

use std::collections::BTreeMap;

use keybrake::secret::Secret;
use keybrake::{Error, Keybrake, Result};
use serde::Deserialize;

/// Ledger, secrets and base URLs.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    ledger: Option<String>,
    secrets: BTreeMap<String, Source>,
    base_urls: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Source {
    Env(String),
    File(String),
    Value(String),
}

impl std::fmt::Debug for Settings {
    /// Shows no secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings").finish_non_exhaustive()
    }
}

impl Settings {
    /// Reads them: `ledger`, `secrets` (by vendor, or `vendor:name`), `base_urls` (by vendor).
    ///
    /// # Errors
    /// When the text is no such object. The message quotes nothing of it: it may hold a secret.
    pub fn parse(json: &str) -> Result<Self> {
        // The text may hold a secret, so the parser's message, which may quote it, is not passed on.
        serde_json::from_str(json).map_err(|_| Error::config("the settings could not be read"))
    }

    /// Opens the ledger. `stripe:connect` in `secrets` is the secret named `connect` of the vendor `stripe`.
    ///
    /// # Errors
    /// As `Keybrake::builder().build()`.
    pub async fn open(&self) -> Result<Keybrake> {
        let mut builder = Keybrake::builder();
        if let Some(url) = &self.ledger {
            builder = builder.ledger(url);
        }
        for (place, source) in &self.secrets {
            let secret = match source {
                Source::Env(name) => Secret::env(name),
                Source::File(path) => Secret::file(path),
                Source::Value(text) => Secret::value(text),
            };
            builder = match place.split_once(':') {
                Some((vendor, name)) => builder.named_secret(vendor, name, secret),
                None => builder.secret(place, secret),
            };
        }
        for (vendor, url) in &self.base_urls {
            builder = builder.base_url(vendor, url);
        }
        builder.build().await
    }

    /// Whether the ledger lives in this process's memory only, so that a child would have its own.
    pub fn in_memory(&self) -> bool {
        self.ledger
            .as_deref()
            .is_some_and(|url| url.starts_with("memory:"))
    }
}
