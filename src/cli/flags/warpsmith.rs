//! The command line of `warpsmith`.

mod eval;
mod get;
mod parity;
mod plan;
mod sample;
mod scaling;
mod serve;
mod sft;
mod tokenizer;
mod track;
mod watch;

use crate::cli::{Parsed, parse, values};
use crate::device::open::{DeviceName, DtypeChoice};
use crate::model::activations::Recompute;
use crate::optim::optimizer::OptimizerKind;
use crate::roofline::gpu::Gpu;
use crate::tensor::{Dtype, Stored};
use anyhow::{Result, bail, ensure};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
pub use eval::{EvalArgs, STORED};
pub use get::GetArgs;
pub use parity::ParityArgs;
pub use plan::{PlanArgs, PlanFlags};
pub use sample::{ChatArgs, ChatForm, SampleArgs, SamplerArgs};
pub use scaling::ScalingArgs;
pub use serve::ServeArgs;
pub use sft::SftArgs;
use std::ffi::OsString;
use std::path::PathBuf;
pub use tokenizer::{TokenizerConvertArgs, TokenizerTool, TokenizerTrainArgs};
pub use track::TrackArgs;
pub use watch::WatchArgs;

/// Prepare data; sample, evaluate and convert models; plot runs
///
/// `train_gpt2` trains a model on the CPU, `train_gpt2cu` on GPUs.
#[derive(Parser, Clone, Debug)]
#[command(name = "warpsmith", version, args_override_self = true, subcommand_required = true)]
struct Tools {
    #[command(subcommand)]
    tool: Tool,
}

/// A command.
#[derive(Subcommand, Clone, Debug)]
pub enum Tool {
    /// Fetch datasets and models from the Hugging Face hub, resuming where an earlier download
    /// ended
    Get(GetArgs),
    /// Tokenize text into shards for training and validation
    Data(DataArgs),
    /// Tokenize prompts and answers into shards for supervised fine-tuning, in which only the
    /// answers count
    Sft(SftArgs),
    /// Write generated short stories, as token shards or as text: training data without a download
    Stories(StoriesArgs),
    /// Learn a vocabulary from text, or convert one
    Tokenizer {
        #[command(subcommand)]
        tool: TokenizerTool,
    },
    /// Generate text
    Sample(SampleArgs),
    /// Talk with a model, fine-tuned for conversations, in the terminal
    Chat(ChatArgs),
    /// Serve a model over HTTP, with OpenAI's API of completions
    Serve(ServeArgs),
    /// Evaluate a model: validation loss and perplexity, accuracy on HellaSwag and other tasks
    Eval(EvalArgs),
    /// Convert a model between llm.c's .bin, Hugging Face safetensors and llama.cpp's GGUF, or to
    /// llm.c's .bin: HellaSwag's .jsonl, tokens of other programs
    Convert(ConvertArgs),
    /// Compare logits, loss, gradients and ten steps with those of PyTorch in a debug state of
    /// llm.c. Exit status 1 if they differ
    Parity(ParityArgs),
    /// Plot a run from its metrics.jsonl
    Plot(PlotArgs),
    /// Pass a run on to TensorBoard or MLflow: all that has not arrived yet
    Track(TrackArgs),
    /// Parsed by [`plan::parse`], as its flags are those of a trainer.
    #[command(skip)]
    Plan(Box<PlanArgs>),
    /// Show runs in a browser while they train, and compare them; or write that page to a file
    Watch(WatchArgs),
    /// Predict the time of a training step on a GPU, kernel by kernel, next to measured times
    Roofline(RooflineArgs),
    /// Predict a training step on many GPUs: exposed communication, and memory per ZeRO stage.
    /// Without -d, each GPU runs one micro-batch per step
    Scaling(ScalingArgs),
    /// Start the processes of a trainer on this machine, and stop all of them when one fails
    Launch(LaunchArgs),
    /// Print the flags of the trainers as Markdown
    #[command(hide = true)]
    Flags(FlagsArgs),
}

