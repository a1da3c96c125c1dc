//! One matmul: strided operands, and the epilogue for its sums.

use crate::device::cpu::gelu::{gelu, gelu_grad};
use std::marker::PhantomData;

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

/// The epilogue: how sums s of a matmul become output, element by element.
pub enum Finish<'a> {
    /// out = s
    Assign,
    /// out = s, written past the caches, because `out` will not be read soon.
    AssignFar,
    /// out += s
    Add,
    /// out = s + bias
    Bias { bias: &'a [f32] },
    /// pre_gelu = s + bias; out = gelu(pre_gelu)
    BiasGelu { bias: &'a [f32], pre_gelu: &'a mut [f32] },
    /// out = s + bias + residual
    BiasResidual { bias: &'a [f32], residual: &'a [f32] },
    /// out = s * gelu'(pre_gelu)
    TimesGeluGrad { pre_gelu: &'a [f32] },
}

/// [`Finish`] with a pointer in place of the mutable slice, so that tasks can share it.
#[derive(Clone, Copy)]
enum Pass<'a> {
    Assign,
    AssignFar,
    Add,
    Bias { bias: &'a [f32] },
    BiasGelu { bias: &'a [f32], pre_gelu: *mut f32 },
    BiasResidual { bias: &'a [f32], residual: &'a [f32] },
    TimesGeluGrad { pre_gelu: &'a [f32] },
}

/// out (m, n) = finish(lhs (m, k) @ rhs (k, n))
pub struct Product<'a> {
    pub lhs: View<'a>,
    pub rhs: View<'a>,
    out: *mut f32,
    pass: Pass<'a>,
    _out: PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointers in `out` and `pass` come from mutable slices borrowed for 'a. Only the
// unsafe functions below use them, and their callers guarantee that no two tasks touch the same
// element.
unsafe impl Sync for Product<'_> {}

impl<'a> Product<'a> {
    /// Describes a matmul.
    ///
    /// # Panics
    /// If shapes do not match.
    pub fn new(out: &'a mut [f32], lhs: View<'a>, rhs: View<'a>, finish: Finish<'a>) -> Self {
        let (m, n) = (lhs.rows, rhs.cols);
        assert_eq!(lhs.cols, rhs.rows);
        assert_eq!(out.len(), m * n, "the output of a matmul has the wrong length");
        let pass = match finish {
            Finish::Assign => Pass::Assign,
            Finish::AssignFar => Pass::AssignFar,
            Finish::Add => Pass::Add,
            Finish::Bias { bias } => Pass::Bias { bias },
            Finish::BiasGelu { bias, pre_gelu } => {
                assert_eq!(pre_gelu.len(), m * n);
                Pass::BiasGelu { bias, pre_gelu: pre_gelu.as_mut_ptr() }
            }
            Finish::BiasResidual { bias, residual } => {
                assert_eq!(residual.len(), m * n);
                Pass::BiasResidual { bias, residual }
            }
            Finish::TimesGeluGrad { pre_gelu } => {
                assert_eq!(pre_gelu.len(), m * n);
                Pass::TimesGeluGrad { pre_gelu }
            }
        };
        if let Pass::Bias { bias } | Pass::BiasGelu { bias, .. } | Pass::BiasResidual { bias, .. } = pass {
            assert_eq!(bias.len(), n);
        }
        Product { lhs, rhs, out: out.as_mut_ptr(), pass, _out: PhantomData }
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
        matches!(self.pass, Pass::Add)
    }

    /// Whether `out` is written past the caches.
    #[cfg(target_arch = "x86_64")]
    pub fn streams(&self) -> bool {
        matches!(self.pass, Pass::AssignFar)
    }

    /// Address of an element of `out`.
    pub fn out_at(&self, row: usize, col: usize) -> *mut f32 {
        assert!(row < self.m() && col < self.n());
        // SAFETY: `out` has m x n elements, as `new` checked, and the assertion above keeps the
        // index inside.
        unsafe { self.out.add(row * self.n() + col) }
    }

    /// Applies the epilogue to sums for the elements of `out` from (`row`, `col`) on, in place;
    /// adding for `Add` is up to the caller.
    ///
    /// # Safety
    /// No other thread may touch those elements of `out` or of `pre_gelu` meanwhile.
    #[inline(always)]
    pub unsafe fn finish(&self, sums: &mut [f32], row: usize, col: usize) {
        let at = row * self.n() + col;
        let len = sums.len();
        assert!(row < self.m() && col + len <= self.n());
        match self.pass {
            Pass::Assign | Pass::AssignFar | Pass::Add => (),
            Pass::Bias { bias } => sums.iter_mut().zip(&bias[col..col + len]).for_each(|(s, b)| *s += b),
            Pass::BiasGelu { bias, pre_gelu } => {
                // SAFETY: `new` checked that pre_gelu has out's shape, the assertion above keeps
                // the range inside, and the caller guarantees that no other thread touches it.
                let pre_gelu = unsafe { std::slice::from_raw_parts_mut(pre_gelu.add(at), len) };
                for ((s, b), pre_gelu) in sums.iter_mut().zip(&bias[col..col + len]).zip(pre_gelu) {
                    *pre_gelu = *s + b;
                    *s = gelu(*pre_gelu);
                }
            }
            Pass::BiasResidual { bias, residual } => {
                let added = bias[col..col + len].iter().zip(&residual[at..at + len]);
                sums.iter_mut().zip(added).for_each(|(s, (b, r))| *s += b + r);
            }
            Pass::TimesGeluGrad { pre_gelu } => {
                sums.iter_mut().zip(&pre_gelu[at..at + len]).for_each(|(s, &x)| *s *= gelu_grad(x));
            }
        }
    }
}
