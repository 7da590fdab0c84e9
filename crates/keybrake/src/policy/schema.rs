//! The JSON Schema of the document, for editors and for `keybrake policy schema`.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::Value;

use super::amounts::Dollars;
use super::document::Document;

/// The JSON Schema (draft 2020-12) of a policy document.
///
/// The schema says which fields there are and what each may hold; what only the whole can tell (a budget given
/// twice, an unknown operation) is said by [`CompiledPolicy::compile`](super::CompiledPolicy::compile).
pub fn schema() -> Value {
    let mut schema = schemars::schema_for!(Document).to_value();
    if let Some(object) = schema.as_object_mut() {
        object.insert("title".into(), "Keybrake policy".into());
        object.insert(
            "description".into(),
            "What a vault key may do, and how much it may spend.".into(),
        );
    }
    schema
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
