//! [`Policy`]: a policy document read from text, a file or a value, and written back in its canonical form.

use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::amounts::shown;
use super::document::Document;
use super::source;
use crate::error::{Error, ErrorKind, Result};

/// A policy document: what a key may do and how much it may spend. Portable JSON, YAML or TOML.
///
/// Reading checks every field by itself; [`CompiledPolicy::compile`](super::CompiledPolicy::compile) checks the
/// whole against the vendors that there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    pub(crate) document: Document,
}

impl Policy {
    /// The run that the document fixes (`agent_run_id`), if any.
    pub fn run(&self) -> Option<&str> {
        self.document.agent_run_id.as_deref()
    }

    /// Reads JSON.
    ///
    /// # Errors
    /// `Policy` for anything that is not a policy: the message names the field, the place and the nearest valid
    /// name. The same holds for the other readers.
    pub fn from_json(text: &str) -> Result<Self> {
        Self::from_value(&source::json(text)?)
    }

    /// Reads YAML (one document, no merge keys).
    pub fn from_yaml(text: &str) -> Result<Self> {
        Self::from_value(&source::yaml(text)?)
    }

    /// Reads TOML.
    pub fn from_toml(text: &str) -> Result<Self> {
        Self::from_value(&source::toml(text)?)
    }

    /// Reads a file by its ending: `.json`, `.yaml`, `.yml` or `.toml`.
    ///
    /// # Errors
    /// `NotFound` when there is no such file, `Config` when it cannot be read, `Policy` when it is not a policy;
    /// each names the file.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let name = path.display();
        let text = std::fs::read_to_string(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::not_found(format!("no policy file {name}")),
            _ => Error::config(format!("cannot read policy file {name}")).because(e),
        })?;
        let read = match path.extension().and_then(|ending| ending.to_str()) {
            Some("json") => Self::from_json(&text),
            Some("yaml" | "yml") => Self::from_yaml(&text),
            Some("toml") => Self::from_toml(&text),
            _ => {
                return Err(Error::policy(format!(
                    "{name}: a policy file ends in .json, .yaml, .yml or .toml"
                )));
            }
        };
        read.map_err(|e| Error::new(ErrorKind::Policy, format!("{name}: {}", e.message())))
    }

    /// Reads a value, such as one that came from another language.
    pub fn from_value(value: &Value) -> Result<Self> {
        if !value.is_object() {
            return Err(Error::policy(format!(
                "the policy must be an object, not {}",
                shown(value)
            )));
        }
        source::depth(value, source::MAX_DEPTH)?;
        source::no_secrets(value, "")?;
        let document = Document::read(value, "")?;
        super::narrow::check_all(&document)?;
        Ok(Self { document })
    }

    /// The policy in canonical form: amounts as decimal text, times in UTC, narrowings in `narrowed`. Reading it
    /// again gives the same policy.
    pub fn to_value(&self) -> Value {
        serde_json::to_value(&self.document).unwrap_or(Value::Null)
    }

    /// [`to_value`](Self::to_value) as JSON text.
    pub fn to_json(&self) -> String {
        self.to_value().to_string()
    }
}

impl Serialize for Policy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.document.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Policy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        Self::from_value(&value).map_err(serde::de::Error::custom)
    }
}
