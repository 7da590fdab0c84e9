//! Permission to send one attempt, with the exact bytes to send.

use std::sync::Arc;

use bytes::Bytes;
use zeroize::Zeroizing;

use super::job::Job;
use super::replay;
use super::{Brake, CachedKey, Decision, Replayed};
use crate::error::{Error, ErrorKind, Result};
use crate::idempotency;
use crate::ledger::{CallFacts, Grant, Reservation, State};
use crate::money::Usd;
use crate::policy::{BudgetView, Code, Denial, ExistingCall};
use crate::vendors::{Recognised, Reply, Vendor};

/// A request with the real secret on it: what leaves the process, and nothing else.
#[derive(Clone)]
pub struct Prepared {
    /// HTTP method.
    pub method: String,
    /// Where it goes: the vendor's own host over TLS, or the loopback base.
    pub url: String,
    /// Headers to send; transports add only `Host`, `Content-Length` and connection headers.
    pub headers: Vec<(String, Zeroizing<String>)>,
    /// The body to send.
    pub body: Bytes,
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prepared")
            .field("method", &self.method)
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// Permission to send one attempt. Dropping it without [`Brake::settle`] leaves the hold standing.
#[derive(Debug)]
pub struct Permit {
    /// What to send.
    pub request: Prepared,
    /// The first byte of the body must leave before this, on the boot clock ([`crate::Clock::boot_ms`]).
    pub send_before_boot_ms: i64,
    /// The longest the request may take from then on.
    pub request_ms: i64,
    pub(super) job: Job,
    pub(super) grant: Grant,
    pub(super) sent_key: Option<String>,
}

impl Permit {
    /// What stops may cover it by: its facts, and its key.
    pub(crate) fn bindings(&self) -> (CallFacts, Option<Arc<CachedKey>>) {
        (self.job.facts(), self.job.key.clone())
    }
}

/// What a shell tells the engine of an attempt's end.
#[derive(Debug)]
pub enum SendEnd {
    /// The vendor answered.
    Reply(Reply),
    /// Certainly nothing left: the connection failed before the first byte, or the permit expired unsent.
    NeverSent,
    /// Nobody knows: timeout, reset, cancelled. The reason in a word.
    Lost {
        /// Such as `timeout`, `connection_lost`, `cancelled`.
        reason: String,
    },
}

/// A settled attempt.
#[derive(Debug)]
pub struct Settled {
    /// The call as the audit has it.
    pub record: CallRecord,
    /// The vendor's reply with our headers added, if there was one.
    pub reply: Option<Reply>,
}

/// One governed call as its caller may know it.
#[derive(Clone, Debug)]
pub struct CallRecord {
    /// The reservation's id (of the call that was joined or replayed, if any).
    pub call_id: String,
    /// `allowed`, `replayed`, `would_deny`, or a denial's code.
    pub verdict: String,
    /// The vendor, if recognised.
    pub vendor: Option<String>,
    /// The operation.
    pub operation: String,
    /// The run, if any.
    pub run: Option<String>,
    /// What is known to be spent, in US dollars; zero for denials and replays.
    pub cost: Usd,
    /// What is still held for it.
    pub held: Usd,
    /// The reservation's state, if there is one.
    pub state: Option<State>,
    /// Whether an earlier reply was returned.
    pub replayed: bool,
    /// HTTP status that the caller sees.
    pub status_code: Option<u16>,
    /// The tightest budget afterwards.
    pub tightest: Option<BudgetView>,
    /// Whether the ledger could not take the outcome, and it waits in the journal of this machine to be delivered; the hold
    /// stands until then.
    pub journaled: bool,
    /// Whether the outcome could be recorded nowhere; the hold stands until it is reconciled.
    pub unrecorded: bool,
}

impl Prepared {
    /// A read on behalf of a job: same account and API version, nothing else of the caller's.
    pub(super) fn read(job: &Job, brake: &Brake, path: &str) -> Result<Self> {
        let vendor = known_vendor(job)?;
        let mut headers = credential(job, brake, vendor)?;
        headers.extend(secret_headers(job.read_headers()));
        Ok(Self {
            method: "GET".to_owned(),
            url: target(brake, vendor, None, path),
            headers,
            body: Bytes::new(),
        })
    }
}

impl Prepared {
    /// A read for reconciliation, on the account and in the API version that the call was made for.
    pub(crate) fn inquiry(
        brake: &Brake,
        vendor: &'static dyn Vendor,
        secret: Option<&str>,
        hold: &Reservation,
        path: &str,
    ) -> Result<Self> {
        let mut headers = brake.credentials().of(vendor, secret)?.headers.clone();
        headers.extend(secret_headers(hold.facts.read_headers.clone()));
        Ok(Self {
            method: "GET".to_owned(),
            url: target(brake, vendor, None, path),
            headers,
            body: Bytes::new(),
        })
    }
}

impl Brake {
    /// Turns a grant into the bytes to send.
    ///
    /// The time to send begins at `asked_boot_ms`, when the ledger was asked: the hold's own time may have begun then, and
    /// a process that was frozen before it read the answer must not take an old permit for a new one.
    pub(super) fn permit(&self, job: Job, grant: Grant, asked_boot_ms: i64) -> Result<Decision> {
        let vendor = known_vendor(&job)?;
        let recognised = job
            .recognised
            .as_ref()
            .ok_or_else(|| defect("a grant without a recognised call"))?;
        let sent_key = self.sent_key(&job, vendor, recognised, &grant);
        let derived = grant.caller_key.is_none() && grant.identity.is_some();
        let mut extra = grant.pins.clone();
        if let (true, Some(key), Some(field)) = (derived, &sent_key, vendor.tag_field(recognised)) {
            extra.push((field.to_owned(), idempotency::tag(key)));
        }
        let body = if extra.is_empty() {
            job.call.body.clone()
        } else {
            vendor
                .append_fields(&job.call, &extra)
                .map_err(|refusal| defect(&refusal.message))?
        };
        let mut headers = forwarded(&job, vendor);
        if job.call.body.is_empty()
            && !body.is_empty()
            && !headers.iter().any(|(name, _)| is_content_type(name))
        {
            // What we wrote into an empty body has to be read as what it is.
            let form = Zeroizing::new("application/x-www-form-urlencoded".to_owned());
            headers.push(("Content-Type".to_owned(), form));
        }
        headers.extend(credential(&job, self, vendor)?);
        headers.extend(
            sent_key
                .iter()
                .map(|key| ("Idempotency-Key".to_owned(), Zeroizing::new(key.clone()))),
        );
        let (host, path) = split_url(&job.call.url).ok_or_else(|| defect("a judged URL without a path"))?;
        let request = Prepared {
            method: job.call.method.clone(),
            url: target(self, vendor, Some(host), path),
            headers,
            body,
        };
        let limits = self.limits();
        let held_for_ms = grant.not_after_ms.saturating_sub(grant.now_ms);
        let send_within_ms = limits
            .send_within_ms
            .min(held_for_ms.saturating_sub(limits.request_ms));
        let send_before_boot_ms = asked_boot_ms.saturating_add(send_within_ms);
        Ok(Decision::Permit(Box::new(Permit {
            request,
            send_before_boot_ms,
            request_ms: limits.request_ms,
            job,
            grant,
            sent_key,
        })))
    }

