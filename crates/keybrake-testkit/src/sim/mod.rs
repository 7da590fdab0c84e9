//! A deterministic simulation of a fleet: processes that are killed, frozen and cut off, on the real Redis ledger and its
//! real functions, with a vendor whose journal is the truth. Everything left to chance comes from one seed.
//!
//! | file | what it is |
//! | --- | --- |
//! | `run` | one run: who is there, what goes wrong, how it ends |
//! | `world` | the server, the network, the vendor's side of it |
//! | `store`, `lua` | a Redis server's data, and its functions |
//! | `process`, `client` | a process, and a governed call in it |
//! | `vendor` | idempotency keys, declines, late and broken answers, the journal |
//! | `alone` | one server that nothing goes wrong with, in a time that a test sets |
//! | `books` | what must be true after every step |
//! | `owed` | what live processes must have said again before they go on |
//! | `mutants` | broken ledgers that must be caught |
#![expect(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_wrap,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a simulation fails by panicking, like any test"
)]

mod alone;
mod books;
mod client;
mod lua;
mod mutants;
mod owed;
mod process;
mod rng;
mod run;
pub mod store;
mod vendor;
mod world;

pub use alone::{Alone, Asked};
pub use mutants::Mutant;
pub use run::{Options, Outcome, run};
