//! `--inference_only 1`: forward passes alone, timed and reported as `train_gpt2.py` does.

use super::rescue::Progress;
use super::signals::Doing;
use super::stop::Work;
use super::{Finish, Trainer};
use crate::data::loader::DataLoader;
use anyhow::Result;
use std::time::Duration;

/// The number of steps at the end whose mean time is reported.
const TIMED: usize = 20;

impl Trainer {
    /// Runs all steps and the evaluations that are due. Nothing is updated or saved.
    pub(super) fn run_forward_only(&mut self) -> Result<Finish> {
        // There is no state to save after an error.
        self.progress = Progress::Lost;
        let (first, last) = (self.first_step(), self.schedule.total_steps);
        let mut times = Vec::new();
        for step in first..=last {
            self.evaluate(step, step == last)?;
            self.agree()?;
            if let Some(reason) = self.stop.agreed {
                return Ok(reason.into());
            }
            if step < last {
                let elapsed = self.profiled(step, |trainer| trainer.time_forward(step))?;
                // The first step is slower.
                times.extend((step > first && step + TIMED > last).then_some(elapsed));
            }
        }
        let peak = self.memory.peak(self.replica.dev.as_mut());
        self.report.finish_forward_only(&times, peak);
        Ok(Finish::Completed)
    }

    fn time_forward(&mut self, step: usize) -> Result<Duration> {
        self.stop.signals.note(Doing::Step(step + 1));
        let Trainer { replica, data, report, stop, memory, .. } = self;
        report.clock.go();
        data.begin_step();
        let (shape, accumulated) = (data.shape, data.grad_accum_steps(step));
        let counted = data.counted(accumulated);
        let next_batch = || DataLoader::next_batch(&mut data.train);
        let vote = || stop.vote(stop.end_of(Work::Step));
        let stats = replica.forward_only(next_batch, shape, accumulated, counted, vote)?;
        let elapsed = report.clock.lap();
        stop.measured(Work::Step, elapsed);
        stop.decide(stats.votes);
        let (lr, memory) = (self.schedule.lr(step), memory.measure(replica.dev.as_mut()));
        report.forward_only(step, stats.loss, lr, elapsed, &data.batches, memory)?;
        Ok(elapsed)
    }
}