    /// The key on the wire: the caller's own, ours, or the SDK's when nothing is deduplicated.
    fn sent_key(
        &self,
        job: &Job,
        vendor: &dyn Vendor,
        recognised: &Recognised,
        grant: &Grant,
    ) -> Option<String> {
        if !vendor.takes_idempotency_key(&job.call) {
            return None;
        }
        let own = grant.caller_key.clone();
        let ours = || {
            grant
                .identity
                .as_ref()
                .map(|identity| self.keys().vendor_key(identity, grant.generation))
        };
        own.or_else(ours).or_else(|| recognised.idempotency_key.clone())
    }

    /// A repeat of something done: the recorded reply, or `already_done` when it is gone.
    pub(super) fn replayed(&self, job: &Job, reservation: &Reservation) -> Decision {
        let Some(mut reply) = replay::open(self.keys(), reservation) else {
            let mut denial = Denial::new(
                Code::AlreadyDone,
                "this call was done before and its reply is not kept; read the object at the vendor instead",
            );
            denial.existing = Some(ExistingCall {
                call_id: reservation.facts.call_id.clone(),
                object: reservation.reply_facts.vendor_object.clone(),
                amount_micros: reservation.used.micros().max(reservation.held.micros()),
                at_ms: reservation.reserved_at_ms,
                differing: Vec::new(),
            });
            return self.refused(job, denial);
        };
        let mut record = CallRecord::of(job, &reservation.facts.call_id, "replayed");
        record.replayed = true;
        record.state = Some(reservation.state);
        record.status_code = Some(reply.status);
        reply
            .headers
            .push(("x-keybrake-verdict".to_owned(), "replayed".to_owned()));
        reply
            .headers
            .push(("x-keybrake-replayed".to_owned(), "true".to_owned()));
        reply
            .headers
            .push(("x-keybrake-call-id".to_owned(), reservation.facts.call_id.clone()));
        Decision::Replayed(Box::new(Replayed { reply, record }))
    }
}

impl CallRecord {
    pub(super) fn of(job: &Job, call_id: &str, verdict: &str) -> Self {
        Self {
            call_id: call_id.to_owned(),
            verdict: verdict.to_owned(),
            vendor: job.vendor.map(|vendor| vendor.name().to_owned()),
            operation: job.operation_name(),
            run: job.run.clone(),
            cost: Usd::ZERO,
            held: Usd::ZERO,
            state: None,
            replayed: false,
            status_code: None,
            tightest: None,
            journaled: false,
            unrecorded: false,
        }
    }

