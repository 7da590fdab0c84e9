//! Outcomes that wait on this machine for the ledger.

use std::collections::BTreeSet;

use keybrake::config;
use keybrake::journal::{Contents, Delivery, Journal};
use keybrake::ledger::Ledger;

use crate::context::Context;
use crate::failure::Failure;

/// The calls whose outcome waits here. A journal that cannot be read is told on the error stream.
pub(crate) async fn waiting_calls(
    context: &mut Context<'_>,
    ledger: &dyn Ledger,
) -> Result<BTreeSet<String>, Failure> {
    let found = match of(ledger).await {
        Ok(Some(journal)) => journal.contents(),
        Ok(None) => return Ok(BTreeSet::new()),
        Err(error) => Err(error),
    };
    match found {
        Ok(contents) => Ok(contents.waiting.into_iter().map(|entry| entry.call_id).collect()),
        Err(error) => {
            let shown = keybrake::audit::printable(&error.to_string());
            writeln!(context.io.err, "the journal of waiting outcomes: {shown}")?;
            Ok(BTreeSet::new())
        }
    }
}

/// Delivers what waits for this ledger; what was done, and what stands there now. `None` for a ledger without a journal.
pub(crate) async fn deliver(ledger: &dyn Ledger) -> keybrake::Result<Option<(Delivery, Contents)>> {
    let Some(journal) = of(ledger).await? else {
        return Ok(None);
    };
    let delivery = journal.deliver(ledger).await?;
    Ok(Some((delivery, journal.contents()?)))
}

/// What waits for any ledger.
pub(crate) fn all() -> keybrake::Result<Vec<Contents>> {
    match config::journal_dir() {
        Some(base) => Journal::all(&base)?.iter().map(Journal::contents).collect(),
        None => Ok(Vec::new()),
    }
}

async fn of(ledger: &dyn Ledger) -> keybrake::Result<Option<Journal>> {
    match config::journal_dir() {
        Some(base) => Journal::of(ledger, &base).await,
        None => Ok(None),
    }
}
