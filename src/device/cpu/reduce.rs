//! Deterministic sums, in f64: a gradient norm adds up as many as a billion squares, some too large for f32.

use crate::device::cpu::simd::{CHUNK, dispatch};
use rayon::prelude::*;

/// Sum of squares.
pub fn norm_squared(src: &[f32]) -> f64 {
    sum_of(src, |x| x * x)
}

pub fn sum(src: &[f32]) -> f64 {
    sum_of(src, |x| x)
}

/// Sum of `f(x)`: chunk by chunk, the sums of chunks then added in order.
fn sum_of(src: &[f32], f: impl Fn(f64) -> f64 + Sync) -> f64 {
    let sums: Vec<f64> = src
        .par_chunks(CHUNK)
        .map(|chunk| {
            dispatch(
                #[inline(always)]
                |_| chunk_sum(chunk, &f),
            )
        })
        .collect();
    sums.iter().sum()
}

#[inline(always)]
fn chunk_sum(chunk: &[f32], f: impl Fn(f64) -> f64) -> f64 {
    // Two registers of eight: as many as hide the latency of an addition.
    let mut lanes = [0.0; 16];
    let (pieces, rest) = chunk.as_chunks::<16>();
    for piece in pieces {
        for (lane, &x) in lanes.iter_mut().zip(piece) {
            *lane += f(f64::from(x));
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += f(f64::from(x));
    }
    lanes.iter().sum()
}
