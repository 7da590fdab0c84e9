//! What makes two attempts one spend, and the keys that tell the vendor so.
//!
//! Every hash is over length-prefixed parts, so that no two lists of parts share one; keys that we derive and
//! send are HMACs under the ledger's secret, so that nobody can guess or pre-register one.

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::error::{Error, ErrorKind, Result};
use crate::ledger::{LedgerSecret, TokenHash};

type HmacSha256 = Hmac<Sha256>;

/// Keyed hashes of one ledger: each purpose has its own subkey (HKDF-SHA-256, distinct labels).
#[derive(Clone)]
pub struct Keys {
    token: HmacSha256,
    identity: HmacSha256,
    idempotency: HmacSha256,
    reply: zeroize::Zeroizing<[u8; 32]>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys(…)")
    }
}

impl Keys {
    /// The subkeys of a ledger's secret.
    ///
    /// # Errors
    /// `Internal` if a subkey cannot be derived (it always can).
    pub fn new(secret: &LedgerSecret) -> Result<Self> {
        let hkdf = Hkdf::<Sha256>::new(None, &secret.0);
        let subkey = |label: &str| -> Result<zeroize::Zeroizing<[u8; 32]>> {
            let mut key = zeroize::Zeroizing::new([0_u8; 32]);
            hkdf.expand(label.as_bytes(), key.as_mut())
                .map_err(|e| Error::new(ErrorKind::Internal, format!("no subkey for {label}: {e}")))?;
            Ok(key)
        };
        let mac = |label: &str| -> Result<HmacSha256> {
            HmacSha256::new_from_slice(subkey(label)?.as_ref())
                .map_err(|e| Error::new(ErrorKind::Internal, format!("no key for {label}: {e}")))
        };
        Ok(Self {
            token: mac("keybrake v1 token")?,
            identity: mac("keybrake v1 identity")?,
            idempotency: mac("keybrake v1 idempotency")?,
            reply: subkey("keybrake v1 reply")?,
        })
    }

    /// What is stored of a token.
    pub fn token_hash(&self, token: &str) -> TokenHash {
        TokenHash(keyed(&self.token, &[token]))
    }

    /// The name of an identity: a hash of its parts.
    pub fn identity(&self, parts: &[&str]) -> String {
        keyed(&self.identity, parts)
    }

    /// The first parts of several identities, hashed once.
    pub(crate) fn scope(&self, parts: &[&str]) -> ScopedIdentity {
        ScopedIdentity(extended(&self.identity, parts))
    }

    /// What is kept of a field that tells two calls apart and says nothing else.
    pub(crate) fn kept_field(&self, name: &str, value: &str) -> String {
        keyed(&self.identity, &["field", name, value])
    }

    /// The idempotency key that is sent for one generation of an identity.
    pub fn vendor_key(&self, identity: &str, generation: u32) -> String {
        let mut key = keyed(&self.idempotency, &[identity, &generation.to_string()]);
        key.truncate(48);
        format!("kb-{key}")
    }

    /// The subkey that recorded replies are encrypted with.
    pub(crate) fn reply_key(&self) -> &[u8; 32] {
        &self.reply
    }
}

/// The parts that several identities begin with.
pub(crate) struct ScopedIdentity(HmacSha256);

impl ScopedIdentity {
    /// The name of the identity with these parts after the first ones.
    pub(crate) fn identity(&self, parts: &[&str]) -> String {
        keyed(&self.0, parts)
    }
}

/// Our mark in the vendor's metadata: a pure function of the sent key, so that a retry is byte-identical.
pub fn tag(sent_key: &str) -> String {
    let mut text = hex(&Sha256::digest(sent_key.as_bytes()));
    text.truncate(32);
    format!("kb_{text}")
}

/// SHA-256 over length-prefixed parts, in hex: the fingerprint of a request's bytes.
pub fn fingerprint(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(length(part));
        hash.update(part);
    }
    hex(&hash.finalize())
}

/// A caller's own idempotency key for a step of a run: `sha256(run "::" step)` to 48 hex characters.
///
/// # Errors
/// `Policy` when the run contains `::`, which would let two pairs share a key.
pub fn step_key(run: &str, step: &str) -> Result<String> {
    if run.contains("::") {
        return Err(Error::policy(format!(
            "run {run:?} contains \"::\"; use another separator in run ids"
        )));
    }
    let mut text = hex(&Sha256::digest(format!("{run}::{step}").as_bytes()));
    text.truncate(48);
    Ok(text)
}

/// A caller's own idempotency key for chosen fields, sorted by name: `sha256` to 32 hex characters.
pub fn content_key(fields: &std::collections::BTreeMap<String, String>) -> String {
    let parts: Vec<&[u8]> = fields
        .iter()
        .flat_map(|(key, value)| [key.as_bytes(), value.as_bytes()])
        .collect();
    let mut text = fingerprint(&parts);
    text.truncate(32);
    text
}

/// A caller's own idempotency key for an item of a run: `run-item`.
///
/// # Errors
/// `Policy` when it is longer than the 255 characters a vendor takes.
pub fn item_key(run: &str, item: &str) -> Result<String> {
    let key = format!("{run}-{item}");
    if key.len() > 255 {
        return Err(Error::policy(
            "an item key is longer than 255 characters; shorten the run or the item",
        ));
    }
    Ok(key)
}

fn keyed(mac: &HmacSha256, parts: &[&str]) -> String {
    hex(&extended(mac, parts).finalize().into_bytes())
}

fn extended(mac: &HmacSha256, parts: &[&str]) -> HmacSha256 {
    let mut mac = mac.clone();
    for part in parts {
        mac.update(&length(part.as_bytes()));
        mac.update(part.as_bytes());
    }
    mac
}

fn length(part: &[u8]) -> [u8; 8] {
    u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from(if nibble < 10 { b'0' } else { b'a' - 10 }.saturating_add(nibble));
    let mut text = String::with_capacity(bytes.len().saturating_mul(2));
    for byte in bytes {
        text.push(digit(byte >> 4));
        text.push(digit(byte & 15));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn helper_keys_are_what_the_docs_say() {
        // echo -n 'run_42::refund-17' | sha256sum
        let expected = hex(&Sha256::digest(b"run_42::refund-17"));
        assert_eq!(
            step_key("run_42", "refund-17").unwrap(),
            expected.get(..48).unwrap()
        );
        assert!(step_key("a::b", "c").is_err());
        assert_eq!(item_key("run_42", "order-9").unwrap(), "run_42-order-9");
    }

    #[test]
    fn parts_are_length_prefixed() {
        assert_ne!(fingerprint(&[b"ab", b"c"]), fingerprint(&[b"a", b"bc"]));
        let keys = Keys::new(&LedgerSecret([7; 32])).unwrap();
        assert_ne!(keys.identity(&["ab", "c"]), keys.identity(&["a", "bc"]));
        assert_ne!(keys.vendor_key("x", 1), keys.vendor_key("x", 2));
        assert_eq!(
            keys.scope(&["a", "b"]).identity(&["c"]),
            keys.identity(&["a", "b", "c"])
        );
    }

    #[test]
    fn hex_is_lower_case_and_two_digits_a_byte() {
        assert_eq!(hex(&[0x00, 0x09, 0x9a, 0xaf, 0xf0, 0xff]), "00099aaff0ff");
    }

    #[test]
    fn a_tag_is_a_pure_function_of_the_sent_key() {
        assert_eq!(tag("kb-1"), tag("kb-1"));
        assert_ne!(tag("kb-1"), tag("kb-2"));
    }
}
