//! The emulated device: runs the kernels on the CPU, for tests and for work on kernels without a
//! GPU.

#[cfg(emulated)]
mod commands;
#[cfg(emulated)]
mod driver;

use super::driver::Driver;
use crate::tensor::Dtype;
use anyhow::Result;
pub use cuda_emulator::{Copies, EmulatorOptions, Schedule};
#[cfg(emulated)]
pub use driver::{Emulated, KERNELS, PROBES, SELF_TEST};

/// Opens the emulated device with the kernels of this program for one floating-point type.
///
/// # Errors
/// If the program was built without a C++ compiler, or for a machine that the emulator does not
/// support.
#[cfg(emulated)]
pub fn open(dtype: Dtype, options: EmulatorOptions) -> Result<Box<dyn Driver>> {
    Ok(Box::new(Emulated::new(KERNELS, dtype, options)))
}

/// Fails: this program was built without the emulated device.
///
/// # Errors
/// Always.
#[cfg(not(emulated))]
pub fn open(_dtype: Dtype, _options: EmulatorOptions) -> Result<Box<dyn Driver>> {
    anyhow::bail!(
        "this program was built without the emulated device, which needs Linux and a C++ compiler: \
         apt install g++ (or set CXX) and build again"
    )
}
