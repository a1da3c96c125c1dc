//! The flags of the trainers, one struct per heading of `--help`.

use super::micro_batch::MicroBatch;
use super::presets;
use crate::cli::values;
use crate::device::cuda::MatmulChoice;
use crate::device::open::{DeviceName, DtypeChoice};
use crate::model::activations::Recompute;
use crate::report::LogStyle;
use crate::sharding::ZeroStage;
use clap::{ArgAction, Args, ValueEnum};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

/// llm.c's default for `-e`.
pub const DEFAULT_MODEL: &str = "gpt2_124M_bf16.bin";

/// llm.c's default for the questions.
pub const DEFAULT_HELLASWAG: &str = "dev/data/hellaswag/hellaswag_val.bin";

/// The data of the presets: their directory, their prefix, and the name that `warpsmith get` knows
/// their text by.
pub const PRESET_DATA: [(&str, &str, &str); 2] = [
    ("dev/data/edu_fineweb10B", "edu_fineweb", "fineweb-edu"),
    ("dev/data/fineweb10B", "fineweb", "fineweb"),
];

/// Heading of the flags that only a GPU honors.
pub(super) const GPU_HEADING: &str = "GPU only";

/// Heading of the flags that name the processes.
pub(super) const PROCESS_HEADING: &str = "Multiple processes";

/// The recipe.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Recipe")]
pub struct RecipeFlags {
    /// Recipe that supplies defaults, of which docs/flags.md has a list; explicit flags win
    #[arg(id = "preset", long = "preset", value_parser = presets::names())]
    pub preset: Option<String>,
}

/// Text to train on, and what a run writes.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Files")]
pub struct FileFlags {
    /// Training shards: a file or a pattern with * and ?. Several are mixed by weight, and each
    /// starts over when it is used up: 'web_*.bin=0.7,code_*.bin=0.3'
    #[arg(id = "train data pattern", short = 'i', long = "input-bin", value_name = "PATTERN",
          value_parser = values::name,
          default_value = "dev/data/tinyshakespeare/tiny_shakespeare_train.bin")]
    pub input_bin: String,
    /// Validation shards: a file or a pattern
    #[arg(id = "val data pattern", short = 'j', long = "input-val-bin", value_name = "PATTERN",
          value_parser = values::name,
          default_value = "dev/data/tinyshakespeare/tiny_shakespeare_val.bin")]
    pub input_val_bin: String,
    /// Directory for logs and checkpoints; without it, nothing is written
    #[arg(id = "output log dir", short = 'o', long = "output-dir", value_name = "DIR")]
    pub output_dir: Option<PathBuf>,
    /// Write a checkpoint every N steps and at the end (0 = only at the end)
    #[arg(id = "checkpoint_every", short = 'n', long = "checkpoint-every", value_name = "N",
          value_parser = values::every,
          default_value = "0")]
    pub checkpoint_every: usize,
    /// Keep only the newest N checkpoints (0 = all)
    #[arg(id = "checkpoints_keep", long = "checkpoints-keep", alias = "nk", value_name = "N",
          value_parser = values::whole,
          default_value = "0")]
    pub checkpoints_keep: usize,
    /// Never delete checkpoints whose step is a multiple of N (0 = off)
    #[arg(id = "checkpoints_major", long = "checkpoints-major-every", alias = "nm", value_name = "N",
          value_parser = values::every, default_value = "0")]
    pub checkpoints_major_every: usize,
    /// Resume from the latest checkpoint in -o, if any
    #[arg(id = "resume", short = 'y', long = "resume", value_name = "0|1", value_parser = values::switch,
          action = ArgAction::Set, default_value = "0")]
    pub resume: bool,
    /// After a loss that is not finite, return to the newest checkpoint and skip the bad text, at
    /// most N times
    #[arg(id = "rollbacks", long = "rollbacks", value_name = "N", value_parser = values::whole,
          default_value = "0")]
    pub rollbacks: usize,
    /// Lines of the console: llm.c's, or those of build-nanogpt, which also writes its log.txt into
    /// -o; main.log and metrics.jsonl are written in any case
    #[arg(id = "log_style", long = "log-style", value_enum, default_value = "llmc")]
    pub log_style: LogStyle,
    /// Record these steps operation by operation: a timeline in -o, profile.json, which Perfetto
    /// opens (of several ranks, profile_rank0.json …), and a table, profile.txt
    #[arg(id = "profile", long = "profile", value_name = "FIRST[:LAST]",
          value_parser = str::parse::<values::Steps>)]
    pub profile: Option<values::Steps>,
}

