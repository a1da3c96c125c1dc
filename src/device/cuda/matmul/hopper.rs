//! Our kernels for the instructions that only Hopper has. `matmul_hopper.cuh` says how they work.

use super::gemm::{Dgrad, Extent, Forward, Gemm, Pass, Wgrad, X};
use super::own;
use crate::device::cuda::kernel::{KernelArg, Launch, Launcher, Ptr, kernels};
use crate::device::cuda::memory::Signals;
use crate::device::cuda::tensor_map::{TensorMap, TiledMatrix};
use crate::ops::{Epilogue, Kept};
use anyhow::Result;

kernels! {
    "matmul_hopper.cu":
    const FORWARD: [ForwardKernel] = [matmul_hopper_forward_128x256, matmul_hopper_forward_64x256](
        out: TensorMap, inp: TensorMap, weight: TensorMap, bias: X, problem: Problem,
    );
    const FORWARD_GELU: [ForwardGeluKernel] = [
        matmul_hopper_forward_gelu_128x256, matmul_hopper_forward_gelu_64x256
    ](
        out: TensorMap, kept: TensorMap, keeps_gradient: i32, inp: TensorMap, weight: TensorMap, bias: X,
        problem: Problem,
    );
    const FORWARD_RESIDUAL: [ForwardResidualKernel] = [
        matmul_hopper_forward_residual_128x256, matmul_hopper_forward_residual_64x256
    ](
        out: TensorMap, residual: TensorMap, inp: TensorMap, weight: TensorMap, bias: X, problem: Problem,
    );
    const DGRAD: [DgradKernel] = [matmul_hopper_dgrad_128x256, matmul_hopper_dgrad_64x256](
        dinp: TensorMap, dout: TensorMap, weight: TensorMap, problem: Problem,
    );
    const DGRAD_GELU: [DgradGeluKernel] = [matmul_hopper_dgrad_gelu_128x256, matmul_hopper_dgrad_gelu_64x256](
        dinp: TensorMap, gelu_gradient: TensorMap, dout: TensorMap, weight: TensorMap, problem: Problem,
    );
    const WGRAD: [WgradKernel] = [matmul_hopper_wgrad_128x256](
        dweight: TensorMap, dbias: X, accumulate: i32, dout: TensorMap, inp: TensorMap, problem: Problem,
    );
}

/// Dimensions, the number of runs, and the memory by which runs exchange sums, as the kernels take
/// them.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Problem {
    M: i32,
    N: i32,
    K: i32,
    runs: i32,
    partials: Ptr<f32>,
    pub flags: Ptr<u32>,
    pub counter: Ptr<u32>,
}

impl KernelArg for Problem {
    const TYPE: &'static str = "Problem";
}

/// The kernels whose blocks compute `M` x 256 numbers at a time, and their clusters 256 x 256.
#[derive(Debug)]
pub struct Tile {
    pub M: usize,
    /// Multiply-adds per clock and SM, for choosing without timing.
    rate: f64,
    /// Clocks of an epilogue that the next tile does not hide.
    epilogue_clocks: f64,
    forward: kernel::ForwardKernel,
    forward_gelu: kernel::ForwardGeluKernel,
    forward_residual: kernel::ForwardResidualKernel,
    dgrad: kernel::DgradKernel,
    dgrad_gelu: kernel::DgradGeluKernel,
    /// `None`: in this pass K is long, so a hidden epilogue gains nothing.
    wgrad: Option<kernel::WgradKernel>,
}

pub static TILES: [Tile; 2] = [
    Tile {
        M: 128,
        rate: 1600.0,
        epilogue_clocks: 800.0,
        forward: kernel::FORWARD[0],
        forward_gelu: kernel::FORWARD_GELU[0],
        forward_residual: kernel::FORWARD_RESIDUAL[0],
        dgrad: kernel::DGRAD[0],
        dgrad_gelu: kernel::DGRAD_GELU[0],
        wgrad: Some(kernel::WGRAD[0]),
    },
    Tile {
        M: 64,
        rate: 1550.0,
        epilogue_clocks: 0.0,
        forward: kernel::FORWARD[1],
        forward_gelu: kernel::FORWARD_GELU[1],
        forward_residual: kernel::FORWARD_RESIDUAL[1],
        dgrad: kernel::DGRAD[1],
        dgrad_gelu: kernel::DGRAD_GELU[1],
        wgrad: None,
    },
];

