//! The ways to compute a GEMM, and a model of how blocks fill the device, which ranks them without
//! timing.

use super::gemm::{ALIGN, Gemm, Pass, X};
use super::hopper;
use super::library;
use super::own::{EXACT_TILES, TENSOR_CORE_TILES, Tile};
use crate::device::cuda::driver::{DeviceInfo, Driver};
use crate::device::cuda::kernel::Ptr;
use crate::device::cuda::memory::Signals;
use crate::device::cuda::{CudaOptions, MatmulChoice};
use crate::tensor::Dtype;
use anyhow::Result;

/// A way to compute a GEMM: a family of kernels, and one of them.
#[derive(Clone, Copy, Debug)]
pub enum Plan {
    /// Our kernels, with K in `splits` parts.
    Own { tile: &'static Tile, splits: usize },
    /// Our kernels for Hopper, with the work in `runs` runs.
    Hopper { tile: &'static hopper::Tile, runs: usize },
    /// The vendor's library, which keeps its own plans.
    Library,
}

/// Memory that is free between operations, and the signals of persistent kernels.
#[derive(Clone, Copy, Debug)]
pub struct Scratch {
    pub address: u64,
    pub bytes: usize,
    pub signals: Signals,
}

/// Everything besides the GEMM that decides which kernel is fastest.
#[derive(Clone, Copy, Debug)]
pub struct Chooser {
    pub options: CudaOptions,
    pub sm_count: usize,
    /// Whether this device's times mean anything, as those of the emulated device do not.
    has_clock: bool,
    /// Whether Hopper's instructions can be used: the device has them, and numbers have 16 bits.
    hopper: bool,
}

impl Chooser {
    pub fn new(options: CudaOptions, info: &DeviceInfo) -> Self {
        let hopper = info.capability == (9, 0) && options.dtype != Dtype::F32;
        Chooser { options, sm_count: info.sm_count, has_clock: !info.emulated, hopper }
    }

    /// Whether the fastest plan is chosen by timing.
    pub fn measures(self) -> bool {
        self.verifies() && !self.options.deterministic
    }

    /// Whether plans are compared with the plainest one.
    pub fn verifies(self) -> bool {
        self.has_clock && !self.is_forced()
    }

    /// Whether the plan is asked for by its tile, so that there is nothing to choose.
    pub fn is_forced(self) -> bool {
        matches!(self.options.matmul, MatmulChoice::Tile { .. } | MatmulChoice::Hopper { .. })
    }

    /// Whether f32 operands are multiplied without rounding.
    fn is_exact(self) -> bool {
        self.options.dtype == Dtype::F32 && !self.options.tf32
    }

    fn tiles(self) -> &'static [Tile] {
        if self.is_exact() { &EXACT_TILES } else { &TENSOR_CORE_TILES }
    }

    /// Returns the plan that can go wrong in the fewest ways: the smallest tile, without splits.
    pub fn plainest(self) -> Plan {
        Plan::Own { tile: self.tiles().last().expect("there are tiles"), splits: 1 }
    }

    pub fn is_plainest(self, plan: Plan) -> bool {
        let plainest = self.tiles().last().expect("there are tiles");
        matches!(plan, Plan::Own { tile, splits: 1 } if std::ptr::eq(tile, plainest))
    }

    /// Names kernel and splits or runs: `matmul_wgrad_128x256, 7 splits`,
    /// `matmul_hopper_wgrad_128x256, stream-K over 66 runs`.
    pub fn name(self, plan: Plan, gemm: &Gemm) -> String {
        let pass = match gemm.pass {
            Pass::Forward(_) => "forward",
            Pass::Dgrad(_) => "dgrad",
            Pass::Wgrad(_) => "wgrad",
        };
        let family = if self.is_exact() { "matmul_f32" } else { "matmul" };
        match plan {
            Plan::Own { tile, splits } => {
                let kernel = format!("{family}_{pass}_{}x{}", tile.M, tile.N);
                if splits > 1 { format!("{kernel}, {splits} splits") } else { kernel }
            }
            Plan::Hopper { tile, runs } => {
                let kernel = tile.kernel_name(gemm);
                if runs == hopper::tiles(gemm.extent()) {
                    kernel
                } else {
                    format!("{kernel}, stream-K over {runs} runs")
                }
            }
            Plan::Library => "cuBLASLt".to_owned(),
        }
    }

    /// Describes the choice of a plan, the first of `candidates`, which come with their
    /// milliseconds where they were timed: `matmul forward, bias 65536 x 768 x 2304 bf16 (fastest):
    /// matmul_hopper_forward_128x256 0.312 ms, 742.9 TFLOP/s; others: cuBLASLt 0.330 ms`.
    pub fn explain(self, gemm: &Gemm, candidates: &[(Option<f32>, Plan)]) -> String {
        let named = |&(ms, plan): &(Option<f32>, Plan)| {
            let name = self.name(plan, gemm);
            ms.map_or(format!("{name}, by rule"), |ms| format!("{name} {ms:.3} ms"))
        };
        let (key, format, choice) = (gemm.key(), self.options.matmul_format(), self.options.matmul);
        let mut line = format!("matmul {key} {format} ({choice}): {}", named(&candidates[0]));
        if let Some(ms) = candidates[0].0 {
            line += &format!(", {:.1} TFLOP/s", gemm.flops() / f64::from(ms) / 1e9);
        }
        if candidates.len() > 1 {
            line +=
                &format!("; others: {}", candidates[1..].iter().map(named).collect::<Vec<_>>().join(", "));
        }
        line
    }

    /// Returns our plans for a GEMM that need at most `scratch_bytes` of scratch memory.
    pub fn own(self, gemm: &Gemm, scratch_bytes: usize) -> Vec<Plan> {
        let plans = self.tiles().iter().flat_map(|tile| {
            let counts = match self.options.matmul {
                MatmulChoice::Tile { M, N, splits } if (tile.M, tile.N) == (M, N) => vec![splits],
                MatmulChoice::Tile { .. } | MatmulChoice::Hopper { .. } => Vec::new(),
                _ => tile.split_counts(gemm, self.sm_count),
            };
            counts.into_iter().map(move |splits| Plan::Own { tile, splits })
        });
        let plans = plans.chain(self.hopper(gemm));
        plans.filter(|plan| self.scratch_bytes(*plan, gemm) <= scratch_bytes).collect()
    }

    /// Returns the plans for Hopper. On the emulated device everything that a tile computes costs
    /// time; on a GPU, a tile that is partly unused costs hardly more than a smaller one.
    fn hopper(self, gemm: &Gemm) -> Vec<Plan> {
        let tiles = hopper::TILES.iter().filter(|tile| self.hopper && tile.computes(gemm));
        let plans = tiles.flat_map(|tile| {
            // If the tile that is asked for does not compute this pass, the other one does.
            let of_choice = |M| tile.M == M || hopper::TILES.iter().any(|t| t.M == M && !t.computes(gemm));
            let counts = match self.options.matmul {
                MatmulChoice::Hopper { M, runs } if of_choice(M) => vec![hopper::runs(gemm, runs)],
                MatmulChoice::Hopper { .. } | MatmulChoice::Tile { .. } => Vec::new(),
                _ if !self.has_clock && !tile.suits(gemm.extent()) => Vec::new(),
                _ => tile.run_counts(gemm, self.sm_count),
            };
            counts.into_iter().map(move |runs| Plan::Hopper { tile, runs })
        });
        plans.collect()
    }

    /// Returns our plans, sorted by estimated time.
    pub fn own_by_estimate(self, gemm: &Gemm, scratch_bytes: usize) -> Vec<Plan> {
        let clocks = |plan: &Plan| match plan {
            Plan::Own { tile, splits } => tile.estimate(gemm, *splits, self.sm_count),
            Plan::Hopper { tile, runs } => tile.estimate(gemm, *runs, self.sm_count),
            Plan::Library => f64::INFINITY,
        };
        let mut plans = self.own(gemm, scratch_bytes);
        plans.sort_by(|a, b| clocks(a).total_cmp(&clocks(b)));
        plans
    }

    fn estimated_best(self, gemm: &Gemm, scratch_bytes: usize) -> Option<Plan> {
        self.own_by_estimate(gemm, scratch_bytes).first().copied()
    }

    pub fn scratch_bytes(self, plan: Plan, gemm: &Gemm) -> usize {
        match plan {
            Plan::Own { splits: 1, .. } => 0,
            Plan::Own { splits, .. } => splits * gemm.partial_sums() * size_of::<f32>(),
            Plan::Hopper { runs, .. } => hopper::partial_bytes(gemm, runs),
            Plan::Library => library::bias_gradient(gemm, X::NULL).map_or(0, |bias_gradient| {
                let unused = library::unused_bytes(gemm).next_multiple_of(ALIGN);
                let best = self.estimated_best(&bias_gradient, usize::MAX);
                unused + best.map_or(0, |plan| self.scratch_bytes(plan, &bias_gradient))
            }),
        }
    }

    /// Queues a GEMM.
    ///
    /// # Errors
    /// If the device fails, or the library is chosen and missing.
    pub fn run(self, driver: &mut dyn Driver, plan: Plan, gemm: &Gemm, scratch: Scratch) -> Result<()> {
        match plan {
            Plan::Own { tile, splits } => tile.run(driver, gemm, splits, Ptr::new(scratch.address)),
            Plan::Hopper { tile, runs } => {
                let partials = Ptr::new(scratch.address);
                tile.run(driver, gemm, runs, self.sm_count, scratch.signals, partials)
            }
            Plan::Library => {
                let (description, operands) = library::describe(gemm, self.options.tf32);
                driver.matmul_library()?.matmul(&description, &operands)?;
                match self.bias_gradient(gemm, scratch) {
                    Some((rest, plan, scratch)) => self.run(driver, plan, &rest, scratch),
                    None => Ok(()),
                }
            }
        }
    }

    /// Returns the work that is left after the library's part: the GEMM that adds up the bias
    /// gradient, its plan, and its scratch memory.
    pub fn bias_gradient(self, gemm: &Gemm, scratch: Scratch) -> Option<(Gemm, Plan, Scratch)> {
        let bias_gradient = library::bias_gradient(gemm, X::new(scratch.address))?;
        let unused = library::unused_bytes(gemm).next_multiple_of(ALIGN);
        let bytes = scratch.bytes.checked_sub(unused).expect("scratch memory as planned");
        let plan = self.estimated_best(&bias_gradient, bytes).expect("a kernel without splits");
        Some((bias_gradient, plan, Scratch { address: scratch.address + unused as u64, bytes, ..scratch }))
    }
}
