//! The scenarios that shaped the reservation, by number, as far as they are the ledger's to decide.

mod calls;
mod keys;
mod late;
mod objects;
mod reassert;

pub use calls::*;
pub use keys::*;
pub use late::*;
pub use objects::*;
pub use reassert::*;
