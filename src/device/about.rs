//! The devices of this program and of this machine, as `--version` shows them.

use super::cpu::matmul::Precision;
use super::cuda::fatbins::{CONTENTS, NVCC_VERSION, WHY_NONE};
use super::cuda::{nvidia, nvml};
use crate::simd::Simd;
use crate::words::count;
use std::fs;
use std::thread::available_parallelism;

/// The kernels in this program: those for GPUs, and those of the emulated device.
pub fn kernels() -> [(&'static str, String); 2] {
    let (major, minor) = NVCC_VERSION;
    let for_gpus = match CONTENTS {
        [] => format!("none: {WHY_NONE}"),
        contents => format!("{}, by nvcc {major}.{minor}", contents.join(", ")),
    };
    let emulated = option_env!("WARPSMITH_CXX").map(|compiler| format!("yes, by {compiler}"));
    [
        ("GPU kernels", for_gpus),
        ("emulated device", emulated.unwrap_or("no: built without a C++ compiler, or not on Linux".into())),
    ]
}

/// The CPU with the instructions that are used on it, the driver, the GPUs and cuBLASLt.
pub fn here() -> [(&'static str, String); 4] {
    let driver = nvidia::driver().map(|driver| match nvml::driver_version() {
        Some(version) => format!("{version}, {driver}"),
        None => driver,
    });
    // Without a driver, its row says all.
    let gpus = match (&driver, nvidia::gpus()) {
        (Err(_), _) => "not known".to_owned(),
        (_, Ok(names)) => names.join(", "),
        (_, Err(problem)) => problem.to_string(),
    };
    [
        ("CPU", cpu()),
        ("NVIDIA driver", driver.unwrap_or_else(|problem| problem.brief())),
        ("GPUs", gpus),
        ("cuBLASLt", nvidia::cublaslt()),
    ]
}

fn cpu() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let threads = count(available_parallelism().map_or(1, usize::from), "thread");
    let loops = match Simd::best() {
        Simd::Avx512 => "AVX-512",
        Simd::Avx2 => "AVX2",
        Simd::Baseline => "baseline",
    };
    let matmuls = [Precision::F32, Precision::Bf16].map(Precision::describe).join(", ");
    format!("{}, {threads}; loops: {loops}; matmuls: {matmuls}", model.unwrap_or(std::env::consts::ARCH))
}
