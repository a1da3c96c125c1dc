//! Trains a GPT-2 or GPT-3 sized model on the CPU.

use std::process::ExitCode;

fn main() -> ExitCode {
    warpsmith::cli::train_gpt2::main()
}
