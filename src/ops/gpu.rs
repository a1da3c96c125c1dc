//! A GPU as its driver describes it.

/// The properties of a GPU that estimates need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// The vendor's name for it: `NVIDIA H200`.
    pub name: String,
    pub memory_bytes: usize,
    /// The type that matmuls multiply: `bf16`, `fp16`, `tf32` or `f32`.
    pub operands: &'static str,
}

/// Bytes of a GPU's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuMemory {
    /// In use by this process; `None` where the driver does not tell processes apart, as in some
    /// containers.
    pub process: Option<u64>,
    /// In use by all processes, and by the driver.
    pub used: u64,
    pub free: u64,
}
