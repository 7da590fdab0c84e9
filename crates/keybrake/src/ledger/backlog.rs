//! The log as something that is taken away: how much of it there is, which archives have it up to where, and up to
//! where it may be removed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::reassertion::EraRange;
use super::types::{AdminNote, CheckGrade, LedgerCheck};
use crate::error::{Error, Result};

/// Up to where one archive has the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drained {
    /// Number of the last event that it has.
    pub seq: u64,
    /// When that was noted: the ledger's time, Unix milliseconds.
    pub at_ms: i64,
    /// Where the archive is, without a password, for people.
    pub place: String,
}

/// Every archive of a log, by its random id.
pub type Archives = BTreeMap<String, Drained>;

/// What there is of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Number of the first event that is still there; one more than `last_seq` when none is.
    pub first_seq: u64,
    /// When the first event that is still there happened, Unix milliseconds on the ledger's clock.
    pub first_at_ms: Option<i64>,
    /// Number of the last event that was ever written.
    pub last_seq: u64,
    /// The event number of the last signed checkpoint; 0 without one.
    pub checkpoint_seq: u64,
    /// The archives that it is drained to.
    pub archives: Archives,
    /// What it takes up in the ledger's server; `None` where nobody has to care.
    pub bytes: Option<u64>,
    /// Its eras, oldest first, with the events that it has of each. Empty for a ledger that cannot lose any.
    pub eras: Vec<EraRange>,
}

impl Backlog {
    /// Events that are still there.
    pub const fn kept(&self) -> u64 {
        self.last_seq.saturating_add(1).saturating_sub(self.first_seq)
    }

    /// Up to which event every archive has the log; 0 when there is none.
    pub fn drained_seq(&self) -> u64 {
        drained_by_all(&self.archives)
    }

    /// Events that some archive still lacks, or all that are there when there is no archive.
    pub fn undrained(&self) -> u64 {
        let after = self.drained_seq().max(self.first_seq.saturating_sub(1));
        self.last_seq.saturating_sub(after)
    }

    /// Up to which event the log may be trimmed: every archive has it, and a signed checkpoint stands for it.
    pub fn may_trim_to(&self) -> u64 {
        self.drained_seq().min(self.checkpoint_seq)
    }
}

/// Events that the slowest archive lacks before it is said.
const UNDRAINED_MAX: u64 = 100_000;
/// Events in a server's memory before it is said.
const KEPT_MAX: u64 = 1_000_000;
/// Bytes in a server's memory before it is said: 256 MiB.
const BYTES_MAX: u64 = 268_435_456;
/// How long a drainer may stand still with something to drain before it is said: an hour.
const STILL_MS: i64 = 3_600_000;

impl Backlog {
    /// What a person should know of it, at this time of the ledger's clock.
    pub fn check(&self, now_ms: i64) -> LedgerCheck {
        let bytes = self
            .bytes
            .map(|bytes| format!(", {} MiB", bytes.div_ceil(1 << 20)));
        let oldest = self
            .first_at_ms
            .map(|first_ms| format!(", the oldest {} old", age(now_ms.saturating_sub(first_ms))));
        let slowest = self.archives.iter().min_by_key(|(_, drained)| drained.seq);
        let drained = match slowest {
            None => "none was ever drained to an archive".to_owned(),
            Some((id, drained)) => format!(
                "{} not in {} yet (archive {id}, drained last {} ago)",
                self.undrained(),
                drained.place,
                age(now_ms.saturating_sub(drained.at_ms))
            ),
        };
        let found = format!(
            "{} of {} events are kept{}{}; {drained}",
            self.kept(),
            self.last_seq,
            bytes.unwrap_or_default(),
            oldest.unwrap_or_default()
        );
        let in_memory = self.bytes.is_some();
        let large =
            in_memory && (self.kept() >= KEPT_MAX || self.bytes.is_some_and(|bytes| bytes >= BYTES_MAX));
        let still = slowest
            .filter(|(_, drained)| self.undrained() > 0 && now_ms.saturating_sub(drained.at_ms) > STILL_MS);
        let advice = match (slowest, still) {
            (None, _) if large || (in_memory && self.kept() >= UNDRAINED_MAX) => {
                "nothing trims it by itself, and it takes the server's memory: keybrake audit drain --to postgres://… \
                 --keep 7d --follow"
                    .to_owned()
            }
            (_, Some((id, drained))) => format!(
                "its drainer stands still: start it again (keybrake audit drain --to {} --follow), or give the archive \
                 up, so that nothing waits for it: keybrake audit drain --forget {id} --reason \"…\"",
                drained.place
            ),
            (Some(_), None) if self.undrained() >= UNDRAINED_MAX => {
                "the drainer is behind: see whether it runs (keybrake audit drain --follow), and whether the archive is \
                 slow"
                .to_owned()
            }
            (Some((_, drained)), None) if large => format!(
                "it is drained but not trimmed: keybrake audit drain --to {} --keep 7d",
                drained.place
            ),
            _ => String::new(),
        };
        LedgerCheck {
            name: "log",
            grade: if advice.is_empty() {
                CheckGrade::Good
            } else {
                CheckGrade::Look
            },
            found,
            advice,
        }
    }
}

