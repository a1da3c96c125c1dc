//! The program `train_gpt2`: flags to device to run.

use super::train::{TrainArgs, parse};
use super::{Parsed, exit_with, refuse_launcher};
use crate::device::cpu::Cpu;
use crate::device::cpu::matmul::Precision;
use crate::tensor::Dtype;
use crate::train::{self, Finish};
use anyhow::{Context, Result};
use std::process::ExitCode;

pub fn main() -> ExitCode {
    const PROGRAM: &str = "train_gpt2";
    match parse(std::env::args_os()) {
        Ok(Parsed::Run(args)) => match run(&args) {
            // As a shell reports a process that a signal ended.
            Ok(Finish::Stopped(signal)) => ExitCode::from(128 + signal as u8),
            other => exit_with(PROGRAM, other.map(drop)),
        },
        other => super::run(PROGRAM, other, |_| unreachable!("handled above")),
    }
}

fn run(args: &TrainArgs) -> Result<Finish> {
    refuse_launcher(|name| std::env::var(name).ok())?;
    let device = open_cpu(args.dtype, args.threads)?;
    train::run(args, Box::new(device))
}

/// The CPU, with a pool of `threads` threads (0: one for each core).
///
/// # Errors
/// If the CPU cannot compute in `dtype`, or no threads are to be had.
pub fn open_cpu(dtype: Dtype, threads: usize) -> Result<Cpu> {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().context("--threads")?;
    Cpu::new(match dtype {
        Dtype::Bf16 => Precision::Bf16,
        _ => Precision::F32,
    })
}