#[derive(Args, Clone, Debug)]
pub struct DataArgs {
    /// Text files, JSON lines, JSON arrays, any of these as .gz or .zst, parquet files, directories
    /// of them, patterns, or - for standard input. hub:NAME and hf://datasets/OWNER/NAME/FILE are
    /// fetched, as by `warpsmith get`, and tokenized as they arrive. INPUT=WEIGHT mixes inputs by
    /// weight, in bytes of text, until one is used up: web/=0.7 'code/*.parquet=0.3'
    #[arg(required = true, value_name = "INPUT")]
    pub inputs: Vec<PathBuf>,
    /// Directory for the shards; created if missing
    #[arg(short = 'o', long, value_name = "DIR")]
    pub output: PathBuf,
    /// Tokenizer: gpt2, a tokenizer.json or a folder with one, or llm.c's .bin. Any but gpt2 is
    /// written beside the shards, as tokenizer.json
    #[arg(long, value_name = "FILE", default_value = "gpt2")]
    pub tokenizer: PathBuf,
    /// Shard name prefix: NAME_val_000000.bin, NAME_train_000001.bin …
    #[arg(long, value_name = "NAME", default_value = "data", value_parser = values::file_name)]
    pub name: String,
    /// Tokens per training shard; the last may have fewer
    #[arg(long, value_name = "TOKENS", default_value = "100000000", value_parser = values::tokens)]
    pub shard_size: usize,
    /// Form of the shards: llm.c's .bin, NumPy's .npy (build-nanogpt), or raw for nanoGPT's
    /// train.bin and val.bin, without a header
    #[arg(long, default_value = "bin", value_parser = ["bin", "npy", "raw"])]
    pub format: String,
    /// File or directory of validation text; may be repeated. Without it, documents for validation
    /// are drawn at random from all of the input
    #[arg(long, value_name = "INPUT")]
    pub val: Vec<PathBuf>,
    /// Tokens that are drawn for validation [default: about a tenth of the text, less if it is
    /// compressed, at most a shard and 16777216]
    #[arg(long, value_name = "TOKENS", value_parser = values::tokens, conflicts_with = "val")]
    pub val_tokens: Option<usize>,
    /// Random seed of that draw; the same seed draws the same documents of an input
    #[arg(long, value_name = "N", default_value = "42", value_parser = values::long_seed)]
    pub seed: u64,
    /// Document separator in text files, with \n for a newline, or none to make each file one
    /// document [default: <|endoftext|>]
    #[arg(long, value_name = "TEXT", value_parser = values::separator, allow_hyphen_values = true)]
    pub split_on: Option<String>,
    /// Column of a parquet file, or field of a JSON object, that holds the text; no input but that
    /// of --val may then be plain text [default: text]
    #[arg(long, visible_alias = "json-field", value_name = "NAME", value_parser = values::name)]
    pub text_column: Option<String>,
    /// Leave out JSON objects and parquet rows that are not usable, and count them
    #[arg(long)]
    pub skip_bad_lines: bool,
    /// Leave out documents that have been seen before: exact compares text without case and white
    /// space (19 to 39 bytes of memory per document), minhash finds those that share about 80 % of
    /// their runs of 5 words (144 to 288 bytes)
    #[arg(long, value_parser = ["exact", "minhash"])]
    pub dedup: Option<String>,
    /// Evaluation set (HellaSwag's .jsonl, any JSON, or text); may be repeated. Documents that have
    /// 13 words in a row from it are left out
    #[arg(long, value_name = "FILE")]
    pub decontaminate: Vec<PathBuf>,
    /// Leave out documents of fewer characters
    #[arg(long, value_name = "N", value_parser = values::count)]
    pub min_chars: Option<usize>,
    /// Leave out documents of more characters
    #[arg(long, value_name = "N", value_parser = values::count)]
    pub max_chars: Option<usize>,
    /// Leave out documents with less than 80 % of their letters in these scripts, by Unicode's
    /// names: latin,cyrillic,han …
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = values::name)]
    pub scripts: Vec<String>,
    /// Make <|endoftext|> within a document the end-of-text token instead of text
    #[arg(long)]
    pub allow_special: bool,
    /// Replace existing shards of that name
    #[arg(long)]
    pub force: bool,
}

