//! The kernel that computes a GEMM, chosen once per kind and size: on a GPU by timing all
//! candidates on the operands themselves, each only after it has computed the same as the plainest
//! kernel ([`super::tune`], [`super::verify`]).
//!
//! Some choices are made by rule instead, which is a model of how blocks fill the device. If every
//! run must choose alike (`--deterministic 1`), the rule picks among the plans that compute the
//! right result. On the emulated device it picks without a comparison, because tests look for wrong
//! kernels there. A plan that tests or benchmarks ask for by its tile is not compared either, as
//! they compare it themselves.
//!
//! Each choice but those asked for is logged at level `info`, once.

use super::gemm::{ALIGN, Gemm, Key, Pass, X};
use super::hopper;
use super::library;
use super::own::{EXACT_TILES, TENSOR_CORE_TILES, Tile};
use super::tune::{self, Chosen};
use super::verify;
use crate::device::cuda::driver::{DeviceInfo, Driver};
use crate::device::cuda::kernel::Ptr;
use crate::device::cuda::{CudaOptions, MatmulChoice};
use crate::tensor::Dtype;
use anyhow::{Result, bail};
use std::collections::{HashMap, HashSet};

/// A way to compute a GEMM: a family of kernels, and one of them.
#[derive(Clone, Copy, Debug)]
pub enum Plan {
    /// Our kernels, with K in `splits` parts.
    Own { tile: &'static Tile, splits: usize },
    /// Our kernels for Hopper.
    Hopper { tile: &'static hopper::Tile, splits: usize },
    /// The vendor's library, which keeps its own plans.
    Library,
}

/// Memory that is free between operations, and the counter of persistent kernels.
#[derive(Clone, Copy, Debug)]
pub struct Scratch {
    pub address: u64,
    pub bytes: usize,
    pub work_counter: Ptr<u32>,
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
    fn verifies(self) -> bool {
        self.has_clock && !self.is_forced()
    }

    /// Whether the plan is asked for by its tile, so that there is nothing to choose.
    fn is_forced(self) -> bool {
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

    /// Names kernel and splits: `matmul_hopper_wgrad_128x256, 7 splits`.
    pub fn name(self, plan: Plan, gemm: &Gemm) -> String {
        let pass = match gemm.pass {
            Pass::Forward(_) => "forward",
            Pass::Dgrad(_) => "dgrad",
            Pass::Wgrad(_) => "wgrad",
        };
        let family = if self.is_exact() { "matmul_f32" } else { "matmul" };
        let (kernel, splits) = match plan {
            Plan::Own { tile, splits } => (format!("{family}_{pass}_{}x{}", tile.M, tile.N), splits),
            Plan::Hopper { tile, splits } => (format!("matmul_hopper_{pass}_128x{}", tile.N), splits),
            Plan::Library => return "cuBLASLt".to_owned(),
        };
        if splits > 1 { format!("{kernel}, {splits} splits") } else { kernel }
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
    fn own(self, gemm: &Gemm, scratch_bytes: usize) -> Vec<Plan> {
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
        let tiles = hopper::TILES.iter().filter(|_| self.hopper);
        let plans = tiles.flat_map(|tile| {
            let counts = match self.options.matmul {
                MatmulChoice::Hopper { N, splits } if tile.N == N => vec![splits],
                MatmulChoice::Hopper { .. } | MatmulChoice::Tile { .. } => Vec::new(),
                _ if !self.has_clock && !tile.suits(gemm.extent()) => Vec::new(),
                _ => tile.split_counts(gemm, self.sm_count),
            };
            counts.into_iter().map(move |splits| Plan::Hopper { tile, splits })
        });
        plans.collect()
    }

    /// Returns our plans, sorted by estimated time.
    fn own_by_estimate(self, gemm: &Gemm, scratch_bytes: usize) -> Vec<Plan> {
        let clocks = |plan: &Plan| match plan {
            Plan::Own { tile, splits } => tile.estimate(gemm, *splits, self.sm_count),
            Plan::Hopper { tile, splits } => tile.estimate(gemm, *splits, self.sm_count),
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
            Plan::Own { splits: 1, .. } | Plan::Hopper { splits: 1, .. } => 0,
            Plan::Own { splits, .. } | Plan::Hopper { splits, .. } => {
                splits * gemm.partial_sums() * size_of::<f32>()
            }
            Plan::Library => library::bias_gradient(gemm, X::NULL).map_or(0, |bias_gradient| {
                let unused = library::unused_bytes(gemm).next_multiple_of(ALIGN);
                let best = self.estimated_best(&bias_gradient, usize::MAX);
                unused + best.map_or(0, |plan| self.scratch_bytes(plan, &bias_gradient))
            }),
        }
    }

    /// Returns the scratch memory with which every plan for a GEMM can be tried.
    pub fn most_scratch_bytes(self, gemm: &Gemm) -> usize {
        let plans = self.own(gemm, usize::MAX).into_iter().chain([Plan::Library]);
        let partials = plans.map(|plan| self.scratch_bytes(plan, gemm)).max().unwrap_or_default();
        match gemm.pass {
            _ if !self.verifies() => partials,
            // Room for gradients that are added to.
            Pass::Wgrad(_) => {
                let outputs = [gemm.OC, gemm.OC * gemm.C].map(|len| len * gemm.dtype.size());
                let base = partials.max(verify::scratch_bytes(self.sm_count));
                outputs.iter().fold(base, |used, bytes| used.next_multiple_of(ALIGN) + ALIGN + bytes)
            }
            _ => partials.max(verify::scratch_bytes(self.sm_count)),
        }
    }

    /// Queues a GEMM.
    ///
    /// # Errors
    /// If the device fails, or the library is chosen and missing.
    pub fn run(self, driver: &mut dyn Driver, plan: Plan, gemm: &Gemm, scratch: Scratch) -> Result<()> {
        match plan {
            Plan::Own { tile, splits } => tile.run(driver, gemm, splits, Ptr::new(scratch.address)),
            Plan::Hopper { tile, splits } => {
                let partials = Ptr::new(scratch.address);
                tile.run(driver, gemm, splits, self.sm_count, scratch.work_counter, partials)
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

/// The plans of the GEMMs seen so far, per choice of kernels.
#[derive(Debug, Default)]
pub struct Plans {
    known: HashMap<(MatmulChoice, Key), Chosen>,
    /// Whether to fuse GELU, keyed by the choice and the GEMM that has it fused.
    fused: HashMap<(MatmulChoice, Key), bool>,
    /// Measured or verified choices since the last call of [`take_lines`](Self::take_lines), a line
    /// each.
    lines: Vec<String>,
    /// Choices by rule that have been logged.
    by_rule: HashSet<String>,
}

impl Plans {
    /// Returns the measured or verified choices since the last call, a line each.
    pub fn take_lines(&mut self) -> Vec<String> {
        std::mem::take(&mut self.lines)
    }

    fn tell(&mut self, line: String) {
        log::info!("{line}");
        self.lines.push(line);
    }

    /// Returns the plan for a GEMM, choosing it if there is none yet.
    ///
    /// # Errors
    /// If nothing computes the GEMM, or the device fails.
    pub fn find(
        &mut self,
        driver: &mut dyn Driver,
        chooser: Chooser,
        gemm: &Gemm,
        scratch: Scratch,
    ) -> Result<Plan> {
        let key = (chooser.options.matmul, gemm.key());
        if let Some(chosen) = self.known.get(&key) {
            return Ok(chosen.plan);
        }
        let plans = candidates(driver, chooser, gemm, scratch)?;
        let chosen = if chooser.verifies() {
            // Not cached: a later GEMM of this shape may be one that can be tried.
            let Some(chosen) = tune::choose(driver, chooser, gemm, &plans, scratch)? else {
                return Ok(chooser.plainest());
            };
            self.tell(chosen.why.clone());
            chosen
        } else {
            let (plan, ms) = (plans[0], None);
            let why = chooser.explain(gemm, &[(ms, plan)]);
            // Shapes that differ only in alignment share a line.
            if !chooser.is_forced() && self.by_rule.insert(why.clone()) {
                log::info!("{why}");
            }
            Chosen { plan, ms, why }
        };
        let plan = chosen.plan;
        self.known.insert(key, chosen);
        Ok(plan)
    }

    /// Whether a GEMM with GELU (`fused`) takes no longer than one without (`apart`) followed by
    /// `gelu`. Measured once per size; `None` if it could not be measured this time.
    ///
    /// # Errors
    /// As [`Plans::find`].
    pub fn fuses(
        &mut self,
        driver: &mut dyn Driver,
        chooser: Chooser,
        [fused, apart]: [&Gemm; 2],
        gelu: impl FnMut(&mut dyn Driver) -> Result<()>,
        scratch: Scratch,
    ) -> Result<Option<bool>> {
        let choice = chooser.options.matmul;
        let key = (choice, fused.key());
        if let Some(known) = self.fused.get(&key) {
            return Ok(Some(*known));
        }
        let with = match self.find(driver, chooser, fused, scratch) {
            // The library may lack the fused GEMM as long as it has the plain one.
            Err(why) if choice == MatmulChoice::Cublaslt => {
                self.find(driver, chooser, apart, scratch)?;
                log::warn!("{why:#}; GELU is a kernel of its own there");
                self.fused.insert(key, false);
                return Ok(Some(false));
            }
            found => found.map(|_| self.known.get(&key).and_then(|chosen| chosen.ms))?,
        };
        self.find(driver, chooser, apart, scratch)?;
        let without = self.known.get(&(choice, apart.key())).and_then(|chosen| chosen.ms);
        let (Some(with), Some(without)) = (with, without) else { return Ok(None) };
        let gelu = tune::stopwatch(driver, gelu)?;
        let fuse = with <= without + gelu;
        let better = if fuse { "GELU fused" } else { "GELU apart" };
        let (shape, format) = (fused.key(), chooser.options.matmul_format());
        self.tell(format!(
            "matmul {shape} {format} ({choice}): {better}; fused {with:.3} ms, apart {without:.3} ms and GELU {gelu:.3} ms"
        ));
        self.fused.insert(key, fuse);
        Ok(Some(fuse))
    }
}

/// Returns the plans for a GEMM, the best by estimate first and the library, if there is one, last.
fn candidates(driver: &mut dyn Driver, chooser: Chooser, gemm: &Gemm, scratch: Scratch) -> Result<Vec<Plan>> {
    let choice = chooser.options.matmul;
    if choice == MatmulChoice::Cublaslt {
        driver.matmul_library()?;
        return Ok(vec![Plan::Library]);
    }
    let mut plans = chooser.own_by_estimate(gemm, scratch.bytes);
    if plans.is_empty() {
        bail!("no kernel computes {} with {choice}", gemm.key());
    }
    // Not in a deterministic run: another run could measure differently and choose another order of
    // summation.
    if choice == MatmulChoice::Fastest && chooser.measures() && driver.matmul_library().is_ok() {
        plans.push(Plan::Library);
    }
    Ok(plans)
}
