//! What the engine takes from chance: names of calls, and nonces. The simulation has its own
//! (`keybrake_testkit::sim`), so that a run can be repeated; everybody else has [`Machine`].

use std::fmt::Debug;

use uuid::Uuid;

/// Length of a nonce in bytes.
pub(super) const NONCE: usize = 24;

/// A source of names and nonces that never repeat.
pub trait Chance: Send + Sync + Debug {
    /// The id of a new call.
    fn call_id(&self) -> String;

    /// A nonce for a reply that is kept; `None` when there is no randomness.
    fn nonce(&self) -> Option<[u8; NONCE]>;
}

/// The machine's randomness and clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Machine;

impl Chance for Machine {
    fn call_id(&self) -> String {
        Uuid::now_v7().to_string()
    }

    fn nonce(&self) -> Option<[u8; NONCE]> {
        let mut nonce = [0_u8; NONCE];
        getrandom::fill(&mut nonce).ok()?;
        Some(nonce)
    }
}
