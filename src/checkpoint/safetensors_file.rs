//! GPT-2 as Hugging Face's `transformers` saves it: `model.safetensors` and `config.json`. Two
//! things differ from the layout in memory: matrices other than the embeddings are stored
//! transposed, (in, out), and the vocabulary is not padded.

use super::stream::{FloatWriter, zeros};
use super::{ModelFile, hf_config};
use crate::config::{DropoutRates, ModelConfig, VOCAB_PADDING};
use crate::files;
use crate::params::{PARAMS, Param, ParamLayout};
use crate::tensor::Dtype;
use anyhow::{Context, Result, bail, ensure};
use half::f16;
use safetensors::Dtype as StoredDtype;
use safetensors::tensor::{Metadata, TensorInfo};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Prefix of the names of all tensors but the head in `GPT2LMHeadModel`. `GPT2Model` has no prefix.
const PREFIX: &str = "transformer.";

/// Bytes that a header may have, as in the reference implementation.
const MAX_HEADER: u64 = 100_000_000;

/// The output projection. It is tied to `wte.weight`, so it is absent or the same.
const HEAD: &str = "lm_head.weight";

/// A tensor as Hugging Face stores it.
struct Stored {
    /// The name without [`PREFIX`].
    name: String,
    shape: Vec<usize>,
    /// The range of its elements among the parameters.
    range: Range<usize>,
    transposed: bool,
}

/// Lists all tensors of a model, in the order of [`PARAMS`].
fn stored(config: &ModelConfig) -> Vec<Stored> {
    let layout = ParamLayout::new(config);
    let mut all = Vec::new();
    for spec in &PARAMS {
        let (rows, columns) = match spec.param {
            Param::Wte => (config.V, config.C),
            _ => (spec.shape)(config),
        };
        let transposed = matches!(spec.param, Param::Qkvw | Param::Attprojw | Param::Fcw | Param::Fcprojw);
        let shape = match (spec.is_matrix, transposed) {
            (false, _) => vec![columns],
            (true, false) => vec![rows, columns],
            (true, true) => vec![columns, rows],
        };
        for l in 0..spec.layers(config) {
            let name = spec.hf_name.replace("{l}", &l.to_string());
            let start = layout.range(spec.param).start + l * spec.len_per_layer(config);
            let range = start..start + rows * columns;
            all.push(Stored { name, shape: shape.clone(), range, transposed });
        }
    }
    all
}

/// Transposes `src` (rows, columns), in tiles that fit in the cache in either direction.
fn transpose(src: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    const TILE: usize = 32;
    let mut out = vec![0.0; src.len()];
    for row_tile in (0..rows).step_by(TILE) {
        for column_tile in (0..columns).step_by(TILE) {
            for row in row_tile..rows.min(row_tile + TILE) {
                for column in column_tile..columns.min(column_tile + TILE) {
                    out[column * rows + row] = src[row * columns + column];
                }
            }
        }
    }
    out
}

/// Returns the files of the model in a directory saved by `transformers`: one, or those of an
/// index. `None` if there are none.
pub(super) fn files_in(dir: &Path) -> Result<Option<Vec<PathBuf>>> {
    let single = dir.join("model.safetensors");
    if single.exists() {
        return Ok(Some(vec![single]));
    }
    let index = dir.join("model.safetensors.index.json");
    if !index.exists() {
        return Ok(None);
    }
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let parsed: Index = hf_config::read_json(&index)?;
    let names: BTreeSet<&String> = parsed.weight_map.values().collect();
    ensure!(!names.is_empty(), "{}: expected names of files, found none", index.display());
    // Anything else could name files outside of the folder.
    let is_plain = |name: &&&String| !matches!(name.as_str(), "" | "." | "..") && !name.contains(['/', '\\']);
    if let Some(other) = names.iter().find(|name| !is_plain(name)) {
        bail!("{}: expected plain names of files, found \"{other}\"", index.display());
    }
    Ok(Some(names.into_iter().map(|name| dir.join(name)).collect()))
}

/// The open safetensors files of one model.
pub(super) struct Tensors {
    files: Vec<(PathBuf, File)>,
    /// File, start of the data and description of each tensor, by its name without [`PREFIX`].
    index: BTreeMap<String, (usize, u64, TensorInfo)>,
}

