//! The innermost matmuls: one 32 x 32 tile of sums from a panel of lhs and a panel of rhs.

use super::pack::{Block, Format, LANES, PARTS, TILE};
use super::packed::{Phase, Task};
use std::arch::asm;
use std::arch::x86_64::*;

/// The sums of one tile.
#[repr(C, align(64))]
pub struct Tile(pub [[f32; TILE]; TILE]);

/// An instruction set for the multiplication, and code compiled for it.
///
/// # Safety
/// For each function, the CPU must have the instructions.
pub trait Kernel {
    const FORMAT: Format;

    /// [`Phase::perform`] compiled for the instruction set; everything it calls is inlined.
    unsafe fn perform(phase: &Phase, task: Task);

    /// Called by a thread before its first `multiply`.
    unsafe fn enter() {}

    /// Called by a thread after its last `multiply`.
    unsafe fn leave() {}

    /// tile = lhs @ rhs for the first `rows` rows; the others are unspecified.
    unsafe fn multiply(tile: &mut Tile, lhs: &[Block], rhs: &[Block], rows: usize);
}

/// Rows of the tile kept in registers at a time. With two vectors of columns they form 16
/// independent chains of additions, enough to hide the latency of two multipliers.
const ROWS: usize = 8;
/// Groups along k before the sums return to the tile and the next rows follow, so that the blocks
/// of rhs, which all rows share, stay in the L1 cache: 8 x 2 KiB.
const GROUPS: usize = 8;

