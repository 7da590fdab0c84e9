//! Request headers: what is refused, what is rebuilt, and that nothing is there twice (security rule 7).

use super::Refusal;
use crate::policy::Code;

/// Most headers on one call.
pub const MAX_HEADERS: usize = 64;
/// Longest header value, in bytes.
pub const MAX_VALUE: usize = 8 * 1024;

/// Longest header name, in bytes.
const MAX_NAME: usize = 64;

/// Headers that frame, forward, rewrite or switch: none of them belongs on a call to a vendor. Takes lower case.
fn is_refused(name: &[u8]) -> bool {
    matches!(
        name,
        b"content-encoding"
            | b"cookie"
            | b"expect"
            | b"forwarded"
            | b"http2-settings"
            | b"keep-alive"
            | b"te"
            | b"trailer"
            | b"transfer-encoding"
            | b"upgrade"
            | b"via"
            | b"x-host"
            | b"x-method-override"
            | b"x-real-ip"
    ) || [
        &b"proxy-"[..],
        b"x-forwarded-",
        b"x-http-method",
        b"x-original-",
        b"x-rewrite-",
    ]
    .iter()
    .any(|prefix| name.starts_with(prefix))
}

/// Checks all headers of a call to `host` whose body has `body_len` bytes.
///
/// Names are letters, digits and `-` (`_` becomes `-` in CGI and Rack); values are printable ASCII; no name is there
/// twice in any spelling; `Host` equals the URL's host, `Content-Length` the body's length, `Connection` is
/// `keep-alive` or `close`; nothing frames, forwards, rewrites or upgrades.
///
/// # Errors
/// `vendor_not_allowed` for another `Host`, else `request_malformed`, naming the header, never its value.
pub fn check(headers: &[(String, String)], host: &str, body_len: usize) -> Result<(), Refusal> {
    if headers.len() > MAX_HEADERS {
        return Err(refuse(format!("there are more than {MAX_HEADERS} headers")));
    }
    let mut rest = headers;
    while let Some(((name, value), after)) = rest.split_first() {
        check_one(name, value)?;
        if after.iter().any(|(other, _)| other.eq_ignore_ascii_case(name)) {
            return Err(refuse(format!(
                "header {name} is there twice (spelling in capitals or not makes no difference)"
            )));
        }
        let is = |wanted: &str| name.eq_ignore_ascii_case(wanted);
        if is("host") && value != host && value.strip_suffix(":443") != Some(host) {
            return Err(Refusal::new(
                Code::VendorNotAllowed,
                "the Host header is not the URL's host; leave it out",
            ));
        }
        if is("content-length") && *value != body_len.to_string() {
            return Err(refuse(
                "the Content-Length header is not the body's length; leave it out",
            ));
        }
        if is("connection")
            && !value.eq_ignore_ascii_case("keep-alive")
            && !value.eq_ignore_ascii_case("close")
        {
            return Err(refuse("the Connection header is neither keep-alive nor close"));
        }
        rest = after;
    }
    Ok(())
}

fn check_one(name: &str, value: &str) -> Result<(), Refusal> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let mut lower = [0_u8; MAX_NAME];
    let Some(lower) = lower.get_mut(..name.len()).filter(|lower| !lower.is_empty()) else {
        return Err(bad_name(name));
    };
    lower.copy_from_slice(name.as_bytes());
    lower.make_ascii_lowercase();
    if !lower.iter().all(|byte| plain(*byte)) {
        return Err(bad_name(name));
    }
    // Without branches inside, because values are long.
    let printable = value
        .bytes()
        .fold(true, |all, byte| all & (0x20..0x7f).contains(&byte));
    if value.len() > MAX_VALUE || !printable || value.starts_with(' ') || value.ends_with(' ') {
        return Err(refuse(format!(
            "the value of header {name} is too long, not printable ASCII, or has spaces at an end"
        )));
    }
    if is_refused(lower) {
        return Err(refuse(format!(
            "header {name} is not sent to vendors; leave it out"
        )));
    }
    Ok(())
}

fn bad_name(name: &str) -> Refusal {
    refuse(format!(
        "header {} has a name with something other than letters, digits and -",
        super::form::shown(name)
    ))
}

/// The value of a header, by name without regard to case. After [`check`] there is at most one.
pub fn get<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers
        .iter()
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.as_str())
}

/// Whether a `Content-Type` is this media type, with `charset=utf-8` or nothing behind it (security rule 9).
pub fn is_media_type(value: &str, media_type: &str) -> bool {
    let (essence, parameters) = value.split_once(';').unwrap_or((value, "charset=utf-8"));
    essence.trim_end().eq_ignore_ascii_case(media_type)
        && parameters.trim().eq_ignore_ascii_case("charset=utf-8")
}

