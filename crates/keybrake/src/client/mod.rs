//! Shells: they own the bytes. [`Shell`] makes a whole governed call over our own HTTP client; [`Enforcement`]
//! is the same as a `reqwest_middleware::Middleware`.

mod body;
mod enforcement;
mod http;
mod inflight;
mod intime;
mod stream;
mod wire;

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

pub use enforcement::{Enforcement, Item, Lost, Step};
pub use stream::{BrokenOff, Opened, ReplyStream, broken_off};
#[doc(hidden)]
pub use wire::{NoReply, Wire};

use crate::brake::{Brake, CallContext, CallRecord, Decision, Permit, Prepared, SendEnd, Settled};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::ledger::Stop;
use crate::policy::{Code, Denial};
use crate::request::Call;
use crate::vendors::Reply;
use http::{Http, Sent};
use inflight::{Flight, InFlight};

/// A lookup is one small read; a slow one refuses the call.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(20);
/// Permits that expire unsent are asked for anew, so often.
const MOST_PERMITS: u32 = 3;
/// What is recorded of a call that its caller gave up in flight.
const CANCELLED: &str = "cancelled";
/// What is recorded of a call that a hard stop aborted.
const ABORTED: &str = "aborted";

/// Ends when the caller gives its call up; never again polled then.
pub type GivenUp<'a> = std::pin::Pin<&'a mut (dyn Future<Output = ()> + Send)>;

/// How a governed call ended.
#[derive(Debug)]
pub enum Answer {
    /// The vendor's reply, or a recorded one, with our headers on it.
    Reply {
        /// The reply.
        reply: Reply,
        /// The call as the audit has it.
        record: CallRecord,
    },
    /// Refused; nothing was sent. Or aborted in flight by a hard stop: then the denial's code is `stopped`, it says
    /// `aborted`, and the call's outcome is unknown.
    Denied {
        /// What was refused and why.
        denial: Box<Denial>,
        /// The denial in the vendor's error shape.
        reply: Reply,
        /// The call as the audit has it.
        record: CallRecord,
    },
    /// No reply. The hold stands unless it was certainly never sent.
    Lost {
        /// In a word: `timeout`, `connection_lost`, `no_connection`, `reply_cut_off`, `cancelled`.
        reason: String,
        /// Whether it is certain that nothing left.
        never_sent: bool,
        /// The call as the audit has it.
        record: CallRecord,
        /// The HTTP client's own error, for retry layers that look at it.
        error: Option<reqwest::Error>,
    },
}

/// A whole governed call: authorize, look up, send, settle.
#[derive(Debug)]
pub struct Shell {
    brake: Arc<Brake>,
    http: Http,
    calls: Arc<InFlight>,
}

impl Shell {
    /// A shell over an engine.
    pub fn new(brake: Arc<Brake>) -> Self {
        let clock = Arc::clone(brake.clock());
        Self {
            calls: InFlight::new(Arc::clone(brake.ledger()), Arc::clone(&clock)),
            brake,
            http: Http::new(clock),
        }
    }

    /// The same without a network: for the simulation.
    #[doc(hidden)]
    pub fn over(brake: Arc<Brake>, wire: Arc<dyn Wire>) -> Self {
        let clock = Arc::clone(brake.clock());
        Self {
            calls: InFlight::new(Arc::clone(brake.ledger()), Arc::clone(&clock)),
            brake,
            http: Http::new(clock).over(wire),
        }
    }

    /// The engine.
    pub const fn brake(&self) -> &Arc<Brake> {
        &self.brake
    }

    /// Makes the call and reads its reply whole (64 MiB at most). `wait` is how long a `cap_held` refusal may be waited
    /// out.
    ///
    /// Dropping the future aborts the request; what may have left stays held as unknown.
    ///
    /// # Errors
    /// Of [`Brake::authorize`] and [`Brake::settle`]. A refusal or a lost reply is an answer, not an error.
    pub async fn send(self: &Arc<Self>, call: Call, context: CallContext, wait: Duration) -> Result<Answer> {
        let mut never = std::pin::pin!(std::future::pending());
        let opened = self.open_unless(call, context, wait, never.as_mut()).await?;
        opened.whole(never).await
    }

