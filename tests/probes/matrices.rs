//! Operands of MMAs, and their results by definition.

use crate::case::{Case, Format};
use half::{bf16, f16};
use warpsmith::rng::Mt19937;

pub fn random_words(seed: u32, len: usize) -> Vec<u32> {
    let mut rng = Mt19937::new(seed);
    (0..len).map(|_| rng.randint32()).collect()
}

/// The types that tensor cores multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbers {
    Bf16,
    F16,
    Tf32,
}

impl Numbers {
    /// The bits of a number, rounded to this type (TF32: truncated).
    pub fn encode(self, v: f32) -> u32 {
        match self {
            Numbers::Bf16 => u32::from(bf16::from_f32(v).to_bits()),
            Numbers::F16 => u32::from(f16::from_f32(v).to_bits()),
            Numbers::Tf32 => v.to_bits() & !0x1fff,
        }
    }

    /// The value of bits; tensor cores ignore the last 13 of TF32's 32 bits.
    pub fn decode(self, bits: u32) -> f64 {
        match self {
            Numbers::Bf16 => f64::from(f32::from_bits(bits << 16)),
            Numbers::F16 => f16::from_bits(bits as u16).to_f64(),
            Numbers::Tf32 => f64::from(f32::from_bits(bits & !0x1fff)),
        }
    }
}

/// The kind of numbers in the operands of an MMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Small integers: every sum is exact in any order, and in any width of 24 bits or more.
    Integers,
    /// Numbers between -1 and 1, times powers of two from 2^-8 to 2^7.
    Random,
    /// Integers in units that are subnormal in the type of the operands or, for types with the
    /// exponents of f32, in the sum.
    Subnormal,
    /// Integers, mixed with infinities, NaNs and zeros of both signs.
    Special,
}

impl Kind {
    pub const ALL: [Kind; 4] = [Kind::Integers, Kind::Random, Kind::Subnormal, Kind::Special];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Integers => "integers",
            Kind::Random => "random",
            Kind::Subnormal => "subnormal",
            Kind::Special => "special",
        }
    }

    /// A number of operand A, B or the sums (0, 1, 2), from a random word.
    fn number(self, numbers: Numbers, which: usize, word: u32) -> f32 {
        let integer = (word >> 8) as i32 % 15 - 7;
        match self {
            Kind::Integers => integer as f32,
            Kind::Random => (word as i32 as f32 / 2f32.powi(31)) * 2f32.powi((word & 15) as i32 - 8),
            Kind::Subnormal => {
                // The smallest number of f16 is 2^-24. For bf16 and TF32, the product of 2^-72 and
                // 2^-70 is 2^-142.
                let unit = match (numbers, which) {
                    (Numbers::F16, 0 | 2) => 2f32.powi(-24),
                    (Numbers::F16, _) => 1.0,
                    (_, 0) => 2f32.powi(-72),
                    (_, 1) => 2f32.powi(-70),
                    _ => f32::from_bits(1 << 7),
                };
                integer as f32 * unit
            }
            Kind::Special => match word % 97 {
                0 => f32::INFINITY,
                1 => f32::NEG_INFINITY,
                2 => f32::NAN,
                3 => -0.0,
                _ => integer as f32,
            },
        }
    }

    /// The bits of the elements of an operand.
    pub fn operand(self, numbers: Numbers, which: usize, len: usize) -> Vec<u32> {
        let seed = 100 + which as u32 + 10 * self as u32;
        let words = random_words(seed, len);
        words.into_iter().map(|word| numbers.encode(self.number(numbers, which, word))).collect()
    }

    /// The f32 bits of the initial sums.
    pub fn sums(self, numbers: Numbers, len: usize) -> Vec<u32> {
        let words = random_words(102 + 10 * self as u32, len);
        words.into_iter().map(|word| self.number(numbers, 2, word).to_bits()).collect()
    }
}

/// Returns d + sum of a_k b_k, and the sum of the magnitudes of all terms.
pub fn dot(d: f64, terms: impl Iterator<Item = (f64, f64)>) -> (f64, f64) {
    terms.fold((d, d.abs()), |(sum, magnitude), (a, b)| (sum + a * b, magnitude + (a * b).abs()))
}

/// The largest error of a tensor core's sum of K products and an initial sum, relative to the sum
/// of their magnitudes.
///
/// Products are exact. A few at a time (4 on the first GPUs with such units, 16 on Hopper) are
/// aligned to the largest magnitude, as is the sum so far; from each, bits below 2^-23 of it are
/// cut off, and once more from the result. That is at most K + 2 (K / 4) cuts, each of less than
/// 2^-23 of all magnitudes. Consecutive sums in f32 are closer.
fn error_bound(K: usize) -> f64 {
    1.5 * K as f64 * 2f64.powi(-23)
}

/// Compares sums of products with those in f64: exactly, except for random operands.
pub fn products(name: &str, kind: Kind, K: usize, found: Vec<u32>, expected: Vec<(f64, f64)>) -> Case {
    if kind == Kind::Random {
        let bounds = expected.into_iter().map(|(sum, magnitude)| (sum, magnitude * error_bound(K)));
        return Case::near(name, found, bounds.collect());
    }
    let exact = |(sum, _)| {
        let rounded = sum as f32;
        assert!(f64::from(rounded) == sum || f64::is_nan(sum), "{name}: {sum:e} is not exact in f32");
        rounded.to_bits()
    };
    Case::exact(name, Format::Sum, found, expected.into_iter().map(exact).collect())
}
