//! What a process decided from its leases, written down before the call leaves, until the ledger was told: so that a
//! process that is killed leaves the rows of its calls behind. docs/decisions/0011.
//!
//! Two files, locked for as long as the process lives. While one takes new rows, those of the other are told; then it is
//! emptied. Nothing is flushed: rows survive the process, not the machine, and no counter rests on them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::directory::{Directory, Kept, Taken};
use crate::error::{Error, ErrorKind, Result};
use crate::ledger::{LeaseAnswer, LeaseAsk, LeasedCall, Ledger, MOST_LEASED_CALLS, Settlement, lease};

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Row {
    /// A call that was let through.
    Made {
        /// The lease.
        lease: String,
        /// The call, without its end.
        call: LeasedCall,
    },
    /// Its end.
    Ended {
        /// The lease.
        lease: String,
        /// The call's index in it.
        index: u64,
        /// The number of the step that would tell it.
        step: u64,
        /// What became of it.
        settlement: Settlement,
    },
}

/// Pairs of files that are begun before a process gives up.
const TRIES: u32 = 8;

/// The two files of a process.
#[derive(Debug)]
pub(crate) struct LeaseRows {
    files: [Kept; 2],
    active: usize,
    /// Whether the other file still has rows that were not told.
    owes: bool,
}

impl LeaseRows {
    /// Makes them in the journal's directory.
    ///
    /// # Errors
    /// `Config` when the directory is not this user's alone, or the disk does not take them.
    pub(super) fn create(directory: &Directory) -> Result<Self> {
        for _ in 0..TRIES {
            let name = format!("{}-{}", std::process::id(), crate::token::random_base62(12)?);
            let [a, b] = ["a", "b"].map(|which| directory.keep(&format!("{name}-{which}")));
            if let (Some(a), Some(b)) = (a?, b?) {
                return Ok(Self {
                    files: [a, b],
                    active: 0,
                    owes: false,
                });
            }
        }
        Err(Error::config(format!(
            "every new file in {} is locked at once",
            directory.path().display()
        )))
    }

    /// Writes down a call that is about to be let through.
    pub(crate) fn made(&self, lease: &str, call: &LeasedCall) -> Result<()> {
        self.write(&Row::Made {
            lease: lease.to_owned(),
            call: call.clone(),
        })
    }

    /// Writes down a call's end.
    pub(crate) fn ended(&self, lease: &str, index: u64, step: u64, settlement: &Settlement) -> Result<()> {
        self.write(&Row::Ended {
            lease: lease.to_owned(),
            index,
            step,
            settlement: settlement.clone(),
        })
    }

    fn write(&self, row: &Row) -> Result<()> {
        let json = serde_json::to_string(row)
            .map_err(|e| Error::new(ErrorKind::Internal, "a row cannot be written as JSON").because(e))?;
        // Each begins a line: half a row before it, from a disk that was full, takes nothing with it.
        let line = format!("\n{:08x} {json}", crc32fast::hash(json.as_bytes()));
        let full = |e| Error::config("the journal does not take a row").because(e);
        self.file().write_all(line.as_bytes()).map_err(full)
    }

    fn file(&self) -> &File {
        let [a, b] = &self.files;
        if self.active == 0 { a.file() } else { b.file() }
    }

    /// Before everything is told: new rows go to the other file, if that has nothing left to tell. Answers whether they
    /// do; then those of calls under way have to be written there again.
    pub(crate) fn turn(&mut self) -> bool {
        if self.owes {
            return false;
        }
        self.active = 1_usize.saturating_sub(self.active);
        self.owes = true;
        true
    }

    /// After everything was told that stood here before the last [`turn`](Self::turn).
    pub(crate) fn told(&mut self) {
        let [a, b] = &self.files;
        let other = if self.active == 0 { b } else { a };
        // What stays is told again after a crash, which changes nothing.
        self.owes = self.owes && other.file().set_len(0).is_err();
    }
}

impl LeaseRows {
    /// When everything was told: nothing has to stay in either file.
    pub(crate) fn all_told(&mut self) {
        let [a, b] = &self.files;
        // What stays is told again after a crash, which changes nothing.
        let emptied = [a, b].map(|kept| kept.file().set_len(0).is_ok());
        self.owes = self.owes && emptied != [true, true];
    }
}

/// What a file of rows says: calls by lease in order, each with its end if that is known.
#[derive(Default)]
struct Read {
    leases: BTreeMap<String, BTreeMap<u64, LeasedCall>>,
    /// Rows of a newer version of this library.
    unknown: bool,
}

fn read(content: &[u8]) -> Read {
    let mut found = Read::default();
    for line in content.split(|byte| *byte == b'\n') {
        match row(line) {
            Some(Ok(Row::Made { lease, call })) => {
                let calls = found.leases.entry(lease).or_default();
                calls.entry(call.index).or_insert(call);
            }
            Some(Ok(Row::Ended {
                lease,
                index,
                step,
                settlement,
            })) => {
                let calls = found.leases.get_mut(&lease);
                if let Some(call) = calls.and_then(|calls| calls.get_mut(&index)) {
                    (call.step, call.settlement) = (step, Some(settlement));
                }
            }
            Some(Err(_)) => found.unknown = true,
            None => {}
        }
    }
    found
}

