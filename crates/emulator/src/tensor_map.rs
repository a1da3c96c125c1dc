//! Tensor maps describe matrices to Hopper's tensor memory accelerator (TMA). They are parameters
//! of kernels that use it.

use anyhow::{Result, ensure};

/// A tensor map, opaque to everything but the driver that made it.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(128))]
pub struct TensorMap(pub [u64; 16]);

/// A row-major matrix of 16-bit floating-point numbers, and the box of it that one copy brings to
/// shared memory: rows of 128 bytes, swizzled over 8 rows (CUDA's 128-byte swizzle).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TiledMatrix {
    pub address: u64,
    pub rows: usize,
    pub columns: usize,
    pub box_rows: usize,
}

/// Columns per box.
pub const BOX_COLUMNS: usize = 64;
const ELEMENT_BYTES: usize = 2;

impl TiledMatrix {
    pub fn row_bytes(&self) -> usize {
        self.columns * ELEMENT_BYTES
    }

    pub fn size_bytes(&self) -> usize {
        self.rows * self.row_bytes()
    }

    /// Checks the rules of `cuTensorMapEncodeTiled`.
    ///
    /// # Errors
    /// The rule that is broken.
    pub fn check(&self) -> Result<()> {
        let Self { address, rows, columns, box_rows } = *self;
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
        Ok(())
    }
}
