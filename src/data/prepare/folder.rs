//! The folder that shards are written to: one process at a time writes those of a name.

use crate::data::shard::ShardFormat;
use crate::data::tokenizer::{FILE_NAME, Tokenizer};
use crate::files;
use crate::files::lock::DirLock;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};

/// The use of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::data) enum Split {
    Val,
    Train,
}

/// Returns the name of the shard with a number: `{name}_train_000001.bin`. Raw tokens have
/// nanoGPT's, `train.bin`.
pub(in crate::data) fn shard_name(name: &str, split: Split, index: usize, format: ShardFormat) -> String {
    let split = if split == Split::Val { "val" } else { "train" };
    match format {
        ShardFormat::Raw => format!("{split}.bin"),
        _ => format!("{name}_{split}_{index:06}.{}", format.extension()),
    }
}

/// A folder in which this process alone writes the shards of a name.
pub(in crate::data) struct Folder {
    path: PathBuf,
    name: String,
    format: ShardFormat,
    _lock: DirLock,
}

impl Folder {
    /// Creates the folder if it is missing, locks the shards of `name` in it, and removes temporary
    /// files that killed processes left of them.
    ///
    /// # Errors
    /// If the folder cannot be created or listed, or another process holds the lock.
    pub fn lock(path: &Path, name: &str, format: ShardFormat) -> Result<Self> {
        let lock = DirLock::take_for(path, name)?;
        let folder = Folder { path: path.to_owned(), name: name.to_owned(), format, _lock: lock };
        for file in folder.list(|file| is_temporary(file, name, format))? {
            fs::remove_file(&file).with_context(|| format!("{}: cannot remove", file.display()))?;
        }
        Ok(folder)
    }

    /// Refuses a folder of shards of another tokenizer, unless `force` allows its file to be
    /// replaced.
    ///
    /// # Errors
    /// One line that names both.
    pub fn check_tokenizer(&self, tokenizer: &Tokenizer, force: bool) -> Result<()> {
        let path = self.path.join(FILE_NAME);
        if force || tokenizer.is_gpt2() || !path.exists() {
            return Ok(());
        }
        let found = Tokenizer::open(&path)?;
        ensure!(
            found.id() == tokenizer.id(),
            "{}: the tokenizer {} of other shards, found besides {} ({}); choose another -o or replace it \
             with --force",
            path.display(),
            found.id(),
            tokenizer.name(),
            tokenizer.id()
        );
        Ok(())
    }

    /// Returns the shards of an earlier run, sorted by name.
    pub fn shards(&self) -> Result<Vec<PathBuf>> {
        self.list(|file| is_shard(file, &self.name, self.format))
    }

    fn list(&self, is_wanted: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
        let context = || format!("{}: cannot list the output folder", self.path.display());
        let mut paths = Vec::new();
        for entry in fs::read_dir(&self.path).with_context(context)? {
            let entry = entry.with_context(context)?;
            if entry.file_name().to_str().is_some_and(&is_wanted) {
                paths.push(entry.path());
            }
        }
        paths.sort();
        Ok(paths)
    }
}

/// Whether a file is a shard of `name`, or the mask of one: `{name}_val_000000.bin`,
/// `{name}_train_000001.mask`.
fn is_shard(file: &str, name: &str, format: ShardFormat) -> bool {
    if format == ShardFormat::Raw {
        return matches!(file, "train.bin" | "val.bin");
    }
    let (rest, extension) = file.strip_prefix(name).and_then(|rest| rest.rsplit_once('.')).unzip();
    // A mask goes with its shard.
    let is_ours = |end| end == format.extension() || end == "mask" && format == ShardFormat::Bin;
    let rest = rest.filter(|_| extension.is_some_and(is_ours));
    let index = rest.and_then(|r| r.strip_prefix("_val_").or_else(|| r.strip_prefix("_train_")));
    index.is_some_and(|i| i.len() >= 6 && i.bytes().all(|b| b.is_ascii_digit()))
}

/// Whether a file is one that a process was writing as a shard of `name`.
fn is_temporary(file: &str, name: &str, format: ShardFormat) -> bool {
    files::final_name(file).is_some_and(|shard| is_shard(shard, name, format))
}

/// Returns a function that recognizes shards of `name` in the folder `output`, which may lie within
/// the input, and their tokenizer.
pub(in crate::data) fn own_shards(
    output: &Path,
    name: &str,
    format: ShardFormat,
) -> impl Fn(&Path) -> bool + use<> {
    let (output, name) = (fs::canonicalize(output).ok(), name.to_owned());
    move |path| {
        let is_ours = |file: &str| is_shard(file, &name, format) || file == FILE_NAME;
        let is_shard = path.file_name().and_then(|f| f.to_str()).is_some_and(is_ours);
        let is_there = || path.parent().and_then(|folder| fs::canonicalize(folder).ok()) == output;
        is_shard && output.is_some() && is_there()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_at_a_time_writes_the_shards_of_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let held = Folder::lock(&out, "c", ShardFormat::Bin).unwrap();
        let error = Folder::lock(&out, "c", ShardFormat::Bin).err().unwrap().to_string();
        let holder = format!("out is in use by process {} on ", std::process::id());
        assert!(error.contains(&holder), "{error}");
        drop(Folder::lock(&out, "d", ShardFormat::Bin).unwrap());
        drop(held);
        assert!(!out.exists(), "nothing is left");
    }

    #[test]
    fn temporaries_of_killed_processes_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let gone = [".c_val_000000.bin.a1B2c3.tmp", ".c_train_000012.bin.xyz.tmp"];
        let kept = [".c.txt.tmp", ".cc_train_000001.bin.a.tmp", ".c_train_1.bin.a.tmp", "c_train_000001.bin"];
        for name in gone.iter().chain(&kept) {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let folder = Folder::lock(dir.path(), "c", ShardFormat::Bin).unwrap();
        assert!(gone.iter().all(|name| !dir.path().join(name).exists()));
        assert!(kept.iter().all(|name| dir.path().join(name).exists()));
        assert_eq!(folder.shards().unwrap(), [dir.path().join("c_train_000001.bin")]);
    }
}
