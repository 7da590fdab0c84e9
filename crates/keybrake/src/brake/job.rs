//! A call on its way to a decision: what is known of it so far.

use std::sync::Arc;

use super::chance::Chance;
use super::keys::{CachedKey, KeyCache};
use super::permit::Prepared;
use super::price::Priced;
use super::{Brake, CallContext, Purpose, anonymous};
use crate::clock::Clock;
use crate::error::Result;
use crate::ledger::{CallFacts, TokenHash};
use crate::money::Usd;
use crate::policy::{Code, CompiledPolicy, Denial, validate_id};
use crate::request::{Call, Refusal, headers};
use crate::vendors::{Class, Lookup, LookupAnswer, Recognised, Reply, Vendor};

/// Longer ones are no account and no version; they are not kept.
const LONGEST_READ_HEADER: usize = 255;

/// A call on its way to a decision.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) call_id: String,
    pub(super) call: Call,
    pub(super) context: CallContext,
    pub(super) now_ms: i64,
    pub(super) started_ms: i64,
    pub(super) vendor: Option<&'static dyn Vendor>,
    pub(super) token_hash: Option<TokenHash>,
    pub(super) key: Option<Arc<CachedKey>>,
    pub(super) recognised: Option<Recognised>,
    pub(super) livemode: bool,
    pub(super) run: Option<String>,
    pub(super) found: Option<LookupAnswer>,
    pub(super) lookup_refusal: Option<Refusal>,
    pub(super) owner_read: bool,
    pub(super) lookups: u32,
    pub(super) priced: Option<Priced>,
    pub(super) would_deny: Option<Denial>,
}

impl Job {
    pub(super) fn new(clock: &dyn Clock, chance: &dyn Chance, call: Call, context: CallContext) -> Self {
        Self {
            call_id: chance.call_id(),
            call,
            // What is no id is refused, and no event of it names a run of any length.
            run: context.run.clone().filter(|run| validate_id("run", run).is_ok()),
            context,
            now_ms: clock.now_ms(),
            started_ms: clock.boot_ms(),
            vendor: None,
            token_hash: None,
            key: None,
            recognised: None,
            livemode: false,
            found: None,
            lookup_refusal: None,
            owner_read: false,
            lookups: 0,
            priced: None,
            would_deny: None,
        }
    }

    pub(super) fn answer(&mut self, purpose: Purpose, reply: &Reply) {
        let (Some(vendor), Some(recognised)) = (self.vendor, self.recognised.as_mut()) else {
            return;
        };
        let customer = match purpose {
            Purpose::Owner => {
                self.owner_read = true;
                vendor.read_owner(recognised, reply)
            }
            Purpose::Amount => vendor.read_lookup(recognised, reply).map(|found| {
                let customer = found.customer.clone();
                self.found = Some(found);
                customer
            }),
        };
        match customer {
            // What the vendor says of the owner counts, not what the request says beside it.
            Ok(Some(owner)) if recognised.customer.as_ref().is_some_and(|named| *named != owner) => {
                self.lookup_refusal = Some(Refusal::new(
                    Code::CustomerNotAllowed,
                    "the request names another customer than the one whose object it touches",
                ));
            }
            // An object of nobody's stays nobody's, whoever the request names beside it; an update may give it one.
            Ok(None) if purpose == Purpose::Amount => recognised.customer = None,
            Ok(owner) => recognised.customer = owner.or_else(|| recognised.customer.take()),
            Err(refusal) => self.lookup_refusal = Some(refusal),
        }
    }

    pub(super) fn lookup_failed(&mut self, reason: &str) {
        self.lookup_refusal = Some(Refusal::new(
            Code::CostUnknown,
            format!(
                "the read that tells what this call can cost did not succeed ({reason}); nothing was sent"
            ),
        ));
    }

    pub(super) fn forget_key(&mut self, cache: &KeyCache) {
        if let Some(hash) = &self.token_hash {
            cache.forget(hash);
        }
        self.key = None;
    }

    pub(super) fn cap_status(&self) -> u16 {
        if self.vendor.is_some_and(Vendor::resends_429) {
            return 403;
        }
        self.key
            .as_ref()
            .and_then(|key| key.own())
            .map_or(429, CompiledPolicy::cap_status)
    }

