//! From the path that a user gives to the files of one model, and the check of a path to write to.

use super::digest::Digest;
use super::directory::{
    self, BASE, BEST, BEST_DIGEST, LINE_BYTES, Latest, done_path, file_name, model_path, read_run, steps,
};
use super::model_bin::{self, ModelReader};
use super::run_file::RunFile;
use super::{ModelFile, gguf, hf_config, safetensors_file};
use crate::config::DropoutRates;
use crate::data::tokenizer::Tokenizer;
use crate::files;
use crate::llmc;
use crate::tensor::Dtype;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::fmt;
use std::path::{Path, PathBuf};

/// A model that has been found and not yet been read. It displays as its file and its step, if that
/// is known.
#[derive(Debug)]
pub struct FoundModel {
    files: Vec<PathBuf>,
    format: Format,
    step: Option<u64>,
}

/// The format of a model's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// llm.c's.
    Bin,
    Safetensors,
    Gguf,
}

impl fmt::Display for FoundModel {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}", self.files[0].display())?;
        match (self.files.len() - 1, self.step) {
            (0, None) => Ok(()),
            (0, Some(step)) => write!(f, " (step {step})"),
            (more, _) => write!(f, " and {more} more"),
        }
    }
}

impl FoundModel {
    /// The folder of the files.
    pub fn folder(&self) -> &Path {
        files::directory(&self.files[0])
    }

    /// Reads the model.
    ///
    /// # Errors
    /// One line that names the file, and what was expected and found; also if a digest beside the
    /// file is not that of the file.
    pub fn read(&self) -> Result<ModelFile> {
        let path = &self.files[0];
        match self.format {
            Format::Safetensors => safetensors_file::read(&self.files),
            Format::Gguf => gguf::read(path),
            Format::Bin => {
                let reader = ModelReader::open(path)?;
                check_model(&reader, path)?;
                let dropout = run_of(path).ok().flatten().map_or(DropoutRates::NONE, |run| run.dropout());
                Ok(ModelFile { dropout, ..reader.load()? })
            }
        }
    }

    /// Reads the tokenizer of the model: the one in its file, or in its folder. `None` if neither
    /// has one.
    ///
    /// # Errors
    /// One line that names the file, if it is not usable.
    pub fn tokenizer(&self) -> Result<Option<Tokenizer>> {
        let inside = (self.format == Format::Gguf).then(|| gguf::tokenizer(&self.files[0])).transpose()?;
        inside.flatten().map_or_else(|| Tokenizer::find_in(self.folder()), |found| Ok(Some(found)))
    }
}

/// Checks a model file by the digest beside it, if it is that of a checkpoint or the best model.
///
/// # Errors
/// One line that names the damaged tensors.
fn check_model(reader: &ModelReader, path: &Path) -> Result<()> {
    match known_digest(path) {
        Ok(Some(digest)) => digest.check(path, &model_bin::sections(&reader.config, reader.dtype)),
        Ok(None) => Ok(()),
        Err(error) => {
            log::warn!("{}: cannot be checked: {error:#}", path.display());
            Ok(())
        }
    }
}

fn known_digest(path: &Path) -> Result<Option<Digest>> {
    let (dir, name) = (path.parent().unwrap_or(Path::new("")), file_name(path));
    let beside = dir.join(BEST_DIGEST);
    if name == BEST && beside.exists() {
        let line = files::read(&beside, LINE_BYTES)?;
        let digest = Digest::parse_line(&String::from_utf8_lossy(&line));
        return digest.with_context(|| format!("{}: expected a digest", beside.display())).map(Some);
    }
    Ok(run_of(path)?.and_then(|mut run| run.files.remove(&name)))
}

/// The run file of the checkpoint that a model file belongs to, and that of the newest one for the
/// best model.
fn run_of(path: &Path) -> Result<Option<RunFile>> {
    let (dir, name) = (path.parent().unwrap_or(Path::new("")), file_name(path));
    let step = match name == BEST {
        true => steps(dir)?.pop(),
        false => directory::step_of(&name, "model_", ".bin"),
    };
    let step = step.filter(|&step| done_path(dir, step).exists());
    let run = step.map(|step| read_run(dir, step)).transpose()?.flatten();
    Ok(run.map(|(run, _)| run))
}

