//! Test kit: the vendor simulator, the ledger conformance suite, and the vectors that every language reads.

pub mod conformance;
pub mod stripe;

pub use stripe::{Simulator, SimulatorOptions, simulate};
