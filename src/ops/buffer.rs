//! Where a tensor lies, for those who move its contents without the host in between: communicators.

use crate::tensor::Dtype;

/// Elements in a device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Of the first element, in the address space of `place`.
    pub address: u64,
    /// In elements.
    pub len: usize,
    pub dtype: Dtype,
    pub place: Place,
}

/// Whose memory it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// This process's. The device has done all that was asked of it.
    Host,
    /// A GPU's, which works on what is queued on this stream (a `CUstream`).
    Gpu { stream: usize },
}

impl Buffer {
    pub fn size_bytes(&self) -> usize {
        self.len * self.dtype.size()
    }
}