impl Tensors {
    pub fn open(paths: &[PathBuf]) -> Result<Tensors> {
        let mut tensors = Tensors { files: Vec::new(), index: BTreeMap::new() };
        for path in paths {
            let (mut file, _) = files::open(path)?;
            let (metadata, data) = read_metadata(&mut file).with_context(|| path.display().to_string())?;
            for (name, info) in metadata.tensors() {
                let bare = name.strip_prefix(PREFIX).unwrap_or(&name).to_string();
                if is_buffer(&bare) {
                    continue;
                }
                let start = data + info.data_offsets.0 as u64;
                let twice = tensors.index.insert(bare, (tensors.files.len(), start, info.clone()));
                ensure!(
                    twice.is_none(),
                    "{}: found tensor {name} twice, with and without prefix",
                    path.display()
                );
            }
            tensors.files.push((path.clone(), file));
        }
        // The two are one tensor, which may be saved under either name.
        if let Some(head) = tensors.index.get(HEAD).cloned() {
            tensors.index.entry("wte.weight".to_owned()).or_insert(head);
        }
        Ok(tensors)
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.index.keys().map(String::as_str)
    }

    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.index.get(name).map(|(_, _, info)| info.shape.as_slice())
    }

    /// Reads all elements of an existing tensor as f32.
    pub fn read(&mut self, name: &str) -> Result<Vec<f32>> {
        let (file, start, info) = &self.index[name];
        let (path, file) = &mut self.files[*file];
        let mut bytes = vec![0; info.data_offsets.1 - info.data_offsets.0];
        file.seek(SeekFrom::Start(*start))
            .and_then(|_| file.read_exact(&mut bytes))
            .with_context(|| format!("cannot read {}", path.display()))?;
        let halves = bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
        Ok(match info.dtype {
            StoredDtype::F32 => bytemuck::pod_collect_to_vec(&bytes),
            StoredDtype::F16 => halves.map(|b| f16::from_bits(b).to_f32()).collect(),
            StoredDtype::BF16 => halves.map(|b| f32::from_bits(u32::from(b) << 16)).collect(),
            other => bail!("{}: expected F32, F16 or BF16 in tensor {name}, found {other}", path.display()),
        })
    }
}

/// Reads the header of a safetensors file. Returns it, and the offset of the data after it. The
/// crate's own reader needs the whole file in memory.
fn read_metadata(file: &mut File) -> Result<(Metadata, u64)> {
    let bytes = file.metadata()?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length).context("expected a safetensors file, found too few bytes")?;
    let length = u64::from_le_bytes(length);
    let data = length.checked_add(8).filter(|&data| data <= bytes);
    let data =
        data.with_context(|| format!("expected a header of {length} bytes, found a file of {bytes}"))?;
    ensure!(length <= MAX_HEADER, "expected a header of at most {MAX_HEADER} bytes, found {length}");
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header)?;
    let metadata: Metadata = serde_json::from_slice(&header).context("the header is not valid")?;
    let expected = u128::from(data) + metadata.data_len() as u128;
    ensure!(u128::from(bytes) == expected, "expected {expected} bytes, found {bytes}");
    Ok((metadata, data))
}

