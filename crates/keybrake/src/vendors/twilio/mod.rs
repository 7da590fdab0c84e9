//! Twilio: messages, calls, verifications, lookups, and what goes with them.
//!
//! What a message or a call costs is not known here yet: operations that send or buy something pass only with a cost
//! from the policy's `operation_costs`.
//!
//! **The secret** is one text: `AC…:TOKEN` (account SID and auth token) or `AC…:SK…:SECRET` (with an API key). Twilio's
//! test credentials look like live ones, so they are marked: `test:AC…:TOKEN`. Its account is the only one that a call
//! reaches.
//!
//! **The vault key** stands where the auth token does: the password of Basic, with any account SID as the user.
//! [`OWN_ACCOUNT`] as the account SID stands for the secret's own account, so that an SDK can be made without knowing it.
//!
//! **Inquiries**: none. A listing by recipient and day does not tell this call's message from another program's with the
//! same text, and an empty one proves nothing either, because messages of a Messaging Service are listed when they are
//! sent.
//!
//! Facts are of `twilio-oai` d50069b (2026-04-14), twilio-node 6.2.0 and twilio-python 9.13.0, read 2026-11-21.

mod read;
mod recognise;
mod reply;
mod table;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::{Class, Estimate, Lookup, Operation, Reading, Recognised, Reply, Vendor, credential};
use crate::policy::Denial;
use crate::request::{Call, Refusal};

/// The account SID that stands for the secret's own account in a path. Twilio gives it to nobody, so a secret with it
/// is a simulator's and never live.
pub const OWN_ACCOUNT: &str = "AC00000000000000000000000000000000";

const HOSTS: &[&str] = &[
    table::API,
    table::LOOKUPS,
    table::MESSAGING,
    table::PRICING,
    table::VERIFY,
];

/// Request headers that reach Twilio.
const FORWARDED: &[&str] = &[
    "accept",
    "accept-charset",
    "content-type",
    "user-agent",
    "x-twilio-client",
];

/// The vendor `twilio`.
#[derive(Clone, Copy, Debug)]
pub struct Twilio;

/// A secret's parts.
struct Parts<'a> {
    account: &'a str,
    user: &'a str,
    password: &'a str,
    marked_test: bool,
}

impl<'a> Parts<'a> {
    fn of(secret: &'a str) -> Option<Self> {
        let (marked_test, text) = match secret.strip_prefix("test:") {
            Some(rest) => (true, rest),
            None => (false, secret),
        };
        let mut words = text.split(':');
        let (account, second, third) = (words.next()?, words.next()?, words.next());
        let (user, password) = match third {
            Some(password) => (second, password),
            None => (account, second),
        };
        let is_user = third.is_none() || is_sid(user, "SK");
        let fits = is_sid(account, "AC") && is_user && !password.is_empty() && words.next().is_none();
        fits.then_some(Self {
            account,
            user,
            password,
            marked_test,
        })
    }
}

/// Two letters of the kind and 32 hexadecimal digits, lower case.
fn is_sid(text: &str, kind: &str) -> bool {
    text.strip_prefix(kind).is_some_and(|rest| {
        rest.len() == 32
            && rest
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

impl Vendor for Twilio {
    fn name(&self) -> &'static str {
        "twilio"
    }

    fn hosts(&self) -> &'static [&'static str] {
        HOSTS
    }

    fn operations(&self) -> &'static [Operation] {
        table::operations()
    }

    /// Live, unless it is marked as test credentials or names the account that does not exist: nothing else tells.
    fn livemode(&self, secret: &str) -> Option<bool> {
        let parts = Parts::of(secret)?;
        Some(!parts.marked_test && parts.account != OWN_ACCOUNT)
    }

    fn account(&self, secret: &str) -> Option<String> {
        Parts::of(secret).map(|parts| parts.account.to_owned())
    }

    fn with_account(&self, url: &str, account: &str) -> Option<String> {
        let open = format!("https://{}/2010-04-01/Accounts/{OWN_ACCOUNT}", table::API);
        let rest = url.strip_prefix(&open)?;
        let ends = rest.starts_with(['/', '.']) && account != OWN_ACCOUNT;
        ends.then(|| format!("https://{}/2010-04-01/Accounts/{account}{rest}", table::API))
    }

    fn secret_form(&self) -> &'static str {
        "AC…:TOKEN, or AC…:SK…:SECRET with an API key"
    }

    fn credentials(&self, secret: &str) -> Vec<(String, Zeroizing<String>)> {
        let Some(parts) = Parts::of(secret) else {
            return Vec::new();
        };
        let pair = Zeroizing::new(format!("{}:{}", parts.user, parts.password));
        let encoded = Zeroizing::new(STANDARD.encode(pair.as_bytes()));
        let value = Zeroizing::new(format!("Basic {}", encoded.as_str()));
        vec![("authorization".to_owned(), value)]
    }

    fn forwarded(&self) -> &'static [&'static str] {
        FORWARDED
    }

    /// twilio-node with `autoRetry: true` does.
    fn resends_429(&self) -> bool {
        true
    }

    fn read_headers(&self) -> &'static [&'static str] {
        &[]
    }

    /// None of them does: "Idempotency-Key" is not in the API description of messages, calls or verifications.
    fn takes_idempotency_key(&self, _call: &Call) -> bool {
        false
    }

    fn owner_lookup(&self, _recognised: &Recognised) -> Option<Lookup> {
        None
    }

    /// The password of `Authorization: Basic`, where the auth token (or an API key's secret) used to be, or the user when
    /// there is no password, as `curl -u TOKEN:` sends it; or `Authorization: Bearer TOKEN`.
    fn token(&self, call: &Call) -> Option<String> {
        credential::token(call, |pair| {
            let (user, password) = pair.split_once(':')?;
            Some(if password.is_empty() { user } else { password })
        })
    }

    fn recognise(&self, call: &Call) -> Result<Recognised, Refusal> {
        recognise::recognise(*self, call)
    }

    fn estimate(&self, recognised: &Recognised, _count_at_creation: bool) -> Result<Estimate, Refusal> {
        let unknown = |what: &str| Ok(Estimate::Unknown(what.to_owned()));
        match (recognised.operation.class, recognised.operation.name) {
            (Class::Unknown | Class::Money, _) => unknown("Twilio says it later, or never"),
            (_, "calls.update") if !only_hangs_up(recognised) => {
                unknown("new instructions for a call can place more calls")
            }
            (_, "lookups.phone_numbers.fetch") if recognised.field("Fields").is_some() => {
                unknown("Twilio bills each of the Fields")
            }
            _ => Ok(Estimate::Free),
        }
    }

    fn read(&self, recognised: &Recognised, reply: &Reply) -> Reading {
        read::read(recognised, reply)
    }

    fn refusal(&self, denial: &Denial, status: u16, now_ms: i64) -> Reply {
        reply::refusal(denial, status, now_ms)
    }

    /// Twilio's errors hold nothing that could still cost something.
    fn redact(&self, reply: Reply) -> Reply {
        reply
    }

    fn strip(&self, reply: &Reply) -> Reply {
        reply::strip(reply)
    }
}

