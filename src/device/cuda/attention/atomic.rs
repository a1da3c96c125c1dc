//! The backward pass in one kernel, which adds dQ to f32 sums with atomics.
//!
//! The sums are those of a launch, not of the whole batch: few enough to stay in the L2 cache, and
//! to fit wherever a model does. The last block of a head rounds its sums and leaves them at zero
//! for a head of the next launch.

use super::{AttentionBackward, STATS, for_head_size, int, scale, stats_bytes, tile_bytes};
use crate::device::cuda::driver::Driver;
use crate::device::cuda::kernel::{FloatX, Launch, Ptr, kernels};
use crate::device::cuda::memory::Memory;
use crate::ops::*;
use anyhow::Result;

kernels! {
    "attention_backward_atomic.cu":
    const BACKWARD: [Kernel] = [
        attention_backward_atomic_hs32, attention_backward_atomic_hs64, attention_backward_atomic_hs80,
        attention_backward_atomic_hs96, attention_backward_atomic_hs128,
    ](
        dqkv: Ptr<FloatX>, sums: Ptr<f32>, counters: Ptr<u32>, dout: Ptr<FloatX>, stats: Ptr<f32>, qkv: Ptr<FloatX>,
        positions: Ptr<i32>, first_head: i32, T: i32, NH: i32, scale: f32,
    );
}

const THREADS: u32 = 256;
const KEYS: usize = 128;

/// Sums of a launch in bytes, unless a single head has more: 128 heads of 64 columns at T = 1024.
const MOST_SUMS: usize = 32 << 20;
/// Bytes of a counter for each head of a launch.
const COUNTERS: usize = MOST_SUMS / head_bytes(1, 32) * size_of::<u32>();

/// Queries per step, of all warps.
const fn queries(HS: usize) -> usize {
    if HS <= 64 { 64 } else { 32 }
}

/// Shared memory of a block: keys, two stages of queries, dout and their stats, and two tiles of
/// dS. Values have memory of their own if they do not fit in registers.
const fn shared_bytes(HS: usize) -> usize {
    let stage = tile_bytes(2 * queries(HS), HS) + queries(HS) * STATS;
    let values = if HS == 64 { tile_bytes(KEYS, HS) } else { 0 };
    tile_bytes(KEYS, HS) + 2 * stage + 2 * tile_bytes(KEYS, queries(HS)) + values
}

/// Bytes of a head's sums.
const fn head_bytes(T: usize, HS: usize) -> usize {
    T.next_multiple_of(queries(HS)) * HS * size_of::<f32>()
}

/// Scratch memory besides the stats, for the longest sequences. Shorter ones have more heads, but
/// no head with more sums, and are content with the same.
pub fn scratch_bytes(limits: &Limits) -> usize {
    let head = head_bytes(limits.T, limits.C / limits.NH);
    let heads = limits.rows.div_ceil(limits.T) * limits.NH;
    COUNTERS + head.max(MOST_SUMS.min(heads * head))
}

/// Queues the kernel for all heads. `stats` are at the start of scratch memory.
///
/// # Errors
/// If the device refuses a launch.
pub fn run(dev: &mut dyn Driver, m: &Memory, a: AttentionBackward) -> Result<()> {
    let AttentionDims { B, T, NH, HS } = a.dims;
    let (before, heads, head) = (stats_bytes(a.dims) + COUNTERS, B * NH, head_bytes(T, HS));
    let room = m.all_scratch().1.saturating_sub(before).min(MOST_SUMS);
    let at_once = (room / head).clamp(1, heads);
    let sums_bytes = at_once * head;
    let scratch = m.scratch(before + sums_bytes);
    let (stats, sums) = (Ptr::new(scratch), Ptr::new(scratch + before as u64));
    let counters = Ptr::new(sums.address() - COUNTERS as u64);
    dev.clear(counters.address(), COUNTERS + sums_bytes)?;
    let (dqkv, dout, qkv) = (m.x(a.dqkv), m.x(a.dout), m.x(a.qkv));
    let positions = m.positions(a.positions, a.dims);
    let kernel = for_head_size(kernel::BACKWARD, HS);
    for first in (0..heads).step_by(at_once) {
        let blocks = at_once.min(heads - first) * T.div_ceil(KEYS);
        let launch = Launch::new(blocks, THREADS).shared(shared_bytes(HS));
        let (first, T, NH) = (int(first), int(T), int(NH));
        kernel(dev, launch, dqkv, sums, counters, dout, stats, qkv, positions, first, T, NH, scale(HS))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::HEAD_SIZES;
    use super::*;

    #[test]
    fn blocks_fit_in_99_kib_and_counters_suffice() {
        for HS in HEAD_SIZES {
            assert!(shared_bytes(HS) <= 99 << 10, "{HS}");
            assert!(MOST_SUMS / head_bytes(1, HS) * size_of::<u32>() <= COUNTERS, "{HS}");
        }
    }
}
