//! The flags of `warpsmith parity`.

use super::NumberArgs;
use crate::cli::values;
use clap::Args;
use std::path::PathBuf;

#[derive(Args, Clone, Debug)]
pub struct ParityArgs {
    /// Debug state: gpt2_124M_debug_state.bin, as llm.c's train_gpt2.py and --write_tensors 1 write
    /// it
    #[arg(long, value_name = "FILE")]
    pub debug_state: PathBuf,
    /// The model that it is of [default: the file beside it without _debug_state in its name]
    #[arg(short = 'e', long, value_name = "PATH")]
    pub model: Option<PathBuf>,
    /// Losses that ten steps should have, separated by commas [default: those of PyTorch for
    /// llm.c's debug state of GPT-2 124M; for others, those of the CPU in f32]
    #[arg(long, value_name = "LOSS,…", value_delimiter = ',', value_parser = values::non_negative)]
    pub losses: Vec<f32>,
    #[command(flatten)]
    pub numbers: NumberArgs,
}

impl ParityArgs {
    /// The file of the model.
    pub fn model(&self) -> PathBuf {
        let beside = || {
            let name = self.debug_state.file_name().unwrap_or_default().to_string_lossy();
            self.debug_state.with_file_name(name.replace("_debug_state", ""))
        };
        self.model.clone().unwrap_or_else(beside)
    }
}
