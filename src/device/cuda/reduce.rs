//! Sums, the global norm, and fills.

use super::Cuda;
use super::driver::Driver;
use super::kernel::{FloatX, Launch, Ptr, kernels};
use crate::ops::*;
use crate::tensor::{Dtype, Tensor};
use anyhow::Result;

kernels! {
    "reduce.cu":
    fn norm_squared_partials(partials: Ptr<f32>, src: Ptr<FloatX>, n: u64);
    fn sum_partials(partials: Ptr<f32>, src: Ptr<f32>, n: u64);
    fn sum_of_partials(out: Ptr<f32>, partials: Ptr<f32>, n: i32);
    fn fill_x(dst: Ptr<FloatX>, value: f32, n: u64);
    fn fill_f32(dst: Ptr<f32>, value: f32, n: u64);
}

const SUM_THREADS: usize = 512;
/// Blocks of sums per SM.
const SUM_BLOCKS: usize = 4;
const FILL_THREADS: usize = 256;

/// Returns the most partial sums of one piece.
pub fn most_partials(sm_count: usize) -> usize {
    sm_count * SUM_BLOCKS
}

/// Returns room for a number per block and piece, and one for a sum: 2 KB per piece on a GPU with
/// 132 SMs.
pub fn scratch_bytes(cuda: &Cuda, limits: &Limits) -> usize {
    (limits.norm_pieces.max(1) * most_partials(cuda.driver.info().sm_count) + 1) * size_of::<f32>()
}

/// Returns the number of blocks for a sum of `src`.
fn blocks(cuda: &Cuda, src: Tensor) -> usize {
    blocks_at(cuda.driver.info().sm_count, cuda.memory.address(src), src.size_bytes())
}

fn blocks_at(sm_count: usize, address: u64, bytes: usize) -> usize {
    assert!(address.is_multiple_of(16), "a sum reads 16 bytes at a time");
    (bytes / 16).div_ceil(SUM_THREADS).clamp(1, most_partials(sm_count))
}

/// Queues the squared norm of `len` elements at an address, with room for [`most_partials`] at
/// `partials`.
pub fn norm_squared_at(
    dev: &mut dyn Driver,
    out: Ptr<f32>,
    partials: Ptr<f32>,
    (src, len): (Ptr<FloatX>, usize),
    dtype: Dtype,
) -> Result<()> {
    let blocks = blocks_at(dev.info().sm_count, src.address(), len * dtype.size());
    let launch = Launch::new(blocks, SUM_THREADS as u32);
    kernel::norm_squared_partials(dev, launch, partials, src, len as u64)?;
    kernel::sum_of_partials(dev, Launch::new(1, SUM_THREADS as u32), out, partials, blocks as i32)
}

/// Queues the squared norm of all pieces. Each leaves its partial sums after those of the pieces
/// before it.
pub fn norm_squared(cuda: &mut Cuda, out: Tensor, src: &[Tensor]) -> Result<()> {
    let blocks: Vec<usize> = src.iter().map(|&piece| blocks(cuda, piece)).collect();
    let total: usize = blocks.iter().sum();
    let partials = cuda.memory.scratch(total * size_of::<f32>());
    let Cuda { driver, memory: m, .. } = cuda;
    let (dev, mut end) = (driver.as_mut(), partials);
    for (piece, blocks) in src.iter().zip(blocks) {
        let launch = Launch::new(blocks, SUM_THREADS as u32);
        kernel::norm_squared_partials(dev, launch, Ptr::new(end), m.x(*piece), piece.len as u64)?;
        end += (blocks * size_of::<f32>()) as u64;
    }
    let launch = Launch::new(1, SUM_THREADS as u32);
    kernel::sum_of_partials(dev, launch, m.f32(out), Ptr::new(partials), total as i32)
}

pub fn sum(cuda: &mut Cuda, out: Tensor, src: Tensor) -> Result<()> {
    let blocks = blocks(cuda, src);
    let Cuda { driver, memory: m, .. } = cuda;
    let partials = Ptr::new(m.scratch(blocks * size_of::<f32>()));
    let (dev, launch) = (driver.as_mut(), Launch::new(blocks, SUM_THREADS as u32));
    kernel::sum_partials(dev, launch, partials, m.f32(src), src.len as u64)?;
    kernel::sum_of_partials(dev, Launch::new(1, SUM_THREADS as u32), m.f32(out), partials, blocks as i32)
}

pub fn fill(cuda: &mut Cuda, dst: Tensor, value: f32) -> Result<()> {
    let Cuda { driver, memory: m, .. } = cuda;
    if value.to_bits() == 0 {
        return driver.clear(m.address(dst), dst.size_bytes());
    }
    // The most runs of 16 bytes that dst can touch.
    let runs = dst.size_bytes() / 16 + 2;
    let launch = Launch::new(runs.div_ceil(FILL_THREADS), FILL_THREADS as u32);
    match dst.dtype {
        Dtype::F32 => kernel::fill_f32(driver.as_mut(), launch, m.f32(dst), value, dst.len as u64),
        _ => kernel::fill_x(driver.as_mut(), launch, m.x(dst), value, dst.len as u64),
    }
}
