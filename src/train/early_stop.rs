//! `--early-stop`: the end of a run whose validation loss no longer falls.

use super::Trainer;
use crate::words::count;
use serde::{Deserialize, Serialize};

/// Evaluations without a lower validation loss. All ranks count alike, as the loss is the mean over
/// all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Patience {
    /// The step before which the last evaluation ran that counts here. A resumed run repeats the
    /// one of its first step, which must not count twice.
    step: usize,
    /// Evaluations since the one with the lowest loss.
    evaluations: usize,
}

impl Patience {
    /// Takes note of the evaluation before `step`.
    pub fn note(&mut self, step: usize, is_best: bool) {
        if step > self.step {
            let evaluations = if is_best { 0 } else { self.evaluations + 1 };
            *self = Patience { step, evaluations };
        }
    }

    pub fn is_fresh(&self) -> bool {
        *self == Patience::default()
    }
}

impl Trainer {
    /// Whether `--early-stop` ends the run.
    pub(super) fn stops_early(&self) -> bool {
        let limit = self.eval.early_stop;
        limit > 0 && self.patience.evaluations >= limit
    }

    pub(super) fn say_early_stop(&mut self, step: usize) {
        let Patience { evaluations, .. } = self.patience;
        let best = self.best_val_loss.unwrap_or(f32::NAN);
        self.report.console().line(format_args!(
            "early stop after step {step}: {} without a lower validation loss than {best:.6}",
            count(evaluations, "evaluation")
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_new_evaluations_without_a_lower_loss_count() {
        let mut patience = Patience::default();
        let mut note = |step, is_best| {
            patience.note(step, is_best);
            patience.evaluations
        };
        assert_eq!([note(0, false), note(10, true), note(20, false), note(20, false)], [0, 0, 1, 1]);
        assert_eq!([note(30, false), note(20, true), note(40, true), note(50, false)], [2, 2, 0, 1]);
    }
}
