//! What a call costs: one folder for each vendor, and the table of vendors.
//!
//! A file of this folder that is named as one of a vendor's (`table.rs`, `recognise.rs`, `read.rs`, `reply.rs`) has what
//! theirs share.

mod catalogue;
mod credential;
mod read;
mod recognise;
mod reply;
pub mod resend;
pub mod stripe;
mod table;
pub mod twilio;

use crate::money::{Currency, VendorAmount};
use crate::policy::{Code, Denial};
use crate::request::{Call, Refusal, authority};

pub use catalogue::Builtin;
pub use table::{Class, Operation};

static VENDORS: [&dyn Vendor; 3] = [&resend::Resend, &stripe::Stripe, &twilio::Twilio];

/// Every vendor, in the order of their names.
pub fn vendors() -> &'static [&'static dyn Vendor] {
    &VENDORS
}

/// The vendor of this name, such as `stripe`.
pub fn vendor(name: &str) -> Option<&'static dyn Vendor> {
    vendors().iter().copied().find(|vendor| vendor.name() == name)
}

/// The vendor that answers on this exact host.
pub fn by_host(host: &str) -> Option<&'static dyn Vendor> {
    vendors()
        .iter()
        .copied()
        .find(|vendor| vendor.hosts().contains(&host))
}

/// The vendor that a URL names, judged on the raw string.
///
/// # Errors
/// `vendor_not_allowed` when the URL is not `https://`, a known host exactly, and a path.
pub fn by_url(url: &str) -> Result<&'static dyn Vendor, Refusal> {
    let mut answer = Err(Refusal::new(Code::VendorNotAllowed, "no vendor is known"));
    for vendor in vendors() {
        answer = authority::split(url, vendor.hosts()).map(|_| *vendor);
        if answer.is_ok() {
            break;
        }
    }
    answer
}

/// The vendor whose credential header and error shape stand in when a call's host is no vendor's: such a call is
/// refused, and its refusal has to look like something that the SDK reads. So it is the vendor under whose domain the
/// host is (a product of Twilio's that is not listed, a region), else Stripe.
pub(crate) fn fallback(url: &str) -> &'static dyn Vendor {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest);
    let host = authority.split(['/', '?', '#', ':']).next().unwrap_or_default();
    let alike = |vendor: &&dyn Vendor| {
        let mut domains = vendor.hosts().iter().filter_map(|known| known.split_once('.'));
        domains.any(|(_, domain)| {
            host.strip_suffix(domain)
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        })
    };
    vendors().iter().copied().find(alike).unwrap_or(&stripe::Stripe)
}

/// A call that was recognised: which operation, and what the request says.
#[derive(Clone)]
pub struct Recognised {
    /// The operation.
    pub operation: &'static Operation,
    /// The host the call goes to, one of the vendor's.
    pub host: &'static str,
    /// The path as it is sent, such as `/v1/charges/ch_1`: what endpoint rules are compared with.
    pub path: String,
    /// Ids in the path, in order.
    pub ids: Vec<String>,
    /// The connected account whose money moves (`Stripe-Account`), if any; or the account that the path names
    /// (Twilio). The engine refuses another one than the secret's where a secret belongs to one account.
    pub account: Option<String>,
    /// Decoded body or query fields in order, bracketed names as the vendor writes them.
    pub fields: Vec<(String, String)>,
    /// A call that does several things at once (a batch of e-mails): the fields of each, named as in a call that does
    /// one. Rules on fields are judged on every part. Empty for all other calls.
    pub parts: Vec<Vec<(String, String)>>,
    /// The caller's idempotency key header, if any.
    pub idempotency_key: Option<String>,
    /// The customer the call concerns, if the request or a lookup says so.
    pub customer: Option<String>,
    /// Where money goes (connected account, bank account, …), if the request says so.
    pub destination: Option<String>,
    /// The token found where the vendor's key used to be.
    pub token: Option<String>,
}

impl std::fmt::Debug for Recognised {
    /// Shows what was recognised; never the token or the values of fields.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recognised")
            .field("operation", &self.operation.name)
            .field("path", &self.path)
            .field("fields", &self.fields.len())
            .finish_non_exhaustive()
    }
}

impl Recognised {
    /// The value of a field, if it is there (a field is there at most once).
    pub fn field(&self, name: &str) -> Option<&str> {
        field(&self.fields, name)
    }
}

/// The value of a field, if it is there.
fn field<'a>(fields: &'a [(String, String)], name: &str) -> Option<&'a str> {
    fields
        .iter()
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.as_str())
}

