//! The ledger of a fleet, in Redis: `redis://`, `rediss://`, unix sockets; Redis 7 or later, or Valkey.
//!
//! | file | what it does |
//! | --- | --- |
//! | `url`, `finder`, `link`, `server` | where the server is, and the one connection to it |
//! | `checks` | what `keybrake doctor` tells |
//! | `library`, `library.lua`, `eras.lua`, `step.lua`, `look.lua` | the functions that the server runs |
//! | `life` | what is looked at before a server is used; whether the ledger is open |
//! | `backlog` | up to where archives have the log, and its trimming |
//! | `records`, `log` | how records and events are written |
//! | `copies`, `draft`, `store` | what this process remembers, and one step of the rules on it |
//! | `past`, `recall`, `again`, `recovery`, `recovery.lua` | what this process did lately, and how a server that lost it is told again |
//! | `anew` | a ledger that is told again from an archive, when its data is gone too |
//! | `reading` | what a step lacks, read from the server |
//! | `commit`, `wire`, `step` | the step as a command, what is answered, and what becomes of it |
//! | `aborts` | hard stops: telling processes that have calls in flight |
//! | `replicas` | strict durability: what replicas have acknowledged |
//!
//! Every decision is a step of [`rules`], run on copies of the records. Its commit is one call of one function, which
//! compares everything that the step rests on, in the same atomic step as the writes: docs/decisions/0008.

mod aborts;
mod again;
mod anew;
mod backlog;
mod checks;
mod commit;
mod copies;
mod draft;
mod finder;
mod library;
mod life;
mod link;
mod log;
mod past;
mod reading;
mod recall;
mod records;
mod recovery;
mod replicas;
#[doc(hidden)]
pub mod server;
mod step;
mod store;
mod url;
mod verify;
mod wire;

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;

use self::draft::Guess;
use self::life::Found;
use self::step::{Kind, Own};
use self::url::Place;
use super::backlog::{Backlog, Drained, note_forgotten};
use super::events::{Event, EventFilter};
use super::lease::{self, Before, LeaseAnswer, LeaseAsk};
use super::reassertion::{ArchivedPart, Life, Reasserted, Reassertion};
use super::rules;
use super::store::{Checkpoint, Store as _};
use super::types::{
    AdminNote, BudgetDef, BudgetUsage, Grant, HoldFilter, IssueKey, KeyRecord, LedgerCheck, LedgerInfo,
    LedgerSecret, Proof, ReplyFacts, Reservation, ReserveAnswer, ReserveRequest, Scope, SettleAnswer,
    Settlement, Stop, StopAnswer, StopScope, TokenHash, VerifyReport,
};
use super::{Ledger, StopWatch};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};

/// Events read at a time.
const PAGE: u32 = 1_000;
/// Events read when a filter names no limit.
const EVENTS: u32 = 10_000;

const DECISION: Kind = Kind {
    guess: Guess::NewCall,
    lapses: true,
    once: false,
    due: 0,
};
const PROOF: Kind = Kind {
    guess: Guess::NewCall,
    lapses: false,
    once: false,
    due: 0,
};
const ISSUE: Kind = Kind {
    guess: Guess::NewKey,
    lapses: false,
    once: true,
    due: 0,
};
const ADMIN: Kind = Kind {
    guess: Guess::Nothing,
    lapses: false,
    once: true,
    due: 0,
};

/// The secret of the ledger with this id, as every process of a fleet derives it from the master key: to check the
/// signatures of its checkpoints where the ledger itself is not at hand.
///
/// # Errors
/// `Internal` only when the derivation is impossible.
pub fn secret_of(master: &[u8], ledger_id: &str) -> Result<LedgerSecret> {
    life::derive(master, ledger_id)
}

/// The namespace that a URL names.
pub(super) fn namespace(url: &str) -> Result<String> {
    Ok(url::parse(url)?.ns.name().to_owned())
}

/// A handle on a namespace of a Redis server.
#[derive(Debug)]
pub struct RedisLedger {
    place: Place,
    clock: Arc<dyn Clock>,
    id: String,
    secret: LedgerSecret,
    secret_in_ledger: bool,
    /// The eras of the log when it was opened.
    eras: Vec<past::Era>,
    own: Generation,
}

