//! The command line of `warpsmith`: everything around training.

mod scaling;

use crate::cli::{Parsed, parse, values};
use crate::device::open::{DeviceName, DtypeChoice};
use crate::model::activations::Recompute;
use crate::roofline::gpu::Gpu;
use crate::tensor::Dtype;
use anyhow::{Result, ensure};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
pub use scaling::ScalingArgs;
use std::ffi::OsString;
use std::path::PathBuf;

/// Prepare data, try out and convert models, draw curves
///
/// Training itself is `train_gpt2` and, on GPUs, `train_gpt2cu`.
#[derive(Parser, Clone, Debug)]
#[command(name = "warpsmith", version, args_override_self = true, subcommand_required = true)]
struct Tools {
    #[command(subcommand)]
    tool: Tool,
}

/// What is to be done.
#[derive(Subcommand, Clone, Debug)]
pub enum Tool {
    /// Turn text into token shards for training and validation
    Data(DataArgs),
    /// Write short made-up stories, as token shards or as text: data to try training with, without a download
    Stories(StoriesArgs),
    /// Let a model write
    Sample(SampleArgs),
    /// Measure a model: validation loss and perplexity, HellaSwag accuracy
    Eval(EvalArgs),
    /// Convert a model between llm.c's .bin and Hugging Face's safetensors, or HellaSwag's .jsonl to llm.c's .bin
    Convert(ConvertArgs),
    /// Draw a run's curves from its metrics.jsonl
    Plot(PlotArgs),
    /// Predict how long a training step takes on a GPU, kernel by kernel, beside what was measured
    Roofline(RooflineArgs),
    /// Predict a training step on many GPUs: communication that computing does not hide, memory by ZeRO stage. Without -d each
    /// GPU has one micro-batch a step
    Scaling(ScalingArgs),
    /// Start several processes of a trainer on this machine, and end all when one fails
    Launch(LaunchArgs),
    /// Show the flags of the trainers as Markdown
    Flags(FlagsArgs),
}

#[derive(Args, Clone, Debug)]
pub struct DataArgs {
    /// Text files, .jsonl files, folders of them, or - for text from standard input
    #[arg(required = true, value_name = "INPUT")]
    pub inputs: Vec<PathBuf>,
    /// Folder for the shards; made if missing
    #[arg(short = 'o', long, value_name = "DIR")]
    pub output: PathBuf,
    /// What the shards are called: NAME_val_000000.bin, NAME_train_000001.bin …
    #[arg(long, value_name = "NAME", default_value = "data", value_parser = values::file_name)]
    pub name: String,
    /// Tokens in each training shard but the last
    #[arg(long, value_name = "TOKENS", default_value = "100000000", value_parser = values::tokens)]
    pub shard_size: usize,
    /// Tokens kept for validation [default: about a tenth of the text, at most a shard]
    #[arg(long, value_name = "TOKENS", value_parser = values::tokens)]
    pub val_tokens: Option<usize>,
    /// What separates documents in a text file, \n for a line's end [default: a file is a document]
    #[arg(long, value_name = "TEXT", value_parser = values::separator, allow_hyphen_values = true)]
    pub split_on: Option<String>,
    /// Field of a JSON line that holds the text
    #[arg(long, value_name = "NAME", default_value = "text", value_parser = values::name)]
    pub json_field: String,
    /// Replace shards of that name
    #[arg(long)]
    pub force: bool,
}

#[derive(Args, Clone, Debug)]
pub struct LaunchArgs {
    /// Processes to start: one for each GPU
    #[arg(short = 'n', long, value_name = "N", value_parser = values::count)]
    pub processes: usize,
    /// How often to start all of them again after a failure; the program then needs -y 1 to go on from its last checkpoint
    #[arg(long, value_name = "N", default_value = "0", value_parser = values::whole)]
    pub restarts: usize,
    /// The program and its flags, after --
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

#[derive(Args, Clone, Debug)]
pub struct StoriesArgs {
    /// Folder for token shards, or a file that ends in .txt for text
    #[arg(short = 'o', long, value_name = "DIR|FILE")]
    pub output: PathBuf,
    /// Stories to write
    #[arg(long, value_name = "N", value_parser = values::count, conflicts_with = "tokens")]
    pub count: Option<usize>,
    /// Write stories until they have this many tokens [default: 1000000]
    #[arg(long, value_name = "TOKENS", value_parser = values::tokens)]
    pub tokens: Option<usize>,
    /// Seed: the same one gives the same stories
    #[arg(long, value_name = "N", default_value = "42", value_parser = values::long_seed)]
    pub seed: u64,
    /// Replace files that are there
    #[arg(long)]
    pub force: bool,
}

/// How much to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    Stories(usize),
    /// At least so many tokens.
    Tokens(usize),
}

