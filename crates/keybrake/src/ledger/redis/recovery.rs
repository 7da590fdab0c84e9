//! A server that started anew, or came back without some of the log: what this process has seen is reported, what it did
//! itself is said again, and the ledger opens when nothing is missing any more. `recovery.lua` is the server's part.

use std::time::Duration;

use tokio::sync::MutexGuard;
use tokio::time::{Instant, sleep, timeout_at};

use super::again;
use super::commit::Answer;
use super::copies::Known;
use super::life::{self, About, Why};
use super::link::Failure;
use super::past::{Claim, Done, Missing, Owed, Range};
use super::step::{DRAFTS, Kind, Next, Own, PATIENT, call, recovering};
use super::wire::{self, Parts};
use super::{Guess, log};
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::ledger::reassertion::{Reasserted, Reassertion};
use crate::ledger::rules;

/// Between two looks at a ledger that waits for others.
const PAUSE: Duration = Duration::from_millis(50);
/// Own steps that are said again in one step.
const AT_ONCE: usize = 64;

/// How the ledger stands after a report.
#[derive(Debug, Default)]
pub(super) struct State {
    about: About,
    /// What this process has seen and the ledger lacks.
    missing: Vec<Range>,
    /// How many clients that were at work have not reported.
    waits: u64,
    /// For how long they are waited for.
    left_ms: u64,
}

/// What a report says.
#[derive(Debug, Default)]
struct Said {
    by_hand: u64,
    claims: Vec<Claim>,
    /// The largest number that is known to have been used, from elsewhere.
    most: u64,
    /// Whether it is said again what is known from elsewhere.
    restores: bool,
}

impl Own {
    fn patience(&self) -> Instant {
        let now = Instant::now();
        now.checked_add(self.place.timeout).unwrap_or(now)
    }

