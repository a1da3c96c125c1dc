//! GPT-2 in GGUF, the format of llama.cpp: one file with the shape, the tensors and the tokenizer.
//!
//! Names and keys are those of llama.cpp. Matrices are (out, in), as in memory, and the vocabulary
//! is not padded. Vectors and the position embedding are always f32. There is no `output.weight`:
//! the head is `token_embd.weight`.

mod container;
mod elements;

use super::stream::zeros;
use super::{ModelFile, hf_config};
use crate::config::{DropoutRates, ModelConfig, VOCAB_PADDING};
use crate::data::tokenizer::{ByteLevel, Tokenizer};
use crate::files;
use crate::params::{PARAMS, Param, ParamLayout};
use crate::tensor::{Dtype, Stored};
use anyhow::{Context, Result, bail, ensure};
use container::{Container, Metadata, Value};
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

/// The first bytes of a file.
pub const MAGIC: &[u8] = container::MAGIC;

/// The name of GPT-2 among llama.cpp's architectures.
const ARCHITECTURE: &str = "gpt2";

/// ggml's version of its quantized types.
const QUANTIZATION_VERSION: u32 = 2;

/// Added to the variance in every layernorm.
const LAYERNORM_EPSILON: f32 = hf_config::LAYERNORM_EPSILON as f32;

/// Our own key, false for a model without the bias of the query-key-value projection. llama.cpp
/// always has the bias, and passes over keys that it does not know.
const QKV_BIAS: &str = "warpsmith.qkv_bias";

/// The head, where it is stored: a copy of the token embedding.
const HEAD: &str = "output.weight";

/// llama.cpp's types of tokens.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// Whether a path names a file of this format.
pub fn is_named(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "gguf")
}

/// llama.cpp's name of a parameter tensor, with `{l}` for the layer number.
fn name_of(param: Param) -> &'static str {
    match param {
        Param::Wte => "token_embd.weight",
        Param::Wpe => "position_embd.weight",
        Param::Ln1w => "blk.{l}.attn_norm.weight",
        Param::Ln1b => "blk.{l}.attn_norm.bias",
        Param::Qkvw => "blk.{l}.attn_qkv.weight",
        Param::Qkvb => "blk.{l}.attn_qkv.bias",
        Param::Attprojw => "blk.{l}.attn_output.weight",
        Param::Attprojb => "blk.{l}.attn_output.bias",
        Param::Ln2w => "blk.{l}.ffn_norm.weight",
        Param::Ln2b => "blk.{l}.ffn_norm.bias",
        Param::Fcw => "blk.{l}.ffn_up.weight",
        Param::Fcb => "blk.{l}.ffn_up.bias",
        Param::Fcprojw => "blk.{l}.ffn_down.weight",
        Param::Fcprojb => "blk.{l}.ffn_down.bias",
        Param::Lnfw => "output_norm.weight",
        Param::Lnfb => "output_norm.bias",
        adapter => panic!("{adapter:?} is a part of an adapter"),
    }
}

/// A tensor of a model.
struct Entry {
    name: String,
    shape: Vec<usize>,
    /// The range of its elements among the parameters.
    range: Range<usize>,
    /// Whether it is always f32.
    is_wide: bool,
}

/// The tensors of a model, layer by layer.
fn entries(config: &ModelConfig) -> Vec<Entry> {
    let layout = ParamLayout::new(config);
    let entry = |param: Param, l: usize| {
        let spec = param.spec();
        let (rows, columns) = if param == Param::Wte { (config.V, config.C) } else { (spec.shape)(config) };
        let start = layout.range(param).start + l * spec.len_per_layer(config);
        Entry {
            name: name_of(param).replace("{l}", &l.to_string()),
            shape: if spec.is_matrix { vec![rows, columns] } else { vec![columns] },
            range: start..start + rows * columns,
            is_wide: !spec.is_matrix || param == Param::Wpe,
        }
    };
    let of_layers = (0..config.L)
        .flat_map(|l| PARAMS.iter().filter(|spec| spec.per_layer).map(move |spec| (spec.param, l)));
    let before = [(Param::Wte, 0), (Param::Wpe, 0)].into_iter();
    let all = before.chain(of_layers).chain([(Param::Lnfw, 0), (Param::Lnfb, 0)]);
    all.map(|(param, l)| entry(param, l)).collect()
}

