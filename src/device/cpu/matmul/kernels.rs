//! The innermost products: one 32 x 32 tile of sums from a panel of lhs and a panel of rhs.

use super::pack::{Block, TILE};
use super::packed::{Phase, Task};
use std::arch::asm;
use std::arch::x86_64::*;

/// Sums of one tile.
#[repr(C, align(64))]
pub struct Tile(pub [[f32; TILE]; TILE]);

/// Instructions that compute, and code compiled for them.
///
/// # Safety
/// The CPU has the instructions, for each function.
pub trait Kernel {
    const BF16: bool;

    /// [`Phase::perform`], compiled for the instructions: what it calls is inlined into it.
    unsafe fn perform(phase: &Phase, task: Task);

    /// Called by a thread before `multiply`.
    unsafe fn enter() {}

    /// Called by a thread after the last `multiply`.
    unsafe fn leave() {}

    /// tile = lhs @ rhs for the first `rows` rows; the others may be left as they are.
    unsafe fn multiply(tile: &mut Tile, lhs: &[Block], rhs: &[Block], rows: usize);
}

/// Rows of the tile that stay in registers at once: with two vectors of columns they make 16 independent chains of
/// additions, enough to hide the latency of two multipliers.
const ROWS: usize = 8;
/// Groups along k after which the sums go to the tile and the next rows take their turn, so that the blocks of rhs
/// that all rows share stay in the first-level cache: 8 x 2 KiB.
const GROUPS: usize = 8;

/// The tile with AVX-512 instructions.
#[inline(always)]
unsafe fn multiply_avx512(bf16: bool, tile: &mut Tile, lhs: &[Block], rhs: &[Block], rows: usize) {
    let chunks = lhs.chunks(2 * GROUPS).zip(rhs.chunks(2 * GROUPS));
    for (chunk, (lhs, rhs)) in chunks.enumerate() {
        for row in (0..rows).step_by(ROWS) {
            // SAFETY: a block of rhs is 16 vectors; rows `row..row + 8` lie in one block of lhs as 16 divides by 8.
            unsafe {
                let start = tile.0[row..].as_mut_ptr().cast::<f32>();
                let tile_row = |r: usize, half: usize| start.add(r * TILE + 16 * half);
                let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
                if chunk > 0 {
                    for (r, sum) in sums.iter_mut().enumerate() {
                        *sum = [_mm512_load_ps(tile_row(r, 0)), _mm512_load_ps(tile_row(r, 1))];
                    }
                }
                for (lhs, rhs) in lhs.chunks_exact(2).zip(rhs.chunks_exact(2)) {
                    let lhs = lhs.as_ptr().cast::<i32>().add(row * 16);
                    let rhs = rhs.as_ptr().cast::<__m512i>();
                    for k in 0..16 {
                        let (first, second) = (rhs.add(k).read(), rhs.add(16 + k).read());
                        for (r, sum) in sums.iter_mut().enumerate() {
                            let value = _mm512_set1_epi32(*lhs.add(r * 16 + k));
                            *sum = [step(bf16, sum[0], value, first), step(bf16, sum[1], value, second)];
                        }
                    }
                }
                for (r, sum) in sums.iter().enumerate() {
                    _mm512_store_ps(tile_row(r, 0), sum[0]);
                    _mm512_store_ps(tile_row(r, 1), sum[1]);
                }
            }
        }
    }
}

/// 16 columns of sum + lhs * rhs on dwords.
#[inline(always)]
unsafe fn step(bf16: bool, sum: __m512, lhs: __m512i, rhs: __m512i) -> __m512 {
    // SAFETY: the instructions exist, the caller says; all types are 512 bits of which each pattern is valid.
    unsafe {
        if bf16 {
            let pairs = |x| std::mem::transmute::<__m512i, __m512bh>(x);
            _mm512_dpbf16_ps(sum, pairs(lhs), pairs(rhs))
        } else {
            _mm512_fmadd_ps(_mm512_castsi512_ps(lhs), _mm512_castsi512_ps(rhs), sum)
        }
    }
}

