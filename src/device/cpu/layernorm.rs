//! LayerNorm over C (Ba et al. 2016).
#![allow(non_snake_case)]

use crate::device::cpu::simd::{LANES, dispatch, rows_per_task, sum_lanes, sum_of};
use rayon::prelude::*;

const EPS: f32 = 1e-5;

/// out (N, C) = (inp - mean) * rstd * weight + bias; mean, rstd (N) =.
pub fn forward(
    out: &mut [f32],
    mean: &mut [f32],
    rstd: &mut [f32],
    inp: &[f32],
    weight: &[f32],
    bias: &[f32],
    C: usize,
) {
    let N = out.len() / C;
    assert!(inp.len() == N * C && mean.len() == N && rstd.len() == N && weight.len() == C && bias.len() == C);
    let rows = rows_per_task(C);
    out.par_chunks_mut(rows * C)
        .zip(inp.par_chunks(rows * C))
        .zip(mean.par_chunks_mut(rows))
        .zip(rstd.par_chunks_mut(rows))
        .for_each(|(((out, inp), mean), rstd)| {
            dispatch(
                #[inline(always)]
                |_| {
                    for (row, (out, inp)) in out.chunks_exact_mut(C).zip(inp.chunks_exact(C)).enumerate() {
                        (mean[row], rstd[row]) = forward_row(out, inp, weight, bias);
                    }
                },
            );
        });
}

/// Mean and reciprocal standard deviation of the row. The variance is taken about the mean, in a second pass over a row
/// that is in the cache: mean of squares minus square of mean would cancel.
#[inline(always)]
fn forward_row(out: &mut [f32], inp: &[f32], weight: &[f32], bias: &[f32]) -> (f32, f32) {
    let scale = 1.0 / inp.len() as f32;
    let mean = sum_of(inp, |x| x) * scale;
    let variance = sum_of(inp, |x| (x - mean) * (x - mean)) * scale;
    let rstd = 1.0 / (variance + EPS).sqrt();
    for (((out, &x), &w), &b) in out.iter_mut().zip(inp).zip(weight).zip(bias) {
        *out = (x - mean) * rstd * w + b;
    }
    (mean, rstd)
}

/// What [`backward`] adds to.
pub struct Gradients<'a> {
    pub dinp: &'a mut [f32],
    pub dweight: &'a mut [f32],
    pub dbias: &'a mut [f32],
}

/// With norm = (inp - mean) rstd and dnorm = dout weight:
/// dinp += rstd (dnorm - mean(dnorm) - norm mean(dnorm norm)); dweight += sum of dout norm, dbias += sum of dout over
/// rows.
pub fn backward(
    gradients: Gradients,
    dout: &[f32],
    inp: &[f32],
    weight: &[f32],
    mean: &[f32],
    rstd: &[f32],
    C: usize,
) {
    let Gradients { dinp, dweight, dbias } = gradients;
    let N = dinp.len() / C;
    assert!(dout.len() == N * C && inp.len() == N * C && mean.len() == N && rstd.len() == N);
    assert!(weight.len() == C && dweight.len() == C && dbias.len() == C);

    // Each block of rows has its own dweight and dbias. At most 64 blocks, so that adding these up costs little.
    let rows = N.div_ceil(64).max(32);
    let mut partials = vec![0.0; N.div_ceil(rows) * 2 * C];
    (dinp.par_chunks_mut(rows * C)).zip(partials.par_chunks_exact_mut(2 * C)).enumerate().for_each(
        |(block, (dinp, partial))| {
            let (dweight, dbias) = partial.split_at_mut(C);
            dispatch(
                #[inline(always)]
                |_| {
                    for (i, dinp) in dinp.chunks_exact_mut(C).enumerate() {
                        let row = block * rows + i;
                        let gradients = Gradients { dinp, dweight, dbias };
                        let (dout, inp) = (&dout[row * C..][..C], &inp[row * C..][..C]);
                        backward_row(gradients, dout, inp, weight, mean[row], rstd[row]);
                    }
                },
            );
        },
    );
    for partial in partials.chunks_exact(2 * C) {
        for (sum, &x) in dweight.iter_mut().chain(dbias.iter_mut()).zip(partial) {
            *sum += x;
        }
    }
}

#[inline(always)]
fn backward_row(gradients: Gradients, dout: &[f32], inp: &[f32], weight: &[f32], mean: f32, rstd: f32) {
    let Gradients { dinp, dweight, dbias } = gradients;
    let mut dnorm_sum = [0.0; LANES];
    let mut dnorm_norm_sum = [0.0; LANES];
    let C = dinp.len();
    for start in (0..C).step_by(LANES) {
        let range = start..C.min(start + LANES);
        let (dout, inp, weight) = (&dout[range.clone()], &inp[range.clone()], &weight[range.clone()]);
        let (dweight, dbias) = (&mut dweight[range.clone()], &mut dbias[range]);
        for i in 0..dout.len() {
            let norm = (inp[i] - mean) * rstd;
            let dnorm = dout[i] * weight[i];
            dweight[i] += dout[i] * norm;
            dbias[i] += dout[i];
            dnorm_sum[i] += dnorm;
            dnorm_norm_sum[i] += dnorm * norm;
        }
    }
    let dnorm_mean = sum_lanes(dnorm_sum) / C as f32;
    let dnorm_norm_mean = sum_lanes(dnorm_norm_sum) / C as f32;
    for (((dinp, &dout), &x), &w) in dinp.iter_mut().zip(dout).zip(inp).zip(weight) {
        let norm = (x - mean) * rstd;
        *dinp += rstd * (dout * w - dnorm_mean - norm * dnorm_norm_mean);
    }
}
