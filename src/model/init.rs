//! Initialization: the numbers PyTorch draws for the same seed.

use crate::config::ModelConfig;
use crate::ops::Ops;
use crate::params::{self, Init, PARAMS, Param, ParamLayout, ParamSpec};
use crate::rng::Mt19937;
use crate::sharding::ParamBuffer;
use anyhow::Result;

/// Fills the parameters from `seed`, in the order in which PyTorch's GPT-2 draws them: both
/// embeddings, then each layer's four matrices. Rows of the embedding past the vocabulary stay zero
/// and draw no numbers.
///
/// `copies` are the parameters and their master weights, if any: each gets the same numbers,
/// rounded to its type.
pub fn initialize(dev: &mut dyn Ops, config: &ModelConfig, copies: &[&ParamBuffer], seed: u32) -> Result<()> {
    let files = ParamLayout::new(config);
    let mut rng = Mt19937::new(seed);
    let mut put = |spec: &ParamSpec, l: usize, values: &[f32]| {
        let start = files.range(spec.param).start + l * spec.len_per_layer(config);
        copies.iter().try_for_each(|copy| copy.upload(dev, start, values))
    };
    for spec in PARAMS.iter().filter(|spec| spec.init == Init::One) {
        for l in 0..spec.layers(config) {
            put(spec, l, &vec![1.0; spec.len_per_layer(config)])?;
        }
    }
    let mut draw = |spec: &ParamSpec, l: usize| put(spec, l, &draw(config, spec, &mut rng));
    let drawn = |spec: &&ParamSpec| matches!(spec.init, Init::Normal | Init::ResidualNormal);
    for spec in PARAMS.iter().filter(drawn).filter(|spec| !spec.per_layer) {
        draw(spec, 0)?;
    }
    for l in 0..config.L {
        for spec in PARAMS.iter().filter(drawn).filter(|spec| spec.per_layer) {
            draw(spec, l)?;
        }
    }
    Ok(())
}

/// Fills the adapters from `seed` as PEFT does, layer by layer: A is uniform, and B is zero, so
/// that the model is at first as without them.
pub fn initialize_adapters(
    dev: &mut dyn Ops,
    config: &ModelConfig,
    copies: &[&ParamBuffer],
    seed: u32,
) -> Result<()> {
    let (files, mut rng) = (ParamLayout::new(config), Mt19937::new(seed));
    for l in 0..config.L {
        for spec in params::all(config).filter(|spec| spec.is_adapter()) {
            let mut values = vec![0.0; spec.len_per_layer(config)];
            if let (Init::Uniform, Some(lora)) = (spec.init, config.lora) {
                // Rows beyond the rank are padding.
                let (_, columns) = (spec.shape)(config);
                let bound = 1.0 / (columns as f32).sqrt();
                rng.uniform(&mut values[..lora.rank * columns], -bound, bound);
            }
            let start = files.range(spec.param).start + l * values.len();
            copies.iter().try_for_each(|copy| copy.upload(dev, start, &values))?;
        }
    }
    Ok(())
}

/// Draws one layer's tensor, without the padding of the vocabulary.
fn draw(config: &ModelConfig, spec: &ParamSpec, rng: &mut Mt19937) -> Vec<f32> {
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
    values
}
