//! From flags to the length of a run, the batch of each step, and the learning rate.

use super::check::micro_steps;
use super::flags::trainer::TrainArgs;
use crate::optim::batch::{BatchRamp, Batches};
use crate::optim::schedule::{COOLDOWN_FRAC, CooldownShape, Schedule, ScheduleKind, cooldown_steps};
use anyhow::{Result, ensure};

impl TrainArgs {
    pub(super) fn check_schedule(&self) -> Result<()> {
        let flags = &self.schedule;
        let lengths = [
            ("-u/--warmup-iters", flags.warmup_iters > 0),
            ("--warmup-tokens", flags.warmup_tokens.is_some()),
            ("--decay-steps", flags.decay_steps.is_some()),
            ("--decay-tokens", flags.decay_tokens.is_some()),
        ];
        if flags.lr_scheduler == ScheduleKind::Constant {
            for (flag, given) in lengths {
                ensure!(
                    !given,
                    "{flag}: -k constant has no warmup and does not decay; use -k wsd for a constant rate with \
                     warmup, or drop the flag"
                );
            }
            ensure!(
                flags.learning_rate_decay_frac == 1.0,
                "-q/--learning-rate-decay-frac: expected 1 with -k constant, which does not decay, found {}",
                flags.learning_rate_decay_frac
            );
        }
        let cooldown = [
            ("--cooldown-frac", flags.cooldown_frac.is_some()),
            ("--cooldown-steps", flags.cooldown_steps.is_some()),
            ("--cooldown-tokens", flags.cooldown_tokens.is_some()),
            ("--cooldown-shape", flags.cooldown_shape.is_some()),
        ];
        for (flag, given) in cooldown {
            ensure!(
                !given || flags.lr_scheduler == ScheduleKind::Wsd,
                "{flag}: only -k wsd cools down; expected that, found -k {}",
                flags.lr_scheduler
            );
        }
        self.check_ramp()
    }

    fn check_ramp(&self) -> Result<()> {
        let Some((from, tokens)) = self.schedule.batch_ramp else { return Ok(()) };
        let full = self.total_batch_tokens();
        ensure!(
            from < full,
            "--batch-ramp {from}:{tokens}: expected to begin below the total batch of {full} tokens (-d)"
        );
        let shape = (self.batch.batch_size, self.batch.sequence_length);
        micro_steps("--batch-ramp", from, shape, self.process.world_size).map(drop)
    }

    /// The batch of each step of a new run.
    pub fn batches(&self) -> Batches {
        let unit = self.micro_batch_tokens() * self.process.world_size;
        let ramp = self.schedule.batch_ramp.map(|(from, tokens)| BatchRamp { from, tokens, unit });
        Batches::new(self.total_batch_tokens(), ramp)
    }

    /// Optimizer steps of the run, over training data of `epoch_tokens` tokens.
    ///
    /// # Errors
    /// If the data decides the length and does not fill one step.
    pub fn train_steps(&self, epoch_tokens: u64, batches: &Batches) -> Result<usize> {
        if let Some(tokens) = self.schedule.train_tokens {
            return Ok(batches.steps_near(tokens as u64));
        }
        if let Ok(steps) = usize::try_from(self.batch.num_iterations) {
            return Ok(steps);
        }
        let steps = batches.steps_within(epoch_tokens.saturating_mul(self.batch.epochs.unwrap_or(1) as u64));
        ensure!(
            steps > 0,
            "-i/--input-bin: {} holds {epoch_tokens} tokens, expected at least the {} of one step; \
             lower -d, -b or -t, or give the number of steps with -x",
            self.files.input_bin,
            batches.first()
        );
        Ok(steps)
    }

    /// The learning-rate schedule of a run of `total_steps`.
    ///
    /// # Errors
    /// If there is no room for the cooldown.
    pub fn schedule(&self, total_steps: usize, batches: &Batches) -> Result<Schedule> {
        let flags = &self.schedule;
        let near = |tokens: usize| batches.steps_near(tokens as u64);
        let warmup = flags.warmup_tokens.map_or(flags.warmup_iters, near);
        let decay_steps = flags.decay_steps.or(flags.decay_tokens.map(near)).unwrap_or(total_steps);
        let before_end = |tokens: usize| {
            let start = batches.tokens_before(decay_steps).saturating_sub(tokens as u64);
            decay_steps - if start == 0 { 0 } else { batches.steps_near(start).min(decay_steps) }
        };
        let asked = flags.cooldown_steps.or(flags.cooldown_tokens.map(before_end));
        if let Some(steps) = asked {
            let (room, unit) =
                (decay_steps.saturating_sub(warmup), if steps == 1 { "step" } else { "steps" });
            ensure!(
                steps <= room,
                "--cooldown-{}: expected at most the {room} steps from warm-up to the end of the curve, found \
                 {steps} {unit}",
                if flags.cooldown_steps.is_some() { "steps" } else { "tokens" },
            );
        }
        let by_frac = || cooldown_steps(flags.cooldown_frac.unwrap_or(COOLDOWN_FRAC), decay_steps);
        let cooldown = asked.unwrap_or_else(by_frac).max(decay_steps.min(1));
        let shape = flags.cooldown_shape.unwrap_or(CooldownShape::OneMinusSqrt);
        Ok(Schedule {
            kind: flags.lr_scheduler,
            max_lr: flags.learning_rate,
            warmup,
            total_steps,
            decay_steps,
            final_frac: flags.learning_rate_decay_frac,
            cooldown: (cooldown, shape),
        })
    }
}
