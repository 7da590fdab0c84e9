//! Reading an object field by field, so that every error names the field, the place and the nearest valid name.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::amounts::shown;
use crate::error::{Error, Result};

/// An object whose fields are all known by name.
pub(crate) struct Fields<'a> {
    place: &'a str,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// Takes an object and refuses fields that are not in `known`, and nulls. `place` is empty for the policy
    /// itself.
    pub(crate) fn new(value: &'a Value, place: &'a str, known: &[&str]) -> Result<Self> {
        let Value::Object(map) = value else {
            let what = if place.is_empty() {
                "the policy".to_owned()
            } else {
                format!("`{place}`")
            };
            return Err(Error::policy(format!(
                "{what} must be an object, not {}",
                shown(value)
            )));
        };
        let fields = Self { place, map };
        for (name, value) in map {
            if !known.contains(&name.as_str()) {
                let whose = if place.is_empty() {
                    "the policy".to_owned()
                } else {
                    format!("`{place}`")
                };
                return Err(Error::policy(format!(
                    "`{}` is not a field of {whose}{}",
                    clip(name),
                    did_you_mean(name, known.iter().copied())
                )));
            }
            if value.is_null() {
                return Err(Error::policy(format!(
                    "`{}` is null; give it a value or remove it",
                    fields.at(name)
                )));
            }
        }
        Ok(fields)
    }

    /// Where a field stands, such as `budgets[1].per`.
    pub(crate) fn at(&self, name: &str) -> String {
        if self.place.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.place)
        }
    }

    /// A field read by `read`, if it is there.
    pub(crate) fn read<T>(&self, name: &str, read: impl Fn(&Value, &str) -> Result<T>) -> Result<Option<T>> {
        self.map
            .get(name)
            .map(|value| read(value, &self.at(name)))
            .transpose()
    }

    /// Whether a field is there.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }
}

/// `; did you mean `x`?` with the nearest of the valid names.
pub(crate) fn did_you_mean<'n>(name: &str, valid: impl Iterator<Item = &'n str>) -> String {
    nearest(name, valid).map_or_else(String::new, |near| format!("; did you mean `{near}`?"))
}

/// The most similar of the valid names.
pub(crate) fn nearest<'n>(name: &str, valid: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let name = clip(name).to_lowercase();
    let likeness = |candidate: &str| {
        // One finds swapped letters in short names, the other a common beginning of long ones.
        let letters = strsim::normalized_damerau_levenshtein(&name, candidate);
        letters.max(strsim::jaro_winkler(&name, candidate))
    };
    valid
        .map(|candidate| (likeness(&candidate.to_lowercase()), candidate))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

fn clip(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(60).collect()
}

/// A text that is not empty.
pub(crate) fn text(value: &Value, place: &str) -> Result<String> {
    match value.as_str() {
        Some(text) if !text.is_empty() && !text.chars().any(char::is_control) && text.len() <= 512 => {
            Ok(text.to_owned())
        }
        Some("") => Err(Error::policy(format!(
            "`{place}` is empty; give it a value or remove it"
        ))),
        Some(_) => Err(Error::policy(format!(
            "`{place}` is longer than 512 bytes or has control characters"
        ))),
        None => Err(Error::policy(format!(
            "`{place}` must be a text, not {}",
            shown(value)
        ))),
    }
}

/// `true` or `false`.
pub(crate) fn flag(value: &Value, place: &str) -> Result<bool> {
    value
        .as_bool()
        .ok_or_else(|| Error::policy(format!("`{place}` must be true or false, not {}", shown(value))))
}

/// A whole number, zero or more.
pub(crate) fn count(value: &Value, place: &str) -> Result<i64> {
    value.as_i64().filter(|n| *n >= 0).ok_or_else(|| {
        Error::policy(format!(
            "`{place}` must be a whole number of zero or more, not {}",
            shown(value)
        ))
    })
}

/// One of a closed list of words.
pub(crate) fn choice<T: Copy>(value: &Value, place: &str, options: &[(&str, T)]) -> Result<T> {
    let word = super::amounts::decimal_text(value).unwrap_or_default();
    options
        .iter()
        .find(|(name, _)| *name == word)
        .map(|(_, option)| *option)
        .ok_or_else(|| {
            let names: Vec<_> = options.iter().map(|(name, _)| format!("`{name}`")).collect();
            Error::policy(format!(
                "`{place}` is {}; it must be {}",
                shown(value),
                names.join(" or ")
            ))
        })
}

/// A list, item by item.
pub(crate) fn list<T>(
    value: &Value,
    place: &str,
    read: impl Fn(&Value, &str) -> Result<T>,
) -> Result<Vec<T>> {
    let items = value
        .as_array()
        .ok_or_else(|| Error::policy(format!("`{place}` must be a list, not {}", shown(value))))?;
    if items.len() > 1_000 {
        return Err(Error::policy(format!(
            "`{place}` has {} items; at most 1000 are read",
            items.len()
        )));
    }
    items
        .iter()
        .enumerate()
        .map(|(index, item)| read(item, &format!("{place}[{index}]")))
        .collect()
}

/// A list of texts.
pub(crate) fn texts(value: &Value, place: &str) -> Result<Vec<String>> {
    list(value, place, text)
}

/// An object with free keys.
pub(crate) fn map<T>(
    value: &Value,
    place: &str,
    read: impl Fn(&Value, &str) -> Result<T>,
) -> Result<BTreeMap<String, T>> {
    let object = value
        .as_object()
        .ok_or_else(|| Error::policy(format!("`{place}` must be an object, not {}", shown(value))))?;
    if object.len() > 1_000 {
        return Err(Error::policy(format!(
            "`{place}` has {} fields; at most 1000 are read",
            object.len()
        )));
    }
    object
        .iter()
        .map(|(key, item)| {
            let place = format!("{place}.{}", clip(key));
            if item.is_null() {
                return Err(Error::policy(format!(
                    "`{place}` is null; give it a value or remove it"
                )));
            }
            Ok((key.clone(), read(item, &place)?))
        })
        .collect()
}

/// What an id names, for the message when it is not one.
const ID_RULE: &str = "1 to 128 letters, digits and `_ . : -`";

/// Checks an id that will stand in ledger keys: a run, agent, label, group, or key. `kind` names it in the error.
///
/// # Errors
/// `Policy` unless the id is 1 to 128 of `A-Z a-z 0-9 _ . : -`. A run may not contain `::`, which joins a run
/// and a step in derived keys; a group may not be called like a scope (`lineage`, `run`, `customer`).
pub fn validate_id(kind: &str, id: &str) -> Result<()> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.:-".contains(&b);
    if id.is_empty() || id.len() > 128 || !id.bytes().all(plain) {
        return Err(Error::policy(format!(
            "{kind} {:?} is not an id: write {ID_RULE}",
            clip(id)
        )));
    }
    if kind == "run" && id.contains("::") {
        return Err(Error::policy(format!(
            "run {id:?} contains `::`, which stands between a run and a step; use one colon or another separator"
        )));
    }
    if kind == "group" && ["lineage", "run", "customer"].contains(&id) {
        return Err(Error::policy(format!(
            "group {id:?} has the name of a scope; call it something else"
        )));
    }
    Ok(())
}
