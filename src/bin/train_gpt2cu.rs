//! Trains a GPT-2 or GPT-3 sized model on a GPU.

use std::process::ExitCode;
use warpsmith::cli::{Program, train_gpt2};

fn main() -> ExitCode {
    train_gpt2::main(Program::TrainGpt2cu)
}
