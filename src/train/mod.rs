//! The training run: set up, then evaluate, sample, checkpoint and train step by step, until it is
//! done, asked to stop, or diverges.

mod checkpoints;
pub mod clock;
mod consistency;
mod data;
mod early_stop;
mod evaluate;
mod fit;
mod forward_only;
mod guards;
mod hunt;
mod lora;
pub mod memory;
pub mod parity;
pub mod plan;
mod profile;
mod report;
mod rescue;
pub mod resume;
mod rollback;
mod sample;
mod setup;
pub mod signals;
mod stop;
mod summary;
mod tensors;
mod tokenizer;
mod tracking;

pub use setup::fetch_model;

use crate::cli::flags::trainer::{EvalFlags, FileFlags, TrainArgs};
use crate::files::lock::DirLock;
use crate::model::dropout;
use crate::ops::Ops;
use crate::optim::schedule::Schedule;
use crate::replica::Replica;
use crate::replica::peers::Peers;
use crate::replica::step::StepStats;
use crate::report::jsonl::End;
use crate::track::Follower;
use anyhow::{Result, bail, ensure};
use checkpoints::CheckpointWriter;
use data::Data;
use early_stop::Patience;
use guards::{Guards, Verdict};
use hunt::Hunt;
use memory::MemoryMeter;
use profile::Profiler;
use report::{Report, StepRecord};
use rescue::Progress;
use resume::Settings;
use rollback::Rollbacks;
use signals::Doing;
use std::path::Path;
use stop::{Reason, Stop, Work};

/// The end of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    Completed,
    /// Stopped by this signal.
    Stopped(i32),
    /// Stopped because `--max-hours` were over.
    TimeUp,
}

impl From<Reason> for Finish {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Signal(signal) => Finish::Stopped(signal),
            Reason::TimeUp => Finish::TimeUp,
        }
    }
}

/// A training run, ready for its next step. [`setup`] builds it.
struct Trainer {
    replica: Replica,
    data: Data,
    guards: Guards,
    schedule: Schedule,
    seed: u32,
    /// The model that adapters belong to, as PEFT finds it; unused without adapters.
    base_model: String,
    report: Report,
    memory: MemoryMeter,
    stop: Stop,
    files: FileFlags,
    eval: EvalFlags,
    /// Steps between scores of tasks; 0 for none.
    tasks_every: usize,
    /// Steps between reports on the GPU; 0 for none.
    gpu_info_every: usize,
    /// The step of the checkpoint that the run resumed from.
    resumed_step: Option<usize>,
    /// The step of the newest checkpoint of this run.
    saved_step: Option<usize>,
    progress: Progress,
    settings: Settings,
    hunt: Hunt,
    rollbacks: Rollbacks,
    /// Lowest validation loss so far: that of `model_best.bin`.
    best_val_loss: Option<f32>,
    patience: Patience,
    /// `None` if nothing is profiled.
    profiler: Option<Profiler>,
    /// Only on a rank with an output directory, which it has locked.
    writer: Option<CheckpointWriter>,
    lock: Option<DirLock>,
    trackers: Vec<Follower>,
}

/// Trains as the flags say. With `-b auto` each rank may take `room` bytes, and all have the same.
///
/// # Errors
/// On bad input, on a failing disk or peer, or when the loss stops being finite. Checkpoints
/// already written stay, and the last good step is written if its state is whole.
pub fn run(args: &TrainArgs, dev: Box<dyn Ops>, peers: Peers, room: Option<u64>) -> Result<Finish> {
    let mut trainer = setup::set_up(args, dev, peers, room)?;
    if args.compat.write_tensors {
        trainer.write_tensors(args)?;
    }
    let finish = if args.compat.inference_only { trainer.run_forward_only() } else { trainer.run() };
    if finish.is_err() {
        trainer.rescue();
    }
    trainer.end(&finish);
    finish
}

impl Trainer {
    fn run(&mut self) -> Result<Finish> {
        let last_step = self.schedule.total_steps;
        let mut step = self.first_step();
        loop {
            let last = step == last_step;
            self.evaluate(step, last)?;
            let last = last || self.stops_early();
            self.checkpoint(step, last, false)?;
            if last && self.stop.agreed.is_none() {
                break;
            }
            self.agree()?;
            if let Some(reason) = self.stop.agreed {
                // Otherwise a job that is queued again and again would never end.
                let idle = reason == Reason::TimeUp && step == self.first_step();
                ensure!(!idle, "--max-hours: too short for a single step; raise it");
                self.checkpoint(step, last, true)?;
                return self.stopped(step, reason);
            }
            step = self.profiled(step, |trainer| trainer.train(step))?;
        }
        self.replica.finish_params()?;
        if self.stops_early() {
            self.say_early_stop(step);
        }
        self.conclude();
        self.summarize();
        Ok(Finish::Completed)
    }

