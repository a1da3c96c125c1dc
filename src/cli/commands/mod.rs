//! What the commands of `warpsmith` do.

mod clocks;
mod corpus;
mod launch;
mod model;
mod roofline;
mod scaling;

use super::print;
use super::tools::{FlagsArgs, PlotArgs, Tool, parse};
use anyhow::Result;
use std::process::ExitCode;

pub fn main() -> ExitCode {
    if let Err(error) = super::logging::start() {
        return super::exit_with("warpsmith", Err(error));
    }
    let mut status = ExitCode::SUCCESS;
    let outcome = super::run("warpsmith", parse(std::env::args_os()), |tool| match tool {
        Tool::Data(args) => corpus::data(&args),
        Tool::Stories(args) => corpus::stories(&args),
        Tool::Sample(args) => model::sample(&args),
        Tool::Eval(args) => model::eval(&args),
        Tool::Convert(args) => model::convert(&args),
        Tool::Plot(args) => plot(&args),
        Tool::Roofline(args) => roofline::roofline(&args),
        Tool::Scaling(args) => scaling::scaling(&args),
        Tool::Launch(args) => {
            status = launch::launch(args)?;
            Ok(())
        }
        Tool::Flags(args) => flags(&args),
    });
    // That of the processes launched, unless something was wrong before.
    if outcome == ExitCode::SUCCESS { status } else { outcome }
}

fn plot(args: &PlotArgs) -> Result<()> {
    for path in crate::metrics::plot::plot_run(&args.dir)? {
        print(format_args!("{}\n", path.display()))?;
    }
    Ok(())
}

fn flags(args: &FlagsArgs) -> Result<()> {
    match &args.write {
        Some(path) => super::readme::write_flags(path),
        None => print(super::readme::flags_markdown()),
    }
}
