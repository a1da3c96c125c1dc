//! The masks of a tile of attention weights.

use super::W;
use crate::ops::Mask;

/// The mask of one head of one document.
#[derive(Clone, Copy)]
pub struct HeadMask {
    pub mask: Mask,
    /// The batch row of the first token of the sequence.
    pub sequence_row: usize,
    pub h: usize,
    /// The place in the sequence of the first token of the document.
    pub start: usize,
}

impl HeadMask {
    /// Draws the factors of a tile, of which `row` and `column` are the first: places of queries
    /// and keys in the document, as `ROWS_ARE_QUERIES` says.
    #[inline(always)]
    pub fn draw<const ROWS_ARE_QUERIES: bool>(&self, factors: &mut [[f32; W]], row: usize, column: usize) {
        /// The four factors of a counter are in rows and columns r and r + 8 of blocks of 16. Tiles
        /// begin anywhere, so that their columns are in one block more than their width.
        const BLOCK: usize = 16;
        const LANES: usize = (W + BLOCK) / 2;
        let (row, column) = (self.start + row, self.start + column);
        let first = column - column % BLOCK;
        let columns: [u32; LANES] = std::array::from_fn(|i| (first + i / 8 * BLOCK + i % 8) as u32);
        for r in (row - row % BLOCK..row + factors.len()).filter(|r| r & 8 == 0) {
            let (rows, row_is_query) = ([r as u32; LANES], ROWS_ARE_QUERIES);
            let (q, k) = if row_is_query { (rows, columns) } else { (columns, rows) };
            let drawn = self.mask.of_many_weights(self.sequence_row, self.h, q, k);
            for half in 0..2 {
                let Some(factors) = (r + 8 * half).checked_sub(row).and_then(|i| factors.get_mut(i)) else {
                    continue;
                };
                let [low, high] =
                    [0, 1].map(|i| drawn[if row_is_query { 2 * half + i } else { 2 * i + half }]);
                let mut all = [0.0; 2 * LANES];
                for (i, block) in all.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
                    block[..8].copy_from_slice(&low[8 * i..][..8]);
                    block[8..].copy_from_slice(&high[8 * i..][..8]);
                }
                factors.copy_from_slice(&all[column - first..][..W]);
            }
        }
    }
}
