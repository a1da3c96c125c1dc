//! LayerNorm over C (Ba et al. 2016).

use crate::simd::{LANES, dispatch, rows_per_task, sum_lanes, sum_of};
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

/// Returns the mean and the reciprocal standard deviation of the row. The variance is computed
/// about the mean, in a second pass over the cached row: mean of squares minus square of mean would
/// cancel.
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

/// The outputs of [`backward`], which adds to them.
pub struct Gradients<'a> {
    pub dinp: &'a mut [f32],
    /// Whether `dinp` is overwritten instead.
    pub overwrite_dinp: bool,
    pub dweight: &'a mut [f32],
    pub dbias: &'a mut [f32],
}

/// With norm = (inp - mean) rstd and dnorm = dout weight: dinp += rstd (dnorm - mean(dnorm) - norm
/// mean(dnorm norm)); dweight += sum of dout norm, dbias += sum of dout, over rows.
pub fn backward(
    gradients: Gradients,
    dout: &[f32],
    inp: &[f32],
    weight: &[f32],
    mean: &[f32],
    rstd: &[f32],
    C: usize,
) {
    let Gradients { dinp, overwrite_dinp, dweight, dbias } = gradients;
    let N = dinp.len() / C;
    assert!(dout.len() == N * C && inp.len() == N * C && mean.len() == N && rstd.len() == N);
    assert!(weight.len() == C && dweight.len() == C && dbias.len() == C);

    // Each block of rows has its own dweight and dbias. There are at most 64 blocks, so that adding
    // them up is cheap.
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
                        let gradients = Gradients { dinp, overwrite_dinp, dweight, dbias };
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
    let Gradients { dinp, overwrite_dinp, dweight, dbias } = gradients;
    if overwrite_dinp {
        dinp.fill(0.0);
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::compare::assert_close;
    use crate::device::compare::testing::*;

    const SHAPES: [(usize, usize); 6] = [(1, 1), (1, 20), (3, 31), (2, 64), (5, 100), (70, 33)];

    /// Returns (out, mean, rstd) in f64.
    fn reference(inp: &[f64], weight: &[f64], bias: &[f64]) -> [Vec<f64>; 3] {
        let C = weight.len();
        let mut result = [const { Vec::new() }; 3];
        for row in inp.chunks_exact(C) {
            let mean = row.iter().sum::<f64>() / C as f64;
            let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / C as f64;
            let rstd = 1.0 / (variance + f64::from(EPS)).sqrt();
            result[0].extend((0..C).map(|i| (row[i] - mean) * rstd * weight[i] + bias[i]));
            result[1].push(mean);
            result[2].push(rstd);
        }
        result
    }

    fn f64s(x: &[f32]) -> Vec<f64> {
        x.iter().map(|&x| f64::from(x)).collect()
    }

    fn check_forward(name: &str, inp: &[f32], C: usize, tolerance: f64) {
        let N = inp.len() / C;
        let (weight, bias) = (random(2, C), random(3, C));
        let (mut out, mut mean, mut rstd) = (poisoned(N * C), poisoned(N), poisoned(N));
        forward(&mut out, &mut mean, &mut rstd, inp, &weight, &bias, C);
        let want = reference(&f64s(inp), &f64s(&weight), &f64s(&bias));
        assert_close(&format!("{name} ({N}, {C}): out"), &out, &want[0], tolerance);
        assert_close(&format!("{name} ({N}, {C}): mean"), &mean, &want[1], tolerance);
        assert_close(&format!("{name} ({N}, {C}): rstd"), &rstd, &want[2], tolerance);
    }

    #[test]
    fn forward_is_accurate() {
        for (N, C) in SHAPES {
            check_forward("random", &random(1, N * C), C, 1e-6);
        }
        check_forward("constant", &[3.0; 40], 20, 1e-6);
        // The mean is a thousand times the deviation, so its last bit is a ten-thousandth of the
        // deviation.
        let far: Vec<f32> = random(1, 5 * 768).iter().map(|x| 1000.0 + x).collect();
        check_forward("far from zero", &far, 768, 4e-4);
    }

    #[test]
    fn backward_is_the_derivative_of_forward() {
        for (N, C) in SHAPES {
            let (inp, weight, bias, dout) = (random(1, N * C), random(2, C), random(3, C), random(4, N * C));
            let want = reference(&f64s(&inp), &f64s(&weight), &f64s(&bias));
            let [mean, rstd] = [1, 2].map(|i| want[i].iter().map(|&x| x as f32).collect::<Vec<_>>());
            let before = (random(5, N * C), random(6, C), random(7, C));
            let (mut dinp, mut dweight, mut dbias) = before.clone();
            let overwrite_dinp = N == 2;
            let gradients =
                Gradients { dinp: &mut dinp, overwrite_dinp, dweight: &mut dweight, dbias: &mut dbias };
            backward(gradients, &dout, &inp, &weight, &mean, &rstd, C);
            let before_dinp = if overwrite_dinp { vec![0.0; N * C] } else { before.0 };

            let loss = |inp: &[f64], weight: &[f64], bias: &[f64]| {
                weighted_sum(&reference(inp, weight, bias)[0], &dout)
            };
            let (inp64, weight64, bias64) = (f64s(&inp), f64s(&weight), f64s(&bias));
            let want = central_differences(&inp, |x| loss(x, &weight64, &bias64));
            assert_close(&format!("({N}, {C}): dinp"), &dinp, &added(&before_dinp, &want), 2e-6);
            let want = central_differences(&weight, |x| loss(&inp64, x, &bias64));
            assert_close(&format!("({N}, {C}): dweight"), &dweight, &added(&before.1, &want), 2e-6);
            let want = central_differences(&bias, |x| loss(&inp64, &weight64, x));
            assert_close(&format!("({N}, {C}): dbias"), &dbias, &added(&before.2, &want), 2e-6);
        }
    }

    #[test]
    fn threads_do_not_matter() {
        let (N, C) = (300, 100);
        let (inp, weight, dout) = (random(1, N * C), random(2, C), random(3, N * C));
        assert_same_on_any_threads("layernorm", || {
            let (mut out, mut mean, mut rstd) = (poisoned(N * C), poisoned(N), poisoned(N));
            forward(&mut out, &mut mean, &mut rstd, &inp, &weight, &weight, C);
            let (mut dinp, mut dweight, mut dbias) = (random(5, N * C), random(6, C), random(7, C));
            let gradients = Gradients {
                dinp: &mut dinp,
                overwrite_dinp: false,
                dweight: &mut dweight,
                dbias: &mut dbias,
            };
            backward(gradients, &dout, &inp, &weight, &mean, &rstd, C);
            [out, mean, rstd, dinp, dweight, dbias].concat()
        });
    }
}
