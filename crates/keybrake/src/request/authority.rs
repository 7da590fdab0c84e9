//! Which host a URL names, judged on the raw string before any URL library sees it (security rules 2 and 3).
//!
//! Parsers disagree on `https://api.stripe.com\@evil`, on `%2e`, on ligatures and soft hyphens. So nothing is
//! parsed: what stands before the first `/` has to be, byte for byte, one of the hosts that are known.

use super::Refusal;
use crate::policy::Code;

/// Longest URL that is judged, in bytes.
pub const MAX_URL: usize = 16 * 1024;

/// A URL whose host is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// The host, from the list it was compared with.
    pub host: &'static str,
    /// The raw path, beginning with `/`.
    pub path: &'a str,
    /// The raw query without its `?`; `None` when there is no `?`.
    pub query: Option<&'a str>,
}

/// Splits a URL into host, path and query.
///
/// It has to be `https://`, one of `hosts` exactly, an optional `:443`, and a path; printable ASCII throughout.
///
/// # Errors
/// `vendor_not_allowed` for any other scheme, host or port; `request_malformed` for a URL that is too long or
/// has a fragment.
pub fn split<'a>(url: &'a str, hosts: &[&'static str]) -> Result<Target<'a>, Refusal> {
    if url.len() > MAX_URL {
        return Err(Refusal::new(
            Code::RequestMalformed,
            format!("the URL is longer than {MAX_URL} bytes"),
        ));
    }
    if !url.bytes().all(|b| b.is_ascii_graphic() && b != b'\\') {
        return Err(Refusal::new(
            Code::VendorNotAllowed,
            "the URL has a space, a backslash, a control character or a character outside ASCII",
        ));
    }
    let Some(rest) = url.strip_prefix("https://") else {
        return Err(Refusal::new(
            Code::VendorNotAllowed,
            "the URL does not begin with https://",
        ));
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at_checked(end).unwrap_or((rest, ""));
    let name = authority.strip_suffix(":443").unwrap_or(authority);
    let Some(host) = hosts.iter().find(|host| **host == name) else {
        return Err(Refusal::new(Code::VendorNotAllowed, wrong_host(hosts)));
    };
    if tail.contains('#') {
        return Err(Refusal::new(Code::RequestMalformed, "the URL has a fragment (#)"));
    }
    let (path, query) = match tail.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (tail, None),
    };
    Ok(Target { host, path, query })
}

fn wrong_host(hosts: &[&str]) -> String {
    format!(
        "the URL's host is not one of {}, written exactly so, without user, other port or trailing dot",
        hosts.join(", ")
    )
}

/// Where a vendor's calls go instead of the vendor, as given by `base_urls` or `KEYBRAKE_BASE_URL_<VENDOR>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Base {
    /// The vendor itself, at this one of its hosts.
    Vendor(&'static str),
    /// A server on this machine, such as `http://127.0.0.1:12111`. Only a test-mode secret may go there.
    Loopback {
        /// `http` or `https`, the literal address and the port.
        origin: String,
    },
}

impl Base {
    /// Reads an overriding base URL: `https://` and one of the vendor's hosts, or `http://` (or `https://`) with
    /// the literal `127.0.0.1` or `[::1]` and a port. No path, no user, no name such as `localhost`, which a
    /// hosts file can send elsewhere.
    ///
    /// # Errors
    /// `vendor_not_allowed` for anything else.
    pub fn parse(text: &str, hosts: &[&'static str]) -> Result<Self, Refusal> {
        let bare = text.strip_suffix('/').unwrap_or(text);
        if let Some(name) = bare.strip_prefix("https://") {
            let name = name.strip_suffix(":443").unwrap_or(name);
            if let Some(host) = hosts.iter().find(|host| **host == name) {
                return Ok(Self::Vendor(host));
            }
        }
        if is_loopback(bare) {
            return Ok(Self::Loopback {
                origin: bare.to_owned(),
            });
        }
        Err(Refusal::new(
            Code::VendorNotAllowed,
            format!(
                "a base URL is https:// and one of {}, or http:// and 127.0.0.1 or [::1] with a port, such as \
                 http://127.0.0.1:12111",
                hosts.join(", ")
            ),
        ))
    }
}

fn is_loopback(origin: &str) -> bool {
    let rest = origin
        .strip_prefix("http://")
        .or_else(|| origin.strip_prefix("https://"));
    let port = rest.and_then(|rest| {
        rest.strip_prefix("127.0.0.1:")
            .or_else(|| rest.strip_prefix("[::1]:"))
    });
    port.is_some_and(|port| {
        (1..=5).contains(&port.len())
            && !port.starts_with('0')
            && port.bytes().all(|b| b.is_ascii_digit())
            && port.parse::<u16>().is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTS: &[&str] = &["api.stripe.com", "files.stripe.com"];

    fn refused(url: &str) -> Code {
        split(url, HOSTS).unwrap_err().code
    }

    #[test]
    fn rule_02_authority_exact_host() {
        let target = split("https://api.stripe.com/v1/refunds?a=b", HOSTS).unwrap();
        assert_eq!(
            (target.host, target.path, target.query),
            ("api.stripe.com", "/v1/refunds", Some("a=b"))
        );
        assert!(split("https://files.stripe.com:443/v1/files", HOSTS).is_ok());
    }

    #[test]
    fn rule_02_authority_userinfo() {
        assert_eq!(
            refused("https://api.stripe.com@evil.example/v1/refunds"),
            Code::VendorNotAllowed
        );
        assert_eq!(
            refused("https://x@api.stripe.com/v1/refunds"),
            Code::VendorNotAllowed
        );
        assert_eq!(
            refused("https://api.stripe.com:443@evil.example/"),
            Code::VendorNotAllowed
        );
    }

    #[test]
    fn rule_02_authority_backslash() {
        assert_eq!(
            refused("https://api.stripe.com\\@evil.example/v1/refunds"),
            Code::VendorNotAllowed
        );
        assert_eq!(
            refused("https://api.stripe.com\\v1/refunds"),
            Code::VendorNotAllowed
        );
    }

    #[test]
    fn rule_02_authority_disguised_host() {
        for url in [
            "https://api.stripe.com./v1/refunds",
            "https://api%2estripe.com/v1/refunds",
            "https://API.stripe.com/v1/refunds",
            "https://api.stripe.com.evil.example/v1/refunds",
            "https://evil.example/api.stripe.com",
            "https://api.\u{fb06}ripe.com/v1/refunds",
            "https://api.str\u{ad}ipe.com/v1/refunds",
            "https://api.stripe.com:8443/v1/refunds",
            "https://api.stripe.com:/v1/refunds",
            "https://api.stripe.com:0443/v1/refunds",
            "https:///api.stripe.com/v1/refunds",
            "https:/api.stripe.com/v1/refunds",
            "//api.stripe.com/v1/refunds",
            "http://api.stripe.com/v1/refunds",
            "HTTPS://api.stripe.com/v1/refunds",
            " https://api.stripe.com/v1/refunds",
            "https://api.stripe.com\t/v1/refunds",
            "https://api.stripe.com /v1/refunds",
            "",
        ] {
            assert_eq!(refused(url), Code::VendorNotAllowed, "{url:?}");
        }
    }

    #[test]
    fn rule_04_fragment_is_refused() {
        assert_eq!(
            refused("https://api.stripe.com/v1/refunds#x"),
            Code::RequestMalformed
        );
        assert_eq!(
            refused("https://api.stripe.com/v1/refunds?a=b#x"),
            Code::RequestMalformed
        );
    }

    #[test]
    fn rule_03_base_is_a_vendor_host_or_literal_loopback() {
        assert_eq!(
            Base::parse("https://api.stripe.com", HOSTS),
            Ok(Base::Vendor("api.stripe.com"))
        );
        for origin in [
            "http://127.0.0.1:12111",
            "http://[::1]:1",
            "https://127.0.0.1:65535",
        ] {
            assert!(
                matches!(Base::parse(origin, HOSTS), Ok(Base::Loopback { .. })),
                "{origin}"
            );
        }
        for origin in [
            "http://api.stripe.com",
            "http://localhost:12111",
            "http://127.0.0.1",
            "http://127.0.0.1:0",
            "http://127.0.0.1:65536",
            "http://127.0.0.1:08080",
            "http://127.1:80",
            "http://127.0.0.2:80",
            "http://127.0.0.1:80/v1",
            "http://127.0.0.1:80@evil.example",
            "http://user@127.0.0.1:80",
            "http://[::ffff:127.0.0.1]:80",
            "https://evil.example",
            "",
        ] {
            let refusal = Base::parse(origin, HOSTS).unwrap_err();
            assert_eq!(refusal.code, Code::VendorNotAllowed, "{origin}");
        }
    }
}
