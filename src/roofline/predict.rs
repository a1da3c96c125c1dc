//! The time of a kernel on a GPU, from its bytes, FLOPs, tiles and waves.

use super::gpu::Gpu;
use super::hopper;
use super::kernels::{Kernel, Tail, Work};

/// The cost of one call of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    pub floor_us: f64,
    pub realistic_us: f64,
    /// Whether FLOPs rather than bytes set the floor.
    pub compute_bound: bool,
    /// The realistic time is the longest of these, and what does not overlap: computing, memory,
    /// and the limits that were counted.
    pub compute_us: f64,
    pub memory_us: f64,
    pub limits: Limits,
    /// SMs divided by SMs that have work, averaged over time.
    pub idle: f64,
    /// The resource that sets the time of computing.
    computing: Bound,
    /// The tiles of the output and how often they fill the GPU; `None` for kernels that stream.
    pub tiles: Option<Tiles>,
}

/// Time that a call needs at the full rate of the L2 cache and of shared memory, where that was
/// [counted](super::counted).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    pub l2_us: Option<f64>,
    pub shared_us: Option<f64>,
    /// Bytes touched divided by the bytes that must be; 0 if nothing was counted.
    pub bytes_ratio: f64,
}

/// The resource that sets the realistic time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    Memory,
    L2,
    Shared,
    /// A kernel's own clocks: instructions, and results that they wait for.
    Clocks,
    Tensor,
    /// SMs, more than a third of which wait for the last tiles.
    Waves,
}

impl Bound {
    pub fn name(self) -> &'static str {
        match self {
            Bound::Memory => "HBM",
            Bound::L2 => "L2",
            Bound::Shared => "shared",
            Bound::Clocks => "clocks",
            Bound::Tensor => "tensor",
            Bound::Waves => "waves",
        }
    }
}

impl Prediction {
    /// Adds limits; the realistic time is never below them.
    fn with(self, limits: Limits) -> Self {
        let [l2, shared] = [limits.l2_us, limits.shared_us].map(Option::unwrap_or_default);
        Prediction { realistic_us: self.realistic_us.max(l2).max(shared), limits, ..self }
    }

    pub fn bound(&self) -> Bound {
        let [l2, shared] = [self.limits.l2_us, self.limits.shared_us].map(Option::unwrap_or_default);
        let computing = if self.idle > 1.5 { Bound::Waves } else { self.computing };
        let times = [
            (Bound::Memory, self.memory_us),
            (Bound::L2, l2),
            (Bound::Shared, shared),
            (computing, self.compute_us),
        ];
        times.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).map_or(computing, |longest| longest.0)
    }
}

/// The partition of the output into tiles.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tiles {
    /// Rows and columns of a tile.
    pub size: (usize, usize),
    pub count: usize,
    /// Tiles divided by SMs; the gap to the next whole number is idle time, unless sums are split.
    pub waves: f64,
}

/// Microseconds lost between two kernels: the last blocks of one finish alone, and the first blocks
/// of the next start cold. This is for kernels that are launched one by one.
pub const GAP_US: f64 = 4.0;

/// The same in a step, whose micro-steps are CUDA graphs and whose kernels start while the one
/// before ends. An estimate: nothing of the kind was measured.
pub const STEP_GAP_US: f64 = 1.0;

/// Share of a large matmul's rate that the mix of kernels in a step sustains: clocks drop when
/// memory is busy too.
pub(super) const SUSTAINED: f64 = 0.955;

/// Share of a copy's bandwidth that a memory-bound matmul gets.
pub(super) const MATMUL_STREAM: f64 = 0.93;

/// Output tiles available to a matmul on a GPU other than Hopper. There are so many because of 1600
/// = 10 x 160 columns.
const TILES: [(usize, usize); 7] =
    [(128, 256), (256, 128), (128, 192), (128, 160), (128, 128), (64, 128), (64, 64)];

/// The length of K that tensor cores could multiply while an epilogue keeps them waiting, on a GPU
/// other than Hopper: an estimate for a good kernel, about 800 clocks of Hopper next to the 12,288
/// of a tile of 128 x 256 at K = 768.
fn exposed_k(tail: Tail, gpu: &Gpu) -> f64 {
    const HOPPER_TFLOPS_PER_SM: f64 = 989.4 / 132.0;
    let on_hopper = match tail {
        Tail::Plain | Tail::Bias | Tail::Accumulate => 50.0,
        Tail::Residual | Tail::GeluBackward => 70.0,
        Tail::Gelu => 100.0,
        Tail::GeluAndGradient => 110.0,
    };
    on_hopper * (gpu.peak_tflops() / gpu.SMs as f64) / HOPPER_TFLOPS_PER_SM
}

/// Rate of a tile's main loop relative to 128 x 256. Operand traffic through shared memory and the
/// cache is proportional to 1 / rows + 1 / columns, and the more there is, the less of it is
/// hidden.
fn tile_rate((rows, columns): (usize, usize)) -> f64 {
    let loss = |rows: usize, columns: usize| 1.0 + 32.0 * (1.0 / rows as f64 + 1.0 / columns as f64);
    loss(128, 256) / loss(rows, columns)
}

