//! The output of a probe, and the expected one.

use crate::golden::Golden;

/// The meaning of 32-bit words, as far as it decides which of them are equal.
///
/// A function that moves bits must keep all of them, those of a NaN too. One that converts or
/// computes must give a NaN where one is due, but any NaN: PTX leaves sign and payload open, and no
/// kernel looks at them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Bits,
    F32,
    /// A sum of products: PTX does not define the sign of a sum of zeros.
    Sum,
    /// Two bf16 numbers, or one in the low half.
    Bf16,
    F16,
}

impl Format {
    /// Maps equal words to one.
    pub fn canonical(self, word: u32) -> u32 {
        let halves = |infinity: u32| {
            let half = |h: u32| if h & 0x7fff > infinity { 0x7fff } else { h };
            half(word & 0xffff) | half(word >> 16) << 16
        };
        match self {
            Format::Bits => word,
            Format::F32 | Format::Sum if f32::from_bits(word).is_nan() => 0x7fff_ffff,
            Format::Sum if word == 0x8000_0000 => 0,
            Format::F32 | Format::Sum => word,
            Format::Bf16 => halves(0x7f80),
            Format::F16 => halves(0x7c00),
        }
    }
}

/// The words that a probe must output.
#[derive(Clone, Debug)]
pub enum Expected {
    /// These words on every device.
    Words(Vec<u32>),
    /// f32 numbers close to these, as number and bound.
    Near(Vec<(f64, f64)>),
}

/// Words that one launch output.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: String,
    pub format: Format,
    pub found: Vec<u32>,
    pub expected: Expected,
}

impl Case {
    pub fn exact(name: &str, format: Format, found: Vec<u32>, expected: Vec<u32>) -> Self {
        assert_eq!(found.len(), expected.len(), "{name}");
        Case { name: name.to_owned(), format, found, expected: Expected::Words(expected) }
    }

    pub fn near(name: &str, found: Vec<u32>, expected: Vec<(f64, f64)>) -> Self {
        assert_eq!(found.len(), expected.len(), "{name}");
        Case { name: name.to_owned(), format: Format::F32, found, expected: Expected::Near(expected) }
    }

    /// Compares with the expected words.
    ///
    /// # Errors
    /// The first word that differs, with its index, and the number of words that do.
    pub fn check(&self) -> Result<(), String> {
        let words = self.found.iter().enumerate();
        match &self.expected {
            Expected::Words(expected) => {
                let same =
                    |i: usize, word: u32| self.format.canonical(word) == self.format.canonical(expected[i]);
                self.first(words.filter(|&(i, &word)| !same(i, word)).map(|(i, _)| i), |i| {
                    self.show(expected[i])
                })
            }
            Expected::Near(expected) => {
                let close = |i: usize, word: u32| {
                    let (number, bound) = expected[i];
                    (f64::from(f32::from_bits(word)) - number).abs() <= bound
                };
                self.first(words.filter(|&(i, &word)| !close(i, word)).map(|(i, _)| i), |i| {
                    let (number, bound) = expected[i];
                    format!("{number:e} within {bound:e}")
                })
            }
        }
    }

    /// Compares with the recording of a GPU: two numbers that are each within a bound differ by at
    /// most twice the bound.
    ///
    /// # Errors
    /// The first word that differs, with its index, and the number of words that do.
    pub fn check_golden(&self, golden: &Golden) -> Result<(), String> {
        let (excerpt, recorded) = golden.words_of(self)?;
        let found = excerpt.of(self);
        let close = |i: usize| match &self.expected {
            Expected::Words(_) => excerpt.canonical(self, found[i]) == excerpt.canonical(self, recorded[i]),
            Expected::Near(expected) => {
                let [a, b] = [found[i], recorded[i]].map(|word| f64::from(f32::from_bits(word)));
                (a - b).abs() <= 2.0 * expected[excerpt.index(i)].1
            }
        };
        let different: Vec<usize> = (0..found.len()).filter(|&i| !close(i)).collect();
        let Some(&i) = different.first() else { return Ok(()) };
        Err(format!(
            "{}, {}: expected {} (recorded in {}), found {}; {} of {} differ",
            self.name,
            excerpt.place(i),
            excerpt.show(self, recorded[i]),
            golden.path.display(),
            excerpt.show(self, found[i]),
            different.len(),
            found.len(),
        ))
    }

    fn first(
        &self,
        mut different: impl Iterator<Item = usize>,
        expected: impl Fn(usize) -> String,
    ) -> Result<(), String> {
        let Some(i) = different.next() else { return Ok(()) };
        Err(format!(
            "{}, word {i}: expected {}, found {}; {} of {} differ",
            self.name,
            expected(i),
            self.show(self.found[i]),
            1 + different.count(),
            self.found.len(),
        ))
    }

    /// `3f800000 (1e0)`
    pub fn show(&self, word: u32) -> String {
        match self.format {
            Format::F32 | Format::Sum => format!("{word:08x} ({:e})", f32::from_bits(word)),
            _ => format!("{word:08x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(format: Format, found: u32, expected: u32) -> Result<(), String> {
        Case::exact("case", format, vec![1, found], vec![1, expected]).check()
    }

    #[test]
    fn one_bit_is_a_difference() {
        for format in [Format::Bits, Format::F32, Format::Sum, Format::Bf16, Format::F16] {
            of(format, 0x3f80_0000, 0x3f80_0000).unwrap();
            let message = of(format, 0x3f80_0001, 0x3f80_0000).unwrap_err();
            assert!(message.starts_with("case, word 1: expected 3f800000"), "{message}");
            assert!(message.contains("found 3f800001") && message.ends_with("1 of 2 differ"), "{message}");
        }
    }

    #[test]
    fn nans_are_the_same_where_they_are_computed() {
        assert!(of(Format::Bits, 0x7fc0_0000, 0x7fff_ffff).is_err());
        of(Format::F32, 0xffc0_0001, 0x7fff_ffff).unwrap();
        assert!(of(Format::F32, 0x7f80_0000, 0x7fff_ffff).is_err(), "infinity is not NaN");
        of(Format::Bf16, 0x7fc1_ff81, 0x7fff_7fff).unwrap();
        assert!(of(Format::Bf16, 0x7f80_7fff, 0x7fff_7fff).is_err());
        of(Format::F16, 0x7c01_fe00, 0x7fff_7fff).unwrap();
        assert!(of(Format::F16, 0x7fff_7c00, 0x7fff_7fff).is_err());
    }

    #[test]
    fn the_sign_of_zero_matters_except_in_sums() {
        of(Format::Sum, 0, 0x8000_0000).unwrap();
        assert!(of(Format::F32, 0, 0x8000_0000).is_err());
    }

    #[test]
    fn bounds_hold_and_nan_is_beyond_them() {
        let near = |found: f32| Case::near("case", vec![found.to_bits()], vec![(2.0, 0.5)]).check();
        near(2.5).unwrap();
        assert_eq!(
            near(2.75).unwrap_err(),
            "case, word 0: expected 2e0 within 5e-1, found 40300000 (2.75e0); 1 of 1 differ"
        );
        assert!(near(f32::NAN).is_err());
        assert!(near(f32::INFINITY).is_err());
    }
}
