//! Example programs live in `src/bin/`; the README's Rust example is compiled from here.
#![doc = include_str!("../../../README.md")]
