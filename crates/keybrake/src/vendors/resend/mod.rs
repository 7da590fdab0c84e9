//! Resend: e-mails, batches, broadcasts, and what goes with them.
//!
//! What an e-mail costs is not known here yet: operations that send pass only with a cost from the policy's
//! `operation_costs`, one figure for the call, whatever the number of its recipients.
//!
//! **The secret** is a Resend API key, `re_…`. Resend has no test mode; `re_test_…`, which it does not make, is a
//! simulator's. **The vault key** stands where the API key does: `Authorization: Bearer`.
//!
//! **Inquiries**: none. The list of e-mails does not show the key they were sent with, so it does not tell this call's from
//! another program's with the same text. A live caller that repeats the call within 23 hours finds out, by its key.
//!
//! Facts are of `resend-openapi` v1.5.0 (fd6f395, 2026-08-21), resend-node 6.38.0, resend-python 2.52.0 and the crate
//! resend-rs 0.35.1, read 2026-11-21.

mod read;
mod recognise;
mod reply;
mod table;

use zeroize::Zeroizing;

use super::{Class, Estimate, Lookup, Operation, Reading, Recognised, Reply, Vendor, credential};
use crate::policy::Denial;
use crate::request::form::truth;
use crate::request::{Call, Refusal, authority};

/// The one host.
const HOSTS: &[&str] = &["api.resend.com"];

/// Request headers that reach Resend. The idempotency key and the credential are written by the shell.
const FORWARDED: &[&str] = &["accept", "content-type", "user-agent", "x-batch-validation"];

/// The vendor `resend`.
#[derive(Clone, Copy, Debug)]
pub struct Resend;

impl Vendor for Resend {
    fn name(&self) -> &'static str {
        "resend"
    }

    fn hosts(&self) -> &'static [&'static str] {
        HOSTS
    }

    fn operations(&self) -> &'static [Operation] {
        table::OPERATIONS
    }

    fn livemode(&self, secret: &str) -> Option<bool> {
        let rest = secret.strip_prefix("re_").filter(|rest| !rest.is_empty())?;
        Some(!rest.starts_with("test_"))
    }

    fn secret_form(&self) -> &'static str {
        "re_…"
    }

    /// An API key names no account.
    fn account(&self, _secret: &str) -> Option<String> {
        None
    }

    /// No SDK of Resend's sends a call again.
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
        &[]
    }

    /// `POST /emails` and `POST /emails/batch`: the key is kept for 24 hours, and a repeat is answered with the first
    /// reply. Broadcasts and events take none.
    fn takes_idempotency_key(&self, call: &Call) -> bool {
        call.method == "POST"
            && authority::split(&call.url, HOSTS)
                .is_ok_and(|target| matches!(target.path, "/emails" | "/emails/batch"))
    }

    fn owner_lookup(&self, _recognised: &Recognised) -> Option<Lookup> {
        None
    }

    /// The token of `Authorization: Bearer TOKEN` alone.
    fn token(&self, call: &Call) -> Option<String> {
        credential::token(call, |_| None)
    }

    fn recognise(&self, call: &Call) -> Result<Recognised, Refusal> {
        recognise::recognise(*self, call)
    }

    fn estimate(&self, recognised: &Recognised, _count_at_creation: bool) -> Result<Estimate, Refusal> {
        let unknown = |what: &str| Ok(Estimate::Unknown(what.to_owned()));
        match (recognised.operation.class, recognised.operation.name) {
            (Class::Unknown | Class::Money, _) => unknown("Resend bills it by recipients and plan"),
            (_, "broadcasts.create") if truth(recognised.field("send"), false) => {
                unknown("with `send` it goes out to everyone in the segment")
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

    /// Resend's errors hold nothing that could still cost something.
    fn redact(&self, reply: Reply) -> Reply {
        reply
    }

    fn strip(&self, reply: &Reply) -> Reply {
        reply::strip(reply)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_secret_is_an_api_key_of_resends() {
        assert_eq!(Resend.livemode("re_c1tpEyD8_NKFusih9vKVQkn"), Some(true));
        assert_eq!(Resend.livemode("re_test_simulator"), Some(false));
        for wrong in ["", "re_", "sk_test_x", "vault_key_x", "RE_x"] {
            assert_eq!(Resend.livemode(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn only_emails_take_a_key() {
        let takes = |method: &str, path: &str| {
            Resend.takes_idempotency_key(&Call {
                method: method.to_owned(),
                url: format!("https://api.resend.com{path}"),
                headers: Vec::new(),
                body: Bytes::new(),
            })
        };
        assert!(takes("POST", "/emails") && takes("POST", "/emails/batch"));
        assert!(
            !takes("POST", "/broadcasts/b_1/send")
                && !takes("PATCH", "/emails")
                && !takes("POST", "/emails/x/cancel")
        );
    }
}
