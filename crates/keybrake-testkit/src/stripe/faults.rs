//! Faults on demand: each is asked for, scoped, counted, and hits in a fixed order. Nothing here is random.

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::number::u64_of;

/// Which requests a fault hits. What is absent matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Match {
    /// Method, any case.
    pub method: Option<String>,
    /// How the path begins, such as `/v1/refunds`.
    pub path_prefix: Option<String>,
    /// The whole path.
    pub path: Option<String>,
    /// The idempotency key.
    pub idempotency_key: Option<String>,
    /// The acting account.
    pub account: Option<String>,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// Waits `delay_ms` (before executing, or after it when `when` is `after`), then answers as usual.
    DelayMs,
    /// Closes the connection; nothing was executed.
    DropBefore,
    /// Executes, then closes the connection without an answer.
    DropAfterExecuting,
    /// Executes, then answers 500. The 500 is what the idempotency key keeps.
    #[serde(rename = "status_500_after_executing")]
    Status500AfterExecuting,
    /// Executes, sends the head and half of the body, then resets the connection.
    ResetMidBody,
    /// Executes, then sends the body in pieces of `chunk_bytes` with `delay_ms` before each.
    SlowBody,
    /// Executes, sends the head and the first `chunk_bytes` of the body, and the rest when it is released; dropped, it
    /// resets the connection.
    HoldBody,
    /// Answers 429; nothing was executed or kept.
    RateLimit,
    /// Waits (before executing, or after it when `when` is `after`) until it is released.
    HoldUntilReleased,
    /// Answers `status` with `body`; nothing was executed or kept.
    Status,
}

/// On which side of the execution a delay or hold is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// The request is in flight and has done nothing.
    #[default]
    Before,
    /// The request has taken effect and its reply is kept back.
    After,
}

/// A fault, as asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// What goes wrong.
    pub kind: FaultKind,
    /// Which requests it hits.
    #[serde(default, rename = "match")]
    pub matches: Match,
    /// How many matching requests pass unharmed first.
    #[serde(default)]
    pub skip: u64,
    /// How many it hits after that; 0 for all.
    #[serde(default = "once")]
    pub times: u64,
    /// Milliseconds for `delay_ms`, and before each piece for `slow_body`.
    #[serde(default)]
    pub delay_ms: u64,
    /// Size of a piece for `slow_body`, and of the first for `hold_body`.
    #[serde(default = "chunk")]
    pub chunk_bytes: usize,
    /// For `delay_ms` and `hold_until_released`.
    #[serde(default)]
    pub when: When,
    /// For `status`.
    #[serde(default)]
    pub status: Option<u16>,
    /// For `status`: the JSON body; by default an error of Stripe's shape.
    #[serde(default)]
    pub body: Option<serde_json::Value>,
    /// For `status`: more response headers, such as `location`.
    #[serde(default)]
    pub headers: std::collections::BTreeMap<String, String>,
    /// `Stripe-Should-Retry` of a `rate_limit` or `status` answer; without it the header is not sent.
    #[serde(default)]
    pub should_retry: Option<bool>,
}

const fn once() -> u64 {
    1
}

const fn chunk() -> usize {
    64
}

impl Fault {
    /// A fault that hits the next request, whichever it is.
    pub fn new(kind: FaultKind) -> Self {
        Self {
            kind,
            matches: Match::default(),
            skip: 0,
            times: once(),
            delay_ms: 0,
            chunk_bytes: chunk(),
            when: When::Before,
            status: None,
            body: None,
            headers: std::collections::BTreeMap::new(),
            should_retry: None,
        }
    }

    /// Hits only this method and paths that begin so.
    #[must_use]
    pub fn on(mut self, method: &str, path_prefix: &str) -> Self {
        self.matches.method = Some(method.to_owned());
        self.matches.path_prefix = Some(path_prefix.to_owned());
        self
    }

    /// Hits this many requests; 0 for all.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }

    /// Lets this many matching requests pass first.
    #[must_use]
    pub fn skip(mut self, skip: u64) -> Self {
        self.skip = skip;
        self
    }

    /// Size of a piece of the body.
    #[must_use]
    pub fn chunk_bytes(mut self, chunk_bytes: usize) -> Self {
        self.chunk_bytes = chunk_bytes;
        self
    }

    /// Milliseconds of delay.
    #[must_use]
    pub fn delay_ms(mut self, delay_ms: u64) -> Self {
        self.delay_ms = delay_ms;
        self
    }

    /// Waits after executing instead of before.
    #[must_use]
    pub fn after_executing(mut self) -> Self {
        self.when = When::After;
        self
    }

    /// What is wrong with the request for a fault, in words.
    pub(super) fn problem(&self) -> Option<&'static str> {
        match self.kind {
            FaultKind::DelayMs if self.delay_ms == 0 => Some("delay_ms needs `delay_ms`"),
            FaultKind::SlowBody | FaultKind::HoldBody if self.chunk_bytes == 0 => {
                Some("slow_body and hold_body need `chunk_bytes` of at least 1")
            }
            FaultKind::Status if !self.status.is_some_and(|status| (200..=599).contains(&status)) => {
                Some("status needs `status`, 200 to 599")
            }
            _ => None,
        }
    }
}

