//! The flags of `train_gpt2` and `train_gpt2cu`: one table that drives parsing, `--help`, the
//! start-up table and the documentation of flags.
//!
//! Short flags are llm.c's, long names are those of its `train_gpt2.py` where it has one. The `id`
//! of a flag is its label in the start-up table, again llm.c's where there is one.

mod dropout;
mod groups;
mod lora;
mod micro_batch;
pub mod presets;
mod schedule;
mod tasks;
mod tracking;
mod update;

use crate::cli::{Parsed, parse, values};
use crate::device::open::DeviceName;
use crate::parallel::environment::{Flags, Process, STARTED};
use anyhow::{Context, Result};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory, FromArgMatches, Parser};
use std::ffi::OsString;
use std::time::{Duration, Instant, SystemTime};

pub use dropout::DropoutFlags;
pub use groups::*;
pub use lora::LoraFlags;
pub use micro_batch::MicroBatch;
pub use schedule::ScheduleFlags;
pub use tasks::{TaskFlags, each_once};
pub use tracking::TrackingFlags;
pub use update::UpdateFlags;

/// Which of the two programs these are the flags of. They differ in the devices they know, and in
/// defaults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Program {
    #[default]
    TrainGpt2,
    TrainGpt2cu,
}

impl Program {
    pub fn name(self) -> &'static str {
        match self {
            Program::TrainGpt2 => "train_gpt2",
            Program::TrainGpt2cu => "train_gpt2cu",
        }
    }
}

/// Train a GPT-2 or GPT-3 sized model.
#[derive(Parser, Clone, Debug)]
#[command(
    name = "train_gpt2",
    version,
    disable_help_flag = true,
    args_override_self = true,
    after_help = "Each flag takes one value. `--flag=value`, `-b=4`, `-b4` and `--batch_size 4` are understood; \
                  `--flag` alone is 1 where the value is 0|1; the last of two equal flags wins."
)]
pub struct TrainArgs {
    #[command(flatten)]
    pub recipe: RecipeFlags,
    #[command(flatten)]
    pub files: FileFlags,
    #[command(flatten)]
    pub tracking: TrackingFlags,
    #[command(flatten)]
    pub model: ModelFlags,
    #[command(flatten)]
    pub batch: BatchFlags,
    #[command(flatten)]
    pub schedule: ScheduleFlags,
    #[command(flatten)]
    pub optim: OptimFlags,
    #[command(flatten)]
    pub lora: LoraFlags,
    #[command(flatten)]
    pub dropout: DropoutFlags,
    #[command(flatten)]
    pub update: UpdateFlags,
    #[command(flatten)]
    pub eval: EvalFlags,
    #[command(flatten)]
    pub tasks: TaskFlags,
    #[command(flatten)]
    pub device: DeviceFlags,
    #[command(flatten)]
    pub gpu: GpuFlags,
    #[command(flatten)]
    pub processes: ProcessFlags,
    #[command(flatten)]
    pub compat: CompatFlags,

    /// Print this help
    #[arg(long, action = ArgAction::HelpShort, help_heading = None::<&str>)]
    pub help: Option<bool>,

    #[arg(skip)]
    pub program: Program,

    /// The start of the process, or of its launcher, from which --max-hours counts.
    #[arg(skip = Instant::now())]
    pub started: Instant,

    /// This process among all of them.
    #[arg(skip)]
    pub process: Process,

    /// Lines that explain flags whose meaning here is not that of `train_gpt2.py`.
    #[arg(skip)]
    pub notes: Vec<String>,

    /// Rows of the start-up table, in order.
    #[arg(skip)]
    pub rows: Vec<(String, String)>,
}

/// The clap command of a program.
pub fn command(program: Program) -> Command {
    parse::finish(unfinished_command(program))
}

/// The same without what [`parse::finish`] adds, for a command that has further flags.
pub(in crate::cli) fn unfinished_command(program: Program) -> Command {
    presets::defaults(match program {
        Program::TrainGpt2 => TrainArgs::command(),
        Program::TrainGpt2cu => for_gpus(TrainArgs::command()),
    })
}

/// Applies the differences of `train_gpt2cu`.
fn for_gpus(command: Command) -> Command {
    command.name(Program::TrainGpt2cu.name()).mut_args(|arg| match arg.get_id().as_str() {
        "device" => arg
            .value_parser(values::cuda_device)
            .value_name("cuda|emulated")
            .default_value("cuda")
            .help("Device to train on; emulated runs the same kernels on the CPU, slowly (for tests)"),
        "dtype" => arg
            .value_parser(values::dtype_choices(&values::GPU_DTYPES))
            .default_value("bf16")
            .help("Type of parameters, activations and gradients; auto is bf16"),
        _ => arg,
    })
}

