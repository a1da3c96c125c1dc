//! Trains a GPT-2 or GPT-3 sized model on a GPU.

use std::process::ExitCode;
use warpsmith::{app::trainer, cli::Program};

fn main() -> ExitCode {
    trainer::main(Program::TrainGpt2cu)
}
