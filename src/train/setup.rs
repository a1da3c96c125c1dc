//! From flags to a run: the model's shape, the memory plan, the initial weights.
#![allow(non_snake_case)]

use crate::cli::train::{DEFAULT_MODEL, TrainArgs};
use crate::config::ModelConfig;
use crate::model::ModelOptions;
use crate::model::activations::Recompute;
use crate::optim::optimizer::HyperParams;
use anyhow::{Result, ensure};
use std::path::Path;

/// Logits take at most this much memory; a larger batch is worked off by chunks of rows.
const LOGITS_BYTES: usize = 256 << 20;

/// Whether `-e` names a file rather than a shape.
pub fn is_checkpoint(model: &str) -> bool {
    Path::new(model).exists() || model.ends_with(".bin") || model.ends_with(".safetensors")
}

/// The shape of a new model: a descriptor, shape flags, or a descriptor with some of it overridden.
///
/// # Errors
/// If neither gives a whole shape, or the shape is not a valid one.
pub fn new_model(args: &TrainArgs) -> Result<ModelConfig> {
    let shape_flags = [("--layers", args.layers), ("--heads", args.heads), ("--channels", args.channels)];
    let mut config = match args.model.as_str() {
        DEFAULT_MODEL | "" => {
            for (flag, value) in shape_flags {
                ensure!(value.is_some(), "{flag}: expected, as --layers, --heads and --channels replace -e; not found");
            }
            ModelConfig::new(args.sequence_length, 1, 1, 1)
        }
        name => ModelConfig::from_descriptor(name)?,
    };
    config.L = args.layers.unwrap_or(config.L);
    config.NH = args.heads.unwrap_or(config.NH);
    config.C = args.channels.unwrap_or(config.C);
    config.maxT = args.context.unwrap_or(config.maxT);
    config.qkv_bias = args.qkv_bias;
    config.validate()?;
    Ok(config)
}

/// Whether any flag sets the shape of a model by hand.
pub fn has_shape_flags(args: &TrainArgs) -> bool {
    [args.layers, args.heads, args.channels, args.context].iter().any(Option::is_some)
}

/// Checks the sequence length against the model and gives the options the model is planned with.
///
/// # Errors
/// If sequences are longer than the model can take.
pub fn model_options(args: &TrainArgs, config: &ModelConfig, min_rows: usize) -> Result<ModelOptions> {
    let (B, T) = (args.batch_size, args.sequence_length);
    ensure!(
        T <= config.maxT,
        "-t {T}: longer than the {} positions of the model; use -t {} or a model with a longer --context",
        config.maxT,
        config.maxT
    );
    let recompute = [Recompute::Nothing, Recompute::Gelu, Recompute::GeluAndLayernorm][args.recompute];
    Ok(ModelOptions { B, T, min_rows, recompute, logits_bytes: LOGITS_BYTES })
}

pub fn hyper_params(args: &TrainArgs) -> HyperParams {
    HyperParams {
        beta1: args.beta1,
        beta2: args.beta2,
        eps: args.adam_eps,
        weight_decay: args.weight_decay,
        grad_clip: args.grad_clip,
    }
}