/// Finds the model at `path`: a model file of llm.c's, a GGUF file, a safetensors file next to its
/// `config.json`, or a directory. In a directory the newest checkpoint counts more than a model
/// saved by `transformers`, which may be an older one of the same run.
///
/// # Errors
/// One line that says what was expected and found.
pub fn find_model(path: &Path) -> Result<FoundModel> {
    if path.is_dir() {
        return find_in(path);
    }
    let first = llmc::first_bytes(path)?;
    let at = || path.display();
    let folder = files::directory(path);
    if first.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{') {
        bail!("{}: expected a model, found JSON; give the folder, {}", at(), folder.display());
    }
    let name = file_name(path);
    let format = if first.starts_with(gguf::MAGIC) || gguf::is_named(path) {
        Format::Gguf
    } else if llmc::looks_like_safetensors(&first) || name.ends_with(".safetensors") {
        Format::Safetensors
    } else {
        Format::Bin
    };
    if format == Format::Safetensors
        && let Some(count) = shards(&name)
    {
        bail!("{}: one of the {count} files of a model; give the folder, {}", at(), folder.display());
    }
    let step = directory::step_of(&name, "model_", ".bin");
    Ok(FoundModel { files: vec![path.to_owned()], format, step })
}

/// The number of files of a model that is in several, by the name of one of them:
/// `model-00001-of-00002.safetensors`.
fn shards(name: &str) -> Option<usize> {
    let (_, count) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    count.parse().ok().filter(|&count| count > 1)
}

fn find_in(dir: &Path) -> Result<FoundModel> {
    let Latest { step, warnings } = directory::latest::<Value>(dir)?;
    if let Some(step) = step {
        warnings.iter().for_each(|warning| log::warn!("{warning}"));
        let files = vec![model_path(dir, step)];
        return Ok(FoundModel { files, format: Format::Bin, step: Some(step) });
    }
    ensure!(warnings.is_empty(), "{}: no complete checkpoint: {}", dir.display(), warnings.join("; "));
    if let Some(files) = safetensors_file::files_in(dir)? {
        return Ok(FoundModel { files, format: Format::Safetensors, step: None });
    }
    let at = dir.display();
    let pickled = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
    if let Some(found) = pickled.iter().find(|name| dir.join(name).exists()) {
        bail!(
            "{at}: found {found}, which only PyTorch reads; save the model as safetensors from Python first, \
             with save_pretrained"
        );
    }
    bail!("{at}: expected model.safetensors or a checkpoint with its DONE file, found neither");
}

/// Checks that `path` may be written to: that it does not exist, unless `force` allows it to be
/// replaced, and that it is no file of a checkpoint.
///
/// # Errors
/// One line that says what to do.
pub fn ensure_free(path: &Path, force: bool) -> Result<()> {
    let (dir, name) = (path.parent().unwrap_or(Path::new("")), file_name(path));
    let step = directory::step_of_any(&name).filter(|&step| done_path(dir, step).exists());
    if let Some(step) = step {
        bail!("{}: a file of the checkpoint of step {step}; choose another name", path.display());
    }
    let of_run = [BASE, BEST].contains(&name.as_str()) && !steps(dir)?.is_empty();
    ensure!(!of_run, "{}: a file of the run in that folder; choose another name", path.display());
    ensure!(
        force || path.symlink_metadata().is_err(),
        "{}: already exists; give --force to replace it, or choose another name",
        path.display()
    );
    Ok(())
}

/// Checks that a model at `path` may have its config and its tokenizer beside it: that there are
/// none, or those of the same model.
///
/// # Errors
/// One line that says what to do.
pub fn ensure_same_files(
    path: &Path,
    model: &ModelFile,
    dtype: Dtype,
    tokenizer: Option<&Tokenizer>,
) -> Result<()> {
    let mut expected = Vec::new();
    if file_name(path).ends_with(".safetensors") {
        let json = hf_config::to_json(model, dtype, tokenizer.map(Tokenizer::eot));
        expected.push((path.with_file_name("config.json"), json));
    }
    for (path, text) in
        tokenizer.iter().flat_map(|tokenizer| super::tokenizer_files(path, &model.config, tokenizer))
    {
        expected.push((path, serde_json::from_str(&text)?));
    }
    for (beside, expected) in expected.into_iter().filter(|(path, _)| path.exists()) {
        let found: Option<Value> = hf_config::read_json(&beside).ok();
        ensure!(
            found == Some(expected),
            "{}: already exists, and is not that of this model; give --force to replace it, or choose another \
             folder",
            beside.display()
        );
    }
    Ok(())
}
