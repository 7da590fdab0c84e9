//! Up to where archives have the log, and its trimming.
//!
//! Both are kept as text: the rule (`ledger::backlog`) decides here, and one function compares what it rested on and
//! writes, in one atomic step (`keep` in recovery.lua), as with every other step of this ledger.

use super::copies::Copies;
use super::past::Era;
use super::records::{self, Record};
use super::wire::{self, Look, Parts};
use super::{RedisLedger, log};
use crate::error::{Error, ErrorKind, Result};
use crate::ledger::backlog::{Archives, Backlog, Drained, check_trim};
use crate::ledger::reassertion::EraRange;
use crate::ledger::store::Checkpoint;
use crate::ledger::types::Reservation;

/// Events removed in one step: a server that removes many serves nobody meanwhile.
const TRIM: u64 = 5_000;
/// Reservations read at a time.
const CALLS: usize = 500;
/// Tries to write while others write the same.
const TRIES: u32 = 100;

/// What the decisions about the log rest on, as the server has it.
#[derive(Debug, Default)]
struct Kept {
    archives: String,
    checkpoints: String,
}

impl Kept {
    fn archives(&self) -> Result<Archives> {
        if self.archives.is_empty() {
            return Ok(Archives::new());
        }
        serde_json::from_str(&self.archives).map_err(|e| wire::unreadable().because(e))
    }

    fn checkpoint_seqs(&self) -> Result<Vec<u64>> {
        if self.checkpoints.is_empty() {
            return Ok(Vec::new());
        }
        serde_json::from_str(&self.checkpoints).map_err(|e| wire::unreadable().because(e))
    }

    fn checkpoint_seq(&self) -> Result<u64> {
        Ok(self.checkpoint_seqs()?.last().copied().unwrap_or(0))
    }
}

/// What a step writes.
#[derive(Debug, Default)]
struct Write {
    archives: Option<Archives>,
    /// The number of the first event that stays.
    from_seq: Option<u64>,
    /// A checkpoint, and the numbers of all with it.
    checkpoint: Option<(Checkpoint, Vec<u64>)>,
}

/// What the log has of each of its eras: of an earlier one no more than any later one began with.
fn events_of(eras: &[Era], last_seq: u64) -> Vec<EraRange> {
    let mut last = last_seq;
    let mut events: Vec<EraRange> = Vec::with_capacity(eras.len());
    for era in eras.iter().rev() {
        events.push(EraRange {
            era: era.epoch,
            first: era.start.saturating_add(1),
            last,
        });
        last = last.min(era.from);
    }
    events.retain(|range| range.first <= range.last);
    events.reverse();
    events
}

impl RedisLedger {
    pub(super) async fn backlog_now(&self) -> Result<Backlog> {
        let kept = self.kept().await?;
        let mut command = redis::cmd("XRANGE");
        let events = self.place.ns.place("events");
        command.arg(&events).arg("-").arg("+").arg("COUNT").arg(1);
        let first = log::read(self.own().ask(&command).await?)?;
        let first = first.first().map(|event| (event.seq, event.at_ms));
        let mut command = redis::cmd("MEMORY");
        command.arg("USAGE").arg(&events);
        // Its user may be forbidden to ask; then nothing is said of it.
        let bytes = self.own().ask(&command).await.ok();
        let bytes = bytes.and_then(|value| wire::text(value).ok()?.parse().ok());
        // Last, so that no event before it is missed.
        let about = self.own().about().await?;
        let last_seq = about.standing.last_seq;
        Ok(Backlog {
            first_seq: first.map_or_else(|| u64::saturating_add(last_seq, 1), |(seq, _)| seq),
            first_at_ms: first.map(|(_, at_ms)| at_ms),
            last_seq,
            checkpoint_seq: kept.checkpoint_seq()?,
            archives: kept.archives()?,
            bytes,
            eras: events_of(&about.eras(), last_seq),
        })
    }

    pub(super) async fn note_archive(&self, id: &str, drained: Option<Drained>) -> Result<bool> {
        self.keep(|kept| {
            let mut archives = kept.archives()?;
            let known = match drained.clone() {
                Some(drained) => archives.insert(id.to_owned(), drained).is_some(),
                None => archives.remove(id).is_some(),
            };
            let write = Write {
                archives: Some(archives),
                ..Write::default()
            };
            Ok((known, write))
        })
        .await
    }

    /// Adds a checkpoint after the one of this number, if that is still the last. Also on a server without memory: it is
    /// what lets the log be trimmed.
    pub(super) async fn add_checkpoint(&self, after_seq: u64, checkpoint: &Checkpoint) -> Result<()> {
        self.keep(|kept| {
            let mut numbers = kept.checkpoint_seqs()?;
            if numbers.last().copied().unwrap_or(0) != after_seq {
                return Ok(((), Write::default()));
            }
            numbers.push(checkpoint.seq);
            let write = Write {
                checkpoint: Some((checkpoint.clone(), numbers)),
                ..Write::default()
            };
            Ok(((), write))
        })
        .await
    }

