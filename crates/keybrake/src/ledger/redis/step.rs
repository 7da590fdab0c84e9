//! One step: drafted by the rules on copies, committed if nothing it rests on has changed, drafted again if something
//! has.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use super::commit::{self, Answer, Sent, Telling};
use super::copies::Copies;
use super::draft::{Draft, Guess, Lists, Missing};
use super::link::{Failure, Link, Live};
use super::past::{Era, Past, Range};
use super::records::Record;
use super::url::Place;
use super::wire::Look;
use tokio::sync::Mutex as AsyncMutex;

use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::ledger::events::EventKind;
use crate::ledger::rules::{self, Flood};
use crate::ledger::shared::hex;
use crate::ledger::store::Counter;

/// Drafts of one step before it is refused: many others change the same records all the time.
pub(super) const DRAFTS: u32 = 200;
/// Times that one step asks for records it lacks, besides: each time for all that it knows of.
pub(super) const FETCHES: u32 = 200;
/// Calls past their deadline that one step deals with.
const OVERDUE: u32 = 128;
/// Drafts after which a step steps aside for a moment between tries, and looks again at what it rests on.
pub(super) const PATIENT: u32 = 8;
/// A step rests on a time that may be off by so much: half a second, or more where answers take longer.
const SLACK_MS: i64 = 500;
/// A step that is not decided after so many times the URL's timeout is refused.
const TIMEOUTS: i64 = 3;

/// What belongs to one process: a fork's child has its own.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) link: Link,
    pub(super) place: Place,
    /// The ledger's.
    pub(super) id: String,
    state: Mutex<Memory>,
    /// Held by whoever finds out whether the ledger may be opened.
    pub(super) opening: AsyncMutex<()>,
}

#[derive(Debug)]
pub(super) struct Memory {
    pub(super) copies: Copies,
    flood: Flood,
    /// By how much a step's time may be off: as much as steps were late before.
    slack_ms: i64,
}

impl Memory {
    /// Forgets what the ledger held, and not what this process did.
    pub(super) fn forget(&mut self) {
        let past = std::mem::take(&mut self.copies.past);
        self.copies = Copies::anew(past);
        self.flood = Flood::with_notes();
    }

    /// Forgets what the ledger held, and not what this process has seen of its log.
    pub(super) fn forget_records(&mut self) {
        let known = self.copies.known();
        self.forget();
        self.copies.known_before(known);
    }
}

/// What kind of step it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    pub(super) guess: Guess,
    /// Whether it would count twice if it ran again after its answer was lost.
    pub(super) once: bool,
    /// Whether every deadline that has passed is dealt with before it.
    pub(super) lapses: bool,
    /// How many calls past their deadline it is about; 0 when it is about others.
    pub(super) due: u32,
}

/// The counters that a step read or changed, as they stand after it.
pub(super) type Counters = Vec<(String, Counter)>;

/// What is known after a step.
#[derive(Debug)]
pub(super) struct After {
    pub(super) counters: Counters,
    /// The connection whose server has it.
    by: Live,
}

/// What a step's denials left in the memory of their floods: taken back unless the step is written, and also when
/// nobody waits for it any more.
struct Noted<'a> {
    own: &'a Own,
    notes: Vec<rules::FloodNote>,
}

impl Noted<'_> {
    fn stand(mut self) {
        self.notes.clear();
    }
}

impl Drop for Noted<'_> {
    fn drop(&mut self) {
        let notes = std::mem::take(&mut self.notes);
        if !notes.is_empty() {
            self.own.state().flood.take_back(notes);
        }
    }
}

/// The name of a step's mark, made when a draft needs it, and the draft's number.
pub(super) type Mark<'a> = Option<(&'a OnceLock<String>, u32)>;

pub(super) enum Next<T> {
    /// Records are missing.
    Fetch(Vec<Missing>),
    Commit(Box<Sent>, Result<T>, Vec<rules::FloodNote>),
}

