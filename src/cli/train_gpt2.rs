//! The programs `train_gpt2` and `train_gpt2cu`: flags to device to run.

use super::devices::{DeviceName, DeviceOptions};
use super::train::{Program, TrainArgs, parse};
use crate::parallel::mesh::{Mesh, Patience};
use crate::parallel::queue::HostQueue;
use crate::parallel::rendezvous;
use crate::train::peers::Peers;
use crate::train::{self, Finish};
use anyhow::{Result, ensure};
use std::process::ExitCode;

pub fn main(program: Program) -> ExitCode {
    let mut stopped = None;
    let status = super::run(program.name(), parse(program, std::env::args_os(), &variable), |args| {
        if let Finish::Stopped(signal) = run(&args)? {
            stopped = Some(signal);
        }
        Ok(())
    });
    // As a shell reports a process that a signal ended.
    stopped.map_or(status, |signal| ExitCode::from(128 + signal as u8))
}

fn run(args: &TrainArgs) -> Result<Finish> {
    let device = DeviceOptions {
        device: args.device,
        dtype: args.dtype,
        tf32: args.tf32,
        gelu_fusion: args.gelu_fusion,
        deterministic: args.deterministic,
        matmul: args.matmul,
        threads: args.threads,
    };
    // Ranks meet first: one that fails later takes the others along, and one that never comes is missed at once.
    let peers = meet(args)?;
    train::run(args, device.open()?, peers)
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Finds the other processes, if there are any.
fn meet(args: &TrainArgs) -> Result<Peers> {
    let process = args.process.clone();
    if process.world_size == 1 {
        return Ok(Peers::alone());
    }
    ensure!(
        args.device != DeviceName::Cuda,
        "{} processes: --device cuda trains on one GPU so far; several processes train with --device emulated and train_gpt2",
        process.world_size
    );
    let (at, run) = rendezvous::find(&process, &args.rendezvous()?, &variable)?;
    let mesh = Mesh::meet(process.rank, process.world_size, &run, &at, Patience::default())?;
    Ok(Peers::new(process, Box::new(HostQueue::new(mesh))))
}
