//! Causal attention: one kernel forward; three backward: what both others need of each row, then dK and dV, then dQ.
//!
//! The backward pass gives the same bits every time, whatever [`CudaOptions::deterministic`](super::CudaOptions) says: see
//! `kernels/attention_backward.cu` for what that costs.

pub mod backward;
pub mod forward;

use super::Cuda;
use super::kernel::Launch;
use crate::ops::*;
use crate::tensor::{Dtype, Tensor};
use anyhow::{Result, ensure};

/// Head sizes that there are kernels for.
const HEAD_SIZES: [usize; 5] = [32, 64, 80, 96, 128];

/// Threads of the forward and of both large backward kernels.
const THREADS: u32 = 128;

/// Rows of a block whose warps have so many m16 fragments each.
const fn rows_of_block(fragments: usize) -> usize {
    THREADS as usize / 32 * 16 * fragments
}

/// Rows of a block of the f32 kernels, which use static shared memory.
const F32_ROWS: usize = 32;

/// Shared memory for so many rows of 16-bit elements.
const fn tile_bytes(rows: usize, HS: usize) -> usize {
    rows * HS * 2
}

/// One block for each `rows` positions of each head. `shared_bytes` is for the kernels with tensor cores.
fn blocks(dims: AttentionDims, dtype: Dtype, rows: usize, shared_bytes: usize) -> Launch {
    let (rows, shared_bytes) = match dtype {
        Dtype::F32 => (F32_ROWS, 0),
        _ => (rows, shared_bytes),
    };
    Launch::new(dims.B * dims.NH * dims.T.div_ceil(rows), THREADS).shared(shared_bytes)
}

/// What scores are multiplied by.
fn scale(HS: usize) -> f32 {
    1.0 / (HS as f32).sqrt()
}

/// A length as kernels take it.
fn int(value: usize) -> i32 {
    i32::try_from(value).expect("a dimension below 2^31")
}

/// # Errors
/// If there are no kernels for the model's head size.
pub fn scratch_bytes(_cuda: &Cuda, limits: &Limits) -> Result<usize> {
    let HS = limits.C / limits.NH;
    ensure!(
        HEAD_SIZES.contains(&HS) && limits.C == HS * limits.NH,
        "no attention kernel for {} channels in {} heads; head sizes 32, 64, 80, 96 and 128 are supported (or \
         train on the CPU with train_gpt2)",
        limits.C,
        limits.NH
    );
    // A sequence of one token needs room for two.
    Ok(backward::stats_bytes(AttentionDims { B: limits.rows, T: 1, NH: limits.NH, HS }))
}

/// # Panics
/// If tensors do not have the lengths that the dimensions say.
fn assert_lengths(dims: AttentionDims, packed: &[Tensor], per_head: &[Tensor], lse: Tensor) {
    let AttentionDims { B, T, NH, HS } = dims;
    assert!(HEAD_SIZES.contains(&HS), "a head size of {HS}");
    assert!(packed.iter().all(|t| t.len == B * T * 3 * NH * HS));
    assert!(per_head.iter().all(|t| t.len == B * T * NH * HS));
    assert_eq!(lse.len, B * NH * T);
}
