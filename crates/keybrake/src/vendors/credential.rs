//! The header where a vendor's key goes: how our secret is written there, and how the caller's token is read from it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::request::Call;

/// A secret as the key of `Authorization: Bearer`.
pub(super) fn bearer(secret: &str) -> Vec<(String, Zeroizing<String>)> {
    let value = Zeroizing::new(format!("Bearer {secret}"));
    vec![("authorization".to_owned(), value)]
}

/// The token of `Authorization: Bearer TOKEN`, or what `in_pair` takes out of `USER:PASSWORD` of `Authorization: Basic`.
/// Nowhere else, not when the header is there twice, and nothing that has other characters than a token.
pub(super) fn token(call: &Call, in_pair: fn(&str) -> Option<&str>) -> Option<String> {
    let mut found = call
        .headers
        .iter()
        .filter(|(name, _)| name.eq_ignore_ascii_case("authorization"));
    let (Some((_, value)), None) = (found.next(), found.next()) else {
        return None;
    };
    let (scheme, rest) = value.split_once(' ')?;
    let token = if scheme.eq_ignore_ascii_case("bearer") {
        rest.to_owned()
    } else if scheme.eq_ignore_ascii_case("basic") {
        let pair = String::from_utf8(STANDARD.decode(rest).ok()?).ok()?;
        in_pair(&pair)?.to_owned()
    } else {
        return None;
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (!token.is_empty() && token.chars().all(plain)).then_some(token)
}
