//! The flags of the benchmark.

use anyhow::{Context, Result};
use clap::Parser;
use std::path::PathBuf;
use warpsmith::cli::values;
use warpsmith::config::ModelConfig;
use warpsmith::device::open::DeviceName;
use warpsmith::model::activations::Recompute;
use warpsmith::optim::optimizer::OptimizerKind;
use warpsmith::roofline::kernels::StepShape;
use warpsmith::tensor::Dtype;

/// Check, then time every kernel of a training step by itself, next to cuBLASLt
#[derive(Parser, Clone, Debug)]
#[command(name = "kernels", args_override_self = true)]
pub struct Args {
    /// Device; on emulated, results are checked and memory accesses counted, but nothing is timed
    #[arg(long, value_name = "cuda|emulated", default_value = "cuda", value_parser = values::cuda_device)]
    pub device: DeviceName,
    /// Comma-separated shapes: d12, gpt2:d24, gpt3:c768, or tiny
    #[arg(
        short = 'e',
        long = "models",
        value_name = "SHAPES",
        value_delimiter = ',',
        default_value = "d12,d24,d36,d48"
    )]
    pub models: Vec<String>,
    /// Micro-batch size: sequences per forward and backward pass
    #[arg(short = 'b', long, value_name = "B", default_value = "64", value_parser = values::count)]
    pub batch_size: usize,
    /// Sequence length in tokens, at most the model's maximum
    #[arg(short = 't', long, value_name = "T", default_value = "1024", value_parser = values::count)]
    pub sequence_length: usize,
    /// Rows (tokens) of logits held in memory at a time; they are computed in equal chunks of at
    /// most ROWS
    #[arg(long, value_name = "ROWS", default_value = "16384", value_parser = values::count)]
    pub logits_rows: usize,
    /// Micro-steps per step; from 2 on, weight gradients accumulate, as in all micro-steps but the
    /// first
    #[arg(long, value_name = "N", default_value = "8", value_parser = values::count)]
    pub micro_steps: usize,
    /// Run only kernels whose names contain one of these: attention, "qkv wgrad"
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = values::name)]
    pub only: Vec<String>,
    /// Element type
    #[arg(long, default_value = "bf16", value_parser = values::dtypes(&values::GPU_DTYPES))]
    pub dtype: Dtype,
    /// Fuse GELU into matmuls: 0 = never, 1 = forward, 2 = forward and backward, auto = where
    /// faster
    #[arg(long, value_name = "auto|0|1|2", default_value = "auto", value_parser = values::gelu_fusion)]
    pub gelu_fusion: i32,
    /// Timed calls per kernel
    #[arg(long, value_name = "N", default_value = "30", value_parser = values::count)]
    pub reps: usize,
    /// Records of other implementations at the same shapes, from dev/bench_attention.py, to show
    /// next to ours
    #[arg(long, value_name = "FILE")]
    pub peers: Vec<PathBuf>,
    /// Directory of records; this run writes <gpu>/<date>-kernels.json
    #[arg(long, value_name = "DIR", default_value = "benches/record")]
    pub record: PathBuf,
    /// File for the record, instead of the one in --record
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Passed by cargo bench; without it, this program runs as a test of itself
    #[arg(long, hide = true)]
    pub bench: bool,
}

impl Args {
    /// The models, each with the step whose kernels are timed.
    ///
    /// # Errors
    /// One line, if a shape is unknown or too short for the sequence.
    pub fn steps(&self) -> Result<Vec<(ModelConfig, StepShape)>> {
        let (B, T) = (self.batch_size, self.sequence_length);
        let run = StepShape {
            B,
            T,
            micro_steps: self.micro_steps,
            recompute: Recompute::Nothing,
            logits_rows: self.logits_rows,
            optimizer: OptimizerKind::Adamw,
        };
        let step = |name: &String| {
            let config = match name.as_str() {
                "tiny" => tiny(),
                "tiny-wide" => ModelConfig::new(1024, 2, 4, 256),
                name => ModelConfig::from_descriptor(name).context("-e/--models")?,
            };
            config.check_sequence_length(T).with_context(|| name.clone())?;
            Ok((config, run))
        };
        self.models.iter().map(step).collect()
    }
}

/// A model whose kernels run in seconds on the emulated device. Its shapes are not multiples of the
/// tiles.
pub fn tiny() -> ModelConfig {
    ModelConfig { V: 500, Vp: 512, ..ModelConfig::new(1024, 2, 2, 128) }
}
