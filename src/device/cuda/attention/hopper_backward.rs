//! The backward pass of attention on Hopper, for heads of 64. `attention_hopper_backward.cu` says
//! how it works.

use super::{AttentionBackward, assert_lengths, int, scale};
use crate::device::cuda::Cuda;
use crate::device::cuda::kernel::{FloatX, Launch, Ptr, kernels};
use crate::device::cuda::tensor_map::{TensorMap, TiledMatrix};
use crate::ops::*;
use crate::tensor::Dtype;
use anyhow::{Result, ensure};

kernels! {
    "attention_hopper_backward.cu":
    fn attention_hopper_backward_hs64(
        dqkv: Ptr<FloatX>, qkv: TensorMap, dout: TensorMap, out: TensorMap, lse: Ptr<f32>, sums: Ptr<f32>,
        deltas: Ptr<f32>, turns: Ptr<u32>, counter: Ptr<u32>, T: i32, NH: i32, heads: i32, group: i32, scale: f32,
    );
}

// As in attention_hopper_backward.cu.
const HS: usize = 64;
/// Keys of a tile, and queries.
const ROWS: usize = 128;
const STAGES: usize = 2;
const THREADS: u32 = 384;
/// Tiles of 16-bit numbers in shared memory: K, V, Q and dO in stages, and O.
const TILES: usize = STAGES * 4 + 1;
/// Descriptions of items, and barriers.
const OTHER_BYTES: usize = STAGES * 16 + (5 * STAGES + 5) * 8;

/// The heads whose tiles of queries are worked on at the same time.
#[derive(Clone, Copy, Debug)]
struct Group {
    heads: usize,
    /// Tiles of queries per head.
    tiles: usize,
}

impl Group {
    /// About two tiles of queries for each SM: then the key tiles of a head start about as long
    /// after each other as a tile of queries takes, and find what they wait for.
    fn new(sm_count: usize, T: usize) -> Self {
        let tiles = T.div_ceil(ROWS);
        Group { heads: (2 * sm_count / tiles).max(1), tiles }
    }

    /// The tiles of queries that have sums, deltas and a turn: those of two groups.
    fn places(self) -> usize {
        2 * self.heads * self.tiles
    }
}

/// Bytes of the sums of dQ at a place, and of the deltas.
const SUM_BYTES: usize = ROWS * HS * size_of::<f32>();
const DELTA_BYTES: usize = ROWS * size_of::<f32>();

/// Whether this kernel serves the device and the head size.
pub fn suits(cuda: &Cuda, head_size: usize) -> bool {
    let is_hopper = cuda.driver.info().capability == (9, 0);
    is_hopper && cuda.options.dtype != Dtype::F32 && head_size == HS
}

/// The scratch memory for sequences of up to `T` positions.
///
/// # Errors
/// If there are not enough signals for so many.
pub fn scratch_bytes(cuda: &Cuda, T: usize) -> Result<usize> {
    const MOST_TILES: usize = 512;
    ensure!(
        T <= MOST_TILES * ROWS,
        "attention over {T} positions; at most {} are supported",
        MOST_TILES * ROWS
    );
    let sm_count = cuda.driver.info().sm_count;
    let most = Group::new(sm_count, 1).places().max(Group::new(sm_count, T).places());
    Ok(most * (SUM_BYTES + DELTA_BYTES))
}

/// See [`Ops::attention_backward`].
pub fn backward(cuda: &mut Cuda, a: AttentionBackward) -> Result<()> {
    let AttentionDims { B, T, NH, .. } = a.dims;
    assert_lengths(a.dims, &[a.dqkv, a.qkv], &[a.dout, a.out], a.lse);
    let Cuda { driver, memory: m, .. } = cuda;
    let sm_count = driver.info().sm_count;
    let group = Group::new(sm_count, T);
    let (places, signals) = (group.places(), m.signals());
    assert!(places <= signals.flags, "{places} turns, {} flags", signals.flags);
    let scratch = m.scratch(places * (SUM_BYTES + DELTA_BYTES));
    let (sums, deltas) = (Ptr::new(scratch), Ptr::new(scratch + (places * SUM_BYTES) as u64));
    let (dqkv, lse, dev) = (m.x(a.dqkv), m.f32(a.lse), driver.as_mut());
    let maps = [(a.qkv, 3 * NH * HS), (a.dout, NH * HS), (a.out, NH * HS)];
    let [qkv, dout, out] = maps.map(|(matrix, columns)| {
        let (address, rows) = (m.x(matrix).address(), B * T);
        dev.tensor_map(&TiledMatrix { address, rows, columns, box_rows: ROWS, box_columns: HS })
    });
    let heads = B * NH;
    let shared = TILES * ROWS * HS * 2 + ROWS * ROWS * 2 + SUM_BYTES + STAGES * 2 * DELTA_BYTES + OTHER_BYTES;
    let launch = Launch::new((heads * group.tiles).min(sm_count), THREADS).shared(shared);
    kernel::attention_hopper_backward_hs64(
        dev,
        launch,
        dqkv,
        qkv?,
        dout?,
        out?,
        lse,
        sums,
        deltas,
        signals.first_flag(),
        signals.counter(),
        int(T),
        int(NH),
        int(heads),
        int(group.heads),
        scale(HS),
    )
}
