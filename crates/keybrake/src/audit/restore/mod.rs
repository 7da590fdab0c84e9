//! Telling a ledger again what it lost, from its archive: one rule for all ledgers.
//!
//! What the archive has and the ledger lacks is said again through [`Ledger::reassert`], which merges: nothing in the
//! ledger is lowered, nothing counts twice. So a restore may be killed and begun again, and run beside live clients and
//! other restores. A ledger that is closed stays closed until all of it was said, and also then: what happened after the
//! archive was drained last is not in it. The processes that saw that open the ledger, or a person does.

mod acts;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;

use self::acts::Acts;
use super::archive::{Archive, LogName, LogState, Signatures};
use super::drain::{common_seq, log_name};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::ledger::{
    self, ArchivedPart, BudgetAssertion, CallAssertion, EraRange, EventKind, KeyAssertion, KeyRecord, Ledger,
    Life, Reassertion, Reservation,
};

/// Calls read at a time.
const PAGE: usize = 500;
/// Calls, keys or acts said again in one step.
const AT_ONCE: usize = 100;
/// Times that a log is verified while others drain it.
const TRIES: u32 = 5;

/// What a restore came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Restored {
    /// The last event that the ledger had in common with the archive.
    pub after_seq: u64,
    /// The last event that the archive has: of what happened later it knows nothing.
    pub upto_seq: u64,
    /// When that happened, Unix milliseconds on the ledger's clock.
    pub at_ms: i64,
    /// Calls that the ledger lacked, in part or whole.
    pub calls: u64,
    /// Keys that it lacked, or whose revocation it lacked.
    pub keys: u64,
    /// Budgets that it lacked, or whose last cap it lacked.
    pub budgets: u64,
    /// Stops, and ends of stops, that it lacked.
    pub stops: u64,
    /// Events that the archive lacks too, or of whose calls it has no record, as ranges from first to last: they cannot
    /// be said again from it.
    pub not_archived: Vec<(u64, u64)>,
    /// How the ledger stands now.
    pub life: Life,
    /// Events that processes have seen and nobody has said again, as ranges: why it stays closed.
    pub missing: Vec<(u64, u64)>,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Events of the archive that were checked.
    Checked(u64),
    /// Calls that were said again, or stood there already. How many there will be is not counted before: on a large
    /// archive that takes longer than its database is waited for.
    Said(u64),
}

/// A log on its way back.
#[derive(Debug)]
pub struct Restore<'a> {
    ledger: &'a dyn Ledger,
    archive: &'a Archive,
    name: LogName,
}

/// Opens the ledger at a URL that an archive has a log of, whether or not its data is still there. `wanted` says which log,
/// when that is not clear: `LEDGER-ID` or `LEDGER-ID/NAMESPACE`.
///
/// # Errors
/// `NotFound` when the archive has no log of this namespace; `Config` when another ledger is in use there, when several
/// logs would do, and for a ledger whose secret is gone with its data.
pub async fn open(
    url: &str,
    clock: Arc<dyn Clock>,
    archive: &Archive,
    wanted: Option<&str>,
) -> Result<Arc<dyn Ledger>> {
    let namespace = ledger::namespace(url)?;
    let mut logs = archive.logs().await?;
    logs.retain(|log| log.seq > 0);
    let have: Vec<String> = logs.iter().map(|log| shown(&log.name)).collect();
    logs.retain(|log| {
        let fits = |wanted| wanted == log.name.ledger || wanted == shown(&log.name);
        log.name.namespace == namespace && wanted.is_none_or(fits)
    });
    let mut gone = Vec::new();
    let mut refused = None;
    for log in logs {
        match ledger::open_to_restore(url, Arc::clone(&clock), &log.name.ledger).await {
            Ok(ledger) if ledger.life().await? == Life::Gone => gone.push((log, ledger)),
            Ok(ledger) => return Ok(ledger),
            Err(error) if error.kind() == ErrorKind::Config => refused = Some(error),
            Err(error) => return Err(error),
        }
    }
    match (gone.pop(), gone.is_empty(), refused) {
        (Some((_, ledger)), true, _) => Ok(ledger),
        (Some(_), false, _) => Err(Error::config(format!(
            "{} has several logs of the namespace {namespace}; say which with --log: {}",
            archive.place(),
            have.join(", ")
        ))),
        (None, _, Some(refused)) => Err(refused),
        (None, _, None) => Err(Error::not_found(format!(
            "{} has no log of the namespace {namespace} that would do; it has {}",
            archive.place(),
            if have.is_empty() {
                "none".to_owned()
            } else {
                have.join(", ")
            }
        ))),
    }
}

fn shown(name: &LogName) -> String {
    match name.namespace.as_str() {
        "" => name.ledger.clone(),
        namespace => format!("{}/{namespace}", name.ledger),
    }
}

