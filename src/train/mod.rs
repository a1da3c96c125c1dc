//! The training run: set up, then step by step evaluate, sample, checkpoint, train; until done, told to stop, or wrong.

pub mod clock;
mod consistency;
pub mod logs;
pub mod peers;
pub mod resume;
pub mod setup;
pub mod signals;
pub mod step;
pub mod zero;

use crate::cli::flags::trainer::TrainArgs;
use crate::data::loader::DataLoader;
use crate::data::tokenizer::{self, TextStream, encode_ordinary};
use crate::eval::hellaswag::{self, HellaSwag, HellaSwagScore};
use crate::eval::validation::validation_loss;
use crate::model::decode::Decoder;
use crate::model::{BatchShape, GPT2};
use crate::ops::Ops;
use crate::optim::loss_scale::LossScale;
use crate::optim::optimizer::Optimizer;
use crate::optim::outlier::{OutlierDetector, is_outlier};
use crate::optim::schedule::Schedule;
use crate::parallel::environment::Process;
use crate::sample::{Continuation, Sampler, SamplerOptions, generate};
use anyhow::Result;
use clock::StepClock;
use logs::{Logs, StepRecord};
use peers::Peers;
use signals::StopSignal;
use std::path::PathBuf;
use step::{LossAndNorm, Step};
use zero::ZeroState;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    Completed,
    /// By this signal, after the step it arrived in.
    Stopped(i32),
}

/// Everything a run needs. [`setup`] builds it.
pub struct Run {
    // Before the device, in whose memory sums may be under way.
    pub zero: ZeroState,
    pub dev: Box<dyn Ops>,
    pub model: GPT2,
    pub optimizer: Optimizer,
    pub train_loader: DataLoader,
    pub val_loader: Option<DataLoader>,
    pub schedule: Schedule,
    pub shape: BatchShape,
    pub grad_accum_steps: usize,
    pub first_step: usize,
    /// Whether `first_step` comes from a checkpoint.
    pub resumed: bool,
    pub max_steps: usize,
    pub decoder: Option<Decoder>,
    pub hellaswag: Option<HellaSwag>,
    pub loss_outliers: OutlierDetector,
    pub norm_outliers: OutlierDetector,
    /// Only for parameters of fp16.
    pub loss_scale: Option<LossScale>,
    /// Lowest validation loss so far, and so the one of `model_best.bin`.
    pub best_val_loss: Option<f32>,
    pub logs: Logs,
    pub clock: StepClock,
    /// Where this process writes: nowhere unless it is the master.
    pub output_dir: Option<PathBuf>,
    pub args: TrainArgs,
}

/// Trains as the flags say.
///
/// # Errors
/// On bad input, on a failing disk, or when the loss stops being a number. Checkpoints written before stay.
pub fn run(args: &TrainArgs, dev: Box<dyn Ops>, peers: Peers) -> Result<Finish> {
    let stop = StopSignal::listen()?;
    let mut run = setup::set_up(args, dev, peers)?;
    // Ranks hear of a signal at different times, and all must stop at the same step: the step tells.
    let mut agreed = None;
    for step in run.first_step..=run.max_steps {
        let last = step == run.max_steps;
        let stopped = if run.zero.peers.process.world_size == 1 { stop.received() } else { agreed };
        if stopped.is_none() {
            run.evaluate(step, last)?;
        }
        run.checkpoint(step, last, stopped.is_some())?;
        if let Some(signal) = stopped {
            // Launchers end all others when one ends with a signal's status: not before the master has written.
            let Run { zero, dev, model, .. } = &mut run;
            zero.peers.sum(dev.as_mut(), model, &mut [0.0])?;
            return Ok(Finish::Stopped(signal));
        }
        if !last && run.train(step, stop.received().is_some())? {
            agreed = Some(stop.received().unwrap_or(signal_hook::consts::SIGTERM));
        }
    }
    run.zero.finish_params(run.dev.as_mut())?;
    run.logs.finish();
    Ok(Finish::Completed)
}

impl Run {
    /// One optimizer step. Returns whether any rank was asked to stop.
    fn train(&mut self, step: usize, stop: bool) -> Result<bool> {
        self.clock.go();
        if self.args.batch.overfit_single_batch {
            self.train_loader.reset();
        }
        let loss_scale = self.loss_scale.map_or(1.0, |scale| scale.get());
        let mut work = Step {
            dev: self.dev.as_mut(),
            model: &self.model,
            optimizer: &self.optimizer,
            zero: &mut self.zero,
            shape: self.shape,
            grad_accum_steps: self.grad_accum_steps,
        };
        let LossAndNorm { loss, norm, stop } =
            work.forward_backward(&mut self.train_loader, loss_scale, stop)?;
        let elapsed = self.clock.lap();
        let lr = self.schedule.lr(step);
        let z = (self.loss_outliers.score(loss), self.norm_outliers.score(norm));
        let overflowed =
            loss.is_finite() && self.loss_scale.as_mut().is_some_and(|scale| !scale.accept(norm));
        if !overflowed {
            self.logs.check_finite(step, loss, norm)?;
        }
        if let Some(scale) = self.loss_scale.filter(|_| overflowed) {
            self.logs.overflowed(scale.get());
        } else if is_outlier(z.0, self.args.optim.skip_update_lossz) {
            self.logs.skipped("loss", z.0);
            self.loss_outliers.reject(loss);
        } else if is_outlier(z.1, self.args.optim.skip_update_gradz) {
            self.logs.skipped("gradient", z.1);
            self.norm_outliers.reject(norm);
        } else {
            self.loss_outliers.accept(loss);
            self.norm_outliers.accept(norm);
            work.update(step, lr, norm, loss_scale)?;
        }
        let tokens = self.args.total_batch_tokens();
        self.logs.step(StepRecord { step, loss, norm, z, lr, elapsed, tokens })?;
        self.report_gpu(step)?;
        Ok(stop)
    }

