//! Permission to send, for hosts that send by themselves: `authorize`, then their own request, then `settle`.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use keybrake::brake::{self, Decision, Prepared, SendEnd};
use keybrake::client;
use keybrake::clock::{Clock, SystemClock};
use keybrake::vendors::Reply;
use keybrake::{Error, ErrorKind, Result};

use crate::call::{self, Answer, Outgoing};
use crate::core::Core;

/// What was decided.
#[derive(Debug)]
pub enum Verdict {
    /// Send it, then settle.
    Permit(Box<Permit>),
    /// Refused, or done before: `denied` or `reply`. Nothing may be sent.
    Ended(Box<Answer>),
}

/// Permission to send one attempt. Dropped before it is [settled](Self::settling), its hold stands.
pub struct Permit {
    core: Arc<Core>,
    /// `None` once it is settled.
    held: Mutex<Option<Held>>,
    call_id: String,
    micros: i64,
    send_before_boot_ms: i64,
    request_ms: i64,
}

struct Held {
    permit: brake::Permit,
    handed: Handed,
}

/// Whom the request was given to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handed {
    /// Nobody: it certainly did not leave.
    Nobody,
    /// Code of the user's, which alone knows whether it left, and says so.
    User,
    /// The binding's own sending, which tells how it ended; until then it may have left.
    Sending,
}

impl fmt::Debug for Permit {
    /// Shows no header and no body: the vendor's secret is among them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit")
            .field("call_id", &self.call_id)
            .finish_non_exhaustive()
    }
}

/// Judges a call and reserves what it can cost, reading from the vendor what has to be known first.
///
/// # Errors
/// When the ledger cannot be opened or asked, something is misconfigured, or `given_up` ended before it was decided.
pub async fn authorize(
    core: Arc<Core>,
    outgoing: Outgoing,
    given_up: impl Future<Output = ()> + Send,
) -> Result<Verdict> {
    let (request, context, wait) = outgoing.parts();
    let shell = core.keybrake().await?.shell();
    let given_up = std::pin::pin!(given_up);
    let decision = shell.authorize_unless(request, context, wait, given_up).await?;
    Ok(match decision {
        Decision::Permit(permit) => Verdict::Permit(Box::new(Permit::new(core, *permit))),
        Decision::Denied(refused) => Verdict::Ended(Box::new(call::ended(client::Answer::Denied {
            denial: Box::new(refused.denial),
            reply: refused.reply,
            record: refused.record,
        })?)),
        Decision::Replayed(replayed) => Verdict::Ended(Box::new(call::ended(client::Answer::Reply {
            reply: replayed.reply,
            record: replayed.record,
        })?)),
        Decision::NeedsLookup(_) => return Err(Error::new(ErrorKind::Internal, "a lookup was left over")),
    })
}

impl Permit {
    fn new(core: Arc<Core>, permit: brake::Permit) -> Self {
        Self {
            core,
            call_id: permit.call_id().to_owned(),
            micros: permit.amount().micros(),
            send_before_boot_ms: permit.send_before_boot_ms,
            request_ms: permit.request_ms,
            held: Mutex::new(Some(Held {
                permit,
                handed: Handed::Nobody,
            })),
        }
    }

    /// The reservation's id.
    pub fn call_id(&self) -> &str {
        &self.call_id
    }

    /// What is reserved for it, in micro-USD.
    pub const fn micros(&self) -> i64 {
        self.micros
    }

    /// What to send: these bytes, these headers, this URL. The vendor's real secret is among the headers. Handed out
    /// once, because one permit is one attempt.
    ///
    /// # Errors
    /// `Config` the second time, once it is settled, and once its time to be sent is over.
    pub fn hand_out(&self, to: Handed) -> Result<Prepared> {
        let mut held = self.held();
        let held = held.as_mut().ok_or_else(spent)?;
        if held.handed != Handed::Nobody {
            return Err(Error::new(
                ErrorKind::Config,
                "this permit's request was handed out already, and is sent once; authorize the call anew",
            ));
        }
        if self.send_within_ms() == 0 {
            return Err(Error::new(
                ErrorKind::Config,
                "this permit expired before it was sent; nothing was sent: say so (never sent), and authorize the call \
                 anew",
            ));
        }
        held.handed = to;
        Ok(held.permit.request.clone())
    }

    /// Whether its request was handed out: then it may have left.
    pub fn handed_out(&self) -> bool {
        self.held()
            .as_ref()
            .is_none_or(|held| held.handed != Handed::Nobody)
    }

    /// Whether it was neither handed out nor settled in its time: then nothing left, and nothing may be sent any more.
    pub fn expired(&self) -> bool {
        let unsent = self
            .held()
            .as_ref()
            .is_some_and(|held| held.handed == Handed::Nobody);
        unsent && self.send_within_ms() == 0
    }

    /// How long it may still be sent, in milliseconds; zero when that is over. Before that the first byte must leave.
    pub fn send_within_ms(&self) -> i64 {
        self.send_before_boot_ms
            .saturating_sub(SystemClock.boot_ms())
            .max(0)
    }

    /// The longest the request may take once it is sent, in milliseconds.
    pub const fn request_ms(&self) -> i64 {
        self.request_ms
    }

    /// Records how the attempt ended, once, as `by` says. The answer is `reply`, or `lost` when there was none. From the
    /// moment that this returns nobody can hand the request out any more: between a word that nothing was sent and its
    /// record, nothing may be sent.
    ///
    /// # Errors
    /// `Config` when it was settled before, or is being sent and its end is somebody else's word than the sending's
    /// (anybody may say that it is lost); and of [`Shell::settle`](keybrake::client::Shell::settle).
    pub fn settling(
        &self,
        end: SendEnd,
        by: Handed,
    ) -> Result<impl Future<Output = Result<Answer>> + Send + use<>> {
        let permit = self.give_up(&end, by)?;
        let core = Arc::clone(&self.core);
        Ok(async move {
            let shell = core.keybrake().await?.shell();
            call::ended(shell.settle(permit, end).await?)
        })
    }

    /// The permit, which may end like this.
    fn give_up(&self, end: &SendEnd, by: Handed) -> Result<brake::Permit> {
        let mut held = self.held();
        let sending = held.as_ref().is_some_and(|held| held.handed == Handed::Sending);
        let may_be_said = match end {
            SendEnd::Lost { .. } => true,
            SendEnd::Reply(_) => !sending || by == Handed::Sending,
            SendEnd::NeverSent => !sending,
        };
        if !may_be_said {
            return Err(Error::new(
                ErrorKind::Config,
                "this permit is being sent, so it may have left; how that ends settles it",
            ));
        }
        held.take().map(|held| held.permit).ok_or_else(spent)
    }

    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A vendor's reply, whole, as a host read it.
///
/// # Errors
/// `Config` for a header that no HTTP reply can have: it is handed on, and read by line.
pub fn replied(status: u16, headers: Vec<(String, String)>, body: Bytes) -> Result<SendEnd> {
    let broken = |text: &str| text.contains(['\r', '\n', '\0']);
    if headers.iter().any(|(name, value)| broken(name) || broken(value)) {
        return Err(Error::new(
            ErrorKind::Config,
            "settle was given a header with a line break in it, which no reply has; the amount stays held until it is \
             given the reply as it came",
        ));
    }
    Ok(SendEnd::Reply(Reply {
        status,
        headers,
        body,
    }))
}

fn spent() -> Error {
    Error::new(
        ErrorKind::Config,
        "this permit was settled already; authorize the call anew",
    )
}
