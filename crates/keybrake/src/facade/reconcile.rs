//! Finding out what became of unknown calls by reading the vendor. Never sends a write.

use serde::Serialize;

use super::Keybrake;
use crate::brake::{CachedKey, Prepared};
use crate::error::{Error, ErrorKind, Result};
use crate::idempotency;
use crate::ledger::{HoldFilter, Reservation, State};
use crate::vendors::{self, Finding, Inquiry, Reply, Unresolved, Vendor};

/// Absence is proof only so long after the last moment at which an attempt can have run.
const MARGIN_MS: i64 = 60 * 60 * 1_000;
/// The vendor's clock (its replies' `Date`) may differ from the ledger's by so much; beyond it a listing by time may
/// have missed the call, and absence proves nothing. Less than the slack that listings reach further.
const CLOCKS_AGREE_MS: i64 = 4 * 60 * 1_000;
/// Pages of one listing that are read before the answer is "unclear".
const MOST_PAGES: u32 = 200;

/// What reconciliation found out about one call.
#[derive(Clone, Debug, Serialize)]
pub struct Reconciled {
    /// The call.
    pub call_id: String,
    /// Its vendor.
    pub vendor: String,
    /// Its operation.
    pub operation: String,
    /// Its run.
    pub run: Option<String>,
    /// What it held, in micro-USD.
    pub held_micros: i64,
    /// What was found.
    pub resolution: Resolution,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", content = "detail", rename_all = "snake_case")]
pub enum Resolution {
    /// The vendor has it; recorded, with the state it led to.
    Found(String),
    /// A complete listing does not have it; the hold is over.
    Absent,
    /// Not yet provable; when to ask again, or what is missing.
    Open(String),
}

impl Keybrake {
    /// Asks the vendors about every hold whose outcome is unknown, then about the pending ones, then about every call
    /// whose cost may still change (a payout that was accepted can fail); of these last it answers the ones that did
    /// change. Of the filter, a limit of 0 means all of them. `progress` hears (done, all).
    ///
    /// # Errors
    /// `LedgerUnavailable`, `LedgerRecovering`. Whatever else is wrong with one call (its vendor cannot be read, its secret
    /// is not here) leaves that call open, with the reason, and the others are asked about.
    pub async fn reconcile(
        &self,
        filter: HoldFilter,
        progress: impl Fn(usize, usize),
    ) -> Result<Vec<Reconciled>> {
        // What is known on this machine need not be asked of a vendor.
        self.deliver_outcomes().await?;
        let due = self.due(filter).await?;
        let mut found = Vec::new();
        for (done, call_id) in due.iter().enumerate() {
            progress(done, due.len());
            // As it stands now: since the list was made, another may have found out.
            let Some(hold) = self.ledger().reservation(call_id).await? else {
                continue;
            };
            if !is_due(&hold) {
                continue;
            }
            let resolution = match self.ask(&hold).await {
                Err(error) if !is_of_the_ledger(&error) => Resolution::Open(error.to_string()),
                asked => asked?,
            };
            let unchanged = Resolution::Found(State::Provisional.as_str().to_owned());
            if hold.state == State::Provisional && resolution == unchanged {
                continue;
            }
            found.push(Reconciled {
                call_id: hold.facts.call_id.clone(),
                vendor: hold.facts.vendor.clone().unwrap_or_default(),
                operation: hold.facts.operation.clone(),
                run: hold.facts.run.clone(),
                held_micros: hold.held.micros(),
                resolution,
            });
        }
        progress(due.len(), due.len());
        Ok(found)
    }

    /// The calls to ask about: first those of which nobody knows anything.
    async fn due(&self, filter: HoldFilter) -> Result<Vec<String>> {
        let most = match filter.limit {
            0 => usize::MAX,
            limit => usize::try_from(limit).unwrap_or(usize::MAX),
        };
        let states = [State::Unknown, State::Pending, State::Provisional];
        let mut due = Vec::new();
        for state in states {
            if filter.state.is_some_and(|only| only != state) {
                continue;
            }
            let one = HoldFilter {
                state: Some(state),
                limit: u32::MAX,
                ..filter.clone()
            };
            let listed = self.ledger().holds(one).await?;
            due.extend(listed.into_iter().map(|hold| hold.facts.call_id.clone()));
        }
        due.truncate(most);
        Ok(due)
    }

    async fn ask(&self, hold: &Reservation) -> Result<Resolution> {
        let Some(vendor) = hold.facts.vendor.as_deref().and_then(vendors::vendor) else {
            return Ok(Resolution::Open("its vendor is not known".to_owned()));
        };
        let record = match &hold.facts.key_id {
            Some(id) => self.ledger().key(id).await?,
            None => None,
        };
        let Some(key) = record.and_then(|record| CachedKey::compile(record).ok()) else {
            return Ok(Resolution::Open(
                "the key it was made with is not known".to_owned(),
            ));
        };
        let tag = self.tag(hold);
        let (ids, fields) = split_fields(hold);
        let unresolved = Unresolved {
            operation: &hold.facts.operation,
            ids: &ids,
            fields: &fields,
            pins: &hold.pins,
            object: hold
                .reply_facts
                .vendor_object
                .as_deref()
                .or_else(|| tracked(hold)),
            tag: tag.as_deref(),
            reserved_at_ms: hold.reserved_at_ms,
            not_after_ms: hold.not_after_ms,
        };
        // Absence is judged by the time before the first page: what came later was not looked for.
        let before_ms = self.ledger().info().await?.now_ms;
        let (finding, vendor_ms) = match self.inquire(vendor, &key, hold, &unresolved).await? {
            Ok(found) => found,
            Err(reason) => return Ok(Resolution::Open(reason)),
        };
        match finding {
            Finding::Found(reading) => {
                let answer = self.brake().settle_found(hold, &key, vendor, &reading).await?;
                Ok(Resolution::Found(answer.state.as_str().to_owned()))
            }
            Finding::Absent => self.absent(vendor, &key, hold, (before_ms, vendor_ms)).await,
            Finding::Unclear(reason) => Ok(Resolution::Open(reason)),
            Finding::Next(_) => Ok(Resolution::Open(
                "the listing is too long to be complete".to_owned(),
            )),
        }
    }

