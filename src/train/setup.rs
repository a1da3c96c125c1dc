//! From flags to a [`Run`]: open the data, find the initial weights, plan the memory, allocate it once, fill it.

use super::Run;
use super::clock::StepClock;
use super::logs::{Logs, MemoryNeeds};
use super::peers::Peers;
use super::resume;
use super::sharing::{Shares, Sharing};
use crate::checkpoint::{self, ModelFile, Saved};
use crate::cli::ModelSource;
use crate::cli::flags::trainer::TrainArgs;
use crate::config::ModelConfig;
use crate::data::loader::{DataLoader, LoaderOptions};
use crate::data::tokenizer::EOT;
use crate::eval::hellaswag::HellaSwag;
use crate::model::decode::Decoder;
use crate::model::{BatchShape, GPT2, ModelOptions, init};
use crate::ops::{Limits, Ops, plan_scratch};
use crate::optim::loss_scale::LossScale;
use crate::optim::optimizer::{HyperParams, Optimizer};
use crate::optim::outlier::OutlierDetector;
use crate::parallel::environment::Process;
use crate::tensor::{Dtype, MemoryPlan};
use crate::units::{Part, PerParam, Sharding, Stage};
use anyhow::{Context, Result, ensure};

/// Memory of a GPU that is not ours to plan: the driver's, the kernels', a library's.
const RESERVED_BYTES: usize = 1 << 30;

/// Where the initial weights come from.
enum Start {
    Random(ModelConfig),
    File(Box<ModelFile>),
    Resume(Box<Saved>),
}

/// Builds a run, ready for its first step.
///
/// # Errors
/// If data, checkpoint or shape are not to be had or do not fit each other, or memory is short.
pub fn set_up(args: &TrainArgs, mut dev: Box<dyn Ops>, peers: Peers) -> Result<Run> {
    let start = find_start(args)?;
    let config = start.config();
    let (train_loader, val_loader) = open_loaders(args, &config, &peers.process)?;
    let hellaswag =
        args.eval.hellaswag_eval.then(|| HellaSwag::open(&args.eval.hellaswag_data)).transpose()?;
    let options = model_options(args, &config, hellaswag.as_ref(), dev.as_ref())?;
    let Planned { plan, model, shares, optimizer, decoder } = plan(args, &config, &options, dev.as_ref())?;
    let max_steps = args.train_steps(train_loader.num_tokens())?;
    check_samples(args, &config, decoder.is_some())?;
    let resumed_step = start.resumed_step();
    ensure!(
        resumed_step.is_none_or(|step| step <= max_steps),
        "-x {max_steps}: the checkpoint in -o is past that already, at step {}",
        resumed_step.unwrap_or_default()
    );
    let libraries: Vec<_> = dev.libraries()?.into_iter().chain(peers.library()).collect();
    let mut logs = Logs::new(max_steps, !peers.process.is_master());
    let loaders = (&train_loader, val_loader.as_ref());
    logs.banner(args, dev.as_ref(), &start.describe(args), &model.weights, loaders);
    logs.libraries(&libraries);
    logs.peers(peers.describe(), describe_stage(args));
    let gpu = dev.gpu();
    logs.memory(&plan, &memory_needs(args, &config, &options, dev.as_ref())?, gpu.as_ref());
    if args.gpu.gpu_info_every > 0 {
        dev.gpu_state().context("-lg")?;
    }
    dev.allocate(&plan)?;

    let mut run = Run {
        schedule: args.schedule(max_steps),
        shape: BatchShape { B: args.batch.batch_size, T: args.batch.sequence_length },
        grad_accum_steps: args.grad_accum_steps(),
        first_step: 0,
        resumed: false,
        max_steps,
        loss_outliers: OutlierDetector::default(),
        norm_outliers: OutlierDetector::default(),
        loss_scale: (dev.float_dtype() == Dtype::F16).then(LossScale::default),
        clock: StepClock::default(),
        best_val_loss: None,
        output_dir: args.files.output_dir.clone().filter(|_| peers.process.is_master()),
        args: args.clone(),
        sharing: Sharing::new(peers, shares, args.processes.sum_every_micro_step),
        dev,
        model,
        optimizer,
        train_loader,
        val_loader,
        decoder,
        hellaswag,
        logs,
    };
    run.fill(start)?;
    run.agree()?;
    // Last, as it cuts the logs of the run back to its checkpoint: whatever is refused before loses nothing.
    if let Some(dir) = &run.output_dir {
        run.logs.open(dir, resumed_step)?;
    }
    Ok(run)
}

