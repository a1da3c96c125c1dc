//! Checks across the flags of the trainers: values that must fit each other, and values that the
//! device cannot honor. Also the quantities derived from several flags.

use super::flags::trainer::{CudaGraphs, InitMethodName, MicroBatch, Shuffle, TrainArgs};
use super::values;
use crate::config::ModelConfig;
use crate::device::cuda::MatmulChoice;
use crate::device::open::DeviceName;
use crate::hub;
use crate::parallel::rendezvous::InitMethod;
use crate::sharding::ZeroStage;
use anyhow::{Result, anyhow, bail, ensure};
use clap::ValueEnum;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The flag of the total batch.
pub const BATCH_FLAG: &str = "-d/--total-batch-size";

/// The name of a value on the command line.
fn name_of(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// The source of a model's first weights.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelSource {
    /// A checkpoint.
    File(PathBuf),
    /// A model of the hub, by its name.
    Hub(String),
    /// Random weights in this shape.
    Shape(ModelConfig),
}

/// Micro-steps of B * T tokens per process in a step of `total` tokens, which `flag` sets.
///
/// # Errors
/// If `total` is not a multiple of B * T * processes; the message names the nearest multiple.
pub fn micro_steps(flag: &str, total: usize, (B, T): (usize, usize), processes: usize) -> Result<usize> {
    let micro = B * T * processes;
    if total.is_multiple_of(micro) {
        return Ok(total / micro);
    }
    let below = total / micro * micro;
    let above = below + micro;
    let near = if below == 0 || above - total < total - below { above } else { below };
    bail!(
        "{flag}: expected a multiple of B * T{} = {B} * {T}{} = {micro} tokens, found {total}; \
         the nearest is {near}",
        if processes > 1 { " * processes" } else { "" },
        if processes > 1 { format!(" * {processes}") } else { String::new() }
    )
}

impl TrainArgs {
    /// Checks the flags together.
    ///
    /// # Errors
    /// One line that names the flag, for the first conflict.
    pub(super) fn check(&self) -> Result<()> {
        self.check_device()?;
        self.check_batch()?;
        self.check_graphs()?;
        self.check_tensors()?;
        self.check_files()?;
        self.check_schedule()?;
        self.check_update()?;
        self.check_lora()?;
        self.check_evaluation()?;
        self.rendezvous()?;
        // A run that resumes does not need it, and it may be gone.
        if self.files.resume { Ok(()) } else { self.model_source().map(drop) }
    }

    /// Refuses flags that the device cannot honor: a run must not silently ignore one.
    fn check_device(&self) -> Result<()> {
        let fixed = [(self.compat.flash, "--flash", "1", "attention is always fused")];
        let cpu = [
            (self.gpu.gpu_info_every == 0, "-lg/--gpu-info-every", "0", "the CPU has no GPU to report on"),
            (
                self.gpu.use_master_weights,
                "-w/--use-master-weights",
                "1",
                "the CPU always keeps its weights in f32",
            ),
            (
                self.gpu.gelu_fusion <= 0,
                "-ge/--gelu-fusion",
                "auto or 0",
                "the CPU runs GELU as a separate pass",
            ),
            (
                self.gpu.matmul == MatmulChoice::Fastest,
                "--matmul",
                "fastest",
                "the CPU has only its own matmuls",
            ),
        ];
        let emulated = [
            (
                self.gpu.gpu_info_every == 0,
                "-lg/--gpu-info-every",
                "0",
                "an emulated GPU has no state to report",
            ),
            (self.gpu.matmul != MatmulChoice::Cublaslt, "--matmul", "fastest or own", "cuBLASLt needs a GPU"),
        ];
        let cuda = [(
            self.gpu.matmul != MatmulChoice::Cublaslt || self.gpu.gelu_fusion <= 0,
            "-ge/--gelu-fusion",
            "auto or 0",
            "with --matmul cublaslt GELU is a kernel of its own",
        )];
        let further = match self.device.name {
            DeviceName::Cpu => &cpu[..],
            DeviceName::Emulated => &emulated[..],
            DeviceName::Cuda => &cuda,
        };
        let device = name_of(&self.device.name);
        for (honored, flag, value, why) in fixed.iter().chain(further) {
            ensure!(honored, "{flag}: expected {value} on the {device} device: {why}; drop the flag");
        }
        Ok(())
    }