// The constants of matmul_hopper.cuh and matmul_hopper_fixup.cuh.
const CLUSTER_ROWS: usize = 256;
/// Columns of a tile.
pub const TILE_N: usize = 256;
const STAGE_K: usize = 64;
const THREADS: u32 = 384;
const SHARED_BYTES: usize = 227 << 10;
/// Rows per box of an operand whose rows run across K: those of a stage.
const ACROSS_ROWS: usize = STAGE_K;
/// Rows per box of everything that the epilogue loads and stores: those of a warp.
const SLAB_ROWS: usize = 16;
/// Consumer warps of a cluster that share a tile; each has a flag and sums of its own.
const CLUSTER_WARPS: usize = CLUSTER_ROWS / SLAB_ROWS;
/// Pieces of 16 bytes that each lane of a warp leaves in a run that ends inside a tile: its sums,
/// and those of A's rows.
const PARTIAL_PIECES: usize = TILE_N / 8 + 1;
const PIECE_BYTES: usize = 16;

impl Tile {
    /// Returns the number of blocks per cluster.
    fn blocks(&self) -> usize {
        CLUSTER_ROWS / self.M
    }

    /// Returns the number of clusters that run at the same time.
    fn clusters(&self, sm_count: usize) -> usize {
        (sm_count / self.blocks()).max(1)
    }

    /// Returns the name of the kernel that computes a GEMM.
    pub fn kernel_name(&self, gemm: &Gemm) -> String {
        let kernel = match gemm.pass {
            Pass::Forward(Forward { epilogue: Epilogue::BiasGelu { .. }, .. }) => "forward_gelu",
            Pass::Forward(Forward { epilogue: Epilogue::BiasResidual { .. }, .. }) => "forward_residual",
            Pass::Forward(_) => "forward",
            Pass::Dgrad(Dgrad { gelu_gradient, .. }) if gelu_gradient != X::NULL => "dgrad_gelu",
            Pass::Dgrad(_) => "dgrad",
            Pass::Wgrad(_) => "wgrad",
        };
        format!("matmul_hopper_{kernel}_{}x{TILE_N}", self.M)
    }

    /// Whether it has a kernel for the pass.
    pub fn computes(&self, gemm: &Gemm) -> bool {
        self.wgrad.is_some() || !matches!(gemm.pass, Pass::Wgrad(_))
    }

    /// Whether most of what the tiles compute belongs to the GEMM.
    pub fn suits(&self, extent: Extent) -> bool {
        tiles(extent) * CLUSTER_ROWS * TILE_N <= extent.M * extent.N * 5 / 4
    }

    /// Estimates the clocks of the GEMM, to compare with those of the other kernels.
    pub fn estimate(&self, gemm: &Gemm, runs: usize, sm_count: usize) -> f64 {
        /// Clocks in which the sums of one earlier run are read.
        const ADD_CLOCKS: f64 = 4000.0;
        let (tiles, tile_stages) = (tiles(gemm.extent()), stages(gemm.extent()));
        let run_stages = (tiles * tile_stages).div_ceil(runs);
        let earlier = if runs == tiles { 0 } else { tile_stages.div_ceil(run_stages) };
        let work = (self.M * TILE_N * STAGE_K * run_stages) as f64 / self.rate;
        let ends = run_stages.div_ceil(tile_stages) as f64 * self.epilogue_clocks;
        runs.div_ceil(self.clusters(sm_count)) as f64 * (work + ends + earlier as f64 * ADD_CLOCKS)
    }

