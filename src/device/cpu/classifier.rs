//! Softmax and cross-entropy, and the gradient of the logits in their place.
//!
//! A row of logits is read from memory once and written once: the passes over it after the first find it in the L2
//! cache.
#![allow(non_snake_case)]

use crate::device::cpu::gelu::exp;
use crate::device::cpu::simd::{LANES, dispatch, max, sum_lanes, sum_of};
use rayon::prelude::*;

/// losses (N) += -ln softmax(logits[..V])[target]; logits (N, Vp).
pub fn forward(losses: &mut [f32], logits: &[f32], targets: &[i32], V: usize, Vp: usize) {
    check(losses, logits, targets, V, Vp);
    losses.par_iter_mut().zip(logits.par_chunks_exact(Vp)).zip(targets).for_each(
        |((loss, logits), &target)| {
            let logits = &logits[..V];
            let (max, sum) = dispatch(
                #[inline(always)]
                |_| {
                    let max = max(logits);
                    (max, sum_of(logits, |x| exp(x - max)))
                },
            );
            *loss += sum.ln() + max - logits[index(target)];
        },
    );
}

/// As [`forward`], and logits = (softmax - onehot(target)) * dloss, columns `V..Vp` = 0.
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
            let (logits, padding) = row.split_at_mut(V);
            let target_logit = logits[index(target)];
            *loss += dispatch(
                #[inline(always)]
                |_| {
                    let max = max(logits);
                    let sum = exponentiate(logits, max);
                    let scale = dloss / sum;
                    logits.iter_mut().for_each(|x| *x *= scale);
                    sum.ln() + max - target_logit
                },
            );
            logits[index(target)] -= dloss;
            padding.fill(0.0);
        },
    );
}

fn check(losses: &[f32], logits: &[f32], targets: &[i32], V: usize, Vp: usize) {
    assert!(0 < V && V <= Vp && logits.len() == losses.len() * Vp && targets.len() == losses.len());
}

fn index(target: i32) -> usize {
    usize::try_from(target).expect("a target is never negative")
}

/// x = exp(x - max); returns the sum, in the order of [`sum_of`].
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
