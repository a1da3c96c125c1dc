//! Bytes to named tensors and back: llm.c's model and optimizer files, Hugging Face's safetensors,
//! and the directories of checkpoints that runs resume from. Nothing here knows a device: tensors
//! come from a [`Source`] and go to a [`Sink`], chunk by chunk.
//!
//! Errors are chains; printed with `{:#}` they are one line.

pub mod debug_state;
mod digest;
mod directory;
mod find;
mod hf_config;
mod memory;
pub mod model_bin;
mod run_file;
mod safetensors_file;
mod save;
pub mod state;
mod stream;

pub use debug_state::DebugState;
pub use directory::{
    Latest, Saved, done_path, ensure_fresh, latest, model_path, prune, read_run, remove_temporaries,
    run_path, state_path, steps,
};
pub use find::{FoundModel, ensure_free, ensure_same_config, find_model};
pub use run_file::{Float, RunFile};
pub use save::{Checkpoint, Copied};
pub use state::State;
pub use stream::{Sink, Source, TensorKind};

use crate::config::ModelConfig;
use crate::tensor::Dtype;
use anyhow::{Context, Result};
use std::path::Path;

/// A model in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelFile {
    pub config: ModelConfig,
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
        Some("safetensors") => safetensors_file::write(path, model, dtype),
        _ => {
            std::fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))?;
            safetensors_file::write(&path.join("model.safetensors"), model, dtype)
        }
    }
}

#[cfg(test)]
mod tests;
