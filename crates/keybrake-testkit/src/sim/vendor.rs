//! The vendor as a fleet reaches it: the simulator of Stripe's API behind a bad network. It knows idempotency keys,
//! declines, refuses, is slow, breaks before or after executing, decides later. Its journal is the truth.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use keybrake::brake::Prepared;
use keybrake::client::{NoReply, Wire};
use keybrake::vendors::Reply;
use tokio::sync::oneshot;

use super::mutants::Mutant;
use super::process::Process;
use super::world::World;
use crate::stripe::in_process::{Arrived, InProcess, Running};

const HOST: &str = "https://api.stripe.com";
/// Where a simulator stands in for it: there absence is proven at a call's deadline, not an hour later.
const LOOPBACK: &str = "http://127.0.0.1:12111";
/// How far the mutant's idea of the time is ahead.
pub(super) const EARLY_MS: i64 = 2 * 3_600_000;

/// How often what happens, in a thousand requests.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Habits {
    pub(super) slow: u64,
    pub(super) refuses: u64,
    pub(super) declines: u64,
    pub(super) breaks: u64,
    /// What was accepted fails in the end.
    pub(super) fails_later: u64,
}

#[derive(Debug)]
pub(super) struct Vendor {
    pub(super) stripe: InProcess,
    pub(super) habits: Habits,
    /// Whether processes have it at [`LOOPBACK`].
    loopback: bool,
    /// Journal rows that were looked at.
    seen: usize,
    /// Objects whose end is on its way.
    awaited: BTreeSet<String>,
}

impl Vendor {
    pub(super) const fn new(stripe: InProcess, habits: Habits, loopback: bool) -> Self {
        Self {
            stripe,
            habits,
            loopback,
            seen: 0,
            awaited: BTreeSet::new(),
        }
    }

    /// The base URLs that processes are told.
    pub(super) fn base_urls(&self) -> BTreeMap<String, String> {
        let base = self.loopback.then(|| ("stripe".to_owned(), LOOPBACK.to_owned()));
        base.into_iter().collect()
    }
}

/// A request on its way.
#[derive(Clone)]
struct Sent {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: bytes::Bytes,
}

impl Sent {
    fn of(request: &Prepared) -> Self {
        let headers = request.headers.iter();
        let url = request.url.as_str();
        let target = url.strip_prefix(HOST).or_else(|| url.strip_prefix(LOOPBACK));
        Self {
            method: request.method.clone(),
            target: target.unwrap_or_default().to_owned(),
            headers: headers
                .map(|(name, value)| (name.clone(), value.to_string()))
                .collect(),
            body: request.body.clone(),
        }
    }

    fn key(&self) -> &str {
        let named = |(name, _): &&(String, String)| name.eq_ignore_ascii_case("idempotency-key");
        self.headers.iter().find(named).map_or("", |(_, key)| key)
    }

    fn reads(&self) -> bool {
        self.method == "GET"
    }

    fn shown(&self) -> String {
        let key = self.key();
        let path = self.target.split('&').next().unwrap_or_default();
        format!("{} {path} {}", self.method, key.get(..9).unwrap_or_default())
    }
}

impl World {
    /// Sends a request to the vendor. Nothing comes back when it or its reply is lost.
    fn send_to_vendor(self: &Arc<Self>, sent: Sent) -> oneshot::Receiver<Reply> {
        let (answer, answered) = oneshot::channel();
        let weather = *self.weather.lock().unwrap();
        let delay_ms = (!self.rng.chance(weather.lost)).then(|| weather.delay_ms(&self.rng).min(8_000));
        tokio::spawn(Arc::clone(self).at_vendor(sent, delay_ms, answer));
        answered
    }

    async fn at_vendor(self: Arc<Self>, sent: Sent, delay_ms: Option<u64>, answer: oneshot::Sender<Reply>) {
        let Some(delay_ms) = delay_ms else {
            return lost(answer).await;
        };
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        let reply = match self.arrives(&sent) {
            Arrived::Answered(reply) => reply,
            Arrived::Runs(running) => {
                let slow = self.vendor.lock().unwrap().habits.slow;
                if !sent.reads() && self.rng.chance(slow) {
                    tokio::time::sleep(Duration::from_millis(self.rng.between(50, 9_000))).await;
                }
                self.runs(&sent, &running)
            }
        };
        self.tell(|| format!("vendor {} -> {}", sent.shown(), shown(&reply)));
        let weather = *self.weather.lock().unwrap();
        if self.rng.chance(weather.lost) {
            return lost(answer).await;
        }
        tokio::time::sleep(Duration::from_millis(weather.delay_ms(&self.rng))).await;
        let _ = answer.send(reply);
    }

    fn arrives(&self, sent: &Sent) -> Arrived {
        let mut vendor = self.vendor.lock().unwrap();
        if self.rng.chance(vendor.habits.refuses) {
            let reply = vendor
                .stripe
                .rate_limit(&sent.method, &sent.target, &sent.headers);
            return Arrived::Answered(reply);
        }
        vendor
            .stripe
            .arrive(&sent.method, &sent.target, &sent.headers, &sent.body)
    }

