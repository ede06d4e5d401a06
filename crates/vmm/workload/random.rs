//! Random numbers, for order and content.

/// The golden ratio in 64 bits: steps that spread evenly.
pub const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// A bijective hash (the finaliser of SplitMix64, public domain).
pub const fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// A number below `bound`, by multiplication (Lemire): the bias is below 2⁻³² for any working set.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}
