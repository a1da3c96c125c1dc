//! Softmax and cross-entropy, and in-place gradients of the logits.
//!
//! A row of logits is read from memory once and written once: later passes over it hit the L2
//! cache.

use crate::device::cpu::gelu::exp;
use crate::simd::{LANES, dispatch, max, sum_lanes, sum_of};
use rayon::prelude::*;

/// `losses (N) += -ln softmax(logits[..V])[target]`; logits (N, Vp). Rows of a negative target do
/// not count.
pub fn forward(losses: &mut [f32], logits: &[f32], targets: &[i32], V: usize, Vp: usize) {
    check(losses, logits, targets, V, Vp);
    losses.par_iter_mut().zip(logits.par_chunks_exact(Vp)).zip(targets).for_each(
        |((loss, logits), &target)| {
            let (Some(target), logits) = (index(target), &logits[..V]) else { return };
            let target_logit = logits[target];
            let (max, sum) = dispatch(
                #[inline(always)]
                |_| {
                    let max = max(logits);
                    (max, sum_of(logits, |x| exp(x - max)))
                },
            );
            *loss += (max - target_logit) + sum.ln();
        },
    );
}

/// Like [`forward`], and logits = (softmax - onehot(target)) * dloss, columns `V..Vp` = 0; all of a
/// row that does not count = 0.
pub fn forward_backward(
    losses: &mut [f32],
    logits: &mut [f32],
    targets: &[i32],
    dloss: f32,
    V: usize,
    Vp: usize,
) {
    check(losses, logits, targets, V, Vp);
    losses.par_iter_mut().zip(logits.par_chunks_exact_mut(Vp)).zip(targets).for_each(
        |((loss, row), &target)| {
            let Some(target) = index(target) else { return row.fill(0.0) };
            let (logits, padding) = row.split_at_mut(V);
            let target_logit = logits[target];
            *loss += dispatch(
                #[inline(always)]
                |_| {
                    let max = max(logits);
                    let sum = exponentiate(logits, max);
                    let scale = dloss / sum;
                    logits.iter_mut().for_each(|x| *x *= scale);
                    (max - target_logit) + sum.ln()
                },
            );
            logits[target] -= dloss;
            padding.fill(0.0);
        },
    );
}

fn check(losses: &[f32], logits: &[f32], targets: &[i32], V: usize, Vp: usize) {
    assert!(0 < V && V <= Vp && logits.len() == losses.len() * Vp && targets.len() == losses.len());
}

/// The column of a target that counts.
fn index(target: i32) -> Option<usize> {
    usize::try_from(target).ok()
}

