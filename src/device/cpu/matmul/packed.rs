//! Blocked matmuls over packed operands (Goto and van de Geijn 2008), for CPUs with AVX-512 or AMX.
//!
//! k is divided into phases. In each, all threads pack lhs and then take jobs, each a range of rows
//! and columns of `out`: the thread packs the columns of rhs, which then stay in its L2 cache, and
//! goes over the rows tile by tile, finishing each tile while it is in the L1 cache. In GPT-2 rhs
//! is usually a weight much larger than lhs; it is read once from memory, and its packed form never
//! returns there.
//!
//! Each sum is computed in an order that follows from k alone, so it does not depend on the number
//! of threads, on the division into jobs, or on the other rows of a batch, bit for bit.

use super::kernels::{Bf16Amx, Bf16Avx512, F32Amx, F32Avx512, Kernel, Tile};
use super::pack::{Block, Format, Lines, TILE};
use super::product::Product;
use rayon::prelude::*;
use std::arch::x86_64::*;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Groups along k per phase. More mean fewer round trips of partial sums, fewer a smaller panel of
/// rhs.
const fn phase_groups(format: Format) -> usize {
    match format {
        Format::F32 | Format::Bf16 => 64,
        Format::ThreeBf16 => 32,
    }
}
/// Blocks of lhs packed at a time: 8 MiB, which the caches still hold when the jobs read it.
const LHS_BLOCKS: usize = 8 << 10;
/// Blocks of packed rhs per job: 768 KiB, part of the L2 cache.
const RHS_BLOCKS: usize = 768;

/// Panels of lhs that a thread packs at a time.
const PANELS_AT_ONCE: usize = 4;

/// Packed operands.
#[derive(Default)]
pub struct Buffers {
    lhs: Vec<Block>,
    /// One per thread.
    rhs: Vec<Vec<Block>>,
}

/// The instruction set of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instructions {
    F32Amx,
    F32Avx512,
    Bf16Avx512,
    Bf16Amx,
}

impl Instructions {
    pub fn available(self) -> bool {
        let avx512 = is_x86_feature_detected!("avx512f");
        let bf16 = is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512bf16");
        match self {
            Instructions::F32Amx => avx512 && amx_is_granted(),
            Instructions::F32Avx512 => avx512,
            Instructions::Bf16Avx512 => avx512 && bf16,
            Instructions::Bf16Amx => avx512 && bf16 && amx_is_granted(),
        }
    }

    fn format(self) -> Format {
        match self {
            Instructions::F32Amx => F32Amx::FORMAT,
            Instructions::F32Avx512 => F32Avx512::FORMAT,
            Instructions::Bf16Avx512 => Bf16Avx512::FORMAT,
            Instructions::Bf16Amx => Bf16Amx::FORMAT,
        }
    }

    /// Bytes of [`Buffers`] after matmuls of these rows of lhs and lengths of sums, with as many
    /// columns of rhs per job as there may be.
    pub fn packed_bytes(self, lhs: impl Iterator<Item = (usize, usize)>) -> usize {
        let format = self.format();
        let blocks_of = |(m, k): (usize, usize)| {
            let blocks = panel_blocks(format, k.min(phase_k(format)));
            m.div_ceil(TILE).min(panels_of_phase(blocks)) * blocks
        };
        let rhs = rayon::current_num_threads() * RHS_BLOCKS;
        (lhs.map(blocks_of).max().unwrap_or(0) + rhs) * size_of::<Block>()
    }

    /// Runs a matmul.
    ///
    /// # Panics
    /// If the instructions are not available.
    pub fn run(self, buffers: &mut Buffers, product: &Product) {
        assert!(self.available());
        match self {
            Instructions::F32Amx => run::<F32Amx>(buffers, product),
            Instructions::F32Avx512 => run::<F32Avx512>(buffers, product),
            Instructions::Bf16Avx512 => run::<Bf16Avx512>(buffers, product),
            Instructions::Bf16Amx => run::<Bf16Amx>(buffers, product),
        }
    }
}

/// Whether the CPU has AMX and the operating system lets this process use it (Linux documentation,
/// arch/x86/xstate.rst).
fn amx_is_granted() -> bool {
    static GRANTED: OnceLock<bool> = OnceLock::new();
    *GRANTED.get_or_init(|| {
        const AMX_BF16_AND_TILE: u32 = 1 << 22 | 1 << 24;
        const TILE_STATE: u64 = 3 << 17;
        // SAFETY: OSXSAVE is checked before xgetbv runs.
        let in_cpu = __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & AMX_BF16_AND_TILE == AMX_BF16_AND_TILE;
        let in_system = is_x86_feature_detected!("xsave") && unsafe { _xgetbv(0) } & TILE_STATE == TILE_STATE;
        in_cpu && in_system && request_tile_data()
    })
}

#[cfg(target_os = "linux")]
fn request_tile_data() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the system call takes two numbers and does not change our memory.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn request_tile_data() -> bool {
    false
}

/// Elements along k per phase.
const fn phase_k(format: Format) -> usize {
    phase_groups(format) * format.k_of_group()
}

