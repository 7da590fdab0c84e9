//! One step: drafted by the rules on copies, committed if nothing it rests on has changed, drafted again if something
//! has.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::copies::{Copies, Standing};
use super::draft::{Draft, Guess, Lists, Missing};
use super::life;
use super::link::{Failure, Link};
use super::records::Record;
use super::url::Place;
use super::wire::{self, Answer, Look, Sent};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::ledger::rules::{self, Flood};
use crate::ledger::store::Counter;
use crate::ledger::types::HoldFilter;

/// Drafts of one step before it is refused: many others change the same records all the time.
const DRAFTS: u32 = 200;
/// Drafts after which a step steps aside for a moment between tries.
const PATIENT: u32 = 8;
/// A step rests on a time that may be off by so much: half a second.
const SLACK_MS: i64 = 500;
/// Open holds read at a time.
const PAGE: usize = 1_000;

/// What belongs to one process: a fork's child has its own.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) link: Link,
    pub(super) place: Place,
    state: Mutex<Memory>,
}

#[derive(Debug)]
struct Memory {
    copies: Copies,
    flood: Flood,
}

impl Memory {
    fn new() -> Self {
        Self {
            copies: Copies::default(),
            flood: Flood::with_notes(),
        }
    }
}

/// What kind of step it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    pub(super) guess: Guess,
    /// Whether every deadline that has passed is dealt with before it.
    pub(super) lapses: bool,
    /// How many calls past their deadline it is about; 0 when it is about others.
    pub(super) due: u32,
}

/// The counters that a step read or changed, as they stand after it.
pub(super) type Counters = Vec<(String, Counter)>;

enum Next<T> {
    /// Records are missing.
    Fetch(Vec<Missing>),
    Commit(Box<Sent>, Result<T>, Vec<rules::FloodNote>),
}

impl Own {
    pub(super) fn new(place: Place) -> Self {
        Self {
            link: Link::new(place.clone()),
            place,
            state: Mutex::new(Memory::new()),
        }
    }