    /// Refuses what `train_gpt2.py` would leave out in silence.
    fn check_tensors(&self) -> Result<()> {
        let ranks = self.process.world_size;
        ensure!(
            !self.compat.write_tensors || ranks == 1,
            "--write-tensors 1: expected a single process, found {ranks}; write the tensors with one of them first"
        );
        ensure!(
            !self.compat.write_tensors || !self.compat.inference_only,
            "--write-tensors 1: there are no gradients with --inference-only 1; drop one of them"
        );
        ensure!(
            !self.compat.write_tensors || self.optim.freeze.is_none(),
            "--write-tensors 1: writes all gradients, of which --freeze leaves some out; drop one of them"
        );
        Ok(())
    }

    /// Refuses graphs where no micro-step can be one.
    fn check_graphs(&self) -> Result<()> {
        if self.gpu.cuda_graphs != CudaGraphs::Always {
            return Ok(());
        }
        let (processes, shape) = (&self.processes, (self.batch.batch_size, self.batch.sequence_length));
        let steps = micro_steps(BATCH_FLAG, self.total_batch_tokens(), shape, self.process.world_size)?;
        let communicating = match processes.zero_stage {
            _ if self.process.world_size == 1 => 0,
            _ if processes.sum_every_micro_step => steps,
            ZeroStage::Zero0 => 1,
            // The first one awaits the parameters of the last update.
            ZeroStage::Zero1 => 2,
            ZeroStage::Zero2 | ZeroStage::Zero3 => steps,
        };
        ensure!(self.device.name != DeviceName::Cpu, "--cuda-graphs 1: a CPU has no graphs; drop the flag");
        ensure!(
            !self.device.check_numerics,
            "--cuda-graphs 1: --check-numerics 1 looks at each operation; drop one of them"
        );
        ensure!(
            communicating < steps,
            "--cuda-graphs 1: processes communicate in every micro-step, so none can be a graph; drop the flag"
        );
        Ok(())
    }

    /// The same flags with micro-batches of so many sequences, which `-b auto` has chosen.
    ///
    /// # Errors
    /// If other flags do not go with that number.
    pub fn with_batch_size(&self, sequences: usize) -> Result<Self> {
        let mut args = self.clone();
        args.batch.batch_size = sequences;
        for (_, value) in args.rows.iter_mut().filter(|row| row.0 == "micro batch size B") {
            *value = format!("auto ({sequences})");
        }
        args.check_batch().and_then(|()| args.check_graphs()).map(|()| args)
    }

    /// Refuses `-b auto` where the batch would decide what a step reads: the run would then depend
    /// on the memory of a machine.
    fn check_auto_batch(&self) -> Result<()> {
        ensure!(
            self.batch.total_batch_size.is_some(),
            "-b auto: needs the tokens of a step, {BATCH_FLAG}, which must not depend on the memory of a machine"
        );
        ensure!(
            self.batch.shuffle != Some(Shuffle::Llmc),
            "-b auto: with --shuffle llmc the order of the text depends on -b; give a number, or another order"
        );
        ensure!(
            self.schedule.batch_ramp.is_none(),
            "-b auto: --batch-ramp grows in multiples of B*T*processes; give a number"
        );
        Ok(())
    }

    fn check_batch(&self) -> Result<()> {
        if self.batch.micro_batch == MicroBatch::Auto {
            self.check_auto_batch()?;
        }
        let shape = (self.batch.batch_size, self.batch.sequence_length);
        let factors = [shape.0, shape.1, self.process.world_size];
        let tokens = factors.iter().try_fold(1usize, |product, &factor| product.checked_mul(factor));
        ensure!(
            tokens.is_some_and(|tokens| tokens <= values::TOKENS_MAX),
            "-b {} -t {}: expected at most {} tokens in a micro-batch of all processes, found more",
            shape.0,
            shape.1,
            values::TOKENS_MAX
        );
        micro_steps(BATCH_FLAG, self.total_batch_tokens(), shape, self.process.world_size).map(drop)
    }

