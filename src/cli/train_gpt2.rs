//! The program `train_gpt2`: flags to device to run.

use super::refuse_launcher;
use super::train::{TrainArgs, parse};
use crate::device::cpu::Cpu;
use crate::device::cpu::matmul::Precision;
use crate::tensor::Dtype;
use crate::train::{self, Finish};
use anyhow::{Context, Result};
use std::process::ExitCode;

pub fn main() -> ExitCode {
    let mut stopped = None;
    let status = super::run("train_gpt2", parse(std::env::args_os()), |args| {
        if let Finish::Stopped(signal) = run(&args)? {
            stopped = Some(signal);
        }
        Ok(())
    });
    // As a shell reports a process that a signal ended.
    stopped.map_or(status, |signal| ExitCode::from(128 + signal as u8))
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
