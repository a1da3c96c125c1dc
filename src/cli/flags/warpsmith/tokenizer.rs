//! The flags of `warpsmith tokenizer`.

use crate::cli::values;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// A command on tokenizers.
#[derive(Subcommand, Clone, Debug)]
pub enum TokenizerTool {
    /// Learn a vocabulary from text: byte-level BPE with GPT-2's words, and <|endoftext|>. The same
    /// text gives the same vocabulary, on any number of threads
    Train(TokenizerTrainArgs),
    /// Convert between tokenizer.json and llm.c's gpt2_tokenizer.bin
    Convert(TokenizerConvertArgs),
}

#[derive(Args, Clone, Debug)]
pub struct TokenizerTrainArgs {
    /// Text, in all the forms that `warpsmith data` reads
    #[arg(required = true, value_name = "INPUT")]
    pub inputs: Vec<PathBuf>,
    /// Number of tokens: 256 bytes, <|endoftext|>, and those that are learned
    #[arg(long, value_name = "N", value_parser = values::count)]
    pub vocab_size: usize,
    /// File for the tokenizer
    #[arg(short = 'o', long, value_name = "FILE", default_value = "tokenizer.json")]
    pub output: PathBuf,
    /// Column of a parquet file, or field of a JSON object, that holds the text [default: text]
    #[arg(long, alias = "json-field", value_name = "NAME", value_parser = values::name)]
    pub text_column: Option<String>,
    /// Leave out JSON objects that are not usable, and count them
    #[arg(long)]
    pub skip_bad_lines: bool,
    /// Replace FILE if it exists
    #[arg(long)]
    pub force: bool,
}

#[derive(Args, Clone, Debug)]
pub struct TokenizerConvertArgs {
    /// gpt2 (built in), a tokenizer.json or a folder with one, or llm.c's .bin
    #[arg(value_name = "IN")]
    pub input: PathBuf,
    /// Output file; its extension selects the format: .json or .bin
    #[arg(value_name = "OUT")]
    pub output: PathBuf,
    /// Replace OUT if it exists
    #[arg(long)]
    pub force: bool,
}
