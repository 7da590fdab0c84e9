//! Keybrake: spending limits for the API keys that agents hold, enforced before a call leaves the process.
//!
//! Read the modules in this order; each needs only those before it:
//! `money, clock, error` → `request` → `policy` → `ledger` → `vendors` → `journal` → `lease` → `brake` → `client`.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects, clippy::as_conversions))]

pub mod clock;
pub mod error;
pub mod money;
pub mod request;

pub mod policy;

pub mod ledger;

pub mod vendors;

pub mod audit;
pub mod config;
pub mod idempotency;
pub mod secret;
pub mod token;

pub mod journal;
pub mod lease;

pub mod brake;

pub mod client;

pub mod facade;

pub use client::{Enforcement, Item, Step, denied};
pub use clock::{Clock, SystemClock};
pub use error::{Error, ErrorKind, Result};
pub use facade::{Keybrake, Run};
pub use money::Usd;
pub use policy::Policy;
pub use secret::Secret;
