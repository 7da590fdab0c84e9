//! A fresh ledger on a clock that the test moves, and short words for what a case does with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use keybrake::clock::{Clock, ManualClock};
use keybrake::ledger::{
    AdminNote, AmountAsk, Ask, BudgetDef, BudgetRef, CallFacts, ChargeAsk, EventFilter, Grant, HoldFilter,
    IdentityAsk, IdentityKind, IssueKey, KeyRecord, Ledger, ObjectRaise, ObjectState, OnRepeat, Proof,
    ReplyFacts, ReserveAnswer, ReserveRequest, Scope, SettleAnswer, Settlement, State, TokenHash, Unit,
    Window, WindowKind,
};
use keybrake::money::Usd;
use keybrake::policy::Denial;
use keybrake::{Error, Result};

use super::{Fresh, Opened};

/// 2026-03-10 12:00:00 UTC.
const NOON_MS: i64 = 1_773_144_000_000;
/// From a permit until its hold counts as unknown.
pub(super) const HOLD_MS: i64 = 130_000;
/// One hour.
pub(super) const HOUR_MS: i64 = 3_600_000;
/// One day.
pub(super) const DAY_MS: i64 = 86_400_000;

/// Whole dollars.
pub fn dollars(dollars: i64) -> Usd {
    Usd::from_dollars(dollars).unwrap()
}

/// By whom the suite's administrative acts are done.
pub(super) fn note(reason: &str) -> AdminNote {
    AdminNote {
        by: "suite".to_owned(),
        reason: reason.to_owned(),
    }
}

/// A key, with what its calls need to know of it.
pub type Key = KeyRecord;

/// One case's ledger.
pub struct World {
    opened: Box<dyn Opened>,
    /// The ledger under test.
    pub ledger: Arc<dyn Ledger>,
    /// Its clock.
    pub clock: Arc<ManualClock>,
    numbers: AtomicU64,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World")
            .field("ledger", &self.ledger)
            .finish_non_exhaustive()
    }
}

impl World {
    /// A fresh ledger at noon.
    pub async fn new(fresh: &dyn Fresh) -> Self {
        let clock = Arc::new(ManualClock::at(NOON_MS));
        let opened = fresh.fresh(Arc::clone(&clock)).await;
        Self {
            ledger: opened.ledger(),
            opened,
            clock,
            numbers: AtomicU64::new(1),
        }
    }

    /// The same ledger as another process opens it, or the same handle where there is one process only.
    pub async fn another_process(&self) -> Arc<dyn Ledger> {
        match self.opened.again().await {
            Some(ledger) => ledger,
            None => Arc::clone(&self.ledger),
        }
    }

    /// The clock's reading.
    pub fn now_ms(&self) -> i64 {
        self.clock.now_ms()
    }

    fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::SeqCst)
    }

    /// Issues a key of a lineage with these budgets, for 90 days.
    pub async fn key(&self, lineage: &str, budgets: &[BudgetDef]) -> Key {
        self.try_issue(self.draft(lineage, budgets)).await.unwrap()
    }

    /// Issues a key of lineage `a` whose only budget is a cap on dollars.
    pub async fn capped(&self, window: WindowKind, cap: i64) -> (BudgetDef, Key) {
        let def = budget(Scope::Lineage("a".to_owned()), Unit::Usd, window, cap);
        let key = self.key("a", std::slice::from_ref(&def)).await;
        (def, key)
    }

    /// Issues a key as drafted.
    pub async fn issue(&self, key: Key) -> Key {
        self.try_issue(key).await.unwrap()
    }

    /// Issues a key as drafted, or says why not.
    pub async fn try_issue(&self, key: Key) -> Result<Key> {
        self.ledger
            .issue_key(IssueKey {
                key,
                expires_in_ms: Some(90 * DAY_MS),
                attribution_only: Vec::new(),
                admin: note("test"),
            })
            .await
    }

    /// A key that is not issued yet: change it, then [`issue`](Self::issue).
    pub fn draft(&self, lineage: &str, budgets: &[BudgetDef]) -> Key {
        let number = self.number();
        KeyRecord {
            id: format!("vk_{number}"),
            token_hash: TokenHash(format!("{number:064x}")),
            policy_json: r#"{"vendor":"stripe"}"#.to_owned(),
            ancestor_policies_json: Vec::new(),
            version: 0,
            lineage: lineage.to_owned(),
            agent: Some(lineage.to_owned()),
            label: None,
            run: Some("run_1".to_owned()),
            groups: Vec::new(),
            ancestors: Vec::new(),
            budgets: budgets
                .iter()
                .map(|def| BudgetRef {
                    def: def.clone(),
                    limit: None,
                    enforce: true,
                })
                .collect(),
            issued_at_ms: 0,
            expires_at_ms: 0,
            revoked_at_ms: None,
            metadata: serde_json::Map::new(),
        }
    }

    /// A call of a key: a refund of so many dollars without an identity, until told otherwise.
    pub fn call(&self, key: &Key, usd: i64) -> Call {
        let number = self.number();
        Call {
            facts: CallFacts {
                call_id: format!("call-{number:06}"),
                key_id: Some(key.id.clone()),
                key_version: key.version,
                vendor: Some("stripe".to_owned()),
                operation: "refunds.create".to_owned(),
                livemode: true,
                account: None,
                agent: key.agent.clone(),
                label: key.label.clone(),
                run: key.run.clone(),
                groups: key.groups.clone(),
                customer: Some("cus_1".to_owned()),
                direction: -1,
                moves_money: true,
                read_headers: Vec::new(),
                context: serde_json::Map::new(),
            },
            lineage: key.lineage.clone(),
            budgets: key.budgets.clone(),
            usd: dollars(usd),
            now_ms: self.now_ms(),
            ..Call::default()
        }
    }

    /// Reserves and answers whatever the ledger does.
    pub async fn ask(&self, call: &Call) -> ReserveAnswer {
        self.ledger.reserve(call.request()).await.unwrap()
    }

    /// Reserves; anything but a permit fails the case.
    pub async fn granted(&self, call: &Call) -> Grant {
        match self.ask(call).await {
            ReserveAnswer::Granted(grant) => *grant,
            other => panic!("a permit was expected, and the answer is {other:?}"),
        }
    }

    /// Reserves; anything but a denial fails the case.
    pub async fn denied(&self, call: &Call) -> Denial {
        match self.ask(call).await {
            ReserveAnswer::Denied(denial) => *denial,
            other => panic!("a denial was expected, and the answer is {other:?}"),
        }
    }

    /// Settles a grant's attempt.
    pub async fn settle(&self, grant: &Grant, proof: Proof) -> SettleAnswer {
        self.try_settle(settlement(grant, proof)).await.unwrap()
    }

    /// Settles as told, or says why not.
    pub async fn try_settle(&self, settlement: Settlement) -> Result<SettleAnswer, Error> {
        self.ledger.settle(settlement).await
    }

    /// The vendor charged this many dollars, and its reply is recorded.
    pub async fn charge(&self, grant: &Grant, usd: i64) -> SettleAnswer {
        let mut settlement = settlement(grant, charged(usd));
        settlement.reply = Some(b"reply".to_vec());
        self.try_settle(settlement).await.unwrap()
    }

    /// A reply that shows the state of an object.
    pub async fn seen(&self, grant: &Grant, proof: Proof, object: (&str, i64, bool)) -> SettleAnswer {
        let mut settlement = settlement(grant, proof);
        settlement.object = Some(ObjectState {
            object: object.0.to_owned(),
            moved: dollars(object.1),
            closed: object.2,
        });
        settlement.reply = Some(b"reply".to_vec());
        self.try_settle(settlement).await.unwrap()
    }

    /// Used and held of a budget in live mode now, in its own unit.
    pub async fn raw(&self, def: &BudgetDef) -> (i64, i64) {
        let scope = match &def.scope {
            Scope::Customer(_) => Scope::Customer("cus_1".to_owned()),
            other => other.clone(),
        };
        let all = self.ledger.budgets(Some(&scope)).await.unwrap();
        let one = all.iter().find(|usage| usage.id == def.id() && usage.livemode);
        let view = &one.expect("the budget is in the ledger").view;
        (view.used, view.held)
    }

    /// Used and held of a budget of money in live mode now, in whole dollars.
    pub async fn used_held(&self, def: &BudgetDef) -> (i64, i64) {
        let (used, held) = self.raw(def).await;
        (used / 1_000_000, held / 1_000_000)
    }

    /// The state of a call.
    pub async fn state(&self, call_id: &str) -> State {
        self.ledger
            .reservation(call_id)
            .await
            .unwrap()
            .expect("the call is in the ledger")
            .state
    }

    /// Open holds, all of them.
    pub async fn open(&self) -> Vec<keybrake::ledger::Reservation> {
        let all = HoldFilter {
            limit: 1_000_000,
            ..HoldFilter::default()
        };
        self.ledger.holds(all).await.unwrap()
    }

    /// The whole log.
    pub async fn events(&self) -> Vec<keybrake::ledger::Event> {
        let all = EventFilter {
            limit: 1_000_000,
            ..EventFilter::default()
        };
        self.ledger.events(all).await.unwrap()
    }

    /// What every case ends with: events without gaps, in time, adding up to the counters, and open holds
    /// adding up to what is held.
    pub async fn books_agree(&self) {
        // First, because listing holds looks at deadlines.
        let open = self.open().await;
        let report = match self.ledger.verify().await {
            Ok(report) => report,
            // A case may end on a clock that is not accepted.
            Err(error) => panic!("the ledger cannot be verified: {error}"),
        };
        assert!(
            report.chain_ok,
            "the chain of checkpoints or the log is broken: {report:?}"
        );
        assert_eq!(report.differences, Vec::new(), "counters and events differ");
        let first_seq = self.ledger.backlog().await.map_or(1, |backlog| backlog.first_seq);
        let events = self.events().await;
        let mut held: i64 = 0;
        let mut at_ms = 0;
        for (index, event) in events.iter().enumerate() {
            assert_eq!(event.seq, index as u64 + first_seq, "the log has a gap");
            assert!(event.at_ms >= at_ms, "time went back at event {}", event.seq);
            at_ms = event.at_ms;
            held += event.deltas.iter().map(|delta| delta.held).sum::<i64>();
        }
        let listed: i64 = open
            .iter()
            .flat_map(|call| &call.charges)
            .map(|charge| charge.held)
            .sum();
        if first_seq == 1 {
            assert_eq!(listed, held, "the open holds are not what is held");
        }
    }
}

