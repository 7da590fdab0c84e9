//! What a process decided from its leases, written down before the call leaves, until the ledger was told: so that a
//! process that is killed leaves the rows of its calls behind. docs/decisions/0011.
//!
//! Two files, locked for as long as the process lives. While one takes new rows, those of the other are told; then it is
//! emptied. Nothing is flushed: rows survive the process, not the machine, and no counter rests on them.

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
        let name = format!("{}-{}", std::process::id(), crate::token::random_base62(12)?);
        Ok(Self {
            files: [
                directory.keep(&format!("{name}-a"))?,
                directory.keep(&format!("{name}-b"))?,
            ],
            active: 0,
            owes: false,
        })
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
        let line = format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes()));
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

/// What a file of rows says: calls by lease, each with its end if that is known.
fn read(content: &[u8]) -> Vec<(String, Vec<LeasedCall>)> {
    let mut leases: Vec<(String, Vec<LeasedCall>)> = Vec::new();
    for line in content.split(|byte| *byte == b'\n') {
        match row(line) {
            Some(Row::Made { lease, call }) => {
                if !leases.iter().any(|(id, _)| *id == lease) {
                    leases.push((lease.clone(), Vec::new()));
                }
                let Some((_, calls)) = leases.iter_mut().find(|(id, _)| *id == lease) else {
                    continue;
                };
                if !calls.iter().any(|known| known.index == call.index) {
                    calls.push(call);
                }
            }
            Some(Row::Ended {
                lease,
                index,
                step,
                settlement,
            }) => {
                let calls = leases.iter_mut().find(|(id, _)| *id == lease);
                let call = calls.and_then(|(_, calls)| calls.iter_mut().find(|call| call.index == index));
                if let Some(call) = call {
                    (call.step, call.settlement) = (step, Some(settlement));
                }
            }
            None => {}
        }
    }
    leases
}

/// The row of a line; `None` for one that was cut off when its writer ended.
fn row(line: &[u8]) -> Option<Row> {
    let (head, json) = line.split_at_checked(9)?;
    let crc = std::str::from_utf8(head.get(..8)?).ok()?;
    let same = u32::from_str_radix(crc, 16).ok()? == crc32fast::hash(json);
    same.then(|| serde_json::from_slice(json).ok()).flatten()
}

/// Tells the ledger what a process that ended left in a file. Answers how many calls, or `None` when a lease of theirs is
/// not over yet and the file has to stay.
pub(super) async fn deliver(ledger: &dyn Ledger, taken: &Taken) -> Result<Option<u32>> {
    let mut told = 0_usize;
    for (id, calls) in read(&taken.content) {
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
