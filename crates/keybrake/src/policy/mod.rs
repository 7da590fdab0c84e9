//! What may be spent: the policy document, its compiled form, and the verdicts.

pub mod budget;
pub mod catalogue;
pub mod verdict;

pub use budget::{BudgetDef, BudgetId, BudgetRef, OnRepeat, Scope, Unit, Window, WindowKind};
pub use catalogue::{Catalogue, OperationInfo};
pub use verdict::{BudgetView, Code, Denial, ExistingCall, StopView};