/// A budget of so many dollars a day.
pub(super) fn daily(lineage: &str, cap: i64) -> BudgetDef {
    budget(
        Scope::Lineage(lineage.to_owned()),
        Unit::Usd,
        WindowKind::Day,
        cap * 1_000_000,
    )
}

/// A budget of Stripe spending, in its unit.
pub(super) fn budget(scope: Scope, unit: Unit, window: WindowKind, cap: i64) -> BudgetDef {
    BudgetDef {
        vendor: Some("stripe".to_owned()),
        scope,
        unit,
        window,
        timezone: "UTC".to_owned(),
        cap,
    }
}

/// Final, so many dollars.
pub(super) fn charged(usd: i64) -> Proof {
    Proof::Charged { actual: dollars(usd) }
}

/// Nothing is known.
pub(super) fn no_proof(reason: &str) -> Proof {
    Proof::NoProof {
        reason: reason.to_owned(),
    }
}

/// A complete listing does not contain it, begun when one attempt was known.
pub(super) fn absent() -> Proof {
    absent_after(1)
}

/// The same after so many attempts.
pub(super) fn absent_after(attempts: u32) -> Proof {
    Proof::Absent {
        evidence: "refunds listed to the end".to_owned(),
        attempts,
    }
}

/// A person's decision.
pub(super) fn operator(spent: Option<i64>) -> Proof {
    Proof::Operator {
        spent: spent.map(dollars),
        evidence: "seen in the dashboard".to_owned(),
        by: "ops".to_owned(),
    }
}

/// A settlement of a grant's attempt, without an object or a recorded reply.
pub(super) fn settlement(grant: &Grant, proof: Proof) -> Settlement {
    Settlement {
        call_id: grant.call_id.clone(),
        attempt: grant.attempt,
        proof,
        object: None,
        reply: None,
        facts: ReplyFacts::default(),
    }
}

/// A call about to be asked for.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// Who and what.
    pub facts: CallFacts,
    lineage: String,
    /// What it draws on.
    pub budgets: Vec<BudgetRef>,
    /// What it may cost.
    pub usd: Usd,
    /// Whose exposure it raises, and to what.
    pub raise: Option<ObjectRaise>,
    /// What makes it one spend.
    pub identity: Option<IdentityAsk>,
    /// What its windows are computed for.
    pub now_ms: i64,
}

impl Call {
    /// The same call under another id, asked for at another time: what a retry is.
    #[must_use]
    pub fn retry(&self, world: &World, key: &Key) -> Self {
        let fresh = world.call(key, 0);
        let mut retry = self.clone();
        retry.facts.call_id = fresh.facts.call_id;
        retry.facts.key_id = fresh.facts.key_id;
        retry.facts.key_version = fresh.facts.key_version;
        retry.now_ms = fresh.now_ms;
        retry
    }

