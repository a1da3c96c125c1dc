//! Runs kernels on the CPU. Threads of a block take turns: one runs until it has to wait for others
//! (`__syncthreads`, an operation of its warp), then the next runnable one continues.
//! `include/emulated/` has the C++ side.

mod barrier;
mod block;
mod checker;
mod cluster;
mod collective;
mod copies;
mod counting;
mod emulator;
mod failure;
mod fiber;
mod flags;
mod hopper;
mod job;
mod library;
mod memory;
mod named_barrier;
mod region;
mod shared;
mod tensor_core;

pub use emulator::Emulator;
pub use library::{Kernel, Table, TablePointer, by_name};
pub use shared::MAX_BYTES as MAX_SHARED_BYTES;
