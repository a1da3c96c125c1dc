//! One matmul: strided operands, and the epilogue for its sums.

use crate::device::cpu::gelu::{gelu, gelu_and_gradient};
use crate::ops::Kept;
use std::cell::Cell;

/// A matrix over a slice, with strides in elements: one of them is 1.
#[derive(Clone, Copy)]
pub struct View<'a> {
    data: &'a [f32],
    pub rows: usize,
    pub cols: usize,
    pub row_stride: usize,
    pub col_stride: usize,
}

impl<'a> View<'a> {
    /// A row-major matrix.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols, "a {rows} x {cols} matrix has the wrong length");
        View { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    pub fn transposed(self) -> Self {
        let View { data, rows, cols, row_stride, col_stride } = self;
        View { data, rows: cols, cols: rows, row_stride: col_stride, col_stride: row_stride }
    }

    /// Address of an element, valid for reading the whole matrix.
    pub fn at(&self, row: usize, col: usize) -> *const f32 {
        assert!(row < self.rows && col < self.cols);
        // SAFETY: `new` checked that the data holds rows x cols elements; one stride is 1, the
        // other the row length, so the offset is inside the data.
        unsafe { self.data.as_ptr().add(row * self.row_stride + col * self.col_stride) }
    }
}

/// How sums s of a matmul become output, element by element.
#[derive(Clone, Copy)]
pub enum Epilogue<'a> {
    /// out = s
    Assign,
    /// out = s, written past the caches, because `out` will not be read soon.
    AssignFar,
    /// out += s
    Add,
    /// out = s + bias
    Bias { bias: &'a [f32] },
    /// h = s + bias; out = gelu(h); kept = h or gelu'(h)
    BiasGelu { bias: &'a [f32], kept: Kept<&'a [Cell<f32>]> },
    /// out = s + bias + residual
    BiasResidual { bias: &'a [f32], residual: &'a [f32] },
    /// out = s * factors
    Times { factors: &'a [f32] },
}

/// Returns a slice as cells, which tasks can share.
pub fn cells(slice: &mut [f32]) -> &[Cell<f32>] {
    Cell::from_mut(slice).as_slice_of_cells()
}

/// Address of the first cell, valid for reading and writing all of them.
fn address(cells: &[Cell<f32>]) -> *mut f32 {
    cells.as_ptr().cast::<f32>().cast_mut()
}

/// out (m, n) = epilogue(lhs (m, k) @ rhs (k, n))
pub struct Product<'a> {
    pub lhs: View<'a>,
    pub rhs: View<'a>,
    out: &'a [Cell<f32>],
    epilogue: Epilogue<'a>,
}

// SAFETY: only the unsafe functions below and users of `out_at` access the cells of `out` and of
// `epilogue`, and they guarantee that no two tasks touch the same element.
unsafe impl Sync for Product<'_> {}

impl<'a> Product<'a> {
    /// Describes a matmul.
    ///
    /// # Panics
    /// If shapes do not match.
    pub fn new(out: &'a mut [f32], lhs: View<'a>, rhs: View<'a>, epilogue: Epilogue<'a>) -> Self {
        let (m, n) = (lhs.rows, rhs.cols);
        assert_eq!(lhs.cols, rhs.rows);
        assert_eq!(out.len(), m * n, "the output of a matmul has the wrong length");
        let (bias, matrix) = match epilogue {
            Epilogue::Assign | Epilogue::AssignFar | Epilogue::Add => (None, None),
            Epilogue::Bias { bias } => (Some(bias.len()), None),
            Epilogue::BiasGelu { bias, kept } => (Some(bias.len()), Some(kept.tensor().len())),
            Epilogue::BiasResidual { bias, residual } => (Some(bias.len()), Some(residual.len())),
            Epilogue::Times { factors } => (None, Some(factors.len())),
        };
        assert_eq!((bias.unwrap_or(n), matrix.unwrap_or(m * n)), (n, m * n), "operands of an epilogue");
        Product { lhs, rhs, out: cells(out), epilogue }
    }

    pub fn m(&self) -> usize {
        self.lhs.rows
    }

    pub fn n(&self) -> usize {
        self.rhs.cols
    }

    pub fn k(&self) -> usize {
        self.lhs.cols
    }

    /// Whether sums are added to the contents of `out`.
    pub fn accumulates(&self) -> bool {
        matches!(self.epilogue, Epilogue::Add)
    }

    /// Whether `out` is written past the caches.
    #[cfg(target_arch = "x86_64")]
    pub fn streams(&self) -> bool {
        matches!(self.epilogue, Epilogue::AssignFar)
    }

    /// Address of an element of `out`.
    pub fn out_at(&self, row: usize, col: usize) -> *mut f32 {
        assert!(row < self.m() && col < self.n());
        address(&self.out[row * self.n() + col..])
    }

    /// Applies the epilogue to sums for the elements of `out` from (`row`, `col`) on, in place;
    /// adding for `Add` is up to the caller.
    ///
    /// # Safety
    /// No other thread may touch those elements of `out` or of `kept` meanwhile.
    #[inline(always)]
    pub unsafe fn finish(&self, sums: &mut [f32], row: usize, col: usize) {
        let at = row * self.n() + col;
        let len = sums.len();
        assert!(row < self.m() && col + len <= self.n());
        match self.epilogue {
            Epilogue::Assign | Epilogue::AssignFar | Epilogue::Add => (),
            Epilogue::Bias { bias } => sums.iter_mut().zip(&bias[col..col + len]).for_each(|(s, b)| *s += b),
            Epilogue::BiasGelu { bias, kept } => {
                // SAFETY: cells may be written through a shared reference, these are `len` cells,
                // and the caller guarantees that no other thread touches them.
                let kept = kept.map(|cells| unsafe {
                    std::slice::from_raw_parts_mut(address(&cells[at..at + len]), len)
                });
                finish_gelu(sums, &bias[col..col + len], kept);
            }
            Epilogue::BiasResidual { bias, residual } => {
                let added = bias[col..col + len].iter().zip(&residual[at..at + len]);
                sums.iter_mut().zip(added).for_each(|(s, (b, r))| *s += b + r);
            }
            Epilogue::Times { factors } => {
                sums.iter_mut().zip(&factors[at..at + len]).for_each(|(s, factor)| *s *= factor);
            }
        }
    }
}

/// h = sums + bias; sums = gelu(h); kept = h or gelu'(h)
#[inline(always)]
fn finish_gelu(sums: &mut [f32], bias: &[f32], kept: Kept<&mut [f32]>) {
    let biased = sums.iter_mut().zip(bias);
    match kept {
        Kept::Input(kept) => {
            for ((s, b), kept) in biased.zip(kept) {
                *kept = *s + b;
                *s = gelu(*kept);
            }
        }
        Kept::Gradient(kept) => {
            for ((s, b), kept) in biased.zip(kept) {
                (*s, *kept) = gelu_and_gradient(*s + b);
            }
        }
    }
}