    /// Makes the call; a document (a quote's PDF, a file's contents) is handed on as it arrives, of any length.
    /// Everything else is read whole, since its body tells what the call has cost.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub async fn open(self: &Arc<Self>, call: Call, context: CallContext, wait: Duration) -> Result<Opened> {
        let never = std::pin::pin!(std::future::pending());
        self.open_unless(call, context, wait, never).await
    }

    /// As [`open`](Self::open), for a caller who wants to know what became of a call that it gives up. In flight, its
    /// request is then aborted, and the answer is `Lost` with the call's record: `cancelled`. Once the reply of a document
    /// has begun, its stream is what is given up.
    ///
    /// # Errors
    /// As `open`; and `Config` when it was given up before it was sent (then nothing was sent, and a hold that the ledger
    /// had made meanwhile is given back).
    pub async fn open_unless(
        self: &Arc<Self>,
        call: Call,
        context: CallContext,
        wait: Duration,
        mut given_up: GivenUp<'_>,
    ) -> Result<Opened> {
        let mut patience = Patience::new(self, wait);
        loop {
            let opened = self.once(&call, &context, given_up.as_mut()).await?;
            let held = opened.denial().is_some_and(|denial| denial.code == Code::CapHeld);
            if !held || !unless(given_up.as_mut(), async { Ok(patience.more().await) }).await? {
                return Ok(opened);
            }
        }
    }

    /// Authorises, making the reads that the engine asks for, and leaves the sending to the caller: what a permit holds
    /// is sent by other means than this shell, and [`settle`](Self::settle) told how that ended. The answer is never
    /// [`Decision::NeedsLookup`]. `wait` is as for [`send`](Self::send).
    ///
    /// # Errors
    /// Of [`Brake::authorize`].
    pub async fn authorize(&self, call: Call, context: CallContext, wait: Duration) -> Result<Decision> {
        let never = std::pin::pin!(std::future::pending());
        self.authorize_unless(call, context, wait, never).await
    }

    /// As [`authorize`](Self::authorize), for a caller who may give the call up before it is decided.
    ///
    /// # Errors
    /// As there, and `Config` when it was given up (then a hold that the ledger had made meanwhile is given back).
    pub async fn authorize_unless(
        &self,
        call: Call,
        context: CallContext,
        wait: Duration,
        mut given_up: GivenUp<'_>,
    ) -> Result<Decision> {
        let mut patience = Patience::new(self, wait);
        loop {
            let decided = Box::pin(self.decide(call.clone(), context.clone()));
            let decision = unless(given_up.as_mut(), decided).await?;
            let held = matches!(&decision, Decision::Denied(refused) if refused.denial.code == Code::CapHeld);
            if !held || !unless(given_up.as_mut(), async { Ok(patience.more().await) }).await? {
                return Ok(decision);
            }
        }
    }

    /// Records how an attempt ended that its caller sent by a permit of [`authorize`](Self::authorize), whether or not
    /// the caller goes on waiting. The answer is `Reply`, or `Lost` when there was none.
    ///
    /// # Errors
    /// Of [`Brake::settle`].
    pub async fn settle(self: &Arc<Self>, permit: Permit, end: SendEnd) -> Result<Answer> {
        settled(&mut Guard::new(self, permit), end, None).await
    }

    async fn once(
        self: &Arc<Self>,
        call: &Call,
        context: &CallContext,
        mut given_up: GivenUp<'_>,
    ) -> Result<Opened> {
        let mut last = None;
        for _ in 0..MOST_PERMITS {
            // Boxed, or it would stand in the future of the whole call twice.
            let decided = Box::pin(self.decide(call.clone(), context.clone()));
            let decision = unless(given_up.as_mut(), decided).await?;
            let permit = match decision {
                Decision::Permit(permit) => permit,
                Decision::Denied(refused) => {
                    let (denial, reply, record) = (Box::new(refused.denial), refused.reply, refused.record);
                    return Ok(Opened::from(Answer::Denied {
                        denial,
                        reply,
                        record,
                    }));
                }
                Decision::Replayed(replayed) => {
                    return Ok(Opened::from(Answer::Reply {
                        reply: replayed.reply,
                        record: replayed.record,
                    }));
                }
                Decision::NeedsLookup(_) => {
                    return Err(Error::new(ErrorKind::Internal, "a lookup was left over"));
                }
            };
            let (opened, expired) = self.deliver_permit(*permit, given_up.as_mut()).await?;
            if !expired {
                return Ok(opened);
            }
            last = Some(opened);
        }
        last.ok_or_else(|| Error::new(ErrorKind::Internal, "no permit was given"))
    }

    /// Sends a permit and settles it. Past its `send_before` nothing is sent, and the answer is `Lost` with `never_sent`.
    ///
    /// # Errors
    /// Of [`Brake::settle`].
    pub async fn deliver(self: &Arc<Self>, permit: Permit) -> Result<Answer> {
        let mut never = std::pin::pin!(std::future::pending());
        let (opened, _) = self.deliver_permit(permit, never.as_mut()).await?;
        opened.whole(never).await
    }

    /// The answer, and whether the permit expired before the first byte: then it may be asked for anew.
    async fn deliver_permit(
        self: &Arc<Self>,
        permit: Permit,
        mut given_up: GivenUp<'_>,
    ) -> Result<(Opened, bool)> {
        let send_before_boot_ms = permit.send_before_boot_ms;
        let mut guard = Guard::new(self, permit);
        if std::future::poll_fn(|cx| Poll::Ready(given_up.as_mut().poll(cx).is_ready())).await {
            // Before the connection was asked for: certainly never sent.
            settled(&mut guard, SendEnd::NeverSent, None).await?;
            return Err(gave_up());
        }
        let sent = match guard.send(given_up).await {
            Ok(sent) => sent,
            Err(stop) => return Ok((Opened::from(aborted(&mut guard, &stop).await?), false)),
        };
        let (end, error) = match (sent, guard.permit()) {
            (Sent::Ended(end, error), _) => (end, error),
            (Sent::Begun(head, incoming), Some(permit)) => {
                let begun = self.brake.begun(permit, head.clone());
                let stream = ReplyStream::new(guard, head, begun, incoming);
                return Ok((Opened::Stream(Box::new(stream)), false));
            }
            (Sent::Begun(..), None) => (SendEnd::NeverSent, None),
        };
        let unsent = matches!(end, SendEnd::NeverSent);
        let expired = unsent && self.brake.clock().boot_ms() >= send_before_boot_ms;
        Ok((Opened::from(settled(&mut guard, end, error).await?), expired))
    }

    /// Authorises, making the reads that the engine asks for.
    async fn decide(&self, call: Call, context: CallContext) -> Result<Decision> {
        let mut decision = self.brake.authorize(call, context).await?;
        while let Decision::NeedsLookup(pending) = decision {
            let request = pending.prepared(&self.brake)?;
            let read = pending.read(self.http.read(&request, LOOKUP_TIMEOUT));
            decision = match read.await {
                Ok(reply) => self.brake.resume(*pending, reply).await?,
                Err(reason) => self.brake.resume_failed(*pending, &reason).await?,
            };
        }
        Ok(decision)
    }

    /// A read of the vendor outside any call: reconciliation.
    pub(crate) async fn read(&self, request: &Prepared) -> Result<Reply, String> {
        self.http.read(request, LOOKUP_TIMEOUT).await
    }
}

