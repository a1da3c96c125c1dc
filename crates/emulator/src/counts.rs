//! What launches asked of memory and of the tensor cores, as the emulated device counts it. A GPU has profilers for that.

use std::ops::AddAssign;

/// Sums over launches. The same work always gives the same numbers, in every schedule.
///
/// Lanes that come to the same place in a kernel between two meetings of their warp count as one instruction; where the lanes
/// of a warp part in between, that is a guess. Loads and stores are those that the host's compiler makes of the kernel, hardly
/// optimised: nvcc may keep a value that is loaded again here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub launches: u64,
    /// Instructions of a warp that read or write global memory; copies by TMA and cp.async among them. An atomic is one
    /// that reads and writes.
    pub global_requests: u64,
    /// Sectors of 32 bytes that each of these instructions touches: what goes between a multiprocessor and the L2 cache if
    /// the multiprocessor keeps nothing in its own.
    pub sectors_read: u64,
    pub sectors_written: u64,
    /// Bytes of the sectors that a launch touches at all: what goes to and from memory if the L2 cache keeps everything.
    pub bytes_read: u64,
    pub bytes_written: u64,
    /// Turns of 128 bytes that shared memory took, and how many it would have taken without bank conflicts: loads and stores,
    /// ldmatrix, what cp.async and TMA write, and the operands of wgmma, B once for its four warps. Barriers are left out.
    pub shared_turns: u64,
    pub shared_turns_without_conflicts: u64,
    /// Multiplications and additions of tensor cores, whole tiles: also those of zeros at the edge of a matrix.
    pub tensor_flops: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.launches += other.launches;
        self.global_requests += other.global_requests;
        self.sectors_read += other.sectors_read;
        self.sectors_written += other.sectors_written;
        self.bytes_read += other.bytes_read;
        self.bytes_written += other.bytes_written;
        self.shared_turns += other.shared_turns;
        self.shared_turns_without_conflicts += other.shared_turns_without_conflicts;
        self.tensor_flops += other.tensor_flops;
    }
}
