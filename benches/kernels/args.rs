//! The flags.

use anyhow::{Context, Result, ensure};
use clap::Parser;
use std::path::PathBuf;
use warpsmith::cli::values;
use warpsmith::config::ModelConfig;
use warpsmith::device::open::DeviceName;
use warpsmith::roofline::kernels::StepShape;
use warpsmith::tensor::Dtype;

/// Time every kernel of a training step by itself, checked before, beside cuBLASLt
#[derive(Parser, Clone, Debug)]
#[command(name = "kernels", args_override_self = true)]
pub struct Args {
    /// cuda, or emulated: results are checked and memory accesses counted, but nothing is timed
    #[arg(long, value_name = "NAME", default_value = "cuda", value_parser = values::cuda_device)]
    pub device: DeviceName,
    /// Shapes, with commas between: d12, gpt2:d24, gpt3:c768, or tiny
    #[arg(
        short = 'e',
        long = "models",
        value_name = "SHAPES",
        value_delimiter = ',',
        default_value = "d12,d24,d36,d48"
    )]
    pub models: Vec<String>,
    /// Micro-batch: sequences in one forward and backward pass
    #[arg(short = 'b', long, value_name = "B", default_value = "64", value_parser = values::count)]
    pub batch_size: usize,
    /// Tokens in a sequence, at most what the model can take
    #[arg(short = 't', long, value_name = "T", default_value = "1024", value_parser = values::count)]
    pub sequence_length: usize,
    /// Rows (tokens) of logits that memory holds: they are computed in equal pieces of at most so many
    #[arg(long, value_name = "ROWS", default_value = "16384", value_parser = values::count)]
    pub logits_rows: usize,
    /// Micro-steps in a step: from 2 on, gradients of weights are added to, as in all but the first
    #[arg(long, value_name = "N", default_value = "8", value_parser = values::count)]
    pub micro_steps: usize,
    /// Only kernels with one of these in their names: attention, "qkv wgrad"
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = values::name)]
    pub only: Vec<String>,
    /// Of the numbers on the device: bf16, fp16, f32
    #[arg(long, value_name = "TYPE", default_value = "bf16", value_parser = values::dtypes(&values::GPU_DTYPES))]
    pub dtype: Dtype,
    /// Fuse GELU into matrix products: 0 = no, 1 = forward, 2 = forward and backward, auto = where measured to be faster
    #[arg(long, value_name = "auto|0..2", default_value = "auto", value_parser = values::gelu_fusion)]
    pub gelu_fusion: i32,
    /// Timed calls of each kernel
    #[arg(long, value_name = "N", default_value = "30", value_parser = values::count)]
    pub reps: usize,
    /// Records of others at the same shapes, from dev/bench_attention.py, to show beside
    #[arg(long, value_name = "FILE")]
    pub peers: Vec<PathBuf>,
    /// Folder of records: of this one in <gpu>/<date>-kernels.json
    #[arg(long, value_name = "DIR", default_value = "benches/record")]
    pub record: PathBuf,
    /// Where to write the record, if not there
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Cargo's word for benchmarks; without it this program is a test of itself
    #[arg(long, hide = true)]
    pub bench: bool,
}

impl Args {
    /// The models, and the step whose kernels are asked for.
    ///
    /// # Errors
    /// One line, if a shape is unknown or too short for the sequence.
    pub fn steps(&self) -> Result<Vec<(ModelConfig, StepShape)>> {
        let (B, T) = (self.batch_size, self.sequence_length);
        let run =
            StepShape { B, T, micro_steps: self.micro_steps, recompute: 0, logits_rows: self.logits_rows };
        let step = |name: &String| {
            let config = match name.as_str() {
                "tiny" => tiny(),
                name => ModelConfig::from_descriptor(name).context("-e/--models")?,
            };
            ensure!(
                T <= config.maxT,
                "-t/--sequence-length: expected at most {}, what {name} can take, found {T}",
                config.maxT
            );
            Ok((config, run))
        };
        self.models.iter().map(step).collect()
    }
}

/// A model whose kernels are emulated in seconds. Its shapes have ragged edges.
pub fn tiny() -> ModelConfig {
    ModelConfig { V: 500, Vp: 512, ..ModelConfig::new(1024, 2, 2, 128) }
}
