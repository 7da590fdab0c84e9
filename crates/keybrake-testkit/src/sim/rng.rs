//! One stream of random numbers per run: everything that is left to chance is drawn from it, in the order of the run.

use std::sync::Mutex;

/// `SplitMix64`, behind a lock because tasks share it. One thread runs them all, so the order is always the same.
#[derive(Debug)]
pub(super) struct Rng(Mutex<u64>);

impl Rng {
    pub(super) const fn new(seed: u64) -> Self {
        Self(Mutex::new(
            seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5DEE_CE66_D1CE_4E5B,
        ))
    }

    pub(super) fn next(&self) -> u64 {
        let mut state = self.0.lock().unwrap();
        *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// 0 up to but not including `n`.
    pub(super) fn below(&self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    /// One of these, both ends included.
    pub(super) fn between(&self, from: u64, upto: u64) -> u64 {
        from + self.below(upto - from + 1)
    }

    /// True so many times in a thousand.
    pub(super) fn chance(&self, per_mille: u64) -> bool {
        self.below(1_000) < per_mille
    }

    pub(super) fn pick<'a, T>(&self, of: &'a [T]) -> &'a T {
        &of[usize::try_from(self.below(of.len() as u64)).unwrap()]
    }
}
