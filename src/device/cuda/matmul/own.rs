//! Our portable kernels: their tiles and launches.

use super::gemm::{Dgrad, Extent, Forward, Gemm, Pass, Wgrad, X};
use crate::device::cuda::kernel::{Launch, Launcher, Ptr, kernels};
use anyhow::Result;

/// Declares the kernels of a file: for each pass the kernels of all tiles, which have the same
/// parameters, and then others.
macro_rules! tile_kernels {
    ($file:literal: forward: $forward:tt, dgrad: $dgrad:tt, wgrad: $wgrad:tt; $($others:tt)*) => {
        kernels! {
            $file:
            const FORWARD: [ForwardKernel] = $forward(
                out: X, pre_gelu: X, gelu_gradient: X, partials: Ptr<f32>, inp: X, weight: X, bias: X, residual: X, N: i32, C: i32,
                OC: i32,
            );
            const DGRAD: [DgradKernel] = $dgrad(
                dinp: X, partials: Ptr<f32>, dout: X, weight: X, gelu_gradient: X, N: i32, C: i32, OC: i32,
            );
            const WGRAD: [WgradKernel] = $wgrad(
                dweight: X, dbias: X, partials: Ptr<f32>, dout: X, inp: X, N: i32, C: i32, OC: i32, accumulate: i32,
            );
            $($others)*
        }
    };
}

tile_kernels! {
    "matmul.cu":
    forward: [matmul_forward_128x256, matmul_forward_128x128, matmul_forward_64x64],
    dgrad: [matmul_dgrad_128x256, matmul_dgrad_128x128, matmul_dgrad_64x64],
    wgrad: [matmul_wgrad_128x256, matmul_wgrad_128x128, matmul_wgrad_64x64];
    fn matmul_forward_reduce(
        out: X, pre_gelu: X, gelu_gradient: X, partials: Ptr<f32>, bias: X, residual: X, N: i32, OC: i32, splits: i32,
    );
    fn matmul_dgrad_reduce(dinp: X, partials: Ptr<f32>, gelu_gradient: X, N: i32, C: i32, splits: i32);
    fn matmul_wgrad_reduce(
        dweight: X, dbias: X, partials: Ptr<f32>, C: i32, OC: i32, accumulate: i32, splits: i32,
    );
}

/// f32 GEMMs that round no operand.
pub mod exact {
    use super::{Ptr, X, kernels};

    tile_kernels! {
        "matmul_f32.cu":
        forward: [matmul_f32_forward_128x128, matmul_f32_forward_64x64],
        dgrad: [matmul_f32_dgrad_128x128, matmul_f32_dgrad_64x64],
        wgrad: [matmul_f32_wgrad_128x128, matmul_f32_wgrad_64x64];
    }
    pub(super) use kernel::*;
}

/// The kernels that compute `M` x `N` numbers per block.
#[derive(Debug)]
pub struct Tile {
    pub M: usize,
    pub N: usize,
    threads: u32,
    /// Blocks per SM, limited by registers and shared memory.
    pub resident: usize,
    /// Multiply-adds per clock and SM, for choosing without timing.
    pub rate: f64,
    forward: kernel::ForwardKernel,
    dgrad: kernel::DgradKernel,
    wgrad: kernel::WgradKernel,
}

/// Tiles on tensor cores, with f32 as TF32. The rates are those of bf16 on Hopper.
pub static TENSOR_CORE_TILES: [Tile; 3] = [
    Tile {
        M: 128,
        N: 256,
        threads: 256,
        resident: 1,
        rate: 1200.0,
        forward: kernel::FORWARD[0],
        dgrad: kernel::DGRAD[0],
        wgrad: kernel::WGRAD[0],
    },
    Tile {
        M: 128,
        N: 128,
        threads: 128,
        resident: 2,
        rate: 1100.0,
        forward: kernel::FORWARD[1],
        dgrad: kernel::DGRAD[1],
        wgrad: kernel::WGRAD[1],
    },
    Tile {
        M: 64,
        N: 64,
        threads: 128,
        resident: 4,
        rate: 600.0,
        forward: kernel::FORWARD[2],
        dgrad: kernel::DGRAD[2],
        wgrad: kernel::WGRAD[2],
    },
];

pub static EXACT_TILES: [Tile; 2] = [
    Tile {
        M: 128,
        N: 128,
        threads: 256,
        resident: 1,
        rate: 100.0,
        forward: exact::FORWARD[0],
        dgrad: exact::DGRAD[0],
        wgrad: exact::WGRAD[0],
    },
    Tile {
        M: 64,
        N: 64,
        threads: 64,
        resident: 4,
        rate: 100.0,
        forward: exact::FORWARD[1],
        dgrad: exact::DGRAD[1],
        wgrad: exact::WGRAD[1],
    },
];

/// Bytes of K that a stage holds per row, and stages in shared memory, as in `matmul.cuh`.
const STAGE_ROW_BYTES: usize = 64;
const STAGES: usize = 3;
/// Threads per block of the kernels that add up splits.
const REDUCE_THREADS: u32 = 256;

impl Tile {
    /// Returns the number of tiles that cover the GEMM.
    pub fn count(&self, extent: Extent) -> usize {
        extent.M.div_ceil(self.M) * extent.N.div_ceil(self.N)
    }

