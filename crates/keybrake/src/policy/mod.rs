//! What may be spent: the policy document, its compiled form, and the verdicts.

pub mod verdict;

pub use verdict::{BudgetView, Code, Denial, ExistingCall, StopView};
