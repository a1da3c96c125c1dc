//! `--trace`: a timeline of one step. It is the second of the run, because the first one chooses
//! kernels by timing them.

use super::Trainer;
use crate::cli::flags::trainer::{CudaGraphs, TrainArgs};
use crate::files::NewFile;
use crate::ops::Ops;
use crate::parallel::environment::Process;
use crate::replica::Replica;
use crate::report::chrome;
use crate::trace::{Names, Tracer};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};

/// A trace that is to be written.
pub struct TraceFile {
    tracer: Tracer,
    path: PathBuf,
    file: NewFile,
}

/// Creates the file that `--trace` names, if any, and wraps the device so that it can be traced.
///
/// # Errors
/// If the file cannot be created.
pub fn open(args: &TrainArgs, dev: Box<dyn Ops>) -> Result<(Box<dyn Ops>, Option<TraceFile>)> {
    let Some(path) = &args.files.trace else { return Ok((dev, None)) };
    if args.gpu.cuda_graphs == CudaGraphs::Always {
        log::info!("--trace: the traced step is queued without CUDA graphs");
    }
    let path = path_of_rank(path, &args.process);
    let file = NewFile::create(&path).context("--trace")?;
    let tracer = Tracer::default();
    let dev = Box::new(tracer.device(dev));
    Ok((dev, Some(TraceFile { tracer, path, file })))
}

/// The file of a rank: of rank 1 of several, `trace_rank1.json` for `trace.json`.
fn path_of_rank(path: &Path, process: &Process) -> PathBuf {
    if process.world_size == 1 {
        return path.to_owned();
    }
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!("_rank{}", process.rank));
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

impl TraceFile {
    /// Refuses a run that ends before its second step.
    pub fn check_steps(&self, total_steps: usize, resumed_step: Option<usize>) -> Result<()> {
        let steps = total_steps - resumed_step.unwrap_or(0);
        ensure!(
            steps >= 2,
            "--trace {}: records the second step, and the run has {steps}; raise -x",
            self.path.display()
        );
        Ok(())
    }
}

impl Trainer {
    /// Whether `step` is to be traced.
    fn is_traced(&self, step: usize) -> bool {
        self.trace.is_some() && step == self.resumed_step.unwrap_or(0) + 1
    }

    /// Starts the trace, if it is of `step`, with nothing of the step before in flight.
    pub(super) fn begin_trace(&mut self, step: usize) -> Result<()> {
        let traced = self.is_traced(step);
        let Some(trace) = self.trace.as_ref().filter(|_| traced) else { return Ok(()) };
        self.replica.finish_params()?;
        self.replica.zero.peers.note_times()?;
        trace.tracer.begin(self.replica.dev.as_mut())
    }

    /// Says that the run stopped before the step that was to be traced, if so.
    pub(super) fn warn_of_missing_trace(&self) {
        if let Some(trace) = &self.trace {
            log::warn!(
                "--trace {}: not written, because the run stopped before its second step",
                trace.path.display()
            );
        }
    }

    /// Ends the trace, if it is of `step`, once all work of the step is done, and writes it.
    pub(super) fn end_trace(&mut self, step: usize) -> Result<()> {
        if !self.is_traced(step) {
            return Ok(());
        }
        let Some(TraceFile { tracer, path, mut file }) = self.trace.take() else { return Ok(()) };
        self.replica.finish_params()?;
        let Replica { zero, dev, model, .. } = &mut self.replica;
        let work = zero.peers.take_times()?;
        // Reading the times of thousands of stamps is not part of the next step.
        self.report.clock.stop(dev.as_mut())?;
        let traced = tracer.end(dev.as_mut())?;
        let names = Names { memory: tracer.memory(), params: &model.weights.params, stored: zero.params() };
        let bars = traced.bars(format!("step {}", step + 1), &names, work);
        let rank = zero.peers.process.rank;
        let written = chrome::write(&mut file, rank, &dev.describe(), bars);
        written.and_then(|()| file.complete()?.publish()).context("--trace")?;
        log::info!("wrote the trace of step {} to {}", step + 1, path.display());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rank_has_its_file() {
        let of = |path: &str, rank, world_size| {
            path_of_rank(Path::new(path), &Process { rank, world_size, ..Process::ALONE })
        };
        assert_eq!(of("a/trace.json", 0, 1), Path::new("a/trace.json"));
        assert_eq!(of("a/trace.json", 0, 2), Path::new("a/trace_rank0.json"));
        assert_eq!(of("b.c/trace", 11, 12), Path::new("b.c/trace_rank11"));
    }
}
