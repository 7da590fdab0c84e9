//! Text to values: JSON, YAML and TOML read into one `serde_json::Value`, with what a lenient reader would
//! repair refused: a key that stands twice, NaN and infinities, more than one document, deep nesting.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::error::{Error, Result};

/// A policy text may have at most this many bytes.
pub(crate) const MAX_BYTES: usize = 1 << 20;
/// Values may be nested at most this deep.
pub(crate) const MAX_DEPTH: usize = 32;

/// Reads JSON.
pub(crate) fn json(text: &str) -> Result<Value> {
    size(text)?;
    let mut reader = serde_json::Deserializer::from_str(text);
    let value = Strict::deserialize(&mut reader)
        .and_then(|value| reader.end().map(|()| value.0))
        .map_err(|e| Error::policy(format!("policy is not valid JSON: {e}")))?;
    depth(&value, MAX_DEPTH)?;
    Ok(value)
}

/// Reads YAML: one document, no duplicate keys, no merge keys, booleans only as `true` and `false`.
pub(crate) fn yaml(text: &str) -> Result<Value> {
    size(text)?;
    let options = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::Error,
        merge_keys: serde_saphyr::MergeKeyPolicy::Error,
        strict_booleans: true,
        // YAML 1.1 reads 010 as eight and 1_000 as a thousand, YAML 1.2 reads neither so: both stay text.
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        with_snippet: false,
    };
    let value = serde_saphyr::from_str_with_options::<Strict>(text, options)
        .map_err(|e| Error::policy(format!("policy is not valid YAML: {e}")))?
        .0;
    depth(&value, MAX_DEPTH)?;
    Ok(value)
}

/// Reads TOML. Its date-times become text, as the other formats write them.
pub(crate) fn toml(text: &str) -> Result<Value> {
    size(text)?;
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| {
        // Not the error's own text, which repeats the line.
        let before = e
            .span()
            .and_then(|span| text.get(..span.start))
            .unwrap_or_default();
        let line = before.matches('\n').count().saturating_add(1);
        Error::policy(format!(
            "policy is not valid TOML: {} at line {line}",
            e.message().trim_end()
        ))
    })?;
    let value = from_toml(toml::Value::Table(table), "policy")?;
    depth(&value, MAX_DEPTH)?;
    Ok(value)
}

fn size(text: &str) -> Result<()> {
    if text.len() > MAX_BYTES {
        return Err(Error::policy(format!(
            "policy has {} bytes; at most {MAX_BYTES} are read",
            text.len()
        )));
    }
    Ok(())
}

/// Refuses what is nested deeper than `left` levels.
pub(crate) fn depth(value: &Value, left: usize) -> Result<()> {
    let Some(left) = left.checked_sub(1) else {
        return Err(Error::policy(format!(
            "policy is nested deeper than {MAX_DEPTH} levels"
        )));
    };
    match value {
        Value::Array(items) => items.iter().try_for_each(|item| depth(item, left)),
        Value::Object(map) => map.values().try_for_each(|item| depth(item, left)),
        _ => Ok(()),
    }
}

/// How secrets of the vendors, and vault keys, begin.
const SECRET_MARKS: [&str; 7] = [
    "sk_live_",
    "sk_test_",
    "rk_live_",
    "rk_test_",
    "whsec_",
    "vault_key_",
    "Bearer ",
];

/// Refuses a document that holds something like a secret, before any error can repeat it: policies are kept in the
/// ledger and shown to people.
pub(crate) fn no_secrets(value: &Value, place: &str) -> Result<()> {
    let refuse = |text: &str, place: &str| match SECRET_MARKS.iter().find(|mark| text.contains(*mark)) {
        Some(mark) => Err(Error::policy(format!(
            "{} holds what looks like a secret (`{}…`); a policy names secrets, it never holds them",
            if place.is_empty() {
                "the policy".to_owned()
            } else {
                format!("`{place}`")
            },
            mark.trim_end(),
        ))),
        None => Ok(()),
    };
    match value {
        Value::String(text) => refuse(text, place),
        Value::Array(items) => items.iter().try_for_each(|item| no_secrets(item, place)),
        Value::Object(map) => map.iter().try_for_each(|(name, item)| {
            refuse(name, place)?;
            no_secrets(item, &super::caps::at(place, name))
        }),
        _ => Ok(()),
    }
}

