//! The time of our kernels on Hopper, from the [`clocks`](super::clocks) of their machine code.

use super::clocks::attention::{BACKWARD, FORWARD, Pass};
use super::clocks::epilogue::{CLUSTER_ROWS, TILE_COLUMNS, TILE_ROWS, clocks_of_k, exposed_clocks};
use super::clocks::streams;
use super::clocks::table::{self, Row};
use super::gpu::Gpu;
use super::kernels::{Kernel, Tail};
use super::predict::{Bound, MATMUL_STREAM, Realistic, SUSTAINED, Tiles, read_again};
use std::sync::LazyLock;

static ROWS: LazyLock<Vec<Row>> =
    LazyLock::new(|| table::parse(table::TEXT).expect("a test checks kernels/clocks.tsv"));

/// The clock of an SM in a step, which the GPU's power limits, and with it all kernels alike.
/// Measured on an H100: what attention takes alone, at 1.98 GHz, over what it takes in a step is
/// 289 / 363 forward and 763 / 932 backward, which is 1.58 and 1.62 GHz. At this clock, the rate
/// that matmuls sustain in a step keeps their tensor cores 87 % busy.
pub(super) const STEP_GHZ: f64 = 1.6;

/// Time of work that needs several resources at a time, each of which would take so long alone:
/// the cube root of the sum of their cubes. The longest one decides; one that takes half as long
/// adds 4 %, an equal one 26 %, since work does not arrive evenly. The exponent is the whole number
/// that comes closest to the kernels measured on an H100.
fn together(times: &[f64]) -> f64 {
    times.iter().map(|time| time.powi(3)).sum::<f64>().cbrt()
}

pub(super) fn matmul(kernel: &Kernel, mnk: (usize, usize, usize), tail: Tail, gpu: &Gpu) -> Vec<Realistic> {
    TILE_ROWS.iter().flat_map(|rows| matmul_by_tile(kernel, mnk, tail, *rows, gpu)).collect()
}

/// Predicts our kernels on Hopper from the clocks of their machine code
/// ([`clocks`](super::clocks)), with a run for each tile and, for clusters of two blocks, with as
/// many runs as clusters. Empty if tiles with so many rows do not compute this pass. Their main
/// loops have the same rate; what they ask of L2 and of shared memory is counted.
fn matmul_by_tile(
    kernel: &Kernel,
    (m, n, k): (usize, usize, usize),
    tail: Tail,
    tile_rows: usize,
    gpu: &Gpu,
) -> Vec<Realistic> {
    /// Bytes per clock and SM from and to L2, as for loads in `clocks`.
    const L2_BYTES: f64 = 64.0;
    // `qkv forward` belongs to the forward pass.
    let pass = kernel.name.rsplit(' ').next().unwrap_or_default();
    let Some(exposed) = exposed_clocks(&ROWS, tail, pass, tile_rows, k) else { return Vec::new() };
    let exposed = exposed / clocks_of_k(tile_rows);
    let blocks = CLUSTER_ROWS / tile_rows;
    // Clusters of four leave two SMs of each group of 18 without work, as on H100 and H200.
    let SMs = if blocks == 4 { gpu.SMs as f64 * 32.0 / 33.0 } else { gpu.SMs as f64 };
    let area = (tile_rows * TILE_COLUMNS) as f64;
    let count = blocks * m.div_ceil(CLUSTER_ROWS) * n.div_ceil(TILE_COLUMNS);
    // The last tile of a row multiplies 64, 128 or 256 columns.
    let last = [0, 64, 128, 256].into_iter().find(|width| n % TILE_COLUMNS <= *width).unwrap_or_default();
    let columns = (n / TILE_COLUMNS * TILE_COLUMNS + last) as f64;
    let waves = count as f64 * columns / (n.div_ceil(TILE_COLUMNS) * TILE_COLUMNS) as f64 / SMs;
    let bytes = kernel.bytes + read_again((m, n, k), gpu);
    let memory = bytes / (gpu.copy_ceiling() * MATMUL_STREAM);
    let seconds = |length: f64| length * 2.0 * area * gpu.SMs as f64 / (gpu.matmul_ceiling() * SUSTAINED);
    let tiles = Some(Tiles { size: (tile_rows, TILE_COLUMNS), count, waves });
    let by_tile = Realistic {
        compute: seconds(waves.ceil() * (k as f64 + exposed)),
        memory,
        beside: 0.0,
        idle: waves.ceil() / waves,
        computing: Bound::Tensor,
        tiles,
    };
    // A run leaves its sums once, and those of the runs that share its last tile are added.
    let sums_clocks = 4.0 * area / L2_BYTES * (1.0 + (1.0 / waves).ceil());
    let by_cluster = Realistic {
        compute: seconds(waves * k as f64 + (waves + 1.0) * exposed),
        memory,
        beside: sums_clocks / (gpu.boost_ghz * 1e9),
        idle: 1.0,
        computing: Bound::Tensor,
        tiles,
    };
    if blocks == 2 { vec![by_tile, by_cluster] } else { vec![by_tile] }
}

