//! The emulated device's runtime: kernels compiled by the host's C++ compiler run on the CPU, every CUDA thread on a stack of
//! its own. Threads of a block take turns: one runs until it has to wait for others (`__syncthreads`, an operation of its
//! warp), then the next one that can run goes on. `kernels/emulated/` has the C++ side.
//!
//! It is for tests and for work on kernels without a GPU: the order in which threads run, and when asynchronous copies land,
//! can be varied, so that what works by luck on one machine fails here.

#[cfg(emulated)]
mod barrier;
#[cfg(emulated)]
mod block;
#[cfg(emulated)]
mod checker;
#[cfg(emulated)]
mod collective;
#[cfg(emulated)]
mod copies;
#[cfg(emulated)]
mod counting;
#[cfg(emulated)]
mod failure;
#[cfg(emulated)]
mod fiber;
#[cfg(emulated)]
mod hopper;
#[cfg(emulated)]
mod launch;
#[cfg(emulated)]
pub mod library;
#[cfg(emulated)]
mod memory;
#[cfg(emulated)]
mod region;
#[cfg(emulated)]
mod shared;
#[cfg(emulated)]
mod tensor_core;

use super::driver::Driver;
use crate::tensor::Dtype;
use anyhow::Result;
#[cfg(emulated)]
pub(super) use {
    checker::Checker, counting::Counter, hopper::encode as encode_tensor_map, launch::Job,
    memory::GlobalMemory, shared::MAX_BYTES as MAX_SHARED_BYTES,
};

/// The emulated device with the program's kernels for one floating-point type.
///
/// # Errors
/// If the program was built without a C++ compiler, or for a machine that the emulator does not know.
#[cfg(emulated)]
pub fn open(dtype: Dtype, options: EmulatorOptions) -> Result<Box<dyn Driver>> {
    Ok(Box::new(super::emulated::Emulated::new(dtype, options)))
}

/// The emulated device, which this program was built without.
///
/// # Errors
/// Always.
#[cfg(not(emulated))]
pub fn open(_dtype: Dtype, _options: EmulatorOptions) -> Result<Box<dyn Driver>> {
    anyhow::bail!(
        "this program was built without the emulated device, which needs Linux and a C++ compiler: apt install g++ (or \
         set CXX) and build again"
    )
}

/// Which of the threads that can run goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// The next one, in the same warp if it can: warps in turn from operation to operation.
    Ascending,
    /// The one before.
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
    /// As soon as they are issued: finds buffers that are filled again too early.
    Eager,
    /// When they are waited for, NaN until then: finds reads that come too early.
    Late,
    /// The one or the other.
    Random,
}

/// How launches are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmulatorOptions {
    pub schedule: Schedule,
    pub copies: Copies,
    /// Checks every access to memory: bounds, initialisation, races, what is lent. 5 to 20 times slower. Without it, of what is
    /// lent only the arguments of kernels are looked at, and what the host does.
    pub check: bool,
    /// Counts what launches ask of memory and of the tensor cores, for `take_counts`; with or without the checker, and as slow.
    pub count: bool,
    /// How many blocks run at the same time; sums by atomics then depend on luck. One if launches are checked or counted.
    pub threads: usize,
}

impl Default for EmulatorOptions {
    fn default() -> Self {
        let (schedule, copies) = (Schedule::Ascending, Copies::Late);
        EmulatorOptions { schedule, copies, check: false, count: false, threads: 1 }
    }
}