    /// Runs one optimizer step, and returns the next one.
    fn train(&mut self, step: usize) -> Result<usize> {
        self.begin_progress(step);
        self.stop.signals.note(Doing::Step(step + 1));
        let Trainer { replica, data, guards, report, stop, hunt, memory, .. } = self;
        report.clock.go();
        data.begin_step();
        let (loss_scale, lr) = (guards.loss_scale(), self.schedule.lr(step));
        let grad_accum_steps = data.grad_accum_steps(step);
        let counted = data.counted(grad_accum_steps);
        let Data { train, shape, .. } = data;
        hunt.begin_step(replica);
        replica.dropout_key = Some(dropout::key(self.seed, step));
        let vote = || stop.vote(stop.end_of(Work::Step));
        let next_batch = || train.next_batch();
        let stats =
            replica.forward_backward(next_batch, *shape, grad_accum_steps, counted, loss_scale, vote)?;
        let elapsed = report.clock.lap();
        stop.measured(Work::Step, elapsed);
        stop.decide(stats.votes);
        let (z, verdict) = guards.judge(&stats);
        match verdict {
            Verdict::Update => {}
            Verdict::Skip { outlier, z } => report.skipped(outlier, z),
            Verdict::Overflow { next_scale } => report.overflowed(next_scale, hunt.found(replica)),
            Verdict::Diverged => return self.diverged(step, stats, loss_scale),
        }
        hunt.ensure_finite(replica, step)?;
        // Before the update: if the logs cannot be written, the step can be repeated.
        let memory = memory.measure(replica.dev.as_mut());
        report.step(StepRecord { step, stats, z, lr, elapsed, memory }, &data.batches)?;
        self.progress = Progress::Lost;
        if verdict == Verdict::Update {
            self.replica.update(step, lr, stats.norm, loss_scale)?;
        }
        self.hunt.ensure_finite(&self.replica, step)?;
        self.progress = Progress::Before(step + 1);
        self.report_gpu(step)?;
        Ok(step + 1)
    }

    /// Ends a run whose loss or norm is not finite, or goes back to a checkpoint, whose step it
    /// returns.
    fn diverged(&mut self, step: usize, stats: StepStats, loss_scale: f32) -> Result<usize> {
        let first = match std::mem::replace(&mut self.progress, Progress::Lost) {
            Progress::Within(_, undo) => self.hunt(step, &undo.place, loss_scale)?,
            Progress::Before(_) | Progress::Lost => unreachable!("a step has begun"),
        };
        let (number, StepStats { loss, norm, .. }) = (step + 1, stats);
        let what =
            format!("step {number}: loss is {loss} and gradient norm is {norm}; first not finite: {first}");
        match self.roll_back(step, &what)? {
            Some(back) => Ok(back),
            None => {
                self.finish_checkpoint()?;
                let dir = self.files.output_dir.as_deref();
                let kept = dir.map_or("without -o nothing was saved".to_owned(), rescue::newest);
                bail!(
                    "{what}; stopped before the update; a lower learning rate (-l) or more warm-up (-u) may help; \
                     {kept}"
                )
            }
        }
    }

    /// Asks all ranks whether to stop before the next step. They have voted in the last step; after
    /// other work, and where there is no other rank to wait for, they vote again.
    fn agree(&mut self) -> Result<()> {
        let alone = self.replica.zero.peers.process.world_size == 1;
        if alone || self.report.clock.is_stopped() {
            let mut votes = [self.stop.vote(self.stop.end_of(Work::Step))];
            self.replica.sum_over_ranks(&mut votes)?;
            self.stop.decide(votes[0]);
        }
        Ok(())
    }

    /// Ends a run before its last step, and says how to go on.
    fn stopped(&mut self, step: usize, reason: Reason) -> Result<Finish> {
        // A launcher ends all ranks when one exits with a failure, so wait until rank 0 has written
        // the checkpoint.
        self.replica.sum_over_ranks(&mut [0.0])?;
        self.conclude();
        if self.replica.zero.peers.process.is_rank0() {
            self.stop.say_how_to_go_on(step, reason, self.files.resume);
        }
        Ok(reason.into())
    }

    /// Reports the mean time of a step, and the memory of the run against its plan. Ranks that are
    /// silent otherwise log theirs.
    fn conclude(&mut self) {
        let memory = self.memory.conclude(self.replica.dev.as_mut());
        if !self.replica.zero.peers.process.is_rank0() {
            log::info!("{memory}");
        }
        self.report.finish(&memory);
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

    /// Writes the end of the run to the log, and waits some seconds until the trackers have it.
    fn end(&mut self, finish: &Result<Finish>) {
        self.finish_profile();
        let end = match finish {
            Ok(Finish::Completed) => End::Completed,
            Ok(Finish::Stopped(_) | Finish::TimeUp) => End::Stopped,
            Err(_) => End::Failed,
        };
        // A log that cannot be written has ended the run already, or ends nothing any more.
        if let Err(error) = self.report.end(end) {
            log::warn!("{error:#}");
        }
        for message in self.trackers.drain(..).filter_map(Follower::finish) {
            log::warn!("{message}");
        }
    }

    /// The first step of this process.
    fn first_step(&self) -> usize {
        self.resumed_step.unwrap_or(0)
    }

    /// The directory that this process writes to: none unless it is rank 0.
    fn output_dir(&self) -> Option<&Path> {
        let rank0 = self.replica.zero.peers.process.is_rank0();
        self.files.output_dir.as_deref().filter(|_| rank0)
    }
}