/// Predicts attention. `None` if the table has no kernels for the head size.
pub(super) fn attention(dims: (usize, usize, usize, usize), backward: bool, gpu: &Gpu) -> Option<Realistic> {
    let passes = if backward { BACKWARD } else { FORWARD };
    attention_at(&ROWS, passes, dims, gpu, STEP_GHZ).filter(|_| gpu.wgmma)
}

/// Predicts kernels of attention that run one after another, at a clock in GHz.
pub(super) fn attention_at(
    rows: &[Row],
    passes: &[Pass],
    dims: (usize, usize, usize, usize),
    gpu: &Gpu,
    ghz: f64,
) -> Option<Realistic> {
    let tensor_rate = gpu.matmul_ceiling() * SUSTAINED * ghz / STEP_GHZ;
    let mut sum = Realistic::stream(0.0);
    let (mut seconds, mut all_clocks) = (0.0, 0.0);
    for pass in passes {
        let demand = pass.demand(rows, dims, gpu.SMs)?;
        let [clocks, shared] = [demand.clocks, demand.shared_clocks].map(|clocks| clocks / (ghz * 1e9));
        let tensor = demand.flops / tensor_rate;
        let memory = (demand.l2_bytes / (gpu.l2_tbs * 1e12)).max(demand.memory_bytes / gpu.copy_ceiling());
        seconds += together(&[clocks, tensor, shared, memory]);
        all_clocks += clocks;
        sum.compute += clocks.max(tensor);
        sum.memory += memory;
        sum.idle = (1.0 / demand.waves).max(1.0);
        sum.tiles = Some(Tiles { size: pass.tile(), count: demand.items, waves: demand.waves });
    }
    let computing = if all_clocks < sum.compute { Bound::Tensor } else { Bound::Clocks };
    Some(Realistic { beside: seconds - sum.compute.max(sum.memory), computing, ..sum })
}

/// Predicts a pass over memory. `None` if its clocks are not known.
pub(super) fn stream(kernel: &Kernel, dims: (usize, usize), gpu: &Gpu) -> Option<Realistic> {
    let parts = streams::parts(kernel.name, dims.1).filter(|_| gpu.wgmma)?;
    stream_at(&ROWS, &parts, dims, kernel.bytes, gpu, STEP_GHZ)
}

pub(super) fn stream_at(
    rows: &[Row],
    parts: &[streams::Part],
    dims: (usize, usize),
    bytes: f64,
    gpu: &Gpu,
    ghz: f64,
) -> Option<Realistic> {
    let compute = streams::clocks(rows, parts, dims, gpu.SMs)? / (ghz * 1e9);
    let memory = bytes / gpu.copy_ceiling();
    let beside = together(&[compute, memory]) - compute.max(memory);
    Some(Realistic { compute, beside, ..Realistic::stream(memory) })
}