/// What this process has of the ledger, and the children forked from it.
#[derive(Debug)]
struct Generation {
    pid: u32,
    own: OnceLock<Own>,
    next: OnceLock<Box<Self>>,
}

impl Generation {
    const fn new(pid: u32) -> Self {
        Self {
            pid,
            own: OnceLock::new(),
            next: OnceLock::new(),
        }
    }
}

/// Runs this to its end, whether or not the caller is in a runtime.
fn on_own_runtime<T: Send>(work: impl Future<Output = Result<T>> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let working = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            match runtime {
                Ok(runtime) => runtime.block_on(work),
                Err(e) => Err(Error::ledger("no runtime for the connection to Redis").because(e)),
            }
        });
        working
            .join()
            .unwrap_or_else(|_| Err(Error::ledger("the connection to Redis failed")))
    })
}

impl RedisLedger {
    /// Opens a namespace, or creates it. Waits for the server, at most a few of the URL's `timeout_ms`.
    ///
    /// With a master key the ledger's secret is derived from it; without one it stands beside the data, and replies
    /// are not recorded.
    ///
    /// # Errors
    /// `Config` when the URL is wrong, the server is too old, may evict keys or lacks the functions, or the ledger
    /// belongs to another master key; `LedgerUnavailable` when the server does not answer.
    pub fn open(url: &str, clock: Arc<dyn Clock>, master: Option<&[u8]>) -> Result<Self> {
        let place = url::parse(url)?;
        let found = on_own_runtime(async {
            let found = life::find(&place, master).await?;
            replicas::demand(&place).await?;
            Ok(found)
        })?;
        Ok(Self::found(place, clock, found))
    }

    /// As [`open`](Self::open), on a server of the caller's own that answers within `timeout`: for the simulation.
    #[doc(hidden)]
    pub async fn over(
        server: Arc<dyn server::Server>,
        timeout: std::time::Duration,
        clock: Arc<dyn Clock>,
        master: Option<&[u8]>,
    ) -> Result<Self> {
        let place = Place {
            server,
            transport: url::Transport::Machine,
            ns: url::Namespace::new(super::sqlite::DEFAULT_NAMESPACE),
            timeout,
            replicas: 0,
            shown: "redis://simulated".to_owned(),
        };
        let found = life::find(&place, master).await?;
        Ok(Self::found(place, clock, found))
    }

    fn found(place: Place, clock: Arc<dyn Clock>, found: Found) -> Self {
        Self {
            own: Generation::new(std::process::id()),
            place,
            clock,
            id: found.id,
            secret: found.secret,
            secret_in_ledger: found.secret_in_ledger,
            eras: found.eras,
        }
    }

    /// This process's part; in a child that was forked since, a new one.
    fn own(&self) -> &Own {
        let pid = std::process::id();
        let mut generation = &self.own;
        while generation.pid != pid {
            generation = generation.next.get_or_init(|| Box::new(Generation::new(pid)));
        }
        generation
            .own
            .get_or_init(|| Own::new(self.place.clone(), self.id.clone(), &self.eras))
    }