/// Whether a tensor is a causal mask. Older versions of `transformers` saved these with the
/// weights.
fn is_buffer(name: &str) -> bool {
    name.starts_with("h.") && (name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias"))
}

/// Reads a model from the files of one directory, and fills the padding of the vocabulary with
/// zeros.
///
/// # Errors
/// One line that names the file and the invalid tensor.
pub(super) fn read(paths: &[PathBuf]) -> Result<ModelFile> {
    let mut tensors = Tensors::open(paths)?;
    let at = || paths[0].display().to_string();
    let (config, dropout) = config_of(&tensors, &paths[0])?;
    let all = stored(&config);
    check_tensors(&tensors, &all).with_context(at)?;
    let mut params = zeros(ParamLayout::new(&config).len()).with_context(at)?;
    for tensor in &all {
        let values = tensors.read(&tensor.name)?;
        let values =
            if tensor.transposed { transpose(&values, tensor.shape[0], tensor.shape[1]) } else { values };
        params[tensor.range.clone()].copy_from_slice(&values);
    }
    if tensors.shape(HEAD).is_some() {
        let head = tensors.read(HEAD)?;
        let wte = &params[all[0].range.clone()];
        let same = head.iter().zip(wte).all(|(a, b)| a.to_bits() == b.to_bits());
        ensure!(same, "{}: {HEAD} differs from wte.weight; expected a model that ties them", at());
    }
    ensure!(
        config.qkv_bias || params[ParamLayout::new(&config).range(Param::Qkvb)].iter().all(|&b| b == 0.0),
        "{}: c_attn.bias has values, but config.json says that there is no such bias",
        at()
    );
    Ok(ModelFile { config, dropout, params })
}

/// Reads the config next to the file at `path`. Without one, the config follows from the shapes,
/// with heads of 64 channels as in GPT-2, and nothing is dropped.
fn config_of(tensors: &Tensors, path: &Path) -> Result<(ModelConfig, DropoutRates)> {
    let at = || path.display().to_string();
    let (Some(&[V, C]), Some(&[maxT, _])) = (tensors.shape("wte.weight"), tensors.shape("wpe.weight")) else {
        let example = tensors.index.keys().next().map_or("none", String::as_str);
        bail!("{}: expected the tensors of GPT-2, such as wte.weight, found others, such as {example}", at());
    };
    let L = (0..).take_while(|l| tensors.shape(&format!("h.{l}.ln_1.weight")).is_some()).count();
    let beside = path.with_file_name("config.json");
    if beside.exists() {
        let (config, dropout) = hf_config::read(&beside)?;
        // Checked before the tensors are listed, as the config may claim any number of layers.
        ensure!(config.L == L, "{}: expected the {} layers that config.json says, found {L}", at(), config.L);
        return Ok((config, dropout));
    }
    ensure!(
        C > 0 && C.is_multiple_of(64),
        "{}: {C} channels do not divide into heads of 64; put the config.json with n_head next to it",
        at()
    );
    let Vp = V.checked_next_multiple_of(VOCAB_PADDING).unwrap_or(0);
    let config = ModelConfig { maxT, V, Vp, L, NH: C / 64, C, qkv_bias: true, lora: None };
    config.validate().with_context(at)?;
    Ok((config, DropoutRates::NONE))
}

/// Checks that the tensors are those of the model, by name and shape. Nothing is allocated before
/// this check, so a bad config cannot exhaust memory.
fn check_tensors(tensors: &Tensors, all: &[Stored]) -> Result<()> {
    let mut known: BTreeMap<&str, &[usize]> = all.iter().map(|t| (t.name.as_str(), &t.shape[..])).collect();
    known.insert(HEAD, &all[0].shape);
    for (name, expected) in &known {
        match tensors.shape(name) {
            Some(found) => {
                ensure!(found == *expected, "expected tensor {name} of shape {expected:?}, found {found:?}");
            }
            None => ensure!(*name == HEAD, "expected a tensor {name} of shape {expected:?}, found none"),
        }
    }
    match tensors.index.keys().find(|name| !known.contains_key(name.as_str())) {
        Some(extra) => bail!("found tensor {extra}, which is not part of this GPT-2 model"),
        None => Ok(()),
    }
}

/// The bytes of a safetensors file before its data: names and shapes of tensors, one after the
/// other, with elements of `size` bytes.
pub(super) fn header(
    dtype: StoredDtype,
    size: usize,
    tensors: impl Iterator<Item = (String, Vec<usize>)>,
) -> Result<Vec<u8>> {
    let mut end = 0;
    let infos = tensors.map(|(name, shape)| {
        let start = end;
        end += shape.iter().product::<usize>() * size;
        (name, TensorInfo { dtype, shape, data_offsets: (start, end) })
    });
    // `transformers` rejects files that do not name a framework.
    let framework = HashMap::from([("format".to_string(), "pt".to_string())]);
    let metadata = Metadata::new(Some(framework), infos.collect())?;
    let mut json = serde_json::to_vec(&metadata)?;
    // This aligns the data for readers that map the file.
    json.resize(json.len().next_multiple_of(8), b' ');
    Ok([&(json.len() as u64).to_le_bytes()[..], &json].concat())
}

/// Writes `model` to the safetensors file at `path`, in F32, BF16 or F16, and a `config.json` next
/// to it, which names the end-of-text token `eot`. The names are those that `GPT2LMHeadModel` saves
/// and loads.
pub(super) fn write(path: &Path, model: &ModelFile, dtype: Dtype, eot: Option<u32>) -> Result<()> {
    let (stored_dtype, size) = match dtype {
        Dtype::F32 => (StoredDtype::F32, 4),
        Dtype::Bf16 => (StoredDtype::BF16, 2),
        Dtype::F16 => (StoredDtype::F16, 2),
        Dtype::I32 => {
            bail!("{}: expected f32, bf16 or f16 as the type of the tensors, found i32", path.display())
        }
    };
    let all = stored(&model.config);
    let named = all.iter().map(|tensor| (format!("{PREFIX}{}", tensor.name), tensor.shape.clone()));
    let header = header(stored_dtype, size, named)?;
    files::write(path, |out| {
        out.write_all(&header)?;
        let mut out = FloatWriter::new(out, dtype);
        for tensor in &all {
            let values = &model.params[tensor.range.clone()];
            let values = match tensor.transposed {
                // `shape` is that in the file, which is the transpose of that in memory.
                true => Cow::Owned(transpose(values, tensor.shape[1], tensor.shape[0])),
                false => Cow::Borrowed(values),
            };
            out.write(&values)?;
        }
        Ok(())
    })?;
    hf_config::write(&path.with_file_name("config.json"), model, dtype, eot)
}