    fn check_files(&self) -> Result<()> {
        ensure!(
            self.files.rollbacks == 0 || self.files.checkpoint_every > 0,
            "--rollbacks {}: needs checkpoints to go back to; write them with -n/--checkpoint-every",
            self.files.rollbacks
        );
        if let Some(dir) = self.files.output_dir.as_ref().filter(|dir| dir.exists() && !dir.is_dir()) {
            bail!("-o/--output-dir {}: expected a directory, found a file", dir.display());
        }
        if self.files.output_dir.is_none() {
            let log = "follows the log of the run; give it a directory with -o/--output-dir";
            ensure!(!self.tracking.tensorboard, "--tensorboard 1: {log}");
            ensure!(self.tracking.mlflow.is_none(), "--mlflow: {log}");
            if let Some(steps) = self.files.profile {
                bail!("--profile {steps}: needs a directory for the timeline; give one with -o/--output-dir");
            }
            let wanted = "needs a directory for checkpoints; give one with -o/--output-dir";
            ensure!(!self.files.resume, "-y/--resume 1: {wanted}");
            ensure!(
                self.files.checkpoint_every == 0,
                "-n/--checkpoint-every {}: {wanted}, or -n 0",
                self.files.checkpoint_every
            );
        }
        Ok(())
    }

    fn check_evaluation(&self) -> Result<()> {
        ensure!(
            !self.eval.hellaswag_eval || self.eval.val_loss_every > 0,
            "-h/--hellaswag-eval 1: runs with validation, which -v 0 turns off; give -v, or -h 0"
        );
        self.tasks.check(self.eval.val_loss_every)?;
        ensure!(
            self.eval.early_stop == 0 || self.eval.val_loss_every > 0,
            "--early-stop {}: looks at the validation loss, which -v 0 turns off; give -v, or drop the flag",
            self.eval.early_stop
        );
        ensure!(
            self.eval.early_stop == 0 || !self.compat.inference_only,
            "--early-stop {}: nothing is trained with --inference-only 1; drop one of them",
            self.eval.early_stop
        );
        // A preset may have a prompt, and -s 0 turn its samples off.
        ensure!(
            self.eval.prompt.is_none() || self.eval.sample_every > 0 || self.recipe.preset.is_some(),
            "--prompt: -s 0 turns samples off; give -s, or drop the prompt"
        );
        Ok(())
    }

