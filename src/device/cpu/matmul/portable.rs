//! f32 matmuls by the `gemm` crate, for CPUs without kernels of our own.

use super::product::Product;
use rayon::prelude::*;

/// Rows and columns per task. The partition follows from the shape alone, so the threads do not
/// change the result, and a block of `out` is finished while it is in the L2 cache.
const BLOCK: (usize, usize) = (256, 128);

pub fn run(product: &Product) {
    let (row_blocks, col_blocks) = (product.m().div_ceil(BLOCK.0), product.n().div_ceil(BLOCK.1));
    (0..row_blocks * col_blocks).into_par_iter().for_each(|task| {
        let (row, col) = (task % row_blocks * BLOCK.0, task / row_blocks * BLOCK.1);
        let (rows, cols) = (BLOCK.0.min(product.m() - row), BLOCK.1.min(product.n() - col));
        // SAFETY: blocks are inside `out` and disjoint, so no two tasks touch the same element.
        unsafe { block(product, row, col, rows, cols) };
    });
}

/// Computes one block of `out`.
///
/// # Safety
/// The block must be inside `out`, and no other thread may touch it.
unsafe fn block(product: &Product, row: usize, col: usize, rows: usize, cols: usize) {
    let (lhs, rhs, out) = (&product.lhs, &product.rhs, product.out_at(row, col));
    // SAFETY: strides and sizes are those of the views and of `out`, whose lengths `Product::new`
    // checked; the caller guarantees that the block is inside and not shared.
    unsafe {
        gemm::gemm(
            rows,
            cols,
            product.k(),
            out,
            1,
            product.n() as isize,
            product.accumulates(),
            lhs.at(row, 0),
            lhs.col_stride as isize,
            lhs.row_stride as isize,
            rhs.at(0, col),
            rhs.col_stride as isize,
            rhs.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
        for i in row..row + rows {
            product.finish(std::slice::from_raw_parts_mut(product.out_at(i, col), cols), i, col);
        }
    }
}