/// Writes a model and its tokenizer to `path`, its matrices as `stored`.
///
/// # Errors
/// One line, if llama.cpp has no tokenizer of this kind, the rows of a matrix do not fill blocks of
/// `stored`, or the file cannot be written.
pub fn write(path: &Path, model: &ModelFile, stored: Stored, tokenizer: &Tokenizer) -> Result<()> {
    let config = &model.config;
    let at = || path.display();
    ensure!(
        stored != Stored::Q8_0 || config.C.is_multiple_of(elements::BLOCK),
        "{}: q8_0 has blocks of {} elements, into which {} channels do not divide; choose bf16 or f32",
        at(),
        elements::BLOCK,
        config.C
    );
    let words = tokenizer.byte_level().with_context(|| format!("{}", at()))?;
    let mut metadata = shape_metadata(path, config, stored)?;
    metadata.extend(tokenizer_metadata(config, words));
    let all = entries(config);
    let type_of = |entry: &Entry| if entry.is_wide { Stored::Float(Dtype::F32) } else { stored };
    let named: Vec<_> =
        all.iter().map(|entry| (entry.name.clone(), entry.shape.clone(), type_of(entry))).collect();
    let header = container::header(&metadata, &named)?;
    files::make_room(path)?;
    files::write(path, |out| {
        out.write_all(&header)?;
        for entry in &all {
            let (stored, values) = (type_of(entry), &model.params[entry.range.clone()]);
            elements::write(out, stored, values)?;
            let bytes = elements::size(stored, values.len()).context("expected whole blocks")?;
            out.write_all(&vec![0; container::padding(bytes)])?;
        }
        Ok(())
    })
}

/// The keys that describe the model.
fn shape_metadata(path: &Path, config: &ModelConfig, stored: Stored) -> Result<Metadata> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let number = |value: usize| Value::U32(u32::try_from(value).expect("a valid config"));
    let general = |key: &str| format!("general.{key}");
    let own = |key: &str| format!("{ARCHITECTURE}.{key}");
    Ok(vec![
        (general("architecture"), Value::Text(ARCHITECTURE.to_owned())),
        (general("type"), Value::Text("model".to_owned())),
        (general("name"), Value::Text(name)),
        (own("block_count"), number(config.L)),
        (own("context_length"), number(config.maxT)),
        (own("embedding_length"), number(config.C)),
        (own("feed_forward_length"), number(4 * config.C)),
        (own("attention.head_count"), number(config.NH)),
        (own("attention.layer_norm_epsilon"), Value::F32(LAYERNORM_EPSILON)),
        (general("file_type"), Value::U32(container::file_type(stored)?)),
        (general("quantization_version"), Value::U32(QUANTIZATION_VERSION)),
        (QKV_BIAS.to_owned(), Value::Bool(config.qkv_bias)),
    ])
}

/// The keys that describe the tokenizer. Ids beyond it get names that stand in no text.
fn tokenizer_metadata(config: &ModelConfig, words: ByteLevel) -> Metadata {
    let ByteLevel { pre, mut tokens, added, merges, eot } = words;
    let mut types = vec![NORMAL; tokens.len()];
    for (id, is_special) in added {
        types[id as usize] = if is_special { CONTROL } else { USER_DEFINED };
    }
    tokens.extend((tokens.len()..config.V).map(|id| format!("[PAD{id}]")));
    types.resize(tokens.len(), UNUSED);
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    vec![
        (key("model"), Value::Text("gpt2".to_owned())),
        (key("pre"), Value::Text(pre)),
        (key("tokens"), Value::Texts(tokens)),
        (key("token_type"), Value::I32s(types)),
        (key("merges"), Value::Texts(merges)),
        (key("bos_token_id"), Value::U32(eot)),
        (key("eos_token_id"), Value::U32(eot)),
        (key("add_bos_token"), Value::Bool(false)),
    ]
}

