//! The sixteen invariants of the ledger's contract, by number.

mod books;
mod keys;
mod log;
mod time;

pub use books::*;
pub use keys::*;
pub use log::*;
pub(super) use time::fastest;
pub use time::*;
