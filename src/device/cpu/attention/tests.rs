use super::*;
use crate::device::compare::testing::*;
use crate::device::compare::{assert_close, assert_same_bits};
use crate::ops::{Dropout, DropoutState};
use crate::tensor::{Dtype, MemoryPlan};

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

/// One document per sequence, without dropout.
fn plain(dims: AttentionDims) -> View<'static> {
    View { dims, positions: None, mask: None }
}

/// Positions (B, T) of documents of these lengths, which are repeated.
fn packed(dims: AttentionDims, lengths: &[usize]) -> Vec<i32> {
    let sequence = |_| lengths.iter().cycle().flat_map(|&len| 0..len as i32).take(dims.T).collect::<Vec<_>>();
    (0..dims.B).flat_map(sequence).collect()
}

/// Documents of one token, at the edges of tiles and off them, and of many tiles.
const LENGTHS: [&[usize]; 4] = [&[1], &[1, 5, 1, 26, 40], &[W, DEPTH, 7], &[1000]];

fn dropped(rate: f32, first_row: u32) -> Option<Mask> {
    let tensor = MemoryPlan::new().add("test", "state", Dtype::I32, 4);
    let state = DropoutState { key: [17, 3], first_row, unused: 0 };
    Some(Dropout { rate, state: tensor, stream: 5 }.mask(state))
}

/// The factor of one weight.
fn factor(mask: Mask, T: usize, (b, h): (usize, usize), (q, k): (usize, usize)) -> f32 {
    mask.of_weights(b * T, h, q & !8, k & !8)[(q & 8) / 8 * 2 + (k & 8) / 8]
}

/// Returns (out, lse) by the definition.
fn reference(qkv: &[f64], view: View) -> (Vec<f64>, Vec<f64>) {
    let AttentionDims { B, T, NH, HS } = view.dims;
    let dims = view.dims;
    let C = C(dims);
    let (mut out, mut lse) = (vec![0.0; B * T * C], vec![0.0; B * NH * T]);
    for (b, h, t) in (0..B * NH * T).map(|i| (i / T / NH, i / T % NH, i % T)) {
        let row = |which: usize, t: usize| &qkv[((b * T + t) * 3 + which) * C + h * HS..][..HS];
        let dot = |k| row(0, t).iter().zip(row(1, k)).map(|(q, k)| q * k).sum::<f64>();
        let first = view.positions.map_or(0, |positions| t - positions[b * T + t] as usize);
        let scores: Vec<f64> = (first..=t).map(|k| dot(k) / (HS as f64).sqrt()).collect();
        let sum: f64 = scores.iter().map(|s| s.exp()).sum();
        lse[(b * NH + h) * T + t] = sum.ln();
        for (k, score) in (first..).zip(&scores) {
            let factor = view.mask.map_or(1.0, |mask| f64::from(factor(mask, T, (b, h), (t, k))));
            let out = &mut out[(b * T + t) * C + h * HS..][..HS];
            out.iter_mut().zip(row(2, k)).for_each(|(out, v)| *out += factor * score.exp() / sum * v);
        }
    }
    (out, lse)
}

fn run_forward(qkv: &[f32], view: View) -> (Vec<f32>, Vec<f32>) {
    let dims = view.dims;
    let (mut out, mut lse) = (poisoned(qkv.len() / 3), poisoned(dims.B * dims.NH * dims.T));
    forward(&mut out, &mut lse, qkv, view);
    (out, lse)
}

