//! What a step lacks, read from the server: records, lists of open holds, keys and budgets. Nothing is written here.

use super::copies::Copies;
use super::draft::{Draft, Guess, HOLDS, Lists, Missing};
use super::link::Link;
use super::log;
use super::records::Record;
use super::step::{FETCHES, Own, call};
use super::wire::{self, Look};
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::ledger::rules;
use crate::ledger::types::{HoldFilter, State};

/// Open holds, or records, read at a time.
const PAGE: usize = 1_000;

impl Own {
    /// Runs a rule on what the ledger holds now, and writes nothing.
    pub(super) async fn look<T: Send>(
        &self,
        clock: &dyn Clock,
        mut rule: impl FnMut(&mut Draft<'_>, i64) -> Result<T> + Send,
    ) -> Result<T> {
        let own = Self::new(self.place.clone(), self.id.clone(), &[]);
        // It may be about everything that there is.
        own.state().copies = Copies::of_everything();
        let mut lists = Lists::default();
        let mut groups_version = None;
        for _ in 0..FETCHES {
            let missing = {
                let mut state = own.state();
                match state.copies.standing(clock.boot_ms())? {
                    None => vec![Missing::Stops],
                    // A group gained a budget between two answers: what is known of it is older than the version.
                    Some(standing)
                        if *groups_version.get_or_insert(standing.groups_version)
                            != standing.groups_version =>
                    {
                        groups_version = None;
                        state.copies = Copies::of_everything();
                        lists = Lists::default();
                        continue;
                    }
                    Some(standing) => {
                        let now_ms = standing.now_ms;
                        let mut draft = Draft::new(&mut state.copies, &lists, Guess::Nothing, standing);
                        let answer = rule(&mut draft, now_ms);
                        if draft.missing.is_empty() {
                            return answer;
                        }
                        std::mem::take(&mut draft.missing)
                    }
                }
            };
            own.fetch_over(&self.link, clock, missing, &mut lists).await?;
        }
        Err(Error::ledger("the ledger's records changed too often to be read"))
    }

    pub(super) async fn fetch(
        &self,
        clock: &dyn Clock,
        missing: Vec<Missing>,
        lists: &mut Lists,
    ) -> Result<()> {
        self.fetch_over(&self.link, clock, missing, lists).await
    }

    async fn fetch_over(
        &self,
        link: &Link,
        clock: &dyn Clock,
        missing: Vec<Missing>,
        lists: &mut Lists,
    ) -> Result<()> {
        let mut look = Look::default();
        for missing in missing {
            match missing {
                Missing::Record(name) => look.record(name),
                Missing::Counter(name) => look.counter(name),
                Missing::Stops => look.stops(),
                Missing::Open(filter) => {
                    let ids = self.open(link, clock, &filter).await?;
                    lists.open = Some((filter, ids));
                }
                Missing::Keys => {
                    let mut command = redis::cmd("ZRANGE");
                    command
                        .arg(self.place.ns.place("issued"))
                        .arg(0)
                        .arg(-1)
                        .arg("REV");
                    let ids = log::list(call(link, &command).await?)?;
                    for id in &ids {
                        look.record(format!("i:{id}"));
                        look.record(format!("k:{id}"));
                        look.counter(format!("{HOLDS}{id}"));
                        look.record(format!("p:{}", rules::leases_of(id)));
                    }
                    lists.keys = Some(ids);
                }
                Missing::Budgets => lists.budgets = Some(self.budgets(link).await?),
            }
        }
        self.look_over(link, clock, look).await
    }

    /// Copies what is looked for, some at a time: nobody else is served while the server reads it.
    pub(super) async fn look_over(&self, link: &Link, clock: &dyn Clock, look: Look) -> Result<()> {
        for look in look.parts(PAGE) {
            let answer = call(link, &look.command(&self.place.ns)).await?;
            look.read(answer, &mut self.state().copies, clock.boot_ms())?;
        }
        Ok(())
    }

    async fn copy_calls_over(&self, link: &Link, clock: &dyn Clock, calls: &[String]) -> Result<()> {
        let mut look = Look::default();
        for call in calls {
            look.record(format!("r:{call}"));
        }
        self.look_over(link, clock, look).await
    }

    /// Ids of the open holds that a filter asks for, oldest first.
    async fn open(&self, link: &Link, clock: &dyn Clock, filter: &HoldFilter) -> Result<Vec<String>> {
        let limit =
            usize::try_from(if filter.limit == 0 { 1_000 } else { filter.limit }).unwrap_or(usize::MAX);
        let mut found = Vec::new();
        let most = limit.clamp(1, PAGE);
        let mut from = 0_usize;
        let list = match filter.state {
            Some(State::Provisional) => "provisional",
            _ => "open",
        };
        loop {
            let mut command = redis::cmd("ZRANGE");
            command
                .arg(self.place.ns.place(list))
                .arg(from)
                .arg(from.saturating_add(most).saturating_sub(1));
            let page = log::list(call(link, &command).await?)?;
            self.copy_calls_over(link, clock, &page).await?;
            let last = page.len() < most;
            from = from.saturating_add(page.len());
            {
                let mut state = self.state();
                found.extend(page.into_iter().filter(|id| {
                    match state.copies.record(&format!("r:{id}")).map(|copy| &copy.record) {
                        Some(Record::Call(call)) => log::wanted(call, filter),
                        _ => false,
                    }
                }));
            }
            if last || found.len() >= limit {
                found.truncate(limit);
                return Ok(found);
            }
        }
    }

    /// Calls past their deadline, earliest first.
    pub(super) async fn due(&self, clock: &dyn Clock, limit: u32) -> Result<Vec<String>> {
        self.fetch(clock, vec![Missing::Stops], &mut Lists::default())
            .await?;
        let now_ms = match self.state().copies.standing(clock.boot_ms())? {
            Some(standing) => standing.now_ms,
            None => 0,
        };
        let mut command = redis::cmd("ZRANGEBYSCORE");
        command
            .arg(self.place.ns.place("deadlines"))
            .arg("-inf")
            .arg(now_ms)
            .arg("LIMIT")
            .arg(0)
            .arg(limit);
        let due = log::list(self.ask(&command).await?)?;
        self.copy_calls_over(&self.link, clock, &due).await?;
        let mut look = Look::default();
        for call_id in &due {
            let mut state = self.state();
            let copy = state.copies.record(&format!("r:{call_id}"));
            if let Some(Record::Call(call)) = copy.map(|copy| &copy.record) {
                for pointer in rules::pointers(call) {
                    look.record(format!("p:{pointer}"));
                }
            }
        }
        self.look_over(&self.link, clock, look).await?;
        Ok(due)
    }

    /// Ids of all budgets.
    async fn budgets(&self, link: &Link) -> Result<Vec<String>> {
        let mut found = std::collections::BTreeSet::new();
        let mut cursor = "0".to_owned();
        loop {
            let mut command = redis::cmd("HSCAN");
            command
                .arg(self.place.ns.place("records"))
                .arg(&cursor)
                .arg("MATCH")
                .arg("b:*")
                .arg("COUNT")
                .arg(PAGE);
            let mut parts = wire::Parts::of(call(link, &command).await?)?;
            cursor = parts.text()?;
            for (name, _) in log::pairs(parts.next()?)? {
                found.extend(name.strip_prefix("b:").map(str::to_owned));
            }
            if cursor == "0" {
                return Ok(found.into_iter().collect());
            }
        }
    }
}
