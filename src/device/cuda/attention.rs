//! Causal attention: one kernel forward, and a single row of it for sampling. Hopper's backward
//! pass is one kernel where it has one. Elsewhere a kernel finds what the others need of each row,
//! and then there are either two, for dK and dV and for dQ, which give the same bits every time, or
//! a single one, which adds dQ with atomics (`atomic`). `choose` says which.
//!
//! Dropout has kernels of its own (`…_dropout_…`), forward and for the ordered backward pass. They
//! serve every GPU, Hopper too.

mod atomic;
mod choose;
mod hopper_backward;
mod hopper_forward;

use super::Cuda;
use super::driver::Driver;
use super::kernel::{KernelSpec, Launch, Ptr};
use super::memory::Memory;
use crate::ops::*;
use crate::tensor::{Dtype, Tensor};
use anyhow::{Result, ensure};
pub use choose::{BackwardKernels, Choices};

mod forward_kernels {
    use crate::device::cuda::kernel::{DropoutArg, FloatX, Ptr, kernels};

    kernels! {
        "attention_forward.cu":
        const FORWARD: [Forward] = [
            attention_forward_hs32, attention_forward_hs64, attention_forward_hs80, attention_forward_hs96,
            attention_forward_hs128,
        ](
            out: Ptr<FloatX>, lse: Ptr<f32>, qkv: Ptr<FloatX>, positions: Ptr<i32>, dropout: DropoutArg, T: i32,
            NH: i32, scale: f32,
        );
        const FORWARD_DROPOUT: [ForwardDropout] = [
            attention_forward_dropout_hs32, attention_forward_dropout_hs64, attention_forward_dropout_hs80,
            attention_forward_dropout_hs96, attention_forward_dropout_hs128,
        ](
            out: Ptr<FloatX>, lse: Ptr<f32>, qkv: Ptr<FloatX>, positions: Ptr<i32>, dropout: DropoutArg, T: i32,
            NH: i32, scale: f32,
        );
        fn attention_decode(out: Ptr<FloatX>, qkv: Ptr<FloatX>, T: i32, NH: i32, HS: i32, t: i32, scale: f32);
    }
    pub(super) use kernel::*;
}

mod backward_kernels {
    use crate::device::cuda::kernel::{DropoutArg, FloatX, Ptr, kernels};

    kernels! {
        "attention_backward.cu":
        const KEYS: [Keys] = [
            attention_backward_keys_hs32, attention_backward_keys_hs64, attention_backward_keys_hs80,
            attention_backward_keys_hs96, attention_backward_keys_hs128,
        ](
            dqkv: Ptr<FloatX>, dout: Ptr<FloatX>, stats: Ptr<f32>, qkv: Ptr<FloatX>, positions: Ptr<i32>,
            dropout: DropoutArg, T: i32, NH: i32, scale: f32,
        );
        const KEYS_DROPOUT: [KeysDropout] = [
            attention_backward_keys_dropout_hs32, attention_backward_keys_dropout_hs64,
            attention_backward_keys_dropout_hs80, attention_backward_keys_dropout_hs96,
            attention_backward_keys_dropout_hs128,
        ](
            dqkv: Ptr<FloatX>, dout: Ptr<FloatX>, stats: Ptr<f32>, qkv: Ptr<FloatX>, positions: Ptr<i32>,
            dropout: DropoutArg, T: i32, NH: i32, scale: f32,
        );
        const QUERIES: [Queries] = [
            attention_backward_queries_hs32, attention_backward_queries_hs64, attention_backward_queries_hs80,
            attention_backward_queries_hs96, attention_backward_queries_hs128,
        ](
            dqkv: Ptr<FloatX>, dout: Ptr<FloatX>, stats: Ptr<f32>, qkv: Ptr<FloatX>, positions: Ptr<i32>,
            dropout: DropoutArg, T: i32, NH: i32, scale: f32,
        );
        const QUERIES_DROPOUT: [QueriesDropout] = [
            attention_backward_queries_dropout_hs32, attention_backward_queries_dropout_hs64,
            attention_backward_queries_dropout_hs80, attention_backward_queries_dropout_hs96,
            attention_backward_queries_dropout_hs128,
        ](
            dqkv: Ptr<FloatX>, dout: Ptr<FloatX>, stats: Ptr<f32>, qkv: Ptr<FloatX>, positions: Ptr<i32>,
            dropout: DropoutArg, T: i32, NH: i32, scale: f32,
        );
        fn attention_backward_stats(
            stats: Ptr<f32>, dout: Ptr<FloatX>, out: Ptr<FloatX>, lse: Ptr<f32>, B: i32, T: i32, NH: i32, HS: i32,
        );
    }
    pub(super) use kernel::*;
}