/// The model and its first weights.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model")]
pub struct ModelFlags {
    /// Checkpoint to start from; a model of the Hugging Face hub, fetched when missing: gpt2,
    /// OWNER/NAME; or a shape to initialize: d12, gpt2:d24, gpt3:c768 …
    // Empty when shape flags stand in for the default.
    #[arg(id = "model", short = 'e', long = "model", value_name = "FILE|NAME|SHAPE", value_parser = values::name,
          default_value = DEFAULT_MODEL)]
    pub source: String,
    /// Transformer layers; overrides the shape's, or with --heads and --channels replaces -e
    #[arg(id = "num_layers L", long = "layers", value_name = "L", value_parser = values::count)]
    pub layers: Option<usize>,
    /// Attention heads per layer; overrides the shape's
    #[arg(id = "num_heads NH", long = "heads", value_name = "NH", value_parser = values::count)]
    pub heads: Option<usize>,
    /// Width of the residual stream; overrides the shape's
    #[arg(id = "channels C", long = "channels", value_name = "C", value_parser = values::count)]
    pub channels: Option<usize>,
    /// Maximum sequence length of the model, in tokens [default: the shape's, else -t]
    #[arg(id = "max_sequence_length", long = "context", value_name = "maxT", value_parser = values::count)]
    pub context: Option<usize>,
    /// Give a new model's query-key-value projection a bias
    #[arg(id = "qkv_bias", long = "qkv-bias", value_name = "0|1", value_parser = values::switch,
          action = ArgAction::Set,
          default_value = "1")]
    pub qkv_bias: bool,
    /// Seed of a new model's weights, and of dropout
    #[arg(id = "seed", long = "seed", value_name = "N", value_parser = values::seed, default_value = "42")]
    pub seed: u32,
}

/// The order of the training text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shuffle {
    /// Sequences of T tokens, shuffled. The text of a step does not depend on the micro-batch.
    #[default]
    Sequences,
    /// Documents, shuffled anew every epoch and put one after another.
    Documents,
    /// Runs of B*T tokens, shuffled as in llm.c.
    Llmc,
    /// Sequences in the order of the files.
    Off,
}

/// The name that `--shuffle` takes.
impl fmt::Display for Shuffle {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let value = self.to_possible_value().expect("no order is hidden");
        f.write_str(value.get_name())
    }
}

/// How much text a step takes, and the number of steps.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Batch and schedule")]
pub struct BatchFlags {
    /// Micro-batch size: sequences per forward and backward pass; auto is the largest that fits
    /// into free memory and divides -d
    #[arg(id = "micro batch size B", short = 'b', long = "batch-size", value_name = "B|auto",
          value_parser = str::parse::<MicroBatch>,
          default_value = "4")]
    pub micro_batch: MicroBatch,
    /// Sequences of a micro-batch: 1 for `-b auto` until memory has been looked at.
    #[arg(skip)]
    pub batch_size: usize,
    /// Sequence length in tokens, at most the model's maximum
    #[arg(id = "sequence length T", short = 't', long = "sequence-length", value_name = "T",
          value_parser = values::count,
          default_value = "1024")]
    pub sequence_length: usize,
    /// Tokens per optimizer step, over all processes; a multiple of B*T*processes [default:
    /// B*T*processes]
    #[arg(id = "total batch size", short = 'd', long = "total-batch-size", value_name = "TOKENS",
          value_parser = values::tokens)]
    pub total_batch_size: Option<usize>,
    /// Order of the training text: shuffled by sequences of T tokens; by documents, which are put
    /// one after another anew each epoch (reads all shards at the start; 8 bytes of memory per
    /// document); by B*T tokens as llm.c does; or off for file order [default: sequences, or that
    /// of the resumed run]
    #[arg(id = "shuffle", long = "shuffle", value_enum)]
    pub shuffle: Option<Shuffle>,
    /// Pack whole documents into sequences: each is read from position 0 on and sees itself alone;
    /// those longer than -t are cut. Examples of `warpsmith sft` are always packed
    #[arg(id = "packed_documents", long = "packed-documents", value_name = "0|1",
          value_parser = values::switch,
          action = ArgAction::Set, default_value = "0")]
    pub packed_documents: bool,
    /// Leave out examples of `warpsmith sft` that are longer than -t, instead of cutting their end
    /// off
    #[arg(id = "skip_long_examples", long = "skip-long-examples", value_name = "0|1",
          value_parser = values::switch,
          action = ArgAction::Set, default_value = "0")]
    pub skip_long_examples: bool,
    /// Optimizer steps (-1 = one epoch)
    #[arg(id = "max_steps", short = 'x', long = "num-iterations", value_name = "STEPS",
          value_parser = values::steps,
          default_value = "-1")]
    pub num_iterations: i64,
    /// Passes over the training data, instead of -x
    #[arg(id = "epochs", long = "epochs", value_name = "N", value_parser = values::count)]
    pub epochs: Option<usize>,
    /// Stop with a checkpoint and exit code 75, to finish within H hours of the start
    #[arg(id = "max_hours", long = "max-hours", value_name = "H", value_parser = values::positive)]
    pub max_hours: Option<f32>,
    /// Train on the first validation batch in every step, to see the loss approach zero
    #[arg(id = "overfit_single_batch", short = 'a', long = "overfit-single-batch", value_name = "0|1",
          value_parser = values::switch,
          action = ArgAction::Set, default_value = "0")]
    pub overfit_single_batch: bool,
}

