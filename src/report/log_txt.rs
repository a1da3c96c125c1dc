//! `log.txt`, in the format that build-nanogpt writes and its plotting notebook reads: the step,
//! from 0, the kind of number, and the number.

use super::cformat::fixed;
use super::log_file::LogFile;
use anyhow::Result;
use std::path::Path;

pub(super) const NAME: &str = "log.txt";

pub struct LogTxt(pub LogFile);

impl LogTxt {
    /// Creates an empty `log.txt` in `dir`.
    pub fn create(dir: &Path) -> Result<Self> {
        LogFile::create(dir.join(NAME)).map(LogTxt)
    }

    /// Continues `log.txt` in `dir` at `step`, and drops its lines from that step on.
    pub fn resume(dir: &Path, step: usize) -> Result<Self> {
        LogFile::resume(dir.join(NAME), step, step_of).map(LogTxt)
    }

    /// Writes the loss of a training step.
    pub fn train(&mut self, step: usize, loss: f32) -> Result<()> {
        self.0.line(&format!("{step} train {}", fixed(loss.into(), 6)))
    }

    /// Writes the validation loss before a step.
    pub fn val(&mut self, step: usize, loss: f32) -> Result<()> {
        self.0.line(&format!("{step} val {}", fixed(loss.into(), 4)))
    }

    /// Writes the HellaSwag accuracy before a step, normalized by length.
    pub fn hella(&mut self, step: usize, accuracy: f32) -> Result<()> {
        self.0.line(&format!("{step} hella {}", fixed(accuracy.into(), 4)))
    }
}

fn step_of(line: &str) -> Option<usize> {
    let (step, rest) = line.split_once(' ')?;
    let known = ["train ", "val ", "hella "].iter().any(|kind| rest.starts_with(kind));
    step.parse().ok().filter(|_| known)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{read_to_string, write};

    /// Python printed the numbers with build-nanogpt's format strings.
    #[test]
    fn lines_are_those_of_build_nanogpt() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogTxt::create(dir.path()).unwrap();
        log.val(0, 10.98765).unwrap();
        log.hella(0, 0.24631).unwrap();
        log.train(0, 10.955103).unwrap();
        let text = || read_to_string(dir.path().join("log.txt")).unwrap();
        assert_eq!(text(), "0 val 10.9876\n0 hella 0.2463\n0 train 10.955103\n");
        write(dir.path().join("log.txt"), text() + "1 train 9.000000\n2 notes of mine\n1 val 9.0000\n1 tr")
            .unwrap();
        LogTxt::resume(dir.path(), 1).unwrap().train(1, 8.5).unwrap();
        let expected =
            "0 val 10.9876\n0 hella 0.2463\n0 train 10.955103\n2 notes of mine\n1 train 8.500000\n";
        assert_eq!(text(), expected);
    }
}
