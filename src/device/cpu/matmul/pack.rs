//! Packs operands into the blocks that the kernels of [`packed`](super::packed) read.
//!
//! An operand is a set of *lines* (rows of lhs, columns of rhs) along k. Its unit is the dword: one
//! f32, or two bf16. A [`Block`] is 16 lines by 16 dwords, 1 KiB: the size of an AMX tile register.
//! A *group* is 32 lines by the k of one block, in as many blocks as the [`Format`] needs; a
//! *panel* is 32 lines along all of k, group after group. Blocks are padded with zeros beyond the
//! edges of the matrix, so kernels need no edge handling.

use super::product::View;
use std::arch::x86_64::*;

/// 16 x 16 dwords.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Block(pub [[u32; 16]; 16]);

impl Block {
    pub const ZERO: Block = Block([[0; 16]; 16]);
}

/// Lines, or dwords along k, per block.
pub const LANES: usize = 16;
/// Number of bf16 that represent an f32.
pub const PARTS: usize = 3;
/// Lines per panel: rows and columns of the tile that a kernel computes.
pub const TILE: usize = 2 * LANES;

/// The contents of dwords.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One f32.
    F32,
    /// Two consecutive elements along k, as bf16.
    Bf16,
    /// Elements i and 16 + i along k of a block, each as a sum of three bf16: a group holds the
    /// blocks of high, middle and low parts of its first 16 lines, then those of the other lines.
    /// See [`split`].
    ThreeBf16,
}

impl Format {
    /// Elements along k per group.
    pub const fn k_of_group(self) -> usize {
        match self {
            Format::F32 => LANES,
            Format::Bf16 | Format::ThreeBf16 => 2 * LANES,
        }
    }

    /// Blocks per 16 lines of a group.
    pub const fn parts(self) -> usize {
        match self {
            Format::F32 | Format::Bf16 => 1,
            Format::ThreeBf16 => PARTS,
        }
    }

    /// Blocks per group.
    pub const fn blocks_of_group(self) -> usize {
        2 * self.parts()
    }
}

/// An operand as lines along k.
#[derive(Clone, Copy)]
pub struct Lines<'a> {
    view: View<'a>,
    /// Whether a block holds 16 dwords of line 0, then of line 1, … (lhs), or dword 0 of 16 lines,
    /// then dword 1, … (rhs).
    line_major: bool,
}

impl<'a> Lines<'a> {
    pub fn of_lhs(lhs: View<'a>) -> Self {
        Lines { view: lhs, line_major: true }
    }

    pub fn of_rhs(rhs: View<'a>) -> Self {
        Lines { view: rhs.transposed(), line_major: false }
    }

    /// Fills `panels` with panels of `groups` groups, from lines `line` and elements `k` on.
    ///
    /// # Safety
    /// The CPU must have AVX-512F, and for `Bf16` also AVX512-BW and AVX512-BF16.
    #[inline(always)]
    pub unsafe fn pack(&self, format: Format, panels: &mut [Block], groups: usize, line: usize, k: usize) {
        let count = panels.len() / (groups * format.blocks_of_group());
        // The inner loop follows contiguous memory.
        let (outer, inner) = if self.along() { (2 * count, groups) } else { (groups, 2 * count) };
        for outer in 0..outer {
            for inner in 0..inner {
                let (half, group) = if self.along() { (outer, inner) } else { (inner, outer) };
                let first = ((half / 2 * groups + group) * 2 + half % 2) * format.parts();
                let blocks = &mut panels[first..][..format.parts()];
                // SAFETY: the caller guarantees the instructions.
                unsafe {
                    self.pack_blocks(format, blocks, line + half * LANES, k + group * format.k_of_group())
                };
            }
        }
    }

    /// Whether lines are contiguous.
    #[inline(always)]
    fn along(&self) -> bool {
        self.view.col_stride == 1
    }

    /// Packs 16 lines of a group.
    #[inline(always)]
    unsafe fn pack_blocks(&self, format: Format, blocks: &mut [Block], line: usize, k: usize) {
        if line >= self.view.rows || k >= self.view.cols {
            blocks.fill(Block::ZERO);
            return;
        }
        // SAFETY: the caller guarantees the instructions.
        unsafe {
            if format == Format::ThreeBf16 {
                let first = self.vectors(false, line, k, 2 * LANES);
                let second = match k + LANES < self.view.cols {
                    true => self.vectors(false, line, k + LANES, 2 * LANES),
                    false => [_mm512_setzero_si512(); 16],
                };
                for (i, (first, second)) in first.into_iter().zip(second).enumerate() {
                    let (first, second) = (split(first), split(second));
                    for (part, block) in blocks.iter_mut().enumerate() {
                        let pairs = pair(first[part], second[part]);
                        _mm512_store_si512(block.0[i].as_mut_ptr().cast(), pairs);
                    }
                }
            } else {
                let vectors = self.vectors(format == Format::Bf16, line, k, format.k_of_group());
                for (row, vector) in blocks[0].0.iter_mut().zip(vectors) {
                    _mm512_store_si512(row.as_mut_ptr().cast(), vector);
                }
            }
        }
    }

