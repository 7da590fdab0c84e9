//! Stripe: charges, PaymentIntents, refunds, transfers, payouts, top-ups, and everything else its API offers, as far
//! as its cost is known.
//!
//! Facts are of stripe-python 16.1.0 (API version 2026-10-28.endive) and docs.stripe.com, read 2026-11-21.

mod currency;
mod estimate;
mod inquiry;
mod object;
mod read;
mod recognise;
mod redact;
mod reply;
mod table;

use bytes::Bytes;
use zeroize::Zeroizing;

use super::recognise::{FORM, malformed};
use super::{
    Estimate, Finding, Inquiry, Lookup, LookupAnswer, Operation, Reading, Recognised, Reply, Unresolved,
    Vendor, credential,
};
use crate::money::{Currency, VendorAmount};
use crate::policy::Denial;
use crate::request::{Call, Refusal, authority, form, headers};

const HOSTS: &[&str] = &[table::API, table::FILES, table::CONNECT, table::METER];

/// Request headers that reach Stripe. The idempotency key and the credential are written by the shell.
const FORWARDED: &[&str] = &[
    "accept",
    "content-type",
    "stripe-account",
    "stripe-context",
    "stripe-version",
    "user-agent",
    "x-stripe-client-telemetry",
    "x-stripe-client-user-agent",
];

/// Which account is read, and in which form its objects are.
const READ_HEADERS: &[&str] = &["stripe-account", "stripe-context", "stripe-version"];

/// Where our tag goes, so that an object can be found again by listing.
const TAG: &str = "metadata[keybrake]";

/// Most metadata keys that Stripe keeps on one object.
const METADATA_MAX: usize = 50;

/// The vendor `stripe`.
#[derive(Clone, Copy, Debug)]
pub struct Stripe;

impl Vendor for Stripe {
    fn name(&self) -> &'static str {
        "stripe"
    }

    fn hosts(&self) -> &'static [&'static str] {
        HOSTS
    }

    fn operations(&self) -> &'static [Operation] {
        table::operations()
    }

    fn livemode(&self, secret: &str) -> Option<bool> {
        let starts = |prefixes: [&str; 2]| prefixes.iter().any(|prefix| secret.starts_with(prefix));
        if starts(["sk_live_", "rk_live_"]) {
            Some(true)
        } else if starts(["sk_test_", "rk_test_"]) {
            Some(false)
        } else {
            None
        }
    }

    fn secret_form(&self) -> &'static str {
        "sk_… or rk_…"
    }

    /// Which connected accounts a key reaches is the policy's to say.
    fn account(&self, _secret: &str) -> Option<String> {
        None
    }

    fn compares_fields(&self) -> bool {
        true
    }

    /// Its SDKs obey `Stripe-Should-Retry`, which every denial has.
    fn resends_429(&self) -> bool {
        false
    }

    fn credentials(&self, secret: &str) -> Vec<(String, Zeroizing<String>)> {
        credential::bearer(secret)
    }

    fn forwarded(&self) -> &'static [&'static str] {
        FORWARDED
    }

    fn read_headers(&self) -> &'static [&'static str] {
        READ_HEADERS
    }

    /// Every v1 POST; v2 takes one on POST and DELETE. "Don't send idempotency keys in GET and DELETE requests".
    fn takes_idempotency_key(&self, call: &Call) -> bool {
        match call.method.as_str() {
            "POST" => true,
            "DELETE" => {
                authority::split(&call.url, HOSTS).is_ok_and(|target| target.path.starts_with("/v2/"))
            }
            _ => false,
        }
    }

    /// The token of `Authorization: Bearer TOKEN`, or the user name of `Authorization: Basic` without a password, as
    /// `curl -u TOKEN:` sends it.
    fn token(&self, call: &Call) -> Option<String> {
        credential::token(call, |pair| pair.strip_suffix(':'))
    }

    fn recognise(&self, call: &Call) -> Result<Recognised, Refusal> {
        recognise::recognise(*self, call)
    }

    fn estimate(&self, recognised: &Recognised, count_at_creation: bool) -> Result<Estimate, Refusal> {
        estimate::estimate(recognised, count_at_creation)
    }

    fn read_lookup(&self, recognised: &Recognised, reply: &Reply) -> Result<LookupAnswer, Refusal> {
        estimate::read_lookup(recognised, reply)
    }

    fn owner_lookup(&self, recognised: &Recognised) -> Option<Lookup> {
        estimate::owner_lookup(recognised)
    }

    fn read_owner(&self, _recognised: &Recognised, reply: &Reply) -> Result<Option<String>, Refusal> {
        estimate::read_owner(reply)
    }

    /// Appends to a form (v1). A JSON body (v2) and an upload take no fields: nothing of theirs is pinned or tagged.
    /// When the body was empty the shell sends `Content-Type: application/x-www-form-urlencoded` with it.
    fn append_fields(&self, call: &Call, fields: &[(String, String)]) -> Result<Bytes, Refusal> {
        if fields.is_empty() {
            return Ok(call.body.clone());
        }
        let is_form = headers::get(&call.headers, "content-type")
            .map_or(call.body.is_empty(), |value| headers::is_media_type(value, FORM));
        if !is_form || call.method != "POST" {
            return Err(malformed("fields can only be added to a form"));
        }
        Ok(form::append(&call.body, fields).into())
    }

    fn tag_field(&self, recognised: &Recognised) -> Option<&'static str> {
        let metadata = recognised
            .fields
            .iter()
            .filter(|(name, _)| name.starts_with("metadata["))
            .count();
        let fits =
            recognised.operation.tagged && recognised.field("metadata").is_none() && metadata < METADATA_MAX;
        fits.then_some(TAG)
    }

    fn streams(&self, recognised: &Recognised) -> bool {
        table::is_document(recognised.operation)
    }

    fn read(&self, recognised: &Recognised, reply: &Reply) -> Reading {
        read::read(recognised, reply)
    }

    fn refusal(&self, denial: &Denial, status: u16, now_ms: i64) -> Reply {
        reply::refusal(denial, status, now_ms)
    }

    fn redact(&self, reply: Reply) -> Reply {
        redact::redacted(reply)
    }

    fn strip(&self, reply: &Reply) -> Reply {
        reply::strip(reply)
    }

    fn inquiry(&self, call: &Unresolved<'_>) -> Inquiry {
        inquiry::inquiry(call)
    }

    fn finding(&self, call: &Unresolved<'_>, reply: &Reply) -> Finding {
        inquiry::finding(call, reply)
    }

    fn exponent(&self, currency: Currency) -> Option<u8> {
        Some(currency::exponent(currency))
    }
}

/// An amount with Stripe's decimals for its currency.
fn amount(minor: i64, currency: Currency) -> VendorAmount {
    VendorAmount {
        minor,
        currency,
        exponent: currency::exponent(currency),
    }
}
