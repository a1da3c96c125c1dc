//! Checks that panic, and the arguments that tests and benchmarks of AdamW start from.

use super::close;
use crate::ops::AdamW;
use crate::tensor::Tensor;

/// Checks by [`close`] that every element is as wanted.
///
/// # Panics
/// If not, naming the element that is furthest out.
#[track_caller]
pub fn assert_close<W: Into<f64> + Copy>(name: &str, got: &[f32], want: &[W], tolerance: f64) {
    if let Err(fault) = close(got, want, tolerance) {
        panic!("{name}: {fault}");
    }
}

/// Checks that two results are the same, bit for bit.
///
/// # Panics
/// If not, naming the first element that differs.
#[track_caller]
pub fn assert_same_bits(name: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{name}: length");
    let differs = (0..got.len()).find(|&i| got[i].to_bits() != want[i].to_bits());
    if let Some(i) = differs {
        panic!("{name}: [{i}] of {} is {:e}, want {:e} exactly", got.len(), got[i], want[i]);
    }
}

/// A first step without decay, which tests and benchmarks of [`AdamW`] start from.
pub fn adamw_step(params: Tensor, m: Tensor, v: Tensor, grads: Tensor) -> AdamW {
    AdamW {
        params,
        master: None,
        m,
        v,
        grads,
        weight_decay: 0.0,
        lr: 0.01,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        grad_scale: 1.0,
        t: 1,
        seed: 1,
        first: 0,
    }
}

/// Elements `start..start + len` of a step.
pub fn adamw_part(step: AdamW, start: usize, len: usize) -> AdamW {
    let part = |tensor: Tensor| tensor.slice(start, len);
    AdamW {
        params: part(step.params),
        master: step.master.map(part),
        m: part(step.m),
        v: part(step.v),
        grads: part(step.grads),
        first: step.first + start as u64,
        ..step
    }
}