/// Blocks of a panel of `depth` elements along k.
const fn panel_blocks(format: Format, depth: usize) -> usize {
    depth.div_ceil(format.k_of_group()) * format.blocks_of_group()
}

/// Panels of lhs per phase, for panels of so many blocks.
fn panels_of_phase(blocks: usize) -> usize {
    (LHS_BLOCKS / blocks).max(1)
}

fn run<K: Kernel>(buffers: &mut Buffers, product: &Product) {
    let threads = rayon::current_num_threads();
    if buffers.rhs.len() < threads {
        buffers.rhs.resize(threads, vec![]);
    }
    let (m, k) = (product.m(), product.k());
    let phase_k = phase_k(K::FORMAT);
    let phase_m = panels_of_phase(panel_blocks(K::FORMAT, k.min(phase_k))) * TILE;
    for row in (0..m).step_by(phase_m) {
        for k_start in (0..k).step_by(phase_k) {
            let depth = phase_k.min(k - k_start);
            let rows = phase_m.min(m - row);
            let (first, last) = (k_start == 0, k_start + depth == k);
            let blocks = panel_blocks(K::FORMAT, depth);
            let phase = Phase { product, row, rows, k: k_start, blocks, first, last };
            phase.run::<K>(buffers, threads);
        }
    }
}

/// A range of rows of `out`, and of terms of their sums.
pub struct Phase<'a> {
    product: &'a Product<'a>,
    row: usize,
    rows: usize,
    k: usize,
    /// Blocks per panel.
    blocks: usize,
    /// Whether it has the first terms, and the last.
    first: bool,
    last: bool,
}

/// The work of one thread.
pub enum Task<'a> {
    /// Packs rows of lhs from `line` on.
    PackLhs { panels: &'a mut [Block], line: usize },
    /// Takes jobs until none are left.
    Jobs { jobs: &'a Jobs<'a>, rhs: &'a mut Vec<Block> },
}

/// The division of a phase into jobs.
pub struct Jobs<'a> {
    lhs: &'a [Block],
    /// Panels of rows per job, and columns.
    panels: usize,
    cols: usize,
    /// Number of jobs that cover the rows, and of all jobs.
    row_jobs: usize,
    count: usize,
    next: AtomicUsize,
}