/// f32 by AVX-512F.
pub struct F32Avx512;

impl Kernel for F32Avx512 {
    const BF16: bool = false;

    #[target_feature(enable = "avx512f")]
    unsafe fn perform(phase: &Phase, task: Task) {
        // SAFETY: the caller's promises.
        unsafe { phase.perform::<Self>(task) }
    }

    #[inline(always)]
    unsafe fn multiply(tile: &mut Tile, lhs: &[Block], rhs: &[Block], rows: usize) {
        // SAFETY: the caller's promise.
        unsafe { multiply_avx512(Self::BF16, tile, lhs, rhs, rows) }
    }
}

/// Pairs of bf16 by AVX512-BF16.
pub struct Bf16Avx512;

impl Kernel for Bf16Avx512 {
    const BF16: bool = true;

    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn perform(phase: &Phase, task: Task) {
        // SAFETY: the caller's promises.
        unsafe { phase.perform::<Self>(task) }
    }

    #[inline(always)]
    unsafe fn multiply(tile: &mut Tile, lhs: &[Block], rhs: &[Block], rows: usize) {
        // SAFETY: the caller's promise.
        unsafe { multiply_avx512(Self::BF16, tile, lhs, rhs, rows) }
    }
}

/// Pairs of bf16 by AMX tiles.
pub struct Bf16Amx;

/// `ldtilecfg`'s operand (Intel SDM, volume 1, chapter 18): palette 1, and 8 tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static TILE_CONFIG: TileConfig = {
    let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
    let mut tile = 0;
    while tile < 8 {
        (row_bytes[tile], rows[tile]) = (64, 16);
        tile += 1;
    }
    TileConfig { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
};

impl Kernel for Bf16Amx {
    const BF16: bool = true;

    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn perform(phase: &Phase, task: Task) {
        // SAFETY: the caller's promises.
        unsafe { phase.perform::<Self>(task) }
    }

    #[inline(always)]
    unsafe fn enter() {
        // SAFETY: the CPU and the operating system allow AMX, the caller says; the configuration is valid.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const TILE_CONFIG, options(nostack, preserves_flags)) }
    }

    #[inline(always)]
    unsafe fn leave() {
        // SAFETY: as above; it frees the thread's tile state, which the system would have to save.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) }
    }

    #[inline(always)]
    unsafe fn multiply(tile: &mut Tile, lhs: &[Block], rhs: &[Block], _rows: usize) {
        let groups = lhs.len() / 2;
        debug_assert!(groups > 0 && rhs.len() == 2 * groups);
        // SAFETY: each turn reads two blocks of lhs and two of rhs; the stores fill the tile: 32 rows of 128 bytes.
        // Tiles 0 to 3 are the quarters of the sums, 4 and 5 blocks of lhs, 6 and 7 of rhs.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{lhs} + {row}]",
                "tileloadd tmm6, [{rhs} + {row}]",
                "tileloadd tmm5, [{lhs} + {row} + 1024]",
                "tileloadd tmm7, [{rhs} + {row} + 1024]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {lhs}, 2048",
                "add {rhs}, 2048",
                "dec {groups}",
                "jnz 2b",
                "shl {row}, 1",
                "tilestored [{tile} + {row}], tmm0",
                "tilestored [{tile} + {row} + 64], tmm1",
                "tilestored [{tile} + {row} + 2048], tmm2",
                "tilestored [{tile} + {row} + 2112], tmm3",
                lhs = inout(reg) lhs.as_ptr() => _,
                rhs = inout(reg) rhs.as_ptr() => _,
                groups = inout(reg) groups => _,
                row = inout(reg) 64usize => _,
                tile = in(reg) tile as *mut Tile,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            )
        }
    }
}