impl StoriesArgs {
    /// Tokens of stories, if nobody says how many: some minutes of training for a small model.
    const DEFAULT_TOKENS: usize = 1_000_000;

    pub fn amount(&self) -> Amount {
        match self.count {
            Some(count) => Amount::Stories(count),
            None => Amount::Tokens(self.tokens.unwrap_or(Self::DEFAULT_TOKENS)),
        }
    }

    /// Whether text is asked for, and not shards.
    pub fn is_text(&self) -> bool {
        self.output.extension().is_some_and(|extension| extension == "txt")
    }
}

#[derive(Args, Clone, Debug)]
pub struct SampleArgs {
    /// Model: a .bin or .safetensors file, or the folder of a run
    #[arg(short = 'e', long, value_name = "PATH")]
    pub model: PathBuf,
    /// Text to go on from [default: the start of a document]
    #[arg(short = 'p', long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// Tokens to add at most; the model may end earlier
    #[arg(short = 'g', long, value_name = "TOKENS", default_value = "128", value_parser = values::count)]
    pub max_tokens: usize,
    /// Divides the logits before a token is drawn (0 = always the likeliest token)
    #[arg(long, value_name = "T", default_value = "1.0", value_parser = values::non_negative)]
    pub temperature: f32,
    /// Draw from the K likeliest tokens only (0 = from all)
    #[arg(long, value_name = "K", default_value = "0", value_parser = values::whole)]
    pub top_k: usize,
    /// Draw from the fewest likeliest tokens that have this probability together (1 = from all)
    #[arg(long, value_name = "P", default_value = "1.0", value_parser = values::probability)]
    pub top_p: f32,
    /// Seed of the drawing
    #[arg(long, value_name = "N", default_value = "1337", value_parser = values::long_seed)]
    pub seed: u64,
    /// Samples to write
    #[arg(long, value_name = "N", default_value = "1", value_parser = values::count)]
    pub count: usize,
    /// Compute every token from the whole text before it, which is slow: a check of the cache
    #[arg(long)]
    pub no_kv_cache: bool,
    #[command(flatten)]
    pub numbers: NumberArgs,
}

#[derive(Args, Clone, Debug)]
pub struct EvalArgs {
    /// Model: a .bin or .safetensors file, or the folder of a run
    #[arg(short = 'e', long, value_name = "PATH")]
    pub model: PathBuf,
    /// HellaSwag questions: llm.c's .bin or the original .jsonl
    #[arg(long, value_name = "FILE")]
    pub hellaswag: Option<PathBuf>,
    /// Validation shards: a file or a pattern with * and ?
    #[arg(short = 'j', long, value_name = "PATTERN", value_parser = values::name)]
    pub val: Option<String>,
    /// Sequences in one forward pass
    #[arg(short = 'b', long, value_name = "B", default_value = "4", value_parser = values::count)]
    pub batch_size: usize,
    /// Tokens in a sequence [default: all the model can take]
    #[arg(short = 't', long, value_name = "T", value_parser = values::count)]
    pub sequence_length: Option<usize>,
    /// Batches of B * T validation tokens at most [default: the whole split]
    #[arg(short = 'm', long, value_name = "BATCHES", value_parser = values::count)]
    pub max_batches: Option<usize>,
    /// File for the results: a JSON object a line, one for each question and one for the whole
    #[arg(short = 'o', long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    pub numbers: NumberArgs,
}

#[derive(Args, Clone, Debug)]
pub struct NumberArgs {
    /// What to compute on: cpu, cuda, emulated
    #[arg(long, value_enum, default_value = "cpu")]
    pub device: DeviceName,
    /// Type of the numbers, on a CPU only of those in matrix products: f32, bf16, on GPUs also fp16; auto: bf16 where it is in hardware
    #[arg(long, default_value = "f32", value_parser = values::dtype_choices(&values::GPU_DTYPES))]
    pub dtype: DtypeChoice,
    /// Threads (0 = one for each core)
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
    /// What to read: a model (.bin, .safetensors, or a folder that holds one), or HellaSwag's questions (.jsonl)
    #[arg(value_name = "IN")]
    pub input: PathBuf,
    /// File to write; its ending says the format: .bin or .safetensors
    #[arg(value_name = "OUT")]
    pub output: PathBuf,
    /// Type of the numbers in a model's OUT: f32, bf16
    #[arg(long, default_value = "f32", value_parser = values::dtypes(&values::CPU_DTYPES))]
    pub dtype: Dtype,
}

