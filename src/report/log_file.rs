//! A log that grows line by line and can be truncated to the step at which a run resumes.

use crate::files;
use anyhow::{Context, Result};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::PathBuf;

pub(super) struct LogFile {
    file: File,
    path: PathBuf,
}

impl LogFile {
    /// Creates an empty log, and replaces an existing one.
    pub fn create(path: PathBuf) -> Result<Self> {
        File::create(&path).with_context(|| format!("{}: cannot create the log", path.display()))?;
        Self::append(path)
    }

    /// Opens the log of a run that resumes at `step`. Lines whose step, as read by `step_of`, is
    /// `step` or later are dropped, as the run will write them again; so is an incomplete last
    /// line. Other lines stay.
    pub fn resume(path: PathBuf, step: usize, step_of: fn(&str) -> Option<usize>) -> Result<Self> {
        let text = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).context(format!("{}: cannot read the log", path.display())),
        };
        let stays = |line: &&[u8]| {
            let whole = line.ends_with(b"\n");
            whole && std::str::from_utf8(line).ok().and_then(step_of).is_none_or(|s| s < step)
        };
        let kept: Vec<u8> = text.split_inclusive(|&b| b == b'\n').filter(stays).flatten().copied().collect();
        if kept.len() != text.len() {
            files::write(&path, |out| Ok(out.write_all(&kept)?)).context("cannot truncate the log")?;
        }
        Self::append(path)
    }

    fn append(path: PathBuf) -> Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(&path);
        Ok(LogFile { file: file.with_context(|| format!("{}: cannot open the log", path.display()))?, path })
    }

    /// Appends a line in one write, so that neither a reader nor a crash sees half of it.
    pub fn line(&mut self, line: &str) -> Result<()> {
        let written = self.file.write_all(format!("{line}\n").as_bytes());
        written.with_context(|| format!("{}: cannot write to the log", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(line: &str) -> Option<usize> {
        line.split(' ').next()?.parse().ok()
    }

    fn resumed(before: &[u8], step: usize) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, before).unwrap();
        LogFile::resume(path.clone(), step, number).unwrap().line("new").unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file remains");
        fs::read(path).unwrap()
    }

    #[test]
    fn resuming_drops_what_will_be_written_again() {
        assert_eq!(resumed(b"1 a\n2 b\nnote\n3 c\n2 d\n4 e\n", 3), b"1 a\n2 b\nnote\n2 d\nnew\n");
        assert_eq!(resumed(b"1 a\n2 b\n", 3), b"1 a\n2 b\nnew\n");
        assert_eq!(resumed(b"5 a\n", 0), b"new\n");
        assert_eq!(resumed(b"", 3), b"new\n");
    }

    #[test]
    fn a_torn_line_is_dropped_and_foreign_bytes_stay() {
        assert_eq!(resumed(b"1 a\n2 b", 3), b"1 a\nnew\n");
        assert_eq!(resumed(b"\xff\xfe\n9 b\n", 3), b"\xff\xfe\nnew\n");
    }

    #[test]
    fn a_missing_log_begins_and_a_new_one_replaces() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        LogFile::resume(path.clone(), 5, number).unwrap().line("1 x").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"1 x\n");
        LogFile::create(path.clone()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
        let error = LogFile::create(dir.path().join("no/log")).err().unwrap();
        assert!(format!("{error:#}").contains("no/log: cannot create the log"), "{error:#}");
    }
}
