//! Test kit: the vendor simulator, the ledger conformance suite, private Redis and PostgreSQL servers, and the vectors that every
//! language reads.

mod around;
pub mod conformance;
mod objects;
pub mod postgres;
pub mod redis;
pub mod resend;
#[cfg(feature = "sim")]
pub mod sim;
pub mod stripe;
pub mod twilio;
mod vendors;

pub use around::{Around, Wrapped};
pub use stripe::{Simulator, SimulatorOptions, simulate};
pub use vendors::{Sent, SentKind, SimulatedVendor};

/// The examples of the guide, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/simulator.md")]
pub struct Guide;
