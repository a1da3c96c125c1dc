//! Learning-rate schedules: pure functions of the step.
//!
//! The arithmetic is `f32` in llm.c's order, so that both programs use the same rates bit for bit.

use clap::ValueEnum;
use std::fmt;

/// The shape of the curve after warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ScheduleKind {
    /// Half a cosine down to the final rate.
    Cosine,
    /// A straight line down to the final rate.
    Linear,
    /// The same rate at every step, without warm-up and without decay.
    Constant,
    /// Warm-up, stable, decay: constant, then a cooldown to the final rate (Hägele et al. 2024,
    /// arXiv:2405.18392).
    Wsd,
}

/// The shape of [`ScheduleKind::Wsd`]'s cooldown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CooldownShape {
    /// `1 - sqrt(progress)`, as in llm.c: steep at first.
    #[value(name = "1-sqrt")]
    OneMinusSqrt,
    /// A straight line.
    Linear,
}

/// The part of the curve that llm.c cools down over.
pub const COOLDOWN_FRAC: f32 = 0.2;

/// The name that `-k` takes.
impl fmt::Display for ScheduleKind {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let value = self.to_possible_value().expect("no kind is hidden");
        f.write_str(value.get_name())
    }
}

/// A learning rate for every step of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    pub kind: ScheduleKind,
    /// The rate at the end of warm-up.
    pub max_lr: f32,
    /// Steps of linear warm-up. The first of them uses `max_lr / warmup`, not 0.
    pub warmup: usize,
    /// Steps of the run.
    pub total_steps: usize,
    /// Step at which the curve ends: that of the run's end, or another.
    pub decay_steps: usize,
    /// The final rate as a fraction of `max_lr`.
    pub final_frac: f32,
    /// Steps of the cooldown, which ends with the curve, and its shape; for `Wsd` alone.
    pub cooldown: (usize, CooldownShape),
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Schedule { kind, max_lr, warmup, total_steps, decay_steps, final_frac, cooldown } = self;
        write!(
            f,
            "{kind}, {total_steps} steps, {warmup} of them warm-up, LR {max_lr}, final fraction {final_frac}"
        )?;
        if decay_steps != total_steps {
            write!(f, " at step {decay_steps}")?;
        }
        match (kind, cooldown) {
            (ScheduleKind::Wsd, (steps, shape)) => write!(f, ", cooldown {shape} over {steps} steps"),
            _ => Ok(()),
        }
    }
}

/// The name that `--cooldown-shape` takes.
impl fmt::Display for CooldownShape {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let value = self.to_possible_value().expect("no shape is hidden");
        f.write_str(value.get_name())
    }
}

/// Steps of a cooldown over the last `frac` of a curve of `decay_steps`; llm.c's own for a fifth.
pub fn cooldown_steps(frac: f32, decay_steps: usize) -> usize {
    decay_steps - ((1.0 - frac) * decay_steps as f32) as usize
}

impl Schedule {
    /// The rate at `step`, which counts from 0.
    ///
    /// After the end of the curve the rate stays at its final value, even if warm-up leaves no step
    /// to decay in.
    pub fn lr(&self, step: usize) -> f32 {
        if self.kind == ScheduleKind::Constant {
            return self.max_lr;
        }
        if step < self.warmup {
            return self.warmup_lr(step);
        }
        let min_lr = self.max_lr * self.final_frac;
        if step > self.decay_steps || self.decay_steps <= self.warmup {
            return min_lr;
        }
        let span = self.max_lr - min_lr;
        match self.kind {
            ScheduleKind::Cosine => {
                let progress = fraction(step, self.warmup, self.decay_steps);
                // Multiplied in f64 and rounded once: C promotes, because M_PI is a double.
                let angle = (std::f64::consts::PI * f64::from(progress)) as f32;
                min_lr + 0.5 * (1.0 + angle.cos()) * span
            }
            ScheduleKind::Linear => self.max_lr - fraction(step, self.warmup, self.decay_steps) * span,
            ScheduleKind::Wsd => {
                let (steps, shape) = self.cooldown;
                let start = self.decay_steps - steps;
                if step < start {
                    return self.max_lr;
                }
                let progress = fraction(step, start, self.decay_steps);
                let left = match shape {
                    CooldownShape::OneMinusSqrt => 1.0 - progress.sqrt(),
                    CooldownShape::Linear => 1.0 - progress,
                };
                min_lr + left * span
            }
            ScheduleKind::Constant => unreachable!("returned above"),
        }
    }

