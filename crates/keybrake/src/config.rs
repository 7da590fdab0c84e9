//! The one place that reads the environment: ledger, secrets, base URLs.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::secret::{Secret, Secrets};

/// An environment variable that is set and not empty.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the place that reads the environment"
)]
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The usual names of a vendor's secret, in the order they are tried. Where a secret has several parts, a group of names:
/// their values with `:` between them are the secret.
pub fn secret_variables(vendor: &str) -> &'static [&'static [&'static str]] {
    match vendor {
        "resend" => &[&["RESEND_API_KEY"]],
        "stripe" => &[&["STRIPE_SECRET_KEY"], &["STRIPE_API_KEY"]],
        "twilio" => &[
            &["TWILIO_ACCOUNT_SID", "TWILIO_API_KEY", "TWILIO_API_SECRET"],
            &["TWILIO_ACCOUNT_SID", "TWILIO_AUTH_TOKEN"],
        ],
        _ => &[],
    }
}

/// The same in words: `STRIPE_SECRET_KEY or STRIPE_API_KEY`.
pub fn secret_variables_in_words(vendor: &str) -> String {
    let groups = secret_variables(vendor).iter().map(|names| names.join(" with "));
    groups.collect::<Vec<_>>().join(" or ")
}

/// The first group of a vendor's usual names that is set, every name of it.
pub fn secret_variables_set(vendor: &str) -> Option<&'static [&'static str]> {
    let all_set = |names: &&&[&str]| names.iter().all(|name| environment(name).is_some());
    secret_variables(vendor).iter().find(all_set).copied()
}

/// The secrets that the environment holds under the vendors' usual names.
pub fn secrets_from_environment() -> Secrets {
    let mut secrets = Secrets::default();
    for vendor in crate::vendors::vendors() {
        if let Some(names) = secret_variables_set(vendor.name()) {
            secrets.insert(vendor.name(), None, Secret::env_parts(names));
        }
    }
    secrets
}

/// The master key of a fleet: `KEYBRAKE_MASTER_KEY`, or the content of the file that `KEYBRAKE_MASTER_KEY_FILE` names.
///
/// # Errors
/// `Config` when the file cannot be read, or the key is shorter than 32 characters.
pub fn master_key() -> Result<Option<zeroize::Zeroizing<Vec<u8>>>> {
    const LEAST: usize = 32;
    let key = match (
        environment("KEYBRAKE_MASTER_KEY"),
        environment("KEYBRAKE_MASTER_KEY_FILE"),
    ) {
        (Some(key), _) => zeroize::Zeroizing::new(key.into_bytes()),
        (None, Some(path)) => {
            let read = std::fs::read(&path);
            zeroize::Zeroizing::new(
                read.map_err(|e| Error::config(format!("cannot read the master key in {path}")).because(e))?,
            )
        }
        (None, None) => return Ok(None),
    };
    let trimmed = key.trim_ascii();
    if trimmed.len() < LEAST {
        return Err(Error::config(
            "the master key is shorter than 32 characters: `openssl rand -hex 32` makes a good one",
        ));
    }
    if trimmed.contains(&b',') {
        return Err(Error::config(
            "a master key cannot be rotated yet: KEYBRAKE_MASTER_KEY must be one key, without a comma",
        ));
    }
    Ok(Some(zeroize::Zeroizing::new(trimmed.to_vec())))
}

/// The base URL that `KEYBRAKE_BASE_URL_<VENDOR>` names, for loopback simulators only (checked by the engine).
pub fn base_url(vendor: &str) -> Option<String> {
    environment(&format!("KEYBRAKE_BASE_URL_{}", vendor.to_ascii_uppercase()))
}

