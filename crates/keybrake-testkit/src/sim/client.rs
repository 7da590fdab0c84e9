//! A process's governed calls: the real engine, its shell and its reconciliation, over the simulated network.

use std::future::Future as _;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use keybrake::brake::{Brake, CallContext, Chance, Credentials, Decision, Limits};
use keybrake::client::{Answer, Shell, Wire as _};
use keybrake::clock::Clock as _;
use keybrake::error::ErrorKind;
use keybrake::ledger::redis::RedisLedger;
use keybrake::ledger::{HoldFilter, Ledger, Proof, ReplyFacts, Settlement, State};
use keybrake::policy::Code;
use keybrake::request::Call;
use keybrake::secret::{Secret, Secrets};
use keybrake::{Keybrake, Result};
use serde_json::Value;

use super::broken::Broken;
use super::intents::{Intent, Step};
use super::process::Process;
use super::rng::Rng;
use super::server::Endpoint;
use super::vendor::Cable;
use super::world::{REQUEST_MS, SEND_WITHIN_MS, World};
use super::{MASTER, mutants::Mutant};
use crate::Wrapped;
use crate::stripe::TEST_SECRET;

/// What an agent holds.
#[derive(Clone, Debug)]
pub(super) struct Key {
    pub(super) token: String,
}

/// A process's view of everything.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) world: Arc<World>,
    pub(super) process: Arc<Process>,
    pub(super) keybrake: Keybrake,
    pub(super) cable: Arc<Cable>,
    pub(super) drawn: Arc<Drawn>,
    pub(super) keys: Arc<Vec<Key>>,
    /// The ledger as the process's supervisor reaches it; none for the operator, who has none.
    pub(super) supervisor: Option<Arc<dyn Ledger>>,
}

/// Names and nonces from the seed.
#[derive(Debug)]
pub(super) struct Drawn {
    world: Arc<World>,
    /// The call that was named last.
    last: Mutex<String>,
}

impl Chance for Drawn {
    fn call_id(&self) -> String {
        let id = format!("call-{:05}", self.world.number());
        id.clone_into(&mut self.last.lock().unwrap());
        id
    }

    fn nonce(&self) -> Option<[u8; 24]> {
        Some(std::array::from_fn(|_| byte(&self.world.rng)))
    }
}

fn byte(rng: &Rng) -> u8 {
    u8::try_from(rng.below(256)).unwrap()
}

impl Client {
    /// Opens the ledger and makes the engine, as a process does when it starts.
    pub(super) async fn start(
        world: &Arc<World>,
        process: &Arc<Process>,
        operator: Option<&Self>,
    ) -> Result<Self> {
        let endpoint = Endpoint {
            world: Arc::clone(world),
            process: Arc::clone(process),
            reliable: operator.is_none(),
        };
        let ledger =
            RedisLedger::over(Arc::new(endpoint), world.timeout, process.clone(), Some(MASTER)).await?;
        let ledger: Arc<dyn Ledger> = match world.mutant {
            Some(mutant) => Arc::new(Wrapped(Broken {
                inner: ledger,
                mutant,
            })),
            None => Arc::new(ledger),
        };
        let mut secrets = Secrets::default();
        secrets.insert("stripe", None, Secret::value(TEST_SECRET));
        let credentials = Credentials::new(secrets, world.vendor.lock().unwrap().base_urls())?;
        let limits = Limits {
            send_within_ms: SEND_WITHIN_MS,
            request_ms: REQUEST_MS,
            max_open_holds: 1_000,
            ..Limits::default()
        };
        let brake = Brake::with_journal(ledger, process.clone(), credentials, limits, None).await?;
        let drawn = Arc::new(Drawn {
            world: Arc::clone(world),
            last: Mutex::default(),
        });
        let brake = brake.with_chance(drawn.clone());
        let cable = Arc::new(Cable {
            world: Arc::clone(world),
            process: Arc::clone(process),
        });
        let shell = Shell::over(Arc::new(brake), cable.clone());
        Ok(Self {
            world: Arc::clone(world),
            process: Arc::clone(process),
            keybrake: Keybrake::over(Arc::new(shell)),
            cable,
            drawn,
            keys: operator
                .map(|operator| Arc::clone(&operator.keys))
                .unwrap_or_default(),
            supervisor: operator.map(|operator| Arc::clone(operator.keybrake.ledger())),
        })
    }