    fn runs(self: &Arc<Self>, sent: &Sent, running: &Running) -> Reply {
        let mut vendor = self.vendor.lock().unwrap();
        let habits = vendor.habits;
        let by_form = ["/v1/refunds", "/v1/payouts"].contains(&sent.target.as_str());
        let stripe = &mut vendor.stripe;
        let newest = stripe.newest_intent();
        let reply = if sent.reads() {
            stripe.execute(running, false)
        } else if by_form && self.rng.chance(habits.declines) {
            stripe.decline(running)
        } else if self.rng.chance(habits.breaks) {
            if self.rng.chance(500) {
                stripe.fail(running)
            } else {
                stripe.execute(running, true)
            }
        } else {
            stripe.execute(running, false)
        };
        let made = stripe.newest_intent().filter(|id| newest.as_ref() != Some(id));
        drop(vendor);
        if !sent.reads() {
            let checked = self.books.lock().unwrap().executed(sent.key(), made);
            self.check(checked);
        }
        self.look_at_journal();
        reply
    }

    /// What moved since the last time, and what will be decided later.
    fn look_at_journal(self: &Arc<Self>) {
        let mut vendor = self.vendor.lock().unwrap();
        let rows = vendor.stripe.journal();
        let new = rows.get(vendor.seen..).unwrap_or_default().to_vec();
        vendor.seen = rows.len();
        let undecided = vendor.stripe.undecided();
        for (id, status) in undecided {
            if vendor.awaited.insert(format!("{id} {status}")) {
                tokio::spawn(Arc::clone(self).decided_later(id, status));
            }
        }
        drop(vendor);
        for row in new {
            self.count("movements");
            self.tell(|| {
                let source = row.source.as_deref().unwrap_or("-");
                format!(
                    "moved {:?} {:?} {} of {} {source}",
                    row.outcome, row.kind, row.amount, row.object
                )
            });
            let checked = self.books.lock().unwrap().moved(&row);
            self.check(checked);
        }
    }

    async fn decided_later(self: Arc<Self>, id: String, status: &'static str) {
        tokio::time::sleep(Duration::from_secs(self.rng.between(5, 250))).await;
        let mut vendor = self.vendor.lock().unwrap();
        let fails = self.rng.chance(vendor.habits.fails_later);
        let to = match (id.starts_with("po_"), fails) {
            (_, true) => "failed",
            (true, false) if status == "paid" => return,
            (true, false) => "paid",
            (false, false) => "succeeded",
        };
        // It may have been cancelled meanwhile.
        let done = vendor.stripe.advance(&id, to);
        drop(vendor);
        self.count(if fails { "failed later" } else { "decided later" });
        self.tell(|| format!("vendor {id} becomes {to}: {}", done.is_ok()));
        self.look_at_journal();
    }

    /// The owner of the account cancels what could still move money.
    pub(super) fn cancel_open_intents(self: &Arc<Self>) {
        self.vendor.lock().unwrap().stripe.cancel_open_intents();
        self.look_at_journal();
    }
}

fn shown(reply: &Reply) -> String {
    let body: serde_json::Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    let text = |name: &str| body.get(name).and_then(serde_json::Value::as_str).unwrap_or("");
    let replayed = reply.header("idempotent-replayed").map_or("", |_| " replayed");
    format!("{} {} {}{replayed}", reply.status, text("id"), text("status"))
}

/// Whoever waits for this waits for as long as it wants to.
async fn lost(answer: oneshot::Sender<Reply>) {
    tokio::time::sleep(Duration::from_hours(1)).await;
    drop(answer);
}

/// The way from one process to the vendor.
#[derive(Debug)]
pub(super) struct Cable {
    pub(super) world: Arc<World>,
    pub(super) process: Arc<Process>,
}

#[async_trait]
impl Wire for Cable {
    async fn exchange(
        &self,
        request: &Prepared,
        first_byte: &mut (dyn FnMut() -> bool + Send),
        timeout: Duration,
    ) -> Result<Reply, NoReply> {
        let (world, rng) = (&self.world, &self.world.rng);
        self.process.runs().await;
        let deadline = tokio::time::Instant::now() + timeout;
        // Connecting takes its time.
        if rng.chance(100) {
            tokio::time::sleep(Duration::from_millis(rng.below(7_000))).await;
        }
        let weather = *world.weather.lock().unwrap();
        if rng.chance(weather.lost / 4) {
            return Err(NoReply::NoConnection);
        }
        if !first_byte() {
            world.count("too late to send");
            return Err(NoReply::ConnectionLost);
        }
        let sent = Sent::of(request);
        world.tell(|| format!("p{} sends {}", self.process.number, sent.shown()));
        let answered = world.send_to_vendor(sent);
        // Now and then the connection ends before the request does.
        let patience = if rng.chance(150) {
            deadline.min(tokio::time::Instant::now() + Duration::from_millis(rng.between(1, 5_000)))
        } else {
            deadline
        };
        match tokio::time::timeout_at(patience, answered).await {
            Ok(Ok(mut reply)) => {
                if world.is(Mutant::EarlyAbsence) {
                    later(&mut reply);
                }
                Ok(reply)
            }
            Ok(Err(_)) | Err(_) if patience < deadline => Err(NoReply::ConnectionLost),
            Ok(Err(_)) | Err(_) => Err(NoReply::Timeout),
        }
    }
}

/// The reply, dated as the mutant dates everything.
fn later(reply: &mut Reply) {
    for (name, value) in &mut reply.headers {
        if name == "date"
            && let Ok(date) = jiff::fmt::rfc2822::parse(value)
        {
            *value = crate::stripe::date(date.timestamp().as_millisecond() + EARLY_MS);
        }
    }
}