    /// Waits until no other task of this process reports. Not for ever: it may stand still, or the turn may have been given
    /// to a task whose runtime does. It only saves work, so it is then done beside that.
    async fn turn(&self, until: Instant) -> Option<MutexGuard<'_, ()>> {
        timeout_at(until, self.opening.lock()).await.ok()
    }

    /// The ledger is closed. What this process saw is reported, and what it did and the server lacks is said again. Waits
    /// for others, at most for the URL's timeout.
    pub(super) async fn witness(&self, clock: &dyn Clock) -> Result<()> {
        let until = self.patience();
        let _turn = self.turn(until).await;
        // How much was missing when own steps were last looked for.
        let mut looked = None;
        loop {
            let known = self.state().copies.known().filter(|known| known.last_seq > 0);
            let state = self.report(clock, self.seen(known)).await?;
            if state.about.open {
                return Ok(());
            }
            let missing = state.missing.iter().map(Range::count).sum::<u64>();
            let (left_ms, why) = (state.left_ms, state.why(known.is_some()));
            if missing > 0
                && looked.replace(missing) != Some(missing)
                && self.say_again(clock, state.missing).await?
            {
                continue;
            }
            if left_ms == 0 || Instant::now() >= until {
                return Err(recovering(&self.place, &why));
            }
            sleep(PAUSE.min(Duration::from_millis(left_ms))).await;
        }
    }

    /// The ledger was opened while this process was away. It learns which eras there were in the meantime; and what it did
    /// before, and the ledger lacks because a person opened it, is said again.
    pub(super) async fn rejoin(&self, clock: &dyn Clock) -> Result<()> {
        if self.state().copies.past.skipped_eras() {
            let about = self.about().await?;
            self.state().copies.learn_eras(&about.standing, &about.eras());
        }
        let Some(Owed { by_hand, claims }) = self.state().copies.past.owed.clone() else {
            return Ok(());
        };
        let said = Said {
            by_hand,
            claims,
            ..Said::default()
        };
        let state = self.report(clock, said).await?;
        self.say_again(clock, state.missing).await?;
        self.state().copies.past.owed = None;
        Ok(())
    }

    /// Tells a closed ledger what an archive has and it lacks.
    pub(super) async fn claim(&self, clock: &dyn Clock, claim: Claim) -> Result<bool> {
        let by_hand = self.about().await?.standing.by_hand;
        let _turn = self.turn(self.patience()).await;
        let said = Said {
            by_hand,
            claims: vec![claim],
            most: claim.upto,
            restores: true,
        };
        Ok(self.report(clock, said).await?.about.open)
    }

    /// Says again what is known from elsewhere, whether or not the ledger is open.
    pub(super) async fn restore(&self, clock: &dyn Clock, said: &Reassertion) -> Result<Reasserted> {
        let _turn = self.turn(self.patience()).await;
        let known = self.state().copies.known().filter(|known| known.last_seq > 0);
        let report = Said {
            most: said.covers.iter().map(|events| events.last).max().unwrap_or(0),
            restores: true,
            ..self.seen(known)
        };
        self.report(clock, report).await?;
        let covers: Vec<Range> = said
            .covers
            .iter()
            .map(|events| Range {
                epoch: events.era,
                first: events.first,
                last: events.last,
            })
            .collect();
        let came_to = self.reassert(clock, said, &covers).await?;
        self.report(clock, self.seen(known)).await?;
        Ok(came_to)
    }

    /// Opens the ledger as a person has decided; answers whether it was closed.
    pub(super) async fn open_by_hand(&self, clock: &dyn Clock) -> Result<bool> {
        if self.about().await?.open {
            return Ok(false);
        }
        // What this process knows itself comes first. It may be all that was missing.
        let recovered = self.witness(clock).await.is_ok();
        let _turn = self.turn(self.patience()).await;
        if !recovered && !self.about().await?.open {
            let command = life::opening(&self.place, &self.id, Why::Person, &self.gap()?);
            About::read(call(&self.link, &command).await?)?;
        }
        // What was seen before may not be there any more.
        self.state().forget();
        Ok(true)
    }

    fn seen(&self, known: Option<Known>) -> Said {
        let Some(known) = known else {
            return Said::default();
        };
        Said {
            by_hand: known.by_hand,
            claims: self.state().copies.past.claims(known),
            ..Said::default()
        }
    }

    /// The name of an era that may have to begin, and the event that says which numbers are left out before it.
    fn gap(&self) -> Result<life::Gap> {
        let random = |_| self.place.server.random();
        let bytes: [u8; 6] = std::array::from_fn(random);
        Ok(life::Gap {
            epoch: crate::ledger::shared::hex(&bytes),
            event: log::print(&rules::gap_event())?,
        })
    }

    async fn report(&self, clock: &dyn Clock, said: Said) -> Result<State> {
        let client = {
            let server = &self.place.server;
            self.state().copies.past.client(|| server.random())
        };
        let gap = self.gap()?;
        let mut command = wire::function("report", &self.place.ns, &[]);
        command
            .arg(&self.id)
            .arg(gap.epoch)
            .arg(gap.event)
            .arg(format!("{client:016x}"))
            .arg(said.by_hand)
            .arg(said.most)
            .arg(said.claims.len());
        for claim in &said.claims {
            command
                .arg(format!("{:012x}", claim.epoch))
                .arg(claim.start)
                .arg(claim.upto);
        }
        command.arg(i32::from(said.restores));
        let mut parts = Parts::of(call(&self.link, &command).await?)?;
        let about = About::of(&mut parts)?;
        self.is_ours(&about)?;
        let missing = wire::ranges(parts.next()?)?;
        let mut number = || -> Result<u64> { parts.text()?.parse().map_err(|_| wire::unreadable()) };
        let (noted, waits, left_ms) = (number()?, number()?, number()?);
        let boot_ms = clock.boot_ms();
        let mut state = self.state();
        let copies = &mut state.copies;
        copies.stand(about.standing.clone(), boot_ms);
        if about.open && said.claims.is_empty() {
            copies.know(&about.standing, false);
        } else if about.open {
            // The server has compared everything that this process has seen.
            copies.know(&about.standing, true);
        }
        copies.learn_eras(&about.standing, &about.eras());
        if noted > 0 {
            let events = Range {
                epoch: about.standing.run,
                first: noted,
                last: noted,
            };
            let done = Done {
                events,
                at_ms: about.standing.now_ms,
                records: Vec::new(),
                stops: Vec::new(),
            };
            copies.past.remember(boot_ms, done);
        }
        drop(state);
        Ok(State {
            about,
            missing,
            waits,
            left_ms,
        })
    }

    /// Says again those of this process's own steps that are missing; answers whether there were any.
    async fn say_again(&self, clock: &dyn Clock, missing: Vec<Range>) -> Result<bool> {
        let missing = Missing::of(missing);
        let mut said_any = false;
        let mut from = 0;
        loop {
            let (said, covers) = {
                let state = self.state();
                let own: Vec<_> = state.copies.past.own(&missing, from).take(AT_ONCE).collect();
                let Some((last, _)) = own.last() else {
                    return Ok(said_any);
                };
                from = last.saturating_add(1);
                again::reassertion(own.into_iter().map(|(_, done)| done))?
            };
            self.reassert(clock, &said, &covers).await?;
            said_any = true;
        }
    }

    /// One step that says again what may have been lost.
    async fn reassert(&self, clock: &dyn Clock, said: &Reassertion, covers: &[Range]) -> Result<Reasserted> {
        let mut lists = super::draft::Lists::default();
        let mut lost = false;
        let kind = Kind {
            guess: Guess::NewCall,
            lapses: false,
            once: false,
            due: 0,
        };
        for draft in 0..DRAFTS {
            if draft >= PATIENT {
                self.step_aside(draft).await;
            }
            let mut rule = |draft: &mut super::draft::Draft<'_>, _: &mut rules::Flood, now_ms| {
                rules::reassert(draft, now_ms, said)
            };
            let (sent, answer) =
                match self.draft(clock, kind, (&lists, None, Some(covers), true), &mut rule)? {
                    Next::Fetch(missing) => {
                        self.fetch(clock, missing, &mut lists).await?;
                        continue;
                    }
                    Next::Commit(sent, answer, _) => (sent, answer?),
                };
            match self.commit(clock, *sent).await {
                Ok((Answer::Done(_), _)) => return Ok(answer),
                Ok((Answer::Moved(_), _)) => {}
                Ok((Answer::Closed, _)) => {
                    return Err(recovering(
                        &self.place,
                        "its server started anew while it was recovered",
                    ));
                }
                // Said twice it changes nothing.
                Err(Failure::Lost(_)) if !lost => lost = true,
                Err(failure) => return Err(failure.into_error()),
            }
        }
        Err(Error::ledger(
            "the ledger's records changed too often for what was lost to be said again",
        ))
    }

    /// What the ledger says of itself, if it is still the one that this process opened.
    pub(super) async fn about(&self) -> Result<About> {
        let command = wire::function("about", &self.place.ns, &[]);
        let about = About::read(call(&self.link, &command).await?)?;
        self.is_ours(&about)?;
        Ok(about)
    }

    fn is_ours(&self, about: &About) -> Result<()> {
        match about.field("id") {
            None => Err(recovering(
                &self.place,
                "its data is gone: restore it from its archive (keybrake ledger restore --from …) or from the server's \
                 backup, or begin another namespace",
            )),
            Some(id) if id != self.id => Err(recovering(
                &self.place,
                "another ledger stands in its place: restore its data (keybrake ledger restore, the server's backup), or \
                 start this process anew to use the other",
            )),
            Some(_) => Ok(()),
        }
    }
}

