//! The devices by the names that flags give them. Nothing but this file and its callers knows a concrete device.

use crate::device::cpu::Cpu;
use crate::device::cpu::matmul::Precision;
use crate::device::cuda::emulator::{self, EmulatorOptions};
use crate::device::cuda::nvidia::Nvidia;
use crate::device::cuda::{AUTO, Cuda, CudaOptions, MatmulChoice};
use crate::ops::{Device, Ops};
use crate::tensor::Dtype;
use anyhow::{Context, Result};

/// What to compute on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceName {
    Cpu,
    /// A GPU of those that `CUDA_VISIBLE_DEVICES` shows.
    Cuda,
    /// The kernels of the GPU, run on the CPU.
    Emulated,
}

/// What flags say about a device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DeviceOptions {
    pub device: DeviceName,
    /// Which of the GPUs.
    pub ordinal: usize,
    /// On a CPU, that of the operands of matrix products.
    pub dtype: Dtype,
    pub tf32: bool,
    pub gelu_fusion: i32,
    pub deterministic: bool,
    pub matmul: MatmulChoice,
    /// 0: one for each core.
    pub threads: usize,
}

impl DeviceOptions {
    /// As `train_gpt2cu` has them if nothing is said.
    pub fn new(device: DeviceName, dtype: Dtype, threads: usize) -> Self {
        let matmul = MatmulChoice::Fastest;
        DeviceOptions {
            device,
            ordinal: 0,
            dtype,
            tf32: true,
            gelu_fusion: AUTO,
            deterministic: false,
            matmul,
            threads,
        }
    }

    /// Opens the device, and the pool of threads that work on the host is shared out to.
    ///
    /// # Errors
    /// One line, if there is no such device, it cannot compute in this type, or no threads are to be had.
    pub fn open(&self) -> Result<Box<dyn Ops>> {
        rayon::ThreadPoolBuilder::new().num_threads(self.threads).build_global().context("--threads")?;
        let options = CudaOptions {
            dtype: self.dtype,
            tf32: self.tf32,
            gelu_fusion: self.gelu_fusion,
            deterministic: self.deterministic,
            matmul: self.matmul,
        };
        Ok(match self.device {
            DeviceName::Cpu => Box::new(Cpu::new(match self.dtype {
                Dtype::Bf16 => Precision::Bf16,
                _ => Precision::F32,
            })?),
            DeviceName::Cuda => {
                let driver = Nvidia::open(self.ordinal, self.dtype).context("--device cuda")?;
                let mut cuda = Cuda::new(Box::new(driver), options);
                // Now, and not in the midst of it all: one that cannot be used.
                cuda.libraries()?;
                Box::new(cuda)
            }
            DeviceName::Emulated => {
                let emulator =
                    EmulatorOptions { threads: rayon::current_num_threads(), ..EmulatorOptions::default() };
                let driver = emulator::open(self.dtype, emulator).context("--device emulated")?;
                Box::new(Cuda::new(driver, options))
            }
        })
    }
}