/// A span in its largest whole unit.
fn age(ms: i64) -> String {
    let seconds = ms.max(0).checked_div(1_000).unwrap_or(0);
    let whole = |unit: i64| seconds.checked_div(unit).unwrap_or(0);
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7_199 => format!("{} min", whole(60)),
        7_200..=172_799 => format!("{} h", whole(3_600)),
        _ => format!("{} days", whole(86_400)),
    }
}

fn drained_by_all(archives: &Archives) -> u64 {
    archives.values().map(|drained| drained.seq).min().unwrap_or(0)
}

/// Refuses to trim what an archive lacks, or what no checkpoint stands for: the counters could not be proven any more.
pub(super) fn check_trim(archives: &Archives, checkpoint_seq: u64, upto_seq: u64) -> Result<()> {
    if let Some((id, behind)) = archives.iter().find(|(_, drained)| drained.seq < upto_seq) {
        return Err(Error::config(format!(
            "the log cannot be trimmed up to event {upto_seq}: the archive {id} ({}) has it up to event {} only",
            behind.place, behind.seq
        )));
    }
    if archives.is_empty() {
        return Err(Error::config(
            "the log cannot be trimmed: it was never drained to an archive (keybrake audit drain)",
        ));
    }
    if checkpoint_seq < upto_seq {
        return Err(Error::config(format!(
            "the log cannot be trimmed up to event {upto_seq}: the last signed checkpoint is at event {checkpoint_seq} \
             (keybrake audit verify makes one)"
        )));
    }
    Ok(())
}

/// What the log says of an archive that is forgotten.
pub(super) const FORGET: &str = "forget_archive";

/// Records that a person gave an archive up, so that what it lacks may be trimmed.
pub(super) fn note_forgotten(
    store: &mut dyn super::store::Store,
    clock_ms: i64,
    id: &str,
    note: &AdminNote,
) -> Result<()> {
    super::rules::note_act(store, clock_ms, (FORGET, id), note)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archives(points: &[(&str, u64)]) -> Archives {
        let drained = |seq| Drained {
            seq,
            at_ms: 0,
            place: "sqlite:a.db".to_owned(),
        };
        points
            .iter()
            .map(|(id, seq)| ((*id).to_owned(), drained(*seq)))
            .collect()
    }

    #[test]
    fn nothing_is_trimmed_that_an_archive_lacks_or_no_checkpoint_covers() {
        let two = archives(&[("a", 500), ("b", 300)]);
        assert!(check_trim(&two, 1_000, 300).is_ok());
        let refused = check_trim(&two, 1_000, 301).unwrap_err().to_string();
        assert!(
            refused.contains("archive b") && refused.contains("event 300 only"),
            "{refused}"
        );
        let refused = check_trim(&two, 299, 300).unwrap_err().to_string();
        assert!(refused.contains("checkpoint is at event 299"), "{refused}");
        assert!(check_trim(&Archives::new(), 1_000, 1).is_err());
    }

    #[test]
    fn a_log_that_grows_is_named_with_what_to_do() {
        const DAY_MS: i64 = 86_400_000;
        let quiet = Backlog {
            first_seq: 1,
            first_at_ms: Some(0),
            last_seq: 5_000,
            bytes: Some(1 << 20),
            ..Backlog::default()
        };
        assert_eq!(quiet.check(DAY_MS).grade, CheckGrade::Good);
        let grown = Backlog {
            last_seq: 2_000_000,
            bytes: Some(1 << 30),
            ..quiet.clone()
        };
        let check = grown.check(10 * DAY_MS);
        assert_eq!(check.grade, CheckGrade::Look);
        assert_eq!(
            check.found,
            "2000000 of 2000000 events are kept, 1024 MiB, the oldest 10 days old; none was ever drained to an archive"
        );
        assert!(check.advice.contains("audit drain --to"), "{}", check.advice);
        // A file is not a server's memory.
        let file = Backlog {
            bytes: None,
            ..grown.clone()
        };
        assert_eq!(file.check(10 * DAY_MS).grade, CheckGrade::Good);
        let drained = Backlog {
            archives: archives(&[("a", 4_000)]),
            ..quiet
        };
        assert_eq!(drained.check(1_000).grade, CheckGrade::Good);
        let still = drained.check(DAY_MS);
        assert_eq!(still.grade, CheckGrade::Look);
        assert!(
            still.found.contains("1000 not in sqlite:a.db yet"),
            "{}",
            still.found
        );
        assert!(still.advice.contains("--forget a"), "{}", still.advice);
        let untrimmed = Backlog {
            archives: archives(&[("a", 2_000_000)]),
            ..grown
        };
        assert!(untrimmed.check(DAY_MS).advice.contains("not trimmed"));
    }

    #[test]
    fn a_backlog_counts_what_the_slowest_archive_lacks() {
        let backlog = Backlog {
            first_seq: 101,
            last_seq: 1_000,
            checkpoint_seq: 400,
            archives: archives(&[("a", 500), ("b", 900)]),
            ..Backlog::default()
        };
        assert_eq!(
            (backlog.kept(), backlog.undrained(), backlog.may_trim_to()),
            (900, 500, 400)
        );
        let none = Backlog {
            archives: Archives::new(),
            ..backlog
        };
        assert_eq!((none.undrained(), none.may_trim_to()), (900, 0));
    }
}
