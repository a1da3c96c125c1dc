//! The flags of `warpsmith eval`.

use super::NumberArgs;
use crate::cli::flags::trainer::each_once;
use crate::cli::values;
use crate::eval::tasks::TaskFile;
use anyhow::{Result, ensure};
use clap::{ArgAction, Args};
use std::path::PathBuf;

/// Stands for the questions that `warpsmith get hellaswag` has stored.
pub const STORED: &str = "hellaswag";

#[derive(Args, Clone, Debug)]
pub struct EvalArgs {
    /// Model: a .bin, .safetensors or .gguf file, the directory of a run, or one of the hub, such
    /// as gpt2 or OWNER/NAME
    #[arg(short = 'e', long, value_name = "PATH")]
    pub model: PathBuf,
    /// Adapters of LoRA to merge into the model that they belong to: a folder of PEFT, or the
    /// adapter_STEP of a run
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// HellaSwag questions: llm.c's .bin or the original .jsonl; without FILE, those of `warpsmith
    /// get hellaswag`
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = STORED)]
    pub hellaswag: Option<PathBuf>,
    /// Score a task as lm_eval does; may be given several times. NAME: hellaswag, piqa, copa,
    /// arc_easy, arc_challenge, winogrande, lambada, multiple_choice; FILE: its JSON lines
    #[arg(long = "task", value_name = "NAME=FILE", value_parser = str::parse::<TaskFile>,
          action = ArgAction::Append)]
    pub tasks: Vec<TaskFile>,
    /// Text for perplexity and bits per byte: a whole file, or each "text" of a .jsonl file
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// Tokens that each window of --text moves on; fewer give each token more context, and take
    /// longer [default: -t, the whole window]
    #[arg(long, value_name = "TOKENS", value_parser = values::count)]
    pub stride: Option<usize>,
    /// Prompts to continue greedily for BLEU and ROUGE: JSON lines with "prompt" and "reference", a
    /// text or several
    #[arg(long, value_name = "FILE")]
    pub generate: Option<PathBuf>,
    /// Maximum number of tokens to write after each prompt of --generate [default: 128]
    #[arg(short = 'g', long, value_name = "TOKENS", value_parser = values::count)]
    pub max_tokens: Option<usize>,
    /// Validation shards: a file or a pattern with * and ?
    #[arg(short = 'j', long, value_name = "PATTERN", value_parser = values::name)]
    pub val: Option<String>,
    /// Sequences per forward pass
    #[arg(short = 'b', long, value_name = "B", default_value = "4", value_parser = values::count)]
    pub batch_size: usize,
    /// Sequence length in tokens [default: the model's maximum]
    #[arg(short = 't', long, value_name = "T", value_parser = values::count)]
    pub sequence_length: Option<usize>,
    /// Maximum number of validation batches of B*T tokens [default: the whole split]
    #[arg(short = 'm', long, value_name = "BATCHES", value_parser = values::count)]
    pub max_batches: Option<usize>,
    /// File for the results: one JSON object per line, for each question of a task and then a
    /// summary
    #[arg(short = 'o', long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    pub numbers: NumberArgs,
}

impl EvalArgs {
    /// The default of `-g`, which is that of `warpsmith sample`.
    pub const MAX_TOKENS: usize = 128;

    pub(super) fn check(&self) -> Result<()> {
        self.numbers.check()?;
        let files = [&self.hellaswag, &self.text, &self.generate];
        ensure!(
            self.val.is_some() || !self.tasks.is_empty() || files.iter().any(|file| file.is_some()),
            "eval: nothing to measure; give --val PATTERN, --hellaswag FILE, --task NAME=FILE, --text FILE or \
             --generate FILE"
        );
        ensure!(
            self.stride.is_none() || self.text.is_some(),
            "--stride: moves the windows of --text, which is not given"
        );
        ensure!(
            self.max_tokens.is_none() || self.generate.is_some(),
            "-g/--max-tokens: limits the texts of --generate, which is not given"
        );
        each_once(&self.tasks)?;
        ensure!(
            self.max_batches.is_none() || self.val.is_some(),
            "-m/--max-batches: limits --val, which is not given"
        );
        Ok(())
    }
}
