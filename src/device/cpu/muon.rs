//! Muon: momentum, orthogonalization by Newton and Schulz, and the step.

use super::matmul::{Precision, Scratch, View, product};
use super::reduce::norm_squared;
use super::rounding::{SEED_OF_M, round_at_random};
use crate::ops::{MuonMomentum, MuonStep, NewtonSchulz};
use crate::simd::CHUNK;
use half::bf16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

/// See [`MuonMomentum`].
pub fn momentum(grads: &mut [f32], m: &mut [f32], args: &MuonMomentum) {
    assert_eq!(m.len(), grads.len(), "Muon: tensors differ in length");
    let chunks = grads.par_chunks_mut(CHUNK).zip(m.par_chunks_mut(CHUNK));
    chunks.for_each(|(grads, m)| momentum_of_chunk(grads, m, args));
}

/// The same with m in bf16, rounded stochastically.
pub fn momentum_bf16_state(grads: &mut [f32], m: &mut [bf16], args: &MuonMomentum) {
    assert_eq!(m.len(), grads.len(), "Muon: tensors differ in length");
    let chunks = grads.par_chunks_mut(CHUNK).zip(m.par_chunks_mut(CHUNK)).enumerate();
    chunks.for_each(|(chunk, (grads, m))| {
        let mut wide = vec![0.0; m.len()];
        m.convert_to_f32_slice(&mut wide);
        momentum_of_chunk(grads, &mut wide, args);
        round_at_random(m, &wide, args.seed ^ SEED_OF_M, args.first + (chunk * CHUNK) as u64);
    });
}

fn momentum_of_chunk(grads: &mut [f32], m: &mut [f32], args: &MuonMomentum) {
    let &MuonMomentum { momentum, grad_scale, .. } = args;
    let unscale = 1.0 / grad_scale;
    for (g, m) in grads.iter_mut().zip(m) {
        *m = momentum * *m + (1.0 - momentum) * (grad_scale * *g);
        *g = (1.0 - momentum) * *g + momentum * (*m * unscale);
    }
}

/// See [`NewtonSchulz`]. The three buffers are those of [`NewtonSchulz::buffers`].
pub fn newton_schulz(
    precision: Precision,
    scratch: &mut Scratch,
    x: &mut [f32],
    [other, gram, squared]: [&mut [f32]; 3],
    args: &NewtonSchulz,
) {
    let (rows, columns, size) = (args.rows, args.columns, args.size());
    // The norm is rounded to f32, as a device keeps it.
    let factor = 1.0 / (norm_squared(x) as f32).sqrt().max(NewtonSchulz::EPS);
    let chunks = other.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK));
    chunks.for_each(|(other, x)| other.iter_mut().zip(x).for_each(|(o, x)| *o = factor * x));
    let (mut from, mut to) = (other, x);
    for _ in 0..NewtonSchulz::STEPS {
        let x = View::new(from, rows, columns);
        let (left, right) = if args.is_tall() { (x.transposed(), x) } else { (x, x.transposed()) };
        product(precision, scratch, gram, left, right);
        let a = View::new(gram, size, size);
        product(precision, scratch, squared, a, a);
        polynomial(squared, gram, size);
        let p = View::new(squared, size, size);
        let (left, right) = if args.is_tall() { (x, p) } else { (p, x) };
        product(precision, scratch, to, left, right);
        std::mem::swap(&mut from, &mut to);
    }
}

/// squared = a I + b gram + c squared
fn polynomial(squared: &mut [f32], gram: &[f32], size: usize) {
    let [a, b, c] = NewtonSchulz::COEFFICIENTS;
    let rows = squared.par_chunks_mut(size).zip(gram.par_chunks(size)).enumerate();
    rows.for_each(|(row, (squared, gram))| {
        squared.iter_mut().zip(gram).for_each(|(s, g)| *s = b * g + c * *s);
        squared[row] += a;
    });
}

