//! Which kernel computes a product. Found once for each kind and size of product: on a device with a clock by timing what
//! there is on the very operands, else by a model of how blocks fill the device.

use super::hopper;
use super::library;
use super::own::{EXACT_TILES, TENSOR_CORE_TILES, Tile};
use super::product::{Key, Pass, Product, X};
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

/// Of an output in scratch memory.
const ALIGN: usize = 256;

/// What the choice depends on besides the product.
#[derive(Clone, Copy, Debug)]
pub struct Chooser {
    pub options: CudaOptions,
    pub multiprocessors: usize,
    /// Times of this device mean something: it is not emulated.
    pub has_clock: bool,
    /// The device has Hopper's instructions, which are for 16-bit numbers here.
    hopper: bool,
}

impl Chooser {
    pub fn new(options: CudaOptions, info: &DeviceInfo) -> Self {
        let hopper = info.capability == (9, 0) && options.dtype != Dtype::F32;
        Chooser { options, multiprocessors: info.multiprocessors, has_clock: !info.emulated, hopper }
    }

    /// Our kernels for a product that get along with so much scratch memory.
    fn own(self, product: &Product, scratch_bytes: usize) -> Vec<Plan> {
        let tiles: &'static [Tile] = match self.options.dtype {
            Dtype::F32 if !self.options.tf32 => &EXACT_TILES,
            _ => &TENSOR_CORE_TILES,
        };
        let plans = tiles.iter().flat_map(|tile| {
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

    /// The one of our kernels of least estimated time.
    fn estimated_best(self, product: &Product, scratch_bytes: usize) -> Option<Plan> {
        let clocks = |plan: &Plan| match plan {
            Plan::Own { tile, splits } => tile.estimate(product, *splits, self.multiprocessors),
            Plan::Hopper { tile, splits } => tile.estimate(product, *splits, self.multiprocessors),
            Plan::Library => f64::INFINITY,
        };
        let plans = self.own(product, scratch_bytes);
        plans.into_iter().min_by(|a, b| clocks(a).total_cmp(&clocks(b)))
    }

    fn scratch_bytes(self, plan: Plan, product: &Product) -> usize {
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
            Pass::Wgrad(_) => partials.next_multiple_of(ALIGN) + product.OC * product.dtype.size(),
            _ => partials,
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
    fn bias_gradient(self, product: &Product, scratch: Scratch) -> Option<(Product, Plan, Scratch)> {
        let bias_gradient = library::bias_gradient(product, X::new(scratch.address))?;
        let unused = library::unused_bytes(product).next_multiple_of(ALIGN);
        let bytes = scratch.bytes.checked_sub(unused).expect("scratch memory as planned");
        let plan = self.estimated_best(&bias_gradient, bytes).expect("a kernel without splits");
        Some((bias_gradient, plan, Scratch { address: scratch.address + unused as u64, bytes, ..scratch }))
    }

    /// Milliseconds that a product takes by this plan, if the device can tell. Its outputs are garbage afterwards.
    fn time(
        self,
        driver: &mut dyn Driver,
        plan: Plan,
        product: &Product,
        scratch: Scratch,
    ) -> Result<Option<f32>> {
        match plan {
            Plan::Own { .. } | Plan::Hopper { .. } => {
                driver.start_timer()?;
                self.run(driver, plan, product, scratch)?;
                driver.stop_timer()
            }
            Plan::Library => {
                let (description, operands) = library::describe(product, self.options.tf32);
                let ms = driver.matmul_library()?.tune(&description, &operands)?;
                match self.bias_gradient(product, scratch) {
                    Some((rest, plan, scratch)) => {
                        Ok(self.time(driver, plan, &rest, scratch)?.map(|more| ms + more))
                    }
                    None => Ok(Some(ms)),
                }
            }
        }
    }
}

/// The plans of the products seen so far, by whose products were asked for.
#[derive(Debug, Default)]
pub struct Plans {
    known: HashMap<(MatmulChoice, Key), Plan>,
}

impl Plans {
    /// # Errors
    /// If nothing computes the product, or the device fails.
    pub fn find(
        &mut self,
        driver: &mut dyn Driver,
        chooser: Chooser,
        product: &Product,
        scratch: Scratch,
    ) -> Result<Plan> {
        let choice = chooser.options.matmul;
        if let Some(&plan) = self.known.get(&(choice, product.key())) {
            return Ok(plan);
        }
        let mut plans = match choice {
            MatmulChoice::Cublaslt => vec![Plan::Library],
            _ => chooser.own(product, scratch.bytes),
        };
        // Another run must not measure otherwise, and choose another order of summation.
        let measures = chooser.has_clock && !chooser.options.deterministic;
        if measures && choice == MatmulChoice::Fastest && driver.matmul_library().is_ok() {
            plans.push(Plan::Library);
        }
        let best = match choice {
            MatmulChoice::Cublaslt => Some(Plan::Library),
            _ => chooser.estimated_best(product, scratch.bytes),
        };
        let Some(best) = best else { bail!("no kernel for {:?} with {choice:?}", product.key()) };
        let best = match rehearsal(chooser, product, &plans, scratch) {
            Some(rehearsal) if measures => {
                fastest(driver, chooser, &plans, &rehearsal, scratch)?.unwrap_or(best)
            }
            // Not kept: the next such product may be one that can be tried.
            None if measures => return Ok(best),
            _ => best,
        };
        self.known.insert((choice, product.key()), best);
        Ok(best)
    }
}

/// A product that takes as long and can be repeated: its outputs are those of `product` if they are assigned, and in scratch
/// memory, behind what any of the plans needs of it, if they are added to. `None` if they do not fit there.
fn rehearsal(chooser: Chooser, product: &Product, plans: &[Plan], scratch: Scratch) -> Option<Product> {
    let Pass::Wgrad(mut wgrad) = product.pass else { return Some(*product) };
    let needs = plans.iter().map(|plan| chooser.scratch_bytes(*plan, product));
    let mut used = needs.max().unwrap_or_default();
    let mut divert = |output: &mut X, len: usize| {
        let start = used.next_multiple_of(ALIGN);
        used = start + len * product.dtype.size();
        *output = X::new(scratch.address + start as u64);
    };
    if wgrad.dbias.address() != 0 {
        divert(&mut wgrad.dbias, product.OC);
    }
    if wgrad.accumulate {
        divert(&mut wgrad.dweight, product.OC * product.C);
    }
    (used <= scratch.bytes).then_some(Product { pass: Pass::Wgrad(wgrad), ..*product })
}

/// The plan that takes the least time, if the device can tell.
fn fastest(
    driver: &mut dyn Driver,
    chooser: Chooser,
    plans: &[Plan],
    product: &Product,
    scratch: Scratch,
) -> Result<Option<Plan>> {
    let mut best: Option<(f32, Plan)> = None;
    for &plan in plans {
        // The first round is slower: code and operands are not where they will be. The library has rounds of its own.
        let rounds = if matches!(plan, Plan::Library) { 1 } else { 3 };
        for _ in 0..rounds {
            let ms = match chooser.time(driver, plan, product, scratch) {
                Ok(Some(ms)) => ms,
                Ok(None) => return Ok(None),
                // The library need not have everything, unless it is all there is.
                Err(_) if matches!(plan, Plan::Library) && plans.len() > 1 => break,
                Err(error) => return Err(error),
            };
            if best.is_none_or(|(least, _)| ms < least) {
                best = Some((ms, plan));
            }
        }
    }
    Ok(best.map(|(_, plan)| plan))
}