    fn tell(&self, line: impl FnOnce() -> String) {
        self.world.tell(|| format!("p{} {}", self.process.number, line()));
    }

    /// One try of an intent: its calls one after the other, for as long as the vendor says yes.
    pub(super) async fn attempt(&self, intent: &Intent) {
        let mut object = String::new();
        for step in intent.steps() {
            let Some(reply) = self.call(intent, &step, &object).await else {
                return;
            };
            if let Some(id) = reply.get("id").and_then(Value::as_str) {
                id.clone_into(&mut object);
            }
            if self.world.rng.chance(300) {
                tokio::time::sleep(Duration::from_millis(self.world.rng.below(4_000))).await;
            }
        }
    }

    /// One governed call; answers the object of a success.
    async fn call(&self, intent: &Intent, step: &Step, object: &str) -> Option<Value> {
        let rng = &self.world.rng;
        let call = Call {
            method: "POST".to_owned(),
            url: format!("https://api.stripe.com{}", step.path.replace('*', object)),
            headers: vec![
                (
                    "authorization".to_owned(),
                    format!("Bearer {}", self.keys[intent.key].token),
                ),
                (
                    "content-type".to_owned(),
                    "application/x-www-form-urlencoded".to_owned(),
                ),
            ],
            body: step.form.clone().into(),
        };
        let context = CallContext {
            step: intent.named.then(|| format!("{}-{}", intent.number, step.name)),
            ..CallContext::default()
        };
        let what = || format!("intent {} {}", intent.number, step.name);
        self.tell(|| format!("{} asks", what()));
        let wait = Duration::from_millis(if rng.chance(100) { rng.below(20_000) } else { 0 });
        let answer = if rng.chance(60) {
            match self.ask_impatiently(call, context).await {
                Ok(Some(decision)) => self.carry_out(decision).await,
                Ok(None) => return None,
                Err(error) => Err(error),
            }
        } else if self.world.is(Mutant::SendWindowFromAnswer) {
            match self.keybrake.brake().authorize(call, context).await {
                Ok(decision) => self.carry_out(decision).await,
                Err(error) => Err(error),
            }
        } else {
            self.keybrake.shell().send(call, context, wait).await
        };
        match answer {
            Ok(Answer::Reply { reply, record }) => {
                self.world.count(if record.verdict == "replayed" {
                    "replayed"
                } else {
                    "answered"
                });
                let state = record.state.map_or("-", State::as_str);
                self.tell(|| {
                    let unrecorded = if record.unrecorded { " unrecorded" } else { "" };
                    format!(
                        "{} {} {}: {state}{unrecorded}",
                        what(),
                        record.call_id,
                        reply.status
                    )
                });
                let body = serde_json::from_slice(&reply.body).ok();
                body.filter(|_| reply.status == 200)
            }
            Ok(Answer::Denied { denial, .. }) => {
                self.tell(|| format!("{} denied: {}", what(), denial.code.as_str()));
                self.world.count("denied");
                if matches!(denial.code, Code::LedgerUnavailable | Code::LedgerRecovering) {
                    self.world.count("ledger not reached");
                    if rng.chance(400) {
                        self.give_up(&denial.call_id).await;
                    }
                }
                None
            }
            Ok(Answer::Lost {
                reason,
                never_sent,
                record,
                ..
            }) => {
                self.world.count(if never_sent { "never sent" } else { "lost" });
                self.tell(|| format!("{} {} lost: {reason}", what(), record.call_id));
                None
            }
            Err(error) => {
                self.tell(|| format!("{} error: {error}", what()));
                if error.kind() == ErrorKind::Internal {
                    self.world
                        .check(Err(format!("the engine found a defect: {error}")));
                }
                None
            }
        }
    }