/// The kernels of this operation.
pub static KERNELS: [&[&KernelSpec]; 5] = [
    forward_kernels::KERNELS,
    backward_kernels::KERNELS,
    atomic::KERNELS,
    hopper_forward::KERNELS,
    hopper_backward::KERNELS,
];

/// Head sizes that have kernels, in the order in which these are declared.
const HEAD_SIZES: [usize; 5] = [32, 64, 80, 96, 128];

/// Returns the kernel of a head size.
fn for_head_size<Kernel: Copy>(kernels: &[Kernel], HS: usize) -> Kernel {
    kernels[HEAD_SIZES.iter().position(|&size| size == HS).expect("lengths are checked")]
}

/// Threads per block of the forward kernel and of both large backward kernels.
const THREADS: u32 = 128;

/// Rows per block whose warps have `fragments` m16 fragments each.
const fn rows_per_block(fragments: usize) -> usize {
    THREADS as usize / 32 * 16 * fragments
}

/// Queries per block, forward and for dQ.
const QUERIES: usize = rows_per_block(2);

/// Rows per block of the f32 kernels, which use static shared memory.
const F32_ROWS: usize = 32;

/// Shared memory for `rows` rows of 16-bit elements.
const fn tile_bytes(rows: usize, HS: usize) -> usize {
    rows * HS * 2
}

/// A launch with one block per `rows` positions of each head. `shared_bytes` is for the kernels
/// with tensor cores.
fn blocks(dims: AttentionDims, dtype: Dtype, rows: usize, shared_bytes: usize) -> Launch {
    let (rows, shared_bytes) = match dtype {
        Dtype::F32 => (F32_ROWS, 0),
        _ => (rows, shared_bytes),
    };
    Launch::new(dims.B * dims.NH * dims.T.div_ceil(rows), THREADS).shared(shared_bytes)
}

/// The factor that scores are multiplied by.
fn scale(HS: usize) -> f32 {
    1.0 / (HS as f32).sqrt()
}

/// A length as kernels take it.
fn int(value: usize) -> i32 {
    i32::try_from(value).expect("a dimension below 2^31")
}

/// # Errors
/// If there are no kernels for the model's head size, or for sequences that long.
pub fn scratch_bytes(cuda: &Cuda, limits: &Limits) -> Result<usize> {
    let HS = limits.C / limits.NH;
    ensure!(
        HEAD_SIZES.contains(&HS) && limits.C == HS * limits.NH,
        "no attention kernel for {} channels in {} heads; head sizes 32, 64, 80, 96 and 128 are supported (or \
         train on the CPU with train_gpt2)",
        limits.C,
        limits.NH
    );
    // Rows of T = 1 take the most, as each is padded to two.
    let stats = stats_bytes(AttentionDims { B: limits.rows, T: 1, NH: limits.NH, HS });
    if hopper_backward::suits(cuda, HS) {
        return Ok(hopper_backward::scratch_bytes(cuda, limits.T)?.max(stats));
    }
    if !choose::may_be_atomic(cuda) {
        return Ok(stats);
    }
    Ok((stats + atomic::scratch_bytes(limits)).max(choose::norm_bytes(cuda.driver.info().sm_count)))
}

/// # Panics
/// If the lengths of the tensors do not follow from the dimensions.
fn assert_lengths(dims: AttentionDims, packed: &[Tensor], per_head: &[Tensor], lse: Tensor) {
    let AttentionDims { B, T, NH, HS } = dims;
    assert!(HEAD_SIZES.contains(&HS), "a head size of {HS}");
    assert!(packed.iter().all(|t| t.len == B * T * 3 * NH * HS));
    assert!(per_head.iter().all(|t| t.len == B * T * NH * HS));
    assert_eq!(lse.len, B * NH * T);
}

/// Keys per tile of the forward kernel, limited by the registers that hold their scores.
const fn keys_per_tile(HS: usize) -> usize {
    if HS <= 80 { 64 } else { 32 }
}

/// See [`Ops::attention_forward`].
pub fn forward(cuda: &mut Cuda, a: AttentionForward) -> Result<()> {
    let AttentionForward { out, lse, qkv, positions, dropout, dims } = a;
    if dropout.is_none() && positions.is_none() && hopper_forward::suits(cuda, dims) {
        return hopper_forward::forward(cuda, out, lse, qkv, dims);
    }
    let Cuda { driver, memory: m, .. } = cuda;
    let AttentionDims { T, NH, HS, .. } = dims;
    assert_lengths(dims, &[qkv], &[out], lse);
    // Two stages of keys and values are in flight.
    let shared = tile_bytes(QUERIES + 2 * 2 * keys_per_tile(HS), HS);
    let launch = blocks(dims, m.dtype(), QUERIES, shared);
    let kernels = if dropout.is_some() { forward_kernels::FORWARD_DROPOUT } else { forward_kernels::FORWARD };
    let forward = for_head_size(kernels, HS);
    let (positions, dropout) = (m.positions(positions, dims), m.dropout(dropout));
    let (out, lse, qkv) = (m.x(out), m.f32(lse), m.x(qkv));
    forward(driver.as_mut(), launch, out, lse, qkv, positions, dropout, int(T), int(NH), scale(HS))
}