fn f64s(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

#[test]
fn forward_follows_the_definition() {
    for dims in SHAPES {
        let qkv = random_qkv(dims);
        let positions = LENGTHS.map(|lengths| packed(dims, lengths));
        for positions in positions.iter().map(|positions| Some(&positions[..])).chain([None]) {
            for mask in [None, dropped(0.3, 0)] {
                let view = View { dims, positions, mask };
                let (out, lse) = run_forward(&qkv, view);
                let want = reference(&f64s(&qkv), view);
                assert_close(&format!("{view:?}: out"), &out, &want.0, 5e-6);
                assert_close(&format!("{view:?}: lse"), &lse, &want.1, 1e-6);
            }
        }
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
        let (out, lse) = run_forward(&qkv, plain(dims));
        let want = reference(&f64s(&qkv), plain(dims));
        assert_close("out", &out, &want.0, 2e-6);
        assert_close("lse", &lse, &want.1, 1e-6);
    }
}

#[test]
fn decode_is_a_row_of_forward() {
    for dims in SHAPES {
        let mut qkv = random_qkv(dims);
        let (full, _) = run_forward(&qkv, plain(dims));
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

fn run_backward(qkv: &[f32], dout: &[f32], view: View) -> Vec<f32> {
    let (out, lse) = run_forward(qkv, view);
    let mut dqkv = poisoned(qkv.len());
    backward(&mut dqkv, dout, &out, &lse, qkv, view);
    dqkv
}

/// Views of the same lengths: plain, with documents, with dropout, and with both.
fn views<'a>(dims: AttentionDims, positions: &'a [i32]) -> [View<'a>; 4] {
    [(None, None), (Some(positions), None), (None, dropped(0.4, 9)), (Some(positions), dropped(0.4, 9))]
        .map(|(positions, mask)| View { dims, positions, mask })
}

#[test]
fn backward_is_the_derivative_of_forward() {
    for dims in [dims(1, 1, 1, 1), dims(2, 3, 3, 20), dims(1, W + 3, 2, 5), dims(1, DEPTH + 2, 1, 3)] {
        let (qkv, dout) = (random_qkv(dims), random(2, dims.B * dims.T * C(dims)));
        for view in views(dims, &packed(dims, &[1, 2, 14])) {
            let want = central_differences(&qkv, |x| weighted_sum(&reference(x, view).0, &dout));
            assert_close(&format!("{view:?}"), &run_backward(&qkv, &dout, view), &want, 5e-6);
        }
    }
}

/// Checks the derivative in a random direction, where central differences would take too long.
#[test]
fn backward_agrees_with_a_directional_derivative() {
    let positions = SHAPES.map(|dims| packed(dims, &[3, W + 5, DEPTH, 1]));
    for view in SHAPES.into_iter().zip(&positions).flat_map(|(dims, positions)| views(dims, positions)) {
        let dims = view.dims;
        let (qkv, dout) = (random_qkv(dims), random(2, dims.B * dims.T * C(dims)));
        let dqkv = run_backward(&qkv, &dout, view);
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
                weighted_sum(&reference(&moved, view).0, &dout)
            };
            // dP - rows(dO O) cancels down to the rounding of its terms if one key has all the
            // weight.
            let want = central_differences(&[0.0], loss)[0];
            let terms = || dqkv.iter().zip(&direction).map(|(&g, &d)| f64::from(g) * f64::from(d));
            let (got, size) = (terms().sum::<f64>(), terms().map(|x| x * x).sum::<f64>().sqrt());
            assert!((got - want).abs() <= 1e-5 * size + 2e-6, "{view:?} {which}: {got} {want} {size}");
        }
    }
}

#[test]
fn threads_do_not_matter() {
    let dims = dims(2, DEPTH + W + 3, 3, 20);
    let (qkv, dout) = (random_qkv(dims), random(2, dims.B * dims.T * C(dims)));
    for view in views(dims, &packed(dims, &[W + 3, 1, 20])) {
        assert_same_on_any_threads("attention", || {
            let (out, lse) = run_forward(&qkv, view);
            [out, lse, run_backward(&qkv, &dout, view)].concat()
        });
    }
}

