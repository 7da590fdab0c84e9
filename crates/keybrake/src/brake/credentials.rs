//! The secrets of this process, each bound to its vendor's hosts, and the loopback base URLs of simulators.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use zeroize::Zeroizing;

use crate::error::{Error, Result};
use crate::secret::Secrets;
use crate::vendors::Vendor;

/// A loaded secret: the headers that carry it, whether it is for live money, and whose it is.
pub(crate) struct Credential {
    pub(crate) headers: Vec<(String, Zeroizing<String>)>,
    pub(crate) livemode: bool,
    /// The account that it belongs to, where its vendor's paths name it.
    pub(crate) account: Option<String>,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credential")
            .field("livemode", &self.livemode)
            .finish_non_exhaustive()
    }
}

/// Secrets by vendor and name, loaded on first use and wiped on drop, and base URLs by vendor.
#[derive(Debug, Default)]
pub struct Credentials {
    secrets: Secrets,
    base_urls: BTreeMap<String, String>,
    /// By vendor, then by name.
    loaded: Mutex<BTreeMap<&'static str, BTreeMap<String, Arc<Credential>>>>,
}

impl Credentials {
    /// Secrets, and base URLs that replace a vendor's hosts.
    ///
    /// # Errors
    /// `Config` when a base URL is neither a literal loopback address nor a host of that vendor.
    pub fn new(secrets: Secrets, base_urls: BTreeMap<String, String>) -> Result<Self> {
        for (vendor, url) in &base_urls {
            if !is_loopback(url) {
                return Err(Error::config(format!(
                    "the base URL for {vendor} must be http://127.0.0.1:PORT or http://[::1]:PORT; a vendor's secret \
                     goes to no other place than its own hosts"
                )));
            }
        }
        let base_urls = base_urls
            .into_iter()
            .map(|(vendor, url)| (vendor, url.trim_end_matches('/').to_owned()))
            .collect();
        Ok(Self {
            secrets,
            base_urls,
            loaded: Mutex::default(),
        })
    }

    /// The secrets as they were given.
    pub const fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// The base URL that replaces a vendor's hosts, if any.
    pub fn base_url(&self, vendor: &str) -> Option<&str> {
        self.base_urls.get(vendor).map(String::as_str)
    }

    /// All base URLs.
    pub const fn base_urls(&self) -> &BTreeMap<String, String> {
        &self.base_urls
    }

    /// Forgets what was loaded, so that a rotated secret is read again.
    pub fn reload(&self) {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// A vendor's secret, loaded once.
    ///
    /// # Errors
    /// `Config` when it is missing, is not that vendor's, or is a live one that would go to an overridden base.
    pub(crate) fn of(&self, vendor: &'static dyn Vendor, name: Option<&str>) -> Result<Arc<Credential>> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let of_vendor = loaded.entry(vendor.name()).or_default();
        if let Some(credential) = of_vendor.get(name.unwrap_or_default()) {
            return Ok(Arc::clone(credential));
        }
        let secret = self.secrets.load(vendor.name(), name)?;
        let livemode = vendor.livemode(&secret).ok_or_else(|| {
            Error::config(format!(
                "the secret given for {} does not look like one of its secret keys ({}); check that it was not \
                 swapped with another (it is not shown here)",
                vendor.name(),
                vendor.secret_form()
            ))
        })?;
        if livemode && self.base_urls.contains_key(vendor.name()) {
            return Err(Error::config(format!(
                "the {} secret is a live one and the base URL is overridden; use a test-mode secret there",
                vendor.name()
            )));
        }
        let credential = Arc::new(Credential {
            headers: vendor.credentials(&secret),
            livemode,
            account: vendor.account(&secret),
        });
        of_vendor.insert(name.unwrap_or_default().to_owned(), Arc::clone(&credential));
        Ok(credential)
    }
}

/// Whether a URL is plain http or https to a literal loopback address with nothing but a port behind it.
pub(crate) fn is_loopback(url: &str) -> bool {
    let Some(rest) = url
        .strip_prefix("http://")
        .or_else(|| url.strip_prefix("https://"))
    else {
        return false;
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let Some(port) = ["127.0.0.1", "[::1]"]
        .iter()
        .find_map(|host| rest.strip_prefix(host))
    else {
        return false;
    };
    let digits = port.strip_prefix(':').unwrap_or_default();
    port.is_empty() || (!digits.is_empty() && digits.len() <= 5 && digits.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_literal_loopback_may_replace_a_vendors_host() {
        for good in ["http://127.0.0.1:12111", "http://[::1]:80/", "http://127.0.0.1"] {
            assert!(is_loopback(good), "{good}");
        }
        for bad in [
            "http://localhost:1",
            "http://127.0.0.1:1@evil.example",
            "http://127.0.0.1.evil.example",
            "https://api.stripe.com",
            "http://127.0.0.1:1/path",
            "http://127.0.0.2:1",
            "ftp://127.0.0.1",
        ] {
            assert!(!is_loopback(bad), "{bad}");
        }
    }
}