impl ConvertArgs {
    /// Whether the input is HellaSwag's questions and no model.
    pub fn is_hellaswag(&self) -> bool {
        self.input.extension().is_some_and(|end| end == "jsonl")
    }
}

#[derive(Args, Clone, Debug)]
pub struct PlotArgs {
    /// Folder of a run, with its metrics.jsonl; the pictures go there too
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
}

#[derive(Args, Clone, Debug)]
pub struct RooflineArgs {
    #[command(flatten)]
    pub step: StepArgs,
    /// Instead of a step, one kernel by its machine code, loop by loop: what its pipes, issue slots and waits come to in clocks of
    /// sm_90. NAME as in kernels/clocks.tsv: adamw, matmul_hopper_forward_128x256 …
    #[arg(long, value_name = "NAME", value_parser = values::name, conflicts_with_all = ["model", "batch_size",
        "sequence_length", "total_batch_size", "recompute", "logits_rows"])]
    pub kernel: Option<String>,
}

/// The step that is predicted.
#[derive(Args, Clone, Debug)]
pub struct StepArgs {
    /// Shape: d12, gpt2:d24, gpt3:c768 …
    #[arg(short = 'e', long, value_name = "SHAPE", value_parser = values::name)]
    pub model: Option<String>,
    /// Micro-batch: sequences in one forward and backward pass
    #[arg(short = 'b', long, value_name = "B", default_value = "4", value_parser = values::count)]
    pub batch_size: usize,
    /// Tokens in a sequence, at most what the model can take
    #[arg(short = 't', long, value_name = "T", default_value = "1024", value_parser = values::count)]
    pub sequence_length: usize,
    /// Tokens in an optimiser step, a multiple of B * T [default: B * T]
    #[arg(short = 'd', long, value_name = "TOKENS", value_parser = values::tokens)]
    pub total_batch_size: Option<usize>,
    /// Compute again in the backward pass instead of keeping: 0 = nothing, 1 = GELU, 2 = GELU and layer norms
    #[arg(short = 'r', long, value_enum, default_value = "1")]
    pub recompute: Recompute,
    /// Rows (tokens) of logits that memory holds: they are computed in equal pieces of at most so many
    #[arg(long, value_name = "ROWS", default_value = "16384", value_parser = values::count)]
    pub logits_rows: usize,
    /// GPU: h200, h100, a100, b200, 4090, 5090
    #[arg(long, value_name = "NAME", default_value = "h200", value_parser = values::gpu)]
    pub gpu: &'static Gpu,
    /// Folder of records: times in NAME/*-kernels.json, of the GPU, are shown beside the prediction; counts in
    /// emulated/*-kernels.json set limits
    #[arg(long, value_name = "DIR", default_value = "benches/record")]
    pub records: PathBuf,
}

#[derive(Args, Clone, Debug)]
pub struct FlagsArgs {
    /// Write them between the markers of FILE instead of printing them [default: docs/flags.md]
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "docs/flags.md")]
    pub write: Option<PathBuf>,
}

/// Reads a command line; `argv` starts with the program's name.
///
/// # Errors
/// One line: the flag, what was expected, what was found, what to do.
pub fn parse(argv: impl IntoIterator<Item = impl Into<OsString>>) -> Result<Parsed<Tool>> {
    let command = parse::list_values(Tools::command());
    match parse::matches(&command, argv.into_iter().map(Into::into).collect())? {
        Parsed::Run(matches) => {
            let tool = Tools::from_arg_matches(&matches)?.tool;
            tool.check()?;
            Ok(Parsed::Run(tool))
        }
        Parsed::Print(text) => Ok(Parsed::Print(text)),
    }
}