    /// Identified by a step; amount and customer are its declared fields.
    #[must_use]
    pub fn step(self, step: &str) -> Self {
        self.identified(IdentityKind::Step, step)
    }

    /// Identified by its content alone.
    #[must_use]
    pub fn content(self) -> Self {
        self.identified(IdentityKind::Content, "")
    }

    /// Identified by the caller's own key.
    #[must_use]
    pub fn caller_key(self, key: &str) -> Self {
        let mut call = self.identified(IdentityKind::CallerKey, key);
        if let Some(identity) = &mut call.identity {
            identity.caller_key = Some(key.to_owned());
        }
        call
    }

    /// Identified by a key that the SDK generated: attempts of one transport only.
    #[must_use]
    pub fn transport(self, id: &str) -> Self {
        self.identified(IdentityKind::Transport, id)
    }

    /// With how long the identity is remembered.
    #[must_use]
    pub fn remembered_for_ms(mut self, remember_ms: i64) -> Self {
        if let Some(identity) = &mut self.identity {
            identity.remember_ms = remember_ms;
        }
        self
    }

    fn identified(mut self, kind: IdentityKind, discriminator: &str) -> Self {
        let fields = vec![
            ("amount".to_owned(), self.usd.micros().to_string()),
            (
                "customer".to_owned(),
                self.facts.customer.clone().unwrap_or_default(),
            ),
        ];
        let content = format!("{fields:?}");
        let tuple = format!(
            "{}|{:?}|{:?}|{:?}|{}",
            self.lineage, self.facts.run, self.facts.vendor, self.facts.account, self.facts.operation
        );
        let discriminator = match kind {
            IdentityKind::Content => content.clone(),
            _ => discriminator.to_owned(),
        };
        self.identity = Some(IdentityAsk {
            id: format!("{tuple}|{kind:?}|{discriminator}"),
            kind,
            content_id: format!("{tuple}|content|{content}"),
            wire: format!("wire|{content}"),
            fields,
            caller_key: None,
            on_repeat: OnRepeat::Replay,
            remember_ms: 30 * DAY_MS,
            max_generations: 5,
        });
        self
    }

    /// With other bytes than its declared fields imply, such as another description.
    #[must_use]
    pub fn wire(mut self, wire: &str) -> Self {
        if let Some(identity) = &mut self.identity {
            wire.clone_into(&mut identity.wire);
        }
        self
    }

    /// With what a settled twin leads to.
    #[must_use]
    pub fn on_repeat(mut self, on_repeat: OnRepeat) -> Self {
        if let Some(identity) = &mut self.identity {
            identity.on_repeat = on_repeat;
        }
        self
    }

    /// Raising an object to the call's amount as a new total.
    #[must_use]
    pub fn raising(mut self, object: &str) -> Self {
        self.raise = Some(ObjectRaise {
            object: object.to_owned(),
            to: self.usd,
        });
        self
    }

    /// The request.
    pub fn request(&self) -> ReserveRequest {
        let charges = self.budgets.iter().map(|budget| self.charge(budget)).collect();
        ReserveRequest {
            facts: Arc::new(self.facts.clone()),
            identity: self.identity.clone().map(Arc::new),
            ask: Ask::Amount(AmountAsk {
                usd: self.usd,
                raise: self.raise.clone(),
                charges,
                pins: Vec::new(),
                would_deny: None,
            }),
            hold_for_ms: HOLD_MS,
            max_open_holds: 1_000_000,
        }
    }

    fn charge(&self, budget: &BudgetRef) -> ChargeAsk {
        let def = &budget.def;
        ChargeAsk {
            budget: def.id(),
            customer: match def.scope {
                Scope::Customer(_) => self.facts.customer.clone(),
                _ => None,
            },
            unit: def.unit,
            amount: if def.unit == Unit::Usd {
                self.usd.micros()
            } else {
                1
            },
            limit: budget.limit,
            enforce: budget.enforce,
            window: window(def.window, self.now_ms),
        }
    }
}

/// The UTC window of a kind at a time.
pub(crate) fn window(kind: WindowKind, now_ms: i64) -> Option<Window> {
    let length_ms = match kind {
        WindowKind::Hour => HOUR_MS,
        WindowKind::Day => DAY_MS,
        WindowKind::Month => 30 * DAY_MS,
        WindowKind::Run | WindowKind::Lifetime | WindowKind::Rolling24h => return None,
    };
    let start_ms = now_ms - now_ms.rem_euclid(length_ms);
    Some(Window {
        start_ms,
        end_ms: start_ms + length_ms,
    })
}