/// AdamW, and the steps it skips.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Optimizer")]
pub struct OptimFlags {
    /// Parameters that are not trained: wte,wpe,h.0-5 (layers), or names of llm.c or Hugging Face,
    /// such as qkvw, h.3.fcw, h.3.mlp, ln_f; they take no gradient and no optimizer state. The head
    /// is wte
    #[arg(id = "freeze", long = "freeze", value_name = "NAMES", value_parser = values::name)]
    pub freeze: Option<String>,
    /// Weight decay of matrices and embeddings; biases and layernorms never decay
    #[arg(id = "weight decay", short = 'c', long = "weight-decay", value_name = "RATE",
          value_parser = values::non_negative,
          default_value = "0.0")]
    pub weight_decay: f32,
    /// Clip the gradient norm to NORM (0 = off)
    #[arg(id = "grad_clip", long = "grad-clip", value_name = "NORM", value_parser = values::non_negative,
          default_value = "1.0")]
    pub grad_clip: f32,
    /// AdamW beta1
    #[arg(id = "beta1", long = "beta1", value_name = "RATE", value_parser = values::decay,
          default_value = "0.9")]
    pub beta1: f32,
    /// AdamW beta2
    #[arg(id = "beta2", long = "beta2", value_name = "RATE", value_parser = values::decay,
          default_value = "0.95")]
    pub beta2: f32,
    /// AdamW epsilon
    #[arg(id = "adam_eps", long = "adam-eps", value_name = "EPS", value_parser = values::positive,
          default_value = "1e-8")]
    pub adam_eps: f32,
    /// Skip updates whose loss z-score over the last 128 steps exceeds Z (0 = off)
    #[arg(id = "skip update lossz", long = "skip-update-lossz", alias = "sl", value_name = "Z",
          value_parser = values::non_negative, default_value = "0.0")]
    pub skip_update_lossz: f32,
    /// Skip updates whose gradient-norm z-score over the last 128 steps exceeds Z (0 = off)
    #[arg(id = "skip update gradz", long = "skip-update-gradz", alias = "sg", value_name = "Z",
          value_parser = values::non_negative, default_value = "0.0")]
    pub skip_update_gradz: f32,
}

