//! The JSON Schema of the document, for editors and for `keybrake policy schema`.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::Value;

use super::amounts::Dollars;
use super::document::Document;
use super::lines::{CostLine, RuleLine};

/// The JSON Schema (draft 2020-12) of a policy document.
///
/// The schema says which fields there are and what each may hold; what only the whole can tell (a budget given
/// twice, an unknown operation) is said by [`CompiledPolicy::compile`](super::CompiledPolicy::compile).
pub fn schema() -> Value {
    let mut schema = schemars::schema_for!(Document).to_value();
    without_null(&mut schema);
    if let Some(object) = schema.as_object_mut() {
        object.insert("title".into(), "Keybrake policy".into());
        object.insert(
            "description".into(),
            "What a vault key may do, and how much it may spend.".into(),
        );
    }
    schema
}

/// A field that is not there is left out, never null; schemars lets every optional field be null.
fn without_null(schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(without_null),
        Value::Object(keywords) => {
            if keywords.get("default").is_some_and(Value::is_null) {
                keywords.remove("default");
            }
            if let Some(Value::Array(types)) = keywords.get_mut("type") {
                types.retain(|name| name != "null");
                if let [only] = types.as_slice() {
                    let only = only.clone();
                    keywords.insert("type".into(), only);
                }
            }
            if let Some(Value::Array(forms)) = keywords.get_mut("anyOf") {
                forms.retain(|form| form.get("type").is_none_or(|name| name != "null"));
            }
            if let Some(Value::Array(words)) = keywords.get_mut("enum") {
                words.retain(|word| !word.is_null());
            }
            keywords.values_mut().for_each(without_null);
        }
        _ => {}
    }
}

/// By operation, or by vendor and then by operation: an operation's name has a dot, a space or a star, a vendor's
/// has none of them.
fn by_operation(of_operation: &Schema) -> Schema {
    json_schema!({"anyOf": [
        {"type": "object", "propertyNames": {"pattern": r"[ ./*]"}, "additionalProperties": of_operation},
        {"type": "object", "propertyNames": {"pattern": r"^[^ ./*]+$"},
         "additionalProperties": {"type": "object", "additionalProperties": of_operation}},
    ]})
}

pub(super) fn params(generator: &mut SchemaGenerator) -> Schema {
    let rule = generator.subschema_for::<RuleLine>();
    by_operation(&json_schema!({"type": "object", "additionalProperties": rule}))
}

pub(super) fn costs(generator: &mut SchemaGenerator) -> Schema {
    by_operation(&generator.subschema_for::<CostLine>())
}

pub(super) fn version(_generator: &mut SchemaGenerator) -> Schema {
    json_schema!({"enum": [1, "1"]})
}

pub(super) fn count(_generator: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "integer", "minimum": 0})
}

pub(super) fn cap_status(_generator: &mut SchemaGenerator) -> Schema {
    json_schema!({"enum": [429, 403, "429", "403"]})
}

pub(super) fn scalar(_generator: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": ["string", "number", "boolean"]})
}

pub(super) fn scalars(_generator: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "items": {"type": ["string", "number", "boolean"]}, "minItems": 1})
}

pub(super) fn decimal(_generator: &mut SchemaGenerator) -> Schema {
    json_schema!({"anyOf": [{"type": "number"}, {"type": "string", "pattern": r"^-?\d+(\.\d{1,6})?$"}]})
}

/// The two ways to write a cost.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
pub(super) enum CostForms {
    /// The most that it costs.
    Amount(Dollars),
    /// The most that it costs.
    Object(CostObject),
}

/// The most that an operation costs.
#[derive(JsonSchema)]
#[schemars(rename = "CostCeiling", deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
pub(super) struct CostObject {
    /// US dollars.
    max: Dollars,
}

/// The two ways to name a group.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
pub(super) enum GroupForms {
    /// Its name; it must have a budget.
    Name(String),
    /// Its name and how it is used.
    Object(GroupObject),
}

/// A group and how it is used.
#[derive(JsonSchema)]
#[schemars(rename = "GroupUse", deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
pub(super) struct GroupObject {
    /// Its name.
    name: String,
    /// Whether it may be without a budget.
    #[schemars(default)]
    attribution_only: bool,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::policy::document::FIELDS;

    #[test]
    fn the_schema_names_every_field_and_says_what_each_is() {
        let schema = schema();
        let properties = schema["properties"].as_object().unwrap();
        let named: BTreeSet<_> = properties.keys().map(String::as_str).collect();
        assert_eq!(named, FIELDS.into_iter().collect::<BTreeSet<_>>());
        for (name, part) in properties {
            assert!(
                part["description"].as_str().is_some_and(|text| text.len() > 10),
                "{name}: {part}"
            );
        }
        assert_eq!(schema["additionalProperties"], false);
    }

    #[test]
    fn nothing_may_be_null() {
        let text = schema().to_string();
        assert!(!text.contains("null"), "{text}");
    }
}
