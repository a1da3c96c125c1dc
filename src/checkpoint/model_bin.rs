//! llm.c's model file: a header, then the sixteen tensors in the order of
//! [`PARAMS`](crate::params::PARAMS), all layers of a tensor together, as f32 (version 3) or bf16
//! (version 5).

use super::ModelFile;
use super::digest::{self, Digest, Sections};
use super::stream::{self, Sink, Source, TensorKind, zeros};
use crate::config::{DropoutRates, ModelConfig};
use crate::llmc::{HEADER_BYTES, Header, MODEL};
use crate::params::{Param, ParamLayout};
use crate::tensor::Dtype;
use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::slice::from_ref;

const F32_VERSION: i32 = 3;
const BF16_VERSION: i32 = 5;

/// Header field that is 1 if the query-key-value projection has no bias. llm.c has no such models
/// and leaves a 0 here; the bias tensor is in the file either way.
const NO_QKV_BIAS: usize = 8;

/// A model file whose header and size are valid, and whose tensors have not been read yet.
pub struct ModelReader {
    pub config: ModelConfig,
    /// F32 or Bf16.
    pub dtype: Dtype,
    file: File,
    path: PathBuf,
}

impl ModelReader {
    /// Opens the model file at `path`.
    ///
    /// # Errors
    /// One line, if the file cannot be read, is of another kind, describes an impossible model, or
    /// is not exactly as long as its header says.
    pub fn open(path: &Path) -> Result<ModelReader> {
        let (header, file, bytes) = Header::open(path, &MODEL)?;
        let at = || path.display();
        let dtype = if header.version() == BF16_VERSION { Dtype::Bf16 } else { Dtype::F32 };
        // A negative field becomes 0, which `validate` rejects by name.
        let [maxT, V, L, NH, C, Vp] = [2, 3, 4, 5, 6, 7].map(|i| usize::try_from(header.i32(i)).unwrap_or(0));
        let no_bias = header.i32(NO_QKV_BIAS);
        ensure!(
            (0..=1).contains(&no_bias),
            "{}: expected 0 or 1 in header field {NO_QKV_BIAS}, found {no_bias}",
            at()
        );
        let config = ModelConfig { maxT, V, Vp, L, NH, C, qkv_bias: no_bias == 0, lora: None };
        config.validate().map_err(|e| e.context(format!("{}: the header is not valid", at())))?;
        // 128 bits, as the header may claim more bytes than fit in 64.
        let expected = HEADER_BYTES as u128 + ParamLayout::new(&config).len() as u128 * dtype.size() as u128;
        ensure!(
            u128::from(bytes) == expected,
            "{}: expected {expected} bytes for a model of {L} layers and {C} channels, found {bytes}",
            at()
        );
        Ok(ModelReader { config, dtype, file, path: path.to_path_buf() })
    }

    /// Reads all tensors, as [`TensorKind::Params`].
    ///
    /// # Errors
    /// If the file cannot be read, has a bias that its header denies, or the sink fails.
    pub fn read(mut self, sink: &mut Sink) -> Result<()> {
        let layout = ParamLayout::new(&self.config);
        let qkvb = layout.range(Param::Qkvb);
        let denied = !self.config.qkv_bias;
        let read = stream::read(
            &mut self.file,
            self.dtype,
            TensorKind::Params,
            from_ref(&(0..layout.len())),
            &mut |kind, start, values| {
                let zero = |i: usize| !qkvb.contains(&(start + i)) || values[i] == 0.0;
                ensure!(
                    !denied || (0..values.len()).all(zero),
                    "qkvb has values, but the header says that it is not used"
                );
                sink(kind, start, values)
            },
        );
        read.with_context(|| format!("cannot read {}", self.path.display()))
    }

    /// Reads the model into memory.
    ///
    /// # Errors
    /// Those of [`ModelReader::read`], and if there is not enough memory.
    pub fn load(self) -> Result<ModelFile> {
        let config = self.config;
        let params = zeros(ParamLayout::new(&config).len());
        let mut params = params.with_context(|| self.path.display().to_string())?;
        self.read(&mut |_, start, values| {
            params[start..start + values.len()].copy_from_slice(values);
            Ok(())
        })?;
        Ok(ModelFile { config, dropout: DropoutRates::NONE, params })
    }
}

/// Bytes of a model file with `len` parameters.
pub(super) fn size(len: usize, dtype: Dtype) -> usize {
    HEADER_BYTES + len * dtype.size()
}

/// The tensors of a model file.
pub(super) fn sections(config: &ModelConfig, dtype: Dtype) -> Sections {
    TensorKind::Params.sections(config, dtype, HEADER_BYTES, |_| true)
}

/// Writes a model file, with [`TensorKind::Params`] from `source`.
///
/// # Errors
/// If `dtype` is neither f32 nor bf16, the file cannot be written, or the source fails.
pub fn write(path: &Path, config: &ModelConfig, dtype: Dtype, source: &mut Source) -> Result<Digest> {
    digest::write(path, sections(config, dtype), |out| encode(config, dtype, source, out))
}

/// Writes the bytes of a model file.
///
/// # Errors
/// If `dtype` is neither f32 nor bf16, or the output or the source fails.
pub(super) fn encode(
    config: &ModelConfig,
    dtype: Dtype,
    source: &mut Source,
    out: &mut dyn Write,
) -> Result<()> {
    let version = match dtype {
        Dtype::F32 => F32_VERSION,
        Dtype::Bf16 => BF16_VERSION,
        other => bail!("expected f32 or bf16 as the type of the tensors, found {other}"),
    };
    let mut header = Header::new(&MODEL, version);
    let dims = [config.maxT, config.V, config.L, config.NH, config.C, config.Vp];
    for (i, dim) in dims.into_iter().enumerate() {
        header.set(2 + i, i32::try_from(dim).expect("a valid config"));
    }
    header.set(NO_QKV_BIAS, i32::from(!config.qkv_bias));
    header.write(out)?;
    let all = 0..ParamLayout::new(config).len();
    stream::write(out, dtype, TensorKind::Params, from_ref(&all), source)
}