/// Validation, HellaSwag and samples.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Evaluation and samples")]
pub struct EvalFlags {
    /// Evaluate the validation loss every N steps and at the end (0 = never)
    #[arg(id = "val_loss_every", short = 'v', long = "val-loss-every", value_name = "N",
          value_parser = values::every,
          default_value = "20")]
    pub val_loss_every: usize,
    /// Batches of B*T tokens per validation (-1 = the whole split)
    #[arg(id = "val_max_steps", short = 'm', long = "val-max-steps", value_name = "BATCHES",
          value_parser = values::batches,
          default_value = "20")]
    pub val_max_steps: i64,
    /// Stop after N evaluations in a row without a lower validation loss (0 = off)
    #[arg(id = "early_stop", long = "early-stop", value_name = "N", value_parser = values::whole,
          default_value = "0")]
    pub early_stop: usize,
    /// Generate samples every N steps, but not before the first, and at the end (0 = never)
    #[arg(id = "sample_every", short = 's', long = "sample-every", value_name = "N",
          value_parser = values::every,
          default_value = "20")]
    pub sample_every: usize,
    /// New tokens per sample; the prompt comes on top (llm.c counts the start token, so it
    /// generates one less)
    #[arg(id = "genT", short = 'g', long = "sample-len", value_name = "TOKENS", value_parser = values::count,
          default_value = "64")]
    pub sample_len: usize,
    /// Samples per process, each shown as `rank R sample i: text` [default: with --log-style llmc
    /// one in all, shown as llm.c does; with nanogpt 1]
    #[arg(id = "samples", long = "samples", value_name = "N", value_parser = values::count)]
    pub samples: Option<usize>,
    /// Text that samples continue [default: the start of a document]
    #[arg(id = "prompt", long = "prompt", value_name = "TEXT", value_parser = values::name)]
    pub prompt: Option<String>,
    /// Sampling temperature (0 = greedy)
    #[arg(id = "sample_temperature", long = "sample-temperature", value_name = "T",
          value_parser = values::non_negative,
          default_value = "1.0")]
    pub sample_temperature: f32,
    /// Top-k sampling (0 = off)
    #[arg(id = "sample_top_k", long = "sample-top-k", value_name = "K", value_parser = values::whole,
          default_value = "0")]
    pub sample_top_k: usize,
    /// Evaluate HellaSwag accuracy along with the validation loss
    #[arg(id = "run hellaswag", short = 'h', long = "hellaswag-eval", value_name = "0|1",
          value_parser = values::switch,
          action = ArgAction::Set, default_value = "0")]
    pub hellaswag_eval: bool,
    /// HellaSwag questions: llm.c's .bin or the original .jsonl; where the default is missing,
    /// those of `warpsmith get hellaswag`
    #[arg(
        id = "hellaswag_data",
        long = "hellaswag-data",
        value_name = "FILE",
        default_value = DEFAULT_HELLASWAG
    )]
    pub hellaswag_data: PathBuf,
}

/// The device and its number types.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Device and precision")]
pub struct DeviceFlags {
    /// Device to train on
    #[arg(id = "device", long = "device", value_name = "cpu", value_parser = values::cpu_device,
          default_value = "cpu")]
    pub name: DeviceName,
    /// CPU threads (0 = one per core)
    #[arg(id = "threads", long = "threads", value_name = "N", value_parser = values::whole,
          default_value = "0")]
    pub threads: usize,
    /// Type of matmul operands; auto is bf16 on CPUs with AMX or AVX512-BF16, else f32
    #[arg(id = "dtype", long = "dtype", value_parser = values::dtype_choices(&values::CPU_DTYPES),
          default_value = "f32")]
    pub dtype: DtypeChoice,
    /// Allow TF32 in f32 matmuls of a GPU; a CPU keeps all bits of f32
    #[arg(id = "tf32", short = 'f', long = "tf32", alias = "tensorcores", value_name = "0|1",
          value_parser = values::switch, action = ArgAction::Set, default_value = "1")]
    pub tf32: bool,
    /// Check every tensor that an operation writes and stop at the first that is not finite (slow)
    #[arg(id = "check_numerics", long = "check-numerics", value_name = "0|1", value_parser = values::switch,
          action = ArgAction::Set, default_value = "0")]
    pub check_numerics: bool,
    /// Recompute in backward, as in llm.c: 0 = nothing, 1 = GELU, 2 = GELU and layernorm
    #[arg(id = "recompute", short = 'r', long = "recompute", value_enum, default_value = "1")]
    pub recompute: Recompute,
}

/// Flags that only a GPU honors; a CPU takes their defaults alone.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = GPU_HEADING)]
pub struct GpuFlags {
    /// Print the state of the GPU every N steps (0 = never)
    #[arg(id = "gpu_info_every", long = "gpu-info-every", alias = "lg", value_name = "N",
          value_parser = values::every,
          default_value = "-1")]
    pub gpu_info_every: usize,
    /// Keep f32 master weights
    #[arg(id = "use_master_weights", short = 'w', long = "use-master-weights", value_name = "0|1",
          value_parser = values::switch,
          action = ArgAction::Set, default_value = "1")]
    pub use_master_weights: bool,
    /// Fuse GELU into our matmuls: 0 = never (llm.c's default), 1 = forward, 2 = forward and
    /// backward, auto = where faster; cuBLASLt fuses none
    #[arg(id = "gelu_fusion", long = "gelu-fusion", alias = "ge", value_name = "auto|0|1|2",
          value_parser = values::gelu_fusion,
          default_value = "auto")]
    pub gelu_fusion: i32,
    /// Matmul backend; fastest times own and cublaslt per shape
    #[arg(id = "matmul", long = "matmul", value_enum, default_value = "fastest")]
    pub matmul: MatmulChoice,
    /// Pick kernels without timing them: bitwise reproducible runs
    #[arg(id = "deterministic", long = "deterministic", value_name = "0|1", value_parser = values::switch,
          action = ArgAction::Set, default_value = "0")]
    pub deterministic: bool,
    /// Queue a micro-step as one CUDA graph; auto = unless each operation is looked at or processes
    /// communicate in it
    #[arg(id = "cuda_graphs", long = "cuda-graphs", value_enum, default_value = "auto")]
    pub cuda_graphs: CudaGraphs,
}