    /// Loads one block of f32, or of pairs of bf16. The elements `ahead` along k are prefetched.
    #[inline(always)]
    unsafe fn vectors(&self, bf16: bool, line: usize, k: usize, ahead: usize) -> [__m512i; 16] {
        let whole = if bf16 { 2 * LANES } else { LANES };
        let lines = LANES.min(self.view.rows - line);
        let depth = whole.min(self.view.cols - k);
        let start = self.view.at(line, k);
        // SAFETY: the caller guarantees the instructions; `lines` x `depth` elements are inside the
        // view. Whole blocks have constant sizes and so compile to straight-line code.
        unsafe {
            let vectors = match (self.along(), lines == LANES && depth == whole) {
                (true, true) => load_along(bf16, start, self.view.row_stride, LANES, whole),
                (true, false) => load_along(bf16, start, self.view.row_stride, lines, depth),
                (false, true) => load_across(bf16, start, self.view.col_stride, LANES, whole, ahead),
                (false, false) => load_across(bf16, start, self.view.col_stride, lines, depth, ahead),
            };
            if self.along() == self.line_major { vectors } else { transpose(vectors) }
        }
    }
}

/// Splits f32 numbers into high + middle + low, each a bf16 in the upper half of its dword (Henry,
/// Tang and Heinecke 2019).
///
/// The 24 bits of a number fit in three times 8, so the sum is exact unless a part is denormal: AMX
/// flushes such parts to zero, which costs precision below 1e-33 and all of it below 1e-38. Parts
/// are rounded to nearest, so a middle part is at most 2^-8, and a low one 2^-17, of the number's
/// leading bit. The high part of infinity is infinity, and some part of a NaN is NaN.
#[inline(always)]
unsafe fn split(x: __m512i) -> [__m512i; PARTS] {
    // SAFETY: the caller guarantees AVX-512F.
    unsafe {
        let (upper, half) = (_mm512_set1_epi32(!0xffff), _mm512_set1_epi32(0x8000));
        let magnitude = _mm512_and_si512(x, _mm512_set1_epi32(0x7fff_ffff));
        // Larger numbers would round to infinity: they are truncated, which leaves a larger middle
        // part.
        let rounds = _mm512_cmplt_epu32_mask(magnitude, _mm512_set1_epi32(0x7f7f_8000));
        let is_infinity = _mm512_cmpeq_epi32_mask(magnitude, _mm512_set1_epi32(0x7f80_0000));
        let high = _mm512_and_si512(_mm512_mask_add_epi32(x, rounds, x, half), upper);
        let rest = _mm512_castps_si512(_mm512_maskz_sub_ps(
            !is_infinity,
            _mm512_castsi512_ps(x),
            _mm512_castsi512_ps(high),
        ));
        let middle = _mm512_and_si512(_mm512_add_epi32(rest, half), upper);
        let low = _mm512_sub_ps(_mm512_castsi512_ps(rest), _mm512_castsi512_ps(middle));
        [high, middle, _mm512_castps_si512(low)]
    }
}

/// Combines the upper halves of `first` and `second` into dwords, `first` in the lower half.
#[inline(always)]
unsafe fn pair(first: __m512i, second: __m512i) -> __m512i {
    const A_OR_B_AND_C: i32 = 0xf8;
    // SAFETY: the caller guarantees AVX-512F.
    unsafe {
        let upper = _mm512_set1_epi32(!0xffff);
        _mm512_ternarylogic_epi32::<A_OR_B_AND_C>(_mm512_srli_epi32::<16>(first), second, upper)
    }
}

/// An array of 16 results without a loop or closures, which would keep vectors in memory instead of
/// registers.
macro_rules! sixteen {
    ($i:ident => $e:expr) => {
        sixteen!(@ $i $e; 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $i:ident $e:expr; $($n:literal)*) => {
        [$({ const $i: usize = $n; $e }),*]
    };
}

/// The mask of the lowest `count` lanes.
#[inline(always)]
fn mask(count: usize) -> __mmask16 {
    if count >= LANES { !0 } else { (1 << count) - 1 }
}

/// Loads 16 contiguous lines: vector i holds 16 dwords of line i.
#[inline(always)]
unsafe fn load_along(
    bf16: bool,
    start: *const f32,
    line_stride: usize,
    lines: usize,
    depth: usize,
) -> [__m512i; 16] {
    // SAFETY: masked lanes are not read, and the caller guarantees that the others are inside.
    unsafe {
        sixteen!(I => {
            let depth = if I < lines { depth } else { 0 };
            let line = start.wrapping_add(I * line_stride);
            // The next 16 lines at the same k.
            let next = line.wrapping_add(LANES * line_stride);
            _mm_prefetch::<_MM_HINT_T1>(next.cast());
            let first = load(depth, line);
            if bf16 {
                _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(LANES).cast());
                bits_of_bf16(_mm512_cvtne2ps_pbh(load(depth.saturating_sub(LANES), line.wrapping_add(LANES)), first))
            } else {
                _mm512_castps_si512(first)
            }
        })
    }
}