    /// Reads pages until one settles it; answers also the vendor's time.
    async fn inquire(
        &self,
        vendor: &'static dyn Vendor,
        key: &CachedKey,
        hold: &Reservation,
        unresolved: &Unresolved<'_>,
    ) -> Result<Result<(Finding, Option<i64>), String>> {
        let credential = self
            .brake()
            .credentials()
            .of(vendor, key.secret_name(vendor.name()))?;
        if credential.livemode != hold.facts.livemode {
            let (ours, its) = if hold.facts.livemode {
                ("test", "live")
            } else {
                ("live", "test")
            };
            return Ok(Err(format!(
                "it was made with a {its}-mode secret, and this process has a {ours}-mode one"
            )));
        }
        let mut path = match vendor.inquiry(unresolved) {
            Inquiry::Object { path } | Inquiry::Listing { path } => path,
            Inquiry::None => {
                return Ok(Err(
                    "this vendor cannot be asked about it; resolve it by hand: keybrake holds resolve"
                        .to_owned(),
                ));
            }
        };
        for _ in 0..MOST_PAGES {
            let request =
                Prepared::inquiry(self.brake(), vendor, key.secret_name(vendor.name()), hold, &path)?;
            let reply = match self.shell().read(&request).await {
                Ok(reply) => reply,
                Err(reason) => return Ok(Err(format!("the vendor did not answer: {reason}"))),
            };
            match vendor.finding(unresolved, &reply) {
                Finding::Next(next) => path = next,
                settled => return Ok(Ok((settled, date_ms(&reply)))),
            }
        }
        Ok(Ok((Finding::Next(path), None)))
    }

    /// Absence is proof only after the deadline and a margin; on a loopback base with a test-mode secret, at the
    /// deadline.
    async fn absent(
        &self,
        vendor: &'static dyn Vendor,
        key: &CachedKey,
        hold: &Reservation,
        (now_ms, vendor_ms): (i64, Option<i64>),
    ) -> Result<Resolution> {
        let simulated = self.brake().credentials().base_url(vendor.name()).is_some() && !hold.facts.livemode;
        let from = hold
            .not_after_ms
            .saturating_add(if simulated { 0 } else { MARGIN_MS });
        let apart_ms = vendor_ms.map(|vendor_ms| vendor_ms.saturating_sub(now_ms).saturating_abs());
        if apart_ms.is_none_or(|apart_ms| apart_ms > CLOCKS_AGREE_MS) {
            return Ok(Resolution::Open(
                "not in the listing, but the vendor's clock and ours are more than four minutes apart, or its reply has no \
                 date: set the machine's clock and ask again"
                    .to_owned(),
            ));
        }
        if now_ms < from || hold.state != State::Unknown {
            let seconds = from.saturating_sub(now_ms).max(0).checked_div(1_000).unwrap_or(0);
            return Ok(Resolution::Open(format!(
                "not at the vendor so far; provable in {seconds} s"
            )));
        }
        let evidence = format!(
            "complete listing with the secret {}, read at {now_ms}",
            key.secret_name(vendor.name()).unwrap_or("default")
        );
        match self.brake().settle_absent(hold, evidence).await {
            Ok(_) => Ok(Resolution::Absent),
            // It was tried again meanwhile; the others are still asked about.
            Err(error) => Ok(Resolution::Open(error.to_string())),
        }
    }

    /// Our tag, if the request carried one: a pure function of the sent key.
    fn tag(&self, hold: &Reservation) -> Option<String> {
        let identity = hold.identity.as_ref()?;
        if identity.caller_key.is_some() {
            return None;
        }
        Some(idempotency::tag(
            &self.brake().keys().vendor_key(&identity.id, hold.generation),
        ))
    }
}

fn is_due(hold: &Reservation) -> bool {
    matches!(hold.state, State::Unknown | State::Pending | State::Provisional)
}

/// Whether nothing more can be asked, whichever call it is about.
const fn is_of_the_ledger(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::LedgerUnavailable | ErrorKind::LedgerRecovering
    )
}

/// The vendor's id of the object whose exposure a call has raised.
fn tracked(hold: &Reservation) -> Option<&str> {
    hold.object.as_deref()?.rsplit('|').next()
}

/// A reply's `Date`, Unix milliseconds.
fn date_ms(reply: &Reply) -> Option<i64> {
    let date = jiff::fmt::rfc2822::parse(reply.header("date")?).ok()?;
    Some(date.timestamp().as_millisecond())
}

/// Path ids and body fields, as the identity keeps them.
fn split_fields(hold: &Reservation) -> (Vec<String>, Vec<(String, String)>) {
    let all = hold
        .identity
        .as_ref()
        .map(|identity| identity.fields.clone())
        .unwrap_or_default();
    let (mut ids, fields): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|(name, _)| name.starts_with("path."));
    ids.sort();
    (ids.into_iter().map(|(_, id)| id).collect(), fields)
}
