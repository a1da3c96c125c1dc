//! Writes checkpoints, from a device or from a copy in memory.

use super::digest::{self, Digest};
use super::directory::{
    BASE, BASE_DIGEST, BEST, BEST_DIGEST, LINE_BYTES, adapter_path, done_path, key, model_path, remove,
    remove_directory, remove_temporaries, run_path, state_path,
};
use super::run_file::RunFile;
use super::state::State;
use super::stream::{self, Source, TensorKind};
use super::{adapter, model_bin, state};
use crate::config::{Lora, ModelConfig};
use crate::files;
use crate::memory;
use crate::params::ParamLayout;
use crate::tensor::Dtype;
use anyhow::{Context, Result};
use memmap2::MmapMut;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::slice::from_ref;

/// A checkpoint to write, without its tensors and the trainer's own state; or the best model so
/// far, which is a model file alone.
pub struct Checkpoint {
    pub config: ModelConfig,
    /// Type of the parameters in the model file, F32 or Bf16.
    pub dtype: Dtype,
    /// `None` for the best model.
    pub state: Option<State>,
    /// The model that adapters belong to, as PEFT finds it. Unused without adapters.
    pub base_model: String,
}

/// The frozen model of a run that trains adapters, `base.bin`: written once, as checkpoints have
/// the merged one, from which the two cannot be told apart again.
pub struct Base {
    pub config: ModelConfig,
    /// Type of the parameters, F32 or Bf16.
    pub dtype: Dtype,
}

impl Base {
    /// Writes the file and its digest.
    ///
    /// # Errors
    /// Those of [`files::write`].
    pub fn save(&self, dir: &Path, source: &mut Source) -> Result<()> {
        remove(&dir.join(BASE_DIGEST))?;
        let digest = model_bin::write(&dir.join(BASE), &self.config.without_lora(), self.dtype, source)?;
        write_line(&dir.join(BASE_DIGEST), &digest.line(BASE))
    }

    /// Makes the calls of `source` that [`Base::save`] makes.
    ///
    /// # Errors
    /// Those of `source`.
    pub fn participate(&self, source: &mut Source) -> Result<()> {
        stream::ask(TensorKind::Params, from_ref(&own(&self.config)), source)
    }
}

/// The elements of a model's own parameters.
fn own(config: &ModelConfig) -> Range<usize> {
    0..ParamLayout::new(config).adapters().start
}

/// The bytes of a checkpoint's files in memory. They are mapped, so that the system has the memory
/// back at once.
pub struct Copied {
    model: MmapMut,
    adapter: MmapMut,
    state: MmapMut,
}