/// What a call may cost, as far as the request tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Estimate {
    /// Nothing.
    Free,
    /// At most this much.
    AtMost {
        /// The upper bound in the vendor's units.
        amount: VendorAmount,
        /// Whose exposure it is.
        exposure: Exposure,
    },
    /// One bounded read answers it.
    NeedsLookup(Lookup),
    /// Not known, and no bounded read answers it. The reason, for the message.
    Unknown(String),
}

/// Whose exposure an amount is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exposure {
    /// The call's own: every call adds.
    Own,
    /// A vendor object that the reply will name; later calls raise it.
    NewObject,
    /// An existing vendor object, raised to the amount as a new total.
    Object(String),
}

/// One bounded read that answers what the request does not say. Sent with our identity to the same host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// Path and query, such as `/v1/charges/ch_1`.
    pub path: String,
    /// Whether the request itself gives the amount, so that the read is for currency and owner only
    /// (`unknown_cost: deny` refuses the others).
    pub amount_given: bool,
}

/// What a lookup answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LookupAnswer {
    /// The amount the call may cost.
    pub amount: VendorAmount,
    /// Whose exposure it is.
    pub exposure: Exposure,
    /// The customer, if any.
    pub customer: Option<String>,
    /// Fields to write into the request, so that the vendor enforces the bound.
    pub pins: Vec<(String, String)>,
}

/// A vendor's reply as received.
#[derive(Clone, Debug)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Header names (any case) and values.
    pub headers: Vec<(String, String)>,
    /// The whole body.
    pub body: bytes::Bytes,
}

impl Reply {
    /// The first value of a header, by name without regard to case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }
}

/// What a reply says happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Charged this much, final.
    Charged(VendorAmount),
    /// Charged this much; the vendor may still change it.
    ChargedProvisionally(VendorAmount),
    /// Done, and it costs nothing.
    Free,
    /// Done, and the reply does not say what it cost: the estimate stands. Answered for every executed operation
    /// of [`Class::Unknown`], which is only ever sent at a cost that the policy gave.
    Executed,
    /// Accepted, the outcome comes later.
    Accepted,
    /// This attempt did not execute.
    DidNotExecute,
    /// The operation failed for good.
    FailedForGood,
    /// Nothing is known. The reason in a word.
    Unknown(String),
}

/// A reply, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// What happened.
    pub outcome: Outcome,
    /// The state of the object whose exposure is tracked: (id, moved in all, nothing more can move).
    pub object: Option<(String, VendorAmount, bool)>,
    /// The vendor's object id, for the audit.
    pub vendor_object: Option<String>,
    /// The vendor's request id.
    pub request_id: Option<String>,
    /// Whether the vendor marked the reply as a replay.
    pub replayed: bool,
    /// The customer, if the reply names one.
    pub customer: Option<String>,
}

impl Reading {
    /// An outcome, and nothing else that is known.
    const fn of(outcome: Outcome) -> Self {
        Self {
            outcome,
            object: None,
            vendor_object: None,
            request_id: None,
            replayed: false,
            customer: None,
        }
    }

    /// Nothing is known, and why in a word.
    fn unknown(reason: &str) -> Self {
        Self::of(Outcome::Unknown(reason.to_owned()))
    }
}

/// How to find out what became of an unknown call; see each vendor's `reconcile`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inquiry {
    /// Read one object.
    Object {
        /// Path and query.
        path: String,
    },
    /// List everything that could be it, page by page, until the listing is complete.
    Listing {
        /// Path and query of the first page.
        path: String,
    },
    /// This vendor cannot be asked.
    None,
}

/// What an inquiry's page said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// It happened: the reply's reading.
    Found(Box<Reading>),
    /// Not on this page; read this one next (path and query).
    Next(String),
    /// The listing is complete and it is not there.
    Absent,
    /// The answer does not settle it. Why, in a word.
    Unclear(String),
}

/// What reconciliation knows of the call it asks about.
#[derive(Clone, Debug)]
pub struct Unresolved<'a> {
    /// Operation name.
    pub operation: &'a str,
    /// Ids in the path, in order.
    pub ids: &'a [String],
    /// Identity fields by name, as the caller gave them.
    pub fields: &'a [(String, String)],
    /// Pinned fields.
    pub pins: &'a [(String, String)],
    /// The vendor's object, if a reply has named it.
    pub object: Option<&'a str>,
    /// Our tag, if the request carried one.
    pub tag: Option<&'a str>,
    /// When it was reserved, Unix milliseconds.
    pub reserved_at_ms: i64,
    /// When the last attempt can have run, Unix milliseconds.
    pub not_after_ms: i64,
}

/// One vendor: how its calls are recognised, what they cost, and what its replies mean. Pure; no I/O.
///
/// A method has a body here only where that is the answer that refuses most: a vendor that forgets it lets less
/// through, never more. All others have to be written, if only to say that there is nothing to do.
pub trait Vendor: Send + Sync + std::fmt::Debug {
    /// Name in policies and budgets, such as `stripe`.
    fn name(&self) -> &'static str;

