//! Random models for the tests of this directory and of `sample`.

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

/// Parameters so large that each of them matters to the logits, unlike those training starts from. Embeddings past the
/// vocabulary are NaN: whoever reads them shows it.
pub fn randomize(dev: &mut dyn Ops, weights: &Weights, seed: u32) {
    let mut values = vec![0.0; ParamLayout::new(&weights.config).len()];
    Mt19937::new(seed).normal_fill(&mut values, 0.0, 0.4);
    weights.params.upload(dev, 0, &values).unwrap();
    let (V, Vp, C) = (weights.config.V, weights.config.Vp, weights.config.C);
    dev.fill(weights.get(Param::Wte, 0).slice(V * C, (Vp - V) * C), f32::NAN).unwrap();
}
