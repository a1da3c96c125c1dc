//! The folder that shards are written to: one process at a time writes those of a name.

use crate::files;
use anyhow::{Context, Result, bail};
use std::fs::{self, File, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A folder in which this process alone writes the shards of a name.
pub(super) struct Folder {
    path: PathBuf,
    name: String,
    /// The lock, and its file. The operating system releases it when the process ends, however it
    /// ends.
    lock: PathBuf,
    _held: File,
}

impl Folder {
    /// Creates the folder if it is missing, locks the shards of `name` in it, and removes temporary
    /// files that killed processes left of them.
    ///
    /// # Errors
    /// If the folder cannot be created or listed, or another process holds the lock.
    pub fn lock(path: &Path, name: &str) -> Result<Self> {
        fs::create_dir_all(path).with_context(|| format!("{}: cannot create the folder", path.display()))?;
        let lock = path.join(format!(".{name}.lock"));
        let held = take(&lock, name)?;
        let folder = Folder { path: path.to_owned(), name: name.to_owned(), lock, _held: held };
        for file in folder.list(|file| is_temporary(file, name))? {
            fs::remove_file(&file).with_context(|| format!("{}: cannot remove", file.display()))?;
        }
        Ok(folder)
    }

    /// Returns the shards of an earlier run, sorted by name.
    pub fn shards(&self) -> Result<Vec<PathBuf>> {
        self.list(|file| is_shard(file, &self.name))
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

impl Drop for Folder {
    fn drop(&mut self) {
        // Removed while it is held, so that it can only be this process's. One that stays does no
        // harm.
        let _ = fs::remove_file(&self.lock);
    }
}

/// Locks the file at `path`, and writes into it who holds it.
fn take(path: &Path, name: &str) -> Result<File> {
    let context = || format!("{}: cannot lock", path.display());
    loop {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).custom_flags(libc::O_NOFOLLOW);
        let mut file = options.open(path).with_context(context)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = file.take(1000).read_to_string(&mut holder);
                let holder = if holder.is_empty() { "another process" } else { holder.trim() };
                bail!(
                    "{}: {holder} is writing shards of the name {name} there; wait for it, or choose \
                     another --name",
                    path.parent().unwrap_or(path).display()
                )
            }
            // Some network file systems have no locks.
            Err(TryLockError::Error(e)) if e.kind() == std::io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(e)) => return Err(e).with_context(context),
        }
        // The holder before may have removed the file between the two calls.
        let ours = file.metadata().with_context(context)?;
        if fs::metadata(path).is_ok_and(|named| (named.dev(), named.ino()) == (ours.dev(), ours.ino())) {
            let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            let host = Some(host.trim()).filter(|host| !host.is_empty()).unwrap_or("this machine");
            file.set_len(0).with_context(context)?;
            writeln!(file, "process {} on {host}", std::process::id()).with_context(context)?;
            return Ok(file);
        }
    }
}

/// Whether a file is a shard of `name`: `{name}_val_000000.bin`, `{name}_train_000001.bin`.
fn is_shard(file: &str, name: &str) -> bool {
    let rest = file.strip_prefix(name).and_then(|rest| rest.strip_suffix(".bin"));
    let index = rest.and_then(|r| r.strip_prefix("_val_").or_else(|| r.strip_prefix("_train_")));
    index.is_some_and(|i| i.len() >= 6 && i.bytes().all(|b| b.is_ascii_digit()))
}

/// Whether a file is one that a process was writing as a shard of `name`: `.SHARD.RANDOM.tmp`.
fn is_temporary(file: &str, name: &str) -> bool {
    let rest = file.strip_prefix('.').and_then(|rest| rest.strip_suffix(files::TEMPORARY));
    rest.and_then(|rest| rest.rsplit_once('.')).is_some_and(|(shard, _)| is_shard(shard, name))
}

/// Returns a function that recognizes shards of `name` in the folder `output`, which may lie within
/// the input.
pub(super) fn own_shards(output: &Path, name: &str) -> impl Fn(&Path) -> bool + use<> {
    let (output, name) = (fs::canonicalize(output).ok(), name.to_owned());
    move |path| {
        let is_shard = path.file_name().and_then(|f| f.to_str()).is_some_and(|f| is_shard(f, &name));
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
        let held = Folder::lock(&out, "c").unwrap();
        let error = Folder::lock(&out, "c").err().unwrap().to_string();
        let holder = format!("out: process {} on ", std::process::id());
        assert!(error.contains(&holder) && error.contains("shards of the name c there; wait"), "{error}");
        drop(Folder::lock(&out, "d").unwrap());
        drop(held);
        assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
        // A lock file whose process is gone is free.
        fs::write(out.join(".c.lock"), "process 1 on elsewhere").unwrap();
        drop(Folder::lock(&out, "c").unwrap());
        assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
    }

    #[test]
    fn temporaries_of_killed_processes_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let gone = [".c_val_000000.bin.a1B2c3.tmp", ".c_train_000012.bin.xyz.tmp"];
        let kept = [".c.txt.tmp", ".cc_train_000001.bin.a.tmp", ".c_train_1.bin.a.tmp", "c_train_000001.bin"];
        for name in gone.iter().chain(&kept) {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let folder = Folder::lock(dir.path(), "c").unwrap();
        assert!(gone.iter().all(|name| !dir.path().join(name).exists()));
        assert!(kept.iter().all(|name| dir.path().join(name).exists()));
        assert_eq!(folder.shards().unwrap(), [dir.path().join("c_train_000001.bin")]);
    }
}
