//! A directory of checkpoints, named as llm.c names them:
//!
//! - `model_%08d.bin`: the parameters;
//! - `state_%08d_%05d.bin`: moments, master weights and the data loader's position, one file per
//!   process;
//! - `run_%08d.json`: everything else, which llm.c does not have;
//! - `DONE_%08d`: empty; written last and removed first, so that a step with this file is complete
//!   at any moment.

use super::digest::Digest;
use super::model_bin::{self, ModelReader};
use super::run_file::RunFile;
use super::state::{self, State, StateReader};
use super::stream::{self, Sink, Source, TensorKind};
use crate::config::ModelConfig;
use crate::files;
use crate::params::ParamLayout;
use crate::tensor::Dtype;
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub fn model_path(dir: &Path, step: u64) -> PathBuf {
    dir.join(format!("model_{step:08}.bin"))
}

pub fn state_path(dir: &Path, step: u64, rank: usize) -> PathBuf {
    dir.join(format!("state_{step:08}_{rank:05}.bin"))
}

pub fn run_path(dir: &Path, step: u64) -> PathBuf {
    dir.join(format!("run_{step:08}.json"))
}

pub fn done_path(dir: &Path, step: u64) -> PathBuf {
    dir.join(format!("DONE_{step:08}"))
}

/// Writes the checkpoint of `state.step`. The model file stores parameters as `dtype`, F32 or Bf16;
/// `trainer` is the rest of the state from which the run resumes. The directory is created if it is
/// missing, and files that killed runs left half-written are removed first.
///
/// # Errors
/// Those of [`files::write`]. The checkpoint is then not complete, and earlier ones are untouched.
pub fn save(
    dir: &Path,
    config: &ModelConfig,
    dtype: Dtype,
    state: &State,
    trainer: &impl Serialize,
    source: &mut Source,
) -> Result<()> {
    let step = state.step;
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    remove_temporaries(dir, &file_names(dir)?)?;
    // Remove DONE first: it must never cover files of two different runs.
    remove(&done_path(dir, step))?;
    let mut files = BTreeMap::new();
    let mut note = |path: &Path, digest: Digest| files.insert(file_name(path), digest);
    let path = model_path(dir, step);
    note(&path, model_bin::write(&path, config, dtype, source)?);
    let path = state_path(dir, step, state.rank);
    note(&path, state::write(&path, state, ParamLayout::new(config).len(), source)?);
    RunFile::new(step, files, trainer)?.write(&run_path(dir, step))?;
    files::write(&done_path(dir, step), |_| Ok(()))
}

/// Makes the calls of `source` that [`save`] makes, and writes nothing. Rank 0 writes the
/// checkpoint, and the other ranks take part in gathering its shards.
pub fn participate(config: &ModelConfig, state: &State, source: &mut Source) -> Result<()> {
    participate_in_model(config, source)?;
    let len = ParamLayout::new(config).len();
    state.kinds().iter().try_for_each(|&kind| stream::ask(kind, len, source))
}

/// Does the same for a model file alone.
pub fn participate_in_model(config: &ModelConfig, source: &mut Source) -> Result<()> {
    stream::ask(TensorKind::Params, ParamLayout::new(config).len(), source)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Removes a file, if it exists, and syncs the removal.
fn remove(path: &Path) -> Result<()> {
    let removed = match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other,
    };
    removed
        .and_then(|()| files::sync_directory(path))
        .with_context(|| format!("cannot remove {}", path.display()))
}

/// A checkpoint whose tensors have not been read yet.
pub struct Saved {
    /// `None` for a checkpoint of llm.c.
    pub run: Option<RunFile>,
    pub model: ModelReader,
    pub state: StateReader,
}

impl Saved {
    /// Opens the files of the checkpoint of `step` that `rank` needs.
    ///
    /// # Errors
    /// One line that names the missing or invalid file.
    pub fn open(dir: &Path, step: u64, rank: usize) -> Result<Saved> {
        let path = run_path(dir, step);
        let run = if path.exists() { Some(RunFile::read(&path)?) } else { None };
        let model = ModelReader::open(&model_path(dir, step))?;
        let path = state_path(dir, step, rank);
        let state = StateReader::open(&path, ParamLayout::new(&model.config).len())?;
        let found = (state.state.step, run.as_ref().map_or(step, |run| run.step), state.state.rank);
        ensure!(
            found == (step, step, rank),
            "{}: expected step {step} of rank {rank}, found step {} (run file: {}) of rank {}",
            path.display(),
            found.0,
            found.1,
            found.2
        );
        Ok(Saved { run, model, state })
    }

    /// Passes all tensors to `sink`: the parameters, m, v, and master weights if there are any.
    pub fn restore(self, sink: &mut Sink) -> Result<()> {
        self.model.read(sink)?;
        self.state.read(sink)
    }
}

