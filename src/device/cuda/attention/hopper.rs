//! Attention backward by Hopper's instructions, for heads of 64. `attention_hopper.cu` says how it
//! works.

use super::{Backward, STATS, assert_lengths, int, scale, stats_bytes, tile_bytes};
use crate::device::cuda::Cuda;
use crate::device::cuda::kernel::{FloatX, Launch, Launcher, Ptr, kernels};
use crate::device::cuda::tensor_map::{TensorMap, TiledMatrix};
use crate::ops::*;
use crate::tensor::Dtype;
use anyhow::Result;

kernels! {
    "attention_hopper.cu":
    fn attention_hopper_backward_queries_hs64(
        dqkv: Ptr<FloatX>, qkv: TensorMap, dout: TensorMap, out: TensorMap, lse: Ptr<f32>, stats: Ptr<f32>, T: i32,
        NH: i32, scale: f32,
    );
    fn attention_hopper_backward_keys_hs64(
        dqkv: Ptr<FloatX>, qkv: TensorMap, dout: TensorMap, stats: Ptr<f32>, T: i32, NH: i32, scale: f32,
    );
}

// As in attention_hopper.cu.
const HS: usize = 64;
const ROWS: usize = 64;
const STAGES: usize = 3;
const WARPGROUP: u32 = 128;
const BARRIER_BYTES: usize = 8;

/// Whether these kernels serve the device and the head size.
pub fn suits(cuda: &Cuda, dims: AttentionDims) -> bool {
    cuda.driver.info().capability == (9, 0) && cuda.memory.dtype() != Dtype::F32 && dims.HS == HS
}

/// A launch with one block per `warpgroups` tiles of each head. A block keeps `stationary` tiles,
/// two per stage, and the statistics of two tiles, aligned to 16 bytes.
fn blocks(dims: AttentionDims, warpgroups: usize, stationary: usize) -> Launch {
    let tiles = tile_bytes((stationary + 2 * STAGES) * ROWS, HS);
    let shared = tiles + (STAGES * BARRIER_BYTES).next_multiple_of(16) + 2 * ROWS * STATS;
    let count = dims.B * dims.NH * dims.T.div_ceil(warpgroups * ROWS);
    Launch::new(count, warpgroups as u32 * WARPGROUP).shared(shared)
}

/// Returns the map of a matrix with a row of `columns` per position.
fn map(device: &dyn Launcher, matrix: Ptr<FloatX>, dims: AttentionDims, columns: usize) -> Result<TensorMap> {
    let rows = dims.B * dims.T;
    device.tensor_map(&TiledMatrix {
        address: matrix.address(),
        rows,
        columns,
        box_rows: ROWS,
        box_columns: HS,
    })
}

/// See [`Ops::attention_backward`]. The kernel for dQ comes first: it leaves the statistics that
/// the other one reads.
pub fn backward(cuda: &mut Cuda, a: Backward) -> Result<()> {
    let AttentionDims { T, NH, .. } = a.dims;
    assert_lengths(a.dims, &[a.dqkv, a.qkv], &[a.dout, a.out], a.lse);
    let Cuda { driver, memory: m, .. } = cuda;
    let stats = Ptr::new(m.scratch(stats_bytes(a.dims)));
    let (dqkv, lse, dev) = (m.x(a.dqkv), m.f32(a.lse), driver.as_mut());
    let maps = [(a.qkv, 3 * NH * HS), (a.dout, NH * HS), (a.out, NH * HS)];
    let [qkv, dout, out] = maps.map(|(matrix, columns)| map(dev, m.x(matrix), a.dims, columns));
    let (qkv, dout, out) = (qkv?, dout?, out?);
    let (T, NH, scale) = (int(T), int(NH), scale(HS));
    let launch = blocks(a.dims, 2, 4);
    kernel::attention_hopper_backward_queries_hs64(
        dev, launch, dqkv, qkv, dout, out, lse, stats, T, NH, scale,
    )?;
    let launch = blocks(a.dims, 1, 2);
    kernel::attention_hopper_backward_keys_hs64(dev, launch, dqkv, qkv, dout, stats, T, NH, scale)
}
