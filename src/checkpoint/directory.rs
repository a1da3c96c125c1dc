//! A directory of checkpoints, named as llm.c names them:
//!
//! - `model_%08d.bin`: the parameters;
//! - `state_%08d_%05d.bin`: moments, master weights and the data loader's position, one file per
//!   process;
//! - `run_%08d.json`: everything else, which llm.c does not have;
//! - `DONE_%08d`: the digest of the run file, which holds those of the others; written last and
//!   removed first, so that a step with this file is complete at any moment. llm.c's is empty, and
//!   llm.c only looks whether it exists.
//!
//! In runs that train adapters (LoRA), `model_%08d.bin` is the merged model, and beside it are:
//!
//! - `adapter_%08d/`: the adapters, as PEFT saves them;
//! - `base.bin`: the frozen model, once for all checkpoints, and `base.crc32` with its digest.
//!
//! `model_best.bin` has the parameters with the lowest validation loss, and `model_best.crc32` its
//! digest.

use super::adapter::{self, Adapter};
use super::digest::Sections;
use super::model_bin::{self, ModelReader};
use super::run_file::{self, RunFile};
use super::state::StateReader;
use super::stream::{Sink, TensorKind};
use crate::config::ModelConfig;
use crate::files;
use crate::params::ParamLayout;
use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The model with the lowest validation loss so far.
pub(super) const BEST: &str = "model_best.bin";
pub(super) const BEST_DIGEST: &str = "model_best.crc32";

/// The model that a run's adapters belong to.
pub(super) const BASE: &str = "base.bin";
pub(super) const BASE_DIGEST: &str = "base.crc32";

/// Bytes that a file with one digest may have.
pub(super) const LINE_BYTES: u64 = 1 << 10;

pub fn model_path(dir: &Path, step: u64) -> PathBuf {
    dir.join(format!("model_{step:08}.bin"))
}

pub fn state_path(dir: &Path, step: u64, rank: usize) -> PathBuf {
    dir.join(format!("state_{step:08}_{rank:05}.bin"))
}

/// The folder of the adapters.
pub fn adapter_path(dir: &Path, step: u64) -> PathBuf {
    dir.join(format!("adapter_{step:08}"))
}

pub fn run_path(dir: &Path, step: u64) -> PathBuf {
    dir.join(run_file::file_name(step))
}

pub fn done_path(dir: &Path, step: u64) -> PathBuf {
    dir.join(format!("DONE_{step:08}"))
}

pub(super) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The name of a file in a run file: its path from the run's directory on.
pub(super) fn key(dir: &Path, path: &Path) -> String {
    path.strip_prefix(dir).unwrap_or(path).to_string_lossy().into_owned()
}

/// Removes a directory and what is in it, if it exists, and syncs the removal.
pub(super) fn remove_directory(path: &Path) -> Result<()> {
    remove_by(path, |path| fs::remove_dir_all(path))
}

/// Removes a file, if it exists, and syncs the removal.
pub(super) fn remove(path: &Path) -> Result<()> {
    remove_by(path, |path| fs::remove_file(path))
}