impl Run {
    /// The parameters, and in a run that goes on all the rest.
    fn fill(&mut self, start: Start) -> Result<()> {
        let dev = self.dev.as_mut();
        let copies: Vec<&PerParam> =
            [self.sharing.params()].into_iter().chain(&self.optimizer.master).collect();
        match start {
            Start::Random(config) => init::initialize(dev, &config, &copies, self.args.model.seed),
            Start::File(file) => copies.iter().try_for_each(|copy| copy.upload(dev, 0, &file.params)),
            Start::Resume(saved) => self.restore(*saved),
        }
    }
}

/// Everything that takes memory on the device.
struct Planned {
    plan: MemoryPlan,
    model: GPT2,
    shares: Shares,
    optimizer: Optimizer,
    decoder: Option<Decoder>,
}

fn plan(args: &TrainArgs, config: &ModelConfig, options: &ModelOptions, dev: &dyn Ops) -> Result<Planned> {
    let mut plan = MemoryPlan::new();
    let dtype = dev.float_dtype();
    let model = GPT2::plan(config, options, dtype, &mut plan);
    let shares = Shares::plan(options.sharding, &model, &mut plan);
    let layout = &model.weights.params.layout;
    let (part, master) = (options.sharding.kept(Stage::Zero1), args.gpu.use_master_weights);
    let optimizer = Optimizer::plan(layout, part, dtype, master, hyper_params(args), &mut plan);
    // No sample is longer than asked for, so neither is the cache.
    let context = args.eval.sample_len.clamp(1, config.maxT);
    let decoder = (args.eval.sample_every > 0).then(|| Decoder::plan(&model.weights, context, &mut plan));
    let uses: Vec<Limits> =
        [model.limits()].into_iter().chain(decoder.as_ref().map(Decoder::limits)).collect();
    plan_scratch(dev, &uses, &mut plan)?;
    Ok(Planned { plan, model, shares, optimizer, decoder })
}

/// What one more sequence in a batch takes, by planning for it; from this follows what fits.
fn memory_needs(
    args: &TrainArgs,
    config: &ModelConfig,
    options: &ModelOptions,
    dev: &dyn Ops,
) -> Result<MemoryNeeds> {
    // A batch that fills the buffers, which may be there for longer questions.
    let B = options.B.max(options.min_rows.div_ceil(options.T));
    let bytes = |B: usize| {
        plan(args, config, &ModelOptions { B, ..*options }, dev).map(|planned| planned.plan.size_bytes())
    };
    let (at_B, one_more) = (bytes(B)?, bytes(B + 1)?);
    let sequence_bytes = one_more - at_B;
    let room = dev.gpu().map(|gpu| gpu.memory_bytes.saturating_sub(RESERVED_BYTES));
    let fits = |room: usize| (room + B * sequence_bytes).saturating_sub(at_B) / sequence_bytes.max(1);
    Ok(MemoryNeeds { sequence_bytes, max_batch_size: room.map(fits) })
}

fn find_start(args: &TrainArgs) -> Result<Start> {
    if let Some(dir) = &args.files.output_dir {
        if args.files.resume
            && let Some(saved) = resume::find(dir, args.process.is_master())?
        {
            check_shape(args, &saved)?;
            return Ok(Start::Resume(Box::new(saved)));
        }
        if !args.files.resume {
            checkpoint::ensure_fresh(dir)?;
        }
    }
    Ok(match args.model_source()? {
        ModelSource::Shape(config) => Start::Random(config),
        ModelSource::File(path) => {
            Start::File(Box::new(checkpoint::load_model(&path).context("-e/--model")?))
        }
    })
}

/// Refuses a shape that is asked for but is not that of the checkpoint to resume.
fn check_shape(args: &TrainArgs, saved: &Saved) -> Result<()> {
    if let Ok(ModelSource::Shape(asked)) = args.model_source() {
        let found = saved.model.config;
        ensure!(
            asked == found,
            "-e/--model, --layers, --heads, --channels, --context, --qkv-bias: expected the shape of the checkpoint in -o \
             ({found:?}), found {asked:?}; resume with that shape, or choose another -o"
        );
    }
    Ok(())
}

