//! The flags of `warpsmith plan`: its own, and all of a trainer.

use crate::cli::flags::trainer::{Program, TrainArgs, from_matches, unfinished_command};
use crate::cli::{Parsed, parse, values};
use crate::device::open::DeviceName;
use crate::parallel::environment::{Launcher, Process};
use crate::roofline::gpu::Gpu;
use crate::roofline::scaling::links::Link;
use anyhow::{Result, ensure};
use clap::{Args, Command, FromArgMatches};
use std::ffi::OsString;
use std::path::PathBuf;

/// The name of the command.
pub(super) const NAME: &str = "plan";

const ABOUT: &str = "Plan a run without starting it: memory by part, the largest batch that fits, tokens, \
                     FLOPs, time and cost. Takes the flags of the trainer: those of train_gpt2cu with --gpu, \
                     else those of train_gpt2, on this machine";

/// A run to plan.
#[derive(Clone, Debug)]
pub struct PlanArgs {
    pub plan: PlanFlags,
    pub train: TrainArgs,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Plan")]
pub struct PlanFlags {
    /// GPU to plan for, which need not be here: h200, h100, a100, b200, 4090, 5090 [default: the
    /// CPU of this machine]
    #[arg(long, value_name = "NAME", value_parser = values::gpu)]
    pub gpu: Option<&'static Gpu>,
    /// Number of GPUs, each with a process [default: 1]
    #[arg(long, value_name = "N", value_parser = values::processes)]
    pub gpus: Option<usize>,
    /// Price of a GPU for an hour, in dollars
    #[arg(long, value_name = "DOLLARS", value_parser = values::positive)]
    pub price: Option<f32>,
    /// Links within a machine (nvlink3, nvlink4, nvlink5, pcie4, pcie5), between machines (hdr,
    /// ndr), or both [default: what the GPU usually has]
    #[arg(long, value_name = "LINK,LINK", value_delimiter = ',', value_parser = super::scaling::link)]
    pub links: Vec<&'static Link>,
    /// Directory of records: measured times of kernels, which replace predicted ones
    #[arg(long, value_name = "DIR", default_value = "benches/record")]
    pub records: PathBuf,
    /// Print one JSON object, with bytes and seconds
    #[arg(long)]
    pub json: bool,
}

fn command(program: Program) -> Command {
    let command = PlanFlags::augment_args(unfinished_command(program));
    parse::finish(command.name(NAME).bin_name("warpsmith plan").about(ABOUT))
}

/// The command as the list of commands shows it.
pub(super) fn summary() -> Command {
    command(Program::TrainGpt2)
}

/// Reads a command line: the name of the program, that of the command, and flags.
///
/// # Errors
/// One line: the flag, what was expected, what was found, what to do.
pub(super) fn parse(argv: Vec<OsString>) -> Result<Parsed<PlanArgs>> {
    let on_gpu = |word: &OsString| word.to_str().is_some_and(|w| w == "--gpu" || w.starts_with("--gpu="));
    let program = if argv.iter().any(on_gpu) { Program::TrainGpt2cu } else { Program::TrainGpt2 };
    let command = command(program);
    let argv = parse::respell(&command, argv.into_iter().skip(1).collect())?;
    let matches = match parse::matches(&command, argv)? {
        Parsed::Run(matches) => matches,
        Parsed::Print(text) => return Ok(Parsed::Print(text)),
    };
    let plan = PlanFlags::from_arg_matches(&matches)?;
    plan.check()?;
    let gpus = plan.gpus;
    let train = from_matches(program, &command, &matches, |flags| {
        ensure!(
            gpus.is_none() || flags.num_processes.is_none_or(|processes| Some(processes) == gpus),
            "-pn/--num-processes: expected the number of --gpus, or only one of the two flags"
        );
        let world_size = gpus.or(flags.num_processes).unwrap_or(1);
        let launcher = if world_size > 1 { Launcher::Flags } else { Launcher::None };
        Ok(Process { world_size, launcher, ..Process::ALONE })
    })?;
    ensure!(
        program == Program::TrainGpt2 || train.device.name == DeviceName::Cuda,
        "--device: expected cuda with --gpu, which plans for a real GPU; drop the flag"
    );
    Ok(Parsed::Run(PlanArgs { plan, train }))
}

impl PlanFlags {
    /// Refuses flags of GPUs without one.
    fn check(&self) -> Result<()> {
        let given = [
            ("--gpus", self.gpus.is_some(), "; on CPUs, -pn is the number of processes"),
            ("--price", self.price.is_some(), ", on which time is predicted"),
            ("--links", !self.links.is_empty(), ""),
        ];
        for (flag, given, more) in given {
            ensure!(!given || self.gpu.is_some(), "{flag}: needs --gpu with the name of a GPU{more}");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::open::DtypeChoice;
    use crate::tensor::Dtype;

    fn read(line: &str) -> Result<Parsed<PlanArgs>> {
        parse(["warpsmith", "plan"].into_iter().chain(line.split_whitespace()).map(Into::into).collect())
    }

    fn ok(line: &str) -> PlanArgs {
        match read(line) {
            Ok(Parsed::Run(args)) => args,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn the_command_is_sound_and_documented() {
        for program in [Program::TrainGpt2, Program::TrainGpt2cu] {
            command(program).debug_assert();
            assert!(command(program).get_arguments().all(|arg| arg.get_help().is_some()));
        }
        assert!(matches!(read("--help"), Ok(Parsed::Print(text)) if text.contains("--price")));
    }

    #[test]
    fn a_gpu_brings_the_defaults_of_its_trainer() {
        let on_cpu = ok("-e d12 -pn 2 -z 1").train;
        assert_eq!((on_cpu.device.name, on_cpu.process.world_size), (DeviceName::Cpu, 2));
        let PlanArgs { plan, train } = ok("-e d48 --gpu h100 --gpus 8 -z 3 -w 0 --price 2.5 -nk 3");
        assert_eq!((plan.gpu.unwrap().name, plan.price), ("h100", Some(2.5)));
        assert_eq!((train.process.world_size, train.process.rank), (8, 0));
        assert_eq!(train.device.dtype, DtypeChoice::Fixed(Dtype::Bf16));
        assert_eq!((train.files.checkpoints_keep, train.gpu.use_master_weights), (3, false));
        assert_eq!(ok("-e d12 --gpu=h100 -pn 4 -d 16384").train.process.world_size, 4);
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        for (line, expected) in [
            ("-e d12 --gpus 2", "--gpus: needs --gpu"),
            ("-e d12 --price 2", "--price: needs --gpu"),
            ("-e d12 --gpu h100 --gpus 2 -pn 4", "-pn/--num-processes: expected the number of --gpus"),
            ("-e d12 --gpu h100 --device emulated", "--device: expected cuda"),
            ("-e d12 --gpu abacus", "--gpu: expected one of"),
            ("-e d12 --frobnicate 1", "--frobnicate: unknown flag"),
        ] {
            let error = format!("{:#}", read(line).unwrap_err());
            assert!(error.starts_with(expected) && !error.contains('\n'), "{line}: {error}");
        }
    }
}
