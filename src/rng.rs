//! Random numbers that agree draw for draw with PyTorch's CPU generator, so that a model
//! initialized here starts from PyTorch's weights, and with llm.c, so that its shuffles and samples
//! are reproduced.

mod box_muller;

use anyhow::{Context, Result, ensure};
use box_muller::box_muller;
use std::f64::consts::PI;

const N: usize = 624;
const M: usize = 397;
const MATRIX_A: u32 = 0x9908_b0df;
const UPPER_MASK: u32 = 0x8000_0000;
const LOWER_MASK: u32 = 0x7fff_ffff;

/// The 32-bit Mersenne Twister of Matsumoto & Nishimura (1998), the generator of PyTorch and NumPy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mt19937 {
    seed: u64,
    /// Number of draws before the state is renewed, plus one.
    left: i32,
    /// Index in `state` of the next draw.
    next: u32,
    state: [u32; N],
}

impl Mt19937 {
    /// Length of [`Self::to_bytes`].
    pub const BYTES: usize = 8 + 4 + 4 + 4 * N + 8;

    /// Returns the generator after `torch.manual_seed(seed)`.
    pub fn new(seed: u32) -> Self {
        let mut state = [seed; N];
        for j in 1..N {
            let last = state[j - 1];
            state[j] = 1_812_433_253u32.wrapping_mul(last ^ (last >> 30)).wrapping_add(j as u32);
        }
        Mt19937 { seed: u64::from(seed), left: 1, next: 0, state }
    }

    fn renew(&mut self) {
        let state = &mut self.state;
        let mut twist = |j: usize, next: usize, far: usize| {
            let y = (state[j] & UPPER_MASK) | (state[next] & LOWER_MASK);
            state[j] = state[far] ^ (y >> 1) ^ (MATRIX_A & (y & 1).wrapping_neg());
        };
        (0..N - M).for_each(|j| twist(j, j + 1, j + M));
        (N - M..N - 1).for_each(|j| twist(j, j + 1, j + M - N));
        twist(N - 1, 0, M - 1);
        self.left = N as i32;
        self.next = 0;
    }

    /// Draws 32 random bits.
    pub fn randint32(&mut self) -> u32 {
        self.left -= 1;
        if self.left <= 0 {
            self.renew();
        }
        let mut y = self.state[self.next as usize];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// Draws 64 random bits, the upper half first.
    pub fn randint64(&mut self) -> u64 {
        let high = u64::from(self.randint32());
        (high << 32) | u64::from(self.randint32())
    }

    /// Draws uniformly from [0, 1), with 24 random bits.
    pub fn randfloat32(&mut self) -> f32 {
        (self.randint32() & 0xff_ffff) as f32 * (1.0 / (1u32 << 24) as f32)
    }

    /// Draws uniformly from [0, 1), with 53 random bits.
    pub fn randfloat64(&mut self) -> f64 {
        (self.randint64() & ((1 << 53) - 1)) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Fills `data` uniformly from [from, to): `Tensor.uniform_(from, to)`.
    pub fn uniform(&mut self, data: &mut [f32], from: f32, to: f32) {
        for x in data {
            *x = self.randfloat32().mul_add(to - from, from);
        }
    }

    /// Fills `data` from the normal distribution: `Tensor.normal_(mean, std)`. For 16 numbers or
    /// more, this is the Box-Muller transform of runs of 16 uniform draws: radii from the first
    /// eight, angles from the last eight. If the last run is incomplete, the last 16 numbers are
    /// drawn again as one run. The result is bit for bit that of PyTorch on a CPU with AVX2,
    /// whatever the CPU here.
    ///
    /// Below 16 numbers PyTorch saves the odd one for its next small request; like llm.c, we drop
    /// it.
    pub fn normal_fill(&mut self, data: &mut [f32], mean: f64, std: f64) {
        if data.len() < 16 {
            return self.normal_fill_small(data, mean, std);
        }
        let (mean, std) = (mean as f32, std as f32);
        for x in data.iter_mut() {
            *x = self.randfloat32();
        }
        let (runs, ragged) = data.as_chunks_mut::<16>();
        box_muller(runs, mean, std);
        if !ragged.is_empty() {
            let last = data.last_chunk_mut::<16>().expect("there are at least 16 numbers");
            for x in last.iter_mut() {
                *x = self.randfloat32();
            }
            box_muller(std::slice::from_mut(last), mean, std);
        }
    }

    fn normal_fill_small(&mut self, data: &mut [f32], mean: f64, std: f64) {
        for pair in data.chunks_mut(2) {
            let theta = 2.0 * PI * self.randfloat64();
            let radius = (-2.0 * (-self.randfloat64()).ln_1p()).sqrt();
            pair[0] = (radius * theta.cos() * std + mean) as f32;
            if let Some(second) = pair.get_mut(1) {
                *second = (radius * theta.sin() * std + mean) as f32;
            }
        }
    }

    /// Shuffles `data` (Fisher & Yates, from the end), as llm.c does. The modulo is not quite
    /// uniform; it stays because the order has to match llm.c's.
    pub fn random_permutation(&mut self, data: &mut [i32]) {
        for i in (1..data.len()).rev() {
            let j = self.randint32() as usize % (i + 1);
            data.swap(i, j);
        }
    }

    /// Returns the state as llm.c writes it to files: the memory of its C struct, little-endian.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut words = vec![self.seed as u32, (self.seed >> 32) as u32, self.left as u32, self.next];
        words.extend_from_slice(&self.state);
        words.extend_from_slice(&[0, MATRIX_A]);
        let mut bytes = [0; Self::BYTES];
        for (four, word) in bytes.chunks_exact_mut(4).zip(words) {
            four.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Reads a state written by [`Self::to_bytes`] or llm.c. The seed is only passed through; llm.c
    /// leaves it unset.
    ///
    /// # Errors
    /// If the length is wrong, or the state is impossible.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        ensure!(
            bytes.len() == Self::BYTES,
            "random generator state: expected {} bytes, found {}",
            Self::BYTES,
            bytes.len()
        );
        let words: Vec<u32> = bytes.as_chunks::<4>().0.iter().map(|&four| u32::from_le_bytes(four)).collect();
        let (left, next) = (words[2], words[3]);
        let fresh = left == 1 && next == 0;
        let in_use = (1..=N as u32).contains(&next) && left == N as u32 + 1 - next;
        ensure!(
            (fresh || in_use) && words[4 + N..] == [0, MATRIX_A],
            "random generator state is damaged: {left} draws left at position {next} of {N}"
        );
        let state = words[4..4 + N].try_into().context("random generator state")?;
        let seed = u64::from(words[0]) | u64::from(words[1]) << 32;
        Ok(Mt19937 { seed, left: left as i32, next, state })
    }
}

/// Returns the numbers 0 to `n - 1` in order, for [`Mt19937::random_permutation`] to shuffle.
pub fn identity_permutation(n: usize) -> Vec<i32> {
    (0..i32::try_from(n).expect("permutations have fewer than 2^31 numbers")).collect()
}

/// The xorshift* generator (Marsaglia 2003; Vigna 2016) with which llm.c samples tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleRng {
    /// Never 0, unless seeded with 0, where it stays.
    pub state: u64,
}

