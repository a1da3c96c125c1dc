//! What a device has lent, for those that see to it that nobody touches it meanwhile: a collective and an operation at work on the
//! same memory are a race, of which results tell only now and then.

use std::ops::Range;

/// Runs of bytes, by address. There are never many.
#[derive(Clone, Debug, Default)]
pub struct Lent(Vec<Range<usize>>);

impl Lent {
    /// The caller has made sure that none of it is lent.
    pub fn lend(&mut self, start: usize, bytes: usize) {
        self.0.push(start..start + bytes);
    }

    /// # Panics
    /// If it was not lent, in one piece.
    pub fn take_back(&mut self, start: usize, bytes: usize) {
        let range = start..start + bytes;
        let Some(index) = self.0.iter().position(|lent| *lent == range) else {
            panic!("{bytes} bytes at {start:#x} are taken back, which were not lent; lent are {:x?}", self.0)
        };
        self.0.swap_remove(index);
    }

    /// A run of which some is among these bytes.
    pub fn touched_by(&self, start: usize, bytes: usize) -> Option<Range<usize>> {
        let end = start + bytes;
        self.0.iter().find(|lent| lent.start.max(start) < lent.end.min(end)).cloned()
    }

    /// What is wrong with touching these bytes, if anything: to be said behind what touches them.
    pub fn refusal(&self, start: usize, bytes: usize) -> Option<String> {
        let lent = self.touched_by(start, bytes)?;
        let (len, first) = (lent.len(), lent.start);
        Some(format!("at {start:#x}: {len} bytes at {first:#x} are lent, and were not taken back"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_in_common_is_enough() {
        let mut lent = Lent::default();
        lent.lend(100, 10);
        lent.lend(200, 0);
        for (start, bytes, touched) in [
            (90, 10, false),
            (90, 11, true),
            (109, 1, true),
            (110, 5, false),
            (104, 0, false),
            (199, 2, false),
        ] {
            assert_eq!(lent.touched_by(start, bytes).is_some(), touched, "{start} + {bytes}");
        }
        lent.take_back(200, 0);
        lent.take_back(100, 10);
        assert_eq!(lent.touched_by(0, 1000), None);
    }

    #[test]
    #[should_panic(expected = "9 bytes at 0x64 are taken back, which were not lent; lent are [64..6e]")]
    fn a_part_is_not_taken_back() {
        let mut lent = Lent::default();
        lent.lend(100, 10);
        lent.take_back(100, 9);
    }
}
