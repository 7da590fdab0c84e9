//! What a governed process does with the ledger and the vendor: the engine's part of a call, on the real ledger.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use keybrake::Result;
use keybrake::clock::Clock as _;
use keybrake::error::ErrorKind;
use keybrake::ledger::redis::RedisLedger;
use keybrake::ledger::{
    AmountAsk, Ask, BudgetDef, CallFacts, ChargeAsk, Grant, HoldFilter, IdentityAsk, IdentityKind,
    Ledger as _, OnRepeat, Proof, ReplyFacts, Reservation, ReserveAnswer, ReserveRequest, SettleAnswer,
    Settlement, State, Unit,
};
use keybrake::money::Usd;

use super::books::vendor_key;
use super::mutants::Mutant;
use super::process::Process;
use super::vendor::{Reply, Seen};
use super::world::{REQUEST_MS, SEND_WITHIN_MS, World};
use crate::conformance::window;

/// Absence proves something only so long after the deadline: longer than the clocks may be apart.
const MARGIN_MS: i64 = 5 * 60 * 1_000;
/// The ledger's clock and the vendor's may be apart by so much, or absence proves nothing.
const CLOCKS_AGREE_MS: i64 = 4 * 60 * 1_000;

/// Something that an agent wants to spend, once.
#[derive(Clone, Debug)]
pub(super) struct Intent {
    pub(super) number: u64,
    pub(super) key: usize,
    pub(super) micros: i64,
    /// Calls with the same content.
    pub(super) content: u64,
}

/// A key as the processes know it, and the budgets that its calls draw on.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) id: String,
    pub(super) lineage: &'static str,
    pub(super) version: AtomicI64,
    pub(super) budgets: Vec<BudgetDef>,
}

/// A process's view of everything.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) world: Arc<World>,
    pub(super) process: Arc<Process>,
    pub(super) ledger: Arc<RedisLedger>,
    pub(super) keys: Arc<Vec<Key>>,
}

impl Client {
    fn tell(&self, line: impl FnOnce() -> String) {
        self.world.tell(|| format!("p{} {}", self.process.number, line()));
    }

    /// One try of an intent, from the question to the settlement.
    pub(super) async fn attempt(&self, intent: &Intent) {
        let call_id = format!("call-{:05}", self.world.number());
        let mut window_ms = self.process.now_ms();
        for _ in 0..6 {
            let asked_boot_ms = self.process.boot_ms();
            let request = self.request(intent, &call_id, window_ms);
            let answer = self.ledger.reserve(request).await;
            self.tell(|| {
                format!(
                    "{call_id} intent {} {}: {}",
                    intent.number,
                    intent.micros,
                    short(&answer)
                )
            });
            match answer {
                Ok(ReserveAnswer::Granted(grant)) => {
                    self.world.count(if grant.joined { "joined" } else { "granted" });
                    self.send(&grant, asked_boot_ms).await;
                    return;
                }
                Ok(ReserveAnswer::WindowMoved { now_ms }) => window_ms = now_ms,
                Ok(ReserveAnswer::Stale) => {
                    if let Ok(Some(key)) = self.ledger.key(&self.keys[intent.key].id).await {
                        let version = i64::try_from(key.version).unwrap();
                        self.keys[intent.key].version.store(version, Ordering::SeqCst);
                    }
                }
                Ok(_) => {
                    self.world.count("refused or done");
                    return;
                }
                Err(_) => {
                    self.world.count("ledger not reached");
                    match self.world.rng.below(3) {
                        // Asked for again: it counts once.
                        0 => {}
                        1 => return self.give_up(&call_id).await,
                        _ => return,
                    }
                }
            }
        }
    }

    /// Certifies that nothing was or will be sent of a call whose reservation may or may not be on its way.
    async fn give_up(&self, call_id: &str) {
        for _ in 0..4 {
            let settled = self.settle(settlement(call_id, 1, Proof::NeverSent, false)).await;
            self.tell(|| format!("{call_id} given up: {}", settled.is_ok()));
            let Ok(answer) = settled else { continue };
            if answer.state == State::Voided {
                self.world.count("given up");
                self.world
                    .books
                    .lock()
                    .unwrap()
                    .given_up
                    .insert(call_id.to_owned());
            }
            return;
        }
    }

