//! A log that grows line by line and can be truncated to the step at which a run resumes.

use crate::files::{self, is_at};
use anyhow::{Context, Result, bail};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

pub struct LogFile {
    file: File,
    path: PathBuf,
}

impl LogFile {
    /// Creates an empty log, and replaces an existing one by another file, so that whoever follows
    /// the log notices.
    pub fn create(path: PathBuf) -> Result<Self> {
        refuse_special(&path)?;
        let removed = if path.exists() { fs::remove_file(&path) } else { Ok(()) };
        let created = removed.and_then(|()| File::create(&path));
        created.with_context(|| format!("{}: cannot create the log", path.display()))?;
        Self::append(path)
    }

    /// Opens the log of a run that resumes at `step`. Lines whose step, as read by `step_of`, is
    /// `step` or later are dropped, as the run will write them again; so is an incomplete last
    /// line. Other lines stay.
    pub fn resume(path: PathBuf, step: usize, step_of: fn(&str) -> Option<usize>) -> Result<Self> {
        refuse_special(&path)?;
        let mut text = Vec::new();
        if path.exists() {
            let read = files::open(&path)?.0.read_to_end(&mut text);
            read.with_context(|| format!("{}: cannot read the log", path.display()))?;
        }
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
        let file = OpenOptions::new().create(true).read(true).append(true).open(&path);
        Ok(LogFile { file: file.with_context(|| format!("{}: cannot open the log", path.display()))?, path })
    }

    /// Writes the log again, with all its lines, if it was removed, moved or replaced, and creates
    /// its directory if that is gone. Returns whether it did.
    ///
    /// # Errors
    /// If the log cannot be read or written.
    pub fn keep(&mut self) -> Result<bool> {
        if is_at(&self.file, &self.path) {
            return Ok(false);
        }
        let context = || format!("{}: cannot write the log again", self.path.display());
        let mut lines = Vec::new();
        self.file.rewind().and_then(|()| self.file.read_to_end(&mut lines)).with_context(context)?;
        // Whoever moved the directory may move it once more, in the middle of this.
        const TRIES: usize = 3;
        let mut written = write_again(&self.path, &lines);
        for _ in 1..TRIES {
            written = written.or_else(|_| write_again(&self.path, &lines));
        }
        *self = written.with_context(context)?;
        Ok(true)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the open file, for a thread that syncs it.
    pub fn file(&self) -> Result<File> {
        self.file.try_clone().with_context(|| format!("{}: cannot open the log again", self.path.display()))
    }

    /// Appends a line in one write, so that neither a reader nor a crash sees half of it.
    pub fn line(&mut self, line: &str) -> Result<()> {
        let written = self.file.write_all(format!("{line}\n").as_bytes());
        written.with_context(|| format!("{}: cannot write to the log", self.path.display()))
    }
}

/// Writes a log with these lines, in a directory that may be gone, and opens it.
fn write_again(path: &Path, lines: &[u8]) -> Result<LogFile> {
    fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
    files::write(path, |out| Ok(out.write_all(lines)?))?;
    LogFile::append(path.to_owned())
}

/// Refuses a pipe or a device in the place of a log, since opening it could wait forever, and a
/// link, whose target would be overwritten.
fn refuse_special(path: &Path) -> Result<()> {
    let special = fs::symlink_metadata(path).ok().filter(|found| !found.is_file());
    special.map_or(Ok(()), |found| {
        bail!("{}: expected a log, found {}; remove it", path.display(), files::kind(&found))
    })
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

    #[cfg(unix)]
    #[test]
    fn a_log_that_was_moved_or_removed_is_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, moved) = (dir.path().join("a"), dir.path().join("b"));
        fs::create_dir(&inside).unwrap();
        let path = inside.join("log");
        let mut log = LogFile::create(path.clone()).unwrap();
        log.line("1").unwrap();
        assert!(!log.keep().unwrap());
        let losses: [&dyn Fn(); 3] =
            [&|| fs::remove_file(&path).unwrap(), &|| fs::rename(&inside, &moved).unwrap(), &|| {
                files::write(&path, |out| Ok(out.write_all(b"edited")?)).unwrap()
            }];
        for (n, lose) in losses.into_iter().enumerate() {
            lose();
            log.line(&format!("lost {n}")).unwrap();
            assert!(log.keep().unwrap() && !log.keep().unwrap());
        }
        log.line("2").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "1\nlost 0\nlost 1\nlost 2\n2\n");
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