fn from_toml(value: toml::Value, place: &str) -> Result<Value> {
    Ok(match value {
        toml::Value::String(text) => Value::String(text),
        toml::Value::Integer(number) => Value::from(number),
        toml::Value::Boolean(flag) => Value::Bool(flag),
        toml::Value::Datetime(time) => Value::String(time.to_string()),
        toml::Value::Float(number) => Number::from_f64(number)
            .map(Value::Number)
            .ok_or_else(|| Error::policy(format!("`{place}` is {number}; write a number")))?,
        toml::Value::Array(items) => Value::Array(
            items
                .into_iter()
                .map(|item| from_toml(item, place))
                .collect::<Result<_>>()?,
        ),
        toml::Value::Table(table) => Value::Object(
            table
                .into_iter()
                .map(|(key, item)| from_toml(item, &key).map(|item| (key, item)))
                .collect::<Result<Map<_, _>>>()?,
        ),
    })
}

/// A value read with duplicate keys and non-finite numbers refused (`serde_json` alone keeps the last of two
/// equal keys, and reads NaN as null).
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Value, E> {
        Ok(Value::Bool(flag))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(Value::from(number))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(Value::from(number))
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Value, E> {
        Number::from_f64(number)
            .map(Value::Number)
            .ok_or_else(|| E::custom(format!("{number} is not a number")))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::String(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(Value::String(text))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(Self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Strict(item)) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if fields.contains_key(&key) {
                return Err(A::Error::custom(format!("`{key}` stands twice")));
            }
            let Strict(value) = map.next_value()?;
            fields.insert(key, value);
        }
        Ok(Value::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn three_formats_read_alike() {
        let expected = json!({"vendor": "stripe", "daily_usd_cap": 0.1, "expires_at": "2026-12-31T23:59:59Z",
            "allowed_endpoints": ["reads"], "metadata": {"a": true}});
        assert_eq!(json(&expected.to_string()).unwrap(), expected);
        let y = "vendor: stripe\ndaily_usd_cap: 0.1\nexpires_at: 2026-12-31T23:59:59Z\nallowed_endpoints: [reads]\nmetadata: {a: true}\n";
        assert_eq!(yaml(y).unwrap(), expected);
        let t = "vendor = 'stripe'\ndaily_usd_cap = 0.1\nexpires_at = 2026-12-31T23:59:59Z\nallowed_endpoints = ['reads']\nmetadata = {a = true}\n";
        assert_eq!(toml(t).unwrap(), expected);
    }

    #[test]
    fn a_key_that_stands_twice_is_refused_in_each_format() {
        let twice = [
            json(r#"{"daily_usd_cap": 1, "daily_usd_cap": 2}"#),
            json(r#"{"metadata": {"a": 1, "\u0061": 2}}"#),
            yaml("daily_usd_cap: 1\ndaily_usd_cap: 2\n"),
            yaml("metadata:\n  a: 1\n  \"a\": 2\n"),
            toml("daily_usd_cap = 1\ndaily_usd_cap = 2\n"),
        ];
        for answer in twice {
            answer.unwrap_err();
        }
    }

    #[test]
    fn what_a_lenient_reader_would_repair_is_refused() {
        let deep = format!("{}{}", "[".repeat(40), "]".repeat(40));
        let refused = [
            json(r#"{"daily_usd_cap": NaN}"#),
            json(r#"{"daily_usd_cap": 1e999}"#),
            json("{} {}"),
            json(&deep),
            yaml("daily_usd_cap: .nan\n"),
            yaml("daily_usd_cap: .inf\n"),
            yaml("a: 1\n---\na: 2\n"),
            yaml("base: &b {a: 1}\nc: {<<: *b}\n"),
            toml("daily_usd_cap = nan\n"),
            toml("daily_usd_cap = inf\n"),
            json(&" ".repeat(MAX_BYTES + 1)),
        ];
        for (index, answer) in refused.into_iter().enumerate() {
            assert!(answer.is_err(), "case {index} was read as {answer:?}");
        }
    }
}