/// A fault and how often it was met.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FaultStatus {
    /// Its number, from 1.
    pub id: u64,
    /// The fault.
    pub fault: Fault,
    /// How many requests matched.
    pub seen: u64,
    /// How many it hit.
    pub fired: u64,
}

/// A request that waits to be released.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// Its number, to release it alone.
    pub id: u64,
    /// The fault that holds it.
    pub fault: u64,
    /// Its position in the request log.
    pub request: u64,
    /// Method.
    pub method: String,
    /// Path.
    pub path: String,
    /// Idempotency key.
    pub idempotency_key: Option<String>,
}

/// How a held request goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Released {
    /// As if nothing had been.
    Proceed,
    /// Its connection is closed; if it was held before executing, it never executes.
    Drop,
}

/// Which held requests to release.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Release {
    /// Only this one.
    pub id: Option<u64>,
    /// Only those held by this fault.
    pub fault: Option<u64>,
    /// At most this many, oldest first.
    pub count: Option<u64>,
    /// Close their connections instead of letting them go on.
    pub drop: bool,
}

#[derive(Debug)]
struct Held {
    waiting: Waiting,
    release: oneshot::Sender<Released>,
}

/// What a fault is matched against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    pub(super) method: &'a str,
    pub(super) path: &'a str,
    pub(super) idempotency_key: Option<&'a str>,
    pub(super) account: &'a str,
}

impl Match {
    fn hits(&self, target: &Target<'_>) -> bool {
        self.method
            .as_ref()
            .is_none_or(|method| method.eq_ignore_ascii_case(target.method))
            && self
                .path_prefix
                .as_ref()
                .is_none_or(|prefix| target.path.starts_with(prefix.as_str()))
            && self.path.as_ref().is_none_or(|path| target.path == path)
            && self
                .idempotency_key
                .as_ref()
                .is_none_or(|key| target.idempotency_key == Some(key.as_str()))
            && self
                .account
                .as_ref()
                .is_none_or(|account| target.account == account)
    }
}

/// All faults, in the order in which they were asked for.
#[derive(Debug, Default)]
pub(super) struct Faults {
    list: Vec<FaultStatus>,
    held: Vec<Held>,
    added: u64,
    holds: u64,
}

impl Faults {
    /// Adds a fault; answers its number.
    pub(super) fn add(&mut self, fault: Fault) -> u64 {
        self.added = self.added.saturating_add(1);
        self.list.push(FaultStatus {
            id: self.added,
            fault,
            seen: 0,
            fired: 0,
        });
        self.added
    }

    /// The fault that hits this request: the first that matches and is not used up.
    pub(super) fn pick(&mut self, target: &Target<'_>) -> Option<(u64, Fault)> {
        for status in &mut self.list {
            let fault = &status.fault;
            let spent = fault.times != 0 && status.fired >= fault.times;
            if spent || !fault.matches.hits(target) {
                continue;
            }
            status.seen = status.seen.saturating_add(1);
            if status.seen > fault.skip {
                status.fired = status.fired.saturating_add(1);
                return Some((status.id, fault.clone()));
            }
        }
        None
    }

    /// Faults and their counts.
    pub(super) fn list(&self) -> &[FaultStatus] {
        &self.list
    }

    /// Removes one fault, or all. Requests that are held stay so until they are released.
    pub(super) fn remove(&mut self, id: Option<u64>) -> usize {
        let before = self.list.len();
        self.list.retain(|status| id.is_some_and(|id| status.id != id));
        before.saturating_sub(self.list.len())
    }

    /// Holds a request; it goes on when the receiver is told.
    pub(super) fn hold(
        &mut self,
        fault: u64,
        request: u64,
        target: &Target<'_>,
    ) -> oneshot::Receiver<Released> {
        let (release, released) = oneshot::channel();
        self.holds = self.holds.saturating_add(1);
        self.held.push(Held {
            waiting: Waiting {
                id: self.holds,
                fault,
                request,
                method: target.method.to_owned(),
                path: target.path.to_owned(),
                idempotency_key: target.idempotency_key.map(str::to_owned),
            },
            release,
        });
        released
    }

    /// Requests that are held, oldest first.
    pub(super) fn waiting(&self) -> Vec<Waiting> {
        self.held.iter().map(|held| held.waiting.clone()).collect()
    }

    /// Releases held requests; answers how many.
    pub(super) fn release(&mut self, which: &Release) -> u64 {
        let most = which.count.unwrap_or(u64::MAX);
        let how = if which.drop {
            Released::Drop
        } else {
            Released::Proceed
        };
        let mut released = 0_u64;
        let mut kept = Vec::new();
        for held in self.held.drain(..) {
            let wanted = which.id.is_none_or(|id| held.waiting.id == id)
                && which.fault.is_none_or(|fault| held.waiting.fault == fault)
                && released < most;
            if wanted {
                released = released.saturating_add(1);
                // A receiver that is gone belongs to a simulator that stops.
                let _ = held.release.send(how);
            } else {
                kept.push(held);
            }
        }
        self.held = kept;
        released
    }

    /// Removes every fault and drops every held request.
    pub(super) fn clear(&mut self) {
        self.remove(None);
        self.release(&Release {
            drop: true,
            ..Release::default()
        });
    }

    /// How many requests are held.
    pub(super) fn held(&self) -> u64 {
        u64_of(self.held.len())
    }
}
