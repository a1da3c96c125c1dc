//! Tensor maps describe matrices to Hopper's tensor memory accelerator (TMA). They are parameters
//! of kernels that use it.

use anyhow::{Result, ensure};

/// A tensor map, opaque to everything but the driver that made it.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(128))]
pub struct TensorMap(pub [u64; 16]);

/// A row-major matrix of 16-bit floating-point numbers, and the box of it that one copy brings to
/// shared memory or back. A box is 64, 32 or 16 columns wide. There its rows lie one after the
/// other, and their 16-byte chunks are swizzled as CUDA's swizzle of 128, 64 or 32 bytes does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TiledMatrix {
    pub address: u64,
    pub rows: usize,
    pub columns: usize,
    pub box_rows: usize,
    pub box_columns: usize,
}

const ELEMENT_BYTES: usize = 2;

impl TiledMatrix {
    pub fn row_bytes(&self) -> usize {
        self.columns * ELEMENT_BYTES
    }

    /// Bytes of a row of the box: those that the swizzle mixes.
    pub fn box_row_bytes(&self) -> usize {
        self.box_columns * ELEMENT_BYTES
    }

    pub fn size_bytes(&self) -> usize {
        self.rows * self.row_bytes()
    }

    /// Checks the rules of `cuTensorMapEncodeTiled`.
    ///
    /// # Errors
    /// The rule that is broken.
    pub fn check(&self) -> Result<()> {
        let Self { address, rows, columns, box_rows, box_columns } = *self;
        ensure!(
            address.is_multiple_of(16),
            "a tensor map of a matrix at {address:#x}, which is not a multiple of 16"
        );
        ensure!(
            (1..=1 << 32).contains(&rows) && (1..=1 << 32).contains(&columns),
            "a tensor map of {rows} x {columns} elements, at most 2^32 are allowed in either direction"
        );
        ensure!(
            self.row_bytes().is_multiple_of(16) && self.row_bytes() < 1 << 40,
            "a tensor map of rows of {} bytes, which is not a multiple of 16",
            self.row_bytes()
        );
        ensure!(
            (1..=256).contains(&box_rows),
            "a tensor map with a box of {box_rows} rows, 1 to 256 are allowed"
        );
        ensure!(
            [16, 32, 64].contains(&box_columns),
            "a tensor map with a box of {box_columns} columns, 16, 32 or 64 are allowed"
        );
        Ok(())
    }
}