    fn state(&self) -> MutexGuard<'_, Memory> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn trust_clock(&self) {
        self.state().copies.trust_clock();
    }

    /// Time is given to a hold for what a step's time may lag behind.
    pub(super) fn slack_ms(&self) -> i64 {
        let state = self.state();
        match state.copies.standing(0) {
            Ok(Some(standing)) if standing.fixed => 0,
            _ => SLACK_MS,
        }
    }

    /// Runs a rule and commits what it wants.
    ///
    /// # Errors
    /// The rule's own, once what it rests on is confirmed; `LedgerUnavailable` when the server does not answer in time.
    pub(super) async fn step<T: Send>(
        &self,
        clock: &dyn Clock,
        kind: Kind,
        mut rule: impl FnMut(&mut Draft<'_>, &mut Flood, i64) -> Result<T> + Send,
    ) -> Result<(T, Counters)> {
        let mut lists = Lists::default();
        if kind.due > 0 {
            lists.due = self.due(clock, kind.due).await?;
        }
        self.look_at_clock(clock).await?;
        let mut lost = false;
        for draft in 0..DRAFTS {
            if draft >= PATIENT {
                self.step_aside(draft).await;
            }
            let (sent, answer, notes) = match self.draft(clock, kind, &lists, &mut rule)? {
                Next::Fetch(missing) => {
                    self.fetch(clock, missing, &mut lists).await?;
                    continue;
                }
                Next::Commit(sent, answer, notes) => (sent, answer, notes),
            };
            match self.commit(clock, *sent).await {
                Ok(Answer::Done(counters)) => return answer.map(|answer| (answer, counters)),
                Ok(Answer::Moved(due)) => {
                    self.state().flood.take_back(notes);
                    if kind.lapses && !due.is_empty() {
                        self.lapse(clock).await?;
                    }
                }
                Ok(Answer::Closed | Answer::Behind) => {
                    self.state().flood.take_back(notes);
                    self.witness(clock).await?;
                }
                Err(Failure::Lost(error)) => {
                    self.state().flood.take_back(notes);
                    // It may have run. The same step asked for again finds what it left, and counts nothing twice.
                    if lost {
                        return Err(error);
                    }
                    lost = true;
                }
                Err(Failure::Refused(error)) => {
                    self.state().flood.take_back(notes);
                    return Err(error);
                }
            }
        }
        Err(Error::ledger(
            "the ledger's records changed too often for this call to be decided; nothing was sent",
        ))
    }

    /// After the server's clock jumped: is it back, or has a person accepted it?
    async fn look_at_clock(&self, clock: &dyn Clock) -> Result<()> {
        if !self.state().copies.jumped() {
            return Ok(());
        }
        for _ in 0..2 {
            let mut look = Look::default();
            look.record("clock".to_owned());
            look.stops();
            let answer = self.ask(&look.command(&self.place.ns)).await?;
            let mut memory = self.state();
            let copies = &mut memory.copies;
            look.read(answer, copies, clock.boot_ms())?;
            let accepted = match copies.record("clock").map(|copy| &copy.record) {
                Some(Record::Numbers(times)) => times.last().map(|at_ms| at_ms.cast_signed()),
                _ => None,
            };
            if !copies.jumped() {
                break;
            }
            if let Some(at_ms) = accepted {
                copies.accept_clock(at_ms);
            }
        }
        Ok(())
    }

    /// Marks everything that is overdue as unknown, some at a time.
    async fn lapse(&self, clock: &dyn Clock) -> Result<()> {
        const BATCH: u32 = 256;
        let kind = Kind {
            guess: Guess::Nothing,
            lapses: false,
            due: BATCH,
        };
        loop {
            let rule = |draft: &mut Draft<'_>, _: &mut Flood, now_ms| rules::sweep(draft, now_ms, BATCH);
            let (marked, _) = Box::pin(self.step(clock, kind, rule)).await?;
            if marked < BATCH {
                return Ok(());
            }
        }
    }

    fn draft<T>(
        &self,
        clock: &dyn Clock,
        kind: Kind,
        lists: &Lists,
        rule: &mut impl FnMut(&mut Draft<'_>, &mut Flood, i64) -> Result<T>,
    ) -> Result<Next<T>> {
        let mut state = self.state();
        let Memory { copies, flood } = &mut *state;
        let Some(standing) = copies.standing(clock.boot_ms())? else {
            return Ok(Next::Fetch(vec![Missing::Stops]));
        };
        let mut draft = Draft::new(copies, lists, kind.guess, standing);
        draft.looks_at_deadlines = kind.lapses;
        let answer = rule(&mut draft, flood, standing.now_ms);
        let notes = flood.take_notes();
        if !draft.missing.is_empty() {
            let missing = std::mem::take(&mut draft.missing);
            flood.take_back(notes);
            return Ok(Next::Fetch(missing));
        }
        if answer.is_err() {
            draft.write_nothing();
        }
        let slack_ms = if standing.fixed { 0 } else { SLACK_MS };
        let sent = wire::commit(&draft, &self.place.ns, standing, slack_ms);
        match sent {
            Ok(sent) => Ok(Next::Commit(Box::new(sent), answer, notes)),
            Err(error) => {
                flood.take_back(notes);
                Err(error)
            }
        }
    }

    async fn commit(&self, clock: &dyn Clock, sent: Sent) -> Result<Answer, Failure> {
        match self.link.call(&sent.command).await {
            Ok(value) => {
                let mut state = self.state();
                sent.read(value, &mut state.copies, clock.boot_ms())
                    .map_err(Failure::Refused)
            }
            Err(failure) => {
                self.state().copies.forget(sent.names());
                Err(failure)
            }
        }
    }

    /// Runs a rule on what the ledger holds now, and writes nothing.
    pub(super) async fn look<T: Send>(
        &self,
        clock: &dyn Clock,
        mut rule: impl FnMut(&mut Draft<'_>, i64) -> Result<T> + Send,
    ) -> Result<T> {
        let own = Self::new(self.place.clone());
        let mut lists = Lists::default();
        for _ in 0..DRAFTS {
            let missing = {
                let mut state = own.state();
                match state.copies.standing(clock.boot_ms())? {
                    None => vec![Missing::Stops],
                    Some(standing) => {
                        let mut draft = Draft::new(&mut state.copies, &lists, Guess::Nothing, standing);
                        let answer = rule(&mut draft, standing.now_ms);
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

    async fn fetch(&self, clock: &dyn Clock, missing: Vec<Missing>, lists: &mut Lists) -> Result<()> {
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
                Missing::Holder(key_id) => look.holder(key_id),
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
                    let ids = super::log::list(call(link, &command).await?)?;
                    for id in &ids {
                        look.record(format!("i:{id}"));
                        look.record(format!("k:{id}"));
                        look.holder(id.clone());
                    }
                    lists.keys = Some(ids);
                }
                Missing::Budgets => lists.budgets = Some(self.budgets(link).await?),
            }
        }
        if look.is_empty() {
            return Ok(());
        }
        let answer = call(link, &look.command(&self.place.ns)).await?;
        look.read(answer, &mut self.state().copies, clock.boot_ms())
    }

    /// Copies the records of these calls.
    async fn copy_calls(&self, clock: &dyn Clock, calls: &[String]) -> Result<()> {
        self.copy_calls_over(&self.link, clock, calls).await
    }

    async fn copy_calls_over(&self, link: &Link, clock: &dyn Clock, calls: &[String]) -> Result<()> {
        if calls.is_empty() {
            return Ok(());
        }
        let mut look = Look::default();
        for call in calls {
            look.record(format!("r:{call}"));
        }
        let answer = call(link, &look.command(&self.place.ns)).await?;
        look.read(answer, &mut self.state().copies, clock.boot_ms())
    }

    /// Ids of the open holds that a filter asks for, oldest first.
    async fn open(&self, link: &Link, clock: &dyn Clock, filter: &HoldFilter) -> Result<Vec<String>> {
        let limit =
            usize::try_from(if filter.limit == 0 { 1_000 } else { filter.limit }).unwrap_or(usize::MAX);
        let mut found = Vec::new();
        let mut from = 0_usize;
        let list = match filter.state {
            Some(crate::ledger::types::State::Provisional) => "provisional",
            _ => "open",
        };
        loop {
            let mut command = redis::cmd("ZRANGE");
            command
                .arg(self.place.ns.place(list))
                .arg(from)
                .arg(from.saturating_add(PAGE).saturating_sub(1));
            let page = super::log::list(call(link, &command).await?)?;
            self.copy_calls_over(link, clock, &page).await?;
            let last = page.len() < PAGE;
            from = from.saturating_add(page.len());
            {
                let mut state = self.state();
                found.extend(page.into_iter().filter(|id| {
                    match state.copies.record(&format!("r:{id}")).map(|copy| &copy.record) {
                        Some(Record::Call(call)) => super::log::wanted(call, filter),
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
    async fn due(&self, clock: &dyn Clock, limit: u32) -> Result<Vec<String>> {
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
        let due = super::log::list(self.ask(&command).await?)?;
        self.copy_calls(clock, &due).await?;
        Ok(due)
    }

    /// Opens the ledger on a server that has just started; answers whether it was closed.
    pub(super) async fn open_by_hand(&self) -> Result<bool> {
        let connection = super::link::connect(&self.place).await?;
        let about = life::greet(&*connection, &self.place).await?;
        if about.open {
            return Ok(false);
        }
        life::open(&*connection, &self.place, life::Why::Person).await?;
        // What was seen before the server started may not be there any more.
        *self.state() = Memory::new();
        Ok(true)
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
            for (name, _) in super::log::pairs(parts.next()?)? {
                found.extend(name.strip_prefix("b:").map(str::to_owned));
            }
            if cursor == "0" {
                return Ok(found.into_iter().collect());
            }
        }
    }

    /// The server has just started. A process that saw the ledger's last state opens it, if that state is there.
    async fn witness(&self, clock: &dyn Clock) -> Result<()> {
        let seen = self.state().copies.standing(clock.boot_ms())?;
        let connection = super::link::connect(&self.place).await?;
        let about = life::greet(&*connection, &self.place).await?;
        if about.open {
            return Ok(());
        }
        if !about.exists() {
            return Err(recovering(
                &self.place,
                "its data is gone: restore it from a backup or from the drained audit",
            ));
        }
        let missing = |seen: u64| {
            let what = format!(
                "it came back with {} events, older data than was seen before ({seen} events): restore newer data, or \
                 open it by hand and compare it with the vendor: keybrake ledger open, keybrake reconcile",
                about.number("seq"),
            );
            Err(recovering(&self.place, &what))
        };
        match seen {
            _ if about.number("behind") > 0 => missing(about.number("behind")),
            Some(Standing { last_seq, epoch, .. }) if last_seq > 0 => {
                if about.lacks(last_seq, epoch) {
                    return missing(last_seq);
                }
                life::open(&*connection, &self.place, life::Why::Witness).await?;
                Ok(())
            }
            _ => Err(recovering(
                &self.place,
                "no process that saw its last state has opened it yet; when none is left, open it by hand: \
                 keybrake ledger open",
            )),
        }
    }

    /// The state that [`look`](Self::look) and [`step`](Self::step) do not cover: a command of its own.
    pub(super) async fn ask(&self, command: &redis::Cmd) -> Result<redis::Value> {
        call(&self.link, command).await
    }

    /// A moment's pause, longer with every try and different for every process.
    async fn step_aside(&self, draft: u32) {
        let micros = u64::from(draft)
            .saturating_mul(50)
            .saturating_add(u64::from(self.place.server.random()));
        tokio::time::sleep(Duration::from_micros(micros)).await;
    }
}

async fn call(link: &Link, command: &redis::Cmd) -> Result<redis::Value> {
    link.call(command).await.map_err(Failure::into_error)
}

fn recovering(place: &Place, what: &str) -> Error {
    Error::new(
        ErrorKind::LedgerRecovering,
        format!(
            "the Redis server of the ledger at {} has just started, and {what}",
            place.shown
        ),
    )
}