impl<'a> Restore<'a> {
    /// Prepares to restore this ledger from this archive.
    ///
    /// # Errors
    /// `LedgerUnavailable` and the like when the ledger does not answer.
    pub async fn new(ledger: &'a dyn Ledger, archive: &'a Archive) -> Result<Self> {
        Ok(Self {
            ledger,
            archive,
            name: log_name(ledger, ledger.id().await?),
        })
    }

    /// Says again everything that the archive has and the ledger lacks. `seen` is told how far it is.
    ///
    /// # Errors
    /// `NotFound` when the archive has nothing of this ledger; `LedgerCorrupt` when the archive is not whole or was
    /// altered: then nothing is restored; `Config` when another ledger stands in this one's place, or nothing proves that
    /// the archive's ledger had this one's secret; `LedgerRecovering` when the ledger's server started anew in
    /// the middle; `LedgerUnavailable` when ledger or archive do not answer. What was said by then stands, and the
    /// restore can be begun again.
    pub async fn run(&self, mut seen: impl FnMut(Progress) + Send) -> Result<Restored> {
        let state = self.whole(&mut seen).await?;
        let common = match self.ledger.life().await? {
            Life::Gone => 0,
            _ => common_seq(self.ledger, self.archive, &state).await?,
        };
        let part = ArchivedPart {
            archive: self.archive.id().to_owned(),
            after_seq: common,
            upto_seq: state.seq,
            at_ms: state.at_ms,
        };
        self.ledger.await_archived(&part).await?;
        let acts = Acts::read(self.ledger, self.archive, (&state, common)).await?;
        let mut restored = Restored {
            after_seq: common,
            upto_seq: state.seq,
            at_ms: state.at_ms,
            calls: 0,
            keys: 0,
            budgets: 0,
            stops: self.stops(&acts).await?,
            not_archived: self.gaps(&state, common).await?,
            life: Life::Closed,
            missing: Vec::new(),
        };
        restored.budgets = self.budgets(&state, &acts).await?;
        restored.keys = self.keys(&state, &acts).await?;
        self.calls(&state, &mut restored, &mut seen).await?;
        let mut without = self.gaps(&state, 0).await?;
        without.extend(&restored.not_archived);
        self.cover(&state, &part, &without).await?;
        restored.life = self.ledger.life().await?;
        restored.missing = self.ledger.missing_events().await?;
        Ok(restored)
    }

    /// The log, proven to be whole and to be this ledger's.
    async fn whole(&self, seen: &mut (impl FnMut(Progress) + Send)) -> Result<LogState> {
        let place = self.archive.place();
        for _ in 0..TRIES {
            let found = self.archive.log(&self.name).await?.filter(|state| state.seq > 0);
            let state = found.ok_or_else(|| {
                Error::not_found(format!(
                    "{place} has nothing of the ledger {}: it was never drained to it",
                    shown(&self.name)
                ))
            })?;
            let secret = self.ledger.secret();
            let mut checked = |events| seen(Progress::Checked(events));
            let report = self
                .archive
                .verify_telling(&state, Some(secret), &mut checked)
                .await?;
            if self.archive.log(&self.name).await?.as_ref() != Some(&state) {
                continue;
            }
            if report.signatures == Signatures::Wrong {
                return Err(Error::config(format!(
                    "checkpoints in {place} were not signed with the secret of this ledger: it is another ledger's log, \
                     KEYBRAKE_MASTER_KEY is another, or they were altered. Nothing was restored"
                )));
            }
            // With another secret every seal is wrong.
            self.check_secret(&state, report.proven_seq > 0).await?;
            if !report.is_clean() {
                let altered = match &report.altered[..] {
                    [] => String::new(),
                    names => format!(" ({})", some_of(names)),
                };
                return Err(Error::new(
                    ErrorKind::LedgerCorrupt,
                    format!(
                        "{place} is not whole, or was altered{altered}: keybrake audit verify --from says where. Put back a \
                         copy of it from before, or open the ledger by hand after comparing it with the vendors. Nothing \
                         was restored"
                    ),
                ));
            }
            return Ok(state);
        }
        Err(Error::ledger(format!(
            "{place} is drained to all the time: stop the drainers, then restore"
        )))
    }

    /// A ledger that is made again with another secret would know none of its keys.
    async fn check_secret(&self, state: &LogState, signed: bool) -> Result<()> {
        let place = self.archive.place();
        let own = self.ledger.secret().bound_to(&self.name.ledger)?;
        match self.archive.binding(state.log).await? {
            Some(kept) if kept == own => Ok(()),
            Some(_) => Err(Error::config(format!(
                "the log in {place} was drained from a ledger with another secret (KEYBRAKE_MASTER_KEY); nothing was \
                 restored"
            ))),
            None if signed => Ok(()),
            None => Err(Error::config(format!(
                "nothing in {place} proves that its ledger had the secret of this one: it was drained by an older version, \
                 and has no signed checkpoint. Nothing was restored"
            ))),
        }
    }

