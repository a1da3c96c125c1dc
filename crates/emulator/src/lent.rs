//! Memory borrowed by a collective. No operation may touch it until it is reclaimed: the two would
//! race, and results would show it only now and then. A device that keeps this record refuses the
//! access every time.

use std::ops::Range;

/// Ranges of addresses. There are never many.
#[derive(Clone, Debug, Default)]
pub struct Lent(Vec<Range<usize>>);

impl Lent {
    /// Lends bytes, none of which may be lent already.
    pub fn lend(&mut self, start: usize, bytes: usize) {
        self.0.push(start..start + bytes);
    }

    /// Takes back what was lent, in one piece.
    ///
    /// # Panics
    /// If exactly this was not lent.
    pub fn reclaim(&mut self, start: usize, bytes: usize) {
        let range = start..start + bytes;
        let Some(index) = self.0.iter().position(|lent| *lent == range) else {
            panic!("{bytes} bytes at {start:#x} are reclaimed, but were not lent; lent are {:x?}", self.0)
        };
        self.0.swap_remove(index);
    }

    /// A lent range that overlaps these bytes.
    pub fn touched_by(&self, start: usize, bytes: usize) -> Option<Range<usize>> {
        let end = start + bytes;
        self.0.iter().find(|lent| lent.start.max(start) < lent.end.min(end)).cloned()
    }

    /// The reason why these bytes must not be touched, if there is one: the end of a message that
    /// begins with the access.
    pub fn refusal(&self, start: usize, bytes: usize) -> Option<String> {
        let lent = self.touched_by(start, bytes)?;
        let (len, first) = (lent.len(), lent.start);
        Some(format!("at {start:#x}: {len} bytes at {first:#x} are lent and not reclaimed"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_shared_byte_is_enough() {
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
        lent.reclaim(200, 0);
        lent.reclaim(100, 10);
        assert_eq!(lent.touched_by(0, 1000), None);
    }

    #[test]
    #[should_panic(expected = "9 bytes at 0x64 are reclaimed, but were not lent; lent are [64..6e]")]
    fn a_part_is_not_reclaimed() {
        let mut lent = Lent::default();
        lent.lend(100, 10);
        lent.reclaim(100, 9);
    }
}
