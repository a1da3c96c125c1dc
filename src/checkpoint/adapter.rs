//! Adapters of LoRA as PEFT saves them: a folder with `adapter_model.safetensors`, whose tensors
//! are A (r, in) and B (out, r) of each target, and `adapter_config.json`.

use super::ModelFile;
use super::digest::Sections;
use super::hf_config;
use super::safetensors_file::{self, Tensors};
use crate::config::{Lora, ModelConfig};
use crate::params::lora::{TARGETS, adapters_of, module};
use crate::params::{self, Init, ParamLayout, ParamSpec};
use anyhow::{Context, Result, bail, ensure};
use rayon::prelude::*;
use safetensors::Dtype as StoredDtype;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::Write;
use std::ops::Range;
use std::path::Path;

/// The files of an adapter.
pub(super) const WEIGHTS: &str = "adapter_model.safetensors";
pub(super) const CONFIG: &str = "adapter_config.json";

/// PEFT's prefix of the names of the model's modules, and that of `GPT2LMHeadModel` after it.
const PREFIXES: [&str; 2] = ["base_model.model.", "transformer."];

/// The adapters of a model in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    pub lora: Lora,
    /// The model that they belong to, as PEFT finds it; empty if that is not known.
    pub base_model: String,
    /// In the order of [`ParamLayout::adapters`], the padding of the rank included.
    pub values: Vec<f32>,
}

/// The fields of `adapter_config.json` that decide about the numbers. PEFT leaves out none that it
/// knows; older versions know fewer.
#[derive(Deserialize)]
struct PeftConfig {
    peft_type: String,
    base_model_name_or_path: Option<String>,
    r: usize,
    lora_alpha: f32,
    #[serde(default)]
    lora_dropout: f32,
    #[serde(flatten)]
    more: serde_json::Map<String, Value>,
}

/// One tensor of a file.
struct Stored {
    /// Without [`PREFIXES`].
    name: String,
    spec: &'static ParamSpec,
    shape: [usize; 2],
    /// Its elements, with the padding, among those of all adapters.
    range: Range<usize>,
}

/// The tensors of a model's adapters, in the order of their names in layers.
fn stored(config: &ModelConfig, lora: &Lora) -> Vec<Stored> {
    let layout = ParamLayout::new(config);
    let of_layer = |l: usize| {
        let layout = &layout;
        params::all(config).filter(|spec| spec.is_adapter()).map(move |spec| {
            let (rows, columns) = (spec.shape)(config);
            let shape = if is_a(spec) { [lora.rank, columns] } else { [rows, lora.rank] };
            let start = layout.range(spec.param).start - layout.adapters().start + l * rows * columns;
            let name = spec.hf_name.replace("{l}", &l.to_string());
            Stored { name, spec, shape, range: start..start + rows * columns }
        })
    };
    (0..config.L).flat_map(of_layer).collect()
}

/// Whether a tensor is A, the one that is not zero at first.
fn is_a(spec: &ParamSpec) -> bool {
    spec.init == Init::Uniform
}

impl Stored {
    /// The rows of the tensor in memory, and the elements of each that the file has. A has whole
    /// rows of padding at its end, B some columns.
    fn rows<'a>(&self, values: &'a [f32]) -> impl Iterator<Item = &'a [f32]> + use<'a> {
        let ([rows, columns], padded) = (self.shape, self.padded_columns());
        values[self.range.clone()].chunks_exact(padded).take(rows).map(move |row| &row[..columns])
    }

    /// Puts the elements of a file in their place.
    fn put(&self, values: &mut [f32], read: &[f32]) {
        let ([_, columns], padded) = (self.shape, self.padded_columns());
        let rows = values[self.range.clone()].chunks_exact_mut(padded);
        rows.zip(read.chunks_exact(columns)).for_each(|(row, read)| row[..columns].copy_from_slice(read));
    }

    fn padded_columns(&self) -> usize {
        if is_a(self.spec) { self.shape[1] } else { self.range.len() / self.shape[0] }
    }
}

