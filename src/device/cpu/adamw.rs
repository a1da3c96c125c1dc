//! AdamW over a range of parameters.

use super::rounding::{SEED_OF_M, SEED_OF_V, round_at_random};
use crate::ops::AdamW;
use crate::simd::{CHUNK, dispatch};
use half::bf16;
use half::slice::HalfFloatSliceExt;
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

/// The same with m and v in bf16, rounded stochastically.
pub fn update_bf16_state(params: &mut [f32], m: &mut [bf16], v: &mut [bf16], grads: &[f32], args: &AdamW) {
    let len = params.len();
    assert!(m.len() == len && v.len() == len && grads.len() == len, "AdamW: tensors differ in length");
    let step = Step::new(args);
    params
        .par_chunks_mut(CHUNK)
        .zip(m.par_chunks_mut(CHUNK))
        .zip(v.par_chunks_mut(CHUNK))
        .zip(grads.par_chunks(CHUNK))
        .enumerate()
        .for_each(|(chunk, (((params, m), v), grads))| {
            let first = args.first + (chunk * CHUNK) as u64;
            let [mut wide_m, mut wide_v] = [&*m, &*v].map(|narrow| {
                let mut wide = vec![0.0; narrow.len()];
                narrow.convert_to_f32_slice(&mut wide);
                wide
            });
            dispatch(
                #[inline(always)]
                |_| step.apply(params, &mut wide_m, &mut wide_v, grads),
            );
            round_at_random(m, &wide_m, args.seed ^ SEED_OF_M, first);
            round_at_random(v, &wide_v, args.seed ^ SEED_OF_V, first);
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

    /// Steps of v are a thousandth of v, below the last place of bf16: to nearest, v would stay.
    #[test]
    fn a_narrow_v_follows_the_gradients() {
        const LEN: usize = 4096;
        let (mut params, mut m) = (vec![0.0; LEN], vec![bf16::ZERO; LEN]);
        let mut v = vec![bf16::ONE; LEN];
        for t in 1..=1000 {
            let args = AdamW { beta2: 0.999, grad_scale: 1.0, seed: t as u32, ..args(t) };
            update_bf16_state(&mut params, &mut m, &mut v, &[2.0; LEN], &args);
        }
        let mean = v.iter().map(|v| f64::from(v.to_f32())).sum::<f64>() / LEN as f64;
        // 4 + (1 - 4) 0.999^1000. One draw is off by at most a place of 2^-6, and 0.999^k of it is
        // left after k steps: the deviation of one element is below sqrt(500) * 2^-6 / 2 = 0.18,
        // and that of the mean of 4096 below 0.003. The bound is four times that.
        let want = 4.0 - 3.0 * 0.999f64.powi(1000);
        assert!((mean - want).abs() <= 0.012, "{mean}, expected {want}");
        let nearest = bf16::from_f32(0.999 * 1.0 + 0.001 * 4.0);
        assert_eq!(nearest, bf16::ONE, "to nearest, the first step would be lost");
    }

    #[test]
    fn where_a_narrow_state_is_cut_does_not_matter() {
        const LEN: usize = 2 * CHUNK + 40;
        let run = |cuts: &[usize]| {
            let (mut params, mut m) = (random(0, LEN), vec![bf16::ZERO; LEN]);
            let (mut v, grads) = (vec![bf16::ZERO; LEN], random(1, LEN));
            for cut in cuts.windows(2) {
                let range = cut[0]..cut[1];
                let args = AdamW { first: 7 + cut[0] as u64, ..args(1) };
                let (m, v) = (&mut m[range.clone()], &mut v[range.clone()]);
                update_bf16_state(&mut params[range.clone()], m, v, &grads[range], &args);
            }
            (params, m, v)
        };
        assert_eq!(run(&[0, LEN]), run(&[0, 13, CHUNK + 1, LEN]));
    }

    #[test]
    fn threads_do_not_matter() {
        assert_same_on_any_threads("adamw", || train(6 * CHUNK + 103, 2).concat());
    }
}