    fn warmup_lr(&self, step: usize) -> f32 {
        let (done, warmup) = ((step + 1) as f32, self.warmup as f32);
        match self.kind {
            // llm.c divides first here, and that changes the last bit.
            ScheduleKind::Wsd => self.max_lr * (done / warmup),
            _ => self.max_lr * done / warmup,
        }
    }
}

/// How far `step` has come from `start` to `end`, for `start <= step <= end` and `start < end`.
fn fraction(step: usize, start: usize, end: usize) -> f32 {
    (step - start) as f32 / (end - start) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECIPE: Schedule = Schedule {
        kind: ScheduleKind::Cosine,
        max_lr: 6e-4,
        warmup: 715,
        total_steps: 19073,
        decay_steps: 19073,
        final_frac: 0.1,
        cooldown: (3815, CooldownShape::OneMinusSqrt),
    };

    /// A schedule of llm.c's over so many steps.
    fn over(steps: usize, schedule: Schedule) -> Schedule {
        let cooldown = (cooldown_steps(COOLDOWN_FRAC, steps), CooldownShape::OneMinusSqrt);
        Schedule { total_steps: steps, decay_steps: steps, cooldown, ..schedule }
    }

    fn schedules(kind: ScheduleKind) -> [Schedule; 4] {
        [
            over(19073, Schedule { kind, ..RECIPE }),
            over(37, Schedule { kind, max_lr: 3e-4, warmup: 0, final_frac: 0.0, ..RECIPE }),
            over(18865, Schedule { kind, warmup: 700, final_frac: 0.0, ..RECIPE }),
            over(50, Schedule { kind, max_lr: 1e-3, warmup: 10, final_frac: 1.0, ..RECIPE }),
        ]
    }

    /// FNV-1a over the bits of every rate of a run.
    fn fingerprint(schedule: &Schedule) -> u64 {
        (0..=schedule.total_steps)
            .flat_map(|step| schedule.lr(step).to_le_bytes())
            .fold(1_469_598_103_934_665_603, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(1_099_511_628_211)
            })
    }

    /// Fingerprints of llm.c's schedules, compiled by gcc 12 with -O3 on x86-64 against glibc 2.36.
    #[test]
    fn every_rate_has_the_bits_of_llmc() {
        let cases = [
            (
                ScheduleKind::Linear,
                [0x5df2_dc5a_7f31_3806, 0x7458_1858_b47c_9d2d, 0xfa7f_e873_2c1c_2809, 0xe550_bbbd_68b9_ea71],
            ),
            (
                ScheduleKind::Constant,
                [0xb9d7_585d_13fb_a7af, 0x785c_5362_ead4_61db, 0x6851_f3a7_023c_314f, 0x771a_3fd1_cba1_b4fb],
            ),
            (
                ScheduleKind::Wsd,
                [0x54c9_081e_2e15_1337, 0x9614_c57d_d693_c6a5, 0x506d_28e1_9a16_e27b, 0xe550_bbbd_68b9_ea71],
            ),
            // The cosine comes from the C library, and other libraries may round differently.
            #[cfg(all(target_os = "linux", target_env = "gnu", target_arch = "x86_64"))]
            (
                ScheduleKind::Cosine,
                [0xbd52_44f1_9bcc_bb21, 0x388c_f8e8_876a_c07b, 0x3f7c_07e1_88c9_9320, 0xe550_bbbd_68b9_ea71],
            ),
        ];
        for (kind, expected) in cases {
            assert_eq!(schedules(kind).map(|s| fingerprint(&s)), expected, "{kind:?}");
        }
    }

    #[test]
    fn the_published_run_is_reproduced() {
        let near = |step: usize, expected: f32| {
            let lr = RECIPE.lr(step);
            assert!((lr - expected).abs() <= 1e-4 * expected, "lr({step}) = {lr}, expected {expected}");
        };
        near(0, 8.3916e-07);
        near(200, 1.6867e-4);
        near(201, 1.6951e-4);
        near(714, 6e-4);
        near(715, 6e-4);
        near(9894, 3.3e-4);
        near(19073, 6e-5);
    }

    #[test]
    fn a_rate_stays_between_its_ends_and_at_the_last_one_after_the_run() {
        for &kind in ScheduleKind::value_variants() {
            for s in schedules(kind) {
                let min = s.max_lr * s.final_frac;
                let range = min * 0.9999..=s.max_lr * 1.0001;
                assert!((s.warmup..s.total_steps + 3).all(|step| range.contains(&s.lr(step))), "{s:?}");
                let end = if kind == ScheduleKind::Constant { s.max_lr } else { min };
                assert_eq!((s.lr(s.total_steps + 1), s.lr(usize::MAX)), (end, end), "{s:?}");
            }
        }
    }

    #[test]
    fn degenerate_runs_have_finite_rates() {
        for &kind in ScheduleKind::value_variants() {
            for total_steps in [0, 1, 2, 10] {
                for warmup in [0, 1, 2, 10, 11, 1000] {
                    let s =
                        over(total_steps, Schedule { kind, max_lr: 1.0, warmup, final_frac: 0.5, ..RECIPE });
                    for step in 0..25 {
                        let lr = s.lr(step);
                        assert!(lr > 0.0 && lr <= 1.0, "{s:?} at {step}: {lr}");
                    }
                }
            }
        }
        // Warm-up alone: it rises to the end of the run, and only then falls.
        let s =
            Schedule { warmup: 4, total_steps: 4, decay_steps: 4, max_lr: 1.0, final_frac: 0.0, ..RECIPE };
        assert_eq!([0, 1, 2, 3, 4, 5].map(|step| s.lr(step)), [0.25, 0.5, 0.75, 1.0, 0.0, 0.0]);
        // One step without warm-up learns at the full rate.
        let s =
            Schedule { warmup: 0, total_steps: 1, decay_steps: 1, max_lr: 1.0, final_frac: 0.0, ..RECIPE };
        assert_eq!(s.lr(0), 1.0);
    }

    #[test]
    fn a_curve_that_ends_before_the_run_is_that_of_a_shorter_run() {
        for &kind in ScheduleKind::value_variants() {
            let short = over(1000, Schedule { kind, ..RECIPE });
            let long = Schedule { total_steps: 1200, ..short };
            assert!((0..1300).all(|step| long.lr(step) == short.lr(step)), "{kind:?}");
        }
        let long = Schedule { total_steps: 20_000, ..RECIPE };
        assert!(long.to_string().ends_with("final fraction 0.1 at step 19073"), "{long}");
    }

    #[test]
    fn a_cooldown_has_its_length_and_its_shape() {
        let wsd = |cooldown| Schedule {
            kind: ScheduleKind::Wsd,
            max_lr: 1.0,
            warmup: 10,
            total_steps: 120,
            decay_steps: 100,
            final_frac: 0.0,
            cooldown,
        };
        let linear = wsd((40, CooldownShape::Linear));
        assert_eq!([59, 60, 70, 80, 100, 119].map(|step| linear.lr(step)), [1.0, 1.0, 0.75, 0.5, 0.0, 0.0]);
        let sqrt = wsd((40, CooldownShape::OneMinusSqrt));
        assert_eq!([59, 60, 70, 100, 119].map(|step| sqrt.lr(step)), [1.0, 1.0, 0.5, 0.0, 0.0]);
        // From the end of warm-up on it is `linear`.
        let all = wsd((90, CooldownShape::Linear));
        let line = Schedule { kind: ScheduleKind::Linear, ..all };
        assert!((10..120).all(|step| (all.lr(step) - line.lr(step)).abs() <= 1e-6));
        assert!(linear.to_string().ends_with("at step 100, cooldown linear over 40 steps"), "{linear}");
        assert_eq!(
            [1, 37, 18865, 19073].map(|steps| cooldown_steps(COOLDOWN_FRAC, steps)),
            [1, 8, 3773, 3815]
        );
    }

    #[test]
    fn names_go_both_ways() {
        for &kind in ScheduleKind::value_variants() {
            let value = kind.to_possible_value().unwrap();
            assert_eq!(ScheduleKind::from_str(value.get_name(), false), Ok(kind));
        }
        assert!(ScheduleKind::from_str("Cosine", false).is_err());
    }
}
