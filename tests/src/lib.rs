//! Cross-crate tests live in `tests/`; what they share with their helper programs is here.

pub mod archives;
pub mod books;
pub mod fleet;
pub mod gated;
pub mod journaling;
pub mod leasing;
pub mod processes;
pub mod restoring;
pub mod sender;
pub mod sending;
pub mod world;

pub use world::{Ended, World, ended, generated, noon_zone, post, refund, refunds, signed};
