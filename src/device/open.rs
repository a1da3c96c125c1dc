//! The devices by the names that flags give them. Nothing but this file and its callers knows a concrete device.

use crate::device::cpu::Cpu;
use crate::device::cpu::matmul::Precision;
use crate::device::cuda::emulator::{self, EmulatorOptions};
use crate::device::cuda::nvidia::Nvidia;
use crate::device::cuda::{AUTO, Cuda, CudaOptions, MatmulChoice};
use crate::ops::{Device, Ops};
use crate::tensor::Dtype;
use anyhow::{Context, Result};
use clap::ValueEnum;
use std::str::FromStr;

/// What to compute on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeviceName {
    Cpu,
    /// A GPU of those that `CUDA_VISIBLE_DEVICES` shows.
    Cuda,
    /// The kernels of the GPU, run on the CPU.
    Emulated,
}

/// Value of `--dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DtypeChoice {
    /// bf16 where the device multiplies it in hardware, else f32.
    Auto,
    Fixed(Dtype),
}

impl FromStr for DtypeChoice {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        if name == "auto" { Ok(DtypeChoice::Auto) } else { name.parse().map(DtypeChoice::Fixed) }
    }
}

impl DtypeChoice {
    /// The type for a run on `device`. A resumed run passes the type it was in so far (`resumed`), which [`DtypeChoice::Auto`] keeps
    /// if this device can compute in it.
    pub fn on(self, device: DeviceName, resumed: Option<Dtype>) -> Dtype {
        let can = |dtype| match (device, dtype) {
            (DeviceName::Cpu, Dtype::Bf16) => Precision::Bf16.is_supported(),
            (DeviceName::Cpu, dtype) => dtype == Dtype::F32,
            (DeviceName::Cuda | DeviceName::Emulated, _) => true,
        };
        let best = if can(Dtype::Bf16) { Dtype::Bf16 } else { Dtype::F32 };
        match self {
            DtypeChoice::Auto => resumed.filter(|&dtype| can(dtype)).unwrap_or(best),
            DtypeChoice::Fixed(dtype) => dtype,
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_is_what_the_device_multiplies_in_hardware() {
        let here = if Precision::Bf16.is_supported() { Dtype::Bf16 } else { Dtype::F32 };
        assert_eq!(DtypeChoice::Auto.on(DeviceName::Cpu, None), here);
        for gpu in [DeviceName::Cuda, DeviceName::Emulated] {
            assert_eq!(DtypeChoice::Auto.on(gpu, None), Dtype::Bf16);
        }
    }

    #[test]
    fn auto_keeps_the_type_of_a_resumed_run() {
        assert_eq!(DtypeChoice::Auto.on(DeviceName::Cpu, Some(Dtype::F32)), Dtype::F32);
        assert_eq!(DtypeChoice::Auto.on(DeviceName::Cuda, Some(Dtype::F16)), Dtype::F16);
        // No CPU computes in fp16.
        assert_eq!(
            DtypeChoice::Auto.on(DeviceName::Cpu, Some(Dtype::F16)),
            DtypeChoice::Auto.on(DeviceName::Cpu, None)
        );
        let fixed = DtypeChoice::Fixed(Dtype::F32);
        assert_eq!(fixed.on(DeviceName::Cuda, Some(Dtype::Bf16)), Dtype::F32);
    }
}
