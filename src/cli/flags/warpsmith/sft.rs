//! `warpsmith sft`.

use crate::cli::values;
use clap::Args;
use std::path::PathBuf;

#[derive(Args, Clone, Debug)]
pub struct SftArgs {
    /// JSON lines or JSON arrays, either as .gz or .zst, directories of them, or - for standard
    /// input. Each object has a prompt and a response (or completion), or messages: a list of turns
    /// with a role (system, user, assistant) and content
    #[arg(required = true, value_name = "INPUT")]
    pub inputs: Vec<PathBuf>,
    /// Directory for the shards and their masks; created if missing
    #[arg(short = 'o', long, value_name = "DIR")]
    pub output: PathBuf,
    /// JSON file with the text around the parts of an example: {"pair": "Q: {prompt}\nA:
    /// {response}", "messages": {"user": "User: {content}\n", "assistant": "…"}} [default: prompt
    /// and response on lines of their own; User: and Assistant: on lines above the content]
    #[arg(long, value_name = "FILE")]
    pub template: Option<PathBuf>,
    /// Field that holds the prompt [default: prompt]
    #[arg(long, value_name = "NAME", value_parser = values::name)]
    pub prompt_column: Option<String>,
    /// Field that holds the response [default: response, else completion]
    #[arg(long, value_name = "NAME", value_parser = values::name)]
    pub response_column: Option<String>,
    /// Tokenizer: gpt2, a tokenizer.json or a folder with one, or llm.c's .bin. Any but gpt2 is
    /// written beside the shards, as tokenizer.json
    #[arg(long, value_name = "FILE", default_value = "gpt2")]
    pub tokenizer: PathBuf,
    /// Shard name prefix: NAME_val_000000.bin, NAME_train_000001.bin …
    #[arg(long, value_name = "NAME", default_value = "sft", value_parser = values::file_name)]
    pub name: String,
    /// Most tokens per shard
    #[arg(long, value_name = "TOKENS", default_value = "100000000", value_parser = values::tokens)]
    pub shard_size: usize,
    /// File or directory of examples to validate on; may be repeated
    #[arg(long, value_name = "INPUT")]
    pub val: Vec<PathBuf>,
    /// Examples that are drawn at random for validation, without --val [default: a twentieth, at
    /// most 1000]
    #[arg(long, value_name = "N", value_parser = values::whole, conflicts_with = "val")]
    pub val_examples: Option<usize>,
    /// Random seed of that draw
    #[arg(long, value_name = "N", default_value = "42", value_parser = values::long_seed)]
    pub seed: u64,
    /// Leave out examples that are not usable, and count them
    #[arg(long)]
    pub skip_bad_lines: bool,
    /// Replace existing shards of that name
    #[arg(long)]
    pub force: bool,
}