/// Samples start from a token of GPT-2's vocabulary, which a model may not have.
fn check_samples(args: &TrainArgs, config: &ModelConfig, wanted: bool) -> Result<()> {
    ensure!(
        !wanted || config.V > usize::from(EOT),
        "-s {}: samples start from token {EOT}, but the model knows {} tokens; use -s 0",
        args.eval.sample_every,
        config.V
    );
    Ok(())
}

impl Start {
    fn config(&self) -> ModelConfig {
        match self {
            Start::Random(config) => *config,
            Start::File(file) => file.config,
            Start::Resume(saved) => saved.model.config,
        }
    }

    fn resumed_step(&self) -> Option<usize> {
        match self {
            Start::Resume(saved) => Some(saved.state.state.step as usize),
            _ => None,
        }
    }

    /// For the start-up table.
    fn describe(&self, args: &TrainArgs) -> String {
        match self {
            Start::Random(_) => format!("random, seed {}", args.model.seed),
            Start::File(_) => args.model.source.clone(),
            Start::Resume(saved) => format!("checkpoint of step {}", saved.state.state.step),
        }
    }
}

/// The training data, and the validation data if any flag asks for it.
fn open_loaders(
    args: &TrainArgs,
    config: &ModelConfig,
    process: &Process,
) -> Result<(DataLoader, Option<DataLoader>)> {
    let open = |pattern: &str, flag: &str, shuffle: bool| {
        DataLoader::open(LoaderOptions {
            pattern,
            flag,
            B: args.batch.batch_size,
            T: args.batch.sequence_length,
            rank: process.rank,
            num_processes: process.world_size,
            shuffle,
            V: config.V,
        })
    };
    let train = match args.batch.overfit_single_batch {
        true => open(&args.files.input_val_bin, "-j", false)?,
        false => open(&args.files.input_bin, "-i", true)?,
    };
    let val =
        (args.eval.val_loss_every > 0).then(|| open(&args.files.input_val_bin, "-j", false)).transpose()?;
    Ok((train, val))
}

/// The buffers training needs, and rows enough for the longest HellaSwag question.
fn model_options(
    args: &TrainArgs,
    config: &ModelConfig,
    hellaswag: Option<&HellaSwag>,
    dev: &dyn Ops,
) -> Result<ModelOptions> {
    let (B, T) = (args.batch.batch_size, args.batch.sequence_length);
    ensure!(
        T <= config.maxT,
        "-t {T}: longer than the {} positions of the model; use at most -t {}",
        config.maxT,
        config.maxT
    );
    let min_rows = hellaswag.map_or(0, |h| h.longest().min(config.maxT));
    let recompute = args.device.recompute;
    let (logits_bytes, sharding) = (dev.logits_bytes(), sharding(args));
    Ok(ModelOptions { B, T, min_rows, recompute, logits_bytes, sharding })
}

/// One process alone has nobody to divide anything with.
fn sharding(args: &TrainArgs) -> Sharding {
    let Process { rank, world_size, .. } = args.process;
    let part = Part { index: rank, of: world_size };
    if world_size == 1 {
        Sharding::NONE
    } else {
        Sharding { stage: Stage::ALL[args.processes.zero_stage], part }
    }
}

/// For the start-up table.
fn describe_stage(args: &TrainArgs) -> Option<String> {
    let (stage, parts) = (args.processes.zero_stage, args.process.world_size);
    let what = match stage {
        0 => return None,
        _ if parts == 1 => return Some(format!("{stage}: nothing to divide, for one process")),
        1 => "optimizer state",
        2 => "optimizer state, gradients",
        _ => "state, gradients, parameters",
    };
    Some(format!("{stage}: {what} in {parts} parts"))
}

fn hyper_params(args: &TrainArgs) -> HyperParams {
    HyperParams {
        beta1: args.optim.beta1,
        beta2: args.optim.beta2,
        eps: args.optim.adam_eps,
        weight_decay: args.optim.weight_decay,
        grad_clip: args.optim.grad_clip,
    }
}
