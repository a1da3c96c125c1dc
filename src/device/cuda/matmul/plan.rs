//! Which kernel computes a product. Found once for each kind and size of product: on a device with a clock by timing what
//! there is on the very operands, else by a model of how blocks fill the device.

use super::hopper;
use super::own::{EXACT_TILES, TENSOR_CORE_TILES, Tile};
use super::product::{Key, Pass, Product, X};
use crate::device::cuda::driver::{DeviceInfo, Driver};
use crate::device::cuda::kernel::{Launcher, Ptr};
use crate::device::cuda::{CudaOptions, MatmulChoice};
use crate::tensor::Dtype;
use anyhow::{Result, bail};
use std::collections::HashMap;

/// How to compute a product.
#[derive(Clone, Copy, Debug)]
pub enum Plan {
    /// Our kernels, with K in so many parts.
    Own { tile: &'static Tile, splits: usize },
    /// Those for Hopper.
    Hopper { tile: &'static hopper::Tile, splits: usize, multiprocessors: usize },
}

impl Plan {
    /// # Errors
    /// If the device fails.
    pub fn run(self, device: &mut dyn Launcher, product: &Product, scratch: Scratch) -> Result<()> {
        match self {
            Plan::Own { tile, splits } => tile.run(device, product, splits, Ptr::new(scratch.address)),
            Plan::Hopper { tile, splits, multiprocessors } => {
                tile.run(device, product, splits, multiprocessors, Ptr::new(scratch.address))
            }
        }
    }

    pub fn scratch_bytes(self, product: &Product) -> usize {
        match self {
            Plan::Own { splits: 1, .. } | Plan::Hopper { splits: 1, .. } => 0,
            Plan::Own { splits, .. } | Plan::Hopper { splits, .. } => {
                splits * product.partial_sums() * size_of::<f32>()
            }
        }
    }
}

/// Memory that is free between operations.
#[derive(Clone, Copy, Debug)]
pub struct Scratch {
    pub address: u64,
    pub bytes: usize,
}

/// What the choice depends on besides the product.
#[derive(Clone, Copy, Debug)]
pub struct Chooser {
    pub options: CudaOptions,
    pub multiprocessors: usize,
    /// Times of this device mean something: it is not emulated.
    pub has_clock: bool,
    /// Whether the device has Hopper's instructions, which are for 16-bit numbers here.
    hopper: bool,
}

impl Chooser {
    pub fn new(options: CudaOptions, info: &DeviceInfo) -> Self {
        let hopper = info.capability == (9, 0) && options.dtype != Dtype::F32;
        Chooser { options, multiprocessors: info.multiprocessors, has_clock: !info.emulated, hopper }
    }

    /// All plans for a product that get along with so much scratch memory.
    pub fn candidates(self, product: &Product, scratch_bytes: usize) -> Vec<Plan> {
        let tiles: &'static [Tile] = match self.options.dtype {
            Dtype::F32 if !self.options.tf32 => &EXACT_TILES,
            _ => &TENSOR_CORE_TILES,
        };
        let fits = |plan: &Plan| plan.scratch_bytes(product) <= scratch_bytes;
        let plans = tiles.iter().flat_map(|tile| {
            let counts = match self.options.matmul {
                MatmulChoice::Tile { M, N, splits } if (tile.M, tile.N) == (M, N) => vec![splits],
                MatmulChoice::Tile { .. } | MatmulChoice::Hopper { .. } => Vec::new(),
                _ => tile.split_counts(product, self.multiprocessors),
            };
            counts.into_iter().map(move |splits| Plan::Own { tile, splits })
        });
        plans.chain(self.hopper_candidates(product)).filter(fits).collect()
    }

    /// On the emulated device all that tiles compute costs, on a GPU what a product leaves of a tile costs little more than
    /// a smaller tile.
    fn hopper_candidates(self, product: &Product) -> Vec<Plan> {
        let multiprocessors = self.multiprocessors;
        let tiles = hopper::TILES.iter().filter(|_| self.hopper);
        let plans = tiles.flat_map(|tile| {
            let counts = match self.options.matmul {
                MatmulChoice::Hopper { N, splits } if tile.N == N => vec![splits],
                MatmulChoice::Hopper { .. } | MatmulChoice::Tile { .. } => Vec::new(),
                _ if !self.has_clock && !tile.suits(product.extent()) => Vec::new(),
                _ => tile.split_counts(product, multiprocessors),
            };
            counts.into_iter().map(move |splits| Plan::Hopper { tile, splits, multiprocessors })
        });
        plans.collect()
    }

    /// The plan of least estimated time.
    fn estimated_best(self, product: &Product, plans: &[Plan]) -> Option<Plan> {
        let clocks = |plan: &Plan| match plan {
            Plan::Own { tile, splits } => tile.estimate(product, *splits, self.multiprocessors),
            Plan::Hopper { tile, splits, .. } => tile.estimate(product, *splits, self.multiprocessors),
        };
        plans.iter().copied().min_by(|a, b| clocks(a).total_cmp(&clocks(b)))
    }
}

/// The plans of the products seen so far.
#[derive(Debug, Default)]
pub struct Plans {
    known: HashMap<Key, Plan>,
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
        if let Some(&plan) = self.known.get(&product.key()) {
            return Ok(plan);
        }
        let plans = chooser.candidates(product, scratch.bytes);
        let Some(best) = chooser.estimated_best(product, &plans) else {
            bail!("no kernel for {:?} with {:?}", product.key(), chooser.options.matmul);
        };
        let best = match rehearsal(product, &plans, scratch) {
            // Another run must not measure otherwise, and choose another order of summation.
            _ if plans.len() == 1 || chooser.options.deterministic || !chooser.has_clock => best,
            Some(rehearsal) => fastest(driver, &plans, &rehearsal, scratch)?.unwrap_or(best),
            // Not kept: the next such product may be one that can be tried.
            None => return Ok(best),
        };
        self.known.insert(product.key(), best);
        Ok(best)
    }
}

