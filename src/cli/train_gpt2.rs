//! The programs `train_gpt2` and `train_gpt2cu`: flags to device to run.

use super::devices::{DeviceName, DeviceOptions};
use super::train::{Program, TrainArgs, parse};
use crate::parallel::mesh::{Mesh, Patience};
use crate::parallel::nccl::{self, Nccl};
use crate::parallel::queue::HostQueue;
use crate::parallel::{Communicator, rendezvous};
use crate::train::peers::Peers;
use crate::train::{self, Finish};
use anyhow::Result;
use std::process::ExitCode;
use std::time::Duration;

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
        ordinal: ordinal(args.process.local_rank),
        dtype: args.dtype,
        tf32: args.tf32,
        gelu_fusion: args.gelu_fusion,
        deterministic: args.deterministic,
        matmul: args.matmul,
        threads: args.threads,
    };
    // Ranks meet first: one that fails later takes the others along, and one that never comes is missed at once.
    let mesh = meet(args)?;
    let dev = device.open()?;
    let peers = mesh.map_or_else(|| Ok(Peers::alone()), |mesh| connect(args, mesh))?;
    train::run(args, dev, peers)
}

/// Which of the GPUs that this process sees is its own. A launcher may have left it no other.
fn ordinal(local_rank: usize) -> usize {
    let sees_one =
        variable("CUDA_VISIBLE_DEVICES").is_some_and(|gpus| !gpus.is_empty() && !gpus.contains(','));
    if sees_one { 0 } else { local_rank }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Finds the other processes, if there are any.
fn meet(args: &TrainArgs) -> Result<Option<Mesh>> {
    let process = &args.process;
    if process.world_size == 1 {
        return Ok(None);
    }
    let (at, run) = rendezvous::find(process, &args.rendezvous()?, &variable)?;
    let patience = match args.device {
        // Beside NCCL ranks tell each other how they are many times a second.
        DeviceName::Cuda => Patience { silence: Duration::from_secs(120), ..Patience::default() },
        DeviceName::Cpu | DeviceName::Emulated => Patience::default(),
    };
    Mesh::meet(process.rank, process.world_size, &run, &at, patience).map(Some)
}

/// The way to the other processes, for the device that this one has opened.
fn connect(args: &TrainArgs, mesh: Mesh) -> Result<Peers> {
    let communicator: Box<dyn Communicator> = match args.device {
        DeviceName::Cuda => Box::new(Nccl::open(mesh, nccl::Patience::default())?),
        DeviceName::Cpu | DeviceName::Emulated => Box::new(HostQueue::new(mesh)),
    };
    Ok(Peers::new(args.process.clone(), communicator))
}
