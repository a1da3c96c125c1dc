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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::compare::assert_close;
    use crate::device::compare::testing::{assert_same_on_any_threads, random};
    use crate::ops::DecaySegment;
    use crate::tensor::{Dtype, Tensor};

    fn args(segments: &[DecaySegment], t: usize) -> AdamW<'_> {
        // The handles are for devices; `update` takes slices.
        let unused = Tensor { arena: 0, offset: 0, len: 0, dtype: Dtype::F32 };
        AdamW {
            params: unused,
            master: None,
            m: unused,
            v: unused,
            grads: unused,
            segments,
            lr: 0.01,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            grad_scale: 0.5,
            t,
            seed: 0,
        }
    }

    fn segments(lens: &[usize]) -> Vec<DecaySegment> {
        let start = |i: usize| lens[..i].iter().sum();
        let decay = |i| if i % 2 == 0 { 0.1 } else { 0.0 };
        (0..lens.len())
            .map(|i| DecaySegment { start: start(i), len: lens[i], weight_decay: decay(i) })
            .collect()
    }

    /// (params, m, v) after `steps` updates by gradients that change from step to step.
    fn train(segments: &[DecaySegment], steps: usize) -> [Vec<f32>; 3] {
        let len = segments.iter().map(|s| s.len).sum();
        let (mut params, mut m, mut v) = (random(0, len), vec![0.0; len], vec![0.0; len]);
        for t in 1..=steps {
            update(&mut params, &mut m, &mut v, &random(t as u64, len), &args(segments, t));
        }
        [params, m, v]
    }

    #[test]
    fn follows_the_paper() {
        let segments = segments(&[1, 20, 33, CHUNK + 5]);
        let args = args(&segments, 0);
        let [params, m, v] = train(&segments, 3);
        let start = random(0, params.len());
        let gradients = [1, 2, 3].map(|t| random(t, params.len()));
        let mut want = [const { Vec::new() }; 3];
        for segment in &segments {
            for i in segment.start..segment.start + segment.len {
                let gradients = gradients.each_ref().map(|g| g[i]);
                let [p, m, v] = reference(&args, segment.weight_decay, start[i], &gradients);
                want[0].push(p);
                want[1].push(m);
                want[2].push(v);
            }
        }
        assert_close("params", &params, &want[0], 1e-6);
        assert_close("m", &m, &want[1], 1e-6);
        assert_close("v", &v, &want[2], 1e-6);
    }

    /// Algorithm 2 of Loshchilov & Hutter 2019, in f64, for one parameter.
    fn reference(args: &AdamW, weight_decay: f32, start: f32, gradients: &[f32]) -> [f64; 3] {
        let (beta1, beta2) = (f64::from(args.beta1), f64::from(args.beta2));
        let (mut p, mut m, mut v) = (f64::from(start), 0.0, 0.0);
        for (t, &g) in (1..).zip(gradients) {
            let g = f64::from(g) * f64::from(args.grad_scale);
            m = beta1 * m + (1.0 - beta1) * g;
            v = beta2 * v + (1.0 - beta2) * g * g;
            let m_hat = m / (1.0 - beta1.powi(t));
            let v_hat: f64 = v / (1.0 - beta2.powi(t));
            let direction = m_hat / (v_hat.sqrt() + f64::from(args.eps)) + f64::from(weight_decay) * p;
            p -= f64::from(args.lr) * direction;
        }
        [p, m, v]
    }

    #[test]
    fn no_gradient_leaves_only_decay() {
        let segments = segments(&[3, 4]);
        let (mut params, mut m, mut v) = (vec![1.0; 7], vec![0.0; 7], vec![0.0; 7]);
        update(&mut params, &mut m, &mut v, &[0.0; 7], &args(&segments, 1));
        assert_eq!(params, [0.999, 0.999, 0.999, 1.0, 1.0, 1.0, 1.0]);
    }

    #[test]
    #[should_panic(expected = "cover all")]
    fn every_parameter_is_in_a_segment() {
        let (mut params, mut m, mut v) = (vec![1.0; 7], vec![0.0; 7], vec![0.0; 7]);
        update(&mut params, &mut m, &mut v, &[0.0; 7], &args(&segments(&[6]), 1));
    }

    #[test]
    fn threads_do_not_matter() {
        let segments = segments(&[5 * CHUNK + 3, 100, CHUNK]);
        assert_same_on_any_threads("adamw", || train(&segments, 2).concat());
    }
}
