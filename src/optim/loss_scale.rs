//! Loss scaling for fp16 (Micikevicius et al. 2018). Many gradients would underflow to zero in
//! fp16, so the loss, and with it every gradient, is multiplied by a scale that is divided out
//! before the update.

use serde::{Deserialize, Serialize};

/// Good steps in a row after which the scale doubles.
const GROWTH_INTERVAL: u32 = 2000;

/// A dynamic loss scale: as large as the gradients allow. It is part of a run's state.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    scale: f32,
    /// Steps without an overflow since the scale last changed.
    good_steps: u32,
}

impl Default for LossScale {
    fn default() -> Self {
        LossScale { scale: 65536.0, good_steps: 0 }
    }
}

impl LossScale {
    /// The scale of the loss: a power of two, so that dividing it out is exact.
    pub fn get(&self) -> f32 {
        self.scale
    }

    /// Records the gradient norm of a step. Returns `false` if the gradients overflowed: the step
    /// must be skipped, and the scale is halved for the next one. The scale never falls below 1. At
    /// 1 an overflow is not the scale's doing, so `true` is returned and the caller judges the
    /// norm.
    pub fn accept(&mut self, norm: f32) -> bool {
        if !norm.is_finite() && self.scale > 1.0 {
            *self = LossScale { scale: self.scale / 2.0, good_steps: 0 };
            return false;
        }
        self.good_steps += 1;
        if self.good_steps == GROWTH_INTERVAL {
            *self = LossScale { scale: self.scale * 2.0, good_steps: 0 };
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overflow_halves_the_scale_and_skips_the_step() {
        let mut scale = LossScale::default();
        assert_eq!(scale.get(), 65536.0);
        assert!(!scale.accept(f32::INFINITY) && !scale.accept(f32::NAN));
        assert_eq!(scale.get(), 16384.0);
        assert!(scale.accept(1e30));
        assert_eq!(scale.get(), 16384.0);
    }

    #[test]
    fn two_thousand_good_steps_in_a_row_double_it() {
        let mut scale = LossScale::default();
        for _ in 0..1999 {
            assert!(scale.accept(1.0));
        }
        assert!(!scale.accept(f32::INFINITY));
        for step in 0..2000 {
            assert_eq!(scale.get(), 32768.0, "after {step} good steps");
            assert!(scale.accept(1.0));
        }
        assert_eq!(scale.get(), 65536.0);
    }

    #[test]
    fn one_is_the_floor_and_there_a_bad_norm_is_not_blamed_on_the_scale() {
        let mut scale = LossScale::default();
        for _ in 0..16 {
            assert!(!scale.accept(f32::NAN));
        }
        assert_eq!(scale.get(), 1.0);
        assert!(scale.accept(f32::NAN));
        assert_eq!(scale.get(), 1.0);
    }

    #[test]
    fn it_is_saved_and_comes_back() {
        let mut scale = LossScale::default();
        scale.accept(1.0);
        scale.accept(f32::NAN);
        scale.accept(1.0);
        let text = serde_json::to_string(&scale).unwrap();
        assert_eq!(serde_json::from_str::<LossScale>(&text).unwrap(), scale);
    }
}