/// A file with tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// The model, with its adapters merged.
    Model,
    Adapter,
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
            let bytes = match part {
                Part::Model => &copied.model,
                Part::Adapter => &copied.adapter,
                Part::State => &copied.state,
            };
            Ok(out.write_all(bytes)?)
        })
    }

    /// Bytes of the model file, of the adapters' and of the state file.
    fn sizes(&self) -> [usize; 3] {
        let model = model_bin::size(own(&self.config).len(), self.dtype);
        let adapter = self.adapter().map_or(0, |lora| adapter::size(&self.config, &lora));
        let state = self.state.as_ref().map_or(0, |state| state.size(&self.config));
        [model, adapter, state]
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
        let [model, adapter, state] = self.sizes();
        let needed = (model + adapter + state) as u64;
        if memory::available().is_some_and(|available| available < needed + needed / 8) {
            return Ok(None);
        }
        // A map cannot be empty.
        let reserve = |bytes: usize| MmapMut::map_anon(bytes.max(1)).ok();
        let [Some(mut model), Some(mut adapter), Some(mut state)] = [model, adapter, state].map(reserve)
        else {
            return Ok(None);
        };
        self.encode(Part::Model, source, &mut &mut model[..])?;
        self.encode(Part::Adapter, source, &mut &mut adapter[..])?;
        self.encode(Part::State, source, &mut &mut state[..])?;
        Ok(Some(Copied { model, adapter, state }))
    }

    /// Makes the calls of `source` that [`Checkpoint::save`] makes, and writes nothing. Rank 0
    /// writes the checkpoint, and the other ranks take part in gathering its shards.
    ///
    /// # Errors
    /// Those of `source`.
    pub fn participate(&self, source: &mut Source) -> Result<()> {
        let (own, adapters) = (own(&self.config), ParamLayout::new(&self.config).adapters());
        let of_adapter = self.adapter().map(|_| &adapters);
        for range in self.config.lora.map(|_| &adapters).into_iter().chain([&own]).chain(of_adapter) {
            stream::ask(TensorKind::Params, from_ref(range), source)?;
        }
        let Some(state) = &self.state else { return Ok(()) };
        let mut kinds = state.kinds().iter();
        kinds.try_for_each(|&kind| stream::ask(kind, &state.ranges(kind, &self.config), source))
    }

    fn encode(&self, part: Part, source: &mut Source, out: &mut dyn Write) -> Result<()> {
        let adapters = |source: &mut Source| {
            stream::collect(TensorKind::Params, ParamLayout::new(&self.config).adapters(), source)
        };
        match part {
            Part::Model if self.config.lora.is_some() => {
                let (config, values) = (&self.config, adapters(source)?);
                model_bin::encode(
                    &config.without_lora(),
                    self.dtype,
                    &mut |kind, start, out| {
                        source(kind, start, out)?;
                        adapter::merge(config, &values, start, out);
                        Ok(())
                    },
                    out,
                )
            }
            Part::Model => model_bin::encode(&self.config, self.dtype, source, out),
            Part::Adapter => self
                .adapter()
                .map_or(Ok(()), |lora| adapter::encode(&self.config, &lora, &adapters(source)?, out)),
            Part::State => {
                let encode = |state| state::encode(state, &self.config, source, out);
                self.state.as_ref().map_or(Ok(()), encode)
            }
        }
    }

    /// The adapters that are written in files of their own; the best model has none.
    fn adapter(&self) -> Option<Lora> {
        self.config.lora.filter(|_| self.state.is_some())
    }

    fn write(
        &self,
        dir: &Path,
        trainer: &impl Serialize,
        fill: &mut dyn FnMut(Part, &mut dyn Write) -> Result<()>,
    ) -> Result<()> {
        remove_temporaries(dir)?;
        let model = model_bin::sections(&self.config.without_lora(), self.dtype);
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
        let mut parts = vec![
            (Part::Model, model_path(dir, step), model),
            (Part::State, state_path(dir, step, rank), state.sections(&self.config)),
        ];
        if let Some(lora) = self.adapter() {
            let folder = adapter_path(dir, step);
            self.begin_adapter(dir, &folder, &lora, &mut digests)?;
            parts.insert(
                1,
                (Part::Adapter, folder.join(adapter::WEIGHTS), adapter::sections(&self.config, &lora)),
            );
        }
        for (part, path, sections) in parts {
            let digest: Digest = digest::write(&path, sections, |out| fill(part, out))?;
            digests.insert(key(dir, &path), digest);
        }
        let path = run_path(dir, step);
        let digest = RunFile::new(step, digests, trainer)?.write(&path)?;
        write_line(&done_path(dir, step), &digest.line(&key(dir, &path)))
    }

    /// Makes the folder of the adapters with its config, and notes the digests of that and of the
    /// model that they belong to.
    fn begin_adapter(
        &self,
        dir: &Path,
        folder: &Path,
        lora: &Lora,
        digests: &mut BTreeMap<String, Digest>,
    ) -> Result<()> {
        // An earlier one may be half-written.
        remove_directory(folder)?;
        std::fs::create_dir(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let (path, text) = (folder.join(adapter::CONFIG), adapter::config_text(lora, &self.base_model));
        let digest = digest::write(&path, Vec::new(), |out| Ok(out.write_all(text.as_bytes())?))?;
        digests.insert(key(dir, &path), digest);
        let path: PathBuf = dir.join(BASE_DIGEST);
        let line = files::read(&path, LINE_BYTES)?;
        let digest = Digest::parse_line(&String::from_utf8_lossy(&line));
        let digest = digest.with_context(|| format!("{}: expected a digest", path.display()))?;
        digests.insert(BASE.to_owned(), digest);
        Ok(())
    }
}

fn write_line(path: &Path, line: &str) -> Result<()> {
    files::write(path, |out| Ok(out.write_all(line.as_bytes())?))
}
