//! Where a question about the past is answered from: the ledger, an archive, or both as one log.

use std::sync::Arc;

use keybrake::audit::archive::LogState;
use keybrake::audit::{Archive, ArchivedLog, Audit, Log as _};
use keybrake::ledger::{Event, EventFilter, KeyRecord, Stop};

use crate::args::FromArgs;
use crate::context::{Context, Open};
use crate::failure::Failure;
use crate::show::{count, time};

/// What answers.
pub(crate) enum Reading {
    /// The ledger has its whole log, or nobody knows of an archive.
    Ledger(Open),
    /// An archive alone; the present, Unix milliseconds.
    Archive(ArchivedLog, i64),
    /// The log was trimmed: an archive has its beginning.
    Both(Open, ArchivedLog),
}

impl Reading {
    pub(crate) fn audit(&self) -> Audit<'_> {
        match self {
            Self::Ledger(open) => Audit::new(open.ledger.as_ref()),
            Self::Archive(log, _) | Self::Both(_, log) => Audit::of(log),
        }
    }

    pub(crate) async fn events(&self, filter: EventFilter) -> Result<Vec<Event>, Failure> {
        Ok(match self {
            Self::Ledger(open) => open.ledger.events(filter).await?,
            Self::Archive(log, _) | Self::Both(_, log) => log.events(filter).await?,
        })
    }

    /// All keys, in the archive as they were when it was drained last.
    pub(crate) async fn keys(&self) -> Result<Vec<KeyRecord>, Failure> {
        Ok(match self {
            Self::Ledger(open) | Self::Both(open, _) => open.ledger.keys().await?,
            Self::Archive(log, _) => log.archive().keys(log.state().await?.log).await?,
        })
    }

    /// Standing stops, in the archive those that stood when it was drained last.
    pub(crate) async fn stops(&self) -> Result<Vec<Stop>, Failure> {
        Ok(match self {
            Self::Ledger(open) | Self::Both(open, _) => open.ledger.stops().await?,
            Self::Archive(log, _) => log.archive().stops(log.state().await?.log).await?,
        })
    }

    /// The present, for spans such as `--since 24h`.
    pub(crate) const fn now_ms(&self) -> i64 {
        match self {
            Self::Ledger(open) | Self::Both(open, _) => open.info.now_ms,
            Self::Archive(_, now_ms) => *now_ms,
        }
    }
}

/// Opens what the arguments name; else the ledger, together with the configured archive once its log was trimmed.
pub(crate) async fn open(context: &mut Context<'_>, from: &FromArgs) -> Result<Reading, Failure> {
    if let Some(url) = &from.from {
        let (log, _) = alone(context, url, from.log.as_deref()).await?;
        return Ok(Reading::Archive(log, context.clock.now_ms()));
    }
    let open = context.open().await?;
    let backlog = open.ledger.backlog().await?;
    if backlog.first_seq <= 1 {
        return Ok(Reading::Ledger(open));
    }
    if let Some(url) = Context::archive_url(None)? {
        let archive = Archive::open_existing(&url).await?;
        let place = archive.place().to_owned();
        let log = ArchivedLog::with_ledger(archive, Arc::clone(&open.ledger)).await?;
        context.name("archive", &place, &format!("archive {place}"))?;
        return Ok(Reading::Both(open, log));
    }
    let since = backlog.first_at_ms.map_or_else(|| "now".to_owned(), time);
    let words = format!(
        "the ledger's log begins at event {} ({since}); what is older is in the archive that it was drained to: --from or \
         KEYBRAKE_ARCHIVE",
        backlog.first_seq
    );
    context.name("log_begins", &since, &words)?;
    Ok(Reading::Ledger(open))
}

/// One log of an archive, and its state.
pub(crate) async fn alone(
    context: &mut Context<'_>,
    url: &str,
    wanted: Option<&str>,
) -> Result<(ArchivedLog, LogState), Failure> {
    let archive = Archive::open_existing(url).await?;
    let place = archive.place().to_owned();
    let logs = archive.logs().await?;
    let state = choose(logs, wanted, &place)?;
    let words = format!(
        "archive {place}: {} of {} up to {}",
        count(state.n, "event"),
        state.place,
        time(state.at_ms)
    );
    context.name("archive", &place, &words)?;
    let log = ArchivedLog::alone(archive, state.name.clone()).await?;
    Ok((log, state))
}

fn choose(logs: Vec<LogState>, wanted: Option<&str>, place: &str) -> Result<LogState, Failure> {
    let named = |state: &LogState| match state.name.namespace.as_str() {
        "" => state.name.ledger.clone(),
        namespace => format!("{}/{namespace}", state.name.ledger),
    };
    let names: Vec<String> = logs
        .iter()
        .map(|state| format!("{} ({})", named(state), state.place))
        .collect();
    let fits =
        |state: &LogState| wanted.is_none_or(|wanted| wanted == state.name.ledger || wanted == named(state));
    let mut found: Vec<LogState> = logs.into_iter().filter(fits).collect();
    match (found.pop(), found.is_empty()) {
        (Some(state), true) => Ok(state),
        (Some(_), false) => Err(Failure::usage(format!(
            "{place} has several logs; say which with --log: {}",
            names.join(", ")
        ))),
        (None, _) if names.is_empty() => {
            Err(Failure::not_found(format!("nothing was ever drained to {place}")))
        }
        (None, _) => Err(Failure::not_found(format!(
            "{place} has no such log; it has {}",
            names.join(", ")
        ))),
    }
}