/// See [`Ops::attention_decode`].
pub fn decode(cuda: &mut Cuda, out: Tensor, qkv: Tensor, t: usize, dims: AttentionDims) -> Result<()> {
    let Cuda { driver, memory: m, .. } = cuda;
    let AttentionDims { B, T, NH, HS } = dims;
    assert!(t < T && out.len == B * NH * HS && qkv.len == B * T * 3 * NH * HS);
    assert!(HEAD_SIZES.contains(&HS), "a head size of {HS}");
    forward_kernels::attention_decode(
        driver.as_mut(),
        Launch::new(B * NH, 256),
        m.x(out),
        m.x(qkv),
        int(T),
        int(NH),
        int(HS),
        int(t),
        scale(HS),
    )
}

/// Rows of the tiles that stream past a backward block: two stages of two tiles are in flight.
const TILE_ROWS: usize = 32;
const STREAMED_ROWS: usize = 2 * 2 * TILE_ROWS;

/// Keys per block of the backward kernel, limited by registers.
const fn keys_per_block(HS: usize, dropout: bool) -> usize {
    rows_per_block(if HS <= (if dropout { 32 } else { 64 }) { 2 } else { 1 })
}

/// Bytes per row and head in `stats`.
const STATS: usize = 2 * size_of::<f32>();

/// Scratch memory for the two numbers kept per row and head. Each head starts at a multiple of 16
/// bytes.
fn stats_bytes(dims: AttentionDims) -> usize {
    dims.B * dims.NH * dims.T.next_multiple_of(2) * STATS
}

/// See [`Ops::attention_backward`].
pub fn backward(cuda: &mut Cuda, a: AttentionBackward) -> Result<()> {
    if a.dropout.is_none() && a.positions.is_none() && hopper_backward::suits(cuda, a.dims.HS) {
        return hopper_backward::backward(cuda, a);
    }
    assert_lengths(a.dims, &[a.dqkv, a.qkv], &[a.dout, a.out], a.lse);
    choose::run(cuda, a)
}

/// Queues the kernel that leaves two numbers per row and head at the start of scratch memory.
fn stats(dev: &mut dyn Driver, m: &Memory, a: AttentionBackward) -> Result<()> {
    /// Threads per row of a head, and per block.
    const LANES: usize = 8;
    const THREADS: u32 = 256;
    let AttentionDims { B, T, NH, HS } = a.dims;
    let rows = Launch::new((B * T * NH * LANES).div_ceil(THREADS as usize), THREADS);
    let stats = Ptr::new(m.scratch(stats_bytes(a.dims)));
    let (dout, out, lse) = (m.x(a.dout), m.x(a.out), m.f32(a.lse));
    backward_kernels::attention_backward_stats(
        dev,
        rows,
        stats,
        dout,
        out,
        lse,
        int(B),
        int(T),
        int(NH),
        int(HS),
    )
}

/// Queues the two kernels for dK and dV and for dQ, after [`stats`].
fn ordered(dev: &mut dyn Driver, m: &Memory, a: AttentionBackward) -> Result<()> {
    use backward_kernels as kernel;
    let AttentionDims { T, NH, HS, .. } = a.dims;
    let stats = Ptr::new(m.scratch(stats_bytes(a.dims)));
    let (dqkv, dout, qkv) = (m.x(a.dqkv), m.x(a.dout), m.x(a.qkv));
    let (positions, dropout) = (m.positions(a.positions, a.dims), m.dropout(a.dropout));
    let (keys, queries) = match a.dropout {
        Some(_) => (kernel::KEYS_DROPOUT, kernel::QUERIES_DROPOUT),
        None => (kernel::KEYS, kernel::QUERIES),
    };
    let count = keys_per_block(HS, a.dropout.is_some());
    let shared = tile_bytes(2 * count + STREAMED_ROWS, HS) + 2 * TILE_ROWS * STATS;
    let launch = blocks(a.dims, m.dtype(), count, shared);
    let keys = for_head_size(keys, HS);
    keys(dev, launch, dqkv, dout, stats, qkv, positions, dropout, int(T), int(NH), scale(HS))?;
    let launch = blocks(a.dims, m.dtype(), QUERIES, tile_bytes(2 * QUERIES + STREAMED_ROWS, HS));
    let queries = for_head_size(queries, HS);
    queries(dev, launch, dqkv, dout, stats, qkv, positions, dropout, int(T), int(NH), scale(HS))
}