#[derive(Args, Clone, Debug)]
pub struct LaunchArgs {
    /// Number of processes, one per GPU
    #[arg(short = 'n', long, value_name = "N", value_parser = values::processes)]
    pub processes: usize,
    /// Restarts of all processes after a failure; needs -y 1 in COMMAND, to resume from the last
    /// checkpoint
    #[arg(long, value_name = "N", default_value = "0", value_parser = values::whole)]
    pub restarts: usize,
    /// The trainer and its flags, after --
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

#[derive(Args, Clone, Debug)]
pub struct StoriesArgs {
    /// Directory for token shards, or a file that ends in .txt for text
    #[arg(short = 'o', long, value_name = "DIR|FILE")]
    pub output: PathBuf,
    /// Number of stories
    #[arg(long, value_name = "N", value_parser = values::count, conflicts_with = "tokens")]
    pub count: Option<usize>,
    /// Number of tokens that the stories have together, approximately [default: 1000000]
    #[arg(long, value_name = "TOKENS", value_parser = values::tokens)]
    pub tokens: Option<usize>,
    /// Tokenizer of the shards, as `warpsmith data` takes it
    #[arg(long, value_name = "FILE", default_value = "gpt2")]
    pub tokenizer: PathBuf,
    /// Random seed; the same seed gives the same stories
    #[arg(long, value_name = "N", default_value = "42", value_parser = values::long_seed)]
    pub seed: u64,
    /// Replace existing files
    #[arg(long)]
    pub force: bool,
}

/// The amount of text to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    Stories(usize),
    /// Stories of about this many tokens.
    Tokens(usize),
}

impl StoriesArgs {
    /// Default amount: a few minutes of training for a small model.
    const DEFAULT_TOKENS: usize = 1_000_000;

    pub fn amount(&self) -> Amount {
        match self.count {
            Some(count) => Amount::Stories(count),
            None => Amount::Tokens(self.tokens.unwrap_or(Self::DEFAULT_TOKENS)),
        }
    }

    /// Whether the output is text instead of shards.
    pub fn is_text(&self) -> bool {
        self.output.extension().is_some_and(|extension| extension == "txt")
    }
}

#[derive(Args, Clone, Debug)]
pub struct NumberArgs {
    /// Device to compute on
    #[arg(long, value_enum, default_value = "cpu")]
    pub device: DeviceName,
    /// Type to compute in (on a CPU: of matmul operands, and not fp16); auto is bf16 where the
    /// hardware has it
    #[arg(long, default_value = "f32", value_parser = values::dtype_choices(&values::GPU_DTYPES))]
    pub dtype: DtypeChoice,
    /// CPU threads (0 = one per core)
    #[arg(long, value_name = "N", default_value = "0", value_parser = values::whole)]
    pub threads: usize,
}

impl NumberArgs {
    fn check(&self) -> Result<()> {
        ensure!(
            self.device != DeviceName::Cpu || self.dtype != DtypeChoice::Fixed(Dtype::F16),
            "--dtype: expected f32, bf16 or auto on the cpu device, found fp16"
        );
        Ok(())
    }
}

