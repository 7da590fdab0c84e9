//! Seals: a keyed hash of each event and each record, made with the ledger's secret when it is drained. What is restored was
//! written by a drainer of this ledger, and by nobody else.

use std::collections::BTreeMap;

use super::Archive;
use super::database::{Row, Statement};
use super::store::LogName;
use crate::error::Result;
use crate::ledger::LedgerSecret;
use crate::ledger::shared::keyed;

/// Rows read at a time.
const PAGE: usize = 5_000;
/// Names that are told.
const MOST: usize = 100;

/// Makes the seals of one log.
#[derive(Debug)]
pub(super) struct Sealer<'a> {
    secret: &'a LedgerSecret,
    log: &'a LogName,
}

impl<'a> Sealer<'a> {
    pub(super) const fn new(secret: &'a LedgerSecret, log: &'a LogName) -> Self {
        Self { secret, log }
    }

    /// The seal of a row: what stands in its columns, in order.
    pub(super) fn of(&self, columns: &[&str]) -> Result<String> {
        // Each text with its length before it, so that no two rows read the same.
        let mut bytes = Vec::with_capacity(1_024);
        for text in [self.log.ledger.as_str(), self.log.namespace.as_str()]
            .iter()
            .chain(columns)
        {
            bytes.extend_from_slice(&u64::try_from(text.len()).unwrap_or(u64::MAX).to_be_bytes());
            bytes.extend_from_slice(text.as_bytes());
        }
        keyed(&self.secret.0, &[b"keybrake archive seal v1".as_slice(), &bytes])
    }

    /// Of an event: by its numbers, what it is found by, and what it says.
    pub(super) fn of_event(
        &self,
        (n, seq): (u64, u64),
        kind: &str,
        call_id: &str,
        value: &str,
    ) -> Result<String> {
        self.of(&["event", &n.to_string(), &seq.to_string(), kind, call_id, value])
    }

    /// Of a record: one that was replaced by a later one has another number, so it is not taken for that.
    pub(super) fn of_record(&self, kind: &str, name: &str, n: u64, value: &str) -> Result<String> {
        // What was known of a call that was lost is what was drained of it.
        let kind = if kind == "lost_call" { "call" } else { kind };
        self.of(&[kind, name, &n.to_string(), value])
    }
}

impl Archive {
    /// What in a log was not written by a drainer of its ledger, by name; at most 100.
    pub(super) async fn altered(&self, log: i64, sealer: &Sealer<'_>) -> Result<Vec<String>> {
        let mut altered = Vec::new();
        let mut after = i64::MIN;
        while altered.len() < MOST {
            let page = Statement::new(
                format!(
                    "SELECT n, seq, kind, call_id, value, seal FROM keybrake_event WHERE log = $1 AND n > $2 ORDER BY n \
                     LIMIT {PAGE}"
                ),
                [log.into(), after.into()],
            );
            let found = self.database.rows(page).await?;
            let full = found.len() == PAGE;
            for mut row in found {
                let (n, seq) = (row.int()?, row.int()?);
                after = n;
                let (kind, call_id, value) = (row.text()?, row.text()?, row.text()?);
                // No drainer counts downwards.
                let numbers = u64::try_from(n).ok().zip(u64::try_from(seq).ok());
                let seal = numbers.map(|numbers| sealer.of_event(numbers, &kind, &call_id, &value));
                if Some(row.text()?) != seal.transpose()? {
                    altered.push(format!("event {n}"));
                }
            }
            if !full {
                break;
            }
        }
        let mut after = (String::new(), String::new());
        while altered.len() < MOST {
            let page = Statement::new(
                format!(
                    "SELECT kind, name, n, value, seal FROM keybrake_record WHERE log = $1 AND (kind, name) > ($2, $3) \
                     ORDER BY kind, name LIMIT {PAGE}"
                ),
                [log.into(), after.0.as_str().into(), after.1.as_str().into()],
            );
            let found = self.database.rows(page).await?;
            let full = found.len() == PAGE;
            for mut row in found {
                let (kind, name, n) = (row.text()?, row.text()?, row.int()?);
                let (value, seal) = (row.text()?, row.text()?);
                // The one by which the secret is known again is compared itself.
                let own = u64::try_from(n).map(|n| sealer.of_record(&kind, &name, n, &value));
                if kind != super::store::BINDING && Some(seal) != own.ok().transpose()? {
                    altered.push(format!("{kind} {name}"));
                }
                after = (kind, name);
            }
            if !full {
                break;
            }
        }
        altered.truncate(MOST);
        Ok(altered)
    }

    /// Those of these calls whose record is older than their last event: it is not what that left.
    pub(crate) async fn outdated(&self, log: i64, ids: &[String]) -> Result<Vec<String>> {
        let (places, values) = super::again::listed(log, ids);
        let events = Statement::new(
            format!(
                "SELECT call_id, MAX(n) FROM keybrake_event WHERE log = $1 AND call_id IN ({places}) AND lost < 2 AND {} \
                 GROUP BY call_id",
                super::again::OF_CALLS
            ),
            values.clone(),
        );
        let records = Statement::new(
            format!(
                "SELECT name, MAX(n) FROM keybrake_record WHERE log = $1 AND name IN ({places}) AND kind IN ('call', \
                 'lost_call') GROUP BY name"
            ),
            values,
        );
        let by_name = |rows: Vec<Row>| -> Result<BTreeMap<String, u64>> {
            let pair = |mut row: Row| Ok((row.text()?, row.count()?));
            rows.into_iter().map(pair).collect()
        };
        let events = by_name(self.database.rows(events).await?)?;
        let records = by_name(self.database.rows(records).await?)?;
        let outdated = events
            .into_iter()
            .filter(|(call, n)| records.get(call).is_some_and(|known| known < n));
        Ok(outdated.map(|(call, _)| call).collect())
    }
}