impl Own {
    pub(super) fn new(place: Place, id: String, eras: &[Era]) -> Self {
        Self {
            link: Link::new(place.clone()),
            place,
            id,
            state: Mutex::new(Memory {
                copies: Copies::anew(Past::in_eras(eras)),
                flood: Flood::with_notes(),
                slack_ms: SLACK_MS,
            }),
            opening: AsyncMutex::const_new(()),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, Memory> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What this process has seen of the log.
    pub(super) fn known(&self) -> super::copies::Known {
        self.state().copies.known().unwrap_or_default()
    }

    pub(super) fn trust_clock(&self) {
        self.state().copies.trust_clock();
    }

    fn timeout_ms(&self) -> i64 {
        i64::try_from(self.place.timeout.as_millis()).unwrap_or(i64::MAX)
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
    ) -> Result<(T, After)> {
        let mut lists = Lists::default();
        if kind.due > 0 {
            lists.due = self.due(clock, kind.due).await?;
        }
        self.look_at_clock(clock).await?;
        self.rejoin(clock).await?;
        self.recall(clock).await;
        // Made when it is needed. What it counts once by itself needs none.
        let mark = OnceLock::new();
        let mut lost = None;
        let (mut drafts, mut fetches) = (0_u32, 0_u32);
        let mut until_ms = clock
            .boot_ms()
            .saturating_add(self.timeout_ms().saturating_mul(TIMEOUTS));
        while drafts < DRAFTS && fetches < FETCHES {
            if clock.boot_ms() > until_ms {
                return Err(Error::ledger(format!(
                    "the ledger at {} came to no decision within {TIMEOUTS} times {} ms; nothing was sent",
                    self.place.shown,
                    self.timeout_ms(),
                )));
            }
            let draft = drafts;
            let telling = (&lists, Some((&mark, draft)), None, draft > 0);
            let (sent, answer, notes) = match self.draft(clock, kind, telling, &mut rule)? {
                Next::Fetch(missing) => {
                    fetches = fetches.saturating_add(1);
                    self.fetch(clock, missing, &mut lists).await?;
                    continue;
                }
                Next::Commit(sent, answer, notes) => (sent, answer, Noted { own: self, notes }),
            };
            drafts = drafts.saturating_add(1);
            let again = (drafts >= PATIENT).then(|| sent.look());
            match self.commit(clock, *sent).await {
                Ok((Answer::Done(counters), by)) => {
                    notes.stand();
                    if lost.is_some() {
                        self.recall(clock).await;
                    }
                    return answer.map(|answer| (answer, After { counters, by }));
                }
                Ok((Answer::Moved(due), by)) => {
                    if let Some(ran) = self.left(mark.get().map(String::as_str)) {
                        // Two drafts may have come to different answers: only that of the one that ran holds.
                        let answer = match lost {
                            _ if ran == draft => {
                                notes.stand();
                                answer
                            }
                            Some((number, lost)) if number == ran => lost,
                            _ => Err(self.ran_unknown()),
                        };
                        self.recall(clock).await;
                        let counters = Counters::new();
                        return answer.map(|answer| (answer, After { counters, by }));
                    }
                    drop(notes);
                    if kind.lapses && !due.is_empty() {
                        // That is done for everybody, and is not time of this step.
                        let began_ms = clock.boot_ms();
                        self.lapse(clock).await?;
                        let took_ms = clock.boot_ms().saturating_sub(began_ms);
                        until_ms = until_ms.saturating_add(took_ms);
                    }
                    if let Some(again) = again {
                        self.step_aside(drafts).await;
                        self.look_over(&self.link, clock, again).await?;
                    }
                }
                Ok((Answer::Closed, _)) => {
                    drop(notes);
                    self.witness(clock).await?;
                }
                Err(Failure::Lost(error)) => {
                    drop(notes);
                    // It may have run. The same step asked for again finds what it left, and counts nothing twice.
                    if lost.is_some() {
                        return Err(error);
                    }
                    lost = Some((draft, answer));
                }
                Err(Failure::Refused(error)) => {
                    return Err(error);
                }
            }
        }
        Err(Error::ledger(
            "the ledger's records changed too often for this call to be decided; nothing was sent",
        ))
    }

    /// Which draft of a step left its mark.
    fn left(&self, mark: Option<&str>) -> Option<u32> {
        let mut state = self.state();
        match state.copies.record(mark?)?.record {
            Record::Mark(draft) => Some(draft),
            _ => None,
        }
    }

    /// A network said a draft twice, and the one that the server had refused ran the second time.
    fn ran_unknown(&self) -> Error {
        Error::ledger(format!(
            "the ledger at {} wrote a draft of this step that it had refused before; nothing was sent",
            self.place.shown
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
            if !copies.jumped() {
                break;
            }
            if let Some(Record::Numbers(times)) = copies.record("clock").map(|copy| copy.record.clone()) {
                copies.accepted(&times);
            }
        }
        Ok(())
    }

    /// Marks everything that is overdue as unknown.
    pub(super) async fn lapse(&self, clock: &dyn Clock) -> Result<()> {
        self.sweep(clock, u32::MAX).await.map(|_| ())
    }

    /// Marks what is overdue as unknown, some at a time and at most so many; answers how many. Another process may do
    /// the same at the same time: what it has marked is not marked again.
    pub(super) async fn sweep(&self, clock: &dyn Clock, limit: u32) -> Result<u32> {
        let mut marked = 0_u32;
        loop {
            let batch = limit.saturating_sub(marked).min(OVERDUE);
            let kind = Kind {
                // What is known of a call is copied with it; its counters change by differences.
                guess: Guess::NewCall,
                lapses: false,
                once: true,
                due: batch,
            };
            let rule = |draft: &mut Draft<'_>, _: &mut Flood, now_ms| {
                let due = draft.lists.due.len();
                rules::sweep(draft, now_ms, batch).map(|marked| (marked, due))
            };
            let ((more, due), _) = Box::pin(self.step(clock, kind, rule)).await?;
            marked = marked.saturating_add(more);
            if marked >= limit || due < usize::try_from(OVERDUE).unwrap_or(usize::MAX) {
                return Ok(marked);
            }
        }
    }

    pub(super) fn draft<T>(
        &self,
        clock: &dyn Clock,
        kind: Kind,
        (lists, mark, again, all): (&Lists, Mark<'_>, Option<&[Range]>, bool),
        rule: &mut impl FnMut(&mut Draft<'_>, &mut Flood, i64) -> Result<T>,
    ) -> Result<Next<T>> {
        let mut state = self.state();
        let Memory {
            copies,
            flood,
            slack_ms,
        } = &mut *state;
        let edition = copies.past.new_edition(|| self.place.server.random());
        let telling = Telling {
            client: copies
                .past
                .is_to_tell(clock.boot_ms())
                .then(|| copies.past.client(|| self.place.server.random())),
            again,
            all,
        };
        let Some(standing) = copies.standing(clock.boot_ms())? else {
            return Ok(Next::Fetch(vec![Missing::Stops]));
        };
        let known = copies.known().unwrap_or_default();
        let (now_ms, fixed) = (standing.now_ms, standing.fixed);
        let mut draft = Draft::new(copies, lists, kind.guess, standing);
        draft.looks_at_deadlines = kind.lapses;
        draft.slack_ms = if fixed { 0 } else { *slack_ms };
        let answer = rule(&mut draft, flood, now_ms);
        let notes = flood.take_notes();
        if !draft.missing.is_empty() {
            let missing = std::mem::take(&mut draft.missing);
            flood.take_back(notes);
            return Ok(Next::Fetch(missing));
        }
        if answer.is_err() {
            draft.write_nothing();
        }
        if let Some((mark, number)) = mark
            && (kind.once || only_tells(&draft))
        {
            draft.mark(mark.get_or_init(|| self.new_mark()), number);
        }
        let sent = commit::commit(&draft, &self.place.ns, (&self.id, known), edition, telling);
        match sent {
            Ok(sent) => Ok(Next::Commit(Box::new(sent), answer, notes)),
            Err(error) => {
                flood.take_back(notes);
                Err(error)
            }
        }
    }

    /// In strict durability: waits until replicas have what a step did or found.
    ///
    /// # Errors
    /// `LedgerUnavailable` when too few have it in time.
    pub(super) async fn replicated(&self, after: &After) -> Result<()> {
        self.link.replicated(&after.by).await
    }

    pub(super) async fn commit(&self, clock: &dyn Clock, sent: Sent) -> Result<(Answer, Live), Failure> {
        match self.link.call_by(&sent.command).await {
            Ok((value, by)) => {
                let mut state = self.state();
                let guessed_ms = sent.guessed_ms();
                let answer = sent
                    .read(value, &mut state.copies, clock.boot_ms())
                    .map_err(Failure::Refused)?;
                if let (Answer::Moved(_), Some(now_ms)) = (&answer, state.copies.told_ms()) {
                    // It may have been late, and would be the next time too: over a slow network, or behind a queue.
                    let late_ms = now_ms.saturating_sub(guessed_ms).saturating_abs();
                    let most_ms = self.timeout_ms().max(SLACK_MS);
                    if late_ms > state.slack_ms {
                        state.slack_ms = late_ms.saturating_mul(2).min(most_ms);
                    }
                }
                Ok((answer, by))
            }
            Err(failure) => {
                let mut state = self.state();
                state.copies.forget(sent.names());
                if let Failure::Lost(_) = failure {
                    state.copies.past.may_have_done(sent.unanswered());
                }
                Err(failure)
            }
        }
    }

    /// The state that [`look`](Self::look) and [`step`](Self::step) do not cover: a command of its own.
    pub(super) async fn ask(&self, command: &redis::Cmd) -> Result<redis::Value> {
        call(&self.link, command).await
    }

    /// A name for the mark of a step.
    fn new_mark(&self) -> String {
        let bytes: [u8; 16] = std::array::from_fn(|_| self.place.server.random());
        format!("n:{}", hex(&bytes))
    }

    /// A moment's pause, longer with every try and different for every process.
    pub(super) async fn step_aside(&self, draft: u32) {
        let micros = u64::from(draft)
            .saturating_mul(50)
            .saturating_add(u64::from(self.place.server.random()));
        tokio::time::sleep(Duration::from_micros(micros)).await;
    }
}

/// Whether a step writes nothing but rows of calls that are not let through: nothing else would tell that it ran.
fn only_tells(draft: &Draft<'_>) -> bool {
    let tells = |kind| matches!(kind, EventKind::Denied | EventKind::Replayed);
    !draft.log.is_empty() && draft.log.iter().all(|(event, _)| tells(event.kind))
}

pub(super) async fn call(link: &Link, command: &redis::Cmd) -> Result<redis::Value> {
    match link.call(command).await {
        // None of these commands counts anything, so it may be asked again.
        Err(Failure::Lost(_)) => link.call(command).await.map_err(Failure::into_error),
        answer => answer.map_err(Failure::into_error),
    }
}

pub(super) fn recovering(place: &Place, what: &str) -> Error {
    Error::new(
        ErrorKind::LedgerRecovering,
        format!(
            "the ledger at {} is closed, because its Redis server started anew or lost data, and {what}",
            place.shown
        ),
    )
}
