//! The vault key's text: `vault_key_` + 4 characters that name the ledger + 28 random ones + a 6-character check.
//!
//! 28 base62 characters carry 166 random bits. The check tells a mistyped key from an unknown one, and the
//! ledger's tag tells a wrong ledger from a wrong key. Only a keyed hash of the text is ever stored.

use zeroize::Zeroizing;

use crate::error::{Error, ErrorKind, Result};

/// How every vault key begins.
pub const PREFIX: &str = "vault_key_";
const TAG: usize = 4;
const RANDOM: usize = 28;
const CHECK: usize = 6;
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A vault key. Shown once, when it is issued; `Debug` and errors never show it.
#[derive(Clone)]
pub struct Token(Zeroizing<String>);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(vault_key_…)")
    }
}

/// Why a text is not a vault key of this ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAToken {
    /// It does not begin like one: perhaps a vendor's own secret.
    Foreign,
    /// Its length, characters or check are wrong: mistyped or cut off.
    Damaged,
    /// It belongs to another ledger or namespace.
    OtherLedger,
}

impl Token {
    /// A new key for the ledger with this tag.
    ///
    /// # Errors
    /// `Internal` when the machine has no randomness.
    pub fn generate(ledger_tag: &str) -> Result<Self> {
        Ok(Self::of(ledger_tag, &random_base62(RANDOM)?))
    }

    /// The key with these 28 random characters: for the simulation.
    #[doc(hidden)]
    pub fn of(ledger_tag: &str, random: &str) -> Self {
        let mut text = Zeroizing::new(String::with_capacity(PREFIX.len().saturating_add(48)));
        text.push_str(PREFIX);
        text.push_str(ledger_tag);
        text.push_str(random);
        let check = check_of(&text);
        text.push_str(&check);
        Self(text)
    }

    /// Checks a text's form; whether the key exists is the ledger's to say.
    pub fn parse(text: &str, ledger_tag: &str) -> Result<Self, NotAToken> {
        let rest = text.strip_prefix(PREFIX).ok_or(NotAToken::Foreign)?;
        let expected = TAG.saturating_add(RANDOM).saturating_add(CHECK);
        if rest.len() != expected || !rest.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(NotAToken::Damaged);
        }
        let (body, check) = text
            .split_at_checked(text.len().saturating_sub(CHECK))
            .ok_or(NotAToken::Damaged)?;
        if check_of(body) != check {
            return Err(NotAToken::Damaged);
        }
        if !rest.starts_with(ledger_tag) {
            return Err(NotAToken::OtherLedger);
        }
        Ok(Self(Zeroizing::new(text.to_owned())))
    }

    /// The text itself, to be handed to an agent. Do not log it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// Random base62 text of this length.
///
/// # Errors
/// `Internal` when the machine has no randomness.
pub fn random_base62(length: usize) -> Result<String> {
    let mut text = String::with_capacity(length);
    while text.len() < length {
        let mut bytes = [0_u8; 64];
        getrandom::fill(&mut bytes)
            .map_err(|e| Error::new(ErrorKind::Internal, "the machine gave no random bytes").because(e))?;
        // 248 is the largest multiple of 62 below 256: bytes above it would favour the first characters.
        let letters = bytes
            .iter()
            .filter(|byte| **byte < 248)
            .filter_map(|byte| digit(u64::from(*byte)));
        text.extend(letters.take(length.saturating_sub(text.len())));
    }
    Ok(text)
}

fn check_of(text: &str) -> String {
    base62(u64::from(crc32fast::hash(text.as_bytes())), CHECK)
}

/// The lowest digits of a number in base62, most significant first.
pub(crate) fn base62(mut number: u64, length: usize) -> String {
    let mut digits = Vec::with_capacity(length);
    for _ in 0..length {
        digits.extend(digit(number));
        number = number.checked_div(62).unwrap_or(0);
    }
    digits.iter().rev().collect()
}

fn digit(number: u64) -> Option<char> {
    let index = usize::try_from(number.checked_rem(62)?).ok()?;
    BASE62.get(index).map(|byte| char::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_own_check_and_nothing_else() {
        let token = Token::generate("ab12").unwrap();
        assert!(Token::parse(token.expose(), "ab12").is_ok());
        assert_eq!(
            Token::parse(token.expose(), "zz99").unwrap_err(),
            NotAToken::OtherLedger
        );
        assert_eq!(
            Token::parse("sk_live_123", "ab12").unwrap_err(),
            NotAToken::Foreign
        );
        let mut damaged = token.expose().to_owned();
        let last = damaged.pop().unwrap();
        damaged.push(if last == 'a' { 'b' } else { 'a' });
        assert_eq!(Token::parse(&damaged, "ab12").unwrap_err(), NotAToken::Damaged);
        assert!(!format!("{token:?}").contains(token.expose().get(10..).unwrap()));
    }
}
