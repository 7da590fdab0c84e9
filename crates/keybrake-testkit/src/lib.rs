//! Test kit: the vendor simulator, the ledger conformance suite, private Redis and PostgreSQL servers, and the vectors that every
//! language reads.

pub mod conformance;
pub mod postgres;
pub mod redis;
#[cfg(feature = "sim")]
pub mod sim;
pub mod stripe;

pub use stripe::{Simulator, SimulatorOptions, simulate};

/// The examples of the guide, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/simulator.md")]
pub struct Guide;
