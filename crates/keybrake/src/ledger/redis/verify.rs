//! Do the books agree, on a snapshot of the counters at one event number.

use super::copies::Copies;
use super::draft::{Draft, Guess, HOLDS, Lists, SUM, Snapshot};
use super::records::Record;
use super::wire::{self, Look, Parts};
use super::{PAGE, RedisLedger, log};
use crate::error::Result;
use crate::ledger::events::{Event, EventBody};
use crate::ledger::rules;
use crate::ledger::store::Checkpoint;
use crate::ledger::types::{CounterName, VerifyReport};

impl RedisLedger {
    pub(super) async fn verified(&self) -> Result<VerifyReport> {
        let mut copies = Copies::of_everything();
        let checkpoints = self.checkpoints_read(&mut copies, 0).await?;
        let from_seq = checkpoints.last().map_or(0, |last| last.seq);
        let mut snapshot = self.snapshot(&mut copies).await?;
        snapshot.checkpoints = checkpoints;
        snapshot.events = self.changes(from_seq, snapshot.last_seq).await?;
        let standing = copies.standing(self.clock.boot_ms())?.unwrap_or_default();
        let lists = Lists::default();
        let now_ms = standing.now_ms;
        let mut draft = Draft::new(&mut copies, &lists, Guess::Nothing, standing);
        draft.snapshot = Some(snapshot);
        let report = rules::verify(&mut draft, now_ms, &self.secret)?;
        let made = draft.snapshot.and_then(|snapshot| snapshot.made);
        if let Some(checkpoint) = made {
            self.add_checkpoint(from_seq, &checkpoint).await?;
        }
        Ok(report)
    }

    /// Those after an event number, in order.
    pub(super) async fn checkpoints_read(
        &self,
        copies: &mut Copies,
        after_seq: u64,
    ) -> Result<Vec<Checkpoint>> {
        let mut look = Look::default();
        look.record("checkpoints".to_owned());
        look.stops();
        self.read(look, copies).await?;
        let mut numbers = match copies.record("checkpoints").map(|copy| &copy.record) {
            Some(Record::Numbers(numbers)) => numbers.clone(),
            _ => Vec::new(),
        };
        numbers.retain(|seq| *seq > after_seq);
        let mut look = Look::default();
        let names: Vec<String> = numbers.iter().map(|seq| format!("c:{seq}")).collect();
        for name in &names {
            look.record(name.clone());
        }
        if !look.is_empty() {
            self.read(look, copies).await?;
        }
        let found = names
            .iter()
            .filter_map(|name| match &copies.record(name)?.record {
                Record::Checkpoint(checkpoint) => Some(Checkpoint::clone(checkpoint)),
                _ => None,
            });
        Ok(found.collect())
    }

    pub(super) async fn read(&self, look: Look, copies: &mut Copies) -> Result<()> {
        let answer = self.own().ask(&look.command(&self.place.ns)).await?;
        look.read(answer, copies, self.clock.boot_ms())
    }

    async fn snapshot(&self, copies: &mut Copies) -> Result<Snapshot> {
        let command = wire::function("snapshot", &self.place.ns, &[]);
        let mut parts = Parts::of(self.own().ask(&command).await?)?;
        parts.text()?;
        let standing = wire::standing(parts.next()?)?;
        let mut snapshot = Snapshot {
            last_seq: standing.last_seq,
            ..Snapshot::default()
        };
        copies.stand(standing, self.clock.boot_ms());
        for (name, value) in log::pairs(parts.next()?)? {
            let counter = wire::counter(&value)?;
            copies.learn_counter(&name, counter);
            if !name.starts_with([SUM, HOLDS]) {
                snapshot.counters.push((CounterName::from(name), counter));
            }
        }
        snapshot.counters.sort_by(|a, b| a.0.cmp(&b.0));
        for (name, text) in log::pairs(parts.next()?)? {
            copies.learn(&name, &text)?;
        }
        for (name, _) in &snapshot.counters {
            // A family without buckets has no running sum.
            if let Some((family, _)) = name.rsplit_once('|')
                && copies.record(&format!("g:{family}")).is_none()
            {
                copies.learn(&format!("g:{family}"), "")?;
            }
        }
        Ok(snapshot)
    }

    /// What the events from one number to another changed, without their bodies.
    async fn changes(&self, from_seq: u64, upto_seq: u64) -> Result<Vec<Event>> {
        let mut found = Vec::new();
        let mut after_seq = from_seq;
        while after_seq < upto_seq {
            let page = self.page(after_seq, PAGE).await?;
            let Some(newest) = page.last() else { break };
            after_seq = newest.seq;
            let within = page.into_iter().filter(|event| event.seq <= upto_seq);
            found.extend(within.map(|event| Event {
                body: EventBody {
                    admin: event.body.admin,
                    ..EventBody::default()
                },
                ..event
            }));
        }
        Ok(found)
    }
}