impl Tool {
    /// What no flag can say alone.
    fn check(&self) -> Result<()> {
        match self {
            Tool::Eval(args) => {
                args.numbers.check()?;
                ensure!(
                    args.hellaswag.is_some() || args.val.is_some(),
                    "eval: nothing to measure; give --val PATTERN or --hellaswag FILE"
                );
                ensure!(
                    args.max_batches.is_none() || args.val.is_some(),
                    "-m/--max-batches: limits --val, which is not given"
                );
            }
            Tool::Sample(args) => args.numbers.check()?,
            Tool::Roofline(RooflineArgs { step, kernel: None }) | Tool::Scaling(ScalingArgs { step, .. }) => {
                ensure!(step.model.is_some(), "-e/--model: missing; --help says what it is");
            }
            Tool::Convert(args) => {
                let ends = |end: &str| args.output.extension().is_some_and(|e| e == end);
                let known = ends("bin") || ends("safetensors") && !args.is_hellaswag();
                let expected = if args.is_hellaswag() { ".bin" } else { ".bin or .safetensors" };
                let found = args.output.display();
                ensure!(known, "convert: expected OUT to end in {expected}, found {found}");
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(line: &str) -> Vec<String> {
        std::iter::once("warpsmith").chain(line.split_whitespace()).map(str::to_owned).collect()
    }

    fn ok(line: &str) -> Tool {
        match parse(argv(line)) {
            Ok(Parsed::Run(tool)) => tool,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn the_commands_are_sound_and_documented() {
        Tools::command().debug_assert();
        for command in Tools::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for arg in command.get_arguments() {
                assert!(arg.get_help().is_some(), "{} {}", command.get_name(), arg.get_id());
            }
        }
    }

    #[test]
    fn data_reads_its_arguments() {
        let Tool::Data(a) =
            ok("data a.txt b -o out --name x --shard-size 10 --val-tokens 3 --split-on \\n\\n \
                                --json-field body --force")
        else {
            panic!()
        };
        assert_eq!(a.inputs, [PathBuf::from("a.txt"), PathBuf::from("b")]);
        assert_eq!((a.output, a.name.as_str()), (PathBuf::from("out"), "x"));
        assert_eq!((a.shard_size, a.val_tokens, a.json_field.as_str()), (10, Some(3), "body"));
        assert_eq!((a.split_on.as_deref(), a.force), (Some("\n\n"), true));

        let Tool::Data(a) = ok("data - -o out --split-on ---") else { panic!() };
        assert_eq!((a.inputs[0].to_str(), a.split_on.as_deref()), (Some("-"), Some("---")));
        assert_eq!((a.shard_size, a.val_tokens, a.name.as_str()), (100_000_000, None, "data"));
        assert_eq!((a.json_field.as_str(), a.force), ("text", false));
    }

    #[test]
    fn stories_have_an_amount() {
        let stories = |line: &str| match ok(line) {
            Tool::Stories(args) => args,
            other => panic!("{other:?}"),
        };
        assert_eq!(stories("stories -o d").amount(), Amount::Tokens(1_000_000));
        assert_eq!(stories("stories -o d --count 5").amount(), Amount::Stories(5));
        assert_eq!(stories("stories -o d --tokens 6 --seed 18446744073709551615").seed, u64::MAX);
        assert!(stories("stories -o a/b.txt").is_text() && !stories("stories -o a/b").is_text());
    }

    #[test]
    fn models_are_sampled_measured_and_converted() {
        let Tool::Sample(a) =
            ok("sample --model m -p Once --max-tokens 5 --temperature 0 --top-k 50 --top-p 0.9 \
                                  --seed 1 --count 4 --no-kv-cache --dtype bf16 --threads 2")
        else {
            panic!()
        };
        assert_eq!((a.model.to_str(), a.prompt.as_deref(), a.max_tokens), (Some("m"), Some("Once"), 5));
        assert_eq!((a.temperature, a.top_k, a.top_p, a.seed, a.count), (0.0, 50, 0.9, 1, 4));
        assert_eq!(
            (a.no_kv_cache, a.numbers.dtype, a.numbers.threads),
            (true, DtypeChoice::Fixed(Dtype::Bf16), 2)
        );

        let Tool::Eval(a) = ok("eval -e m --hellaswag h.jsonl --val v*.bin -b 8 -t 64 --max-batches 3 -o r")
        else {
            panic!()
        };
        assert_eq!((a.batch_size, a.sequence_length, a.max_batches), (8, Some(64), Some(3)));
        assert_eq!(
            (a.val.as_deref(), a.hellaswag, a.output),
            (Some("v*.bin"), Some("h.jsonl".into()), Some("r".into()))
        );

        let Tool::Convert(a) = ok("convert a.bin b.safetensors --dtype float32") else { panic!() };
        assert_eq!((a.input.to_str(), a.output.to_str()), (Some("a.bin"), Some("b.safetensors")));
        assert_eq!(a.dtype, Dtype::F32);
        assert!(matches!(ok("plot log"), Tool::Plot(a) if a.dir.to_str() == Some("log")));
        let Tool::Roofline(a) = ok("roofline -e d12 -b 64 -d 524288 --gpu A100 -r 0") else { panic!() };
        let step = &a.step;
        assert_eq!((step.batch_size, step.sequence_length, step.total_batch_size), (64, 1024, Some(524_288)));
        assert_eq!((step.gpu.name, step.recompute, step.logits_rows), ("a100", Recompute::Nothing, 16_384));
        assert!(
            matches!(ok("roofline --kernel adamw"), Tool::Roofline(a) if a.kernel.as_deref() == Some("adamw"))
        );
        let Tool::Scaling(a) = ok("scaling -e d12 --gpus 8,16 --zero 1 --links pcie5,hdr") else { panic!() };
        assert_eq!((a.gpus, a.zero, a.gpus_per_node), (vec![8, 16], vec![1], 8));
        assert_eq!(
            (a.links[0].name, a.links[1].name, a.step.model.as_deref()),
            ("pcie5", "hdr", Some("d12"))
        );
        assert!(
            matches!(ok("flags --write a.md"), Tool::Flags(a) if a.write.as_deref() == Some("a.md".as_ref()))
        );
        assert!(
            matches!(ok("flags --write"), Tool::Flags(a) if a.write.as_deref() == Some("docs/flags.md".as_ref()))
        );
        assert!(matches!(ok("sample -e a -e b --seed 1 --seed 2"), Tool::Sample(a) if a.seed == 2));
    }

    #[test]
    fn errors_are_one_line() {
        let cases = [
            (
                "",
                "no command given; expected data, stories, sample, eval, convert, plot, roofline, scaling, launch, flags",
            ),
            ("dat", "dat: unknown command; did you mean data?"),
            (
                "xyz",
                "xyz: unknown command; expected data, stories, sample, eval, convert, plot, roofline, scaling, launch, flags",
            ),
            ("data -o x", "<INPUT>...: missing; --help says what it is"),
            ("data a", "-o/--output: missing; --help says what it is"),
            ("sample", "-e/--model: missing; --help says what it is"),
            ("sample -e m --top-p 0", "--top-p: expected a number above 0 and at most 1, found 0"),
            ("sample -e m --max-token 3", "--max-token: unknown flag; did you mean --max-tokens?"),
            ("sample -e m --prompt", "-p/--prompt: expected a value after it, found none"),
            ("data a -o x --name a/b", "--name: expected a name without /, found a/b"),
            (
                "data a -o x --split-on \\q",
                "--split-on: expected \\n, \\r, \\t or \\\\ after a backslash, found \\q",
            ),
            ("eval -e m", "eval: nothing to measure; give --val PATTERN or --hellaswag FILE"),
            ("eval -e m --hellaswag h -m 3", "-m/--max-batches: limits --val, which is not given"),
            ("roofline", "-e/--model: missing; --help says what it is"),
            ("scaling", "-e/--model: missing; --help says what it is"),
            ("roofline -e d12 --kernel adamw", "-e/--model: cannot be used together with --kernel"),
            (
                "roofline -e d12 --gpu v100",
                "--gpu: expected one of h200, h100, a100, b200, 4090, 5090, found v100",
            ),
            ("convert a b", "convert: expected OUT to end in .bin or .safetensors, found b"),
            ("convert a b.bin c", "c: expected a flag here, found a value without one"),
            ("stories -o x --count 1 --tokens 2", "--count: cannot be used together with --tokens"),
        ];
        for (line, expected) in cases {
            match parse(argv(line)) {
                Err(error) => assert_eq!(error.to_string(), expected, "{line}"),
                other => panic!("{line}: {other:?}"),
            }
        }
    }

    #[test]
    fn help_and_version_are_printed() {
        for line in ["--help", "data --help", "-h", "--version"] {
            assert!(matches!(parse(argv(line)), Ok(Parsed::Print(text)) if text.len() > 10), "{line}");
        }
    }
}