/// The work, unless the caller gives it up before.
async fn unless<T>(given_up: GivenUp<'_>, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        biased;
        () = given_up => Err(gave_up()),
        ended = work => ended,
    }
}

fn gave_up() -> Error {
    Error::new(ErrorKind::Config, "the caller gave this call up")
}

/// How long a `cap_held` refusal is waited out.
struct Patience<'a> {
    clock: &'a dyn Clock,
    until_boot_ms: i64,
    pause: Duration,
}

impl<'a> Patience<'a> {
    fn new(shell: &'a Shell, wait: Duration) -> Self {
        let clock = shell.brake.clock().as_ref();
        let wait_ms = i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
        Self {
            clock,
            until_boot_ms: clock.boot_ms().saturating_add(wait_ms),
            pause: Duration::from_millis(25),
        }
    }

    /// Waits a while; `false`, at once, when the time is over.
    async fn more(&mut self) -> bool {
        if self.clock.boot_ms() >= self.until_boot_ms {
            return false;
        }
        tokio::time::sleep(self.pause).await;
        self.pause = self.pause.saturating_mul(2).min(Duration::from_millis(500));
        true
    }
}

/// Records how the attempt ended, whether or not the caller waits for it: its outcome is known now, and the caller may
/// go away.
async fn settled(guard: &mut Guard, end: SendEnd, error: Option<reqwest::Error>) -> Result<Answer> {
    let (reason, never_sent) = match &end {
        SendEnd::Lost { reason } => (reason.clone(), false),
        SendEnd::NeverSent => ("no_connection".to_owned(), true),
        SendEnd::Reply(_) => (String::new(), false),
    };
    let settled = guard
        .settle(end)?
        .await
        .map_err(|error| Error::new(ErrorKind::Internal, "a settlement was not finished").because(error))??;
    Ok(match settled.reply {
        Some(reply) => Answer::Reply {
            reply,
            record: settled.record,
        },
        None => Answer::Lost {
            reason,
            never_sent,
            record: settled.record,
            error,
        },
    })
}

