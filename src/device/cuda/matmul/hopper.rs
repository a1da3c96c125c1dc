//! Our kernels for the tensor core instructions that only Hopper has. `matmul_hopper.cuh` says how
//! they work.

use super::gemm::{Dgrad, Extent, Forward, Gemm, Pass, Wgrad, X};
use super::own;
use crate::device::cuda::kernel::{Launch, Launcher, Ptr, kernels};
use crate::device::cuda::tensor_map::{TensorMap, TiledMatrix};
use anyhow::Result;

kernels! {
    "matmul_hopper.cu":
    const FORWARD: [ForwardKernel] = [matmul_hopper_forward_128x256, matmul_hopper_forward_128x128](
        out: X, pre_gelu: X, gelu_gradient: X, partials: Ptr<f32>, inp: TensorMap, weight: TensorMap, bias: X, residual: X, N: i32,
        C: i32, OC: i32, splits: i32, counter: Ptr<u32>,
    );
    const DGRAD: [DgradKernel] = [matmul_hopper_dgrad_128x256, matmul_hopper_dgrad_128x128](
        dinp: X, partials: Ptr<f32>, dout: TensorMap, weight: TensorMap, gelu_gradient: X, N: i32, C: i32, OC: i32,
        splits: i32, counter: Ptr<u32>,
    );
    const WGRAD: [WgradKernel] = [matmul_hopper_wgrad_128x256, matmul_hopper_wgrad_128x128](
        dweight: X, dbias: X, partials: Ptr<f32>, dout: TensorMap, inp: TensorMap, N: i32, C: i32, OC: i32,
        accumulate: i32, splits: i32, counter: Ptr<u32>,
    );
}

/// The kernels that compute 128 x `N` numbers at a time.
#[derive(Debug)]
pub struct Tile {
    pub N: usize,
    /// Multiply-adds per clock and SM, for choosing without timing.
    rate: f64,
    forward: kernel::ForwardKernel,
    dgrad: kernel::DgradKernel,
    wgrad: kernel::WgradKernel,
}

pub static TILES: [Tile; 2] = [
    Tile {
        N: 256,
        rate: 1600.0,
        forward: kernel::FORWARD[0],
        dgrad: kernel::DGRAD[0],
        wgrad: kernel::WGRAD[0],
    },
    Tile {
        N: 128,
        rate: 1350.0,
        forward: kernel::FORWARD[1],
        dgrad: kernel::DGRAD[1],
        wgrad: kernel::WGRAD[1],
    },
];

// As in matmul_hopper.cuh.
const M: usize = 128;
const STAGE_K: usize = 64;
const STAGES: usize = 4;
const THREADS: u32 = 384;
const ONES_BYTES: usize = 1024;
/// Pieces of work in flight to the consumers, four numbers each; a piece has two barriers, like a
/// stage.
const QUEUE: usize = 2;
const WORK_BYTES: usize = 16;
const BARRIER_BYTES: usize = 8;
const ELEMENT_BYTES: usize = 2;
/// Rows per box of an operand whose rows run across K: those of a stage.
const ACROSS_ROWS: usize = STAGE_K;

/// An operand (rows, columns), copied in boxes of `box_rows` rows.
struct Operand {
    matrix: X,
    rows: usize,
    columns: usize,
    box_rows: usize,
}

impl Operand {
    fn map(&self, device: &dyn Launcher) -> Result<TensorMap> {
        let Operand { matrix, rows, columns, box_rows } = *self;
        device.tensor_map(&TiledMatrix { address: matrix.address(), rows, columns, box_rows })
    }
}

impl Tile {
    /// Returns the pieces of work: tiles times splits.
    fn count(&self, extent: Extent, splits: usize) -> usize {
        extent.M.div_ceil(M) * extent.N.div_ceil(self.N) * splits
    }

    /// Whether most of what the tiles compute belongs to the GEMM.
    pub fn suits(&self, extent: Extent) -> bool {
        let computed = self.count(extent, 1) * M * self.N;
        computed <= extent.M * extent.N * 5 / 4
    }

    /// Estimates the clocks of the GEMM, to compare with those of the other kernels.
    pub fn estimate(&self, gemm: &Gemm, splits: usize, sm_count: usize) -> f64 {
        /// Clocks of an epilogue, which overlaps only partly with the next tile.
        const EPILOGUE_CLOCKS: f64 = 1200.0;
        let extent = gemm.extent();
        let K = stages(extent).div_ceil(splits) * STAGE_K;
        let waves = self.count(extent, splits).div_ceil(sm_count);
        let work = (M * self.N * K) as f64 / self.rate + EPILOGUE_CLOCKS;
        waves as f64 * work + own::reduction_clocks(gemm, splits)
    }