/// Loads 16 adjacent lines of a matrix that is contiguous across lines: vector i holds dword i of
/// each.
#[inline(always)]
unsafe fn load_across(
    bf16: bool,
    start: *const f32,
    k_stride: usize,
    lines: usize,
    depth: usize,
    ahead: usize,
) -> [__m512i; 16] {
    // SAFETY: masked lanes are not read, and the caller guarantees that the others are inside.
    unsafe {
        sixteen!(I => {
            if bf16 {
                let first = load_row(start, k_stride, lines, depth, 2 * I, ahead);
                let second = load_row(start, k_stride, lines, depth, 2 * I + 1, ahead);
                _mm512_permutexvar_epi16(interleave(), bits_of_bf16(_mm512_cvtne2ps_pbh(second, first)))
            } else {
                _mm512_castps_si512(load_row(start, k_stride, lines, depth, I, ahead))
            }
        })
    }
}

/// Loads row `k` of a block that is `depth` deep. The hardware prefetcher does not follow strides
/// this long, so the row `ahead` of it, in the next block, is prefetched.
#[inline(always)]
unsafe fn load_row(
    start: *const f32,
    k_stride: usize,
    lines: usize,
    depth: usize,
    k: usize,
    ahead: usize,
) -> __m512 {
    // SAFETY: the caller guarantees that unmasked lanes are inside; any address may be prefetched.
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add((k + ahead) * k_stride).cast());
        load(if k < depth { lines } else { 0 }, start.wrapping_add(k * k_stride))
    }
}

/// Loads the first `count` of 16 elements, and zeros for the others.
#[inline(always)]
unsafe fn load(count: usize, from: *const f32) -> __m512 {
    // SAFETY: masked lanes are not read, and the caller guarantees that the others are inside.
    unsafe { _mm512_maskz_loadu_ps(mask(count), from) }
}

#[inline(always)]
fn bits_of_bf16(x: __m512bh) -> __m512i {
    // SAFETY: both types are 512 bits wide, and all bit patterns are valid.
    unsafe { std::mem::transmute(x) }
}

/// Positions 0, 16, 1, 17, …: interleaves 16 first and 16 second halves into 16 pairs.
#[inline(always)]
fn interleave() -> __m512i {
    const POSITIONS: [u16; 32] = {
        let mut positions = [0; 32];
        let mut i = 0;
        while i < 16 {
            positions[2 * i] = i as u16;
            positions[2 * i + 1] = 16 + i as u16;
            i += 1;
        }
        positions
    };
    // SAFETY: both types are 64 bytes, and all bit patterns are valid.
    unsafe { std::mem::transmute(POSITIONS) }
}

/// Transposes 16 x 16 dwords: four rounds that exchange blocks of 1, 2, 4 and 8 lanes.
#[inline(always)]
unsafe fn transpose(v: [__m512i; 16]) -> [__m512i; 16] {
    // SAFETY: the caller guarantees AVX-512F.
    unsafe {
        let mut a = v;
        for i in (0..16).step_by(2) {
            a[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
            a[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
        }
        let mut b = a;
        for i in (0..16).step_by(4) {
            b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
            b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
            b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
            b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
        }
        // b[4 q + j] holds, in its 128-bit lane l, column 4 l + j of rows 4 q .. 4 q + 4.
        let mut out = v;
        for j in 0..4 {
            let even_low = _mm512_shuffle_i32x4::<0x88>(b[j], b[4 + j]);
            let odd_low = _mm512_shuffle_i32x4::<0xdd>(b[j], b[4 + j]);
            let even_high = _mm512_shuffle_i32x4::<0x88>(b[8 + j], b[12 + j]);
            let odd_high = _mm512_shuffle_i32x4::<0xdd>(b[8 + j], b[12 + j]);
            out[j] = _mm512_shuffle_i32x4::<0x88>(even_low, even_high);
            out[8 + j] = _mm512_shuffle_i32x4::<0xdd>(even_low, even_high);
            out[4 + j] = _mm512_shuffle_i32x4::<0x88>(odd_low, odd_high);
            out[12 + j] = _mm512_shuffle_i32x4::<0xdd>(odd_low, odd_high);
        }
        out
    }
}
