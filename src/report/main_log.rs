//! `main.log`, in the format that llm.c writes and its plotting notebook reads. Steps count from 0.

use super::cformat::fixed;
use super::log_file::LogFile;
use anyhow::Result;
use std::path::Path;

pub(super) const NAME: &str = "main.log";

pub struct MainLog(pub LogFile);

impl MainLog {
    /// Creates an empty `main.log` in `dir`.
    pub fn create(dir: &Path) -> Result<Self> {
        LogFile::create(dir.join(NAME)).map(MainLog)
    }

    /// Continues `main.log` in `dir` at `step`, and drops its lines from that step on.
    pub fn resume(dir: &Path, step: usize) -> Result<Self> {
        LogFile::resume(dir.join(NAME), step, step_of).map(MainLog)
    }

    /// Writes loss, learning rate and unclipped gradient norm of a training step.
    pub fn train(&mut self, step: usize, loss: f32, lr: f32, norm: f32) -> Result<()> {
        let (loss, lr, norm) = (fixed(loss.into(), 4), fixed(lr.into(), 6), fixed(norm.into(), 2));
        self.0.line(&format!("s:{step} trl:{loss} lr:{lr} norm:{norm}"))
    }

    /// Writes the loss of a step without training, as `train_gpt2.py` does.
    pub fn forward_only(&mut self, step: usize, loss: f32) -> Result<()> {
        self.0.line(&format!("s:{step} trl:{}", fixed(loss.into(), 6)))
    }

    /// Writes the validation loss before a step.
    pub fn val(&mut self, step: usize, loss: f32) -> Result<()> {
        self.0.line(&format!("s:{step} tel:{}", fixed(loss.into(), 4)))
    }

    /// Writes the HellaSwag accuracy before a step, normalized by length.
    pub fn eval(&mut self, step: usize, accuracy: f32) -> Result<()> {
        self.0.line(&format!("s:{step} eval:{}", fixed(accuracy.into(), 4)))
    }
}

fn step_of(line: &str) -> Option<usize> {
    line.strip_prefix("s:")?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::read_to_string;

    #[test]
    fn lines_are_those_of_llmc() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = MainLog::create(dir.path()).unwrap();
        log.val(0, 10.98765).unwrap();
        log.train(0, 10.955103, 8.3916e-7, 13.4646).unwrap();
        log.train(1, f32::NAN.copysign(1.0), 6e-4, f32::INFINITY).unwrap();
        log.eval(250, 0.29552).unwrap();
        let expected = "s:0 tel:10.9876\ns:0 trl:10.9551 lr:0.000001 norm:13.46\n\
                        s:1 trl:nan lr:0.000600 norm:inf\ns:250 eval:0.2955\n";
        // The log is still open: every line is in the file as soon as it is written.
        assert_eq!(read_to_string(dir.path().join("main.log")).unwrap(), expected);
    }

    #[test]
    fn a_resumed_run_writes_each_step_once() {
        let write = |log: &mut MainLog, steps: std::ops::Range<usize>| {
            for step in steps {
                log.val(step, 1.0).unwrap();
                log.train(step, 2.0, 3e-4, 1.0).unwrap();
            }
        };
        let whole = tempfile::tempdir().unwrap();
        write(&mut MainLog::create(whole.path()).unwrap(), 0..12);
        let broken = tempfile::tempdir().unwrap();
        write(&mut MainLog::create(broken.path()).unwrap(), 0..11);
        write(&mut MainLog::resume(broken.path(), 8).unwrap(), 8..12);
        let text = |dir: &tempfile::TempDir| read_to_string(dir.path().join("main.log")).unwrap();
        assert_eq!(text(&broken), text(&whole));
    }
}