    /// The operation's name; method and path for what has none of its own (unlisted paths, and old paths that are judged
    /// as another operation).
    pub(super) fn operation_name(&self) -> String {
        let named = self
            .recognised
            .as_ref()
            .zip(self.vendor)
            .filter(|(call, vendor)| {
                let own = || vendor.operations().contains(call.operation);
                call.operation.class != Class::Unknown || own()
            });
        match named {
            Some((call, _)) => call.operation.name.to_owned(),
            None => format!("{} {}", self.call.method, masked_path(&self.call.url)),
        }
    }

    /// Fills in what a denial can know of its call.
    pub(super) fn complete(&self, denial: &mut Denial) {
        denial.call_id.clone_from(&self.call_id);
        denial.vendor = self.vendor.map(|vendor| vendor.name().to_owned());
        denial.operation = Some(self.operation_name());
        denial.requested_micros = denial
            .requested_micros
            .or_else(|| self.priced.as_ref().map(|priced| priced.usd.micros()));
        denial.full_detail = self
            .key
            .as_ref()
            .is_none_or(|key| key.policies.iter().all(CompiledPolicy::full_detail));
    }

    pub(super) fn facts(&self) -> CallFacts {
        let mut facts = anonymous(&self.call_id, self.operation_name());
        facts.vendor = self.vendor.map(|vendor| vendor.name().to_owned());
        facts.livemode = self.livemode;
        facts.run.clone_from(&self.run);
        facts.context.clone_from(&self.context.context);
        for (name, value) in [("step", &self.context.step), ("item", &self.context.item)] {
            if let Some(value) = value {
                facts.context.insert(name.to_owned(), value.clone().into());
            }
        }
        if self.lookups > 0 {
            facts.context.insert("lookups".to_owned(), self.lookups.into());
        }
        if let Some(recognised) = &self.recognised {
            facts.account.clone_from(&recognised.account);
            if recognised.operation.class != Class::Read {
                facts.read_headers = self.read_headers();
            }
            facts.customer.clone_from(&recognised.customer);
            facts.direction = recognised.operation.direction;
            let costs = self.priced.as_ref().is_some_and(|priced| priced.usd > Usd::ZERO);
            facts.moves_money = costs || !matches!(recognised.operation.class, Class::Read | Class::Free);
        }
        if let Some(key) = &self.key {
            let record = &key.record;
            facts.key_id = Some(record.id.clone());
            facts.key_version = record.version;
            facts.agent.clone_from(&record.agent);
            facts.label.clone_from(&record.label);
            facts.groups.clone_from(&record.groups);
        }
        facts
    }