impl Container {
    fn text(&self, key: &str) -> Option<&str> {
        match self.metadata.get(key) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    fn texts(&self, key: &str) -> Option<&[String]> {
        match self.metadata.get(key) {
            Some(Value::Texts(texts)) => Some(texts),
            _ => None,
        }
    }

    fn number(&self, key: &str) -> Option<f64> {
        match self.metadata.get(key)? {
            Value::U32(number) => Some(f64::from(*number)),
            Value::F32(number) => Some(f64::from(*number)),
            Value::Number(number) => Some(*number),
            _ => None,
        }
    }

    /// A key of the architecture that is a count.
    fn count(&self, key: &str) -> Result<usize> {
        let key = format!("{ARCHITECTURE}.{key}");
        let number = self.number(&key).with_context(|| format!("expected a number {key}, found none"))?;
        let is_count = number >= 0.0 && number <= f64::from(u32::MAX) && number.fract() == 0.0;
        ensure!(is_count, "expected a count {key}, found {number}");
        Ok(number as usize)
    }
}

/// Reads a model, and fills the padding of the vocabulary with zeros.
///
/// # Errors
/// One line that names the file, and what was expected and found.
pub fn read(path: &Path) -> Result<ModelFile> {
    let mut found = Container::open(path)?;
    read_model(&mut found).with_context(|| path.display().to_string())
}

fn read_model(found: &mut Container) -> Result<ModelFile> {
    let config = config_of(found)?;
    let all = entries(&config);
    check_tensors(found, &all)?;
    let layout = ParamLayout::new(&config);
    let mut params = zeros(layout.len())?;
    for entry in &all {
        let info = &found.tensors[&entry.name];
        let mut rest = &mut params[entry.range.clone()];
        elements::read(&mut found.file, info, &mut |values| {
            let (now, later) = std::mem::take(&mut rest).split_at_mut(values.len());
            now.copy_from_slice(values);
            rest = later;
        })?;
    }
    if let Some(info) = found.tensors.get(HEAD) {
        let (mut wte, mut same) = (&params[all[0].range.clone()], true);
        elements::read(&mut found.file, info, &mut |values| {
            let (now, later) = wte.split_at(values.len());
            same &= now.iter().zip(values).all(|(a, b)| a.to_bits() == b.to_bits());
            wte = later;
        })?;
        ensure!(same, "{HEAD} differs from {}; expected a model that ties them", all[0].name);
    }
    ensure!(
        config.qkv_bias || params[layout.range(Param::Qkvb)].iter().all(|&bias| bias == 0.0),
        "attn_qkv.bias has values, but {QKV_BIAS} says that there is no such bias"
    );
    Ok(ModelFile { config, dropout: DropoutRates::NONE, params })
}

/// The shape of the model, of which the vocabulary is that of the embedding.
fn config_of(found: &Container) -> Result<ModelConfig> {
    let architecture = found.text("general.architecture").unwrap_or("none");
    ensure!(
        architecture == ARCHITECTURE,
        "expected a model of the architecture {ARCHITECTURE}, found {architecture}"
    );
    let (C, NH) = (found.count("embedding_length")?, found.count("attention.head_count")?);
    let wide = found.count("feed_forward_length")?;
    ensure!(wide == C.saturating_mul(4), "expected a feed_forward_length of 4 times {C}, found {wide}");
    let kv_heads = found.count("attention.head_count_kv").unwrap_or(NH);
    ensure!(kv_heads == NH, "expected as many heads of keys and values as {NH}, found {kv_heads}");
    let key = format!("{ARCHITECTURE}.attention.layer_norm_epsilon");
    let epsilon = found.number(&key).map_or(LAYERNORM_EPSILON, |number| number as f32);
    ensure!(epsilon == LAYERNORM_EPSILON, "expected a {key} of {LAYERNORM_EPSILON}, found {epsilon}");
    let wte =
        found.tensors.get(name_of(Param::Wte)).context("expected a tensor token_embd.weight, found none")?;
    let &[V, _] = &wte.shape[..] else {
        bail!("expected token_embd.weight of 2 dimensions, found {:?}", wte.shape)
    };
    let Vp = V.checked_next_multiple_of(VOCAB_PADDING).unwrap_or(0);
    let (maxT, L) = (found.count("context_length")?, found.count("block_count")?);
    let qkv_bias = found.metadata.get(QKV_BIAS) != Some(&Value::Bool(false));
    let config = ModelConfig { maxT, V, Vp, L, NH, C, qkv_bias, lora: None };
    config.validate()?;
    Ok(config)
}

/// Checks that the tensors are those of the model, by name and shape. Nothing is allocated before
/// this check, so a damaged file cannot exhaust memory.
fn check_tensors(found: &Container, all: &[Entry]) -> Result<()> {
    let mut known = BTreeSet::new();
    for Entry { name, shape, .. } in all {
        let info = found.tensors.get(name);
        let info =
            info.with_context(|| format!("expected a tensor {name} of shape {shape:?}, found none"))?;
        ensure!(info.shape == *shape, "expected tensor {name} of shape {shape:?}, found {:?}", info.shape);
        known.insert(name.as_str());
    }
    if let Some(head) = found.tensors.get(HEAD) {
        ensure!(
            head.shape == all[0].shape,
            "expected {HEAD} of shape {:?}, found {:?}",
            all[0].shape,
            head.shape
        );
        known.insert(HEAD);
    }
    match found.tensors.keys().find(|name| !known.contains(name.as_str())) {
        Some(extra) => bail!("found tensor {extra}, which is not part of this GPT-2 model"),
        None => Ok(()),
    }
}

/// Reads the tokenizer in a file; `None` if it has none.
///
/// # Errors
/// One line that names the file, if the tokenizer is of another kind or damaged.
pub fn tokenizer(path: &Path) -> Result<Option<Tokenizer>> {
    let found = Container::open(path)?;
    let parse = || {
        let Some(words) = words(&found)? else { return Ok(None) };
        Tokenizer::from_byte_level(path.display().to_string(), &words).map(Some)
    };
    parse().with_context(|| format!("{}: the tokenizer in it", path.display()))
}

fn words(found: &Container) -> Result<Option<ByteLevel>> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let Some(tokens) = found.texts(&key("tokens")) else { return Ok(None) };
    let kind = found.text(&key("model")).unwrap_or("none");
    ensure!(kind == "gpt2", "expected byte-level BPE (gpt2), found {kind}");
    let types = match found.metadata.get(&key("token_type")) {
        Some(Value::I32s(types)) => types.clone(),
        _ => vec![NORMAL; tokens.len()],
    };
    ensure!(types.len() == tokens.len(), "expected {} types of tokens, found {}", tokens.len(), types.len());
    // The model knows more ids than the tokenizer.
    let used = types.iter().rposition(|&kind| kind != UNUSED).map_or(0, |last| last + 1);
    let added = (0..).zip(&types[..used]).filter_map(|(id, &kind)| match kind {
        CONTROL => Some((id, true)),
        USER_DEFINED => Some((id, false)),
        _ => None,
    });
    let eot =
        found.number(&key("eos_token_id")).context("expected tokenizer.ggml.eos_token_id, found none")?;
    Ok(Some(ByteLevel {
        // Files of before 2024 do not say it; those of GPT-2 have GPT-2's.
        pre: found.text(&key("pre")).unwrap_or("gpt-2").to_owned(),
        added: added.collect(),
        tokens: tokens[..used].to_vec(),
        merges: found.texts(&key("merges")).context("expected tokenizer.ggml.merges, found none")?.to_vec(),
        eot: eot as u32,
    }))
}

#[cfg(test)]
mod tests;
