//! The kernel that computes a product. Found once for each kind and size of product: on a GPU by timing what there is on the very
//! operands, once it has computed what the plainest kernel does ([`super::tune`], [`super::verify`]).
//!
//! If every run must choose alike (`--deterministic 1`), a model of how blocks fill the device chooses, of the plans that compute the right thing.
//! It chooses on the emulated device, too, where nothing is compared: there a wrong kernel is what tests look for. Nor is a plan
//! that tests or benchmarks ask for by its tile, as they compare it themselves.

use super::hopper;
use super::library;
use super::own::{EXACT_TILES, TENSOR_CORE_TILES, Tile};
use super::product::{ALIGN, Key, Pass, Product, X};
use super::tune::{self, Chosen};
use super::verify;
use crate::device::cuda::driver::{DeviceInfo, Driver};
use crate::device::cuda::kernel::Ptr;
use crate::device::cuda::{CudaOptions, MatmulChoice};
use crate::tensor::Dtype;
use anyhow::{Result, bail};
use std::collections::HashMap;

/// How to compute a product: a family of kernels, and which of them.
#[derive(Clone, Copy, Debug)]
pub enum Plan {
    /// Our kernels, with K in so many parts.
    Own { tile: &'static Tile, splits: usize },
    /// Those for Hopper.
    Hopper { tile: &'static hopper::Tile, splits: usize },
    /// The vendor's, which keeps its own plans.
    Library,
}

/// Memory that is free between operations, and the counter of persistent kernels.
#[derive(Clone, Copy, Debug)]
pub struct Scratch {
    pub address: u64,
    pub bytes: usize,
    pub work_counter: Ptr<u32>,
}

/// What the choice depends on besides the product.
#[derive(Clone, Copy, Debug)]
pub struct Chooser {
    pub options: CudaOptions,
    pub multiprocessors: usize,
    /// Times of this device mean something: it is not emulated.
    has_clock: bool,
    /// The device has Hopper's instructions, which are for 16-bit numbers here.
    hopper: bool,
}

impl Chooser {
    pub fn new(options: CudaOptions, info: &DeviceInfo) -> Self {
        let hopper = info.capability == (9, 0) && options.dtype != Dtype::F32;
        Chooser { options, multiprocessors: info.multiprocessors, has_clock: !info.emulated, hopper }
    }

    /// Whether the fastest plan is chosen by a clock.
    pub fn measures(self) -> bool {
        self.verifies() && !self.options.deterministic
    }

    /// Whether plans are compared with the plainest one.
    fn verifies(self) -> bool {
        let forced = matches!(self.options.matmul, MatmulChoice::Tile { .. } | MatmulChoice::Hopper { .. });
        self.has_clock && !forced
    }

    /// Whether products of f32 round no operand.
    fn is_exact(self) -> bool {
        self.options.dtype == Dtype::F32 && !self.options.tf32
    }

    fn tiles(self) -> &'static [Tile] {
        if self.is_exact() { &EXACT_TILES } else { &TENSOR_CORE_TILES }
    }

    /// The plan that can go wrong in the fewest ways: the smallest tile, without splits.
    pub fn plainest(self) -> Plan {
        Plan::Own { tile: self.tiles().last().expect("there are tiles"), splits: 1 }
    }

    pub fn is_plainest(self, plan: Plan) -> bool {
        let plainest = self.tiles().last().expect("there are tiles");
        matches!(plan, Plan::Own { tile, splits: 1 } if std::ptr::eq(tile, plainest))
    }

    /// Kernel and splits: `matmul_hopper_wgrad_128x256, 7 splits`.
    pub fn name(self, plan: Plan, product: &Product) -> String {
        let pass = match product.pass {
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

    /// As `--matmul` has it.
    pub fn choice_name(self) -> &'static str {
        match self.options.matmul {
            MatmulChoice::Fastest => "fastest",
            MatmulChoice::Own => "own",
            MatmulChoice::Cublaslt => "cublaslt",
            MatmulChoice::Tile { .. } | MatmulChoice::Hopper { .. } => "asked for",
        }
    }

    /// Our kernels for a product that get along with so much scratch memory.
    fn own(self, product: &Product, scratch_bytes: usize) -> Vec<Plan> {
        let plans = self.tiles().iter().flat_map(|tile| {
            let counts = match self.options.matmul {
                MatmulChoice::Tile { M, N, splits } if (tile.M, tile.N) == (M, N) => vec![splits],
                MatmulChoice::Tile { .. } | MatmulChoice::Hopper { .. } => Vec::new(),
                _ => tile.split_counts(product, self.multiprocessors),
            };
            counts.into_iter().map(move |splits| Plan::Own { tile, splits })
        });
        let plans = plans.chain(self.hopper(product));
        plans.filter(|plan| self.scratch_bytes(*plan, product) <= scratch_bytes).collect()
    }

    /// Those for Hopper. On the emulated device all that a tile computes costs time; on a GPU, what it computes in vain costs
    /// hardly more than a smaller tile.
    fn hopper(self, product: &Product) -> Vec<Plan> {
        let tiles = hopper::TILES.iter().filter(|_| self.hopper);
        let plans = tiles.flat_map(|tile| {
            let counts = match self.options.matmul {
                MatmulChoice::Hopper { N, splits } if tile.N == N => vec![splits],
                MatmulChoice::Hopper { .. } | MatmulChoice::Tile { .. } => Vec::new(),
                _ if !self.has_clock && !tile.suits(product.extent()) => Vec::new(),
                _ => tile.split_counts(product, self.multiprocessors),
            };
            counts.into_iter().map(move |splits| Plan::Hopper { tile, splits })
        });
        plans.collect()
    }

    /// Our kernels, that of least estimated time first.
    fn own_by_estimate(self, product: &Product, scratch_bytes: usize) -> Vec<Plan> {
        let clocks = |plan: &Plan| match plan {
            Plan::Own { tile, splits } => tile.estimate(product, *splits, self.multiprocessors),
            Plan::Hopper { tile, splits } => tile.estimate(product, *splits, self.multiprocessors),
            Plan::Library => f64::INFINITY,
        };
        let mut plans = self.own(product, scratch_bytes);
        plans.sort_by(|a, b| clocks(a).total_cmp(&clocks(b)));
        plans
    }

    fn estimated_best(self, product: &Product, scratch_bytes: usize) -> Option<Plan> {
        self.own_by_estimate(product, scratch_bytes).first().copied()
    }

    pub fn scratch_bytes(self, plan: Plan, product: &Product) -> usize {
        match plan {
            Plan::Own { splits: 1, .. } | Plan::Hopper { splits: 1, .. } => 0,
            Plan::Own { splits, .. } | Plan::Hopper { splits, .. } => {
                splits * product.partial_sums() * size_of::<f32>()
            }
            Plan::Library => library::bias_gradient(product, X::NULL).map_or(0, |bias_gradient| {
                let unused = library::unused_bytes(product).next_multiple_of(ALIGN);
                let best = self.estimated_best(&bias_gradient, usize::MAX);
                unused + best.map_or(0, |plan| self.scratch_bytes(plan, &bias_gradient))
            }),
        }
    }

    /// Scratch memory with which every plan for a product can be tried.
    pub fn most_scratch_bytes(self, product: &Product) -> usize {
        let plans = self.own(product, usize::MAX).into_iter().chain([Plan::Library]);
        let partials = plans.map(|plan| self.scratch_bytes(plan, product)).max().unwrap_or_default();
        match product.pass {
            _ if !self.verifies() => partials,
            // Gradients that are added to.
            Pass::Wgrad(_) => {
                let outputs = [product.OC, product.OC * product.C].map(|len| len * product.dtype.size());
                let behind = partials.max(verify::scratch_bytes(self.multiprocessors));
                outputs.iter().fold(behind, |used, bytes| used.next_multiple_of(ALIGN) + ALIGN + bytes)
            }
            _ => partials.max(verify::scratch_bytes(self.multiprocessors)),
        }
    }

    /// Queues a product.
    ///
    /// # Errors
    /// If the device fails, or the library is chosen and not there.
    pub fn run(self, driver: &mut dyn Driver, plan: Plan, product: &Product, scratch: Scratch) -> Result<()> {
        match plan {
            Plan::Own { tile, splits } => tile.run(driver, product, splits, Ptr::new(scratch.address)),
            Plan::Hopper { tile, splits } => {
                let partials = Ptr::new(scratch.address);
                tile.run(driver, product, splits, self.multiprocessors, scratch.work_counter, partials)
            }
            Plan::Library => {
                let (description, operands) = library::describe(product, self.options.tf32);
                driver.matmul_library()?.matmul(&description, &operands)?;
                match self.bias_gradient(product, scratch) {
                    Some((rest, plan, scratch)) => self.run(driver, plan, &rest, scratch),
                    None => Ok(()),
                }
            }
        }
    }

    /// What is left to do besides the library's part: the product that adds up the bias gradient, how, and with what scratch.
    pub fn bias_gradient(self, product: &Product, scratch: Scratch) -> Option<(Product, Plan, Scratch)> {
        let bias_gradient = library::bias_gradient(product, X::new(scratch.address))?;
        let unused = library::unused_bytes(product).next_multiple_of(ALIGN);
        let bytes = scratch.bytes.checked_sub(unused).expect("scratch memory as planned");
        let plan = self.estimated_best(&bias_gradient, bytes).expect("a kernel without splits");
        Some((bias_gradient, plan, Scratch { address: scratch.address + unused as u64, bytes, ..scratch }))
    }
}

/// The plans of the products seen so far, by whose products were asked for.
#[derive(Debug, Default)]
pub struct Plans {
    known: HashMap<(MatmulChoice, Key), Chosen>,
    /// Whether GELU belongs into its product, for the choice and the product with it.
    fused: HashMap<(MatmulChoice, Key), bool>,
    /// Choices, a line each.
    lines: Vec<String>,
}

impl Plans {
    /// Choices since the last call, a line each.
    pub fn take_lines(&mut self) -> Vec<String> {
        std::mem::take(&mut self.lines)
    }

    fn tell(&mut self, line: String) {
        log::info!("{line}");
        self.lines.push(line);
    }

    /// # Errors
    /// If nothing computes the product, or the device fails.
    pub fn find(
        &mut self,
        driver: &mut dyn Driver,
        chooser: Chooser,
        product: &Product,
        scratch: Scratch,
    ) -> Result<Plan> {
        let key = (chooser.options.matmul, product.key());
        if let Some(chosen) = self.known.get(&key) {
            return Ok(chosen.plan);
        }
        let plans = candidates(driver, chooser, product, scratch)?;
        let chosen = match chooser.verifies() {
            true => tune::choose(driver, chooser, product, &plans, scratch)?,
            false => Some(Chosen { plan: plans[0], ms: None, why: String::new() }),
        };
        // Not kept: the next such product may be one that can be tried.
        let Some(chosen) = chosen else { return Ok(chooser.plainest()) };
        if chooser.verifies() {
            self.tell(chosen.why.clone());
        }
        let plan = chosen.plan;
        self.known.insert(key, chosen);
        Ok(plan)
    }

    /// Whether a product is better done with GELU (`fused`) than without it (`apart`) and `gelu` after it. Measured once for each
    /// size; `None` if it could not be, this time.
    ///
    /// # Errors
    /// As [`Plans::find`].
    pub fn fuses(
        &mut self,
        driver: &mut dyn Driver,
        chooser: Chooser,
        [fused, apart]: [&Product; 2],
        gelu: impl FnMut(&mut dyn Driver) -> Result<()>,
        scratch: Scratch,
    ) -> Result<Option<bool>> {
        let choice = chooser.options.matmul;
        let key = (choice, fused.key());
        if let Some(known) = self.fused.get(&key) {
            return Ok(Some(*known));
        }
        let with = match self.find(driver, chooser, fused, scratch) {
            // The library need not have it, as long as it has the other.
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
        let better = if fuse { "GELU in the product" } else { "GELU apart" };
        self.tell(format!(
            "{} ({}): {better}; with it {with:.3} ms, without {without:.3} ms and GELU {gelu:.3} ms",
            fused.key(),
            chooser.choice_name()
        ));
        self.fused.insert(key, fuse);
        Ok(Some(fuse))
    }
}

/// Plans for a product, the best by estimate first; the library's, where there is one, last.
fn candidates(
    driver: &mut dyn Driver,
    chooser: Chooser,
    product: &Product,
    scratch: Scratch,
) -> Result<Vec<Plan>> {
    let choice = chooser.options.matmul;
    if choice == MatmulChoice::Cublaslt {
        driver.matmul_library()?;
        return Ok(vec![Plan::Library]);
    }
    let mut plans = chooser.own_by_estimate(product, scratch.bytes);
    if plans.is_empty() {
        bail!("no kernel for {} with {choice:?}", product.key());
    }
    // Another run must not measure otherwise, and choose another order of summation.
    if choice == MatmulChoice::Fastest && chooser.measures() && driver.matmul_library().is_ok() {
        plans.push(Plan::Library);
    }
    Ok(plans)
}