    pub(super) async fn trim_all(&self, upto_seq: u64) -> Result<u64> {
        let mut removed = 0_u64;
        loop {
            let first_seq = self.backlog_now().await?.first_seq;
            let until = first_seq.saturating_add(TRIM).saturating_sub(1).min(upto_seq);
            let from_seq = until.saturating_add(1);
            self.keep(|kept| {
                check_trim(&kept.archives()?, kept.checkpoint_seq()?, upto_seq)?;
                let write = Write {
                    from_seq: Some(from_seq),
                    ..Write::default()
                };
                Ok(((), write))
            })
            .await?;
            removed = removed.saturating_add(from_seq.saturating_sub(first_seq));
            if until >= upto_seq {
                return Ok(removed);
            }
        }
    }

    pub(super) async fn calls(&self, call_ids: &[String]) -> Result<Vec<Reservation>> {
        let mut found = Vec::with_capacity(call_ids.len());
        for some in call_ids.chunks(CALLS) {
            let mut copies = Copies::default();
            let mut look = Look::default();
            let names: Vec<String> = some.iter().map(|id| format!("r:{id}")).collect();
            for name in &names {
                look.record(name.clone());
            }
            self.read(look, &mut copies).await?;
            for name in &names {
                if let Some(Record::Call(call)) = copies.record(name).map(|copy| &copy.record) {
                    found.push(Reservation::clone(call));
                }
            }
        }
        Ok(found)
    }

    pub(super) async fn checkpoints_after(&self, after_seq: u64) -> Result<Vec<Checkpoint>> {
        self.checkpoints_read(&mut Copies::of_everything(), after_seq)
            .await
    }

    async fn kept(&self) -> Result<Kept> {
        let mut command = redis::cmd("HMGET");
        command
            .arg(self.place.ns.place("records"))
            .arg("archives")
            .arg("checkpoints");
        let mut parts = Parts::of(self.own().ask(&command).await?)?;
        Ok(Kept {
            archives: parts.text()?,
            checkpoints: parts.text()?,
        })
    }

    /// Decides and writes, again when what it rested on has changed meanwhile. It may run twice when an answer is lost,
    /// and writes the same then.
    async fn keep<T>(&self, decide: impl Fn(&Kept) -> Result<(T, Write)> + Send) -> Result<T>
    where
        T: Send,
    {
        let mut kept = self.kept().await?;
        for _ in 0..TRIES {
            let (answer, write) = decide(&kept)?;
            let known = self.own().known();
            let name = write.checkpoint.iter().map(|(made, _)| format!("c:{}", made.seq));
            let mut command = wire::function("keep", &self.place.ns, &name.collect::<Vec<_>>());
            command.arg(&self.id);
            known.put(&mut command);
            command.arg(&kept.archives).arg(&kept.checkpoints);
            command.arg(match &write.archives {
                Some(archives) => serde_json::to_string(archives).map_err(|e| {
                    Error::new(ErrorKind::Internal, "the archives cannot be written").because(e)
                })?,
                None => String::new(),
            });
            command.arg(write.from_seq.map_or_else(String::new, |seq| seq.to_string()));
            let (mut made, mut list) = (String::new(), String::new());
            if let Some((checkpoint, numbers)) = write.checkpoint {
                made = records::print(&Record::Checkpoint(Box::new(checkpoint)))?;
                list = records::print(&Record::Numbers(numbers))?;
            }
            command.arg(made).arg(list);
            let mut parts = Parts::of(self.own().ask(&command).await?)?;
            match parts.text()?.as_str() {
                "done" => return Ok(answer),
                "moved" => {
                    parts.next()?;
                    (kept.archives, kept.checkpoints) = (parts.text()?, parts.text()?);
                }
                // A witness opens it, or says why not.
                _ => self.own().witness(&*self.clock).await?,
            }
        }
        Err(Error::ledger(
            "the archives of the log changed too often for this to be written down",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_era_there_is_what_every_later_one_began_with() {
        let era = |epoch, from, start| Era { epoch, from, start };
        let eras = [
            era(1, 0, 0),
            era(2, 950, 10_950),
            era(3, 900, 900),
            era(4, 980, 10_980),
        ];
        let range = |era, first, last| EraRange { era, first, last };
        assert_eq!(
            events_of(&eras, 10_990),
            [range(1, 1, 900), range(3, 901, 980), range(4, 10_981, 10_990)],
            "of the second none is left"
        );
        assert_eq!(events_of(&[era(1, 0, 0)], 0), []);
    }
}
