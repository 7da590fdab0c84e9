//! What may be spent: the policy document, its compiled form, and the verdicts.
//!
//! Read in this order: `file` (text to [`Policy`]) → `document` (its fields) → `compile` (a [`Policy`] and a
//! [`Catalogue`] become a [`CompiledPolicy`]) → `compiled` (what the engine asks, call by call). `endpoint`,
//! `rule`, `caps` and `narrow` hold one subject each; `words` is what a model reads after a refusal.

mod amounts;
pub mod budget;
mod caps;
pub mod catalogue;
mod compile;
mod compiled;
mod document;
mod endpoint;
mod explain;
mod file;
mod lines;
mod narrow;
mod options;
mod reader;
mod rule;
mod schema;
mod source;
#[cfg(test)]
mod tests;
pub mod verdict;
pub mod window;
pub mod words;

pub use budget::{BudgetDef, BudgetId, BudgetRef, OnRepeat, Scope, Unit, Window, WindowKind};
pub use catalogue::{Catalogue, OperationInfo};
pub use compile::{Binding, lineage};
pub use compiled::{CompiledPolicy, Lifetime, OperationCost};
pub use explain::{Explanation, Question, Step};
pub use file::Policy;
pub use options::{CallerKeys, CountIntents, Idempotency, UnknownCost};
pub use reader::validate_id;
pub use rule::Stage;
pub use schema::schema;
pub use verdict::{BudgetView, Code, Denial, ExistingCall, StopView};