#[derive(Args, Clone, Debug)]
pub struct ConvertArgs {
    /// Input: a model (.bin, .safetensors, .gguf, a directory that holds one, or one of the hub,
    /// such as gpt2), HellaSwag questions (.jsonl), or tokens (.npy, a token shard)
    #[arg(value_name = "IN")]
    pub input: PathBuf,
    /// Output file; its extension selects the format: .bin, .safetensors, or .gguf for llama.cpp;
    /// .npy for the tokens of a shard
    #[arg(value_name = "OUT")]
    pub output: PathBuf,
    /// Merge the adapters of LoRA in DIR, a folder of PEFT or the adapter_STEP of a run, into the
    /// model of IN that they belong to
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Type of a model's parameters in OUT; fp16 in .safetensors and .gguf, and q8_0 in .gguf,
    /// whose vectors and position embedding are always f32
    #[arg(long, default_value = "f32", value_parser = values::stored())]
    pub dtype: Stored,
    /// Tokenizer of HellaSwag's .jsonl, as `warpsmith data` takes it
    #[arg(long, value_name = "FILE", default_value = "gpt2")]
    pub tokenizer: PathBuf,
    /// IN is uint16 tokens without a header, such as nanoGPT's train.bin; if IN is a token shard,
    /// OUT becomes that
    #[arg(long)]
    pub raw_tokens: bool,
    /// Replace OUT, and config.json and the files of the tokenizer beside it, if they exist
    #[arg(long)]
    pub force: bool,
}

impl ConvertArgs {
    /// Whether the input is HellaSwag questions instead of a model.
    pub fn is_hellaswag(&self) -> bool {
        self.input.extension().is_some_and(|end| end == "jsonl")
    }

    /// The type of the parameters in any format but .gguf.
    ///
    /// # Errors
    /// One line, if the format of the output does not have the type.
    pub fn float_dtype(&self) -> Result<Dtype> {
        let is_bin = self.output.extension().is_some_and(|end| end == "bin");
        let (output, found) = (self.output.display(), self.dtype);
        match found {
            Stored::Float(dtype) if !is_bin || dtype != Dtype::F16 => Ok(dtype),
            _ if is_bin => bail!("--dtype: expected f32 or bf16 in {output}, found {found}"),
            _ => bail!("--dtype: expected f32, bf16 or fp16 in {output}, found {found}; .gguf has q8_0"),
        }
    }

    fn check(&self) -> Result<()> {
        let ends = |end: &str| self.output.extension().is_some_and(|e| e == end);
        let is_hellaswag = self.is_hellaswag();
        let known = ends("bin") || ["safetensors", "gguf", "npy"].into_iter().any(ends) && !is_hellaswag;
        let expected = if is_hellaswag { ".bin" } else { ".bin, .safetensors, .gguf or .npy" };
        ensure!(known, "convert: expected OUT to end in {expected}, found {}", self.output.display());
        if ends("gguf") { Ok(()) } else { self.float_dtype().map(drop) }
    }
}

#[derive(Args, Clone, Debug)]
pub struct PlotArgs {
    /// Directory of a run, with its metrics.jsonl; the plots are written there too. Of several, up
    /// to 7, the runs are compared in one picture
    #[arg(value_name = "DIR", required = true)]
    pub dirs: Vec<PathBuf>,
    /// Name of the picture that compares runs, without .svg and .png [default: comparison]
    #[arg(short = 'o', long, value_name = "NAME")]
    pub output: Option<PathBuf>,
}

/// The default name of a picture that compares runs.
pub const COMPARISON: &str = "comparison";

#[derive(Args, Clone, Debug)]
pub struct RooflineArgs {
    #[command(flatten)]
    pub step: StepArgs,
    /// Instead of a step, predict one kernel from its machine code, loop by loop: clocks of pipes,
    /// issue slots and waits on sm_90. NAME as in kernels/clocks.tsv: adamw,
    /// matmul_hopper_forward_128x256 …
    #[arg(long, value_name = "NAME", value_parser = values::name, conflicts_with_all = ["model", "batch_size",
        "sequence_length", "total_batch_size", "recompute", "logits_rows", "optimizer"])]
    pub kernel: Option<String>,
}

