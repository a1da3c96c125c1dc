//! Trains a GPT-2 or GPT-3 sized model on the CPU.

use std::process::ExitCode;
use warpsmith::{app::trainer, cli::Program};

fn main() -> ExitCode {
    trainer::main(Program::TrainGpt2)
}