/// Reads a command line; `argv` starts with the program's name, `variable` looks up the
/// environment, in which a launcher says which of how many processes this is.
///
/// # Errors
/// One line: the flag, what was expected, what was found, what to do.
pub fn parse(
    program: Program,
    argv: impl IntoIterator<Item = impl Into<OsString>>,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Parsed<TrainArgs>> {
    let command = command(program);
    let argv = parse::respell(&command, argv.into_iter().map(Into::into).collect())?;
    let matches = match parse::matches(&command, argv)? {
        Parsed::Run(matches) => matches,
        Parsed::Print(text) => return Ok(Parsed::Print(text)),
    };
    let mut args = from_matches(program, &command, &matches, |flags| Process::find(flags, variable))?;
    if let Some(text) = variable(STARTED) {
        args.started = instant_of(&text)?;
    }
    Ok(Parsed::Run(args))
}

/// Reads the flags of a trainer from matches of its command, to which more may have been added;
/// `process` finds the process among all of them.
///
/// # Errors
/// As [`parse`].
pub(in crate::cli) fn from_matches(
    program: Program,
    command: &Command,
    matches: &ArgMatches,
    process: impl FnOnce(Flags) -> Result<Process>,
) -> Result<TrainArgs> {
    let mut args = TrainArgs { program, ..TrainArgs::from_arg_matches(matches)? };
    args.batch.batch_size = match args.batch.micro_batch {
        MicroBatch::Of(sequences) => sequences,
        MicroBatch::Auto => 1,
    };
    let typed = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
    let preset = args.recipe.preset.as_deref();
    let named = typed("model") || preset.is_some_and(|preset| presets::sets(preset, "model"));
    if args.has_shape_flags() && !named {
        args.model.source.clear();
    }
    let unused = schedule::choose_lengths(&mut args, &typed)?;
    let ProcessFlags { num_processes, process_rank, gpus_per_node, .. } = args.processes;
    args.process = process(Flags { num_processes, process_rank, gpus_per_node })?;
    args.check()?;
    args.notes = notes(&args, &typed);
    args.rows = rows(command, matches, &args, &unused);
    Ok(args)
}

/// The time that seconds since 1970 name; the present, if they name a later one.
fn instant_of(text: &str) -> Result<Instant> {
    let expected = || format!("{STARTED}={text}: expected seconds since 1970");
    let seconds: f64 = text.trim().parse().ok().with_context(expected)?;
    let start = SystemTime::UNIX_EPOCH
        .checked_add(Duration::try_from_secs_f64(seconds).ok().with_context(expected)?)
        .with_context(expected)?;
    Instant::now().checked_sub(start.elapsed().unwrap_or_default()).with_context(expected)
}

/// Explains flags that were given, and change nothing here.
fn notes(args: &TrainArgs, typed: &dyn Fn(&str) -> bool) -> Vec<String> {
    let cpu = args.device.name == DeviceName::Cpu;
    let notes = [
        (
            args.compat.compile,
            "--compile 1: kernels were compiled with the program; nothing is left to compile",
        ),
        (typed("flash"), "--flash 1: attention is always fused and never stores a T x T matrix"),
        (typed("tf32") && args.device.tf32 && cpu, "--tensorcores 1: a CPU has none; f32 keeps all its bits"),
    ];
    notes.iter().filter(|note| note.0).map(|note| note.1.to_owned()).collect()
}

/// Names and values of the flags that shape the run, in the order of the flags.
pub fn startup_rows(args: &TrainArgs) -> Vec<(String, String)> {
    args.rows.clone()
}

/// Values are shown as they were written. Flags that have one possible value, and options that were
/// not used, are left out.
fn rows(command: &Command, matches: &ArgMatches, args: &TrainArgs, unused: &[&str]) -> Vec<(String, String)> {
    let end = if args.device.name == DeviceName::Cpu { GPU_HEADING } else { PROCESS_HEADING };
    let shown = command.get_arguments().take_while(|arg| arg.get_help_heading() != Some(end));
    let row = |arg: &Arg| {
        let id = arg.get_id().as_str();
        let value = match id {
            "total batch size" => args.total_batch_tokens().to_string(),
            "model" if args.model.source.is_empty() => return None,
            _ if unused.contains(&id) => return None,
            _ => matches.get_raw(id)?.map(|raw| raw.to_string_lossy()).collect::<Vec<_>>().join(" "),
        };
        Some((id.to_owned(), value))
    };
    shown.filter_map(row).collect()
}

#[cfg(test)]
mod tests;