fn refuse(what: impl Into<String>) -> Refusal {
    Refusal::new(Code::RequestMalformed, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(headers: &[(&str, &str)]) -> Result<(), Refusal> {
        let headers: Vec<_> = headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        check(&headers, "api.stripe.com", 11)
    }

    #[test]
    fn rule_07_headers_of_the_sdks_pass() {
        checked(&[
            ("X-Stripe-Client-User-Agent", "{\"lang\": \"python\"}"),
            ("User-Agent", "Stripe/v1 PythonBindings/16.1.0"),
            ("Authorization", "Bearer vault_key_x"),
            ("Stripe-Version", "2026-10-28.endive"),
            ("Idempotency-Key", "a"),
            ("Content-Type", "application/x-www-form-urlencoded"),
            ("Content-Length", "11"),
            ("Host", "api.stripe.com"),
            ("Connection", "keep-alive"),
        ])
        .unwrap();
    }

    #[test]
    fn rule_07_headers_repeated_in_any_case() {
        for (a, b) in [
            ("Idempotency-Key", "idempotency-key"),
            ("Authorization", "AUTHORIZATION"),
            ("Content-Length", "Content-Length"),
        ] {
            let message = checked(&[(a, "11"), ("Accept", "x"), (b, "11")])
                .unwrap_err()
                .message;
            assert!(message.contains("twice"), "{message}");
        }
    }

    #[test]
    fn rule_07_headers_underscore_and_other_names() {
        for name in [
            "Idempotency_Key",
            "Stripe Account",
            "",
            "Stripe-Account:",
            "X\u{e9}",
            "a\r\nb",
        ] {
            assert!(checked(&[(name, "x")]).is_err(), "{name:?}");
        }
    }

    #[test]
    fn rule_07_headers_values_are_printable() {
        for value in ["a\nb", "a\r", "\u{e9}", "a\tb", "a\0", " a", "a "] {
            let refusal = checked(&[("Idempotency-Key", value)]).unwrap_err();
            assert_eq!(refusal.code, Code::RequestMalformed, "{value:?}");
        }
    }

    #[test]
    fn rule_07_headers_framing_and_forwarding() {
        for name in [
            "Transfer-Encoding",
            "transfer-encoding",
            "Content-Encoding",
            "TE",
            "Trailer",
            "Upgrade",
            "Expect",
            "Forwarded",
            "X-Forwarded-Host",
            "x-forwarded-for",
            "X-Original-URL",
            "X-Rewrite-URL",
            "Proxy-Authorization",
            "Cookie",
        ] {
            assert!(checked(&[(name, "x")]).is_err(), "{name}");
        }
    }

    #[test]
    fn rule_06_method_overrides() {
        for name in [
            "X-HTTP-Method",
            "X-HTTP-Method-Override",
            "x-http-methodoverride",
            "X-Method-Override",
        ] {
            assert!(checked(&[(name, "DELETE")]).is_err(), "{name}");
        }
    }

    #[test]
    fn rule_02_host_header_equals_the_url() {
        assert_eq!(
            checked(&[("Host", "evil.example")]).unwrap_err().code,
            Code::VendorNotAllowed
        );
        assert_eq!(
            checked(&[("host", "API.stripe.com")]).unwrap_err().code,
            Code::VendorNotAllowed
        );
        checked(&[("Host", "api.stripe.com:443")]).unwrap();
    }

    #[test]
    fn rule_07_headers_length_and_connection() {
        for (name, value) in [
            ("Content-Length", "12"),
            ("Content-Length", "+11"),
            ("Content-Length", "11, 11"),
            ("Connection", "upgrade"),
            ("Connection", "close, Stripe-Account"),
        ] {
            assert!(checked(&[(name, value)]).is_err(), "{name}: {value}");
        }
    }

    #[test]
    fn rule_09_media_type() {
        let form = "application/x-www-form-urlencoded";
        assert!(is_media_type(form, form));
        assert!(is_media_type(
            "Application/X-WWW-Form-Urlencoded; charset=UTF-8",
            form
        ));
        for value in [
            "application/json",
            "application/x-www-form-urlencoded; charset=utf-7",
            "application/x-www-form-urlencoded; charset=utf-8; x=y",
            "application/x-www-form-urlencoded;",
            "application/x-www-form-urlencoded, application/json",
            "",
        ] {
            assert!(!is_media_type(value, form), "{value:?}");
        }
    }
}
