//! Ids that look like Stripe's and never repeat within one simulator, nor by design between two.

use super::number::usize_of;

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Makes ids from a seed and a counter.
#[derive(Debug)]
pub(super) struct Ids {
    seed: u64,
    count: u64,
}

impl Ids {
    /// Ids for this seed; the same seed gives the same ids in the same order.
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, count: 0 }
    }

    /// A long id, such as `ch_3Sim…`.
    pub(super) fn next(&mut self, prefix: &str) -> String {
        format!("{prefix}_3Sim{}", self.letters(20))
    }

    /// A short id, such as `cus_…` and `req_…`.
    pub(super) fn short(&mut self, prefix: &str) -> String {
        format!("{prefix}_{}", self.letters(14))
    }

    /// 32 hexadecimal digits, as Twilio's and Resend's ids are made of.
    pub(super) fn hex(&mut self) -> String {
        self.count = self.count.wrapping_add(1);
        let high = mix(self.seed.wrapping_add(self.count));
        format!("{high:016x}{:016x}", mix(high ^ self.count))
    }

    fn letters(&mut self, length: usize) -> String {
        self.count = self.count.wrapping_add(1);
        // Two independent 64-bit mixes; each alone is a bijection of the counter, so ids cannot collide.
        let high = mix(self.seed.wrapping_add(self.count));
        let low = mix(high ^ self.count);
        let mut bits = (u128::from(high) << 64) | u128::from(low);
        let mut out = String::with_capacity(length);
        for _ in 0..length {
            let digit = usize_of(bits % 62);
            bits /= 62;
            out.push(ALPHABET.get(digit).copied().map_or('0', char::from));
        }
        out
    }
}

/// `SplitMix64`'s finaliser.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn ids_do_not_repeat_and_follow_the_seed() {
        let mut ids = Ids::new(7);
        let made: BTreeSet<String> = (0..20_000).map(|_| ids.short("req")).collect();
        assert_eq!(made.len(), 20_000);
        assert_eq!(Ids::new(1).next("ch"), Ids::new(1).next("ch"));
        assert_ne!(Ids::new(1).next("ch"), Ids::new(2).next("ch"));
    }
}
