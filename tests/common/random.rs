//! Random numbers for tests that try many cases by chance.

/// SplitMix64.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// A seed for this process, or the one that an environment variable names to repeat a run.
    pub fn seed(variable: &str) -> u64 {
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as usize;
        amount(variable, now % 1_000_000) as u64
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}

/// The number in an environment variable, or the default of a bounded run.
pub fn amount(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |text| {
        text.parse().unwrap_or_else(|_| panic!("{variable}={text}: expected a number"))
    })
}
