//! Dropout (Srivastava et al. 2014) with counter-based random numbers: an element's mask follows
//! from its place in the step, so it is never stored, and the backward pass draws it again.

use crate::tensor::Tensor;

/// Dropout in one place of the net: an element is zeroed with probability `rate`, and multiplied by
/// 1 / (1 - rate) otherwise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Above 0 and below 1.
    pub rate: f32,
    /// (4) i32, a [`DropoutState`]. It is on the device because it changes from one micro-step to
    /// the next.
    pub state: Tensor,
    /// The place in the net: no two dropouts of a step share one.
    pub stream: u32,
}

/// The numbers that masks depend on, beside the place in the net, as [`Dropout::state`] holds them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct DropoutState {
    /// From the seed of the run and the number of the step.
    pub key: [u32; 2],
    /// The number, among all rows of the step, of the first row of the batch. So masks do not
    /// depend on how ranks and micro-steps divide the step.
    pub first_row: u32,
    pub unused: u32,
}

/// The mask of one dropout in one micro-step.
#[derive(Clone, Copy, Debug)]
pub struct Mask {
    state: DropoutState,
    stream: u32,
    threshold: u32,
    /// The factor on elements that are kept.
    pub scale: f32,
}

impl Dropout {
    /// `state` is what the tensor of that name holds.
    ///
    /// # Panics
    /// If the rate is not between 0 and 1.
    pub fn mask(&self, state: DropoutState) -> Mask {
        assert!(self.rate > 0.0 && self.rate < 1.0, "a dropout rate of {}", self.rate);
        Mask { state, stream: self.stream, threshold: self.threshold(), scale: self.scale() }
    }

    /// Elements whose random number is below this are zeroed.
    pub fn threshold(&self) -> u32 {
        (f64::from(self.rate) * 4_294_967_296.0) as u32
    }

    /// The factor on elements that are kept.
    pub fn scale(&self) -> f32 {
        (1.0 / (1.0 - f64::from(self.rate))) as f32
    }
}

impl Mask {
    /// The factors (0 or [`scale`](Self::scale)) of the four elements of batch row `row` from
    /// column `column` on, a multiple of 4.
    pub fn of_columns(&self, row: usize, column: usize) -> [f32; 4] {
        let row = self.state.first_row.wrapping_add(row as u32);
        self.factors([[column as u32 / 4], [row], [self.stream], [0]]).map(|[factor]| factor)
    }

    /// The factors of four attention weights of head `h`, for the queries q and q + 8, each with
    /// the keys k and k + 8: the elements of one thread, whether its tensor core fragment has
    /// queries or keys as rows. `sequence_row` is the batch row of the sequence's first token, and
    /// bit 3 of q and k is 0.
    pub fn of_weights(&self, sequence_row: usize, h: usize, q: usize, k: usize) -> [f32; 4] {
        self.of_many_weights(sequence_row, h, [q as u32], [k as u32]).map(|[factor]| factor)
    }

    /// [`of_weights`](Self::of_weights) for many pairs of queries and keys at once, in vector
    /// registers.
    #[inline(always)]
    pub fn of_many_weights<const LANES: usize>(
        &self,
        sequence_row: usize,
        h: usize,
        q: [u32; LANES],
        k: [u32; LANES],
    ) -> [[f32; LANES]; 4] {
        debug_assert!(q.iter().chain(&k).all(|place| place & 8 == 0), "queries {q:?}, keys {k:?}");
        let first = self.state.first_row.wrapping_add(sequence_row as u32);
        self.factors([k, q.map(|q| first.wrapping_add(q)), [self.stream; LANES], [h as u32; LANES]])
    }

    #[inline(always)]
    fn factors<const LANES: usize>(&self, counters: [[u32; LANES]; 4]) -> [[f32; LANES]; 4] {
        let factor = |random| if random < self.threshold { 0.0 } else { self.scale };
        philox_lanes(counters, self.state.key).map(|lanes| lanes.map(factor))
    }
}

/// Philox-4x32 with 7 rounds, the least that passes all tests of randomness (Salmon et al. 2011).
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    philox_lanes(counter.map(|word| [word]), key).map(|[word]| word)
}

/// [`philox`] of many counters. The first index is the word of a counter, the second one its lane.
#[inline(always)]
fn philox_lanes<const LANES: usize>(mut counters: [[u32; LANES]; 4], mut key: [u32; 2]) -> [[u32; LANES]; 4] {
    const ROUNDS: usize = 7;
    for round in 0..ROUNDS {
        if round > 0 {
            key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
        }
        let before = counters;
        for lane in 0..LANES {
            let [c0, c1, c2, c3] = [0, 1, 2, 3].map(|word: usize| before[word][lane]);
            let product = |a: u32, b: u32| u64::from(a) * u64::from(b);
            let (p0, p1) = (product(0xD251_1F53, c0), product(0xCD9E_8D57, c2));
            let (high, low) = (|p: u64| (p >> 32) as u32, |p: u64| p as u32);
            counters[0][lane] = high(p1) ^ c1 ^ key[0];
            counters[1][lane] = low(p1);
            counters[2][lane] = high(p0) ^ c3 ^ key[1];
            counters[3][lane] = low(p0);
        }
    }
    counters
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers of the authors' own library, Random123.
    #[test]
    fn philox_gives_the_published_numbers() {
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344, 0xa409_3822, 0x299f_31d0];
        let cases = [
            ([0; 6], [0x5f6f_b709, 0x0d89_3f64, 0x4f12_1f81, 0x4f73_0a48]),
            ([u32::MAX; 6], [0x5207_ddc2, 0x4516_5e59, 0x4d8e_e751, 0x8c52_f662]),
            (pi, [0x4dfc_caba, 0x190a_87f0, 0xc473_62ba, 0xb6b5_242a]),
        ];
        for ([a, b, c, d, e, f], expected) in cases {
            assert_eq!(philox([a, b, c, d], [e, f]), expected);
        }
    }
}
