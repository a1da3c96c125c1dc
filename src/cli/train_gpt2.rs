//! The programs `train_gpt2` and `train_gpt2cu`: flags to device to run.

use super::devices::DeviceOptions;
use super::refuse_launcher;
use super::train::{Program, TrainArgs, parse};
use crate::train::{self, Finish};
use anyhow::Result;
use std::process::ExitCode;

pub fn main(program: Program) -> ExitCode {
    let mut stopped = None;
    let status = super::run(program.name(), parse(program, std::env::args_os()), |args| {
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
    let device = DeviceOptions {
        device: args.device,
        dtype: args.dtype,
        tf32: args.tf32,
        gelu_fusion: args.gelu_fusion,
        deterministic: args.deterministic,
        matmul: args.matmul,
        threads: args.threads,
    };
    train::run(args, device.open()?)
}
