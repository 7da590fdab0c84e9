//! A handle on a vault key: a client that is governed by it, what it spent, and its end.

use std::time::Duration;

use super::{IssuedKey, Keybrake};
use crate::client::Enforcement;
use crate::error::{Error, Result};
use crate::ledger::{AdminNote, BudgetUsage, KeyRecord, Unit};
use crate::money::Usd;
use crate::token::Token;

/// A key in use. Dropping it releases no money and revokes nothing; [`Run::close`] does.
#[derive(Debug)]
pub struct Run {
    keybrake: Keybrake,
    token: Token,
    record: KeyRecord,
    revoke_on_close: bool,
    closed: bool,
}

impl Run {
    pub(super) fn issued(keybrake: Keybrake, key: IssuedKey, record: KeyRecord) -> Self {
        Self {
            keybrake,
            token: key.token,
            record,
            revoke_on_close: true,
            closed: false,
        }
    }

    pub(super) async fn of_token(keybrake: Keybrake, text: &str) -> Result<Self> {
        let brake = keybrake.brake();
        let token = Token::parse(text, brake.ledger_tag()).map_err(|reason| {
            Error::policy(format!(
                "this is no vault key of this ledger ({reason:?}); it is not shown here"
            ))
        })?;
        let hash = brake.keys().token_hash(token.expose());
        let record = keybrake
            .ledger()
            .key_by_token(&hash)
            .await?
            .ok_or_else(|| Error::not_found("the ledger does not know this vault key"))?;
        Ok(Self {
            keybrake,
            token,
            record,
            revoke_on_close: false,
            closed: false,
        })
    }

    /// The key itself: give it where the vendor's API key goes.
    pub const fn token(&self) -> &Token {
        &self.token
    }

    /// The key's id.
    pub fn key_id(&self) -> &str {
        &self.record.id
    }

    /// The run it is bound to.
    pub fn id(&self) -> Option<&str> {
        self.record.run.as_deref()
    }

    /// When the key ends, Unix milliseconds.
    pub const fn expires_at_ms(&self) -> i64 {
        self.record.expires_at_ms
    }

    /// The middleware that enforces this key, for a client of your own.
    pub fn enforcement(&self) -> Enforcement {
        Enforcement::new(std::sync::Arc::clone(self.keybrake.shell())).with_token(self.token.clone())
    }

    /// A client whose every call is governed by this key. Put `reqwest-retry` outside it.
    ///
    /// # Errors
    /// `Config` when no HTTP client can be made on this machine.
    pub fn client(&self) -> Result<reqwest_middleware::ClientWithMiddleware> {
        self.client_with_wait(Duration::ZERO)
    }

    /// As [`Run::client`]; a `cap_held` refusal is waited out for so long.
    ///
    /// # Errors
    /// As [`Run::client`].
    pub fn client_with_wait(&self, wait: Duration) -> Result<reqwest_middleware::ClientWithMiddleware> {
        let inner = crate::client::base_client()?;
        Ok(reqwest_middleware::ClientBuilder::new(inner)
            .with(self.enforcement().with_wait(wait))
            .build())
    }

    /// The budgets this key draws on, as they stand.
    ///
    /// # Errors
    /// `LedgerUnavailable`.
    pub async fn usage(&self) -> Result<Vec<BudgetUsage>> {
        self.keybrake.usage(&self.record.id).await
    }

    /// What can still be spent: the tightest of its dollar budgets; `None` without one.
    ///
    /// # Errors
    /// `LedgerUnavailable`.
    pub async fn remaining(&self) -> Result<Option<Usd>> {
        let usage = self.usage().await?;
        let left = usage
            .iter()
            .filter(|budget| budget.def.unit == Unit::Usd)
            .map(|budget| budget.view.remaining());
        Ok(left.min().map(Usd::from_micros))
    }

    /// Used and held in the tightest of its dollar budgets, with its cap; `None` without one.
    ///
    /// # Errors
    /// `LedgerUnavailable`.
    pub async fn spent(&self) -> Result<Option<(Usd, Usd)>> {
        let usage = self.usage().await?;
        let dollars = usage.iter().filter(|budget| budget.def.unit == Unit::Usd);
        let tightest = dollars.min_by_key(|budget| budget.view.remaining());
        Ok(tightest.map(|budget| {
            let spent = budget.view.used.saturating_add(budget.view.held);
            (Usd::from_micros(spent), Usd::from_micros(budget.view.cap))
        }))
    }

    /// Lets the key live on without this handle, for a shell that keeps the token and closes the run by itself.
    pub fn leave_open(mut self) {
        self.closed = true;
    }

    /// Ends the run: revokes the key if opening issued it. Open holds stay until they are proven.
    ///
    /// # Errors
    /// `LedgerUnavailable`.
    pub async fn close(mut self) -> Result<()> {
        self.closed = true;
        if self.revoke_on_close {
            let admin = AdminNote {
                by: "run".to_owned(),
                reason: "closed".to_owned(),
            };
            self.keybrake.revoke(&self.record.id, admin).await?;
        }
        Ok(())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if !self.closed && self.revoke_on_close {
            tracing::warn!(key = %self.record.id, "a run was dropped without close(); its key lives until it expires");
        }
    }
}