/// Whether to queue micro-steps as CUDA graphs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CudaGraphs {
    Auto,
    #[value(name = "0")]
    Never,
    #[value(name = "1")]
    Always,
}

/// How processes find each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum InitMethodName {
    Auto,
    Mpi,
    Tcp,
    Fs,
}

/// The processes that train together, and what is sharded among them.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = PROCESS_HEADING)]
pub struct ProcessFlags {
    /// Number of processes (normally set by the launcher)
    #[arg(id = "num_processes", long = "num-processes", alias = "pn", value_name = "N",
          value_parser = values::processes)]
    pub num_processes: Option<usize>,
    /// Rank of this process, from 0 (normally set by the launcher)
    #[arg(id = "process_rank", long = "process-rank", alias = "pr", value_name = "RANK",
          value_parser = values::whole)]
    pub process_rank: Option<usize>,
    /// GPUs per machine, for -pr without a launcher
    #[arg(id = "gpus_per_node", long = "gpus-per-node", alias = "pg", value_name = "N",
          value_parser = values::count,
          default_value = "8")]
    pub gpus_per_node: usize,
    /// How processes find each other; auto asks the launcher, mpi (llm.c's default) needs a build
    /// with MPI
    #[arg(id = "nccl_init_method", long = "nccl-init-method", aliases = ["pi", "pm"], value_enum,
          default_value = "auto")]
    pub nccl_init_method: InitMethodName,
    /// Address of rank 0, for -pi tcp, which in llm.c is an IP address: host or host:port
    #[arg(
        id = "server_ip",
        long = "server-ip",
        alias = "ps",
        value_name = "ADDRESS",
        default_value = "",
        hide_default_value = true
    )]
    pub server_ip: String,
    /// Shared directory, for -pi fs, as in llm.c without a default
    #[arg(id = "fs_path", long = "fs-path", aliases = ["pf", "pp"], value_name = "DIR",
          default_value = "", hide_default_value = true)]
    pub fs_path: String,
    /// Shard across processes (ZeRO): 0 = nothing, 1 = optimizer state, 2 = gradients too, 3 =
    /// parameters too
    #[arg(id = "zero_stage", short = 'z', long = "zero-stage", value_enum, default_value = "0")]
    pub zero_stage: ZeroStage,
    /// Reduce gradients over processes after every micro-step, not only the last (-z 2 and 3 always
    /// do)
    #[arg(id = "sum_every_micro_step", long = "sum-every-micro-step", value_name = "0|1",
          value_parser = values::switch, action = ArgAction::Set, default_value = "0")]
    pub sum_every_micro_step: bool,
}

/// Flags of `train_gpt2.py` that its CUDA trainer lacks.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "As in llm.c's train_gpt2.py")]
pub struct CompatFlags {
    /// Fused attention, which never stores a T x T matrix; there is no other here, so 0 is refused
    #[arg(id = "flash", long = "flash", value_name = "0|1", value_parser = values::switch,
          action = ArgAction::Set,
          default_value = "1")]
    pub flash: bool,
    /// Compile the model; here 0 and 1 are the same, since all kernels are compiled before the run
    #[arg(id = "compile", long = "compile", value_name = "0|1", value_parser = values::switch,
          action = ArgAction::Set,
          default_value = "0")]
    pub compile: bool,
    /// Before the first step, write gpt2_124M.bin, gpt2_124M_bf16.bin and gpt2_124M_debug_state.bin
    /// (or _d12 …) into the current directory, for llm.c's tests and warpsmith parity;
    /// train_gpt2.py does so by default
    #[arg(id = "write_tensors", long = "write-tensors", value_name = "0|1", value_parser = values::switch,
          action = ArgAction::Set, default_value = "0")]
    pub write_tensors: bool,
    /// Time forward passes, without training; memory is that of training
    #[arg(id = "inference_only", long = "inference-only", value_name = "0|1", value_parser = values::switch,
          action = ArgAction::Set, default_value = "0")]
    pub inference_only: bool,
}
