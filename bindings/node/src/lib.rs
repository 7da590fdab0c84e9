//! The native half of the npm package: conversions only. What users touch is `node/src`.

#![allow(
    unreachable_pub,
    missing_debug_implementations,
    clippy::needless_pass_by_value,
    clippy::too_many_arguments,
    reason = "`napi` exports what is `pub`, hands values over owned, and one HTTP request has many parts"
)]
#![cfg_attr(
    test,
    allow(dead_code, reason = "`napi` registers what it exports outside of tests only")
)]

/// The C library's gives each thread's memory back to the system by one call of the kernel and takes it again by the next.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

mod answers;
mod call;
mod engine;
mod errors;
mod given_up;
mod helpers;
mod permit;
mod simulator;
mod stream;
