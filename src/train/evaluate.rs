//! Validation, HellaSwag and samples between steps.

use super::Trainer;
use super::stop::{CutShort, Work};
use crate::data::tokenizer::TextStream;
use crate::eval::hellaswag::{self, HellaSwagScore};
use crate::eval::validation::validation_loss;
use crate::parallel::environment::Process;
use crate::replica::Replica;
use crate::report::console::Console;
use crate::sample::{Continuation, Sampler, SamplerOptions, generate};
use anyhow::{Error, Result};
use std::io::Write;
use std::time::Instant;

/// llm.c's seed for samples.
const SAMPLE_SEED: u64 = 1337;

/// Runs an evaluation before a step.
type Evaluation = fn(&mut Trainer, usize) -> Result<()>;

impl Trainer {
    /// Runs the evaluations that are due before `step`. One that is cut short reports nothing; the
    /// run then stops at this step, and runs it again when it resumes.
    pub(super) fn evaluate(&mut self, step: usize, last: bool) -> Result<()> {
        let due = |every: usize, from_start: bool| {
            every > 0 && (last || step.is_multiple_of(every) && (from_start || step > 0))
        };
        let (val_every, sample_every) = (self.eval.val_loss_every, self.eval.sample_every);
        let evaluations: [(Work, bool, Evaluation); 3] = [
            (Work::Validation, due(val_every, true), Self::validate),
            (Work::HellaSwag, due(val_every, false), Self::score_hellaswag),
            (Work::Sample, due(sample_every, false), Self::sample),
        ];
        for (work, due, run) in evaluations {
            if !due || self.stop.agreed.is_some() {
                continue;
            }
            self.stop_clock()?;
            let start = Instant::now();
            match run(self, step).map_err(Error::downcast::<CutShort>) {
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
        if !loss.is_finite() {
            let text = format!("the validation loss is {loss}: the model has diverged, or -j is damaged");
            self.report.console().warning(text);
            return Ok(());
        }
        if step > 0 && self.best_val_loss.is_none_or(|best| loss < best) {
            self.best_val_loss = Some(loss);
            // The checkpoint from which the run resumed may lack this evaluation.
            self.saved_step = self.saved_step.filter(|&saved| saved != step);
            self.save_best()?;
        }
        Ok(())
    }

    /// Scores HellaSwag; each rank takes its share of the questions.
    fn score_hellaswag(&mut self, step: usize) -> Result<()> {
        let Some(questions) = &self.data.hellaswag else { return Ok(()) };
        let Replica { zero, dev, model, .. } = &mut self.replica;
        let Process { rank, world_size, .. } = zero.peers.process;
        let ranks = (rank, world_size);
        let mut progress = self.report.progress("HellaSwag", "examples");
        let hooks = &mut self.stop.together(Work::HellaSwag, zero, model);
        let show = &mut |done, total| progress.show(done, total);
        let own = hellaswag::evaluate(model, dev.as_mut(), hooks, questions, ranks, show)?;
        drop(progress);
        let HellaSwagScore { total, correct, correct_norm } = own.score();
        let mut counts = [total, correct, correct_norm, own.truncated].map(|count| count as f32);
        self.replica.sum_over_ranks(&mut counts)?;
        let [total, correct, correct_norm, truncated] = counts.map(|count| count as usize);
        self.report.hellaswag(step, HellaSwagScore { total, correct, correct_norm }, truncated)
    }

    /// Prints a sample. Each has its own seed, so that sampling does not change the run.
    fn sample(&mut self, step: usize) -> Result<()> {
        let Replica { zero, dev, model, decoder, .. } = &mut self.replica;
        let Some(decoder) = decoder else { return Ok(()) };
        let eval = &self.eval;
        let tokenizer = self.data.tokenizer.needed_for("-s", "-s 0")?;
        let text = eval.prompt.as_deref().unwrap_or_default();
        let prompt = tokenizer.encode(text);
        let mut sampler = Sampler::new(SamplerOptions {
            temperature: eval.sample_temperature,
            top_k: (eval.sample_top_k > 0).then_some(eval.sample_top_k),
            top_p: None,
            seed: SAMPLE_SEED + step as u64,
        })?;
        // As in llm.c, the length includes what the sample starts from: the prompt or
        // <|endoftext|>.
        let max_new = eval.sample_len.saturating_sub(prompt.len().max(1));
        let what = Continuation { prompt: &prompt, eot: tokenizer.eot(), max_new, kv_cache: true };
        let mut stream = TextStream::new();
        let console = self.report.console();
        // The prompt is shown with the first token, so that an error is not printed after it.
        let mut begun = false;
        let mut begin = |console: &mut Console<Box<dyn Write>>| {
            if !std::mem::replace(&mut begun, true) {
                console.sample_begin();
                console.sample_piece(text);
            }
        };
        let stop = &self.stop;
        let drawn = zero.on_rank0(dev.as_mut(), model, |dev, hooks| {
            let show = &mut |token| {
                begin(console);
                console.sample_piece(&stream.push(tokenizer.token_bytes(token).unwrap_or_default()));
                Ok(())
            };
            let hooks = &mut stop.alone(Work::Sample, hooks, model);
            generate(dev, hooks, decoder, &mut sampler, what, show).map(|_| ())
        });
        // Rank 0 alone knows; the ranks agree to stop before the next step.
        if let Err(error) = drawn
            && !error.is::<CutShort>()
        {
            return Err(error);
        }
        begin(console);
        console.sample_piece(&stream.finish());
        console.sample_end();
        Ok(())
    }
}