impl Adapter {
    /// Reads the adapters in a folder, which belong to a model of this shape.
    ///
    /// # Errors
    /// One line that names the file, if it is missing, damaged, of another kind than LoRA with its
    /// plain scale, or does not fit the model.
    pub fn read(dir: &Path, config: &ModelConfig) -> Result<Adapter> {
        let path = dir.join(CONFIG);
        let peft = read_config(&path)?;
        let weights = dir.join(WEIGHTS);
        ensure!(
            weights.exists(),
            "{}: missing; expected it beside {CONFIG}; save the adapter as safetensors",
            weights.display()
        );
        let mut tensors = Tensors::open(std::slice::from_ref(&weights))?;
        let at = || weights.display().to_string();
        let lora = Lora { rank: peft.r, alpha: peft.lora_alpha, targets: targets_in(&tensors) };
        let config = ModelConfig { lora: Some(lora), ..*config };
        let all = stored(&config, &lora);
        let names = check_tensors(&tensors, &all).with_context(at)?;
        let mut values = super::stream::zeros(ParamLayout::new(&config).adapters().len()).with_context(at)?;
        for (tensor, name) in all.iter().zip(&names) {
            tensor.put(&mut values, &tensors.read(name)?);
        }
        let base_model = peft.base_model_name_or_path.unwrap_or_default();
        Ok(Adapter { lora, base_model, values })
    }

    /// Adds the product of the adapters to the matrices of the model that they belong to.
    pub fn merge_into(&self, model: &mut ModelFile) {
        let config = ModelConfig { lora: Some(self.lora), ..model.config };
        merge(&config, &self.values, 0, &mut model.params);
    }
}

fn read_config(path: &Path) -> Result<PeftConfig> {
    let peft: PeftConfig = hf_config::read_json(path)?;
    let at = path.display();
    ensure!(peft.peft_type == "LORA", "{at}: expected peft_type LORA, found {}", peft.peft_type);
    let rank = 1..=Lora::MAX_RANK;
    ensure!(rank.contains(&peft.r), "{at}: expected a rank r from 1 to {}, found {}", Lora::MAX_RANK, peft.r);
    let alpha = peft.lora_alpha;
    ensure!(alpha.is_finite() && alpha > 0.0, "{at}: expected a lora_alpha above 0, found {alpha}");
    let is_off = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text == "none",
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Number(_) | Value::Bool(true) => false,
    };
    let others =
        ["bias", "use_rslora", "use_dora", "lora_bias", "modules_to_save", "rank_pattern", "alpha_pattern"];
    for name in others.into_iter().chain([
        "layers_to_transform",
        "layer_replication",
        "trainable_token_indices",
        "target_parameters",
        "alora_invocation_tokens",
        "use_bdlora",
        "use_qalora",
    ]) {
        if let Some(found) = peft.more.get(name).filter(|value| !is_off(value)) {
            bail!("{at}: expected no {name}, found {found}; merge that adapter with PEFT");
        }
    }
    if peft.lora_dropout > 0.0 {
        log::warn!("{at}: trained with lora_dropout {}; here an adapter drops nothing", peft.lora_dropout);
    }
    Ok(peft)
}

/// The names that a tensor may have in a file.
fn names_of(name: &str) -> [String; 2] {
    let [peft, head] = PREFIXES;
    [format!("{peft}{head}{name}"), format!("{peft}{name}")]
}

/// The matrices whose adapters are in a file, by those of the first layer.
fn targets_in(tensors: &Tensors) -> [bool; 4] {
    TARGETS.map(|target| {
        let name = format!("h.0.{}.lora_A.weight", module(target));
        names_of(&name).iter().any(|name| tensors.shape(name).is_some())
    })
}

/// Checks that a file has these tensors and no others, and returns their names there. Nothing is
/// allocated before, so a bad config cannot exhaust memory.
fn check_tensors(tensors: &Tensors, all: &[Stored]) -> Result<Vec<String>> {
    let mut known = BTreeSet::new();
    let mut names = Vec::new();
    for Stored { name, shape, .. } in all {
        let found = names_of(name).into_iter().find_map(|name| Some((tensors.shape(&name)?.to_vec(), name)));
        let (found, name) =
            found.with_context(|| format!("expected a tensor {name} of shape {shape:?}, found none"))?;
        ensure!(found == shape[..], "expected tensor {name} of shape {shape:?}, found {found:?}");
        known.insert(name.clone());
        names.push(name);
    }
    match tensors.names().find(|name| !known.contains(*name)) {
        Some(extra) if known.is_empty() => {
            bail!("expected adapters of GPT-2, such as h.0.attn.c_attn.lora_A.weight, found {extra}")
        }
        Some(extra) => bail!("found tensor {extra}, which is no adapter of this GPT-2 model"),
        None if known.is_empty() => bail!("expected adapters, found no tensor"),
        None => Ok(names),
    }
}

