//! AdamW over all parameters in one pass.

use crate::device::cpu::simd::{CHUNK, dispatch};
use crate::ops::AdamW;
use rayon::prelude::*;

/// See [`AdamW`].
pub fn update(params: &mut [f32], m: &mut [f32], v: &mut [f32], grads: &[f32], args: &AdamW) {
    let mut end = 0;
    for segment in args.segments {
        assert_eq!(segment.start, end, "AdamW: segments must follow each other without a gap");
        end += segment.len;
        let range = segment.start..end;
        let step = Step::new(args, segment.weight_decay);
        params[range.clone()]
            .par_chunks_mut(CHUNK)
            .zip(m[range.clone()].par_chunks_mut(CHUNK))
            .zip(v[range.clone()].par_chunks_mut(CHUNK))
            .zip(grads[range].par_chunks(CHUNK))
            .for_each(|(((params, m), v), grads)| {
                dispatch(
                    #[inline(always)]
                    |_| step.apply(params, m, v, grads),
                );
            });
    }
    assert_eq!(end, params.len(), "AdamW: segments must cover all parameters");
}

/// The constants of one update.
struct Step {
    lr: f32,
    beta1: f32,
    beta2: f32,
    /// 1 / (1 - beta^t): the factors that make m and v, which start at zero, unbiased.
    correction1: f32,
    correction2: f32,
    eps: f32,
    grad_scale: f32,
    weight_decay: f32,
}

impl Step {
    fn new(args: &AdamW, weight_decay: f32) -> Self {
        // In f64: 1 - 0.999 has lost four digits in f32.
        let correction = |beta: f32| (1.0 / (1.0 - f64::from(beta).powf(args.t as f64))) as f32;
        Step {
            lr: args.lr,
            beta1: args.beta1,
            beta2: args.beta2,
            correction1: correction(args.beta1),
            correction2: correction(args.beta2),
            eps: args.eps,
            grad_scale: args.grad_scale,
            weight_decay,
        }
    }

    #[inline(always)]
    fn apply(&self, params: &mut [f32], m: &mut [f32], v: &mut [f32], grads: &[f32]) {
        for (((p, m), v), &g) in params.iter_mut().zip(m).zip(v).zip(grads) {
            let g = self.grad_scale * g;
            *m = self.beta1 * *m + (1.0 - self.beta1) * g;
            *v = self.beta2 * *v + (1.0 - self.beta2) * (g * g);
            let denominator = (self.correction2 * *v).sqrt() + self.eps;
            *p -= self.lr * (self.correction1 * *m / denominator + self.weight_decay * *p);
        }
    }
}
