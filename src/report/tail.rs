//! Reading a log while another process writes it.

use crate::files;
use anyhow::{Context, Result};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// A reader that remembers how far it has come. It keeps the file open, so that no other file can
/// have its [`identity`](files::identity).
#[derive(Debug)]
pub struct Tail {
    path: PathBuf,
    file: Option<File>,
    /// Bytes read, all in complete lines.
    position: u64,
}

/// A place in a log: the [`identity`](files::identity) of the file, and the bytes before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub file: (u64, u64),
    pub position: u64,
}

/// The lines since the last call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// Whether they are the first of the log: at the first call, and after the log was cut back or
    /// replaced.
    pub from_start: bool,
    /// Complete lines, each with its end.
    pub lines: Vec<u8>,
}

impl Tail {
    /// Follows a log, which may not exist yet, from its first line on.
    pub fn new(path: PathBuf) -> Self {
        Tail { path, file: None, position: 0 }
    }

    /// Follows a log from a place on where another reader was, if it is still the same file.
    pub fn from_place(path: PathBuf, place: Option<Place>) -> Self {
        let same = |place: &Place| {
            let (file, metadata) = files::open(&path).ok()?;
            (files::identity(&metadata) == place.file).then_some((Some(file), place.position))
        };
        let (file, position) = place.as_ref().and_then(same).unwrap_or((None, 0));
        Tail { path, file, position }
    }

    /// The place from which the next call reads on, if there is a log.
    pub fn place(&self) -> Option<Place> {
        let metadata = self.file.as_ref()?.metadata().ok()?;
        Some(Place { file: files::identity(&metadata), position: self.position })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Starts over at the next call.
    pub fn rewind(&mut self) {
        self.file = None;
    }

    /// Reads on, about `most` bytes, and at least one line if one is complete. A line that is still
    /// being written has to wait.
    ///
    /// # Errors
    /// If the log cannot be read, or is not a regular file.
    pub fn read(&mut self, most: usize) -> Result<News> {
        if !self.path.exists() {
            return Ok(News::default());
        }
        let len = std::fs::metadata(&self.path).map_or(0, |found| found.len());
        let same = self.file.as_ref().is_some_and(|file| files::is_at(file, &self.path));
        let from_start = !same || len < self.position;
        if from_start {
            (self.file, self.position) = (Some(files::open(&self.path)?.0), 0);
        }
        let Some(file) = &mut self.file else { return Ok(News::default()) };
        let mut lines = Vec::new();
        let mut room = most as u64;
        // A longer line than expected is read again, with more room.
        loop {
            lines.clear();
            let read = file.seek(SeekFrom::Start(self.position));
            let read = read.and_then(|_| file.take(room).read_to_end(&mut lines));
            let read = read.with_context(|| format!("cannot read {}", self.path.display()))?;
            let complete = lines.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
            if complete > 0 || (read as u64) < room {
                lines.truncate(complete);
                break;
            }
            room *= 2;
        }
        self.position += lines.len() as u64;
        Ok(News { from_start, lines })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;

    fn news(tail: &mut Tail, most: usize) -> (bool, String) {
        let News { from_start, lines } = tail.read(most).unwrap();
        (from_start, String::from_utf8(lines).unwrap())
    }

    #[test]
    fn each_line_is_seen_once_and_when_it_is_complete() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut tail = Tail::new(path.clone());
        assert_eq!(news(&mut tail, 9), (false, String::new()), "there is no log yet");
        let mut log = File::create(&path).unwrap();
        log.write_all(b"one\ntw").unwrap();
        assert_eq!(news(&mut tail, 99), (true, "one\n".into()));
        assert_eq!(news(&mut tail, 99), (false, String::new()));
        log.write_all(b"o\n3\n4\n").unwrap();
        assert_eq!(news(&mut tail, 6), (false, "two\n3\n".into()));
        assert_eq!(news(&mut tail, 1), (false, "4\n".into()), "a line may be longer than that");
        log.write_all(format!("{}\n", "x".repeat(100)).as_bytes()).unwrap();
        assert_eq!(news(&mut tail, 3).1.len(), 101);
    }

    #[test]
    fn a_log_that_was_cut_or_replaced_starts_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, "1\n2\n").unwrap();
        let mut tail = Tail::new(path.clone());
        assert_eq!(news(&mut tail, 99), (true, "1\n2\n".into()));
        File::options().write(true).open(&path).unwrap().set_len(2).unwrap();
        assert_eq!(news(&mut tail, 99), (true, "1\n".into()));
        files::write(&path, |out| Ok(out.write_all(b"a\nb\n")?)).unwrap();
        assert_eq!(news(&mut tail, 99), (true, "a\nb\n".into()));
        fs::remove_file(&path).unwrap();
        assert_eq!(news(&mut tail, 99), (false, String::new()));
        tail.rewind();
        fs::write(&path, "c\n").unwrap();
        assert_eq!(news(&mut tail, 99), (true, "c\n".into()));
        assert_eq!(news(&mut tail, 99), (false, String::new()));
    }
}