/// The text of `adapter_config.json`.
pub(super) fn config_text(lora: &Lora, base_model: &str) -> String {
    let whole = lora.alpha.fract() == 0.0 && lora.alpha < 1e9;
    let alpha = if whole { json!(lora.alpha as u64) } else { json!(lora.alpha) };
    let on = TARGETS.into_iter().zip(lora.targets).filter(|(_, on)| *on);
    let modules: Vec<_> = on.map(|(target, _)| module(target)).collect();
    let json = json!({
        "base_model_name_or_path": if base_model.is_empty() { Value::Null } else { base_model.into() },
        "bias": "none",
        // The matrices of Hugging Face's GPT-2 are stored (in, out).
        "fan_in_fan_out": true,
        "inference_mode": true,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": lora.rank,
        "target_modules": modules,
        "task_type": "CAUSAL_LM",
        "use_dora": false,
        "use_rslora": false,
    });
    format!("{json:#}\n")
}

/// The bytes of `adapter_model.safetensors` before its data, f32.
fn header(all: &[Stored]) -> Vec<u8> {
    let named = all.iter().map(|tensor| (names_of(&tensor.name)[0].clone(), tensor.shape.to_vec()));
    safetensors_file::header(StoredDtype::F32, 4, named).expect("tensors one after the other")
}

/// The tensors of the file.
pub(super) fn sections(config: &ModelConfig, lora: &Lora) -> Sections {
    let all = stored(config, lora);
    let mut end = header(&all).len() as u64;
    let section = |tensor: &Stored| {
        let start = end;
        end += 4 * tensor.shape.iter().product::<usize>() as u64;
        (tensor.name.clone(), start..end)
    };
    all.iter().map(section).collect()
}

/// Bytes of the file.
pub(super) fn size(config: &ModelConfig, lora: &Lora) -> usize {
    sections(config, lora).last().map_or(0, |(_, bytes)| bytes.end as usize)
}

/// Writes the bytes of `adapter_model.safetensors` with these adapters.
pub(super) fn encode(config: &ModelConfig, lora: &Lora, values: &[f32], out: &mut dyn Write) -> Result<()> {
    let all = stored(config, lora);
    out.write_all(&header(&all))?;
    for row in all.iter().flat_map(|tensor| tensor.rows(values)) {
        out.write_all(bytemuck::cast_slice(row))?;
    }
    Ok(())
}

/// Adds the product of the adapters, alpha / r B A, to `out`, the elements from `start` on of the
/// model's own parameters in the order of files.
pub(super) fn merge(config: &ModelConfig, adapters: &[f32], start: usize, out: &mut [f32]) {
    let Some(lora) = config.lora else { return };
    let layout = ParamLayout::new(config);
    for target in TARGETS {
        let Some(pair) = adapters_of(target, &lora) else { continue };
        let len = target.spec().len_per_layer(config);
        let (_, C) = (target.spec().shape)(config);
        for l in 0..config.L {
            let first = layout.range(target).start + l * len;
            let (from, to) = (first.max(start), (first + len).min(start + out.len()));
            if from >= to {
                continue;
            }
            let [a, b] = pair.map(|param| {
                let len = param.spec().len_per_layer(config);
                let at = layout.range(param).start - layout.adapters().start + l * len;
                &adapters[at..at + len]
            });
            let product = Product { a, b, r: lora.padded_rank(), C, scale: lora.scale() };
            product.add(from - first, &mut out[from - start..to - start]);
        }
    }
}

/// scale B (OC, r) A (r, C).
struct Product<'a> {
    a: &'a [f32],
    b: &'a [f32],
    r: usize,
    C: usize,
    scale: f32,
}

impl Product<'_> {
    /// Adds the elements from `start` on.
    fn add(&self, start: usize, out: &mut [f32]) {
        let head = (self.C - start % self.C) % self.C;
        let (first, rest) = out.split_at_mut(head.min(out.len()));
        self.add_row(start / self.C, start % self.C, first);
        let rows = rest.par_chunks_mut(self.C).enumerate();
        rows.for_each(|(row, out)| self.add_row((start + head) / self.C + row, 0, out));
    }

    /// Adds a row's elements from `column` on.
    fn add_row(&self, row: usize, column: usize, out: &mut [f32]) {
        if out.is_empty() {
            return;
        }
        let mut sums = vec![0.0f32; out.len()];
        for (k, b) in self.b[row * self.r..(row + 1) * self.r].iter().enumerate() {
            let a = &self.a[k * self.C + column..];
            sums.iter_mut().zip(a).for_each(|(sum, a)| *sum += b * a);
        }
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out += self.scale * sum);
    }
}
