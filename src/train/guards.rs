//! Guards against bad steps: overflow of fp16, outliers of loss and gradient norm, divergence.

use crate::cli::flags::trainer::OptimFlags;
use crate::optim::loss_scale::LossScale;
use crate::optim::outlier::{OutlierDetector, is_outlier};
use crate::replica::step::StepStats;
use crate::tensor::Dtype;

/// The state that decides whether a step updates the parameters. All ranks decide alike, as they
/// see the same reduced loss and norm.
#[derive(Clone)]
pub struct Guards {
    pub loss: OutlierDetector,
    pub norm: OutlierDetector,
    /// Only for fp16 parameters.
    pub scale: Option<LossScale>,
    /// Largest z-scores of loss and norm; 0 = no limit.
    max_loss_z: f32,
    max_norm_z: f32,
}

/// Distances of loss and norm from their recent past, in standard deviations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ZScores {
    pub loss: f64,
    pub norm: f64,
}

/// The decision about a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    Update,
    /// Skip the update: `outlier`, loss or gradient, has this z-score.
    Skip {
        outlier: &'static str,
        z: f64,
    },
    /// Skip the update: gradients overflowed fp16. The next step uses this loss scale.
    Overflow {
        next_scale: f32,
    },
    /// Stop: loss or norm is not finite, and an update would spread that to every weight.
    Diverged,
}

impl Guards {
    /// Guards of a new run whose parameters are of type `params`.
    pub fn new(flags: &OptimFlags, params: Dtype) -> Self {
        Guards {
            loss: OutlierDetector::default(),
            norm: OutlierDetector::default(),
            scale: (params == Dtype::F16).then(LossScale::default),
            max_loss_z: flags.skip_update_lossz,
            max_norm_z: flags.skip_update_gradz,
        }
    }

    /// The scale of the loss in the next step.
    pub fn loss_scale(&self) -> f32 {
        self.scale.map_or(1.0, |scale| scale.get())
    }

    /// Scores a step against the steps before it.
    fn z_scores(&self, stats: &StepStats) -> ZScores {
        ZScores { loss: self.loss.score(stats.loss), norm: self.norm.score(stats.norm) }
    }

    /// Scores a step, decides about it, and records its loss and norm.
    pub fn judge(&mut self, stats: &StepStats) -> (ZScores, Verdict) {
        let z = self.z_scores(stats);
        (z, self.verdict(stats, z))
    }

    fn verdict(&mut self, stats: &StepStats, z: ZScores) -> Verdict {
        let &StepStats { loss, norm, .. } = stats;
        if let Some(scale) = self.scale.as_mut().filter(|_| loss.is_finite())
            && !scale.accept(norm)
        {
            return Verdict::Overflow { next_scale: scale.get() };
        }
        if !loss.is_finite() || !norm.is_finite() {
            return Verdict::Diverged;
        }
        if is_outlier(z.loss, self.max_loss_z) {
            self.loss.reject(loss);
            return Verdict::Skip { outlier: "loss", z: z.loss };
        }
        if is_outlier(z.norm, self.max_norm_z) {
            self.norm.reject(norm);
            return Verdict::Skip { outlier: "gradient", z: z.norm };
        }
        self.loss.accept(loss);
        self.norm.accept(norm);
        Verdict::Update
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guards(scale: Option<LossScale>, max_loss_z: f32, max_norm_z: f32) -> Guards {
        let (loss, norm) = (OutlierDetector::default(), OutlierDetector::default());
        let mut guards = Guards { loss, norm, scale, max_loss_z, max_norm_z };
        for step in 0..200 {
            let wobble = (step % 7) as f32 * 0.01;
            assert_eq!(judge(&mut guards, 3.0 + wobble, 1.0 + wobble), Verdict::Update);
        }
        guards
    }

    fn judge(guards: &mut Guards, loss: f32, norm: f32) -> Verdict {
        guards.judge(&StepStats { loss, norm, votes: 0.0 }).1
    }

    #[test]
    fn outliers_are_skipped_and_named() {
        let mut guards = guards(None, 6.0, 6.0);
        let outlier = |verdict| match verdict {
            Verdict::Skip { outlier, z } if z > 6.0 => outlier,
            other => panic!("{other:?}"),
        };
        assert_eq!(outlier(judge(&mut guards, 9.0, 1.0)), "loss");
        assert_eq!(outlier(judge(&mut guards, 3.0, 9.0)), "gradient");
        assert_eq!(judge(&mut guards, 3.0, 1.0), Verdict::Update);
    }

    #[test]
    fn a_limit_of_0_skips_nothing() {
        let mut guards = guards(None, 0.0, 0.0);
        assert_eq!(judge(&mut guards, 9.0, 9.0), Verdict::Update);
    }

    #[test]
    fn without_a_loss_scale_what_is_not_finite_has_diverged() {
        let mut guards = guards(None, 6.0, 6.0);
        assert_eq!(judge(&mut guards, f32::NAN, 1.0), Verdict::Diverged);
        assert_eq!(judge(&mut guards, 3.0, f32::INFINITY), Verdict::Diverged);
    }

    #[test]
    fn with_a_loss_scale_only_the_loss_or_an_overflow_at_scale_1_diverges() {
        let mut guards = guards(Some(LossScale::default()), 0.0, 0.0);
        assert_eq!(judge(&mut guards, f32::NAN, f32::NAN), Verdict::Diverged);
        assert_eq!(guards.loss_scale(), 65536.0);
        for halvings in 1..=16 {
            let next_scale = 65536.0 / 2.0f32.powi(halvings);
            assert_eq!(judge(&mut guards, 3.0, f32::INFINITY), Verdict::Overflow { next_scale });
        }
        assert_eq!(judge(&mut guards, 3.0, f32::INFINITY), Verdict::Diverged);
    }
}
