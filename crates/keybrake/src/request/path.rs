//! The path, segment by segment, decoded once (security rule 4).

use std::borrow::Cow;

use super::Refusal;
use crate::policy::Code;

/// Most segments a path may have.
pub const MAX_SEGMENTS: usize = 16;

/// Splits a raw path on `/` and decodes each segment once.
///
/// Only letters, digits and `-._~` stand for themselves; all else has to be written as an escape in upper-case
/// hexadecimal, so that encoding the answer again gives the input. That is how the vendors' own SDKs write ids.
///
/// # Errors
/// `endpoint_not_allowed` for an empty segment (so also a trailing slash), `.` and `..`, a control character or one
/// of `/ \ % ? # ;` after decoding, invalid UTF-8, and any escape that is not the canonical one.
pub fn segments(path: &str) -> Result<Vec<Cow<'_, str>>, Refusal> {
    let Some(rest) = path.strip_prefix('/') else {
        return Err(refuse("does not begin with /"));
    };
    let mut out = Vec::with_capacity(6);
    for raw in rest.split('/') {
        if out.len() == MAX_SEGMENTS {
            return Err(refuse("has too many segments"));
        }
        out.push(segment(raw)?);
    }
    Ok(out)
}

fn segment(raw: &str) -> Result<Cow<'_, str>, Refusal> {
    match raw {
        "" => {
            return Err(refuse("has an empty segment (a double or a trailing slash)"));
        }
        "." | ".." => return Err(refuse("has a . or .. segment")),
        _ => {}
    }
    if raw.bytes().all(unreserved) {
        return Ok(Cow::Borrowed(raw));
    }
    let decoded = decode(raw)
        .ok_or_else(|| refuse("has a character that must be escaped, or an escape that is not canonical"))?;
    if decoded
        .chars()
        .any(|c| c.is_control() || matches!(c, '/' | '\\' | '%' | '?' | '#' | ';'))
    {
        return Err(refuse("hides a separator or a control character in an escape"));
    }
    if encode(&decoded) != raw {
        return Err(refuse("has an escape that is not canonical"));
    }
    Ok(Cow::Owned(decoded))
}

fn decode(raw: &str) -> Option<String> {
    let mut out = Vec::with_capacity(raw.len());
    let mut bytes = raw.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            out.push(super::form::hex_pair(bytes.next()?, bytes.next()?)?);
        } else if unreserved(byte) {
            out.push(byte);
        } else {
            return None;
        }
    }
    String::from_utf8(out).ok()
}

/// A segment as it is written in a path: everything but letters, digits and `-._~` escaped.
pub fn encode(segment: &str) -> String {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = String::with_capacity(segment.len());
    for byte in segment.bytes() {
        if unreserved(byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            for nibble in [byte >> 4, byte & 15] {
                out.push(char::from(HEX.get(usize::from(nibble)).copied().unwrap_or(b'0')));
            }
        }
    }
    out
}

const fn unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn refuse(what: &str) -> Refusal {
    Refusal::new(
        Code::EndpointNotAllowed,
        format!("the URL's path {what}; give ids to the SDK as they are, never parts of a path"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(path: &str) -> bool {
        segments(path).is_err_and(|refusal| refusal.code == Code::EndpointNotAllowed)
    }

    #[test]
    fn rule_04_plain_and_escaped_segments() {
        assert_eq!(segments("/v1/charges/ch_1").unwrap(), ["v1", "charges", "ch_1"]);
        assert!(refused("/v1/coupons/10%25%20off"));
        assert_eq!(
            segments("/v1/coupons/summer%20sale%3A1").unwrap(),
            ["v1", "coupons", "summer sale:1"]
        );
    }

    #[test]
    fn rule_04_path_dot_segments() {
        for path in [
            "/v1/charges/..",
            "/v1/charges/../refunds",
            "/v1/./refunds",
            "/v1/charges/%2E%2E/refunds",
            "/v1/charges/%2e%2e/refunds",
            "/v1/charges/.%2E",
        ] {
            assert!(refused(path), "{path}");
        }
    }

    #[test]
    fn rule_04_path_empty_segments() {
        for path in [
            "",
            "/",
            "v1/charges",
            "//v1/charges",
            "/v1//charges",
            "/v1/charges/",
        ] {
            assert!(refused(path), "{path}");
        }
    }

    #[test]
    fn rule_04_path_hidden_separators() {
        for escape in [
            "%2F", "%2f", "%5C", "%25", "%3F", "%23", "%3B", "%00", "%0A", "%7F", "%C2%85",
        ] {
            assert!(refused(&format!("/v1/charges/ch_1{escape}x")), "{escape}");
        }
    }

    #[test]
    fn rule_04_path_escapes_are_canonical() {
        for path in [
            "/v1/%63harges",
            "/v1/charges/ch%5f1",
            "/v1/charges/ch%5F1",
            "/v1/charges/a%3ab",
            "/v1/charges/%",
            "/v1/charges/%2",
            "/v1/charges/%zz",
            "/v1/charges/%+1",
            "/v1/charges/%FF",
            "/v1/charges/a+b",
            "/v1/charges/a b",
            "/v1/charges/a;b",
            "/v1/charges/*",
            "/v1/charges/caf\u{e9}",
        ] {
            assert!(refused(path), "{path}");
        }
    }

    #[test]
    fn rule_04_path_is_bounded() {
        assert!(segments(&"/a".repeat(MAX_SEGMENTS)).is_ok());
        assert!(refused(&"/a".repeat(MAX_SEGMENTS + 1)));
    }
}
