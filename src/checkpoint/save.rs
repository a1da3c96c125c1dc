//! Writes checkpoints, from a device or from a copy in memory.

use super::digest::{self, Digest};
use super::directory::{
    BEST, BEST_DIGEST, done_path, file_name, model_path, remove, remove_temporaries, run_path, state_path,
};
use super::run_file::RunFile;
use super::state::State;
use super::stream::{self, Source, TensorKind};
use super::{model_bin, state};
use crate::config::ModelConfig;
use crate::files;
use crate::memory;
use crate::params::ParamLayout;
use crate::tensor::Dtype;
use anyhow::Result;
use memmap2::MmapMut;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::slice::from_ref;

/// A checkpoint to write, without its tensors and the trainer's own state; or the best model so
/// far, which is a model file alone.
pub struct Checkpoint {
    pub config: ModelConfig,
    /// Type of the parameters in the model file, F32 or Bf16.
    pub dtype: Dtype,
    /// `None` for the best model.
    pub state: Option<State>,
}

/// The bytes of a checkpoint's files in memory. They are mapped, so that the system has the memory
/// back at once.
pub struct Copied {
    model: MmapMut,
    state: MmapMut,
}

/// A file with tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Model,
    State,
}

impl Checkpoint {
    /// Writes the checkpoint with tensors from `source`; `trainer` is the rest of the state from
    /// which the run resumes. The directory has to exist. Files that killed runs left half-written
    /// are removed first.
    ///
    /// # Errors
    /// Those of [`files::write`]. The checkpoint is then not complete, and earlier ones are
    /// untouched.
    pub fn save(&self, dir: &Path, trainer: &impl Serialize, source: &mut Source) -> Result<()> {
        self.write(dir, trainer, &mut |part, out| self.encode(part, source, out))
    }

    /// Writes the checkpoint with tensors that were copied before.
    ///
    /// # Errors
    /// Those of [`Checkpoint::save`].
    pub fn save_copy(&self, dir: &Path, trainer: &impl Serialize, copied: &Copied) -> Result<()> {
        self.write(dir, trainer, &mut |part, out| {
            let bytes = if part == Part::Model { &copied.model } else { &copied.state };
            Ok(out.write_all(bytes)?)
        })
    }

    /// Bytes of the model file and of the state file.
    fn sizes(&self) -> [usize; 2] {
        let len = ParamLayout::new(&self.config).len();
        let state = self.state.as_ref().map_or(0, |state| state.size(&self.config));
        [model_bin::size(len, self.dtype), state]
    }

    /// Bytes of memory that [`Self::copy`] takes.
    pub fn copy_bytes(&self) -> usize {
        self.sizes().iter().sum()
    }

    /// Copies the tensors into memory, as the bytes that [`Checkpoint::save`] would write. `None`
    /// if there is not enough memory; `source` was then not called.
    ///
    /// # Errors
    /// Those of `source`.
    pub fn copy(&self, source: &mut Source) -> Result<Option<Copied>> {
        let [model, state] = self.sizes();
        let needed = (model + state) as u64;
        if memory::available().is_some_and(|available| available < needed + needed / 8) {
            return Ok(None);
        }
        // A map cannot be empty.
        let reserve = |bytes: usize| MmapMut::map_anon(bytes.max(1)).ok();
        let (Some(mut model), Some(mut state)) = (reserve(model), reserve(state)) else { return Ok(None) };
        self.encode(Part::Model, source, &mut &mut model[..])?;
        self.encode(Part::State, source, &mut &mut state[..])?;
        Ok(Some(Copied { model, state }))
    }

    /// Makes the calls of `source` that [`Checkpoint::save`] makes, and writes nothing. Rank 0
    /// writes the checkpoint, and the other ranks take part in gathering its shards.
    ///
    /// # Errors
    /// Those of `source`.
    pub fn participate(&self, source: &mut Source) -> Result<()> {
        let all = 0..ParamLayout::new(&self.config).len();
        stream::ask(TensorKind::Params, from_ref(&all), source)?;
        let Some(state) = &self.state else { return Ok(()) };
        let mut kinds = state.kinds().iter();
        kinds.try_for_each(|&kind| stream::ask(kind, &state.ranges(kind, &self.config), source))
    }

    fn encode(&self, part: Part, source: &mut Source, out: &mut dyn Write) -> Result<()> {
        match (part, &self.state) {
            (Part::Model, _) => model_bin::encode(&self.config, self.dtype, source, out),
            (Part::State, Some(state)) => state::encode(state, &self.config, source, out),
            (Part::State, None) => Ok(()),
        }
    }

    fn write(
        &self,
        dir: &Path,
        trainer: &impl Serialize,
        fill: &mut dyn FnMut(Part, &mut dyn Write) -> Result<()>,
    ) -> Result<()> {
        remove_temporaries(dir)?;
        let model = model_bin::sections(&self.config, self.dtype);
        let Some(state) = &self.state else {
            let (path, digest_path) = (dir.join(BEST), dir.join(BEST_DIGEST));
            // As with DONE, it must never be that of another file.
            remove(&digest_path)?;
            let digest = digest::write(&path, model, |out| fill(Part::Model, out))?;
            return write_line(&digest_path, &digest.line(BEST));
        };
        let &State { step, rank, .. } = state;
        // Remove DONE first: it must never cover files of two different runs.
        remove(&done_path(dir, step))?;
        let mut digests = BTreeMap::new();
        let state = (Part::State, state_path(dir, step, rank), state.sections(&self.config));
        for (part, path, sections) in [(Part::Model, model_path(dir, step), model), state] {
            let digest: Digest = digest::write(&path, sections, |out| fill(part, out))?;
            digests.insert(file_name(&path), digest);
        }
        let path = run_path(dir, step);
        let digest = RunFile::new(step, digests, trainer)?.write(&path)?;
        write_line(&done_path(dir, step), &digest.line(&file_name(&path)))
    }
}

fn write_line(path: &Path, line: &str) -> Result<()> {
    files::write(path, |out| Ok(out.write_all(line.as_bytes())?))
}
