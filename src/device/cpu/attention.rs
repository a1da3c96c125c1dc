//! Causal multi-head attention without a T x T buffer.
#![allow(non_snake_case)]

use crate::device::cpu::gelu::exp;
use crate::ops::AttentionDims;

/// out (B, T, C) =; lse (B, NH, T) =; qkv (B, T, 3 C).
pub fn forward(out: &mut [f32], lse: &mut [f32], qkv: &[f32], dims: AttentionDims) {
    let AttentionDims { B, T, NH, HS } = dims;
    let C = NH * HS;
    for (b, h) in (0..B).flat_map(|b| (0..NH).map(move |h| (b, h))) {
        for t in 0..T {
            let out = &mut out[(b * T + t) * C + h * HS..][..HS];
            lse[(b * NH + h) * T + t] = forward_row(out, &qkv[b * T * 3 * C + h * HS..], t, C);
        }
    }
}

/// One query; `qkv` starts at the query of position 0 of the head. Returns the log-sum-exp of the scaled scores.
fn forward_row(out: &mut [f32], qkv: &[f32], t: usize, C: usize) -> f32 {
    let HS = out.len();
    let row = |which: usize, t: usize| &qkv[t * 3 * C + which * C..][..HS];
    let scale = 1.0 / (HS as f32).sqrt();
    let mut scores: Vec<f32> = (0..=t).map(|k| scale * dot(row(0, t), row(1, k))).collect();
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|s| *s = exp(*s - max));
    let sum: f32 = scores.iter().sum();
    out.fill(0.0);
    for (k, &p) in scores.iter().enumerate() {
        add_scaled(out, p / sum, row(2, k));
    }
    max + sum.ln()
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add_scaled(dst: &mut [f32], factor: f32, src: &[f32]) {
    dst.iter_mut().zip(src).for_each(|(d, s)| *d += factor * s);
}

/// dqkv (B, T, 3 C) =.
pub fn backward(dqkv: &mut [f32], dout: &[f32], out: &[f32], lse: &[f32], qkv: &[f32], dims: AttentionDims) {
    let AttentionDims { B, T, NH, HS } = dims;
    let C = NH * HS;
    let scale = 1.0 / (HS as f32).sqrt();
    dqkv.fill(0.0);
    for (b, h) in (0..B).flat_map(|b| (0..NH).map(move |h| (b, h))) {
        let at = |which: usize, t: usize| (b * T + t) * 3 * C + which * C + h * HS;
        let row = |which: usize, t: usize| &qkv[at(which, t)..][..HS];
        for t in 0..T {
            let dout = &dout[(b * T + t) * C + h * HS..][..HS];
            let dout_out = dot(dout, &out[(b * T + t) * C + h * HS..][..HS]);
            for k in 0..=t {
                let p = exp(scale * dot(row(0, t), row(1, k)) - lse[(b * NH + h) * T + t]);
                let ds = scale * p * (dot(dout, row(2, k)) - dout_out);
                add_scaled(&mut dqkv[at(0, t)..][..HS], ds, row(1, k));
                add_scaled(&mut dqkv[at(1, k)..][..HS], ds, row(0, t));
                add_scaled(&mut dqkv[at(2, k)..][..HS], p, dout);
            }
        }
    }
}

/// out (B, C) = the row of [`forward`] for position t.
pub fn decode(out: &mut [f32], qkv: &[f32], t: usize, dims: AttentionDims) {
    let AttentionDims { B, T, NH, HS } = dims;
    let C = NH * HS;
    for (b, h) in (0..B).flat_map(|b| (0..NH).map(move |h| (b, h))) {
        forward_row(&mut out[b * C + h * HS..][..HS], &qkv[b * T * 3 * C + h * HS..], t, C);
    }
}
