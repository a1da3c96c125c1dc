//! How launches are run.

/// The order in which runnable threads take turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// The next one, in the same warp if possible: warps take turns from operation to operation.
    Ascending,
    /// The previous one.
    Descending,
    /// Any one: the same seed gives the same order.
    Random(u64),
    /// Always the first: low warps run ahead as far as they can.
    AheadLow,
    /// Always the last: high warps run ahead as far as they can.
    AheadHigh,
}

/// When asynchronous copies land.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copies {
    /// As soon as they are issued: finds buffers that are refilled too early.
    Eager,
    /// When a thread waits for them; until then their destination is NaN. Finds reads that come too
    /// early.
    Late,
    /// Either, at random.
    Random,
}

/// How launches are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmulatorOptions {
    pub schedule: Schedule,
    pub copies: Copies,
    /// Checks every access to memory: bounds, initialization, races, lent memory. 5 to 20 times
    /// slower. Without it, only kernel arguments and host accesses are checked for lent memory.
    pub check: bool,
    /// Counts what launches ask of memory and of the tensor cores. Works with and without the
    /// checker, and is as slow.
    pub count: bool,
    /// Blocks that run at the same time; sums by atomics then depend on timing. Launches that are
    /// checked or counted run one block at a time.
    pub threads: usize,
    /// The compute capability that the device reports, by which callers choose kernels. It executes
    /// any.
    pub capability: (u32, u32),
}

impl Default for EmulatorOptions {
    fn default() -> Self {
        let (schedule, copies) = (Schedule::Ascending, Copies::Late);
        EmulatorOptions { schedule, copies, check: false, count: false, threads: 1, capability: (9, 0) }
    }
}
