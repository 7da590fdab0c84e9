//! The command as users run it: the binary against a ledger in a file, other processes at work on the same file.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a failed unwrap is a failed test"
)]

mod archive;
mod common;
mod control;
mod governed;
mod questions;
mod redis;
mod restore;
mod settings;
mod terminal;
