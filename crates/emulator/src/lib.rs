//! A CUDA device on the CPU, for tests and for work on kernels without a GPU. It can vary the order
//! in which threads run and the moment asynchronous copies land, check every access to memory, and
//! count what launches ask of memory and tensor cores.
//!
//! The host's C++ compiler compiles a kernel file against the headers in `include/emulated/`: once
//! plain, and once with `-fsanitize=thread` for the checker, whose hooks are in this crate. Each
//! object exports a table of its kernels, which [`Table`] reads. Every CUDA thread of a block then
//! runs on a stack of its own until it waits for others.
//!
//! ```no_run
//! # fn run(tables: &[cuda_emulator::Table]) -> anyhow::Result<()> {
//! use cuda_emulator::{Arg, Emulator, EmulatorOptions, Launch};
//!
//! let options = EmulatorOptions { check: true, ..EmulatorOptions::default() };
//! let mut gpu = Emulator::new(tables, "bf16", options);
//! let x = gpu.allocate(4096)?;
//! gpu.launch("scale", Launch::new(8, 128), &[Arg::new(&x), Arg::new(&2.0f32)])?;
//! let mut result = [0; 4096];
//! gpu.download(&mut result, x)?;
//! # Ok(())
//! # }
//! ```
//!
//! It runs on Linux, on x86-64 and aarch64. The rest of the vocabulary exists everywhere.

pub mod counts;
pub mod launch;
pub mod lent;
pub mod options;
pub mod tensor_map;

#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod runtime;

pub use counts::Counts;
pub use launch::{Arg, Launch};
pub use lent::Lent;
pub use options::{Copies, EmulatorOptions, Schedule};
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
pub use runtime::{Emulator, Kernel, MAX_SHARED_BYTES, Table, TablePointer, by_name};
pub use tensor_map::{TensorMap, TiledMatrix};