fn remove_by(path: &Path, remove: fn(&Path) -> io::Result<()>) -> Result<()> {
    let removed = match remove(path) {
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
    /// The shape of the model, with its adapters if it has any.
    pub config: ModelConfig,
    /// The model; without the adapters, if it has any.
    pub model: ModelReader,
    pub adapter: Option<Adapter>,
    pub state: StateReader,
}

impl Saved {
    /// Opens the files of the checkpoint of `step` that `rank` needs.
    ///
    /// # Errors
    /// One line that names the missing or invalid file.
    pub fn open(dir: &Path, step: u64, rank: usize) -> Result<Saved> {
        let run = read_run(dir, step)?.map(|(run, _)| run);
        let has_adapter = run.as_ref().is_some_and(|run| has_adapter(run, step));
        let path = if has_adapter { dir.join(BASE) } else { model_path(dir, step) };
        let model = ModelReader::open(&path)?;
        let read = || Adapter::read(&adapter_path(dir, step), &model.config);
        let adapter = has_adapter.then(read).transpose()?;
        let config = ModelConfig { lora: adapter.as_ref().map(|adapter| adapter.lora), ..model.config };
        let state = open_state(dir, step, rank, &config)?;
        Ok(Saved { run, config, model, adapter, state })
    }

    /// Passes all tensors to `sink`: the parameters, the adapters if there are any, m, v, and
    /// master weights if there are any.
    pub fn restore(self, sink: &mut Sink) -> Result<()> {
        let own = ParamLayout::new(&self.model.config).len();
        self.model.read(sink)?;
        if let Some(Adapter { values, .. }) = &self.adapter {
            sink(TensorKind::Params, own, values)?;
        }
        self.state.read(sink)
    }
}

/// Whether a checkpoint has adapters.
fn has_adapter(run: &RunFile, step: u64) -> bool {
    run.files.contains_key(&adapter_key(step, adapter::WEIGHTS))
}

/// The name in a run file of one of the files of adapters.
fn adapter_key(step: u64, name: &str) -> String {
    key(Path::new(""), &adapter_path(Path::new(""), step).join(name))
}

/// Opens the state file of `rank` in the checkpoint of `step`.
fn open_state(dir: &Path, step: u64, rank: usize, config: &ModelConfig) -> Result<StateReader> {
    let path = state_path(dir, step, rank);
    let reader = StateReader::open(&path, config)?;
    let found = (reader.state.step, reader.state.rank);
    ensure!(
        found == (step, rank),
        "{}: expected step {step} of rank {rank}, found step {} of rank {}",
        path.display(),
        found.0,
        found.1
    );
    Ok(reader)
}

/// Reads the run file of the checkpoint of `step`, and returns whether its digest is known. `None`
/// if it has none, as llm.c's.
///
/// # Errors
/// One line that names the file, if it is damaged or missing though `DONE` has its digest.
pub fn read_run(dir: &Path, step: u64) -> Result<Option<(RunFile, bool)>> {
    let (path, done) = (run_path(dir, step), done_path(dir, step));
    let done = String::from_utf8_lossy(&files::read(&done, LINE_BYTES)?).into_owned();
    if done.is_empty() && !path.exists() {
        return Ok(None);
    }
    let (run, checked) = RunFile::read(&path, &done)?;
    ensure!(run.step == step, "{}: expected step {step}, found {}", path.display(), run.step);
    Ok(Some((run, checked)))
}

/// Checks that all files of a checkpoint exist and are complete, and that its run file has a state
/// of type `T`. Files whose digest is known are read in full. Returns one line on those that cannot
/// be checked, if there are any.
pub(super) fn verify<T: DeserializeOwned + Serialize>(dir: &Path, step: u64) -> Result<Option<String>> {
    let run = read_run(dir, step)?;
    let ModelReader { mut config, dtype, .. } = ModelReader::open(&model_path(dir, step))?;
    let mut files = vec![(model_path(dir, step), model_bin::sections(&config, dtype))];
    if run.as_ref().is_some_and(|(run, _)| has_adapter(run, step)) {
        files.extend(adapter_files(dir, step, &mut config)?);
    }
    let first = open_state(dir, step, 0, &config)?.state;
    files.push((state_path(dir, step, 0), first.sections(&config)));
    for rank in 1..first.num_processes {
        let state = open_state(dir, step, rank, &config)?.state;
        files.push((state_path(dir, step, rank), state.sections(&config)));
    }
    let Some((run, checked)) = run else {
        return Ok(Some(format!(
            "{}: the checkpoint has no checksums, so damage to it cannot be noticed",
            done_path(dir, step).display()
        )));
    };
    run.trainer::<T>()?;
    let (expected, found) = (files.iter().map(|(path, _)| key(dir, path)), run.files.keys().cloned());
    ensure!(
        expected.collect::<BTreeSet<_>>() == found.collect(),
        "{}: expected the digests of the checkpoint's other {} files, found others",
        run_path(dir, step).display(),
        files.len()
    );
    for (path, sections) in &files {
        run.files[&key(dir, path)].check(path, sections)?;
    }
    Ok((!checked).then(|| {
        let run = run_path(dir, step);
        format!("{}: an earlier version wrote no checksum of it, so damage cannot be noticed", run.display())
    }))
}

/// The files of a checkpoint's adapters and of the model that they belong to. `config` is the shape
/// of the merged model, and gets the adapters.
fn adapter_files(dir: &Path, step: u64, config: &mut ModelConfig) -> Result<Vec<(PathBuf, Sections)>> {
    let (base, folder) = (dir.join(BASE), adapter_path(dir, step));
    let ModelReader { config: found, dtype, .. } = ModelReader::open(&base)?;
    ensure!(found == *config, "{}: expected the shape {config}, found {found}", base.display());
    let Adapter { lora, .. } = Adapter::read(&folder, config)?;
    let of_base = model_bin::sections(config, dtype);
    config.lora = Some(lora);
    let weights = (folder.join(adapter::WEIGHTS), adapter::sections(config, &lora));
    Ok(vec![(base, of_base), weights, (folder.join(adapter::CONFIG), Vec::new())])
}

/// The checkpoint to resume from.
pub struct Latest {
    /// Step of the newest complete checkpoint.
    pub step: Option<u64>,
    /// One line for each newer checkpoint, which is not complete, and one if it cannot be checked
    /// itself.
    pub warnings: Vec<String>,
}

/// Finds the newest complete checkpoint in a directory, with a trainer's state of type `T`, and
/// reads it in full. A directory that does not exist has none.
pub fn latest<T: DeserializeOwned + Serialize>(dir: &Path) -> Result<Latest> {
    let mut warnings = Vec::new();
    for step in steps(dir)?.into_iter().rev() {
        match verify::<T>(dir, step) {
            Ok(unchecked) => {
                warnings.extend(unchecked);
                return Ok(Latest { step: Some(step), warnings });
            }
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
pub(super) fn step_of(name: &str, prefix: &str, suffix: &str) -> Option<u64> {
    let digits = name.strip_prefix(prefix)?.strip_suffix(suffix)?;
    digits.parse().ok().filter(|step: &u64| digits == format!("{step:08}"))
}

/// Refuses to start a new run in a directory with checkpoints of an old one: sooner or later the
/// wrong ones would be resumed or deleted. The same holds for its logs, which would be emptied.
///
/// # Errors
/// One line that says what to do, if `dir` has a checkpoint, or a log with any line.
pub fn ensure_fresh(dir: &Path, logs: &[&str]) -> Result<()> {
    let at = dir.display();
    if let Some(step) = steps(dir)?.last() {
        bail!("-o {at} holds checkpoints up to step {step}; resume with -y 1 or choose another directory");
    }
    let used = |log: &&&str| fs::metadata(dir.join(log)).is_ok_and(|found| found.len() > 0);
    if let Some(log) = logs.iter().find(used) {
        bail!("-o {at} holds the {log} of another run; replace it with -y 1 or choose another directory");
    }
    Ok(())
}

/// Removes old checkpoints, when that of step `newest` is the newest. Of that one and those before
/// it, this keeps the last `keep` (0: all) and every one whose step is a multiple of `major_every`
/// (0: none). Later ones, which a run that fell back to an earlier checkpoint has not overwritten
/// yet, are neither counted nor removed. Files of earlier steps without DONE are removed as well: a
/// checkpoint that was never finished, or a removal that was not. Returns the steps whose
/// checkpoints were removed.
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
    let present: BTreeSet<u64> = names.iter().filter_map(|name| step_of_any(name)).collect();
    for &step in present.iter().filter(|step| **step < newest && !steps.contains(step)) {
        remove_step(dir, step, &names)?;
    }
    Ok(removed)
}

/// Returns the step in the name of any file of a checkpoint.
pub(super) fn step_of_any(name: &str) -> Option<u64> {
    let state = || {
        let (step, rank) = name.strip_prefix("state_")?.strip_suffix(".bin")?.split_once('_')?;
        rank.parse::<usize>().ok().filter(|number| rank == format!("{number:05}"))?;
        step_of(step, "", "")
    };
    let [run, model, done, adapter] =
        [("run_", ".json"), ("model_", ".bin"), ("DONE_", ""), ("adapter_", "")]
            .map(|(prefix, suffix)| step_of(name, prefix, suffix));
    run.or(model).or(done).or(adapter).or_else(state)
}

/// Removes what killed runs left half-written: it may be as large as a checkpoint.
///
/// # Errors
/// If the directory cannot be read, or a file cannot be removed.
pub fn remove_temporaries(dir: &Path) -> Result<()> {
    file_names(dir)?.iter().filter(|name| is_temporary(name)).try_for_each(|name| remove(&dir.join(name)))
}

/// Whether a file is the temporary of a run's file.
fn is_temporary(name: &str) -> bool {
    const OURS: [&str; 8] =
        ["model_", "state_", "run_", "DONE_", "base.", "main.log", "metrics.jsonl", "settings.json"];
    let ours = |name: &str| OURS.iter().any(|prefix| name.starts_with(prefix));
    files::final_name(name).is_some_and(ours)
}

/// Removes a checkpoint, DONE first.
fn remove_step(dir: &Path, step: u64, names: &[String]) -> Result<()> {
    remove(&done_path(dir, step))?;
    remove(&model_path(dir, step))?;
    remove_directory(&adapter_path(dir, step))?;
    let prefix = format!("state_{step:08}_");
    for name in names.iter().filter(|name| name.starts_with(&prefix) && name.ends_with(".bin")) {
        remove(&dir.join(name))?;
    }
    remove(&run_path(dir, step))
}
