//! The devices that kernels are tested on.

use crate::gpus;
use warpsmith::device::cuda::driver::Driver;
use warpsmith::device::cuda::emulated::{Copies, EmulatorOptions, Schedule, open as open_emulated};
use warpsmith::device::cuda::nvidia::Nvidia;
use warpsmith::device::cuda::{BackwardKernels, Cuda, CudaOptions, MatmulChoice};
use warpsmith::ops::Ops;
use warpsmith::tensor::Dtype;

/// A device and its name in messages.
pub struct Under {
    pub mode: String,
    pub sm_count: usize,
    pub device: Box<dyn Ops>,
}

/// The options that tests start from: everything exact and repeatable.
pub fn options(dtype: Dtype) -> CudaOptions {
    let matmul = MatmulChoice::Own;
    CudaOptions { dtype, tf32: false, gelu_fusion: 2, deterministic: true, matmul, graphs: false }
}

/// Returns the GPU if `WARPSMITH_TEST_DEVICE=cuda`, else the emulated device in each mode that
/// finds faults of its own.
pub fn under_test(dtype: Dtype) -> Vec<Under> {
    with_options(options(dtype))
}

/// Does the same with other options.
pub fn with_options(options: CudaOptions) -> Vec<Under> {
    if on_gpu() {
        let driver = gpus::take(options.dtype, || Nvidia::open(0, options.dtype))
            .unwrap_or_else(|e| panic!("WARPSMITH_TEST_DEVICE=cuda: {e:#}"));
        return vec![under("GPU".to_owned(), Box::new(driver), options, None)];
    }
    emulated(options, modes(options.dtype), None)
}

/// Returns the emulated device as an older GPU, for which other kernels are chosen than for Hopper,
/// with these for attention's backward pass.
pub fn older(dtype: Dtype, backward: BackwardKernels) -> Vec<Under> {
    let modes = modes(dtype).into_iter().map(|mode| EmulatorOptions { capability: (8, 0), ..mode });
    emulated(options(dtype), modes.collect(), Some(backward))
}

/// Returns the emulated device with blocks that run at the same time, on threads of their own.
pub fn at_the_same_time(dtype: Dtype) -> Vec<Under> {
    let modes = modes(dtype).into_iter().filter(|mode| !mode.check);
    let modes = modes.map(|mode| EmulatorOptions { threads: 4, ..mode });
    emulated(options(dtype), modes.collect(), None)
}

fn emulated(
    options: CudaOptions,
    modes: Vec<EmulatorOptions>,
    backward: Option<BackwardKernels>,
) -> Vec<Under> {
    modes
        .into_iter()
        .map(|mode| {
            let driver = open_emulated(options.dtype, mode).unwrap_or_else(|e| panic!("{e:#}"));
            under(format!("{mode:?}"), driver, options, backward)
        })
        .collect()
}

/// Whether tests are to use the GPU of this machine.
pub fn on_gpu() -> bool {
    std::env::var("WARPSMITH_TEST_DEVICE").is_ok_and(|device| device == "cuda")
}

fn under(
    mode: String,
    driver: Box<dyn Driver>,
    options: CudaOptions,
    backward: Option<BackwardKernels>,
) -> Under {
    let sm_count = driver.info().sm_count;
    let mut device = Box::new(Cuda::new(driver, options));
    device.choose_attention(backward);
    Under { mode, sm_count, device }
}

/// The modes of the emulated device: plain in ascending and in random order with late copies;
/// checked in descending order with late copies, and in random order with eager ones. f16 differs
/// from bf16 only in conversions, so one mode is enough for it.
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