impl State {
    /// Why the ledger is still closed.
    fn why(&self, has_memory: bool) -> String {
        if self.left_ms > 0 {
            let waits = self.waits;
            return format!(
                "it waits for {waits} processes that were at work, and for what they say again: it opens by itself"
            );
        }
        let missing = &self.about.uncovered;
        if missing.is_empty() && !has_memory {
            return "no process that saw its last state has opened it yet; when none is left, open it by hand: \
                    keybrake ledger open"
                .to_owned();
        }
        if missing.is_empty() {
            return "it is being recovered".to_owned();
        }
        format!(
            "it came back with older data than was seen before: {} missing, and no process that reported remembers \
             them. It opens when one does, or when the archive has them: keybrake ledger restore --from …; else restore newer \
             data, or open it by hand and compare it with the vendor: keybrake ledger open, keybrake reconcile",
            events(missing),
        )
    }
}

/// `events 91-95, 97 are`, at most a few of them.
fn events(ranges: &[Range]) -> String {
    const MOST: usize = 8;
    let text = |range: &Range| match range.count() {
        1 => range.first.to_string(),
        _ => format!("{}-{}", range.first, range.last),
    };
    let shown: Vec<String> = ranges.iter().take(MOST).map(text).collect();
    let more = if ranges.len() > MOST { " and more" } else { "" };
    match ranges {
        [one] if one.first == one.last => format!("event {} is", one.first),
        _ => format!("events {}{more} are", shown.join(", ")),
    }
}