/// The same of a call that a hard stop met in flight: it is unknown, and its caller is told so.
async fn aborted(guard: &mut Guard, stop: &Stop) -> Result<Answer> {
    let told = guard.permit().map(|permit| guard.brake().aborted(permit, stop));
    let reason = ABORTED.to_owned();
    let ended = settled(guard, SendEnd::Lost { reason }, None).await?;
    Ok(match (ended, told) {
        (Answer::Lost { record, .. }, Some((denial, reply))) => Answer::Denied {
            denial: Box::new(denial),
            reply,
            record,
        },
        (ended, _) => ended,
    })
}

/// Holds a permit while its request is under way. Dropped in mid-flight (a cancelled future), it records that
/// the outcome is unknown; if even that cannot be done, the hold stands until its deadline says the same.
struct Guard {
    shell: Arc<Shell>,
    permit: Option<Permit>,
    /// Its place among the calls that a hard stop aborts.
    flight: Option<Flight>,
    /// What is recorded when it is dropped, in a word.
    reason: &'static str,
    /// Where it is recorded: a stream may be dropped on a thread without a runtime.
    runtime: Option<tokio::runtime::Handle>,
}

impl Guard {
    fn new(shell: &Arc<Shell>, permit: Permit) -> Self {
        let (facts, key) = permit.bindings();
        Self {
            shell: Arc::clone(shell),
            flight: shell.calls.enter(facts, key),
            permit: Some(permit),
            reason: CANCELLED,
            runtime: tokio::runtime::Handle::try_current().ok(),
        }
    }

    const fn saying(mut self, reason: &'static str) -> Self {
        self.reason = reason;
        self
    }

    const fn permit(&self) -> Option<&Permit> {
        self.permit.as_ref()
    }