    /// Returns the numbers of splits worth trying: one, and the best by estimate.
    pub fn split_counts(&self, gemm: &Gemm, sm_count: usize) -> Vec<usize> {
        /// With fewer stages per split, starting and ending it takes most of the time.
        const MIN_STAGES: usize = 8;
        const TRIES: usize = 2;
        let most = (stages(gemm.extent()) / MIN_STAGES).min(2 * sm_count);
        let mut counts: Vec<usize> = (2..=most).map(|splits| without_empty(gemm, splits)).collect();
        counts.dedup();
        let clocks = |splits: &usize| self.estimate(gemm, *splits, sm_count);
        counts.sort_by(|a, b| clocks(a).total_cmp(&clocks(b)));
        counts.truncate(TRIES);
        counts.insert(0, 1);
        counts
    }

    /// Queues the GEMM on at most `sm_count` blocks, which take pieces of work by `counter`. K is
    /// split in at most `splits` parts, each of which leaves [`Gemm::partial_sums`] in `partials`.
    pub fn run(
        &self,
        device: &mut dyn Launcher,
        gemm: &Gemm,
        splits: usize,
        sm_count: usize,
        counter: Ptr<u32>,
        partials: Ptr<f32>,
    ) -> Result<()> {
        let splits = without_empty(gemm, splits);
        let blocks = self.count(gemm.extent(), splits).min(sm_count);
        let stage = (M + self.N) * STAGE_K * ELEMENT_BYTES;
        let queue = QUEUE * (2 * BARRIER_BYTES + WORK_BYTES);
        let shared = STAGES * (stage + 2 * BARRIER_BYTES) + ONES_BYTES + queue;
        let launch = Launch::new(blocks, THREADS).shared(shared);
        let partials = if splits > 1 { partials } else { Ptr::NULL };
        let [rows, C, OC, splits_arg] = [gemm.N, gemm.C, gemm.OC, splits].map(own::dimension);
        let [a, b] = self.operands(gemm).map(|operand| operand.map(device));
        let (a, b) = (a?, b?);
        match gemm.pass {
            Pass::Forward(forward @ Forward { out, .. }) => {
                let [pre_gelu, gelu_gradient, bias, residual] = forward.operands();
                (self.forward)(
                    device,
                    launch,
                    out,
                    pre_gelu,
                    gelu_gradient,
                    partials,
                    a,
                    b,
                    bias,
                    residual,
                    rows,
                    C,
                    OC,
                    splits_arg,
                    counter,
                )
            }
            Pass::Dgrad(Dgrad { dinp, gelu_gradient, .. }) => (self.dgrad)(
                device,
                launch,
                dinp,
                partials,
                a,
                b,
                gelu_gradient,
                rows,
                C,
                OC,
                splits_arg,
                counter,
            ),
            Pass::Wgrad(Wgrad { dweight, dbias, accumulate, .. }) => {
                let accumulate = i32::from(accumulate);
                (self.wgrad)(
                    device, launch, dweight, dbias, partials, a, b, rows, C, OC, accumulate, splits_arg,
                    counter,
                )
            }
        }?;
        if splits > 1 { own::reduce(device, gemm, splits, partials) } else { Ok(()) }
    }

    fn operands(&self, gemm: &Gemm) -> [Operand; 2] {
        let Gemm { N, C, OC, .. } = *gemm;
        let operand = |matrix, rows, columns, box_rows| Operand { matrix, rows, columns, box_rows };
        match gemm.pass {
            Pass::Forward(Forward { inp, weight, .. }) => {
                [operand(inp, N, C, M), operand(weight, OC, C, self.N)]
            }
            Pass::Dgrad(Dgrad { dout, weight, .. }) => {
                [operand(dout, N, OC, M), operand(weight, OC, C, ACROSS_ROWS)]
            }
            Pass::Wgrad(Wgrad { dout, inp, .. }) => {
                [operand(dout, N, OC, ACROSS_ROWS), operand(inp, N, C, ACROSS_ROWS)]
            }
        }
    }
}

/// Returns the number of splits that have work to do. The kernel's result is undefined with empty
/// ones.
fn without_empty(gemm: &Gemm, splits: usize) -> usize {
    let stages = stages(gemm.extent());
    stages.div_ceil(stages.div_ceil(splits))
}

/// Returns the number of stages in K.
fn stages(extent: Extent) -> usize {
    extent.K.div_ceil(STAGE_K)
}