    async fn send(&self, grant: &Grant, asked_boot_ms: i64) {
        let identity = grant.identity.clone().unwrap_or_default();
        let key = vendor_key(&identity, grant.generation);
        // Connecting takes its time.
        if self.world.rng.chance(100) {
            tokio::time::sleep(Duration::from_millis(self.world.rng.below(7_000))).await;
        }
        let from_ms = if self.world.is(Mutant::SendWindowFromAnswer) {
            self.process.boot_ms()
        } else {
            asked_boot_ms
        };
        if self.process.boot_ms() >= from_ms + SEND_WITHIN_MS {
            self.world.count("too late to send");
            let unsent = settlement(&grant.call_id, grant.attempt, Proof::NeverSent, false);
            drop(self.settle(unsent).await);
            return;
        }
        self.tell(|| format!("{} attempt {} sends {key}", grant.call_id, grant.attempt));
        let answered = self.world.send_to_vendor(&key, grant.amount.micros());
        // Now and then the caller is less patient than the request lives.
        let patience_ms = if self.world.rng.chance(250) {
            self.world.rng.between(1, 5_000)
        } else {
            u64::try_from(REQUEST_MS).unwrap()
        };
        let patience = Duration::from_millis(patience_ms);
        let reply = tokio::time::timeout(patience, answered).await;
        let no_proof = |reason: &str| Proof::NoProof {
            reason: reason.to_owned(),
        };
        let mut replayed = false;
        let proof = match reply {
            Ok(Ok(Reply::Charged {
                micros,
                replayed: again,
            })) => {
                replayed = again;
                Proof::Charged {
                    actual: Usd::from_micros(micros),
                }
            }
            Ok(Ok(Reply::Accepted)) => Proof::Accepted,
            Ok(Ok(Reply::Declined)) => Proof::FailedForGood,
            Ok(Ok(Reply::NotExecuted)) => Proof::DidNotExecute,
            Ok(Ok(Reply::InUse)) => no_proof("http_409"),
            Ok(Ok(Reply::Broken)) => no_proof("http_500"),
            Ok(Err(_)) | Err(_) => no_proof("timeout"),
        };
        self.world.count(proof.kind());
        self.record(settlement(&grant.call_id, grant.attempt, proof, replayed))
            .await;
    }