/// `Status=completed` or `canceled` and nothing else ends a call.
fn only_hangs_up(recognised: &Recognised) -> bool {
    matches!(
        recognised.fields.as_slice(),
        [(name, status)] if name == "Status" && matches!(status.as_str(), "completed" | "canceled")
    )
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const ACCOUNT: &str = "AC0123456789abcdef0123456789abcdef";
    const API_KEY: &str = "SK0123456789abcdef0123456789abcdef";

    fn header(secret: &str) -> String {
        let headers = Twilio.credentials(secret);
        let value = headers
            .first()
            .unwrap()
            .1
            .strip_prefix("Basic ")
            .unwrap()
            .to_owned();
        String::from_utf8(STANDARD.decode(value).unwrap()).unwrap()
    }

    fn token(authorization: &str) -> Option<String> {
        Twilio.token(&Call {
            method: "GET".to_owned(),
            url: String::new(),
            headers: vec![("Authorization".to_owned(), authorization.to_owned())],
            body: Bytes::new(),
        })
    }

    #[test]
    fn a_secret_is_an_account_and_a_token_or_an_api_key() {
        let plain = format!("{ACCOUNT}:s3cret");
        assert_eq!(
            (header(&plain), Twilio.livemode(&plain)),
            (plain.clone(), Some(true))
        );
        let keyed = format!("{ACCOUNT}:{API_KEY}:s3cret");
        assert_eq!(header(&keyed), format!("{API_KEY}:s3cret"));
        assert_eq!(Twilio.account(&keyed).as_deref(), Some(ACCOUNT));
        let test = format!("test:{plain}");
        assert_eq!((header(&test), Twilio.livemode(&test)), (plain, Some(false)));
        assert_eq!(Twilio.livemode(&format!("{OWN_ACCOUNT}:x")), Some(false));
        for wrong in [
            "",
            "s3cret",
            ACCOUNT,
            &format!("{ACCOUNT}:"),
            &format!("{API_KEY}:s3cret"),
            &format!("{ACCOUNT}:user:s3cret"),
            &format!("{ACCOUNT}:{API_KEY}:s3:cret"),
            "AC0123:s3cret",
            "AC0123456789ABCDEF0123456789ABCDEF:s3cret",
            "sk_test_x",
            "re_x",
        ] {
            assert_eq!(Twilio.livemode(wrong), None, "{wrong}");
            assert!(Twilio.credentials(wrong).is_empty(), "{wrong}");
        }
    }

    #[test]
    fn the_token_stands_where_the_auth_token_did() {
        let basic = |pair: &str| format!("Basic {}", STANDARD.encode(pair));
        assert_eq!(
            token(&basic(&format!("{ACCOUNT}:vault_key_x"))).as_deref(),
            Some("vault_key_x")
        );
        assert_eq!(token(&basic("vault_key_x:")).as_deref(), Some("vault_key_x"));
        assert_eq!(token("Bearer vault_key_x").as_deref(), Some("vault_key_x"));
        for none in [
            &basic("vault_key_x"),
            &basic("a:b:c"),
            "Basic !",
            "vault_key_x",
            "Digest x",
            &basic(":"),
        ] {
            assert_eq!(token(none), None, "{none}");
        }
    }

    #[test]
    fn an_open_account_becomes_the_secrets_own() {
        let url =
            |account: &str| format!("https://api.twilio.com/2010-04-01/Accounts/{account}/Messages.json");
        assert_eq!(
            Twilio.with_account(&url(OWN_ACCOUNT), ACCOUNT),
            Some(url(ACCOUNT))
        );
        assert_eq!(Twilio.with_account(&url(ACCOUNT), ACCOUNT), None);
        assert_eq!(Twilio.with_account(&url(OWN_ACCOUNT), OWN_ACCOUNT), None);
        assert_eq!(
            Twilio.with_account(&url(&format!("{OWN_ACCOUNT}0")), ACCOUNT),
            None
        );
    }
}