/// Computes the tile with AVX-512 instructions.
#[inline(always)]
unsafe fn multiply_avx512(bf16: bool, tile: &mut Tile, lhs: &[Block], rhs: &[Block], rows: usize) {
    let chunks = lhs.chunks(2 * GROUPS).zip(rhs.chunks(2 * GROUPS));
    for (chunk, (lhs, rhs)) in chunks.enumerate() {
        for row in (0..rows).step_by(ROWS) {
            // SAFETY: a block of rhs is 16 vectors; rows `row..row + 8` lie in one block of lhs,
            // since 8 divides 16. The caller guarantees the instructions.
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

/// Returns 16 columns of sum + lhs * rhs on dwords.
#[inline(always)]
unsafe fn step(bf16: bool, sum: __m512, lhs: __m512i, rhs: __m512i) -> __m512 {
    // SAFETY: the caller guarantees the instructions; all types are 512 bits wide, and all bit
    // patterns are valid.
    unsafe {
        if bf16 {
            let pairs = |x| std::mem::transmute::<__m512i, __m512bh>(x);
            _mm512_dpbf16_ps(sum, pairs(lhs), pairs(rhs))
        } else {
            _mm512_fmadd_ps(_mm512_castsi512_ps(lhs), _mm512_castsi512_ps(rhs), sum)
        }
    }
}

/// f32 with AVX-512F.
pub struct F32Avx512;

impl Kernel for F32Avx512 {
    const FORMAT: Format = Format::F32;

    #[target_feature(enable = "avx512f")]
    unsafe fn perform(phase: &Phase, task: Task) {
        // SAFETY: the caller guarantees the instructions and that no other thread touches the
        // task's output.
        unsafe { phase.perform::<Self>(task) }
    }

    #[inline(always)]
    unsafe fn multiply(tile: &mut Tile, lhs: &[Block], rhs: &[Block], rows: usize) {
        // SAFETY: the caller guarantees the instructions.
        unsafe { multiply_avx512(Self::FORMAT == Format::Bf16, tile, lhs, rhs, rows) }
    }
}

/// Pairs of bf16 with AVX512-BF16.
pub struct Bf16Avx512;

impl Kernel for Bf16Avx512 {
    const FORMAT: Format = Format::Bf16;

    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn perform(phase: &Phase, task: Task) {
        // SAFETY: the caller guarantees the instructions and that no other thread touches the
        // task's output.
        unsafe { phase.perform::<Self>(task) }
    }

    #[inline(always)]
    unsafe fn multiply(tile: &mut Tile, lhs: &[Block], rhs: &[Block], rows: usize) {
        // SAFETY: the caller guarantees the instructions.
        unsafe { multiply_avx512(Self::FORMAT == Format::Bf16, tile, lhs, rhs, rows) }
    }
}

/// Pairs of bf16 with AMX tiles.
pub struct Bf16Amx;

/// Operand of `ldtilecfg` (Intel SDM, volume 1, chapter 18): palette 1, and 8 tiles of 16 rows of
/// 64 bytes.
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
    const FORMAT: Format = Format::Bf16;

    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn perform(phase: &Phase, task: Task) {
        // SAFETY: the caller guarantees the instructions and that no other thread touches the
        // task's output.
        unsafe { phase.perform::<Self>(task) }
    }

    #[inline(always)]
    unsafe fn enter() {
        // SAFETY: the caller guarantees that the CPU and the operating system allow AMX; the
        // configuration is valid.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const TILE_CONFIG, options(nostack, preserves_flags)) }
    }

    #[inline(always)]
    unsafe fn leave() {
        // SAFETY: the caller guarantees that AMX is allowed. This frees the thread's tile state,
        // which the system would otherwise have to save.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) }
    }

    #[inline(always)]
    unsafe fn multiply(tile: &mut Tile, lhs: &[Block], rhs: &[Block], _rows: usize) {
        let groups = lhs.len() / 2;
        debug_assert!(groups > 0 && rhs.len() == 2 * groups);
        // SAFETY: the caller guarantees AMX and `enter`. Each iteration reads two blocks of lhs and
        // two of rhs; the stores fill the tile: 32 rows of 128 bytes. Tiles 0 to 3 are the quarters
        // of the sums, 4 and 5 blocks of lhs, 6 and 7 of rhs.
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

/// f32 with AMX tiles, each number as three bf16.
///
/// Six of the nine products of parts are added, the largest last: the omitted ones are below 2^-24
/// of the full product, as is its rounding to f32.
pub struct F32Amx;

impl Kernel for F32Amx {
    const FORMAT: Format = Format::ThreeBf16;

    #[target_feature(enable = "avx512f")]
    unsafe fn perform(phase: &Phase, task: Task) {
        // SAFETY: the caller guarantees the instructions and that no other thread touches the
        // task's output.
        unsafe { phase.perform::<Self>(task) }
    }

    #[inline(always)]
    unsafe fn enter() {
        // SAFETY: the caller guarantees the instructions.
        unsafe { Bf16Amx::enter() }
    }

    #[inline(always)]
    unsafe fn leave() {
        // SAFETY: the caller guarantees the instructions.
        unsafe { Bf16Amx::leave() }
    }

    #[inline(always)]
    unsafe fn multiply(tile: &mut Tile, lhs: &[Block], rhs: &[Block], rows: usize) {
        // SAFETY: the caller guarantees the instructions.
        unsafe { multiply_parts(tile, lhs, rhs) };
        if tile.0[..rows].iter().flatten().any(|x| x.is_nan()) {
            sum_infinities(tile, lhs, rhs, rows);
        }
    }
}

/// One product of parts for each of the four quarters of the sums.
macro_rules! quarters {
    () => {
        "tdpbf16ps tmm0, tmm4, tmm6
         tdpbf16ps tmm2, tmm5, tmm6
         tdpbf16ps tmm1, tmm4, tmm7
         tdpbf16ps tmm3, tmm5, tmm7"
    };
}

/// Loads the part at byte `$offset` of a group for the 32 lines of an operand.
macro_rules! load_part {
    ($first:literal, $second:literal, $operand:literal, $offset:literal) => {
        concat!(
            "tileloadd ",
            $first,
            ", [{",
            $operand,
            "} + {row} + ",
            $offset,
            "]\n",
            "tileloadd ",
            $second,
            ", [{",
            $operand,
            "} + {row} + ",
            $offset,
            " + 3072]"
        )
    };
}

#[rustfmt::skip]
#[inline(always)]
unsafe fn multiply_parts(tile: &mut Tile, lhs: &[Block], rhs: &[Block]) {
    let groups = lhs.len() / (2 * PARTS);
    debug_assert!(groups > 0 && rhs.len() == 2 * PARTS * groups);
    // SAFETY: the caller guarantees AMX and `enter`. Each iteration reads six blocks of lhs and six
    // of rhs; the stores fill the tile: 32 rows of 128 bytes. Tiles 0 to 3 are the quarters of the
    // sums, 4 and 5 blocks of lhs, 6 and 7 of rhs. In this order each product replaces the blocks
    // of only one operand.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            load_part!("tmm4", "tmm5", "lhs", 2048),
            load_part!("tmm6", "tmm7", "rhs", 0),
            quarters!(),
            load_part!("tmm4", "tmm5", "lhs", 1024),
            quarters!(),
            load_part!("tmm6", "tmm7", "rhs", 1024),
            quarters!(),
            load_part!("tmm4", "tmm5", "lhs", 0),
            quarters!(),
            load_part!("tmm6", "tmm7", "rhs", 2048),
            quarters!(),
            load_part!("tmm6", "tmm7", "rhs", 0),
            quarters!(),
            "add {lhs}, 6144",
            "add {rhs}, 6144",
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

/// Recomputes sums from undivided numbers where infinity times a zero part gave NaN, although
/// infinity times the full number would not.
#[cold]
fn sum_infinities(tile: &mut Tile, lhs: &[Block], rhs: &[Block], rows: usize) {
    let is_infinity = |half: u32| half & 0x7fff == 0x7f80;
    let has_infinity = |blocks: &[Block]| {
        let mut high = blocks.iter().step_by(PARTS).flat_map(|block| block.0.iter().flatten());
        high.any(|&dword| is_infinity(dword) || is_infinity(dword >> 16))
    };
    if !has_infinity(lhs) && !has_infinity(rhs) {
        return;
    }
    let depth = lhs.len() / (2 * PARTS) * Format::ThreeBf16.k_of_group();
    let whole = |blocks: &[Block], line: usize, line_major: bool, k: usize| {
        let group = k / (2 * LANES);
        let first = (2 * group + line / LANES) * PARTS;
        let (line, dword, upper) = (line % LANES, k % LANES, k / LANES % 2 == 1);
        let (row, col) = if line_major { (line, dword) } else { (dword, line) };
        let part = |block: &Block| f32::from_bits(block.0[row][col] << if upper { 0 } else { 16 } & !0xffff);
        blocks[first..first + PARTS].iter().map(part).sum::<f32>()
    };
    for (i, row) in tile.0.iter_mut().enumerate().take(rows) {
        for (j, sum) in row.iter_mut().enumerate().filter(|(_, sum)| sum.is_nan()) {
            *sum = (0..depth).map(|k| whole(lhs, i, true, k) * whole(rhs, j, false, k)).sum();
        }
    }
}
