//! The backward pass.

use super::*;
use crate::device::cuda::kernel::{FloatX, Launcher, Ptr, kernels};

kernels! {
    "attention_backward.cu":
    fn attention_backward_stats(stats: Ptr<f32>, dout: Ptr<FloatX>, out: Ptr<FloatX>, lse: Ptr<f32>, B: i32, T: i32, NH: i32, HS: i32);
    fn attention_backward_keys_hs32(dqkv: Ptr<FloatX>, dout: Ptr<FloatX>, stats: Ptr<f32>, qkv: Ptr<FloatX>, T: i32, NH: i32, scale: f32);
    fn attention_backward_keys_hs64(dqkv: Ptr<FloatX>, dout: Ptr<FloatX>, stats: Ptr<f32>, qkv: Ptr<FloatX>, T: i32, NH: i32, scale: f32);
    fn attention_backward_keys_hs80(dqkv: Ptr<FloatX>, dout: Ptr<FloatX>, stats: Ptr<f32>, qkv: Ptr<FloatX>, T: i32, NH: i32, scale: f32);
    fn attention_backward_keys_hs96(dqkv: Ptr<FloatX>, dout: Ptr<FloatX>, stats: Ptr<f32>, qkv: Ptr<FloatX>, T: i32, NH: i32, scale: f32);
    fn attention_backward_keys_hs128(dqkv: Ptr<FloatX>, dout: Ptr<FloatX>, stats: Ptr<f32>, qkv: Ptr<FloatX>, T: i32, NH: i32, scale: f32);
    fn attention_backward_queries_hs32(dqkv: Ptr<FloatX>, dout: Ptr<FloatX>, stats: Ptr<f32>, qkv: Ptr<FloatX>, T: i32, NH: i32, scale: f32);
    fn attention_backward_queries_hs64(dqkv: Ptr<FloatX>, dout: Ptr<FloatX>, stats: Ptr<f32>, qkv: Ptr<FloatX>, T: i32, NH: i32, scale: f32);
    fn attention_backward_queries_hs80(dqkv: Ptr<FloatX>, dout: Ptr<FloatX>, stats: Ptr<f32>, qkv: Ptr<FloatX>, T: i32, NH: i32, scale: f32);
    fn attention_backward_queries_hs96(dqkv: Ptr<FloatX>, dout: Ptr<FloatX>, stats: Ptr<f32>, qkv: Ptr<FloatX>, T: i32, NH: i32, scale: f32);
    fn attention_backward_queries_hs128(dqkv: Ptr<FloatX>, dout: Ptr<FloatX>, stats: Ptr<f32>, qkv: Ptr<FloatX>, T: i32, NH: i32, scale: f32);
}

/// Arguments; see [`Ops::attention_backward`].
#[derive(Clone, Copy, Debug)]
pub struct Backward {
    pub dqkv: Tensor,
    pub dout: Tensor,
    pub out: Tensor,
    pub lse: Tensor,
    pub qkv: Tensor,
    pub dims: AttentionDims,
}

/// Rows of the tiles that go past: two stages of two tiles are under way.
const TILE_ROWS: usize = 32;
const STREAMED_ROWS: usize = 2 * 2 * TILE_ROWS;

/// Keys of a block: what registers have room for.
const fn keys_of_block(HS: usize) -> usize {
    rows_of_block(if HS <= 64 { 2 } else { 1 })
}
const QUERIES: usize = rows_of_block(2);

/// Bytes of one row of one head in `stats`.
const STATS: usize = 2 * size_of::<f32>();

/// Scratch memory for the two numbers that are kept of each row of each head. Heads start at 16 bytes.
pub fn stats_bytes(dims: AttentionDims) -> usize {
    dims.B * dims.NH * dims.T.next_multiple_of(2) * STATS
}

/// A kernel for one head size: of dK and dV, or of dQ.
type Half = fn(
    &mut dyn Launcher,
    Launch,
    Ptr<FloatX>,
    Ptr<FloatX>,
    Ptr<f32>,
    Ptr<FloatX>,
    i32,
    i32,
    f32,
) -> Result<()>;

/// See [`Ops::attention_backward`].
pub fn backward(cuda: &mut Cuda, a: Backward) -> Result<()> {
    let AttentionDims { B, T, NH, HS } = a.dims;
    assert_lengths(a.dims, &[a.dqkv, a.qkv], &[a.dout, a.out], a.lse);
    let (keys, queries): (Half, Half) = match HS {
        32 => (kernel::attention_backward_keys_hs32, kernel::attention_backward_queries_hs32),
        64 => (kernel::attention_backward_keys_hs64, kernel::attention_backward_queries_hs64),
        80 => (kernel::attention_backward_keys_hs80, kernel::attention_backward_queries_hs80),
        96 => (kernel::attention_backward_keys_hs96, kernel::attention_backward_queries_hs96),
        128 => (kernel::attention_backward_keys_hs128, kernel::attention_backward_queries_hs128),
        _ => unreachable!("lengths are checked"),
    };
    let Cuda { driver, memory: m, .. } = cuda;
    let stats = Ptr::new(m.scratch(stats_bytes(a.dims)));
    let (dqkv, dout, qkv) = (m.x(a.dqkv), m.x(a.dout), m.x(a.qkv));

    /// Threads of a row of a head, and of a block.
    const LANES: usize = 8;
    const THREADS: u32 = 256;
    let rows = Launch::new((B * T * NH * LANES).div_ceil(THREADS as usize), THREADS);
    kernel::attention_backward_stats(
        driver.as_mut(),
        rows,
        stats,
        dout,
        m.x(a.out),
        m.f32(a.lse),
        int(B),
        int(T),
        int(NH),
        int(HS),
    )?;
    let count = keys_of_block(HS);
    let shared = tile_bytes(2 * count + STREAMED_ROWS, HS) + 2 * TILE_ROWS * STATS;
    let launch = blocks(a.dims, m.dtype(), count, shared);
    keys(driver.as_mut(), launch, dqkv, dout, stats, qkv, int(T), int(NH), scale(HS))?;
    let launch = blocks(a.dims, m.dtype(), QUERIES, tile_bytes(2 * QUERIES + STREAMED_ROWS, HS));
    queries(driver.as_mut(), launch, dqkv, dout, stats, qkv, int(T), int(NH), scale(HS))
}