    /// Sends the permit, unless a hard stop aborts it or its caller gives it up.
    async fn send(&mut self, given_up: GivenUp<'_>) -> Result<Sent, Stop> {
        let Some(permit) = &self.permit else {
            return Ok(Sent::Ended(SendEnd::NeverSent, None));
        };
        let flight = &mut self.flight;
        tokio::select! {
            biased;
            stop = std::future::poll_fn(|cx| poll_aborted(flight, cx)) => Err(stop),
            () = given_up => Ok(Sent::Ended(SendEnd::Lost { reason: CANCELLED.to_owned() }, None)),
            sent = self.shell.http.send(permit) => Ok(sent),
        }
    }

    /// The hard stop that aborts it, once there is one.
    fn poll_aborted(&mut self, cx: &mut Context<'_>) -> Poll<Stop> {
        poll_aborted(&mut self.flight, cx)
    }

    fn brake(&self) -> &Brake {
        &self.shell.brake
    }

    fn disarm(&mut self) -> Result<Permit> {
        let permit = self.permit.take();
        permit.ok_or_else(|| Error::new(ErrorKind::Internal, "a permit was used twice"))
    }

    /// Settles on a task of its own.
    fn settle(&mut self, end: SendEnd) -> Result<tokio::task::JoinHandle<Result<Settled>>> {
        let Some(runtime) = self.runtime.clone() else {
            return Err(Error::new(ErrorKind::Internal, "a call outside of a runtime"));
        };
        let permit = self.disarm()?;
        let brake = Arc::clone(&self.shell.brake);
        let under_way = brake.under_way();
        Ok(runtime.spawn(async move {
            let settled = brake.settle(permit, end).await;
            drop(under_way);
            settled
        }))
    }
}

fn poll_aborted(flight: &mut Option<Flight>, cx: &mut Context<'_>) -> Poll<Stop> {
    match flight {
        Some(flight) => flight.poll_aborted(cx),
        None => Poll::Pending,
    }
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard")
            .field("permit", &self.permit)
            .finish_non_exhaustive()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let (Some(permit), Some(runtime)) = (self.permit.take(), &self.runtime) else {
            return;
        };
        let (brake, reason) = (Arc::clone(&self.shell.brake), self.reason.to_owned());
        let under_way = brake.under_way();
        runtime.spawn(async move {
            let _under_way = under_way;
            let end = SendEnd::Lost { reason };
            if let Err(error) = brake.settle(permit, end).await {
                tracing::warn!(%error, "a cancelled call could not be marked unknown; its hold stands");
            }
        });
    }
}

/// A client to build on: `ClientBuilder::new(base_client()?).with(retry).with(run.enforcement())`. It sends nothing by
/// itself, since [`Enforcement`] sends.
///
/// # Errors
/// `Config` when no HTTP client can be made on this machine.
pub fn base_client() -> Result<reqwest::Client> {
    http::build(false, http::Pool::Shared)
}

/// The denial inside a `reqwest_middleware` error, however many layers (a retry layer, say) wrapped it; `None` if it is
/// not one of ours.
pub fn denied(error: &reqwest_middleware::Error) -> Option<&Denial> {
    let reqwest_middleware::Error::Middleware(inner) = error else {
        return None;
    };
    inner.chain().find_map(|cause| {
        let own = cause.downcast_ref::<Denied>().map(Denied::denial);
        own.or_else(|| cause.downcast_ref::<Cause>().map(|cause| &cause.0))
    })
}

/// A denial as an error, for callers that work with `Result`.
///
/// It is its own cause once more: a layer that wraps errors transparently shows only the causes of what it wraps, and
/// [`denied`] has to find the denial there.
#[derive(Clone, Debug)]
pub struct Denied(Cause);

#[derive(Clone, Debug)]
struct Cause(Denial);

impl Denied {
    /// A denial as an error.
    pub const fn new(denial: Denial) -> Self {
        Self(Cause(denial))
    }

    /// The denial.
    pub const fn denial(&self) -> &Denial {
        &self.0.0
    }
}

impl std::fmt::Display for Denied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Denied {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.0.code, self.0.message)
    }
}

impl std::error::Error for Cause {}