    async fn admin<T: Send>(
        &self,
        kind: Kind,
        mut rule: impl FnMut(&mut draft::Draft<'_>, i64) -> Result<T> + Send,
    ) -> Result<T> {
        let step = self
            .own()
            .step(&*self.clock, kind, move |draft, _, now_ms| rule(draft, now_ms));
        step.await.map(|(answer, _)| answer)
    }

    /// As [`admin`](Self::admin), for what is promised when it returns: in strict durability, replicas have it then.
    async fn act<T: Send>(
        &self,
        kind: Kind,
        mut rule: impl FnMut(&mut draft::Draft<'_>, i64) -> Result<T> + Send,
    ) -> Result<T> {
        let own = self.own();
        let step = own.step(&*self.clock, kind, move |draft, _, now_ms| rule(draft, now_ms));
        let (answer, after) = step.await?;
        own.replicated(&after)
            .await
            .map_err(|error| replicas::stands(&error))?;
        Ok(answer)
    }

    /// Gives up a hold whose call is certainly never sent.
    async fn take_back(&self, grant: &Grant) {
        let settlement = Settlement {
            call_id: grant.call_id.clone(),
            attempt: grant.attempt,
            proof: Proof::NeverSent,
            object: None,
            reply: None,
            facts: ReplyFacts::default(),
        };
        let settled = tokio::time::timeout(self.place.timeout, self.settle(settlement)).await;
        if !matches!(settled, Ok(Ok(_))) {
            tracing::warn!(call_id = %grant.call_id, "a hold that no replica has could not be given up; it stands until its deadline");
        }
    }

    async fn look<T: Send>(
        &self,
        rule: impl FnMut(&mut draft::Draft<'_>, i64) -> Result<T> + Send,
    ) -> Result<T> {
        self.own().look(&*self.clock, rule).await
    }

    /// Waits until none of these leases can admit a call any more.
    async fn end_leases(&self, before: Before<'_>) -> Result<()> {
        let leases = self
            .look(|draft, now_ms| rules::leases(draft, now_ms, before))
            .await?;
        lease::end(self, leases).await
    }

    /// What a stop that stands meets.
    async fn met(&self, scope: &StopScope, admin: &AdminNote, hard: bool) -> Result<StopAnswer> {
        self.own().lapse(&*self.clock).await?;
        self.look(|draft, now_ms| rules::stop(draft, now_ms, scope, admin, hard))
            .await
    }

    /// A page of the log after a number.
    async fn page(&self, after_seq: u64, limit: u32) -> Result<Vec<Event>> {
        let mut command = redis::cmd("XRANGE");
        command
            .arg(self.place.ns.place("events"))
            .arg(format!("({after_seq}-0"))
            .arg("+")
            .arg("COUNT")
            .arg(limit);
        log::read(self.own().ask(&command).await?)
    }
}

#[async_trait]
impl Ledger for RedisLedger {
    async fn info(&self) -> Result<LedgerInfo> {
        let (now_ms, last_seq) = self
            .look(|draft, now_ms| Ok((now_ms, draft.meta()?.last_seq)))
            .await?;
        let mut command = redis::cmd("HGET");
        command.arg(self.place.ns.place("meta")).arg("open");
        let open = wire::text(self.own().ask(&command).await?)?;
        Ok(LedgerInfo {
            url: self.place.shown.clone(),
            id: self.id.clone(),
            version: life::FORMAT,
            now_ms,
            last_seq,
            open_holds: open.parse().unwrap_or(0),
        })
    }

    fn secret(&self) -> &LedgerSecret {
        &self.secret
    }

    fn namespace(&self) -> Option<&str> {
        Some(self.place.ns.name())
    }

    fn records_replies(&self) -> bool {
        !self.secret_in_ledger
    }

    async fn checks(&self) -> Result<Vec<LedgerCheck>> {
        self.checked().await
    }

    async fn missing_events(&self) -> Result<Vec<(u64, u64)>> {
        let missing = self.own().about().await?.uncovered;
        Ok(missing.iter().map(|range| (range.first, range.last)).collect())
    }

    async fn id(&self) -> Result<String> {
        Ok(self.id.clone())
    }

    async fn life(&self) -> Result<Life> {
        self.life_now().await
    }

    async fn await_archived(&self, part: &ArchivedPart) -> Result<Life> {
        self.await_part(part).await
    }

    async fn open_by_hand(&self, admin: AdminNote) -> Result<bool> {
        let opened = self.own().open_by_hand(&*self.clock).await?;
        if opened {
            self.act(ADMIN, |draft, now_ms| rules::note_opening(draft, now_ms, &admin))
                .await?;
        }
        Ok(opened)
    }

    async fn issue_key(&self, issue: IssueKey) -> Result<KeyRecord> {
        self.act(ISSUE, |draft, now_ms| rules::issue_key(draft, now_ms, &issue))
            .await
    }

    async fn key_by_token(&self, token_hash: &TokenHash) -> Result<Option<KeyRecord>> {
        self.look(|draft, now_ms| rules::key_by_token(draft, now_ms, token_hash))
            .await
    }

    async fn key(&self, key_id: &str) -> Result<Option<KeyRecord>> {
        self.look(|draft, now_ms| rules::key(draft, now_ms, key_id)).await
    }

    async fn keys(&self) -> Result<Vec<KeyRecord>> {
        self.look(|draft, now_ms| rules::keys(draft, now_ms)).await
    }

    async fn revoke(&self, key_id: &str, admin: AdminNote) -> Result<bool> {
        let stands = self
            .act(ADMIN, |draft, now_ms| {
                rules::revoke(draft, now_ms, key_id, &admin)
            })
            .await;
        // It works from now on, even where replicas are missing: what was leased before ends first.
        let leases = self.end_leases(Before::Revoke(key_id)).await;
        let open = stands?;
        leases?;
        Ok(open)
    }

    async fn stop(&self, scope: StopScope, admin: AdminNote) -> Result<StopAnswer> {
        // First it stands; then there is time to count what it meets.
        let stands = self
            .act(ADMIN, |draft, now_ms| {
                rules::set_stop(draft, now_ms, &scope, &admin, false)
            })
            .await;
        // What it meets only informs: others go on with their calls meanwhile.
        let met = self.met(&scope, &admin, false).await;
        // It works from now on, even where replicas are missing: what was leased before ends first.
        let leases = self.end_leases(Before::Stop(&scope)).await;
        stands.and(leases)?;
        met
    }

    async fn stop_hard(&self, scope: StopScope, admin: AdminNote) -> Result<StopAnswer> {
        let stands = self
            .act(ADMIN, |draft, now_ms| {
                rules::set_stop(draft, now_ms, &scope, &admin, true)
            })
            .await;
        // Counted before they are told, since what they abort is in flight no more.
        let met = self.met(&scope, &admin, true).await;
        let told = self.tell().await;
        let leases = self.end_leases(Before::Stop(&scope)).await;
        stands.and(leases)?;
        Ok(StopAnswer { told, ..met? })
    }

    fn watch_stops(&self) -> Box<dyn StopWatch> {
        self.listen()
    }

    async fn resume(&self, scope: &StopScope, admin: AdminNote) -> Result<bool> {
        self.act(ADMIN, |draft, now_ms| rules::resume(draft, now_ms, scope, &admin))
            .await
    }

    async fn stops(&self) -> Result<Vec<Stop>> {
        self.look(|draft, _| draft.stops()).await
    }

    async fn reserve(&self, mut request: ReserveRequest) -> Result<ReserveAnswer> {
        let own = self.own();
        let hold_for_ms = request.hold_for_ms;
        let moves_money = request.facts.moves_money;
        if moves_money {
            own.link.replicas_back().await?;
        }
        let (mut answer, after) = own
            .step(&*self.clock, DECISION, |draft, flood, now_ms| {
                request.hold_for_ms = hold_for_ms.saturating_add(draft.slack_ms);
                rules::reserve(draft, flood, now_ms, &request)
            })
            .await?;
        if let ReserveAnswer::Granted(grant) = &mut answer {
            log::correct(grant.tightest.as_mut(), &after.counters);
            if moves_money && let Err(error) = own.replicated(&after).await {
                own.state().copies.past.withdraw(&grant.call_id);
                self.take_back(grant).await;
                return Err(error);
            }
        }
        Ok(answer)
    }

    async fn settle(&self, settlement: Settlement) -> Result<SettleAnswer> {
        let (mut answer, after) = self
            .own()
            .step(&*self.clock, PROOF, |draft, _, now_ms| {
                rules::settle(draft, now_ms, &settlement)
            })
            .await?;
        log::correct(answer.tightest.as_mut(), &after.counters);
        Ok(answer)
    }

    async fn reassert(&self, reassertion: Reassertion) -> Result<Reasserted> {
        self.own().restore(&*self.clock, &reassertion).await
    }

    async fn lease(&self, ask: LeaseAsk) -> Result<LeaseAnswer> {
        self.admin(DECISION, |draft, now_ms| {
            let slack_ms = draft.slack_ms;
            rules::lease(draft, now_ms, slack_ms, &ask)
        })
        .await
    }

    async fn sweep(&self, limit: u32) -> Result<u32> {
        self.flush().await?;
        self.own().sweep(&*self.clock, limit).await
    }

    async fn reservation(&self, call_id: &str) -> Result<Option<Reservation>> {
        self.look(|draft, _| draft.reservation(call_id)).await
    }

    async fn holds(&self, filter: HoldFilter) -> Result<Vec<Reservation>> {
        self.own().lapse(&*self.clock).await?;
        self.look(|draft, now_ms| rules::holds(draft, now_ms, &filter))
            .await
    }

    async fn usage(&self, key_id: &str) -> Result<Vec<BudgetUsage>> {
        self.look(|draft, now_ms| rules::usage(draft, now_ms, key_id))
            .await
    }

    async fn budgets(&self, scope: Option<&Scope>) -> Result<Vec<BudgetUsage>> {
        self.look(|draft, now_ms| rules::budgets(draft, now_ms, scope))
            .await
    }

    async fn put_budget(&self, budget: BudgetDef, admin: AdminNote) -> Result<BudgetDef> {
        self.act(ADMIN, |draft, now_ms| {
            rules::put_budget(draft, now_ms, &budget, &admin)
        })
        .await
    }

    async fn events(&self, filter: EventFilter) -> Result<Vec<Event>> {
        let limit =
            usize::try_from(if filter.limit == 0 { EVENTS } else { filter.limit }).unwrap_or(usize::MAX);
        let mut found = Vec::new();
        let mut after_seq = filter.after_seq;
        loop {
            let page = self.page(after_seq, PAGE).await?;
            let last = page.len() < usize::try_from(PAGE).unwrap_or(usize::MAX);
            after_seq = page.last().map_or(after_seq, |event| event.seq);
            found.extend(page.into_iter().filter(|event| log::asked(event, &filter)));
            if last || found.len() >= limit {
                found.truncate(limit);
                return Ok(found);
            }
        }
    }

    async fn verify(&self) -> Result<VerifyReport> {
        match self.flush().await {
            // A server without memory: its denials wait, and what gives it memory back goes on.
            Err(error) if error.kind() == ErrorKind::LedgerUnavailable => {}
            flushed => flushed?,
        }
        self.verified().await
    }

    async fn accept_clock(&self, admin: AdminNote) -> Result<i64> {
        self.own().trust_clock();
        self.act(ADMIN, |draft, now_ms| {
            let now_ms = rules::accept_clock(draft, now_ms, &admin)?;
            draft.clock_accepted(now_ms)?;
            Ok(now_ms)
        })
        .await
    }

    async fn flush(&self) -> Result<()> {
        let step = self.own().step(&*self.clock, ADMIN, |draft, flood, now_ms| {
            rules::flush_denials(draft, flood, now_ms)
        });
        step.await.map(|_| ())
    }

    async fn reservations(&self, call_ids: &[String]) -> Result<Vec<Reservation>> {
        self.calls(call_ids).await
    }

    async fn checkpoints(&self, after_seq: u64) -> Result<Vec<Checkpoint>> {
        self.checkpoints_after(after_seq).await
    }

    async fn backlog(&self) -> Result<Backlog> {
        self.backlog_now().await
    }

    async fn note_drained(&self, archive: &str, place: &str, seq: u64) -> Result<()> {
        let drained = Drained {
            seq,
            at_ms: self.look(|_, now_ms| Ok(now_ms)).await?,
            place: place.to_owned(),
        };
        self.note_archive(archive, Some(drained)).await.map(|_| ())
    }

    async fn forget_archive(&self, archive: &str, admin: AdminNote) -> Result<bool> {
        if !self.backlog().await?.archives.contains_key(archive) {
            return Ok(false);
        }
        // The note comes first: an act that is noted and not done can be done again.
        self.admin(ADMIN, |draft, now_ms| {
            note_forgotten(draft, now_ms, archive, &admin)
        })
        .await?;
        self.note_archive(archive, None).await
    }

    async fn trim(&self, upto_seq: u64) -> Result<u64> {
        self.trim_all(upto_seq).await
    }
}
