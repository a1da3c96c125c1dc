//! Copies between host and device through pinned memory, which the GPU reads and writes by itself
//! while the host continues.

use crate::libraries::cuda_error;
use anyhow::Result;
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, PinnedHostSlice, result as cu};
use std::sync::Arc;

/// A ring of pinned buffers. Tokens, targets and buckets of a micro-step take a handful of them, so
/// the host can be some micro-steps ahead. Longer transfers (weights, checkpoints) go in pieces:
/// one is filled while the others are in flight.
pub struct Staging {
    buffers: Vec<Buffer>,
    next: usize,
}

const BUFFERS: usize = 16;
/// Long enough for the bus to run at full speed.
const BUFFER_BYTES: usize = 1 << 20;

impl Staging {
    pub fn new(context: &Arc<CudaContext>) -> Result<Self> {
        let buffers: Result<Vec<Buffer>> = (0..BUFFERS).map(|_| Buffer::new(context)).collect();
        Ok(Staging { buffers: buffers?, next: 0 })
    }

    /// Queues a copy; `src` has been read when this returns.
    pub fn upload(&mut self, stream: &CudaStream, dst: u64, src: &[u8]) -> Result<(), DriverError> {
        for (i, piece) in src.chunks(BUFFER_BYTES).enumerate() {
            let buffer = self.take()?;
            let pinned = &mut buffer.bytes.as_mut_slice()?[..piece.len()];
            pinned.copy_from_slice(piece);
            let address = dst + (i * BUFFER_BYTES) as u64;
            // SAFETY: the caller vouches for the range on the device. `take` hands the buffer out
            // again only after the event recorded below has passed.
            unsafe { cu::memcpy_htod_async(address, pinned, stream.cu_stream()) }?;
            buffer.done.record(stream)?;
        }
        Ok(())
    }

    /// Copies what `src` holds after all work queued so far.
    pub fn download(&mut self, stream: &CudaStream, dst: &mut [u8], src: u64) -> Result<(), DriverError> {
        let mut address = src;
        for round in dst.chunks_mut(BUFFERS * BUFFER_BYTES) {
            let first = self.next;
            for piece in round.chunks(BUFFER_BYTES) {
                let buffer = self.take()?;
                let pinned = &mut buffer.bytes.as_mut_slice()?[..piece.len()];
                // SAFETY: the caller vouches for the range on the device. The buffer is read, or
                // handed out again, only after the event recorded below has passed.
                unsafe { cu::memcpy_dtoh_async(pinned, address, stream.cu_stream()) }?;
                buffer.done.record(stream)?;
                address += piece.len() as u64;
            }
            for (i, piece) in round.chunks_mut(BUFFER_BYTES).enumerate() {
                let buffer = &mut self.buffers[(first + i) % BUFFERS];
                buffer.done.synchronize()?;
                piece.copy_from_slice(&buffer.bytes.as_slice()?[..piece.len()]);
            }
        }
        Ok(())
    }

    /// Returns the buffer that has been unused for the longest time, once the device is done with
    /// it.
    fn take(&mut self) -> Result<&mut Buffer, DriverError> {
        let buffer = &mut self.buffers[self.next];
        self.next = (self.next + 1) % BUFFERS;
        buffer.done.synchronize()?;
        Ok(buffer)
    }
}

/// Pinned memory, and the copy from or to it.
struct Buffer {
    bytes: PinnedHostSlice<u8>,
    /// The slice has an event of its own, which cudarc records only when it tracks events.
    done: CudaEvent,
}

impl Buffer {
    fn new(context: &Arc<CudaContext>) -> Result<Self> {
        let failed = |e| cuda_error("pinning memory", e);
        let done = context.new_event(None).map_err(|e| cuda_error("cuEventCreate", e))?;
        // No flags: write-combined memory, cudarc's default, is slow to read on the host.
        // SAFETY: the bytes are initialized before any is read.
        let mut bytes: PinnedHostSlice<u8> =
            unsafe { context.alloc_pinned_with_flags(BUFFER_BYTES, 0) }.map_err(failed)?;
        // SAFETY: the allocation is `BUFFER_BYTES` long, and nothing else refers to it yet.
        unsafe { bytes.as_mut_ptr().map_err(failed)?.write_bytes(0, BUFFER_BYTES) };
        Ok(Buffer { bytes, done })
    }
}
