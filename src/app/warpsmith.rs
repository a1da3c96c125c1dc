//! The program `warpsmith`: one command per task around training.

use super::{
    chat, corpus, eval, get, launch, logging, model, parity, plan, print, roofline, sample, scaling, serve,
    sft, tokenizer, track, watch,
};
use crate::cli::flags::warpsmith::{COMPARISON, FlagsArgs, PlotArgs, Tool, parse};
use crate::device::open::start_threads;
use crate::report::plot::{compare_runs, plot_run};
use anyhow::Result;
use std::path::Path;
use std::process::ExitCode;

pub fn main() -> ExitCode {
    let parsed = logging::start().and_then(|()| parse(std::env::args_os()));
    super::run("warpsmith", parsed, |tool| {
        match tool {
            Tool::Get(args) => get::get(&args)?,
            Tool::Data(args) => start_threads(0).and_then(|()| corpus::data(&args))?,
            Tool::Sft(args) => start_threads(0).and_then(|()| sft::sft(&args))?,
            Tool::Stories(args) => start_threads(0).and_then(|()| corpus::stories(&args))?,
            Tool::Tokenizer { tool } => start_threads(0).and_then(|()| tokenizer::run(&tool))?,
            Tool::Sample(args) => sample::sample(&args)?,
            Tool::Chat(args) => chat::chat(&args)?,
            Tool::Serve(args) => serve::serve(&args)?,
            Tool::Eval(args) => eval::eval(&args)?,
            Tool::Convert(args) => model::convert(&args)?,
            Tool::Parity(args) => return parity::parity(&args),
            Tool::Plot(args) => plot(&args)?,
            Tool::Track(args) => track::track(&args)?,
            Tool::Plan(args) => plan::plan(&args)?,
            Tool::Watch(args) => watch::watch(&args)?,
            Tool::Roofline(args) => roofline::roofline(&args)?,
            Tool::Scaling(args) => scaling::scaling(&args)?,
            Tool::Launch(args) => return launch::launch(args),
            Tool::Flags(args) => flags(&args)?,
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn plot(args: &PlotArgs) -> Result<()> {
    let written = match args.dirs.as_slice() {
        [dir] => plot_run(dir)?,
        dirs => compare_runs(dirs, args.output.as_deref().unwrap_or(Path::new(COMPARISON)))?,
    };
    for path in written {
        print(format_args!("{}\n", path.display()))?;
    }
    Ok(())
}

fn flags(args: &FlagsArgs) -> Result<()> {
    match &args.write {
        Some(path) => crate::cli::readme::write_flags(path),
        None => print(crate::cli::readme::flags_markdown()),
    }
}