    /// The flag that names the training data.
    pub fn train_data_flag(&self) -> &'static str {
        if self.batch.overfit_single_batch { "-j" } else { "-i" }
    }

    /// Tokens per micro-step of one process.
    pub fn micro_batch_tokens(&self) -> usize {
        self.batch.batch_size * self.batch.sequence_length
    }

    /// Whether the model answers the questions of a task during training.
    pub fn asks_questions(&self) -> bool {
        self.eval.hellaswag_eval || !self.tasks.files.is_empty()
    }

    /// Tokens per optimizer step, over all processes.
    pub fn total_batch_tokens(&self) -> usize {
        self.batch.total_batch_size.unwrap_or(self.micro_batch_tokens() * self.process.world_size)
    }

    /// Micro-steps per optimizer step of one process.
    pub fn grad_accum_steps(&self) -> usize {
        self.total_batch_tokens() / (self.micro_batch_tokens() * self.process.world_size)
    }

    /// The end of --max-hours.
    pub fn deadline(&self) -> Option<Instant> {
        let hours = self.batch.max_hours.map(f64::from);
        hours.and_then(|hours| self.started.checked_add(Duration::try_from_secs_f64(hours * 3600.0).ok()?))
    }

    /// The method to find the other processes.
    ///
    /// # Errors
    /// If the method lacks its address or directory, or one was given for another method.
    pub fn rendezvous(&self) -> Result<InitMethod> {
        let (ip, path) = (&self.processes.server_ip, &self.processes.fs_path);
        let method = self.processes.nccl_init_method;
        ensure!(
            ip.is_empty() || method == InitMethodName::Tcp,
            "-ps {ip}: expected -pi tcp with an address, found -pi {}",
            name_of(&method)
        );
        ensure!(
            path.is_empty() || method == InitMethodName::Fs,
            "-pf {path}: expected -pi fs with a directory, found -pi {}",
            name_of(&method)
        );
        Ok(match method {
            InitMethodName::Tcp => InitMethod::Tcp(ip.clone()),
            InitMethodName::Fs => {
                ensure!(!path.is_empty(), "-pi fs: expected the shared directory with -pf");
                InitMethod::SharedDirectory(path.into())
            }
            // llm.c's default. A single process never uses it.
            InitMethodName::Mpi if self.process.world_size > 1 => self.mpi()?,
            _ => InitMethod::Auto,
        })
    }

    #[cfg(feature = "mpi")]
    fn mpi(&self) -> Result<InitMethod> {
        Ok(InitMethod::Mpi)
    }

    #[cfg(not(feature = "mpi"))]
    fn mpi(&self) -> Result<InitMethod> {
        bail!(
            "-pi mpi: expected auto, tcp or fs: this program was built without MPI; build it with make {} MPI=1, which \
             needs MPI and libclang (libopenmpi-dev and libclang-dev on Debian)",
            self.program.name()
        )
    }

    /// Whether any flag sets a part of the shape.
    pub(super) fn has_shape_flags(&self) -> bool {
        [self.model.layers, self.model.heads, self.model.channels, self.model.context]
            .iter()
            .any(Option::is_some)
    }

    /// The source of the first weights of a new run.
    ///
    /// # Errors
    /// If the shape is unknown, invalid, or given for a checkpoint, which has its own.
    pub fn model_source(&self) -> Result<ModelSource> {
        if self.model.source.is_empty() {
            return self.shape_from_flags();
        }
        if !hub::is_model_file(&self.model.source) {
            let (is_here, is_on_hub) =
                (Path::new(&self.model.source).exists(), hub::is_model_name(&self.model.source));
            match ModelConfig::from_descriptor(&self.model.source) {
                Ok(base) => return self.override_shape(base),
                Err(error) if !is_here && !is_on_hub => return Err(error.context("-e/--model")),
                Err(_) => {}
            }
            if !is_here {
                self.refuse_shape()?;
                return Ok(ModelSource::Hub(self.model.source.clone()));
            }
        }
        self.refuse_shape()?;
        Ok(ModelSource::File(PathBuf::from(&self.model.source)))
    }

    /// Refuses flags of the shape for a checkpoint, which has its own.
    fn refuse_shape(&self) -> Result<()> {
        ensure!(
            !self.has_shape_flags() && self.model.qkv_bias,
            "-e/--model {}: a checkpoint has its own shape; drop --layers, --heads, --channels, --context and \
             --qkv-bias, or give -e a shape such as d12",
            self.model.source
        );
        Ok(())
    }

    fn shape_from_flags(&self) -> Result<ModelSource> {
        let need = |value: Option<usize>, flag: &str| {
            value.ok_or_else(|| {
                anyhow::anyhow!(
                    "{flag}: missing; a model without -e needs --layers, --heads and --channels (or start from a \
                     shape with -e d12)"
                )
            })
        };
        let (L, NH) = (need(self.model.layers, "--layers")?, need(self.model.heads, "--heads")?);
        let C = need(self.model.channels, "--channels")?;
        self.override_shape(ModelConfig::new(self.batch.sequence_length, L, NH, C))
    }

    fn override_shape(&self, base: ModelConfig) -> Result<ModelSource> {
        let config = ModelConfig {
            maxT: self.model.context.unwrap_or(base.maxT),
            L: self.model.layers.unwrap_or(base.L),
            NH: self.model.heads.unwrap_or(base.NH),
            C: self.model.channels.unwrap_or(base.C),
            qkv_bias: self.model.qkv_bias,
            ..base
        };
        config.validate()?;
        let checked = config.check_sequence_length(self.batch.sequence_length);
        checked.map_err(|error| anyhow!("{error}; lower it or raise --context"))?;
        Ok(ModelSource::Shape(config))
    }
}