/// x = exp(x - max); returns the sum, added in the order of [`sum_of`].
#[inline(always)]
fn exponentiate(logits: &mut [f32], max: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (chunks, rest) = logits.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *x = exp(*x - max);
            *lane += *x;
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *x = exp(*x - max);
        *lane += *x;
    }
    sum_lanes(lanes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::compare::testing::*;
    use crate::device::compare::{assert_close, assert_same_bits};
    use crate::ops::IGNORED;

    /// (N, V, Vp)
    const SHAPES: [(usize, usize, usize); 5] =
        [(1, 1, 1), (1, 2, 16), (3, 33, 33), (5, 50, 64), (7, 127, 128)];

    /// Random logits; the columns from V on must not matter.
    fn random_logits(N: usize, V: usize, Vp: usize) -> Vec<f32> {
        let mut logits: Vec<f32> = random(1, N * Vp).iter().map(|x| 5.0 * x).collect();
        logits.chunks_exact_mut(Vp).for_each(|row| row[V..].fill(f32::NAN));
        logits
    }

    fn reference(logits: &[f64], targets: &[i32], V: usize, Vp: usize) -> Vec<f64> {
        let row = |(row, &target): (&[f64], &i32)| {
            row[..V].iter().map(|x| x.exp()).sum::<f64>().ln() - row[target as usize]
        };
        logits.chunks_exact(Vp).zip(targets).map(row).collect()
    }

    #[test]
    fn losses_and_gradients_are_right() {
        for (N, V, Vp) in SHAPES {
            let (mut logits, targets) = (random_logits(N, V, Vp), random_indices(2, N, V));
            let before = random(3, N);
            let logits64: Vec<f64> = logits.iter().map(|&x| f64::from(x)).collect();
            let want = added(&before, &reference(&logits64, &targets, V, Vp));
            let dloss = 0.125;
            let mut want_dlogits =
                central_differences(&logits, |x| 0.125 * reference(x, &targets, V, Vp).iter().sum::<f64>());
            want_dlogits.chunks_exact_mut(Vp).for_each(|row| row[V..].fill(0.0));

            let (mut losses, mut losses_backward) = (before.clone(), before);
            forward(&mut losses, &logits, &targets, V, Vp);
            forward_backward(&mut losses_backward, &mut logits, &targets, dloss, V, Vp);
            assert_close(&format!("({N}, {V}, {Vp}): losses"), &losses, &want, 1e-6);
            assert_same_bits("losses with and without gradient", &losses_backward, &losses);
            assert_close(&format!("({N}, {V}, {Vp}): dlogits"), &logits, &want_dlogits, 1e-6);
        }
    }

    #[test]
    fn extreme_logits_are_no_trouble() {
        let mut logits = [1e38, -1e38, 0.0, f32::NEG_INFINITY, 1e4, 1e4, 1e4, 1e4];
        let mut losses = [0.0, 0.0];
        forward_backward(&mut losses, &mut logits, &[0, 3], 1.0, 4, 4);
        assert_eq!(losses, [0.0, 4.0_f32.ln()]);
        assert_eq!(logits, [0.0, 0.0, 0.0, 0.0, 0.25, 0.25, 0.25, -0.75]);
    }

    #[test]
    fn what_is_not_a_number_shows_in_the_loss() {
        for bad in [f32::NAN, f32::INFINITY] {
            for at in [0, 40] {
                let mut logits = vec![1.0; 50];
                logits[at] = bad;
                let mut losses = [0.0];
                forward(&mut losses, &logits, &[3], 50, 50);
                assert!(losses[0].is_nan());
                forward_backward(&mut losses, &mut logits, &[3], 1.0, 50, 50);
                assert!(losses[0].is_nan() && logits[7].is_nan());
            }
        }
    }

    /// Nothing is read of a row that does not count: all of it may be NaN.
    #[test]
    fn ignored_rows_have_no_loss_and_no_gradient() {
        let (N, V, Vp) = (9, 33, 48);
        let (targets, before) = (random_indices(2, N, V), random(3, N));
        let ignored = [(0, IGNORED), (3, -1), (4, i32::MIN), (8, IGNORED)];
        let run = |logits: &[f32], targets: &[i32]| {
            let (mut losses, mut alone, mut logits) = (before.clone(), before.clone(), logits.to_vec());
            forward(&mut alone, &logits, targets, V, Vp);
            forward_backward(&mut losses, &mut logits, targets, 0.125, V, Vp);
            assert_same_bits("losses with and without gradient", &losses, &alone);
            (losses, logits)
        };
        let logits = random_logits(N, V, Vp);
        let (mut poisoned, mut some) = (logits.clone(), targets.clone());
        let (mut losses, mut dlogits) = run(&logits, &targets);
        for (row, target) in ignored {
            some[row] = target;
            poisoned[row * Vp..][..Vp].fill(f32::NAN);
            losses[row] = before[row];
            dlogits[row * Vp..][..Vp].fill(0.0);
        }
        let (got_losses, got_dlogits) = run(&poisoned, &some);
        assert_same_bits("losses", &got_losses, &losses);
        assert_same_bits("dlogits", &got_dlogits, &dlogits);
    }

    #[test]
    #[should_panic(expected = "index out of bounds")]
    fn a_target_past_the_vocabulary_panics() {
        forward(&mut [0.0], &[1.0, 2.0, 3.0], &[2], 2, 3);
    }

    #[test]
    fn threads_do_not_matter() {
        let (N, V, Vp) = (50, 1000, 1024);
        let targets = random_indices(2, N, V);
        assert_same_on_any_threads("classifier", || {
            let (mut losses, mut logits) = (vec![0.0; N], random_logits(N, V, Vp));
            forward_backward(&mut losses, &mut logits, &targets, 0.1, V, Vp);
            [losses, logits].concat()
        });
    }
}