/// The ledger to use: the argument, `KEYBRAKE_LEDGER`, the named `keybrake.toml` (`KEYBRAKE_CONFIG`), else a
/// `SQLite` file in the user's data directory, which only a workstation gets.
///
/// # Errors
/// `Config` in a container, on serverless or in CI, where a local file would give every replica its own cap;
/// the message says what to set.
pub fn ledger_url(argument: Option<&str>) -> Result<String> {
    if let Some(url) = argument {
        return Ok(url.to_owned());
    }
    if let Some(url) = environment("KEYBRAKE_LEDGER") {
        return Ok(url);
    }
    if let Some(path) = environment("KEYBRAKE_CONFIG")
        && let Some(url) = ledger_of_file(Path::new(&path))?
    {
        return Ok(url);
    }
    if let Some(place) = not_a_workstation() {
        return Err(Error::config(format!(
            "no ledger is configured, and this is {place}, where a local file would give every replica its own \
             cap. Set KEYBRAKE_LEDGER, for example sqlite:/var/lib/keybrake/spend.db on one machine"
        )));
    }
    default_file().map(|path| format!("sqlite:{}", path.display()))
}

/// The `ledger` setting of a configuration file; nothing else in it is read here.
///
/// # Errors
/// `Config` when the file cannot be read or is not TOML.
pub fn ledger_of_file(path: &Path) -> Result<Option<String>> {
    url_of_file(path, "ledger")
}

/// The archive to read and to drain to: `KEYBRAKE_ARCHIVE`, else `archive` in the named `keybrake.toml`
/// (`KEYBRAKE_CONFIG`).
///
/// # Errors
/// `Config` when the file cannot be read or is not TOML.
pub fn archive_url() -> Result<Option<String>> {
    if let Some(url) = environment("KEYBRAKE_ARCHIVE") {
        return Ok(Some(url));
    }
    match environment("KEYBRAKE_CONFIG") {
        Some(path) => url_of_file(Path::new(&path), "archive"),
        None => Ok(None),
    }
}

/// The `ledger` or the `archive` of a configuration file.
///
/// # Errors
/// `Config` when the file cannot be read or is not TOML.
pub fn url_of_file(path: &Path, name: &str) -> Result<Option<String>> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Error::config(format!("cannot read the configuration {}", path.display())).because(e))?;
    let table: toml::Table = toml::from_str(&text)
        .map_err(|e| Error::config(format!("{} is not valid TOML", path.display())).because(e))?;
    match table.get(name) {
        None => Ok(None),
        Some(toml::Value::String(url)) => Ok(Some(url.clone())),
        Some(_) => Err(Error::config(format!(
            "`{name}` in {} must be a text, such as \"sqlite:spend.db\"",
            path.display()
        ))),
    }
}

/// Where outcomes wait for a ledger that cannot take them: `KEYBRAKE_JOURNAL_DIR`, else in the user's data directory;
/// `None` when there is neither.
pub fn journal_dir() -> Option<PathBuf> {
    environment("KEYBRAKE_JOURNAL_DIR")
        .map(PathBuf::from)
        .or_else(|| data_dir().map(|data| data.join("journal")))
}

fn default_file() -> Result<PathBuf> {
    data_dir()
        .map(|data| data.join("ledger.db"))
        .ok_or_else(|| Error::config("there is no home directory for a ledger; set KEYBRAKE_LEDGER"))
}

fn data_dir() -> Option<PathBuf> {
    environment("XDG_DATA_HOME")
        .map(PathBuf::from)
        .or_else(|| environment("HOME").map(|home| Path::new(&home).join(".local/share")))
        .map(|data| data.join("keybrake"))
}

/// What kind of place this is, if it is one where a local file is not a shared ledger.
pub fn not_a_workstation() -> Option<&'static str> {
    const BY_VARIABLE: [(&str, &str); 9] = [
        ("KUBERNETES_SERVICE_HOST", "a Kubernetes pod"),
        ("AWS_LAMBDA_FUNCTION_NAME", "AWS Lambda"),
        ("VERCEL", "Vercel"),
        ("NETLIFY", "Netlify"),
        ("K_SERVICE", "Cloud Run"),
        ("FUNCTION_TARGET", "Cloud Functions"),
        ("DYNO", "a Heroku dyno"),
        ("FLY_APP_NAME", "a Fly machine"),
        ("CI", "a CI run"),
    ];
    let by_file = [
        ("/.dockerenv", "a container"),
        ("/run/.containerenv", "a container"),
    ];
    let file = by_file
        .iter()
        .find(|(path, _)| Path::new(path).exists())
        .map(|(_, place)| *place);
    file.or_else(|| {
        BY_VARIABLE
            .iter()
            .find(|(name, _)| environment(name).is_some())
            .map(|(_, place)| *place)
    })
}
