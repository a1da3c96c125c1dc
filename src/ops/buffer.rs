//! The place of a tensor in memory, for communicators, which move its contents without a copy to
//! the host.

use crate::tensor::Dtype;

/// Elements in a device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Address of the first element, in the address space of `place`.
    pub address: u64,
    /// Number of elements.
    pub len: usize,
    pub dtype: Dtype,
    pub place: Place,
}

/// The owner of the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// This process. The device has finished all queued work.
    Host,
    /// A GPU, whose work is queued on this stream (a `CUstream`).
    Gpu { stream: usize },
}

impl Buffer {
    pub fn size_bytes(&self) -> usize {
        self.len * self.dtype.size()
    }
}
