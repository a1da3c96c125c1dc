//! The training run: set up, then evaluate, sample, checkpoint and train step by step, until it is
//! done, asked to stop, or diverges.

pub mod clock;
mod consistency;
mod data;
mod evaluate;
mod guards;
mod report;
pub mod resume;
mod setup;
mod signals;
mod trace;

use crate::cli::flags::trainer::{EvalFlags, FileFlags, TrainArgs};
use crate::ops::Ops;
use crate::optim::schedule::Schedule;
use crate::replica::Replica;
use crate::replica::peers::Peers;
use anyhow::{Result, bail};
use data::Data;
use guards::{Guards, Verdict};
use report::{Report, StepRecord};
use signals::StopSignal;
use std::path::Path;
use trace::TraceFile;

/// The end of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    Completed,
    /// Stopped by this signal, after the step in which it arrived.
    Stopped(i32),
}

/// A training run, ready for its next step. [`setup`] builds it.
struct Trainer {
    replica: Replica,
    data: Data,
    guards: Guards,
    schedule: Schedule,
    report: Report,
    files: FileFlags,
    eval: EvalFlags,
    /// Steps between reports on the GPU; 0 for none.
    gpu_info_every: usize,
    /// The step of the checkpoint that the run resumed from.
    resumed_step: Option<usize>,
    /// Lowest validation loss so far: that of `model_best.bin`.
    best_val_loss: Option<f32>,
    /// The trace of `--trace`, until it is written.
    trace: Option<TraceFile>,
}

/// Trains as the flags say.
///
/// # Errors
/// On bad input, on a failing disk or peer, or when the loss stops being finite. Checkpoints
/// already written stay.
pub fn run(args: &TrainArgs, dev: Box<dyn Ops>, peers: Peers) -> Result<Finish> {
    let stop = StopSignal::listen()?;
    setup::set_up(args, dev, peers)?.run(&stop)
}

impl Trainer {
    fn run(&mut self, stop: &StopSignal) -> Result<Finish> {
        let last_step = self.schedule.total_steps;
        // Ranks receive a signal at different times but must stop at the same step, so the votes of
        // all ranks decide.
        let mut agreed = None;
        for step in self.resumed_step.unwrap_or(0)..=last_step {
            let last = step == last_step;
            let alone = self.replica.zero.peers.process.world_size == 1;
            let stopped = if alone { stop.received() } else { agreed };
            if stopped.is_none() {
                self.evaluate(step, last)?;
            }
            self.checkpoint(step, last, stopped.is_some())?;
            if let Some(signal) = stopped {
                // A launcher ends all ranks when one exits with a signal's status, so wait until
                // rank 0 has written the checkpoint.
                self.replica.sum_over_ranks(&mut [0.0])?;
                self.warn_of_missing_trace();
                return Ok(Finish::Stopped(signal));
            }
            if !last && self.train(step, stop.received().is_some())? {
                agreed = Some(stop.received().unwrap_or(signal_hook::consts::SIGTERM));
            }
        }
        self.replica.finish_params()?;
        self.report.finish();
        Ok(Finish::Completed)
    }

    /// Runs one optimizer step. Returns whether any rank was asked to stop.
    fn train(&mut self, step: usize, stop: bool) -> Result<bool> {
        self.begin_trace(step)?;
        let Trainer { replica, data, guards, report, .. } = self;
        report.clock.go();
        data.begin_step();
        let (loss_scale, lr) = (guards.loss_scale(), self.schedule.lr(step));
        let Data { train, shape, grad_accum_steps, .. } = data;
        let stats =
            replica.forward_backward(|| train.next_batch(), *shape, *grad_accum_steps, loss_scale, stop)?;
        let elapsed = report.clock.lap();
        let (z, verdict) = guards.judge(&stats);
        match verdict {
            Verdict::Update => replica.update(step, lr, stats.norm, loss_scale)?,
            Verdict::Skip { outlier, z } => report.skipped(outlier, z),
            Verdict::Overflow { next_scale } => report.overflowed(next_scale),
            Verdict::Diverged => bail!(
                "step {}: loss is {} and gradient norm is {}; stopped before the update; a lower learning \
                 rate (-l) or more warm-up (-u) may help; checkpoints written before are complete",
                step + 1,
                stats.loss,
                stats.norm
            ),
        }
        report.step(StepRecord { step, stats, z, lr, elapsed, tokens: data.tokens_per_step })?;
        self.end_trace(step)?;
        self.report_gpu(step)?;
        Ok(stats.stop)
    }

    /// Prints the line of `-lg`, if it is due.
    fn report_gpu(&mut self, step: usize) -> Result<()> {
        let every = self.gpu_info_every;
        if every > 0 && (step + 1).is_multiple_of(every) {
            let state = self.replica.dev.gpu_state()?;
            self.report.console().line(state);
        }
        Ok(())
    }

    /// The directory that this process writes to: none unless it is rank 0.
    fn output_dir(&self) -> Option<&Path> {
        let rank0 = self.replica.zero.peers.process.is_rank0();
        self.files.output_dir.as_deref().filter(|_| rank0)
    }
}