impl SampleRng {
    pub fn new(seed: u64) -> Self {
        SampleRng { state: seed }
    }

    /// Draws 32 random bits.
    pub fn random_u32(&mut self) -> u32 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        (self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }

    /// Draws uniformly from [0, 1).
    pub fn random_f32(&mut self) -> f32 {
        (self.random_u32() >> 8) as f32 / 16_777_216.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The output of llm.c's `rand.h`, compiled, with seed 42.
    #[test]
    fn bits_are_those_of_llmc() {
        let mut rng = Mt19937::new(42);
        let first: Vec<u32> = (0..4).map(|_| rng.randint32()).collect();
        assert_eq!(first, [1_608_637_542, 3_421_126_067, 4_083_286_876, 787_846_414]);

        let mut rng = Mt19937::new(42);
        assert_eq!(rng.randint64(), 6_909_045_637_428_952_499);
        assert_eq!(rng.randfloat32(), 0.382_863_76);
        assert_eq!(rng.randfloat64(), 0.674_445_501_324_624_2);
    }

    /// A fingerprint of the bits (FNV-1a over words).
    fn fingerprint(data: &[f32], start: u64) -> u64 {
        data.iter().fold(start, |hash, x| (hash ^ u64::from(x.to_bits())).wrapping_mul(0x100_0000_01b3))
    }

    /// Fingerprints of tensors filled by PyTorch 2.15 with these seeds and arguments, the same with
    /// AVX2 and AVX-512. Without either, PyTorch rounds differently, even uniform draws.
    #[test]
    fn fills_are_those_of_pytorch() {
        let mut data = vec![f32::NAN; 1_000_003];
        let normals = [(0.0, 0.02, 15_073_405_705_940_837_943), (-1.5, 0.3, 16_592_456_792_191_702_852)];
        for (mean, std, expected) in normals {
            let mut rng = Mt19937::new(42);
            rng.normal_fill(&mut data, mean, std);
            assert_eq!(fingerprint(&data, 0), expected, "normal {mean} {std}");
            assert_eq!(rng.randfloat32(), 0.030_154_765, "the draw after");
        }
        Mt19937::new(1337).uniform(&mut data[..12_345], -2.0, 3.0);
        assert_eq!(fingerprint(&data[..12_345], 0), 12_665_174_639_700_761_203, "uniform");
    }

    #[test]
    fn small_fills_are_those_of_pytorch() {
        let mut hash = 0;
        for n in 1..16 {
            for seed in 0..200 {
                let mut data = [f32::NAN; 16];
                Mt19937::new(seed).normal_fill(&mut data[..n], 0.5, 0.02);
                hash = fingerprint(&data[..n], hash);
            }
        }
        assert_eq!(hash, 10_927_570_435_837_648_852);
    }

    /// The example in llm.c's `rand.h`. PyTorch agrees with it after `torch.manual_seed(137)`.
    #[test]
    fn draws_of_different_kinds_follow_each_other_as_in_llmc() {
        let mut rng = Mt19937::new(137);
        let first: Vec<u32> = (0..5).map(|_| rng.randint32()).collect();
        assert_eq!(first, [4_053_805_790, 2_173_880_614, 380_293_709, 1_237_255_315, 2_986_595_568]);

        let mut eight = [f32::NAN; 8];
        rng.normal_fill(&mut eight, 0.0, 1.0);
        let expected = [
            0.794_766_4,
            1.436_931_7,
            -0.229_219_21,
            0.475_563_26,
            -0.633_441_1,
            -0.579_195_4,
            -0.092_570_476,
            -0.865_919_7,
        ];
        assert_eq!(eight, expected);
        assert_eq!(rng.randint32(), 2_186_503_452);

        let mut sixteen = [f32::NAN; 16];
        rng.normal_fill(&mut sixteen, 0.0, 1.0);
        assert_eq!((sixteen[0], sixteen[15]), (-1.281_387_8, 0.396_198_78));
        assert_eq!(rng.randint32(), 2_756_748_748);
    }

    #[test]
    fn a_ragged_end_is_drawn_again() {
        let mut whole = [f32::NAN; 32];
        Mt19937::new(1).normal_fill(&mut whole, 0.0, 1.0);
        let mut ragged = [f32::NAN; 33];
        let mut rng = Mt19937::new(1);
        rng.normal_fill(&mut ragged, 0.0, 1.0);
        assert_eq!(ragged[..17], whole[..17]);
        assert!(ragged[17..32].iter().zip(&whole[17..]).all(|(a, b)| a != b && a.is_finite()));

        let mut reference = Mt19937::new(1);
        for _ in 0..33 + 16 {
            reference.randint32();
        }
        assert_eq!(rng, reference);
    }

    #[test]
    fn normal_draws_have_the_mean_and_deviation_asked_for() {
        let mut data = vec![f32::NAN; 100_000];
        Mt19937::new(3).normal_fill(&mut data, 2.0, 0.5);
        let mean = data.iter().map(|&x| f64::from(x)).sum::<f64>() / data.len() as f64;
        let variance = data.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / data.len() as f64;
        assert!((mean - 2.0).abs() <= 0.01, "{mean}");
        assert!((variance.sqrt() - 0.5).abs() <= 0.01, "{variance}");
    }

    /// The output of llm.c's `rand.h`, compiled.
    #[test]
    fn permutations_are_those_of_llmc() {
        let mut data = identity_permutation(10);
        Mt19937::new(42).random_permutation(&mut data);
        assert_eq!(data, [1, 3, 9, 7, 6, 0, 8, 4, 5, 2]);
        for n in 0..2 {
            let mut rng = Mt19937::new(42);
            rng.random_permutation(&mut identity_permutation(n));
            assert_eq!(rng, Mt19937::new(42), "nothing to shuffle draws nothing");
        }
    }

    #[test]
    fn the_state_survives_a_round_trip_at_every_position() {
        let mut rng = Mt19937::new(7);
        for _ in 0..1300 {
            let mut copy = Mt19937::from_bytes(&rng.to_bytes()).unwrap();
            assert_eq!(copy, rng);
            assert_eq!(copy.randint32(), rng.randint32());
        }
    }

    #[test]
    fn damaged_states_are_refused() {
        let good = Mt19937::new(7).to_bytes();
        assert!(Mt19937::from_bytes(&good[1..]).unwrap_err().to_string().contains("found 2519"));
        for (at, byte) in [(8, 9), (12, 1), (15, 255), (Mt19937::BYTES - 1, 0)] {
            let mut bad = good;
            bad[at] = byte;
            assert!(Mt19937::from_bytes(&bad).unwrap_err().to_string().contains("damaged"), "byte {at}");
        }
    }

    /// The output of llm.c's `sampler.h`, compiled.
    #[test]
    fn sampling_coins_are_those_of_llmc() {
        let mut rng = SampleRng::new(1337);
        let first: Vec<u32> = (0..4).map(|_| rng.random_u32()).collect();
        assert_eq!(first, [989_205_090, 818_269_915, 1_335_155_955, 3_876_892_996]);
        assert_eq!(rng.state, 3_115_803_837_778_227_132);
        assert_eq!(rng.random_f32(), 0.684_917_87);
    }
}
