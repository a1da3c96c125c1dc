//! Attention forward by Hopper's instructions. `attention_hopper_forward.cu` says how it works.

use super::{assert_lengths, int, scale, tile_bytes};
use crate::device::cuda::Cuda;
use crate::device::cuda::kernel::{FloatX, Launch, Launcher, Ptr, kernels};
use crate::device::cuda::tensor_map::{TensorMap, TiledMatrix};
use crate::ops::*;
use crate::tensor::{Dtype, Tensor};
use anyhow::Result;

kernels! {
    "attention_hopper_forward.cu":
    const FORWARD: [Forward] = [
        attention_hopper_forward_hs64, attention_hopper_forward_hs80, attention_hopper_forward_hs96,
        attention_hopper_forward_hs128,
    ](
        out: Ptr<FloatX>, lse: Ptr<f32>, wide: TensorMap, rest: TensorMap, counter: Ptr<u32>, heads: i32, T: i32,
        NH: i32, scale: f32,
    );
}

/// Head sizes that have kernels, in the order in which these are declared.
const HEAD_SIZES: [usize; 4] = [64, 80, 96, 128];

// As in attention_hopper.cuh and attention_hopper_forward.cu.
const WIDE_COLUMNS: usize = 64;
const TILE_ROWS: usize = 128;
const THREADS: u32 = 384;
const ITEMS: usize = 2;
/// Items and barriers.
const OTHER_BYTES: usize = 256;

/// Returns the stages of keys and values.
const fn stages(HS: usize) -> usize {
    if HS <= 96 { 3 } else { 2 }
}

/// Whether these kernels serve the device and the head size.
pub fn suits(cuda: &Cuda, dims: AttentionDims) -> bool {
    let is_hopper = cuda.driver.info().capability == (9, 0);
    is_hopper && cuda.memory.dtype() != Dtype::F32 && HEAD_SIZES.contains(&dims.HS)
}

/// One block per SM, or per tile of queries if there are fewer. It holds tiles of queries, keys,
/// values and results.
fn launch(dims: AttentionDims, sm_count: usize) -> Launch {
    let AttentionDims { B, T, NH, HS } = dims;
    let tiles = ITEMS + 2 * stages(HS) + 1;
    let blocks = sm_count.min(B * NH * T.div_ceil(TILE_ROWS));
    Launch::new(blocks, THREADS).shared(tile_bytes(tiles * TILE_ROWS, HS) + OTHER_BYTES)
}

/// Returns the maps of a matrix with a row of heads per position: for boxes of 64 columns of a
/// head, and of the columns that remain. The second is unused if there are none.
fn maps(
    device: &dyn Launcher,
    matrix: Ptr<FloatX>,
    dims: AttentionDims,
    columns: usize,
) -> Result<[TensorMap; 2]> {
    let rest = dims.HS % WIDE_COLUMNS;
    let of = |box_columns| {
        let (address, rows) = (matrix.address(), dims.B * dims.T);
        device.tensor_map(&TiledMatrix { address, rows, columns, box_rows: TILE_ROWS, box_columns })
    };
    Ok([of(WIDE_COLUMNS)?, of(if rest == 0 { WIDE_COLUMNS } else { rest })?])
}

/// See [`Ops::attention_forward`].
pub fn forward(cuda: &mut Cuda, out: Tensor, lse: Tensor, qkv: Tensor, dims: AttentionDims) -> Result<()> {
    assert_lengths(dims, &[qkv], &[out], lse);
    let Cuda { driver, memory: m, .. } = cuda;
    let AttentionDims { B, T, NH, HS } = dims;
    let [wide, rest] = maps(driver.as_ref(), m.x(qkv), dims, 3 * NH * HS)?;
    let kernel =
        kernel::FORWARD[HEAD_SIZES.iter().position(|&size| size == HS).expect("a head size that suits")];
    let launch = launch(dims, driver.info().sm_count);
    let (out, lse, counter) = (m.x(out), m.f32(lse), m.signals().counter());
    let (heads, T, NH) = (int(B * NH), int(T), int(NH));
    kernel(driver.as_mut(), launch, out, lse, wide, rest, counter, heads, T, NH, scale(HS))
}