/// The row of a line; `None` for one that was cut off when its writer ended.
fn row(line: &[u8]) -> Option<serde_json::Result<Row>> {
    let (head, json) = line.split_at_checked(9)?;
    let crc = std::str::from_utf8(head.get(..8)?).ok()?;
    let same = u32::from_str_radix(crc, 16).ok()? == crc32fast::hash(json);
    same.then(|| serde_json::from_slice(json))
}

/// Tells the ledger what a process that ended left in a file. Answers how many calls, or `None` when the file has to stay:
/// a lease of theirs is not over yet, or a newer version of this library has to read it.
pub(super) async fn deliver(ledger: &dyn Ledger, taken: &Taken) -> Result<Option<u32>> {
    let mut told = 0_usize;
    let found = read(&taken.content);
    if found.unknown {
        return Ok(None);
    }
    for (id, calls) in found.leases {
        let calls: Vec<LeasedCall> = calls.into_values().collect();
        let Some(first) = calls.first() else { continue };
        let facts = Arc::clone(&first.facts);
        told = told.saturating_add(calls.len());
        for part in calls.chunks(usize::try_from(MOST_LEASED_CALLS).unwrap_or(1)) {
            let answer = ledger.lease(LeaseAsk {
                id: id.clone(),
                number: 0,
                facts: Arc::clone(&facts),
                charges: Vec::new(),
                keep: 0,
                wanted: 0,
                done: part.to_vec(),
                ttl_ms: lease::LONGEST_MS,
                max_open_holds: 0,
            });
            if answer.await? == LeaseAnswer::Refused {
                return Ok(None);
            }
        }
    }
    Ok(Some(u32::try_from(told).unwrap_or(u32::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{CallFacts, Proof, ReplyFacts};

    fn made(index: u64) -> Row {
        Row::Made {
            lease: "lease".to_owned(),
            call: LeasedCall {
                index,
                step: u64::MAX,
                facts: Arc::new(CallFacts {
                    call_id: index.to_string(),
                    ..CallFacts::default()
                }),
                at_ms: 1,
                not_after_ms: 2,
                settlement: None,
            },
        }
    }

    fn ended(index: u64) -> Row {
        Row::Ended {
            lease: "lease".to_owned(),
            index,
            step: 3,
            settlement: Settlement {
                call_id: index.to_string(),
                attempt: 1,
                proof: Proof::NeverSent,
                object: None,
                reply: None,
                facts: ReplyFacts::default(),
            },
        }
    }

    fn rows(dir: &std::path::Path) -> (Directory, LeaseRows) {
        let directory = Directory::new(&dir.join("journal"), "l", "default").unwrap();
        let rows = LeaseRows::create(&directory).unwrap();
        (directory, rows)
    }

    /// What stands in the only file that has something in it.
    fn content(directory: &Directory) -> Vec<u8> {
        let files = directory.leased().unwrap();
        let mut contents = files.iter().map(|path| Directory::look(path).unwrap());
        contents.find(|content| !content.is_empty()).unwrap()
    }

    #[test]
    fn half_a_row_of_a_full_disk_takes_no_other_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let (directory, rows) = rows(dir.path());
        rows.write(&made(1)).unwrap();
        rows.file().write_all(b"\n01234567 {\"made\":{\"lea").unwrap();
        rows.write(&made(2)).unwrap();
        rows.write(&ended(1)).unwrap();
        let found = read(&content(&directory));
        let calls = &found.leases["lease"];
        let ends: Vec<(u64, bool)> = calls
            .values()
            .map(|call| (call.index, call.settlement.is_some()))
            .collect();
        assert_eq!((ends, found.unknown), (vec![(1, true), (2, false)], false));
    }

    #[test]
    fn a_row_of_a_newer_version_is_known_as_one() {
        let json = "{\"paused\":{\"lease\":\"lease\"}}";
        let line = format!("\n{:08x} {json}", crc32fast::hash(json.as_bytes()));
        assert!(read(line.as_bytes()).unknown);
        assert!(!read(b"\n00000000 {}").unknown, "that one is damaged");
    }

    /// Between the making of a file and its lock a delivery may take it, and removes it: there is nothing in it.
    #[test]
    fn files_that_deliveries_take_at_once_are_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (directory, _first) = rows(dir.path());
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(std::sync::atomic::Ordering::SeqCst) {
                    for path in directory.leased().unwrap() {
                        if let Ok(Some(taken)) = Directory::take(&path) {
                            taken.remove().ok(); // its own keeper may have
                        }
                    }
                }
            });
            let made = (0..300).map(|_| LeaseRows::create(&directory).is_ok());
            let made = made.filter(|made| *made).count();
            over.store(true, std::sync::atomic::Ordering::SeqCst);
            assert_eq!(made, 300);
        });
    }
}