    /// Returns the numbers of runs worth trying: one for each tile, and one for each cluster of two
    /// blocks. How many larger ones run at the same time depends on which SMs a GPU has.
    pub fn run_counts(&self, gemm: &Gemm, sm_count: usize) -> Vec<usize> {
        /// With fewer stages per run, exchanging sums takes most of the time.
        const MIN_STAGES: usize = 8;
        let tiles = tiles(gemm.extent());
        let most = tiles * stages(gemm.extent()) / MIN_STAGES;
        let by_cluster = self.clusters(sm_count).min(most);
        let is_worth_it = self.blocks() == 2 && by_cluster > 0 && by_cluster != tiles;
        let mut counts = vec![tiles];
        counts.extend(is_worth_it.then_some(by_cluster));
        counts
    }

    /// Queues the GEMM in `runs` runs on at most `sm_count` blocks. `partials` has
    /// [`partial_bytes`].
    ///
    /// # Panics
    /// If there are more runs than stages, or more that exchange sums than `signals` has flags for.
    pub fn run(
        &self,
        device: &mut dyn Launcher,
        gemm: &Gemm,
        runs: usize,
        sm_count: usize,
        signals: Signals,
        partials: Ptr<f32>,
    ) -> Result<()> {
        let extent = gemm.extent();
        let tiles = tiles(extent);
        assert!(runs <= tiles * stages(extent), "{runs} runs of {tiles} tiles");
        assert!(
            runs == tiles || runs * CLUSTER_WARPS <= signals.flags,
            "{runs} runs, {} flags",
            signals.flags
        );
        let blocks = self.blocks() * runs.min(self.clusters(sm_count));
        let launch = Launch::new(blocks, THREADS).shared(SHARED_BYTES);
        let [M, N, K, runs] = [extent.M, extent.N, extent.K, runs].map(own::dimension);
        let (flags, counter) = (signals.first_flag(), signals.counter());
        let problem = Problem { M, N, K, runs, partials, flags, counter };
        let [a, b] = self.operands(gemm).map(|operand| device.tensor_map(&operand));
        let (a, b) = (a?, b?);
        let of_result =
            |device: &dyn Launcher, matrix| device.tensor_map(&tiled(matrix, extent.M, extent.N, SLAB_ROWS));
        match gemm.pass {
            Pass::Forward(Forward { out, epilogue, .. }) => {
                let out = of_result(device, out)?;
                match epilogue {
                    Epilogue::None => (self.forward)(device, launch, out, a, b, X::NULL, problem),
                    Epilogue::Bias { bias } => (self.forward)(device, launch, out, a, b, bias, problem),
                    Epilogue::BiasGelu { bias, kept } => {
                        let (kept, keeps_gradient) = match kept {
                            Kept::Input(kept) => (kept, 0),
                            Kept::Gradient(kept) => (kept, 1),
                        };
                        let kept = of_result(device, kept)?;
                        (self.forward_gelu)(device, launch, out, kept, keeps_gradient, a, b, bias, problem)
                    }
                    Epilogue::BiasResidual { bias, residual } => {
                        let residual = of_result(device, residual)?;
                        (self.forward_residual)(device, launch, out, residual, a, b, bias, problem)
                    }
                }
            }
            Pass::Dgrad(Dgrad { dinp, gelu_gradient, .. }) => {
                let dinp = of_result(device, dinp)?;
                if gelu_gradient == X::NULL {
                    return (self.dgrad)(device, launch, dinp, a, b, problem);
                }
                let gelu_gradient = of_result(device, gelu_gradient)?;
                (self.dgrad_gelu)(device, launch, dinp, gelu_gradient, a, b, problem)
            }
            Pass::Wgrad(Wgrad { dweight, dbias, accumulate, .. }) => {
                let dweight = of_result(device, dweight)?;
                let wgrad = self.wgrad.expect("a tile that computes this pass");
                wgrad(device, launch, dweight, dbias, i32::from(accumulate), a, b, problem)
            }
        }
    }

    fn operands(&self, gemm: &Gemm) -> [TiledMatrix; 2] {
        let Gemm { N: rows, C, OC, .. } = *gemm;
        // Each block of a cluster copies its own rows of A and its share of B.
        let share = TILE_N / self.blocks();
        match gemm.pass {
            Pass::Forward(Forward { inp, weight, .. }) => {
                [tiled(inp, rows, C, self.M), tiled(weight, OC, C, share)]
            }
            Pass::Dgrad(Dgrad { dout, weight, .. }) => {
                [tiled(dout, rows, OC, self.M), tiled(weight, OC, C, ACROSS_ROWS)]
            }
            Pass::Wgrad(Wgrad { dout, inp, .. }) => {
                [tiled(dout, rows, OC, ACROSS_ROWS), tiled(inp, rows, C, ACROSS_ROWS)]
            }
        }
    }
}