/// Checks that all files of a checkpoint exist and are complete. Files whose checksum is known are
/// read in full.
pub(super) fn verify(dir: &Path, step: u64) -> Result<()> {
    let saved = Saved::open(dir, step, 0)?;
    for rank in 1..saved.state.state.num_processes {
        Saved::open(dir, step, rank)?;
    }
    for (name, expected) in saved.run.iter().flat_map(|run| &run.files) {
        let found = Digest::of(&dir.join(name))?;
        ensure!(
            found == *expected,
            "{name}: {} bytes with checksum {:08x} were written, found {} with {:08x}",
            expected.bytes,
            expected.crc32,
            found.bytes,
            found.crc32
        );
    }
    Ok(())
}

/// The checkpoint to resume from.
pub struct Latest {
    /// Step of the newest complete checkpoint.
    pub step: Option<u64>,
    /// One line for each newer checkpoint, which is not complete.
    pub warnings: Vec<String>,
}

/// Finds the newest complete checkpoint in a directory, and reads it in full. A directory that does
/// not exist has none.
pub fn latest(dir: &Path) -> Result<Latest> {
    let mut warnings = Vec::new();
    for step in steps(dir)?.into_iter().rev() {
        match verify(dir, step) {
            Ok(()) => return Ok(Latest { step: Some(step), warnings }),
            Err(e) => warnings.push(format!(
                "the checkpoint of step {step} is not complete, looking for an earlier one: {e:#}"
            )),
        }
    }
    Ok(Latest { step: None, warnings })
}

/// Returns the steps that have a `DONE` file in `dir`, ascending. A directory that does not exist
/// has none.
pub fn steps(dir: &Path) -> Result<Vec<u64>> {
    let mut steps: Vec<u64> = file_names(dir)?.iter().filter_map(|name| step_of(name, "DONE_", "")).collect();
    steps.sort_unstable();
    Ok(steps)
}

fn file_names(dir: &Path) -> Result<Vec<String>> {
    let context = || format!("cannot read {}", dir.display());
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(context)?,
    };
    let names = entries.map(|entry| entry.map(|e| e.file_name().to_string_lossy().into_owned()));
    names.collect::<io::Result<_>>().with_context(context)
}

/// Returns the step in a file's name, if the name is spelled exactly as ours are.
fn step_of(name: &str, prefix: &str, suffix: &str) -> Option<u64> {
    let digits = name.strip_prefix(prefix)?.strip_suffix(suffix)?;
    digits.parse().ok().filter(|step: &u64| digits == format!("{step:08}"))
}

/// Refuses to start a new run in a directory with checkpoints of an old one: sooner or later the
/// wrong ones would be resumed or deleted.
///
/// # Errors
/// One line that says what to do, if `dir` has a checkpoint.
pub fn ensure_fresh(dir: &Path) -> Result<()> {
    if let Some(step) = steps(dir)?.last() {
        let dir = dir.display();
        anyhow::bail!(
            "-o {dir} holds checkpoints up to step {step}; resume with -y 1 or choose another directory"
        );
    }
    Ok(())
}

/// Removes old checkpoints after that of step `newest` was saved. Of that one and those before it,
/// this keeps the last `keep` (0: all) and every one whose step is a multiple of `major_every` (0:
/// none). Later ones, which a run that fell back to an earlier checkpoint has not overwritten yet,
/// are neither counted nor removed. Checkpoints that killed runs left half-removed are removed as
/// well. Returns the steps whose checkpoints were removed.
pub fn prune(dir: &Path, newest: u64, keep: usize, major_every: u64) -> Result<Vec<u64>> {
    let names = file_names(dir)?;
    let mut steps = steps(dir)?;
    steps.retain(|&step| step <= newest);
    let mut removed = Vec::new();
    if keep > 0 {
        let old = &steps[..steps.len().saturating_sub(keep)];
        for &step in old.iter().filter(|&&step| major_every == 0 || step % major_every != 0) {
            remove_step(dir, step, &names)?;
            removed.push(step);
        }
    }
    let interrupted = names.iter().filter_map(|name| step_of(name, "run_", ".json"));
    for step in interrupted.filter(|step| *step < newest && !steps.contains(step)) {
        remove_step(dir, step, &names)?;
    }
    Ok(removed)
}

/// Removes what killed runs left half-written: it may be as large as a checkpoint.
fn remove_temporaries(dir: &Path, names: &[String]) -> Result<()> {
    names.iter().filter(|name| is_temporary(name)).try_for_each(|name| remove(&dir.join(name)))
}

/// Whether a file is the temporary of a checkpoint's file.
fn is_temporary(name: &str) -> bool {
    let ours =
        |name: &str| ["model_", "state_", "run_", "DONE_"].iter().any(|prefix| name.starts_with(prefix));
    name.strip_prefix('.').is_some_and(|n| n.ends_with(files::TEMPORARY) && ours(n))
}

/// Removes a checkpoint, DONE first and the run file last: a step with a run file and no DONE is
/// one whose removal was interrupted.
fn remove_step(dir: &Path, step: u64, names: &[String]) -> Result<()> {
    remove(&done_path(dir, step))?;
    remove(&model_path(dir, step))?;
    let prefix = format!("state_{step:08}_");
    for name in names.iter().filter(|name| name.starts_with(&prefix) && name.ends_with(".bin")) {
        remove(&dir.join(name))?;
    }
    remove(&run_path(dir, step))
}
