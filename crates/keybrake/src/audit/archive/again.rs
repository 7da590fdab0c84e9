//! What a ledger that lost some of its log is told again.

use super::Archive;
use super::database::{Row, Statement, Value};
use super::store::{BINDING, LogState, parse};
use crate::error::Result;
use crate::ledger::{Event, Reservation};

/// Events of calls, as against those of acts and of calls that held nothing.
pub(super) const OF_CALLS: &str = "call_id <> '' AND kind NOT IN ('admin', 'denied', 'replayed')";
/// Those that the ledger does not have: after the last one in common, or lost before and not told again.
const LACKED: &str = "((seq > $2 AND lost = 0) OR lost = 1)";

/// An event, and whether it is of the ledger's present log.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pub(crate) event: Event,
    pub(crate) present: bool,
}

impl Archive {
    /// What the ledger's secret is known by again; `None` when it was drained by a version that did not keep it.
    pub(crate) async fn binding(&self, log: i64) -> Result<Option<String>> {
        let one = Statement::new(
            "SELECT value FROM keybrake_record WHERE log = $1 AND kind = $2",
            [log.into(), BINDING.into()],
        );
        let found = self.database.rows(one).await?;
        found.into_iter().next().map(|mut row| row.text()).transpose()
    }

    /// The first event of the ledger's present log that has this number or a later one.
    pub(crate) async fn event_from(&self, state: &LogState, seq: u64) -> Result<Option<Event>> {
        let one = Statement::new(
            "SELECT value FROM keybrake_event WHERE log = $1 AND seq >= $2 AND lost = 0 ORDER BY seq LIMIT 1",
            [state.log.into(), seq.into()],
        );
        let found = self.database.rows(one).await?;
        found
            .into_iter()
            .next()
            .map(|mut row| parse(&row.text()?))
            .transpose()
    }

    /// Calls with events that the ledger does not have, in the order of their ids.
    pub(crate) async fn lacked(
        &self,
        log: i64,
        common: u64,
        after: &str,
        limit: usize,
    ) -> Result<Vec<String>> {
        let page = Statement::new(
            format!(
                "SELECT DISTINCT call_id FROM keybrake_event WHERE log = $1 AND {LACKED} AND {OF_CALLS} AND call_id > $3
                 ORDER BY call_id LIMIT {limit}"
            ),
            [log.into(), common.into(), after.into()],
        );
        let found = self.database.rows(page).await?;
        found.into_iter().map(|mut row| row.text()).collect()
    }

    /// What is known of these calls: as it was before the ledger lost it, and as it was drained last.
    pub(crate) async fn known_calls(&self, log: i64, ids: &[String]) -> Result<Vec<Reservation>> {
        let (places, values) = listed(log, ids);
        let all = Statement::new(
            format!(
                "SELECT value FROM keybrake_record WHERE log = $1 AND kind IN ('call', 'lost_call') AND name IN ({places})
                 ORDER BY name, kind DESC"
            ),
            values,
        );
        let found = self.database.rows(all).await?;
        found.into_iter().map(|mut row| parse(&row.text()?)).collect()
    }

    /// All events of these calls, but for lost ones that were told again.
    pub(crate) async fn events_of(&self, log: i64, ids: &[String]) -> Result<Vec<Kept>> {
        let (places, values) = listed(log, ids);
        let all = Statement::new(
            format!(
                "SELECT lost, value FROM keybrake_event WHERE log = $1 AND call_id IN ({places}) AND lost < 2 ORDER BY n"
            ),
            values,
        );
        let found = self.database.rows(all).await?;
        found
            .into_iter()
            .map(|row| kept(row).map(|(kept, _)| kept))
            .collect()
    }

    /// Administrative acts, in order. `after` is the archive's number of the last one of the page before; answered with
    /// them.
    pub(crate) async fn acts(&self, log: i64, after: u64, limit: u32) -> Result<(Vec<Kept>, Option<u64>)> {
        let page = Statement::new(
            format!(
                "SELECT lost, value, n FROM keybrake_event WHERE log = $1 AND n > $2 AND kind = 'admin' AND lost < 2
                 ORDER BY n LIMIT {limit}"
            ),
            [log.into(), after.into()],
        );
        let found = self.database.rows(page).await?;
        let mut last = None;
        let mut acts = Vec::with_capacity(found.len());
        for row in found {
            let (act, mut row) = kept(row)?;
            acts.push(act);
            last = Some(row.count()?);
        }
        Ok((acts, last))
    }
}

fn kept(mut row: Row) -> Result<(Kept, Row)> {
    let present = row.int()? == 0;
    let event = parse(&row.text()?)?;
    Ok((Kept { event, present }, row))
}

/// A list of values for `IN`, after the log.
pub(super) fn listed(log: i64, ids: &[String]) -> (String, Vec<Value>) {
    let mut values: Vec<Value> = vec![log.into()];
    let mut places = Vec::with_capacity(ids.len());
    for id in ids {
        values.push(id.as_str().into());
        places.push(format!("${}", values.len()));
    }
    (places.join(","), values)
}