    /// The headers of the call that a read about it has to repeat, by their names in lower case.
    pub(super) fn read_headers(&self) -> Vec<(String, String)> {
        let names = self.vendor.map(Vendor::read_headers).unwrap_or_default();
        let found = names
            .iter()
            .filter_map(|name| Some((*name, headers::get(&self.call.headers, name)?)))
            .filter(|(_, value)| value.len() <= LONGEST_READ_HEADER);
        found
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    /// The read that answers what the request does not say, on the same account and API version.
    pub(super) fn prepare_lookup(&self, brake: &Brake, lookup: &Lookup) -> Result<Prepared> {
        Prepared::read(self, brake, &lookup.path)
    }
}

/// The URL's path without host and query.
fn plain_path(url: &str) -> &str {
    let path = url
        .split_once("://")
        .and_then(|(_, rest)| rest.find('/').and_then(|at| rest.get(at..)))
        .unwrap_or("/");
    path.split(['?', '#']).next().unwrap_or(path)
}

/// A path for the audit when the operation is not known: short, printable, and without segments that may be somebody's
/// address or number.
fn masked_path(url: &str) -> String {
    let segments = plain_path(url)
        .split('/')
        .map(|segment| if is_personal(segment) { "*" } else { segment });
    let path = segments.collect::<Vec<_>>().join("/");
    path.chars().filter(char::is_ascii_graphic).take(120).collect()
}

/// Fewest digits of a number that may be somebody's: a subscriber's number without its area.
const SHORTEST_NUMBER: usize = 7;

/// An e-mail address or a phone number, escaped or not, also with letters around it.
fn is_personal(segment: &str) -> bool {
    let lower = segment.to_ascii_lowercase();
    let addressed = ["@", "%40", "+", "%2b"].iter().any(|mark| lower.contains(mark));
    addressed || (longest_number(segment) >= SHORTEST_NUMBER && !is_identifier(segment))
}

/// Digits of the longest number, over what people write between them.
fn longest_number(segment: &str) -> usize {
    let mut bytes = segment.bytes();
    let (mut longest, mut digits) = (0, 0_usize);
    while let Some(byte) = bytes.next() {
        match byte {
            b'0'..=b'9' => digits = digits.saturating_add(1),
            // An escaped character.
            b'%' => drop((bytes.next(), bytes.next())),
            b'-' | b'.' | b':' | b'(' | b')' => {}
            _ => digits = 0,
        }
        longest = longest.max(digits);
    }
    longest
}

/// What vendors make: `re_3Nq...` (Stripe), two letters and 32 characters (Twilio), a UUID (Resend), a date.
fn is_identifier(segment: &str) -> bool {
    let bytes = segment.strip_suffix(".json").unwrap_or(segment).as_bytes();
    let dashes = |places: &[usize]| {
        let at = |index: usize| places.contains(&index);
        bytes
            .iter()
            .enumerate()
            .all(|(index, byte)| (*byte == b'-') == at(index) && (at(index) || byte.is_ascii_hexdigit()))
    };
    match bytes.len() {
        10 => dashes(&[4, 7]),
        34 => {
            bytes.iter().all(u8::is_ascii_alphanumeric) && bytes.iter().take(2).all(u8::is_ascii_alphabetic)
        }
        36 => dashes(&[8, 13, 18, 23]),
        _ => segment
            .split_once('_')
            .is_some_and(|(kind, _)| kind.len() >= 2 && kind.bytes().all(|byte| byte.is_ascii_lowercase())),
    }
}

#[cfg(test)]
mod tests {
    use super::masked_path;

    #[test]
    fn a_path_in_the_audit_has_no_number_and_no_address() {
        for (path, kept) in [
            ("/v1/PhoneNumbers/+15105551234", "/v1/PhoneNumbers/*"),
            ("/v1/PhoneNumbers/%2B15105551234", "/v1/PhoneNumbers/*"),
            ("/v1/PhoneNumbers/15105551234/Fields", "/v1/PhoneNumbers/*/Fields"),
            ("/v1/PhoneNumbers/(510)555-1234", "/v1/PhoneNumbers/*"),
            ("/v1/PhoneNumbers/555-1234", "/v1/PhoneNumbers/*"),
            ("/v1/PhoneNumbers/tel:15105551234", "/v1/PhoneNumbers/*"),
            ("/v1/PhoneNumbers/1-510-555-1234x9", "/v1/PhoneNumbers/*"),
            ("/v1/PhoneNumbers/n1%20510%20555%201234", "/v1/PhoneNumbers/*"),
            (
                "/emails/4ef9a417-0229-4039-9675-961100000330",
                "/emails/4ef9a417-0229-4039-9675-961100000330",
            ),
            ("/v1/refunds/re_312345678901", "/v1/refunds/re_312345678901"),
            ("/contacts/jack@example.com/x", "/contacts/*/x"),
            ("/contacts/jack%40example.com?a=b", "/contacts/*"),
            (
                "/v1/charges/ch_3SimybgipHq7/capture",
                "/v1/charges/ch_3SimybgipHq7/capture",
            ),
            (
                "/2010-04-01/Accounts/AC0123456789abcdef0123456789abcdef/Keys/SK0123456789abcdef0123456789abcdef.json",
                "/2010-04-01/Accounts/AC0123456789abcdef0123456789abcdef/Keys/SK0123456789abcdef0123456789abcdef.json",
            ),
        ] {
            assert_eq!(masked_path(&format!("https://host{path}")), kept);
        }
    }
}
