//! The devices by the names that flags give them. Only this file and its callers know concrete
//! devices.

use crate::device::cpu::Cpu;
use crate::device::cpu::matmul::Precision;
use crate::device::cuda::driver::DeviceInfo;
use crate::device::cuda::emulated::{self, EmulatorOptions};
use crate::device::cuda::launches::on_paper;
use crate::device::cuda::nvidia::Nvidia;
use crate::device::cuda::{AUTO, Cuda, CudaOptions, MatmulChoice};
use crate::ops::{Device, Ops};
use crate::tensor::Dtype;
use anyhow::{Context, Result};
use clap::ValueEnum;
use std::str::FromStr;
use std::sync::OnceLock;

/// A kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeviceName {
    Cpu,
    /// One of the GPUs that `CUDA_VISIBLE_DEVICES` shows.
    Cuda,
    /// The GPU kernels, run on the CPU.
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
    /// Resolves the choice for a run on `device`. [`DtypeChoice::Auto`] keeps the type of a resumed
    /// run if the device can compute in it.
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

/// Options of a device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DeviceOptions {
    pub device: DeviceName,
    /// Index of the GPU.
    pub ordinal: usize,
    /// Element type; on a CPU, of matmul operands only.
    pub dtype: Dtype,
    pub tf32: bool,
    pub gelu_fusion: i32,
    pub deterministic: bool,
    pub matmul: MatmulChoice,
    /// Queue micro-steps as CUDA graphs.
    pub graphs: bool,
    /// CPU threads; 0 means one per core.
    pub threads: usize,
}

/// The number of threads in `OMP_NUM_THREADS`, which counts where neither a flag nor
/// `RAYON_NUM_THREADS` gives one: users of llm.c set it.
pub fn environment_threads() -> Option<usize> {
    openmp_threads(set_variable)
}

fn set_variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn openmp_threads(variable: impl Fn(&str) -> Option<String>) -> Option<usize> {
    let asked = variable("OMP_NUM_THREADS").filter(|_| variable("RAYON_NUM_THREADS").is_none())?;
    // OpenMP takes a list: one number per level of nesting.
    let threads = asked.split(',').next().and_then(|first| first.trim().parse().ok());
    threads.filter(|&threads| threads > 0)
}

/// The number of CPU threads that have been started.
static STARTED: OnceLock<usize> = OnceLock::new();

/// Starts the CPU threads that all parallel work shares: `threads`, or if that is 0, as many as the
/// environment asks for, or one per core. They are started once: a program that opens a second
/// device shares them.
///
/// # Errors
/// If the system allows no more threads, or another number has been started.
pub fn start_threads(threads: usize) -> Result<()> {
    let environment = environment_threads();
    if let (0, None, Some(asked)) = (threads, environment, set_variable("OMP_NUM_THREADS"))
        && set_variable("RAYON_NUM_THREADS").is_none()
    {
        log::warn!("OMP_NUM_THREADS={asked}: expected a number of threads; it is ignored");
    }
    let threads = if threads == 0 { environment.unwrap_or(0) } else { threads };
    if STARTED.get() == Some(&threads) {
        return Ok(());
    }
    let started = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    started.context("cannot start the CPU threads")?;
    STARTED.get_or_init(|| threads);
    Ok(())
}

impl DeviceOptions {
    /// The defaults of `train_gpt2cu`.
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
            graphs: true,
            threads,
        }
    }

    /// The part of these that concerns a CUDA device.
    fn cuda(&self) -> CudaOptions {
        CudaOptions {
            dtype: self.dtype,
            tf32: self.tf32,
            gelu_fusion: self.gelu_fusion,
            deterministic: self.deterministic,
            matmul: self.matmul,
            graphs: self.graphs,
        }
    }

    /// Returns a device for plans of memory on a GPU that need not be here.
    pub fn on_paper(&self, gpu: DeviceInfo) -> Box<dyn Ops> {
        Box::new(on_paper(gpu, self.cuda()))
    }

    /// Starts the pool of CPU threads and opens the device.
    ///
    /// # Errors
    /// One line, if there is no such device, it cannot compute in this type, or threads cannot be
    /// started.
    pub fn open(&self) -> Result<Box<dyn Ops>> {
        start_threads(self.threads).context("--threads")?;
        let options = self.cuda();
        let device: Box<dyn Ops> = match self.device {
            DeviceName::Cpu => Box::new(Cpu::new(match self.dtype {
                Dtype::Bf16 => Precision::Bf16,
                _ => Precision::F32,
            })?),
            DeviceName::Cuda => {
                let driver = Nvidia::open(self.ordinal, self.dtype).context("--device cuda")?;
                let mut cuda = Cuda::new(Box::new(driver), options);
                // Opens cuBLASLt now, so that a broken one is reported at start-up.
                cuda.libraries()?;
                Box::new(cuda)
            }
            DeviceName::Emulated => {
                let emulator =
                    EmulatorOptions { threads: rayon::current_num_threads(), ..EmulatorOptions::default() };
                let driver = emulated::open(self.dtype, emulator).context("--device emulated")?;
                Box::new(Cuda::new(driver, options))
            }
        };
        let article = if self.device == DeviceName::Cuda { "" } else { "the " };
        log::info!("opened {article}{}", device.describe());
        Ok(device)
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
    fn openmps_number_of_threads_counts_unless_there_is_another() {
        let threads = |omp: &str, rayon: &str| {
            openmp_threads(|name| {
                let value = if name == "OMP_NUM_THREADS" { omp } else { rayon };
                Some(value.to_owned()).filter(|value| !value.is_empty())
            })
        };
        assert_eq!(
            ["8", " 4,2", "0", "many", ""].map(|omp| threads(omp, "")),
            [Some(8), Some(4), None, None, None]
        );
        assert_eq!(threads("8", "2"), None);
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