/// The step to predict.
#[derive(Args, Clone, Debug)]
pub struct StepArgs {
    /// Model shape: d12, gpt2:d24, gpt3:c768 …
    #[arg(short = 'e', long, value_name = "SHAPE", value_parser = values::name)]
    pub model: Option<String>,
    /// Micro-batch size: sequences per forward and backward pass
    #[arg(short = 'b', long, value_name = "B", default_value = "4", value_parser = values::count)]
    pub batch_size: usize,
    /// Sequence length in tokens, at most the model's maximum
    #[arg(short = 't', long, value_name = "T", default_value = "1024", value_parser = values::count)]
    pub sequence_length: usize,
    /// Tokens per optimizer step, a multiple of B*T [default: B*T]
    #[arg(short = 'd', long, value_name = "TOKENS", value_parser = values::tokens)]
    pub total_batch_size: Option<usize>,
    /// Recompute in backward: 0 = nothing, 1 = GELU, 2 = GELU and layernorm
    #[arg(short = 'r', long, value_enum, default_value = "1")]
    pub recompute: Recompute,
    /// Optimizer
    #[arg(long, value_enum, default_value = "adamw")]
    pub optimizer: OptimizerKind,
    /// Rows (tokens) of logits held in memory at a time; they are computed in equal chunks of at
    /// most ROWS
    #[arg(long, value_name = "ROWS", default_value = "16384", value_parser = values::count)]
    pub logits_rows: usize,
    /// GPU: h200, h100, a100, b200, 4090, 5090
    #[arg(long, value_name = "NAME", default_value = "h200", value_parser = values::gpu)]
    pub gpu: &'static Gpu,
    /// Directory of records: times of the GPU, in NAME/*-kernels.json, are shown next to the
    /// prediction; counts in emulated/*-kernels.json set limits
    #[arg(long, value_name = "DIR", default_value = "benches/record")]
    pub records: PathBuf,
}

#[derive(Args, Clone, Debug)]
pub struct FlagsArgs {
    /// Write them between the markers of FILE (docs/flags.md if omitted) instead of printing them
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "docs/flags.md")]
    pub write: Option<PathBuf>,
}

/// Reads a command line; `argv` starts with the program's name.
///
/// # Errors
/// One line: the flag, what was expected, what was found, what to do.
pub fn parse(argv: impl IntoIterator<Item = impl Into<OsString>>) -> Result<Parsed<Tool>> {
    let argv: Vec<OsString> = argv.into_iter().map(Into::into).collect();
    if argv.get(1).is_some_and(|command| command == plan::NAME) {
        return Ok(match plan::parse(argv)? {
            Parsed::Run(args) => Parsed::Run(Tool::Plan(Box::new(args))),
            Parsed::Print(text) => Parsed::Print(text),
        });
    }
    let command = parse::list_values(Tools::command().subcommand(plan::summary()));
    match parse::matches(&command, argv)? {
        Parsed::Run(matches) => {
            let tool = Tools::from_arg_matches(&matches)?.tool;
            tool.check()?;
            Ok(Parsed::Run(tool))
        }
        Parsed::Print(text) => Ok(Parsed::Print(text)),
    }
}

impl Tool {
    /// Checks what flags cannot be checked for alone.
    fn check(&self) -> Result<()> {
        match self {
            Tool::Eval(args) => args.check()?,
            Tool::Sample(args) => args.numbers.check()?,
            Tool::Chat(args) => args.numbers.check()?,
            Tool::Serve(args) => args.check()?,
            Tool::Track(args) => ensure!(
                args.tensorboard || args.mlflow.is_some(),
                "track: nowhere to pass the run on to; give --tensorboard or --mlflow URL"
            ),
            Tool::Plot(args) => ensure!(
                args.output.is_none() || args.dirs.len() > 1,
                "-o/--output: names the picture of several runs; the plots of one go into its directory"
            ),
            Tool::Parity(args) => args.numbers.check()?,
            Tool::Roofline(RooflineArgs { step, kernel: None }) | Tool::Scaling(ScalingArgs { step, .. }) => {
                ensure!(step.model.is_some(), "-e/--model: missing; --help says what it is");
            }
            Tool::Convert(args) => args.check()?,
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
