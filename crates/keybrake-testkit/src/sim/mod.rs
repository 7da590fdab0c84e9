//! A deterministic simulation of a fleet: processes that are killed, frozen and cut off, with the real engine and Stripe
//! module, on the real Redis ledger and its real functions, against the simulator of Stripe's API, whose journal is the
//! truth. Everything left to chance comes from one seed.
//!
//! | file | what it is |
//! | --- | --- |
//! | `plan`, `intents` | what a seed makes of a run: who is there, what they want to spend, the ledger and its keys |
//! | `run` | one run: what goes wrong, and how it ends |
//! | `world` | time, the books, the trace |
//! | `server`, `store`, `lua` | the Redis server and the network to it, its data, its functions |
//! | `process`, `client` | a process, and governed calls in it |
//! | `vendor` | the way to Stripe's simulator: refusals, late and broken answers |
//! | `shadow` | a real Redis server that is asked the same, to compare the imitation with |
//! | `alone` | one server that nothing goes wrong with, in a time that a test sets |
//! | `books` | what must be true after every step |
//! | `owed` | what live processes must have said again before they go on |
//! | `mutants`, `broken` | broken ledgers that must be caught |
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
mod broken;
mod client;
mod intents;
mod lua;
mod mutants;
mod owed;
mod plan;
mod process;
mod rng;
mod run;
mod server;
mod shadow;
pub mod store;
mod vendor;
mod world;

const MASTER: &[u8] = b"a master key of the simulation!!";

pub use alone::{Alone, Asked};
pub use mutants::Mutant;
pub use run::{Options, Outcome, run, run_beside};
