//! Copies between host and device by way of pinned memory: the GPU reads and writes it by itself, while the host goes on.

use super::message;
use super::stream::{Event, Stream};
use anyhow::Result;
use cudarc::driver::result as cu;
use cudarc::driver::result::DriverError;

/// A ring of pinned buffers. A micro-step's tokens, targets and buckets take a handful, so that the host can be some micro-steps
/// ahead; what is longer (weights, checkpoints) goes through in pieces, one being filled while the others are on their way.
pub struct Staging {
    buffers: Vec<Pinned>,
    next: usize,
}

const BUFFERS: usize = 16;
/// Long enough for the bus to run at full speed.
const BUFFER_BYTES: usize = 1 << 20;

impl Staging {
    pub fn new() -> Result<Self> {
        let buffers: Result<Vec<Pinned>> = (0..BUFFERS).map(|_| Pinned::new()).collect();
        Ok(Staging { buffers: buffers?, next: 0 })
    }

    /// Queues a copy; `src` has been read when this returns.
    pub fn upload(&mut self, stream: &Stream, dst: u64, src: &[u8]) -> Result<(), DriverError> {
        for (i, piece) in src.chunks(BUFFER_BYTES).enumerate() {
            let buffer = self.take()?;
            buffer.bytes()[..piece.len()].copy_from_slice(piece);
            let address = dst + (i * BUFFER_BYTES) as u64;
            // SAFETY: the caller vouches for the range on the device; the buffer is left alone until its event has passed.
            unsafe { cu::memcpy_htod_async(address, &buffer.bytes()[..piece.len()], stream.raw()) }?;
            buffer.done.record(stream)?;
        }
        Ok(())
    }

    /// Copies what `src` holds after all work queued so far.
    pub fn download(&mut self, stream: &Stream, dst: &mut [u8], src: u64) -> Result<(), DriverError> {
        let mut address = src;
        for round in dst.chunks_mut(BUFFERS * BUFFER_BYTES) {
            let first = self.next;
            for piece in round.chunks(BUFFER_BYTES) {
                let buffer = self.take()?;
                // SAFETY: as in `upload`.
                unsafe { cu::memcpy_dtoh_async(&mut buffer.bytes()[..piece.len()], address, stream.raw()) }?;
                buffer.done.record(stream)?;
                address += piece.len() as u64;
            }
            for (i, piece) in round.chunks_mut(BUFFER_BYTES).enumerate() {
                let buffer = &mut self.buffers[(first + i) % BUFFERS];
                buffer.done.synchronize()?;
                piece.copy_from_slice(&buffer.bytes()[..piece.len()]);
            }
        }
        Ok(())
    }

    /// The buffer unused for the longest time, when the device is done with it.
    fn take(&mut self) -> Result<&mut Pinned, DriverError> {
        let buffer = &mut self.buffers[self.next];
        self.next = (self.next + 1) % BUFFERS;
        buffer.done.synchronize()?;
        Ok(buffer)
    }
}

/// Memory of the host that the GPU can reach.
struct Pinned {
    address: *mut u8,
    /// The copy from or to it.
    done: Event,
}

impl Pinned {
    fn new() -> Result<Self> {
        let done = Event::new()?;
        // SAFETY: no preconditions beyond a context; released by `drop`.
        let address =
            unsafe { cu::malloc_host(BUFFER_BYTES, 0) }.map_err(|e| message("pinning memory", e))?;
        let address: *mut u8 = address.cast();
        // SAFETY: just allocated, with that length.
        unsafe { address.write_bytes(0, BUFFER_BYTES) };
        Ok(Pinned { address, done })
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: allocated with that length and initialised; the device is done with it, see `Staging::take`.
        unsafe { std::slice::from_raw_parts_mut(self.address, BUFFER_BYTES) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated once, freed once, after `Nvidia::drop` has waited for all copies.
        let _ = unsafe { cu::free_host(self.address.cast()) };
    }
}
