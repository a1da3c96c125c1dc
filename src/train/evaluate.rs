//! Validation, tasks and samples between steps.

use super::Trainer;
use super::report::Report;
use super::stop::{CutShort, Stop, Work};
use crate::eval::tasks::{self, Questions, Score};
use crate::eval::validation::validation_loss;
use crate::parallel::environment::Process;
use crate::replica::Replica;
use anyhow::{Error, Result};
use std::time::Instant;

/// Runs an evaluation before a step.
type Evaluation = fn(&mut Trainer, usize) -> Result<()>;

impl Trainer {
    /// Runs the evaluations that are due before `step`. One that is cut short reports nothing; the
    /// run then stops at this step, and runs it again when it resumes.
    pub(super) fn evaluate(&mut self, step: usize, last: bool) -> Result<()> {
        let (val_every, sample_every) = (self.eval.val_loss_every, self.eval.sample_every);
        // Profilers show what is due, so what has nothing to evaluate must not be.
        let if_any = |any: bool| if any { val_every } else { 0 };
        let evaluations: [(Work, usize, Evaluation); 4] = [
            (Work::Validation, if_any(self.data.val.is_some()), Self::validate),
            (Work::HellaSwag, if_any(self.data.hellaswag.is_some()), Self::score_hellaswag),
            (Work::Tasks, self.tasks_every, Self::score_tasks),
            (Work::Sample, sample_every, Self::sample),
        ];
        for (work, every, run) in evaluations {
            let from_start = work == Work::Validation;
            // The validation may have made this step the last.
            let last = last || self.stops_early();
            let due = every > 0 && (last || step.is_multiple_of(every) && (from_start || step > 0));
            if !due || self.stop.agreed.is_some() {
                continue;
            }
            self.stop_clock()?;
            let start = Instant::now();
            let done = self.between(work.name().trim_start_matches("the "), |trainer| run(trainer, step));
            match done.map_err(Error::downcast::<CutShort>) {
                Ok(()) => self.stop.measured(work, start.elapsed()),
                Err(Ok(CutShort(reason))) => self.stop.agreed = Some(reason),
                Err(Err(error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// Excludes the work that follows from the time of a step.
    pub(super) fn stop_clock(&mut self) -> Result<()> {
        self.report.clock.stop(self.replica.dev.as_mut())
    }

    fn validate(&mut self, step: usize) -> Result<()> {
        let Some(loader) = &mut self.data.val else { return Ok(()) };
        let Replica { zero, dev, model, .. } = &mut self.replica;
        let batches = usize::try_from(self.eval.val_max_steps).ok();
        let mut progress = self.report.progress("validation", "batches");
        let hooks = &mut self.stop.together(Work::Validation, zero, model);
        let (shape, show) = (self.data.shape, &mut |done, total| progress.show(done, total));
        let own = validation_loss(model, dev.as_mut(), hooks, loader, shape, batches, show)?;
        drop(progress);
        let mut loss = [own];
        self.replica.sum_over_ranks(&mut loss)?;
        let [loss] = loss;
        self.report.validation(step, loss)?;
        let is_best = loss.is_finite() && step > 0 && self.best_val_loss.is_none_or(|best| loss < best);
        self.patience.note(step, is_best);
        if !loss.is_finite() {
            let text = format!("the validation loss is {loss}: the model has diverged, or -j is damaged");
            self.report.console().warning(text);
            return Ok(());
        }
        if is_best {
            self.best_val_loss = Some(loss);
            // The checkpoint from which the run resumed may lack this evaluation.
            self.saved_step = self.saved_step.filter(|&saved| saved != step);
            self.save_best()?;
        }
        Ok(())
    }

    fn score_hellaswag(&mut self, step: usize) -> Result<()> {
        let Some(questions) = &self.data.hellaswag else { return Ok(()) };
        let (score, truncated) =
            score(questions, Work::HellaSwag, &mut self.replica, &self.stop, &self.report)?;
        self.report.hellaswag(step, score, truncated)
    }

    fn score_tasks(&mut self, step: usize) -> Result<()> {
        for questions in &self.data.tasks {
            let (score, truncated) =
                score(questions, Work::Tasks, &mut self.replica, &self.stop, &self.report)?;
            self.report.task(step, questions.task, score, truncated)?;
        }
        Ok(())
    }
}

/// Scores a task; each rank takes its share of the questions. Returns the score over all of them
/// and how many were cut.
fn score(
    questions: &Questions,
    work: Work,
    replica: &mut Replica,
    stop: &Stop,
    report: &Report,
) -> Result<(Score, usize)> {
    let Replica { zero, dev, model, .. } = &mut *replica;
    let Process { rank, world_size, .. } = zero.peers.process;
    let ranks = (rank, world_size);
    let mut progress = report.progress(questions.task.title(), "examples");
    let hooks = &mut stop.together(work, zero, model);
    let show = &mut |done, total| progress.show(done, total);
    let own = tasks::evaluate(model, dev.as_mut(), hooks, questions, ranks, show)?;
    drop(progress);
    let Score { total, correct, correct_norm, nats, guessed } = own.score();
    let counts = [total, correct, correct_norm, own.truncated].map(|count| count as f32);
    let mut sums = [counts[0], counts[1], counts[2], counts[3], nats as f32, guessed as f32];
    replica.sum_over_ranks(&mut sums)?;
    let [total, correct, correct_norm, truncated, nats, guessed] = sums;
    let [total, correct, correct_norm, truncated] =
        [total, correct, correct_norm, truncated].map(|count| count as usize);
    let (nats, guessed) = (nats.into(), guessed.into());
    Ok((Score { total, correct, correct_norm, nats, guessed }, truncated))
}
