//! The work that launches ask of memory and of tensor cores, as the emulator counts it. A GPU has
//! profilers for that.

use std::ops::AddAssign;

/// Sums over launches. The same work gives the same numbers in every schedule.
///
/// Accesses of different lanes from the same place in a kernel count as one instruction if they lie
/// between two synchronizations of their warp; where lanes diverge in between, that is a guess.
/// Loads and stores are those that the host's compiler makes, hardly optimized: nvcc may keep a
/// value that is loaded again here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub launches: u64,
    /// Warp instructions that read or write global memory, including copies by TMA and cp.async. An
    /// atomic is one that reads and writes.
    pub global_requests: u64,
    /// Sectors of 32 bytes that these instructions touch: the traffic between an SM and the L2
    /// cache if the SM caches nothing.
    pub sectors_read: u64,
    pub sectors_written: u64,
    /// Bytes in distinct sectors that a launch touches: the traffic to and from memory if the L2
    /// cache keeps everything.
    pub bytes_read: u64,
    pub bytes_written: u64,
    /// Wavefronts of 128 bytes in shared memory, and how many there would be without bank
    /// conflicts: loads and stores, ldmatrix and stmatrix, writes by cp.async, copies by TMA in
    /// either direction, and the operands of wgmma, with B once for its four warps. Barriers do not
    /// count.
    pub shared_wavefronts: u64,
    pub shared_wavefronts_without_conflicts: u64,
    /// Multiplications and additions of tensor cores in full tiles, including the zeros at the edge
    /// of a matrix.
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
        self.shared_wavefronts += other.shared_wavefronts;
        self.shared_wavefronts_without_conflicts += other.shared_wavefronts_without_conflicts;
        self.tensor_flops += other.tensor_flops;
    }
}