    /// Estimates the clocks of the GEMM from how its blocks fill the device: good enough to rank
    /// tiles and splits.
    pub fn estimate(&self, gemm: &Gemm, splits: usize, sm_count: usize) -> f64 {
        /// Clocks of a block's start and end.
        const BLOCK_CLOCKS: f64 = 1500.0;
        let blocks = self.count(gemm.extent()) * splits;
        let sharing = self.resident.min(blocks.div_ceil(sm_count));
        let waves = blocks.div_ceil(sm_count * sharing);
        let K = stages(gemm).div_ceil(splits) * STAGE_ROW_BYTES / gemm.dtype.size();
        let block = (sharing * self.M * self.N * K) as f64 / self.rate + BLOCK_CLOCKS;
        waves as f64 * block + reduction_clocks(gemm, splits)
    }

    /// Returns the numbers of splits worth trying: one, and those that fill the SMs once or twice.
    pub fn split_counts(&self, gemm: &Gemm, sm_count: usize) -> Vec<usize> {
        /// With fewer stages per split, starting and ending it takes most of the time.
        const MIN_STAGES: usize = 4;
        let places = sm_count * self.resident;
        let tiles = self.count(gemm.extent());
        let most = stages(gemm) / MIN_STAGES;
        let mut counts = vec![1];
        counts.extend([places / tiles, 2 * places / tiles].into_iter().filter(|&n| (2..=most).contains(&n)));
        counts
    }

    /// Queues the GEMM. K is split in `splits` parts, each of which leaves [`Gemm::partial_sums`]
    /// in `partials`.
    pub fn run(
        &self,
        device: &mut dyn Launcher,
        gemm: &Gemm,
        splits: usize,
        partials: Ptr<f32>,
    ) -> Result<()> {
        let blocks = [self.count(gemm.extent()), splits, 1];
        let shared = STAGES * (self.M + self.N) * STAGE_ROW_BYTES;
        let launch = Launch::grid(blocks, self.threads).shared(shared);
        let partials = if splits > 1 { partials } else { Ptr::NULL };
        let [N, C, OC] = [gemm.N, gemm.C, gemm.OC].map(dimension);
        match gemm.pass {
            Pass::Forward(forward @ Forward { out, inp, weight, .. }) => {
                let [pre_gelu, gelu_gradient, bias, residual] = forward.operands();
                (self.forward)(
                    device,
                    launch,
                    out,
                    pre_gelu,
                    gelu_gradient,
                    partials,
                    inp,
                    weight,
                    bias,
                    residual,
                    N,
                    C,
                    OC,
                )
            }
            Pass::Dgrad(Dgrad { dinp, dout, weight, gelu_gradient }) => {
                (self.dgrad)(device, launch, dinp, partials, dout, weight, gelu_gradient, N, C, OC)
            }
            Pass::Wgrad(Wgrad { dweight, dbias, dout, inp, accumulate }) => {
                let accumulate = i32::from(accumulate);
                (self.wgrad)(device, launch, dweight, dbias, partials, dout, inp, N, C, OC, accumulate)
            }
        }?;
        if splits > 1 { reduce(device, gemm, splits, partials) } else { Ok(()) }
    }
}

/// Estimates the clocks of adding up the splits.
pub fn reduction_clocks(gemm: &Gemm, splits: usize) -> f64 {
    /// Clocks of a kernel's start and end.
    const KERNEL_CLOCKS: f64 = 4000.0;
    /// Bytes that all SMs together move from and to L2 per clock.
    const BYTES_PER_CLOCK: f64 = 2500.0;
    match splits {
        1 => 0.0,
        _ => KERNEL_CLOCKS + (2 * 4 * splits * gemm.partial_sums()) as f64 / BYTES_PER_CLOCK,
    }
}

/// Adds up the splits and applies the epilogue of the GEMM.
pub fn reduce(device: &mut dyn Launcher, gemm: &Gemm, splits: usize, partials: Ptr<f32>) -> Result<()> {
    let Extent { M, N, .. } = gemm.extent();
    let [rows, C, OC, splits] = [gemm.N, gemm.C, gemm.OC, splits].map(dimension);
    // Each thread takes 128 bits of the output, or one sum of the bias gradient.
    let threads = M * N * gemm.dtype.size() / 16 + (gemm.partial_sums() - M * N);
    let launch = Launch::new(threads.div_ceil(REDUCE_THREADS as usize), REDUCE_THREADS);
    match gemm.pass {
        Pass::Forward(forward @ Forward { out, .. }) => {
            let [pre_gelu, gelu_gradient, bias, residual] = forward.operands();
            kernel::matmul_forward_reduce(
                device,
                launch,
                out,
                pre_gelu,
                gelu_gradient,
                partials,
                bias,
                residual,
                rows,
                OC,
                splits,
            )
        }
        Pass::Dgrad(Dgrad { dinp, gelu_gradient, .. }) => {
            kernel::matmul_dgrad_reduce(device, launch, dinp, partials, gelu_gradient, rows, C, splits)
        }
        Pass::Wgrad(Wgrad { dweight, dbias, accumulate, .. }) => {
            let accumulate = i32::from(accumulate);
            kernel::matmul_wgrad_reduce(device, launch, dweight, dbias, partials, C, OC, accumulate, splits)
        }
    }
}

/// Returns the number of stages in K.
fn stages(gemm: &Gemm) -> usize {
    (gemm.extent().K * gemm.dtype.size()).div_ceil(STAGE_ROW_BYTES)
}

pub fn dimension(n: usize) -> i32 {
    i32::try_from(n).expect("a dimension below 2^31")
}
