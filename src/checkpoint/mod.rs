//! Bytes to named tensors and back: llm.c's model and optimizer files, Hugging Face's safetensors,
//! llama.cpp's GGUF, and the directories of checkpoints that runs resume from. Nothing here knows a
//! device: tensors come from a [`Source`] and go to a [`Sink`], chunk by chunk.
//!
//! Errors are chains; printed with `{:#}` they are one line.

mod adapter;
pub mod debug_state;
mod digest;
mod directory;
mod find;
pub mod gguf;
mod hf_config;
pub mod model_bin;
mod run_file;
mod safetensors_file;
mod save;
pub mod state;
mod stream;

pub use adapter::Adapter;
pub use debug_state::DebugState;
pub use directory::{
    Latest, Saved, adapter_path, done_path, ensure_fresh, latest, model_path, prune, read_run,
    remove_temporaries, run_path, state_path, steps,
};
pub use find::{FoundModel, ensure_free, ensure_same_files, find_model};
pub use run_file::{Float, RunFile};
pub use save::{Base, Checkpoint, Copied};
pub use state::State;
pub use stream::{Sink, Source, TensorKind};

use crate::config::{DropoutRates, ModelConfig};
use crate::data::tokenizer::{FILE_NAME, Tokenizer};
use crate::files;
use crate::tensor::Dtype;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// A model in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelFile {
    pub config: ModelConfig,
    /// The dropout that it was, or is to be, trained with.
    pub dropout: DropoutRates,
    /// In the order of [`ParamLayout`](crate::params::ParamLayout).
    pub params: Vec<f32>,
}

/// Reads the model that [`find_model`] finds.
///
/// # Errors
/// Those of [`find_model`] and [`FoundModel::read`].
pub fn load_model(path: &Path) -> Result<ModelFile> {
    find_model(path)?.read()
}

/// Writes a model to `path`: as llm.c's model file if it ends in `.bin` (f32 or bf16), as a
/// safetensors file next to a `config.json` if it ends in `.safetensors`, and otherwise into a
/// directory that `transformers` loads.
///
/// # Errors
/// One line, if the format does not have the type, or the file cannot be written.
pub fn save_model(path: &Path, model: &ModelFile, dtype: Dtype) -> Result<()> {
    save(path, model, dtype, None)
}

/// Writes a model as [`save_model`] does, and the files of its tokenizer beside it: those that the
/// libraries of Hugging Face look for, and beside llm.c's `.bin` the `tokenizer.json` of any but
/// GPT-2's.
///
/// # Errors
/// As [`save_model`].
pub fn export_model(path: &Path, model: &ModelFile, dtype: Dtype, tokenizer: &Tokenizer) -> Result<()> {
    save(path, model, dtype, Some(tokenizer.eot()))?;
    for (path, text) in tokenizer_files(path, &model.config, tokenizer) {
        files::write(&path, |out| Ok(out.write_all(text.as_bytes())?))?;
    }
    Ok(())
}

/// The files of a tokenizer beside a model at `path`, and their contents.
fn tokenizer_files(path: &Path, config: &ModelConfig, tokenizer: &Tokenizer) -> Vec<(PathBuf, String)> {
    let is_bin = path.extension().is_some_and(|end| end == "bin");
    let wanted = |name: &str| !is_bin || name == FILE_NAME && !tokenizer.is_gpt2();
    let files = tokenizer.hf_files(config.maxT).into_iter().filter(|(name, _)| wanted(name));
    files.map(|(name, text)| (path.with_file_name(name), text)).collect()
}

fn save(path: &Path, model: &ModelFile, dtype: Dtype, eot: Option<u32>) -> Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    match path.extension().and_then(|e| e.to_str()) {
        Some("bin") => {
            model_bin::write(path, &model.config, dtype, &mut |_, start, out| {
                out.copy_from_slice(&model.params[start..start + out.len()]);
                Ok(())
            })?;
            Ok(())
        }
        Some("safetensors") => safetensors_file::write(path, model, dtype, eot),
        _ => {
            std::fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))?;
            safetensors_file::write(&path.join("model.safetensors"), model, dtype, eot)
        }
    }
}

#[cfg(test)]
mod tests;
