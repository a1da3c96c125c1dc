//! A random order of many things that takes no memory.

use crate::data::filter::words::mix;

/// Rounds of the Feistel network; four suffice in theory.
const ROUNDS: u64 = 6;

/// A permutation of `0..len`: a Feistel network over the next power of four. Numbers outside are
/// sent through again, so each place is found in about two steps.
#[derive(Clone, Copy, Debug)]
pub(in crate::data) struct Permutation {
    len: u64,
    key: u64,
    half_bits: u32,
}

impl Permutation {
    pub fn new(len: u64, key: u64) -> Self {
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        Permutation { len, key: mix(key), half_bits: bits.div_ceil(2).max(1) }
    }

    /// Returns the number at a place, which is below `len`.
    pub fn at(&self, place: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let mut number = place;
        loop {
            let (mut left, mut right) = (number >> self.half_bits, number & mask);
            for round in 0..ROUNDS {
                let next = left ^ (mix(self.key ^ mix(right ^ (round << 32))) & mask);
                (left, right) = (right, next);
            }
            number = left << self.half_bits | right;
            if number < self.len {
                return number;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_one_place() {
        for len in [1, 2, 3, 4, 5, 16, 17, 255, 256, 1000, 4097] {
            for key in 0..5 {
                let order = Permutation::new(len, key);
                let mut numbers: Vec<u64> = (0..len).map(|place| order.at(place)).collect();
                let is_moved = numbers.iter().enumerate().filter(|(i, n)| *i as u64 != **n).count();
                assert!(len < 100 || is_moved as u64 > len * 9 / 10);
                numbers.sort_unstable();
                assert!(numbers.iter().copied().eq(0..len), "{len}");
            }
        }
    }

    /// Over many keys, a place has each number about equally often.
    #[test]
    fn every_place_is_as_likely() {
        let mut counts = [0u32; 10];
        for key in 0..10_000 {
            counts[Permutation::new(10, key).at(3) as usize] += 1;
        }
        assert!(counts.iter().all(|&n| (850..1150).contains(&n)), "{counts:?}");
    }
}