/// A product that takes as long and can be repeated: its outputs are those of `product` if they are assigned, and in scratch
/// memory, behind what any of the plans needs of it, if they are added to. `None` if they do not fit there.
fn rehearsal(product: &Product, plans: &[Plan], scratch: Scratch) -> Option<Product> {
    let Pass::Wgrad(mut wgrad) = product.pass else { return Some(*product) };
    let needs = plans.iter().map(|plan| plan.scratch_bytes(product));
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

/// Of an output in scratch memory.
const ALIGN: usize = 256;

/// Scratch memory with which every candidate for a product can be tried.
pub fn scratch_bytes(chooser: Chooser, product: &Product) -> usize {
    let plans = chooser.candidates(product, usize::MAX);
    let partials = plans.iter().map(|plan| plan.scratch_bytes(product)).max().unwrap_or_default();
    let bias_gradient = match product.pass {
        Pass::Wgrad(_) => ALIGN + product.OC * product.dtype.size(),
        _ => 0,
    };
    partials + bias_gradient
}

/// The plan that takes the least time, if the device can tell.
fn fastest(
    driver: &mut dyn Driver,
    plans: &[Plan],
    product: &Product,
    scratch: Scratch,
) -> Result<Option<Plan>> {
    /// The first is slower: code and operands are not where they will be.
    const ROUNDS: usize = 3;
    let mut best: Option<(f32, Plan)> = None;
    for &plan in plans {
        for _ in 0..ROUNDS {
            let Some(ms) = driver.time(&mut |device| plan.run(device, product, scratch))? else {
                return Ok(None);
            };
            if best.is_none_or(|(least, _)| ms < least) {
                best = Some((ms, plan));
            }
        }
    }
    Ok(best.map(|(_, plan)| plan))
}
