//! The forward pass, and the single row of it that sampling needs.

use super::*;
use crate::device::cuda::kernel::{FloatX, Ptr, kernels};

kernels! {
    "attention_forward.cu":
    fn attention_forward_hs32(out: Ptr<FloatX>, lse: Ptr<f32>, qkv: Ptr<FloatX>, T: i32, NH: i32, scale: f32);
    fn attention_forward_hs64(out: Ptr<FloatX>, lse: Ptr<f32>, qkv: Ptr<FloatX>, T: i32, NH: i32, scale: f32);
    fn attention_forward_hs80(out: Ptr<FloatX>, lse: Ptr<f32>, qkv: Ptr<FloatX>, T: i32, NH: i32, scale: f32);
    fn attention_forward_hs96(out: Ptr<FloatX>, lse: Ptr<f32>, qkv: Ptr<FloatX>, T: i32, NH: i32, scale: f32);
    fn attention_forward_hs128(out: Ptr<FloatX>, lse: Ptr<f32>, qkv: Ptr<FloatX>, T: i32, NH: i32, scale: f32);
    fn attention_decode(out: Ptr<FloatX>, qkv: Ptr<FloatX>, T: i32, NH: i32, HS: i32, t: i32, scale: f32);
}

const QUERIES: usize = rows_of_block(2);

/// Keys of a tile: what registers have room for the scores of.
const fn keys_of_tile(HS: usize) -> usize {
    if HS <= 80 { 64 } else { 32 }
}

/// See [`Ops::attention_forward`].
pub fn forward(cuda: &mut Cuda, out: Tensor, lse: Tensor, qkv: Tensor, dims: AttentionDims) -> Result<()> {
    let Cuda { driver, memory: m, .. } = cuda;
    let AttentionDims { T, NH, HS, .. } = dims;
    assert_lengths(dims, &[qkv], &[out], lse);
    let forward = match HS {
        32 => kernel::attention_forward_hs32,
        64 => kernel::attention_forward_hs64,
        80 => kernel::attention_forward_hs80,
        96 => kernel::attention_forward_hs96,
        128 => kernel::attention_forward_hs128,
        _ => unreachable!("lengths are checked"),
    };
    // Two stages of keys and values are under way.
    let shared = tile_bytes(QUERIES + 2 * 2 * keys_of_tile(HS), HS);
    let launch = blocks(dims, m.dtype(), QUERIES, shared);
    forward(driver.as_mut(), launch, m.x(out), m.f32(lse), m.x(qkv), int(T), int(NH), scale(HS))
}

/// See [`Ops::attention_decode`].
pub fn decode(cuda: &mut Cuda, out: Tensor, qkv: Tensor, t: usize, dims: AttentionDims) -> Result<()> {
    let Cuda { driver, memory: m, .. } = cuda;
    let AttentionDims { B, T, NH, HS } = dims;
    assert!(t < T && out.len == B * NH * HS && qkv.len == B * T * 3 * NH * HS);
    assert!(HEAD_SIZES.contains(&HS), "a head size of {HS}");
    kernel::attention_decode(
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