    async fn stops(&self, acts: &Acts) -> Result<u64> {
        let said = |stops| Reassertion {
            stops,
            ..Reassertion::default()
        };
        self.say_all(&acts.stops(), said).await
    }

    /// Budgets that are not there, and those whose cap was changed last by an act that is not there.
    async fn budgets(&self, state: &LogState, acts: &Acts) -> Result<u64> {
        let there = self.ledger.budgets(None).await?;
        let there: BTreeMap<_, _> = there.into_iter().map(|usage| (usage.id, usage.def.cap)).collect();
        let mut lacked = Vec::new();
        for def in self.archive.budgets(state.log).await? {
            let set = acts.cap(&def.id());
            let cap = set.map_or(def.cap, |(cap, _)| cap);
            match there.get(&def.id()) {
                Some(_) if set.is_none() => continue,
                Some(own) if *own == cap => continue,
                _ => {}
            }
            lacked.push(BudgetAssertion {
                at_ms: set.map_or(0, |(_, at_ms)| at_ms),
                def: ledger::BudgetDef { cap, ..def },
            });
        }
        let said = |budgets| Reassertion {
            budgets,
            ..Reassertion::default()
        };
        self.say_all(&lacked, said).await
    }

    async fn keys(&self, state: &LogState, acts: &Acts) -> Result<u64> {
        let there = self.ledger.keys().await?;
        let there: BTreeMap<&str, &KeyRecord> = there.iter().map(|key| (key.id.as_str(), key)).collect();
        let kept = self.archive.keys(state.log).await?.into_iter().map(|mut key| {
            key.revoked_at_ms = key.revoked_at_ms.or_else(|| acts.revoked_at_ms(&key.id));
            key
        });
        let lacked = kept.filter(|key| {
            there
                .get(key.id.as_str())
                .is_none_or(|own| key.revoked_at_ms.is_some() && own.revoked_at_ms.is_none())
        });
        let lacked: Vec<KeyAssertion> = lacked.map(asserted).collect();
        let said = |keys| Reassertion {
            keys,
            ..Reassertion::default()
        };
        self.say_all(&lacked, said).await
    }

    /// Calls with events that the ledger does not have. Those that it had and has forgotten are not among them: they are
    /// in its counters.
    async fn calls(
        &self,
        state: &LogState,
        restored: &mut Restored,
        seen: &mut (impl FnMut(Progress) + Send),
    ) -> Result<()> {
        let common = restored.after_seq;
        let mut done = 0_u64;
        let mut after = String::new();
        loop {
            let ids = self.archive.lacked(state.log, common, &after, PAGE).await?;
            let Some(last) = ids.last() else { return Ok(()) };
            after.clone_from(last);
            let mut known = self.archive.known_calls(state.log, &ids).await?;
            // A record that knows less than the events is not what they left.
            let outdated = self.archive.outdated(state.log, &ids).await?;
            known.retain(|call| !outdated.contains(&call.facts.call_id));
            self.without_record(state, (&ids, &known), restored).await?;
            let there = self.ledger.reservations(&ids).await?;
            let there: BTreeMap<&str, &Reservation> = there
                .iter()
                .map(|call| (call.facts.call_id.as_str(), call))
                .collect();
            let lacked: Vec<&Reservation> = known
                .iter()
                .filter(|call| there.get(call.facts.call_id.as_str()) != Some(call))
                .collect();
            let mut left = u64::try_from(lacked.len()).unwrap_or(u64::MAX);
            done = done.saturating_add(u64::try_from(ids.len()).unwrap_or(u64::MAX));
            for some in lacked.chunks(AT_ONCE) {
                let calls = some.iter().map(|call| CallAssertion {
                    found_by: call.aliases.clone(),
                    call: (*call).clone(),
                    object: None,
                });
                let said = Reassertion {
                    calls: calls.collect(),
                    ..Reassertion::default()
                };
                restored.calls = restored.calls.saturating_add(self.say(said).await?);
                left = left.saturating_sub(u64::try_from(some.len()).unwrap_or(u64::MAX));
                seen(Progress::Said(done.saturating_sub(left)));
            }
            seen(Progress::Said(done));
        }
    }

