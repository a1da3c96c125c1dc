//! Learning-rate schedules: a pure function of the step.
//!
//! The arithmetic is `f32` in the order llm.c does it, so that the two print and use the same rates bit for bit.

use std::fmt;
use std::str::FromStr;

/// The shape of the curve after warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScheduleKind {
    /// Half a cosine down to the final rate.
    Cosine,
    /// A straight line down to the final rate.
    Linear,
    /// The same rate at every step, without warm-up and without decay.
    Constant,
    /// Warm-up, stable, decay: constant, then `1 - sqrt` down to the final rate over the last fifth
    /// (Hägele et al. 2024, arXiv:2405.18392).
    Wsd,
}

impl ScheduleKind {
    pub const ALL: [ScheduleKind; 4] =
        [ScheduleKind::Cosine, ScheduleKind::Linear, ScheduleKind::Constant, ScheduleKind::Wsd];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            ScheduleKind::Cosine => "cosine",
            ScheduleKind::Linear => "linear",
            ScheduleKind::Constant => "constant",
            ScheduleKind::Wsd => "wsd",
        }
    }
}

impl fmt::Display for ScheduleKind {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ScheduleKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| format!("expected {}; found {name}", Self::ALL.map(Self::name).join(", ")))
    }
}

/// A learning rate for every step of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    pub kind: ScheduleKind,
    /// The rate at the end of warm-up.
    pub max_lr: f32,
    /// Steps of linear warm-up. The first of them already learns, at `max_lr / warmup`.
    pub warmup: usize,
    /// Steps of the run; the curve ends here.
    pub total_steps: usize,
    /// The final rate as a fraction of `max_lr`.
    pub final_frac: f32,
}

impl Schedule {
    /// The rate at `step`, which counts from 0.
    ///
    /// Past the end of the run the rate stays at its final value, also when warm-up leaves no step to decay in.
    pub fn lr(&self, step: usize) -> f32 {
        if self.kind == ScheduleKind::Constant {
            return self.max_lr;
        }
        if step < self.warmup {
            return self.warmup_lr(step);
        }
        let min_lr = self.max_lr * self.final_frac;
        if step > self.total_steps || self.total_steps <= self.warmup {
            return min_lr;
        }
        let span = self.max_lr - min_lr;
        match self.kind {
            ScheduleKind::Cosine => {
                let progress = fraction(step, self.warmup, self.total_steps);
                // The product with pi is taken in f64 and rounded once: C promotes it because M_PI is a double.
                let angle = (std::f64::consts::PI * f64::from(progress)) as f32;
                min_lr + 0.5 * (1.0 + angle.cos()) * span
            }
            ScheduleKind::Linear => self.max_lr - fraction(step, self.warmup, self.total_steps) * span,
            ScheduleKind::Wsd => {
                let decay_start = (0.8 * self.total_steps as f32) as usize;
                if step < decay_start {
                    return self.max_lr;
                }
                min_lr + (1.0 - fraction(step, decay_start, self.total_steps).sqrt()) * span
            }
            ScheduleKind::Constant => unreachable!("returned above"),
        }
    }

    fn warmup_lr(&self, step: usize) -> f32 {
        let (done, warmup) = ((step + 1) as f32, self.warmup as f32);
        match self.kind {
            // The order of the product and the quotient differs in llm.c, and so does the last bit.
            ScheduleKind::Wsd => self.max_lr * (done / warmup),
            _ => self.max_lr * done / warmup,
        }
    }
}

/// How far `step` has come from `start` to `end`, for `start <= step <= end` and `start < end`.
fn fraction(step: usize, start: usize, end: usize) -> f32 {
    (step - start) as f32 / (end - start) as f32
}