    /// Every host it answers on; nothing else ever receives its secret.
    fn hosts(&self) -> &'static [&'static str];

    /// The table of operations.
    fn operations(&self) -> &'static [Operation];

    /// Whether a secret is for live money; `None` if it does not look like this vendor's secret.
    fn livemode(&self, secret: &str) -> Option<bool>;

    /// What its secrets look like, for the message about one that does not.
    fn secret_form(&self) -> &'static str;

    /// The account that a secret belongs to, for vendors whose secrets and paths name it (Twilio). No call reaches
    /// another one with that secret; with `None` the policy alone says which accounts it reaches.
    fn account(&self, secret: &str) -> Option<String>;

    /// The URL with the secret's own account in the place where the caller left it open; `None` when there is no such
    /// place, or the caller named an account.
    ///
    /// By default `None`: a place that was left open stays so, and is refused as another account than the secret's.
    fn with_account(&self, _url: &str, _account: &str) -> Option<String> {
        None
    }

    /// Whether its inquiries compare the fields of a call. Where they do not, the ledger keeps keyed hashes of the fields
    /// that identify it, which tell two calls apart as well: never a number, an address or a text.
    ///
    /// By default they do not: nothing of the caller's is kept.
    fn compares_fields(&self) -> bool {
        false
    }

    /// Whether an SDK of this vendor can be set to send a call again after a 429. Its denials are then never a 429:
    /// a refusal is final.
    ///
    /// By default it can.
    fn resends_429(&self) -> bool {
        true
    }

    /// Headers that carry the secret.
    fn credentials(&self, secret: &str) -> Vec<(String, zeroize::Zeroizing<String>)>;

    /// The headers of the caller's that are sent on, in lower case. Credentials, `Host`, framing and the idempotency key
    /// are never among them: they are put on by us.
    fn forwarded(&self) -> &'static [&'static str];

    /// Whether a header of the caller's is sent on (any case): one of [`forwarded`](Self::forwarded), no other.
    fn forwards(&self, header: &str) -> bool {
        self.forwarded()
            .iter()
            .any(|name| name.eq_ignore_ascii_case(header))
    }

    /// Headers of the caller's that a read about its call has to repeat, such as the account. Never a credential.
    fn read_headers(&self) -> &'static [&'static str];

    /// Whether this call takes an `Idempotency-Key` header (Stripe: POST, and DELETE under `/v2`). A call that costs
    /// something and takes none is sent once: while its outcome is not known, nothing sends it again.
    fn takes_idempotency_key(&self, call: &Call) -> bool;

    /// One read that tells the customer of a call that names only an object (a PaymentIntent update, say), for
    /// policies with customer rules; `None` when there is no such read or the request names the customer. What it leaves
    /// out is judged by the customer that the request names.
    fn owner_lookup(&self, recognised: &Recognised) -> Option<Lookup>;

    /// Reads the reply of an [`owner_lookup`](Self::owner_lookup): the customer, if the object has one.
    ///
    /// By default no reply names one, and the call is refused.
    ///
    /// # Errors
    /// `cost_unknown` when the reply does not answer it.
    fn read_owner(&self, _recognised: &Recognised, _reply: &Reply) -> Result<Option<String>, Refusal> {
        Err(unasked(self.name()))
    }

    /// Takes the token out of the header where the SDK puts the vendor's key. `None` when there is none.
    fn token(&self, call: &Call) -> Option<String>;

    /// Reads a call strictly. `host` is already known to be this vendor's.
    fn recognise(&self, call: &Call) -> Result<Recognised, Refusal>;

    /// What the recognised call may cost. `count_at_creation` is the policy's `count_intents`.
    fn estimate(&self, recognised: &Recognised, count_at_creation: bool) -> Result<Estimate, Refusal>;

    /// Reads a lookup's reply.
    ///
    /// By default no reply tells a cost, and the call is refused.
    ///
    /// # Errors
    /// `cost_unknown` when the reply does not answer it.
    fn read_lookup(&self, _recognised: &Recognised, _reply: &Reply) -> Result<LookupAnswer, Refusal> {
        Err(unasked(self.name()))
    }

    /// Writes fields into the body (pins and our tag), returning the bytes to send. Appends only; the caller's
    /// bytes stay as they are.
    ///
    /// By default nothing can be written, and a call that something has to be written into is refused.
    ///
    /// # Errors
    /// `request_malformed` when the body takes no fields.
    fn append_fields(&self, call: &Call, fields: &[(String, String)]) -> Result<bytes::Bytes, Refusal> {
        if fields.is_empty() {
            return Ok(call.body.clone());
        }
        Err(recognise::malformed(format!(
            "nothing is written into calls to {}",
            self.name()
        )))
    }

    /// The field that carries our tag, such as `metadata[keybrake]`, if this call can carry one.
    ///
    /// By default none can: an inquiry then never takes an object for this call's.
    fn tag_field(&self, _recognised: &Recognised) -> Option<&'static str> {
        None
    }

    /// Whether the body of a 2xx to this call is a document that says nothing about the call: it may be handed on as
    /// it arrives. Only for reads; [`read`](Self::read) then gets the reply without its body.
    ///
    /// By default none is: every body is read whole, within the limit on its size.
    fn streams(&self, _recognised: &Recognised) -> bool {
        false
    }

    /// Reads a reply.
    fn read(&self, recognised: &Recognised, reply: &Reply) -> Reading;

    /// A denial as this vendor's SDK expects an error: status, lower-case headers, body.
    fn refusal(&self, denial: &Denial, status: u16, now_ms: i64) -> Reply;

    /// The reply to a call that moved nothing, as its caller may have it: without what could still make its money
    /// move past the books (client secrets), and with headers that fit the body.
    fn redact(&self, reply: Reply) -> Reply;

    /// A recorded reply without what must not be stored (client secrets, cookies).
    fn strip(&self, reply: &Reply) -> Reply;

    /// How to ask about an unknown call.
    ///
    /// By default it cannot be asked: the hold stays until a person resolves it.
    fn inquiry(&self, _call: &Unresolved<'_>) -> Inquiry {
        Inquiry::None
    }

    /// Reads a page of an inquiry.
    ///
    /// By default no page settles anything, and the hold stays.
    fn finding(&self, _call: &Unresolved<'_>, _reply: &Reply) -> Finding {
        Finding::Unclear("no_inquiry".to_owned())
    }

    /// Decimals of a currency by this vendor's rules; `None` if the vendor does not take it.
    ///
    /// By default it takes none.
    fn exponent(&self, _currency: Currency) -> Option<u8> {
        None
    }
}

