//! Matmuls the size of a tile, with all operands in the nearest caches.
//!
//! The columns of every product are contiguous in memory, whatever the head size: they fill the
//! vector registers, while the left operand is read one element at a time from any layout.

use super::W;
use crate::simd::Simd;
use std::ops::{Deref, DerefMut};

/// A matrix inside a slice: element (i, j) is at `i * row + j * column`.
#[derive(Clone, Copy)]
pub struct Strided<'a> {
    pub data: &'a [f32],
    pub row: usize,
    pub column: usize,
}

impl Strided<'_> {
    #[inline(always)]
    pub fn transposed(self) -> Self {
        Strided { row: self.column, column: self.row, ..self }
    }
}

/// A buffer aligned to cache lines, so that no register is loaded from two lines.
pub struct Scratch {
    lines: Vec<F32x16>,
}

impl Scratch {
    /// Allocates `len` zeros, a multiple of 16.
    pub fn new(len: usize) -> Self {
        assert!(len.is_multiple_of(16));
        Scratch { lines: vec![F32x16([0.0; 16]); len / 16] }
    }
}

impl Deref for Scratch {
    type Target = [f32];

    #[inline(always)]
    fn deref(&self) -> &[f32] {
        // SAFETY: a line is exactly 16 floats, so the lines hold `16 * lines.len()` initialized
        // floats.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.lines.len() * 16) }
    }
}

impl DerefMut for Scratch {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: a line is exactly 16 floats, so the lines hold `16 * lines.len()` initialized
        // floats.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.lines.len() * 16) }
    }
}

/// dst (m, n) = the first m rows and n columns of src, whose columns are contiguous. Returns dst.
#[inline(always)]
pub fn gather_rows<'a>(dst: &'a mut [f32], src: Strided, n: usize) -> Strided<'a> {
    assert_eq!(src.column, 1);
    for (i, dst) in dst.chunks_exact_mut(n).enumerate() {
        dst.copy_from_slice(&src.data[i * src.row..][..n]);
    }
    Strided { data: dst, row: n, column: 1 }
}

/// dst (n, W) = scale * the first `count` rows of src (_, n), transposed; columns from `count` on
/// are zero.
pub fn transpose(dst: &mut [f32], src: Strided, count: usize, scale: f32) {
    assert_eq!(src.column, 1);
    let dst = dst.as_chunks_mut::<W>().0;
    for i in 0..count {
        let row = &src.data[i * src.row..][..dst.len()];
        dst.iter_mut().zip(row).for_each(|(dst, &x)| dst[i] = scale * x);
    }
    for dst in dst {
        dst[count..].fill(0.0);
    }
}

/// dst (n) = scale * the first column of src (n, W)
pub fn store_transposed(dst: &mut [f32], src: &[f32], scale: f32) {
    for (dst, src) in dst.iter_mut().zip(src.iter().step_by(W)) {
        *dst = scale * src;
    }
}

/// c (m, n) = a (m, k) @ b (k, n); b and c are contiguous, n is a multiple of 16.
#[inline(always)]
pub fn product(simd: Simd, c: &mut [f32], a: Strided, b: &[f32], n: usize) {
    c.fill(0.0);
    add_product(simd, c, a, b, n);
}

/// c (m, n) += a (m, k) @ b (k, n); b and c are contiguous, n is a multiple of 16.
#[inline(always)]
pub fn add_product(simd: Simd, c: &mut [f32], a: Strided, b: &[f32], n: usize) {
    // The accumulators take half of the registers: enough to hide the latency of a multiply-add.
    if simd == Simd::Avx512 && n.is_multiple_of(32) {
        by_blocks::<8, 2>(simd, c, a, b, n);
    } else if simd == Simd::Avx512 {
        by_blocks::<8, 1>(simd, c, a, b, n);
    } else {
        by_blocks::<4, 1>(simd, c, a, b, n);
    }
}