/// A matrix that is copied in boxes of `box_rows` rows.
fn tiled(matrix: X, rows: usize, columns: usize, box_rows: usize) -> TiledMatrix {
    TiledMatrix { address: matrix.address(), rows, columns, box_rows, box_columns: 64 }
}

/// Returns the requested number of runs, by default one per tile; at most one per stage.
pub fn runs(gemm: &Gemm, requested: Option<usize>) -> usize {
    let tiles = tiles(gemm.extent());
    requested.map_or(tiles, |runs| runs.min(tiles * stages(gemm.extent())))
}

/// Returns the bytes in which runs leave sums to each other: none if each is a tile.
pub fn partial_bytes(gemm: &Gemm, runs: usize) -> usize {
    let bytes = CLUSTER_WARPS * PARTIAL_PIECES * 32 * PIECE_BYTES;
    if runs == tiles(gemm.extent()) { 0 } else { runs * bytes }
}

/// Returns the number of flags for a run per cluster, and for at least 64 runs.
pub fn flags(sm_count: usize) -> usize {
    const LEAST_RUNS: usize = 64;
    TILES[0].clusters(sm_count).max(LEAST_RUNS) * CLUSTER_WARPS
}

/// Returns the number of tiles of a cluster, 256 x 256 each.
pub fn tiles(extent: Extent) -> usize {
    extent.M.div_ceil(CLUSTER_ROWS) * extent.N.div_ceil(TILE_N)
}

/// Returns the number of stages in K.
fn stages(extent: Extent) -> usize {
    extent.K.div_ceil(STAGE_K)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value of a `constexpr int` in a kernel's header.
    fn constant(header: &str, name: &str) -> usize {
        let text =
            header.split(&format!("constexpr int {name} = ")).nth(1).unwrap_or_else(|| panic!("{name}"));
        let value = text.split([';', ',']).next().unwrap();
        value.split('*').map(|factor| factor.trim().parse::<usize>().unwrap()).product()
    }

    #[test]
    fn constants_are_those_of_the_kernels() {
        let of = |name| constant(include_str!("../../../../kernels/matmul_hopper.cuh"), name);
        let names = ["CLUSTER_ROWS", "BN", "BK", "SHARED_BYTES"];
        assert_eq!(names.map(of), [CLUSTER_ROWS, TILE_N, STAGE_K, SHARED_BYTES]);
        assert_eq!((of("CONSUMERS") + 1) * of("WARPGROUP"), THREADS as usize);
    }

    /// Every stage is in one run, so there are never more runs than stages; sums are handed on only
    /// where runs are not tiles.
    #[test]
    fn runs_are_tiles_or_as_many_as_requested() {
        let wgrad = Wgrad { dweight: X::NULL, dbias: X::NULL, dout: X::NULL, inp: X::NULL, accumulate: true };
        let dtype = crate::tensor::Dtype::Bf16;
        // 9 x 3 tiles of 1,024 stages, as qkv of GPT-2 124M.
        let gemm = Gemm { pass: Pass::Wgrad(wgrad), dtype, N: 65_536, C: 768, OC: 2304 };
        assert_eq!(
            (runs(&gemm, None), runs(&gemm, Some(66)), runs(&gemm, Some(1 << 20))),
            (27, 66, 27 * 1024)
        );
        assert_eq!(TILES[0].run_counts(&gemm, 132), [27, 66]);
        assert_eq!(TILES[1].run_counts(&gemm, 132), [27]);
        assert_eq!((partial_bytes(&gemm, 27), partial_bytes(&gemm, 66)), (0, 66 * 2 * 128 * (256 + 8) * 4));
        assert_eq!(flags(132), 66 * 16);
    }
}
