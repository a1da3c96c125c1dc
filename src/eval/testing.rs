//! Random models for the tests of `eval` and `sample`.

use crate::device::cpu::Cpu;
use crate::device::cpu::matmul::Precision;
use crate::model::Weights;
use crate::ops::{Device, Ops};
use crate::params::{Param, ParamLayout};
use crate::rng::Mt19937;
use crate::tensor::MemoryPlan;

/// A CPU with the memory of `plan`.
pub fn cpu(plan: &MemoryPlan) -> Cpu {
    let mut dev = Cpu::new(Precision::F32).unwrap();
    dev.allocate(plan).unwrap();
    dev
}

/// Fills parameters with values so large that each one affects the logits, unlike a fresh model's.
/// Embeddings past the vocabulary are NaN, so that reading them shows.
pub fn randomize(dev: &mut dyn Ops, weights: &Weights, seed: u32) {
    let mut values = vec![0.0; ParamLayout::new(&weights.config).len()];
    Mt19937::new(seed).normal_fill(&mut values, 0.0, 0.4);
    weights.params.upload(dev, 0, &values).unwrap();
    let (V, Vp, C) = (weights.config.V, weights.config.Vp, weights.config.C);
    dev.fill(weights.get(Param::Wte, 0).slice(V * C, (Vp - V) * C), f32::NAN).unwrap();
}
