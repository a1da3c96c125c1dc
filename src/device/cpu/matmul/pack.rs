//! Packing of operands into the blocks that the kernels of [`packed`](super::packed) read.
//!
//! An operand is seen as *lines* (rows of lhs, columns of rhs) along k. Its unit is the dword: one f32, or two bf16 that
//! follow each other along k. A [`Block`] is 16 lines by 16 dwords, 1 KiB: what one AMX tile register holds. A *group*
//! is two blocks, 32 lines; a *panel* is 32 lines along all of k, group after group. Beyond the edges of the matrix is
//! zero, so kernels know no edges.

use super::product::View;
use std::arch::x86_64::*;

/// 16 x 16 dwords.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Block([[u32; 16]; 16]);

impl Block {
    pub const ZERO: Block = Block([[0; 16]; 16]);
}

/// Lines, or dwords along k, of a block.
pub const LANES: usize = 16;
/// Lines of a panel: rows and columns of the tile that a kernel computes.
pub const TILE: usize = 2 * LANES;

/// An operand as lines along k.
#[derive(Clone, Copy)]
pub struct Lines<'a> {
    view: View<'a>,
    /// Whether a block holds 16 dwords of line 0, then of line 1, … (lhs) or dword 0 of 16 lines, then dword 1, … (rhs).
    line_major: bool,
}

impl<'a> Lines<'a> {
    pub fn of_lhs(lhs: View<'a>) -> Self {
        Lines { view: lhs, line_major: true }
    }

    pub fn of_rhs(rhs: View<'a>) -> Self {
        Lines { view: rhs.transposed(), line_major: false }
    }

    /// Packs panels, `groups` groups long, of lines from `line` on and k from `k` on, into all of `panels`.
    ///
    /// # Safety
    /// The CPU has AVX-512F, and with `bf16` also AVX512-BW and AVX512-BF16.
    #[inline(always)]
    pub unsafe fn pack(&self, bf16: bool, panels: &mut [Block], groups: usize, line: usize, k: usize) {
        let count = panels.len() / (2 * groups);
        // The inner loop goes along what is contiguous in memory.
        let (outer, inner) = if self.along() { (2 * count, groups) } else { (groups, 2 * count) };
        for outer in 0..outer {
            for inner in 0..inner {
                let (half, group) = if self.along() { (outer, inner) } else { (inner, outer) };
                let block = &mut panels[(half / 2 * groups + group) * 2 + half % 2];
                // SAFETY: the caller's promise.
                unsafe { self.pack_block(bf16, block, line + half * LANES, k + group * k_of_group(bf16)) };
            }
        }
    }

    /// Whether lines are contiguous.
    #[inline(always)]
    fn along(&self) -> bool {
        self.view.col_stride == 1
    }

    #[inline(always)]
    unsafe fn pack_block(&self, bf16: bool, block: &mut Block, line: usize, k: usize) {
        if line >= self.view.rows || k >= self.view.cols {
            *block = Block::ZERO;
            return;
        }
        let lines = LANES.min(self.view.rows - line);
        let depth = k_of_group(bf16).min(self.view.cols - k);
        let start = self.view.at(line, k);
        // SAFETY: the instructions exist, the caller says; `lines` x `depth` elements are inside. Whole blocks, with
        // their sizes constant, come out as straight-line code.
        unsafe {
            let vectors = match (self.along(), lines == LANES && depth == k_of_group(bf16)) {
                (true, true) => load_along(bf16, start, self.view.row_stride, LANES, k_of_group(bf16)),
                (true, false) => load_along(bf16, start, self.view.row_stride, lines, depth),
                (false, true) => load_across(bf16, start, self.view.col_stride, LANES, k_of_group(bf16)),
                (false, false) => load_across(bf16, start, self.view.col_stride, lines, depth),
            };
            let vectors = if self.along() == self.line_major { vectors } else { transpose(vectors) };
            for (row, vector) in block.0.iter_mut().zip(vectors) {
                _mm512_store_si512(row.as_mut_ptr().cast(), vector);
            }
        }
    }
}

/// An array of 16 results, without a loop or closures: those would keep vectors in memory instead of registers.
macro_rules! sixteen {
    ($i:ident => $e:expr) => {
        sixteen!(@ $i $e; 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $i:ident $e:expr; $($n:literal)*) => {
        [$({ const $i: usize = $n; $e }),*]
    };
}

/// Elements along k of one group.
pub const fn k_of_group(bf16: bool) -> usize {
    if bf16 { 2 * LANES } else { LANES }
}

/// The lowest `count` lanes.
#[inline(always)]
fn mask(count: usize) -> __mmask16 {
    if count >= LANES { !0 } else { (1 << count) - 1 }
}

/// Vector i holds 16 dwords of line i, from lines that are contiguous.
#[inline(always)]
unsafe fn load_along(
    bf16: bool,
    start: *const f32,
    line_stride: usize,
    lines: usize,
    depth: usize,
) -> [__m512i; 16] {
    // SAFETY: masked lanes are not read, and the others are inside, says the caller.
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

/// Vector i holds dword i of 16 lines, from a matrix whose lines are next to each other.
#[inline(always)]
unsafe fn load_across(
    bf16: bool,
    start: *const f32,
    k_stride: usize,
    lines: usize,
    depth: usize,
) -> [__m512i; 16] {
    // SAFETY: masked lanes are not read, and the others are inside, says the caller.
    unsafe {
        sixteen!(I => {
            if bf16 {
                let first = load_row(start, k_stride, lines, depth, 2 * I, 32);
                let second = load_row(start, k_stride, lines, depth, 2 * I + 1, 32);
                _mm512_permutexvar_epi16(interleave(), bits_of_bf16(_mm512_cvtne2ps_pbh(second, first)))
            } else {
                _mm512_castps_si512(load_row(start, k_stride, lines, depth, I, 16))
            }
        })
    }
}

/// Row `k` of a block that is `depth` deep. The hardware does not foresee strides this long, so the row `ahead` of it,
/// in the next block, is asked for.
#[inline(always)]
unsafe fn load_row(
    start: *const f32,
    k_stride: usize,
    lines: usize,
    depth: usize,
    k: usize,
    ahead: usize,
) -> __m512 {
    // SAFETY: as in `load_across`; a prefetch may be of any address.
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add((k + ahead) * k_stride).cast());
        load(if k < depth { lines } else { 0 }, start.wrapping_add(k * k_stride))
    }
}

/// The first `count` of 16 elements; zero for the others.
#[inline(always)]
unsafe fn load(count: usize, from: *const f32) -> __m512 {
    // SAFETY: masked lanes are not read, and the others are inside, says the caller.
    unsafe { _mm512_maskz_loadu_ps(mask(count), from) }
}

#[inline(always)]
fn bits_of_bf16(x: __m512bh) -> __m512i {
    // SAFETY: both are 512 bits of which each pattern is valid.
    unsafe { std::mem::transmute(x) }
}

/// Positions 0, 16, 1, 17, …: from 16 first and 16 second halves to 16 pairs.
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
    // SAFETY: both are 64 bytes of which each pattern is valid.
    unsafe { std::mem::transmute(POSITIONS) }
}

/// Transposes 16 x 16 dwords: four rounds that exchange blocks of 1, 2, 4 and 8 lanes.
#[inline(always)]
unsafe fn transpose(v: [__m512i; 16]) -> [__m512i; 16] {
    // SAFETY: the caller's promise of AVX-512F.
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
