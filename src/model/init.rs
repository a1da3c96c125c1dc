//! How a model starts: the very numbers PyTorch draws for the same seed.

use super::Weights;
use crate::ops::Ops;
use crate::params::{Init, PARAMS, Param, ParamSpec};
use crate::rng::Mt19937;
use anyhow::Result;

/// Fills the parameters from `seed`, in the order in which PyTorch's GPT-2 draws them: both embeddings, then each layer's four
/// matrices. Rows of the embedding past the vocabulary stay zero, and are not drawn.
pub fn initialize(dev: &mut dyn Ops, weights: &Weights, seed: u32) -> Result<()> {
    let mut rng = Mt19937::new(seed);
    for spec in PARAMS.iter().filter(|spec| spec.init == Init::One) {
        dev.fill(weights.layout.whole(weights.all, spec.param), 1.0)?;
    }
    let drawn = |spec: &&ParamSpec| matches!(spec.init, Init::Normal | Init::ResidualNormal);
    for spec in PARAMS.iter().filter(drawn).filter(|spec| !spec.per_layer) {
        draw(dev, weights, spec, 0, &mut rng)?;
    }
    for l in 0..weights.config.L {
        for spec in PARAMS.iter().filter(drawn).filter(|spec| spec.per_layer) {
            draw(dev, weights, spec, l, &mut rng)?;
        }
    }
    Ok(())
}

fn draw(dev: &mut dyn Ops, weights: &Weights, spec: &ParamSpec, l: usize, rng: &mut Mt19937) -> Result<()> {
    let config = &weights.config;
    let len = match spec.param {
        Param::Wte => config.V * config.C,
        _ => spec.len_per_layer(config),
    };
    let std = match spec.init {
        Init::ResidualNormal => 0.02 / (2.0 * config.L as f64).sqrt(),
        _ => 0.02,
    };
    let mut values = vec![0.0; len];
    rng.normal_fill(&mut values, 0.0, std);
    dev.upload(weights.get(spec.param, l).slice(0, len), bytemuck::cast_slice(&values))
}