impl Phase<'_> {
    fn run<K: Kernel>(&self, buffers: &mut Buffers, threads: usize) {
        let blocks = self.blocks;
        let all_panels = self.rows.div_ceil(TILE);
        if buffers.lhs.len() < all_panels * blocks {
            buffers.lhs.resize(all_panels * blocks, Block::ZERO);
        }
        let lhs = &mut buffers.lhs[..all_panels * blocks];
        lhs.par_chunks_mut(PANELS_AT_ONCE * blocks).enumerate().for_each(|(index, panels)| {
            let line = self.row + index * PANELS_AT_ONCE * TILE;
            // SAFETY: `Instructions::run` checked that the instructions are available; each task
            // packs its own panels.
            unsafe { K::perform(self, Task::PackLhs { panels, line }) }
        });

        let (panels, cols) = self.job_size(threads);
        let row_jobs = all_panels.div_ceil(panels);
        let count = row_jobs * self.product.n().div_ceil(cols);
        let jobs = &Jobs { lhs, panels, cols, row_jobs, count, next: AtomicUsize::new(0) };
        buffers.rhs[..threads.min(count)].par_iter_mut().with_max_len(1).for_each(|rhs| {
            // SAFETY: `Instructions::run` checked that the instructions are available; each job,
            // and so each part of `out`, is taken by one thread.
            unsafe { K::perform(self, Task::Jobs { jobs, rhs }) }
        });
    }

    /// Performs a task.
    ///
    /// # Safety
    /// The CPU must have the instructions of `K`, for which the caller is compiled, and no other
    /// thread may touch the task's output.
    #[inline(always)]
    pub unsafe fn perform<K: Kernel>(&self, task: Task) {
        // SAFETY: the caller guarantees the instructions and exclusive access to the output.
        unsafe {
            match task {
                Task::PackLhs { panels, line } => {
                    Lines::of_lhs(self.product.lhs).pack(K::FORMAT, panels, self.groups::<K>(), line, self.k)
                }
                Task::Jobs { jobs, rhs } => {
                    K::enter();
                    self.take_jobs::<K>(jobs, rhs);
                    K::leave();
                    // Streaming stores are not ordered with the stores that signal completion to
                    // other threads.
                    _mm_sfence();
                }
            }
        }
    }

    /// Groups per panel.
    #[inline(always)]
    fn groups<K: Kernel>(&self) -> usize {
        self.blocks / K::FORMAT.blocks_of_group()
    }

    #[inline(always)]
    unsafe fn take_jobs<K: Kernel>(&self, jobs: &Jobs, rhs: &mut Vec<Block>) {
        let blocks = self.blocks;
        let mut packed = usize::MAX;
        loop {
            let job = jobs.next.fetch_add(1, Ordering::Relaxed);
            if job >= jobs.count {
                return;
            }
            let (col, first_panel) = (job / jobs.row_jobs * jobs.cols, job % jobs.row_jobs * jobs.panels);
            let cols = jobs.cols.min(self.product.n() - col);
            // SAFETY: the caller guarantees the instructions and exclusive access to the output.
            unsafe {
                if packed != col {
                    self.pack_rhs::<K>(rhs, col, cols);
                    packed = col;
                }
                let lhs = jobs.lhs.chunks_exact(blocks).enumerate().skip(first_panel).take(jobs.panels);
                for (panel, lhs) in lhs {
                    self.row_of_tiles::<K>(lhs, rhs, panel * TILE, col, cols);
                }
            }
        }
    }

    /// Returns panels of rows, and columns, per job: small enough that threads finish together. The
    /// rows of a tall `out` are divided, so a thread finds the columns of its next job already
    /// packed.
    fn job_size(&self, threads: usize) -> (usize, usize) {
        let wanted = 4 * threads;
        let row_panels = self.rows.div_ceil(TILE);
        let col_panels = self.product.n().div_ceil(TILE);
        let mut job_cols = (RHS_BLOCKS / self.blocks).clamp(1, col_panels);
        if row_panels < col_panels || row_panels * col_panels.div_ceil(job_cols) < wanted {
            job_cols = job_cols.min((col_panels / wanted).max(2));
        }
        let row_jobs = (wanted / col_panels.div_ceil(job_cols)).max(1);
        (row_panels.div_ceil(row_jobs).max(4), job_cols * TILE)
    }

    #[inline(always)]
    unsafe fn pack_rhs<K: Kernel>(&self, rhs: &mut Vec<Block>, col: usize, cols: usize) {
        let blocks = self.blocks;
        let panels = cols.div_ceil(TILE);
        if rhs.len() < panels * blocks {
            rhs.resize(panels * blocks, Block::ZERO);
        }
        let rhs = &mut rhs[..panels * blocks];
        // SAFETY: the caller guarantees the instructions.
        unsafe { Lines::of_rhs(self.product.rhs).pack(K::FORMAT, rhs, self.groups::<K>(), col, self.k) };
    }

    /// Computes `cols` columns from `col` on of 32 rows, the first of which is row `row` of this
    /// phase.
    #[inline(always)]
    unsafe fn row_of_tiles<K: Kernel>(
        &self,
        lhs: &[Block],
        rhs: &[Block],
        row: usize,
        col: usize,
        cols: usize,
    ) {
        let mut tile = Tile([[0.0; TILE]; TILE]);
        let rows = TILE.min(self.rows - row);
        for (index, rhs) in rhs.chunks_exact(lhs.len()).enumerate().take(cols.div_ceil(TILE)) {
            let offset = index * TILE;
            // SAFETY: the caller guarantees the instructions and exclusive access to the output.
            unsafe {
                if self.adds() {
                    self.prefetch_out(row, col + offset, rows);
                }
                K::multiply(&mut tile, lhs, rhs, rows);
                let (row, col) = (self.row + row, col + offset);
                match cols - offset {
                    TILE.. => self.store(&mut tile, row, col, rows, TILE),
                    cols => self.store(&mut tile, row, col, rows, cols),
                }
            }
        }
    }

    /// Prefetches the elements that the tile will be added to.
    #[inline(always)]
    unsafe fn prefetch_out(&self, row: usize, col: usize, rows: usize) {
        for row in row..row + rows {
            let out = self.product.out_at(self.row + row, col).cast_const();
            // SAFETY: any address may be prefetched.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(out.cast());
                _mm_prefetch::<_MM_HINT_T0>(out.wrapping_add(TILE / 2).cast());
            }
        }
    }

    /// Adds earlier terms from `out`, applies the epilogue, and writes.
    #[inline(always)]
    unsafe fn store(&self, tile: &mut Tile, row: usize, col: usize, rows: usize, cols: usize) {
        for (i, sums) in tile.0.iter_mut().enumerate().take(rows) {
            let out = self.product.out_at(row + i, col);
            let whole = cols == TILE && (out as usize).is_multiple_of(size_of::<__m512>());
            // SAFETY: the caller guarantees that the elements are inside `out` and belong to this
            // thread.
            unsafe {
                if self.adds() {
                    let out = std::slice::from_raw_parts(out, cols);
                    sums.iter_mut().zip(out).for_each(|(s, o)| *s += o);
                }
                if self.last {
                    self.product.finish(&mut sums[..cols], row + i, col);
                }
                if whole && self.last && self.product.streams() {
                    _mm512_stream_ps(out, _mm512_load_ps(sums.as_ptr()));
                    _mm512_stream_ps(out.add(16), _mm512_load_ps(sums.as_ptr().add(16)));
                } else {
                    out.copy_from_nonoverlapping(sums.as_ptr(), cols);
                }
            }
        }
    }

    /// Whether the sums of this phase are added to the contents of `out`.
    fn adds(&self) -> bool {
        !self.first || self.product.accumulates()
    }
}