    /// Calls whose amounts are in their events only: the ledger had forgotten them before they were drained. What was
    /// decided from a lease is in the lease's own record.
    async fn without_record(
        &self,
        state: &LogState,
        (ids, known): (&[String], &[Reservation]),
        restored: &mut Restored,
    ) -> Result<()> {
        let known: BTreeSet<&str> = known.iter().map(|call| call.facts.call_id.as_str()).collect();
        let without = ids.iter().filter(|id| !known.contains(id.as_str()));
        let without: Vec<String> = without.cloned().collect();
        if without.is_empty() {
            return Ok(());
        }
        for kept in self.archive.events_of(state.log, &without).await? {
            let event = kept.event;
            let leased = event.kind != EventKind::Leased && event.body.lease.is_some();
            let lacked = !kept.present || event.seq > restored.after_seq;
            if lacked && !leased && !event.deltas.is_empty() {
                restored.not_archived.push((event.seq, event.seq));
            }
        }
        Ok(())
    }

    /// What was never drained here, of what the ledger lacks.
    async fn gaps(&self, state: &LogState, common: u64) -> Result<Vec<(u64, u64)>> {
        let notes = self.archive.notes(state.log).await?;
        let gaps = notes
            .iter()
            .filter(|note| note.kind == "gap" && note.upto_seq > common);
        Ok(gaps
            .map(|note| (note.after_seq.max(common).saturating_add(1), note.upto_seq))
            .collect())
    }

    /// A closed ledger waits no longer for what was said again, whoever has seen it: of each era what the archive has of it.
    /// Under the same numbers another era may have other events, which nobody has said again. `without`: what was never
    /// drained of any era.
    async fn cover(&self, state: &LogState, part: &ArchivedPart, without: &[(u64, u64)]) -> Result<()> {
        let all = (part.after_seq.saturating_add(1), part.upto_seq);
        let notes = self.archive.notes(state.log).await?;
        let lost = notes.iter().filter(|note| note.kind == "lost");
        let lacked: Vec<(u64, u64)> = lost
            .map(|note| (note.after_seq.saturating_add(1), note.upto_seq))
            .chain([all])
            .collect();
        let own = part.era()?;
        let mut covers = of_era(own, between(all, without));
        for era in self.archive.eras(state.log).await? {
            for (first, last) in &lacked {
                let here = ((*first).max(era.first), (*last).min(era.last));
                covers.extend(of_era(era.era, between(here, without)));
            }
        }
        if covers.is_empty() {
            return Ok(());
        }
        self.say(Reassertion {
            covers,
            ..Reassertion::default()
        })
        .await
        .map(|_| ())
    }

    async fn say_all<T: Clone>(&self, all: &[T], said: impl Fn(Vec<T>) -> Reassertion) -> Result<u64> {
        let mut changed = 0_u64;
        for some in all.chunks(AT_ONCE) {
            changed = changed.saturating_add(self.say(said(some.to_vec())).await?);
        }
        Ok(changed)
    }

    async fn say(&self, said: Reassertion) -> Result<u64> {
        Ok(u64::from(self.ledger.reassert(said).await?.changed))
    }
}

/// The first few of many names.
fn some_of(names: &[String]) -> String {
    const MOST: usize = 8;
    let more = if names.len() > MOST { " and more" } else { "" };
    let shown: Vec<&str> = names.iter().take(MOST).map(String::as_str).collect();
    format!("{}{more}", shown.join(", "))
}

fn asserted(key: KeyRecord) -> KeyAssertion {
    KeyAssertion {
        key_id: key.id.clone(),
        version: key.version,
        expires_at_ms: key.expires_at_ms,
        revoked_at_ms: key.revoked_at_ms,
        ancestors: key.ancestors.clone(),
        record: Some(Box::new(key)),
    }
}

fn of_era(era: u64, ranges: Vec<(u64, u64)>) -> Vec<EraRange> {
    let events = ranges
        .into_iter()
        .map(|(first, last)| EraRange { era, first, last });
    events.collect()
}

/// The parts of a range that are in none of others.
fn between((first, last): (u64, u64), others: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut others = others.to_vec();
    others.sort_unstable();
    let mut from = first;
    let mut parts = Vec::new();
    for (first, upto) in others {
        if first > last {
            break;
        }
        if first > from {
            parts.push((from, first.saturating_sub(1)));
        }
        from = from.max(upto.saturating_add(1));
    }
    if from <= last {
        parts.push((from, last));
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::between;

    #[test]
    fn what_is_covered_leaves_out_what_the_archive_lacks() {
        assert_eq!(between((5, 9), &[]), [(5, 9)]);
        assert_eq!(between((6, 5), &[]), []);
        assert_eq!(between((5, 20), &[(18, 30), (7, 8), (8, 10)]), [(5, 6), (11, 17)]);
        assert_eq!(between((5, 20), &[(1, 5), (20, 20)]), [(6, 19)]);
        assert_eq!(between((5, 20), &[(1, 40)]), []);
    }
}
