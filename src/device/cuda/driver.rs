//! The layer under the op layer: NVIDIA's driver, or the emulated device. Everything is queued in
//! one order; only [`Driver::download`] and [`Driver::synchronize`] wait.

use super::kernel::Launcher;
use super::matmul_library::MatmulLibrary;
use crate::ops::{GpuMemory, Place};
use anyhow::{Result, bail};
pub use cuda_emulator::Counts;
use std::collections::BTreeMap;
use std::time::Duration;

/// The properties of a device that the op layer and the start-up table use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The vendor's name for it: `NVIDIA H200`.
    pub name: String,
    /// Compute capability: (9, 0).
    pub capability: (u32, u32),
    /// Streaming multiprocessors (SMs), which determine the grids of persistent kernels.
    pub sm_count: usize,
    pub memory_bytes: usize,
    /// The most dynamic shared memory that a block can have.
    pub shared_bytes: usize,
    pub emulated: bool,
}

/// A graph of one driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Graph(pub usize);

/// A device that runs the kernels under `kernels/`, compiled for one `floatX`.
pub trait Driver: Launcher {
    fn info(&self) -> &DeviceInfo;

    /// Allocates device memory: zeroed, aligned to 256 bytes or more, for as long as the driver
    /// lives.
    ///
    /// # Errors
    /// If there is not enough.
    fn allocate(&mut self, bytes: usize) -> Result<u64>;

    /// Queues a copy to the device; `src` may be changed as soon as this returns.
    fn upload(&mut self, dst: u64, src: &[u8]) -> Result<()>;

    /// Waits for all queued work and copies to the host.
    fn download(&mut self, dst: &mut [u8], src: u64) -> Result<()>;

    /// Queues a copy on the device between ranges that do not overlap.
    fn copy(&mut self, dst: u64, src: u64, bytes: usize) -> Result<()>;

    /// Queues setting all `bytes` to one value: 0xff makes NaN of every floating-point type.
    fn set_bytes(&mut self, dst: u64, value: u8, bytes: usize) -> Result<()>;

    /// Queues setting all `bytes` to zero.
    fn clear(&mut self, dst: u64, bytes: usize) -> Result<()> {
        self.set_bytes(dst, 0, bytes)
    }

    fn synchronize(&mut self) -> Result<()>;

    /// Starts a graph: until [`end_capture`](Self::end_capture), launches, copies on the device and
    /// bytes that are set become part of it instead of being queued. Anything else is an error.
    ///
    /// # Errors
    /// If the device has no graphs.
    fn begin_capture(&mut self) -> Result<()> {
        bail!("{} has no graphs", self.info().name)
    }

    /// Ends the graph, and makes it ready to be launched for as long as the driver lives.
    ///
    /// # Errors
    /// If something was asked for that cannot be part of a graph.
    fn end_capture(&mut self) -> Result<Graph> {
        bail!("{} has no graphs", self.info().name)
    }

    /// Queues all that is in a graph.
    fn launch_graph(&mut self, graph: Graph) -> Result<()> {
        bail!("{} has no graph {}", self.info().name, graph.0)
    }

    /// Lends memory to a collective until [`reclaim`](Self::reclaim); returns its address there.
    fn lend(&mut self, address: u64, bytes: usize) -> (u64, Place);

    /// Takes back what was lent, in one piece, for kernels to use.
    fn reclaim(&mut self, address: u64, bytes: usize);

    /// Starts the device's only stopwatch when all work queued now is done.
    fn start_timer(&mut self) -> Result<()>;

    /// Waits until all work queued since the start is done, and returns the milliseconds it took.
    /// `None` on a device whose times mean nothing.
    fn stop_timer(&mut self) -> Result<Option<f32>>;

    /// Queues a time stamp, as [`Device::stamp`](crate::ops::Device::stamp).
    ///
    /// # Errors
    /// If the device has no clock.
    fn stamp(&mut self) -> Result<()> {
        bail!("{} has no clock", self.info().name)
    }

    /// Returns the stamps since the last call, as
    /// [`Device::take_stamps`](crate::ops::Device::take_stamps).
    ///
    /// # Errors
    /// If a kernel failed.
    fn take_stamps(&mut self) -> Result<Vec<Duration>> {
        Ok(Vec::new())
    }

    /// As [`Device::record_for_profiler`](crate::ops::Device::record_for_profiler).
    ///
    /// # Errors
    /// If the driver fails.
    fn record_for_profiler(&mut self, on: bool) -> Result<()> {
        let _ = on;
        Ok(())
    }

    /// Returns the counts per kernel since the last call; empty on a device that does not count.
    fn take_counts(&mut self) -> BTreeMap<&'static str, Counts> {
        BTreeMap::new()
    }

    /// Describes the device's present state (temperature, power, …) in one line.
    ///
    /// # Errors
    /// If the device does not report it.
    fn state(&mut self) -> Result<String> {
        bail!("{} has no state to report", self.info().name)
    }

    /// The memory that is in use on the device; `None` where that is not reported.
    fn memory(&mut self) -> Option<GpuMemory> {
        None
    }

    /// The vendor's matmul library. The first call opens it and allocates, so it belongs in setup.
    ///
    /// # Errors
    /// If there is no such library.
    fn matmul_library(&mut self) -> Result<&mut dyn MatmulLibrary> {
        bail!("{} has no cuBLASLt", self.info().name)
    }
}
