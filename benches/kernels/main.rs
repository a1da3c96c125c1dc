//! Benchmarks every kernel of a training step: first checked, then timed with a cold cache, ours
//! next to cuBLASLt's.
//!
//! `cargo bench --bench kernels -- --help` lists the flags. Without cargo's `--bench` the program
//! tests itself.

mod args;
mod bench;
mod cases;
mod counted;
mod elements;
mod op;
mod operands;
mod record;
mod report;
mod tiny;

use anyhow::{Result, ensure};
use args::Args;
use bench::{Bench, Outcome};
use cases::Case;
use record::Device;
use report::Row;
use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;
use warpsmith::device::open::DeviceName;
use warpsmith::roofline::gpu::Gpu;
use warpsmith::tensor::Dtype;
use warpsmith::{app, cli};

/// Program name in errors; cargo appends a hash to the executable's own.
const PROGRAM: &str = "kernels";

fn main() -> ExitCode {
    let argv: Vec<OsString> = std::env::args_os().collect();
    if !argv.iter().any(|arg| arg == "--bench") {
        return tiny::main(&argv);
    }
    let parsed = app::logging::start().and_then(|()| cli::parse_flags::<Args>(argv));
    app::run(PROGRAM, parsed, |args| Ok(if run(&args)? { ExitCode::FAILURE } else { ExitCode::SUCCESS }))
}

/// Runs all cases, prints and records them. Returns whether any was wrong.
fn run(args: &Args) -> Result<bool> {
    let (device, rows) = measure(args)?;
    let emulated = args.device == DeviceName::Emulated;
    let table =
        if emulated { report::counted(&rows) } else { report::timed(&rows, args.dtype != Dtype::F32) };
    let mut out = std::io::stdout();
    writeln!(out, "{}; B {}, T {}", device.name, args.batch_size, args.sequence_length)?;
    device.libraries.iter().try_for_each(|library| writeln!(out, "{library}"))?;
    writeln!(out, "\n{table}")?;
    write!(out, "{}{}", report::faults(&rows), report::plans(&rows))?;
    let wrong = rows.iter().any(|row| matches!(row.outcome, Outcome::Wrong(_)));
    let (path, record) = match emulated {
        true => (counted::path(args), counted::record(args, &rows)),
        false => (record::path(args, &device.name), record::record(args, &device, &rows)),
    };
    // A record that tests compare with must be complete, and one for predictions needs 16-bit
    // counts.
    let complete = args.only.is_empty() && !(emulated && (wrong || args.dtype == Dtype::F32));
    if args.out.is_some() || complete {
        record::write(&path, &record)?;
        writeln!(out, "record: {}", path.display())?;
    }
    Ok(wrong)
}

/// Opens the device and runs all cases.
fn measure(args: &Args) -> Result<(Device, Vec<Row>)> {
    ensure!(
        args.peers.is_empty() || args.device == DeviceName::Cuda,
        "--peers: expected --device cuda, found emulated, whose times are meaningless; drop the flag"
    );
    let peers = record::read_peers(&args.peers)?;
    let cases = wanted(args)?;
    let mut bench = Bench::open(args, &cases)?;
    let name = bench.gpu_name();
    let gpu = name.as_deref().and_then(Gpu::of_device);
    let libraries = bench.libraries()?;
    let mut rows = Vec::new();
    for case in cases {
        let outcome = bench.run(&case);
        if name.is_some() {
            eprintln!("{} {}", case.kernel.name, case.kernel.shape);
        }
        rows.push(Row::new(case, outcome, gpu, args.dtype != Dtype::F32, &peers));
    }
    Ok((Device { name: name.unwrap_or_else(|| bench.describe()), libraries }, rows))
}

/// The cases that the flags select, each kernel and shape once.
fn wanted(args: &Args) -> Result<Vec<Case>> {
    let mut all: Vec<Case> = Vec::new();
    for (config, shape) in args.steps()? {
        for case in cases::cases(&config, &shape) {
            let chosen = args.only.iter().any(|only| case.kernel.name.contains(only.as_str()));
            let wanted = args.only.is_empty() || chosen;
            if wanted && !all.iter().any(|other| case.same_as(other)) {
                all.push(case);
            }
        }
    }
    let only = args.only.join(",");
    ensure!(
        !all.is_empty(),
        "--only: expected part of the name of a kernel, found {only}; without it, all kernels run"
    );
    Ok(all)
}