    /// Tries a few times, as the engine does.
    async fn record(&self, settlement: Settlement) {
        for _ in 0..3 {
            let settled = self.settle(settlement.clone()).await;
            self.tell(|| {
                let what = match &settled {
                    Ok(answer) => format!(
                        "{} used {} held {}",
                        answer.state.as_str(),
                        answer.used,
                        answer.held
                    ),
                    Err(error) => error.to_string(),
                };
                format!("{} {} -> {what}", settlement.call_id, settlement.proof.kind())
            });
            match settled {
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::LedgerUnavailable | ErrorKind::LedgerRecovering
                    ) => {}
                _ => return,
            }
        }
    }

    /// Settles, as the ledger does it or as a broken one would.
    async fn settle(&self, settlement: Settlement) -> Result<SettleAnswer> {
        let lets_go = match (self.world.mutant, &settlement.proof) {
            (Some(Mutant::ReleaseOnTimeout), Proof::NoProof { .. }) => true,
            (Some(Mutant::VoidOnJoined429), Proof::DidNotExecute) => settlement.attempt > 1,
            (Some(Mutant::ReplayAsVoid), Proof::Charged { .. }) => settlement.facts.replayed,
            (Some(Mutant::EarlyAbsence), Proof::Absent { .. }) => true,
            _ => false,
        };
        if !lets_go {
            return self.ledger.settle(settlement).await;
        }
        let doubt = Proof::NoProof {
            reason: "mutant".to_owned(),
        };
        let mut lie = settlement;
        lie.proof = doubt;
        let mut answer = self.ledger.settle(lie.clone()).await?;
        let known = self.ledger.reservation(&lie.call_id).await?;
        lie.proof = Proof::NeverSent;
        for attempt in 1..=known.map_or(0, |call| call.attempts) {
            lie.attempt = attempt;
            answer = self.ledger.settle(lie.clone()).await?;
        }
        Ok(answer)
    }

    fn request(&self, intent: &Intent, call_id: &str, window_ms: i64) -> ReserveRequest {
        let key = &self.keys[intent.key];
        let charge = |def: &BudgetDef| ChargeAsk {
            budget: def.id(),
            customer: None,
            unit: def.unit,
            amount: if def.unit == Unit::Usd { intent.micros } else { 1 },
            limit: None,
            enforce: true,
            window: window(def.window, window_ms),
        };
        let facts = CallFacts {
            call_id: call_id.to_owned(),
            key_id: Some(key.id.clone()),
            key_version: u64::try_from(key.version.load(Ordering::SeqCst)).unwrap(),
            vendor: Some("stripe".to_owned()),
            operation: "refunds.create".to_owned(),
            livemode: true,
            agent: Some(key.lineage.to_owned()),
            run: Some("run_1".to_owned()),
            direction: -1,
            moves_money: true,
            ..CallFacts::default()
        };
        let identity = IdentityAsk {
            id: format!("{}-step-{}", key.lineage, intent.number),
            kind: IdentityKind::Step,
            content_id: format!("{}-content-{}", key.lineage, intent.content),
            fields: vec![("amount".to_owned(), intent.micros.to_string())],
            wire: format!("wire-{}", intent.content),
            caller_key: None,
            on_repeat: OnRepeat::Replay,
            remember_ms: 30 * 86_400_000,
            max_generations: 3,
        };
        ReserveRequest {
            facts: Arc::new(facts),
            identity: Some(Arc::new(identity)),
            ask: Ask::Amount(AmountAsk {
                usd: Usd::from_micros(intent.micros),
                raise: None,
                charges: key.budgets.iter().map(charge).collect(),
                pins: Vec::new(),
                would_deny: None,
            }),
            hold_for_ms: SEND_WITHIN_MS + REQUEST_MS,
            max_open_holds: 1_000,
        }
    }

    /// Asks the vendor about every call whose outcome is open. Answers how many stay open.
    pub(super) async fn reconcile(&self) -> Result<usize> {
        let holds = self.ledger.holds(HoldFilter::default()).await?;
        let mut open = 0;
        for hold in holds {
            if hold.state == State::Held || !self.reconcile_one(&hold).await? {
                open += 1;
            }
        }
        Ok(open)
    }

    async fn reconcile_one(&self, hold: &Reservation) -> Result<bool> {
        let Some(identity) = &hold.identity else {
            return Ok(false);
        };
        let now_ms = self.ledger.info().await?.now_ms;
        let vendor_ms = self.process.now_ms() - self.process.wall_off_ms.load(Ordering::SeqCst);
        let Some(seen) = self
            .world
            .look_at_vendor(&vendor_key(&identity.id, hold.generation))
            .await
        else {
            return Ok(false);
        };
        let proof = match seen {
            Seen::Charged(micros) => Proof::Charged {
                actual: Usd::from_micros(micros),
            },
            Seen::Failed => Proof::FailedForGood,
            Seen::Pending => Proof::Accepted,
            Seen::Nothing => {
                let early = self.world.is(Mutant::EarlyAbsence);
                let proven =
                    now_ms >= hold.not_after_ms + MARGIN_MS && (now_ms - vendor_ms).abs() <= CLOCKS_AGREE_MS;
                if hold.state != State::Unknown || !(proven || early) {
                    return Ok(false);
                }
                Proof::Absent {
                    evidence: "listed to the end".to_owned(),
                    attempts: hold.attempts,
                }
            }
        };
        self.world.count("reconciled");
        let settled = self
            .settle(settlement(&hold.facts.call_id, 0, proof, false))
            .await;
        self.tell(|| format!("{} found {seen:?}: {}", hold.facts.call_id, settled.is_ok()));
        Ok(
            settled
                .is_ok_and(|answer| !matches!(answer.state, State::Held | State::Unknown | State::Pending)),
        )
    }
}

fn settlement(call_id: &str, attempt: u32, proof: Proof, replayed: bool) -> Settlement {
    Settlement {
        call_id: call_id.to_owned(),
        attempt,
        proof,
        object: None,
        reply: None,
        facts: ReplyFacts {
            replayed,
            ..ReplyFacts::default()
        },
    }
}

fn short(answer: &Result<ReserveAnswer>) -> String {
    match answer {
        Ok(ReserveAnswer::Granted(grant)) => format!(
            "granted {} attempt {} generation {}{}",
            grant.call_id,
            grant.attempt,
            grant.generation,
            if grant.joined { ", joined" } else { "" }
        ),
        Ok(ReserveAnswer::Denied(denial)) => format!("denied {}", denial.code.as_str()),
        Ok(ReserveAnswer::Replay(_)) => "replayed".to_owned(),
        Ok(ReserveAnswer::NeedsAmount) => "needs an amount".to_owned(),
        Ok(ReserveAnswer::Stale) => "stale".to_owned(),
        Ok(ReserveAnswer::WindowMoved { .. }) => "window moved".to_owned(),
        Err(error) => format!("error {error}"),
    }
}
