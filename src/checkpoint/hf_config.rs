//! Hugging Face's `config.json` for GPT-2. It has the shape of the model, as tensors do not tell
//! the number of heads, and the variant of GPT-2, of which one is supported.

use super::ModelFile;
use crate::config::{DropoutRates, GPT2_VOCAB, ModelConfig};
use crate::files;
use crate::tensor::Dtype;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::path::Path;

/// Bytes that a JSON file beside a model may have: the index of a large model has hundreds of
/// thousands.
const MAX_BYTES: u64 = 16 << 20;

/// Added to the variance in every layernorm.
pub(super) const LAYERNORM_EPSILON: f64 = 1e-5;

/// The fields that are read: the dimensions, and the optional fields that change what the model
/// computes, with the defaults of `transformers`.
#[derive(Deserialize)]
struct HfConfig {
    n_positions: usize,
    vocab_size: usize,
    n_layer: usize,
    n_head: usize,
    n_embd: usize,
    #[serde(default)]
    n_inner: Option<usize>,
    #[serde(default = "gelu_new")]
    activation_function: String,
    #[serde(default = "epsilon")]
    layer_norm_epsilon: f64,
    #[serde(default = "yes")]
    scale_attn_weights: bool,
    #[serde(default)]
    scale_attn_by_inverse_layer_idx: bool,
    #[serde(default = "tenth")]
    embd_pdrop: f32,
    #[serde(default = "tenth")]
    attn_pdrop: f32,
    #[serde(default = "tenth")]
    resid_pdrop: f32,
    /// Our own field: `transformers` always has the bias, and preserves fields that it does not
    /// know.
    #[serde(default = "yes")]
    qkv_bias: bool,
}

fn gelu_new() -> String {
    "gelu_new".into()
}

fn epsilon() -> f64 {
    LAYERNORM_EPSILON
}

fn yes() -> bool {
    true
}

fn tenth() -> f32 {
    0.1
}

/// Reads the JSON file at `path`, which may start with a byte-order mark.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = files::read(path, MAX_BYTES)?;
    serde_json::from_slice(files::strip_bom(&text))
        .with_context(|| format!("{}: expected JSON", path.display()))
}

/// Reads the `config.json` at `path`: the shape of the model, and the dropout to train it with.
///
/// # Errors
/// One line, if it cannot be read, lacks a dimension, or describes a model other than the supported
/// GPT-2.
pub(super) fn read(path: &Path) -> Result<(ModelConfig, DropoutRates)> {
    let at = || path.display().to_string();
    let value: Value = read_json(path)?;
    // Checked first, because other models spell their dimensions differently.
    if let Some(other) = value.get("model_type").filter(|t| *t != "gpt2") {
        anyhow::bail!("{}: expected model_type \"gpt2\", found {other}", at());
    }
    let hf: HfConfig = serde_json::from_value(value).with_context(at)?;
    check_variant(&hf).with_context(at)?;
    let Vp = hf.vocab_size.checked_next_multiple_of(crate::config::VOCAB_PADDING).with_context(at)?;
    let config = ModelConfig {
        maxT: hf.n_positions,
        V: hf.vocab_size,
        Vp,
        L: hf.n_layer,
        NH: hf.n_head,
        C: hf.n_embd,
        qkv_bias: hf.qkv_bias,
        lora: None,
    };
    config.validate().with_context(at)?;
    let dropout = DropoutRates { embd: hf.embd_pdrop, attn: hf.attn_pdrop, resid: hf.resid_pdrop };
    Ok((config, dropout))
}

fn check_variant(hf: &HfConfig) -> Result<()> {
    let activation = &hf.activation_function;
    // Both are names of the tanh form.
    let tanh = ["gelu_new", "gelu_pytorch_tanh"].contains(&activation.as_str());
    ensure!(tanh, "expected activation_function \"gelu_new\", found \"{activation}\"");
    let epsilon = hf.layer_norm_epsilon;
    ensure!(epsilon == LAYERNORM_EPSILON, "expected layer_norm_epsilon {LAYERNORM_EPSILON}, found {epsilon}");
    let inner = hf.n_inner.unwrap_or(hf.n_embd.saturating_mul(4));
    ensure!(inner == hf.n_embd.saturating_mul(4), "expected n_inner 4 times n_embd, found {inner}");
    ensure!(hf.scale_attn_weights, "expected scale_attn_weights true, found false");
    for (key, rate) in
        [("embd_pdrop", hf.embd_pdrop), ("attn_pdrop", hf.attn_pdrop), ("resid_pdrop", hf.resid_pdrop)]
    {
        ensure!((0.0..1.0).contains(&rate), "expected {key} of at least 0 and below 1, found {rate}");
    }
    let by_layer = hf.scale_attn_by_inverse_layer_idx;
    ensure!(!by_layer, "expected scale_attn_by_inverse_layer_idx false, found true");
    Ok(())
}

/// The `config.json` for a model whose tensors are stored as `dtype`. `eot` is the end-of-text
/// token; without it, GPT-2's if the model has it.
pub(super) fn to_json(model: &ModelFile, dtype: Dtype, eot: Option<u32>) -> Value {
    let config = &model.config;
    // The shortest decimal number that means the same f32.
    let [embd, attn, resid] =
        model.dropout.all().map(|rate| rate.to_string().parse::<f64>().expect("a number"));
    let gpt2 = || (config.V >= GPT2_VOCAB).then_some(GPT2_VOCAB as u32 - 1);
    let end_of_text = eot.or_else(gpt2);
    let mut value = json!({
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": gelu_new(),
        "layer_norm_epsilon": LAYERNORM_EPSILON,
        "n_positions": config.maxT,
        "vocab_size": config.V,
        "n_layer": config.L,
        "n_head": config.NH,
        "n_embd": config.C,
        "n_inner": null,
        "attn_pdrop": attn,
        "embd_pdrop": embd,
        "resid_pdrop": resid,
        "initializer_range": 0.02,
        "scale_attn_weights": true,
        "tie_word_embeddings": true,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "torch_dtype": dtype.pytorch_name(),
    });
    if !config.qkv_bias {
        value["qkv_bias"] = false.into();
    }
    value
}

/// Writes that `config.json`.
pub(super) fn write(path: &Path, model: &ModelFile, dtype: Dtype, eot: Option<u32>) -> Result<()> {
    files::write(path, |out| {
        serde_json::to_writer_pretty(&mut *out, &to_json(model, dtype, eot))?;
        Ok(out.write_all(b"\n")?)
    })
}
