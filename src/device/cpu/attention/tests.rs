use super::*;
use crate::device::compare::testing::*;
use crate::device::compare::{assert_close, assert_same_bits};

const fn dims(B: usize, T: usize, NH: usize, HS: usize) -> AttentionDims {
    AttentionDims { B, T, NH, HS }
}

/// Sizes around those of tiles, and head sizes and counts that do not fit registers.
const SHAPES: [AttentionDims; 8] = [
    dims(1, 1, 1, 1),
    dims(2, 1, 3, 20),
    dims(1, W - 1, 1, 8),
    dims(1, W, 2, 16),
    dims(3, W + 1, 3, 20),
    dims(1, DEPTH + 5, 1, 48),
    dims(2, 2 * DEPTH, 2, 64),
    dims(1, 2 * DEPTH + W + 3, 5, 33),
];

fn C(dims: AttentionDims) -> usize {
    dims.NH * dims.HS
}

fn random_qkv(dims: AttentionDims) -> Vec<f32> {
    random(1, dims.B * dims.T * 3 * C(dims)).iter().map(|x| 2.0 * x).collect()
}

/// Returns (out, lse) by the definition.
fn reference(qkv: &[f64], dims: AttentionDims) -> (Vec<f64>, Vec<f64>) {
    let AttentionDims { B, T, NH, HS } = dims;
    let C = C(dims);
    let (mut out, mut lse) = (vec![0.0; B * T * C], vec![0.0; B * NH * T]);
    for (b, h, t) in (0..B * NH * T).map(|i| (i / T / NH, i / T % NH, i % T)) {
        let row = |which: usize, t: usize| &qkv[((b * T + t) * 3 + which) * C + h * HS..][..HS];
        let dot = |k| row(0, t).iter().zip(row(1, k)).map(|(q, k)| q * k).sum::<f64>();
        let scores: Vec<f64> = (0..=t).map(|k| dot(k) / (HS as f64).sqrt()).collect();
        let sum: f64 = scores.iter().map(|s| s.exp()).sum();
        lse[(b * NH + h) * T + t] = sum.ln();
        for (k, score) in scores.iter().enumerate() {
            let out = &mut out[(b * T + t) * C + h * HS..][..HS];
            out.iter_mut().zip(row(2, k)).for_each(|(out, v)| *out += score.exp() / sum * v);
        }
    }
    (out, lse)
}

fn run_forward(qkv: &[f32], dims: AttentionDims) -> (Vec<f32>, Vec<f32>) {
    let (mut out, mut lse) = (poisoned(qkv.len() / 3), poisoned(dims.B * dims.NH * dims.T));
    forward(&mut out, &mut lse, qkv, dims);
    (out, lse)
}

fn f64s(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

#[test]
fn forward_follows_the_definition() {
    for dims in SHAPES {
        let qkv = random_qkv(dims);
        let (out, lse) = run_forward(&qkv, dims);
        let want = reference(&f64s(&qkv), dims);
        assert_close(&format!("{dims:?}: out"), &out, &want.0, 5e-6);
        assert_close(&format!("{dims:?}: lse"), &lse, &want.1, 1e-6);
    }
}

/// Scores far outside the range of exp, rising or falling from key to key, and thus from tile to
/// tile.
#[test]
fn large_scores_do_not_overflow() {
    let dims = dims(1, 3 * DEPTH, 1, 4);
    for slope in [1.0, -1.0] {
        let mut qkv = random_qkv(dims);
        for (t, row) in qkv.chunks_exact_mut(3 * 4).enumerate() {
            row[..4].fill(0.25);
            row[4..8].fill(slope * t as f32);
        }
        // The scores are half of slope t: up to 192, which f64 can represent.
        let (out, lse) = run_forward(&qkv, dims);
        let want = reference(&f64s(&qkv), dims);
        assert_close("out", &out, &want.0, 2e-6);
        assert_close("lse", &lse, &want.1, 1e-6);
    }
}

#[test]
fn decode_is_a_row_of_forward() {
    for dims in SHAPES {
        let mut qkv = random_qkv(dims);
        let (full, _) = run_forward(&qkv, dims);
        let C = C(dims);
        // From the last position back, with the cache after it not yet filled.
        for t in (0..dims.T).rev().step_by(7) {
            let mut out = poisoned(dims.B * C);
            decode(&mut out, &qkv, t, dims);
            let want: Vec<f32> =
                (0..dims.B).flat_map(|b| full[(b * dims.T + t) * C..][..C].to_vec()).collect();
            assert_same_bits(&format!("{dims:?}, t = {t}"), &out, &want);
            for sequence in qkv.chunks_exact_mut(dims.T * 3 * C) {
                sequence[t * 3 * C..].fill(f32::NAN);
            }
        }
    }
}

fn run_backward(qkv: &[f32], dout: &[f32], dims: AttentionDims) -> Vec<f32> {
    let (out, lse) = run_forward(qkv, dims);
    let mut dqkv = poisoned(qkv.len());
    backward(&mut dqkv, dout, &out, &lse, qkv, dims);
    dqkv
}

#[test]
fn backward_is_the_derivative_of_forward() {
    for dims in [dims(1, 1, 1, 1), dims(2, 3, 3, 20), dims(1, W + 3, 2, 5), dims(1, DEPTH + 2, 1, 3)] {
        let (qkv, dout) = (random_qkv(dims), random(2, dims.B * dims.T * C(dims)));
        let want = central_differences(&qkv, |x| weighted_sum(&reference(x, dims).0, &dout));
        assert_close(&format!("{dims:?}"), &run_backward(&qkv, &dout, dims), &want, 5e-6);
    }
}

/// Checks the derivative in a random direction, where central differences would take too long.
#[test]
fn backward_agrees_with_a_directional_derivative() {
    for dims in SHAPES {
        let (qkv, dout) = (random_qkv(dims), random(2, dims.B * dims.T * C(dims)));
        let dqkv = run_backward(&qkv, &dout, dims);
        for which in 0..3 {
            // Queries, keys and values separately.
            let mut direction = random(3 + which as u64, qkv.len());
            for (i, chunk) in direction.chunks_exact_mut(C(dims)).enumerate() {
                if i % 3 != which {
                    chunk.fill(0.0);
                }
            }
            let loss = |step: &[f64]| {
                let moved: Vec<f64> = qkv
                    .iter()
                    .zip(&direction)
                    .map(|(&x, &d)| f64::from(x) + step[0] * f64::from(d))
                    .collect();
                weighted_sum(&reference(&moved, dims).0, &dout)
            };
            // dP - rows(dO O) cancels down to the rounding of its terms if one key has all the
            // weight.
            let want = central_differences(&[0.0], loss)[0];
            let terms = || dqkv.iter().zip(&direction).map(|(&g, &d)| f64::from(g) * f64::from(d));
            let (got, size) = (terms().sum::<f64>(), terms().map(|x| x * x).sum::<f64>().sqrt());
            assert!((got - want).abs() <= 1e-5 * size + 2e-6, "{dims:?} {which}: {got} {want} {size}");
        }
    }
}

#[test]
fn threads_do_not_matter() {
    let dims = dims(2, DEPTH + W + 3, 3, 20);
    let (qkv, dout) = (random_qkv(dims), random(2, dims.B * dims.T * C(dims)));
    assert_same_on_any_threads("attention", || {
        let (out, lse) = run_forward(&qkv, dims);
        [out, lse, run_backward(&qkv, &dout, dims)].concat()
    });
}
