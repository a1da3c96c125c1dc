//! The total batch of each step: constant, or raised from a small one at the start of the run
//! (Brown et al. 2020, arXiv:2005.14165, appendix B). Pure functions of the step, in whole numbers,
//! so that all ranks and all resumed runs agree.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A batch that grows linearly with the tokens that were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchRamp {
    /// Tokens of the first step.
    pub from: usize,
    /// Tokens after which the batch is the full one.
    pub tokens: usize,
    /// The batch grows in multiples of this many tokens: B*T*processes at the start of the run.
    pub unit: usize,
}

/// Consecutive steps of the same batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Level {
    first_step: usize,
    /// Tokens of all steps before the first.
    before: u64,
    /// Tokens per step.
    batch: usize,
}

/// The tokens of every step of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batches {
    ramp: Option<BatchRamp>,
    /// In order; the last one, of the full batch, has no end.
    levels: Vec<Level>,
}

impl Batches {
    /// `full` tokens per step, after the ramp if there is one, whose first batch is at most `full`.
    pub fn new(full: usize, ramp: Option<BatchRamp>) -> Self {
        let mut levels = Vec::new();
        let (mut first_step, mut before) = (0, 0u64);
        if let Some(BatchRamp { from, tokens, unit }) = ramp {
            let (rise, units) = ((full - from) as u128, tokens as u128 * unit as u128);
            while before < tokens as u64 && rise > 0 {
                let risen = u128::from(before) * rise / units;
                // The batch rises again at the first step that begins here or later.
                let end = ((risen + 1) * units).div_ceil(rise).min(tokens as u128) as u64;
                let batch = from + risen as usize * unit;
                levels.push(Level { first_step, before, batch });
                let steps = (end - before).div_ceil(batch as u64);
                first_step += steps as usize;
                before += steps * batch as u64;
            }
        }
        levels.push(Level { first_step, before, batch: full });
        Batches { ramp, levels }
    }

    pub fn ramp(&self) -> Option<&BatchRamp> {
        self.ramp.as_ref()
    }

    /// Tokens of the largest step.
    pub fn full(&self) -> usize {
        self.levels[self.levels.len() - 1].batch
    }

    /// Tokens of the first step.
    pub fn first(&self) -> usize {
        self.levels[0].batch
    }

    /// The first step that has the full batch.
    pub fn end_of_ramp(&self) -> usize {
        self.levels[self.levels.len() - 1].first_step
    }

    /// Tokens of `step`, which counts from 0.
    pub fn tokens(&self, step: usize) -> usize {
        self.level(|level| level.first_step <= step).batch
    }

    /// Tokens of all steps before `step`.
    pub fn tokens_before(&self, step: usize) -> u64 {
        let level = self.level(|level| level.first_step <= step);
        level.before + (step - level.first_step) as u64 * level.batch as u64
    }

    /// Most steps that read at most `tokens`.
    pub fn steps_within(&self, tokens: u64) -> usize {
        let level = self.level(|level| level.before <= tokens);
        level.first_step + ((tokens - level.before) / level.batch as u64) as usize
    }

    /// The number of steps that read `tokens`, to the nearest step, at least one.
    pub fn steps_near(&self, tokens: u64) -> usize {
        let below = self.steps_within(tokens);
        let short = tokens - self.tokens_before(below);
        let nearest = if 2 * short >= self.tokens(below) as u64 { below + 1 } else { below };
        nearest.max(1)
    }

    /// The last level of those, from the first on, for which `is_begun` holds.
    fn level(&self, is_begun: impl Fn(&Level) -> bool) -> Level {
        self.levels[self.levels.partition_point(is_begun) - 1]
    }
}

impl fmt::Display for Batches {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.ramp {
            Some(BatchRamp { from, tokens, unit }) => {
                write!(f, "{from} to {} tokens by {unit}, over {tokens}", self.full())
            }
            None => write!(f, "{} tokens", self.full()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, step by step: the line from the first to the full batch, rounded down.
    fn by_definition(full: usize, ramp: BatchRamp, steps: usize) -> Vec<(u64, usize)> {
        let mut before = 0u64;
        let mut step = || {
            let progress = (before as usize).min(ramp.tokens);
            let risen = (full - ramp.from) as u128 * progress as u128 / ramp.tokens as u128;
            let batch = match before as usize >= ramp.tokens {
                true => full,
                false => ramp.from + risen as usize / ramp.unit * ramp.unit,
            };
            before += batch as u64;
            (before - batch as u64, batch)
        };
        (0..steps).map(|_| step()).collect()
    }

    #[test]
    fn a_ramp_is_a_line_rounded_down_to_micro_steps() {
        for (full, from, tokens, unit) in [
            (512, 32, 10_000, 32),
            (512, 32, 1, 32),
            (96, 96, 5000, 32),
            (128, 32, 4096, 96),
            (1 << 10, 1 << 6, 123_457, 1 << 5),
            (480, 32, 333, 32),
        ] {
            let ramp = BatchRamp { from, tokens, unit };
            let batches = Batches::new(full, Some(ramp));
            let steps = batches.end_of_ramp() + 5;
            for (step, (before, batch)) in by_definition(full, ramp, steps).into_iter().enumerate() {
                assert_eq!((batches.tokens_before(step), batches.tokens(step)), (before, batch), "{step}");
                assert_eq!(batches.steps_within(before), step);
                assert_eq!(batches.steps_within(before + batch as u64 - 1), step);
                assert_eq!(batches.steps_near(before + batch as u64 / 2), step + 1);
                assert_eq!(batches.steps_near(before + (batch as u64 - 1) / 2), step.max(1));
            }
            assert_eq!((batches.first(), batches.full()), (if full == from { full } else { from }, full));
            assert!(batches.tokens(batches.end_of_ramp()) == full);
        }
    }

    #[test]
    fn without_a_ramp_every_step_is_alike() {
        let batches = Batches::new(524_288, None);
        assert_eq!(
            (batches.tokens(0), batches.tokens(1 << 30), batches.end_of_ramp()),
            (524_288, 524_288, 0)
        );
        // GPT-3's 300, 260 and 0.375 billion tokens.
        let steps = [300_000_000_000, 260_000_000_000, 375_000_000].map(|tokens| batches.steps_near(tokens));
        assert_eq!(steps, [572_205, 495_911, 715]);
        assert_eq!(batches.steps_within(300_000_000_000), 572_204);
    }

    #[test]
    fn gpt3_reaches_its_batch_after_4_billion_tokens() {
        let ramp = BatchRamp { from: 32_768, tokens: 4_000_000_000, unit: 32_768 };
        let batches = Batches::new(524_288, Some(ramp));
        let end = batches.end_of_ramp();
        assert!((4_000_000_000..4_000_524_288).contains(&batches.tokens_before(end)));
        // Half of the line is a batch of 278,528; the batches are rounded down by half a unit.
        let middle = batches.tokens(batches.steps_within(2_000_000_000));
        assert_eq!(middle, 262_144);
    }
}
