//! Stops, caps and revocations, by the last act on each that is known: a person's act is said again only when no later one is known.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::audit::archive::{Archive, LogState};
use crate::error::Result;
use crate::ledger::{
    AdminAct, BudgetId, Event, EventFilter, EventKind, Ledger, Stop, StopAssertion, StopScope,
};

/// Events read at a time.
const PAGE: u32 = 5_000;
/// For so long a ledger remembers when a scope was stopped or resumed last, in milliseconds: a day. The end of a stop that
/// stands no more needs not be said after that.
const REMEMBERED_MS: i64 = 86_400_000;

/// The last act on each scope and each budget.
#[derive(Debug, Default)]
pub(super) struct Acts {
    stops: BTreeMap<String, Last<StopAssertion>>,
    caps: BTreeMap<String, Last<i64>>,
    /// Nothing undoes a revocation, so the first one stands.
    revoked: BTreeMap<String, i64>,
    standing: Vec<StopScope>,
    now_ms: i64,
}

#[derive(Debug)]
struct Last<T> {
    at_ms: i64,
    /// Whether the ledger has it.
    there: bool,
    what: T,
}

impl Acts {
    /// All that the archive has, and those that the ledger has beyond it.
    pub(super) async fn read(
        ledger: &dyn Ledger,
        archive: &Archive,
        (state, common): (&LogState, u64),
    ) -> Result<Self> {
        let standing = ledger.stops().await?;
        let mut acts = Self {
            standing: standing.into_iter().map(|stop| stop.scope).collect(),
            now_ms: ledger.info().await?.now_ms,
            ..Self::default()
        };
        let mut after = 0;
        loop {
            let (page, last) = archive.acts(state.log, after, PAGE).await?;
            for kept in page {
                acts.take(&kept.event, kept.present && kept.event.seq <= common);
            }
            let Some(last) = last else { break };
            after = last;
        }
        // A stop as it stood says since when more exactly than its event.
        for stop in archive.stops(state.log).await? {
            if let Some(last) = acts.stops.get_mut(&stop.scope.name())
                && last.what.ended_at_ms.is_none()
            {
                last.what.stop = stop;
            }
        }
        let mut after_seq = common;
        loop {
            let filter = EventFilter {
                after_seq,
                limit: PAGE,
                ..EventFilter::default()
            };
            let page = ledger.events(filter).await?;
            let Some(last) = page.last() else { break };
            after_seq = last.seq;
            for event in &page {
                // What was said again happened earlier than its event.
                if event.kind == EventKind::Admin {
                    acts.take(event, true);
                }
            }
        }
        Ok(acts)
    }

    fn take(&mut self, event: &Event, there: bool) {
        let Some(act) = event.body.admin.as_deref() else {
            return;
        };
        let at_ms = event.at_ms;
        match act.act.as_str() {
            "stop" | "resume" => {
                if let Some(what) = stop_of(act, at_ms) {
                    last(&mut self.stops, &act.subject, Last { at_ms, there, what });
                }
            }
            "revoke" => {
                let first = self.revoked.entry(act.subject.clone()).or_insert(at_ms);
                *first = at_ms.min(*first);
            }
            "put_budget" => {
                if let Some(what) = act.detail.get("cap").and_then(Value::as_i64) {
                    last(&mut self.caps, &act.subject, Last { at_ms, there, what });
                }
            }
            _ => {}
        }
    }

    /// Those that the ledger lacks.
    pub(super) fn stops(&self) -> Vec<StopAssertion> {
        let lacked = self.stops.values().filter(|last| {
            let old = self.now_ms.saturating_sub(last.at_ms) > REMEMBERED_MS;
            let stands = self.standing.contains(&last.what.stop.scope);
            let ends = last.what.ended_at_ms.is_some();
            let nothing_to_end = ends && old && !stands;
            !last.there && !nothing_to_end
        });
        lacked.map(|last| last.what.clone()).collect()
    }

    /// When this key was revoked, by the act: a drainer that came after the ledger had lost that took the key as it was
    /// before.
    pub(super) fn revoked_at_ms(&self, key_id: &str) -> Option<i64> {
        self.revoked.get(key_id).copied()
    }

    /// A cap that was set by a person and that the ledger lacks, and when.
    pub(super) fn cap(&self, budget: &BudgetId) -> Option<(i64, i64)> {
        let last = self.caps.get(&budget.0)?;
        (!last.there).then_some((last.what, last.at_ms))
    }
}

/// Of two in one millisecond that which the ledger has stays.
fn last<T>(all: &mut BTreeMap<String, Last<T>>, subject: &str, act: Last<T>) {
    let later = all
        .get(subject)
        .is_none_or(|known| (known.at_ms, known.there) <= (act.at_ms, act.there));
    if later {
        all.insert(subject.to_owned(), act);
    }
}

fn stop_of(act: &AdminAct, at_ms: i64) -> Option<StopAssertion> {
    let ends = act.act == "resume";
    Some(StopAssertion {
        stop: Stop {
            scope: StopScope::named(&act.subject)?,
            since_ms: at_ms,
            admin: act.note.clone(),
            hard: act.detail.get("hard").and_then(Value::as_bool).unwrap_or(false),
        },
        ended_at_ms: ends.then_some(at_ms),
    })
}