/// Computes blocks of `ROWS` rows and 16 `VECTORS` columns of c, summed over all of k in registers;
/// the remaining rows one by one.
#[inline(always)]
fn by_blocks<const ROWS: usize, const VECTORS: usize>(
    simd: Simd,
    c: &mut [f32],
    a: Strided,
    b: &[f32],
    n: usize,
) {
    assert!(n.is_multiple_of(16 * VECTORS) && c.len().is_multiple_of(n) && b.len().is_multiple_of(n));
    let (m, k) = (c.len() / n, b.len() / n);
    if m == 0 || k == 0 {
        return;
    }
    assert!((m - 1) * a.row + (k - 1) * a.column < a.data.len());
    let in_blocks = m - m % ROWS;
    for j in (0..n).step_by(16 * VECTORS) {
        for i in (0..in_blocks).step_by(ROWS) {
            // SAFETY: i + ROWS <= m and j + 16 VECTORS <= n; the assertions above checked the sizes
            // of a, b and c.
            unsafe { block::<ROWS, VECTORS>(simd, c, a, b, (i, j), (k, n)) };
        }
        for i in in_blocks..m {
            // SAFETY: i < m and j + 16 VECTORS <= n; the assertions above checked the sizes of a, b
            // and c.
            unsafe { block::<1, VECTORS>(simd, c, a, b, (i, j), (k, n)) };
        }
    }
}

