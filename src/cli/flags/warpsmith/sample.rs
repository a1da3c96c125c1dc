//! The flags of `warpsmith sample` and `warpsmith chat`.

use super::NumberArgs;
use crate::cli::values;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

#[derive(Args, Clone, Debug)]
pub struct SampleArgs {
    /// Model: a .bin, .safetensors or .gguf file, the directory of a run, or one of the hub, such
    /// as gpt2 or OWNER/NAME
    #[arg(short = 'e', long, value_name = "PATH", required_unless_present = "compare")]
    pub model: Option<PathBuf>,
    /// Adapters of LoRA to merge into the model that they belong to: a folder of PEFT, or the
    /// adapter_STEP of a run
    #[arg(long, value_name = "DIR", conflicts_with = "compare")]
    pub adapter: Option<PathBuf>,
    /// Two models to compare instead of -e: each continues the same prompt with the same seed, and
    /// the texts stand side by side, in 80 columns
    #[arg(long, value_name = "PATH", num_args = 2, conflicts_with = "model")]
    pub compare: Vec<PathBuf>,
    /// Text to continue, in which <|endoftext|> is a token [default: the start of a document]
    #[arg(short = 'p', long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// Maximum number of tokens to generate; the model may end earlier
    #[arg(short = 'g', long, value_name = "TOKENS", default_value = "128", value_parser = values::count)]
    pub max_tokens: usize,
    #[command(flatten)]
    pub sampler: SamplerArgs,
    /// Number of samples
    #[arg(long, value_name = "N", default_value = "1", value_parser = values::count)]
    pub count: usize,
    /// Run the whole text through the model for every token, slowly: a check of the key-value cache
    #[arg(long)]
    pub no_kv_cache: bool,
    #[command(flatten)]
    pub numbers: NumberArgs,
}

/// The way in which tokens are picked.
#[derive(Args, Clone, Copy, Debug)]
pub struct SamplerArgs {
    /// Sampling temperature (0 = greedy)
    #[arg(long, value_name = "T", default_value = "1.0", value_parser = values::non_negative)]
    pub temperature: f32,
    /// Top-k sampling (0 = off)
    #[arg(long, value_name = "K", default_value = "0", value_parser = values::whole)]
    pub top_k: usize,
    /// Nucleus (top-p) sampling (1 = off)
    #[arg(long, value_name = "P", default_value = "1.0", value_parser = values::probability)]
    pub top_p: f32,
    /// Random seed
    #[arg(long, value_name = "N", default_value = "1337", value_parser = values::long_seed)]
    pub seed: u64,
}

#[derive(Args, Clone, Debug)]
pub struct ChatArgs {
    /// Model: a .bin, .safetensors or .gguf file, the directory of a run, or one of the hub, such
    /// as gpt2 or OWNER/NAME
    #[arg(short = 'e', long, value_name = "PATH")]
    pub model: PathBuf,
    /// Adapters of LoRA to merge into the model that they belong to: a folder of PEFT, or the
    /// adapter_STEP of a run
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// JSON file with the text around turns that the model was fine-tuned with, as `warpsmith sft`
    /// takes it [default: that of `warpsmith sft`]
    #[arg(long, value_name = "FILE")]
    pub template: Option<PathBuf>,
    /// Form of the examples that the model was fine-tuned with: messages (turns of one
    /// conversation), or pair (a prompt and its response, each alone) [default: messages, if the
    /// template has them]
    #[arg(long, value_enum)]
    pub form: Option<ChatForm>,
    /// Text of the system's turn, which comes first
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Maximum number of tokens of an answer; the model may end earlier
    #[arg(short = 'g', long, value_name = "TOKENS", default_value = "256", value_parser = values::count)]
    pub max_tokens: usize,
    #[command(flatten)]
    pub sampler: SamplerArgs,
    #[command(flatten)]
    pub numbers: NumberArgs,
}

/// A form of examples.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChatForm {
    Messages,
    Pair,
}
