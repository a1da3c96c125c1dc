//! What is under the op layer: NVIDIA's driver, or the emulated device. Everything is queued in one order; only
//! [`Driver::download`] and [`Driver::synchronize`] wait.

use super::counts::Counts;
use super::kernel::Launcher;
use super::matmul_library::MatmulLibrary;
use crate::ops::Place;
use anyhow::{Result, bail};
use std::collections::BTreeMap;

/// What the op layer and the start-up table want to know of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// As the vendor calls it: `NVIDIA H200`.
    pub name: String,
    /// Compute capability: (9, 0).
    pub capability: (u32, u32),
    /// Streaming multiprocessors, by which persistent kernels size their grids.
    pub sm_count: usize,
    pub memory_bytes: usize,
    /// Most dynamic shared memory a block can have.
    pub shared_bytes: usize,
    pub emulated: bool,
}

/// A device that runs the kernels under `kernels/`, compiled for one `floatX`.
pub trait Driver: Launcher {
    fn info(&self) -> &DeviceInfo;

    /// Device memory, zeroed, aligned to 256 bytes or more, for as long as the driver lives.
    ///
    /// # Errors
    /// If there is not enough.
    fn allocate(&mut self, bytes: usize) -> Result<u64>;

    /// Queues a copy to the device; `src` may be changed as soon as this returns.
    fn upload(&mut self, dst: u64, src: &[u8]) -> Result<()>;

    /// Waits for all queued work and copies to the host.
    fn download(&mut self, dst: &mut [u8], src: u64) -> Result<()>;

    /// Queues a copy on the device; the two do not overlap.
    fn copy(&mut self, dst: u64, src: u64, bytes: usize) -> Result<()>;

    /// Queues setting all `bytes` to one value: 0xff makes NaN of every floating-point type.
    fn set_bytes(&mut self, dst: u64, value: u8, bytes: usize) -> Result<()>;

    /// Queues setting all `bytes` to zero.
    fn clear(&mut self, dst: u64, bytes: usize) -> Result<()> {
        self.set_bytes(dst, 0, bytes)
    }

    fn synchronize(&mut self) -> Result<()>;

    /// Where the memory at a device address is for others than kernels, whose it is until [`take_back`](Self::take_back).
    fn lend(&mut self, address: u64, bytes: usize) -> (u64, Place);

    /// What was lent, in one piece, is the kernels' again.
    fn take_back(&mut self, address: u64, bytes: usize);

    /// Starts the device's stopwatch, of which there is one, when all that is queued now is done.
    fn start_timer(&mut self) -> Result<()>;

    /// Milliseconds from there to when all that was queued since is done, which it waits for. `None` on a device whose times
    /// mean nothing.
    fn stop_timer(&mut self) -> Result<Option<f32>>;

    /// What each kernel did since the last call, by name; empty on a device that does not count.
    fn take_counts(&mut self) -> BTreeMap<&'static str, Counts> {
        BTreeMap::new()
    }

    /// How the device is doing at the moment, in one line.
    ///
    /// # Errors
    /// One line, if it does not say.
    fn state(&mut self) -> Result<String> {
        bail!("{} has no state to report", self.info().name)
    }

    /// The vendor's matrix products, opened when first asked for; that allocates, so ask while setting up.
    ///
    /// # Errors
    /// One line, if there is no such library.
    fn matmul_library(&mut self) -> Result<&mut dyn MatmulLibrary> {
        bail!("{} has no cuBLASLt", self.info().name)
    }
}