    /// The line of `-lg`.
    fn report_gpu(&mut self, step: usize) -> Result<()> {
        let every = self.args.gpu.gpu_info_every;
        if every > 0 && (step + 1).is_multiple_of(every) {
            let state = self.dev.gpu_state()?;
            self.logs.console().line(state);
        }
        Ok(())
    }

    /// Validation, HellaSwag and a sample, each at its own steps.
    fn evaluate(&mut self, step: usize, last: bool) -> Result<()> {
        let due = |every: usize, from_start: bool| {
            every > 0 && (last || step.is_multiple_of(every) && (from_start || step > 0))
        };
        if due(self.args.eval.val_loss_every, true) {
            self.clock.stop(self.dev.as_mut())?;
            self.validate(step)?;
        }
        if due(self.args.eval.val_loss_every, false) {
            self.clock.stop(self.dev.as_mut())?;
            self.score_hellaswag(step)?;
        }
        if due(self.args.eval.sample_every, false) {
            self.clock.stop(self.dev.as_mut())?;
            self.sample(step)?;
        }
        Ok(())
    }

    fn validate(&mut self, step: usize) -> Result<()> {
        let Some(loader) = &mut self.val_loader else { return Ok(()) };
        let batches = usize::try_from(self.args.eval.val_max_steps).ok();
        let part =
            validation_loss(&self.model, self.dev.as_mut(), &mut self.zero, loader, self.shape, batches)?;
        let mut loss = [part];
        self.zero.peers.sum(self.dev.as_mut(), &self.model, &mut loss)?;
        let [loss] = loss;
        self.logs.validation(step, loss)?;
        if step > 0 && self.best_val_loss.is_none_or(|best| loss < best) {
            self.best_val_loss = Some(loss);
            self.save_best()?;
        }
        Ok(())
    }

    /// Each rank has its part of the questions.
    fn score_hellaswag(&mut self, step: usize) -> Result<()> {
        let Some(questions) = &self.hellaswag else { return Ok(()) };
        let Process { rank, world_size, .. } = self.zero.peers.process;
        let (dev, hooks, progress) = (self.dev.as_mut(), &mut self.zero, &mut |_, _| {});
        let part = hellaswag::evaluate(&self.model, dev, hooks, questions, (rank, world_size), progress)?;
        let HellaSwagScore { total, correct, correct_norm } = part.score();
        let mut counts = [total, correct, correct_norm, part.truncated].map(|count| count as f32);
        self.zero.peers.sum(dev, &self.model, &mut counts)?;
        let [total, correct, correct_norm, truncated] = counts.map(|count| count as usize);
        self.logs.hellaswag(step, HellaSwagScore { total, correct, correct_norm }, truncated)
    }

    /// Writes some text. Each sample has a seed of its own, so that sampling leaves no trace in the run.
    fn sample(&mut self, step: usize) -> Result<()> {
        let Some(decoder) = &mut self.decoder else { return Ok(()) };
        let vocabulary = tokenizer::Vocabulary::gpt2();
        let prompt = self.args.eval.prompt.as_deref().unwrap_or_default();
        let prompt: Vec<i32> = encode_ordinary(prompt).into_iter().map(i32::from).collect();
        let mut sampler = Sampler::new(SamplerOptions {
            temperature: self.args.eval.sample_temperature,
            top_k: (self.args.eval.sample_top_k > 0).then_some(self.args.eval.sample_top_k),
            top_p: None,
            seed: SAMPLE_SEED + step as u64,
        })?;
        // As in llm.c, the length counts what the sample starts from, a prompt or one <|endoftext|>.
        let max_new = self.args.eval.sample_len.saturating_sub(prompt.len().max(1));
        let what = Continuation { prompt: &prompt, max_new, kv_cache: true };
        let mut text = TextStream::new();
        let console = self.logs.console();
        console.sample_begin();
        console.sample_piece(self.args.eval.prompt.as_deref().unwrap_or_default());
        self.zero.on_rank0(self.dev.as_mut(), &self.model, |dev, hooks| {
            let show = &mut |token| {
                console.sample_piece(&text.push(vocabulary.token_bytes(token).unwrap_or_default()));
                Ok(())
            };
            generate(dev, hooks, decoder, &mut sampler, what, show).map(|_| ())
        })?;
        console.sample_piece(&text.finish());
        console.sample_end();
        Ok(())
    }
}

/// llm.c's seed for samples.
const SAMPLE_SEED: u64 = 1337;