    /// Asks for a permit, and gives the call up when there is no answer soon: its reservation may still be on its way.
    async fn ask_impatiently(&self, call: Call, context: CallContext) -> Result<Option<Decision>> {
        let mut asking = Box::pin(self.keybrake.brake().authorize(call, context));
        let begun = std::future::poll_fn(|context| Poll::Ready(asking.as_mut().poll(context))).await;
        if let Poll::Ready(decision) = begun {
            return decision.map(Some);
        }
        // Its id was drawn when it began, before anything else could run.
        let call_id = self.drawn.last.lock().unwrap().clone();
        let patience = Duration::from_millis(self.world.rng.between(1, 200));
        if let Ok(decision) = tokio::time::timeout(patience, asking).await {
            return decision.map(Some);
        }
        self.world.count("cancelled while asking");
        self.tell(|| format!("{call_id} is not waited for"));
        self.give_up(&call_id).await;
        Ok(None)
    }

    /// What a shell does with a decision. One mistake is built in here: that the time to send counts from when the ledger's
    /// answer was read.
    async fn carry_out(&self, mut decision: Decision) -> Result<Answer> {
        let (shell, brake) = (self.keybrake.shell(), self.keybrake.brake());
        loop {
            decision = match decision {
                Decision::NeedsLookup(pending) => {
                    let request = pending.prepared(brake)?;
                    let send = async {
                        let timeout = Duration::from_secs(20);
                        let answer = self.cable.exchange(&request, &mut || true, timeout).await;
                        answer.map_err(|failure| format!("{failure:?}"))
                    };
                    match pending.read(send).await {
                        Ok(reply) => brake.resume(*pending, reply).await?,
                        Err(reason) => brake.resume_failed(*pending, &reason).await?,
                    }
                }
                Decision::Permit(mut permit) => {
                    if self.world.is(Mutant::SendWindowFromAnswer) {
                        permit.send_before_boot_ms = self.process.boot_ms() + SEND_WITHIN_MS;
                    }
                    return shell.deliver(*permit).await;
                }
                Decision::Denied(refused) => {
                    let (denial, reply, record) = (Box::new(refused.denial), refused.reply, refused.record);
                    return Ok(Answer::Denied {
                        denial,
                        reply,
                        record,
                    });
                }
                Decision::Replayed(replayed) => {
                    return Ok(Answer::Reply {
                        reply: replayed.reply,
                        record: replayed.record,
                    });
                }
            };
        }
    }

    /// Certifies that nothing was or will be sent of a call whose reservation may or may not be on its way: itself, or its
    /// supervisor at once.
    async fn give_up(&self, call_id: &str) {
        let supervised = self.supervisor.as_ref().filter(|_| self.world.rng.chance(500));
        let ledger = supervised.unwrap_or_else(|| self.keybrake.ledger());
        for _ in 0..4 {
            let settled = ledger
                .settle(Settlement {
                    call_id: call_id.to_owned(),
                    attempt: 1,
                    proof: Proof::NeverSent,
                    object: None,
                    reply: None,
                    facts: ReplyFacts::default(),
                })
                .await;
            self.tell(|| format!("{call_id} given up: {}", settled.is_ok()));
            let Ok(answer) = settled else {
                tokio::time::sleep(Duration::from_millis(110)).await;
                continue;
            };
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

    /// Asks the vendor about every call whose outcome is open. Answers how many stay open.
    pub(super) async fn reconcile(&self) -> Result<usize> {
        let found = self.keybrake.reconcile(HoldFilter::default(), |_, _| ()).await?;
        for found in found {
            self.world.count("reconciled");
            self.tell(|| {
                format!(
                    "{} {} found: {:?}",
                    found.operation, found.call_id, found.resolution
                )
            });
        }
        Ok(self.keybrake.holds(HoldFilter::default()).await?.len())
    }
}
