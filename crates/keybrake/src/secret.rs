//! Where the vendor's real secrets come from, and how they are kept: loaded late, wiped on drop, never shown.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// A reference to a vendor's secret: where to read it, not the secret itself.
#[derive(Clone)]
pub struct Secret(Source);

#[derive(Clone)]
enum Source {
    /// Names of variables; their values with `:` between them.
    Environment(Vec<String>),
    File(PathBuf),
    Value(Zeroizing<String>),
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secret({})", self.origin())
    }
}

impl Secret {
    /// Read from an environment variable. It is then a text of the host process already; prefer
    /// [`Secret::file`].
    pub fn env(name: impl Into<String>) -> Self {
        Self(Source::Environment(vec![name.into()]))
    }

    /// Read from several environment variables, whose values with `:` between them are the secret: Twilio's account SID
    /// and auth token.
    pub fn env_parts(names: &[&str]) -> Self {
        let names = names.iter().map(|name| (*name).to_owned());
        Self(Source::Environment(names.collect()))
    }

    /// Read from a file, such as `/run/secrets/stripe`; surrounding white space is cut off.
    pub fn file(path: impl AsRef<Path>) -> Self {
        Self(Source::File(path.as_ref().to_owned()))
    }

    /// Given as a value.
    pub fn value(text: impl Into<String>) -> Self {
        Self(Source::Value(Zeroizing::new(text.into())))
    }

    /// Where it comes from, in words that hold no secret: `environment STRIPE_SECRET_KEY`, `file /run/…`, `value`.
    pub fn origin(&self) -> String {
        match &self.0 {
            Source::Environment(names) => format!("environment {}", names.join(" and ")),
            Source::File(path) => format!("file {}", path.display()),
            Source::Value(_) => "value".to_owned(),
        }
    }

    /// Reads the secret.
    ///
    /// # Errors
    /// `Config` when it is not there, empty, or holds characters that no header can carry.
    pub fn load(&self) -> Result<Zeroizing<String>> {
        let text = match &self.0 {
            Source::Environment(names) => from_environment(names)?,
            Source::File(path) => read_file(path)?,
            Source::Value(text) => text.clone(),
        };
        let trimmed = text.trim();
        if trimmed.is_empty() || !trimmed.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Error::config(format!(
                "the secret from {} is empty or has characters that no key has",
                self.origin()
            )));
        }
        Ok(Zeroizing::new(trimmed.to_owned()))
    }
}

fn from_environment(names: &[String]) -> Result<Zeroizing<String>> {
    let mut joined = Zeroizing::new(String::new());
    for (at, name) in names.iter().enumerate() {
        let Some(value) = crate::config::environment(name).map(Zeroizing::new) else {
            return Err(Error::config(format!(
                "environment variable {name} is not set; set it, or use a secret file"
            )));
        };
        if at > 0 {
            joined.push(':');
        }
        joined.push_str(value.trim());
    }
    Ok(joined)
}

fn read_file(path: &Path) -> Result<Zeroizing<String>> {
    std::fs::read_to_string(path)
        .map(Zeroizing::new)
        .map_err(|e| Error::config(format!("cannot read the secret file {}", path.display())).because(e))
}

/// The secrets of one process, by vendor and name, each loaded on first use.
#[derive(Clone, Debug, Default)]
pub struct Secrets {
    by_name: BTreeMap<(String, String), Secret>,
}

impl Secrets {
    /// Adds a vendor's secret under a name; the unnamed one is called `default`.
    pub fn insert(&mut self, vendor: &str, name: Option<&str>, secret: Secret) {
        self.by_name
            .insert((vendor.to_owned(), name.unwrap_or("default").to_owned()), secret);
    }

    /// Every secret with its vendor and name.
    pub(crate) fn into_entries(self) -> impl Iterator<Item = (String, String, Secret)> {
        self.by_name
            .into_iter()
            .map(|((vendor, name), secret)| (vendor, name, secret))
    }

    /// Whether a vendor has any secret.
    pub fn has(&self, vendor: &str) -> bool {
        self.by_name.keys().any(|(known, _)| known == vendor)
    }

    /// Vendor, name and origin of every secret.
    pub fn list(&self) -> Vec<(String, String, String)> {
        self.by_name
            .iter()
            .map(|((vendor, name), secret)| (vendor.clone(), name.clone(), secret.origin()))
            .collect()
    }

    /// Reads the secret that a policy names (`secret`), or the vendor's default.
    ///
    /// # Errors
    /// `Config` naming the vendor, the name, and what to set.
    pub fn load(&self, vendor: &str, name: Option<&str>) -> Result<Zeroizing<String>> {
        let key = (vendor.to_owned(), name.unwrap_or("default").to_owned());
        match self.by_name.get(&key) {
            Some(secret) => secret.load(),
            None => Err(Error::config(match name {
                Some(name) => {
                    format!("no secret named {name:?} for {vendor}; give it to Keybrake under that name")
                }
                None => format!(
                    "no secret for {vendor}; set {} or give it to Keybrake",
                    crate::config::secret_variables_in_words(vendor)
                ),
            })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_where_a_secret_is_and_never_what_it_is() {
        let secret = Secret::value("sk_live_veryprivate");
        assert_eq!(format!("{secret:?}"), "Secret(value)");
        assert_eq!(secret.load().unwrap().as_str(), "sk_live_veryprivate");
    }

    #[test]
    fn a_missing_secret_says_what_to_set() {
        let error = Secrets::default().load("stripe", None).unwrap_err();
        assert!(error.to_string().contains("STRIPE_SECRET_KEY"), "{error}");
    }
}