/// Adds the product to one block of c.
///
/// # Safety
/// Rows i .. i + ROWS and columns j .. j + 16 VECTORS of the (_, n) matrix c, the first k rows of
/// the (_, n) matrix b, and the same rows and the first k columns of a must be inside their slices.
#[inline(always)]
unsafe fn block<const ROWS: usize, const VECTORS: usize>(
    simd: Simd,
    c: &mut [f32],
    a: Strided,
    b: &[f32],
    (i, j): (usize, usize),
    (k, n): (usize, usize),
) {
    let mut sums = [[F32x16([0.0; 16]); VECTORS]; ROWS];
    for (row, sums) in sums.iter_mut().enumerate() {
        // SAFETY: row < ROWS, and the caller guarantees that rows i .. i + ROWS of c are inside.
        let c: &[[f32; 16]; VECTORS] = unsafe { &*c.as_ptr().add((i + row) * n + j).cast() };
        *sums = c.map(F32x16);
    }
    for l in 0..k {
        // SAFETY: l < k, and the caller guarantees that the first k rows of b are inside.
        let b: &[[f32; 16]; VECTORS] = unsafe { &*b.as_ptr().add(l * n + j).cast() };
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: row < ROWS and l < k, and the caller guarantees that these elements of a are
            // inside.
            let a = unsafe { *a.data.get_unchecked((i + row) * a.row + l * a.column) };
            for (sum, &b) in sums.iter_mut().zip(b) {
                *sum = mul_add(simd, F32x16([a; 16]), F32x16(b), *sum);
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        // SAFETY: row < ROWS, and the caller guarantees that rows i .. i + ROWS of c are inside.
        let c: &mut [[f32; 16]; VECTORS] = unsafe { &mut *c.as_mut_ptr().add((i + row) * n + j).cast() };
        *c = sums.map(|sum| sum.0);
    }
}

/// Multiplies every row of rows (m, W) by `factors`, element by element.
#[inline(always)]
pub fn scale_rows(simd: Simd, rows: &mut [f32], factors: &[f32; W]) {
    let factors = factors.as_chunks::<16>().0;
    for row in rows.as_chunks_mut::<W>().0 {
        for (row, &factors) in row.as_chunks_mut::<16>().0.iter_mut().zip(factors) {
            *row = mul_add(simd, F32x16(*row), F32x16(factors), F32x16([0.0; 16])).0;
        }
    }
}

/// One AVX-512 register or two AVX2 registers. The compiler would split a plain array into scalars.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct F32x16([f32; 16]);

/// Returns a b + c, rounded once, except on the baseline, where [`f32::mul_add`] may be a slow
/// library call.
#[inline(always)]
fn mul_add(simd: Simd, a: F32x16, b: F32x16, c: F32x16) -> F32x16 {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{__m256, __m512, _mm256_fmadd_ps, _mm512_fmadd_ps};
        use std::mem::transmute;
        if simd == Simd::Avx512 {
            // SAFETY: `simd` says that the CPU has AVX-512, and all bit patterns are valid in both
            // types.
            return unsafe {
                let [a, b, c] = [a, b, c].map(|x| transmute::<F32x16, __m512>(x));
                transmute::<__m512, F32x16>(_mm512_fmadd_ps(a, b, c))
            };
        }
        if simd == Simd::Avx2 {
            // SAFETY: `simd` says that the CPU has FMA, and all bit patterns are valid in both
            // types.
            return unsafe {
                let [a, b, c] = [a, b, c].map(|x| transmute::<F32x16, [__m256; 2]>(x));
                let halves = [0, 1].map(|i| _mm256_fmadd_ps(a[i], b[i], c[i]));
                transmute::<[__m256; 2], F32x16>(halves)
            };
        }
    }
    const FUSED: bool = cfg!(target_arch = "aarch64");
    F32x16(std::array::from_fn(
        |i| if FUSED { a.0[i].mul_add(b.0[i], c.0[i]) } else { a.0[i] * b.0[i] + c.0[i] },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::compare::assert_close;
    use crate::device::compare::testing::{added, random};
    use crate::simd::dispatch_on;

    fn check(simd: Simd, (m, n, k): (usize, usize, usize), (row, column): (usize, usize)) {
        let (a, b, before) = (random(1, m * k * 3 + 3), random(2, k * n), random(3, m * n));
        let exact = |i: usize, j: usize| -> f64 {
            (0..k).map(|l| f64::from(a[i * row + l * column]) * f64::from(b[l * n + j])).sum()
        };
        let want: Vec<f64> = (0..m * n).map(|x| exact(x / n, x % n)).collect();
        let a = Strided { data: &a, row, column };
        let (mut c, mut sum) = (vec![f32::NAN; m * n], before.clone());
        dispatch_on(
            simd,
            #[inline(always)]
            |simd| {
                product(simd, &mut c, a, &b, n);
                add_product(simd, &mut sum, a, &b, n);
            },
        );
        assert_close(&format!("{simd:?} product {m} {n} {k}"), &c, &want, 1e-6);
        assert_close(&format!("{simd:?} add_product {m} {n} {k}"), &sum, &added(&before, &want), 1e-6);
    }

    #[test]
    fn products_of_any_size_on_any_instruction_set() {
        for simd in Simd::ALL.into_iter().filter(|simd| simd.is_supported()) {
            for (m, n, k) in [(1, 16, 1), (8, 32, 20), (13, 48, 7), (33, 64, 64), (5, 32, 0), (0, 32, 5)] {
                for strides in [(k * 3, 1), (1, m + 1), (2 * k, 2)] {
                    check(simd, (m, n, k), strides);
                }
            }
        }
    }

    #[test]
    fn rows_are_scaled_on_any_instruction_set() {
        let (rows, factors) = (random(1, 3 * W), random(2, W));
        let want: Vec<f32> = rows.iter().zip(factors.iter().cycle()).map(|(a, b)| a * b).collect();
        for simd in Simd::ALL.into_iter().filter(|simd| simd.is_supported()) {
            let (mut rows, factors) = (rows.clone(), <&[f32; W]>::try_from(&factors[..]).unwrap());
            dispatch_on(
                simd,
                #[inline(always)]
                |simd| scale_rows(simd, &mut rows, factors),
            );
            assert_close(&format!("{simd:?}"), &rows, &want, 0.0);
        }
    }
}
