//! The devices that kernels are tested on.

use crate::gpus;
use warpsmith::device::cuda::driver::Driver;
use warpsmith::device::cuda::emulator::{Copies, EmulatorOptions, Schedule, open as open_emulated};
use warpsmith::device::cuda::nvidia::Nvidia;
use warpsmith::device::cuda::{Cuda, CudaOptions, MatmulChoice};
use warpsmith::ops::Ops;
use warpsmith::tensor::Dtype;

/// A device, and what to call it when it fails.
pub struct Under {
    pub mode: String,
    pub multiprocessors: usize,
    pub device: Box<dyn Ops>,
}

/// Options that tests start from: everything exact and repeatable.
pub fn options(dtype: Dtype) -> CudaOptions {
    CudaOptions { dtype, tf32: false, gelu_fusion: 2, deterministic: true, matmul: MatmulChoice::Own }
}

/// The GPU if `WARPSMITH_TEST_DEVICE=cuda`; else the emulated device in each mode that finds other faults.
pub fn under_test(dtype: Dtype) -> Vec<Under> {
    with_options(options(dtype))
}

/// The same with options of one's own.
pub fn with_options(options: CudaOptions) -> Vec<Under> {
    if on_gpu() {
        let driver = gpus::take(options.dtype, || Nvidia::open(0, options.dtype))
            .unwrap_or_else(|e| panic!("WARPSMITH_TEST_DEVICE=cuda: {e:#}"));
        return vec![under("GPU".to_owned(), Box::new(driver), options)];
    }
    modes(options.dtype)
        .into_iter()
        .map(|mode| {
            let driver = open_emulated(options.dtype, mode).unwrap_or_else(|e| panic!("{e:#}"));
            under(format!("{mode:?}"), driver, options)
        })
        .collect()
}

/// Whether tests are to use the GPU of this machine.
pub fn on_gpu() -> bool {
    std::env::var("WARPSMITH_TEST_DEVICE").is_ok_and(|device| device == "cuda")
}

fn under(mode: String, driver: Box<dyn Driver>, options: CudaOptions) -> Under {
    let multiprocessors = driver.info().multiprocessors;
    Under { mode, multiprocessors, device: Box::new(Cuda::new(driver, options)) }
}

/// Plain in ascending and in random order with copies that land late; checked in descending order with late copies and
/// in random order with eager ones. f16 differs from bf16 in conversions alone, which one mode shows.
fn modes(dtype: Dtype) -> Vec<EmulatorOptions> {
    let plain =
        EmulatorOptions { schedule: Schedule::Ascending, copies: Copies::Late, ..EmulatorOptions::default() };
    let checked = EmulatorOptions { check: true, schedule: Schedule::Descending, ..plain };
    match dtype {
        Dtype::F16 => vec![plain],
        _ => vec![
            plain,
            EmulatorOptions { schedule: Schedule::Random(1), ..plain },
            checked,
            EmulatorOptions { schedule: Schedule::Random(2), copies: Copies::Eager, ..checked },
        ],
    }
}