    pub(super) fn denied(job: &Job, denial: &Denial, status: u16) -> Self {
        let mut record = Self::of(job, &denial.call_id, denial.code.as_str());
        record.status_code = Some(status);
        record.tightest = denial.budget.clone().filter(BudgetView::counts);
        record
    }
}

impl Permit {
    /// The reservation that this attempt belongs to.
    pub fn call_id(&self) -> &str {
        &self.grant.call_id
    }

    /// What is reserved for it.
    pub const fn amount(&self) -> Usd {
        self.grant.amount
    }

    /// Whether the body of a 2xx says nothing about the call and may be handed on as it arrives. Settle at its end, with
    /// the reply without its body.
    pub fn streams(&self) -> bool {
        let Some((vendor, recognised)) = self.job.vendor.zip(self.job.recognised.as_ref()) else {
            return false;
        };
        // What has an identity may be replayed: its reply is needed whole.
        self.grant.identity.is_none() && vendor.streams(recognised)
    }

    /// Whether an earlier call's reservation was joined.
    pub const fn joined(&self) -> bool {
        self.grant.joined
    }
}

pub(super) fn known_vendor(job: &Job) -> Result<&'static dyn Vendor> {
    job.vendor.ok_or_else(|| defect("a decision without a vendor"))
}

pub(super) fn defect(message: &str) -> Error {
    Error::new(
        ErrorKind::Internal,
        format!("{message}; please report this, nothing was sent"),
    )
}

fn credential(
    job: &Job,
    brake: &Brake,
    vendor: &'static dyn Vendor,
) -> Result<Vec<(String, Zeroizing<String>)>> {
    let name = job.key.as_ref().and_then(|key| key.secret_name(vendor.name()));
    Ok(brake.credentials().of(vendor, name)?.headers.clone())
}

fn secret_headers(headers: Vec<(String, String)>) -> impl Iterator<Item = (String, Zeroizing<String>)> {
    headers
        .into_iter()
        .map(|(name, value)| (name, Zeroizing::new(value)))
}

/// The caller's headers that this vendor takes; credentials and the key are put on by us.
fn forwarded(job: &Job, vendor: &dyn Vendor) -> Vec<(String, Zeroizing<String>)> {
    let taken = job.call.headers.iter().filter(|(name, _)| vendor.forwards(name));
    taken
        .map(|(name, value)| (name.clone(), Zeroizing::new(value.clone())))
        .collect()
}

/// The judged host, or the loopback base that stands in for it.
fn target(brake: &Brake, vendor: &'static dyn Vendor, host: Option<&str>, path: &str) -> String {
    if let Some(base) = brake.credentials().base_url(vendor.name()) {
        return format!("{base}{path}");
    }
    let host = host
        .or_else(|| vendor.hosts().first().copied())
        .unwrap_or_default();
    format!("https://{host}{path}")
}

fn is_content_type(name: &str) -> bool {
    name.eq_ignore_ascii_case("content-type")
}

fn split_url(url: &str) -> Option<(&str, &str)> {
    let rest = url.strip_prefix("https://")?;
    let (authority, path) = rest.split_at_checked(rest.find('/')?)?;
    Some((authority.strip_suffix(":443").unwrap_or(authority), path))
}