/// See [`MuonStep`].
pub fn step(params: &mut [f32], direction: &[f32], args: &MuonStep) {
    assert_eq!(params.len(), direction.len(), "Muon: tensors differ in length");
    let (rate, decay) = (args.lr * args.scale, args.lr * args.weight_decay);
    params.par_chunks_mut(CHUNK).zip(direction.par_chunks(CHUNK)).for_each(|(params, direction)| {
        params.iter_mut().zip(direction).for_each(|(p, d)| *p -= rate * d + decay * *p);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::compare::assert_close;
    use crate::device::compare::testing::{assert_same_on_any_threads, random};
    use crate::tensor::{Dtype, Tensor};

    /// The handles are for devices; the functions here take slices.
    const UNUSED: Tensor = Tensor { arena: 0, offset: 0, len: 0, dtype: Dtype::F32 };

    fn orthogonalized(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
        let args = NewtonSchulz { x: UNUSED, work: UNUSED, rows, columns };
        let mut x = x.to_vec();
        let square = args.size().pow(2);
        let [mut other, mut gram, mut squared] = [x.len(), square, square].map(|len| vec![f32::NAN; len]);
        let mut scratch = Scratch::default();
        newton_schulz(Precision::F32, &mut scratch, &mut x, [&mut other, &mut gram, &mut squared], &args);
        x
    }

    /// (rows, inner) times (inner, columns), in f64.
    fn times(a: &[f64], b: &[f64], [rows, inner, columns]: [usize; 3]) -> Vec<f64> {
        let element = |i: usize, j: usize| (0..inner).map(|k| a[i * inner + k] * b[k * columns + j]).sum();
        (0..rows * columns).map(|at| element(at / columns, at % columns)).collect()
    }

    fn transposed(a: &[f64], rows: usize, columns: usize) -> Vec<f64> {
        (0..rows * columns).map(|at| a[at % rows * columns + at / rows]).collect()
    }

    /// As Jordan writes it, in f64: X = a X + (b A + c A²) X, of the transpose if X is tall.
    fn reference(x: &[f32], rows: usize, columns: usize) -> Vec<f64> {
        let [a, b, c] = [3.4445, -4.7750, 2.0315];
        let mut x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        if rows > columns {
            x = transposed(&x, rows, columns);
        }
        let (m, n) = (rows.min(columns), rows.max(columns));
        let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-7);
        x.iter_mut().for_each(|x| *x /= norm);
        for _ in 0..5 {
            let gram = times(&x, &transposed(&x, m, n), [m, n, m]);
            let square = times(&gram, &gram, [m, m, m]);
            let p: Vec<f64> = gram.iter().zip(square).map(|(g, s)| b * g + c * s).collect();
            let px = times(&p, &x, [m, m, n]);
            x.iter_mut().zip(px).for_each(|(x, px)| *x = a * *x + px);
        }
        if rows > columns { transposed(&x, m, n) } else { x }
    }

    #[test]
    fn the_iteration_is_the_one_of_newton_and_schulz() {
        for (rows, columns) in [(1, 1), (1, 9), (9, 1), (16, 16), (24, 16), (16, 24), (64, 16)] {
            let x = random(7, rows * columns);
            let (found, want) = (orthogonalized(&x, rows, columns), reference(&x, rows, columns));
            // A step amplifies the rounding errors of the one before by its slope, 3.4445 at most.
            let tolerance = 3.4445f64.powi(4) * f64::from(f32::EPSILON) * (rows + columns) as f64;
            assert_close(&format!("{rows} x {columns}"), &found, &want, tolerance);
        }
        assert_eq!(orthogonalized(&[0.0; 6], 2, 3), [0.0; 6]);
    }

    /// Diagonal matrices show their singular values.
    #[test]
    fn singular_values_come_close_to_one() {
        let values = [1.0, -0.5, 0.2, 0.05];
        let x: Vec<f32> = (0..16).map(|at| if at % 5 == 0 { values[at / 5] } else { 0.0 }).collect();
        for (at, y) in orthogonalized(&x, 4, 4).into_iter().enumerate() {
            match at % 5 {
                0 => assert!((0.6..1.3).contains(&(y * values[at / 5].signum())), "{at}: {y}"),
                _ => assert_eq!(y, 0.0),
            }
        }
    }

    #[test]
    fn momentum_is_nesterovs_whatever_the_scale() {
        let (mut exact_m, mut m) = ([0.0f64; 3], [0.0f32; 3]);
        for (t, scale) in [(1, 0.5f32), (2, 0.001), (3, 1.0)] {
            let g = random(t, 3);
            let mut grads: Vec<f32> = g.iter().map(|g| g / scale).collect();
            let args = MuonMomentum {
                grads: UNUSED,
                m: UNUSED,
                momentum: 0.95,
                grad_scale: scale,
                seed: 0,
                first: 0,
            };
            momentum(&mut grads, &mut m, &args);
            for i in 0..3 {
                exact_m[i] = 0.95 * exact_m[i] + 0.05 * f64::from(g[i]);
                let direction = 0.05 * f64::from(g[i]) + 0.95 * exact_m[i];
                assert!((f64::from(m[i]) - exact_m[i]).abs() <= 1e-7);
                assert!((f64::from(grads[i] * scale) - direction).abs() <= 1e-6, "step {t}");
            }
        }
    }

    #[test]
    fn decay_does_not_depend_on_the_scale() {
        let (mut params, direction) = ([1.0, -2.0], [0.5, 0.0]);
        let (lr, scale, weight_decay) = (0.1, 2.0, 0.5);
        let args = MuonStep {
            params: UNUSED,
            master: None,
            direction: UNUSED,
            lr,
            scale,
            weight_decay,
            seed: 0,
            first: 0,
        };
        step(&mut params, &direction, &args);
        assert_close("params", &params, &[1.0 - 0.1 * (1.0 + 0.5), -2.0 + 0.1], 1e-7);
    }

    #[test]
    fn threads_do_not_matter() {
        let x = random(3, 96 * 200);
        assert_same_on_any_threads("newton_schulz", || orthogonalized(&x, 96, 200));
    }
}
