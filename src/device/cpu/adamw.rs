//! AdamW over a range of parameters.

use crate::ops::AdamW;
use crate::simd::{CHUNK, dispatch};
use rayon::prelude::*;

/// See [`AdamW`].
pub fn update(params: &mut [f32], m: &mut [f32], v: &mut [f32], grads: &[f32], args: &AdamW) {
    let len = params.len();
    assert!(m.len() == len && v.len() == len && grads.len() == len, "AdamW: tensors differ in length");
    let step = Step::new(args);
    params
        .par_chunks_mut(CHUNK)
        .zip(m.par_chunks_mut(CHUNK))
        .zip(v.par_chunks_mut(CHUNK))
        .zip(grads.par_chunks(CHUNK))
        .for_each(|(((params, m), v), grads)| {
            dispatch(
                #[inline(always)]
                |_| step.apply(params, m, v, grads),
            );
        });
}

/// The constants of one update.
struct Step {
    lr: f32,
    beta1: f32,
    beta2: f32,
    /// 1 / (1 - beta^t): corrects the bias of m and v, which start at zero.
    correction1: f32,
    correction2: f32,
    eps: f32,
    grad_scale: f32,
    weight_decay: f32,
}

impl Step {
    fn new(args: &AdamW) -> Self {
        // In f64, because 1 - 0.999 loses four digits in f32.
        let correction = |beta: f32| (1.0 / (1.0 - f64::from(beta).powf(args.t as f64))) as f32;
        Step {
            lr: args.lr,
            beta1: args.beta1,
            beta2: args.beta2,
            correction1: correction(args.beta1),
            correction2: correction(args.beta2),
            eps: args.eps,
            grad_scale: args.grad_scale,
            weight_decay: args.weight_decay,
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
    use crate::device::compare::testing::{assert_same_on_any_threads, random};
    use crate::device::compare::{adamw_step, assert_close};
    use crate::tensor::{Dtype, Tensor};

    fn args(t: usize) -> AdamW {
        // The handles are for devices; `update` takes slices.
        let unused = Tensor { arena: 0, offset: 0, len: 0, dtype: Dtype::F32 };
        AdamW { grad_scale: 0.5, weight_decay: 0.1, t, ..adamw_step(unused, unused, unused, unused) }
    }

    /// Returns (params, m, v) of `len` parameters after `steps` updates with changing gradients.
    fn train(len: usize, steps: usize) -> [Vec<f32>; 3] {
        let (mut params, mut m, mut v) = (random(0, len), vec![0.0; len], vec![0.0; len]);
        for t in 1..=steps {
            update(&mut params, &mut m, &mut v, &random(t as u64, len), &args(t));
        }
        [params, m, v]
    }

    #[test]
    fn follows_the_paper() {
        for len in [1, 54, 3 * CHUNK + 5] {
            let args = args(0);
            let [params, m, v] = train(len, 3);
            let start = random(0, len);
            let gradients = [1, 2, 3].map(|t| random(t, len));
            let mut want = [const { Vec::new() }; 3];
            for i in 0..len {
                let gradients = gradients.each_ref().map(|g| g[i]);
                let found = reference(&args, start[i], &gradients);
                want.iter_mut().zip(found).for_each(|(want, found)| want.push(found));
            }
            assert_close("params", &params, &want[0], 1e-6);
            assert_close("m", &m, &want[1], 1e-6);
            assert_close("v", &v, &want[2], 1e-6);
        }
    }

    /// Algorithm 2 of Loshchilov & Hutter 2019, in f64, for one parameter.
    fn reference(args: &AdamW, start: f32, gradients: &[f32]) -> [f64; 3] {
        let (beta1, beta2) = (f64::from(args.beta1), f64::from(args.beta2));
        let (mut p, mut m, mut v) = (f64::from(start), 0.0, 0.0);
        for (t, &g) in (1..).zip(gradients) {
            let g = f64::from(g) * f64::from(args.grad_scale);
            m = beta1 * m + (1.0 - beta1) * g;
            v = beta2 * v + (1.0 - beta2) * g * g;
            let m_hat = m / (1.0 - beta1.powi(t));
            let v_hat: f64 = v / (1.0 - beta2.powi(t));
            let direction = m_hat / (v_hat.sqrt() + f64::from(args.eps)) + f64::from(args.weight_decay) * p;
            p -= f64::from(args.lr) * direction;
        }
        [p, m, v]
    }

    #[test]
    fn no_gradient_leaves_only_decay() {
        let (mut params, mut m, mut v) = (vec![1.0; 7], vec![0.0; 7], vec![0.0; 7]);
        update(&mut params, &mut m, &mut v, &[0.0; 7], &args(1));
        assert_eq!(params, [0.999; 7]);
        update(&mut params, &mut m, &mut v, &[0.0; 7], &AdamW { weight_decay: 0.0, ..args(2) });
        assert_eq!(params, [0.999; 7]);
    }

    #[test]
    fn threads_do_not_matter() {
        assert_same_on_any_threads("adamw", || train(6 * CHUNK + 103, 2).concat());
    }
}