/// Predicts one call: the fastest way to compute it, within the limits that `limits` returns for
/// its tiles.
pub fn predict(kernel: &Kernel, gpu: &Gpu, limits: impl Fn(Option<Tiles>) -> Option<Limits>) -> Prediction {
    let compute = kernel.flops / gpu.matmul_ceiling();
    let memory = kernel.bytes / gpu.copy_ceiling();
    let ways = match kernel.work {
        Work::Matmul { m, n, k, tail } => matmul(kernel, (m, n, k), tail, gpu),
        Work::Attention { B, NH, T, HS, backward } => {
            let dims = (B, NH, T, HS);
            let way = hopper::attention(dims, backward, gpu);
            vec![way.unwrap_or_else(|| attention(kernel, dims, backward, gpu))]
        }
        Work::Stream { rows, columns, share } => {
            let way = hopper::stream(kernel, (rows, columns), gpu);
            vec![way.unwrap_or_else(|| Realistic::stream(memory / share))]
        }
    };
    let prediction = |way: Realistic| {
        let unlimited = Prediction {
            floor_us: 1e6 * compute.max(memory),
            realistic_us: 1e6 * way.seconds(),
            compute_bound: compute > memory,
            compute_us: 1e6 * way.compute,
            memory_us: 1e6 * way.memory,
            limits: Limits::default(),
            idle: way.idle,
            computing: way.computing,
            tiles: way.tiles,
        };
        limits(way.tiles).map_or(unlimited, |limits| unlimited.with(limits))
    };
    let fastest = ways.into_iter().map(prediction).min_by(|a, b| a.realistic_us.total_cmp(&b.realistic_us));
    fastest.expect("a way to compute it")
}

/// Seconds of work that overlaps, and of what does not.
pub(super) struct Realistic {
    pub compute: f64,
    pub memory: f64,
    pub beside: f64,
    pub idle: f64,
    pub computing: Bound,
    pub tiles: Option<Tiles>,
}

impl Realistic {
    pub fn stream(memory: f64) -> Self {
        Realistic { compute: 0.0, memory, beside: 0.0, idle: 1.0, computing: Bound::Clocks, tiles: None }
    }

    pub fn seconds(&self) -> f64 {
        self.compute.max(self.memory) + self.beside
    }
}

/// Predicts each tile.
fn matmul(kernel: &Kernel, mnk: (usize, usize, usize), tail: Tail, gpu: &Gpu) -> Vec<Realistic> {
    match gpu.wgmma {
        true => hopper::matmul(kernel, mnk, tail, gpu),
        false => TILES.iter().map(|size| matmul_with(kernel, mnk, tail, *size, gpu)).collect(),
    }
}

fn matmul_with(
    kernel: &Kernel,
    (m, n, k): (usize, usize, usize),
    tail: Tail,
    size: (usize, usize),
    gpu: &Gpu,
) -> Realistic {
    let count = m.div_ceil(size.0) * n.div_ceil(size.1);
    let waves = count as f64 / gpu.SMs as f64;
    let tile_area = (size.0 * size.1) as f64;
    let exposed = exposed_k(tail, gpu);
    // Length of the sums that one SM computes, one tile after another; bytes of the fix-up.
    let (length, fix_up_bytes, idle) = match tail {
        // Each SM gets the same share of all sums; those that are split are written and read as
        // f32.
        Tail::Accumulate => {
            let exposed = (waves + 1.0) * exposed;
            (waves * k as f64 + exposed, 2.0 * 4.0 * tile_area * gpu.SMs as f64, 1.0)
        }
        _ => (waves.ceil() * (k as f64 + exposed), 0.0, waves.ceil() / waves),
    };
    let rate_per_sm = gpu.matmul_ceiling() * SUSTAINED * tile_rate(size) / gpu.SMs as f64;
    let compute = length * 2.0 * tile_area / rate_per_sm;
    let bytes = kernel.bytes + read_again((m, n, k), gpu);
    let bandwidth = gpu.copy_ceiling() * MATMUL_STREAM;
    let (memory, beside) = (bytes / bandwidth, fix_up_bytes / bandwidth);
    let tiles = Some(Tiles { size, count, waves });
    Realistic { compute, memory, beside, idle, computing: Bound::Tensor, tiles }
}

/// Bytes that are read from memory more than once: one operand, for each half of the L2 cache that
/// the other one fills.
pub(super) fn read_again((m, n, k): (usize, usize, usize), gpu: &Gpu) -> f64 {
    let [a, b] = [m * k, n * k].map(|len| 2.0 * len as f64);
    let fits = 0.5e6 * gpu.l2_mb;
    // Long sums advance together over both operands, so neither has to stay in the cache.
    if k > m.max(n) { 0.0 } else { a.max(b) * ((a.min(b) / fits).ceil() - 1.0) }
}

/// Queries per tile of attention.
const QUERIES: usize = 128;

/// FLOPs of whole tiles of attention relative to those that count: half of each diagonal tile is
/// computed and discarded.
pub fn masked(T: usize) -> f64 {
    1.0 + QUERIES as f64 / T.max(QUERIES) as f64
}

/// Predicts attention at the rate of good kernels: tiles of 128 queries, the longest rows first, so
/// that no wave ends early.
fn attention(
    kernel: &Kernel,
    (B, NH, T, HS): (usize, usize, usize, usize),
    backward: bool,
    gpu: &Gpu,
) -> Realistic {
    let count = B * NH * T.div_ceil(QUERIES);
    let idle = (gpu.SMs as f64 / count as f64).max(1.0);
    let compute = kernel.flops * masked(T) * idle / gpu.attention_rate(HS, backward);
    let memory = kernel.bytes / (gpu.copy_ceiling() * MATMUL_STREAM);
    let tiles = Tiles { size: (QUERIES, HS), count, waves: count as f64 / gpu.SMs as f64 };
    Realistic { compute, memory, beside: 0.0, idle, computing: Bound::Tensor, tiles: Some(tiles) }
}