/// A lookup at a vendor that has none.
fn unasked(vendor: &str) -> Refusal {
    Refusal::new(Code::CostUnknown, format!("{vendor} is not asked for costs"))
}

#[cfg(test)]
mod tests {
    use super::resend::Resend;
    use super::*;

    #[test]
    fn a_host_that_is_no_vendors_is_refused_in_the_shape_of_its_domains() {
        for (url, shape) in [
            ("https://studio.twilio.com/v2/Flows", "twilio"),
            (
                "https://api.dublin.ie1.twilio.com/2010-04-01/Accounts.json",
                "twilio",
            ),
            ("https://resend.com/emails", "resend"),
            ("https://dashboard.stripe.com:443/x", "stripe"),
            ("https://eviltwilio.com/", "stripe"),
            ("https://twilio.com.evil.example/", "stripe"),
            ("https://example.com", "stripe"),
            ("", "stripe"),
        ] {
            assert_eq!(fallback(url).name(), shape, "{url}");
        }
    }

    #[test]
    fn what_a_vendor_leaves_out_is_refused() {
        let call = Call {
            method: "GET".to_owned(),
            url: "https://api.resend.com/emails".to_owned(),
            headers: Vec::new(),
            body: "as it came".into(),
        };
        assert_eq!(Resend.append_fields(&call, &[]).unwrap(), "as it came");
        let tag = [("tag".to_owned(), "x".to_owned())];
        let refused = Resend.append_fields(&call, &tag).unwrap_err();
        assert_eq!(refused.code, Code::RequestMalformed);
        let listed = Resend
            .recognise(&Call {
                body: bytes::Bytes::new(),
                ..call
            })
            .unwrap();
        let reply = Reply {
            status: 200,
            headers: Vec::new(),
            body: r#"{"amount": 5, "currency": "usd", "customer": "c"}"#.into(),
        };
        let unasked = Resend.read_lookup(&listed, &reply).unwrap_err();
        assert_eq!(unasked.code, Code::CostUnknown);
        assert_eq!(Resend.read_owner(&listed, &reply).unwrap_err(), unasked);
        assert!(!Resend.streams(&listed) && Resend.tag_field(&listed).is_none());
        let unknown = Unresolved {
            operation: "emails.send",
            ids: &[],
            fields: &[],
            pins: &[],
            object: Some("e_1"),
            tag: None,
            reserved_at_ms: 0,
            not_after_ms: 0,
        };
        assert_eq!(Resend.inquiry(&unknown), Inquiry::None);
        assert!(matches!(Resend.finding(&unknown, &reply), Finding::Unclear(_)));
        assert_eq!(Resend.exponent(Currency::parse("usd").unwrap()), None);
    }
}