/// Packed documents have the bits that they have one by one, forward and backward.
#[test]
fn documents_do_not_see_each_other() {
    let lengths = [1, W + 3, 5, DEPTH, 2 * DEPTH + 1];
    let dims = dims(2, lengths.iter().sum(), 3, 20);
    let (C, positions) = (C(dims), packed(dims, &lengths));
    let (qkv, dout) = (random_qkv(dims), random(2, dims.B * dims.T * C));
    let view = View { dims, positions: Some(&positions), mask: None };
    let (out, lse) = run_forward(&qkv, view);
    let dqkv = run_backward(&qkv, &dout, view);
    for b in 0..dims.B {
        let mut start = 0;
        for len in lengths {
            let (row, alone) = (b * dims.T + start, plain(AttentionDims { B: 1, T: len, ..dims }));
            let of = |x: &[f32], width: usize| x[row * width..][..len * width].to_vec();
            let (qkv, dout) = (of(&qkv, 3 * C), of(&dout, C));
            let (alone_out, alone_lse) = run_forward(&qkv, alone);
            assert_same_bits("out", &of(&out, C), &alone_out);
            for h in 0..dims.NH {
                let of_head = &lse[(b * dims.NH + h) * dims.T + start..][..len];
                assert_same_bits("lse", of_head, &alone_lse[h * len..][..len]);
            }
            assert_same_bits("dqkv", &of(&dqkv, 3 * C), &run_backward(&qkv, &dout, alone));
            start += len;
        }
    }
}

/// Sequences of a step drop the same weights in one batch and in several.
#[test]
fn batches_of_a_step_do_not_matter() {
    let dims = dims(3, W + 5, 2, 8);
    let (qkv, dout) = (random_qkv(dims), random(2, dims.B * dims.T * C(dims)));
    let whole = run_backward(&qkv, &dout, View { dims, positions: None, mask: dropped(0.2, 70) });
    let (rows, alone) = (dims.T * 3 * C(dims), AttentionDims { B: 1, ..dims });
    let parts = (0..dims.B).flat_map(|b| {
        let view = View { dims: alone, positions: None, mask: dropped(0.2, 70 + (b * dims.T) as u32) };
        run_backward(&qkv[b * rows..][..rows], &dout[b * rows / 3..][..rows / 3], view)
    });
    assert_same_bits("dqkv", &whole, &parts.collect::<Vec<_>>());
}

/// A share of `rate` is dropped, of all and of what shares a query, a key, a head or a sequence,
/// and neighbors along each of these are dropped independently.
#[test]
fn weights_are_dropped_at_random() {
    const T: usize = 64;
    let (rate, mask) = (0.3, dropped(0.3, 5).unwrap());
    let of = |[b, h, q, k]: [usize; 4]| f64::from(factor(mask, T, (b, h), (q, k)) == 0.0);
    let all = || (0..4 * 4 * T * T).map(|i| [i / (4 * T * T), i / (T * T) % 4, i / T % T, i % T]);
    // Six standard deviations of a mean of n numbers with this variance.
    let near = |what: &str, sum: f64, n: usize, mean: f64, variance: f64| {
        let distance = (sum / n as f64 - mean).abs();
        assert!(distance <= 6.0 * (variance / n as f64).sqrt(), "{what}: {} want {mean}", sum / n as f64);
    };
    let variance = rate * (1.0 - rate);
    near("all", all().map(of).sum(), all().count(), rate, variance);
    for (axis, len) in [4, 4, T, T].into_iter().enumerate() {
        for i in 0..len {
            let share = || all().filter(|place| place[axis] == i);
            near(&format!("{axis} = {i}"), share().map(of).sum(), share().count(), rate, variance);
        }
        for distance in [1, 2, 3, 8, 16].into_iter().filter(|&distance| distance < len) {
            let pairs = || all().filter(|place| place[axis] + distance < len);
            let product = |place: [usize; 4]| {
                let mut next = place;
                next[axis] += distance;
                (of(place) - rate) * (of(next) - rate)
            };
            let name = format!("covariance along {axis} at {distance}");
            near(&name, pairs().map(product).sum(), pairs().count(), 0.0, variance * variance);
        }
    }
}
