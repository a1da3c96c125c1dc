//! The programs `train_gpt2` and `train_gpt2cu`.

use super::logging;
use super::room::room;
use crate::cli::flags::trainer::{CudaGraphs, Program, TrainArgs, parse};
use crate::device::open::{DeviceName, DeviceOptions, DtypeChoice};
use crate::ops::Ops;
use crate::parallel::Communicator;
use crate::parallel::lifeline;
use crate::parallel::mesh::{TcpMesh, Timeouts};
#[cfg(feature = "mpi")]
use crate::parallel::mpi::{self, Limits, Mpi};
use crate::parallel::nccl::{self, Nccl};
use crate::parallel::queue::HostQueue;
use crate::parallel::rendezvous::{self, Endpoint};
use crate::parallel::transport::Transport;
use crate::replica::peers::Peers;
use crate::tensor::Dtype;
use crate::train::{self, Finish};
use anyhow::Result;
use std::process::ExitCode;
use std::time::Duration;

/// Exit status of a run that stopped because of `--max-hours`: `EX_TEMPFAIL` of sysexits.h, for
/// scripts that queue the job again.
pub const TRY_AGAIN: u8 = 75;

pub fn main(program: Program) -> ExitCode {
    let parsed = logging::start().and_then(|()| parse(program, std::env::args_os(), &variable));
    let mut ended = false;
    let status = super::run(program.name(), parsed, |args| {
        logging::name_rank(&args.process);
        lifeline::follow(&variable);
        args.notes.iter().filter(|_| args.process.is_rank0()).for_each(|note| log::info!("{note}"));
        let finish = run(&args)?;
        ended = true;
        Ok(match finish {
            Finish::Completed => ExitCode::SUCCESS,
            // As a shell reports a process that a signal killed.
            Finish::Stopped(signal) => ExitCode::from(128 + signal as u8),
            Finish::TimeUp => ExitCode::from(TRY_AGAIN),
        })
    });
    // After any error message, because MPI may end the process here.
    end_mpi(ended);
    status
}

#[cfg(feature = "mpi")]
fn end_mpi(ended: bool) {
    mpi::end(ended);
}

#[cfg(not(feature = "mpi"))]
fn end_mpi(_ended: bool) {}

fn run(args: &TrainArgs) -> Result<Finish> {
    train::fetch_model(args)?;
    let process = &args.process;
    if process.world_size == 1 {
        let mut dev = open(args)?;
        let room = room(args, dev.as_mut(), None)?;
        return train::run(args, dev, Peers::alone(), room);
    }
    let silence = match args.device.name {
        // Ranks that use NCCL send heartbeats many times a second.
        DeviceName::Cuda => Duration::from_secs(120),
        DeviceName::Cpu | DeviceName::Emulated => Timeouts::default().message,
    };
    match rendezvous::find(process, &args.rendezvous()?, &variable)? {
        #[cfg(feature = "mpi")]
        Endpoint::Mpi => {
            together(args, Mpi::begin(process, Limits { timeout: silence, ..Limits::default() })?)
        }
        Endpoint::Tcp(meeting) => {
            let timeouts = Timeouts { message: silence, ..Timeouts::default() };
            together(args, TcpMesh::connect(&meeting, timeouts)?)
        }
    }
}

/// Trains together with the other ranks, which are connected: from here on, a rank that fails ends
/// all of them.
fn together(args: &TrainArgs, mut transport: impl Transport + 'static) -> Result<Finish> {
    let mut dev = open(args)?;
    let room = room(args, dev.as_mut(), Some(&mut transport))?;
    let communicator: Box<dyn Communicator> = match args.device.name {
        DeviceName::Cuda => Box::new(Nccl::open(transport, nccl::Timeouts::default())?),
        DeviceName::Cpu | DeviceName::Emulated => Box::new(HostQueue::new(transport)?),
    };
    train::run(args, dev, Peers::new(args.process.clone(), communicator), room)
}

fn open(args: &TrainArgs) -> Result<Box<dyn Ops>> {
    let resumed = args
        .files
        .output_dir
        .as_deref()
        .filter(|_| args.files.resume && args.device.dtype == DtypeChoice::Auto);
    let resumed = resumed.map(train::resume::dtype_so_far).transpose()?.flatten();
    device_options(args, resumed).open()
}

/// The device that flags ask for; `resumed` is the type of the run to resume.
pub(super) fn device_options(args: &TrainArgs, resumed: Option<Dtype>) -> DeviceOptions {
    DeviceOptions {
        device: args.device.name,
        ordinal: ordinal(args.process.local_rank),
        dtype: args.device.dtype.on(args.device.name, resumed),
        tf32: args.device.tf32,
        gelu_fusion: args.gpu.gelu_fusion,
        deterministic: args.gpu.deterministic,
        matmul: args.gpu.matmul,
        graphs: args.gpu.cuda_graphs != CudaGraphs::Never,
        threads: args.device.threads,
    }
}

/// The GPU of this process, among those it sees. A launcher may have hidden all others.
fn ordinal(local_rank: usize) -> usize {
    let sees_one =
        variable("CUDA_VISIBLE_DEVICES").is_some_and(|gpus| !gpus.is_empty() && !gpus.contains(','));
    if sees_one { 0 } else { local_rank }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
